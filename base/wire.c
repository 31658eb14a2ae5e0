#include <string.h>

#include "wire.h"

void wire_put_bytes(struct wire_writer *w, const void *p, size_t len)
{
	if (w->len <= w->cap && len <= w->cap - w->len) {
		if (len)
			memcpy(w->buf + w->len, p, len);
	} else {
		w->bad = true;
	}
	w->len += len;
}

void wire_put_u8(struct wire_writer *w, uint8_t v)
{
	wire_put_bytes(w, &v, 1);
}

void wire_put_u16(struct wire_writer *w, uint16_t v)
{
	uint8_t b[2] = {(uint8_t)v, (uint8_t)(v >> 8)};

	wire_put_bytes(w, b, sizeof(b));
}

void wire_put_u32(struct wire_writer *w, uint32_t v)
{
	uint8_t b[4];

	for (int i = 0; i < 4; i++)
		b[i] = (uint8_t)(v >> (8 * i));
	wire_put_bytes(w, b, sizeof(b));
}

void wire_put_u64(struct wire_writer *w, uint64_t v)
{
	uint8_t b[8];

	for (int i = 0; i < 8; i++)
		b[i] = (uint8_t)(v >> (8 * i));
	wire_put_bytes(w, b, sizeof(b));
}

void wire_patch_u32(struct wire_writer *w, size_t at, uint32_t v)
{
	if (at > w->cap || w->cap - at < 4 || at + 4 > w->len) {
		w->bad = true;
		return;
	}
	for (int i = 0; i < 4; i++)
		w->buf[at + (size_t)i] = (uint8_t)(v >> (8 * i));
}

const void *wire_borrow(struct wire_reader *r, size_t len)
{
	const void *p = r->p;

	if (r->bad || len > wire_left(r)) {
		r->bad = true;
		return NULL;
	}
	r->p += len;
	return p;
}

void wire_get_bytes(struct wire_reader *r, void *dst, size_t len)
{
	const void *p = wire_borrow(r, len);

	if (!len)
		return;
	if (p)
		memcpy(dst, p, len);
	else
		memset(dst, 0, len);
}

static uint64_t get_le(struct wire_reader *r, size_t n)
{
	uint8_t b[8];
	uint64_t v = 0;

	wire_get_bytes(r, b, n);
	for (size_t i = 0; i < n; i++)
		v |= (uint64_t)b[i] << (8 * i);
	return v;
}

uint8_t wire_get_u8(struct wire_reader *r)
{
	return (uint8_t)get_le(r, 1);
}

uint16_t wire_get_u16(struct wire_reader *r)
{
	return (uint16_t)get_le(r, 2);
}

uint32_t wire_get_u32(struct wire_reader *r)
{
	return (uint32_t)get_le(r, 4);
}

uint64_t wire_get_u64(struct wire_reader *r)
{
	return get_le(r, 8);
}
