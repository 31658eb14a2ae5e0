// What a guest sees of its processor: what KVM supports here, less what would
// make a snapshot depend on more than it holds.
//
// Hidden, and why:
//   asynchronous page faults   KVM would hold guest tasks on host page faults
//                              whose completion a snapshot cannot carry
//   steal time (and PV TLB     KVM writes it into guest memory whenever the
//   flush, which needs it)     vCPU's thread is scheduled out: also of a parked
//                              vCPU whose memory is being captured
//   VMX, SVM                   nested state is no part of a snapshot
//   the PMU, PT, LBR, SGX, TSX counters and modes that hosts differ in
//   CET                        its shadow-stack pointer is outside KVM_GET_REGS
//   invariant TSC              hosts differ in its frequency; kvmclock follows
// Added: the hypervisor bit, x2APIC and the TSC-deadline timer, which KVM's
// list leaves to us, and the APIC ids of one socket with `vcpus` cores.
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <asm/kvm_para.h>

#include "vmm_internal.h"

#define BIT(n) (1u << (n))

const struct kvm_cpuid_entry2 *cpuid_find(const struct cpuid_table *t,
					  uint32_t function, uint32_t index)
{
	for (uint32_t i = 0; i < t->nent; i++) {
		const struct kvm_cpuid_entry2 *c = &t->e[i];

		if (c->function == function &&
		    (!(c->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) ||
		     c->index == index))
			return c;
	}
	return NULL;
}

// Number of bits that hold 0..n-1.
static unsigned id_bits(unsigned n)
{
	unsigned bits = 0;

	while (1u << bits < n)
		bits++;
	return bits;
}

// Leaves 4 (Intel) and 0x8000001d (AMD): who shares this cache, bits 25:14, and
// on Intel the number of core ids, bits 31:26. Level 3 is shared by all.
static void cache_leaf(struct kvm_cpuid_entry2 *c, unsigned n)
{
	unsigned level = c->eax >> 5 & 7;
	uint32_t ids = (1u << id_bits(n)) - 1;
	uint32_t share = level >= 3 ? ids : 0;

	if ((c->eax & 0x1f) == 0)
		return; // no more caches
	c->eax = (c->eax & 0x3fff) | share << 14 |
		 (c->function == 4 ? ids << 26 : 0);
}

// Leaves 0xb and 0x1f: level 0 is the thread (one a core), level 1 the core.
static void topology_leaf(struct kvm_cpuid_entry2 *c, unsigned n)
{
	c->eax = c->ebx = 0;
	c->ecx = c->index;
	c->edx = 0; // the x2APIC id: cpuid_for_vcpu()
	if (c->index == 0) {
		c->ebx = 1;
		c->ecx |= 1u << 8;
	} else if (c->index == 1) {
		c->eax = id_bits(n);
		c->ebx = n;
		c->ecx |= 2u << 8;
	}
}

static void wipe(struct kvm_cpuid_entry2 *c)
{
	c->eax = c->ebx = c->ecx = c->edx = 0;
}

static void leaf_1(struct kvm_cpuid_entry2 *c, unsigned n, bool deadline)
{
	c->ebx = (c->ebx & 0xff00) | (1u << id_bits(n)) << 16; // CLFLUSH kept
	c->ecx &= ~(BIT(3) | BIT(5) | BIT(15)); // MONITOR, VMX, PDCM
	c->ecx &= ~(BIT(24) | BIT(27));		// OSXSAVE follows CR4
	c->ecx |= BIT(31) | BIT(21) | (deadline ? BIT(24) : 0);
	c->edx &= ~BIT(21);				       // debug store
	c->edx = n > 1 ? c->edx | BIT(28) : c->edx & ~BIT(28); // HTT
}

static void leaf_7(struct kvm_cpuid_entry2 *c)
{
	if (c->index == 0) {
		// SGX, HLE, RTM, PT; CET shadow stacks, WAITPKG, SGX_LC
		c->ebx &= ~(BIT(2) | BIT(4) | BIT(11) | BIT(25));
		c->ecx &= ~(BIT(5) | BIT(7) | BIT(30));
		// LBR, CET branch tracking, PCONFIG
		c->edx &= ~(BIT(18) | BIT(19) | BIT(20));
	}
}

// XSAVE: the supervisor states CET_U and CET_S (11, 12), PT (8), LBR (15).
static void leaf_d(struct kvm_cpuid_entry2 *c)
{
	if (c->index == 1)
		c->ecx &= ~(BIT(8) | BIT(11) | BIT(12) | BIT(15));
	else if (c->index == 8 || c->index == 11 || c->index == 12 ||
		 c->index == 15)
		wipe(c);
}

static void leaf_kvm(struct kvm_cpuid_entry2 *c)
{
	c->eax &= ~(
	    BIT(KVM_FEATURE_ASYNC_PF) | BIT(KVM_FEATURE_ASYNC_PF_VMEXIT) |
	    BIT(KVM_FEATURE_ASYNC_PF_INT) | BIT(KVM_FEATURE_STEAL_TIME) |
	    BIT(KVM_FEATURE_PV_TLB_FLUSH) | BIT(KVM_FEATURE_HC_MAP_GPA_RANGE) |
	    BIT(KVM_FEATURE_MIGRATION_CONTROL));
}

