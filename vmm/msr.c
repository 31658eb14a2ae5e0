// Model-specific registers of a vCPU.
//
// A state holds a struct kvm_msrs that one KVM_SET_MSRS takes as it is; its
// order is the order of writing:
//   1. TSC and TSC_ADJUST: what follows is relative to them. KVM recognizes
//   that
//      the vCPUs' TSC values are "about equal" and gives all of them one
//      offset,
//   2. everything else that KVM lists as state,
//   3. TSC_DEADLINE, which KVM drops unless the local APIC, loaded before, has
//      its timer in deadline mode, and which means nothing before the TSC,
//   4. the kvmclock page, last: writing it publishes the clock.
// Left out: the wall clock MSRs, which are commands ("write the boot time
// there") and would dirty a page of every restored guest; the PMU's, which
// these guests do not have.
//
// KVM keeps the MTRRs but does not list them. A machine with firmware starts
// with them on and memory write-back, and Linux leaves PAT off without; so a
// first boot sets that. A state holds those that are not zero, their value in a
// new vCPU.
//
// KVM refuses to read some MSRs that it lists, depending on the processor and
// on the guest's CPUID, which must be set before (KVM >= 6.13). Those are left
// out of the state; when loading, a refusal is an error unless the register
// already has that value.
#include <asm/kvm_para.h>
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "vmm_internal.h"

enum { MSR_LISTED_MAX = MSR_MAX - 32 }; // room for the MTRRs

enum {
	MSR_TSC = 0x10,
	MSR_TSC_ADJUST = 0x3b,
	MSR_MTRR_DEF = 0x2ff,
	MSR_TSC_DEADLINE = 0x6e0,
};

// Same layout as struct kvm_msrs.
struct msr_buf {
	uint32_t nmsrs, pad;
	struct kvm_msr_entry e[MSR_MAX];
};

static bool in(uint32_t x, uint32_t lo, uint32_t hi)
{
	return x >= lo && x <= hi;
}

static bool msr_excluded(uint32_t x)
{
	return x == MSR_KVM_WALL_CLOCK || x == MSR_KVM_WALL_CLOCK_NEW ||
	       // PMU, Intel
	       in(x, 0xc1, 0xc8) || in(x, 0x186, 0x18d) ||
	       in(x, 0x309, 0x30c) || in(x, 0x345, 0x345) ||
	       in(x, 0x38d, 0x391) || in(x, 0x3f1, 0x3f2) ||
	       in(x, 0x4c1, 0x4c8) || in(x, 0x600, 0x600) ||
	       // PT and LBR
	       in(x, 0x560, 0x5ff) || in(x, 0x14ce, 0x14cf) ||
	       // PMU, AMD
	       in(x, 0xc0010000, 0xc0010007) || in(x, 0xc0010200, 0xc001020f) ||
	       in(x, 0xc0000300, 0xc0000303) ||
	       // VMX and SVM capabilities; SGX launch keys; CET
	       in(x, 0x480, 0x493) || in(x, 0x8c, 0x8f) ||
	       in(x, 0x6a0, 0x6a8) ||
	       // Hyper-V, which is not advertised
	       in(x, 0x40000000, 0x400001ff);
}

static int rank(uint32_t x)
{
	switch (x) {
	case MSR_TSC:
		return 0;
	case MSR_TSC_ADJUST:
		return 1;
	case MSR_TSC_DEADLINE:
		return 3;
	case MSR_KVM_SYSTEM_TIME:
	case MSR_KVM_SYSTEM_TIME_NEW:
		return 4;
	default:
		return 2;
	}
}

static bool is_mtrr(uint32_t x)
{
	return in(x, 0x200, 0x20f) || x == 0x250 || x == 0x258 || x == 0x259 ||
	       in(x, 0x268, 0x26f) || x == MSR_MTRR_DEF;
}

static void add_mtrrs(struct vmm *vm, uint32_t *n)
{
	for (uint32_t x = 0x200; x <= MSR_MTRR_DEF; x++) {
		bool there = false;

		for (uint32_t i = 0; i < *n; i++)
			there = there || vm->msr_index[i] == x;
		if (is_mtrr(x) && !there && *n < MSR_MAX)
			vm->msr_index[(*n)++] = x;
	}
}

