// What this host's KVM is good for.
//
// Its guests' TSC must run. A KVM that neither scales TSCs nor has a constant one
// gives its guests the frequency that the kernel believed in when KVM was loaded;
// if that was corrected by more than 250 ppm since, each new vCPU's scale stays
// unset (kvm_set_tsc_khz(), whose error is dropped), and KVM takes its TSC for a
// constant: timers do not fire, and the guest sleeps for ever. Such hosts are
// themselves guests, with KVM loaded in their first second.
//
// Some KVMs emulate a guest's ring 0 instruction by instruction (machines
// without hardware virtualization of their own); a stock kernel does not boot
// on them in useful time. So the probe runs a loop in ring 0 and times it: a
// short one first, and a longer one only where that was quick.
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "vmm_internal.h"

enum {
	CODE_GPA = 0x1000,
	MEM = 0x10000,
	SHORT_LOOPS = 5000,
	LONG_LOOPS = 2000000,
	LOOP_INSNS = 2,
	MIN_MIPS = 50,
};

struct probe {
	int vm, vcpu;
	struct kvm_run *run;
	size_t run_len;
	uint8_t *mem;
};

static void probe_fini(struct probe *p)
{
	if (p->run)
		munmap(p->run, p->run_len);
	fd_close(&p->vcpu);
	fd_close(&p->vm);
	if (p->mem)
		munmap(p->mem, MEM);
}

static int probe_init(struct probe *p, int kvm_fd)
{
	// mov ecx, esi; 1: dec ecx; jnz 1b; out 0x10, al (16-bit code)
	static const uint8_t code[] = {0x66, 0x89, 0xf1, 0x66, 0x49,
				       0x75, 0xfc, 0xe6, 0x10};
	struct kvm_userspace_memory_region r = {.memory_size = MEM};
	int len = ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	void *m;

	*p = (struct probe){.vm = -1, .vcpu = -1};
	if (len <= 0)
		return -errno;
	m = mmap(NULL, MEM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		 -1, 0);
	if (m == MAP_FAILED)
		return -errno;
	p->mem = m;
	memcpy(p->mem + CODE_GPA, code, sizeof(code));
	r.userspace_addr = (uintptr_t)p->mem;
	p->vm = ioctl(kvm_fd, KVM_CREATE_VM, 0ul);
	if (p->vm < 0 || ioctl(p->vm, KVM_SET_USER_MEMORY_REGION, &r) < 0)
		return -errno;
	p->vcpu = ioctl(p->vm, KVM_CREATE_VCPU, 0ul);
	if (p->vcpu < 0)
		return -errno;
	p->run_len = (size_t)len;
	m = mmap(NULL, p->run_len, PROT_READ | PROT_WRITE, MAP_SHARED, p->vcpu,
		 0);
	if (m == MAP_FAILED)
		return -errno;
	p->run = m;
	return 0;
}

// Nanoseconds of `loops` rounds in ring 0, or 0 when it did not end well.
static uint64_t probe_run(struct probe *p, uint64_t loops)
{
	struct kvm_sregs s;
	struct kvm_regs regs = {.rip = CODE_GPA, .rsi = loops, .rflags = 2};
	uint64_t t0;

	if (ioctl(p->vcpu, KVM_GET_SREGS, &s) < 0)
		return 0;
	s.cs.base = 0;
	s.cs.selector = 0;
	if (ioctl(p->vcpu, KVM_SET_SREGS, &s) < 0 ||
	    ioctl(p->vcpu, KVM_SET_REGS, &regs) < 0)
		return 0;
	t0 = util_now_ns();
	while (ioctl(p->vcpu, KVM_RUN, 0) < 0)
		if (errno != EINTR)
			return 0;
	if (p->run->exit_reason != KVM_EXIT_IO || p->run->io.port != 0x10)
		return 0;
	return MAX(util_now_ns() - t0, 1u);
}

static bool read_tsc(int vcpu, uint64_t *tsc)
{
	struct {
		struct kvm_msrs h;
		struct kvm_msr_entry e;
	} m = {.h.nmsrs = 1, .e.index = 0x10};

	if (ioctl(vcpu, KVM_GET_MSRS, &m) != 1)
		return false;
	*tsc = m.e.data;
	return true;
}

