// The life of microVMs: run, suspend, resume, terminate, and everything that
// can happen in between. Knows nothing of HTTP.
//
// Errors of the control functions say what kind of "no" it is by their code:
// -EINVAL bad argument, -ENOENT no such thing, -EBUSY wrong state or a clash,
// -EDQUOT does not fit, -EAGAIN does not fit now; anything else is a failure.
#ifndef THAW_ENG_VM_H
#define THAW_ENG_VM_H

#include "cells.h"
#include "registry.h"
#include "vmlog.h"

struct eng_vms;

struct eng_vms_env {
	struct eng_loop *loop;
	struct eng_jobs *jobs;
	struct eng_cells *cells;
	struct pgc_store *store;
	struct eng_reg *reg;
	const char *kernel_path, *initrd_path; // of guests with an agent
	const char *log_dir;
	struct eng_roles *roles; // of executionRoleArn; NULL: none is mapped
	const char *region;	 // that guests are told
	uint64_t memory_budget;	 // bytes of guest memory; 0: no limit
	unsigned time_scale;	 // tests: durations pass so many times as fast
};

int eng_vms_create(struct eng_vms **out, const struct eng_vms_env *env,
		   struct err *e);
// Ends what an earlier thawd left running, drops what the store lost, removes
// snapshots that nobody refers to (not when the registry is fresh: then the
// store's contents are somebody's only copy). Before the loop runs.
int eng_vms_recover(struct eng_vms *m, bool fresh_registry, struct err *e);
// Ends every microVM that has a cell, with the reason "thawd was stopped".
void eng_vms_stop(struct eng_vms *m);
bool eng_vms_busy(const struct eng_vms *m); // some still have a cell
void eng_vms_destroy(struct eng_vms *m);

struct vm_run {
	const struct reg_image *image;
	const struct reg_version *version;
	const char *name; // "" without; checked by the caller
	json_t *labels;	  // borrowed; or NULL
	json_t *extra;	  // borrowed; or NULL
	bool cold;	  // boot it instead of thawing
	bool parked;	  // for the image's pool: no name, no token, no payload
	const void *payload;
	size_t payload_len; // mailbox of a guest without an agent
	uint32_t max_duration_s;
	const char *token; // or NULL; with `params`
	uint8_t params[16];
	uint64_t t0;
};
// Makes a microVM, PENDING; or claims a parked one of this version, which runs
// (or, with an agent, is PENDING). Nothing was made when it fails. -EBUSY also:
// the pool has no room for a parked one.
int eng_vm_run(struct eng_vms *m, const struct vm_run *rq, struct reg_vm **out,
	       struct err *e);
int eng_vm_suspend(struct eng_vms *m, struct reg_vm *vm, struct err *e);
int eng_vm_resume(struct eng_vms *m, struct reg_vm *vm, uint64_t t0,
		  struct err *e);
// From any state; nothing to do when it is TERMINATED already.
void eng_vm_terminate(struct eng_vms *m, struct reg_vm *vm, const char *code,
		      const char *reason);

// Waiting. cb is called once, on the loop: when the state is in `mask` (bit
// 1 << state), when it can no longer come (TERMINATED), when `op_end` is set
// and the running suspend or resume ended (also by failing), or after
// timeout_ms. It is called from within when that is so already.
enum vm_wait_end {
	VM_WAIT_REACHED,
	VM_WAIT_ENDED,
	VM_WAIT_OP,
	VM_WAIT_TIMEOUT
};
void eng_vm_wait(struct eng_vms *m, struct reg_vm *vm, unsigned mask,
		 bool op_end, uint64_t timeout_ms,
		 void (*cb)(void *ctx, struct reg_vm *vm, enum vm_wait_end how),
		 void *ctx);
// Why its last suspend or resume failed; "" when it did not.
const char *eng_vm_op_error(const struct reg_vm *vm);

// --- traffic (vm_traffic.c) --------------------------------------------------

// Something came in for it from outside: the idle policy counts from now on.
void eng_vm_traffic(struct reg_vm *vm);
// A byte stream to a TCP port of the guest, for traffic from outside. A RUNNING
// microVM is asked at once; a SUSPENDED (or SUSPENDING) one whose idle policy says
// autoResumeEnabled, or that has none, is resumed first; a PENDING one is waited for.
// `cb` is called once, on a later turn: fd >= 0 (the caller's; connected,
// non-blocking), or -ECONNREFUSED: nobody listens; -EBUSY: not in a state for it,
// and not on its way there; -ETIMEDOUT; -EDQUOT: it does not fit now; -ENOENT:
// it has ended; else -errno. `why` may be a sentence. The handle is gone after it.
struct vm_opening;
int eng_vm_open(struct eng_vms *m, struct reg_vm *vm, unsigned port,
		uint64_t timeout_ms,
		void (*cb)(void *ctx, int fd, const char *why), void *ctx,
		struct vm_opening **out, struct err *e);
