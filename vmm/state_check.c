// Judging a saved state, without KVM: docs/STATE_FORMAT.md says what is
// checked.
//
// One pass over the header and the section table gives a view whose pointers go
// into the caller's buffer; nothing is copied and nothing allocated, because a
// restore passes here. The layout is canonical (sections in table order,
// without gaps, padding zero), so that a state has exactly one encoding and
// every byte of it is covered by a check: a flipped bit anywhere is found.
#include <cpuid.h>
#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "vmm_internal.h"

const uint8_t STATE_MAGIC[8] = {0x89, 'T', 'W', 'S', '\r', '\n', 0x1a, '\n'};

// --- CRC32C (Castagnoli, reflected; RFC 3720 appendix B.4) ------------------

static uint32_t crc32c_soft(uint32_t crc, const uint8_t *p, size_t len)
{
	while (len--) {
		crc ^= *p++;
		for (int i = 0; i < 8; i++)
			crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
	}
	return crc;
}

__attribute__((target("sse4.2"))) static uint32_t
crc32c_hard(uint32_t crc, const uint8_t *p, size_t len)
{
	uint64_t c = crc;

	for (; len >= 8; p += 8, len -= 8) {
		uint64_t v;

		memcpy(&v, p, sizeof(v));
		c = __builtin_ia32_crc32di(c, v);
	}
	crc = (uint32_t)c;
	while (len--)
		crc = __builtin_ia32_crc32qi(crc, *p++);
	return crc;
}

// Asked once: CPUID leaves a VM, and costs microseconds where thaw runs in one.
static bool has_sse42(void)
{
	static _Atomic int known = -1;
	int has = atomic_load_explicit(&known, memory_order_relaxed);
	unsigned a, b, c, d;

	if (has < 0) {
		__cpuid(1, a, b, c, d);
		has = (c & bit_SSE4_2) != 0;
		atomic_store_explicit(&known, has, memory_order_relaxed);
	}
	return has != 0;
}

uint32_t crc32c(uint32_t crc, const void *p, size_t len)
{
	crc = ~crc;
	crc = has_sse42() ? crc32c_hard(crc, p, len) : crc32c_soft(crc, p, len);
	return ~crc;
}

// --- the container ----------------------------------------------------------

static int parse_header(const uint8_t *p, size_t len, struct state_view *out,
			struct err *e)
{
	struct wire_reader r = wire_reader_of(p, len);
	uint32_t version, compat, hlen, vcpus, flags, crc, sum;
	uint64_t total, mem, reserved;
	const void *magic = wire_borrow(&r, sizeof(STATE_MAGIC));
	size_t table;

	if (!magic || memcmp(magic, STATE_MAGIC, sizeof(STATE_MAGIC)) != 0)
		return err_set(e, -EBADMSG, "this is not a saved state");
	version = wire_get_u32(&r);
	compat = wire_get_u32(&r);
	hlen = wire_get_u32(&r);
	out->nsections = wire_get_u32(&r);
	total = wire_get_u64(&r);
	mem = wire_get_u64(&r);
	vcpus = wire_get_u32(&r);
	flags = wire_get_u32(&r);
	reserved = wire_get_u64(&r);
	reserved |= wire_get_u32(&r);
	crc = wire_get_u32(&r);
	table = (size_t)out->nsections * STATE_ENTRY_LEN;
	if (r.bad || out->nsections == 0 ||
	    out->nsections > STATE_SECTIONS_MAX || table > wire_left(&r))
		return err_set(e, -EBADMSG, "the state is cut off");
	sum = crc32c(0, p, STATE_HEADER_LEN - 4);
	sum = crc32c(sum, p + STATE_HEADER_LEN, table);
	if (sum != crc)
		return err_set(e, -EBADMSG,
			       "the state's header is damaged (checksum)");
	if (compat > STATE_VERSION)
		return err_set(e, -ENOTSUP,
			       "the state has format version %u (readable from "
			       "%u), this program reads up to %d",
			       version, compat, STATE_VERSION);
	if (version < compat || compat == 0 || hlen != STATE_HEADER_LEN ||
	    flags || reserved || total != len || mem & 0xfffff ||
	    mem >> 20 < VMM_MIN_MEM_MIB || mem >> 20 > VMM_MAX_MEM_MIB ||
	    vcpus < 1 || vcpus > VMM_MAX_VCPUS)
		return err_set(e, -EBADMSG, "the state's header is invalid");
	out->info.mem_bytes = mem;
	out->info.vcpus = vcpus;
	return 0;
}

