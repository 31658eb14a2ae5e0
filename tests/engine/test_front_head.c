// The endpoint's parser: what is refused, what is normalised, bodies in pieces,
// and routes. Every request is fed in one piece and byte by byte; the outcome
// must be the same.
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "head.h"
#include "route.h"

// Feeds `n` bytes in pieces of `step`; -errno, or how many were taken.
static ssize_t feed(struct head_in *in, const char *p, size_t n, size_t step)
{
	size_t at = 0;

	while (at < n && !in->done) {
		size_t want = MIN(step, n - at);
		ssize_t took = head_in_feed(in, p + at, want);

		if (took < 0)
			return took;
		at += (size_t)took;
	}
	return (ssize_t)at;
}

// 0: accepted (*h is filled); a status; -1: the head is not complete.
static int parse(struct head *h, const char *p, size_t n, size_t step)
{
	struct head_in in = {.buf = NULL};
	const char *why = NULL;
	ssize_t took = feed(&in, p, n, step);
	int rc;

	*h = (struct head){.text = NULL};
	if (took < 0 || !in.done) {
		head_in_reset(&in);
		return took == -E2BIG ? 431 : took < 0 ? 400 : -1;
	}
	rc = head_parse_request(h, &in, &why);
	cr_assert(rc == 0 || (why && *why), "a refusal has a reason");
	return rc;
}

struct vector {
	const char *text;
	size_t n;
	int status;
};
#define V(s, status)                     \
	{                                \
		s, sizeof(s) - 1, status \
	}
#define P "POST / HTTP/1.1\r\nHost: a.localhost\r\n"
#define G "GET / HTTP/1.1\r\n"

