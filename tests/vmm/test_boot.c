// The kernel loaders, on plain memory: what they place where, and that hostile
// images end in an error and never outside of it.
#include <asm/bootparam.h>
#include <criterion/criterion.h>
#include <elf.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "vmm_internal.h"

#define MIB (1ull << 20)
static struct guestmem gm;
static const struct acpi_config acpi = {.vcpus = 1, .vio = {true, true, true}};

// Guest memory between two guard areas: an access outside of it is a SIGSEGV.
static void map_guest(uint64_t bytes)
{
	uint8_t *p = mmap(NULL, bytes + 2 * MIB, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	cr_assert_neq(p, MAP_FAILED);
	cr_assert_eq(mprotect(p + MIB, bytes, PROT_READ | PROT_WRITE), 0);
	gm = (struct guestmem){p + MIB, bytes};
}

static void setup(void)
{
	map_guest(64 * MIB);
}

TestSuite(boot, .init = setup, .timeout = 300);

struct image {
	uint8_t b[16384];
	size_t len;
};

// A small ELF kernel: 0x1000 bytes at 2 MiB, 0x3000 of memory.
static struct image elf_image(void)
{
	struct image im = {.len = 0x2000};
	Elf64_Ehdr h = {
	    .e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, 1},
	    .e_type = ET_EXEC,
	    .e_machine = EM_X86_64,
	    .e_entry = 0x200010,
	    .e_phoff = sizeof(h),
	    .e_phentsize = sizeof(Elf64_Phdr),
	    .e_phnum = 1,
	};
	Elf64_Phdr p = {
	    .p_type = PT_LOAD,
	    .p_offset = 0x1000,
	    .p_paddr = 0x200000,
	    .p_filesz = 0x1000,
	    .p_memsz = 0x3000,
	};

	memcpy(im.b, &h, sizeof(h));
	memcpy(im.b + sizeof(h), &p, sizeof(p));
	memset(im.b + 0x1000, 0xab, 0x1000);
	return im;
}

// A small bzImage: protocol 2.15, one setup sector, code wanted at 16 MiB.
static struct image bz_image(void)
{
	struct image im = {.len = 0x2000};
	struct setup_header h = {
	    .setup_sects = 1,
	    .boot_flag = 0xaa55,
	    .jump = 0x6aeb,
	    .header = 0x53726448,
	    .version = 0x20f,
	    .loadflags = LOADED_HIGH,
	    .initrd_addr_max = 0x7fffffff,
	    .kernel_alignment = 0x200000,
	    .relocatable_kernel = 1,
	    .xloadflags = XLF_KERNEL_64,
	    .cmdline_size = 2047,
	    .pref_address = 0x1000000,
	    .init_size = 0x100000,
	};

	memcpy(im.b + 0x1f1, &h, sizeof(h));
	memset(im.b + 0x400, 0xcd, im.len - 0x400);
	return im;
}

static int load(const struct image *im, const struct vmm_boot *more,
		uint64_t *entry, struct err *e)
{
	struct vmm_boot b = more ? *more : (struct vmm_boot){.cmdline = "x"};
	uint64_t dummy;

	b.kernel = im->b;
	b.kernel_len = im->len;
	return boot_load(&gm, &b, &acpi, entry ? entry : &dummy, e);
}

static struct boot_params *params(void)
{
	return (struct boot_params *)(gm.base + 0x7000);
}

