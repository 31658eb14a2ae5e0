// A VMM as a child process: life, console, and what each restore asks its guest.
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <poll.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "vmmproc.h"

extern char **environ;

enum { MAX_FDS = 8, HIGH = 100 };

// Copies of fds[] above every descriptor that the child will have, so that no
// dup2() in the child overwrites one that is still wanted.
static int lift(const int *fds, int n, int *high, struct err *e)
{
	for (int i = 0; i < n; i++) {
		high[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, HIGH);
		if (high[i] < 0)
			return err_sys(e, "cannot copy a descriptor");
	}
	return 0;
}

static int spawn(struct vmmproc *p, char *const argv[], const int *high, int n,
		 struct err *e)
{
	posix_spawn_file_actions_t fa;
	posix_spawnattr_t attr;
	sigset_t pipe_signal;
	int rc;

	// Its COM1 and its API are written to, and it may end at any moment: then
	// the write fails and the reason is told. The child has the default again.
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&pipe_signal);
	sigaddset(&pipe_signal, SIGPIPE);
	posix_spawnattr_init(&attr);
	posix_spawnattr_setsigdefault(&attr, &pipe_signal);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGDEF);
	posix_spawn_file_actions_init(&fa);
	for (int i = 0; i < n; i++)
		posix_spawn_file_actions_adddup2(&fa, high[i],
						 i < 2 ? i : i + 1);
	posix_spawn_file_actions_addopen(&fa, STDERR_FILENO, p->log,
					 O_WRONLY | O_CREAT | O_TRUNC, 0600);
	rc = posix_spawnp(&p->pid, argv[0], &fa, &attr, argv, environ);
	posix_spawn_file_actions_destroy(&fa);
	posix_spawnattr_destroy(&attr);
	if (rc) {
		p->pid = 0;
		return err_set(e, -rc, "cannot start %s: %s", argv[0],
			       strerror(rc));
	}
	return 0;
}

int vmmproc_start(struct vmmproc *p, const char *log, char *const argv[],
		  const int *fds, int n, struct err *e)
{
	int high[MAX_FDS], rc;

	*p = (struct vmmproc){.to = -1, .from = -1};
	snprintf(p->log, sizeof(p->log), "%s", log);
	if (n > MAX_FDS)
		return err_set(e, -EINVAL, "too many descriptors");
	memset(high, -1, sizeof(high));
	rc = lift(fds, n, high, e);
	if (!rc)
		rc = spawn(p, argv, high, n, e);
	for (int i = 0; i < n; i++)
		fd_close(&high[i]);
	return rc;
}

void vmmproc_end(struct vmmproc *p, double *cpu_ms)
{
	struct rusage u;
	int status;

	if (p->pid > 0) {
		kill(p->pid, SIGKILL);
		while (wait4(p->pid, &status, 0, &u) < 0 && errno == EINTR)
			;
		if (cpu_ms)
			*cpu_ms +=
			    1000.0 * (double)(u.ru_utime.tv_sec +
					      u.ru_stime.tv_sec) +
			    (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) /
				1000;
	}
	p->pid = 0;
	if (p->from == p->to)
		p->from = -1;
	fd_close(&p->to);
	fd_close(&p->from);
}

int vmmproc_explain(const struct vmmproc *p, int rc, struct err *e)
{
	char text[2048], said[256], *last;
	FILE *f = rc < 0 ? fopen(p->log, "re") : NULL;
	size_t n;

	if (!f || !e)
		goto out;
	n = fread(text, 1, sizeof(text) - 1, f);
	text[n] = '\0';
	while (n && text[n - 1] == '\n')
		text[--n] = '\0';
	last = strrchr(text, '\n');
	last = last ? last + 1 : text;
	if (*last) {
		snprintf(said, sizeof(said), "%s", e->msg);
		err_set(e, rc, "%s; it says: %.120s", said, last);
	}
out:
	if (f)
		fclose(f);
	return rc;
}

// --- COM1 ---------------------------------------------------------------------------

int vmmproc_say(struct vmmproc *p, const char *line, struct err *e)
{
	char text[256];
	int n = snprintf(text, sizeof(text), "%s\n", line), rc;

	if (n < 0 || n >= (int)sizeof(text))
		return err_set(e, -E2BIG, "a line to the guest is too long");
	rc = util_write_all(p->to, text, (size_t)n);
	if (rc == -EPIPE)
		return err_set(e, -EIO, "the VMM closed its guest's COM1");
	return rc ? err_wrap(e, rc, "cannot write to the guest's COM1") : 0;
}

// More bytes of COM1, or an error.
static int fill(struct vmmproc *p, struct err *e)
{
	struct pollfd pf = {.fd = p->from, .events = POLLIN};
	int rc = poll(&pf, 1, VMMPROC_WAIT_MS);
	ssize_t n;

	if (rc < 0)
		return errno == EINTR ? 0 : err_sys(e, "cannot poll COM1");
	if (rc == 0)
		return err_set(e, -ETIMEDOUT, "the guest said nothing for %d s",
			       VMMPROC_WAIT_MS / 1000);
	n = read(p->from, p->buf + p->len, sizeof(p->buf) - p->len);
	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return 0;
	if (n <= 0)
		return err_set(e, -EIO, "the VMM closed its guest's COM1");
	if (p->len == 0)
		p->first_ns = util_now_ns();
	p->len += (size_t)n;
	return 0;
}

