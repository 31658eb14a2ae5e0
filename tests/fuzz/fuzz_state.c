// Saved states (vmm/state_check.c, state.c, virtio_state.c, kvm_x86.c, msr.c, and the
// devices' own sections): the golden ones with a few fields changed, sections dropped,
// doubled, renamed or of another length, and the checksums and offsets made right again.
// What passes the check is loaded without harm or refused, at once or in two steps;
// what was loaded runs, saves again, and loads again to the same.
#include "machine.h"

#include <errno.h>
#include <string.h>

enum {
	S_REFUSED,
	S_NOT_HERE,
	S_LOADED,
	S_IN_TWO,
	S_REFUSED_IN_TWO,
	S_NOT_READ,
	S_DISK,
	S_HIGH,
	S_STREAMS,
	S_MAIL,
};
struct fuzz_state fuzz_states[] = {
    [S_REFUSED] = {"a state that is refused", 0},
    [S_NOT_HERE] = {"a good state that this host or machine cannot load", 0},
    [S_LOADED] = {"a state that is loaded", 0},
    [S_IN_TWO] = {"one in two steps", 0},
    [S_REFUSED_IN_TWO] = {"one that the second step refuses", 0},
    [S_NOT_READ] = {"an optional section", 0},
    [S_DISK] = {"one with a disk", 0},
    [S_HIGH] = {"one with memory beyond 4 GiB", 0},
    [S_STREAMS] = {"one with answers that are owed", 0},
    [S_MAIL] = {"one with a mailbox", 0},
    {0},
};
const size_t fuzz_around = 100;

static void seen(int s)
{
	fuzz_states[s].seen++;
}

// Where the vsock device's section says how many RSTs are owed, which follow.
enum { VSOCK_RSTS = 156 };

// --- a state in parts -------------------------------------------------------

enum { PARTS_MAX = STATE_SECTIONS_MAX + 8, EDITS_MAX = 24 };

struct part {
	uint32_t tag, index;
	uint16_t version, flags;
	uint8_t *p;
	size_t len;
};

struct state {
	uint32_t version, compat, vcpus, flags;
	uint64_t mem;
	unsigned n;
	struct part part[PARTS_MAX];
	uint8_t out[VMM_STATE_MAX + 4096];
	size_t len;
};

static void part_set(struct part *t, const void *p, size_t len)
{
	uint8_t *fresh = calloc(1, len + 1);

	if (p)
		memcpy(fresh, p, len);
	free(t->p);
	t->p = fresh;
	t->len = len;
}

static void golden(struct state *s, bool linux_guest)
{
	static uint8_t buf[2][VMM_STATE_MAX];
	static size_t len[2];
	const char *name = linux_guest ? "v1-linux-2cpu-disk" : "v1-ring3-1cpu";
	uint8_t *b = buf[linux_guest];
	struct state_view v;

	if (!len[linux_guest])
		len[linux_guest] = machine_golden(name, b);
	fuzz_must(!state_parse(b, len[linux_guest], &v, NULL));
	s->version = s->compat = STATE_VERSION;
	s->flags = 0;
	s->vcpus = v.info.vcpus;
	s->mem = v.info.mem_bytes;
	s->n = v.nsections;
	for (unsigned i = 0; i < s->n; i++) {
		s->part[i] = (struct part){
		    .tag = v.s[i].tag, .index = v.s[i].index, .version = 1};
		part_set(&s->part[i], v.s[i].p, v.s[i].len);
	}
}

