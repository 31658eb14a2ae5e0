// Saving and loading the complete state: docs/STATE_FORMAT.md.
//
// A restore spends its time here, so loading parses without copying, skips what
// the shell has already (the CPUID table, reset debug registers), and gives KVM
// the structures where they lie in the caller's buffer.
//
// Time. The TSC of every vCPU and kvmclock continue from the saved values, so a
// guest does not see the time that it was away; its agent corrects the wall
// clock. Order: TSC MSRs of all vCPUs (KVM finds them about equal and gives
// them one offset), then KVM_SET_CLOCK, before any vCPU runs.
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "vmm_internal.h"

// --- saving -----------------------------------------------------------------

struct saver {
	struct wire_writer *w;
	unsigned n, max; // table entries
	size_t start;	 // of the open section
};

static void pad_to(struct wire_writer *w, size_t align)
{
	while (w->len % align)
		wire_put_u8(w, 0);
}

static void section_open(struct saver *s)
{
	pad_to(s->w, STATE_ALIGN);
	s->start = s->w->len;
}

static void section_close(struct saver *s, uint32_t tag, uint32_t index,
			  uint16_t flags)
{
	struct wire_writer *w = s->w;
	size_t len = w->len - s->start;
	struct wire_writer t;

	if (w->bad || s->n == s->max) {
		w->bad = true;
		return;
	}
	t = wire_writer_of(w->buf + STATE_HEADER_LEN + s->n++ * STATE_ENTRY_LEN,
			   STATE_ENTRY_LEN);
	wire_put_u32(&t, tag);
	wire_put_u16(&t, 1);
	wire_put_u16(&t, flags);
	wire_put_u32(&t, index);
	wire_put_u32(&t, crc32c(0, w->buf + s->start, len));
	wire_put_u64(&t, s->start);
	wire_put_u64(&t, len);
}

static int save_clock(struct vmm *vm, struct wire_writer *w, struct err *e)
{
	struct kvm_clock_data c = {0};

	if (ioctl(vm->fd, KVM_GET_CLOCK, &c) < 0)
		return err_sys(e, "KVM_GET_CLOCK");
	wire_put_u64(w, c.clock);
	wire_put_u32(w, vm->tsc_khz);
	wire_put_u32(w, vm->genid_used);
	return 0;
}

static void save_devices(struct vmm *vm, struct saver *s)
{
	section_open(s);
	ioapic_save(&vm->ioapic, s->w);
	section_close(s, STATE_TAG_IOAPIC, 0, 0);
	section_open(s);
	serial_save(&vm->serial, s->w);
	section_close(s, STATE_TAG_SERIAL, 0, 0);
	section_open(s);
	doorbell_save(vm, s->w);
	section_close(s, STATE_TAG_BELL, 0, 0);
	for (unsigned i = 0; i < VIO_NUM; i++) {
		if (!vm->vio[i])
			continue;
		section_open(s);
		vio_save(vm->vio[i], s->w);
		section_close(s, STATE_TAG_VIRTIO, i, 0);
	}
}

static int save_sections(struct vmm *vm, struct saver *s, struct err *e)
{
	int rc;

	section_open(s);
	wire_put_u32(s->w, vm->cpuid.nent);
	wire_put_u32(s->w, 0);
	wire_put_bytes(s->w, vm->cpuid.e,
		       vm->cpuid.nent * sizeof(vm->cpuid.e[0]));
	section_close(s, STATE_TAG_HOST, 0, 0);
	// The vCPUs before the clock: what they read last is not later than it.
	for (unsigned i = 0; i < vm->nvcpus; i++) {
		section_open(s);
		rc = vcpu_save(&vm->vcpu[i], s->w, e);
		if (rc)
			return rc;
		section_close(s, STATE_TAG_VCPU, i, 0);
	}
	section_open(s);
	rc = save_clock(vm, s->w, e);
	if (rc)
		return rc;
	section_close(s, STATE_TAG_CLOCK, 0, 0);
	save_devices(vm, s);
	return 0;
}

static void put_header(struct vmm *vm, struct saver *s)
{
	uint8_t *buf = s->w->buf;
	struct wire_writer h = wire_writer_of(buf, STATE_HEADER_LEN);
	uint32_t crc;

	wire_put_bytes(&h, STATE_MAGIC, sizeof(STATE_MAGIC));
	wire_put_u32(&h, STATE_VERSION);
	wire_put_u32(&h, STATE_VERSION);
	wire_put_u32(&h, STATE_HEADER_LEN);
	wire_put_u32(&h, s->n);
	wire_put_u64(&h, s->w->len);
	wire_put_u64(&h, vm->mem.bytes);
	wire_put_u32(&h, vm->nvcpus);
	wire_put_u32(&h, 0);
	wire_put_u64(&h, 0);
	wire_put_u32(&h, 0);
	crc = crc32c(0, buf, STATE_HEADER_LEN - 4);
	crc = crc32c(crc, buf + STATE_HEADER_LEN, s->n * STATE_ENTRY_LEN);
	wire_put_u32(&h, crc);
}

