// A VM object's life: shell, gate, events, end. The order of ioctls in
// vmm_create() is measured (docs/KVM.md): the memory slot comes before anything
// that puts a device on KVM's I/O bus, and nothing here ever does, because a
// slot that is set after one waits for an SRCU grace period of milliseconds.
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#include "vmm_internal.h"

static void vio_irq(struct vmm *vm, unsigned index)
{
	ioapic_edge(&vm->ioapic, VIRTIO_MMIO_GSI + index);
}

static void vio_status(struct vmm *vm, unsigned index, bool driver_ok)
{
	if (index == VIO_VSOCK && driver_ok)
		vm_event(vm, VMM_EV_VSOCK_UP, 0, "the guest's vsock is up");
}

// --- events -----------------------------------------------------------------

static bool event_is_end(enum vmm_event_kind kind)
{
	return kind == VMM_EV_POWEROFF || kind == VMM_EV_RESET ||
	       kind == VMM_EV_FATAL;
}

void vm_event(struct vmm *vm, enum vmm_event_kind kind, uint32_t arg,
	      const char *fmt, ...)
{
	struct vmm_event *ev;
	bool end = event_is_end(kind);
	va_list ap;

	pthread_mutex_lock(&vm->lock);
	// The last place is kept for the event that ends the VM; a guest that
	// floods us with others loses them.
	if ((end && vm->ended) || (!end && vm->ev_used >= EVENT_RING - 1)) {
		pthread_mutex_unlock(&vm->lock);
		return;
	}
	ev = &vm->events[(vm->ev_head + vm->ev_used++) % EVENT_RING];
	ev->kind = kind;
	ev->arg = arg;
	va_start(ap, fmt);
	vsnprintf(ev->text, sizeof(ev->text), fmt, ap);
	va_end(ap);
	if (end) {
		vm->ended = true;
		vm->gate = GATE_STOPPED;
		vcpu_kick_locked(vm);
		pthread_cond_broadcast(&vm->cond);
	}
	pthread_mutex_unlock(&vm->lock);
	eventfd_write(vm->wake_fd, 1);
}

bool vmm_next_event(struct vmm *vm, struct vmm_event *out)
{
	bool got = false;

	pthread_mutex_lock(&vm->lock);
	if (vm->ev_used) {
		*out = vm->events[vm->ev_head];
		vm->ev_head = (vm->ev_head + 1) % EVENT_RING;
		vm->ev_used--;
		got = true;
	}
	pthread_mutex_unlock(&vm->lock);
	return got;
}

// --- creating ---------------------------------------------------------------

static int set_slot(struct vmm *vm, uint32_t slot, uint64_t gpa, uint64_t off,
		    uint64_t len, struct err *e)
{
	struct kvm_userspace_memory_region r = {
	    .slot = slot,
	    .guest_phys_addr = gpa,
	    .memory_size = len,
	    .userspace_addr = (uintptr_t)vm->mem.base + off,
	};

	if (ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &r) < 0)
		return err_sys(e, "KVM_SET_USER_MEMORY_REGION of %llu MiB",
			       (unsigned long long)(len >> 20));
	return 0;
}

static int create_memory(struct vmm *vm, const struct vmm_config *cfg,
			 struct err *e)
{
	uint64_t bytes = cfg->mem_bytes, low = MIN(bytes, VMM_LOW_MAX);
	void *p = cfg->mem_at;
	int rc;

	if (!p)
		p = mmap(NULL, bytes, PROT_NONE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return err_sys(e, "reserving %llu MiB of addresses",
			       (unsigned long long)(bytes >> 20));
	vm->mem = (struct guestmem){p, bytes};
	vm->mem_borrowed = cfg->mem_at != NULL;
	rc = set_slot(vm, 0, 0, 0, low, e);
	if (rc == 0 && bytes > low)
		rc = set_slot(vm, 1, VMM_HIGH_BASE, low, bytes - low, e);
	return rc;
}

static int enable_cap(int fd, uint32_t cap, uint64_t arg)
{
	struct kvm_enable_cap c = {.cap = cap, .args = {arg}};

	return ioctl(fd, KVM_ENABLE_CAP, &c) < 0 ? -errno : 0;
}

static int create_kvm(struct vmm *vm, const struct vmm_config *cfg,
		      struct err *e)
{
	uint64_t identity = 0xfffbc000;
	int rc, tries = 0;

