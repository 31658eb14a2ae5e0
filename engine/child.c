// Theory: the end of the program is known by its pidfd, not by the end of its
// output, for what it started may hold the pipe longer. So ended() reads what is
// left in the pipe (which holds less than is read then) and lets the rest go.
// The pid is signalled only while it is not reaped, so it is never another's.
// What is said is bounded here; whether it makes sense is the caller's to judge.
#include "child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { READ_BYTES = 8192, READS_PER_TURN = 16, READS_AT_END = 100 };

struct eng_child {
	struct eng_child_events ev;
	void *ctx;
	pid_t pid;
	int pidfd, out_fd;
	struct eng_watch *pid_watch, *out_watch;
	char line[ENG_CHILD_LINE];
	size_t len;
};

enum got { MORE, NOTHING_NOW, NO_MORE };

static enum got read_lines(struct eng_child *c)
{
	char buf[READ_BYTES];
	ssize_t n = read(c->out_fd, buf, sizeof(buf));

	if (n < 0)
		return errno == EINTR	 ? MORE
		       : errno == EAGAIN ? NOTHING_NOW
					 : NO_MORE;
	for (ssize_t i = 0; i < n; i++) {
		if (buf[i] == '\n') {
			c->line[c->len] = '\0';
			c->ev.line(c->ctx, c->line, c->len);
			c->len = 0;
		} else if (c->len + 1 < sizeof(c->line)) {
			c->line[c->len++] = buf[i];
		}
	}
	return n ? MORE : NO_MORE;
}

static void on_output(void *ctx, unsigned what)
{
	struct eng_child *c = ctx;
	enum got got = MORE;

	(void)what;
	for (int i = 0; i < READS_PER_TURN && got == MORE; i++)
		got = read_lines(c);
	if (got == NO_MORE) // its end would wake the loop for ever
		eng_watch_set(c->out_watch, 0);
}

static void on_exit_of_program(void *ctx, unsigned what)
{
	struct eng_child *c = ctx;
	char how[40];
	int st = 0;

	(void)what;
	if (waitpid(c->pid, &st, WNOHANG) == 0)
		return;
	eng_watch_destroy(c->pid_watch);
	c->pid_watch = NULL;
	for (int i = 0; i < READS_AT_END && read_lines(c) == MORE; i++)
		;
	eng_watch_destroy(c->out_watch);
	c->out_watch = NULL;
	snprintf(how, sizeof(how), "%s %d",
		 WIFSIGNALED(st) ? "signal" : "exit code",
		 WIFSIGNALED(st) ? WTERMSIG(st) : WEXITSTATUS(st));
	c->ev.ended(c->ctx, WIFEXITED(st) && !WEXITSTATUS(st), how);
}

// posix_spawn, for thawd has threads.
static int spawn(struct eng_child *c, char *const argv[], int out,
		 struct err *e)
{
	char *const envp[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", NULL};
	posix_spawn_file_actions_t fa;
	posix_spawnattr_t at;
	sigset_t none, all;
	int rc;

	sigemptyset(&none);
	sigfillset(&all);
	posix_spawnattr_init(&at);
	posix_spawnattr_setsigmask(&at, &none);
	posix_spawnattr_setsigdefault(&at, &all);
	posix_spawnattr_setflags(&at, POSIX_SPAWN_SETSIGMASK |
					  POSIX_SPAWN_SETSIGDEF);
	posix_spawn_file_actions_init(&fa);
	posix_spawn_file_actions_addopen(&fa, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_adddup2(&fa, out, 1);
	rc = posix_spawn(&c->pid, argv[0], &fa, &at, argv, envp);
	posix_spawn_file_actions_destroy(&fa);
	posix_spawnattr_destroy(&at);
	if (rc)
		return err_set(e, -rc, "cannot start %s: %s", argv[0],
			       strerror(rc));
	return 0;
}

static int start(struct eng_child *c, struct eng_loop *l, char *const argv[],
		 const char *name, struct err *e)
{
	cleanup_fd int out = -1;
	int p[2], rc;

	if (pipe2(p, O_CLOEXEC))
		return err_sys(e, "pipe");
	c->out_fd = p[0];
	out = p[1];
	if (fcntl(c->out_fd, F_SETFL, O_NONBLOCK))
		return err_sys(e, "pipe");
	rc = spawn(c, argv, out, e);
	if (rc)
		return rc;
	c->pidfd = (int)syscall(SYS_pidfd_open, c->pid, 0);
	if (c->pidfd >= 0)
		c->pid_watch = eng_watch_create(l, c->pidfd, ENG_READ,
						on_exit_of_program, c, name);
	c->out_watch =
	    eng_watch_create(l, c->out_fd, ENG_READ, on_output, c, name);
	if (c->pid_watch && c->out_watch)
		return 0;
	kill(c->pid, SIGKILL);
	waitpid(c->pid, NULL, 0);
	return err_set(e, -ENOMEM, "cannot watch %s", argv[0]);
}

int eng_child_start(struct eng_child **out, struct eng_loop *l,
		    char *const argv[], const struct eng_child_events *ev,
		    void *ctx, const char *name, struct err *e)
{
	struct eng_child *c = malloc(sizeof(*c));
	int rc;

	if (!c)
		return err_set(e, -ENOMEM, "out of memory");
	*c = (struct eng_child){
	    .ev = *ev, .ctx = ctx, .pidfd = -1, .out_fd = -1};
	rc = start(c, l, argv, name, e);
	if (rc) {
		eng_child_destroy(c);
		return rc;
	}
	*out = c;
	return 0;
}

bool eng_child_runs(const struct eng_child *c)
{
	return c->pid_watch;
}

void eng_child_kill(struct eng_child *c, int sig)
{
	if (c->pid_watch)
		kill(c->pid, sig);
}

void eng_child_destroy(struct eng_child *c)
{
	if (!c)
		return;
	eng_watch_destroy(c->pid_watch);
	eng_watch_destroy(c->out_watch);
	fd_close(&c->pidfd);
	fd_close(&c->out_fd);
	free(c);
}
