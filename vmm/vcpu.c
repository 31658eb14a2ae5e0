// One vCPU's thread. The theory of the gate:
//
// States: a thread is outside (not entered), in the guest (entered, not
// parked), or parked. vm->gate says where all of them should be. Whoever shuts
// the gate does so under vm->lock, then sets every kvm_run's immediate_exit and
// signals every thread that is in the guest. A thread between its look at the
// gate and KVM_RUN finds immediate_exit set; one inside KVM_RUN is interrupted
// by the signal; one in the mailbox's wait is woken by vm->cond. So no kick is
// lost, and immediate_exit is cleared only by the thread itself, under the
// lock, when it sees the gate open again.
//
// Invariant: a parked vCPU has no half-done instruction. After a PIO or MMIO
// exit KVM finishes the instruction at the next KVM_RUN only; until then its
// registers are not those of any architectural moment. So before it parks, the
// thread re-enters with immediate_exit until KVM answers EINTR. A string or a
// split access may exit again while it does: that is emulated, too.
//
// Limits: a thread that KVM holds in a page fault which nobody serves cannot be
// parked; vmm_pause() then times out.
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

#include "vmm_internal.h"

// Interrupts KVM_RUN. A library may not own SIGUSR1; real-time signals near
// SIGRTMIN are the C library's.
#define KICK_SIGNAL (SIGRTMIN + 3)

static void kick_handler(int sig)
{
	(void)sig;
}

// The vCPU whose KVM_RUN this thread is in.
static __thread struct vcpu *volatile running;
static struct sigaction old_bus;

// KVM reports a poisoned page of guest memory by SIGBUS, and would enter the
// guest again. Outside of KVM_RUN a SIGBUS is not ours: whoever had the signal
// before gets it when the access is repeated.
static void bus_handler(int sig, siginfo_t *si, void *ctx)
{
	struct vcpu *v = running;

	(void)sig, (void)si, (void)ctx;
	if (!v) {
		sigaction(SIGBUS, &old_bus, NULL);
		return;
	}
	v->bus_error = true;
	__atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
}

static void install_handler(void)
{
	struct sigaction sa = {.sa_handler = kick_handler};
	struct sigaction bus = {.sa_sigaction = bus_handler,
				.sa_flags = SA_SIGINFO};

	sigaction(KICK_SIGNAL, &sa, NULL); // without SA_RESTART
	sigaction(SIGBUS, &bus, &old_bus);
}

static int kvm_run(struct vcpu *v)
{
	int rc;

	running = v;
	rc = ioctl(v->fd, KVM_RUN, 0);
	running = NULL;
	return rc;
}

void vcpu_signal_init(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, install_handler);
}

void vcpu_kick_locked(struct vmm *vm)
{
	for (unsigned i = 0; i < vm->nvcpus; i++) {
		struct vcpu *v = &vm->vcpu[i];

		if (v->run)
			__atomic_store_n(&v->run->immediate_exit, 1,
					 __ATOMIC_SEQ_CST);
		if (v->entered && !v->parked &&
		    !pthread_equal(v->thread, pthread_self()))
			pthread_kill(v->thread, KICK_SIGNAL);
	}
}

// --- exits ------------------------------------------------------------------

static void exit_io(struct vcpu *v)
{
	struct kvm_run *run = v->run;
	uint8_t *p = (uint8_t *)run + run->io.data_offset;

	for (uint32_t i = 0; i < run->io.count; i++, p += run->io.size)
		bus_pio(v->vm, run->io.direction == KVM_EXIT_IO_OUT,
			run->io.port, p, run->io.size);
}

static int exit_mmio(struct vcpu *v)
{
	struct kvm_run *run = v->run;
	uint64_t gpa = run->mmio.phys_addr;

	// KVM could not use memory that is there for the guest: its page is
	// lost or poisoned. Answering would give the guest wrong bytes.
	if (gm_ptr(&v->vm->mem, gpa, 1)) {
		vm_event(v->vm, VMM_EV_FATAL, 0,
			 "vCPU %u: guest memory at %#llx cannot be accessed",
			 v->index, (unsigned long long)gpa);
		return -EIO;
	}
	bus_mmio(v->vm, run->mmio.is_write, gpa, run->mmio.data,
		 MIN(run->mmio.len, 8u));
	return 0;
}

