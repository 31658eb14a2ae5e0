// Checking requests of thaw's own calls (the contract's: shape/): types, lengths,
// ranges and unknown members. One sentence names the member and what is wrong.
#ifndef THAW_ENG_API_CHECK_H
#define THAW_ENG_API_CHECK_H

#include "base.h"

#include <jansson.h>

enum check_kind {
	CHECK_STRING, // lo..hi characters
	CHECK_NAME,   // [a-zA-Z0-9-_]+
	CHECK_PATH,   // absolute, lo..hi bytes
	CHECK_BYTES,  // lo..hi UTF-8 bytes
	CHECK_INT,    // lo..hi
	CHECK_BOOL,
	CHECK_STRINGS, // lo..hi entries
	CHECK_ENV,     // lo..hi entries "K=V"
	CHECK_ANY,     // whatever; checked elsewhere
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

// A decimal number in [lo, hi]; 0 or -EINVAL.
int check_number(const char *text, long lo, long hi, long *out);

#endif
