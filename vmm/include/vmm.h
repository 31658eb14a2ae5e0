// vmm: one x86-64 microVM on KVM, its devices, and its complete state.
//
// The room knows KVM, virtio and ACPI. It knows no event loop, no page store
// and no policy: memory contents, disk contents and console output reach it
// through descriptors and the small tables below.
//
// Threads. One *device thread* (the thread that calls vmm_dispatch()) runs all
// device emulation that is not a register access; each vCPU has a thread that
// calls vmm_vcpu_run(). vmm_pause() returns with every vCPU outside KVM_RUN
// and every virtqueue quiet.
//
// Life of a VM object:
//   vmm_create      shell: KVM VM, slots over a PROT_NONE reservation, vCPUs
//   (caller maps guest memory over vmm_mem_base() with MAP_FIXED)
//   vmm_boot | vmm_state_load | vmm_state_prepare, later vmm_state_finish
//   vmm_start       devices live; vCPU threads may enter the guest
//   vmm_pause <-> vmm_unpause, vmm_state_save while paused
//   vmm_destroy
#ifndef THAW_VMM_H
#define THAW_VMM_H

#include "base.h"

#include <sys/uio.h>

// A guest-physical address. Never dereferenced: guest memory is reached only
// through the checked accessors of this room.
typedef uint64_t vmm_gpa_t;

enum {
	VMM_MIN_MEM_MIB = 64,
	VMM_MAX_MEM_MIB = 32768,
	VMM_MAX_VCPUS = 16,
	VMM_STATE_MAX = 512 * 1024, // bytes of a saved state, at most
};

// Guest RAM is one linear object of mem_bytes ("page number" = offset / 4096).
// Its first VMM_LOW_MAX bytes sit at GPA 0; the rest, if any, at 4 GiB. Between
// lie the virtio-mmio windows, the IOAPIC and the LAPIC.
#define VMM_LOW_MAX (3ull << 30)

// The doorbell: a port pair with which a guest without an agent talks to us.
//   OUT32 VMM_DOORBELL_PORT   VMM_DOORBELL_READY: capture me now
//                             VMM_DOORBELL_POWEROFF: end this microVM
//                             any other value: VMM_EV_DOORBELL with it
//   IN32  VMM_DOORBELL_PORT   capture me now, and wait for it, in one: gives ~0u
//                             once a pause came. Whoever is captured is behind it.
//   IN32  VMM_DOORBELL_PORT+4 next mailbox byte (0..255); waits while it is
//                             empty; ~0u means "nothing, ask again" (a pause)
//   OUT8  VMM_DOORBELL_PORT+4 one byte to the console stream
#define VMM_DOORBELL_PORT 0x7460
enum { VMM_DOORBELL_READY = 1, VMM_DOORBELL_POWEROFF = 2 };

struct vmm;

// --- the disk behind virtio-blk ---------------------------------------------

// One request in flight. The room owns it from submit to vmm_disk_done().
struct vmm_disk_req {
	bool write;
	uint64_t off;		 // bytes, 512-aligned, inside the disk
	size_t len;		 // bytes
	const struct iovec *iov; // guest memory, `niov` entries, sums to len
	int niov;
};

struct vmm_disk_ops {
	// Starts a request; called on the device thread. The callee calls
	// vmm_disk_done() on the device thread later, or before it returns.
	void (*submit)(void *ctx, struct vmm_disk_req *req);
	// Everything acknowledged before this is as durable as the backend
	// gets. Same completion.
	void (*flush)(void *ctx, struct vmm_disk_req *req);
};

// Completes a request: rc 0, or -errno (the guest sees VIRTIO_BLK_S_IOERR).
void vmm_disk_done(struct vmm *vm, struct vmm_disk_req *req, int rc);

// --- creating ----------------------------------------------------------------

struct vmm_config {
	size_t struct_size; // sizeof(struct vmm_config)
	int kvm_fd;	    // /dev/kvm, borrowed until vmm_create() returns
	uint64_t mem_bytes; // multiple of 1 MiB
	unsigned vcpus;	    // 1..VMM_MAX_VCPUS
	// Optional: descriptor to which console bytes are written without
	// blocking; bytes that do not fit are dropped and counted. Borrowed.
	// The program ignores SIGPIPE when it is a pipe or a socket.
	int console_fd; // or -1
	// Optional: addresses that the caller reserved, page-aligned, at least
	// mem_bytes of them; used instead of a reservation of the room's own,
	// and left mapped by vmm_destroy().
	void *mem_at; // or NULL
	// Optional: what vmm_begin() made, with its console; taken over, also
	// on an error of anything but the configuration.
	struct vmm *begun; // or NULL
};

// Makes the parts of a VM that need neither a VM of KVM's nor a size, for a
// vmm_create() that has to be quick. Borrows kvm_fd. 0 or -errno, *out is then NULL.
// vmm_destroy() ends it.
int vmm_begin(struct vmm **out, int kvm_fd, int console_fd, struct err *e);

