// Checked access to guest memory: see guestmem.h.
#include <errno.h>
#include <string.h>

#include "guestmem.h"

#define HIGH_BASE (4ull << 30)

void *gm_ptr(const struct guestmem *gm, vmm_gpa_t gpa, uint64_t len)
{
	uint64_t low = MIN(gm->bytes, VMM_LOW_MAX);
	uint64_t high = gm->bytes - low;

	if (gpa < low) {
		if (len > low - gpa)
			return NULL;
		return gm->base + gpa;
	}
	if (gpa < HIGH_BASE)
		return NULL;
	gpa -= HIGH_BASE;
	if (gpa >= high || len > high - gpa)
		return NULL;
	return gm->base + low + gpa;
}

int gm_read(const struct guestmem *gm, vmm_gpa_t gpa, void *dst, size_t len)
{
	const void *p = gm_ptr(gm, gpa, len);

	if (!p)
		return -EFAULT;
	memcpy(dst, p, len);
	return 0;
}

int gm_write(const struct guestmem *gm, vmm_gpa_t gpa, const void *src,
	     size_t len)
{
	void *p = gm_ptr(gm, gpa, len);

	if (!p)
		return -EFAULT;
	memcpy(p, src, len);
	return 0;
}
