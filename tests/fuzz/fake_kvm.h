// A KVM that runs nothing: what the vmm room asks of /dev/kvm, answered from memory, so
// that a VM is made, saved and loaded in microseconds and on any host. Linked with
// -Wl,--wrap=ioctl. What was set is what is got.
#ifndef THAW_FUZZ_FAKE_KVM_H
#define THAW_FUZZ_FAKE_KVM_H

#include <linux/kvm.h>
#include <stddef.h>
#include <stdint.h>

enum {
	FAKE_KVM_FD = 1000000, // stands for /dev/kvm; never opened
	FAKE_KVM_XSAVE = 8192,
	FAKE_KVM_RUN = 8192, // bytes of a vCPU's run area
};

// What this host is: the processor that it has, and the registers that KVM lists.
void fake_kvm_host(const struct kvm_cpuid_entry2 *cpuid, uint32_t ncpuid,
		   const uint32_t *msrs, uint32_t nmsrs);
// A register that has this in its top byte is refused.
enum { FAKE_KVM_REFUSED = 0xfe };
extern unsigned long fake_kvm_msis; // interrupts that were sent

#endif
