// The machine on the host's KVM, with a guest that works in ring 3 (tiny.S).
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <linux/userfaultfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>

#include "vmm_guest.h"

static void need_kvm(void)
{
	if (!have_kvm())
		cr_skip_test("no /dev/kvm");
}

TestSuite(kvm, .init = need_kvm, .timeout = 300);

Test(kvm, config_is_judged)
{
	struct err e = ERR_INIT;
	struct vmm *vm = (void *)1;
	struct vmm_config c = {sizeof(c), -1, 64ull << 20, 1, -1, NULL, NULL};

	c.mem_bytes = 63ull << 20;
	cr_assert_eq(vmm_create(&vm, &c, &e), -EINVAL);
	cr_assert_null(vm);
	c.mem_bytes = (64ull << 20) + 4096;
	cr_assert_eq(vmm_create(&vm, &c, &e), -EINVAL);
	c.mem_bytes = 64ull << 20;
	c.vcpus = 17;
	cr_assert_eq(vmm_create(&vm, &c, &e), -EINVAL);
	c.vcpus = 1;
	c.mem_at = (void *)4097;
	cr_assert_eq(vmm_create(&vm, &c, &e), -EINVAL);
	c.mem_at = NULL;
	c.kvm_fd = -1;
	cr_assert_lt(vmm_create(&vm, &c, &e), 0);
	cr_assert_neq(e.msg[0], 0);
	vmm_destroy(NULL);
}

Test(kvm, shell_that_never_runs)
{
	struct guest g = guest_shell(64ull << 20, 4);
	struct err e = ERR_INIT;

	cr_assert_eq(vmm_start(g.vm, &e), -EINVAL);
	cr_assert_eq(vmm_pause(g.vm, 10, &e), -EINVAL);
	guest_end(&g);
}

Test(kvm, echo_and_poweroff)
{
	struct guest g = guest_shell(64ull << 20, 1);
	char out[8] = "";
	struct pollfd left = {vmm_first_exit_fd(g.vm), POLLIN, 0};

	guest_boot(&g);
	cr_assert_eq(vmm_first_exit_ns(g.vm), 0);
	cr_assert_eq(poll(&left, 1, 0), 0);
	guest_go(&g);
	cr_assert(guest_wait(&g, VMM_EV_READY, NULL));
	cr_assert_neq(vmm_first_exit_ns(g.vm), 0);
	cr_assert_eq(poll(&left, 1, 0), 1);
	guest_stop_counting(&g);
	cr_assert(guest_verdicts(&g));
	// The mailbox wakes a waiting vCPU, and what is put while nobody waits
	// is kept.
	cr_assert_eq(vmm_mailbox_put(g.vm, "hel", 3), 0);
	usleep(20000);
	cr_assert_eq(vmm_mailbox_put(g.vm, "lo\0", 3), 0);
	cr_assert(guest_wait(&g, VMM_EV_POWEROFF, NULL));
	cr_assert_eq(guest_says(&g, out, 5), 5u);
	vmm_dispatch(g.vm);
	cr_assert_lt(read(g.pipe_rd, out + 5, 2), 0, "it says more");
	cr_assert_str_eq(out, "hello");
	vmm_stop(g.vm);
	vmm_stop(g.vm);
	guest_end(&g);
}

Test(kvm, mailbox_is_bounded)
{
	struct guest g = guest_shell(64ull << 20, 1);
	static uint8_t big[MAILBOX_MAX + 1];

	cr_assert_eq(vmm_mailbox_put(g.vm, big, sizeof(big)), -ENOSPC);
	cr_assert_eq(vmm_mailbox_put(g.vm, big, MAILBOX_MAX), 0);
	cr_assert_eq(vmm_mailbox_put(g.vm, big, 1), -ENOSPC);
	guest_end(&g);
}

Test(kvm, triple_fault_is_a_reset)
{
	struct guest g = guest_shell(64ull << 20, 1);
	struct vmm_event ev;
	struct err e = ERR_INIT;

	guest_boot(&g);
	guest_go(&g);
	guest_stop_counting(&g);
	cr_assert_eq(vmm_mailbox_put(g.vm, "\1", 1), 0);
	cr_assert(guest_wait(&g, VMM_EV_RESET, &ev));
	cr_assert_not_null(strstr(ev.text, "triple fault"));
	cr_assert_eq(vmm_pause(g.vm, G_PATIENCE_MS, &e), -ESHUTDOWN);
	guest_end(&g);
}

