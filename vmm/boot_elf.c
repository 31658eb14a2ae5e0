// ELF kernels: a vmlinux, whose entry is startup_64 by its physical address, or
// any static 64-bit program linked to run at physical addresses from 1 MiB.
// Every number of the file is hostile.
#include <asm/bootparam.h>
#include <elf.h>
#include <errno.h>
#include <string.h>

#include "vmm_internal.h"

enum { PHNUM_MAX = 64, LOWEST = 0x100000 };

static int header_check(const Elf64_Ehdr *h, size_t len, struct err *e)
{
	if (h->e_ident[EI_CLASS] != ELFCLASS64 ||
	    h->e_ident[EI_DATA] != ELFDATA2LSB || h->e_machine != EM_X86_64 ||
	    (h->e_type != ET_EXEC && h->e_type != ET_DYN))
		return err_set(e, -ENOEXEC,
			       "the kernel is not an x86-64 ELF executable");
	if (h->e_phentsize != sizeof(Elf64_Phdr) || h->e_phnum == 0 ||
	    h->e_phnum > PHNUM_MAX || h->e_phoff > len ||
	    h->e_phnum * sizeof(Elf64_Phdr) > len - h->e_phoff)
		return err_set(e, -EINVAL,
			       "the kernel's program headers are malformed");
	return 0;
}

static int load_segment(struct guestmem *gm, const uint8_t *img, size_t len,
			const Elf64_Phdr *p, struct boot_image *out,
			struct err *e)
{
	uint8_t *dst;

	if (p->p_offset > len || p->p_filesz > len - p->p_offset ||
	    p->p_filesz > p->p_memsz)
		return err_set(e, -EINVAL,
			       "a segment of the kernel lies outside its file");
	if (p->p_paddr < LOWEST)
		return err_set(e, -EINVAL,
			       "a segment of the kernel lies below 1 MiB");
	if (p->p_memsz > VMM_LOW_MAX || p->p_paddr > VMM_LOW_MAX)
		return err_set(e, -E2BIG,
			       "a segment of the kernel lies above 3 GiB");
	dst = gm_ptr(gm, p->p_paddr, p->p_memsz);
	if (!dst)
		return err_set(e, -E2BIG,
			       "the kernel does not fit in %llu MiB of memory",
			       (unsigned long long)(gm->bytes >> 20));
	memcpy(dst, img + p->p_offset, p->p_filesz);
	memset(dst + p->p_filesz, 0, p->p_memsz - p->p_filesz);
	out->lo = MIN(out->lo, p->p_paddr);
	out->hi = MAX(out->hi, p->p_paddr + p->p_memsz);
	return 0;
}

int boot_elf_load(struct guestmem *gm, const void *img, size_t len,
		  struct boot_image *out, struct err *e)
{
	struct setup_header hdr = {
	    .boot_flag = 0xaa55,
	    .header = 0x53726448, // "HdrS"
	    .version = 0x20f,
	    .loadflags = LOADED_HIGH,
	    .kernel_alignment = 0x1000000,
	};
	Elf64_Ehdr h;
	bool loaded = false;
	int rc;

	if (len < sizeof(h))
		return err_set(e, -EINVAL, "the kernel's file is cut off");
	memcpy(&h, img, sizeof(h));
	rc = header_check(&h, len, e);
	if (rc)
		return rc;
	out->lo = UINT64_MAX;
	out->hi = 0;
	for (unsigned i = 0; i < h.e_phnum; i++) {
		Elf64_Phdr p;

		memcpy(&p, (const uint8_t *)img + h.e_phoff + i * sizeof(p),
		       sizeof(p));
		if (p.p_type != PT_LOAD || p.p_memsz == 0)
			continue;
		rc = load_segment(gm, img, len, &p, out, e);
		if (rc)
			return rc;
		loaded = true;
	}
	if (!loaded || h.e_entry < out->lo || h.e_entry >= out->hi)
		return err_set(e, -EINVAL,
			       "the kernel's entry lies outside its segments");
	out->entry = h.e_entry;
	out->initrd_max = 0x7fffffff;
	out->cmdline_max = 2047; // COMMAND_LINE_SIZE of x86, less the NUL
	memcpy(out->hdr, &hdr, sizeof(hdr));
	out->hdr_len = sizeof(hdr);
	return 0;
}