	// KVM_CREATE_VM allocates much; a signal makes it give up.
	do {
		vm->fd = ioctl(cfg->kvm_fd, KVM_CREATE_VM, 0ul);
	} while (vm->fd < 0 && errno == EINTR && ++tries < 100);
	if (vm->fd < 0)
		return err_sys(e, "KVM_CREATE_VM");
	rc = create_memory(vm, cfg, e);
	if (rc)
		return rc;
	// Intel processors without "unrestricted guest" need these three pages;
	// elsewhere they cost nothing. A KVM that knows neither needs neither.
	ioctl(vm->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity);
	ioctl(vm->fd, KVM_SET_TSS_ADDR, 0xfffbd000ul);
	// No vPMU: its MSRs would be state, and its CPUID leaf is hidden.
	enable_cap(vm->fd, KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE);
	rc = enable_cap(vm->fd, KVM_CAP_SPLIT_IRQCHIP, VMM_IOAPIC_PINS);
	if (rc)
		return err_set(e, rc,
			       "KVM_CAP_SPLIT_IRQCHIP: %s; thaw needs a KVM "
			       "with an in-kernel local APIC",
			       strerror(-rc));
	rc = ioctl(vm->fd, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);
	vm->xsave_len = rc > 0 ? (size_t)rc : sizeof(struct kvm_xsave);
	vm->tsc_control =
	    ioctl(cfg->kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_CONTROL) > 0;
	return 0;
}

static int create_vcpu(struct vmm *vm, unsigned i, struct err *e)
{
	struct vcpu *v = &vm->vcpu[i];
	struct cpuid_table t;
	void *run;

	v->fd = ioctl(vm->fd, KVM_CREATE_VCPU, (unsigned long)i);
	if (v->fd < 0)
		return err_sys(e, "KVM_CREATE_VCPU %u", i);
	run = mmap(NULL, vm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED,
		   v->fd, 0);
	if (run == MAP_FAILED)
		return err_sys(e, "mapping vCPU %u", i);
	v->run = run;
	cpuid_for_vcpu(&vm->cpuid, i, &t);
	if (ioctl(v->fd, KVM_SET_CPUID2, &t) < 0)
		return err_sys(e, "KVM_SET_CPUID2 of vCPU %u", i);
	return 0;
}

static int create_cpus(struct vmm *vm, const struct vmm_config *cfg,
		       struct err *e)
{
	int rc = ioctl(cfg->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);

