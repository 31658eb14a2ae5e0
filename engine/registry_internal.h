// Shared by registry.c (model), registry_doc.c (records as JSON),
// registry_load.c, registry_db.c (the file) and registry_writer.c (the thread)
// only.
#ifndef THAW_ENG_REGISTRY_INTERNAL_H
#define THAW_ENG_REGISTRY_INTERNAL_H

#include "registry.h"

// --- records as JSON (registry_doc.c) ---------------------------------------

// Their texts, for free().
char *reg_doc_vm(const struct reg_vm *vm);
char *reg_doc_image(const struct reg_image *im);
char *reg_doc_version(const struct reg_version *v);
char *reg_doc_token(const struct reg_token *t);
char *reg_doc_pool(const struct reg_pool *p);
// Fill a zeroed record from a row; -EBADMSG and why.
int reg_undoc_vm(struct reg_vm *vm, const char *key, json_t *doc,
		 struct err *e);
int reg_undoc_image(struct reg_image *im, const char *key, json_t *doc,
		    struct err *e);
int reg_undoc_version(struct reg_version *v, const char *version, json_t *doc,
		      struct err *e);
int reg_undoc_token(struct reg_token *t, const char *key, json_t *doc,
		    struct err *e);
int reg_undoc_pool(struct reg_pool *p, const char *key, json_t *doc,
		   struct err *e);

// --- database (registry_db.c, registry_writer.c) -----------------------------

enum reg_table {
	REG_IMAGES,
	REG_VERSIONS,
	REG_VMS,
	REG_TOKENS,
	REG_POOLS,
	REG_EVENTS, // the last: it has another key
	REG_NUM_TABLES
};

struct reg_op {
	struct reg_op *next;
	enum reg_table table;
	enum { REG_PUT, REG_DEL, REG_DEL_UPTO } what; // UPTO: events only
	char *key;				      // not of events
	uint64_t cursor;			      // events
	char *doc;				      // of REG_PUT
};

struct reg_txn {
	struct reg_txn *next;
	struct eng_reg *reg;
	struct reg_op *ops, **tail;
	uint64_t seq, last_event;
};

struct reg_db;
struct reg_db_row {
	enum reg_table table;
	const char *key; // NULL for events
	uint64_t cursor;
	const char *doc;
};

int reg_db_open(struct reg_db **out, struct eng_loop *l, const char *path,
		bool *fresh, struct err *e);
// Every row of a table; sums are verified. Before reg_db_start().
int reg_db_load(struct reg_db *db, enum reg_table table,
		int (*row)(void *ctx, const struct reg_db_row *row,
			   struct err *e),
		void *ctx, struct err *e);
// Lowest and highest cursor, 0 without events.
int reg_db_event_range(struct reg_db *db, uint64_t *first, uint64_t *last,
		       struct err *e);
// Starts the writer. committed(ctx, seq, last_event) on the loop.
int reg_db_start(struct reg_db *db,
		 void (*committed)(void *ctx, uint64_t seq,
				   uint64_t last_event),
		 void *ctx, struct err *e);
void reg_db_put(struct reg_db *db, struct reg_txn *t); // takes it
void reg_db_read(struct reg_db *db, uint64_t from, size_t max,
		 void (*cb)(void *ctx, const struct reg_events *ev), void *ctx);
bool reg_db_healthy(struct reg_db *db, struct err *e);
void reg_db_get_stats(struct reg_db *db, struct reg_stats *out);
void reg_db_close(struct reg_db *db);

// --- the model (registry.c) -------------------------------------------------

enum { RECENT = 2048, TOKEN_BUCKETS = 8192, PRUNE_EVERY = 1000 };

struct reg_tok {
	struct reg_token t;
	struct reg_tok *chain;	       // same bucket
	struct reg_tok *older, *newer; // by age
};

struct reg_after {
	struct reg_after *next;
	uint64_t seq;
	void (*cb)(void *ctx);
	void *ctx;
};

struct eng_reg {
	struct reg_db *db;
	struct reg_image **images;
	size_t nimages;
	struct reg_vm **vms;
	size_t nvms;
	uint64_t next_vm_seq;
	struct reg_pool **pools;
	size_t npools;
	struct reg_tok *buckets[TOKEN_BUCKETS], *oldest, *newest;
	size_t ntokens;
	uint64_t queued, durable;
	uint64_t next_event, first_event, last_event;
	struct {
		uint64_t cursor;
		char *text;
	} recent[RECENT];
	struct reg_after *afters, **after_tail;
	void (*on_events)(void *ctx);
	void *on_events_ctx;
};

void *reg_must(void *p); // aborts for NULL
void reg_images_push(struct eng_reg *r, struct reg_image *im);
void reg_versions_push(struct reg_image *im, struct reg_version *v);
void reg_vms_push(struct eng_reg *r, struct reg_vm *vm);
void reg_pools_push(struct eng_reg *r, struct reg_pool *p);
void reg_token_push(struct eng_reg *r, struct reg_tok *t);
int reg_load(struct eng_reg *r, struct err *e); // registry_load.c

#endif