int probe_tsc(int kvm_fd, struct err *e)
{
	cleanup_fd int vm = ioctl(kvm_fd, KVM_CREATE_VM, 0ul);
	cleanup_fd int vcpu = vm < 0 ? -1 : ioctl(vm, KVM_CREATE_VCPU, 0ul);
	uint64_t first, second;

	if (vcpu < 0)
		return err_sys(e, "cannot make a VM to try KVM out");
	if (!read_tsc(vcpu, &first))
		return 0; // nothing can be told
	usleep(10);
	if (!read_tsc(vcpu, &second) || second != first)
		return 0;
	return err_set(e, -ENODEV,
		       "the TSC of this KVM's guests stands still: it was "
		       "loaded before the kernel knew the processor's "
		       "frequency; remove KVM's modules and load them again");
}

static double probe_mips(int kvm_fd)
{
	struct probe p;
	uint64_t ns = 0;
	double loops = SHORT_LOOPS;

	if (probe_init(&p, kvm_fd) == 0) {
		probe_run(&p, 1); // first faults
		ns = probe_run(&p, SHORT_LOOPS);
		if (ns && ns < 2000000) {
			loops = LONG_LOOPS;
			ns = probe_run(&p, LONG_LOOPS);
		}
	}
	probe_fini(&p);
	return ns ? loops * LOOP_INSNS * 1000.0 / (double)ns : 0;
}

static void find_flavour(char *out, size_t cap)
{
	static const char *const all[] = {"kvm_pvm", "kvm_amd", "kvm_intel"};

	for (unsigned i = 0; i < ARRAY_SIZE(all); i++) {
		char path[64];

		snprintf(path, sizeof(path), "/sys/module/%s", all[i]);
		if (access(path, F_OK) == 0) {
			snprintf(out, cap, "%s", all[i]);
			return;
		}
	}
	snprintf(out, cap, "unknown");
}

static bool has(int kvm_fd, unsigned long cap)
{
	return ioctl(kvm_fd, KVM_CHECK_EXTENSION, cap) > 0;
}

void vmm_host_probe(int kvm_fd, struct vmm_host_report *out)
{
	struct err e = ERR_INIT;

	memset(out, 0, sizeof(*out));
	find_flavour(out->flavour, sizeof(out->flavour));
	if (kvm_fd < 0 || ioctl(kvm_fd, KVM_GET_API_VERSION, 0) != 12) {
		snprintf(out->why, sizeof(out->why),
			 "/dev/kvm is missing, or is not KVM API version 12");
		return;
	}
	out->kvm = true;
	out->tsc_deadline = has(kvm_fd, KVM_CAP_TSC_DEADLINE_TIMER);
	out->split_irqchip = has(kvm_fd, KVM_CAP_SPLIT_IRQCHIP);
	out->xsave2 = has(kvm_fd, KVM_CAP_XSAVE2);
	out->user_mem_map = has(kvm_fd, KVM_CAP_USER_MEMORY);
	out->tsc_runs = probe_tsc(kvm_fd, &e) == 0;
	out->ring0_mips = probe_mips(kvm_fd);
	out->stock_kernel =
	    out->ring0_mips >= MIN_MIPS && out->split_irqchip && out->tsc_runs;
	if (out->ring0_mips == 0)
		snprintf(out->why, sizeof(out->why),
			 "a loop in ring 0 ends in a KVM error");
	else if (out->ring0_mips < MIN_MIPS)
		snprintf(out->why, sizeof(out->why),
			 "ring 0 is emulated here: %.1f million instructions "
			 "per second, a stock kernel needs %d",
			 out->ring0_mips, MIN_MIPS);
	else if (!out->split_irqchip)
		snprintf(out->why, sizeof(out->why),
			 "this KVM lacks the split irqchip");
	else if (!out->tsc_runs)
		snprintf(out->why, sizeof(out->why), "%s", e.msg);
}