	if (rc < (int)sizeof(struct kvm_run))
		return err_set(e, -EIO, "KVM_GET_VCPU_MMAP_SIZE gave %d", rc);
	vm->run_size = (size_t)rc;
	rc = cpuid_policy(cfg->kvm_fd, vm->nvcpus, &vm->cpuid, e);
	for (unsigned i = 0; rc == 0 && i < vm->nvcpus; i++)
		rc = create_vcpu(vm, i, e);
	if (rc == 0) {
		rc = ioctl(vm->vcpu[0].fd, KVM_GET_TSC_KHZ, 0);
		if (rc <= 0)
			return err_set(e, -ENODEV,
				       "KVM does not know the TSC's frequency");
		vm->tsc_khz = vm->host_tsc_khz = (uint32_t)rc;
		rc = 0;
	}
	return rc;
}

// What needs no KVM.
static int create_devices(struct vmm *vm, int console_fd, struct err *e)
{
	int rc = loop_init(vm, e);

	if (rc)
		return rc;
	console_init(&vm->console, console_fd, vm->console_wake,
		     vm->console_late);
	serial_init(&vm->serial, &vm->console, &vm->ioapic);
	vm->vio_host =
	    (struct vio_host){&vm->mem, vm, vio_irq, vio_status, vmm_watch};
	vm->vio[VIO_VSOCK] = vio_vsock_create(&vm->vio_host, VMM_GUEST_CID);
	vm->vio[VIO_RNG] = vio_rng_create(&vm->vio_host);
	if (!vm->vio[VIO_VSOCK] || !vm->vio[VIO_RNG])
		return err_set(e, -ENOMEM, "no memory for the devices");
	rc = loop_watch_vio(vm, VIO_VSOCK, e);
	return rc ? rc : loop_watch_vio(vm, VIO_RNG, e);
}

static void init_object(struct vmm *vm)
{
	pthread_condattr_t attr;

	vm->fd = vm->epoll_fd = vm->wake_fd = -1;
	vm->console_wake = vm->console_late = vm->exit_fd = -1;
	for (unsigned i = 0; i < VMM_MAX_VCPUS; i++)
		vm->vcpu[i] = (struct vcpu){.vm = vm, .index = i, .fd = -1};
	for (unsigned i = 0; i < VIO_NUM; i++)
		for (unsigned q = 0; q < VIO_MAX_QUEUES; q++)
			vm->kick[i][q] = -1;
	pthread_mutex_init(&vm->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&vm->cond, &attr);
	pthread_condattr_destroy(&attr);
	console_init(&vm->console, -1, -1, -1);
	ioapic_init(&vm->ioapic, -1);
}

static int config_check(const struct vmm_config *cfg, struct err *e)
{
	uint64_t mib = cfg->mem_bytes >> 20;

	if (cfg->struct_size != sizeof(*cfg))
		return err_set(e, -EINVAL, "vmm_config of another version");
	if (cfg->mem_bytes & 0xfffff || mib < VMM_MIN_MEM_MIB ||
	    mib > VMM_MAX_MEM_MIB)
		return err_set(e, -EINVAL, "memory must be whole MiB, %d to %d",
			       VMM_MIN_MEM_MIB, VMM_MAX_MEM_MIB);
	if (cfg->vcpus < 1 || cfg->vcpus > VMM_MAX_VCPUS)
		return err_set(e, -EINVAL, "vCPUs must be 1 to %d",
			       VMM_MAX_VCPUS);
	if ((uintptr_t)cfg->mem_at % 4096)
		return err_set(e, -EINVAL, "memory must start at a page");
	return 0;
}

int vmm_begin(struct vmm **out, int kvm_fd, int console_fd, struct err *e)
{
	struct vmm *vm = calloc(1, sizeof(*vm));
	int rc;

	*out = NULL;
	if (!vm)
		return err_set(e, -ENOMEM, "no memory for a VM object");
	init_object(vm);
	vcpu_signal_init();
	rc = create_devices(vm, console_fd, e);
	if (rc == 0)
		rc = msr_list_init(vm, kvm_fd, e);
	if (rc) {
		vmm_destroy(vm);
		return rc;
	}
	*out = vm;
	return 0;
}

int vmm_create(struct vmm **out, const struct vmm_config *cfg, struct err *e)
{
	struct vmm *vm = cfg->begun;
	int rc = config_check(cfg, e);

	*out = NULL;
	if (rc == 0 && !vm)
		rc = vmm_begin(&vm, cfg->kvm_fd, cfg->console_fd, e);
	if (rc)
		return rc;
	vm->nvcpus = cfg->vcpus;
	rc = create_kvm(vm, cfg, e);
	if (rc == 0)
		rc = create_cpus(vm, cfg, e);
	ioapic_init(&vm->ioapic, vm->fd);
	if (rc) {
		vmm_destroy(vm);
		return rc;
	}
	*out = vm;
	return 0;
}

void vmm_destroy(struct vmm *vm)
{
	if (!vm)
		return;
	vmm_stop(vm);
	console_flush(&vm->console);
	for (unsigned i = 0; i < VIO_NUM; i++)
		vio_destroy(vm->vio[i]);
	loop_fini(vm);
	for (unsigned i = 0; i < vm->nvcpus; i++) {
		if (vm->vcpu[i].run)
			munmap(vm->vcpu[i].run, vm->run_size);
		fd_close(&vm->vcpu[i].fd);
		free(vm->vcpu[i].late);
	}
	fd_close(&vm->fd);
	if (vm->mem.base && !vm->mem_borrowed)
		munmap(vm->mem.base, vm->mem.bytes);
	console_fini(&vm->console);
	free(vm->doorbell.mailbox);
	pthread_cond_destroy(&vm->cond);
	pthread_mutex_destroy(&vm->lock);
	free(vm);
}

void *vmm_mem_base(struct vmm *vm)
{
	return vm->mem.base;
}

uint64_t vmm_mem_bytes(const struct vmm *vm)
{
	return vm->mem.bytes;
}

int vmm_attach_disk(struct vmm *vm, uint64_t bytes,
		    const struct vmm_disk_ops *ops, void *ctx, struct err *e)
{
	if (vm->vio[VIO_BLK] || vm->booted || vm->prepared)
		return err_set(e, -EBUSY, "the VM has its devices already");
	if (bytes == 0)
		return 0;
	if (bytes % 4096)
		return err_set(e, -EINVAL, "a disk is a multiple of 4096");
	vm->vio[VIO_BLK] = vio_blk_create(&vm->vio_host, bytes, ops, ctx);
	if (!vm->vio[VIO_BLK])
		return err_set(e, -ENOMEM, "no memory for the disk");
	vm->disk_bytes = bytes;
	return loop_watch_vio(vm, VIO_BLK, e);
}

void vmm_disk_done(struct vmm *vm, struct vmm_disk_req *req, int rc)
{
	if (vm->vio[VIO_BLK])
		vio_blk_done(vm->vio[VIO_BLK], req, rc);
}

int vmm_mailbox_put(struct vmm *vm, const void *bytes, size_t len)
{
	return doorbell_put(vm, bytes, len);
}

int vmm_vsock_connect(struct vmm *vm, uint32_t port, int fd, struct err *e)
{
	return vio_vsock_connect(vm->vio[VIO_VSOCK], port, fd, e);
}

void vmm_vsock_close_all(struct vmm *vm)
{
	vio_vsock_close_all(vm->vio[VIO_VSOCK]);
}

// --- boot and gate ----------------------------------------------------------

int vmm_boot(struct vmm *vm, const struct vmm_boot *boot, struct err *e)
{
	struct acpi_config acpi = {.vcpus = vm->nvcpus};
	uint64_t entry = 0;
	int rc;

	if (vm->booted || vm->prepared)
		return err_set(e, -EBUSY, "this VM was booted or loaded");
	for (unsigned i = 0; i < VIO_NUM; i++)
		acpi.vio[i] = vm->vio[i] != NULL;
	rc = boot_load(&vm->mem, boot, &acpi, &entry, e);
	if (rc == 0)
		rc = vcpu_set_boot_regs(&vm->vcpu[0], entry, 0x7000, e);
	for (unsigned i = 0; rc == 0 && i < vm->nvcpus; i++)
		rc = msr_boot(&vm->vcpu[i], e);
	if (rc == 0)
		vm->booted = true;
	return rc;
}

int vmm_start(struct vmm *vm, struct err *e)
{
	int rc = 0;

	if (!vm->booted)
		return err_set(e, -EINVAL, "nothing was booted or loaded");
	pthread_mutex_lock(&vm->lock);
	if (vm->gate != GATE_CLOSED) {
		rc = err_set(e, -EBUSY, "the VM was started already");
	} else {
		vm->first_exit_ns = 0;
		vm->gate = GATE_OPEN;
		pthread_cond_broadcast(&vm->cond);
	}
	pthread_mutex_unlock(&vm->lock);
	if (rc)
		return rc;
	if (vm->genid_irq)
		ioapic_edge(&vm->ioapic, VMM_GSI_GED);
	vm->genid_irq = false;
	if (vm->resume_devices)
		eventfd_write(vm->wake_fd, 1);
	return 0;
}

uint64_t vmm_first_exit_ns(const struct vmm *vm)
{
	return vm->first_exit_ns;
}

int vmm_first_exit_fd(const struct vmm *vm)
{
	return vm->exit_fd;
}

static bool all_parked_locked(const struct vmm *vm)
{
	for (unsigned i = 0; i < vm->nvcpus; i++)
		if (vm->vcpu[i].entered && !vm->vcpu[i].parked)
			return false;
	return true;
}

static int park_vcpus(struct vmm *vm, uint64_t deadline_ns, struct err *e)
{
	struct timespec ts = {(time_t)(deadline_ns / 1000000000u),
			      (long)(deadline_ns % 1000000000u)};
	int rc = 0;

	pthread_mutex_lock(&vm->lock);
	if (vm->gate == GATE_OPEN) {
		vm->gate = GATE_PAUSED;
		vcpu_kick_locked(vm);
		pthread_cond_broadcast(&vm->cond); // a mailbox reader
	}
	while (rc == 0 && vm->gate == GATE_PAUSED && !all_parked_locked(vm))
		rc = pthread_cond_timedwait(&vm->cond, &vm->lock, &ts);
	if (vm->gate == GATE_STOPPED)
		rc = err_set(e, -ESHUTDOWN, "the VM has ended");
	else if (rc)
		rc = err_set(e, -ETIMEDOUT,
			     "a vCPU did not leave the guest in time");
	pthread_mutex_unlock(&vm->lock);
	return rc;
}

static bool quiesce_all(struct vmm *vm)
{
	bool quiet = true;

	for (unsigned i = 0; i < VIO_NUM; i++)
		if (vm->vio[i] && !vio_quiesce(vm->vio[i]))
			quiet = false;
	return quiet;
}

static void open_gate(struct vmm *vm)
{
	for (unsigned i = 0; i < VIO_NUM; i++)
		if (vm->vio[i])
			vio_resume(vm->vio[i]);
	pthread_mutex_lock(&vm->lock);
	if (vm->gate == GATE_PAUSED) {
		vm->gate = GATE_OPEN;
		vm->pause_in = NULL;
		pthread_cond_broadcast(&vm->cond);
	}
	pthread_mutex_unlock(&vm->lock);
}

// Tells the guest's soft-lockup watchdog, at its next entry, that it was stopped;
// guests that do not use kvmclock cannot be told (-EINVAL).
static void tell_stopped(struct vmm *vm)
{
	for (unsigned i = 0; i < vm->nvcpus; i++)
		vcpu_kvmclock_ctrl(&vm->vcpu[i]);
}

void vmm_pause_in(struct vmm *vm, void (*wait)(void *ctx), void *ctx)
{
	tell_stopped(vm); // now: each costs a load of the vCPU
	vm->stop_told = true;
	pthread_mutex_lock(&vm->lock);
	vm->pause_ctx = ctx;
	vm->pause_in = wait;
	pthread_cond_broadcast(&vm->cond);
	pthread_mutex_unlock(&vm->lock);
}

void vmm_await_unpause(struct vmm *vm)
{
	pthread_mutex_lock(&vm->lock);
	while (vm->gate == GATE_PAUSED)
		pthread_cond_wait(&vm->cond, &vm->lock);
	pthread_mutex_unlock(&vm->lock);
}

int vmm_pause(struct vmm *vm, int timeout_ms, struct err *e)
{
	uint64_t end = util_now_ns() + (uint64_t)MAX(timeout_ms, 0) * 1000000u;
	int rc;

	if (vm->gate == GATE_CLOSED)
		return err_set(e, -EINVAL, "the VM was not started");
	vm->resume_devices = false; // unpausing does that, too
	rc = park_vcpus(vm, end, e);
	while (rc == 0 && !quiesce_all(vm)) {
		uint64_t now = util_now_ns();

		if (now >= end)
			rc = err_set(e, -ETIMEDOUT,
				     "a disk request did not finish in time");
		else
			loop_wait(vm,
				  (int)MIN((end - now) / 1000000u + 1, 10u));
	}
	if (rc == -ETIMEDOUT)
		open_gate(vm);
	return rc;
}

int vmm_unpause(struct vmm *vm, struct err *e)
{
	if (vm->gate == GATE_STOPPED)
		return err_set(e, -ESHUTDOWN, "the VM has ended");
	if (vm->gate != GATE_PAUSED)
		return err_set(e, -EINVAL, "the VM is not paused");
	if (!vm->stop_told)
		tell_stopped(vm);
	vm->stop_told = false;
	open_gate(vm);
	return 0;
}

static void *vcpu_main(void *arg)
{
	struct vcpu *v = arg;

	vmm_vcpu_run(v->vm, v->index);
	return NULL;
}

int vmm_spawn_vcpus(struct vmm *vm, unsigned from, struct err *e)
{
	for (unsigned i = from; i < vm->nvcpus; i++) {
		struct vcpu *v = &vm->vcpu[i];
		pthread_t t;
		int rc;

		if (v->spawned)
			continue;
		rc = pthread_create(&t, NULL, vcpu_main, v);
		if (rc)
			return err_set(e, -rc, "a thread for vCPU %u: %s", i,
				       strerror(rc));
		pthread_mutex_lock(&vm->lock);
		v->thread = t;
		v->spawned = true;
		pthread_mutex_unlock(&vm->lock);
	}
	return 0;
}

void vmm_await_vcpus(struct vmm *vm)
{
	pthread_mutex_lock(&vm->lock);
	for (unsigned i = 0; i < vm->nvcpus; i++)
		while (vm->gate == GATE_CLOSED && vm->vcpu[i].spawned &&
		       !vm->vcpu[i].parked)
			pthread_cond_wait(&vm->cond, &vm->lock);
	pthread_mutex_unlock(&vm->lock);
}

void vmm_stop(struct vmm *vm)
{
	pthread_mutex_lock(&vm->lock);
	vm->gate = GATE_STOPPED;
	vcpu_kick_locked(vm);
	pthread_cond_broadcast(&vm->cond);
	pthread_mutex_unlock(&vm->lock);
	for (unsigned i = 0; i < vm->nvcpus; i++) {
		if (vm->vcpu[i].spawned)
			pthread_join(vm->vcpu[i].thread, NULL);
		vm->vcpu[i].spawned = false;
	}
}
