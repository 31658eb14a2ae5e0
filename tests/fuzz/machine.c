#include "machine.h"

#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "fake_kvm.h"

enum { ROUNDS_MAX = 2000, MSRS_MAX = 352 };

// --- the host ---------------------------------------------------------------

// An item of a vCPU's section is {kind, length, bytes}; this is the one of MSRs.
static void add_msrs(const struct state_section *s, uint32_t *msrs, uint32_t *n)
{
	struct wire_reader r = wire_reader_of(s->p, s->len);
	uint32_t kind = 0, len = 0;

	while (wire_left(&r) && kind != 6) {
		kind = wire_get_u32(&r);
		len = wire_get_u32(&r);
		if (kind != 6)
			wire_borrow(&r, ALIGN_UP(len, 8u));
	}
	wire_get_u64(&r);
	for (uint32_t i = 0; i < (len - 8) / 16; i++) {
		uint32_t index = wire_get_u32(&r), k;

		wire_borrow(&r, 12);
		for (k = 0; k < *n && msrs[k] != index; k++)
			;
		if (k == *n && *n < MSRS_MAX)
			msrs[(*n)++] = index;
	}
	fuzz_must(!r.bad);
}

// A processor with a name, and the registers whose order matters.
static void small_host(void)
{
	static const struct kvm_cpuid_entry2 cpuid[] = {{.function = 0},
							{.function = 1}};
	static const uint32_t msrs[] = {0x10, 0x3b, 0x174, 0x6e0, 0x4b564d01};

	fake_kvm_host(cpuid, ARRAY_SIZE(cpuid), msrs, ARRAY_SIZE(msrs));
}

static bool has_host;

// What either has.
static void add_cpuid(struct cpuid_table *all, const struct cpuid_table *t)
{
	for (uint32_t i = 0; i < t->nent; i++) {
		const struct kvm_cpuid_entry2 *c = &t->e[i];
		uint32_t k = 0;

		while (k < all->nent && (all->e[k].function != c->function ||
					 all->e[k].index != c->index))
			k++;
		fuzz_must(k < CPUID_MAX);
		if (k == all->nent) {
			all->e[all->nent++] = *c;
		} else if (c->function) {
			all->e[k].eax |= c->eax;
			all->e[k].ebx |= c->ebx;
			all->e[k].ecx |= c->ecx;
			all->e[k].edx |= c->edx;
		}
	}
}

