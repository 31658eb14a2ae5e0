// The log of a microVM: positions, tails, rotation, the rate, followers. What time
// it is these tests say (CMakeLists.txt wraps the clock).
#include "vmlog.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

static char dir[64];
static struct eng_loop *loop;
static struct vmlog *lg;

static void setup(void)
{
	struct err e = ERR_INIT;

	strcpy(dir, "/tmp/thaw-log-XXXXXX");
	cr_assert_not_null(mkdtemp(dir));
	cr_assert_eq(eng_loop_create(&loop, &e), 0);
	cr_assert_eq(vmlog_open(&lg, loop, dir, "x", &e), 0, "%s", e.msg);
}

static void teardown(void)
{
	char cmd[100];

	vmlog_close(lg);
	eng_loop_destroy(loop);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	cr_assert_eq(system(cmd), 0);
}

TestSuite(vmlog, .init = setup, .fini = teardown);

static uint64_t now = 1000000000000;

static void pass(uint64_t ms)
{
	now += ms * 1000000;
}

uint64_t __wrap_util_now_ns(void);
uint64_t __wrap_util_now_ns(void)
{
	return now;
}

static void put(const char *s)
{
	vmlog_write(lg, s, strlen(s));
}

static const char *from(uint64_t pos)
{
	static char buf[4096];
	size_t n = vmlog_read(lg, &pos, buf, sizeof(buf) - 1);

	buf[n] = '\0';
	return buf;
}

Test(vmlog, tail)
{
	put("one\ntwo\nthree\n");
	cr_expect_str_eq(from(vmlog_tail(lg, 1)), "three\n");
	cr_expect_str_eq(from(vmlog_tail(lg, 2)), "two\nthree\n");
	cr_expect_str_eq(from(vmlog_tail(lg, 9)), "one\ntwo\nthree\n");
	cr_expect_str_eq(from(vmlog_tail(lg, 0)), "");
	put("half");
	cr_expect_str_eq(from(vmlog_tail(lg, 1)), "half");
	cr_expect_str_eq(from(vmlog_tail(lg, 2)), "three\nhalf");
}

Test(vmlog, rotation_keeps_the_newest_and_positions)
{
	char block[1001];
	uint64_t pos;
	size_t n;

	memset(block, 'a', 999);
	block[999] = '\n';
	block[1000] = '\0';
	// Slower than the rate: 5,000 blocks over a few bursts.
	for (unsigned i = 0; i < 5000; i++) {
		if (i % 900 == 899)
			pass(1000);
		put(block);
	}
	put("last\n");
	cr_expect_str_eq(from(vmlog_tail(lg, 1)), "last\n");
	cr_expect_gt(vmlog_start(lg), 0, "the oldest half is gone");
	cr_expect_leq(vmlog_end(lg) - vmlog_start(lg), VMLOG_CAP + 1000);
	pos = 0;
	for (n = 0; *from(pos); n++) { // reading moves past what is gone
		char buf[4096];

		if (!vmlog_read(lg, &pos, buf, sizeof(buf)))
			break;
	}
	cr_expect_eq(pos, vmlog_end(lg));
	cr_expect_gt(n, 100);
}

Test(vmlog, a_flood_is_cut_and_says_so)
{
	static char mib[1024 * 1024];
	uint64_t before;

	memset(mib, 'x', sizeof(mib));
	for (unsigned i = 0; i < 8; i++)
		vmlog_write(lg, mib, sizeof(mib));
	before = vmlog_end(lg);
	cr_expect_leq(before, 3u * 1024 * 1024, "%lu", (unsigned long)before);
	pass(200);
	put("after\n");
	cr_expect_not_null(strstr(from(before), "bytes of log dropped"));
	cr_expect_not_null(strstr(from(before), "after"));
}

static unsigned told, closed;
static void follower(void *ctx, bool more)
{
	(void)ctx;
	told += more;
	closed += !more;
}

Test(vmlog, followers)
{
	struct vmlog_follower *a, *b;
	struct err e = ERR_INIT;

	told = closed = 0;
	a = vmlog_follow(lg, follower, NULL);
	b = vmlog_follow(lg, follower, NULL);
	put("x");
	cr_expect_eq(told, 2);
	vmlog_unfollow(a);
	put("y");
	cr_expect_eq(told, 3);
	(void)b;
	vmlog_close(lg);
	cr_expect_eq(closed, 1);
	cr_assert_eq(vmlog_open(&lg, loop, dir, "x", &e), 0);
	cr_expect_str_eq(from(0), "xy", "opened again, it goes on");
	put("z");
	cr_expect_str_eq(from(0), "xyz");
}
