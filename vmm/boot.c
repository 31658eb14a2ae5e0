// First boot: what a boot loader would have left in memory.
//
// Below 1 MiB, in guest-physical addresses:
//   0x0500  GDT             0x7000  boot parameters ("zero page")
//   0x9000  PML4, PDPT, 4 page directories: identity map of 4 GiB, 2 MiB pages
//   0x20000 command line    0xe0000 ACPI tables    0xf0000 VM generation id
//   0xffff0 reset vector
// The kernel goes where it asks, above 1 MiB; the initrd as high as it may.
// Linux Documentation/arch/x86/boot.rst, "64-bit boot protocol".
#include <asm/bootparam.h>
#include <errno.h>
#include <string.h>

#include "vmm_internal.h"

enum {
	GDT_GPA = 0x500,
	ZERO_PAGE_GPA = 0x7000,
	PML4_GPA = 0x9000,
	PDPT_GPA = 0xa000,
	PD_GPA = 0xb000, // four pages
	CMDLINE_GPA = 0x20000,
	CMDLINE_MAX = 0x10000,
	LOW_RAM_END = 0x9fc00,
	RESET_VECTOR_GPA = 0xffff0,
	HIGH_RAM_START = 0x100000,
};

static int put_tables(struct guestmem *gm)
{
	static const uint64_t gdt[6] = {
	    0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00008b0000000067, 0,
	};
	uint64_t *pml4 = gm_ptr(gm, PML4_GPA, 4096);
	uint64_t *pdpt = gm_ptr(gm, PDPT_GPA, 4096);
	uint64_t *pd = gm_ptr(gm, PD_GPA, 4 * 4096);

	if (!pml4 || !pdpt || !pd)
		return -EFAULT;
	memset(pml4, 0, 4096);
	memset(pdpt, 0, 4096);
	pml4[0] = PDPT_GPA | 3; // present, writable
	for (uint64_t i = 0; i < 4; i++)
		pdpt[i] = (PD_GPA + i * 4096) | 3;
	for (uint64_t i = 0; i < 4 * 512; i++)
		pd[i] = i << 21 | 0x83; // and a 2 MiB page
	return gm_write(gm, GDT_GPA, gdt, sizeof(gdt));
}

static void e820_add(struct boot_params *bp, uint64_t addr, uint64_t end,
		     uint32_t type)
{
	struct boot_e820_entry *x;

	if (end <= addr)
		return;
	x = &bp->e820_table[bp->e820_entries++];
	x->addr = addr;
	x->size = end - addr;
	x->type = type;
}

static void put_e820(struct boot_params *bp, const struct guestmem *gm)
{
	uint64_t low = MIN(gm->bytes, VMM_LOW_MAX);

	e820_add(bp, 0, LOW_RAM_END, 1);
	e820_add(bp, LOW_RAM_END, HIGH_RAM_START, 2);
	e820_add(bp, HIGH_RAM_START, low, 1);
	if (gm->bytes > low)
		e820_add(bp, VMM_HIGH_BASE, VMM_HIGH_BASE + gm->bytes - low, 1);
}

// The initrd goes under the lowest of: end of low RAM, the kernel's limit; and
// may not touch the range that the kernel unpacks itself into.
static int place_initrd(struct guestmem *gm, const struct vmm_boot *b,
			const struct boot_image *img, struct boot_params *bp,
			struct err *e)
{
	uint64_t top = MIN(MIN(gm->bytes, VMM_LOW_MAX), img->initrd_max + 1);
	uint64_t at;

	if (!b->initrd || b->initrd_len == 0)
		return 0;
	if (b->initrd_len > top)
		return err_set(e, -E2BIG, "the initrd does not fit in memory");
	at = ALIGN_DOWN(top - b->initrd_len, 4096ull);
	if (at < img->hi)
		return err_set(e, -E2BIG,
			       "kernel and initrd (%zu MiB) do not fit in "
			       "%llu MiB of memory",
			       b->initrd_len >> 20,
			       (unsigned long long)(gm->bytes >> 20));
	if (gm_write(gm, at, b->initrd, b->initrd_len))
		return err_set(e, -E2BIG, "the initrd does not fit in memory");
	bp->hdr.ramdisk_image = (uint32_t)at;
	bp->hdr.ramdisk_size = (uint32_t)b->initrd_len;
	return 0;
}

