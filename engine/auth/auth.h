// Who may call, and who may come in. Three parts that know nothing of sockets,
// loops or microVMs; docs/AUTH.md has the formats.
//
//   keys    access keys of the API's callers, from a file
//   sigv4   is a request signed by one of them (AWS Signature Version 4)?
//   token   endpoint tokens: issued for one microVM, checked at its endpoint
//
// and how a file that holds secrets is read, which others use as well.
//
// sigv4 and token are pure but for token_issue()'s randomness: the caller gives
// the time. All of it may be called from any thread.
#ifndef THAW_AUTH_H
#define THAW_AUTH_H

#include "base.h"

#include <sys/stat.h>

// --- files that hold secrets -------------------------------------------------

// Reads one whole. It must be a regular file of at most `max` bytes that belongs to
// root or to the caller and that nobody else may touch (0600 or stricter). *text
// has st->st_size bytes and a NUL behind them; auth_secret_free() wipes it. `what`
// is for sentences ("keys file"). -EACCES: owner or mode; -EINVAL: not such a file;
// else what open(2) and read(2) say; *text is NULL then.
int auth_secret_read(const char *what, const char *path, size_t max,
		     char **text, struct stat *st, struct err *e);
void auth_secret_free(char *text, size_t len); // NULL is fine

// --- keys ------------------------------------------------------------------

enum {
	AUTH_ID_MIN = 16, // IAM's own limits of an access key id
	AUTH_ID_MAX = 128,
	AUTH_SECRET_MIN = 32, // AWS's have 40; shorter ones can be guessed
	AUTH_SECRET_MAX = 128,
	AUTH_NAME_MAX = 64,
	AUTH_KEYS_MAX = 1000,
	AUTH_FILE_MAX = 256 * 1024, // bytes
};

struct auth_key {
	char id[AUTH_ID_MAX + 1]; // [A-Za-z0-9_]
	char secret[AUTH_SECRET_MAX + 1];
	char name[AUTH_NAME_MAX + 1]; // its profile, for logs
};

struct auth_keys {
	struct auth_key *key;
	size_t n;
};

// Reads a file in the format of ~/.aws/credentials. It must be a regular file
// that belongs to root or to the caller and that nobody else may touch (0600 or
// stricter), and valid to the last line: errors name the line. -EACCES: owner
// or mode; -EINVAL: contents; else what open(2) and read(2) say. On error `out`
// holds nothing. auth_keys_free() gives it back, and wipes the secrets.
int auth_keys_load(struct auth_keys *out, const char *path, struct err *e);
// The same from memory; `path` is for sentences alone.
int auth_keys_parse(struct auth_keys *out, const char *text, size_t len,
		    const char *path, struct err *e);
void auth_keys_free(struct auth_keys *k);
// NULL: no such id. `id` need not end with NUL.
const struct auth_key *auth_keys_find(const struct auth_keys *k, const char *id,
				      size_t n);

// --- sigv4 -----------------------------------------------------------------

enum {
	SIGV4_SKEW_S = 15 * 60, // between the signer's clock and ours
	SIGV4_HTTP_STATUS = 403,
	SIGV4_HEADERS_MAX = 128,
	SIGV4_SIGNED_MAX = 64,
	SIGV4_TARGET_MAX = 16 * 1024, // bytes of path, and of query
	SIGV4_PARAMS_MAX = 256,
};

struct sigv4_header {
	const char *name, *value; // as received
};

struct sigv4_request {
	const char *method;
	const char *path;  // of the request line, still encoded: "/a%3Ab"
	const char *query; // the same, without '?'; NULL or "": none
	const struct sigv4_header *headers;
	size_t nheaders;
	const void *body; // all of it, or
	size_t body_len;
	const uint8_t *body_sha256; // its digest (32 bytes) where not NULL
};

struct sigv4_policy {
	const struct auth_keys *keys;
	const char *service; // NULL: "lambda"
	const char *region;  // NULL: any
	// X-Amz-Security-Token belongs to temporary credentials, which thaw
	// does not issue. Refused, or ignored where this is set.
	bool ignore_session_token;
};

