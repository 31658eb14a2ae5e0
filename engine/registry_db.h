// Shared by registry_db.c (the file) and registry_writer.c (the thread) only.
#ifndef THAW_ENG_REGISTRY_DB_H
#define THAW_ENG_REGISTRY_DB_H

#include "registry_internal.h"

#include <pthread.h>
#include <sqlite3.h>

struct db_read {
	struct db_read *next;
	uint64_t from;
	size_t max;
	void (*cb)(void *ctx, const struct reg_events *ev);
	void *ctx;
	struct reg_events out;
};

struct reg_db {
	struct eng_loop *loop;
	struct eng_watch *watch;
	sqlite3 *sql;
	char *path;
	sqlite3_stmt *put[REG_NUM_TABLES], *del[REG_NUM_TABLES], *upto, *page;
	void (*committed)(void *ctx, uint64_t seq, uint64_t last_event);
	void *ctx;
	int done_fd;
	pthread_t writer;
	bool writing; // the thread exists
	bool waking;  // the loop is about to wake it

	pthread_mutex_t lock;
	pthread_cond_t more;
	// under lock:
	struct reg_txn *txns, **txn_tail;
	struct db_read *reads, **read_tail, *read_done, **read_done_tail;
	bool stopping;
	uint64_t done_seq, done_event;
	char trouble[200]; // why the last commit failed; "" when it did not
	struct reg_stats stats;
};

// What guards a row. `key` NULL: an event's, whose key is its cursor.
sqlite3_int64 reg_row_sum(enum reg_table t, const char *key, uint64_t cursor,
			  const char *doc);
void reg_writer_stop(struct reg_db *db); // commits what is queued, ends it

#endif
