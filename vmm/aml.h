// A little of AML (ACPI 6.4 chapter 20), enough for the DSDT of this machine.
// Appends to a wire_writer; blocks are opened and closed, and their length is
// patched in the two-byte form, so a block has at most 4095 bytes.
#ifndef THAW_AML_H
#define THAW_AML_H

#include "base.h"

// Names have exactly four characters ("_HID"); a path may begin with '\\'.
size_t aml_scope(struct wire_writer *w, const char *name);
size_t aml_device(struct wire_writer *w, const char *name);
size_t aml_method(struct wire_writer *w, const char *name, uint8_t flags);
size_t aml_package(struct wire_writer *w, uint8_t elements);
void aml_close(struct wire_writer *w, size_t block);

void aml_name(struct wire_writer *w, const char *name); // value follows
void aml_int(struct wire_writer *w, uint32_t v);
void aml_string(struct wire_writer *w, const char *s);
void aml_eisaid(struct wire_writer *w, const char *id); // "PNP0501"
// A 32-bit I/O port region `region` with one field `field` over all of it.
void aml_io_field(struct wire_writer *w, const char *region, const char *field,
		  uint16_t port);
void aml_store_one(struct wire_writer *w, const char *target);
void aml_return(struct wire_writer *w); // value follows
void aml_notify(struct wire_writer *w, const char *path4, uint8_t value);

// Name (_CRS, ...): a resource template is a buffer of descriptors.
struct aml_crs {
	uint8_t buf[64];
	struct wire_writer w;
};
void aml_crs_init(struct aml_crs *c);
void aml_crs_io(struct aml_crs *c, uint16_t port, uint8_t len);
void aml_crs_mem32(struct aml_crs *c, uint32_t base, uint32_t len);
// Edge-triggered, active high, exclusive.
void aml_crs_irq(struct aml_crs *c, uint32_t gsi);
void aml_crs_put(struct wire_writer *w, struct aml_crs *c);

#endif
