// The machine, as the files of this room share it. Nothing outside the room
// includes this.
//
// Locks, in the order in which they may be taken together:
//   virtio's dev->lock  >  ioapic.lock  >  vm->lock
// The device thread takes none of them while it calls out of the room.
#ifndef THAW_VMM_INTERNAL_H
#define THAW_VMM_INTERNAL_H

#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>

#include "virtio.h"
#include "vmm.h"

// --- fixed addresses (docs/KVM.md lists them all) ----------------------------

#define VMM_HIGH_BASE (4ull << 30) // GPA of the RAM beyond VMM_LOW_MAX
#define VMM_IOAPIC_BASE 0xfec00000ull
#define VMM_LAPIC_BASE 0xfee00000ull
// Inside RAM, but described to the guest as firmware's.
#define VMM_ACPI_BASE 0xe0000ull
#define VMM_ACPI_MAX 0x8000u
#define VMM_GENID_GPA 0xf0000ull // VM generation id: 16 bytes of this page
// Ports.
#define VMM_PORT_SLEEP 0x600  // FADT sleep control (0) and status (1)
#define VMM_PORT_RESET 0x602  // FADT reset register
#define VMM_PORT_GENID 0x604  // the VMGENID driver asked for its address
#define VMM_PORT_SERIAL 0x3f8 // COM1
#define VMM_PORT_KBD 0x60     // 8042: only its reset command
#define VMM_SLP_TYP_S5 5u
#define VMM_RESET_VALUE 1u
// Interrupt lines.
#define VMM_GSI_SERIAL 4u
#define VMM_GSI_GED 9u
#define VMM_IOAPIC_PINS 24u

// The guest's vsock address; every guest has the same, and its own host.
#define VMM_GUEST_CID 3u

// --- CPUID (cpuid.c) --------------------------------------------------------

enum { CPUID_MAX = 128 };
// Same layout as struct kvm_cpuid2 with room for CPUID_MAX entries.
struct cpuid_table {
	uint32_t nent, pad;
	struct kvm_cpuid_entry2 e[CPUID_MAX];
};

// What this host can offer to a guest of `vcpus` vCPUs, as vCPU 0 sees it.
int cpuid_policy(int kvm_fd, unsigned vcpus, struct cpuid_table *out,
		 struct err *e);
// The same table as vCPU `index` sees it (APIC ids).
void cpuid_for_vcpu(const struct cpuid_table *base, unsigned index,
		    struct cpuid_table *out);
const struct kvm_cpuid_entry2 *cpuid_find(const struct cpuid_table *t,
					  uint32_t function, uint32_t index);

// --- IOAPIC (ioapic.c) ------------------------------------------------------

struct ioapic {
	pthread_mutex_t lock;
	uint32_t id;	 // as in the ID register, bits 27:24
	uint32_t select; // IOREGSEL
	uint32_t irr;	 // edges that arrived while the pin was masked
	uint64_t redir[VMM_IOAPIC_PINS];
	int vm_fd; // KVM_SIGNAL_MSI goes here; -1: msi_hook
	void (*msi_hook)(void *ctx, uint64_t addr, uint32_t data); // tests
	void *msi_ctx;
};
void ioapic_init(struct ioapic *a, int vm_fd);
void ioapic_read(struct ioapic *a, uint64_t off, void *data, unsigned len);
void ioapic_write(struct ioapic *a, uint64_t off, const void *data,
		  unsigned len);
// One edge on `pin`. Any thread.
void ioapic_edge(struct ioapic *a, unsigned pin);
void ioapic_save(struct ioapic *a, struct wire_writer *w);
int ioapic_check(struct wire_reader *r, struct err *e);
void ioapic_load(struct ioapic *a, struct wire_reader *r);

// --- console bytes (console.c) ----------------------------------------------

