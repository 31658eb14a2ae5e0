// thaw-mkroot: turns a code artifact (an archive or a folder with a Dockerfile
// at its root) into a root file system and its configuration. thawd starts one
// for every build of a Dockerfile; it is never run by hand, except by tests.
//
// Theory. The artifact is hostile, and a Dockerfile's RUN steps are programs of
// a stranger. So (who contains whom, and in which order: mkdisk_contain.c):
//   1. the artifact is opened with the peer's rights (mkdisk_source.c), or
//      fetched by a process that may do nothing else (mkroot_fetch.c);
//   2. everything after that happens in fresh mount, PID, net, ipc and uts
//      namespaces. Their root (mkroot_jail.c) has the programs read-only, the
//      base images' store read-only, a /dev of its own and /work. There is no
//      network but where the build was granted one;
//   3. the archive is unpacked by a child that is chrooted into the tree that it
//      makes, with five capabilities (mkdisk_extract.c);
//   4. buildah builds with the store of its own in /work. Base images come from
//      a second store that it cannot write. RUN steps run chrooted in the
//      container's tree, without CAP_SYS_ADMIN, CAP_MKNOD, CAP_SYS_PTRACE;
//   5. a tar of the result is what leaves, next to a short configuration. It is
//      judged again by thaw-mkdisk.
// Nothing outlives a build: the second process is PID 1 of its namespace, and
// all mounts are in its mount namespace. The first dies with thawd, and the
// second with the first. What a killed thawd leaves is WORK, a folder.
//
// It talks in lines on stdout: "stage NAME", "progress PERCENT TEXT", "log
// TEXT", "note TEXT", and last "result TAR_BYTES FETCH_MS BUILD_MS" or "error
// -ERRNO REASON LINE TEXT". SIGTERM ends it in order: when it has exited,
// nothing runs. The tar is WORK/rootfs.tar, the configuration WORK/config.json.
// WORK is the caller's to remove.
#include "mkroot.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

int mr_fail(struct mr_shared *sh, enum img_reason reason, unsigned line,
	    struct err *e, int code, const char *fmt, ...)
{
	char text[ERR_MSG_MAX];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	sh->reason = (int)reason;
	sh->line = line;
	return err_set(e, code, "%s", text);
}

void mr_stage(const char *name)
{
	char line[64];

	snprintf(line, sizeof(line), "stage %s\n", name);
	util_write_all(STDOUT_FILENO, line, strlen(line));
}

// One write, so that lines stay whole.
void mr_log(const char *p, size_t n)
{
	char line[MR_LINE + 8];
	size_t len = 4;

	memcpy(line, "log ", len);
	for (size_t i = 0; i < MIN(n, (size_t)MR_LINE); i++)
		if (p[i] && p[i] != '\n')
			line[len++] = p[i];
	line[len++] = '\n';
	util_write_all(STDOUT_FILENO, line, len);
}

void mr_note(const char *fmt, ...)
{
	char text[600];
	va_list ap;
	int n;

	n = snprintf(text, sizeof(text), "thaw: ");
	va_start(ap, fmt);
	vsnprintf(text + n, sizeof(text) - (size_t)n, fmt, ap);
	va_end(ap);
	mr_log(text, strlen(text));
}

int mr_wait(pid_t pid, int *st, struct err *e)
{
	bool cancelled = false;
	sigset_t set;
	pid_t got;
	int sig;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGCHLD);
	for (;;) {
		got = waitpid(pid, st, WNOHANG);
		if (got == pid)
			break;
		if (got < 0 && errno != EINTR)
			return err_sys(e, "waiting for the builder");
		sig = sigwaitinfo(&set, NULL);
		if (sig == SIGTERM) {
			cancelled = true;
			kill(pid, SIGKILL);
		}
	}
	return cancelled ? err_set(e, -ECANCELED, "cancelled") : 0;
}

struct run {
	const struct mr_opts *o;
	struct mk_source *src;
	struct mr_shared *sh;
};

static int unpack_child(void *ctx, struct err *e)
{
	const struct run *r = ctx;

	return mk_extract(&r->o->mk, r->src, &r->sh->mk, e);
}

static int unpack(struct run *r, struct err *e)
{
	int rc;

	mr_stage("unpack");
	rc = mk_child(&r->sh->mk, unpack_child, r, "the unpacking", e);
	fd_close(&r->src->fd); // a tar that still writes gets SIGPIPE
	if (rc)
		r->sh->reason = rc == -ENOSPC || rc == -EFBIG
				    ? IMG_DISK_STORAGE_FULL
				    : IMG_ARCHIVE_INVALID;
	else if (r->sh->mk.devices)
		mr_note("%llu devices, sockets and FIFOs of the artifact were "
			"left out",
			(unsigned long long)r->sh->mk.devices);
	return rc;
}

