#include <criterion/criterion.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "vmm_guest.h"

bool have_kvm(void)
{
	return access("/dev/kvm", R_OK | W_OK) == 0;
}

struct guest guest_shell(uint64_t mem_bytes, unsigned vcpus)
{
	struct guest g = {0};
	struct err e = ERR_INIT;
	cleanup_fd int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	struct vmm_config cfg = {
	    .struct_size = sizeof(cfg),
	    .kvm_fd = kvm,
	    .mem_bytes = mem_bytes,
	    .vcpus = vcpus,
	};
	int fds[2];
	void *p;

	cr_assert_eq(pipe2(fds, O_NONBLOCK | O_CLOEXEC), 0);
	g.pipe_rd = fds[0];
	g.pipe_wr = cfg.console_fd = fds[1];
	cr_assert_eq(vmm_create(&g.vm, &cfg, &e), 0, "%s", e.msg);
	p = mmap(vmm_mem_base(g.vm), mem_bytes, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1,
		 0);
	cr_assert_neq(p, MAP_FAILED);
	return g;
}

static void *read_tiny(size_t *len)
{
	cleanup_fd int fd = open(TINY_GUEST, O_RDONLY | O_CLOEXEC);
	struct stat st;
	void *p;

	cr_assert(fd >= 0 && fstat(fd, &st) == 0, "%s is missing", TINY_GUEST);
	*len = (size_t)st.st_size;
	p = malloc(*len);
	cr_assert_eq(util_read_all(fd, p, *len), 0);
	return p;
}

void guest_boot(struct guest *g)
{
	struct err e = ERR_INIT;
	struct kvm_mp_state run = {KVM_MP_STATE_RUNNABLE};
	struct vmm_boot b = {0};
	size_t len;
	cleanup_free void *img = read_tiny(&len);
	struct kvm_regs regs;

	b.kernel = img;
	b.kernel_len = len;
	b.cmdline = "tiny";
	cr_assert_eq(vmm_boot(g->vm, &b, &e), 0, "%s", e.msg);
	cr_assert_eq(ioctl(g->vm->vcpu[0].fd, KVM_GET_REGS, &regs), 0);
	for (unsigned i = 1; i < g->vm->nvcpus; i++) {
		struct vcpu *v = &g->vm->vcpu[i];

		cr_assert_eq(vcpu_set_boot_regs(v, regs.rip, i, &e), 0);
		cr_assert_eq(ioctl(v->fd, KVM_SET_MP_STATE, &run), 0);
	}
}

void guest_go(struct guest *g)
{
	struct err e = ERR_INIT;

	cr_assert_eq(vmm_spawn_vcpus(g->vm, 0, &e), 0, "%s", e.msg);
	cr_assert_eq(vmm_start(g->vm, &e), 0, "%s", e.msg);
}

void guest_end(struct guest *g)
{
	vmm_destroy(g->vm);
	close(g->pipe_rd);
	close(g->pipe_wr);
}

static uint64_t patience(void)
{
	return util_now_ns() + G_PATIENCE_MS * 1000000ull;
}

bool guest_wait(struct guest *g, enum vmm_event_kind kind,
		struct vmm_event *out)
{
	uint64_t end = patience();
	struct vmm_event ev;

	while (util_now_ns() < end) {
		struct pollfd p = {vmm_event_fd(g->vm), POLLIN, 0};

		while (vmm_next_event(g->vm, &ev)) {
			if (out)
				*out = ev;
			if (ev.kind == kind)
				return true;
			if (ev.kind == VMM_EV_FATAL)
				cr_log_error("fatal: %s", ev.text);
			if (ev.kind == VMM_EV_FATAL ||
			    ev.kind == VMM_EV_RESET ||
			    ev.kind == VMM_EV_POWEROFF)
				return false;
		}
		poll(&p, 1, 20);
		vmm_dispatch(g->vm);
	}
	return false;
}

volatile uint64_t *guest_counter(struct guest *g, unsigned vcpu)
{
	return gm_ptr(&g->vm->mem, G_COUNTERS + 64 * vcpu, 8);
}

bool guest_counts(struct guest *g, unsigned vcpu, uint64_t was)
{
	uint64_t end = patience();

	while (*guest_counter(g, vcpu) <= was) {
		if (util_now_ns() > end)
			return false;
		usleep(100);
	}
	return true;
}

size_t guest_says(struct guest *g, void *buf, size_t n)
{
	uint64_t end = patience();
	size_t got = 0;

	while (got < n && util_now_ns() < end) {
		ssize_t r = read(g->pipe_rd, (uint8_t *)buf + got, n - got);

		if (r > 0) {
			got += (size_t)r;
			continue;
		}
		usleep(100);
		vmm_dispatch(g->vm);
	}
	return got;
}

void guest_stop_counting(struct guest *g)
{
	volatile uint32_t *stop = gm_ptr(&g->vm->mem, G_STOP, 4);

	*stop = 1;
}

bool guest_verdicts(struct guest *g)
{
	unsigned good = 0;

	for (unsigned i = 0; i < g->vm->nvcpus; i++) {
		struct vmm_event ev;

		if (!guest_wait(g, VMM_EV_DOORBELL, &ev))
			return false;
		if (ev.arg < 200)
			good |= 1u << (ev.arg - 100);
	}
	return good == (1u << g->vm->nvcpus) - 1;
}
