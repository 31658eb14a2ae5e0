// What the files behind cells.h share: cells.c (the handles), cell_pool.c
// (classes, shells), cell_prepare.c, cell_birth.c and cell_proc.c (the process),
// cell_ns.c (its namespaces), cell_start.c (START), cell_talk.c (messages and
// orders), cell_disk.c (extents), faults.c, learn.c, lay.c, snaps.c, evict.c,
// capture.c.
//
// Two objects make a cell. A *proc* is a thaw-cell process: spawned, ready (a
// shell), bound to a cell, dead, reaped. A *cell* is the handle that the rest
// of the engine holds: it may wait for its snapshot or for a proc, and it
// outlives its proc until nothing refers to it. A proc is bound once and never
// unbound.
//
// Lifetimes are counted. `proc->jobs`: worker jobs that use the process, its
// userfaultfd or pid; it is reaped, and its descriptors closed, only at 0, so a
// pid is never another's and a userfaultfd never closes under a fault.
// `cell->holds`: its proc, its loads, its captures; gone() is called at 0.
#ifndef THAW_ENG_CELLS_PRIV_H
#define THAW_ENG_CELLS_PRIV_H

#include "cellproto.h"
#include "cells.h"
#include "keeper.h"
#include "snaps.h"

struct cell_class;
struct cell_proc;
struct capture;

struct eng_cells {
	struct eng_loop *loop;
	struct eng_jobs *jobs;
	struct eng_jobs *layers;  // lay.c's; NULL before the first write set
	struct eng_jobs *copiers; // capture.c's; NULL before the first capture
	struct capture *capture_queue; // prepared, waiting to be parked
	unsigned capture_parking;
	struct pgc_store *store;
	struct eng_cells_config cfg;
	int cell_fd, null_fd; // thaw-cell's program; /dev/null
	int ns[CP_NUM_NS];    // the cells' namespaces
	int host_fd;	      // what KVM supports, for each cell
	struct eng_watch *store_watch, *keeper_watch;
	struct eng_timer *refill;
	uint64_t refill_ns; // when it is due, CLOCK_MONOTONIC; 0: it is not set
	struct pgc_id cold; // the last thaw's image, while refills wait for it,
	uint64_t cold_ns;   // and that thaw's time; 0: they do not
	struct cell_proc *procs;
	struct eng_cell *cells;
	struct cell_class *classes;
	struct cell_class *blank;      // that of blanks, or NULL: none are kept
	struct prepared_set *prepared; // cell_prepare.c's
	struct eng_snap *snaps;
	struct evict *evict; // evict.c's
	uint8_t *slots;	     // in use, one byte each; cfg.max_cells of them
	uint64_t next_id, next_template_id;
	unsigned nprocs, ncells, spawn_failures;
	unsigned jobs_running;
	bool stopping, keeper_lost;
};

struct cell_class {
	struct cell_class *next;
	uint32_t mem_mib;
	unsigned vcpus; // 0, as mem_mib: the class of blanks
	bool wanted;
	uint64_t wanted_at;
	unsigned nready, nspawning;
	struct cell_proc *ready;		  // linked by next_ready
	struct eng_cell *waiting, **waiting_tail; // linked by next_waiting
};

enum proc_state {
	PROC_SPAWNING,
	PROC_READY,
	PROC_PREPARING, // an image is being put into it
	PROC_PREPARED,	// cell_prepare.c
	PROC_BOUND,
};

enum { PROC_CREDIT_MAX = 4000 }; // messages at once

struct cell_proc {
	struct cell_proc *next, **prev;
	struct cell_proc *next_ready;
	struct eng_cells *c;
	struct cell_class *class;
	struct eng_cell *cell;	  // when bound
	struct proc_child *child; // while spawning
	struct prepared_set *set; // that it is prepared for, until it is taken
	struct eng_snap *snap;	  // mapped by it since then: a reference
	int overlay;		  // of its disk, until it is taken; or -1
	enum proc_state state;
	bool dying, exited;
	bool blank; // was started without a size
	uint64_t id;
	unsigned slot;
	pid_t pid;
	int pidfd, ctl, boot, disk, console, uffd, pagemap, statm;
	struct eng_watch *w_pidfd, *w_ctl, *w_disk, *w_console, *w_uffd;
	struct eng_timer *timer;  // while spawning or starting
	struct eng_timer *linger; // while dying
	unsigned linger_ms;	  // until it looks again
	uint64_t mem_base, mem_bytes;
	uint64_t rss_birth; // private bytes before there was a guest
	unsigned jobs;
	unsigned disk_reqs; // not yet answered
	unsigned credit;    // messages that it may still send
	uint64_t credit_at;
	char failed[CP_TEXT_MAX]; // its last words, or ""
};

