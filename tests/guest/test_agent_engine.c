// thawd's side: what it encodes is what the agent decodes, and what a hostile
// guest answers is refused.
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "ag_frame.h"
#include "ag_spec.h"
#include "agent.h"

// What should come and does not is a failure, not a wait.
TestSuite(call, .timeout = 300);
TestSuite(log, .timeout = 300);

static uint8_t buf[AGENT_FRAME_MAX + 64];
static struct wire_writer w;

static void fresh(void)
{
	w = wire_writer_of(buf, sizeof(buf));
}

// What was written must be one frame that the agent takes.
static void frame_is(unsigned want, uint32_t want_len)
{
	unsigned type;
	uint32_t len;

	cr_assert_not(w.bad);
	cr_assert_eq(ag_head_get(buf, &type, &len), 0, "type %u", want);
	cr_assert_eq(type, want);
	cr_assert_eq(len, w.len - 8);
	if (want_len)
		cr_assert_eq(len, want_len);
}

static const struct eng_app_spec app = {
    .argv = (const char *const[]){"/srv/app", "--port", "80", NULL},
    .env = (const char *const[]){"A=b", NULL},
    .user = "www-data",
    .cwd = "/srv",
    .hostname = "one",
};

Test(encode, start_and_exec_decode_in_the_agent)
{
	struct ag_spec s;
	const char *why;

	fresh();
	eng_agent_put_start(&w, &app);
	frame_is(AGENT_START, 0);
	cr_assert_eq(ag_spec_app(&s, buf + 8, w.len - 8, &why), 0, "%s", why);
	cr_assert_str_eq(s.argv[2], "80");
	cr_assert_null(s.argv[3]);
	cr_assert_str_eq(s.env[0], "A=b");
	cr_assert_str_eq(s.user, "www-data");
	cr_assert_str_eq(s.cwd, "/srv");
	cr_assert_str_eq(s.hostname, "one");
	cr_assert_not(s.all_caps, "only where it is asked for");
	ag_spec_fini(&s);
	fresh();
	eng_agent_put_start(
	    &w, &(struct eng_app_spec){.argv = app.argv, .all_caps = true});
	cr_assert_eq(ag_spec_app(&s, buf + 8, w.len - 8, &why), 0, "%s", why);
	cr_assert(s.all_caps && !s.pty);
	ag_spec_fini(&s);
	fresh();
	eng_agent_put_exec(
	    &w,
	    &(struct eng_app_spec){.argv = (const char *const[]){"sh", NULL}},
	    true, 50, 132);
	frame_is(AGENT_EXEC, 0);
	cr_assert_eq(ag_spec_exec(&s, buf + 8, w.len - 8, &why), 0, "%s", why);
	cr_assert(s.pty && s.rows == 50 && s.cols == 132);
	cr_assert_str_eq(s.argv[0], "sh");
	cr_assert_str_eq(s.user, "");
	ag_spec_fini(&s);
}

Test(encode, thaw_carries_the_time_and_fresh_entropy)
{
	const uint8_t id[16] = {0xaa, 1, 2};
	struct ag_thaw a, b;
	const char *why;
	uint64_t before = util_wall_ns();

	fresh();
	eng_agent_put_thaw(&w, id, "clone");
	frame_is(AGENT_THAW, 92 + 5);
	cr_assert_eq(ag_thaw_parse(&a, buf + 8, w.len - 8, &why), 0);
	cr_assert_geq(a.wall_ns, before);
	cr_assert_leq(a.wall_ns, util_wall_ns());
	cr_assert_arr_eq(a.machine_id, id, 16);
	cr_assert_str_eq(a.hostname, "clone");
	fresh();
	eng_agent_put_thaw(&w, id, NULL);
	frame_is(AGENT_THAW, 92);
	cr_assert_eq(ag_thaw_parse(&b, buf + 8, w.len - 8, &why), 0);
	cr_assert_neq(memcmp(a.entropy, b.entropy, 64), 0);
}

