// AML encoding: see aml.h. Numbers in comments are ACPI 6.4 sections.
#include <string.h>

#include "aml.h"

enum {
	OP_ZERO = 0x00,
	OP_ONE = 0x01,
	OP_NAME = 0x08,
	OP_BYTE = 0x0a,
	OP_DWORD = 0x0c,
	OP_STRING = 0x0d,
	OP_SCOPE = 0x10,
	OP_BUFFER = 0x11,
	OP_PACKAGE = 0x12,
	OP_METHOD = 0x14,
	OP_EXT = 0x5b,
	EXT_REGION = 0x80,
	EXT_FIELD = 0x81,
	EXT_DEVICE = 0x82,
	OP_STORE = 0x70,
	OP_NOTIFY = 0x86,
	OP_RETURN = 0xa4,
};

// 20.2.4: two bytes; the low nibble of the length is in the first one.
static size_t open_block(struct wire_writer *w)
{
	size_t at = w->len;

	wire_put_u16(w, 0);
	return at;
}

void aml_close(struct wire_writer *w, size_t block)
{
	size_t len = w->len - block;

	if (len > 0xfff)
		w->bad = true;
	if (w->bad)
		return;
	w->buf[block] = (uint8_t)(0x40 | (len & 0xf));
	w->buf[block + 1] = (uint8_t)(len >> 4);
}

static void put_name(struct wire_writer *w, const char *name)
{
	wire_put_bytes(w, name, strlen(name));
}

size_t aml_scope(struct wire_writer *w, const char *name)
{
	size_t b;

	wire_put_u8(w, OP_SCOPE);
	b = open_block(w);
	put_name(w, name);
	return b;
}

size_t aml_device(struct wire_writer *w, const char *name)
{
	size_t b;

	wire_put_u8(w, OP_EXT);
	wire_put_u8(w, EXT_DEVICE);
	b = open_block(w);
	put_name(w, name);
	return b;
}

size_t aml_method(struct wire_writer *w, const char *name, uint8_t flags)
{
	size_t b;

	wire_put_u8(w, OP_METHOD);
	b = open_block(w);
	put_name(w, name);
	wire_put_u8(w, flags);
	return b;
}

size_t aml_package(struct wire_writer *w, uint8_t elements)
{
	size_t b;

	wire_put_u8(w, OP_PACKAGE);
	b = open_block(w);
	wire_put_u8(w, elements);
	return b;
}

void aml_name(struct wire_writer *w, const char *name)
{
	wire_put_u8(w, OP_NAME);
	put_name(w, name);
}

void aml_int(struct wire_writer *w, uint32_t v)
{
	if (v <= 1) {
		wire_put_u8(w, v ? OP_ONE : OP_ZERO);
	} else if (v <= 0xff) {
		wire_put_u8(w, OP_BYTE);
		wire_put_u8(w, (uint8_t)v);
	} else {
		wire_put_u8(w, OP_DWORD);
		wire_put_u32(w, v);
	}
}

void aml_string(struct wire_writer *w, const char *s)
{
	wire_put_u8(w, OP_STRING);
	wire_put_bytes(w, s, strlen(s) + 1);
}

static unsigned hex(char c)
{
	return (unsigned)(c <= '9' ? c - '0' : c - 'A' + 10);
}

// 19.3.4: three letters of five bits, four hex digits; big-endian.
void aml_eisaid(struct wire_writer *w, const char *id)
{
	unsigned a = (unsigned)(id[0] - 0x40), b = (unsigned)(id[1] - 0x40);
	unsigned c = (unsigned)(id[2] - 0x40);
	unsigned v = a << 10 | b << 5 | c;

	wire_put_u8(w, OP_DWORD);
	wire_put_u8(w, (uint8_t)(v >> 8));
	wire_put_u8(w, (uint8_t)v);
	wire_put_u8(w, (uint8_t)(hex(id[3]) << 4 | hex(id[4])));
	wire_put_u8(w, (uint8_t)(hex(id[5]) << 4 | hex(id[6])));
}

void aml_io_field(struct wire_writer *w, const char *region, const char *field,
		  uint16_t port)
{
	size_t b;

	wire_put_u8(w, OP_EXT);
	wire_put_u8(w, EXT_REGION);
	put_name(w, region);
	wire_put_u8(w, 1); // SystemIO
	aml_int(w, port);
	aml_int(w, 4);
	wire_put_u8(w, OP_EXT);
	wire_put_u8(w, EXT_FIELD);
	b = open_block(w);
	put_name(w, region);
	wire_put_u8(w, 0x03); // DWordAcc, NoLock, Preserve
	put_name(w, field);
	wire_put_u8(w, 32); // bits
	aml_close(w, b);
}

void aml_store_one(struct wire_writer *w, const char *target)
{
	wire_put_u8(w, OP_STORE);
	wire_put_u8(w, OP_ONE);
	put_name(w, target);
}

void aml_return(struct wire_writer *w)
{
	wire_put_u8(w, OP_RETURN);
}

void aml_notify(struct wire_writer *w, const char *path4, uint8_t value)
{
	wire_put_u8(w, OP_NOTIFY);
	put_name(w, path4);
	aml_int(w, value);
}

// --- resource templates (6.4) -----------------------------------------------

void aml_crs_init(struct aml_crs *c)
{
	c->w = wire_writer_of(c->buf, sizeof(c->buf));
}

void aml_crs_io(struct aml_crs *c, uint16_t port, uint8_t len)
{
	wire_put_u8(&c->w, 0x47); // I/O port descriptor
	wire_put_u8(&c->w, 1);	  // 16-bit decode
	wire_put_u16(&c->w, port);
	wire_put_u16(&c->w, port);
	wire_put_u8(&c->w, 1);
	wire_put_u8(&c->w, len);
}

void aml_crs_mem32(struct aml_crs *c, uint32_t base, uint32_t len)
{
	wire_put_u8(&c->w, 0x86); // 32-bit fixed memory range
	wire_put_u16(&c->w, 9);
	wire_put_u8(&c->w, 1); // writable
	wire_put_u32(&c->w, base);
	wire_put_u32(&c->w, len);
}

void aml_crs_irq(struct aml_crs *c, uint32_t gsi)
{
	wire_put_u8(&c->w, 0x89); // extended interrupt
	wire_put_u16(&c->w, 6);
	wire_put_u8(&c->w, 0x03); // consumer, edge, active high, exclusive
	wire_put_u8(&c->w, 1);
	wire_put_u32(&c->w, gsi);
}

void aml_crs_put(struct wire_writer *w, struct aml_crs *c)
{
	size_t b;

	wire_put_u8(&c->w, 0x79); // end tag, checksum not given
	wire_put_u8(&c->w, 0);
	if (c->w.bad)
		w->bad = true;
	aml_name(w, "_CRS");
	wire_put_u8(w, OP_BUFFER);
	b = open_block(w);
	aml_int(w, (uint32_t)c->w.len);
	wire_put_bytes(w, c->buf, MIN(c->w.len, sizeof(c->buf)));
	aml_close(w, b);
}
