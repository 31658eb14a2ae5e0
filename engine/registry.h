// The registry: what thawd knows of images, microVMs, client tokens and events,
// in memory for the loop and in SQLite for the next thawd (docs/REGISTRY.md).
//
// The model in memory is the authority and is changed only on the loop. Every
// change is put into a transaction; a writer thread commits transactions in
// their order, as many at once as are waiting (group commit). Answers that
// report a change are sent after its commit: eng_reg_after().
//
// When a commit fails (disk full), the writer keeps trying: nothing is
// acknowledged meanwhile, and eng_reg_healthy() says why.
#ifndef THAW_ENG_REGISTRY_H
#define THAW_ENG_REGISTRY_H

#include "loop.h"
#include "pagecache.h"

#include <jansson.h>

enum {
	REG_NAME_MAX = 64,
	REG_ID_LEN = 44, // "microvm-" and a UUID
	REG_UUID_LEN = 36,
	REG_TOKEN_MAX = 4 * 128, // bytes: 128 characters
	REG_MADE_MAX = REG_NAME_MAX + 17,
	REG_BUILD_ID = 36,	  // a UUID
	REG_KEEP_ENDED = 2000,	  // TERMINATED microVMs remembered
	REG_KEEP_EVENTS = 200000, // newest events kept
	REG_KEEP_TOKENS = 200000,
	REG_POOL_MAX = 4096, // microVMs parked for one image
};

// States as AWS names them. Who moves a microVM out of each, and what holds
// while it is there, is written at the transition table in vm.c.
enum vm_state {
	VM_PENDING,
	VM_PARKED, // thaw's own: waits in a pool to be claimed
	VM_RUNNING,
	VM_SUSPENDING,
	VM_SUSPENDED,
	VM_TERMINATING,
	VM_TERMINATED,
	VM_NUM_STATES,
};
const char *eng_state_name(enum vm_state s);
int eng_state_parse(const char *name, enum vm_state *out); // 0 or -EINVAL

// Of a version and its build. Only SUCCESSFUL ones have a snapshot.
enum version_state {
	VER_PENDING,
	VER_IN_PROGRESS,
	VER_SUCCESSFUL,
	VER_FAILED,
	VER_NUM_STATES,
};
const char *eng_version_state_name(enum version_state s);

struct reg_version {
	char version[16]; // "1.0"
	struct pgc_id snap;
	bool has_disk;
	struct pgc_id disk;
	uint32_t mem_mib;
	unsigned vcpus;
	bool agent;  // has a thaw-agent; else a guest of the doorbell
	bool active; // status ACTIVE; else INACTIVE
	bool broken; // its snapshot is gone from the store (not persistent)
	uint64_t created_ms;
	enum version_state state;	 // docs/REGISTRY.md
	uint64_t updated_ms;		 // 0: never
	char build_id[REG_BUILD_ID + 1]; // "" of versions of older thaws
	char reason[512];		 // why its build failed; else ""
	// CreateMicrovmImage's members, as given; of thaw's own, NULL or its
	// hooks alone.
	json_t *aws;
	json_t *spec;  // as built: entrypoint, env, ..., or kernel, cmdline
	json_t *sizes; // bytes: stored, unique, raw...; times of the build
};

struct reg_image {
	char name[REG_NAME_MAX + 1];
	uint64_t created_ms, updated_ms;
	struct reg_version **versions; // oldest first
	size_t nversions;
	unsigned last_major; // never given twice
	json_t *tags;	     // {k: v}; NULL: none
};

struct eng_vm; // vm.c's part of a microVM

struct reg_vm {
	char id[REG_ID_LEN + 1];
	char name[REG_NAME_MAX + 1];	 // "" without
	char endpoint[REG_UUID_LEN + 1]; // a UUID: first label of its host name
	uint64_t seq;			 // order of creation
	char image[REG_NAME_MAX + 1], version[16];
	struct pgc_id base; // whose templates it maps
	bool base_is_own;   // a cold run's: made by its first suspend
	bool has_own;
	struct pgc_id own; // its latest suspend
	uint32_t mem_mib;
	unsigned vcpus;
	bool agent, cold;
	bool parked; // made for a pool, and nobody's yet
	bool pooled; // claimed from a pool
	enum vm_state state;
	char code[32];	  // reason code of the last transition
	char reason[256]; // and its sentence
	uint32_t max_duration_s;
	uint64_t created_ms, started_ms, suspended_ms, ended_ms; // 0: never
	unsigned suspends, resumes;
	json_t *labels;	 // {k: v}
	json_t *extra;	 // accepted members that are echoed: idlePolicy, ...
	json_t *timings; // µs
	struct eng_vm *live; // NULL once TERMINATED
	uint64_t txn;	     // the transaction that holds it as it is now
};

struct reg_token {
	char *token;		   // at most REG_TOKEN_MAX
	uint8_t params[16];	   // digest of the parameters
	char vm[REG_MADE_MAX + 1]; // what it made: an id, or IMAGE/VERSION
	uint64_t created_ms;
};

