// The order matters: namespaces and root need capabilities; limits and the
// bounding set go before the user id is given up; PDEATHSIG and "not dumpable"
// are reset by the change of user and come after it; the filter of system calls
// is last.
//
// The process id namespace is made by thawd when it starts the cell, and is its
// own. The others are one for all cells (../cell_ns.c), made ahead: what cells
// could meet by in them the filter refuses (jail_filter.c).
#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "jail.h"

// thawd made them (cell_ns.c): a root without a single file, a network without a
// device, and no IPC. That of mounts also moves this process to its root.
static int join_namespaces(int first, struct err *e)
{
	static const int types[] = {CLONE_NEWNS, CLONE_NEWNET, CLONE_NEWIPC,
				    CLONE_NEWUTS};

	for (unsigned i = 0; i < ARRAY_SIZE(types); i++) {
		if (setns(first + (int)i, types[i]) < 0)
			return err_sys(e, "jail: cannot join namespace %u", i);
	}
	return 0;
}

static int limit(int what, rlim_t v, struct err *e)
{
	struct rlimit lim = {v, v};

	// The C libraries disagree about the type of setrlimit()'s `what`.
	if (syscall(SYS_prlimit64, 0, what, &lim, NULL) < 0)
		return err_sys(e, "jail: cannot set resource limit %d", what);
	return 0;
}

int jail_threads(unsigned threads, struct err *e)
{
	return limit(RLIMIT_NPROC, threads + 16, e);
}

static int limits(const struct jail_config *j, struct err *e)
{
	int rc;

	// Descriptors: KVM's own few, and one for each vsock stream.
	if ((rc = limit(RLIMIT_NOFILE, 512, e)) ||
	    (rc = limit(RLIMIT_CORE, 0, e)) ||
	    (rc = limit(RLIMIT_FSIZE, j->max_file, e)) ||
	    (rc = limit(RLIMIT_MSGQUEUE, 0, e)) ||
	    (rc = jail_threads(j->threads, e)))
		return rc;
	return 0;
}

static int drop_rights(const struct jail_config *j, struct err *e)
{
	struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct none[2] = {{0}, {0}};

	for (int cap = 0; cap <= 63; cap++) {
		if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) == 0)
			continue;
		if (errno == EINVAL && cap)
			break; // the kernel has no more
		return err_sys(e, "jail: cannot drop capability %d", cap);
	}
	if (prctl(PR_SET_SECUREBITS,
		  SECBIT_NOROOT | SECBIT_NOROOT_LOCKED |
		      SECBIT_NO_SETUID_FIXUP_LOCKED | SECBIT_KEEP_CAPS_LOCKED |
		      SECBIT_NO_CAP_AMBIENT_RAISE |
		      SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED,
		  0, 0, 0) < 0)
		return err_sys(e, "jail: cannot lock the secure bits");
	if (setgroups(0, NULL) < 0 || setresgid(j->uid, j->uid, j->uid) < 0 ||
	    setresuid(j->uid, j->uid, j->uid) < 0)
		return err_sys(e, "jail: cannot become user %u", j->uid);
	if (syscall(SYS_capset, &head, none) < 0)
		return err_sys(e, "jail: cannot give up capabilities");
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return err_sys(e, "jail: cannot set no_new_privs");
	return 0;
}

// thawd starts cells with every signal blocked, and may ignore some.
static void reset_signals(void)
{
	struct sigaction dfl = {.sa_handler = SIG_DFL};
	sigset_t none;

	for (int sig = 1; sig < _NSIG; sig++)
		(void)sigaction(sig, &dfl, NULL); // not those of libc, or KILL
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

int jail_enter(const struct jail_config *j, struct err *e)
{
	int rc;

	reset_signals();

	if (j->uid == 0)
		return err_set(e, -EINVAL, "jail: refuses user 0");
	rc = join_namespaces(j->first_closed, e);
	if (rc)
		return rc;
	if (syscall(SYS_close_range, j->first_closed, ~0u, 0) < 0)
		return err_sys(e, "jail: cannot close descriptors");
	// Out of the reach of the terminal's signals. Not a session of its own:
	// with the scheduler's autogroups, a busy host then lets a thaw wait.
	if (setpgid(0, 0) < 0 && errno != EPERM)
		return err_sys(e, "jail: cannot leave the process group");
	if ((rc = limits(j, e)) || (rc = drop_rights(j, e)))
		return rc;
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		return err_sys(e, "jail: cannot become undumpable");
	if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0)
		return err_sys(e, "jail: cannot tie itself to thawd");
	return jail_filter(e);
}