// Optional: asks KVM now what each vmm_create() and vmm_state_host_check() of
// this process would ask it (0.3 ms on a host that is itself a guest). Once,
// before other threads call into the room. 0 or -errno; -ENODEV: its guests'
// clocks would stand still.
int vmm_prepare(int kvm_fd, struct err *e);
// The answers, for other processes on this host: a sealed memfd, the caller's, to
// be read with vmm_facts_load() instead of vmm_prepare(). After vmm_prepare().
int vmm_facts_save(int *fd, struct err *e);
int vmm_facts_load(int fd, struct err *e); // borrows fd; -EBADMSG: not one

// Makes a shell. Costs what docs/KVM.md says; nothing is executed. On error
// *out is NULL. The first call installs handlers of SIGRTMIN+3 (kicks vCPUs) and
// of SIGBUS (poisoned guest memory during KVM_RUN; others' go on to them). The order of its ioctls is the measured fastest one.
int vmm_create(struct vmm **out, const struct vmm_config *cfg, struct err *e);

// Accepts NULL and half-built objects. vCPU threads must have returned.
void vmm_destroy(struct vmm *vm);

// The reservation of mem_bytes over which the caller maps guest memory with
// MAP_FIXED before vmm_boot() or vmm_state_load().
void *vmm_mem_base(struct vmm *vm);
uint64_t vmm_mem_bytes(const struct vmm *vm);

// Gives the VM a disk of `bytes` (multiple of 4096; 0: none). Before vmm_boot()
// or vmm_state_load(); `ops` and `ctx` are borrowed for the VM's life.
int vmm_attach_disk(struct vmm *vm, uint64_t bytes,
		    const struct vmm_disk_ops *ops, void *ctx, struct err *e);

// --- boot ---------------------------------------------------------------------

struct vmm_boot {
	const void
	    *kernel; // ELF vmlinux (64-bit entry or PVH-less ELF) or bzImage
	size_t kernel_len;
	const void *initrd; // or NULL
	size_t initrd_len;
	const char *cmdline; // NUL-terminated; the room adds nothing
};

// Loads kernel, initrd, command line, boot parameters and ACPI tables, and sets
// vCPU 0 at the 64-bit entry. The images are hostile input. -ENOEXEC: neither
// format; -E2BIG: does not fit in guest memory; -EINVAL: malformed.
int vmm_boot(struct vmm *vm, const struct vmm_boot *boot, struct err *e);

// --- running ------------------------------------------------------------------

// Opens the gate: vCPU threads that are, or come, in vmm_vcpu_run() enter the
// guest. After vmm_boot() or vmm_state_load().
int vmm_start(struct vmm *vm, struct err *e);

// Runs vCPU `index` on the calling thread until the VM stops. It parks itself
// during pauses. Returns 0 when the VM ended, -errno when this vCPU cannot go
// on (the VM is then stopped and VMM_EV_FATAL queued).
int vmm_vcpu_run(struct vmm *vm, unsigned index);

// Convenience: starts threads for vCPUs [from, vcpus) that call
// vmm_vcpu_run(); vmm_stop() joins them.
int vmm_spawn_vcpus(struct vmm *vm, unsigned from, struct err *e);
// Before vmm_start(): waits until those threads stand at the gate, where nothing is
// left of what the C library does when a thread starts (for a sandbox's filter).
void vmm_await_vcpus(struct vmm *vm);

// Makes every vmm_vcpu_run() return, and joins spawned threads. Idempotent.
void vmm_stop(struct vmm *vm);

// CLOCK_MONOTONIC ns of the first return of vCPU 0 from KVM_RUN after the last
// vmm_start() with guest progress (an exit, not EINTR); 0 before.
uint64_t vmm_first_exit_ns(const struct vmm *vm);
// Readable from then on; there since vmm_begin(). To poll, not to read.
int vmm_first_exit_fd(const struct vmm *vm);

// Parks every vCPU and quiets every virtqueue (requests in flight are finished
// first; the caller must keep completing them: it is called on the device
// thread and dispatches by itself). `timeout_ms` bounds it: -ETIMEDOUT leaves
// the VM running. Idempotent.
int vmm_pause(struct vmm *vm, int timeout_ms, struct err *e);
int vmm_unpause(struct vmm *vm, struct err *e);

// For a VM that is paused until somebody wants it: the vCPU-0 thread itself waits
// for the word, in wait(ctx), and gives vmm_unpause() there before it returns; so
// there is one wake-up between the word and the guest. While paused.
void vmm_pause_in(struct vmm *vm, void (*wait)(void *ctx), void *ctx);
// The device thread's part: returns when that has happened.
void vmm_await_unpause(struct vmm *vm);

// Device thread: a pollable descriptor (an epoll), and the call that drains it.
int vmm_event_fd(const struct vmm *vm);
void vmm_dispatch(struct vmm *vm);