enum { CONSOLE_RING = 64 * 1024 };
struct console {
	pthread_mutex_t lock;
	int fd;	  // borrowed, or -1
	int wake; // eventfd that the device thread polls,
	int late; // and a timer; borrowed both
	bool woken, timed;
	uint32_t head, used;
	uint64_t dropped;
	uint8_t *ring; // CONSOLE_RING bytes, made on the first byte
};
void console_init(struct console *c, int fd, int wake_fd, int late_fd);
void console_fini(struct console *c);
void console_put(struct console *c, const uint8_t *p, size_t n);
void console_timed(struct console *c); // the timer's descriptor is readable
// Writes what the descriptor takes; true when bytes are left.
bool console_flush(struct console *c);

// --- 16550 (serial.c) -------------------------------------------------------

struct serial {
	pthread_mutex_t lock;
	uint8_t ier, fcr, lcr, mcr, scr, dll, dlm;
	bool thre_pending; // the transmitter's interrupt is due or shown
	bool has_rx;	   // only loop-back fills it
	uint8_t rx;
	bool line; // level of the interrupt line, to find edges
	struct console *out;
	struct ioapic *irq;
};
void serial_init(struct serial *s, struct console *out, struct ioapic *irq);
uint8_t serial_read(struct serial *s, unsigned reg);
void serial_write(struct serial *s, unsigned reg, uint8_t v);
void serial_save(struct serial *s, struct wire_writer *w);
int serial_check(struct wire_reader *r, struct err *e);
void serial_load(struct serial *s, struct wire_reader *r);

// --- doorbell mailbox (doorbell.c) ------------------------------------------

enum { MAILBOX_MAX = 64 * 1024 };
struct doorbell {
	uint8_t *mailbox; // MAILBOX_MAX bytes, made on the first put
	uint32_t head, used;
};
void doorbell_out(struct vmm *vm, uint32_t off, const void *data, unsigned len);
void doorbell_in(struct vmm *vm, uint32_t off, void *data, unsigned len);
int doorbell_put(struct vmm *vm, const void *p, size_t len);
void doorbell_save(struct vmm *vm, struct wire_writer *w);
int doorbell_check(struct wire_reader *r, struct err *e);
int doorbell_load(struct vmm *vm, struct wire_reader *r);

// --- one vCPU ---------------------------------------------------------------

struct vcpu {
	struct vmm *vm;
	unsigned index;
	int fd;
	struct kvm_run *run;
	// Guarded by vm->lock.
	pthread_t thread;
	bool entered; // inside vmm_vcpu_run()
	bool parked;  // entered, and outside KVM_RUN until the gate opens
	bool spawned; // `thread` is ours to join
	// vCPU thread only: KVM waits for the completion of the last exit.
	bool io_pending;
	// Set by the SIGBUS handler of that thread.
	volatile bool bus_error;
	bool kvmclock;		// the loaded state has it on
	struct vcpu_late *late; // between vmm_state_prepare() and _finish()
};

// What of a vCPU's state is loaded only when the guest goes on.
enum { LATE_MSRS = 24 };
struct vcpu_late {
	bool has_lapic;
	struct kvm_lapic_state lapic;
	uint32_t nmsrs;
	struct kvm_msr_entry msr[LATE_MSRS];
};

enum vm_gate {
	GATE_CLOSED, // not started
	GATE_OPEN,
	GATE_PAUSED,
	GATE_STOPPED, // for good
};

enum { EVENT_RING = 64, MSR_MAX = 384 };

struct watch {
	int fd; // -1: free
	uint32_t gen;
	void (*cb)(void *ctx, uint32_t events);
	void *ctx;
};

// What the watch of a queue's eventfd needs to know.
struct kick_ref {
	struct vmm *vm;
	unsigned index, q;
};

struct vmm {
	int fd; // the KVM VM
	struct guestmem mem;
	bool mem_borrowed; // its addresses are the caller's
	unsigned nvcpus;
	struct vcpu vcpu[VMM_MAX_VCPUS];
	size_t run_size;  // of each vCPU's kvm_run mapping
	size_t xsave_len; // KVM_CAP_XSAVE2
	uint32_t tsc_khz, host_tsc_khz;
	bool tsc_control;
	// vCPU 0's TSC and its offset, while a state is saved or loaded: the
	// other vCPUs' follow from them.
	uint64_t tsc0, tsc0_offset;
	struct cpuid_table cpuid; // as vCPU 0 sees it
	uint32_t nmsrs;
	uint32_t msr_index[MSR_MAX]; // what a state holds, in its order
	bool booted;		     // boot or load happened
	bool prepared;		     // ... up to vmm_state_finish()
	struct state_clock {
		uint64_t clock_ns;
		uint32_t tsc_khz;
		uint32_t genid_used;
	} saved_clock; // of a prepared one