static int put_cmdline(struct guestmem *gm, const struct vmm_boot *b,
		       const struct boot_image *img, struct boot_params *bp,
		       struct err *e)
{
	const char *text = b->cmdline ? b->cmdline : "";
	size_t max = MIN(img->cmdline_max, (uint32_t)CMDLINE_MAX - 1);
	size_t len = strlen(text);

	if (len > max)
		return err_set(e, -E2BIG,
			       "the command line has %zu bytes, the kernel "
			       "takes %zu",
			       len, max);
	bp->hdr.cmd_line_ptr = CMDLINE_GPA;
	bp->hdr.cmdline_size = (uint32_t)max;
	return gm_write(gm, CMDLINE_GPA, text, len + 1);
}

// With hardware-reduced ACPI Linux expects EFI to reset the machine, and
// without EFI it jumps to the BIOS's reset vector in real mode. So there is
// one: it writes the reset register (mov dx, port; mov al, value; out dx, al;
// 1: hlt; jmp 1b).
static int put_reset_vector(struct guestmem *gm)
{
	static const uint8_t code[] = {
	    0xba,
	    VMM_PORT_RESET & 0xff,
	    VMM_PORT_RESET >> 8,
	    0xb0,
	    VMM_RESET_VALUE,
	    0xee,
	    0xf4,
	    0xeb,
	    0xfd,
	};

	return gm_write(gm, RESET_VECTOR_GPA, code, sizeof(code));
}

static int put_acpi(struct guestmem *gm, const struct acpi_config *cfg,
		    struct err *e)
{
	cleanup_free uint8_t *buf = calloc(1, VMM_ACPI_MAX);
	int len;

	if (!buf)
		return err_set(e, -ENOMEM, "no memory for the ACPI tables");
	len = acpi_build(buf, cfg);
	if (len < 0)
		return err_set(e, len, "the ACPI tables do not fit");
	return gm_write(gm, VMM_ACPI_BASE, buf, (size_t)len);
}

static int load_image(struct guestmem *gm, const struct vmm_boot *b,
		      struct boot_image *img, struct err *e)
{
	const uint8_t *k = b->kernel;

	if (k && b->kernel_len >= 4 && memcmp(k, "\177ELF", 4) == 0)
		return boot_elf_load(gm, k, b->kernel_len, img, e);
	if (k && b->kernel_len >= 0x206 && memcmp(k + 0x202, "HdrS", 4) == 0)
		return boot_bzimage_load(gm, k, b->kernel_len, img, e);
	return err_set(e, -ENOEXEC,
		       "the kernel is neither an ELF file nor a bzImage");
}

int boot_load(struct guestmem *gm, const struct vmm_boot *b,
	      const struct acpi_config *acpi, uint64_t *entry, struct err *e)
{
	struct boot_image img = {0};
	cleanup_free struct boot_params *bp = calloc(1, sizeof(*bp));
	int rc;

	if (!bp)
		return err_set(e, -ENOMEM, "no memory for boot parameters");
	rc = load_image(gm, b, &img, e);
	if (rc)
		return rc;
	memcpy(&bp->hdr, img.hdr, MIN(img.hdr_len, sizeof(bp->hdr)));
	bp->hdr.type_of_loader = 0xff;
	bp->acpi_rsdp_addr = VMM_ACPI_BASE;
	put_e820(bp, gm);
	rc = place_initrd(gm, b, &img, bp, e);
	if (rc == 0)
		rc = put_cmdline(gm, b, &img, bp, e);
	if (rc == 0)
		rc = put_acpi(gm, acpi, e);
	if (rc == 0)
		rc = put_reset_vector(gm);
	if (rc == 0)
		rc = put_tables(gm);
	if (rc == 0)
		rc = gm_write(gm, ZERO_PAGE_GPA, bp, sizeof(*bp));
	if (rc == 0) {
		uint8_t *id = gm_ptr(gm, VMM_GENID_GPA, 4096);

		util_random(id, 16);
		*entry = img.entry;
	}
	return rc;
}
