#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ag_frame.h"
#include "util.h"

static int head(uint8_t type, uint8_t r1, uint16_t r2, uint32_t len)
{
	uint8_t h[8] = {type,
			r1,
			(uint8_t)r2,
			(uint8_t)(r2 >> 8),
			(uint8_t)len,
			(uint8_t)(len >> 8),
			(uint8_t)(len >> 16),
			(uint8_t)(len >> 24)};
	unsigned t;
	uint32_t l;

	return ag_head_get(h, &t, &l);
}

Test(frame, head_bytes_are_exact)
{
	static const uint8_t want[8] = {35, 0, 0, 0, 0x04, 0x03, 0x02, 0x01};
	uint8_t h[8];

	ag_head_put(h, AGENT_STDOUT, 0x01020304);
	cr_assert_arr_eq(h, want, 8);
}

Test(frame, every_length_rule)
{
	static const struct {
		uint8_t type;
		uint32_t least, most;
	} rule[] = {
	    {AGENT_START, 4, AGENT_FRAME_MAX},
	    {AGENT_FREEZE, 4, 4},
	    {AGENT_THAW, 92, 92 + 64},
	    {AGENT_UNFREEZE, 0, 0},
	    {AGENT_EXEC, 4, AGENT_FRAME_MAX},
	    {AGENT_CONNECT, 2, 2},
	    {AGENT_LOG, 0, 0},
	    {AGENT_PROBE, 2, 2},
	    {AGENT_POWEROFF, 4, 4},
	    {AGENT_RENEW, 92, 92 + 64},
	    {AGENT_ROLE, 28, 8192},
	    {AGENT_STDIN, 0, AGENT_FRAME_MAX},
	    {AGENT_RESIZE, 4, 4},
	    {AGENT_SIGNAL, 4, 4},
	};

	for (size_t i = 0; i < ARRAY_SIZE(rule); i++) {
		uint8_t t = rule[i].type;

		cr_expect_eq(head(t, 0, 0, rule[i].least), 0, "type %u", t);
		cr_expect_eq(head(t, 0, 0, rule[i].most), 0, "type %u", t);
		cr_expect_eq(head(t, 0, 0, rule[i].most + 1), -EPROTO);
		cr_expect_eq(head(t, 0, 0, UINT32_MAX), -EPROTO);
		if (rule[i].least)
			cr_expect_eq(head(t, 0, 0, rule[i].least - 1), -EPROTO,
				     "type %u", t);
		cr_expect_eq(head(t, 1, 0, rule[i].least), -EPROTO);
		cr_expect_eq(head(t, 0, 0x0100, rule[i].least), -EPROTO);
	}
}

Test(frame, only_the_hosts_types_are_taken)
{
	static const uint8_t agents[] = {
	    AGENT_OK,	  AGENT_ERROR, AGENT_STDOUT,
	    AGENT_STDERR, AGENT_EXIT,  AGENT_LOGDATA,
	    AGENT_PROBED, 0,	       12,
	    31,		  42,	       255};

	for (size_t i = 0; i < ARRAY_SIZE(agents); i++) {
		for (uint32_t len = 0; len < 32; len++)
			cr_expect_eq(head(agents[i], 0, 0, len), -EPROTO,
				     "type %u length %u", agents[i], len);
	}
}

// Feeds `len` bytes in pieces of at most `piece`; what the last add said.
static int feed(struct ag_reader *r, const uint8_t *p, size_t len, size_t piece,
		size_t *used)
{
	size_t at = 0;
	int rc = 0;

	while (rc == 0 && at < len) {
		size_t want;
		uint8_t *to = ag_reader_next(r, &want);
		size_t n = MIN(MIN(want, piece), len - at);

		cr_assert_gt(n, 0);
		memcpy(to, p + at, n);
		at += n;
		rc = ag_reader_add(r, n);
	}
	*used = at;
	return rc;
}