// Each could be read in two ways by two servers, or is what such attacks use.
static const struct vector refused[] = {
    V(P "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    V(P "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", 400),
    V(P "Content-Length: 5\r\nContent-Length: 5\r\n\r\n", 400),
    V(P "Content-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
    V(P "Content-Length: 5, 5\r\n\r\n", 400),
    V(P "Content-Length: 5,6\r\n\r\n", 400),
    V(P "Content-Length: -1\r\n\r\n", 400),
    V(P "Content-Length: +5\r\n\r\n", 400),
    V(P "Content-Length: 0x5\r\n\r\n", 400),
    V(P "Content-Length: 5 5\r\n\r\n", 400),
    V(P "Content-Length: 5;\r\n\r\n", 400),
    V(P "Content-Length: 1e1\r\n\r\n", 400),
    V(P "Content-Length:\r\n\r\n", 400),
    V(P "Content-Length: 18446744073709551621\r\n\r\n", 400),
    V(P "Content-Length: 9999999999999999999\r\n\r\n", 400),
    V(P "Content-Length : 5\r\n\r\n", 400),
    V(P " Content-Length: 5\r\n\r\n", 400),
    V(P "Content-Length\t: 5\r\n\r\n", 400),
    V(P "Content_Length: 5\r\n\r\n", 400),
    V(P "Transfer-Encoding: xchunked\r\n\r\n", 501),
    V(P "Transfer-Encoding: chunked, identity\r\n\r\n", 501),
    V(P "Transfer-Encoding: identity, chunked\r\n\r\n", 501),
    V(P "Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
    V(P "Transfer-Encoding: chunked, chunked\r\n\r\n", 501),
    V(P "Transfer-Encoding: \"chunked\"\r\n\r\n", 501),
    V(P "Transfer-Encoding: chunked;q=1\r\n\r\n", 501),
    V(P "Transfer-Encoding: identity\r\n\r\n", 501),
    V(P "Transfer-Encoding:\r\n\r\n", 501),
    V(P "Transfer-Encoding:\x0b"
	"chunked\r\n\r\n",
      400),
    V(P "Transfer-Encoding : chunked\r\n\r\n", 400),
    V(P "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
      400),
    V(P "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n", 400),
    V(P "Transfer_Encoding: chunked\r\n\r\n", 400),
    V(P "Transfer-Encoding:\r\n chunked\r\n\r\n", 400),
    V(P "X: y\r\n Transfer-Encoding: chunked\r\n\r\n", 400),
    V(P "X: y\r\n\tfolded\r\n\r\n", 400),
    V("POST / HTTP/1.0\r\nHost: a.localhost\r\n"
      "Transfer-Encoding: chunked\r\n\r\n",
      400),
    V(P "X: a\nContent-Length: 5\r\n\r\n", 400),
    V(P "X: a\rContent-Length: 5\r\n\r\n", 400),
    V(P "X: a\n\r\n", 400),
    V("GET / HTTP/1.1\nHost: a.localhost\n\n", 400),
    V("GET / HTTP/1.1\r\nHost: a.localhost\r\n\n", 400),
    V(P "X: a\0b\r\n\r\n", 400),
    V(P "X\0: a\r\n\r\n", 400),
    V(P "X: a\x7f\r\n\r\n", 400),
    V(P "X: a\x01\r\n\r\n", 400),
    V(P ": no name\r\n\r\n", 400),
    V(P "no colon\r\n\r\n", 400),
    V(P "X Y: z\r\n\r\n", 400),
    V(P "X\xc3\xa9: z\r\n\r\n", 400),
    V(P "(X): z\r\n\r\n", 400),
    V(G "\r\n", 400),
    V(G "Host:\r\n\r\n", 400),
    V(G "Host: a.localhost\r\nHost: b.localhost\r\n\r\n", 400),
    V(G "Host: a.localhost\r\nHost: a.localhost\r\n\r\n", 400),
    V(G "Host: a.localhost, b.localhost\r\n\r\n", 400),
    V(G "Host: a.localhost b\r\n\r\n", 400),
    V(G "Host: x@a.localhost\r\n\r\n", 400),
    V(G "Host: a.localhost/x\r\n\r\n", 400),
    V(G "Host: a.localhost:80x\r\n\r\n", 400),
    V(G "Host: [::1\r\n\r\n", 400),
    V("GET http://b.localhost/ HTTP/1.1\r\nHost: a.localhost\r\n\r\n", 400),
    V("GET http://a.localhost@b/ HTTP/1.1\r\nHost: a.localhost\r\n\r\n", 400),
    V("GET ftp://a.localhost/ HTTP/1.1\r\nHost: a.localhost\r\n\r\n", 400),
    V("GET a.localhost HTTP/1.1\r\nHost: a.localhost\r\n\r\n", 400),
    V("GET * HTTP/1.1\r\nHost: a.localhost\r\n\r\n", 400),
    V("CONNECT a:80 HTTP/1.1\r\nHost: a.localhost\r\n\r\n", 501),
    V("GET  / HTTP/1.1\r\nHost: a.localhost\r\n\r\n", 400),
    V("GET / x HTTP/1.1\r\nHost: a.localhost\r\n\r\n", 400),
    V("GET /\t HTTP/1.1\r\nHost: a.localhost\r\n\r\n", 400),
    V("GET /#f HTTP/1.1\r\nHost: a.localhost\r\n\r\n", 400),
    V("GET /\xc3\xa9 HTTP/1.1\r\nHost: a.localhost\r\n\r\n", 400),
    V(" GET / HTTP/1.1\r\nHost: a.localhost\r\n\r\n", 400),
    V("\r\nGET / HTTP/1.1\r\nHost: a.localhost\r\n\r\n", 400),
    V("GET /\r\nHost: a.localhost\r\n\r\n", 400),
    V("GET / HTTP/1.1 \r\nHost: a.localhost\r\n\r\n", 505),
    V("GET / http/1.1\r\nHost: a.localhost\r\n\r\n", 400),
    V("GET / HTTP/2.0\r\nHost: a.localhost\r\n\r\n", 505),
    V("GET / HTTP/1.2\r\nHost: a.localhost\r\n\r\n", 505),
    V("GET / HTTP/01.1\r\nHost: a.localhost\r\n\r\n", 505),
    V("G(T / HTTP/1.1\r\nHost: a.localhost\r\n\r\n", 400),
    V(G "Host: a.localhost\r\nConnection: Host\r\n\r\n", 400),
    V(P "Content-Length: 5\r\nConnection: Content-Length\r\n\r\n", 400),
    V(P "Connection: transfer-encoding\r\n\r\n", 400),
    V(P "Expect: 200-ok\r\n\r\n", 417),
    V(P "Expect: 100-continue\r\nExpect: 100-continue\r\n\r\n", 417),
    V(P "Content-Length: 5\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
	"\r\n",
      400),
    V(G "Host: a.localhost\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n"
	"Connection: upgrade\r\n\r\n",
      400),
};

Test(front_head, every_smuggling_vector_is_refused)
{
	_Static_assert(ARRAY_SIZE(refused) >= 40, "the issue asks for 40");
	for (size_t i = 0; i < ARRAY_SIZE(refused); i++) {
		const struct vector *v = &refused[i];
		struct head h;

		for (size_t step = 1; step < 4000; step = step * 3 + 1) {
			int rc = parse(&h, v->text, v->n, step);

			cr_expect_eq(rc, v->status,
				     "vector %zu, step %zu: %d, not %d:\n%s", i,
				     step, rc, v->status, v->text);
			if (!rc)
				head_free(&h);
		}
	}
}

// What is accepted is written anew, without what was of this hop.
static const struct {
	const char *in, *target, *host, *fields;
	enum framing framing;
	uint64_t length;
	bool close;
} accepted[] = {
    {G "Host: A.LocalHost:8443\r\n\r\n", "/", "a.localhost", "", FRAMING_NONE,
     0, false},
    {"GET http://a.localhost/x?y HTTP/1.1\r\nHost: A.localhost\r\n\r\n", "/x?y",
     "a.localhost", "", FRAMING_NONE, 0, false},
    {"GET http://a.localhost?y HTTP/1.1\r\nHost: a.localhost\r\n\r\n", "/?y",
     "a.localhost", "", FRAMING_NONE, 0, false},
    {"GET https://a.localhost HTTP/1.1\r\nHost: a.localhost\r\n\r\n", "/",
     "a.localhost", "", FRAMING_NONE, 0, false},
    {"OPTIONS * HTTP/1.1\r\nHost: a.localhost\r\n\r\n", "*", "a.localhost", "",
     FRAMING_NONE, 0, false},
    {"GET / HTTP/1.0\r\nHost: a.localhost\r\nConnection: keep-alive\r\n\r\n",
     "/", "a.localhost", "", FRAMING_NONE, 0, true},
    {P "content-length: 0005\r\n\r\n", "/", "a.localhost", "", FRAMING_LENGTH,
     5, false},
    {P "Transfer-Encoding: Chunked\r\n\r\n", "/", "a.localhost", "",
     FRAMING_CHUNKED, 0, false},
    {P "X:  spaces \t\r\nY:\r\nZ: \x80\xff\r\n\r\n", "/", "a.localhost",
     "X: spaces\r\nY: \r\nZ: \x80\xff\r\n", FRAMING_NONE, 0, false},
    {P "Connection: X-Hop, close\r\nX-Hop: 1\r\nX-End: 2\r\n"
       "Keep-Alive: 5\r\nTE: trailers\r\nProxy-Connection: z\r\n"
       "Proxy-Authorization: b\r\nTrailer: q\r\nExpect: 100-continue\r\n\r\n",
     "/", "a.localhost", "X-End: 2\r\n", FRAMING_NONE, 0, true},
    {G "Host: [::1]:80\r\n\r\n", "/", "[::1]", "", FRAMING_NONE, 0, false},
};

Test(front_head, what_is_accepted_is_normalised)
{
	for (size_t i = 0; i < ARRAY_SIZE(accepted); i++) {
		struct head_out o = {.p = NULL};
		struct head h;
		int rc =
		    parse(&h, accepted[i].in, strlen(accepted[i].in), 1 + i);

		cr_assert_eq(rc, 0, "%zu: %d", i, rc);
		cr_expect_str_eq(h.target, accepted[i].target);
		cr_expect_str_eq(h.host, accepted[i].host);
		cr_expect_eq(h.framing, accepted[i].framing, "%zu", i);
		cr_expect_eq(h.length, accepted[i].length, "%zu", i);
		cr_expect_eq(h.close, accepted[i].close, "%zu", i);
		head_put_fields(&o, &h);
		cr_expect_str_eq(o.p ? o.p : "", accepted[i].fields, "%zu", i);
		free(o.p);
		head_free(&h);
	}
}

Test(front_head, limits)
{
	char *text = malloc(2 * HEAD_MAX);
	struct head h;
	size_t n;

	for (unsigned extra = 0; extra < 2; extra++) {
		n = (size_t)sprintf(text, G "Host: a.localhost\r\n");
		for (unsigned i = 0; i < HEAD_FIELDS - 1 + extra; i++)
			n += (size_t)sprintf(text + n, "X%u: y\r\n", i);
		n += (size_t)sprintf(text + n, "\r\n");
		cr_expect_eq(parse(&h, text, n, 1000), extra ? 431 : 0);
		head_free(&h);
		// Exactly HEAD_MAX bytes, and one more.
		n = (size_t)sprintf(text, G "Host: a.localhost\r\nX: ");
		memset(text + n, 'x', HEAD_MAX);
		n = HEAD_MAX - 4 + extra;
		memcpy(text + n, "\r\n\r\n", 4);
		cr_expect_eq(parse(&h, text, n + 4, 999), extra ? 431 : 0);
		head_free(&h);
	}
	memset(text, 'x', 2 * HEAD_MAX); // no end at all
	cr_expect_eq(parse(&h, text, 2 * HEAD_MAX, 777), 431);
	free(text);
}

Test(front_head, not_a_byte_behind_the_head_is_taken)
{
	static const char two[] = G "Host: a.localhost\r\n\r\nGET /2 HTTP/1.1";
	struct head_in in = {.buf = NULL};
	ssize_t n = feed(&in, two, sizeof(two) - 1, 1000);

	cr_expect(in.done);
	cr_expect_str_eq(two + n, "GET /2 HTTP/1.1");
	head_in_reset(&in);
}

// --- responses -----------------------------------------------------------------

static int answer(struct head *h, const char *text, bool to_head)
{
	struct head_in in = {.buf = NULL};
	const char *why;
	ssize_t n = feed(&in, text, strlen(text), 7);

	if (n < 0 || !in.done) {
		head_in_reset(&in);
		return -1;
	}
	return head_parse_response(h, &in, to_head, &why);
}

Test(front_head, responses_that_are_refused)
{
	static const char *const bad[] = {
	    ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n"
	     "Transfer-Encoding: chunked\r\n\r\n"),
	    "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
	    "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
	    "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
	    "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
	    "HTTP/1.1 20 OK\r\n\r\n",
	    "HTTP/1.1 2000 OK\r\n\r\n",
	    "HTTP/1.1 099 OK\r\n\r\n",
	    "HTTP/1.1 600 OK\r\n\r\n",
	    "HTTP/2 200 OK\r\n\r\n",
	    "HTTP/1.1  200 OK\r\n\r\n",
	    "ICY 200 OK\r\n\r\n",
	    "HTTP/1.1 200 OK\nX: y\r\n\r\n",
	    "HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
	    "HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n",
	};
	struct head h;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		cr_expect_neq(answer(&h, bad[i], false), 0, "%s", bad[i]);
}

Test(front_head, where_a_response_ends)
{
	static const struct {
		const char *text;
		bool to_head;
		enum framing framing;
	} all[] = {
	    {"HTTP/1.1 200 OK\r\n\r\n", false, FRAMING_CLOSE},
	    {"HTTP/1.1 200\r\nContent-Length: 3\r\n\r\n", false,
	     FRAMING_LENGTH},
	    {"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", true,
	     FRAMING_NONE},
	    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", true,
	     FRAMING_NONE},
	    {"HTTP/1.1 204 No\r\nContent-Length: 3\r\n\r\n", false,
	     FRAMING_NONE},
	    {"HTTP/1.1 304 No\r\nContent-Length: 3\r\n\r\n", false,
	     FRAMING_NONE},
	    {"HTTP/1.1 103 Early\r\n\r\n", false, FRAMING_NONE},
	    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false,
	     FRAMING_CHUNKED},
	};
	struct head h;

	for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
		cr_assert_eq(answer(&h, all[i].text, all[i].to_head), 0);
		cr_expect_eq(h.framing, all[i].framing, "%s", all[i].text);
		cr_expect_eq(h.has_length,
			     strstr(all[i].text, "Content-Length") &&
				 h.status != 204);
		head_free(&h);
	}
}