// Adds a descriptor of the caller's to that epoll, so that vmm_dispatch(), and
// the waiting inside vmm_pause(), serve it too (a disk backend's completions
// must arrive during a pause). `events` are EPOLLIN/EPOLLOUT bits; 0 removes it,
// which has to happen before the descriptor is closed. `cb` runs on the device
// thread. Device thread, or before vmm_start(). 0, -ENOMEM or epoll's -errno.
int vmm_watch(struct vmm *vm, int fd, uint32_t events,
	      void (*cb)(void *ctx, uint32_t events), void *ctx);

enum vmm_event_kind {
	VMM_EV_READY = 1, // doorbell: the guest asks to be captured
	VMM_EV_DOORBELL,  // doorbell: arg is the value
	VMM_EV_POWEROFF,  // guest powered off (ACPI sleep or doorbell)
	VMM_EV_RESET,	  // guest asked for a reset (ACPI reset, triple fault)
	VMM_EV_FATAL,	  // the VM cannot go on; text says why
	VMM_EV_VSOCK_UP,  // the guest's vsock driver set DRIVER_OK
};
struct vmm_event {
	enum vmm_event_kind kind;
	uint32_t arg;
	char text[160];
};
// Next queued event, oldest first; false when there is none. Device thread.
bool vmm_next_event(struct vmm *vm, struct vmm_event *out);

// Appends bytes to the doorbell's mailbox (capacity 64 KiB). -ENOSPC: full.
int vmm_mailbox_put(struct vmm *vm, const void *bytes, size_t len);

// Connects a host stream socket to guest vsock port `port`: the device sends
// the request and moves bytes both ways (credit-based, bounded buffers) until
// either side closes. Consumes `fd` (non-blocking) also on error. A refusal by
// the guest closes `fd`. Device thread. -ENOTCONN: no driver yet.
int vmm_vsock_connect(struct vmm *vm, uint32_t port, int fd, struct err *e);
// Closes every vsock stream, telling the guest. Device thread.
void vmm_vsock_close_all(struct vmm *vm);

// --- state --------------------------------------------------------------------

// Writes the complete state (docs/STATE_FORMAT.md) of a paused VM, or of one that
// was loaded and not started. The VM is unchanged and can be unpaused, also after
// an error. `w` has to be empty and to have a buffer: VMM_STATE_MAX always
// suffices. -ENOBUFS: it does not.
int vmm_state_save(struct vmm *vm, struct wire_writer *w, struct err *e);

// What a saved state says of the machine it needs.
struct vmm_state_info {
	uint64_t mem_bytes;
	unsigned vcpus;
	uint64_t disk_bytes;
};

// Validates a saved state completely, without any KVM object: layout, lengths,
// checksums, ranges, consistency. Hostile input. -EBADMSG: corrupt; -ENOTSUP:
// format version. `info` may be NULL.
int vmm_state_check(const void *state, size_t len, struct vmm_state_info *info,
		    struct err *e);

// Compares the CPU features that the state was saved with against this host.
// -ENODEV and a sentence that names the missing features.
int vmm_state_host_check(int kvm_fd, const void *state, size_t len,
			 struct err *e);

// Checks (again, all of it) and applies a state to a shell of the same memory
// size and vCPU count, whose memory is mapped already. Nothing touches KVM
// before validation ended. After an error the VM can only be destroyed.
int vmm_state_load(struct vmm *vm, const void *state, size_t len,
		   struct err *e);

// vmm_state_load() in two halves, for a VM that waits for its request with the
// state in place. The first loads all that does not depend on the moment at
// which the guest goes on, and touches no guest memory. The second loads the
// rest (TSC, clocks, timers, paravirtual MSRs, generation id) and needs no
// state. Errors as above; neither runs any guest code.
int vmm_state_prepare(struct vmm *vm, const void *state, size_t len,
		      struct err *e);
int vmm_state_finish(struct vmm *vm, struct err *e);

// Before vmm_start(), on the thread that will run vCPU 0: lets KVM do what it
// does at a VM's first KVM_RUN (it starts a thread of the kernel) without
// running any guest code. -EBUSY: started already; -EIO.
int vmm_warm(struct vmm *vm, struct err *e);

// The requests with which the room calls ioctl(2) from vmm_start() on, and in
// vmm_state_finish() before it, for a sandbox's filter: the most frequent first.
const uint32_t *vmm_ioctls(size_t *n);

// --- the host -----------------------------------------------------------------

struct vmm_host_report {
	bool kvm;	   // /dev/kvm opens and has API version 12
	bool stock_kernel; // can run a stock kernel (ring-0 speed probe)
	double ring0_mips; // measured; 0 when the probe ended in an error
	char flavour[64];  // kvm_amd, kvm_intel, kvm_pvm, unknown
	char why[200];	   // when !stock_kernel: one sentence
	bool tsc_runs;	   // for guests
	bool tsc_deadline, split_irqchip, xsave2, user_mem_map;
};
// Takes about 0.1 s. Never fails: what cannot be found out is false.
void vmm_host_probe(int kvm_fd, struct vmm_host_report *out);

#endif