Test(encode, small_ones)
{
	fresh();
	eng_agent_put_freeze(&w, AGENT_FREEZE_SYNC | AGENT_FREEZE_COMPACT);
	frame_is(AGENT_FREEZE, 4);
	cr_assert_eq(buf[8], 3);
	fresh();
	eng_agent_put_unfreeze(&w);
	frame_is(AGENT_UNFREEZE, 0);
	fresh();
	eng_agent_put_connect(&w, 0x1f90);
	frame_is(AGENT_CONNECT, 2);
	cr_assert(buf[8] == 0x90 && buf[9] == 0x1f);
	fresh();
	eng_agent_put_probe(&w, 0);
	frame_is(AGENT_PROBE, 2);
	fresh();
	eng_agent_put_log(&w);
	frame_is(AGENT_LOG, 0);
	fresh();
	eng_agent_put_poweroff(&w, 5000);
	frame_is(AGENT_POWEROFF, 4);
}

Test(encode, too_big_is_bad_and_never_overruns)
{
	static char huge[AGENT_FRAME_MAX + 1];
	struct eng_app_spec a = {.argv = (const char *const[]){huge, NULL}};
	uint8_t small[24];

	memset(huge, 'x', AGENT_FRAME_MAX);
	fresh();
	eng_agent_put_start(&w, &a);
	cr_assert(w.bad, "longer than a frame may be");
	w = wire_writer_of(small, sizeof(small));
	eng_agent_put_start(&w, &app);
	cr_assert(w.bad, "longer than the buffer");
}

Test(probed, parse)
{
	uint8_t p[22] = {1, 1, 7};
	struct eng_probe out;

	p[6] = 9;
	p[14] = 11;
	cr_assert_eq(eng_agent_parse_probed(p, 22, &out), 0);
	cr_assert(out.listening && out.app_running && out.app_exit == 7);
	cr_assert(out.app_cpu_us == 9 && out.uptime_ms == 11);
	cr_assert_eq(eng_agent_parse_probed(p, 21, &out), -EPROTO);
	p[1] = 2;
	cr_assert_eq(eng_agent_parse_probed(p, 22, &out), -EPROTO);
}

Test(probed, answers_are_judged_in_one_place)
{
	uint8_t p[22] = {1, 1};
	struct eng_agent_answer a = {
	    .type = AGENT_PROBED, .payload = p, .len = sizeof(p), .why = ""};
	struct eng_probe out;
	const char *why;

	cr_assert_eq(eng_agent_probed(&a, &out, &why), 0);
	cr_assert(out.listening && out.app_running);
	a.type = AGENT_OK;
	cr_assert_eq(eng_agent_probed(&a, &out, &why), -EPROTO);
	cr_assert_str_eq(why, "a malformed answer");
	a.type = AGENT_PROBED;
	p[0] = 2;
	cr_assert_eq(eng_agent_probed(&a, &out, &why), -EPROTO);
	a = (struct eng_agent_answer){.rc = -EPIPE, .why = "gone"};
	cr_assert_eq(eng_agent_probed(&a, &out, &why), -EPIPE);
	cr_assert_str_eq(why, "gone");
}

// --- calls ------------------------------------------------------------------

struct fixture {
	struct eng_loop *l;
	int guest, host; // the two ends
	int calls;
	struct eng_agent_answer a;
	char why[500];
	uint8_t payload[4096];
};
static struct fixture f;

static void stop(void *ctx)
{
	eng_loop_stop(ctx);
}

static void open_pair(void)
{
	struct err e;
	int s[2];

	if (!f.l)
		cr_assert_eq(eng_loop_create(&f.l, &e), 0);
	cr_assert_eq(socketpair(AF_UNIX,
				SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0,
				s),
		     0);
	f.host = s[0];
	f.guest = s[1];
	f.calls = 0;
}

static void on_answer(void *ctx, const struct eng_agent_answer *a)
{
	cr_assert_eq(ctx, &f);
	f.calls++;
	f.a = *a;
	snprintf(f.why, sizeof(f.why), "%s", a->why);
	if (a->len)
		memcpy(f.payload, a->payload, a->len);
	eng_loop_stop(f.l);
}

