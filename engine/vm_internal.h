// Shared by the vm*.c files only.
#ifndef THAW_ENG_VM_INTERNAL_H
#define THAW_ENG_VM_INTERNAL_H

#include "agent.h"
#include "hook.h"
#include "vm.h"

enum vm_op {
	OP_NONE,
	OP_START,     // PENDING: thawing or booting
	OP_SUSPEND,   // SUSPENDING
	OP_RESUME,    // SUSPENDED, with a cell
	OP_TERMINATE, // TERMINATING
};

struct vm_waiter {
	struct vm_waiter *next;
	struct eng_vm *v;
	unsigned mask;
	bool op_end, done;
	struct eng_timer *timer;
	void (*cb)(void *ctx, struct reg_vm *vm, enum vm_wait_end how);
	void *ctx;
};

// One conversation with the agent at a time, tried again until its deadline
// while nobody answers.
struct vm_talk {
	void (*encode)(struct eng_vm *v, struct wire_writer *w);
	void (*done)(struct eng_vm *v, int rc, const char *why);
	uint64_t deadline_ns;
	struct eng_agent_call *call;
	struct eng_timer *retry;
	char why[200]; // of the last try
};

enum vm_hook {
	VM_HOOK_RUN,
	VM_HOOK_RESUME,
	VM_HOOK_SUSPEND,
	VM_HOOK_TERMINATE
};

// The call of a lifecycle hook (vm_hooks.c).
struct vm_hook_call {
	void (*done)(struct eng_vm *v, const char *why); // NULL: none runs
	enum vm_hook which;
	unsigned port, timeout_s;
	bool tight;	// connecting counts
	bool starting;	// the application: wait for its port
	uint64_t by_ns; // connected by then; tight: answered
	struct eng_agent_call *call;
	struct eng_hook *ask;
	struct eng_timer *timer;
};

// What its agent knows of its role (vm_roles.c).
struct vm_role {
	uint32_t version, told; // 0: nothing; being told, or last
	bool refused;		// by its agent
	uint64_t by_ns;		// the conversation that follows:
	void (*encode)(struct eng_vm *v, struct wire_writer *w);
	void (*done)(struct eng_vm *v, int rc, const char *why);
};

// The part of a microVM that lives in this thawd; from creation (or recovery
// as SUSPENDED) until TERMINATED.
struct eng_vm {
	struct eng_vms *m;
	struct reg_vm *r;
	struct eng_cell *cell; // NULL: none
	enum vm_op op;
	// While unclaimed (r->parked) in m->pool, then in m->claimed.
	struct eng_vm *pool_next, **pool_link;
	bool given_up; // it ends: counts as gone
	bool captured; // OP_SUSPEND: cap_id is published
	bool has_cap;
	struct pgc_id cap_id;
	uint64_t t0; // of the operation
	struct vm_talk talk;
	struct vm_hook_call hook;
	struct vm_role role;
	struct eng_agent_log *agent_log;
	struct eng_timer *log_retry, *deadline;
	struct vmlog *log;
	struct vm_waiter *waiters;
	struct vm_opening *openings;	    // vm_traffic.c
	uint64_t traffic_ns;		    // when something last came in
	char end_code[32], end_reason[256]; // OP_TERMINATE: as asked for
	char op_error[300];
	uint64_t freeze_ns;
	char sleep_code[32], sleep_reason[100]; // OP_SUSPEND: why
	void *payload; // for the mailbox, or the run hook
	size_t payload_len;
};

struct snaps_drop;
struct gc_job;

struct vm_end_cb {
	void (*cb)(void *ctx, struct reg_vm *vm);
	void *ctx;
};

struct eng_vms {
	struct eng_vms_env env;
	uint64_t memory_total;
	unsigned vcpus_total;
	int64_t reserved_mib;
	int reserved_vcpus;
	bool stopping;
	struct eng_timer *gc_timer;
	bool gc_running, gc_again;
	struct gc_job *gc;		  // the one that runs
	struct snaps_drop *drops;	  // under way
	struct eng_vm *pool, **pool_tail; // unclaimed ones, oldest first
	struct eng_vm *claimed;		  // still to be unparked
	bool unparking;			  // a call that does it is due
	bool pools_dirty;		  // counts to be written
	struct eng_timer *pool_timer;
	struct eng_timer *roles_timer;
	bool roles_owed;	  // somebody may have to be told
	struct vm_end_cb ends[4]; // eng_vms_on_end()
	unsigned nends;
};

// --- vm.c ------------------------------------------------------------------