static int exit_fatal(struct vcpu *v)
{
	struct kvm_run *run = v->run;
	struct kvm_regs regs = {0};

	ioctl(v->fd, KVM_GET_REGS, &regs);
	switch (run->exit_reason) {
	case KVM_EXIT_INTERNAL_ERROR:
		vm_event(v->vm, VMM_EV_FATAL, run->internal.suberror,
			 "vCPU %u: KVM internal error %u at rip %#llx",
			 v->index, run->internal.suberror,
			 (unsigned long long)regs.rip);
		break;
	case KVM_EXIT_FAIL_ENTRY:
		vm_event(v->vm, VMM_EV_FATAL, 0,
			 "vCPU %u: the processor refuses its state (%#llx)",
			 v->index,
			 (unsigned long long)
			     run->fail_entry.hardware_entry_failure_reason);
		break;
	default:
		vm_event(v->vm, VMM_EV_FATAL, run->exit_reason,
			 "vCPU %u: unexpected exit %u at rip %#llx", v->index,
			 run->exit_reason, (unsigned long long)regs.rip);
	}
	return -EIO;
}

static int exit_system_event(struct vcpu *v)
{
	switch (v->run->system_event.type) {
	case KVM_SYSTEM_EVENT_SHUTDOWN:
		vm_event(v->vm, VMM_EV_POWEROFF, 0, "the guest powered off");
		return 0;
	case KVM_SYSTEM_EVENT_RESET:
		vm_event(v->vm, VMM_EV_RESET, 0, "the guest asked for a reset");
		return 0;
	default:
		vm_event(v->vm, VMM_EV_FATAL, v->run->system_event.type,
			 "the guest crashed (system event %u)",
			 v->run->system_event.type);
		return -EIO;
	}
}

int vcpu_handle_exit(struct vcpu *v)
{
	switch (v->run->exit_reason) {
	case KVM_EXIT_IO:
		v->io_pending = true;
		exit_io(v);
		return 0;
	case KVM_EXIT_MMIO:
		v->io_pending = true;
		return exit_mmio(v);
	case KVM_EXIT_HLT: // only without an in-kernel APIC
	case KVM_EXIT_INTR:
	case KVM_EXIT_IRQ_WINDOW_OPEN:
	case KVM_EXIT_SET_TPR:
	case KVM_EXIT_IOAPIC_EOI: // our lines are edges: nothing to re-arm
		return 0;
	case KVM_EXIT_SHUTDOWN:
		vm_event(v->vm, VMM_EV_RESET, 0, "vCPU %u: triple fault",
			 v->index);
		return 0;
	case KVM_EXIT_SYSTEM_EVENT:
		return exit_system_event(v);
	default:
		return exit_fatal(v);
	}
}

static int run_failed(struct vcpu *v, int err)
{
	const char *what = err == EFAULT      ? "guest memory is not mapped"
			   : err == EHWPOISON ? "guest memory is poisoned"
					      : strerror(err);

	vm_event(v->vm, VMM_EV_FATAL, (uint32_t)err, "vCPU %u: KVM_RUN: %s",
		 v->index, what);
	return -err;
}

// Lets KVM finish the instruction of the last exit; nothing of the guest runs
// after it.
static int settle(struct vcpu *v)
{
	while (v->io_pending) {
		__atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
		v->io_pending = false;
		if (kvm_run(v) == 0) {
			int rc = vcpu_handle_exit(v);

			if (rc)
				return rc;
		} else if (errno != EINTR && errno != EAGAIN) {
			return run_failed(v, errno);
		}
	}
	return 0;
}

static void wait_for_gate(struct vcpu *v)
{
	struct vmm *vm = v->vm;
	void (*wait)(void *ctx) = v->index == 0 ? vm->pause_in : NULL;

	if (!wait || vm->gate != GATE_PAUSED) {
		pthread_cond_wait(&vm->cond, &vm->lock);
		return;
	}
	pthread_mutex_unlock(&vm->lock);
	wait(vm->pause_ctx);
	pthread_mutex_lock(&vm->lock);
}