// Memory that went away must end the VM, never read as something.
Test(kvm, lost_memory_is_fatal)
{
	struct guest g = guest_shell(64ull << 20, 1);
	struct vmm_event ev;

	guest_boot(&g);
	guest_go(&g);
	cr_assert(guest_wait(&g, VMM_EV_READY, NULL));
	cr_assert_eq(munmap((uint8_t *)vmm_mem_base(g.vm) + 0x300000, 0x1000),
		     0);
	cr_assert(guest_wait(&g, VMM_EV_FATAL, &ev));
	cr_assert_neq(ev.text[0], 0);
	// The reservation is whole again for vmm_destroy().
	mmap((uint8_t *)vmm_mem_base(g.vm) + 0x300000, 0x1000, PROT_NONE,
	     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	guest_end(&g);
}

// Exits that a host's KVM does not give on demand: what they mean.
Test(kvm, exits_that_end_a_vm)
{
	static const struct {
		uint32_t reason, type;
		int rc;
		enum vmm_event_kind kind;
		const char *text;
	} t[] = {
	    {KVM_EXIT_MMIO, 0, -EIO, VMM_EV_FATAL, "memory at 0x1000 cannot"},
	    {KVM_EXIT_INTERNAL_ERROR, 0, -EIO, VMM_EV_FATAL, "internal error"},
	    {KVM_EXIT_FAIL_ENTRY, 0, -EIO, VMM_EV_FATAL, "refuses its state"},
	    {KVM_EXIT_XEN, 0, -EIO, VMM_EV_FATAL, "unexpected exit"},
	    {KVM_EXIT_SHUTDOWN, 0, 0, VMM_EV_RESET, "triple fault"},
	    {KVM_EXIT_SYSTEM_EVENT, KVM_SYSTEM_EVENT_SHUTDOWN, 0,
	     VMM_EV_POWEROFF, "powered off"},
	    {KVM_EXIT_SYSTEM_EVENT, KVM_SYSTEM_EVENT_RESET, 0, VMM_EV_RESET,
	     "reset"},
	    {KVM_EXIT_SYSTEM_EVENT, KVM_SYSTEM_EVENT_CRASH, -EIO, VMM_EV_FATAL,
	     "crashed"},
	};

	for (unsigned i = 0; i < ARRAY_SIZE(t); i++) {
		struct guest g = guest_shell(64ull << 20, 1);
		struct kvm_run *run = g.vm->vcpu[0].run;
		struct vmm_event ev = {0};

		run->exit_reason = t[i].reason;
		if (t[i].reason == KVM_EXIT_MMIO) {
			run->mmio.phys_addr = 0x1000;
			run->mmio.len = 4;
			run->mmio.is_write = 0;
		} else if (t[i].reason == KVM_EXIT_SYSTEM_EVENT) {
			run->system_event.type = t[i].type;
		}
		cr_assert_eq(vcpu_handle_exit(&g.vm->vcpu[0]), t[i].rc);
		cr_assert(vmm_next_event(g.vm, &ev));
		cr_assert_eq(ev.kind, t[i].kind);
		cr_assert_not_null(strstr(ev.text, t[i].text), "%s", ev.text);
		guest_end(&g);
	}
}

// UFFDIO_POISON of Linux 6.6; Debian 12's headers are older.
struct poison {
	uint64_t start, len, mode;
	int64_t updated;
};
#define POISON_IOCTL _IOWR(UFFDIO, 0x08, struct poison)
#define POISON_FEATURE (1ull << 14)

// A page whose contents are lost is marked so by whoever serves memory. KVM
// tells by SIGBUS; where it emulates ring 0, by an exit for MMIO at an address
// that is RAM, which must not be answered. The tiny guest uses its counter in
// ring 3, and its stack in ring 0.
enum { STACK = 0x205000 };
ParameterizedTestParameters(kvm, poisoned_memory_is_fatal)
{
	static uint64_t at[] = {G_COUNTERS, STACK};

	return cr_make_param_array(uint64_t, at, ARRAY_SIZE(at));
}

ParameterizedTest(uint64_t *at, kvm, poisoned_memory_is_fatal)
{
	struct guest g = guest_shell(64ull << 20, 1);
	uint64_t page = (uintptr_t)vmm_mem_base(g.vm) + *at;
	struct uffdio_api api = {.api = UFFD_API, .features = POISON_FEATURE};
	struct uffdio_register reg = {.range = {page, 4096},
				      .mode = UFFDIO_REGISTER_MODE_MISSING};
	struct poison poison = {.start = page, .len = 4096};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	struct vmm_event ev;

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0)
		cr_skip_test("no UFFDIO_POISON");
	guest_boot(&g);
	madvise((void *)page, 4096, MADV_DONTNEED);
	cr_assert_eq(ioctl(fd, UFFDIO_REGISTER, &reg), 0);
	cr_assert_eq(ioctl(fd, POISON_IOCTL, &poison), 0);
	guest_go(&g);
	cr_assert(guest_wait(&g, VMM_EV_FATAL, &ev));
	cr_assert_neq(ev.text[0], 0);
	guest_end(&g);
	close(fd);
}

