// Endpoint tokens. The first byte says how the rest is meant: as the text of a
// token, or as claims, which are sealed with the host's own key first (a fuzzer
// would not find a tag). Claims that are taken must be those that were given.
#include "auth_internal.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

#define NOW 1800000000u

static const struct token_ring *ring(void)
{
	static struct token_ring r;
	uint8_t bytes[TOKEN_KEY_BYTES];

	for (unsigned i = 0; i < sizeof(bytes); i++)
		bytes[i] = (uint8_t)(i + 1);
	if (!r.n && token_ring_add(&r, bytes))
		abort();
	return &r;
}

static enum token_verdict check(const char *text, size_t n, const char *vm,
				enum token_kind kind, unsigned port)
{
	struct token_ask ask = {vm, kind, port};
	struct err e = ERR_INIT;
	enum token_verdict v = token_check(ring(), text, n, &ask, NOW, &e);

	if ((v == TOKEN_OK) != (e.msg[0] == '\0'))
		abort();
	return v;
}

// What the decoder takes, the encoder gives back byte for byte.
static void claims(const uint8_t *plain, size_t n)
{
	static struct token_claims c;
	static uint8_t again[TOKEN_PLAIN_MAX];
	char text[TOKEN_TEXT_MAX + 1];
	int len = token_seal(&ring()->key[0], plain, n, text, sizeof(text));
	bool good;

	if (len < 0)
		return; // too short, or too long
	good = !token_claims_decode(&c, plain, n);
	if (good && (token_claims_encode(&c, again, sizeof(again)) != n ||
		     memcmp(again, plain, n)))
		abort();
	if (!good) {
		if (check(text, (size_t)len, "vm", TOKEN_APP, 1) !=
		    TOKEN_MALFORMED)
			abort();
		return;
	}
	if (check(text, (size_t)len, c.vm, c.kind, 0) == TOKEN_OK &&
	    c.kind != TOKEN_SHELL)
		abort();
	if (c.kind == TOKEN_APP) {
		enum token_verdict v =
		    check(text, (size_t)len, c.vm, c.kind, c.ports[0].hi);

		if (v != TOKEN_OK && v != TOKEN_EXPIRED)
			abort();
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	if (!n)
		return 0;
	if (data[0] == 'c')
		claims(data + 1, n - 1);
	else
		check((const char *)data + 1, n - 1,
		      "microvm-01234567-89ab-cdef-0123-456789abcdef", TOKEN_APP,
		      8080);
	return 0;
}