// --- bodies --------------------------------------------------------------------

// The data of a body fed in pieces, as text; or "-" and the error.
static const char *chunks(const char *p, size_t n, size_t step, char out[256],
			  size_t *behind)
{
	struct body b;
	size_t at = 0, len = 0;
	ssize_t rc = 0;

	body_begin(&b, FRAMING_CHUNKED, 0);
	while (at < n && !b.done && rc >= 0) {
		size_t want = MIN(step, n - at);

		if (b.left) {
			want = (size_t)MIN((uint64_t)want, b.left);
			memcpy(out + len, p + at, want);
			len += want;
			body_took(&b, want);
			at += want;
			continue;
		}
		rc = body_frame(&b, p + at, want);
		if (rc > 0)
			at += (size_t)rc;
	}
	out[len] = '\0';
	*behind = n - at;
	if (!b.done)
		snprintf(out, 256, "-%s", rc < 0 ? err_name((int)rc) : "");
	body_end(&b);
	return out;
}

Test(front_body, chunked)
{
	static const struct {
		const char *in, *out;
		size_t behind;
	} all[] = {
	    {"0\r\n\r\n", "", 0},
	    {"5\r\nhello\r\n0\r\n\r\n", "hello", 0},
	    {"5\r\nhello\r\n6\r\n world\r\n00\r\n\r\nGET", "hello world", 3},
	    {"A\r\n0123456789\r\n0\r\nX: y\r\n\r\nZ", "0123456789", 1},
	    {"5;a=b;c=\"d\"\r\nhello\r\n0;x\r\n\r\n", "hello", 0},
	    {"5\r\nhel\r\n\r\n0\r\n\r\n", "hel\r\n", 0},
	    {"+5\r\nhello\r\n0\r\n\r\n", "-EBADMSG", 0},
	    {"-5\r\nhello\r\n0\r\n\r\n", "-EBADMSG", 0},
	    {"0x5\r\nhello\r\n0\r\n\r\n", "-EBADMSG", 0},
	    {" 5\r\nhello\r\n0\r\n\r\n", "-EBADMSG", 0},
	    {"5 \r\nhello\r\n0\r\n\r\n", "-EBADMSG", 0},
	    {"5 ;x\r\nhello\r\n0\r\n\r\n", "-EBADMSG", 0},
	    {"5\nhello\n0\n\n", "-EBADMSG", 0},
	    {"5\r\nhello0\r\n\r\n", "-EBADMSG", 0},
	    {"5\r\nhello\n0\r\n\r\n", "-EBADMSG", 0},
	    {"5\r\nhello\r\r0\r\n\r\n", "-EBADMSG", 0},
	    {"5\rXhello\r\n0\r\n\r\n", "-EBADMSG", 0},
	    {"5;a\nb\r\nhello\r\n0\r\n\r\n", "-EBADMSG", 0},
	    {"\r\n5\r\nhello\r\n0\r\n\r\n", "-EBADMSG", 0},
	    {"g\r\n", "-EBADMSG", 0},
	    {"10000000000000000\r\n", "-EBADMSG", 0},
	    {"FFFFFFFFFFFFFFFFF0\r\n", "-EBADMSG", 0},
	    {"0\r\nX: a\nb\r\n\r\n", "-EBADMSG", 0},
	    {"0\r\n\n", "-EBADMSG", 0},
	    {"0\r\nX: y\r\n", "-", 0},
	};
	char out[256];
	size_t behind;

	for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
		for (size_t step = 1; step < 64; step = step * 2 + 1) {
			chunks(all[i].in, strlen(all[i].in), step, out,
			       &behind);
			cr_expect_str_eq(out, all[i].out, "%s", all[i].in);
			if (out[0] != '-')
				cr_expect_eq(behind, all[i].behind, "%s",
					     all[i].in);
		}
	}
}

