#include "fake_kvm.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

int __real_ioctl(int fd, unsigned long req, ...);
int __wrap_ioctl(int fd, unsigned long req, ...);

enum { CPUID_CAP = 128, MSR_CAP = 352, FDS = 1024 };

unsigned long fake_kvm_msis;

static struct {
	struct kvm_cpuid_entry2 cpuid[CPUID_CAP];
	uint32_t ncpuid, nmsrs;
	uint32_t msrs[MSR_CAP];
} host;

// A part of a vCPU: what sets and what gets it, and its value at the start.
enum { MP, SREGS, SREGS2, LAPIC, XCRS, XSAVE, DEBUG, REGS, EVENTS, PARTS };
static const struct {
	unsigned long set, get;
} parts[PARTS] = {
    [MP] = {KVM_SET_MP_STATE, KVM_GET_MP_STATE},
    [SREGS] = {KVM_SET_SREGS, KVM_GET_SREGS},
    [SREGS2] = {KVM_SET_SREGS2, KVM_GET_SREGS2},
    [LAPIC] = {KVM_SET_LAPIC, KVM_GET_LAPIC},
    [XCRS] = {KVM_SET_XCRS, KVM_GET_XCRS},
    [XSAVE] = {KVM_SET_XSAVE, KVM_GET_XSAVE2},
    [DEBUG] = {KVM_SET_DEBUGREGS, KVM_GET_DEBUGREGS},
    [REGS] = {KVM_SET_REGS, KVM_GET_REGS},
    [EVENTS] = {KVM_SET_VCPU_EVENTS, KVM_GET_VCPU_EVENTS},
};

static struct vcpu {
	uint64_t msr[MSR_CAP]; // by place in host.msrs
	uint8_t part[PARTS][FAKE_KVM_XSAVE];
} * vcpus[FDS]; // by descriptor

void fake_kvm_host(const struct kvm_cpuid_entry2 *cpuid, uint32_t ncpuid,
		   const uint32_t *msrs, uint32_t nmsrs)
{
	host.ncpuid = ncpuid < CPUID_CAP ? ncpuid : CPUID_CAP;
	host.nmsrs = nmsrs < MSR_CAP ? nmsrs : MSR_CAP;
	memcpy(host.cpuid, cpuid, host.ncpuid * sizeof(*cpuid));
	memcpy(host.msrs, msrs, host.nmsrs * sizeof(*msrs));
}

static int create_vcpu(void)
{
	const struct kvm_debugregs debug = {.dr6 = 0xffff0ff0, .dr7 = 0x400};
	const struct kvm_xcrs xcrs = {.nr_xcrs = 1, .xcrs = {{.value = 1}}};
	int fd = memfd_create("vcpu", MFD_CLOEXEC);

	if (fd < 0 || fd >= FDS || ftruncate(fd, FAKE_KVM_RUN))
		abort();
	if (!vcpus[fd])
		vcpus[fd] = malloc(sizeof(struct vcpu));
	memset(vcpus[fd], 0, sizeof(struct vcpu));
	memcpy(vcpus[fd]->part[DEBUG], &debug, sizeof(debug));
	memcpy(vcpus[fd]->part[XCRS], &xcrs, sizeof(xcrs));
	return fd;
}

static uint64_t *msr(struct vcpu *v, uint32_t index)
{
	for (uint32_t i = 0; i < host.nmsrs; i++)
		if (host.msrs[i] == index)
			return &v->msr[i];
	return NULL;
}

// How many of the list, from its beginning: as KVM does.
static int msrs(struct vcpu *v, unsigned long req, struct kvm_msrs *m)
{
	uint32_t i;

	for (i = 0; i < m->nmsrs; i++) {
		struct kvm_msr_entry *e = &m->entries[i];
		uint64_t *at = msr(v, e->index);

		if (!at ||
		    (req == KVM_SET_MSRS && e->data >> 56 == FAKE_KVM_REFUSED))
			break;
		if (req == KVM_SET_MSRS)
			*at = e->data;
		else
			e->data = *at;
	}
	return (int)i;
}

static int supported(struct kvm_cpuid2 *out)
{
	if (out->nent < host.ncpuid) {
		errno = E2BIG;
		return -1;
	}
	out->nent = host.ncpuid;
	memcpy(out->entries, host.cpuid, host.ncpuid * sizeof(host.cpuid[0]));
	return 0;
}

static int list_msrs(struct kvm_msr_list *out)
{
	out->nmsrs = host.nmsrs;
	memcpy(out->indices, host.msrs, host.nmsrs * sizeof(host.msrs[0]));
	return 0;
}

static int of_vcpu(struct vcpu *v, unsigned long req, void *arg)
{
	for (unsigned i = 0; v && i < PARTS; i++) {
		size_t len =
		    i == XSAVE ? FAKE_KVM_XSAVE : _IOC_SIZE(parts[i].get);

		if (req == parts[i].set)
			memcpy(v->part[i], arg, len);
		else if (req == parts[i].get)
			memcpy(arg, v->part[i], len);
		else
			continue;
		return 0;
	}
	errno = ENOTTY;
	return -1;
}

int __wrap_ioctl(int fd, unsigned long req, ...)
{
	struct vcpu *v = fd >= 0 && fd < FDS ? vcpus[fd] : NULL;
	va_list ap;
	void *arg;

	va_start(ap, req);
	arg = va_arg(ap, void *);
	va_end(ap);
	if (_IOC_TYPE(req) != KVMIO)
		return __real_ioctl(fd, req, arg);
	switch (req) {
	case KVM_CREATE_VM:
		return memfd_create("vm", MFD_CLOEXEC);
	case KVM_CREATE_VCPU:
		return create_vcpu();
	case KVM_GET_VCPU_MMAP_SIZE:
		return FAKE_KVM_RUN;
	case KVM_CHECK_EXTENSION:
		return (uintptr_t)arg == KVM_CAP_XSAVE2 ? FAKE_KVM_XSAVE : 1;
	case KVM_GET_TSC_KHZ:
		return 2000000;
	case KVM_GET_SUPPORTED_CPUID:
		return supported(arg);
	case KVM_GET_MSR_INDEX_LIST:
		return list_msrs(arg);
	case KVM_GET_MSRS:
	case KVM_SET_MSRS:
		return msrs(v, req, arg);
	case KVM_SIGNAL_MSI:
		fake_kvm_msis++;
		return 1;
	case KVM_GET_DEVICE_ATTR: // the TSC's offset: old KVMs have none
	case KVM_SET_DEVICE_ATTR:
		errno = ENXIO;
		return -1;
	case KVM_GET_CLOCK:
		memset(arg, 0, sizeof(struct kvm_clock_data));
		return 0;
	case KVM_SET_CLOCK:
	case KVM_SET_CPUID2:
	case KVM_SET_TSC_KHZ:
	case KVM_SET_USER_MEMORY_REGION:
	case KVM_SET_IDENTITY_MAP_ADDR:
	case KVM_SET_TSS_ADDR:
	case KVM_ENABLE_CAP:
	case KVM_IOEVENTFD:
	case KVM_KVMCLOCK_CTRL:
		return 0;
	}
	return of_vcpu(v, req, arg);
}
