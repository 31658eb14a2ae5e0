// A microVM in bare ioctls, for the floors. See docs/KVM.md for the order.
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "floor_kvm.h"

#define DOORBELL 0x7460
enum { READY = 1 };
enum { ZERO_PAGE = 0x7000, TABLES = 0x9000, CMDLINE = 0x20000 };

static int kvm;
static size_t run_len;
static struct {
	struct kvm_cpuid2 head;
	struct kvm_cpuid_entry2 entries[256];
} cpuid;

_Noreturn void die(const char *what)
{
	log_err("%s: %m", what);
	exit(1);
}

void machine_open(struct machine *m, int mem_fd, uint64_t bytes, int map_flags)
{
	struct kvm_enable_cap cap = {.cap = KVM_CAP_SPLIT_IRQCHIP,
				     .args = {24}};
	struct kvm_userspace_memory_region slot = {.memory_size = bytes};

	m->vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (m->vm < 0)
		die("KVM_CREATE_VM");
	m->bytes = bytes;
	m->mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		      map_flags | MAP_NORESERVE, mem_fd, 0);
	if (m->mem == MAP_FAILED)
		die("mapping guest memory");
	slot.userspace_addr = (uint64_t)(uintptr_t)m->mem;
	if (ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, &slot) < 0)
		die("KVM_SET_USER_MEMORY_REGION");
	if (ioctl(m->vm, KVM_ENABLE_CAP, &cap) < 0)
		die("KVM_CAP_SPLIT_IRQCHIP");
	m->vcpu = ioctl(m->vm, KVM_CREATE_VCPU, 0);
	if (m->vcpu < 0)
		die("KVM_CREATE_VCPU");
	m->run =
	    mmap(NULL, run_len, PROT_READ | PROT_WRITE, MAP_SHARED, m->vcpu, 0);
	if (m->run == MAP_FAILED)
		die("mapping kvm_run");
	if (ioctl(m->vcpu, KVM_SET_CPUID2, &cpuid) < 0)
		die("KVM_SET_CPUID2");
}

void machine_close(struct machine *m)
{
	munmap(m->run, run_len);
	close(m->vcpu);
	close(m->vm);
	munmap(m->mem, m->bytes);
}

void machine_run(struct machine *m)
{
	while (ioctl(m->vcpu, KVM_RUN, 0) < 0) {
		if (errno != EINTR && errno != EAGAIN)
			die("KVM_RUN");
	}
	if (m->run->exit_reason != KVM_EXIT_IO) {
		errno = EIO;
		log_err("the guest left with exit reason %u",
			m->run->exit_reason);
		exit(1);
	}
}

static void load_elf(uint8_t *mem, uint64_t bytes, const char *path,
		     uint64_t *entry)
{
	static uint8_t image[1 << 20];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, image, sizeof(image));
	const Elf64_Ehdr *eh = (const void *)image;
	const Elf64_Phdr *ph;

	if (n < (ssize_t)sizeof(*eh))
		die(path);
	close(fd);
	ph = (const void *)(image + eh->e_phoff);
	for (unsigned i = 0; i < eh->e_phnum; i++) {
		if (ph[i].p_type != PT_LOAD)
			continue;
		if (ph[i].p_paddr + ph[i].p_memsz > bytes ||
		    ph[i].p_offset + ph[i].p_filesz > (uint64_t)n) {
			log_err("%s: a segment does not fit", path);
			exit(1);
		}
		memcpy(mem + ph[i].p_paddr, image + ph[i].p_offset,
		       ph[i].p_filesz);
	}
	*entry = eh->e_entry;
}

// Zero page, command line and identity page tables for the 64-bit entry.
static void prepare_boot(uint8_t *mem, uint64_t bytes, const char *cmdline)
{
	uint8_t *bp = mem + ZERO_PAGE;
	uint64_t *pml4 = (void *)(mem + TABLES);
	uint64_t *pdpt = (void *)(mem + TABLES + 4096);
	uint64_t *pd = (void *)(mem + TABLES + 8192);
	uint32_t at = CMDLINE, ram = 1;

	memcpy(mem + CMDLINE, cmdline, strlen(cmdline) + 1);
	memcpy(bp + 0x228, &at, 4);
	bp[0x1e8] = 1;
	memcpy(bp + 0x2d8, &bytes, 8);
	memcpy(bp + 0x2e0, &ram, 4);
	pml4[0] = (TABLES + 4096) | 3;
	pdpt[0] = (TABLES + 8192) | 3;
	for (uint64_t i = 0; i < 512; i++)
		pd[i] = i << 21 | 0x83;
}

