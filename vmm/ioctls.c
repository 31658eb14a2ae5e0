// What the room asks of KVM once a guest may run: nothing that makes anything but an
// ioeventfd, and nothing that reaches beyond a VM and its vCPUs. A new ioctl() behind
// vmm_start() comes to this list, or ends the cell that makes it.
#include "vmm_internal.h"

static const uint32_t after_start[] = {
    (uint32_t)KVM_RUN,
    (uint32_t)KVM_SIGNAL_MSI,	 // an interrupt of a device
    (uint32_t)KVM_IOEVENTFD,	 // a queue that is busy
    (uint32_t)KVM_KVMCLOCK_CTRL, // a pause's end
    // vmm_state_save(); KVM_GET_REGS: a fatal exit, too
    (uint32_t)KVM_GET_REGS,
    (uint32_t)KVM_GET_MP_STATE,
    (uint32_t)KVM_GET_SREGS2,
    (uint32_t)KVM_GET_LAPIC,
    (uint32_t)KVM_GET_XCRS,
    (uint32_t)KVM_GET_XSAVE,
    (uint32_t)KVM_GET_XSAVE2,
    (uint32_t)KVM_GET_MSRS,
    (uint32_t)KVM_GET_DEVICE_ATTR,
    (uint32_t)KVM_GET_DEBUGREGS,
    (uint32_t)KVM_GET_VCPU_EVENTS,
    (uint32_t)KVM_GET_CLOCK,
    // vmm_state_finish()
    (uint32_t)KVM_SET_LAPIC,
    (uint32_t)KVM_SET_MSRS,
    (uint32_t)KVM_SET_DEVICE_ATTR,
    (uint32_t)KVM_SET_CLOCK,
};

const uint32_t *vmm_ioctls(size_t *n)
{
	*n = ARRAY_SIZE(after_start);
	return after_start;
}
