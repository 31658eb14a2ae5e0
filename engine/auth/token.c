// Endpoint tokens: compact JWE (RFC 7516) with a key that only this host has,
//
//   BASE64URL({"kid":"...","alg":"dir","enc":"A256GCM"}) .. IV . TEXT . TAG
//
// so whoever holds a token can neither read nor alter it, and checking one needs
// no memory of those that were issued. The header is never parsed: it is one of
// the texts that this host writes, or the token is not ours. So there is no
// choice of algorithm for anybody to make. What GCM authenticates is the text of
// the header and the bytes of the rest; base64url is read strictly, so a token
// has exactly one spelling.
//
// The claims inside (little-endian; docs/AUTH.md):
//
//   u8 version 1 | u8 kind | u16 0 | u64 issued | u64 expires | id[16] |
//   u8 length of vm | vm | u16 ports | { u16 lo | u16 hi }...
//
// They are decoded after the tag is verified, and checked all the same.
#include "auth_internal.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define IV_BYTES 12
#define TAG_BYTES 16
#define HEADER_HEAD "{\"kid\":\""
#define HEADER_TAIL "\",\"alg\":\"dir\",\"enc\":\"A256GCM\"}"

enum {
	HEADER_BYTES =
	    sizeof(HEADER_HEAD) - 1 + TOKEN_KID_CHARS + sizeof(HEADER_TAIL) - 1,
	HEADER_CHARS = B64URL_CHARS(HEADER_BYTES),
	HEADER_MAX = 256, // of a foreign one, in characters
	KID_MAX = 128,
	VERSION = 1,
};

_Static_assert(HEADER_CHARS + 2 + B64URL_CHARS(IV_BYTES) + 1 +
		       B64URL_CHARS(TOKEN_PLAIN_MAX) + 1 +
		       B64URL_CHARS(TAG_BYTES) <=
		   TOKEN_TEXT_MAX,
	       "the most ports fit into the longest token");

// The encoded header of a key.
static void header_of(const struct token_key *k, char out[static HEADER_CHARS])
{
	char text[HEADER_BYTES + 1];

	snprintf(text, sizeof(text), HEADER_HEAD "%.*s" HEADER_TAIL,
		 TOKEN_KID_CHARS, k->kid);
	b64url_encode(out, text, HEADER_BYTES);
}

// --- claims -----------------------------------------------------------------

static bool vm_ok(const char *vm, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (vm[i] <= ' ' || vm[i] > '~')
			return false;
	}
	return n && n <= TOKEN_VM_MAX;
}

static bool claims_ok(const struct token_claims *c)
{
	if (c->kind != TOKEN_APP && c->kind != TOKEN_SHELL)
		return false;
	if (!vm_ok(c->vm, strnlen(c->vm, sizeof(c->vm))) ||
	    c->expires_s <= c->issued_s ||
	    c->expires_s - c->issued_s > TOKEN_LIFE_MAX_S ||
	    c->nports > TOKEN_PORTS_MAX ||
	    (c->nports > 0) != (c->kind == TOKEN_APP))
		return false;
	for (unsigned i = 0; i < c->nports; i++) {
		if (!c->ports[i].lo || c->ports[i].lo > c->ports[i].hi)
			return false;
	}
	return true;
}

size_t token_claims_encode(const struct token_claims *c, uint8_t *plain,
			   size_t cap)
{
	struct wire_writer w = wire_writer_of(plain, cap);
	size_t n = strlen(c->vm);

	wire_put_u8(&w, VERSION);
	wire_put_u8(&w, (uint8_t)c->kind);
	wire_put_u16(&w, 0);
	wire_put_u64(&w, c->issued_s);
	wire_put_u64(&w, c->expires_s);
	wire_put_bytes(&w, c->id, sizeof(c->id));
	wire_put_u8(&w, (uint8_t)n);
	wire_put_bytes(&w, c->vm, n);
	wire_put_u16(&w, (uint16_t)c->nports);
	for (unsigned i = 0; i < c->nports; i++) {
		wire_put_u16(&w, c->ports[i].lo);
		wire_put_u16(&w, c->ports[i].hi);
	}
	return w.bad ? 0 : w.len;
}

int token_claims_decode(struct token_claims *c, const void *plain, size_t n)
{
	struct wire_reader r = wire_reader_of(plain, n);
	uint8_t version = wire_get_u8(&r), kind = wire_get_u8(&r), len;
	uint16_t reserved = wire_get_u16(&r);

	memset(c, 0, sizeof(*c));
	c->kind = kind;
	c->issued_s = wire_get_u64(&r);
	c->expires_s = wire_get_u64(&r);
	wire_get_bytes(&r, c->id, sizeof(c->id));
	len = wire_get_u8(&r);
	if (version != VERSION || reserved || len > TOKEN_VM_MAX)
		return -EINVAL;
	wire_get_bytes(&r, c->vm, len);
	if (strlen(c->vm) != len) // a NUL within
		return -EINVAL;
	c->nports = wire_get_u16(&r);
	if (c->nports > TOKEN_PORTS_MAX)
		return -EINVAL;
	for (unsigned i = 0; i < c->nports; i++) {
		c->ports[i].lo = wire_get_u16(&r);
		c->ports[i].hi = wire_get_u16(&r);
	}
	return r.bad || wire_left(&r) || !claims_ok(c) ? -EINVAL : 0;
}

