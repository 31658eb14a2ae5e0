// Saved states: what a state must survive, and what must be refused. Guests run
// on the host's KVM; judging needs none (golden files).
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "vmm_guest.h"

#define MEM (64ull << 20)

struct saved {
	uint8_t b[VMM_STATE_MAX];
	size_t len;
};

static struct saved st, st2; // big: not on the stack

static void save(struct guest *g, struct saved *s)
{
	struct wire_writer w = wire_writer_of(s->b, sizeof(s->b));
	struct err e = ERR_INIT;

	cr_assert_eq(vmm_state_save(g->vm, &w, &e), 0, "%s", e.msg);
	s->len = w.len;
}

// A guest of n vCPUs that counts, paused, and its state.
static struct guest counting(unsigned n, struct saved *s)
{
	struct guest g = guest_shell(MEM, n);
	struct err e = ERR_INIT;

	guest_boot(&g);
	guest_go(&g);
	cr_assert(guest_wait(&g, VMM_EV_READY, NULL));
	usleep(2000);
	cr_assert_eq(vmm_mailbox_put(g.vm, "ab", 2), 0);
	cr_assert_eq(vmm_pause(g.vm, G_PATIENCE_MS, &e), 0, "%s", e.msg);
	save(&g, s);
	return g;
}

static struct guest clone_of(struct guest *g, const struct saved *s)
{
	struct guest c = guest_shell(MEM, g->vm->nvcpus);
	struct err e = ERR_INIT;

	// All that tiny.S and the loader use.
	memcpy(vmm_mem_base(c.vm), vmm_mem_base(g->vm), 8 << 20);
	cr_assert_eq(vmm_state_load(c.vm, s->b, s->len, &e), 0, "%s", e.msg);
	return c;
}

// --- editing a state, as a forger would -------------------------------------

static uint8_t *entry(struct saved *s, unsigned i)
{
	return s->b + STATE_HEADER_LEN + i * STATE_ENTRY_LEN;
}

static uint32_t get32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, 4);
	return v;
}

static uint64_t get64(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, 8);
	return v;
}

static void put32(uint8_t *p, uint32_t v)
{
	memcpy(p, &v, 4);
}

static void reseal(struct saved *s)
{
	unsigned n = get32(s->b + 20);
	uint32_t crc;

	for (unsigned i = 0; i < n; i++) {
		uint8_t *t = entry(s, i);
		uint64_t off = get64(t + 16), len = get64(t + 24);

		if (off <= s->len && len <= s->len - off)
			put32(t + 12, crc32c(0, s->b + off, len));
	}
	crc = crc32c(0, s->b, 60);
	crc = crc32c(crc, s->b + 64, n * STATE_ENTRY_LEN);
	put32(s->b + 60, crc);
}

static uint8_t *section(struct saved *s, uint32_t tag, uint32_t index,
			uint64_t *len)
{
	for (unsigned i = 0; i < get32(s->b + 20); i++) {
		uint8_t *t = entry(s, i);

		if (get32(t) == tag && get32(t + 8) == index) {
			if (len)
				*len = get64(t + 24);
			return s->b + get64(t + 16);
		}
	}
	cr_assert_fail("no such section");
	abort();
}

static int check(const struct saved *s)
{
	struct err e = ERR_INIT;
	int rc = vmm_state_check(s->b, s->len, NULL, &e);

	cr_assert(rc == 0 || rc == -EBADMSG || rc == -ENOTSUP, "%d", rc);
	cr_assert_eq(rc == 0, e.msg[0] == 0);
	return rc;
}

static void need_kvm(void)
{
	if (!have_kvm())
		cr_skip_test("no /dev/kvm");
}

TestSuite(state, .init = need_kvm, .timeout = 300);

// --- what it is for ---------------------------------------------------------

ParameterizedTestParameters(state, a_clone_continues)
{
	static unsigned n[] = {1, 2, 4};

	return cr_make_param_array(unsigned, n, ARRAY_SIZE(n));
}

