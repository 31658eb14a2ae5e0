// Hooks: what is asked, what counts as an answer, and what a guest that does not
// play by the rules gets.
#include "hook.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

static struct eng_loop *loop;
static int guest; // the other end
static unsigned calls;
static int got;
static char got_why[200];

static void answered(void *ctx, int status, const char *why)
{
	cr_expect_eq(ctx, &calls);
	calls++;
	got = status;
	snprintf(got_why, sizeof(got_why), "%s", why);
	eng_loop_stop(loop);
}

static struct eng_hook *ask(const char *body, uint64_t ms)
{
	struct hook_ask a = {"run", 9000, body, ms};
	struct err e = ERR_INIT;
	struct eng_hook *h;
	int sv[2];

	calls = 0;
	got = 0;
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sv),
		     0);
	guest = sv[1];
	cr_assert_eq(eng_hook_call(&h, loop, sv[0], &a, answered, &calls, &e),
		     0);
	return h;
}

static void says(const char *text)
{
	cr_assert_eq(send(guest, text, strlen(text), 0), (ssize_t)strlen(text));
}

// What follows an answer has a second in thawd; here (CMakeLists.txt wraps the
// function) it has as long as it takes.
void __real_eng_timer_set(struct eng_timer *t, uint64_t after_ms);
void __wrap_eng_timer_set(struct eng_timer *t, uint64_t after_ms);
void __wrap_eng_timer_set(struct eng_timer *t, uint64_t after_ms)
{
	__real_eng_timer_set(t,
			     after_ms == HOOK_LINGER_MS ? 3600000 : after_ms);
}

// The loop runs until the answer, or for `ms`.
static void stop(void *ctx)
{
	(void)ctx;
	eng_loop_stop(loop);
}

static void turn(uint64_t ms)
{
	struct eng_timer *t = eng_timer_create(loop, stop, NULL, "test");

	eng_timer_set(t, ms);
	eng_loop_run(loop);
	eng_timer_destroy(t);
}

static void setup(void)
{
	struct err e = ERR_INIT;

	signal(SIGPIPE, SIG_IGN); // as thawd does
	cr_assert_eq(eng_loop_create(&loop, &e), 0);
}

static void teardown(void)
{
	fd_close(&guest);
	for (int i = 0; i < 3; i++)
		turn(20); // what lingers sees the end
	eng_loop_destroy(loop);
}

TestSuite(hook, .init = setup, .fini = teardown, .timeout = 300);

Test(hook, asks_as_the_contract_says)
{
	static const char want[] =
	    "POST /aws/lambda-microvms/runtime/v1/run HTTP/1.1\r\n"
	    "Host: localhost:9000\r\n"
	    "Content-Type: application/json\r\n"
	    "Content-Length: 7\r\n"
	    "Connection: close\r\n\r\n"
	    "{\"a\":1}";
	char buf[1024];
	ssize_t n;

	ask("{\"a\":1}", 60000);
	turn(50);
	n = recv(guest, buf, sizeof(buf), 0);
	cr_assert_eq(n, (ssize_t)strlen(want), "%zd", n);
	cr_expect_eq(memcmp(buf, want, (size_t)n), 0);
	says("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
	turn(60000);
	cr_expect_eq(calls, 1u);
	cr_expect_eq(got, 200);
}

Test(hook, an_answer_may_come_in_pieces)
{
	ask("", 60000);
	says("HTTP/1.0 5");
	turn(30);
	cr_expect_eq(calls, 0u);
	says("03 Busy\r\nX: y\r\n");
	turn(30);
	cr_expect_eq(calls, 0u, "only a whole head is an answer");
	says("\r\n");
	turn(60000);
	cr_expect_eq(got, 503);
}

Test(hook, interim_answers_are_none)
{
	ask("", 60000);
	says("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 X\r\n\r\n");
	turn(30);
	cr_expect_eq(calls, 0u);
	says("HTTP/1.1 400 Bad\r\n\r\n");
	turn(60000);
	cr_expect_eq(got, 400);
}

Test(hook, what_is_no_http_is_told)
{
	static const char *const bad[] = {
	    "SSH-2.0-OpenSSH_9.2\r\n",	"HTTP/2.0 200 OK\r\n\r\n",
	    "HTTP/1.1 20 OK\r\n\r\n",	"HTTP/1.1 2000 OK\r\n\r\n",
	    "HTTP/1.1 600 OK\r\n\r\n",	"HTTP/1.1 099 OK\r\n\r\n",
	    "HTTP/1.1  200 OK\r\n\r\n", "HTTP/1.1 2\r\n\r\n",
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		ask("", 60000);
		says(bad[i]);
		turn(60000);
		cr_expect_eq(calls, 1u, "%s", bad[i]);
		cr_expect_eq(got, -EPROTO, "%s: %d", bad[i], got);
		fd_close(&guest);
	}
}

Test(hook, a_head_has_an_end)
{
	char flood[1000];

	memset(flood, 'x', sizeof(flood));
	ask("", 60000);
	says("HTTP/1.1 200 OK\r\nX: ");
	for (int i = 0; i < 17; i++)
		cr_assert_eq(send(guest, flood, sizeof(flood), 0),
			     (ssize_t)sizeof(flood));
	turn(60000);
	cr_expect_eq(got, -EPROTO);
}

Test(hook, silence_and_an_early_end_are_told_apart)
{
	ask("", 60);
	turn(60000);
	cr_expect_eq(got, -ETIMEDOUT);
	cr_expect_str_eq(got_why, "it did not answer in time");
	fd_close(&guest);

	ask("", 60000);
	says("HTTP/1.1 200 OK\r\n");
	fd_close(&guest);
	turn(60000);
	cr_expect_eq(got, -EPIPE);
	cr_expect_eq(calls, 1u);
}

Test(hook, its_time_is_for_the_whole_head)
{
	static const char head[] = "HTTP/1.1 200 OK, slowly";

	ask("", 200);
	for (int i = 0; i < 20 && !calls; i++) {
		cr_assert_eq(send(guest, &head[i], 1, 0), 1);
		turn(30);
	}
	cr_expect_eq(got, -ETIMEDOUT);
}

Test(hook, what_follows_the_answer_is_read)
{
	char chunk[8192] = {0};
	size_t sent = 0;
	ssize_t n;

	ask("", 60000);
	says("HTTP/1.1 200 OK\r\n\r\n");
	turn(60000);
	cr_expect_eq(got, 200);
	// More than the socket holds.
	for (int i = 0; i < 30000 && sent < 700u * 1024; i++) {
		n = send(guest, chunk, sizeof(chunk), MSG_NOSIGNAL);
		if (n > 0)
			sent += (size_t)n;
		turn(2);
	}
	cr_expect_geq(sent, 700u * 1024, "%zu", sent);
}

Test(hook, nothing_comes_after_it_was_cancelled)
{
	eng_hook_cancel(ask("", 50));
	turn(120);
	cr_expect_eq(calls, 0u);
	eng_hook_cancel(NULL);
}
