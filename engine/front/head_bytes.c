// The bytes of heads: collected up to the empty line, and written out.
//
// Each byte is looked at as it comes, so that a sender who breaks the rules ends
// there and not after 64 KiB.
#include "head.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static bool room_for(char **p, size_t *cap, size_t want)
{
	size_t to = *cap ? *cap : 1024;
	char *q;

	if (want <= *cap)
		return true;
	while (to < want)
		to *= 2;
	q = realloc(*p, to);
	if (!q)
		return false;
	*p = q;
	*cap = to;
	return true;
}

static bool control(unsigned char c)
{
	return (c < 0x20 && c != '\t') || c == 0x7f;
}

// One byte: 0, or -EBADMSG.
static int scan(struct head_in *in, unsigned char c)
{
	if (in->cr) {
		if (c != '\n')
			return -EBADMSG;
		in->cr = false;
		if (!in->in_line) {
			if (!in->started && !in->trailers)
				return -EBADMSG;
			in->done = true;
		}
		in->in_line = false;
		in->started = true;
		return 0;
	}
	if (c == '\r') {
		in->cr = true;
		return 0;
	}
	in->in_line = true;
	return control(c) ? -EBADMSG : 0;
}

ssize_t head_in_feed(struct head_in *in, const char *p, size_t n)
{
	size_t max = in->trailers ? TRAILERS_MAX : HEAD_MAX, i = 0;
	int rc = 0;

	while (i < n && !in->done && !rc) {
		if (in->len + i == max)
			return -E2BIG;
		rc = scan(in, (unsigned char)p[i++]);
	}
	if (rc)
		return rc;
	if (!room_for(&in->buf, &in->cap, in->len + i + 1))
		return -ENOMEM;
	memcpy(in->buf + in->len, p, i);
	in->len += i;
	in->buf[in->len] = '\0';
	return (ssize_t)i;
}

void head_in_reset(struct head_in *in)
{
	bool trailers = in->trailers;

	free(in->buf);
	*in = (struct head_in){.trailers = trailers};
}

// --- writing -----------------------------------------------------------------------

void head_put(struct head_out *o, const char *fmt, ...)
{
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(NULL, 0, fmt, ap);
	va_end(ap);
	if (n < 0 || !room_for(&o->p, &o->cap, o->len + (size_t)n + 1))
		o->bad = true;
	if (o->bad)
		return;
	va_start(ap, fmt);
	vsnprintf(o->p + o->len, (size_t)n + 1, fmt, ap);
	va_end(ap);
	o->len += (size_t)n;
}

void head_put_fields(struct head_out *o, const struct head *h)
{
	for (unsigned i = 0; i < h->n; i++) {
		if (!h->f[i].drop)
			head_put(o, "%s: %s\r\n", h->f[i].name, h->f[i].value);
	}
}