ParameterizedTest(unsigned *n, state, a_clone_continues)
{
	struct guest g = counting(*n, &st);
	struct guest c = clone_of(&g, &st);
	struct vmm_state_info info;
	struct err e = ERR_INIT;
	uint64_t at[4];
	char out[4] = "";

	cr_assert_eq(vmm_state_check(st.b, st.len, &info, &e), 0);
	cr_assert_eq(info.mem_bytes, MEM);
	cr_assert_eq(info.vcpus, *n);
	cr_assert_eq(info.disk_bytes, 0);
	for (unsigned i = 0; i < *n; i++)
		at[i] = *guest_counter(&g, i);
	guest_go(&c);
	for (unsigned i = 0; i < *n; i++)
		cr_assert(guest_counts(&c, i, at[i]), "vCPU %u stands still",
			  i);
	guest_stop_counting(&c);
	// r15, xmm0 and memory agree on every vCPU: nothing was lost or done
	// twice.
	cr_assert(guest_verdicts(&c));
	for (unsigned i = 0; i < *n; i++) {
		cr_assert_gt(*guest_counter(&c, i), at[i]);
		cr_assert_eq(*guest_counter(&g, i), at[i]);
	}
	// The mailbox travelled.
	cr_assert_eq(guest_says(&c, out, 2), 2u);
	cr_assert_str_eq(out, "ab");
	// And the source is none the worse for it.
	cr_assert_eq(vmm_unpause(g.vm, &e), 0, "%s", e.msg);
	guest_stop_counting(&g);
	cr_assert(guest_verdicts(&g));
	guest_end(&c);
	guest_end(&g);
}

// Reads what the console has; every byte must follow its predecessor.
static unsigned follow(struct guest *g, uint8_t *next)
{
	uint8_t buf[4096];
	unsigned n = 0;
	ssize_t r;

	vmm_dispatch(g->vm);
	while ((r = read(g->pipe_rd, buf, sizeof(buf))) > 0)
		for (ssize_t i = 0; i < r; i++, n++)
			cr_assert_eq(buf[i], (*next)++, "after %u bytes", n);
	return n;
}

// Nearly every capture hits a vCPU in a port write: its instruction must be
// finished in the state, so that the clone does not write the byte again.
Test(state, no_output_is_lost_or_doubled)
{
	struct guest g = guest_shell(MEM, 1);
	struct err e = ERR_INIT;
	uint8_t next = 0;

	guest_boot(&g);
	guest_stop_counting(&g);
	cr_assert_eq(vmm_mailbox_put(g.vm, "\2", 1), 0);
	guest_go(&g);
	for (int i = 0; i < 60; i++) {
		uint64_t end = util_now_ns() + G_PATIENCE_MS * 1000000ull;
		unsigned n = 0;
		struct guest c;

		while (n < 20 && util_now_ns() < end) {
			usleep(200);
			n += follow(&g, &next);
		}
		cr_assert_geq(n, 20u, "generation %d is silent", i);
		cr_assert_eq(vmm_pause(g.vm, G_PATIENCE_MS, &e), 0, "%s",
			     e.msg);
		save(&g, &st);
		follow(&g, &next);
		c = clone_of(&g, &st);
		guest_end(&g);
		g = c;
		guest_go(&g);
	}
	guest_end(&g);
}

// Clears what goes on by itself: clock, TSC and the deadline after it.
static void forget_time(struct saved *s)
{
	uint64_t len;
	uint8_t *p = section(s, STATE_TAG_CLOCK, 0, &len);

	memset(p, 0, 8);
	for (unsigned i = 0; i < get32(s->b + 40); i++) {
		p = section(s, STATE_TAG_VCPU, i, &len);
		for (uint64_t at = 0; at < len;) {
			uint32_t kind = get32(p + at), n = get32(p + at + 4);

			if (kind == 6) // MSRs: the TSC is the first
				memset(p + at + 8 + 8 + 8, 0, 8);
			at += 8 + ((n + 7) & ~7u);
		}
	}
	reseal(s);
}

ParameterizedTestParameters(state, load_then_save_is_identical)
{
	static unsigned n[] = {1, 3};

	return cr_make_param_array(unsigned, n, ARRAY_SIZE(n));
}

