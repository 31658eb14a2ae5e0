// Shared by the vm*.c files only.
#ifndef THAW_ENG_VM_INTERNAL_H
#define THAW_ENG_VM_INTERNAL_H

#include "agent.h"
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

// The part of a microVM that lives in this thawd; from creation (or recovery
// as SUSPENDED) until TERMINATED.
struct eng_vm {
	struct eng_vms *m;
	struct reg_vm *r;
	struct eng_cell *cell; // NULL: none
	enum vm_op op;
	bool captured; // OP_SUSPEND: cap_id is published
	bool has_cap;
	struct pgc_id cap_id;
	uint64_t t0; // of the operation
	struct vm_talk talk;
	struct eng_agent_log *agent_log;
	struct eng_timer *log_retry, *deadline;
	struct vmlog *log;
	struct vm_waiter *waiters;
	char end_code[32], end_reason[256]; // OP_TERMINATE: as asked for
	char op_error[300];
	uint64_t freeze_ns;
	void *payload; // cold run without an agent: for the mailbox
	size_t payload_len;
};

struct snaps_drop;
struct gc_job;

struct eng_vms {
	struct eng_vms_env env;
	uint64_t memory_total;
	unsigned vcpus_total;
	int64_t reserved_mib;
	int reserved_vcpus;
	bool stopping;
	struct eng_timer *gc_timer;
	bool gc_running, gc_again;
	struct gc_job *gc;	  // the one that runs
	struct snaps_drop *drops; // under way
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
// A suspend or resume ended; `why` NULL when it went well. Tells op_end
// waiters.
void vm_op_ended(struct eng_vm *v, const char *why);
// The last transition: TERMINATED; the live part goes on a later turn.
void vm_ended(struct eng_vm *v, const char *code, const char *reason);
void vm_arm_deadline(struct eng_vm *v);

// --- vm_ops.c --------------------------------------------------------------

void vm_cell_gone(void *ctx, enum eng_end why, const char *detail);

// --- vm_store.c -------------------------------------------------------------

// At the end: what the workers left undone is for the next thawd to find.
void vm_store_fini(struct eng_vms *m);

// --- vm_talk.c -------------------------------------------------------------

void vm_talk_start(struct eng_vm *v, uint64_t timeout_ms,
		   void (*encode)(struct eng_vm *v, struct wire_writer *w),
		   void (*done)(struct eng_vm *v, int rc, const char *why));
void vm_talk_stop(struct eng_vm *v);
// Openings for it.
void vm_encode_thaw(struct eng_vm *v, struct wire_writer *w);
void vm_encode_freeze(struct eng_vm *v, struct wire_writer *w);
void vm_encode_unfreeze(struct eng_vm *v, struct wire_writer *w);
void vm_encode_start(struct eng_vm *v, struct wire_writer *w);
void vm_log_attach(struct eng_vm *v); // the agent's log stream
void vm_log_detach(struct eng_vm *v);
void vm_log_bytes(struct eng_vm *v, const void *p, size_t n);

#endif