ParameterizedTestParameters(kvm, pause_while_spinning)
{
	static unsigned n[] = {1, 2, 4};

	return cr_make_param_array(unsigned, n, ARRAY_SIZE(n));
}

// Fifty times: park, see that nothing counts, go on, see that all count.
ParameterizedTest(unsigned *n, kvm, pause_while_spinning)
{
	struct guest g = guest_shell(64ull << 20, *n);
	struct err e = ERR_INIT;

	guest_boot(&g);
	guest_go(&g);
	cr_assert(guest_wait(&g, VMM_EV_READY, NULL));
	for (int round = 0; round < 50; round++) {
		uint64_t before[4];

		cr_assert_eq(vmm_pause(g.vm, G_PATIENCE_MS, &e), 0, "%s",
			     e.msg);
		cr_assert_eq(vmm_pause(g.vm, G_PATIENCE_MS, &e),
			     0); // idempotent
		for (unsigned i = 0; i < *n; i++)
			before[i] = *guest_counter(&g, i);
		usleep(200);
		for (unsigned i = 0; i < *n; i++)
			cr_assert_eq(*guest_counter(&g, i), before[i]);
		cr_assert_eq(vmm_unpause(g.vm, &e), 0, "%s", e.msg);
		for (unsigned i = 0; i < *n; i++)
			cr_assert(guest_counts(&g, i, before[i]),
				  "vCPU %u stands still", i);
	}
	cr_assert_eq(vmm_unpause(g.vm, &e), -EINVAL);
	guest_stop_counting(&g);
	cr_assert(guest_verdicts(&g));
	guest_end(&g);
}

struct word { // what a parked guest's vCPU-0 thread waits for
	struct guest *g;
	int fd;
	unsigned rounds;
	pthread_t thread;
};

static void wait_for_word(void *arg)
{
	struct word *w = arg;
	struct err e = ERR_INIT;
	eventfd_t n;

	w->thread = pthread_self();
	if (eventfd_read(w->fd, &n) == 0 && vmm_unpause(w->g->vm, &e) == 0)
		w->rounds++;
}

// Paused in a wait of its own, the vCPU-0 thread itself lets all go on.
ParameterizedTestParameters(kvm, pause_in)
{
	static unsigned n[] = {1, 4};

	return cr_make_param_array(unsigned, n, ARRAY_SIZE(n));
}

ParameterizedTest(unsigned *n, kvm, pause_in)
{
	struct guest g = guest_shell(64ull << 20, *n);
	struct word w = {.g = &g, .fd = eventfd(0, EFD_CLOEXEC)};
	struct err e = ERR_INIT;

	guest_boot(&g);
	guest_go(&g);
	cr_assert(guest_wait(&g, VMM_EV_READY, NULL));
	for (unsigned round = 0; round < 20; round++) {
		uint64_t before[4];

		cr_assert_eq(vmm_pause(g.vm, G_PATIENCE_MS, &e), 0, "%s",
			     e.msg);
		vmm_pause_in(g.vm, wait_for_word, &w);
		for (unsigned i = 0; i < *n; i++)
			before[i] = *guest_counter(&g, i);
		usleep(2000);
		for (unsigned i = 0; i < *n; i++)
			cr_assert_eq(*guest_counter(&g, i), before[i]);
		cr_assert_eq(w.rounds, round);
		cr_assert_eq(eventfd_write(w.fd, 1), 0);
		vmm_await_unpause(g.vm);
		for (unsigned i = 0; i < *n; i++)
			cr_assert(guest_counts(&g, i, before[i]),
				  "vCPU %u stands still", i);
		cr_assert_eq(w.rounds, round + 1);
		cr_assert_not(pthread_equal(w.thread, pthread_self()));
	}
	// The next pause is one like any other.
	cr_assert_eq(vmm_pause(g.vm, G_PATIENCE_MS, &e), 0, "%s", e.msg);
	usleep(2000);
	cr_assert_eq(vmm_unpause(g.vm, &e), 0, "%s", e.msg);
	cr_assert_eq(w.rounds, 20u);
	guest_stop_counting(&g);
	cr_assert(guest_verdicts(&g));
	guest_end(&g);
	close(w.fd);
}