static void set_entry(struct machine *m, uint64_t entry)
{
	struct kvm_segment seg = {.limit = ~0u,
				  .selector = 8,
				  .type = 11,
				  .present = 1,
				  .s = 1,
				  .l = 1,
				  .g = 1};
	struct kvm_regs regs = {
	    .rip = entry, .rsi = ZERO_PAGE, .rsp = 0x8000, .rflags = 2};
	struct kvm_sregs sregs;

	if (ioctl(m->vcpu, KVM_GET_SREGS, &sregs) < 0)
		die("KVM_GET_SREGS");
	sregs.cs = seg;
	seg.selector = 16;
	seg.type = 3;
	seg.l = 0;
	seg.db = 1;
	sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = seg;
	sregs.cr3 = TABLES;
	sregs.cr4 = 0x20;
	sregs.cr0 = 0x80000031;
	sregs.efer = 0x500;
	if (ioctl(m->vcpu, KVM_SET_SREGS, &sregs) < 0 ||
	    ioctl(m->vcpu, KVM_SET_REGS, &regs) < 0)
		die("setting the entry registers");
}

void snapshot_make(struct snapshot *s, const char *elf, const char *cmdline)
{
	struct machine box, *m = &box;
	uint64_t entry;
	uint32_t value = 0;

	s->template_fd = memfd_create("floor", MFD_CLOEXEC);
	if (s->template_fd < 0 ||
	    ftruncate(s->template_fd, (off_t)s->bytes) < 0)
		die("making the template");
	machine_open(m, s->template_fd, s->bytes, MAP_SHARED);
	load_elf(m->mem, s->bytes, elf, &entry);
	prepare_boot(m->mem, s->bytes, cmdline);
	set_entry(m, entry);
	while (value != READY) { // console bytes before it are dropped
		machine_run(m);
		if (m->run->io.port == DOORBELL)
			memcpy(&value, (char *)m->run + m->run->io.data_offset,
			       4);
	}
	// Finish the OUT: registers are right only after re-entry.
	m->run->immediate_exit = 1;
	if (ioctl(m->vcpu, KVM_RUN, 0) == 0 || errno != EINTR)
		die("completing the doorbell");
	m->run->immediate_exit = 0;
	if (ioctl(m->vcpu, KVM_GET_REGS, &s->regs) < 0 ||
	    ioctl(m->vcpu, KVM_GET_SREGS, &s->sregs) < 0)
		die("reading the registers");
	machine_close(m);
}

void machine_load(struct machine *m, const struct snapshot *s)
{
	if (ioctl(m->vcpu, KVM_SET_SREGS, &s->sregs) < 0 ||
	    ioctl(m->vcpu, KVM_SET_REGS, &s->regs) < 0)
		die("setting the registers");
}

static void *io_data(const struct machine *m)
{
	return (char *)m->run + m->run->io.data_offset;
}

void machine_mail(struct machine *m, char c)
{
	uint32_t v = (uint8_t)c;

	memcpy(io_data(m), &v, sizeof(v));
}

void machine_ask(struct machine *m, const char *line, char *answer, size_t cap)
{
	const char *next = line;
	size_t n = 0;

	for (;;) {
		bool in;

		machine_run(m);
		if (m->run->io.port != DOORBELL + 4)
			continue;
		in = m->run->io.direction == KVM_EXIT_IO_IN;
		if (in) {
			machine_mail(m, *next ? *next : '\n');
			if (*next)
				next++;
			continue;
		}
		if (*(char *)io_data(m) == '\n')
			break;
		if (n + 1 < cap)
			answer[n++] = *(char *)io_data(m);
	}
	answer[n] = '\0';
}

void floor_kvm_init(void)
{
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		die("/dev/kvm");
	run_len = (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	cpuid.head.nent = ARRAY_SIZE(cpuid.entries);
	if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid) < 0)
		die("KVM_GET_SUPPORTED_CPUID");
}