// Asks; the guest has `len` bytes of answer ready and then closes, or not.
static void ask(const void *answer, size_t len, bool closes, bool want_fd,
		uint64_t timeout_ms)
{
	struct err e = ERR_INIT;
	struct eng_agent_call *call;

	open_pair();
	fresh();
	eng_agent_put_probe(&w, 80);
	cr_assert_eq(write(f.guest, answer, len), (ssize_t)len);
	if (closes)
		shutdown(f.guest, SHUT_WR);
	call = eng_agent_call(f.l, f.host, buf, w.len, timeout_ms, want_fd,
			      on_answer, &f, &e);
	cr_assert_not_null(call, "%s", e.msg);
	cr_assert_eq(f.calls, 0, "called from within");
	eng_loop_run(f.l);
	cr_assert_eq(f.calls, 1);
}

static void fini(void)
{
	eng_loop_destroy(f.l);
}

static void closed_by_host(void)
{
	uint8_t got[64];

	// The opening, then the end.
	cr_assert_eq(read(f.guest, got, sizeof(got)), 10);
	if (read(f.guest, got, sizeof(got)) != 0)
		cr_assert_eq(errno, ECONNRESET, "the stream is still open");
	close(f.guest);
}

static size_t answer_of(uint8_t *p, unsigned type, const void *load, size_t n)
{
	ag_head_put(p, type, (uint32_t)n);
	memcpy(p + 8, load, n);
	return 8 + n;
}

Test(call, ok, .fini = fini)
{
	uint8_t p[64];

	ask(p, answer_of(p, AGENT_OK, "", 0), false, false, 60000);
	cr_assert_eq(f.a.rc, 0);
	cr_assert_eq(f.a.type, AGENT_OK);
	cr_assert_eq(f.a.fd, -1);
	closed_by_host();
	ask(p, answer_of(p, AGENT_PROBED, "0123456789012345678901", 22), true,
	    false, 60000);
	cr_assert_eq(f.a.rc, 0);
	cr_assert_eq(f.a.type, AGENT_PROBED);
	cr_assert_eq(memcmp(f.payload, "0123456789012345678901", 22), 0);
	close(f.guest);
}

Test(call, error_is_its_errno_and_a_clean_text, .fini = fini)
{
	uint8_t p[2000], load[1500] = {2, 0, 0, 0};

	memcpy(load + 4, "no\n\x1b[31mfile\xff", 12);
	ask(p, answer_of(p, AGENT_ERROR, load, 16), true, false, 60000);
	cr_assert_eq(f.a.rc, -ENOENT);
	cr_assert_str_eq(f.why, "no??[31mfile");
	close(f.guest);
	memset(load + 4, 'x', sizeof(load) - 4);
	ask(p, answer_of(p, AGENT_ERROR, load, sizeof(load)), true, false,
	    60000);
	cr_assert_eq(strlen(f.why), 399);
	close(f.guest);
	// Not an errno: 0 would be success, 2^31 a positive number.
	for (int i = 0; i < 3; i++) {
		static const uint32_t code[] = {0, 0x80000000, 4096};

		for (int k = 0; k < 4; k++)
			load[k] = (uint8_t)(code[i] >> (8 * k));
		ask(p, answer_of(p, AGENT_ERROR, load, 8), true, false, 60000);
		cr_assert_eq(f.a.rc, -EPROTO);
		close(f.guest);
	}
}

Test(call, hostile_answers, .fini = fini)
{
	static const uint8_t bad[][8] = {
	    {AGENT_OK, 1, 0, 0, 0, 0, 0, 0},
	    {AGENT_OK, 0, 0, 1, 0, 0, 0, 0},
	    {AGENT_OK, 0, 0, 0, 1, 0, 0, 0},
	    {AGENT_PROBED, 0, 0, 0, 21, 0, 0, 0},
	    {AGENT_PROBED, 0, 0, 0, 23, 0, 0, 0},
	    {AGENT_ERROR, 0, 0, 0, 3, 0, 0, 0},
	    {AGENT_ERROR, 0, 0, 0, 1, 0x10, 0, 0},
	    {AGENT_ERROR, 0, 0, 0, 255, 255, 255, 255},
	    {AGENT_STDOUT, 0, 0, 0, 0, 0, 0, 0},
	    {AGENT_LOGDATA, 0, 0, 0, 5, 0, 0, 0},
	    {AGENT_THAW, 0, 0, 0, 0, 0, 0, 0},
	    {0, 0, 0, 0, 0, 0, 0, 0},
	    {255, 255, 255, 255, 255, 255, 255, 255},
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		ask(bad[i], 8, false, true, 60000);
		cr_expect_eq(f.a.rc, -EPROTO, "answer %zu: %d", i, f.a.rc);
		cr_expect_eq(f.a.fd, -1);
		closed_by_host();
	}
}

