// Why a process of its own: closing the last descriptor of a userfaultfd wakes
// every fault that waits on it, and those then read zeroes. When thawd is
// killed, the kernel closes its descriptors at once, in no order. The keeper's
// duplicates make sure that a cell is dead before the last one goes.
//
// It is thawd's parent and a subreaper: orphaned cells become its children. It
// allocates nothing but its table, and knows nothing of what it holds but the
// kind and the id, which is what adoption by a new thawd will ask for.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "cellproto.h"
#include "keeper.h"
#include "procstate.h"

// One record: op u32, what u32, id u64, little-endian, and for HOLD one
// descriptor.
enum { KEEPER_OP_HOLD = 1, KEEPER_OP_DROP = 2, KEEPER_MSG = 16 };
// How long an exit may take before it counts as one that waits for us.
enum { DEATH_POLL_MS = 2000 };

struct held {
	uint64_t id;
	uint32_t what;
	int fd;
};

struct keeper {
	struct held *held;
	size_t n, cap;
};

static volatile sig_atomic_t forward_to;

static void forward_signal(int sig)
{
	int saved = errno;

	if (forward_to > 0)
		kill((pid_t)forward_to, sig);
	errno = saved;
}

static bool is_cell(uint32_t what)
{
	return what == ENG_KEEP_CELL_PIDFD || what == ENG_KEEP_CELL_UFFD;
}

static void keeper_hold(struct keeper *k, uint32_t what, uint64_t id, int fd)
{
	if (k->n == k->cap) {
		size_t cap = k->cap ? k->cap * 2 : 64;
		struct held *h = realloc(k->held, cap * sizeof(*h));

		if (!h)
			abort(); // holding nothing is worse than dying
		k->held = h;
		k->cap = cap;
	}
	k->held[k->n++] = (struct held){id, what, fd};
}

static void keeper_drop(struct keeper *k, uint32_t what, uint64_t id)
{
	size_t keep = 0;

	for (size_t i = 0; i < k->n; i++) {
		if (k->held[i].id == id &&
		    is_cell(k->held[i].what) == is_cell(what))
			close(k->held[i].fd);
		else
			k->held[keep++] = k->held[i];
	}
	k->n = keep;
}

// False at the end of the stream.
static bool keeper_serve(struct keeper *k, int sock)
{
	uint8_t buf[KEEPER_MSG];
	struct wire_reader r;
	int fds[CP_MAX_FDS];
	unsigned nfds;
	uint32_t op, what;
	uint64_t id;
	ssize_t n = cp_recv(sock, 0, buf, sizeof(buf), fds, &nfds);

	if (n == -EINTR || n == -EAGAIN)
		return true;
	if (n <= 0)
		return false;
	r = wire_reader_of(buf, (size_t)n);
	op = wire_get_u32(&r);
	what = wire_get_u32(&r);
	id = wire_get_u64(&r);
	if (op == KEEPER_OP_HOLD && nfds == 1 && cp_ok(&r)) {
		keeper_hold(k, what, id, fds[0]);
		return true;
	}
	cp_close_fds(fds, nfds);
	if (op == KEEPER_OP_DROP && cp_ok(&r))
		keeper_drop(k, what, id);
	return true;
}

static void end_cells(struct keeper *k)
{
	for (size_t i = 0; i < k->n; i++) {
		if (k->held[i].what == ENG_KEEP_CELL_PIDFD)
			syscall(SYS_pidfd_send_signal, k->held[i].fd, SIGKILL,
				NULL, 0);
	}
	for (size_t i = 0; i < k->n; i++) {
		struct pollfd p = {k->held[i].fd, POLLIN, 0};

		if (k->held[i].what != ENG_KEEP_CELL_PIDFD)
			continue;
		// A process that is past its last instruction but not yet
		// reaped is dead enough. So is one whose exit waits for a
		// worker of the kernel in a fault that nobody serves any more
		// (cell_proc.c, proc_linger()): it ends when this closes.
		while (poll(&p, 1, DEATH_POLL_MS) <= 0) {
			pid_t pid = eng_pidfd_pid(k->held[i].fd);

			if (pid == -ESRCH || (pid > 0 && eng_pid_exiting(pid)))
				break;
		}
	}
	for (size_t i = 0; i < k->n; i++)
		close(k->held[i].fd);
	free(k->held);
}

static const int forwarded[] = {SIGTERM, SIGINT, SIGHUP};

void eng_keeper_run(int sock, pid_t thawd)
{
	struct sigaction sa = {.sa_handler = forward_signal,
			       .sa_flags = SA_RESTART};
	struct keeper k = {0};
	sigset_t open_set;

	prctl(PR_SET_NAME, "thawd-keeper");
	forward_to = thawd;
	sigemptyset(&open_set);
	for (size_t i = 0; i < ARRAY_SIZE(forwarded); i++) {
		sigaction(forwarded[i], &sa, NULL);
		sigaddset(&open_set, forwarded[i]);
	}
	sigprocmask(SIG_UNBLOCK, &open_set, NULL); // from eng_keeper_start()
	while (keeper_serve(&k, sock))
		;
	end_cells(&k);
	close(sock);
}

// A descriptor that does not fit is lost without a word, so there is room for
// as many as the kernel allows.
static void raise_nofile(void)
{
	struct rlimit lim;

	if (getrlimit(RLIMIT_NOFILE, &lim) == 0) {
		lim.rlim_cur = lim.rlim_max;
		setrlimit(RLIMIT_NOFILE, &lim);
	}
}

int eng_keeper_start(int *sock, struct err *e)
{
	int sv[2], status = 0;
	sigset_t held, before;
	pid_t pid;

	*sock = -1;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv) < 0)
		return err_sys(e, "cannot make the keeper's socket");
	raise_nofile();
	if (fcntl(sv[1], F_SETFL, O_NONBLOCK) < 0 ||
	    prctl(PR_SET_CHILD_SUBREAPER, 1) < 0) {
		close(sv[0]);
		close(sv[1]);
		return err_sys(e, "cannot become the cells' reaper");
	}
	// A signal that comes before the keeper can pass it on must not kill it.
	sigemptyset(&held);
	for (size_t i = 0; i < ARRAY_SIZE(forwarded); i++)
		sigaddset(&held, forwarded[i]);
	sigprocmask(SIG_BLOCK, &held, &before);
	pid = fork();
	if (pid <= 0)
		sigprocmask(SIG_SETMASK, &before, NULL);
	if (pid < 0) {
		int rc = err_sys(e, "cannot fork from the descriptor keeper");

		close(sv[0]);
		close(sv[1]);
		return rc;
	}
	if (pid == 0) {
		close(sv[0]);
		*sock = sv[1];
		return 0;
	}
	close(sv[1]);
	eng_keeper_run(sv[0], pid);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
	_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

static int keeper_send(int sock, uint32_t op, uint32_t what, uint64_t id,
		       int fd)
{
	uint8_t buf[KEEPER_MSG];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	wire_put_u32(&w, op);
	wire_put_u32(&w, what);
	wire_put_u64(&w, id);
	return cp_send(sock, &w, &fd, fd >= 0 ? 1 : 0);
}

int eng_keeper_hold(int sock, enum eng_keep what, uint64_t id, int fd)
{
	return keeper_send(sock, KEEPER_OP_HOLD, what, id, fd);
}

int eng_keeper_drop(int sock, bool cell, uint64_t id)
{
	return keeper_send(sock, KEEPER_OP_DROP,
			   cell ? ENG_KEEP_CELL_PIDFD : ENG_KEEP_TMPL_MEMFD, id,
			   -1);
}
