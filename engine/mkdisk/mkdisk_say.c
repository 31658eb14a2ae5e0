// What the builder's processes tell: lines on stdout, and a child's error.
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "mkdisk.h"

static void say(const char *head, const char *fmt, va_list ap)
{
	char line[512], *c;
	int n;

	n = snprintf(line, sizeof(line), "%s ", head);
	vsnprintf(line + n, sizeof(line) - (size_t)n - 1, fmt, ap);
	for (c = line; *c; c++) // file names come in here: one line, whatever
		if ((unsigned char)*c < 0x20 || *c == 0x7f)
			*c = '?';
	*c++ = '\n';
	util_write_all(STDOUT_FILENO, line, (size_t)(c - line));
}

void mk_progress(int percent, const char *fmt, ...)
{
	char head[32];
	va_list ap;

	snprintf(head, sizeof(head), "progress %d", percent);
	va_start(ap, fmt);
	say(head, fmt, ap);
	va_end(ap);
}

void mk_note(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say("note", fmt, ap);
	va_end(ap);
}

void mk_say_last(const char *head, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say(head, fmt, ap);
	va_end(ap);
}

// The child's `e` goes into shared memory; nothing in it is trusted but its
// presence, so the copy is bounded.
int mk_child(struct mk_shared *sh, int (*fn)(void *ctx, struct err *e),
	     void *ctx, const char *what, struct err *e)
{
	pid_t pid = fork();
	struct err said;
	int st;

	if (pid < 0)
		return err_sys(e, "fork for %s", what);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(fn(ctx, &sh->error) ? 1 : 0);
	}
	while (waitpid(pid, &st, 0) < 0)
		if (errno != EINTR)
			return err_sys(e, "waiting for %s", what);
	if (WIFEXITED(st) && WEXITSTATUS(st) == 0)
		return 0;
	said = sh->error;
	said.msg[sizeof(said.msg) - 1] = '\0';
	if (WIFEXITED(st) && said.msg[0])
		return err_set(
		    e, said.code < 0 && said.code > -4096 ? said.code : -EIO,
		    "%s", said.msg);
	if (WIFSIGNALED(st))
		return err_set(e, -EIO, "%s was ended by signal %d (%s)", what,
			       WTERMSIG(st), strsignal(WTERMSIG(st)));
	return err_set(e, -EIO, "%s failed", what);
}
