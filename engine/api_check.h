// Checking requests against their shapes: types, lengths, ranges, patterns and
// unknown members. One sentence names the member and what is wrong with it.
#ifndef THAW_ENG_API_CHECK_H
#define THAW_ENG_API_CHECK_H

#include "base.h"

#include <jansson.h>

enum check_kind {
	CHECK_STRING,  // lo..hi characters
	CHECK_NAME,    // [a-zA-Z0-9-_]+
	CHECK_NOBLANK, // [^\s]+
	CHECK_PATH,    // absolute, lo..hi bytes
	CHECK_BYTES,   // lo..hi UTF-8 bytes
	CHECK_ROLE,    // an IAM role's ARN
	CHECK_INT,     // lo..hi
	CHECK_BOOL,
	CHECK_STRINGS,	  // lo..hi entries
	CHECK_CONNECTORS, // lo..hi network connectors
	CHECK_ENV,	  // lo..hi entries "K=V"
	CHECK_LABELS,	  // an object of at most hi strings
	CHECK_IDLE,	  // AWS's idlePolicy
	CHECK_LOGGING,	  // AWS's logging union
	CHECK_ANY,	  // whatever; checked elsewhere
};

struct check_field {
	const char *name;
	enum check_kind kind;
	bool required;
	long lo, hi;
};

// `prefix` goes before member names ("" or "idlePolicy."). -EINVAL.
int check_object(json_t *o, const char *prefix, const struct check_field *f,
		 size_t n, struct err *e);
bool check_name(const char *s, size_t max); // [a-zA-Z0-9-_]{1,max}
bool check_label_key(const char *s);
size_t check_chars(const char *s); // characters of valid UTF-8

// Parses a request body: an object, or nothing at all (an empty object). NULL
// and -EINVAL in `e`.
json_t *check_body(const void *body, size_t len, struct err *e);
// A decimal number in [lo, hi]; 0 or -EINVAL.
int check_number(const char *text, long lo, long hi, long *out);

#endif