int vmm_state_save(struct vmm *vm, struct wire_writer *w, struct err *e)
{
	// HOST, CLOCK, IOAPIC, SERIAL, BELL, the vCPUs and the devices.
	struct saver s = {.w = w, .max = 5 + vm->nvcpus};
	int rc;

	// Or one that was loaded and has not run: its devices are quiet, too.
	if (vm->gate != GATE_PAUSED &&
	    !(vm->gate == GATE_CLOSED && vm->resume_devices))
		return err_set(e, -EBUSY, "only a paused VM can be saved");
	if (w->len != 0)
		return err_set(e, -EINVAL, "a state starts its buffer");
	console_flush(&vm->console);
	for (unsigned i = 0; i < VIO_NUM; i++)
		s.max += vm->vio[i] != NULL;
	for (size_t i = 0; i < STATE_HEADER_LEN + s.max * STATE_ENTRY_LEN; i++)
		wire_put_u8(w, 0);
	rc = save_sections(vm, &s, e);
	if (rc)
		return rc;
	pad_to(w, STATE_ALIGN);
	if (w->bad || w->len > VMM_STATE_MAX)
		return err_set(e, -ENOBUFS,
			       "the state needs %zu bytes, there are %zu",
			       w->len, w->cap);
	put_header(vm, &s);
	return 0;
}

// --- loading ----------------------------------------------------------------

// The shell was made with this host's CPUID. A state from another host brings
// its own, which this host has to be able to honour.
static int load_cpuid(struct vmm *vm, const struct state_section *s,
		      struct err *e)
{
	struct cpuid_table want, t;
	int rc = state_host_parse(s, &want, e);

	if (rc)
		return rc;
	if (want.nent == vm->cpuid.nent &&
	    memcmp(want.e, vm->cpuid.e, want.nent * sizeof(want.e[0])) == 0)
		return 0;
	rc = hostcheck_compare(&want, &vm->cpuid, e);
	if (rc)
		return rc;
	for (unsigned i = 0; i < vm->nvcpus; i++) {
		cpuid_for_vcpu(&want, i, &t);
		if (ioctl(vm->vcpu[i].fd, KVM_SET_CPUID2, &t) < 0)
			return err_sys(e, "KVM_SET_CPUID2 of vCPU %u", i);
	}
	vm->cpuid = want;
	return 0;
}

static uint32_t khz_gap(uint32_t a, uint32_t b)
{
	return a > b ? a - b : b - a;
}

// 250 ppm are within what NTP corrects; KVM itself ignores them, too.
static int load_tsc_khz(struct vmm *vm, uint32_t khz, struct err *e)
{
	if (khz_gap(khz, vm->tsc_khz) <= khz / 4000)
		return 0;
	for (unsigned i = 0; i < vm->nvcpus; i++)
		if (!vm->tsc_control || ioctl(vm->vcpu[i].fd, KVM_SET_TSC_KHZ,
					      (unsigned long)khz) < 0)
			return err_set(e, -ENODEV,
				       "the guest's TSC runs at %u kHz, this "
				       "host's at %u, and it cannot be scaled",
				       khz, vm->tsc_khz);
	vm->tsc_khz = khz;
	return 0;
}

static int load_vcpus(struct vmm *vm, const struct state_view *v, bool later,
		      struct err *e)
{
	int rc = 0;

	for (unsigned i = 0; rc == 0 && i < vm->nvcpus; i++) {
		const struct state_section *s =
		    state_find(v, STATE_TAG_VCPU, i);
		struct wire_reader r = wire_reader_of(s->p, s->len);
		struct vcpu *c = &vm->vcpu[i];

		if (later) {
			c->late = calloc(1, sizeof(*c->late));
			if (!c->late)
				return err_set(e, -ENOMEM, "out of memory");
		}
		rc = vcpu_load(c, &r, c->late, e);
	}
	return rc;
}

static int load_clock(struct vmm *vm, const struct state_clock *c,
		      struct err *e)
{
	struct kvm_clock_data d = {.clock = c->clock_ns};

	if (ioctl(vm->fd, KVM_SET_CLOCK, &d) < 0)
		return err_sys(e, "KVM_SET_CLOCK");
	// Tells the guest's soft-lockup watchdog; guests without kvmclock
	// cannot be told.
	for (unsigned i = 0; i < vm->nvcpus; i++)
		if (vm->vcpu[i].kvmclock)
			vcpu_kvmclock_ctrl(&vm->vcpu[i]);
	return 0;
}

static struct wire_reader reader_of(const struct state_view *v, uint32_t tag)
{
	const struct state_section *s = state_find(v, tag, 0);

	return wire_reader_of(s->p, s->len);
}