enum cell_state {
	CELL_OPENING, // snapshots are being opened
	CELL_WAITING, // for a proc
	CELL_STARTING,
	CELL_LAYING, // a resumed one: its own pages are being laid
	CELL_RUNNING,
};

struct eng_cell {
	struct eng_cell *next, **prev;
	struct eng_cell *next_waiting;
	struct eng_cells *c;
	struct cell_proc *proc;
	const struct eng_cell_events *ev;
	void *ctx;
	enum cell_state state;
	unsigned holds;
	bool ended, waiting, parking, parked;
	int claim_fd; // of a parked one: its vCPU-0 thread waits at the other end
	enum eng_end why;
	char detail[ERR_MSG_MAX];

	// what it was asked to be
	bool is_boot, has_own, record, has_disk;
	struct pgc_id base_id, own_id;
	uint32_t mem_mib;
	unsigned vcpus;
	void *mailbox;
	size_t mailbox_len;
	int kernel_fd, initrd_fd;
	char *cmdline;
	struct eng_timer *starting; // or NULL; holds the cell while it runs

	struct eng_snap *base, *own; // base of a boot: the disk's snapshot
	int overlay;		     // memfd, or -1 without a disk
	struct eng_cell_times times;
	uint64_t faults, fault_pages;
	uint32_t *recorded; // page numbers
	size_t nrecorded, cap_recorded;
	uint8_t *recorded_map; // a bit for each page
	struct capture *capture;
	struct lay_set *lay; // lay.c's job, while it runs
};

// --- cells.c ----------------------------------------------------------------