// Waits for the gate. Returns false when the VM has ended.
static bool park(struct vcpu *v)
{
	struct vmm *vm = v->vm;
	bool go;

	pthread_mutex_lock(&vm->lock);
	v->parked = true;
	pthread_cond_broadcast(&vm->cond);
	while (vm->gate == GATE_CLOSED || vm->gate == GATE_PAUSED)
		wait_for_gate(v);
	go = vm->gate == GATE_OPEN;
	v->parked = false;
	if (go)
		__atomic_store_n(&v->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
	pthread_mutex_unlock(&vm->lock);
	return go;
}

static int run_loop(struct vcpu *v)
{
	struct vmm *vm = v->vm;

	for (;;) {
		bool kicked = atomic_load(&vm->gate) != GATE_OPEN;
		int rc;

		if (!kicked) {
			v->io_pending = false;
			rc = kvm_run(v);
			kicked = rc < 0;
			if (v->bus_error)
				return run_failed(v, EHWPOISON);
			if (rc < 0 && errno != EINTR && errno != EAGAIN)
				return run_failed(v, errno);
		}
		// Also when the gate is open again: park() alone takes
		// immediate_exit back.
		if (kicked) {
			rc = settle(v);
			if (rc)
				return rc;
			if (!park(v))
				return 0;
			continue;
		}
		if (v->index == 0 && vm->first_exit_ns == 0) {
			vm->first_exit_ns = util_now_ns();
			eventfd_write(vm->exit_fd, 1);
		}
		rc = vcpu_handle_exit(v);
		if (rc)
			return rc;
	}
}

// One KVM_RUN with a signal pending that is blocked outside of it. KVM then goes
// all the way but for the guest's first instruction; with immediate_exit it would
// turn around before it does anything that is worth doing ahead.
static int run_with_signal(struct vcpu *v, const sigset_t *blocked)
{
	struct {
		struct kvm_signal_mask head;
		uint8_t set[8]; // the kernel's sigset
	} m = {.head.len = 8};
	struct kvm_signal_mask *none = NULL;
	int rc;

	// Inside KVM_RUN: all but the kick stay as they are outside.
	for (int sig = 1; sig <= 64; sig++)
		if (sig != KICK_SIGNAL && sigismember(blocked, sig) > 0)
			m.set[(sig - 1) / 8] |= (uint8_t)(1 << (sig - 1) % 8);
	if (ioctl(v->fd, KVM_SET_SIGNAL_MASK, &m) < 0)
		return -errno;
	rc = kvm_run(v) < 0 ? -errno : 0;
	if (ioctl(v->fd, KVM_SET_SIGNAL_MASK, none) < 0)
		return -errno;
	return rc;
}

int vmm_warm(struct vmm *vm, struct err *e)
{
	static const struct timespec now;
	struct vcpu *v = &vm->vcpu[0];
	sigset_t kick, old;
	int rc;

	if (v->entered || vm->gate != GATE_CLOSED)
		return err_set(e, -EBUSY, "the VM was started already");
	sigemptyset(&kick);
	sigaddset(&kick, KICK_SIGNAL);
	pthread_sigmask(SIG_BLOCK, &kick, &old);
	pthread_kill(pthread_self(), KICK_SIGNAL);
	rc = run_with_signal(v, &old);
	while (sigtimedwait(&kick, NULL, &now) < 0 && errno == EINTR)
		;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (rc == -EINTR || rc == -EAGAIN)
		return 0;
	return err_set(e, rc ? rc : -EIO, "KVM_RUN ran where it should not: %s",
		       strerror(-rc));
}

int vmm_vcpu_run(struct vmm *vm, unsigned index)
{
	struct vcpu *v;
	sigset_t set, old;
	int rc;

	if (index >= vm->nvcpus)
		return -EINVAL;
	v = &vm->vcpu[index];
	sigemptyset(&set);
	sigaddset(&set, KICK_SIGNAL);
	pthread_sigmask(SIG_UNBLOCK, &set, &old);
	pthread_mutex_lock(&vm->lock);
	if (v->entered) {
		pthread_mutex_unlock(&vm->lock);
		return -EBUSY;
	}
	v->thread = pthread_self();
	v->entered = true;
	pthread_mutex_unlock(&vm->lock);

	rc = run_loop(v);

	pthread_mutex_lock(&vm->lock);
	v->entered = false;
	v->parked = false;
	pthread_cond_broadcast(&vm->cond);
	pthread_mutex_unlock(&vm->lock);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return rc;
}