struct reg_pool { // parked microVMs of one image
	char image[REG_NAME_MAX + 1];
	unsigned size; // wanted
	uint64_t hits, misses, wasted;
	uint64_t created_ms, updated_ms;
};

// A random UUID, in lower case.
void eng_reg_uuid(char out[REG_UUID_LEN + 1]);

struct eng_reg;

// Opens or makes DIR/registry.db. -EBADMSG: corrupt; -ENOTSUP: a newer schema;
// -EBUSY: another thawd has it. `fresh` says that it did not exist.
int eng_reg_open(struct eng_reg **out, struct eng_loop *l, const char *path,
		 bool *fresh, struct err *e);
// Commits what is queued (gives up after 10 s of failures) and closes.
void eng_reg_close(struct eng_reg *r);
bool eng_reg_healthy(const struct eng_reg *r, struct err *e);

// The model; arrays are in order of creation and borrowed until the next
// change.
struct reg_image *const *eng_reg_images(const struct eng_reg *r, size_t *n);
struct reg_vm *const *eng_reg_vms(const struct eng_reg *r, size_t *n);
struct reg_image *eng_reg_image(const struct eng_reg *r, const char *name);
struct reg_version *eng_reg_version(const struct reg_image *im,
				    const char *version);
struct reg_vm *eng_reg_vm(const struct eng_reg *r, const char *id);
const struct reg_token *eng_reg_token(const struct eng_reg *r,
				      const char *token);
struct reg_pool *const *eng_reg_pools(const struct eng_reg *r, size_t *n);
struct reg_pool *eng_reg_pool(const struct eng_reg *r, const char *image);
struct reg_pool *eng_reg_pool_add(struct eng_reg *r, const char *image);
struct reg_image *eng_reg_image_add(struct eng_reg *r, const char *name);
// SUCCESSFUL and ACTIVE, with a build id of its own.
struct reg_version *eng_reg_version_add(struct reg_image *im);
// Draws an id that no other has.
struct reg_vm *eng_reg_vm_add(struct eng_reg *r);

// Transactions. Everything put between begin and commit becomes durable at
// once; put functions take a copy of the record as it is now.
struct reg_txn;
struct reg_txn *eng_reg_begin(struct eng_reg *r);
void eng_reg_put_vm(struct reg_txn *t, const struct reg_vm *vm);
void eng_reg_put_image(struct reg_txn *t, const struct reg_image *im);
void eng_reg_put_version(struct reg_txn *t, const struct reg_image *im,
			 const struct reg_version *v);
void eng_reg_put_pool(struct reg_txn *t, const struct reg_pool *p);
// Also forget it in the model: the pointers die.
void eng_reg_del_pool(struct reg_txn *t, struct reg_pool *p);
void eng_reg_del_vm(struct reg_txn *t, struct reg_vm *vm);
void eng_reg_del_image(struct reg_txn *t, struct reg_image *im);
void eng_reg_del_version(struct reg_txn *t, struct reg_image *im,
			 struct reg_version *v);
void eng_reg_put_token(struct reg_txn *t, const char *token,
		       const uint8_t params[16], const char *vm,
		       uint64_t created_ms);
// The digest of a request's parameters, in whatever order they came.
void eng_reg_params(const json_t *in, uint8_t out[16]);
// Adds cursor and time to `ev` (stolen) and puts it; returns its cursor.
uint64_t eng_reg_event(struct reg_txn *t, json_t *ev);
// The same with an object that is open: jt_open(), and its members.
struct jtext;
uint64_t eng_reg_event_text(struct reg_txn *t, struct jtext *ev);
uint64_t eng_reg_commit(struct reg_txn *t); // queues it; its number

// Calls back on the loop when transaction `seq` is durable: at once, from
// within, when it is already.
void eng_reg_after(struct eng_reg *r, uint64_t seq, void (*cb)(void *ctx),
		   void *ctx);
uint64_t eng_reg_queued(const struct eng_reg *r);  // newest transaction
uint64_t eng_reg_durable(const struct eng_reg *r); // newest committed one

// Events that are durable: cursors (0, eng_reg_last_event()]. The oldest kept
// is eng_reg_first_event().
uint64_t eng_reg_first_event(const struct eng_reg *r);
uint64_t eng_reg_last_event(const struct eng_reg *r);
// The text of event `cursor`, one JSON line without its end, when it is among
// the newest; else NULL: read it from the database.
const char *eng_reg_recent_event(const struct eng_reg *r, uint64_t cursor);
struct reg_events {	// result of a read; freed after the callback
	uint64_t first; // cursor of text[0]
	size_t n;
	char **text;
};
// Reads up to `max` events from `from` on. cb on the loop, never from within.
void eng_reg_read_events(struct eng_reg *r, uint64_t from, size_t max,
			 void (*cb)(void *ctx, const struct reg_events *ev),
			 void *ctx);
// Called on the loop after commits that brought events.
void eng_reg_on_events(struct eng_reg *r, void (*cb)(void *ctx), void *ctx);

struct reg_stats {
	uint64_t commits, transactions, longest_commit_ns;
	uint64_t tokens, bytes;
};
void eng_reg_get_stats(const struct eng_reg *r, struct reg_stats *out);

#endif
