// The contract as data: AWS Lambda MicroVMs' operations (API version
// 2025-09-09), what goes in and comes out of each, and every constraint on it.
// From this one table requests are routed and checked, answers are checked in
// the sanitizer build, and docs/openapi.json is written.
//
// Pure: knows base and jansson, no sockets, no microVMs. Everything may be
// called from any thread. The table is constant; what is thaw's own in it is
// marked as such.
//
// The model has no blobs, no floating-point numbers, and no timestamps or
// headers in requests; neither has this.
#ifndef THAW_SHAPE_H
#define THAW_SHAPE_H

#include "base.h"

#include <jansson.h>

enum shape_kind {
	SHAPE_STRUCT,
	SHAPE_UNION, // exactly one member
	SHAPE_LIST,
	SHAPE_MAP,
	SHAPE_STRING,
	SHAPE_ENUM,
	SHAPE_INT,  // 32 bits
	SHAPE_LONG, // 64 bits
	SHAPE_BOOL,
	SHAPE_TIME, // seconds since 1970, fractions allowed
	SHAPE_ANY,  // thaw's own; documented in docs/API.md
};

#define SHAPE_NO_MIN INT64_MIN
#define SHAPE_NO_MAX INT64_MAX

struct shape {
	const char *name;
	enum shape_kind kind;
	// Of a number's value, a string's characters (Unicode scalar values), a
	// list's or a map's entries.
	int64_t min, max;
	const char *pattern; // the whole string; see pattern.c. NULL: any
	bool bytes;	     // a string's length counts in UTF-8 bytes
	bool secret;	     // never in messages or logs
	bool prose; // AWS answers sentences here, whatever the pattern says
	const char *const *values; // of an enum: AWS's, NULL at the end
	const char *const *own;	   // and those that only thaw has; or NULL
	const struct shape *key;   // of a map's entries
	const struct shape *of;	   // the entries of a list or a map
	const struct shape_member *members;
	unsigned n;
};

enum shape_place { SHAPE_BODY, SHAPE_PATH, SHAPE_QUERY, SHAPE_HEADER };

enum {
	SHAPE_REQUIRED = 1,
	SHAPE_IDEMPOTENCY = 2, // the client's token for that
	SHAPE_OWN = 4,	       // AWS has no such member
};

struct shape_member {
	const char *name;
	const struct shape *shape;
	unsigned flags;
	enum shape_place place;
	const char *wire; // its name there; NULL: the same
};

struct shape_error {
	const char *name;
	int status;
	const struct shape *shape;
};

enum { SHAPE_ERRORS_MAX = 12 };

struct shape_op {
	const char *name;
	const char *method;
	const char *path; // "/a/{member}/b"
	int status;	  // of success
	const struct shape *in;
	const struct shape *out; // NULL: no body
	const struct shape_error *errors[SHAPE_ERRORS_MAX];
	bool idempotent, readonly, paged;
	const char *summary;
};

extern const struct shape_op shape_ops[];
extern const size_t shape_nops;
const struct shape_op *shape_op(const char *name); // NULL: none
// The exception of that name that the operation declares; NULL: none.
const struct shape_error *shape_error_of(const struct shape_op *op,
					 const char *name);
bool shape_has(const struct shape *s, const char *member);

struct shape_kv {
	const char *k, *v;
};
struct shape_request {
	const char *const *seg; // of the path, split and then decoded
	unsigned nseg;
	const struct shape_kv *query; // decoded
	unsigned nquery;
	const void *body;
	size_t body_len;
};

// -ENOENT: no operation has this path; -EOPNOTSUPP: those that do have other
// methods.
int shape_route(const char *method, const char *const *seg, unsigned nseg,
		const struct shape_op **op);
// All members of a request in one object, from wherever they came, by their
// names; each constraint holds, and what was null is absent. NULL and -EINVAL:
// one sentence names the member and what is wrong with it.
json_t *shape_read(const struct shape_op *op, const struct shape_request *r,
		   struct err *e);
// A body: one JSON object, or nothing at all (an empty one). NULL and -EINVAL.
json_t *shape_body(const void *body, size_t len, struct err *e);
// A value against any shape. Members that are null are removed. -EINVAL.
int shape_check(const struct shape *s, json_t *v, struct err *e);

// An operation's answer against its declaration: the status, and each
// constraint on the body (NULL: none). -EINVAL.
int shape_check_answer(const struct shape_op *op, int status,
		       const json_t *body, struct err *e);
// Likewise an error's. 405 is for requests that never reach one.
int shape_check_error(const struct shape_op *op, int status, const char *type,
		      const json_t *body, struct err *e);

// Does the whole of `text` (UTF-8) match? Time and memory are linear in the
// text, whatever both are.
bool shape_match(const char *pattern, const char *text);

// --- pages -----------------------------------------------------------------

enum { SHAPE_PAGE_KEY = 16, SHAPE_PAGE_TEXT = 24 };

// The token with which the query `in` of a list goes on after `after`. It holds
// for that operation and those members alone (any maxResults); others', and
// altered ones, are refused with -EINVAL.
void shape_page_make(const uint8_t key[SHAPE_PAGE_KEY],
		     const struct shape_op *op, const json_t *in,
		     uint64_t after, char out[SHAPE_PAGE_TEXT]);
// Reads the member nextToken of `in`; *after is 0 without one.
int shape_page_read(const uint8_t key[SHAPE_PAGE_KEY],
		    const struct shape_op *op, const json_t *in,
		    uint64_t *after, struct err *e);

// The whole table as an OpenAPI 3.1 document.
json_t *shape_openapi(void);

#endif