int vmmproc_hear(struct vmmproc *p, char *line, size_t cap, uint64_t *first,
		 uint64_t *last, struct err *e)
{
	char *end;
	size_t n;

	while (!(end = memchr(p->buf, '\n', p->len))) {
		int rc;

		if (p->len == sizeof(p->buf))
			return err_set(e, -EIO, "the guest's line is too long");
		rc = fill(p, e);
		if (rc)
			return rc;
	}
	if (first)
		*first = p->first_ns;
	if (last)
		*last = util_now_ns();
	n = (size_t)(end - p->buf);
	p->len -= n + 1;
	while (n && p->buf[n - 1] == '\r')
		n--;
	snprintf(line, cap, "%.*s", (int)n, p->buf);
	memmove(p->buf, end + 1, p->len);
	return 0;
}

int vmmproc_await(struct vmmproc *p, const char *line, struct err *e)
{
	char heard[256];
	int rc;

	do {
		rc = vmmproc_hear(p, heard, sizeof(heard), NULL, NULL, e);
	} while (!rc && strcmp(heard, line) != 0);
	return rc;
}

// --- the guest ------------------------------------------------------------------------

int vmmproc_cmdline(char *out, size_t cap, const struct peer_spec *spec,
		    bool serial)
{
	int n = snprintf(out, cap, "%s%s;poke %" PRIu64 " %" PRIu64,
			 serial ? "serial;" : "", spec->cmdline, spec->nonce_at,
			 spec->nonce);

	return n < 0 || (size_t)n >= cap ? -E2BIG : 0;
}

int vmmproc_check_nonce(const char *line, const struct peer_spec *spec,
			struct err *e)
{
	char want[64];

	snprintf(want, sizeof(want), "VALUE %" PRIu64, spec->nonce);
	if (strcmp(line, want) == 0)
		return 0;
	return err_set(e, -EIO,
		       "the guest is not the one that was saved: it "
		       "says \"%.60s\" where \"%s\" is right",
		       line, want);
}

static int ask_nonce(struct vmmproc *p, const struct peer_spec *spec,
		     struct err *e)
{
	char line[64];

	snprintf(line, sizeof(line), "peek %" PRIu64, spec->nonce_at);
	return vmmproc_say(p, line, e);
}

int vmmproc_say_first(struct vmmproc *p, const struct peer_spec *spec,
		      const char *command, struct err *e)
{
	return command ? vmmproc_say(p, command, e) : ask_nonce(p, spec, e);
}

int vmmproc_measure(struct vmmproc *p, const struct peer_spec *spec,
		    const char *command, struct peer_sample *out, struct err *e)
{
	char line[128];
	int rc = 0;

	if (command) {
		rc = vmmproc_hear(p, out->answer, sizeof(out->answer),
				  &out->t.t2, &out->t.t5, e);
		if (!rc)
			rc = ask_nonce(p, spec, e);
	}
	if (!rc)
		rc = vmmproc_hear(p, line, sizeof(line),
				  command ? NULL : &out->t.t2, NULL, e);
	return rc ? rc : vmmproc_check_nonce(line, spec, e);
}

// --- files ------------------------------------------------------------------------------

int vmmproc_have(const char *binary, const char *option, struct err *e)
{
	const char *dirs = getenv("PATH");

	if (strchr(binary, '/')) {
		if (access(binary, X_OK) == 0)
			return 0;
		err_set(e, 1, "%s cannot be executed: %s", binary,
			strerror(errno));
		return 1;
	}
	while (dirs && *dirs) {
		size_t n = strcspn(dirs, ":");
		char path[512];

		snprintf(path, sizeof(path), "%.*s/%s", (int)n, dirs, binary);
		if (access(path, X_OK) == 0)
			return 0;
		dirs += n + (dirs[n] == ':');
	}
	err_set(e, 1, "%s is not installed; give one by --%s", binary, option);
	return 1;
}

int vmmproc_not_here(struct err *e)
{
	err_wrap(e, 1, "it cannot run and save the guest on this host");
	return 1;
}

int vmmproc_path(char *out, size_t cap, const struct peer_spec *spec,
		 const char *name)
{
	int n = snprintf(out, cap, "%s/%s", spec->dir, name);

	return n < 0 || (size_t)n >= cap ? -ENAMETOOLONG : 0;
}

static void note(struct vmmproc_files *f, const char *path)
{
	for (int i = 0; i < f->n; i++) {
		if (strcmp(f->path[i], path) == 0)
			return;
	}
	if (f->n < (int)ARRAY_SIZE(f->path) &&
	    strlen(path) < sizeof(f->path[0]))
		strcpy(f->path[f->n++], path);
}

void vmmproc_note(struct vmmproc_files *f, const struct vmmproc *p,
		  const struct peer_spec *spec, const char *const *also)
{
	char name[64], line[512];
	FILE *maps;

	for (; *also; also++)
		note(f, *also);
	snprintf(name, sizeof(name), "/proc/%d/maps", p->pid);
	maps = fopen(name, "re");
	while (maps && fgets(line, sizeof(line), maps)) {
		char *path = strchr(line, '/');

		line[strcspn(line, "\n")] = '\0';
		if (path && strncmp(path, "/dev/", 5) != 0 &&
		    strncmp(path, spec->dir, strlen(spec->dir)) != 0 &&
		    access(path, R_OK) == 0)
			note(f, path);
	}
	if (maps)
		fclose(maps);
}

void vmmproc_warm(const struct vmmproc_files *f)
{
	static char piece[1 << 18];

	for (int i = 0; i < f->n; i++) {
		cleanup_fd int fd = open(f->path[i], O_RDONLY | O_CLOEXEC);

		while (fd >= 0 && read(fd, piece, sizeof(piece)) > 0)
			;
	}
}

int vmmproc_sync(const struct peer_spec *spec, struct err *e)
{
	cleanup_fd int dir =
	    open(spec->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (dir < 0 || syncfs(dir) < 0)
		return err_sys(e, "cannot sync %s", spec->dir);
	return 0;
}
