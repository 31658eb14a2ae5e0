// A client's WebSocket frames (engine/wsframe.c). The first byte says in what
// pieces the rest comes. Beside not crashing: whatever the pieces were, what was
// said is the same, and after an error nothing is.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "wsframe.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

struct said { // everything that came of it, in one text
	uint8_t *p;
	size_t n, cap;
	unsigned last; // binary pieces of one message join
	int rc;
};

static void add(struct said *s, unsigned op, const uint8_t *p, size_t n)
{
	if (s->n + n + 1 > s->cap)
		abort(); // more was said than came
	if (op != WS_BINARY || s->last != WS_BINARY)
		s->p[s->n++] = (uint8_t)op;
	if (n)
		memcpy(s->p + s->n, p, n);
	s->n += n;
	s->last = op;
}

static struct said read_all(const uint8_t *data, size_t n, size_t step)
{
	struct said s = {.p = malloc(2 * n + 1), .cap = 2 * n + 1};
	uint8_t *copy = malloc(n + 1);
	struct ws_in *in = calloc(1, sizeof(*in));
	struct ws_piece w;

	if (!s.p || !copy || !in)
		abort();
	memcpy(copy, data, n);
	for (size_t at = 0; at < n && s.rc >= 0;) {
		size_t some = MIN(step, n - at), took;

		s.rc = ws_feed(in, copy + at, some, &took, &w);
		if (took > some || (s.rc == 0 && took != some))
			abort();
		at += took;
		if (s.rc > 0)
			add(&s, w.op, w.p, w.n);
		if (s.rc > 0 && w.op != WS_BINARY && w.n > WS_TEXT_MAX)
			abort();
	}
	if (s.rc < 0 && ws_feed(in, copy, n, &n, &w) != s.rc)
		abort();
	free(copy);
	free(in);
	return s;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct said a, b;

	if (!n)
		return 0;
	a = read_all(data + 1, n - 1, n);
	b = read_all(data + 1, n - 1, 1 + data[0] % 16u);
	if ((a.rc < 0 || b.rc < 0 ? a.rc != b.rc : false) || a.n != b.n ||
	    memcmp(a.p, b.p, a.n) != 0)
		abort();
	free(a.p);
	free(b.p);
	return 0;
}
