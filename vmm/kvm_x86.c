// A vCPU's complete state, to and from KVM's own structures.
//
// The section of a vCPU is a list of items, each one structure of KVM's ABI, in
// the order in which they are loaded:
//   MP state, SREGS2 (it has the APIC's mode), LAPIC, XCRS, XSAVE, MSRs (the
//   deadline timer needs the LAPIC), debug registers, registers, events
//   (setting registers forgets a pending exception).
// Saving asks for the MP state first, because asking makes KVM act on a pending
// INIT or SIPI. See docs/STATE_FORMAT.md, and "KVM API" 4.x of each ioctl.
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "vmm_internal.h"

enum item {
	IT_MP = 1,
	IT_SREGS,
	IT_LAPIC,
	IT_XCRS,
	IT_XSAVE,
	IT_MSRS,
	IT_DEBUG,
	IT_REGS,
	IT_EVENTS,
	IT_END,
};

enum { XSAVE_MIN = 4096, XSAVE_MAX = 16384 };

// The items with a structure of fixed size.
static const struct {
	uint32_t len;
	unsigned long get, set;
	const char *name;
} fixed[IT_END] = {
    [IT_MP] = {sizeof(struct kvm_mp_state), KVM_GET_MP_STATE, KVM_SET_MP_STATE,
	       "MP_STATE"},
    [IT_SREGS] = {sizeof(struct kvm_sregs2), KVM_GET_SREGS2, KVM_SET_SREGS2,
		  "SREGS2"},
    [IT_LAPIC] = {sizeof(struct kvm_lapic_state), KVM_GET_LAPIC, KVM_SET_LAPIC,
		  "LAPIC"},
    [IT_XCRS] = {sizeof(struct kvm_xcrs), KVM_GET_XCRS, KVM_SET_XCRS, "XCRS"},
    [IT_DEBUG] = {sizeof(struct kvm_debugregs), KVM_GET_DEBUGREGS,
		  KVM_SET_DEBUGREGS, "DEBUGREGS"},
    [IT_REGS] = {sizeof(struct kvm_regs), KVM_GET_REGS, KVM_SET_REGS, "REGS"},
    [IT_EVENTS] = {sizeof(struct kvm_vcpu_events), KVM_GET_VCPU_EVENTS,
		   KVM_SET_VCPU_EVENTS, "VCPU_EVENTS"},
};

static void put_pad(struct wire_writer *w)
{
	while (w->len % 8)
		wire_put_u8(w, 0);
}

static int save_fixed(struct vcpu *v, enum item it, struct wire_writer *w,
		      struct err *e)
{
	union {
		struct kvm_sregs2 sregs;
		struct kvm_lapic_state lapic;
		struct kvm_xcrs xcrs;
		uint8_t bytes[1024];
	} u = {0};

	if (ioctl(v->fd, fixed[it].get, &u) < 0)
		return err_sys(e, "KVM_GET_%s of vCPU %u", fixed[it].name,
			       v->index);
	wire_put_u32(w, it);
	wire_put_u32(w, fixed[it].len);
	wire_put_bytes(w, &u, fixed[it].len);
	put_pad(w);
	return 0;
}

static int save_xsave(struct vcpu *v, struct wire_writer *w, struct err *e)
{
	size_t len = v->vm->xsave_len;
	cleanup_free void *p = NULL;
	bool big = len > sizeof(struct kvm_xsave);

	if (len > XSAVE_MAX)
		return err_set(e, -ENOTSUP, "XSAVE areas of %zu bytes", len);
	p = calloc(1, len);
	if (!p)
		return err_set(e, -ENOMEM, "no memory for XSAVE");
	if (ioctl(v->fd, big ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, p) < 0)
		return err_sys(e, "KVM_GET_XSAVE of vCPU %u", v->index);
	wire_put_u32(w, IT_XSAVE);
	wire_put_u32(w, (uint32_t)len);
	wire_put_bytes(w, p, len);
	put_pad(w);
	return 0;
}

static int save_msrs(struct vcpu *v, struct wire_writer *w, struct err *e)
{
	size_t at = w->len + 4;
	int rc;

	wire_put_u32(w, IT_MSRS);
	wire_put_u32(w, 0);
	rc = msr_save(v, w, e);
	if (rc == 0 && !w->bad)
		wire_patch_u32(w, at, (uint32_t)(w->len - at - 4));
	put_pad(w);
	return rc;
}

