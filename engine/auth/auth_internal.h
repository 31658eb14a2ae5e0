// Between the files of this room, and their tests.
#ifndef THAW_AUTH_INTERNAL_H
#define THAW_AUTH_INTERNAL_H

#include "auth.h"

// A piece of somebody else's text, without a NUL.
struct part {
	const char *p;
	size_t n;
};
// Cuts the part before the next `sep` off *rest. false: there was none, the part is
// all of it, and *rest is empty.
bool part_cut(struct part *rest, char sep, struct part *out);

// One sentence of why not; its value is the verdict.
#define auth_refuse(e, verdict, ...) \
	((void)err_set(e, -EACCES, __VA_ARGS__), (verdict))

// --- base64url (RFC 4648 section 5, without padding) ------------------------

#define B64URL_CHARS(n) (((n)*4 + 2) / 3)
// Writes B64URL_CHARS(n) characters and no NUL.
void b64url_encode(char *dst, const void *src, size_t n);
// Strict: the alphabet alone, no length that no encoder makes, unused bits zero;
// so one byte string has one text. The number of bytes, at most n * 3 / 4 (the
// room that dst needs), or -EINVAL.
ssize_t b64url_decode(uint8_t *dst, const char *src, size_t n);

// --- the canonical request of SigV4 -----------------------------------------

struct sigv4_names {
	size_t n;
	struct {
		const char *p;
		size_t len;
	} name[SIGV4_SIGNED_MAX]; // lower case, ascending, no two alike
};

// The one header of that name; NULL and *count when there is none, or several.
const char *sigv4_header(const struct sigv4_request *r, const char *name,
			 size_t len, size_t *count);
// SHA-256 of the canonical request. Everything that has two spellings for one
// meaning is refused here: -EINVAL and a sentence. -ENOMEM.
int sigv4_canon_digest(const struct sigv4_request *r,
		       const struct sigv4_names *names,
		       const char body_hex[static 64], uint8_t out[static 32],
		       struct err *e);

// --- the inside of a token --------------------------------------------------

enum {
	TOKEN_PLAIN_MAX = 32 + 16 + 1 + TOKEN_VM_MAX + 2 + 4 * TOKEN_PORTS_MAX,
};

// Encrypts n bytes of plain text into a token; its length or -errno.
int token_seal(const struct token_key *k, const void *plain, size_t n,
	       char *out, size_t cap);
// -EINVAL unless the bytes are claims in every detail.
int token_claims_decode(struct token_claims *c, const void *plain, size_t n);
size_t token_claims_encode(const struct token_claims *c, uint8_t *plain,
			   size_t cap);

#endif
