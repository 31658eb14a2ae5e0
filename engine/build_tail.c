// The last bytes of what a guest wrote. When a build fails, its reason is
// usually there. The guest is hostile: nothing unprintable gets out.
#include <string.h>

#include "build_internal.h"

void build_tail_add(struct build_tail *t, const void *p, size_t n)
{
	const char *s = p;

	if (n >= BUILD_TAIL) {
		s += n - BUILD_TAIL;
		n = BUILD_TAIL;
	}
	if (t->len + n > BUILD_TAIL) {
		size_t drop = t->len + n - BUILD_TAIL;

		memmove(t->buf, t->buf + drop, t->len - drop);
		t->len -= drop;
	}
	memcpy(t->buf + t->len, s, n);
	t->len += n;
}

// Where the last whole lines begin that fit into `room` bytes once each line
// break has become three; in the last line when that alone is too long.
static size_t first_line(const struct build_tail *t, size_t len, size_t room)
{
	size_t from = len;

	while (from > 0) {
		size_t at = from - 1, need;

		while (at > 0 && t->buf[at - 1] != '\n')
			at--;
		need = from - at + 3;
		if (need > room)
			return from == len ? len - MIN(len, room) : from;
		room -= need;
		from = at;
	}
	return from;
}

void build_tail_text(const struct build_tail *t, char *out, size_t cap)
{
	size_t len = t->len, o = 0;

	while (len && (unsigned char)t->buf[len - 1] <= ' ')
		len--;
	for (size_t i = first_line(t, len, cap - 4); i < len && o + 4 < cap;
	     i++) {
		unsigned char c = (unsigned char)t->buf[i];

		if (c == '\n') {
			memcpy(out + o, " | ", 3);
			o += 3;
		} else if (c >= 0x20 && c != 0x7f) {
			out[o++] = (char)c;
		}
	}
	out[o] = '\0';
}