int vcpu_save(struct vcpu *v, struct wire_writer *w, struct err *e)
{
	int rc = 0;

	for (enum item it = IT_MP; rc == 0 && it < IT_END; it++) {
		if (it == IT_XSAVE)
			rc = save_xsave(v, w, e);
		else if (it == IT_MSRS)
			rc = save_msrs(v, w, e);
		else
			rc = save_fixed(v, it, w, e);
	}
	return rc;
}

// --- judging ----------------------------------------------------------------

struct items {
	const void *p[IT_END];
	uint32_t len[IT_END];
};

static int items_parse(struct wire_reader *r, struct items *out)
{
	for (enum item it = IT_MP; it < IT_END; it++) {
		uint32_t kind = wire_get_u32(r), len = wire_get_u32(r);
		uint32_t pad = -len & 7;

		if (r->bad || kind != it || len > wire_left(r))
			return -EBADMSG;
		if (fixed[it].len && len != fixed[it].len)
			return -EBADMSG;
		out->p[it] = wire_borrow(r, len);
		out->len[it] = len;
		while (pad--)
			if (wire_get_u8(r) != 0)
				return -EBADMSG;
	}
	return r->bad || wire_left(r) ? -EBADMSG : 0;
}

int vcpu_check(struct wire_reader *r, unsigned index, struct err *e)
{
	struct items it;
	struct kvm_mp_state mp;
	struct kvm_xcrs xcrs;
	int rc = items_parse(r, &it);

	if (rc)
		return err_set(e, rc, "vCPU %u: its items are malformed",
			       index);
	memcpy(&mp, it.p[IT_MP], sizeof(mp));
	memcpy(&xcrs, it.p[IT_XCRS], sizeof(xcrs));
	if (mp.mp_state > KVM_MP_STATE_SIPI_RECEIVED ||
	    xcrs.nr_xcrs > KVM_MAX_XCRS || it.len[IT_XSAVE] < XSAVE_MIN ||
	    it.len[IT_XSAVE] > XSAVE_MAX)
		return err_set(e, -EBADMSG, "vCPU %u: a value is out of range",
			       index);
	rc = msr_check(it.p[IT_MSRS], it.len[IT_MSRS], e);
	return rc ? err_wrap(e, rc, "vCPU %u", index) : 0;
}

// --- loading ----------------------------------------------------------------

static int load_fixed(struct vcpu *v, const struct items *it, enum item i,
		      struct err *e)
{
	if (ioctl(v->fd, fixed[i].set, it->p[i]) < 0)
		return err_sys(e, "KVM_SET_%s of vCPU %u", fixed[i].name,
			       v->index);
	return 0;
}

static int load_xsave(struct vcpu *v, const struct items *it, struct err *e)
{
	const uint8_t *p = it->p[IT_XSAVE];
	uint32_t len = it->len[IT_XSAVE];
	uint8_t big[XSAVE_MAX] = {0};

	// A state from a host with larger areas: what we cannot hold has to be
	// unused there.
	for (size_t i = v->vm->xsave_len; i < len; i++)
		if (p[i])
			return err_set(e, -ENODEV,
				       "the guest uses processor state that "
				       "this host lacks");
	if (len < v->vm->xsave_len) {
		if (v->vm->xsave_len > sizeof(big))
			return err_set(e, -ENOTSUP, "XSAVE areas of %zu bytes",
				       v->vm->xsave_len);
		memcpy(big, p, len);
		p = big;
	}
	if (ioctl(v->fd, KVM_SET_XSAVE, p) < 0)
		return err_sys(e, "KVM_SET_XSAVE of vCPU %u", v->index);
	return 0;
}

// Debug registers of a new vCPU have their reset values; most guests' too.
static bool debug_is_reset(const void *p)
{
	struct kvm_debugregs d;

	memcpy(&d, p, sizeof(d));
	return !d.db[0] && !d.db[1] && !d.db[2] && !d.db[3] && !d.flags &&
	       d.dr6 == 0xffff0ff0 && d.dr7 == 0x400;
}

// vCPU 0 of a shell is runnable already.
static bool mp_is_reset(const struct vcpu *v, const void *p)
{
	struct kvm_mp_state mp;

	memcpy(&mp, p, sizeof(mp));
	return v->index == 0 && mp.mp_state == KVM_MP_STATE_RUNNABLE;
}

static bool xcrs_are_reset(const void *p)
{
	struct kvm_xcrs x;

	memcpy(&x, p, sizeof(x));
	return x.nr_xcrs == 1 && x.xcrs[0].xcr == 0 && x.xcrs[0].value == 1;
}

static bool no_events(const void *p)
{
	struct kvm_vcpu_events ev, none = {0};

	memcpy(&ev, p, sizeof(ev));
	none.flags = ev.flags; // which of the fields below count
	return memcmp(&ev, &none, sizeof(ev)) == 0;
}