ParameterizedTest(unsigned *n, state, load_then_save_is_identical)
{
	struct guest g = counting(*n, &st);
	struct guest c = clone_of(&g, &st);

	save(&c, &st2);
	forget_time(&st);
	forget_time(&st2);
	cr_assert_eq(st.len, st2.len);
	for (size_t i = 0; i < st.len; i++)
		if (st.b[i] != st2.b[i])
			cr_assert_fail("byte %zu of %zu differs", i, st.len);
	guest_end(&c);
	guest_end(&g);
}

Test(state, a_hundred_generations)
{
	struct guest g = counting(1, &st);
	struct err e = ERR_INIT;
	uint64_t last = *guest_counter(&g, 0);

	for (int i = 0; i < 100; i++) {
		struct guest c = clone_of(&g, &st);

		guest_end(&g);
		g = c;
		guest_go(&g);
		cr_assert(guest_counts(&g, 0, last), "it stands still");
		cr_assert_eq(vmm_pause(g.vm, G_PATIENCE_MS, &e), 0, "%s",
			     e.msg);
		cr_assert_gt(*guest_counter(&g, 0), last);
		last = *guest_counter(&g, 0);
		save(&g, &st);
	}
	cr_assert_eq(vmm_unpause(g.vm, &e), 0);
	guest_stop_counting(&g);
	cr_assert(guest_verdicts(&g));
	guest_end(&g);
}

static bool is_pvm(void)
{
	return access("/sys/module/kvm_pvm", F_OK) == 0;
}

// Guest time goes on from where it was: neither back nor over the time away. How
// far it went is held against how long ago it was loaded, however long that is.
Test(state, clocks_continue)
{
	struct guest g = counting(1, &st);
	struct guest c;
	struct kvm_clock_data k = {0};
	uint64_t before, tsc, now, tsc_now, loading, most;
	const uint64_t away = 300000000;
	struct {
		struct kvm_msrs h;
		struct kvm_msr_entry e;
	} m = {.h.nmsrs = 1, .e.index = 0x10};

	before = get64(section(&st, STATE_TAG_CLOCK, 0, NULL));
	cr_assert_eq(ioctl(g.vm->vcpu[0].fd, KVM_GET_MSRS, &m), 1);
	tsc = m.e.data; // the source's, which went on
	usleep((useconds_t)(away / 1000));
	loading = util_now_ns();
	c = clone_of(&g, &st);
	cr_assert_eq(ioctl(c.vm->fd, KVM_GET_CLOCK, &k), 0);
	now = k.clock;
	cr_assert_eq(ioctl(c.vm->vcpu[0].fd, KVM_GET_MSRS, &m), 1);
	tsc_now = m.e.data;
	most = util_now_ns() - loading + away / 2;
	cr_assert_geq(now, before);
	cr_assert_lt(now - before, most, "%llu ns",
		     (unsigned long long)(now - before));
	// KVM-PVM runs ring 3 without a TSC offset: there is nothing to see.
	if (!is_pvm())
		cr_assert_lt(tsc_now, tsc + g.vm->tsc_khz * most / 1000000);
	guest_end(&c);
	guest_end(&g);
}

// The order of MSRs: TSC, TSC_ADJUST ... TSC_DEADLINE, kvmclock; no wall clock,
// no PMU.
Test(state, msr_order)
{
	struct guest g = guest_shell(MEM, 1);
	uint32_t n = g.vm->nmsrs;
	bool late = false;

	cr_assert_gt(n, 20);
	cr_assert_eq(g.vm->msr_index[0], 0x10);
	cr_assert_eq(g.vm->msr_index[1], 0x3b);
	for (uint32_t i = 0; i < n; i++) {
		uint32_t x = g.vm->msr_index[i];

		cr_assert_neq(x, 0x11);
		cr_assert_neq(x, 0x4b564d00);
		cr_assert_not(x >= 0xc1 && x <= 0xc8);
		late = late || x == 0x6e0;
		if (x == 0x12 || x == 0x4b564d01)
			cr_assert(late && i + 2 >= n);
		else if (x != 0x6e0)
			cr_assert_not(late);
	}
	cr_assert(late);
	guest_end(&g);
}

