// Fields of HTTP/2 on their way to the one parser there is, and back.
//
// nghttp2 holds fields to the standard (lower case, no connection fields, pseudo-
// fields first), but a value may hold what ends a line in HTTP/1.1. Nothing with
// a control character gets into the text, and the text as a whole must be one
// head and not a byte more.
#include "h2_fields.h"

#include <stdio.h>
#include <string.h>

static bool clean(const uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if ((p[i] < 0x20 && p[i] != '\t') || p[i] == 0x7f)
			return false;
	}
	return true;
}

bool h2_text_admit(struct h2_text *t, const uint8_t *name, size_t nn,
		   const uint8_t *value, size_t vn, size_t more)
{
	if (++t->n > HEAD_FIELDS || t->lines.len + more + nn + vn > HEAD_MAX)
		t->too_large = true;
	else if (!clean(name, nn) || !clean(value, vn))
		t->bad = true;
	else
		return true;
	return false;
}

void h2_text_put(struct h2_text *t, const uint8_t *name, size_t nn,
		 const uint8_t *value, size_t vn)
{
	head_put(&t->lines, "%.*s: %.*s\r\n", (int)nn, (const char *)name,
		 (int)vn, (const char *)value);
	t->bad |= t->lines.bad;
}

void h2_text_free(struct h2_text *t)
{
	free(t->lines.p);
	*t = (struct h2_text){.n = 0};
}

bool h2_text_whole(struct head_in *in, struct head_out *text)
{
	bool whole =
	    !text->bad &&
	    head_in_feed(in, text->p, text->len) == (ssize_t)text->len &&
	    in->done;

	free(text->p);
	*text = (struct head_out){.p = NULL};
	return whole;
}

void h2_pair(struct h2_pairs *p, const char *name, const char *value)
{
	p->nv[p->n++] = (nghttp2_nv){.name = (uint8_t *)name,
				     .value = (uint8_t *)value,
				     .namelen = strlen(name),
				     .valuelen = strlen(value)};
}

void h2_pairs_of(struct h2_pairs *p, const struct head *h)
{
	for (unsigned i = 0; i < h->n; i++) {
		if (h->f[i].drop)
			continue;
		for (char *c = (char *)h->f[i].name; *c; c++) {
			if (*c >= 'A' && *c <= 'Z')
				*c = (char)(*c + 32);
		}
		h2_pair(p, h->f[i].name, h->f[i].value);
	}
}

void h2_pair_length(struct h2_pairs *p, const struct head *h, char text[24])
{
	if (!h->has_length)
		return;
	snprintf(text, 24, "%llu", (unsigned long long)h->length);
	h2_pair(p, "content-length", text);
}
