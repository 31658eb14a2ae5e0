#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/close_range.h>

#include "ag_caps.h"
#include "ag_spawn.h"
#include "ag_spec.h"
#include "ag_users.h"
#include "util.h"

__attribute__((noreturn)) static void fail(int result, int err,
					   const char *what, const char *name)
{
	struct ag_spawn_error e = {.err = err};

	snprintf(e.text, sizeof(e.text), "%s%.60s: %s", what, name,
		 strerror(err));
	// Less than PIPE_BUF into an empty pipe: it fits.
	if (write(result, &e, sizeof(e)) < 0)
		_exit(126);
	_exit(127);
}

static void reset_signals(void)
{
	sigset_t none;

	for (int s = 1; s < NSIG; s++)
		signal(s, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

static void write_file(const char *path, const char *value)
{
	cleanup_fd int fd = open(path, O_WRONLY | O_CLOEXEC);

	// Best effort: it is only a default.
	if (fd >= 0 && write(fd, value, strlen(value)) < 0)
		errno = 0;
}

static void take_fds(const struct ag_spawn *s, int result)
{
	int fd[3];

	// Move them out of the way first: one may be another's target.
	for (int i = 0; i < 3; i++) {
		fd[i] = fcntl(s->fds[i], F_DUPFD_CLOEXEC, 3);
		if (fd[i] < 0)
			fail(result, errno, "duplicating a descriptor", "");
	}
	for (int i = 0; i < 3; i++) {
		if (dup2(fd[i], i) < 0)
			fail(result, errno, "duplicating a descriptor", "");
	}
	if (s->tty && ioctl(0, TIOCSCTTY, 0) < 0)
		fail(result, errno, "taking the terminal", "");
	syscall(SYS_close_range, 3u, ~0u, CLOSE_RANGE_CLOEXEC);
}

// The program's own stdio may be opened again by name (/dev/stdout), which
// needs the pipe or terminal to belong to its user.
static void own_fds(uid_t uid)
{
	struct stat st;

	for (int i = 0; i < 3; i++) {
		if (fstat(i, &st) == 0 && (S_ISFIFO(st.st_mode) || isatty(i)) &&
		    fchown(i, uid, (gid_t)-1) < 0)
			errno = 0;
	}
}

static void become(const struct ag_spawn *s, int result)
{
	struct ag_user u;
	int rc = ag_user_resolve("/etc/passwd", "/etc/group", s->user, &u);
	static char home[sizeof(u.home) + 8];
	size_t n = 0;

	if (rc < 0)
		fail(result, -rc, "there is no user ", s->user);
	if (!ag_env_get(s->env, "HOME")) {
		snprintf(home, sizeof(home), "HOME=%s", u.home);
		while (s->env[n])
			n++;
		s->env[n] = home;
	}
	own_fds(u.uid);
	rc = s->all_caps ? 0 : ag_caps_limit();
	if (rc < 0)
		fail(result, -rc, "dropping capabilities", "");
	if (setgroups(u.ngroups, u.groups) < 0 ||
	    setresgid(u.gid, u.gid, u.gid) < 0 ||
	    setresuid(u.uid, u.uid, u.uid) < 0)
		fail(result, errno, "becoming user ", s->user);
}

__attribute__((noreturn)) static void child(const struct ag_spawn *s,
					    int result)
{
	const char *cwd = s->cwd[0] ? s->cwd : "/";

	reset_signals();
	setsid();
	if (s->cgroup_procs >= 0 && write(s->cgroup_procs, "0", 1) != 1)
		fail(result, errno, "joining the application's cgroup", "");
	take_fds(s, result);
	umask(022);
	// The agent is protected from the OOM killer, its children are not.
	write_file("/proc/self/oom_score_adj", "0");
	become(s, result);
	if (chdir(cwd) < 0)
		fail(result, errno, "working directory ", cwd);
	environ = s->env; // whose PATH execvpe() searches
	execvpe(s->argv[0], s->argv, s->env);
	fail(result, errno, "cannot run ", s->argv[0]);
}

pid_t ag_spawn(const struct ag_spawn *s, int *result)
{
	int p[2], err;
	pid_t pid;

	if (pipe2(p, O_CLOEXEC) < 0)
		return -errno;
	pid = fork();
	if (pid == 0) {
		// Keep it clear of 0..2, which are about to be replaced.
		if (p[1] < 3)
			p[1] = fcntl(p[1], F_DUPFD_CLOEXEC, 3);
		child(s, p[1]);
	}
	err = errno;
	close(p[1]);
	if (pid < 0) {
		close(p[0]);
		return -err;
	}
	fcntl(p[0], F_SETFL, O_NONBLOCK);
	*result = p[0];
	return pid;
}
