// A program of thawd's that speaks in lines, from a shell's script.
#include "child.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

static struct eng_loop *loop;
static struct eng_child *child;
static char said[256]; // the lines, '|' after each
static size_t longest, lines;
static char how_it_ended[64];
static bool well;

static void on_line(void *ctx, char *line, size_t n)
{
	size_t len = strlen(said);

	(void)ctx;
	cr_assert_eq(line[n], '\0');
	lines++;
	longest = MAX(longest, n);
	snprintf(said + len, sizeof(said) - len, "%.20s|", line);
	if (!strcmp(line, "kill me"))
		eng_child_kill(child, SIGKILL);
}

static void on_end(void *ctx, bool ok, const char *how)
{
	(void)ctx;
	cr_expect(!how_it_ended[0], "it ended twice");
	cr_expect(!eng_child_runs(child));
	eng_child_kill(child, SIGKILL); // no more than nothing
	eng_child_destroy(child);
	child = NULL;
	well = ok;
	snprintf(how_it_ended, sizeof(how_it_ended), "%s", how);
	eng_loop_stop(loop);
}

static void run(const char *script)
{
	static const struct eng_child_events ev = {on_line, on_end};
	char *const argv[] = {"/bin/sh", "-c", (char *)script, NULL};
	struct err e = ERR_INIT;

	said[0] = how_it_ended[0] = '\0';
	longest = lines = 0;
	cr_assert_eq(eng_child_start(&child, loop, argv, &ev, NULL, "test", &e),
		     0, "%s", e.msg);
	cr_expect(eng_child_runs(child));
	eng_loop_run(loop);
}

static void setup(void)
{
	struct err e = ERR_INIT;

	cr_assert_eq(eng_loop_create(&loop, &e), 0);
}

static void teardown(void)
{
	eng_loop_destroy(loop);
}

TestSuite(child, .init = setup, .fini = teardown, .timeout = 300);

Test(child, its_lines_come_whole_and_before_its_end)
{
	run("echo one; printf t; sleep 0.1; echo wo; echo; printf half");
	cr_expect_str_eq(said, "one|two||");
	cr_expect_str_eq(how_it_ended, "exit code 0");
	cr_expect(well);
}

Test(child, how_it_ended_is_said)
{
	run("echo bad; exit 3");
	cr_expect_str_eq(said, "bad|");
	cr_expect_str_eq(how_it_ended, "exit code 3");
	cr_expect(!well);
	run("echo kill me; exec sleep 60");
	cr_expect_str_eq(how_it_ended, "signal 9");
	cr_expect(!well);
}

Test(child, a_line_too_long_loses_its_rest)
{
	run("head -c 100000 /dev/zero | tr '\\0' x; echo; echo next");
	cr_expect_eq(lines, 2u);
	cr_expect_eq(longest, (size_t)ENG_CHILD_LINE - 1);
	cr_expect_str_eq(said, "xxxxxxxxxxxxxxxxxxxx|next|");
}

Test(child, a_closed_output_does_not_wake_the_loop)
{
	struct eng_turn_stats t0, t1;

	eng_loop_turn_stats(loop, &t0);
	run("echo last; sleep 0.2; exec >&-; sleep 0.3");
	eng_loop_turn_stats(loop, &t1);
	cr_expect_str_eq(said, "last|");
	cr_expect(well);
	cr_expect_lt(t1.turns - t0.turns, 20u, "%llu turns",
		     (unsigned long long)(t1.turns - t0.turns));
}

Test(child, what_holds_the_pipe_longer_is_not_waited_for)
{
	pid_t holder;

	run("sleep 1000 & echo $!");
	holder = (pid_t)atoi(said);
	cr_assert_gt(holder, 1);
	cr_expect_eq(kill(holder, SIGKILL), 0, "it was waited for");
	cr_expect(well);
}

Test(child, a_program_that_is_not_there_is_an_error)
{
	static const struct eng_child_events ev = {on_line, on_end};
	char *const argv[] = {"/nowhere/thaw-x", NULL};
	struct err e = ERR_INIT;

	cr_expect_eq(eng_child_start(&child, loop, argv, &ev, NULL, "t", &e),
		     -ENOENT);
	cr_expect_str_eq(e.msg, "cannot start /nowhere/thaw-x: No such file or "
				"directory");
}