struct eng_vm *vm_live_new(struct eng_vms *m, struct reg_vm *r);
// The only writer of a microVM's state. Validates the transition, logs it,
// makes it durable with its event, and tells the waiters. Returns the
// transaction's number.
uint64_t vm_set_state(struct eng_vm *v, enum vm_state to, const char *code,
		      const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
// Like it, with a token in the same transaction.
uint64_t vm_born(struct eng_vm *v, const char *token, const uint8_t params[16]);
// A transition with a token in the same transaction: a claim.
void vm_set_claimed(struct eng_vm *v, enum vm_state to,
		    const struct vm_run *rq);
// A suspend or resume ended; `why` NULL when it went well. Tells op_end
// waiters.
void vm_op_ended(struct eng_vm *v, const char *why);
// The last transition: TERMINATED; the live part goes on a later turn.
void vm_ended(struct eng_vm *v, const char *code, const char *reason);
// `yield`: at the cost of parked ones.
int vm_fits(struct eng_vms *m, uint32_t mem_mib, bool yield, struct err *e);

// --- vm_idle.c ---------------------------------------------------------------

void vm_arm(struct eng_vm *v); // its timer, after whatever changed
void vm_timer_fired(void *vm);
bool vm_due(struct eng_vm *v); // a deadline has passed: that is being seen to
// What its idle policy says: being suspended ends it; traffic resumes it.
bool vm_ends_suspended(const struct reg_vm *r);
bool vm_wakes(const struct reg_vm *r);

// --- vm_hooks.c --------------------------------------------------------------

bool vm_has_hooks(const struct reg_version *ver); // any of the four
bool vm_has_hook(const struct reg_version *ver, enum vm_hook which);
// False: it has none. Else `done` comes on a later turn: why NULL when it
// answered 200, or what AWS says of that; unless it is stopped.
bool vm_hook_start(struct eng_vm *v, enum vm_hook which,
		   void (*done)(struct eng_vm *v, const char *why));
void vm_hook_stop(struct eng_vm *v);

// --- vm_ops.c --------------------------------------------------------------

void vm_cell_gone(void *ctx, enum eng_end why, const char *detail);

int vm_may_start(struct eng_vms *m, struct err *e);
int vm_name_free(struct eng_vms *m, const char *name, struct err *e);
// Wants the agent's answer before it runs.
void vm_handshake(struct eng_vm *v);
void vm_now_running(struct eng_vm *v);
void vm_note_now(struct eng_vm *v, const char *key); // a timing of its op
void vm_note_t0(struct eng_vm *v);
// t[key]: from t0 to `ns` in microseconds; NOP when that was not, or before t0.
void vm_note(json_t *t, const char *key, uint64_t ns, uint64_t t0);
// Its image, with its own pages if it has any, gets a cell.
int vm_start_thaw(struct eng_vm *v, const void *payload, size_t len,
		  uint64_t t0, struct err *e);
void vm_fail_start(struct eng_vm *v, const char *why);
void vm_keep_payload(struct eng_vm *v, const struct vm_run *rq);

// --- vm_sleep.c ------------------------------------------------------------

// `code` and `reason`: of SUSPENDING and SUSPENDED.
int vm_suspend(struct eng_vm *v, const char *code, const char *reason,
	       struct err *e);
// What the end of its cell meant.
void vm_suspended(struct eng_vm *v);
void vm_resume_failed(struct eng_vm *v, const char *why);

// --- vm_pool.c ---------------------------------------------------------------

// False: there is none to claim.
bool vm_pool_claim(struct eng_vms *m, const struct vm_run *rq,
		   struct reg_vm **out);
int vm_pool_room(struct eng_vms *m, const struct vm_run *rq, struct err *e);
void vm_pool_join(struct eng_vm *v);	// a parked run began
void vm_pool_leave(struct eng_vm *v);	// claimed or ended; NOP when not in
void vm_pool_park(struct eng_vm *v);	// it started: stop it
void vm_pool_unpark(struct eng_vms *m); // all that were claimed
void vm_pool_parked(void *vm, int rc, const char *why); // the cell's answer
void vm_pool_ended(struct eng_vm *v); // one that was PARKED will not be claimed
// Gives the oldest ones up until `bytes` are free; false: they have not so much,
// and none was.
bool vm_pool_yield(struct eng_vms *m, uint64_t bytes);
void vm_pool_fini(struct eng_vms *m); // writes the counts

// --- vm_traffic.c ------------------------------------------------------------

void vm_traffic_tell(struct eng_vm *v); // its state or operation changed
void vm_traffic_end(struct eng_vm *v);	// there is no more of it

// --- vm_roles.c --------------------------------------------------------------

// vm_talk_start(), after its agent was told the credentials of its role, if this
// thawd has any.
void vm_talk_with_role(struct eng_vm *v, uint64_t timeout_ms,
		       void (*encode)(struct eng_vm *v, struct wire_writer *w),
		       void (*done)(struct eng_vm *v, int rc, const char *why));
int vm_roles_start(struct eng_vms *m, struct err *e);
void vm_roles_stop(struct eng_vms *m);

// --- vm_store.c --------------------------------------------------------------

// At the end: what the workers left undone is for the next thawd to find.
void vm_store_fini(struct eng_vms *m);

// --- vm_talk.c -------------------------------------------------------------

void vm_talk_start(struct eng_vm *v, uint64_t timeout_ms,
		   void (*encode)(struct eng_vm *v, struct wire_writer *w),
		   void (*done)(struct eng_vm *v, int rc, const char *why));
void vm_talk_stop(struct eng_vm *v);
struct reg_version *vm_version_of(const struct eng_vm *v); // NULL: gone
// Openings for it.
void vm_encode_thaw(struct eng_vm *v, struct wire_writer *w);
void vm_encode_renew(struct eng_vm *v, struct wire_writer *w);
void vm_encode_freeze(struct eng_vm *v, struct wire_writer *w);
void vm_encode_unfreeze(struct eng_vm *v, struct wire_writer *w);
void vm_encode_start(struct eng_vm *v, struct wire_writer *w);
void vm_log_attach(struct eng_vm *v); // the agent's log stream
void vm_log_detach(struct eng_vm *v);
void vm_log_bytes(struct eng_vm *v, const void *p, size_t n);

#endif