Test(front_body, extensions_and_trailers_are_bounded)
{
	char *text = malloc(100000), out[256];
	size_t behind, n;

	n = (size_t)sprintf(text, "1;");
	memset(text + n, 'x', CHUNK_EXT_MAX + 1);
	strcpy(text + n + CHUNK_EXT_MAX, "\r\na\r\n0\r\n\r\n");
	cr_expect_str_eq(chunks(text, strlen(text), 100, out, &behind), "a");
	memset(text + n, 'x', CHUNK_EXT_MAX + 1);
	strcpy(text + n + CHUNK_EXT_MAX + 1, "\r\na\r\n0\r\n\r\n");
	cr_expect_str_eq(chunks(text, strlen(text), 100, out, &behind),
			 "-E2BIG");
	for (n = 0; n < 50000;)
		n += (size_t)sprintf(text + n, "1;%0200d\r\na\r\n", 0);
	cr_expect_str_eq(chunks(text, n, 100, out, &behind), "-E2BIG");
	n = (size_t)sprintf(text, "0\r\nX: ");
	memset(text + n, 'x', TRAILERS_MAX);
	cr_expect_str_eq(chunks(text, n + TRAILERS_MAX, 100, out, &behind),
			 "-E2BIG");
	free(text);
}

Test(front_body, trailers_that_frame_are_refused)
{
	static const struct {
		const char *text;
		int rc;
		const char *left;
	} all[] = {
	    {"\r\n", 0, ""},
	    {"Grpc-Status: 0\r\n\r\n", 0, "Grpc-Status: 0\r\n"},
	    {"X-aws-proxy-auth: t\r\nTE: x\r\nA: b\r\n\r\n", 0, "A: b\r\n"},
	    {"Content-Length: 5\r\n\r\n", 400, ""},
	    {"transfer_encoding: chunked\r\n\r\n", 400, ""},
	    {"Host: b\r\n\r\n", 400, ""},
	};

	for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
		struct head_in in = {.trailers = true};
		struct head_out o = {.p = NULL};
		struct head h;
		const char *why;

		feed(&in, all[i].text, strlen(all[i].text), 3);
		cr_assert(in.done);
		cr_expect_eq(head_parse_trailers(&h, &in, &why), all[i].rc);
		head_put_fields(&o, &h);
		cr_expect_str_eq(o.p ? o.p : "", all[i].left);
		free(o.p);
		head_free(&h);
	}
}