	pthread_mutex_t lock;
	pthread_cond_t cond; // gate, parked, mailbox; CLOCK_MONOTONIC
	_Atomic int gate;
	void (*pause_in)(void *ctx); // vCPU 0, while paused; under lock
	void *pause_ctx;
	bool stop_told; // the guests' clocks know of this pause already
	_Atomic uint64_t first_exit_ns;
	struct vmm_event events[EVENT_RING];
	unsigned ev_head, ev_used;
	bool ended; // a terminal event was queued

	struct ioapic ioapic;
	struct serial serial;
	struct console console;
	struct doorbell doorbell;
	_Atomic bool genid_used;
	bool genid_irq; // raise the generation interrupt at the next start
	// The devices were loaded: the device thread looks at their queues once
	// the VM runs.
	_Atomic bool resume_devices;

	// Device thread.
	int epoll_fd, wake_fd, console_wake, console_late;
	int exit_fd; // eventfd: vCPU 0 has left the guest once
	struct watch *watches;
	unsigned nwatches;
	struct vio_host vio_host;
	struct vio_dev *vio[VIO_NUM];
	int kick[VIO_NUM][VIO_MAX_QUEUES]; // eventfds of the queues
	struct kick_ref kick_refs[VIO_NUM][VIO_MAX_QUEUES];
	uint32_t kicks[VIO_NUM][VIO_MAX_QUEUES];
	bool ioeventfd[VIO_NUM][VIO_MAX_QUEUES];
	uint64_t disk_bytes;
};

// vmm_loop.c
int loop_init(struct vmm *vm, struct err *e);
void loop_fini(struct vmm *vm);
int loop_watch_vio(struct vmm *vm, unsigned index, struct err *e);
void loop_wait(struct vmm *vm, int timeout_ms);
// vmm.c: queues an event; any thread. Terminal kinds also end the VM.
void vm_event(struct vmm *vm, enum vmm_event_kind kind, uint32_t arg,
	      const char *fmt, ...) __attribute__((format(printf, 4, 5)));
// vcpu.c
void vcpu_kick_locked(struct vmm *vm);
void vcpu_signal_init(void);
// Acts on v->run after KVM_RUN returned 0: 0, or -errno when this vCPU cannot go
// on (VMM_EV_FATAL is queued then).
int vcpu_handle_exit(struct vcpu *v);

// bus.c: an access from a vCPU; false when no device answers (reads are ~0).
bool bus_pio(struct vmm *vm, bool out, uint16_t port, void *data,
	     unsigned size);
bool bus_mmio(struct vmm *vm, bool write, uint64_t gpa, void *data,
	      unsigned len);

// acpi.c: tables for this machine at VMM_ACPI_BASE; returns their length or
// -E2BIG. `buf` has VMM_ACPI_MAX bytes.
struct acpi_config {
	unsigned vcpus;
	bool vio[VIO_NUM]; // device exists
};
int acpi_build(uint8_t *buf, const struct acpi_config *cfg);

// boot_elf.c, boot_bzimage.c: load the image, fill the setup header of the boot
// parameters, and say where the 64-bit entry is and which range is taken.
struct boot_image {
	uint64_t entry;
	uint64_t lo, hi;      // guest-physical range that the kernel may use
	uint64_t initrd_max;  // highest address of an initrd's last byte
	uint32_t cmdline_max; // bytes without the NUL
	uint8_t hdr[0x80];    // struct setup_header, from offset 0x1f1
	size_t hdr_len;
};
int boot_elf_load(struct guestmem *gm, const void *img, size_t len,
		  struct boot_image *out, struct err *e);