// A vCPU that waits in the mailbox parks, too, and gets its bytes afterwards.
Test(kvm, pause_in_the_mailbox)
{
	struct guest g = guest_shell(64ull << 20, 1);
	struct err e = ERR_INIT;
	char c = 0;

	guest_boot(&g);
	guest_go(&g);
	guest_stop_counting(&g);
	cr_assert(guest_verdicts(&g));
	usleep(10000);
	for (int i = 0; i < 20; i++) {
		cr_assert_eq(vmm_pause(g.vm, G_PATIENCE_MS, &e), 0, "%s",
			     e.msg);
		cr_assert_eq(vmm_mailbox_put(g.vm, &(char){(char)('a' + i)}, 1),
			     0);
		cr_assert_eq(vmm_unpause(g.vm, &e), 0);
		cr_assert_eq(guest_says(&g, &c, 1), 1u);
		cr_assert_eq(c, 'a' + i);
	}
	guest_end(&g);
}

struct bell {
	struct vmm *vm;
	uint32_t got;
	_Atomic bool done;
};

static void *ring_and_wait(void *arg)
{
	struct bell *b = arg;

	doorbell_in(b->vm, 0, &b->got, sizeof(b->got));
	b->done = true;
	return NULL;
}

static void set_gate(struct vmm *vm, int gate)
{
	pthread_mutex_lock(&vm->lock);
	vm->gate = gate;
	pthread_cond_broadcast(&vm->cond);
	pthread_mutex_unlock(&vm->lock);
}

// READY and the wait for the pause are one instruction, which ends whether the
// pause comes before its wait or after it, and takes nothing from the mailbox.
Test(kvm, ready_and_the_wait_in_one)
{
	struct guest g = guest_shell(64ull << 20, 1);
	struct bell b = {.vm = g.vm};
	struct vmm_event ev;
	pthread_t t;

	cr_assert_eq(vmm_mailbox_put(g.vm, "a", 1), 0);
	set_gate(g.vm, GATE_PAUSED); // between the ring and the wait
	ring_and_wait(&b);
	cr_assert_eq(b.got, ~0u);
	cr_assert(vmm_next_event(g.vm, &ev));
	cr_assert_eq(ev.kind, VMM_EV_READY);
	cr_assert_not(vmm_next_event(g.vm, &ev));

	set_gate(g.vm, GATE_OPEN);
	b = (struct bell){.vm = g.vm};
	cr_assert_eq(pthread_create(&t, NULL, ring_and_wait, &b), 0);
	while (!vmm_next_event(g.vm, &ev))
		usleep(1000);
	cr_assert_eq(ev.kind, VMM_EV_READY);
	set_gate(g.vm, GATE_OPEN); // a wake-up that is none
	usleep(20000);
	cr_assert(!b.done, "it waited for nothing");
	set_gate(g.vm, GATE_PAUSED);
	cr_assert_eq(pthread_join(t, NULL), 0);
	cr_assert_eq(b.got, ~0u);
	cr_assert_not(vmm_next_event(g.vm, &ev));

	set_gate(g.vm, GATE_OPEN);
	doorbell_in(g.vm, 4, &b.got, sizeof(b.got));
	cr_assert_eq(b.got, 'a');
	guest_end(&g);
}

// Pausing before any vCPU thread came must not make a later one spin on EINTR.
Test(kvm, pause_before_the_threads)
{
	struct guest g = guest_shell(64ull << 20, 1);
	struct err e = ERR_INIT;

	guest_boot(&g);
	cr_assert_eq(vmm_start(g.vm, &e), 0);
	cr_assert_eq(vmm_pause(g.vm, G_PATIENCE_MS, &e), 0, "%s", e.msg);
	cr_assert_eq(vmm_unpause(g.vm, &e), 0);
	cr_assert_eq(vmm_spawn_vcpus(g.vm, 0, &e), 0);
	cr_assert(guest_wait(&g, VMM_EV_READY, NULL));
	cr_assert_eq(g.vm->vcpu[0].run->immediate_exit, 0);
	guest_end(&g);
}

