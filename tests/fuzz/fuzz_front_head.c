// The endpoint's parser (engine/front/head.c, body.c, route.c). The first byte
// says what the rest is, and in what pieces it comes. Beside not crashing: a
// request that is accepted and written anew is accepted again and means the same,
// and whatever the pieces were, the outcome is one.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "head.h"
#include "route.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static bool feed(struct head_in *in, const char *p, size_t n, size_t step)
{
	for (size_t at = 0; at < n && !in->done;) {
		ssize_t took = head_in_feed(in, p + at, MIN(step, n - at));

		if (took < 0)
			return false;
		at += (size_t)took;
	}
	return in->done;
}

// 0 and *h, or what refuses it, or -1.
static int parse(struct head *h, const char *p, size_t n, size_t step)
{
	struct head_in in = {.buf = NULL};
	const char *why;
	int rc = -1;

	*h = (struct head){.text = NULL};
	if (feed(&in, p, n, step))
		rc = head_parse_request(h, &in, &why);
	head_in_reset(&in);
	return rc;
}

static void write_anew(struct head_out *o, const struct head *h)
{
	head_put(o, "%s %s HTTP/1.1\r\nHost: %s\r\n", h->method, h->target,
		 h->host);
	head_put_fields(o, h);
	if (h->framing == FRAMING_CHUNKED)
		head_put(o, "Transfer-Encoding: chunked\r\n");
	else if (h->has_length)
		head_put(o, "Content-Length: %llu\r\n",
			 (unsigned long long)h->length);
	head_put(o, "\r\n");
}

static void request(const char *p, size_t n, size_t step)
{
	struct head_out o = {.p = NULL};
	struct head a, b, c;
	struct route r;
	const char *why;
	bool routed;
	int rc = parse(&a, p, n, step);

	if (rc != parse(&b, p, n, n ? n : 1))
		abort(); // the pieces made a difference
	head_free(&b);
	if (rc)
		return;
	// One that has no route goes nowhere, so nothing is taken off it.
	routed = route_of(&r, &a, "localhost", &why) == 0;
	if (routed && (!r.port || r.port > 65535))
		abort();
	route_free(&r);
	write_anew(&o, &a);
	if (o.len < HEAD_MAX) {
		if (parse(&c, o.p, o.len, step) || c.framing != a.framing ||
		    c.length != a.length || strcmp(c.target, a.target) != 0 ||
		    strcmp(c.host, a.host) != 0)
			abort();
		for (unsigned i = 0; routed && i < c.n; i++) {
			if (strncasecmp(c.f[i].name, "x-aws-proxy-", 12) == 0)
				abort();
		}
		head_free(&c);
	}
	free(o.p);
	head_free(&a);
}

static void response(const char *p, size_t n, size_t step, bool to_head)
{
	struct head_in in = {.buf = NULL};
	struct head h;
	const char *why;

	if (feed(&in, p, n, step) &&
	    !head_parse_response(&h, &in, to_head, &why)) {
		if (h.status < 100 || h.status > 599 ||
		    (to_head && h.framing != FRAMING_NONE))
			abort();
		head_free(&h);
	}
	head_in_reset(&in);
}

// Where a chunked body ends, or -1.
static ssize_t chunked(const char *p, size_t n, size_t step)
{
	struct body b;
	struct head h;
	const char *why;
	size_t at = 0;
	ssize_t rc = 0;

	body_begin(&b, FRAMING_CHUNKED, 0);
	while (at < n && !b.done && rc >= 0) {
		size_t part = MIN(step, n - at);

		if (b.left) {
			part = (size_t)MIN((uint64_t)part, b.left);
			body_took(&b, part);
			rc = (ssize_t)part;
		} else {
			rc = body_frame(&b, p + at, part);
		}
		at += rc > 0 ? (size_t)rc : 0;
	}
	rc = b.done ? (ssize_t)at : -1;
	if (b.done && !head_parse_trailers(&h, &b.trailers, &why))
		head_free(&h);
	body_end(&b);
	return rc;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	const char *p = (const char *)data + 1;
	size_t step;

	if (!n)
		return 0;
	n--;
	step = 1 + data[0] / 4;
	switch (data[0] % 4) {
	case 0:
		request(p, n, step);
		break;
	case 1:
		response(p, n, step, false);
		break;
	case 2:
		response(p, n, step, true);
		break;
	default:
		if (chunked(p, n, step) != chunked(p, n, n ? n : 1))
			abort();
	}
	return 0;
}