Test(call, end_before_the_answer, .fini = fini)
{
	uint8_t p[64];
	size_t n = answer_of(p, AGENT_PROBED, "0123456789012345678901", 22);

	for (size_t k = 0; k < n; k++) {
		ask(p, k, true, false, 60000);
		cr_expect_eq(f.a.rc, -EPIPE, "after %zu bytes: %d", k, f.a.rc);
		close(f.guest);
	}
}

Test(call, timeout, .fini = fini)
{
	ask("\x20\0\0\0", 4, false, false, 50);
	cr_assert_eq(f.a.rc, -ETIMEDOUT);
	closed_by_host();
}

Test(call, handover_leaves_what_follows, .fini = fini)
{
	uint8_t p[64], got[16];
	size_t n = answer_of(p, AGENT_OK, "", 0);

	memcpy(p + n, "raw bytes", 9);
	ask(p, n + 9, false, true, 60000);
	cr_assert_eq(f.a.rc, 0);
	cr_assert_geq(f.a.fd, 0);
	cr_assert_eq(read(f.a.fd, got, sizeof(got)), 9);
	cr_assert_eq(memcmp(got, "raw bytes", 9), 0);
	close(f.a.fd);
	close(f.guest);
}

Test(call, a_long_opening_into_a_slow_guest, .fini = fini)
{
	static uint8_t got[AGENT_FRAME_MAX + 8];
	static char huge[200001];
	struct eng_app_spec a = {.argv = (const char *const[]){huge, NULL}};
	struct eng_timer *t;
	struct err e = ERR_INIT;
	size_t n = 0;

	open_pair();
	cr_assert_eq(setsockopt(f.host, SOL_SOCKET, SO_SNDBUF, &(int){4096},
				sizeof(int)),
		     0);
	memset(huge, 'y', sizeof(huge) - 1);
	fresh();
	eng_agent_put_start(&w, &a);
	cr_assert_not_null(eng_agent_call(f.l, f.host, buf, w.len, 60000, false,
					  on_answer, &f, &e));
	t = eng_timer_create(f.l, stop, f.l, "test");
	while (n < w.len) {
		ssize_t k = read(f.guest, got + n, sizeof(got) - n);

		if (k > 0) {
			n += (size_t)k;
			continue;
		}
		eng_timer_set(t, 1);
		eng_loop_run(f.l);
		cr_assert_eq(f.calls, 0);
	}
	cr_assert_arr_eq(got, buf, w.len);
	cr_assert_eq(write(f.guest, "\x20\0\0\0\0\0\0\0", 8), 8);
	eng_timer_stop(t);
	eng_loop_run(f.l);
	cr_assert_eq(f.calls, 1);
	cr_assert_eq(f.a.rc, 0);
	eng_timer_destroy(t);
	close(f.guest);
}

Test(call, cancelled_ones_never_call, .fini = fini)
{
	struct err e = ERR_INIT;
	struct eng_agent_call *call;
	struct eng_timer *t;

	open_pair();
	fresh();
	eng_agent_put_probe(&w, 80);
	call = eng_agent_call(f.l, f.host, buf, w.len, 20, false, on_answer, &f,
			      &e);
	cr_assert_not_null(call);
	cr_assert_eq(write(f.guest, "\x20\0\0\0\0\0\0\0", 8), 8);
	eng_agent_cancel(call);
	eng_agent_cancel(NULL);
	t = eng_timer_create(f.l, stop, f.l, "test");
	eng_timer_set(t, 60);
	eng_loop_run(f.l);
	cr_assert_eq(f.calls, 0);
	eng_timer_destroy(t);
	close(f.guest);
}