// --- misuse -----------------------------------------------------------------

Test(state, only_quiet_vms_are_saved)
{
	struct guest g = guest_shell(MEM, 1);
	struct wire_writer w = wire_writer_of(st.b, sizeof(st.b));
	struct err e = ERR_INIT;

	cr_assert_eq(vmm_state_save(g.vm, &w, &e), -EBUSY);
	guest_boot(&g);
	cr_assert_eq(vmm_state_save(g.vm, &w, &e), -EBUSY);
	guest_go(&g);
	cr_assert_eq(vmm_state_save(g.vm, &w, &e), -EBUSY);
	cr_assert_eq(vmm_pause(g.vm, G_PATIENCE_MS, &e), 0);
	w.cap = 1000; // too little room leaves the VM as it was
	cr_assert_eq(vmm_state_save(g.vm, &w, &e), -ENOBUFS);
	w = wire_writer_of(st.b, sizeof(st.b));
	cr_assert_eq(vmm_state_save(g.vm, &w, &e), 0, "%s", e.msg);
	cr_assert_eq(vmm_state_load(g.vm, st.b, w.len, &e), -EBUSY);
	cr_assert_eq(vmm_unpause(g.vm, &e), 0);
	guest_end(&g);
}

static void no_submit(void *ctx, struct vmm_disk_req *r)
{
	(void)ctx, (void)r;
}

Test(state, shells_of_another_shape)
{
	static const struct vmm_disk_ops ops = {no_submit, no_submit};
	struct guest g = counting(1, &st), c;
	struct err e = ERR_INIT;

	c = guest_shell(MEM + (1 << 20), 1);
	cr_assert_eq(vmm_state_load(c.vm, st.b, st.len, &e), -EINVAL);
	guest_end(&c);
	c = guest_shell(MEM, 2);
	cr_assert_eq(vmm_state_load(c.vm, st.b, st.len, &e), -EINVAL);
	guest_end(&c);
	c = guest_shell(MEM, 1);
	cr_assert_eq(vmm_attach_disk(c.vm, 4096, &ops, NULL, &e), 0);
	cr_assert_eq(vmm_state_load(c.vm, st.b, st.len, &e), -EINVAL);
	guest_end(&c);
	guest_end(&g);
}

// --- hostile states ---------------------------------------------------------

Test(state, every_truncation_is_found)
{
	struct guest g = counting(1, &st);
	size_t whole = st.len;

	for (st.len = 0; st.len < whole; st.len++)
		cr_assert_neq(check(&st), 0, "%zu", st.len);
	st.len = whole;
	cr_assert_eq(check(&st), 0);
	memset(st.b + st.len, 0, 64);
	st.len += 64;
	cr_assert_neq(check(&st), 0);
	guest_end(&g);
}

Test(state, every_flipped_bit_is_found)
{
	struct guest g = counting(2, &st);

	for (size_t i = 0; i < st.len * 8; i++) {
		st.b[i / 8] ^= (uint8_t)(1u << i % 8);
		cr_assert_neq(check(&st), 0, "bit %zu of byte %zu", i % 8,
			      i / 8);
		st.b[i / 8] ^= (uint8_t)(1u << i % 8);
	}
	cr_assert_eq(check(&st), 0);
	guest_end(&g);
}

