// The time-stamp counters of a saved guest.
//
// Writing the TSC's MSR is not enough. KVM takes a value within a second of
// what it expects as an attempt to synchronize vCPUs and uses its own
// expectation instead; before Linux 6.7 that includes the first write into a
// new VM, whose expectation is the shell's age. A guest as old as the shell,
// give or take a second, would see its TSC jump, possibly back. So the *offset*
// is set, through the vCPU's device attribute (KVM API, "KVM_VCPU_TSC_CTRL"),
// which is exact.
//
// All vCPUs of a guest get one offset, plus what the guest itself added: values
// that are read one vCPU after the other differ by the time between the reads,
// so a state holds for each vCPU what its TSC was when vCPU 0's was read.
#include <errno.h>
#include <sys/ioctl.h>
#include <x86intrin.h>

#include "vmm_internal.h"

static bool get_offset(struct vcpu *v, uint64_t *offset)
{
	struct kvm_device_attr a = {
	    .group = KVM_VCPU_TSC_CTRL,
	    .attr = KVM_VCPU_TSC_OFFSET,
	    .addr = (uintptr_t)offset,
	};

	return ioctl(v->fd, KVM_GET_DEVICE_ATTR, &a) == 0;
}

static bool set_offset(struct vcpu *v, uint64_t offset)
{
	struct kvm_device_attr a = {
	    .group = KVM_VCPU_TSC_CTRL,
	    .attr = KVM_VCPU_TSC_OFFSET,
	    .addr = (uintptr_t)&offset,
	};

	return ioctl(v->fd, KVM_SET_DEVICE_ATTR, &a) == 0;
}

// Saving, vCPU 0 first: replaces the TSC that was read by what it was when vCPU
// 0's was read. Without offsets the value stays.
void tsc_align(struct vcpu *v, uint64_t *tsc)
{
	uint64_t offset;

	if (!get_offset(v, &offset))
		return;
	if (v->index == 0) {
		v->vm->tsc0 = *tsc;
		v->vm->tsc0_offset = offset;
	} else {
		*tsc = v->vm->tsc0 + (offset - v->vm->tsc0_offset);
	}
}

// The host's TSC in the guest's frequency: what a guest sees at offset 0.
static bool scaled_now(struct vcpu *v, uint64_t *now)
{
	struct {
		struct kvm_msrs h;
		struct kvm_msr_entry e;
	} m = {.h.nmsrs = 1, .e.index = 0x10};
	uint64_t offset;

	if (v->vm->tsc_khz == v->vm->host_tsc_khz) {
		*now = __rdtsc();
		return true;
	}
	if (!get_offset(v, &offset) || ioctl(v->fd, KVM_GET_MSRS, &m) != 1)
		return false;
	*now = m.e.data - offset;
	return true;
}

// Loading, vCPU 0 first: makes the TSC go on from `tsc`. False: not possible,
// the MSR has to be written.
bool tsc_load(struct vcpu *v, uint64_t tsc)
{
	struct vmm *vm = v->vm;
	uint64_t now;

	if (v->index == 0) {
		if (!scaled_now(v, &now))
			return false;
		vm->tsc0 = tsc;
		vm->tsc0_offset = tsc - now;
	}
	return set_offset(v, vm->tsc0_offset + (tsc - vm->tsc0));
}