// --- the log ----------------------------------------------------------------

static struct {
	char text[4][256 * 1024];
	size_t len[4];
	int closed;
	bool close_at_once;
	struct eng_agent_log *lg;
} lg;

static void on_bytes(void *ctx, unsigned stream, const void *p, size_t n)
{
	cr_assert_eq(ctx, &lg);
	cr_assert(stream >= 1 && stream <= 3);
	memcpy(lg.text[stream] + lg.len[stream], p, n);
	lg.len[stream] += n;
	if (lg.close_at_once) {
		eng_agent_log_close(lg.lg);
		eng_loop_stop(f.l);
	}
}

static void on_closed(void *ctx)
{
	cr_assert_eq(ctx, &lg);
	lg.closed++;
	eng_loop_stop(f.l);
}

static void open_log(void)
{
	struct err e = ERR_INIT;

	open_pair();
	memset(&lg, 0, sizeof(lg));
	lg.lg = eng_agent_log_open(f.l, f.host, on_bytes, on_closed, &lg, &e);
	cr_assert_not_null(lg.lg);
}

static void put_log(uint8_t stream, const void *p, size_t n)
{
	uint8_t head[9];

	ag_head_put(head, AGENT_LOGDATA, (uint32_t)n + 1);
	head[8] = stream;
	cr_assert_eq(write(f.guest, head, 9), 9);
	cr_assert_eq(write(f.guest, p, n), (ssize_t)n);
}

Test(log, streams_apart_until_the_end, .fini = fini)
{
	static char big[100000];
	uint8_t got[16];
	uint8_t want[8];

	memset(big, 'b', sizeof(big));
	open_log();
	put_log(1, "out ", 4);
	put_log(2, "err", 3);
	put_log(1, "", 0);
	put_log(1, big, sizeof(big));
	put_log(3, "agent", 5);
	shutdown(f.guest, SHUT_WR);
	eng_loop_run(f.l);
	cr_assert_eq(lg.closed, 1);
	cr_assert_eq(lg.len[1], 4 + sizeof(big));
	cr_assert_eq(memcmp(lg.text[1], "out bb", 6), 0);
	cr_assert(lg.len[2] == 3 && memcmp(lg.text[2], "err", 3) == 0);
	cr_assert(lg.len[3] == 5 && memcmp(lg.text[3], "agent", 5) == 0);
	ag_head_put(want, AGENT_LOG, 0);
	cr_assert_eq(read(f.guest, got, sizeof(got)), 8);
	cr_assert_arr_eq(got, want, 8);
	close(f.guest);
}

Test(log, hostile_frames_close_it, .fini = fini)
{
	static const uint8_t bad[][9] = {
	    {AGENT_LOGDATA, 0, 0, 0, 2, 0, 0, 0, 0}, // stream 0
	    {AGENT_LOGDATA, 0, 0, 0, 2, 0, 0, 0, 4}, // stream 4
	    {AGENT_LOGDATA, 0, 0, 0, 0, 0, 0, 0, 1}, // no stream
	    {AGENT_LOGDATA, 0, 0, 0, 1, 0, 4, 0, 1}, // too long
	    {AGENT_LOGDATA, 0, 0, 0, 255, 255, 255, 255, 1},
	    {AGENT_LOGDATA, 0, 1, 0, 2, 0, 0, 0, 1}, // reserved
	    {AGENT_STDOUT, 0, 0, 0, 2, 0, 0, 0, 1},  // another type
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		open_log();
		put_log(1, "good", 4);
		cr_assert_eq(write(f.guest, bad[i], 9), 9);
		eng_loop_run(f.l);
		cr_expect_eq(lg.closed, 1, "frame %zu", i);
		cr_expect_eq(lg.len[1], 4);
		close(f.guest);
	}
}

Test(log, closed_from_within, .fini = fini)
{
	open_log();
	lg.close_at_once = true;
	put_log(1, "one", 3);
	put_log(1, "two", 3);
	eng_loop_run(f.l);
	cr_assert_eq(lg.len[1], 3);
	cr_assert_eq(lg.closed, 0);
	close(f.guest);
}
