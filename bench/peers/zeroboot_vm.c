// thaw-bench-zeroboot: restores of the ring-3 guest in zeroboot's way.
//
// Zeroboot restores a VM inside its own process, a VM for each request: /dev/kvm
// opened, a VM, the in-kernel interrupt controllers and the PIT, the IOAPIC's
// redirections, a private mapping of the memory image as the one slot, a vCPU, and
// then its state. This program has that order of ioctls and nothing of
// zeroboot's code. The image is a raw file on a disk here (zeroboot copies it to a
// memfd when it starts), so that it can be out of the page cache.
//
// Usage: thaw-bench-zeroboot ELF MEMORY CMDLINE FILE, then requests on standard input:
// a line is told to the guest. The answer is a line too: t1, t2 and t5 in
// CLOCK_MONOTONIC ns, and what the guest answered, to the line and then to
// "peek" of the address that is given as "peek ADDR" behind a ';'.
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "../floor_kvm.h"

static struct {
	struct kvm_cpuid2 head;
	struct kvm_cpuid_entry2 entries[256];
} cpuid;

// What zeroboot has in its snapshot; the guest has used nothing of it but the
// registers, so that a fresh VM's values serve.
static struct {
	struct kvm_irqchip ioapic;
	struct kvm_xcrs xcrs;
	struct kvm_xsave xsave;
	struct kvm_lapic_state lapic;
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entries[8];
	} msrs;
} saved;

static size_t run_len;
static int image;

static void must(int rc, const char *what)
{
	if (rc < 0)
		die(what);
}

static void open_with_irqchip(struct machine *m, int *kvm)
{
	struct kvm_pit_config pit = {0};

	*kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	must(*kvm, "/dev/kvm");
	m->vm = ioctl(*kvm, KVM_CREATE_VM, 0);
	must(m->vm, "KVM_CREATE_VM");
	must(ioctl(m->vm, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");
	must(ioctl(m->vm, KVM_CREATE_PIT2, &pit), "KVM_CREATE_PIT2");
}

static void add_memory(struct machine *m, uint64_t bytes)
{
	struct kvm_userspace_memory_region slot = {.memory_size = bytes};

	m->bytes = bytes;
	m->mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_NORESERVE, image, 0);
	if (m->mem == MAP_FAILED)
		die("mapping guest memory");
	slot.userspace_addr = (uint64_t)(uintptr_t)m->mem;
	must(ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, &slot),
	     "KVM_SET_USER_MEMORY_REGION");
}

static void add_vcpu(struct machine *m)
{
	m->vcpu = ioctl(m->vm, KVM_CREATE_VCPU, 0);
	must(m->vcpu, "KVM_CREATE_VCPU");
	m->run =
	    mmap(NULL, run_len, PROT_READ | PROT_WRITE, MAP_SHARED, m->vcpu, 0);
	if (m->run == MAP_FAILED)
		die("mapping kvm_run");
	must(ioctl(m->vcpu, KVM_SET_CPUID2, &cpuid), "KVM_SET_CPUID2");
}

static void get_ioapic(const struct machine *m, struct kvm_irqchip *chip)
{
	*chip = (struct kvm_irqchip){.chip_id = KVM_IRQCHIP_IOAPIC};
	must(ioctl(m->vm, KVM_GET_IRQCHIP, chip), "KVM_GET_IRQCHIP");
}

static void machine_restore(struct machine *m, int *kvm,
			    const struct snapshot *s)
{
	struct kvm_mp_state runnable = {.mp_state = KVM_MP_STATE_RUNNABLE};
	struct kvm_irqchip chip;

	open_with_irqchip(m, kvm);
	get_ioapic(m, &chip);
	memcpy(chip.chip.ioapic.redirtbl, saved.ioapic.chip.ioapic.redirtbl,
	       sizeof(chip.chip.ioapic.redirtbl));
	must(ioctl(m->vm, KVM_SET_IRQCHIP, &chip), "KVM_SET_IRQCHIP");
	add_memory(m, s->bytes);
	add_vcpu(m);
	must(ioctl(m->vcpu, KVM_SET_SREGS, &s->sregs), "KVM_SET_SREGS");
	if (saved.xcrs.nr_xcrs > 0)
		must(ioctl(m->vcpu, KVM_SET_XCRS, &saved.xcrs), "KVM_SET_XCRS");
	must(ioctl(m->vcpu, KVM_SET_XSAVE, &saved.xsave), "KVM_SET_XSAVE");
	must(ioctl(m->vcpu, KVM_SET_REGS, &s->regs), "KVM_SET_REGS");
	must(ioctl(m->vcpu, KVM_SET_LAPIC, &saved.lapic), "KVM_SET_LAPIC");
	must(ioctl(m->vcpu, KVM_SET_MSRS, &saved.msrs), "KVM_SET_MSRS");
	must(ioctl(m->vcpu, KVM_SET_MP_STATE, &runnable), "KVM_SET_MP_STATE");
}

