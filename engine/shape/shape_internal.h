// Of shape/ only.
#ifndef THAW_SHAPE_INTERNAL_H
#define THAW_SHAPE_INTERNAL_H

#include "shape.h"

// Where a value is, for sentences: "allowedPorts[1].range.startPort".
struct shape_at {
	const struct shape_at *up;
	const char *name; // of a member or a map's key; NULL: `index`
	size_t index;
};

// "Value at 'path' failed to satisfy constraint: ...", -EINVAL.
int shape_bad(struct err *e, const struct shape_at *at, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
// NULL at the root.
int shape_walk(const struct shape *s, json_t *v, const struct shape_at *at,
	       struct err *e);
static inline const char *shape_wire(const struct shape_member *m)
{
	return m->wire ? m->wire : m->name;
}

// Decodes one character of valid UTF-8 and goes on past it; 0 at the end.
uint32_t shape_next_char(const char **s);

// Unicode's general categories L, Z and N (unicode.c).
struct shape_range {
	uint32_t lo, hi;
};
extern const struct shape_range shape_letters[], shape_separators[],
    shape_numbers[];
extern const size_t shape_nletters, shape_nseparators, shape_nnumbers;

#endif