// The first reason counts. Kills the proc; gone() follows.
void cell_end(struct eng_cell *cell, enum eng_end why, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void cell_hold(struct eng_cell *cell);
void cell_release(struct eng_cell *cell);

// Runs a job that uses `cell` and its proc (which may be NULL): both are held
// until done() returned, whose turn bears its name.
struct cell_job {
	struct eng_cell *cell;
	struct cell_proc *proc;
	struct eng_jobs *pool; // set before; NULL: the usual workers
	void (*work)(struct cell_job *j);
	void (*done)(struct cell_job *j); // frees what embeds it
};
#define cell_job_run(cell, j, work, done) \
	cell_job_run_named(cell, j, work, done, #done)
void cell_job_run_named(struct eng_cell *cell, struct cell_job *j,
			void (*work)(struct cell_job *j),
			void (*done)(struct cell_job *j), const char *name);

// --- cell_talk.c ------------------------------------------------------------

// A message on ctl from a bound proc. False: it makes no sense.
bool cell_message(struct eng_cell *cell, int type, struct wire_reader *r,
		  int *fds, unsigned nfds);

// --- cell_pool.c ------------------------------------------------------------

// The cell knows its size: takes a shell, or starts a process and waits for it.
void cell_find_proc(struct eng_cell *cell);
void cell_stop_waiting(struct eng_cell *cell);
void shells_refill(void *cells);		     // the refill timer
int blanks_want(struct eng_cells *c, struct err *e); // at the beginning
// A proc became ready, or is gone: serves who waits for one.
void class_proc_ready(struct cell_proc *p);
void class_proc_gone(struct cell_proc *p, const char *why);
// A prepared one did.
void class_proc_prepared(struct cell_proc *p, const struct eng_snap *sn);

// --- cell_prepare.c ---------------------------------------------------------

void prepared_used(struct eng_cell *cell); // its image deserves prepared cells
// One for this very image, or NULL.
struct cell_proc *prepared_take(struct eng_cell *cell);
unsigned prepared_lacks(const struct eng_cells *c, const struct cell_class *k);
// A shell got ready: true when it is being prepared from now on.
bool prepared_assign(struct cell_proc *p);
bool prepared_evict(struct eng_cells *c); // ends one; false: there is none
void prepared_done(struct cell_proc *p);  // CP_PREPARED came
void prepared_gone(struct cell_proc *p, const char *why);
void prepared_forget(struct eng_cells *c, const struct eng_snap *sn);
void prepared_forget_all(struct eng_cells *c);
int prepared_send_run(struct eng_cell *cell, struct err *e);

// --- cell_birth.c -----------------------------------------------------------

// For `class`: of its size or, as a blank, to take it on later.
int proc_spawn(struct eng_cells *c, struct cell_class *class, bool blank,
	       struct cell_proc **out, struct err *e);
// Its HELLO came: it becomes a shell, or is killed.
void proc_hello(struct cell_proc *p, struct wire_reader *r, int *fds,
		unsigned nfds);

// --- cell_proc.c ------------------------------------------------------------

void proc_kill(struct cell_proc *p);
// True once no instruction of the guest can run again: the process is dead, or
// every thread of it is on its way out.
bool proc_past_guest(const struct cell_proc *p);
// The proc broke the protocol: it is killed, its cell ends as FATAL.
void proc_violation(struct cell_proc *p, const char *what);
void proc_job_done(struct cell_proc *p);
// From now on (or no longer) the proc is expected to report its start.
void proc_expect_start(struct cell_proc *p, bool on);
// Counts one message; false (and killed) when there are too many.
bool proc_credit(struct cell_proc *p);
uint64_t proc_private_bytes(const struct cell_proc *p);
// For its birth: watches what it was given, but for the userfaultfd, which comes
// with HELLO and is `p`'s from a success on.
int proc_watch(struct cell_proc *p, struct err *e);
int proc_watch_uffd(struct cell_proc *p, int fd, struct err *e);
void proc_free(struct cell_proc *p); // its process was reaped, or never was

// --- cell_ns.c --------------------------------------------------------------

// Makes the namespaces that all cells join; `ns` gets their descriptors, in the
// order of CP_FD_NS. Waits for a child.
int cell_ns_make(int ns[CP_NUM_NS], struct err *e);

// --- cell_start.c -----------------------------------------------------------

int overlay_make(uint64_t bytes, int *out, struct err *e);
int cell_make_overlay(struct eng_cell *cell, struct err *e);
// Hands the cell's start to its proc.
int cell_send_start(struct eng_cell *cell, struct err *e);
void cell_mapped(struct eng_cell *cell); // CP_MAPPED came

// --- cell_disk.c ------------------------------------------------------------

struct disk_req;
void disk_read_requests(struct cell_proc *p);
void disk_fill_done(struct disk_req *dr, uint32_t cluster, int rc);

// --- faults.c ---------------------------------------------------------------

void faults_read(struct cell_proc *p); // the proc's userfaultfd is readable
// A waiter for pages of one cluster: either `p` (a memory fault) or `dr`.
int faults_wait(struct eng_snap *sn, enum pgc_stream st, uint64_t pgno,
		uint64_t npages, struct cell_proc *p, struct disk_req *dr);
void faults_forget_proc(struct eng_snap *sn, const struct cell_proc *p);
void faults_drain(struct eng_cells *c); // the store has completions

// --- learn.c ----------------------------------------------------------------

// A fault of the cell: its image's working set may lack the page.
void learn_fault(struct eng_cell *cell, uint32_t pgno);
void learn_ending(struct eng_cell *cell); // its process lives still
void learn_free(struct learn *l);	  // NULL is fine

// --- evict.c ----------------------------------------------------------------

int evict_create(struct eng_cells *c, struct err *e);
void evict_destroy(struct eng_cells *c);
void evict_check(struct eng_cells *c); // templates may have grown
// What templates that hold `have` bytes may hold, by the host's memory alone.
uint64_t evict_pressed(uint64_t total, uint64_t available, uint64_t have);

// --- lay.c ------------------------------------------------------------------

// What clones of an image, or the resumes of a microVM's own snapshot, are to be
// given: *n pages in order, the written ones with PGC_WRITTEN. For the caller to
// free; NULL: none. A worker's.
uint32_t *lay_list(const struct pgc_snap *sn, size_t *n);
// Takes over `pgnos`, such a list (NULL and 0: none).
void lay_replace(struct eng_snap *sn, uint32_t *pgnos, size_t n);
void lay_start(struct eng_cell *cell); // START or GO is on its way
void lay_stop(struct eng_cell *cell);

// --- capture.c --------------------------------------------------------------

void capture_paused(struct eng_cell *cell, int rc, const char *why,
		    uint32_t state_len, int fd); // consumes fd
void capture_unpaused(struct eng_cell *cell, int rc, const char *why);
void capture_cell_ended(struct eng_cell *cell); // its proc is dead

#endif
