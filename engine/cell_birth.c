// The birth of a thaw-cell process: started, greeted, and from then on a shell.
// (Its life and death: cell_proc.c.)
//
// clone() with CLONE_VM and without CLONE_VFORK: no copy of thawd's page
// tables, and the loop does not wait for the exec. A process id namespace of
// its own (it costs nothing measurable), descriptors at fixed numbers. The cell
// jails itself and says HELLO with a userfaultfd. thawd checks what it is, does
// UFFDIO_API, opens the cell's pagemap (the cell has no /proc, and cannot be
// looked up later) and gives the keeper its duplicates. Only then is the proc a
// shell.
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "cells_priv.h"

enum { CHILD_FD_BASE = 200 };

// --- spawning ---------------------------------------------------------------

struct proc_child { // lives until HELLO or the end: the child runs on it
	int fds[CP_FD_ALL]; // by number in the cell
	int exe;
	char args[3][16];
	_Alignas(16) char stack[16 * 1024];
};

// Runs beside the loop, in thawd's memory, until exec: a few system calls,
// which write errno only if they fail; no signal can come (jail_enter()
// unblocks them).
static int __attribute__((no_sanitize("address"))) child_main(void *arg)
{
	struct proc_child *ch = arg;
	char name[] = "thaw-cell";
	char *argv[] = {name, ch->args[0], ch->args[1], ch->args[2], NULL};
	char *envp[] = {NULL};
	int high[CP_FD_ALL];

	prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	// First out of the way of the fixed numbers, then to them.
	for (int i = 0; i < CP_FD_ALL; i++) {
		high[i] = fcntl(ch->fds[i], F_DUPFD_CLOEXEC, CHILD_FD_BASE);
		if (high[i] < 0)
			_exit(126);
	}
	for (int i = 0; i < CP_FD_ALL; i++) {
		if (dup2(high[i], i) < 0)
			_exit(126);
	}
	syscall(SYS_execveat, ch->exe, "", argv, envp, AT_EMPTY_PATH);
	_exit(127);
}

static int spawn_child(struct cell_proc *p, struct err *e)
{
	struct proc_child *ch = p->child;
	sigset_t all, old;
	int pid, saved;

	// No handler of thawd's may run in the child.
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &old);
	pid = clone(child_main, ch->stack + sizeof(ch->stack),
		    CLONE_VM | CLONE_PIDFD | CLONE_NEWPID | SIGCHLD, ch,
		    &p->pidfd);
	saved = errno;
	sigprocmask(SIG_SETMASK, &old, NULL);
	errno = saved;
	if (pid < 0)
		return err_sys(e, "cannot start a cell");
	p->pid = pid;
	return 0;
}

static int socket_pair(int *ours, int *theirs, struct err *e)
{
	int sv[2], size = 1 << 20;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv) < 0)
		return err_sys(e, "cannot make a cell's socket");
	*ours = sv[0];
	*theirs = sv[1];
	// Room for what is bounded by count: never wait for a slow cell.
	(void)setsockopt(sv[0], SOL_SOCKET, SO_SNDBUFFORCE, &size,
			 sizeof(size));
	if (fcntl(sv[0], F_SETFL, O_NONBLOCK) < 0)
		return err_sys(e, "cannot set up a cell's socket");
	return 0;
}

static int take_slot(struct eng_cells *c, struct cell_proc *p, struct err *e)
{
	for (unsigned i = 0; i < c->cfg.max_cells; i++) {
		if (!c->slots[i]) {
			c->slots[i] = 1;
			p->slot = i;
			return 0;
		}
	}
	return err_set(e, -EAGAIN, "all %u cells are in use", c->cfg.max_cells);
}

// The sockets, the console pipe and the child's descriptor table.
static int make_channels(struct cell_proc *p, int theirs[4], struct err *e)
{
	struct proc_child *ch = p->child;
	struct eng_cells *c = p->c;
	int pipefd[2], rc;

	if ((rc = socket_pair(&p->ctl, &theirs[0], e)) ||
	    (rc = socket_pair(&p->boot, &theirs[1], e)) ||
	    (rc = socket_pair(&p->disk, &theirs[2], e)))
		return rc;
	if (pipe2(pipefd, O_CLOEXEC | O_NONBLOCK) < 0)
		return err_sys(e, "cannot make a cell's console");
	p->console = pipefd[0];
	theirs[3] = pipefd[1];
	ch->fds[0] = ch->fds[1] = ch->fds[2] = c->null_fd;
	if (getenv("THAW_CELL_STDERR")) // for sanitizers' reports
		ch->fds[2] = STDERR_FILENO;
	ch->fds[CP_FD_CTL] = theirs[0];
	ch->fds[CP_FD_BOOT] = theirs[1];
	ch->fds[CP_FD_DISK] = theirs[2];
	ch->fds[CP_FD_CONSOLE] = theirs[3];
	ch->fds[CP_FD_KVM] = c->cfg.kvm_fd;
	ch->fds[CP_FD_UFFD] = c->cfg.uffd_fd;
	ch->fds[CP_FD_HOST] = c->host_fd;
	memcpy(&ch->fds[CP_FD_NS], c->ns, sizeof(c->ns));
	return 0;
}

