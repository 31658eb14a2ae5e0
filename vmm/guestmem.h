// Guest memory, by checked address. Guest RAM is one linear reservation; its
// first VMM_LOW_MAX bytes are at GPA 0, the rest at 4 GiB. Every address that
// comes from a guest passes gm_ptr() before it is dereferenced, and a table that
// is judged is copied first: another vCPU can rewrite it at any time.
#ifndef THAW_GUESTMEM_H
#define THAW_GUESTMEM_H

#include "vmm.h"

struct guestmem {
	uint8_t *base;
	uint64_t bytes;
};

// The host address of [gpa, gpa+len), or NULL when any byte of it is not RAM or
// the range crosses the hole. len 0 is valid anywhere in RAM.
void *gm_ptr(const struct guestmem *gm, vmm_gpa_t gpa, uint64_t len);
// Copies; 0 or -EFAULT.
int gm_read(const struct guestmem *gm, vmm_gpa_t gpa, void *dst, size_t len);
int gm_write(const struct guestmem *gm, vmm_gpa_t gpa, const void *src,
	     size_t len);

#endif