static void seal(struct state *s)
{
	struct wire_writer w = wire_writer_of(s->out, sizeof(s->out));
	size_t table = STATE_HEADER_LEN + s->n * STATE_ENTRY_LEN, at = table;
	uint32_t crc;

	for (unsigned i = 0; i < s->n; i++)
		at = ALIGN_UP(at, (size_t)STATE_ALIGN) + s->part[i].len;
	s->len = MIN(ALIGN_UP(at, (size_t)STATE_ALIGN), sizeof(s->out));
	memset(s->out, 0, s->len);
	wire_put_bytes(&w, STATE_MAGIC, 8);
	wire_put_u32(&w, s->version);
	wire_put_u32(&w, s->compat);
	wire_put_u32(&w, STATE_HEADER_LEN);
	wire_put_u32(&w, s->n);
	wire_put_u64(&w, s->len);
	wire_put_u64(&w, s->mem);
	wire_put_u32(&w, s->vcpus);
	wire_put_u32(&w, s->flags);
	w.len = STATE_HEADER_LEN;
	at = ALIGN_UP(table, (size_t)STATE_ALIGN);
	for (unsigned i = 0; i < s->n; i++) {
		const struct part *t = &s->part[i];

		wire_put_u32(&w, t->tag);
		wire_put_u16(&w, t->version);
		wire_put_u16(&w, t->flags);
		wire_put_u32(&w, t->index);
		wire_put_u32(&w, crc32c(0, t->p, t->len));
		wire_put_u64(&w, at);
		wire_put_u64(&w, t->len);
		if (at + t->len <= sizeof(s->out))
			memcpy(s->out + at, t->p, t->len);
		at = ALIGN_UP(at + t->len, (size_t)STATE_ALIGN);
	}
	crc = crc32c(0, s->out, STATE_HEADER_LEN - 4);
	crc = crc32c(crc, s->out + STATE_HEADER_LEN, s->n * STATE_ENTRY_LEN);
	wire_patch_u32(&w, STATE_HEADER_LEN - 4, crc);
}

static void state_free(struct state *s)
{
	for (unsigned i = 0; i < s->n; i++)
		free(s->part[i].p);
}

// --- changing it ------------------------------------------------------------

static void edit_bytes(struct part *t, struct fuzz_in *in, size_t width)
{
	size_t at = in_u16(in);
	uint64_t v = in_odd(in);

	if (t->len < width)
		return;
	memcpy(t->p + at % (t->len - width + 1), &v, width);
}

static void part_resize(struct part *t, size_t len, uint8_t fill)
{
	struct part was = *t;

	t->p = NULL;
	part_set(t, NULL, len);
	memset(t->p, fill, len);
	memcpy(t->p, was.p, MIN(was.len, len));
	free(was.p);
}

static void edit_length(struct part *t, struct fuzz_in *in)
{
	uint64_t len = in_odd(in);

	if (len > 70000) // about what it was
		len = t->len + (len & 255) - MIN(t->len, 128u);
	part_resize(t, (size_t)len, in_u8(in));
}

// The vsock device with RSTs to be sent.
static void edit_rsts(struct state *s, struct fuzz_in *in)
{
	uint32_t n = in_u16(in) % 2048;

	for (unsigned i = 0; i < s->n; i++) {
		struct part *t = &s->part[i];

		if (t->tag != STATE_TAG_VIRTIO || t->index != VIO_VSOCK ||
		    t->len < VSOCK_RSTS + 4)
			continue;
		part_resize(t, VSOCK_RSTS + 4 + 8 * (size_t)n, 0);
		memcpy(t->p + VSOCK_RSTS, &n, 4);
	}
}

static void edit_mail(struct state *s, struct fuzz_in *in)
{
	uint64_t n = in_odd(in) & 0x1ffff;

	for (unsigned i = 0; i < s->n; i++) {
		struct part *t = &s->part[i];
		uint32_t count = (uint32_t)n;

		if (t->tag != STATE_TAG_BELL)
			continue;
		part_set(t, NULL, n + 4);
		memcpy(t->p, &count, 4);
	}
}

static void edit_header(struct state *s, struct fuzz_in *in)
{
	uint8_t which = in_u8(in);
	uint64_t v = in_odd(in);

	switch (which % 6) {
	case 0:
		s->version = (uint32_t)v;
		break;
	case 1:
		s->compat = (uint32_t)v;
		break;
	case 2:
		s->flags = (uint32_t)v;
		break;
	case 3:
		s->vcpus = (uint32_t)v;
		break;
	case 4:
		s->mem = v;
		break;
	default:
		s->mem = MACHINE_LARGE;
	}
}