static void set_args(struct cell_proc *p)
{
	const unsigned args[3] = {p->blank ? 0 : p->class->mem_mib,
				  p->blank ? 0 : p->class->vcpus,
				  p->c->cfg.uid_base + p->slot};

	for (int i = 0; i < 3; i++)
		snprintf(p->child->args[i], sizeof(p->child->args[i]), "%u",
			 args[i]);
}

int proc_spawn(struct eng_cells *c, struct cell_class *class, bool blank,
	       struct cell_proc **out, struct err *e)
{
	int theirs[4] = {-1, -1, -1, -1};
	struct cell_proc *p = calloc(1, sizeof(*p));
	int rc;

	if (!p)
		return err_set(e, -ENOMEM, "no memory for a cell");
	*p = (struct cell_proc){.c = c,
				.class = class,
				.blank = blank,
				.pidfd = -1,
				.ctl = -1,
				.boot = -1,
				.disk = -1,
				.console = -1,
				.uffd = -1,
				.pagemap = -1,
				.statm = -1,
				.overlay = -1,
				.slot = UINT32_MAX,
				.credit = PROC_CREDIT_MAX};
	p->child = malloc(sizeof(*p->child));
	rc = p->child ? take_slot(c, p, e)
		      : err_set(e, -ENOMEM, "no memory for a cell");
	if (!rc)
		rc = make_channels(p, theirs, e);
	if (!rc) {
		p->child->exe = c->cell_fd;
		set_args(p);
		rc = spawn_child(p, e);
	}
	for (int i = 0; i < 4; i++)
		fd_close(&theirs[i]);
	if (rc) {
		proc_free(p);
		return rc;
	}
	p->id = ++c->next_id;
	p->next = c->procs;
	p->prev = &c->procs;
	if (p->next)
		p->next->prev = &p->next;
	c->procs = p;
	c->nprocs++;
	class->nspawning++;
	rc = eng_keeper_hold(c->cfg.keeper_fd, ENG_KEEP_CELL_PIDFD, p->id,
			     p->pidfd);
	if (rc)
		err_set(e, rc, "the descriptor keeper does not answer");
	if (!rc)
		rc = proc_watch(p, e);
	if (rc) { // it exists: it has to be killed and reaped like any other
		if (!p->w_pidfd)
			abort(); // no memory for a watch
		proc_kill(p);
		return rc;
	}
	*out = p;
	return 0;
}

// --- HELLO ------------------------------------------------------------------

static bool is_userfaultfd(int fd)
{
	char path[40], target[64];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = readlink(path, target, sizeof(target) - 1);
	if (n < 0)
		return false;
	target[n] = '\0';
	return strcmp(target, "anon_inode:[userfaultfd]") == 0;
}

static int open_proc(const struct cell_proc *p, const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/%s", p->pid, name);
	return open(path, O_RDONLY | O_CLOEXEC);
}

static int adopt_uffd(struct cell_proc *p, int fd, struct err *e)
{
	struct uffdio_api api = {
	    .api = UFFD_API,
	    .features = UFFD_FEATURE_MISSING_SHMEM,
	};
	int rc;

	if (!is_userfaultfd(fd))
		return err_set(e, -EBADF, "what it sent is no userfaultfd");
	if (ioctl(fd, UFFDIO_API, &api) < 0)
		return err_sys(e, "cannot set its userfaultfd up");
	if (!(api.features & UFFD_FEATURE_MINOR_SHMEM))
		return err_set(e, -ENOTSUP,
			       "this kernel's userfaultfd cannot continue a "
			       "fault on shared memory (Linux 5.14 can)");
	rc =
	    eng_keeper_hold(p->c->cfg.keeper_fd, ENG_KEEP_CELL_UFFD, p->id, fd);
	if (rc)
		return err_set(e, rc, "the descriptor keeper does not answer");
	return proc_watch_uffd(p, fd, e);
}

static int greet(struct cell_proc *p, struct wire_reader *r, int *fds,
		 unsigned nfds, struct err *e)
{
	uint32_t mem_mib = p->blank ? 0 : p->class->mem_mib;
	unsigned vcpus = p->blank ? 0 : p->class->vcpus;
	int rc;

	p->mem_base = wire_get_u64(r);
	p->mem_bytes = wire_get_u64(r);
	if (wire_get_u32(r) != vcpus || !cp_ok(r) || nfds != 1 ||
	    p->mem_bytes != (uint64_t)mem_mib << 20 || p->mem_base % PGC_PAGE ||
	    p->mem_base + p->mem_bytes < p->mem_base)
		return err_set(e, -EBADMSG, "its HELLO makes no sense");
	rc = adopt_uffd(p, fds[0], e);
	if (rc)
		return rc;
	fds[0] = -1;
	p->pagemap = open_proc(p, "pagemap");
	p->statm = open_proc(p, "statm");
	if (p->pagemap < 0 || p->statm < 0)
		return err_sys(e, "cannot open its page map");
	p->rss_birth = proc_private_bytes(p);
	return 0;
}

void proc_hello(struct cell_proc *p, struct wire_reader *r, int *fds,
		unsigned nfds)
{
	struct err e = ERR_INIT;

	if (greet(p, r, fds, nfds, &e)) {
		if (!p->failed[0])
			snprintf(p->failed, sizeof(p->failed), "%s", e.msg);
		proc_kill(p);
		return;
	}
	eng_timer_stop(p->timer);
	free(p->child);
	p->child = NULL;
	p->state = PROC_READY;
	p->class->nspawning--;
	class_proc_ready(p);
}