static void apply_policy(struct kvm_cpuid_entry2 *c, unsigned n, bool deadline)
{
	switch (c->function) {
	case 1:
		leaf_1(c, n, deadline);
		break;
	case 4:
	case 0x8000001d:
		cache_leaf(c, n);
		break;
	case 5:		 // MONITOR
	case 0xa:	 // PMU
	case 0x12:	 // SGX
	case 0x14:	 // PT
	case 0x1c:	 // LBR
	case 0x8000000a: // SVM
	case 0x8000001b: // IBS
	case 0x8000001f: // SEV
	case 0x80000022: // PMU
		wipe(c);
		break;
	case 7:
		leaf_7(c);
		break;
	case 0xb:
	case 0x1f:
		topology_leaf(c, n);
		break;
	case 0xd:
		leaf_d(c);
		break;
	case KVM_CPUID_FEATURES:
		leaf_kvm(c);
		break;
	case 0x80000001: // SVM, IBS, LWP, PERFCTR_CORE, PERFCTR_NB, PERFTSC,
			 // PERFCTR_LLC
		c->ecx &= ~(BIT(2) | BIT(10) | BIT(15) | BIT(23) | BIT(24) |
			    BIT(27) | BIT(28));
		break;
	case 0x80000007:
		c->edx &= ~BIT(8); // invariant TSC
		break;
	case 0x80000008:
		c->ecx = id_bits(n) << 12 | (n - 1);
		break;
	case 0x8000001e:
		c->ebx = c->ecx = 0; // one thread a core, one node
		break;
	}
}

// KVM lists no entry for index 1 of leaf 0xb on some hosts; the guest needs
// both levels.
static void add_topology(struct cpuid_table *t, unsigned n)
{
	for (uint32_t i = 0; i < 2; i++) {
		if (cpuid_find(t, 0xb, i) || t->nent >= CPUID_MAX || !t->nent ||
		    t->e[0].eax < 0xb)
			continue;
		t->e[t->nent] = (struct kvm_cpuid_entry2){
		    .function = 0xb,
		    .index = i,
		    .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
		};
		topology_leaf(&t->e[t->nent++], n);
	}
}

// What KVM supports here. The same for the life of a process, and slow to ask
// for (0.3 ms where CPUID is trapped): vmm_prepare() asks ahead of need.
static struct cpuid_table supported;

static int ask_supported(int kvm_fd, struct cpuid_table *out, struct err *e)
{
	memset(out, 0, sizeof(*out));
	out->nent = CPUID_MAX;
	if (ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, out) < 0)
		return err_sys(e, "KVM_GET_SUPPORTED_CPUID");
	if (out->nent > CPUID_MAX)
		return err_set(e, -EIO, "KVM lists %u CPUID entries",
			       out->nent);
	return 0;
}

int vmm_prepare(int kvm_fd, struct err *e)
{
	int rc = ask_supported(kvm_fd, &supported, e);

	if (!rc)
		rc = probe_tsc(kvm_fd, e);
	if (rc)
		supported.nent = 0;
	return rc;
}

static size_t table_bytes(const struct cpuid_table *t)
{
	return offsetof(struct cpuid_table, e) + t->nent * sizeof(t->e[0]);
}

int vmm_facts_save(int *out, struct err *e)
{
	cleanup_fd int fd =
	    memfd_create("thaw-host", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int rc;

	if (fd < 0)
		return err_sys(e, "cannot make room for what KVM supports");
	rc = util_pwrite_all(fd, &supported, table_bytes(&supported), 0);
	if (rc)
		return err_set(e, rc, "cannot keep what KVM supports");
	if (fcntl(fd, F_ADD_SEALS,
		  F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) < 0)
		return err_sys(e, "cannot seal what KVM supports");
	*out = fd_steal(&fd);
	return 0;
}

int vmm_facts_load(int fd, struct err *e)
{
	ssize_t n = pread(fd, &supported, sizeof(supported), 0);

	if (n >= (ssize_t)offsetof(struct cpuid_table, e) && supported.nent &&
	    supported.nent <= CPUID_MAX && (size_t)n == table_bytes(&supported))
		return 0;
	supported.nent = 0;
	return err_set(e, -EBADMSG, "what KVM supports here makes no sense");
}

int cpuid_policy(int kvm_fd, unsigned vcpus, struct cpuid_table *out,
		 struct err *e)
{
	bool deadline =
	    ioctl(kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0;
	int rc = 0;

	if (supported.nent)
		*out = supported;
	else
		rc = ask_supported(kvm_fd, out, e);
	if (rc)
		return rc;
	for (uint32_t i = 0; i < out->nent; i++) {
		apply_policy(&out->e[i], vcpus, deadline);
		memset(out->e[i].padding, 0, sizeof(out->e[i].padding));
	}
	add_topology(out, vcpus);
	cpuid_for_vcpu(out, 0, out);
	return 0;
}

void cpuid_for_vcpu(const struct cpuid_table *base, unsigned index,
		    struct cpuid_table *out)
{
	if (out != base)
		*out = *base;
	for (uint32_t i = 0; i < out->nent; i++) {
		struct kvm_cpuid_entry2 *c = &out->e[i];

		switch (c->function) {
		case 1:
			c->ebx = (c->ebx & 0xffffff) | index << 24;
			break;
		case 0xb:
		case 0x1f:
			c->edx = index;
			break;
		case 0x8000001e:
			c->eax = index;
			c->ebx = (c->ebx & ~0xffu) | index;
			break;
		}
	}
}
