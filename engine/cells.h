// (interface) Cells: the sandboxed processes that hold the microVMs, as the
// rest of the engine sees them. Everything is called on the loop; every
// callback comes on the loop and never from within the call that caused it.
#ifndef THAW_ENG_CELLS_H
#define THAW_ENG_CELLS_H

#include "jobs.h"
#include "pagecache.h"

struct eng_cells;
struct eng_cell;

struct eng_cells_config {
	size_t struct_size;
	const char *cell_path; // thaw-cell
	int kvm_fd, uffd_fd;   // /dev/kvm, /dev/userfaultfd
	int keeper_fd;	       // socket to the descriptor keeper
	uint32_t uid_base;     // cells get uid_base + slot
	unsigned shells;       // prepared shells kept per class in use
	unsigned max_cells;
	unsigned blanks;	  // prepared cells of no class, for any
	uint64_t template_budget; // bytes; 0: half of the host's memory
};

int eng_cells_create(struct eng_cells **out, struct eng_loop *l,
		     struct eng_jobs *j, struct pgc_store *s,
		     const struct eng_cells_config *cfg, struct err *e);
void eng_cells_destroy(struct eng_cells *c); // kills what is left, waits

// Keeps shells of this size ready from now on (the default class at start, the
// class of every image in use). Free ones of other classes make room.
void eng_cells_want(struct eng_cells *c, uint32_t mem_mib, unsigned vcpus);
unsigned
eng_cells_ready(const struct eng_cells *c); // shells ready, all classes
unsigned eng_cells_blanks_ready(const struct eng_cells *c);
unsigned eng_cells_prepared_ready(const struct eng_cells *c); // of all images
unsigned eng_cells_prepared_of(const struct eng_cells *c,
			       const struct pgc_id *snap); // of one

// Why a cell ended.
enum eng_end {
	ENG_END_KILLED,	  // eng_cell_kill()
	ENG_END_POWEROFF, // the guest powered off
	ENG_END_RESET,	  // the guest asked for a reset, or triple-faulted
	ENG_END_CRASHED,  // the cell's process died by itself
	ENG_END_MEMORY,	  // a page could not be had: corrupt store or I/O error
	ENG_END_FATAL,	  // KVM or a device gave up
	ENG_END_START,	  // it never started (no shell, bad state, no memory)
};

struct eng_cell_times {	     // CLOCK_MONOTONIC ns; 0: not reached
	uint64_t t0;	     // request, as given
	uint64_t handed;     // sent to the shell's vCPU-0 thread
	uint64_t mapped;     // memory mapped and registered
	uint64_t loaded;     // state applied
	uint64_t first_exit; // T2
};

struct eng_cell_events {
	void (*started)(void *ctx, const struct eng_cell_times *t);
	void (*ready)(void *ctx);    // the doorbell's READY
	void (*vsock_up)(void *ctx); // boot only: the guest's driver is there
	void (*console)(void *ctx, const void *bytes, size_t n);
	void (*parked)(void *ctx, int rc, const char *why);
	// Exactly once, after everything else; the handle is gone after it.
	void (*gone)(void *ctx, enum eng_end why, const char *detail);
};

struct eng_boot_req {
	uint32_t mem_mib;
	unsigned vcpus;
	const char *kernel_path, *initrd_path; // initrd NULL: none
	const char *cmdline;
	bool has_disk;
	struct pgc_id disk; // snapshot whose PGC_DISK stream is the disk
	uint64_t t0;
};
// Boots a VM from a kernel. Memory is anonymous.
int eng_cell_boot(struct eng_cells *c, const struct eng_boot_req *req,
		  const struct eng_cell_events *ev, void *ctx,
		  struct eng_cell **out, struct err *e);

