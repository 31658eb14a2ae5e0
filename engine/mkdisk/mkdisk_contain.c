// The processes of thaw-mkdisk and of thaw-mkroot: who starts whom, who dies with
// whom, and what comes back.
//
// Theory. What strangers wrote (an archive, a folder, the steps of a Dockerfile)
// is contained against the host, and against the process that speaks to thawd:
//
//   thawd
//   └ the outer process       opens the source, waits, speaks; reads nothing
//     │                       of what is in it
//     ├ tar, thaw-fetch, ...  bring it, with the peer's rights or nobody's
//     └ PID 1                 alone in namespaces of its own
//       └ a child             for each thing that is hostile: it reads that
//
// In this order, for each step takes rights that the next ones no longer have:
//   1. mk_settle(), before an argument is read. From here on all of it dies with
//      thawd, goes before a microVM where memory is short, has no descriptor of
//      thawd's, and leaves no core file of what a stranger wrote.
//   2. The source is opened (mkdisk_source.c, mkroot_fetch.c): out here, where its
//      name means what the peer meant.
//   3. mk_contain(): the namespaces, and their PID 1, whose end is the end of all
//      that is in them. It does nothing before it is sure to end with the outer
//      process. (The network's namespace may be older: mr_net().)
//   4. PID 1 makes its root, which takes all of root's capabilities, and then
//      drops those that it need not have (mk_jail_enter(), mr_jail_enter()). No
//      name of the host can be opened any more.
//   5. mk_child(): a child that can gain no rights keeps the few capabilities of
//      its task, has its limits, and only then reads (mk_extract()). The RUN steps
//      of mkroot are no such child: they may have set-id programs (mr_run()).
//
// What comes back is a struct mk_shared: numbers, and one error. Who wrote it may
// have been taken over by what it read; so an error is cut to size, and counts
// only of a process that ended by itself.
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <locale.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "mkdisk.h"

void mk_settle(void)
{
	// Without a parent-death signal a cancelled build would go on.
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGPIPE, SIG_IGN);
	close_range(3, ~0u, 0);
	umask(022);
	// File names in archives are UTF-8; any other locale would need
	// conversion modules, loaded from inside the tree.
	setlocale(LC_CTYPE, "C.UTF-8");
	util_oom_first(); // a build goes before a microVM does
	setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
}

void mk_die_with(pid_t parent)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent) // it died before that
		raise(SIGKILL);
}

int mk_wait(pid_t pid, int *st, const char *what, struct err *e)
{
	while (waitpid(pid, st, 0) < 0)
		if (errno != EINTR)
			return err_sys(e, "waiting for %s", what);
	return 0;
}

int mk_said(const struct mk_shared *sh, int st, struct err *e)
{
	struct err said = sh->error;

	said.msg[sizeof(said.msg) - 1] = '\0';
	if (!WIFEXITED(st) || !said.msg[0])
		return 0;
	return err_set(e, said.code < 0 && said.code > -4096 ? said.code : -EIO,
		       "%s", said.msg);
}

// A parent in another PID namespace has no number here. But only it holds the
// pipe's other end, and the kernel closes that before it sends the signal: who has
// asked for the signal and still finds the pipe open will get it.
static int first_process(int life, int (*fn)(void *ctx, struct err *e),
			 void *ctx, struct err *e)
{
	struct pollfd p = {.fd = life};

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (poll(&p, 1, 0))
		return err_set(e, -ECANCELED, "cancelled");
	close(life);
	return fn(ctx, e);
}

pid_t mk_contain(int namespaces, struct mk_source *src, struct mk_shared *sh,
		 int (*fn)(void *ctx, struct err *e), void *ctx, struct err *e)
{
	int life[2], rc;
	pid_t pid;

	if (unshare(namespaces))
		return err_sys(e, "making the builder's namespaces (it must "
				  "run as root)");
	if (pipe2(life, O_CLOEXEC))
		return err_sys(e, "pipe");
	pid = fork();
	if (pid < 0)
		return err_sys(e, "fork");
	if (pid == 0) {
		close(life[1]);
		rc = first_process(life[0], fn, ctx, e);
		sh->error = *e;
		_exit(rc ? 1 : 0);
	}
	close(life[0]);	    // life[1] stays open as long as this process lives
	fd_close(&src->fd); // else tar would never see its reader go
	return pid;
}

int mk_child(struct mk_shared *sh, int (*fn)(void *ctx, struct err *e),
	     void *ctx, const char *what, struct err *e)
{
	pid_t pid;
	int st, rc;

	memset(&sh->error, 0, sizeof(sh->error));
	pid = fork();
	if (pid < 0)
		return err_sys(e, "fork for %s", what);
	if (pid == 0) {
		prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
		_exit(fn(ctx, &sh->error) ? 1 : 0);
	}
	rc = mk_wait(pid, &st, what, e);
	if (rc)
		return rc;
	if (WIFEXITED(st) && WEXITSTATUS(st) == 0)
		return 0;
	rc = mk_said(sh, st, e);
	if (rc)
		return rc;
	if (WIFSIGNALED(st))
		return err_set(e, -EIO, "%s was ended by signal %d (%s)", what,
			       WTERMSIG(st), strsignal(WTERMSIG(st)));
	return err_set(e, -EIO, "%s failed", what);
}