// --- routes --------------------------------------------------------------------

#define WS "Upgrade: websocket\r\nConnection: Upgrade\r\n"
#define SP "Sec-WebSocket-Protocol: "

Test(front_route, who_where_and_what_the_guest_sees)
{
	static const struct {
		const char *fields;
		int rc;
		unsigned port;
		const char *token, *fields_left, *protocols;
		bool shell, h2;
	} all[] = {
	    {"X: y\r\n", 0, 8080, "", "X: y\r\n", "", false, false},
	    {"X-aws-proxy-auth: tok\r\nX-AWS-Proxy-Port: 5000\r\n"
	     "x-aws-proxy-unknown: 1\r\nX_aws_proxy_auth: evil\r\nA: b\r\n",
	     0, 5000, "tok", "A: b\r\n", "", false, false},
	    {"X-aws-proxy-port: 0\r\n", 400, 0, "", "", "", false, false},
	    {"X-aws-proxy-port: 65536\r\n", 400, 0, "", "", "", false, false},
	    {"X-aws-proxy-port: 080\r\n", 400, 0, "", "", "", false, false},
	    {"X-aws-proxy-port: +80\r\n", 400, 0, "", "", "", false, false},
	    {"X-aws-proxy-port: 80\r\nX-aws-proxy-port: 81\r\n", 400, 0, "", "",
	     "", false, false},
	    {"X-aws-proxy-auth: a\r\nX-aws-proxy-auth: b\r\n", 400, 0, "", "",
	     "", false, false},
	    {"X-aws-proxy-force-h2: true\r\n", 0, 8080, "", "", "", false,
	     true},
	    {"X-aws-proxy-force-h2: no\r\n", 0, 8080, "", "", "", false, false},
	    {"Content-Type: application/grpc+proto\r\n", 0, 8080, "",
	     "Content-Type: application/grpc+proto\r\n", "", false, true},
	    {"Content-Type: application/grpc-web\r\n", 0, 8080, "",
	     "Content-Type: application/grpc-web\r\n", "", false, false},
	    // Without an upgrade, sub-protocols give no right.
	    {SP "lambda-microvms.authentication.t\r\n", 0, 8080, "", "", "",
	     false, false},
	    {WS SP "lambda-microvms, lambda-microvms.authentication.a.b_c, "
		   "lambda-microvms.port.9000, chat, superchat\r\n",
	     0, 9000, "a.b_c", "", "chat, superchat", false, false},
	    {WS SP "chat\r\n" SP "lambda-microvms.port.7,mqtt\r\n"
		   "X-aws-proxy-port: 8\r\nX-aws-proxy-auth: h\r\n"
		   "Sec-WebSocket-Key: k\r\n",
	     0, 8, "h", "Sec-WebSocket-Key: k\r\n", "chat, mqtt", false, false},
	    {WS SP "lambda-microvms.port.x\r\n", 400, 0, "", "", "", false,
	     false},
	    {WS SP "lambda-microvms.port.1, lambda-microvms.port.2\r\n", 400, 0,
	     "", "", "", false, false},
	    {WS SP "LAMBDA-MICROVMS.x, lambda-microvmsy\r\n", 0, 8080, "", "",
	     "", false, false},
	};
	char text[2048];

	for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
		struct head_out o = {.p = NULL};
		struct route r;
		struct head h;
		const char *why;

		snprintf(text, sizeof(text),
			 "GET /x HTTP/1.1\r\nHost: VM1.localhost:1\r\n%s\r\n",
			 all[i].fields);
		cr_assert_eq(parse(&h, text, strlen(text), 100), 0);
		cr_expect_eq(route_of(&r, &h, "localhost", &why), all[i].rc,
			     "%zu", i);
		if (!all[i].rc) {
			cr_expect_str_eq(r.label, "vm1");
			cr_expect_eq(r.port, all[i].port, "%zu", i);
			cr_expect_eq(r.token_len, strlen(all[i].token));
			cr_expect_eq(strncmp(r.token ? r.token : "",
					     all[i].token, r.token_len),
				     0, "%zu", i);
			cr_expect_eq(r.h2, all[i].h2, "%zu", i);
			head_put_fields(&o, &h);
			cr_expect_str_eq(o.p ? o.p : "", all[i].fields_left,
					 "%zu", i);
			cr_expect_str_eq(r.protocols ? r.protocols : "",
					 all[i].protocols, "%zu", i);
		}
		free(o.p);
		route_free(&r);
		head_free(&h);
	}
}