size_t machine_golden(const char *name, uint8_t *buf)
{
	cleanup_fd int fd = -1;
	struct stat st;
	char path[512];

	snprintf(path, sizeof(path), "%s/%s", GOLDEN_STATES, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	fuzz_must(fd >= 0 && !fstat(fd, &st));
	fuzz_must((size_t)st.st_size <= VMM_STATE_MAX);
	fuzz_must(!util_read_all(fd, buf, (size_t)st.st_size));
	return (size_t)st.st_size;
}

void machine_golden_host(void)
{
	static const char *const golden[] = {"v1-ring3-1cpu",
					     "v1-linux-2cpu-disk"};
	static uint8_t buf[VMM_STATE_MAX];
	struct cpuid_table all = {0}, cpuid;
	uint32_t msrs[MSRS_MAX], nmsrs = 0;

	for (size_t i = 0; i < ARRAY_SIZE(golden) && !has_host; i++) {
		size_t len = machine_golden(golden[i], buf);
		struct state_view v;

		fuzz_must(!state_parse(buf, len, &v, NULL));
		fuzz_must(!state_host_parse(state_find(&v, STATE_TAG_HOST, 0),
					    &cpuid, NULL));
		add_cpuid(&all, &cpuid);
		add_msrs(state_find(&v, STATE_TAG_VCPU, 0), msrs, &nmsrs);
	}
	if (!has_host)
		fake_kvm_host(all.e, all.nent, msrs, nmsrs);
	has_host = true;
}

// --- the disk ---------------------------------------------------------------

static void request(struct machine *m, struct vmm_disk_req *q)
{
	if (m->slow_disk && m->nflying < MACHINE_FLYING)
		m->flying[m->nflying++] = q;
	else
		vmm_disk_done(m->vm, q, m->fail);
}

// What vmm.h promises of a request.
static void disk_submit(void *ctx, struct vmm_disk_req *q)
{
	struct machine *m = ctx;
	size_t sum = 0;

	fuzz_must(q->off % 512 == 0 && q->len % 512 == 0 && q->len);
	fuzz_must(q->off < MACHINE_DISK && q->len <= MACHINE_DISK - q->off);
	fuzz_must(q->niov > 0);
	for (int i = 0; i < q->niov; i++) {
		const struct iovec *v = &q->iov[i];
		size_t at = (size_t)((uint8_t *)v->iov_base -
				     (uint8_t *)vmm_mem_base(m->vm));

		fuzz_must(at < vmm_mem_bytes(m->vm) &&
			  v->iov_len <= vmm_mem_bytes(m->vm) - at);
		if (q->write)
			memcpy(m->disk + q->off + sum, v->iov_base, v->iov_len);
		else
			memcpy(v->iov_base, m->disk + q->off + sum, v->iov_len);
		sum += v->iov_len;
	}
	fuzz_must(sum == q->len);
	if (q->write)
		m->writes++;
	else
		m->reads++;
	request(m, q);
}

static void disk_flush(void *ctx, struct vmm_disk_req *q)
{
	struct machine *m = ctx;

	m->flushes++;
	request(m, q);
}

static const struct vmm_disk_ops disk_ops = {disk_submit, disk_flush};

void machine_disk_done(struct machine *m, unsigned which)
{
	struct vmm_disk_req *q;

	if (!m->nflying)
		return;
	which %= m->nflying;
	q = m->flying[which];
	m->flying[which] = m->flying[--m->nflying];
	vmm_disk_done(m->vm, q, m->fail);
}

void machine_disk_done_all(struct machine *m)
{
	while (m->nflying)
		machine_disk_done(m, 0);
}

// --- life -------------------------------------------------------------------

// Made once, with nothing mapped behind it.
static void *memory(void)
{
	static uint8_t *p;

	if (!p) {
		p = mmap(NULL, MACHINE_LARGE + 8192, PROT_NONE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		fuzz_must(p != MAP_FAILED);
		p += 4096;
	}
	return p;
}

static void use_memory(uint64_t bytes)
{
	static uint64_t now;

	if (now != bytes) {
		fuzz_must(!mprotect(memory(), MACHINE_LARGE, PROT_NONE));
		fuzz_must(!mprotect(memory(), bytes, PROT_READ | PROT_WRITE));
	}
	now = bytes;
}

static struct vmm *make_vm(struct machine *m, const struct vmm_state_info *info,
			   int console)
{
	struct vmm_config cfg = {
	    .struct_size = sizeof(cfg),
	    .kvm_fd = FAKE_KVM_FD,
	    .mem_bytes = info->mem_bytes,
	    .vcpus = info->vcpus,
	    .console_fd = console,
	    .mem_at = memory(),
	};
	struct vmm *vm = NULL;

	if (!has_host)
		small_host();
	has_host = true;
	fuzz_must(!vmm_create(&vm, &cfg, NULL));
	fuzz_must(!vmm_attach_disk(vm, info->disk_bytes, &disk_ops, m, NULL));
	return vm;
}

void machine_shell(struct machine *m, const struct vmm_state_info *info)
{
	*m = (struct machine){0};
	use_memory(info->mem_bytes);
	m->vm = make_vm(m, info, -1);
}

void machine_begin(struct machine *m, uint64_t mem, uint64_t disk, int console)
{
	struct vmm_state_info info = {mem, 1, disk};

	*m = (struct machine){0};
	use_memory(mem);
	m->vm = make_vm(m, &info, console);
	m->vm->booted = true;
	fuzz_must(!vmm_start(m->vm, NULL));
}

void machine_end(struct machine *m)
{
	machine_disk_done_all(m);
	fuzz_must(!madvise(memory(), vmm_mem_bytes(m->vm), MADV_DONTNEED));
	vmm_destroy(m->vm);
}

void *machine_at(struct machine *m, uint64_t gpa, uint64_t len)
{
	return gm_ptr(&m->vm->mem, gpa, len);
}

// --- a vCPU's accesses ------------------------------------------------------

void machine_mmio(struct machine *m, bool write, uint64_t gpa, void *data,
		  unsigned len)
{
	struct kvm_run *run = m->vm->vcpu[0].run;

	run->exit_reason = KVM_EXIT_MMIO;
	run->mmio.phys_addr = gpa;
	run->mmio.len = len;
	run->mmio.is_write = write;
	memcpy(run->mmio.data, data, MIN(len, 8u));
	vcpu_handle_exit(&m->vm->vcpu[0]);
	memcpy(data, run->mmio.data, MIN(len, 8u));
}

void machine_pio(struct machine *m, bool out, uint16_t port, void *data,
		 unsigned size, unsigned count)
{
	struct kvm_run *run = m->vm->vcpu[0].run;
	uint8_t *at = (uint8_t *)run + 4096;

	run->exit_reason = KVM_EXIT_IO;
	run->io.direction = out ? KVM_EXIT_IO_OUT : KVM_EXIT_IO_IN;
	run->io.port = port;
	run->io.size = (uint8_t)size;
	run->io.count = count;
	run->io.data_offset = 4096;
	memcpy(at, data, (size_t)size * count);
	vcpu_handle_exit(&m->vm->vcpu[0]);
	memcpy(data, at, (size_t)size * count);
}

uint32_t machine_rd32(struct machine *m, uint64_t gpa)
{
	uint32_t v = 0;

	machine_mmio(m, false, gpa, &v, 4);
	return v;
}

void machine_wr32(struct machine *m, uint64_t gpa, uint32_t v)
{
	machine_mmio(m, true, gpa, &v, 4);
}

// --- the device thread ------------------------------------------------------

void machine_work(struct machine *m)
{
	struct epoll_event ev;

	for (unsigned i = 0;; i++) {
		if (epoll_wait(vmm_event_fd(m->vm), &ev, 1, 0) <= 0)
			return;
		vmm_dispatch(m->vm);
		fuzz_must(i < ROUNDS_MAX); // it comes to rest
	}
}

static size_t save(struct machine *m, uint8_t *buf)
{
	struct wire_writer w = wire_writer_of(buf, VMM_STATE_MAX);
	struct err e = ERR_INIT;

	if (vmm_state_save(m->vm, &w, &e)) {
		fprintf(stderr, "saving: %s\n", e.msg);
		abort();
	}
	if (vmm_state_check(buf, w.len, NULL, &e)) {
		fprintf(stderr, "checking our own: %s\n", e.msg);
		abort();
	}
	return w.len;
}

// Says which section differs, if one does.
static void same_states(const uint8_t *a, const uint8_t *b, size_t len)
{
	struct state_view va, vb;

	if (!memcmp(a, b, len))
		return;
	fuzz_must(!state_parse(a, len, &va, NULL));
	fuzz_must(!state_parse(b, len, &vb, NULL));
	for (unsigned i = 0; i < va.nsections; i++) {
		const struct state_section *s = &va.s[i];
		size_t n = MIN(s->len, vb.s[i].len);

		for (size_t k = 0; k < n; k++)
			if (s->p[k] != vb.s[i].p[k])
				fprintf(stderr, "%.4s %u, byte %zu: %#x %#x\n",
					(const char *)&s->tag, s->index, k,
					s->p[k], vb.s[i].p[k]);
	}
	abort();
}

void machine_copy(struct machine *m, bool in_two_steps)
{
	static uint8_t state[VMM_STATE_MAX], again[VMM_STATE_MAX];
	struct vmm *old = m->vm;
	const struct vmm_state_info info = {old->mem.bytes, old->nvcpus,
					    old->disk_bytes};
	struct err e = ERR_INIT;
	size_t len = save(m, state);
	int rc;

	m->vm = make_vm(m, &info, old->console.fd);
	rc = in_two_steps ? vmm_state_prepare(m->vm, state, len, &e)
			  : vmm_state_load(m->vm, state, len, &e);
	if (!rc && in_two_steps)
		rc = vmm_state_finish(m->vm, &e);
	if (rc) {
		fprintf(stderr, "loading our own: %s\n", e.msg);
		abort();
	}
	fuzz_must(save(m, again) == len);
	same_states(state, again, len);
	vmm_destroy(old);
}

void machine_move(struct machine *m, bool in_two_steps)
{
	machine_disk_done_all(m);
	if (vmm_pause(m->vm, 0, NULL)) {
		fuzz_must(m->vm->ended);
		return;
	}
	machine_copy(m, in_two_steps);
	fuzz_must(!vmm_start(m->vm, NULL));
}
