// Page tokens: a position and a sum over it and the query that it belongs to.
//
// The sum is SipHash-2-4 (Aumasson and Bernstein, 2012) with a key of this
// thawd's: 64 bits are plenty against a client that can only guess online and
// would win a position in a list that it may read anyway.
#include "shape_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { RAW = 17, VERSION = 1 }; // version, position, sum

static uint64_t load64(const uint8_t *p)
{
	uint64_t v = 0;

	for (int i = 7; i >= 0; i--)
		v = v << 8 | p[i];
	return v;
}

static void store64(uint8_t *p, uint64_t v)
{
	for (int i = 0; i < 8; i++)
		p[i] = (uint8_t)(v >> 8 * i);
}

static uint64_t rotate(uint64_t v, int n)
{
	return v << n | v >> (64 - n);
}

static void sip_rounds(uint64_t v[4], int n)
{
	while (n--) {
		v[0] += v[1];
		v[2] += v[3];
		v[1] = rotate(v[1], 13) ^ v[0];
		v[3] = rotate(v[3], 16) ^ v[2];
		v[0] = rotate(v[0], 32);
		v[2] += v[1];
		v[0] += v[3];
		v[1] = rotate(v[1], 17) ^ v[2];
		v[3] = rotate(v[3], 21) ^ v[0];
		v[2] = rotate(v[2], 32);
	}
}

static uint64_t siphash(const uint8_t key[SHAPE_PAGE_KEY], const uint8_t *p,
			size_t n)
{
	uint64_t k0 = load64(key), k1 = load64(key + 8);
	uint64_t v[4] = {k0 ^ 0x736f6d6570736575u, k1 ^ 0x646f72616e646f6du,
			 k0 ^ 0x6c7967656e657261u, k1 ^ 0x7465646279746573u};
	uint8_t last[8] = {0};
	size_t at = 0;
	uint64_t m;

	for (; n - at >= 8; at += 8) {
		m = load64(p + at);
		v[3] ^= m;
		sip_rounds(v, 2);
		v[0] ^= m;
	}
	memcpy(last, p + at, n - at);
	last[7] = (uint8_t)n;
	m = load64(last);
	v[3] ^= m;
	sip_rounds(v, 2);
	v[0] ^= m;
	v[2] ^= 0xff;
	sip_rounds(v, 4);
	return v[0] ^ v[1] ^ v[2] ^ v[3];
}

// Over the raw token's head, the operation, and the query less what may change
// from page to page.
static uint64_t sum(const uint8_t key[SHAPE_PAGE_KEY],
		    const struct shape_op *op, const json_t *in,
		    const uint8_t raw[RAW])
{
	json_t *query = json_copy((json_t *)(uintptr_t)in);
	cleanup_free char *text = NULL;
	cleanup_free uint8_t *all = NULL;
	size_t name = strlen(op->name) + 1, n;

	json_object_del(query, "maxResults");
	json_object_del(query, "nextToken");
	text = json_dumps(query, JSON_COMPACT | JSON_SORT_KEYS);
	json_decref(query);
	n = text ? strlen(text) : 0;
	all = malloc(9 + name + n);
	if (!text || !all)
		abort();
	memcpy(all, raw, 9);
	memcpy(all + 9, op->name, name);
	memcpy(all + 9 + name, text, n);
	return siphash(key, all, 9 + name + n);
}

static const char digits[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

static void to_text(const uint8_t raw[RAW], char out[SHAPE_PAGE_TEXT])
{
	unsigned bits = 0, acc = 0;
	char *w = out;

	for (size_t i = 0; i < RAW; i++) {
		acc = (acc << 8 | raw[i]) & 0xffff;
		for (bits += 8; bits >= 6; bits -= 6)
			*w++ = digits[acc >> (bits - 6) & 63];
	}
	*w++ = digits[acc << (6 - bits) & 63];
	*w = '\0';
}

static bool from_text(uint8_t raw[RAW], const char *text)
{
	unsigned bits = 0, acc = 0;
	size_t n = 0;

	if (strlen(text) != SHAPE_PAGE_TEXT - 1)
		return false;
	for (; *text; text++) {
		const char *d = strchr(digits, *text);

		if (!d)
			return false;
		acc = (acc << 6 | (unsigned)(d - digits)) & 0xffff;
		bits += 6;
		if (bits >= 8) {
			bits -= 8;
			raw[n++] = (uint8_t)(acc >> bits);
		}
	}
	return !(acc & ((1u << bits) - 1)); // one text for each token
}

void shape_page_make(const uint8_t key[SHAPE_PAGE_KEY],
		     const struct shape_op *op, const json_t *in,
		     uint64_t after, char out[SHAPE_PAGE_TEXT])
{
	uint8_t raw[RAW] = {VERSION};

	store64(raw + 1, after);
	store64(raw + 9, sum(key, op, in, raw));
	to_text(raw, out);
}

int shape_page_read(const uint8_t key[SHAPE_PAGE_KEY],
		    const struct shape_op *op, const json_t *in,
		    uint64_t *after, struct err *e)
{
	const char *text = json_string_value(json_object_get(in, "nextToken"));
	struct shape_at at = {NULL, "nextToken", 0};
	uint8_t raw[RAW];

	*after = 0;
	if (!text)
		return 0;
	if (!from_text(raw, text) || raw[0] != VERSION ||
	    load64(raw + 9) != sum(key, op, in, raw))
		return shape_bad(e, &at,
				 "Member must be what a page of this same "
				 "query answered");
	*after = load64(raw + 1);
	return 0;
}