// The same without a stream: fd is 0 once it is RUNNING.
int eng_vm_wake(struct eng_vms *m, struct reg_vm *vm, uint64_t timeout_ms,
		void (*cb)(void *ctx, int rc, const char *why), void *ctx,
		struct vm_opening **out, struct err *e);
void eng_vm_open_cancel(struct vm_opening *o); // cb does not come; NULL is fine
// Called when a microVM has ended for good, before its record may be removed.
void eng_vms_on_end(struct eng_vms *m, void (*cb)(void *ctx, struct reg_vm *vm),
		    void *ctx);

// --- network connectors (vm_net.c) -------------------------------------------

// RunMicrovm's lists, or NULL. -EINVAL. `accept`: egress that nobody serves.
int eng_net_check(const json_t *ingress, const json_t *egress, bool accept,
		  struct err *e);
// May its ports be asked from outside? Yes when RunMicrovm named no connectors.
bool eng_vm_may_http(const struct reg_vm *vm);
// And its shell? -EINVAL with AWS's words.
int eng_vm_may_shell(const struct reg_vm *vm, struct err *e);

// Adds to a copy of its timings what has become known since.
void eng_vm_late_timings(const struct reg_vm *vm, json_t *timings);
// Its cell, while RUNNING; NULL otherwise.
struct eng_cell *eng_vm_cell(const struct reg_vm *vm);
pid_t eng_vm_pid(const struct reg_vm *vm); // its cell's; 0: none
// Its log; NULL and why when it cannot be had. `owned`: the microVM has ended,
// and the caller closes what it got.
struct vmlog *eng_vm_log(struct eng_vms *m, struct reg_vm *vm, bool *owned,
			 struct err *e);
// The log group and stream that it logs to: what it, or its image, was given, else
// ENG_LOG_DEFAULT with its image's name, and its id. Borrowed, also from `buf`.
// False: its logging is disabled.
#define ENG_LOG_DEFAULT "/aws/lambda-microvms/"
enum { ENG_LOG_GROUP = sizeof(ENG_LOG_DEFAULT) + REG_NAME_MAX };
bool eng_vm_log_names(const struct reg_vm *r, char buf[ENG_LOG_GROUP],
		      const char **group, const char **stream);

// Finds by id, name or unique prefix of an id ("microvm-" may be left out).
// -ENOENT, -EINVAL: ambiguous, naming candidates.
int eng_vm_find(struct eng_vms *m, const char *text, struct reg_vm **out,
		struct err *e);

// The one whose endpoint's host name begins with this UUID (in lower case); also
// one that has ended. NULL: none.
struct reg_vm *eng_vm_by_endpoint(struct eng_vms *m, const char *uuid);

// What is promised to guests at this moment.
struct vm_totals {
	uint64_t memory_total, memory_budget, memory_committed;
	unsigned vcpus_total, vcpus_committed;
	unsigned by_state[VM_NUM_STATES];
};
void eng_vms_totals(struct eng_vms *m, struct vm_totals *out);
// -EDQUOT when `mem_mib` more does not fit the budget, parked microVMs given up.
int eng_vms_fits(struct eng_vms *m, uint32_t mem_mib, struct err *e);
// Memory of VMs that are no microVMs yet (image builds).
void eng_vms_reserve(struct eng_vms *m, int64_t mem_mib, int vcpus);

// --- pools (vm_pool.c) -------------------------------------------------------

// Sets how many microVMs of an image shall wait parked (and makes the pool);
// those beyond are given up. *seq: the transaction.
int eng_pool_set(struct eng_vms *m, const char *image, unsigned size,
		 struct reg_pool **out, uint64_t *seq, struct err *e);
// Removes the pool and gives its microVMs up.
int eng_pool_delete(struct eng_vms *m, struct reg_pool *p, uint64_t *seq,
		    struct err *e);
struct pool_counts {
	unsigned parked;     // of the version that would run: to be claimed
	unsigned starting;   // on their way there
	const char *version; // "" when none would run
};
void eng_pool_count(struct eng_vms *m, const char *image,
		    struct pool_counts *out);
// Gives up what the image's pool has too many of, or of a version that a plain
// run would not take.
void eng_pool_trim(struct eng_vms *m, const char *image);
// Gives up all unclaimed ones of an image (or version). One that still ends, to
// be waited for, or NULL.
struct reg_vm *eng_pool_clear(struct eng_vms *m, const char *image,
			      const char *version);

// Removes snapshots once transaction `seq` is durable, then collects garbage.
void eng_snaps_drop(struct eng_vms *m, uint64_t seq, const struct pgc_id *ids,
		    size_t n);

#endif