static bool known_tag(uint32_t tag)
{
	switch (tag) {
	case STATE_TAG_HOST:
	case STATE_TAG_CLOCK:
	case STATE_TAG_IOAPIC:
	case STATE_TAG_SERIAL:
	case STATE_TAG_BELL:
	case STATE_TAG_VCPU:
	case STATE_TAG_VIRTIO:
	case STATE_TAG_INFO:
		return true;
	}
	return false;
}

static bool all_zero(const uint8_t *p, size_t n)
{
	while (n--)
		if (*p++)
			return false;
	return true;
}

// One entry of the table. *end is where the previous section ended, padded.
static int parse_entry(const uint8_t *state, size_t len, struct wire_reader *r,
		       struct state_section *s, size_t *end, struct err *e)
{
	uint32_t crc;
	uint64_t off, n, padded;
	uint16_t version, flags;

	s->tag = wire_get_u32(r);
	version = wire_get_u16(r);
	flags = wire_get_u16(r);
	s->index = wire_get_u32(r);
	crc = wire_get_u32(r);
	off = wire_get_u64(r);
	n = wire_get_u64(r);
	if (r->bad || off != *end || n > len || off > len || n > len - off)
		return err_set(e, -EBADMSG, "a section lies outside the state");
	padded = ALIGN_UP(n, (uint64_t)STATE_ALIGN);
	if (padded > len - off ||
	    !all_zero(state + off + n, (size_t)(padded - n)))
		return err_set(e, -EBADMSG, "a section's padding is not zero");
	if (crc32c(0, state + off, (size_t)n) != crc)
		return err_set(e, -EBADMSG,
			       "section %.4s is damaged (checksum)",
			       (const char *)(r->p - STATE_ENTRY_LEN));
	s->p = state + off;
	s->len = (size_t)n;
	*end = (size_t)(off + padded);
	if (flags & ~STATE_F_OPTIONAL)
		return err_set(e, -EBADMSG, "a section has unknown flags");
	if (flags & STATE_F_OPTIONAL)
		return 0;
	if (!known_tag(s->tag) || version != 1)
		return err_set(e, -ENOTSUP,
			       "section %.4s version %u is not known here",
			       (const char *)(r->p - STATE_ENTRY_LEN), version);
	return 0;
}

const struct state_section *state_find(const struct state_view *v, uint32_t tag,
				       uint32_t index)
{
	for (unsigned i = 0; i < v->nsections; i++)
		if (v->s[i].tag == tag && v->s[i].index == index)
			return &v->s[i];
	return NULL;
}

static int no_duplicates(const struct state_view *v, struct err *e)
{
	for (unsigned i = 0; i < v->nsections; i++)
		if (state_find(v, v->s[i].tag, v->s[i].index) != &v->s[i])
			return err_set(e, -EBADMSG, "a section occurs twice");
	return 0;
}

// --- the sections -----------------------------------------------------------

int state_clock_parse(const struct state_section *s, struct state_clock *out,
		      struct err *e)
{
	struct wire_reader r = wire_reader_of(s->p, s->len);

	out->clock_ns = wire_get_u64(&r);
	out->tsc_khz = wire_get_u32(&r);
	out->genid_used = wire_get_u32(&r);
	// 584 years, less than any sum of ours overflows at.
	if (r.bad || wire_left(&r) || out->clock_ns >> 63 ||
	    out->tsc_khz < 100000 || out->tsc_khz > 10000000 ||
	    out->genid_used > 1)
		return err_set(e, -EBADMSG, "the clock section is invalid");
	return 0;
}

int state_host_parse(const struct state_section *s, struct cpuid_table *out,
		     struct err *e)
{
	struct wire_reader r = wire_reader_of(s->p, s->len);

	out->nent = wire_get_u32(&r);
	out->pad = wire_get_u32(&r);
	if (r.bad || out->pad || out->nent == 0 || out->nent > CPUID_MAX ||
	    wire_left(&r) != out->nent * sizeof(out->e[0]))
		return err_set(e, -EBADMSG, "the CPUID table is invalid");
	wire_get_bytes(&r, out->e, out->nent * sizeof(out->e[0]));
	for (uint32_t i = 0; i < out->nent; i++)
		if ((out->e[i].flags &
		     ~(uint32_t)KVM_CPUID_FLAG_SIGNIFCANT_INDEX) ||
		    out->e[i].padding[0] | out->e[i].padding[1] |
			out->e[i].padding[2])
			return err_set(e, -EBADMSG,
				       "the CPUID table is invalid");
	return 0;
}