static int read_dockerfile(struct run *r, struct dockerfile *d, struct err *e)
{
	const char *path = "/work/context/Dockerfile";
	cleanup_free char *text = NULL;
	cleanup_fd int fd =
	    open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	unsigned line = 0;
	struct stat st;
	int rc;

	if (fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode))
		return mr_fail(
		    r->sh, IMG_ARCHIVE_DOCKERFILE_NOT_FOUND, 0, e, -ENOENT,
		    "the artifact has no file 'Dockerfile' at its root (of the "
		    "archive, not of a folder in it: pack a folder's "
		    "contents)");
	if (st.st_size > DOCKERFILE_MAX)
		return mr_fail(r->sh, IMG_CONTAINER_BUILD_FAILED, 0, e, -EFBIG,
			       "the Dockerfile is larger than %d KiB",
			       DOCKERFILE_MAX >> 10);
	text = malloc((size_t)st.st_size + 1);
	if (!text)
		return err_set(e, -ENOMEM, "out of memory");
	if (util_pread_all(fd, text, (size_t)st.st_size, 0))
		return err_set(e, -EIO, "cannot read the Dockerfile");
	rc = dockerfile_parse(d, text, (size_t)st.st_size, &line, e);
	if (rc) {
		r->sh->reason = IMG_CONTAINER_BUILD_FAILED;
		r->sh->line = line;
	}
	return rc;
}

// PID 1 of the new namespace.
static int inner(void *ctx, struct err *e)
{
	struct run *r = ctx;
	uint64_t deadline =
	    util_now_ns() + (uint64_t)r->o->timeout_s * 1000000000u;
	struct dockerfile d;
	int rc;

	rc = mr_jail_enter(r->o, e);
	if (!rc)
		rc = unpack(r, e);
	if (rc)
		return rc;
	rc = read_dockerfile(r, &d, e);
	if (rc)
		return rc;
	rc = mr_build(r->o, &d, r->sh, deadline, e);
	if (!rc)
		rc = mr_export(r->o, &d, r->sh, deadline, e);
	dockerfile_free(&d);
	return rc;
}

static int inner_error(struct mr_shared *sh, int st, struct err *e)
{
	int rc = mk_said(&sh->mk, st, e);

	if (sh->reason <= IMG_NO_REASON || sh->reason >= IMG_NUM_REASONS)
		sh->reason = IMG_INTERNAL_PLATFORM_ERROR;
	if (rc)
		return rc;
	return err_set(e, -EIO, "the builder was killed (%s %d)",
		       WIFSIGNALED(st) ? "signal" : "exit code",
		       WIFSIGNALED(st) ? WTERMSIG(st) : WEXITSTATUS(st));
}

static int contained(struct run *r, struct err *e)
{
	int rc, st;
	pid_t pid =
	    mk_contain(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWPID,
		       r->src, &r->sh->mk, inner, r, e);

	if (pid < 0)
		return pid;
	rc = mr_wait(pid, &st, e);
	if (!rc && (!WIFEXITED(st) || WEXITSTATUS(st)))
		rc = inner_error(r->sh, st, e);
	return rc;
}

static void end_helper(pid_t pid)
{
	if (pid <= 0)
		return;
	kill(pid, SIGKILL);
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
}

static int open_source(const struct mr_opts *o, struct mr_shared *sh,
		       struct mk_source *src, struct err *e)
{
	int rc;

	mr_stage("fetch");
	if (o->url)
		return mr_fetch(o, sh, src, e);
	rc = mk_source_open(&o->mk, src, e);
	if (rc) // AWS has no files; these are what they come nearest to
		sh->reason =
		    rc == -ENOENT || rc == -ENOTDIR ? IMG_S3_NO_SUCH_KEY
		    : rc == -EACCES || rc == -EPERM ? IMG_S3_ACCESS_DENIED
						    : IMG_S3_INVALID_OBJECT;
	return rc;
}

static int run(const struct mr_opts *o, struct mr_shared *sh,
	       uint64_t *fetch_ms, struct err *e)
{
	struct mk_source src = {-1, 0, 0, -1};
	struct run r = {o, &src, sh};
	struct err tar_err = ERR_INIT;
	uint64_t t0 = util_now_ns();
	pid_t helper = 0;
	int rc, rc_tar;

	rc = open_source(o, sh, &src, e);
	*fetch_ms = (util_now_ns() - t0) / 1000000;
	if (rc)
		return rc;
	rc = mr_net(o, &helper, e);
	if (!rc)
		rc = contained(&r, e);
	end_helper(helper);
	if (!src.tar)
		return rc;
	fd_close(&src.fd);
	rc_tar = mk_source_finish(&o->mk, &src, &tar_err);
	// When reading failed, that is the reason, not the short archive.
	if (rc_tar && rc != -ECANCELED && (!rc || rc_tar != -EPIPE))
		rc = mr_fail(sh,
			     rc_tar == -EACCES ? IMG_S3_ACCESS_DENIED
					       : IMG_S3_INVALID_OBJECT,
			     0, e, rc_tar, "%s", tar_err.msg);
	return rc;
}