Test(kvm, largest_shape)
{
	struct guest g = guest_shell(32768ull << 20, 16);
	struct vmm_event ev;

	guest_boot(&g);
	guest_go(&g);
	cr_assert(guest_wait(&g, VMM_EV_READY, NULL));
	for (unsigned i = 0; i < 16; i++)
		cr_assert(guest_counts(&g, i, 0), "vCPU %u stands still", i);
	guest_stop_counting(&g);
	for (unsigned i = 0; i < 16; i++) {
		cr_assert(guest_wait(&g, VMM_EV_DOORBELL, &ev));
		cr_assert_lt(ev.arg, 116, "%u", ev.arg);
	}
	guest_end(&g);
}

static void on_alarm(int sig)
{
	(void)sig;
}

// KVM_CREATE_VM and others give up with EINTR when a signal comes
// (Firecracker's bug #5046).
Test(kvm, signals_while_creating)
{
	struct sigaction sa = {.sa_handler = on_alarm};
	struct itimerval never = {0};

	sigaction(SIGALRM, &sa, NULL);
	for (int i = 0; i < 40; i++) {
		struct itimerval once = {{0, 0}, {0, 20 + 40 * i}};
		struct guest g;

		setitimer(ITIMER_REAL, &once, NULL);
		g = guest_shell(64ull << 20, 2);
		setitimer(ITIMER_REAL, &never, NULL);
		guest_end(&g);
	}
}

static void count_calls(void *ctx, uint32_t events)
{
	(void)events;
	++*(int *)ctx;
}

// The caller's own watches are served, also while a pause waits, and a removed
// one is silent even when its event was harvested already.
Test(kvm, watches)
{
	struct guest g = guest_shell(64ull << 20, 1);
	int n[40] = {0}, fd[40];

	for (int i = 0; i < 40; i++) {
		fd[i] = eventfd(1, EFD_CLOEXEC);
		cr_assert_eq(vmm_watch(g.vm, fd[i], POLLIN, count_calls, &n[i]),
			     0);
	}
	vmm_dispatch(g.vm);
	vmm_dispatch(g.vm);
	for (int i = 0; i < 40; i++)
		cr_assert_geq(n[i], 1);
	for (int i = 0; i < 40; i++) {
		cr_assert_eq(vmm_watch(g.vm, fd[i], 0, NULL, NULL), 0);
		n[i] = 0;
		close(fd[i]);
	}
	vmm_dispatch(g.vm);
	for (int i = 0; i < 40; i++)
		cr_assert_eq(n[i], 0);
	cr_assert_eq(vmm_watch(g.vm, -1, POLLIN, count_calls, n), -EBADF);
	guest_end(&g);
}

// A guest can ring as often as it likes; the event that ends it still arrives.
Test(kvm, event_flood)
{
	struct guest g = guest_shell(64ull << 20, 1);
	struct vmm_event ev = {0};
	int n = 0;

	for (int i = 0; i < 1000; i++)
		vm_event(g.vm, VMM_EV_DOORBELL, (uint32_t)i, "x");
	vm_event(g.vm, VMM_EV_POWEROFF, 0, "off");
	vm_event(g.vm, VMM_EV_FATAL, 0, "after the end");
	while (vmm_next_event(g.vm, &ev))
		n++;
	cr_assert_eq(n, EVENT_RING);
	cr_assert_eq(ev.kind, VMM_EV_POWEROFF);
	guest_end(&g);
}

Test(kvm, two_slots)
{
	struct guest g = guest_shell(3584ull << 20, 1);
	uint8_t *base = vmm_mem_base(g.vm);

	cr_assert_eq(gm_ptr(&g.vm->mem, VMM_LOW_MAX - 1, 1),
		     base + VMM_LOW_MAX - 1);
	cr_assert_null(gm_ptr(&g.vm->mem, VMM_LOW_MAX - 1, 2));
	cr_assert_null(gm_ptr(&g.vm->mem, VMM_LOW_MAX, 1));
	cr_assert_null(gm_ptr(&g.vm->mem, (4ull << 30) - 1, 2));
	cr_assert_eq(gm_ptr(&g.vm->mem, 4ull << 30, 512ull << 20),
		     base + VMM_LOW_MAX);
	cr_assert_null(gm_ptr(&g.vm->mem, 4ull << 30, (512ull << 20) + 1));
	cr_assert_null(gm_ptr(&g.vm->mem, UINT64_MAX, 2));
	cr_assert_null(gm_ptr(&g.vm->mem, 1, UINT64_MAX));
	guest_boot(&g);
	guest_go(&g);
	cr_assert(guest_wait(&g, VMM_EV_READY, NULL));
	guest_end(&g);
}

