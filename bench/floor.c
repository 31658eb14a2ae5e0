// thaw-bench-floor: what restoring the ring-3 guest costs in bare ioctls.
//
// The floor that thaw's restores are compared with: no cells, no page store, no
// protocol. It boots the guest once, keeps its memory as a memfd (the template)
// and its registers in variables, and then, for each byte that arrives on its
// standard input, restores it with the fastest order of ioctls that we know
// (docs/KVM.md): VM, one memory slot over a private mapping of the template,
// split irqchip, vCPU, CPUID, registers, KVM_RUN until the first exit. It answers
// with the CLOCK_MONOTONIC nanoseconds of that exit, eight bytes, little-endian,
// after it has torn the VM down again.
//
// The clock starts in the client, right before it writes the byte; so the floor
// pays for one wake-up of a waiting thread, as every server does.
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "base.h"

#define DOORBELL 0x7460
enum { ZERO_PAGE = 0x7000, TABLES = 0x9000, CMDLINE = 0x20000 };

struct machine {
	int vm, vcpu;
	struct kvm_run *run;
	size_t run_len;
	void *mem;
};

struct snapshot {
	int template_fd;
	uint64_t bytes;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
};

static int kvm;
static struct {
	struct kvm_cpuid2 head;
	struct kvm_cpuid_entry2 entries[256];
} cpuid;

static void die(const char *what)
{
	log_err("%s: %m", what);
	exit(1);
}

static void machine_open(struct machine *m, int mem_fd, uint64_t bytes,
			 int map_flags)
{
	struct kvm_enable_cap cap = {.cap = KVM_CAP_SPLIT_IRQCHIP,
				     .args = {24}};
	struct kvm_userspace_memory_region slot = {.memory_size = bytes};

	m->vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (m->vm < 0)
		die("KVM_CREATE_VM");
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
	m->run = mmap(NULL, m->run_len, PROT_READ | PROT_WRITE, MAP_SHARED,
		      m->vcpu, 0);
	if (m->run == MAP_FAILED)
		die("mapping kvm_run");
	if (ioctl(m->vcpu, KVM_SET_CPUID2, &cpuid) < 0)
		die("KVM_SET_CPUID2");
}

static void machine_close(struct machine *m, uint64_t bytes)
{
	munmap(m->run, m->run_len);
	close(m->vcpu);
	close(m->vm);
	munmap(m->mem, bytes);
}

// Runs until the guest leaves on a port; dies on anything else.
static void machine_run(struct machine *m)
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
	struct kvm_segment seg = {.limit = ~0u, .selector = 8, .type = 11,
				  .present = 1, .s = 1, .l = 1, .g = 1};
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

// Boots the guest to READY and keeps what a restore needs.
static void make_snapshot(struct snapshot *s, struct machine *m,
			  const char *elf, const char *cmdline)
{
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
	while (value != 1) { // READY; console bytes before it are dropped
		machine_run(m);
		if (m->run->io.port == DOORBELL)
			memcpy(&value,
			       (char *)m->run + m->run->io.data_offset, 4);
	}
	// Finish the OUT: registers are right only after re-entry.
	m->run->immediate_exit = 1;
	if (ioctl(m->vcpu, KVM_RUN, 0) == 0 || errno != EINTR)
		die("completing the doorbell");
	m->run->immediate_exit = 0;
	if (ioctl(m->vcpu, KVM_GET_REGS, &s->regs) < 0 ||
	    ioctl(m->vcpu, KVM_GET_SREGS, &s->sregs) < 0)
		die("reading the registers");
	machine_close(m, s->bytes);
}

static uint64_t restore_once(const struct snapshot *s, struct machine *m)
{
	uint64_t t;

	machine_open(m, s->template_fd, s->bytes, MAP_PRIVATE);
	if (ioctl(m->vcpu, KVM_SET_SREGS, &s->sregs) < 0 ||
	    ioctl(m->vcpu, KVM_SET_REGS, &s->regs) < 0)
		die("setting the registers");
	machine_run(m);
	t = util_now_ns();
	machine_close(m, s->bytes);
	return t;
}

int main(int argc, char **argv)
{
	struct machine m = {0};
	struct snapshot s;
	char byte;

	log_init("thaw-bench-floor", LOG_LVL_INFO);
	if (argc != 4 || util_parse_size(argv[2], &s.bytes)) {
		fprintf(stderr, "usage: thaw-bench-floor ELF MEMORY CMDLINE\n"
				"Serves thaw-bench: one restore for each byte "
				"on standard input.\n");
		return 2;
	}
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		die("/dev/kvm");
	m.run_len = (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	cpuid.head.nent = ARRAY_SIZE(cpuid.entries);
	if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid) < 0)
		die("KVM_GET_SUPPORTED_CPUID");
	make_snapshot(&s, &m, argv[1], argv[3]);
	while (util_read_all(STDIN_FILENO, &byte, 1) == 0) {
		uint64_t t = restore_once(&s, &m);

		if (util_write_all(STDOUT_FILENO, &t, sizeof(t)))
			return 1;
	}
	return 0;
}
