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

void build_tail_text(const struct build_tail *t, char *out, size_t cap)
{
	size_t len = t->len, from, o = 0;

	while (len && (unsigned char)t->buf[len - 1] <= ' ')
		len--;
	// Three bytes a line break at most; start at a whole line if one fits.
	from = len > cap / 2 ? len - cap / 2 : 0;
	if (from) {
		const char *nl = memchr(t->buf + from, '\n', len - from);

		if (nl)
			from = (size_t)(nl - t->buf) + 1;
	}
	for (size_t i = from; i < len && o + 4 < cap; i++) {
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