// --- AES-256-GCM ------------------------------------------------------------

static void free_cipher(EVP_CIPHER_CTX **c)
{
	EVP_CIPHER_CTX_free(*c); // wipes its key
}

static bool encrypt(const struct token_key *k, const uint8_t iv[IV_BYTES],
		    const char *aad, const void *plain, size_t n, uint8_t *out,
		    uint8_t tag[TAG_BYTES])
{
	EVP_CIPHER_CTX *c __attribute__((cleanup(free_cipher))) =
	    EVP_CIPHER_CTX_new();
	int len;

	return c &&
	       EVP_EncryptInit_ex(c, EVP_aes_256_gcm(), NULL, k->bytes, iv) &&
	       EVP_EncryptUpdate(c, NULL, &len, (const uint8_t *)aad,
				 HEADER_CHARS) &&
	       EVP_EncryptUpdate(c, out, &len, plain, (int)n) &&
	       EVP_EncryptFinal_ex(c, out + len, &len) &&
	       EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_GCM_GET_TAG, TAG_BYTES, tag);
}

// False unless the tag is right (compared in constant time by OpenSSL).
static bool decrypt(const struct token_key *k, const uint8_t iv[IV_BYTES],
		    const char *aad, const uint8_t *text, size_t n,
		    uint8_t tag[TAG_BYTES], uint8_t *out)
{
	EVP_CIPHER_CTX *c __attribute__((cleanup(free_cipher))) =
	    EVP_CIPHER_CTX_new();
	int len;

	return c &&
	       EVP_DecryptInit_ex(c, EVP_aes_256_gcm(), NULL, k->bytes, iv) &&
	       EVP_DecryptUpdate(c, NULL, &len, (const uint8_t *)aad,
				 HEADER_CHARS) &&
	       EVP_DecryptUpdate(c, out, &len, text, (int)n) &&
	       EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_GCM_SET_TAG, TAG_BYTES, tag) &&
	       EVP_DecryptFinal_ex(c, out + len, &len) > 0;
}

int token_seal(const struct token_key *k, const void *plain, size_t n,
	       char *out, size_t cap)
{
	uint8_t iv[IV_BYTES], tag[TAG_BYTES], text[TOKEN_PLAIN_MAX];
	size_t need = HEADER_CHARS + 2 + B64URL_CHARS(IV_BYTES) + 1 +
		      B64URL_CHARS(n) + 1 + B64URL_CHARS(TAG_BYTES);
	char *p = out + HEADER_CHARS;

	if (!n || n > sizeof(text))
		return -EINVAL;
	if (cap < need + 1)
		return -ENOBUFS;
	header_of(k, out);
	util_random(iv, sizeof(iv));
	if (!encrypt(k, iv, out, plain, n, text, tag))
		return -EIO;
	memcpy(p, "..", 2); // "dir": there is no encrypted key
	b64url_encode(p += 2, iv, IV_BYTES);
	*(p += B64URL_CHARS(IV_BYTES)) = '.';
	b64url_encode(++p, text, n);
	*(p += B64URL_CHARS(n)) = '.';
	b64url_encode(++p, tag, TAG_BYTES);
	p[B64URL_CHARS(TAG_BYTES)] = '\0';
	return (int)need;
}

int token_issue(const struct token_ring *r, struct token_claims *c, char *out,
		size_t cap, struct err *e)
{
	uint8_t plain[TOKEN_PLAIN_MAX];
	size_t n;
	int rc;

	if (!r->n)
		return err_set(e, -EINVAL, "there is no key for tokens");
	if (!claims_ok(c))
		return err_set(e, -EINVAL,
			       "a token is for one microVM, at most %d "
			       "minutes, and 1 to %d sets of ports (a shell's: "
			       "none)",
			       TOKEN_LIFE_MAX_S / 60, TOKEN_PORTS_MAX);
	util_random(c->id, sizeof(c->id));
	n = token_claims_encode(c, plain, sizeof(plain));
	rc = token_seal(&r->key[0], plain, n, out, cap);
	return rc < 0 ? err_set(e, rc, "make a token: %s", strerror(-rc)) : rc;
}

// --- checking ---------------------------------------------------------------

// The five parts, the second of them empty.
static bool split(struct part out[static 5], const char *text, size_t n)
{
	struct part rest = {text, n};

	for (unsigned i = 0; i < 5; i++) {
		if (part_cut(&rest, '.', &out[i]) != (i < 4))
			return false;
	}
	return !out[1].n;
}