Test(boot, elf)
{
	struct image im = elf_image();
	struct err e = ERR_INIT;
	uint64_t entry = 0;

	memset(gm.base + 0x200000, 0xff, 0x3000);
	cr_assert_eq(load(&im, NULL, &entry, &e), 0, "%s", e.msg);
	cr_assert_eq(entry, 0x200010);
	cr_assert_eq(gm.base[0x200000], 0xab);
	cr_assert_eq(gm.base[0x200fff], 0xab);
	cr_assert_eq(gm.base[0x201000], 0, "bss is cleared");
	cr_assert_eq(gm.base[0x202fff], 0);
	cr_assert_arr_eq(gm.base + VMM_ACPI_BASE, "RSD PTR ", 8);
	cr_assert_eq(params()->acpi_rsdp_addr, VMM_ACPI_BASE);
	cr_assert_eq(params()->hdr.header, 0x53726448);
	cr_assert_str_eq((char *)gm.base + params()->hdr.cmd_line_ptr, "x");
	// The identity map: its last entry, and that ring 0 alone may use it.
	cr_assert_eq(*(uint64_t *)(gm.base + 0xb000 + 2047 * 8),
		     2047ull << 21 | 0x83);
}

Test(boot, bzimage)
{
	struct image im = bz_image();
	struct err e = ERR_INIT;
	uint64_t entry = 0;

	cr_assert_eq(load(&im, NULL, &entry, &e), 0, "%s", e.msg);
	cr_assert_eq(entry, 0x1000200);
	cr_assert_eq(gm.base[0x1000000], 0xcd);
	cr_assert_eq(gm.base[0x1000000 + im.len - 0x401], 0xcd);
	cr_assert_eq(params()->hdr.type_of_loader, 0xff);
	cr_assert_eq(params()->hdr.init_size, 0x100000);
}

Test(boot, initrd_is_high_and_aligned)
{
	struct image im = bz_image();
	struct err e = ERR_INIT;
	static uint8_t rd[5000];
	struct vmm_boot b = {.initrd = rd, .initrd_len = sizeof(rd)};

	memset(rd, 0x77, sizeof(rd));
	cr_assert_eq(load(&im, &b, NULL, &e), 0, "%s", e.msg);
	cr_assert_eq(params()->hdr.ramdisk_image, 64 * MIB - 8192);
	cr_assert_eq(params()->hdr.ramdisk_size, sizeof(rd));
	cr_assert_eq(gm.base[64 * MIB - 8192 + 4999], 0x77);
	// Not into the range where the kernel unpacks itself.
	b.initrd_len = 50 * MIB;
	b.initrd = calloc(1, b.initrd_len);
	cr_assert_eq(load(&im, &b, NULL, &e), -E2BIG);
	b.initrd_len = 65 * MIB;
	cr_assert_eq(load(&im, &b, NULL, &e), -E2BIG);
	free((void *)b.initrd);
}

Test(boot, e820_has_the_hole)
{
	struct image im = elf_image();
	struct err e = ERR_INIT;
	struct boot_params *bp;

	map_guest(4096 * MIB);
	cr_assert_eq(load(&im, NULL, NULL, &e), 0, "%s", e.msg);
	bp = params();
	cr_assert_eq(bp->e820_entries, 4);
	cr_assert_eq(bp->e820_table[1].type, 2);
	cr_assert_eq(bp->e820_table[1].addr, 0x9fc00);
	cr_assert_eq(bp->e820_table[2].addr + bp->e820_table[2].size,
		     VMM_LOW_MAX);
	cr_assert_eq(bp->e820_table[3].addr, 4ull << 30);
	cr_assert_eq(bp->e820_table[3].size, 1ull << 30);
}

Test(boot, cmdline_limits)
{
	struct image im = elf_image();
	struct err e = ERR_INIT;
	static char text[4096];
	struct vmm_boot b = {.cmdline = text};

	memset(text, 'a', 2047);
	cr_assert_eq(load(&im, &b, NULL, &e), 0);
	text[2047] = 'a';
	cr_assert_eq(load(&im, &b, NULL, &e), -E2BIG);
	b.cmdline = NULL;
	cr_assert_eq(load(&im, &b, NULL, &e), 0);
	cr_assert_eq(gm.base[0x20000], 0);
}