static int number(const char *text, uint64_t *out)
{
	char *end;

	errno = 0;
	*out = strtoull(text, &end, 10);
	return errno || end == text || *end ? -EINVAL : 0;
}

static int take_number(struct mr_opts *o, int c, const char *text)
{
	uint64_t v = 0;

	if (number(text, &v))
		return -EINVAL;
	if (c == 'p')
		return (pid_t)v == getppid() ? 0 : -ECANCELED;
	if (c == 'u')
		o->mk.uid = (uid_t)v;
	else if (c == 'g')
		o->mk.gid = (gid_t)v;
	else if (c == 'm')
		o->mk.max_bytes = v;
	else if (c == 'e')
		o->mk.max_entries = v;
	else
		o->timeout_s = (unsigned)MIN(v, 86400u);
	return 0;
}

static int parse(int argc, char **argv, struct mr_opts *o)
{
	static const struct option longs[] = {
	    {"source", 1, NULL, 's'},	   {"url", 1, NULL, 'U'},
	    {"region", 1, NULL, 'r'},	   {"credentials", 1, NULL, 'c'},
	    {"fetch", 1, NULL, 'f'},	   {"bases", 1, NULL, 'b'},
	    {"work", 1, NULL, 'w'},	   {"build-arg", 1, NULL, 'a'},
	    {"network", 0, NULL, 'n'},	   {"uid", 1, NULL, 'u'},
	    {"gid", 1, NULL, 'g'},	   {"max-bytes", 1, NULL, 'm'},
	    {"max-entries", 1, NULL, 'e'}, {"timeout", 1, NULL, 't'},
	    {"parent", 1, NULL, 'p'},	   {NULL, 0, NULL, 0}};
	int c;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		if (c == '?' || (c == 'a' && o->nargs == MR_ARGS_MAX))
			return -EINVAL;
		if (c == 's')
			o->mk.source = optarg;
		else if (c == 'U')
			o->url = o->mk.source = optarg;
		else if (c == 'r')
			o->region = optarg;
		else if (c == 'c')
			o->credentials = optarg;
		else if (c == 'f')
			o->fetch = optarg;
		else if (c == 'b')
			o->bases = optarg;
		else if (c == 'w')
			o->mk.work = optarg;
		else if (c == 'a')
			o->args[o->nargs++] = optarg;
		else if (c == 'n')
			o->network = true;
		else if (take_number(o, c, optarg))
			return -EINVAL;
	}
	return o->mk.source && o->mk.work && (!o->url || o->fetch) &&
		       optind == argc
		   ? 0
		   : -EINVAL;
}

static void settle_in(void)
{
	sigset_t set;

	mk_settle();
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
}

int main(int argc, char **argv)
{
	struct mr_opts o = {.mk = {.max_bytes = 32ull << 30,
				   .max_entries = 500000,
				   .tree = "/work/context",
				   .context = true},
			    .timeout_s = 3600};
	uint64_t t0 = util_now_ns(), fetch_ms = 0;
	struct err e = ERR_INIT;
	struct mr_shared *sh;
	char head[80];

	settle_in();
	if (parse(argc, argv, &o)) {
		fprintf(stderr,
			"usage: thaw-mkroot --source PATH | --url URL "
			"--fetch PROGRAM [--region R] [--credentials FILE]\n"
			"  --work DIR [--bases DIR] [--build-arg KEY=VALUE]... "
			"[--network] [--uid N --gid N]\n  [--max-bytes N] "
			"[--max-entries N] [--timeout S] [--parent PID]\n");
		return 2;
	}
	sh = mmap(NULL, sizeof(*sh), PROT_READ | PROT_WRITE,
		  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (sh == MAP_FAILED) {
		mk_say_last("error -12 INTERNAL_PLATFORM_ERROR 0",
			    "out of memory");
		return 1;
	}
	if (run(&o, sh, &fetch_ms, &e)) {
		if (!sh->reason)
			sh->reason = IMG_INTERNAL_PLATFORM_ERROR;
		snprintf(head, sizeof(head), "error %d %s %u", e.code,
			 img_reason_name((enum img_reason)sh->reason),
			 sh->line);
		mk_say_last(head, "%s", e.msg);
		return 1;
	}
	mk_say_last(
	    "result", "%llu %llu %llu", (unsigned long long)sh->mk.image_size,
	    (unsigned long long)fetch_ms,
	    (unsigned long long)((util_now_ns() - t0) / 1000000 - fetch_ms));
	return 0;
}
