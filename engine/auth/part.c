#include "auth_internal.h"

#include <string.h>

bool part_cut(struct part *rest, char sep, struct part *out)
{
	const char *p = rest->p, *at = memchr(p, sep, rest->n);
	size_t n = at ? (size_t)(at - p) : rest->n;

	*out = (struct part){p, n};
	*rest = (struct part){p + n + (at != NULL), rest->n - n - (at != NULL)};
	return at != NULL;
}