Test(kvm, cpuid_policy)
{
	struct cpuid_table t, u;
	struct err e = ERR_INIT;
	cleanup_fd int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	const struct kvm_cpuid_entry2 *c;

	cr_assert_eq(cpuid_policy(kvm, 4, &t, &e), 0, "%s", e.msg);
	c = cpuid_find(&t, 0x40000001, 0);
	cr_assert_not_null(c);
	// Asynchronous page faults (4, 10, 14) and steal time (5) are hidden,
	// kvmclock (3) is there.
	cr_assert_eq(c->eax & (1u << 4 | 1u << 10 | 1u << 14 | 1u << 5), 0);
	cr_assert(c->eax & 1u << 3);
	c = cpuid_find(&t, 1, 0);
	cr_assert(c->ecx & 1u << 31 && c->ecx & 1u << 21);
	cr_assert_eq(c->ecx & 1u << 5, 0); // VMX
	cr_assert_eq(c->ebx >> 16 & 0xff, 4);
	c = cpuid_find(&t, 0x80000001, 0);
	cr_assert_eq(c->ecx & 1u << 2, 0); // SVM
	for (unsigned i = 0; i < 4; i++) {
		cpuid_for_vcpu(&t, i, &u);
		cr_assert_eq(cpuid_find(&u, 1, 0)->ebx >> 24, i);
		c = cpuid_find(&u, 0xb, 1);
		cr_assert_not_null(c);
		cr_assert_eq(c->edx, i);
		cr_assert_eq(c->eax, 2);
		cr_assert_eq(c->ebx, 4);
		cr_assert_eq(c->ecx, 0x201);
	}
}

// Another process's answers are taken only as they were given.
Test(kvm, facts_of_another_process)
{
	struct cpuid_table asked, told;
	struct err e = ERR_INIT;
	cleanup_fd int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	cleanup_fd int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	cleanup_fd int cut = memfd_create("cut", MFD_CLOEXEC), facts = -1;
	char bytes[64];

	cr_assert_eq(cpuid_policy(kvm, 2, &asked, &e), 0, "%s", e.msg);
	cr_assert_eq(vmm_prepare(kvm, &e), 0, "%s", e.msg);
	cr_assert_eq(vmm_facts_save(&facts, &e), 0, "%s", e.msg);
	cr_assert_eq(pwrite(facts, "x", 1, 0), -1, "the facts can be changed");
	cr_assert_eq(vmm_facts_load(facts, &e), 0, "%s", e.msg);
	// It asks no KVM any more.
	cr_assert_eq(cpuid_policy(-1, 2, &told, &e), 0, "%s", e.msg);
	cr_assert_eq(told.nent, asked.nent);
	cr_assert_eq(cpuid_find(&told, 0x80000001, 0)->ecx,
		     cpuid_find(&asked, 0x80000001, 0)->ecx);
	cr_assert_eq(vmm_facts_load(null, &e), -EBADMSG);
	cr_assert_eq(pread(facts, bytes, sizeof(bytes), 0), sizeof(bytes));
	cr_assert_eq(pwrite(cut, bytes, sizeof(bytes), 0), sizeof(bytes));
	cr_assert_eq(vmm_facts_load(cut, &e), -EBADMSG);
	// Nothing is left of what was refused.
	cr_assert_lt(cpuid_policy(-1, 2, &told, &e), 0);
}

Test(kvm, host_probe)
{
	struct vmm_host_report r;
	cleanup_fd int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	vmm_host_probe(kvm, &r);
	cr_assert(r.kvm);
	cr_assert(r.split_irqchip);
	cr_assert(r.tsc_runs);
	cr_assert_gt(r.ring0_mips, 0);
	cr_assert_eq(r.stock_kernel, r.why[0] == 0, "%s", r.why);
	if (strcmp(r.flavour, "kvm_pvm") == 0)
		cr_assert_not(r.stock_kernel);
	vmm_host_probe(-1, &r);
	cr_assert_not(r.kvm);
	cr_assert_not(r.stock_kernel);
	cr_assert_neq(r.why[0], 0);
}
