// bzImage kernels with a 64-bit entry (boot protocol 2.12 and newer): the part
// after the real-mode setup code is copied to its preferred address and entered
// 0x200 bytes into it; it unpacks itself within init_size bytes from there.
// Every number of the file is hostile. Linux Documentation/arch/x86/boot.rst.
#include <asm/bootparam.h>
#include <errno.h>
#include <string.h>

#include "vmm_internal.h"

_Static_assert(sizeof(((struct boot_image *)0)->hdr) >=
		   sizeof(struct setup_header),
	       "room for the setup header");

enum { HDR_OFF = 0x1f1, ENTRY_64 = 0x200, LOWEST = 0x100000 };

// The header says its own length: 0x202 + the byte at 0x201.
static int read_header(const uint8_t *img, size_t len, struct setup_header *h,
		       struct err *e)
{
	size_t end;

	if (len < 0x202)
		return err_set(e, -EINVAL, "the kernel's file is cut off");
	end = 0x202u + img[0x201];
	if (end > len || end <= HDR_OFF)
		return err_set(e, -EINVAL, "the setup header is malformed");
	memset(h, 0, sizeof(*h));
	memcpy(h, img + HDR_OFF, MIN(end - HDR_OFF, sizeof(*h)));
	if (h->boot_flag != 0xaa55 || h->header != 0x53726448)
		return err_set(e, -ENOEXEC, "the kernel is not a bzImage");
	if (h->version < 0x20c || !(h->xloadflags & XLF_KERNEL_64))
		return err_set(e, -ENOTSUP,
			       "the kernel has no 64-bit entry (boot protocol "
			       "%u.%02u)",
			       h->version >> 8, h->version & 0xff);
	return 0;
}

int boot_bzimage_load(struct guestmem *gm, const void *img, size_t len,
		      struct boot_image *out, struct err *e)
{
	const uint8_t *p = img;
	struct setup_header h;
	uint64_t load, span;
	size_t setup, size;
	int rc = read_header(p, len, &h, e);

	if (rc)
		return rc;
	setup = ((h.setup_sects ? h.setup_sects : 4u) + 1u) * 512u;
	if (setup >= len || len - setup <= ENTRY_64)
		return err_set(e, -EINVAL, "the kernel's file is cut off");
	size = len - setup;
	load = h.pref_address;
	if (load < LOWEST || load % 4096)
		return err_set(e, -EINVAL,
			       "the kernel's preferred address is malformed");
	span = MAX((uint64_t)h.init_size, (uint64_t)size);
	if (load > VMM_LOW_MAX || !gm_ptr(gm, load, span))
		return err_set(
		    e, -E2BIG,
		    "the kernel needs memory up to %llu MiB, there "
		    "are %llu",
		    (unsigned long long)((load >> 20) + (span >> 20)),
		    (unsigned long long)(gm->bytes >> 20));
	rc = gm_write(gm, load, p + setup, size);
	if (rc)
		return err_set(e, rc, "loading the kernel");
	out->entry = load + ENTRY_64;
	out->lo = load;
	out->hi = load + span;
	out->initrd_max = h.initrd_addr_max ? h.initrd_addr_max : 0x37ffffff;
	out->cmdline_max = h.cmdline_size ? h.cmdline_size : 255;
	memcpy(out->hdr, &h, sizeof(h));
	out->hdr_len = sizeof(h);
	return 0;
}