static void remove_part(struct state *s, unsigned i)
{
	free(s->part[i].p);
	memmove(&s->part[i], &s->part[i + 1],
		(s->n - i - 1) * sizeof(s->part[0]));
	s->n--;
}

static void copy_part(struct state *s, unsigned i, uint32_t index)
{
	struct part *t = &s->part[s->n];

	if (s->n == PARTS_MAX)
		return;
	*t = s->part[i];
	t->p = NULL;
	t->index = index;
	part_set(t, s->part[i].p, t->len);
	s->n++;
}

static void edit(struct state *s, struct fuzz_in *in)
{
	uint8_t what = in_u8(in), which = in_u8(in);
	unsigned i = s->n ? which % s->n : 0;
	struct part *t = &s->part[i];

	if (!s->n)
		return;
	switch (what % 16) {
	case 0:
		edit_header(s, in);
		break;
	case 1:
		remove_part(s, i);
		break;
	case 2:
		copy_part(s, i, in_u8(in));
		break;
	case 3:
		t->index = (uint32_t)in_odd(in);
		break;
	case 4:
		t->flags = (uint16_t)in_odd(in);
		break;
	case 5:
		t->version = (uint16_t)in_odd(in);
		break;
	case 6:
		t->tag = what & 0x10 ? STATE_TAG_INFO : (uint32_t)in_odd(in);
		break;
	case 7:
		edit_length(t, in);
		break;
	case 8:
		edit_rsts(s, in);
		break;
	case 9:
		edit_mail(s, in);
		break;
	default:
		edit_bytes(t, in, 1u << (what >> 4 & 3));
		break;
	}
}

// --- trying it --------------------------------------------------------------

static void note(const struct state *s, const struct vmm_state_info *info)
{
	seen(S_LOADED);
	if (info->disk_bytes)
		seen(S_DISK);
	if (info->mem_bytes > VMM_LOW_MAX)
		seen(S_HIGH);
	for (unsigned i = 0; i < s->n; i++) {
		const struct part *t = &s->part[i];

		if (t->flags & STATE_F_OPTIONAL)
			seen(S_NOT_READ);
		if (t->tag == STATE_TAG_BELL && t->len > 4)
			seen(S_MAIL);
		if (t->tag == STATE_TAG_VIRTIO && t->index == VIO_VSOCK &&
		    t->len > VSOCK_RSTS + 4)
			seen(S_STREAMS);
	}
}

static void load(const struct state *s, const struct vmm_state_info *info,
		 bool in_two)
{
	struct machine m;
	struct err e = ERR_INIT;
	int rc;

	machine_shell(&m, info);
	rc = in_two ? vmm_state_prepare(m.vm, s->out, s->len, &e)
		    : vmm_state_load(m.vm, s->out, s->len, &e);
	if (!rc && in_two) {
		seen(S_IN_TWO);
		rc = vmm_state_finish(m.vm, &e);
		if (rc)
			seen(S_REFUSED_IN_TWO);
	}
	if (rc) {
		fuzz_must(rc < 0 && e.msg[0]);
		seen(S_NOT_HERE);
	} else {
		note(s, info);
		machine_copy(&m, !in_two);
		fuzz_must(!vmm_start(m.vm, NULL));
		machine_work(&m);
		machine_move(&m, in_two);
		machine_work(&m);
	}
	machine_end(&m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	static struct state s;
	struct fuzz_in in = {data, data + n};
	uint8_t how = in_u8(&in);
	struct vmm_state_info info;
	struct err e = ERR_INIT;
	int rc;

	machine_golden_host();
	golden(&s, how & 1);
	for (unsigned i = 0; i < EDITS_MAX && in_left(&in); i++)
		edit(&s, &in);
	seal(&s);
	rc = vmm_state_check(s.out, s.len, &info, &e);
	if (rc) {
		fuzz_must((rc == -EBADMSG || rc == -ENOTSUP) && e.msg[0]);
		seen(S_REFUSED);
	} else if (info.mem_bytes <= MACHINE_LARGE) {
		load(&s, &info, how & 2);
	}
	state_free(&s);
	return 0;
}