static void machine_end(struct machine *m, int kvm)
{
	munmap(m->run, run_len);
	close(m->vcpu);
	close(m->vm);
	munmap(m->mem, m->bytes);
	close(kvm);
}

// The state of a VM that has not run, and the guest's memory as a raw file.
static void complete_snapshot(const struct snapshot *s, const char *file)
{
	static const uint32_t msrs[] = {0x174,	    0x175,	0x176,
					0xc0000081, 0xc0000082, 0xc0000083,
					0xc0000084, 0x10};
	struct machine m;
	uint64_t done = 0;
	int kvm;

	image = open(file, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (image < 0)
		die(file);
	while (done < s->bytes) {
		static uint8_t piece[1 << 20];
		size_t n = MIN(sizeof(piece), s->bytes - done);

		if (util_pread_all(s->template_fd, piece, n, (off_t)done) ||
		    util_pwrite_all(image, piece, n, (off_t)done))
			die("copying the memory");
		done += n;
	}
	close(s->template_fd);
	must(fsync(image), "fsync");
	open_with_irqchip(&m, &kvm);
	get_ioapic(&m, &saved.ioapic);
	add_memory(&m, s->bytes);
	add_vcpu(&m);
	must(ioctl(m.vcpu, KVM_GET_XCRS, &saved.xcrs), "KVM_GET_XCRS");
	must(ioctl(m.vcpu, KVM_GET_XSAVE, &saved.xsave), "KVM_GET_XSAVE");
	must(ioctl(m.vcpu, KVM_GET_LAPIC, &saved.lapic), "KVM_GET_LAPIC");
	saved.msrs.head.nmsrs = ARRAY_SIZE(msrs);
	for (size_t i = 0; i < ARRAY_SIZE(msrs); i++)
		saved.msrs.entries[i].index = msrs[i];
	must(ioctl(m.vcpu, KVM_GET_MSRS, &saved.msrs), "KVM_GET_MSRS");
	machine_end(&m, kvm);
}

// One request: `line` is the guest's, and behind a ';' the one that proves it.
static void serve(const struct snapshot *s, char *line)
{
	char answer[128] = "", proof[128] = "";
	char *peek = strchr(line, ';');
	struct machine m = {0};
	uint64_t t1, t2, t5 = 0;
	int kvm = -1;

	if (peek)
		*peek++ = '\0';
	machine_restore(&m, &kvm, s);
	t1 = util_now_ns();
	machine_run(&m);
	t2 = util_now_ns();
	// It left for its mailbox; what it reads is given by its next one.
	memset((char *)m.run + m.run->io.data_offset, 0xff, 4);
	if (*line) {
		machine_ask(&m, line, answer, sizeof(answer));
		t5 = util_now_ns();
	}
	if (peek)
		machine_ask(&m, peek, proof, sizeof(proof));
	printf("%" PRIu64 " %" PRIu64 " %" PRIu64 ";%s;%s\n", t1, t2, t5,
	       answer, proof);
	fflush(stdout);
	machine_end(&m, kvm);
}

int main(int argc, char **argv)
{
	struct snapshot s = {0};
	char line[512];
	int kvm;

	log_init("thaw-bench-zeroboot", LOG_LVL_INFO);
	if (argc != 5 || util_parse_size(argv[2], &s.bytes)) {
		fprintf(stderr,
			"usage: thaw-bench-zeroboot ELF MEMORY CMDLINE FILE\n"
			"Serves thaw-bench: one restore a line of standard "
			"input.\n");
		return 2;
	}
	floor_kvm_init();
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	must(kvm, "/dev/kvm");
	run_len = (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	cpuid.head.nent = ARRAY_SIZE(cpuid.entries);
	must(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid),
	     "KVM_GET_SUPPORTED_CPUID");
	close(kvm);
	snapshot_make(&s, argv[1], argv[3]);
	complete_snapshot(&s, argv[4]);
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = '\0';
		serve(&s, line);
	}
	return 0;
}