struct eng_thaw_req {
	struct pgc_id base; // the image's snapshot: templates are its streams
	bool has_own;
	struct pgc_id own;   // a suspended microVM's snapshot, parent `base`
	const void *mailbox; // for guests without an agent; or NULL
	size_t mailbox_len;
	bool record; // note the order in which the template's pages are needed
	uint64_t t0;
};
// Thaws a copy. Opening, validating and template set-up that take long are
// done off the loop; failures of those arrive as gone(ENG_END_START).
int eng_cell_thaw(struct eng_cells *c, const struct eng_thaw_req *req,
		  const struct eng_cell_events *ev, void *ctx,
		  struct eng_cell **out, struct err *e);

// A stream to a guest vsock port; *fd is a non-blocking socket owned by the
// caller. A refusal by the guest shows as end of file.
int eng_cell_connect(struct eng_cell *cell, uint32_t port, int *fd,
		     struct err *e);
int eng_cell_mailbox(struct eng_cell *cell, const void *bytes, size_t n,
		     struct err *e);

struct eng_capture_stats {
	uint64_t parked_ns; // guest stood still
	uint64_t total_ns;
	uint64_t dirty_mem_pages, dirty_disk_pages;
};
struct eng_capture_req {
	struct pgc_id id; // of the snapshot to publish
	bool image; // a complete snapshot without parent (after a boot, or
		    // a fork of everything); else parent is the base
	bool keep_running;  // unpause when the copy is made; else the cell is
			    // ended (gone: ENG_END_KILLED) once it is published
	const char *config; // stored as blob "config"; may be NULL
};
// Parks, saves the state, copies what was written, then hashes, compresses and
// publishes on workers. rc 0: published and durable. Else `why` says what
// failed, nothing was published and the guest runs on unharmed.
int eng_cell_capture(struct eng_cell *cell, const struct eng_capture_req *req,
		     void (*done)(void *ctx, int rc, const char *why,
				  const struct eng_capture_stats *st),
		     void *ctx, struct err *e);

// Stops every vCPU and device until eng_cell_unpark(): the guest uses no
// processor time. parked() says how it went; after rc != 0 the guest runs on.
int eng_cell_park(struct eng_cell *cell, struct err *e);
// The guest goes on at once. `mailbox` (at most 16 KiB, or NULL) is there before
// its next instruction. An error: it is dead or dying, gone() follows.
int eng_cell_unpark(struct eng_cell *cell, const void *mailbox, size_t len,
		    struct err *e);

bool eng_cell_is_parked(const struct eng_cell *cell); // as far as is known

// Ends the cell; gone(ENG_END_KILLED) follows when it is dead and reaped.
void eng_cell_kill(struct eng_cell *cell);

pid_t eng_cell_pid(const struct eng_cell *cell); // 0: no process yet
// What is known by now: started() may come before the first exit does.
void eng_cell_get_times(const struct eng_cell *cell, struct eng_cell_times *t);
struct eng_cell_usage {
	uint64_t private_bytes; // guest pages that are this cell's alone
	uint64_t overlay_bytes; // written disk blocks in memory
	uint64_t faults, fault_pages;
};
void eng_cell_usage(const struct eng_cell *cell, struct eng_cell_usage *out);

// Working set recorded by a thaw with `record`: memory page numbers in order of
// first need. Borrowed until the cell is gone.
size_t eng_cell_recorded(const struct eng_cell *cell, const uint32_t **pgnos);

// Templates in memory, for /thaw/v1/host; forgets those nobody uses.
uint64_t eng_template_bytes(const struct eng_cells *c, const struct pgc_id *id);
void eng_template_drop(struct eng_cells *c, const struct pgc_id *id);
// Gives a template back once no cell uses it, unless somebody asks for it first.
void eng_template_release(struct eng_cells *c, const struct pgc_id *id);
struct eng_template_stats {
	uint64_t resident, budget, evicted; // bytes
	uint64_t evicted_images;	    // that went in whole
};
void eng_template_get_stats(const struct eng_cells *c,
			    struct eng_template_stats *out);

#endif
