// thaw-mkdisk: turns a root file system (a directory or a tar) into an ext4
// image. thawd starts one for every build; it is never run by hand, except by
// tests.
//
// Theory. The source is hostile: it names files that only its owner may read,
// and an archive may hold names, links, sizes and attributes made to escape.
// So (who contains whom, and in which order: mkdisk_contain.c):
//   1. the source is opened with the peer's rights, and nobody else's; a
//      directory is read by a tar process that runs as the peer;
//   2. everything after that happens in fresh mount, net, ipc, uts and PID
//      namespaces whose root holds the programs (read-only) and the work
//      directory (nodev, nosuid, noexec);
//   3. the archive is extracted by a child that is chrooted into the tree it
//      makes, with the five capabilities that owners and modes need;
//   4. mke2fs makes the image from that tree with one capability (to read it).
// The outer process waits, and prints the one result or error.
//
// It talks in lines on stdout: "progress PERCENT TEXT", "note TEXT", and last
// "result IMAGE_BYTES ENTRIES CONTENT_BYTES" or "error -ERRNO TEXT". The image
// is WORK/disk.img. WORK is the caller's to remove. When the caller dies, so
// does everything here: parent-death signals, and a PID namespace below them.
#include <errno.h>
#include <getopt.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "mkdisk.h"

struct run {
	const struct mk_opts *o;
	struct mk_source *src;
	struct mk_shared *sh;
};

static int extract_child(void *ctx, struct err *e)
{
	const struct run *r = ctx;

	return mk_extract(r->o, r->src, r->sh, e);
}

// PID 1 of the new namespace.
static int inner(void *ctx, struct err *e)
{
	struct run *r = ctx;
	int rc = mk_jail_enter(r->o->work, e);

	if (rc)
		return rc;
	if (mkdir(r->o->tree, 0755))
		return err_sys(e, "making the tree's directory");
	r->sh->started = (uint32_t)(util_wall_ns() / 1000000000u);
	rc = mk_child(r->sh, extract_child, r, "the extraction", e);
	fd_close(&r->src->fd); // a tar that still writes gets SIGPIPE
	if (rc)
		return rc;
	return mk_ext4_make(r->o, r->o->tree, "/work/disk.img", r->sh, e);
}

static int run(const struct mk_opts *o, struct mk_shared *sh, struct err *e)
{
	struct mk_source src = {-1, 0, 0, -1};
	struct run r = {o, &src, sh};
	struct err tar_err = ERR_INIT;
	int rc, rc_tar, st;
	pid_t pid;

	rc = mk_source_open(o, &src, e);
	if (rc)
		return rc;
	pid = mk_contain(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC |
			     CLONE_NEWUTS | CLONE_NEWPID,
			 &src, sh, inner, &r, e);
	if (pid < 0)
		return pid;
	rc = mk_wait(pid, &st, "the builder", e);
	if (!rc && (!WIFEXITED(st) || WEXITSTATUS(st))) {
		rc = mk_said(sh, st, e);
		if (!rc)
			rc = err_set(e, -EIO, "the builder was killed");
	}
	// When reading failed, that is the reason, not the short archive.
	rc_tar = mk_source_finish(o, &src, &tar_err);
	if (rc_tar && (!rc || rc_tar != -EPIPE))
		rc = err_set(e, rc_tar, "%s", tar_err.msg);
	return rc;
}

static int number(const char *text, uint64_t *out)
{
	char *end;

	errno = 0;
	*out = strtoull(text, &end, 10);
	return errno || end == text || *end ? -EINVAL : 0;
}

static int parse(int argc, char **argv, struct mk_opts *o)
{
	static const struct option longs[] = {{"source", 1, NULL, 's'},
					      {"work", 1, NULL, 'w'},
					      {"uid", 1, NULL, 'u'},
					      {"gid", 1, NULL, 'g'},
					      {"disk-bytes", 1, NULL, 'd'},
					      {"max-bytes", 1, NULL, 'm'},
					      {"max-entries", 1, NULL, 'e'},
					      {"parent", 1, NULL, 'p'},
					      {NULL, 0, NULL, 0}};
	uint64_t v = 0;
	int c;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		if (c == '?')
			return -EINVAL;
		if (c == 's')
			o->source = optarg;
		else if (c == 'w')
			o->work = optarg;
		else if (number(optarg, &v))
			return -EINVAL;
		if (c == 'p' && (pid_t)v != getppid())
			return -ECANCELED; // it died before the signal was set
		if (c == 'u')
			o->uid = (uid_t)v;
		else if (c == 'g')
			o->gid = (gid_t)v;
		else if (c == 'd')
			o->disk_bytes = v;
		else if (c == 'm')
			o->max_bytes = v;
		else if (c == 'e')
			o->max_entries = v;
	}
	return o->source && o->work && optind == argc ? 0 : -EINVAL;
}

int main(int argc, char **argv)
{
	struct mk_opts o = {.max_bytes = 64ull << 30,
			    .max_entries = 4000000,
			    .tree = "/work/root"};
	struct err e = ERR_INIT;
	struct mk_shared *sh;

	mk_settle();
	if (parse(argc, argv, &o)) {
		fprintf(stderr,
			"usage: thaw-mkdisk --source PATH --work DIR "
			"[--uid N --gid N] [--disk-bytes N] "
			"[--max-bytes N] [--max-entries N] [--parent PID]\n");
		return 2;
	}
	sh = mmap(NULL, sizeof(*sh), PROT_READ | PROT_WRITE,
		  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (sh == MAP_FAILED) {
		mk_say_last("error -12", "out of memory");
		return 1;
	}
	if (run(&o, sh, &e)) {
		char head[32];

		snprintf(head, sizeof(head), "error %d", e.code);
		mk_say_last(head, "%s", e.msg);
		return 1;
	}
	if (sh->devices)
		mk_note("%llu device nodes and sockets left out: the guest's "
			"kernel makes its own /dev",
			(unsigned long long)sh->devices);
	mk_say_last(
	    "result", "%llu %llu %llu", (unsigned long long)sh->image_size,
	    (unsigned long long)sh->entries, (unsigned long long)sh->bytes);
	return 0;
}