enum sigv4_verdict {
	SIGV4_OK,
	SIGV4_MISSING,	   // not signed at all
	SIGV4_INCOMPLETE,  // signed in a way that is malformed or not taken
	SIGV4_UNKNOWN_KEY, // nobody has this access key
	SIGV4_EXPIRED,	   // signed too long ago, or in the future
	SIGV4_MISMATCH,	   // altered, or signed with another secret
};

// Is the request signed by one of the policy's keys, now (seconds since 1970)?
// Sets *who (may be NULL) on SIGV4_OK, and on every other verdict leaves a
// sentence for the caller and -EACCES in `e`.
enum sigv4_verdict sigv4_verify(const struct sigv4_request *r,
				const struct sigv4_policy *p, uint64_t now_s,
				const struct auth_key **who, struct err *e);
// AWS's name of the error; its status is SIGV4_HTTP_STATUS. NULL for SIGV4_OK.
const char *sigv4_error_type(enum sigv4_verdict v);

// --- token -----------------------------------------------------------------

enum {
	TOKEN_TEXT_MAX = 8000, // AWS's model: the value of an authToken entry
	TOKEN_LIFE_MAX_S = 60 * 60,
	TOKEN_SKEW_S = 60, // "issued in the future" by more is refused
	TOKEN_PORTS_MAX = 1024,
	TOKEN_VM_MAX = 64,
	TOKEN_KEY_BYTES = 32,
	TOKEN_KID_CHARS = 16,
	TOKEN_RING_MAX = 4,
};

// The first key issues, all of them are good for checking: so a key can be
// replaced while tokens made with the last one live on.
struct token_key {
	char kid[TOKEN_KID_CHARS + 1]; // derived from the key's bytes
	uint8_t bytes[TOKEN_KEY_BYTES];
};
struct token_ring {
	unsigned n;
	struct token_key key[TOKEN_RING_MAX];
};

enum token_kind {
	TOKEN_APP = 1, // HTTP and all that it carries, to the ports allowed
	TOKEN_SHELL,
};

struct token_ports {
	uint16_t lo, hi; // both included; 1-65535 is AWS's allPorts
};

struct token_claims {
	char vm[TOKEN_VM_MAX + 1]; // the microVM's id
	enum token_kind kind;
	uint64_t issued_s, expires_s; // good while now < expires_s
	uint8_t id[16];		      // drawn by token_issue()
	unsigned nports;	      // TOKEN_APP: at least 1; TOKEN_SHELL: 0
	struct token_ports ports[TOKEN_PORTS_MAX];
};

// What a request wants; `port` is ignored for TOKEN_SHELL.
struct token_ask {
	const char *vm;
	enum token_kind kind;
	unsigned port;
};

enum token_verdict {
	TOKEN_OK,
	TOKEN_MALFORMED,
	TOKEN_FOREIGN, // made with a key that is not ours, or altered
	TOKEN_OTHER_VM,
	TOKEN_WRONG_KIND,
	TOKEN_EXPIRED,
	TOKEN_PORT, // AWS: "Access to port denied"
};

// DIR/token.key, made when there is none (0600, on disk when this returns). The
// caller holds the lock of DIR. -EACCES: others may read it or own it; -EINVAL:
// it is not a key.
int token_ring_open(struct token_ring *out, const char *dir, struct err *e);
// Adds a key for checking; -ENOSPC, or -EEXIST where the ring has it.
int token_ring_add(struct token_ring *r, const uint8_t bytes[TOKEN_KEY_BYTES]);
void token_ring_wipe(struct token_ring *r);

// A new token in `out`, which TOKEN_TEXT_MAX + 1 bytes always suffice for; its
// length, or -EINVAL (claims that no token may make), -ENOBUFS.
int token_issue(const struct token_ring *r, struct token_claims *c, char *out,
		size_t cap, struct err *e);
// Does the token of n bytes grant what is asked for, now (seconds since 1970)?
// When not, a sentence and -EACCES in `e`. A token that is neither malformed nor
// foreign was issued here, whatever else the verdict says.
enum token_verdict token_check(const struct token_ring *r, const char *text,
			       size_t n, const struct token_ask *ask,
			       uint64_t now_s, struct err *e);
// A word for logs ("ok", "malformed", ...).
const char *token_verdict_name(enum token_verdict v);

#endif
