// The processes of mkdisk_contain.c at the moments that no run shows at will: an
// outer process that dies before PID 1 has asked for its parent-death signal, and
// a child that was taken over. test_contain.py looks at the programs.
#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "mkdisk.h"

TestSuite(contain, .timeout = 120);

static int hold = -1; // fork()'s child begins when a byte comes from here
pid_t __real_fork(void);

pid_t __wrap_fork(void)
{
	pid_t pid = __real_fork();
	char byte;

	if (pid == 0 && hold >= 0)
		(void)!read(hold, &byte, 1);
	return pid;
}

static struct mk_shared *shared(void)
{
	struct mk_shared *sh = mmap(NULL, sizeof(*sh), PROT_READ | PROT_WRITE,
				    MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	cr_assert(sh != MAP_FAILED);
	return sh;
}

static int work(void *ctx, struct err *e)
{
	(void)e;
	return write(*(int *)ctx, "w", 1) == 1 ? 0 : -EIO;
}

// The outer process: says that it has done its part, and waits.
static void outer(struct mk_shared *sh, int *worked, int told)
{
	struct mk_source src = {-1, 0, 0, -1};
	struct err e = ERR_INIT;
	int st;
	pid_t pid = mk_contain(0, &src, sh, work, worked, &e);

	if (pid < 0 || write(told, "o", 1) != 1)
		_exit(1);
	_exit(mk_wait(pid, &st, "it", &e) || st ? 1 : 0);
}

static pid_t start_outer(struct mk_shared *sh, int *worked, int held[2])
{
	int told[2];
	char byte;
	pid_t pid;

	cr_assert_eq(pipe(told), 0);
	pid = __real_fork();
	if (pid == 0) {
		close(held[1]); // if this test dies, all does
		hold = held[0];
		outer(sh, worked, told[1]);
	}
	close(told[1]);
	cr_assert_eq(read(told[0], &byte, 1), 1);
	close(told[0]);
	return pid;
}

Test(contain, pid_1_works_while_the_outer_process_lives)
{
	struct mk_shared *sh = shared();
	int worked[2], held[2], st;
	char byte;
	pid_t pid;

	cr_assert_eq(pipe(worked), 0);
	cr_assert_eq(pipe(held), 0);
	pid = start_outer(sh, &worked[1], held);
	cr_assert_eq(write(held[1], "g", 1), 1);
	cr_assert_eq(waitpid(pid, &st, 0), pid);
	cr_expect_eq(st, 0);
	close(worked[1]);
	cr_expect_eq(read(worked[0], &byte, 1), 1);
	cr_expect_str_eq(sh->error.msg, "");
}

Test(contain, pid_1_does_nothing_if_the_outer_process_died_first)
{
	struct mk_shared *sh = shared();
	int worked[2], held[2];
	char byte;
	pid_t pid;

	cr_assert_eq(pipe(worked), 0);
	cr_assert_eq(pipe(held), 0);
	pid = start_outer(sh, &worked[1], held);
	kill(pid, SIGKILL);
	cr_assert_eq(waitpid(pid, NULL, 0), pid);
	cr_assert_eq(write(held[1], "g", 1), 1);
	close(worked[1]);
	cr_expect_eq(read(worked[0], &byte, 1), 0, "it worked, or lives");
	cr_expect_eq(sh->error.code, -ECANCELED);
	cr_expect_str_eq(sh->error.msg, "cancelled");
}

Test(contain, who_comes_too_late_dies_with_its_parent)
{
	pid_t parent = getpid(), pid = __real_fork();
	int st;

	if (pid == 0) {
		mk_die_with(parent);
		mk_die_with(parent + 1);
		_exit(0);
	}
	cr_assert_eq(waitpid(pid, &st, 0), pid);
	cr_expect(WIFSIGNALED(st) && WTERMSIG(st) == SIGKILL);
	pid = __real_fork();
	if (pid == 0) {
		int sig = 0;

		mk_die_with(parent);
		prctl(PR_GET_PDEATHSIG, &sig);
		_exit(sig);
	}
	cr_assert_eq(waitpid(pid, &st, 0), pid);
	cr_expect(WIFEXITED(st) && WEXITSTATUS(st) == SIGKILL);
}

Test(contain, what_a_child_says_is_cut_to_size)
{
	static const struct {
		int code, want;
	} cases[] = {{-ENOSPC, -ENOSPC}, {-4095, -4095}, {-4096, -EIO},
		     {INT32_MIN, -EIO},	 {0, -EIO},	 {7, -EIO}};
	struct mk_shared *sh = shared();
	struct err e = ERR_INIT;

	memset(sh->error.msg, 'x', sizeof(sh->error.msg));
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		sh->error.code = cases[i].code;
		cr_expect_eq(mk_said(sh, 1 << 8, &e), cases[i].want);
		cr_expect_eq(strlen(e.msg), sizeof(e.msg) - 1);
	}
}

Test(contain, who_was_killed_has_said_nothing)
{
	struct mk_shared *sh = shared();
	struct err e = ERR_INIT;

	sh->error.code = -EACCES;
	snprintf(sh->error.msg, sizeof(sh->error.msg), "not so");
	cr_expect_eq(mk_said(sh, SIGKILL, &e), 0);
	sh->error.msg[0] = '\0';
	cr_expect_eq(mk_said(sh, 1 << 8, &e), 0);
	cr_expect_str_eq(e.msg, "");
}

static int fail(void *ctx, struct err *e)
{
	const char *how = ctx;

	if (*how == 'k')
		raise(SIGKILL);
	return *how == 's' ? err_set(e, -EBADMSG, "said") : -1;
}

Test(contain, a_child_is_not_blamed_with_another_ones_error)
{
	struct mk_shared *sh = shared();
	struct err e = ERR_INIT;

	cr_expect_eq(mk_child(sh, fail, "said", "it", &e), -EBADMSG);
	cr_expect_str_eq(e.msg, "said");
	cr_expect_eq(mk_child(sh, fail, "nothing", "it", &e), -EIO);
	cr_expect_str_eq(e.msg, "it failed");
	cr_expect_eq(mk_child(sh, fail, "killed", "it", &e), -EIO);
	cr_expect_str_eq(e.msg, "it was ended by signal 9 (Killed)");
}
