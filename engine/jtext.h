// JSON written as text, member by member: for documents that are made thousands of
// times a second, where a tree of values costs several times their text.
//
//	struct jtext t = {0};
//	jt_open(&t, NULL);
//	jt_str(&t, "name", name);
//	jt_close(&t);
//	use(jt_take(&t));
//
// Keys are literals of the program and not escaped; NULL in an array and at the
// top. Out of memory aborts, as everywhere in thawd's small allocations.
#ifndef THAW_ENG_JTEXT_H
#define THAW_ENG_JTEXT_H

#include "base.h"

#include <jansson.h>

struct jtext {
	char *s; // no terminator before jt_take()
	size_t len, cap;
	bool comma; // the next member needs one before it
};

void jt_open(struct jtext *t, const char *key); // an object
void jt_close(struct jtext *t);
void jt_open_list(struct jtext *t, const char *key);
void jt_close_list(struct jtext *t);
// Bytes that are no UTF-8 become '?'.
void jt_str(struct jtext *t, const char *key, const char *v);
void jt_int(struct jtext *t, const char *key, int64_t v);
void jt_bool(struct jtext *t, const char *key, bool v);
void jt_null(struct jtext *t, const char *key);
void jt_hex(struct jtext *t, const char *key, const void *p, size_t n);
void jt_seconds(struct jtext *t, const char *key, uint64_t ms); // 1.25
// Any value; NULL: an empty object.
void jt_json(struct jtext *t, const char *key, const json_t *v);
// The text, with its end, for free().
char *jt_take(struct jtext *t);

// The other way: the texts of an array (or of nothing), NULL-terminated, for
// free(). They stay the array's.
const char **jt_texts(const json_t *list);

#endif