int boot_bzimage_load(struct guestmem *gm, const void *img, size_t len,
		      struct boot_image *out, struct err *e);
int boot_load(struct guestmem *gm, const struct vmm_boot *b,
	      const struct acpi_config *acpi, uint64_t *entry, struct err *e);

// kvm_x86.c: registers at the 64-bit entry, and a vCPU's complete state.
int vcpu_set_boot_regs(struct vcpu *v, uint64_t entry, uint64_t rsi,
		       struct err *e);
int vcpu_save(struct vcpu *v, struct wire_writer *w, struct err *e);
int vcpu_check(struct wire_reader *r, unsigned index, struct err *e);
// With `late`, what depends on the moment goes there, for vcpu_load_late();
// else everything is loaded now.
int vcpu_load(struct vcpu *v, struct wire_reader *r, struct vcpu_late *late,
	      struct err *e);
int vcpu_load_late(struct vcpu *v, const struct vcpu_late *late, struct err *e);
int vcpu_kvmclock_ctrl(struct vcpu *v);
// tsc.c
void tsc_align(struct vcpu *v, uint64_t *tsc);
bool tsc_load(struct vcpu *v, uint64_t tsc);
// msr.c
int msr_list_init(struct vmm *vm, int kvm_fd, struct err *e);
int msr_boot(struct vcpu *v, struct err *e);
int msr_save(struct vcpu *v, struct wire_writer *w, struct err *e);
int msr_check(const void *blob, size_t len, struct err *e);
int msr_load(struct vcpu *v, const void *blob, size_t len,
	     struct vcpu_late *late, struct err *e);
int msr_load_late(struct vcpu *v, const struct vcpu_late *late, struct err *e);

// state_check.c: a parsed container; pointers go into the caller's buffer.
enum { STATE_SECTIONS_MAX = 64 };
struct state_section {
	uint32_t tag, index;
	const uint8_t *p;
	size_t len;
};
struct state_view {
	struct vmm_state_info info;
	unsigned nsections;
	struct state_section s[STATE_SECTIONS_MAX];
};
uint32_t crc32c(uint32_t crc, const void *p, size_t len);
int state_parse(const void *state, size_t len, struct state_view *out,
		struct err *e);
const struct state_section *state_find(const struct state_view *v, uint32_t tag,
				       uint32_t index);
// clock section
int state_clock_parse(const struct state_section *s, struct state_clock *out,
		      struct err *e);
// host section: the guest's CPUID
int state_host_parse(const struct state_section *s, struct cpuid_table *out,
		     struct err *e);
// hostcheck.c: 0, or -ENODEV and the names of the features of `need` that
// `have` lacks.
// Do guests' TSCs run? 0, or -ENODEV and a sentence; -errno if there is no VM.
int probe_tsc(int kvm_fd, struct err *e);

int hostcheck_compare(const struct cpuid_table *need,
		      const struct cpuid_table *have, struct err *e);

#define FOURCC(a, b, c, d)                                          \
	((uint32_t)(a) | (uint32_t)(b) << 8 | (uint32_t)(c) << 16 | \
	 (uint32_t)(d) << 24)
#define STATE_TAG_HOST FOURCC('H', 'O', 'S', 'T')
#define STATE_TAG_CLOCK FOURCC('C', 'L', 'O', 'K')
#define STATE_TAG_IOAPIC FOURCC('I', 'O', 'A', 'P')
#define STATE_TAG_SERIAL FOURCC('S', 'E', 'R', 'L')
#define STATE_TAG_BELL FOURCC('B', 'E', 'L', 'L')
#define STATE_TAG_VCPU FOURCC('V', 'C', 'P', 'U')
#define STATE_TAG_VIRTIO FOURCC('V', 'I', 'R', 'T')
#define STATE_TAG_INFO FOURCC('I', 'N', 'F', 'O')
enum { STATE_HEADER_LEN = 64, STATE_ENTRY_LEN = 32, STATE_ALIGN = 64 };
enum { STATE_VERSION = 1, STATE_F_OPTIONAL = 1 };
extern const uint8_t STATE_MAGIC[8];

#endif