int msr_boot(struct vcpu *v, struct err *e)
{
	struct {
		struct kvm_msrs h;
		struct kvm_msr_entry e;
	} m = {.h.nmsrs = 1, .e = {.index = MSR_MTRR_DEF, .data = 0xc06}};

	if (ioctl(v->fd, KVM_SET_MSRS, &m) != 1)
		return err_sys(e, "setting the MTRRs of vCPU %u", v->index);
	return 0;
}

int msr_list_init(struct vmm *vm, int kvm_fd, struct err *e)
{
	struct {
		struct kvm_msr_list h;
		uint32_t v[MSR_MAX];
	} list = {.h.nmsrs = MSR_LISTED_MAX};
	uint32_t n = 0;

	if (ioctl(kvm_fd, KVM_GET_MSR_INDEX_LIST, &list) < 0)
		return err_sys(e, "KVM_GET_MSR_INDEX_LIST");
	for (int pass = 0; pass <= 4; pass++) {
		for (uint32_t i = 0; i < list.h.nmsrs; i++)
			if (rank(list.v[i]) == pass && !msr_excluded(list.v[i]))
				vm->msr_index[n++] = list.v[i];
		if (pass == 2)
			add_mtrrs(vm, &n);
	}
	vm->nmsrs = n;
	return 0;
}

int msr_save(struct vcpu *v, struct wire_writer *w, struct err *e)
{
	struct vmm *vm = v->vm;
	struct msr_buf m = {.nmsrs = vm->nmsrs};
	uint32_t n = 0;

	for (uint32_t i = 0; i < vm->nmsrs; i++)
		m.e[i] = (struct kvm_msr_entry){.index = vm->msr_index[i]};
	// Reading stops at the first register that KVM refuses: take it out of
	// the VM's list and read again.
	for (;;) {
		int got = ioctl(v->fd, KVM_GET_MSRS, &m);

		if (got < 0)
			return err_sys(e, "KVM_GET_MSRS of vCPU %u", v->index);
		if ((uint32_t)got == m.nmsrs)
			break;
		n = (uint32_t)got;
		memmove(&m.e[n], &m.e[n + 1],
			(m.nmsrs - n - 1) * sizeof(m.e[0]));
		memmove(&vm->msr_index[n], &vm->msr_index[n + 1],
			(m.nmsrs - n - 1) * sizeof(vm->msr_index[0]));
		m.nmsrs--;
		vm->nmsrs = m.nmsrs;
	}
	n = 0;
	for (uint32_t i = 0; i < m.nmsrs; i++)
		if (m.e[i].data || !is_mtrr(m.e[i].index))
			m.e[n++] = m.e[i];
	m.nmsrs = n;
	if (m.nmsrs && m.e[0].index == MSR_TSC) {
		uint64_t tsc = m.e[0].data;

		tsc_align(v, &tsc);
		m.e[0].data = tsc;
	}
	wire_put_bytes(w, &m, 8 + m.nmsrs * sizeof(m.e[0]));
	return 0;
}

int msr_check(const void *blob, size_t len, struct err *e)
{
	uint32_t h[2];

	if (len < 8)
		return err_set(e, -EBADMSG, "the MSR list is cut off");
	memcpy(h, blob, sizeof(h));
	if (h[1] || h[0] > MSR_MAX ||
	    len != 8 + h[0] * sizeof(struct kvm_msr_entry))
		return err_set(e, -EBADMSG, "the MSR list's length is invalid");
	for (uint32_t i = 0; i < h[0]; i++) {
		struct kvm_msr_entry m;

		memcpy(&m, (const uint8_t *)blob + 8 + i * sizeof(m),
		       sizeof(m));
		if (m.reserved || msr_excluded(m.index))
			return err_set(e, -EBADMSG,
				       "MSR %#x does not belong into a state",
				       m.index);
	}
	return 0;
}