Test(front_route, hosts)
{
	static const struct {
		const char *host;
		int rc;
	} all[] = {
	    {"vm.localhost", 0},	{"VM.LOCALHOST:8443", 0},
	    {"localhost", 404},		{".localhost", 404},
	    {"a.b.localhost", 404},	{"vm.localhost.", 404},
	    {"vm.localhost.evil", 404}, {"vmlocalhost", 404},
	    {"127.0.0.1", 404},
	};
	char text[256];

	for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
		struct route r;
		struct head h;
		const char *why;

		snprintf(text, sizeof(text), G "Host: %s\r\n\r\n", all[i].host);
		cr_assert_eq(parse(&h, text, strlen(text), 50), 0);
		cr_expect_eq(route_of(&r, &h, "localhost", &why), all[i].rc,
			     "%s", all[i].host);
		route_free(&r);
		head_free(&h);
	}
}

Test(front_route, shell_and_accept)
{
	static const char text[] = "GET /shell?x HTTP/1.1\r\n"
				   "Host: vm.localhost\r\n" WS "\r\n";
	char out[29];
	struct route r;
	struct head h;
	const char *why;

	cr_assert_eq(parse(&h, text, sizeof(text) - 1, 9), 0);
	cr_expect_eq(route_of(&r, &h, "localhost", &why), 0);
	cr_expect(r.websocket && r.shell_path);
	route_free(&r);
	head_free(&h);
	// RFC 6455 1.3's example.
	cr_expect(route_accept("dGhlIHNhbXBsZSBub25jZQ==", out));
	cr_expect_str_eq(out, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
	cr_expect_not(route_accept("short", out));
	cr_expect_not(route_accept(NULL, out));
}