Test(boot, other_formats)
{
	struct image im = {.len = 4096};
	struct err e = ERR_INIT;

	cr_assert_eq(load(&im, NULL, NULL, &e), -ENOEXEC);
	im.len = 0;
	cr_assert_eq(load(&im, NULL, NULL, &e), -ENOEXEC);
	im = elf_image();
	im.b[18] = EM_386;
	cr_assert_eq(load(&im, NULL, NULL, &e), -ENOEXEC);
	im = bz_image();
	im.b[0x236] = 0; // xloadflags: no 64-bit entry
	cr_assert_eq(load(&im, NULL, NULL, &e), -ENOTSUP);
}

Test(boot, elf_bad_numbers)
{
	static const uint64_t bad[] = {0,
				       1,
				       0xfff,
				       0x1001,
				       0xffff,
				       64 * MIB,
				       64 * MIB - 0x2fff,
				       1ull << 31,
				       3ull << 30,
				       1ull << 32,
				       1ull << 63,
				       UINT64_MAX - 0xfff,
				       UINT64_MAX};
	const size_t field[] = {
	    offsetof(Elf64_Ehdr, e_entry),
	    offsetof(Elf64_Ehdr, e_phoff),
	    sizeof(Elf64_Ehdr) + offsetof(Elf64_Phdr, p_offset),
	    sizeof(Elf64_Ehdr) + offsetof(Elf64_Phdr, p_paddr),
	    sizeof(Elf64_Ehdr) + offsetof(Elf64_Phdr, p_filesz),
	    sizeof(Elf64_Ehdr) + offsetof(Elf64_Phdr, p_memsz),
	};
	struct err e = ERR_INIT;
	unsigned refused = 0;

	for (unsigned f = 0; f < ARRAY_SIZE(field); f++)
		for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
			struct image im = elf_image();
			int rc;

			memcpy(im.b + field[f], &bad[i], 8);
			rc = load(&im, NULL, NULL, &e);
			cr_assert(rc == 0 || rc == -EINVAL || rc == -E2BIG,
				  "field %u value %#llx: %d", f,
				  (unsigned long long)bad[i], rc);
			refused += rc != 0;
		}
	// Few of them are possible: smaller sizes and offsets inside the file,
	// and other places in memory that hold the entry.
	cr_assert_geq(refused, 60);
}

Test(boot, elf_cut_anywhere)
{
	struct image im = elf_image();
	struct err e = ERR_INIT;
	size_t whole = im.len;

	for (im.len = 4; im.len < whole; im.len += im.len < 200 ? 1 : 61)
		cr_assert_lt(load(&im, NULL, NULL, &e), 0, "%zu", im.len);
}

Test(boot, bzimage_cut_anywhere)
{
	struct image im = bz_image();
	struct err e = ERR_INIT;

	for (im.len = 0; im.len <= 0x400 + 0x200; im.len++)
		cr_assert_lt(load(&im, NULL, NULL, &e), 0, "%zu", im.len);
}

// Every byte of the headers, with values that break arithmetic. The guards
// around guest memory and the sanitizers see what the assertion cannot.
static void mutate(struct image (*make)(void), size_t from, size_t to)
{
	static const uint8_t v[] = {0x00, 0x01, 0x7f, 0x80, 0xff};
	struct err e = ERR_INIT;

	for (size_t at = from; at < to; at++)
		for (unsigned i = 0; i < ARRAY_SIZE(v); i++) {
			struct image im = make();
			int rc;

			im.b[at] = v[i];
			rc = load(&im, NULL, NULL, &e);
			cr_assert(rc == 0 || rc == -EINVAL || rc == -E2BIG ||
				      rc == -ENOEXEC || rc == -ENOTSUP,
				  "byte %zu = %#x: %d", at, v[i], rc);
		}
}

Test(boot, elf_mutated)
{
	mutate(elf_image, 0, sizeof(Elf64_Ehdr) + sizeof(Elf64_Phdr));
}

Test(boot, bzimage_mutated)
{
	mutate(bz_image, 0x1f1, 0x1f1 + sizeof(struct setup_header));
}