Test(reader, any_split_and_never_a_byte_more)
{
	uint8_t stream[8 + 300 + 5];

	ag_head_put(stream, AGENT_STDIN, 300);
	for (size_t i = 0; i < 300; i++)
		stream[8 + i] = (uint8_t)(i * 7);
	memcpy(stream + 308, "after", 5);
	for (size_t piece = 1; piece <= sizeof(stream); piece++) {
		struct ag_reader r = {0};
		size_t used;

		cr_assert_eq(feed(&r, stream, sizeof(stream), piece, &used), 1);
		cr_assert_eq(used, 308);
		cr_assert_eq(r.type, AGENT_STDIN);
		cr_assert_eq(r.len, 300);
		cr_assert_arr_eq(r.payload, stream + 8, 300);
		ag_reader_reset(&r);
		cr_assert_null(r.payload);
	}
}

Test(reader, empty_frame_and_the_next_one)
{
	uint8_t stream[16];
	struct ag_reader r = {0};
	size_t used;

	ag_head_put(stream, AGENT_UNFREEZE, 0);
	ag_head_put(stream + 8, AGENT_LOG, 0);
	cr_assert_eq(feed(&r, stream, 16, 3, &used), 1);
	cr_assert_eq(used, 8);
	cr_assert_eq(r.type, AGENT_UNFREEZE);
	ag_reader_reset(&r);
	cr_assert_eq(feed(&r, stream + 8, 8, 8, &used), 1);
	cr_assert_eq(r.type, AGENT_LOG);
	ag_reader_reset(&r);
}

Test(reader, hostile_length_allocates_nothing)
{
	static const uint8_t bad[8] = {AGENT_EXEC, 0, 0, 0, 255, 255, 255, 255};
	struct ag_reader r = {0};
	size_t used;

	cr_assert_eq(feed(&r, bad, 8, 8, &used), -EPROTO);
	cr_assert_null(r.payload);
}

Test(out, frames_queue_up_to_the_cap)
{
	struct ag_out o;

	cr_assert_eq(ag_out_init(&o, 32), 0);
	cr_assert_eq(ag_out_room(&o), 24);
	cr_assert_eq(ag_out_frame(&o, AGENT_OK, NULL, 0), 0);
	cr_assert_eq(ag_out_room(&o), 16);
	cr_assert_eq(ag_out_frame(&o, AGENT_STDOUT, "0123456789abcdefg", 17),
		     -ENOBUFS);
	cr_assert_eq(ag_out_frame(&o, AGENT_STDOUT, "0123456789abcdef", 16), 0);
	cr_assert_eq(ag_out_room(&o), 0);
	cr_assert_eq(ag_out_frame(&o, AGENT_OK, NULL, 0), -ENOBUFS);
	cr_assert_eq(o.len, 32);
	ag_out_fini(&o);
	cr_assert_eq(ag_out_frame(&o, AGENT_OK, NULL, 0), -ENOBUFS);
}

Test(out, flush_survives_a_full_socket)
{
	static uint8_t big[100000], got[100008];
	struct ag_out o;
	int s[2];
	size_t n = 0;

	for (size_t i = 0; i < sizeof(big); i++)
		big[i] = (uint8_t)(i >> 8 ^ i);
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, s), 0);
	cr_assert_eq(setsockopt(s[0], SOL_SOCKET, SO_SNDBUF, &(int){4096}, 4),
		     0);
	cr_assert_eq(ag_out_init(&o, sizeof(big) + 8), 0);
	cr_assert_eq(ag_out_frame(&o, AGENT_STDOUT, big, sizeof(big)), 0);
	cr_assert_eq(ag_out_flush(&o, s[0]), 0);
	cr_assert_gt(o.len, 0, "all of it went into a small buffer");
	while (n < sizeof(got)) {
		ssize_t k = read(s[1], got + n, sizeof(got) - n);

		if (k > 0)
			n += (size_t)k;
		else
			cr_assert_eq(ag_out_flush(&o, s[0]), 0);
		ag_out_room(&o); // moves what is left to the front
	}
	cr_assert_eq(o.len, 0);
	cr_assert_arr_eq(got + 8, big, sizeof(big));
	close(s[1]);
	cr_assert_eq(ag_out_frame(&o, AGENT_OK, NULL, 0), 0);
	cr_assert_eq(ag_out_flush(&o, s[0]), -EPIPE);
	ag_out_fini(&o);
	close(s[0]);
}