// Header and table fields with right checksums: offsets, lengths, counts.
Test(state, forged_headers)
{
	static const uint8_t v[] = {0x00, 0x01, 0x02, 0x3f,
				    0x40, 0x7f, 0x80, 0xff};
	struct guest g = counting(1, &st);
	size_t end = STATE_HEADER_LEN + get32(st.b + 20) * STATE_ENTRY_LEN;

	memcpy(&st2, &st, sizeof(st));
	for (size_t at = 0; at < end; at++)
		for (unsigned i = 0; i < ARRAY_SIZE(v); i++) {
			if (st.b[at] == v[i] || (at >= 60 && at < 64))
				continue;
			st.b[at] = v[i];
			if (get32(st.b + 20) <= STATE_SECTIONS_MAX)
				reseal(&st);
			// Only these carry no meaning for this reader: a newer
			// version that says it is compatible, more memory, an
			// OPTIONAL flag on something that is here anyway, and
			// the checksums that were made right again.
			if (check(&st) == 0)
				cr_assert(
				    at == 8 || (at >= 9 && at < 12) ||
					(at >= 32 && at < 40) ||
					(at >= 64 && ((at - 64) % 32 == 6 ||
						      (at - 64) % 32 / 4 == 3)),
				    "byte %zu = %#x", at, v[i]);
			memcpy(&st, &st2, sizeof(st));
		}
	guest_end(&g);
}

// Sections with random contents and right checksums: refused, or loaded without
// harm to us. What KVM thinks of the values is KVM's.
Test(state, forged_sections)
{
	struct guest g = counting(1, &st);
	unsigned seed = 12345, loaded = 0, refused = 0;

	memcpy(&st2, &st, sizeof(st));
	for (int round = 0; round < 20000; round++) {
		unsigned n = get32(st.b + 20);
		uint8_t *t = entry(&st, (unsigned)rand_r(&seed) % n);
		uint64_t off = get64(t + 16), len = get64(t + 24);
		struct err e = ERR_INIT;

		for (int k = rand_r(&seed) % 4; k >= 0; k--)
			st.b[off + (uint64_t)rand_r(&seed) % len] =
			    (uint8_t)rand_r(&seed);
		reseal(&st);
		if (check(&st) != 0) {
			refused++;
		} else if (round % 40 == 0) {
			struct guest c = guest_shell(MEM, 1);

			loaded += vmm_state_load(c.vm, st.b, st.len, &e) == 0;
			guest_end(&c);
		}
		memcpy(&st, &st2, sizeof(st));
	}
	cr_assert_gt(refused, 1000);
	cr_assert_gt(loaded, 0);
	guest_end(&g);
}

Test(state, versions_and_optional_sections)
{
	struct guest g = counting(1, &st);
	uint8_t *t = entry(&st, 0);

	memcpy(&st2, &st, sizeof(st));
	put32(st.b + 8, 2); // written by version 2, readable by 1
	reseal(&st);
	cr_assert_eq(check(&st), 0);
	put32(st.b + 12, 2); // readable from 2 on
	reseal(&st);
	cr_assert_eq(check(&st), -ENOTSUP);
	memcpy(&st, &st2, sizeof(st));
	t[4] = 2; // section of version 2
	reseal(&st);
	cr_assert_eq(check(&st), -ENOTSUP);
	memcpy(&st, &st2, sizeof(st));
	put32(t, FOURCC('W', 'H', 'A', 'T'));
	reseal(&st);
	cr_assert_eq(check(&st), -ENOTSUP);
	t[6] = STATE_F_OPTIONAL; // skipped, but then HOST is missing
	reseal(&st);
	cr_assert_eq(check(&st), -EBADMSG);
	guest_end(&g);
}

// --- another host -----------------------------------------------------------

static struct kvm_cpuid_entry2 *saved_leaf(struct saved *s, uint32_t fn)
{
	uint8_t *p = section(s, STATE_TAG_HOST, 0, NULL);

	for (uint32_t i = 0; i < get32(p); i++) {
		struct kvm_cpuid_entry2 *c =
		    (void *)(p + 8 + i * sizeof(struct kvm_cpuid_entry2));

		if (c->function == fn && c->index == 0)
			return c;
	}
	cr_assert_fail("no leaf %#x", fn);
	abort();
}

