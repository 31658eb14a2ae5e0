// Texts of a stranger's that go into the API's answers.
#include <string.h>

#include "img_internal.h"

// The length of the UTF-8 sequence at p (RFC 3629), 0: none.
static size_t sequence(const unsigned char *p)
{
	unsigned char lo = 0x80, hi = 0xbf;
	size_t n;

	if (p[0] < 0x80)
		return 1;
	if (p[0] < 0xc2 || p[0] > 0xf4)
		return 0;
	n = p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
	if (p[0] == 0xe0)
		lo = 0xa0;
	else if (p[0] == 0xed) // surrogates
		hi = 0x9f;
	else if (p[0] == 0xf0)
		lo = 0x90;
	else if (p[0] == 0xf4)
		hi = 0x8f;
	for (size_t i = 1; i < n; i++, lo = 0x80, hi = 0xbf)
		if (p[i] < lo || p[i] > hi)
			return 0;
	return n;
}

void img_text_mend(char *s)
{
	unsigned char *p = (unsigned char *)s;

	while (*p) {
		size_t n = sequence(p);

		if (!n || (n == 1 && ((*p < 0x20 && *p != '\n' && *p != '\t') ||
				      *p == 0x7f))) {
			*p = '?';
			n = 1;
		}
		p += n;
	}
}