// What the vCPU of a shell has already.
static bool is_reset(const struct vcpu *v, const struct items *it, enum item i)
{
	switch (i) {
	case IT_DEBUG:
		return debug_is_reset(it->p[i]);
	case IT_MP:
		return mp_is_reset(v, it->p[i]);
	case IT_XCRS:
		return xcrs_are_reset(it->p[i]);
	case IT_EVENTS:
		return no_events(it->p[i]);
	default:
		return false;
	}
}

// A timer that counts down from now on (all modes but the TSC deadline, whose
// MSR is late anyway): it must not fire before the guest goes on.
static bool timer_counts(const void *lapic)
{
	const uint8_t *p = lapic;
	uint32_t lvtt, initial;

	memcpy(&lvtt, p + 0x320, sizeof(lvtt));
	memcpy(&initial, p + 0x380, sizeof(initial));
	return initial != 0 && (lvtt >> 17 & 3) != 2;
}

int vcpu_load(struct vcpu *v, struct wire_reader *r, struct vcpu_late *late,
	      struct err *e)
{
	struct items it;
	int rc = items_parse(r, &it);

	if (rc)
		return err_set(e, rc, "vCPU %u: its items are malformed",
			       v->index);
	for (enum item i = IT_MP; rc == 0 && i < IT_END; i++) {
		if (i == IT_XSAVE) {
			rc = load_xsave(v, &it, e);
		} else if (i == IT_MSRS) {
			rc = msr_load(v, it.p[i], it.len[i], late, e);
		} else if (i == IT_LAPIC && late && timer_counts(it.p[i])) {
			memcpy(&late->lapic, it.p[i], sizeof(late->lapic));
			late->has_lapic = true;
		} else if (!is_reset(v, &it, i)) {
			rc = load_fixed(v, &it, i, e);
		}
	}
	return rc;
}

int vcpu_load_late(struct vcpu *v, const struct vcpu_late *late, struct err *e)
{
	if (late->has_lapic && ioctl(v->fd, KVM_SET_LAPIC, &late->lapic) < 0)
		return err_sys(e, "KVM_SET_LAPIC of vCPU %u", v->index);
	return msr_load_late(v, late, e);
}

int vcpu_kvmclock_ctrl(struct vcpu *v)
{
	return ioctl(v->fd, KVM_KVMCLOCK_CTRL, 0) < 0 ? -errno : 0;
}

// --- boot -------------------------------------------------------------------

static struct kvm_segment flat(uint16_t selector, bool code)
{
	return (struct kvm_segment){
	    .limit = 0xffffffff,
	    .selector = selector,
	    .type = code ? 0xb : 0x3,
	    .present = 1,
	    .s = 1,
	    .l = code,
	    .db = !code,
	    .g = 1,
	};
}

// Linux 64-bit boot protocol: long mode, identity paging, flat segments 0x10
// and 0x18, interrupts off, rsi = boot parameters. The tables are boot.c's.
int vcpu_set_boot_regs(struct vcpu *v, uint64_t entry, uint64_t rsi,
		       struct err *e)
{
	struct kvm_regs regs = {
	    .rip = entry,
	    .rsi = rsi,
	    .rsp = 0x8ff0,
	    .rbp = 0x8ff0,
	    .rflags = 2,
	};
	struct kvm_sregs s;

	if (ioctl(v->fd, KVM_GET_SREGS, &s) < 0)
		return err_sys(e, "KVM_GET_SREGS");
	s.cs = flat(0x10, true);
	s.ds = s.es = s.fs = s.gs = s.ss = flat(0x18, false);
	// As after reset. Its I/O permission map is zeroed low memory, so code in
	// ring 3 may use ports also on a KVM that does not honour IOPL there.
	s.tr = (struct kvm_segment){.limit = 0xffff, .type = 0xb, .present = 1};
	s.gdt = (struct kvm_dtable){.base = 0x500, .limit = 6 * 8 - 1};
	s.idt = (struct kvm_dtable){.base = 0, .limit = 0};
	s.cr3 = 0x9000;
	s.cr4 |= 1u << 5;		 // PAE
	s.cr0 = 1u | 1u << 4 | 1u << 31; // PE, ET, PG
	s.efer |= 1u << 8 | 1u << 10;	 // LME, LMA
	if (ioctl(v->fd, KVM_SET_SREGS, &s) < 0)
		return err_sys(e, "KVM_SET_SREGS");
	if (ioctl(v->fd, KVM_SET_REGS, &regs) < 0)
		return err_sys(e, "KVM_SET_REGS");
	return 0;
}
