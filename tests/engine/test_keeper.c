// The keeper: who it tells the world about, and the order in which it lets go.
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "cell_rig.h"
#include "cells_priv.h"

TestSuite(keeper, .timeout = 300);

static pid_t fork_keeper(int *sock)
{
	int sv[2];
	pid_t pid;

	cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv),
		     0);
	pid = fork();
	if (pid == 0) {
		close(sv[1]);
		eng_keeper_run(sv[0], 0);
		_exit(0);
	}
	close(sv[0]);
	*sock = sv[1];
	return pid;
}

// A process that takes long to die: its memory has to be freed.
static pid_t fork_slow(void)
{
	size_t len = 512u << 20;
	int ready[2];
	char c;
	pid_t pid;

	cr_assert_eq(pipe(ready), 0);
	pid = fork();
	if (pid == 0) {
		char *p =
		    mmap(NULL, len, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

		close(ready[0]);
		if (p == MAP_FAILED || write(ready[1], "x", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(ready[1]);
	cr_assert_eq(read(ready[0], &c, 1), 1);
	close(ready[0]);
	return pid;
}

Test(keeper, holds_until_the_cell_is_dead)
{
	int sock, held[2], pidfd, status;
	pid_t slow = fork_slow(), keeper = fork_keeper(&sock);
	char c;

	cr_assert_eq(pipe2(held, O_CLOEXEC), 0);
	pidfd = (int)syscall(SYS_pidfd_open, slow, 0);
	cr_assert_geq(pidfd, 0);
	cr_assert_eq(eng_keeper_hold(sock, ENG_KEEP_CELL_UFFD, 1, held[1]), 0);
	cr_assert_eq(eng_keeper_hold(sock, ENG_KEEP_CELL_PIDFD, 1, pidfd), 0);
	close(held[1]);
	close(pidfd);
	close(sock); // thawd is dead
	// The end of the pipe: the keeper let go.
	cr_assert_eq(read(held[0], &c, 1), 0);
	cr_assert_eq(waitpid(slow, &status, WNOHANG), slow,
		     "the descriptor was closed under a living cell");
	cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	cr_assert_eq(waitpid(keeper, &status, 0), keeper);
	cr_assert_eq(status, 0);
}

Test(keeper, drop_lets_go_of_that_id_only)
{
	int sock, a[2], b[2], t[2], status;
	pid_t keeper = fork_keeper(&sock);
	struct pollfd p;
	char c;

	cr_assert(pipe(a) == 0 && pipe(b) == 0 && pipe(t) == 0);
	cr_assert_eq(eng_keeper_hold(sock, ENG_KEEP_CELL_UFFD, 7, a[1]), 0);
	cr_assert_eq(eng_keeper_hold(sock, ENG_KEEP_CELL_UFFD, 8, b[1]), 0);
	// A template with the same number is something else.
	cr_assert_eq(eng_keeper_hold(sock, ENG_KEEP_TMPL_UFFD, 7, t[1]), 0);
	close(a[1]);
	close(b[1]);
	close(t[1]);
	cr_assert_eq(eng_keeper_drop(sock, true, 7), 0);
	cr_assert_eq(read(a[0], &c, 1), 0);
	p = (struct pollfd){b[0], POLLIN, 0};
	cr_assert_eq(poll(&p, 1, 50), 0);
	p.fd = t[0];
	cr_assert_eq(poll(&p, 1, 50), 0);
	close(sock);
	cr_assert_eq(read(b[0], &c, 1), 0);
	cr_assert_eq(read(t[0], &c, 1), 0);
	cr_assert_eq(waitpid(keeper, &status, 0), keeper);
}

static volatile sig_atomic_t got_term;

static void on_term(int sig)
{
	(void)sig;
	got_term = 1;
}

Test(keeper, start_forwards_signals_and_status)
{
	int ready[2], status;
	char c;
	pid_t pid;

	cr_assert_eq(pipe(ready), 0);
	pid = fork();
	if (pid == 0) { // becomes the keeper; its child goes on here
		struct err e = ERR_INIT;
		int sock;

		if (eng_keeper_start(&sock, &e))
			_exit(1);
		signal(SIGTERM, on_term);
		if (write(ready[1], "x", 1) != 1)
			_exit(2);
		for (int i = 0; i < 12000 && !got_term; i++)
			usleep(10000);
		_exit(got_term ? 42 : 3);
	}
	cr_assert_eq(read(ready[0], &c, 1), 1);
	kill(pid, SIGTERM);
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert(WIFEXITED(status));
	cr_assert_eq(WEXITSTATUS(status), 42);
}

static void listen_for_term(void)
{
	signal(SIGTERM, on_term);
}

static void term_to_self(void)
{
	kill(getpid(), SIGTERM);
}

// A signal at the worst moment: the child exists, the keeper is not yet one.
Test(keeper, start_survives_an_early_signal)
{
	int status;
	pid_t pid = fork();

	if (pid == 0) { // becomes the keeper; its child goes on here
		struct err e = ERR_INIT;
		int sock;

		signal(SIGTERM, SIG_DFL);
		pthread_atfork(NULL, term_to_self, listen_for_term);
		if (eng_keeper_start(&sock, &e))
			_exit(1);
		for (int i = 0; i < 12000 && !got_term; i++)
			usleep(10000);
		_exit(got_term ? 42 : 3);
	}
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert(WIFEXITED(status), "the keeper died of signal %d",
		  WTERMSIG(status));
	cr_assert_eq(WEXITSTATUS(status), 42);
}

// --- SIGKILL of thawd in the middle of a cold thaw --------------------------

enum { FILL_MIB = 16, ROUNDS = 100 };

// The part of thawd: thaws, shows its template and the guest's console to the
// test, lets the guest compare its memory, and serves until it is killed.
static void thawd_part(int out, int keeper, const char *store,
		       const struct pgc_id *img)
{
	static struct rig r;
	static struct rig_vm vm;
	struct rig_opts o = {.store = store, .keeper_sock = keeper};
	uint8_t byte = 1;
	struct wire_writer w = {&byte, 1, 1, false};
	char cmd[64];
	int fds[2], n;

	rig_open(&r, &o);
	rig_thaw(&r, &vm, img, NULL);
	fds[0] = pgc_template_fd(eng_snap_find(r.cells, img)->tmpl[PGC_MEM]);
	fds[1] = vm.cell->proc->console;
	n = snprintf(cmd, sizeof(cmd), "check 7 16M %dM\n", FILL_MIB);
	eng_cell_mailbox(vm.cell, cmd, (size_t)n, NULL);
	eng_watch_set(vm.cell->proc->w_console, 0); // the test reads it
	cp_send(out, &w, fds, 2);
	rig_turn(&r, 60000);
	_exit(0);
}

// Every page that the template holds is the snapshot's; returns how many.
static unsigned check_template(int fd, struct pgc_snap *sn)
{
	uint64_t end = pgc_snap_pages(sn, PGC_MEM) * PGC_PAGE;
	static uint8_t have[PGC_PAGE], want[PGC_PAGE];
	unsigned pages = 0;
	off_t at = 0;

	while ((uint64_t)at < end) {
		off_t data = lseek(fd, at, SEEK_DATA), hole;
		struct err e = ERR_INIT;

		if (data < 0)
			break;
		hole = lseek(fd, data, SEEK_HOLE);
		for (at = data; at < hole; at += PGC_PAGE, pages++) {
			cr_assert_eq(pread(fd, have, PGC_PAGE, at), PGC_PAGE);
			cr_assert_eq(pgc_snap_read(sn, PGC_MEM,
						   (uint64_t)at / PGC_PAGE,
						   want, 1, &e),
				     0, "%s", e.msg);
			cr_assert_eq(memcmp(have, want, PGC_PAGE), 0,
				     "page %ld of the template was not filled "
				     "by thawd",
				     (long)(at / PGC_PAGE));
		}
	}
	return pages;
}

static void read_all(int fd, char *text, size_t cap)
{
	size_t len = 0;
	ssize_t n;

	fcntl(fd, F_SETFL, 0);
	while (len < cap - 1 && (n = read(fd, text + len, cap - 1 - len)) > 0)
		len += (size_t)n;
	text[len] = '\0';
}

// Waits until the template has so many pages.
static void await_pages(int fd, unsigned pages)
{
	uint64_t end = util_now_ns() + RIG_MS * 1000000ull;
	struct stat st;

	do {
		cr_assert_eq(fstat(fd, &st), 0);
		cr_assert_lt(util_now_ns(), end, "the guest reads nothing");
	} while ((uint64_t)st.st_blocks * 512 < pages * PGC_PAGE);
}

static int kill_once(const char *store, const struct pgc_id *img,
		     unsigned after_pages, unsigned *pages)
{
	int sv[2], sock, fds[CP_MAX_FDS], status;
	unsigned nfds;
	struct pgc_store *s;
	struct pgc_snap *sn;
	struct err e = ERR_INIT;
	pid_t keeper = fork_keeper(&sock), thawd;
	uint8_t byte;
	char text[4096];

	cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sv), 0);
	thawd = fork();
	if (thawd == 0) {
		close(sv[0]);
		fcntl(sock, F_SETFD, FD_CLOEXEC);
		thawd_part(sv[1], sock, store, img);
	}
	close(sv[1]);
	close(sock);
	cr_assert_eq(cp_recv(sv[0], 0, &byte, 1, fds, &nfds), 1);
	cr_assert_eq(nfds, 2u);
	await_pages(fds[0], after_pages);
	kill(thawd, SIGKILL);
	cr_assert_eq(waitpid(thawd, NULL, 0), thawd);
	// The keeper ends when the cells are dead: then nobody writes.
	cr_assert_eq(waitpid(keeper, &status, 0), keeper);
	read_all(fds[1], text, sizeof(text));
	cr_assert(!strstr(text, "BAD"), "the guest read: %s", text);
	cr_assert_eq(pgc_store_open(&s, store, NULL, &e), 0, "%s", e.msg);
	cr_assert_eq(pgc_snap_open(s, img, &sn, &e), 0, "%s", e.msg);
	*pages = check_template(fds[0], sn);
	pgc_snap_unref(sn);
	pgc_store_close(s);
	close(fds[0]);
	close(fds[1]);
	close(sv[0]);
	return strstr(text, "GOOD") != NULL;
}

Test(keeper, sigkill_of_thawd_in_a_cold_thaw)
{
	static struct rig r;
	struct pgc_id img;
	char cmd[64], store[] = "/tmp/thaw-kept-XXXXXX";
	struct rig_opts o = {.store = store};
	unsigned partial = 0, finished = 0;

	rig_need();
	cr_assert(mkdtemp(store));
	rig_open(&r, &o);
	snprintf(cmd, sizeof(cmd), "fill 7 16M %dM", FILL_MIB);
	rig_image(&r, &img, 64, 1, cmd);
	rig_close(&r);
	for (unsigned i = 0; i < ROUNDS; i++) {
		unsigned pages;
		// From the first faults to the last.
		int done =
		    kill_once(store, &img, i * FILL_MIB * 256 / ROUNDS, &pages);

		finished += (unsigned)done;
		partial += !done && pages > 0 && pages < FILL_MIB * 256;
	}
	cr_log_info("%u killed midway, %u after the end", partial, finished);
	cr_assert_geq(partial, 20u, "only %u of the kills hit a cold thaw",
		      partial);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", store);
	cr_assert_eq(system(cmd), 0);
}
