// base64url as JOSE uses it. The decoder takes exactly what the encoder makes.
#include "auth_internal.h"

#include <errno.h>

static const char alphabet[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

void b64url_encode(char *dst, const void *src, size_t n)
{
	const uint8_t *p = src;
	uint32_t bits = 0;
	unsigned have = 0;

	for (size_t i = 0; i < n; i++) {
		bits = bits << 8 | p[i];
		for (have += 8; have >= 6; have -= 6)
			*dst++ = alphabet[bits >> (have - 6) & 63];
	}
	if (have)
		*dst = alphabet[bits << (6 - have) & 63];
}

static int digit(char c)
{
	if (c >= 'A' && c <= 'Z')
		return c - 'A';
	if (c >= 'a' && c <= 'z')
		return c - 'a' + 26;
	if (c >= '0' && c <= '9')
		return c - '0' + 52;
	return c == '-' ? 62 : c == '_' ? 63 : -1;
}

ssize_t b64url_decode(uint8_t *dst, const char *src, size_t n)
{
	uint32_t bits = 0;
	unsigned have = 0;
	ssize_t len = 0;

	if (n % 4 == 1)
		return -EINVAL;
	for (size_t i = 0; i < n; i++) {
		int v = digit(src[i]);

		if (v < 0)
			return -EINVAL;
		bits = (bits << 6 | (uint32_t)v) & 0x3fff;
		have += 6;
		if (have < 8)
			continue;
		have -= 8;
		dst[len++] = (uint8_t)(bits >> have);
	}
	return bits & ((1u << have) - 1) ? -EINVAL : len;
}