// Would a host like this one write that header, with whatever key?
static bool header_like_ours(struct part h)
{
	const size_t head = sizeof(HEADER_HEAD) - 1,
		     tail = sizeof(HEADER_TAIL) - 1;
	uint8_t text[HEADER_MAX * 3 / 4 + 3];
	ssize_t n = h.n <= HEADER_MAX ? b64url_decode(text, h.p, h.n) : -1;
	size_t kid;

	if (n < (ssize_t)(head + 1 + tail))
		return false;
	kid = (size_t)n - head - tail;
	if (kid > KID_MAX || memcmp(text, HEADER_HEAD, head) ||
	    memcmp(text + head + kid, HEADER_TAIL, tail))
		return false;
	for (size_t i = head; i < head + kid; i++) {
		if (text[i] <= ' ' || text[i] > '~' || text[i] == '"' ||
		    text[i] == '\\')
			return false;
	}
	return true;
}

static const struct token_key *key_of(const struct token_ring *r, struct part h)
{
	char text[HEADER_CHARS];

	for (unsigned i = 0; i < r->n && h.n == HEADER_CHARS; i++) {
		header_of(&r->key[i], text);
		if (!memcmp(text, h.p, HEADER_CHARS))
			return &r->key[i];
	}
	return NULL;
}

static enum token_verdict unseal(const struct token_ring *r, const char *text,
				 size_t n, struct token_claims *c,
				 struct err *e)
{
	uint8_t iv[IV_BYTES + 3], tag[TAG_BYTES + 3];
	uint8_t data[TOKEN_PLAIN_MAX + 3], plain[TOKEN_PLAIN_MAX + 3];
	const struct token_key *k;
	struct part p[5];
	ssize_t len;

	if (!n || n > TOKEN_TEXT_MAX || !split(p, text, n) ||
	    p[2].n != B64URL_CHARS(IV_BYTES) ||
	    p[3].n > B64URL_CHARS(TOKEN_PLAIN_MAX) ||
	    p[4].n != B64URL_CHARS(TAG_BYTES) ||
	    b64url_decode(iv, p[2].p, p[2].n) != IV_BYTES ||
	    b64url_decode(tag, p[4].p, p[4].n) != TAG_BYTES)
		return auth_refuse(e, TOKEN_MALFORMED, "this is not a token");
	len = b64url_decode(data, p[3].p, p[3].n);
	k = key_of(r, p[0]);
	if (len <= 0 || len > TOKEN_PLAIN_MAX ||
	    (!k && !header_like_ours(p[0])))
		return auth_refuse(e, TOKEN_MALFORMED, "this is not a token");
	if (!k || !decrypt(k, iv, p[0].p, data, (size_t)len, tag, plain))
		return auth_refuse(
		    e, TOKEN_FOREIGN,
		    "the token was not made by this host, or was "
		    "altered");
	if (token_claims_decode(c, plain, (size_t)len))
		return auth_refuse(e, TOKEN_MALFORMED,
				   "the token's claims are not those of this "
				   "version");
	return TOKEN_OK;
}

static bool has_port(const struct token_claims *c, unsigned port)
{
	for (unsigned i = 0; i < c->nports; i++) {
		if (port >= c->ports[i].lo && port <= c->ports[i].hi)
			return true;
	}
	return false;
}

static enum token_verdict judge(const struct token_claims *c,
				const struct token_ask *ask, uint64_t now_s,
				struct err *e)
{
	size_t n = strlen(c->vm);

	if (strlen(ask->vm) != n || CRYPTO_memcmp(ask->vm, c->vm, n))
		return auth_refuse(e, TOKEN_OTHER_VM,
				   "the token is for another microVM");
	if (ask->kind != c->kind)
		return auth_refuse(e, TOKEN_WRONG_KIND,
				   c->kind == TOKEN_SHELL
				       ? "the token is for the shell alone"
				       : "the token is not for the shell");
	if (now_s >= c->expires_s)
		return auth_refuse(e, TOKEN_EXPIRED,
				   "the token expired %llu seconds ago",
				   (unsigned long long)(now_s - c->expires_s));
	if (c->issued_s > now_s && c->issued_s - now_s > TOKEN_SKEW_S)
		return auth_refuse(e, TOKEN_EXPIRED,
				   "the token was issued in the future: this "
				   "host's clock was set back");
	if (ask->kind == TOKEN_APP && !has_port(c, ask->port))
		return auth_refuse(e, TOKEN_PORT, "Access to port denied");
	return TOKEN_OK;
}

enum token_verdict token_check(const struct token_ring *r, const char *text,
			       size_t n, const struct token_ask *ask,
			       uint64_t now_s, struct err *e)
{
	struct token_claims c;
	enum token_verdict v = unseal(r, text, n, &c, e);

	return v ? v : judge(&c, ask, now_s, e);
}

const char *token_verdict_name(enum token_verdict v)
{
	static const char *const names[] = {
	    [TOKEN_OK] = "ok",
	    [TOKEN_MALFORMED] = "malformed",
	    [TOKEN_FOREIGN] = "foreign",
	    [TOKEN_OTHER_VM] = "other-vm",
	    [TOKEN_WRONG_KIND] = "wrong-kind",
	    [TOKEN_EXPIRED] = "expired",
	    [TOKEN_PORT] = "port",
	};

	return (unsigned)v < ARRAY_SIZE(names) ? names[v] : "unknown";
}