static int check_one(const struct state_section *s, struct vmm_state_info *info,
		     struct err *e)
{
	struct wire_reader r = wire_reader_of(s->p, s->len);
	struct state_clock clock;
	struct cpuid_table cpuid;
	int rc;

	if (s->tag != STATE_TAG_VCPU && s->tag != STATE_TAG_VIRTIO &&
	    s->index != 0)
		return err_set(e, -EBADMSG, "a section's index is invalid");
	switch (s->tag) {
	case STATE_TAG_HOST:
		return state_host_parse(s, &cpuid, e);
	case STATE_TAG_CLOCK:
		return state_clock_parse(s, &clock, e);
	case STATE_TAG_IOAPIC:
		return ioapic_check(&r, e);
	case STATE_TAG_SERIAL:
		return serial_check(&r, e);
	case STATE_TAG_BELL:
		return doorbell_check(&r, e);
	case STATE_TAG_VCPU:
		if (s->index >= info->vcpus)
			return err_set(e, -EBADMSG, "one vCPU too many");
		return vcpu_check(&r, s->index, e);
	case STATE_TAG_VIRTIO:
		if (s->index >= VIO_NUM)
			return err_set(e, -EBADMSG, "one device too many");
		rc = vio_check(s->index, &r, info->mem_bytes, e);
		if (rc == 0 && s->index == VIO_BLK)
			rc = vio_blk_saved_bytes(s->p, s->len,
						 &info->disk_bytes);
		// A VM without a disk has no such device to load it into.
		if (rc == 0 && s->index == VIO_BLK && info->disk_bytes == 0)
			rc = err_set(e, -EBADMSG, "the disk has no bytes");
		return rc;
	}
	return 0; // INFO, and optional sections of a later version
}

static int check_complete(const struct state_view *v, struct err *e)
{
	static const uint32_t once[] = {STATE_TAG_HOST, STATE_TAG_CLOCK,
					STATE_TAG_IOAPIC, STATE_TAG_SERIAL,
					STATE_TAG_BELL};
	bool ok = state_find(v, STATE_TAG_VIRTIO, VIO_VSOCK) &&
		  state_find(v, STATE_TAG_VIRTIO, VIO_RNG);

	for (unsigned i = 0; i < ARRAY_SIZE(once); i++)
		ok = ok && state_find(v, once[i], 0);
	for (unsigned i = 0; i < v->info.vcpus; i++)
		ok = ok && state_find(v, STATE_TAG_VCPU, i);
	return ok ? 0 : err_set(e, -EBADMSG, "the state lacks a section");
}

int state_parse(const void *state, size_t len, struct state_view *out,
		struct err *e)
{
	struct wire_reader r;
	size_t end;
	int rc;

	out->info = (struct vmm_state_info){0};
	if (len > VMM_STATE_MAX)
		return err_set(e, -EBADMSG,
			       "the state has %zu bytes, at most "
			       "%d are possible",
			       len, VMM_STATE_MAX);
	rc = parse_header(state, len, out, e);
	if (rc)
		return rc;
	r = wire_reader_of((const uint8_t *)state + STATE_HEADER_LEN,
			   out->nsections * (size_t)STATE_ENTRY_LEN);
	end = ALIGN_UP(STATE_HEADER_LEN + out->nsections * STATE_ENTRY_LEN,
		       (size_t)STATE_ALIGN);
	if (end > len ||
	    !all_zero(r.end, (size_t)((const uint8_t *)state + end - r.end)))
		return err_set(e, -EBADMSG, "the section table is invalid");
	for (unsigned i = 0; rc == 0 && i < out->nsections; i++)
		rc = parse_entry(state, len, &r, &out->s[i], &end, e);
	if (rc == 0 && end != len)
		rc = err_set(e, -EBADMSG, "bytes follow the last section");
	if (rc == 0)
		rc = no_duplicates(out, e);
	for (unsigned i = 0; rc == 0 && i < out->nsections; i++)
		rc = check_one(&out->s[i], &out->info, e);
	return rc ? rc : check_complete(out, e);
}

int vmm_state_check(const void *state, size_t len, struct vmm_state_info *info,
		    struct err *e)
{
	struct state_view v;
	int rc = state_parse(state, len, &v, e);

	if (rc == 0 && info)
		*info = v.info;
	return rc;
}