Test(state, missing_features_are_named)
{
	struct guest g = counting(1, &st), c;
	struct err e = ERR_INIT;
	cleanup_fd int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	cr_assert_eq(vmm_state_host_check(kvm, st.b, st.len, &e), 0, "%s",
		     e.msg);
	saved_leaf(&st, 0x80000001)->ecx |= 1u
					    << 16; // fma4: on no host of today
	saved_leaf(&st, 7)->ebx |= 1u << 14;	   // mpx: has no name here
	reseal(&st);
	cr_assert_eq(vmm_state_host_check(kvm, st.b, st.len, &e), -ENODEV);
	cr_assert_not_null(strstr(e.msg, "fma4"), "%s", e.msg);
	cr_assert_not_null(strstr(e.msg, "cpuid 0x7.0 ebx bit 14"), "%s",
			   e.msg);
	c = guest_shell(MEM, 1);
	cr_assert_eq(vmm_state_load(c.vm, st.b, st.len, &e), -ENODEV);
	guest_end(&c);
	saved_leaf(&st, 0)->ebx ^= 1;
	reseal(&st);
	cr_assert_eq(vmm_state_host_check(kvm, st.b, st.len, &e), -ENODEV);
	cr_assert_not_null(strstr(e.msg, "vendor"));
	guest_end(&g);
}

// A guest of a host with less: its own CPUID is set, and it runs.
Test(state, fewer_features_are_fine)
{
	struct guest g = counting(1, &st), c;
	struct {
		uint32_t nent, pad;
		struct kvm_cpuid_entry2 e[CPUID_MAX];
	} now = {.nent = CPUID_MAX};

	saved_leaf(&st, 1)->ecx &= ~(1u << 30); // rdrand
	reseal(&st);
	c = clone_of(&g, &st);
	cr_assert_eq(cpuid_find(&c.vm->cpuid, 1, 0)->ecx & 1u << 30, 0);
	cr_assert_eq(ioctl(c.vm->vcpu[0].fd, KVM_GET_CPUID2, &now), 0);
	for (uint32_t i = 0; i < now.nent && !is_pvm(); i++)
		if (now.e[i].function == 1)
			cr_assert_eq(now.e[i].ecx & 1u << 30, 0);
	guest_go(&c);
	guest_stop_counting(&c);
	cr_assert(guest_verdicts(&c));
	guest_end(&c);
	guest_end(&g);
}

// --- golden files -----------------------------------------------------------

static void read_golden(const char *dir, const char *name)
{
	char path[512];
	struct stat sb;
	cleanup_fd int fd = -1;

	snprintf(path, sizeof(path), "%s/%s/%s", GOLDEN_DIR, dir, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	cr_assert(fd >= 0 && fstat(fd, &sb) == 0, "%s", path);
	cr_assert_leq((size_t)sb.st_size, sizeof(st.b));
	st.len = (size_t)sb.st_size;
	cr_assert_eq(util_read_all(fd, st.b, st.len), 0);
}

static unsigned each_golden(const char *dir, int want)
{
	char path[512];
	struct dirent *d;
	unsigned n = 0;
	DIR *handle;

	snprintf(path, sizeof(path), "%s/%s", GOLDEN_DIR, dir);
	handle = opendir(path);
	cr_assert_not_null(handle, "%s", path);
	while ((d = readdir(handle))) {
		if (d->d_name[0] == '.')
			continue;
		read_golden(dir, d->d_name);
		cr_expect_eq(check(&st),
			     strncmp(d->d_name, "notsup", 6) == 0 ? -ENOTSUP
								  : want,
			     "%s/%s", dir, d->d_name);
		n++;
	}
	closedir(handle);
	return n;
}

Test(golden, good_states_are_accepted)
{
	cr_assert_geq(each_golden("good", 0), 2);
}

Test(golden, bad_states_are_refused)
{
	cr_assert_geq(each_golden("bad", -EBADMSG), 10);
}

Test(golden, crc32c)
{
	// RFC 3720, B.4, and its whole-word path with a tail.
	uint8_t ones[32];

	memset(ones, 0xff, sizeof(ones));
	cr_assert_eq(crc32c(0, "123456789", 9), 0xe3069283);
	cr_assert_eq(crc32c(0, ones, 32), 0x62a8ab43);
	cr_assert_eq(crc32c(crc32c(0, "1234", 4), "56789", 5), 0xe3069283);
}