static bool listed(const struct vmm *vm, uint32_t index)
{
	for (uint32_t i = 0; i < vm->nmsrs; i++)
		if (vm->msr_index[i] == index)
			return true;
	return false;
}

// The refused register counts as loaded when it has that value anyway.
static bool has_value(int vcpu_fd, const struct kvm_msr_entry *want)
{
	struct {
		struct kvm_msrs h;
		struct kvm_msr_entry e;
	} m = {.h.nmsrs = 1, .e.index = want->index};

	return ioctl(vcpu_fd, KVM_GET_MSRS, &m) == 1 && m.e.data == want->data;
}

// Gives KVM all of `m`, which is used up.
static int set_msrs(struct vcpu *v, struct msr_buf *m, struct err *e)
{
	uint32_t done = 0, total = m->nmsrs;

	while (done < total) {
		int n = ioctl(v->fd, KVM_SET_MSRS, m);

		if (n < 0)
			return err_sys(e, "KVM_SET_MSRS of vCPU %u", v->index);
		done += (uint32_t)n;
		if (done == total)
			break;
		if (!has_value(v->fd, &m->e[n]))
			return err_set(e, -ENODEV,
				       "KVM refuses MSR %#x = %#llx of vCPU %u",
				       m->e[n].index,
				       (unsigned long long)m->e[n].data,
				       v->index);
		done++;
		m->nmsrs = total - done;
		memmove(&m->e[0], &m->e[n + 1], m->nmsrs * sizeof(m->e[0]));
	}
	return 0;
}

// What counts from the moment at which the guest goes on, and what makes KVM
// look at guest memory.
static bool is_late(uint32_t x)
{
	return x == MSR_TSC || x == MSR_TSC_ADJUST || x == MSR_TSC_DEADLINE ||
	       x == MSR_KVM_SYSTEM_TIME || in(x, 0x4b564d00, 0x4b564dff);
}

static int split_late(struct msr_buf *m, struct vcpu_late *late, struct err *e)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < m->nmsrs; i++) {
		if (!is_late(m->e[i].index))
			m->e[n++] = m->e[i];
		else if (late->nmsrs == LATE_MSRS)
			return err_set(e, -EBADMSG, "an MSR occurs twice");
		else
			late->msr[late->nmsrs++] = m->e[i];
	}
	m->nmsrs = n;
	return 0;
}

static bool is_kvmclock(const struct kvm_msr_entry *m)
{
	return (m->index == MSR_KVM_SYSTEM_TIME ||
		m->index == MSR_KVM_SYSTEM_TIME_NEW) &&
	       (m->data & 1);
}

int msr_load(struct vcpu *v, const void *blob, size_t len,
	     struct vcpu_late *late, struct err *e)
{
	struct msr_buf m;
	int rc;

	memcpy(&m, blob, MIN(len, sizeof(m)));
	for (uint32_t i = 0; i < m.nmsrs; i++) {
		if (!listed(v->vm, m.e[i].index))
			return err_set(e, -ENODEV,
				       "this KVM does not know MSR %#x",
				       m.e[i].index);
		v->kvmclock = v->kvmclock || is_kvmclock(&m.e[i]);
	}
	if (late) {
		rc = split_late(&m, late, e);
		if (rc)
			return rc;
	} else if (m.nmsrs && m.e[0].index == MSR_TSC &&
		   tsc_load(v, m.e[0].data)) {
		memmove(&m.e[0], &m.e[1], --m.nmsrs * sizeof(m.e[0]));
	}
	return set_msrs(v, &m, e);
}

// The order is that of the state: the TSC first.
int msr_load_late(struct vcpu *v, const struct vcpu_late *late, struct err *e)
{
	struct msr_buf m;
	uint32_t from = 0;

	if (late->nmsrs && late->msr[0].index == MSR_TSC &&
	    tsc_load(v, late->msr[0].data))
		from = 1;
	m.nmsrs = late->nmsrs - from;
	m.pad = 0;
	memcpy(m.e, late->msr + from, m.nmsrs * sizeof(m.e[0]));
	return set_msrs(v, &m, e);
}