static int load_devices(struct vmm *vm, const struct state_view *v,
			struct err *e)
{
	struct wire_reader r = reader_of(v, STATE_TAG_IOAPIC);
	int rc;

	ioapic_load(&vm->ioapic, &r);
	r = reader_of(v, STATE_TAG_SERIAL);
	serial_load(&vm->serial, &r);
	r = reader_of(v, STATE_TAG_BELL);
	rc = doorbell_load(vm, &r);
	if (rc)
		return err_set(e, rc, "loading the mailbox: %s", strerror(-rc));
	for (unsigned i = 0; rc == 0 && i < VIO_NUM; i++) {
		const struct state_section *s =
		    state_find(v, STATE_TAG_VIRTIO, i);

		if (!s)
			continue;
		r = wire_reader_of(s->p, s->len);
		rc = vio_load(vm->vio[i], &r, e);
	}
	return rc;
}

static int check_shape(const struct vmm *vm, const struct vmm_state_info *info,
		       struct err *e)
{
	if (info->mem_bytes != vm->mem.bytes || info->vcpus != vm->nvcpus)
		return err_set(
		    e, -EINVAL,
		    "the state is of a VM of %llu MiB and %u vCPUs, "
		    "this one has %llu MiB and %u",
		    (unsigned long long)(info->mem_bytes >> 20), info->vcpus,
		    (unsigned long long)(vm->mem.bytes >> 20), vm->nvcpus);
	if (info->disk_bytes != vm->disk_bytes)
		return err_set(e, -EINVAL,
			       "the state is of a VM with a disk of %llu "
			       "bytes, this one's has %llu",
			       (unsigned long long)info->disk_bytes,
			       (unsigned long long)vm->disk_bytes);
	return 0;
}

// A guest that watches its generation id gets a new one.
static void load_genid(struct vmm *vm, const struct state_clock *c)
{
	uint8_t id[16];

	vm->genid_used = c->genid_used;
	if (!c->genid_used)
		return;
	util_random(id, sizeof(id));
	gm_write(&vm->mem, VMM_GENID_GPA, id, sizeof(id));
	vm->genid_irq = true;
}

// Everything, or with `later` what does not depend on the moment.
static int load(struct vmm *vm, const void *state, size_t len, bool later,
		struct err *e)
{
	struct state_view v;
	struct state_clock clock = {0};
	int rc;

	if (vm->booted || vm->prepared)
		return err_set(e, -EBUSY, "this VM was booted or loaded");
	rc = state_parse(state, len, &v, e);
	if (rc == 0)
		rc = check_shape(vm, &v.info, e);
	if (rc == 0)
		rc = state_clock_parse(state_find(&v, STATE_TAG_CLOCK, 0),
				       &clock, e);
	if (rc)
		return rc;
	vm->saved_clock = clock;
	rc = load_cpuid(vm, state_find(&v, STATE_TAG_HOST, 0), e);
	if (rc == 0)
		rc = load_tsc_khz(vm, clock.tsc_khz, e);
	if (rc == 0)
		rc = load_vcpus(vm, &v, later, e);
	if (rc == 0 && !later)
		rc = load_clock(vm, &clock, e);
	if (rc == 0)
		rc = load_devices(vm, &v, e);
	vm->prepared = rc == 0;
	return rc;
}

static int now_loaded(struct vmm *vm)
{
	load_genid(vm, &vm->saved_clock);
	vm->prepared = false;
	vm->resume_devices = true;
	vm->booted = true;
	return 0;
}

int vmm_state_load(struct vmm *vm, const void *state, size_t len, struct err *e)
{
	int rc = load(vm, state, len, false, e);

	return rc ? rc : now_loaded(vm);
}

int vmm_state_prepare(struct vmm *vm, const void *state, size_t len,
		      struct err *e)
{
	return load(vm, state, len, true, e);
}

int vmm_state_finish(struct vmm *vm, struct err *e)
{
	int rc = 0;

	if (!vm->prepared)
		return err_set(e, -EINVAL, "this VM was not prepared");
	for (unsigned i = 0; rc == 0 && i < vm->nvcpus; i++)
		rc = vcpu_load_late(&vm->vcpu[i], vm->vcpu[i].late, e);
	if (rc == 0)
		rc = load_clock(vm, &vm->saved_clock, e);
	return rc ? rc : now_loaded(vm);
}

int vmm_state_host_check(int kvm_fd, const void *state, size_t len,
			 struct err *e)
{
	struct state_view v;
	struct cpuid_table want, have;
	int rc = state_parse(state, len, &v, e);

	if (rc == 0)
		rc = state_host_parse(state_find(&v, STATE_TAG_HOST, 0), &want,
				      e);
	if (rc == 0)
		rc = cpuid_policy(kvm_fd, v.info.vcpus, &have, e);
	return rc ? rc : hostcheck_compare(&want, &have, e);
}
