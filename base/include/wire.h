// Little-endian cursors with sticky errors: read or write a whole record, then
// check `bad` once. Reads past the end give zero; writes past the end are
// dropped but still counted, so a writer with cap 0 measures a record.
#ifndef THAW_WIRE_H
#define THAW_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct wire_writer {
	uint8_t *buf;
	size_t cap, len; // len may exceed cap: then bad is set
	bool bad;
};

struct wire_reader {
	const uint8_t *p, *end;
	bool bad;
};

static inline struct wire_writer wire_writer_of(void *buf, size_t cap)
{
	return (struct wire_writer){buf, cap, 0, false};
}

static inline struct wire_reader wire_reader_of(const void *buf, size_t len)
{
	return (struct wire_reader){buf, (const uint8_t *)buf + len, false};
}

void wire_put_u8(struct wire_writer *w, uint8_t v);
void wire_put_u16(struct wire_writer *w, uint16_t v);
void wire_put_u32(struct wire_writer *w, uint32_t v);
void wire_put_u64(struct wire_writer *w, uint64_t v);
void wire_put_bytes(struct wire_writer *w, const void *p, size_t len);
// Overwrites four bytes already written at `at` (for lengths known late).
void wire_patch_u32(struct wire_writer *w, size_t at, uint32_t v);

uint8_t wire_get_u8(struct wire_reader *r);
uint16_t wire_get_u16(struct wire_reader *r);
uint32_t wire_get_u32(struct wire_reader *r);
uint64_t wire_get_u64(struct wire_reader *r);
// Copies `len` bytes to dst; on a short input dst is zeroed and bad is set.
void wire_get_bytes(struct wire_reader *r, void *dst, size_t len);
// Borrows `len` bytes in place, or NULL (and bad) when there are fewer.
const void *wire_borrow(struct wire_reader *r, size_t len);

static inline size_t wire_left(const struct wire_reader *r)
{
	return (size_t)(r->end - r->p);
}

#endif
