// vmm-measure: what the steps of a shell and of a restore cost on this host's
// KVM (docs/KVM.md has figures of it). Usage: vmm-measure TINY_GUEST [ROUNDS]
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "vmm_internal.h"

enum { ROUNDS_MAX = 2000 };
static int kvm, rounds = 200;

static int cmp(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void report(const char *what, uint64_t *ns, int n)
{
	qsort(ns, (size_t)n, sizeof(*ns), cmp);
	printf("%-46s p50 %8.1f us   p99 %8.1f us\n", what,
	       (double)ns[n / 2] / 1000, (double)ns[n * 99 / 100] / 1000);
}

// --- orders of set-up, with bare ioctls -------------------------------------

enum step { SLOT = 1, SPLIT, FULL, IOEVENT, VCPU };

static void do_step(enum step s, int vm, void *mem, int *vcpu)
{
	struct kvm_userspace_memory_region r = {
	    .memory_size = 256 << 20, .userspace_addr = (uintptr_t)mem};
	struct kvm_enable_cap cap = {.cap = KVM_CAP_SPLIT_IRQCHIP,
				     .args = {24}};
	struct kvm_ioeventfd io = {.addr = 0xd0000050, .len = 4};

	switch (s) {
	case SLOT:
		ioctl(vm, KVM_SET_USER_MEMORY_REGION, &r);
		break;
	case SPLIT:
		ioctl(vm, KVM_ENABLE_CAP, &cap);
		break;
	case FULL:
		ioctl(vm, KVM_CREATE_IRQCHIP, 0);
		break;
	case IOEVENT:
		io.fd = eventfd(0, 0);
		ioctl(vm, KVM_IOEVENTFD, &io);
		close(io.fd);
		break;
	case VCPU:
		*vcpu = ioctl(vm, KVM_CREATE_VCPU, 0ul);
		break;
	}
}

static void order(const char *name, const enum step *steps, int n)
{
	static uint64_t make[ROUNDS_MAX], end[ROUNDS_MAX];
	void *mem = mmap(NULL, 256 << 20, PROT_NONE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	for (int i = 0; i < rounds; i++) {
		uint64_t t0 = util_now_ns(), t1;
		int vcpu = -1, vm = ioctl(kvm, KVM_CREATE_VM, 0ul);

		for (int k = 0; k < n; k++)
			do_step(steps[k], vm, mem, &vcpu);
		t1 = util_now_ns();
		make[i] = t1 - t0;
		close(vcpu);
		close(vm);
		end[i] = util_now_ns() - t1;
	}
	report(name, make, rounds);
	report("    closing it", end, rounds);
	munmap(mem, 256 << 20);
}

// --- the room's own calls ---------------------------------------------------

static struct vmm *shell(unsigned vcpus)
{
	struct err e = ERR_INIT;
	struct vmm_config cfg = {sizeof(cfg), kvm,  64ull << 20, vcpus,
				 -1,	      NULL, NULL};
	struct vmm *vm;

	if (vmm_create(&vm, &cfg, &e)) {
		fprintf(stderr, "%s\n", e.msg);
		exit(1);
	}
	return vm;
}

static void map(struct vmm *vm, int fd)
{
	if (mmap(vmm_mem_base(vm), vmm_mem_bytes(vm), PROT_READ | PROT_WRITE,
		 MAP_FIXED | MAP_PRIVATE | MAP_NORESERVE, fd, 0) == MAP_FAILED)
		exit(1);
}

static uint8_t state[VMM_STATE_MAX];
static size_t state_len;

// A tiny guest that waits in its mailbox, saved; its memory stays in `memfd`.
static int make_snapshot(const char *path)
{
	struct err e = ERR_INIT;
	struct stat st;
	int fd = open(path, O_RDONLY), memfd = memfd_create("mem", 0);
	struct vmm *vm = shell(1);
	struct vmm_boot b = {0};
	struct vmm_event ev;
	struct wire_writer w = wire_writer_of(state, sizeof(state));

	if (fd < 0 || fstat(fd, &st) < 0 || ftruncate(memfd, 64 << 20) < 0 ||
	    mmap(vmm_mem_base(vm), 64 << 20, PROT_READ | PROT_WRITE,
		 MAP_FIXED | MAP_SHARED, memfd, 0) == MAP_FAILED)
		exit(1);
	b.kernel_len = (size_t)st.st_size;
	b.kernel = mmap(NULL, b.kernel_len, PROT_READ, MAP_PRIVATE, fd, 0);
	b.cmdline = "";
	if (vmm_boot(vm, &b, &e) || vmm_spawn_vcpus(vm, 0, &e) ||
	    vmm_start(vm, &e))
		exit(1);
	*(uint32_t *)((uint8_t *)vmm_mem_base(vm) + 0x301000) = 1; // stop
	do {
		struct pollfd p = {vmm_event_fd(vm), POLLIN, 0};

		poll(&p, 1, 1000);
		vmm_dispatch(vm);
	} while (!vmm_next_event(vm, &ev) || ev.kind != VMM_EV_DOORBELL);
	usleep(10000);
	if (vmm_pause(vm, 1000, &e) || vmm_state_save(vm, &w, &e))
		exit(1);
	state_len = w.len;
	vmm_destroy(vm);
	close(fd);
	return memfd;
}

static void restores(int memfd)
{
	static uint64_t create[ROUNDS_MAX], check[ROUNDS_MAX], maps[ROUNDS_MAX],
	    load[ROUNDS_MAX], start[ROUNDS_MAX], first[ROUNDS_MAX],
	    all[ROUNDS_MAX], end[ROUNDS_MAX];

	for (int i = 0; i < rounds; i++) {
		struct err e = ERR_INIT;
		uint64_t t0 = util_now_ns(), t1, t2, t3, t4;
		struct vmm *vm = shell(1);

		create[i] = util_now_ns() - t0;
		t0 = util_now_ns();
		vmm_state_check(state, state_len, NULL, &e);
		check[i] = util_now_ns() - t0;
		t0 = util_now_ns();
		map(vm, memfd);
		t1 = util_now_ns();
		if (vmm_state_load(vm, state, state_len, &e)) {
			fprintf(stderr, "%s\n", e.msg);
			exit(1);
		}
		t2 = util_now_ns();
		vmm_start(vm, &e);
		t3 = util_now_ns();
		// This thread is vCPU 0, as in a cell.
		vmm_mailbox_put(vm, "\0", 1); // the guest powers off
		t4 = util_now_ns();
		vmm_vcpu_run(vm, 0);
		maps[i] = t1 - t0;
		load[i] = t2 - t1;
		start[i] = t3 - t2;
		first[i] = vmm_first_exit_ns(vm) - t4;
		all[i] = maps[i] + load[i] + start[i] + first[i];
		t0 = util_now_ns();
		vmm_destroy(vm);
		end[i] = util_now_ns() - t0;
	}
	report("vmm_create", create, rounds);
	report("vmm_state_check", check, rounds);
	report("mapping memory over the shell", maps, rounds);
	report("vmm_state_load", load, rounds);
	report("vmm_start", start, rounds);
	report("vmm_vcpu_run to the first exit", first, rounds);
	report("map + load + start + first exit", all, rounds);
	report("vmm_destroy", end, rounds);
}

int main(int argc, char **argv)
{
	static const enum step a[] = {SLOT, SPLIT, VCPU};
	static const enum step b[] = {SPLIT, VCPU, SLOT};
	static const enum step c[] = {SLOT, FULL, VCPU};
	static const enum step d[] = {FULL, VCPU, SLOT};
	static const enum step f[] = {SLOT, SPLIT, VCPU, IOEVENT};
	static const enum step g[] = {SPLIT, VCPU, IOEVENT, SLOT};

	if (argc < 2)
		return 1;
	if (argc > 2)
		rounds = MIN(MAX(atoi(argv[2]), 10), ROUNDS_MAX);
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	order("slot, split irqchip, vCPU", a, 3);
	order("split irqchip, vCPU, slot", b, 3);
	order("slot, full irqchip, vCPU", c, 3);
	order("full irqchip, vCPU, slot", d, 3);
	order("slot, split irqchip, vCPU, ioeventfd", f, 4);
	order("split irqchip, vCPU, ioeventfd, slot", g, 4);
	restores(make_snapshot(argv[1]));
	return 0;
}
