// PID 1's work: run one program of the build, read what it and all below it
// write, reap what is left to it, and keep the two limits that no program keeps
// for itself: time, and room on the disk.
#include "mkroot.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/statvfs.h>
#include <sys/wait.h>

#define STORAGE_CONF "CONTAINERS_STORAGE_CONF=/etc/containers/storage.conf"

enum { TICK_MS = 500, DRAIN_MAX = 256 };

struct lines {
	struct mr_run *r;
	char buf[MR_LINE];
	size_t n;
};

static void flush(struct lines *l)
{
	l->r->line(l->r->ctx, l->buf, l->n);
	l->n = 0;
}

// 0 at the end of the stream, negative when nothing is there.
static ssize_t read_some(struct lines *l, int fd)
{
	char buf[8192];
	ssize_t n = read(fd, buf, sizeof(buf));

	for (ssize_t i = 0; i < n; i++) {
		if (buf[i] == '\n') {
			flush(l);
			continue;
		}
		l->buf[l->n++] = buf[i];
		if (l->n == sizeof(l->buf))
			flush(l);
	}
	return n;
}

static void child(const struct mr_run *r, int out)
{
	char *const envp[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin",
			      "HOME=/work/home",
			      "TMPDIR=/work/tmp",
			      "XDG_RUNTIME_DIR=/work/run",
			      STORAGE_CONF,
			      "LC_ALL=C.UTF-8",
			      NULL};
	int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
	sigset_t none;

	setsid();
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	if (dup2(null, 0) < 0 || dup2(out, 1) < 0 || dup2(out, 2) < 0 ||
	    chdir("/work"))
		_exit(126);
	execve(r->argv[0], r->argv, envp);
	dprintf(2, "Error: cannot start %s: %s\n", r->argv[0], strerror(errno));
	_exit(127);
}

static bool disk_full(const struct mr_run *r)
{
	struct statvfs fs;

	return !statvfs("/work", &fs) &&
	       (uint64_t)fs.f_bavail * fs.f_frsize < r->reserve;
}

static void look(struct mr_run *r)
{
	if (util_now_ns() > r->deadline_ns)
		r->timed_out = true;
	else if (disk_full(r))
		r->disk_full = true;
	if (r->timed_out || r->disk_full)
		kill(-1, SIGKILL); // everything but this process
}

// Whether `pid` has ended.
static bool reap(struct mr_run *r, pid_t pid)
{
	bool ended = false;
	pid_t got;
	int st;

	while ((got = waitpid(-1, &st, WNOHANG)) > 0) {
		if (got != pid)
			continue;
		ended = true;
		r->status = st;
	}
	return ended;
}

static void serve(struct mr_run *r, pid_t pid, int sig, int out)
{
	struct pollfd p[2] = {{out, POLLIN, 0}, {sig, POLLIN, 0}};
	struct lines *l = &(struct lines){.r = r};
	struct signalfd_siginfo si;
	uint64_t looked = 0;
	int st;

	while (!reap(r, pid)) {
		(void)poll(p, 2, TICK_MS);
		if (p[1].revents & POLLIN)
			(void)!read(sig, &si, sizeof(si));
		if ((p[0].revents & (POLLIN | POLLHUP)) &&
		    read_some(l, out) == 0)
			p[0].fd = -1; // closed
		if (util_now_ns() - looked > TICK_MS * 1000000ull) {
			look(r);
			looked = util_now_ns();
		}
	}
	kill(-1, SIGKILL); // what a RUN step left in the background
	while (waitpid(-1, &st, 0) > 0 || errno == EINTR)
		;
	for (int i = 0; i < DRAIN_MAX && read_some(l, out) > 0; i++)
		;
	if (l->n)
		flush(l);
}

int mr_run(struct mr_run *r, struct err *e)
{
	cleanup_fd int sig = -1, out = -1;
	sigset_t set;
	pid_t pid;
	int p[2];

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sig = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (sig < 0 || pipe2(p, O_CLOEXEC))
		return err_sys(e, "starting %s", r->argv[0]);
	out = p[0];
	(void)fcntl(out, F_SETFL, O_NONBLOCK);
	pid = fork();
	if (pid == 0)
		child(r, p[1]);
	close(p[1]);
	if (pid < 0)
		return err_sys(e, "starting %s", r->argv[0]);
	serve(r, pid, sig, out);
	return 0;
}
