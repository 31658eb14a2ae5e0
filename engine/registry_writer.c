// The registry's writer thread, and the loop's side of it.
//
// One queue from the loop to the writer holds transactions and reads in order;
// one list back holds what is finished. The writer takes the whole queue and
// commits the transactions at its head as one SQLite transaction: with
// synchronous=FULL a commit costs an fsync, and however many requests wait,
// they wait for one. A group that fails is rolled back and tried again, whole:
// transactions are never reordered or dropped, so what is durable is always a
// prefix of what the loop did.
#include "registry_db.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <time.h>

#define RETRY_MS 250
#define CLOSE_RETRIES 40 // 10 s of failures at the end

// --- writing (the writer thread) -------------------------------------------

static bool do_op(struct reg_db *db, const struct reg_op *op)
{
	sqlite3_stmt *st = op->what == REG_PUT	 ? db->put[op->table]
			   : op->what == REG_DEL ? db->del[op->table]
						 : db->upto;
	bool ok;

	if (op->key)
		sqlite3_bind_text(st, 1, op->key, -1, SQLITE_STATIC);
	else
		sqlite3_bind_int64(st, 1, (sqlite3_int64)op->cursor);
	if (op->what == REG_PUT) {
		sqlite3_bind_text(st, 2, op->doc, -1, SQLITE_STATIC);
		sqlite3_bind_int64(
		    st, 3,
		    reg_row_sum(op->table, op->key, op->cursor, op->doc));
	}
	ok = sqlite3_step(st) == SQLITE_DONE;
	sqlite3_reset(st);
	sqlite3_clear_bindings(st);
	return ok;
}

static bool commit_group(struct reg_db *db, const struct reg_txn *group)
{
	bool ok = sqlite3_exec(db->sql, "BEGIN IMMEDIATE", NULL, NULL, NULL) ==
		  SQLITE_OK;

	for (const struct reg_txn *t = group; ok && t; t = t->next) {
		for (const struct reg_op *op = t->ops; ok && op; op = op->next)
			ok = do_op(db, op);
	}
	if (ok)
		ok = sqlite3_exec(db->sql, "COMMIT", NULL, NULL, NULL) ==
		     SQLITE_OK;
	if (ok)
		return true;
	pthread_mutex_lock(&db->lock);
	snprintf(db->trouble, sizeof(db->trouble), "%s",
		 sqlite3_errmsg(db->sql));
	pthread_mutex_unlock(&db->lock);
	sqlite3_exec(db->sql, "ROLLBACK", NULL, NULL, NULL);
	return false;
}

static void txns_free(struct reg_txn *t)
{
	while (t) {
		struct reg_txn *next = t->next;

		while (t->ops) {
			struct reg_op *op = t->ops;

			t->ops = op->next;
			free(op->key);
			free(op->doc);
			free(op);
		}
		free(t);
		t = next;
	}
}

static bool is_stopping(struct reg_db *db)
{
	bool v;

	pthread_mutex_lock(&db->lock);
	v = db->stopping;
	pthread_mutex_unlock(&db->lock);
	return v;
}

static void tell_loop(struct reg_db *db)
{
	uint64_t one = 1;

	if (write(db->done_fd, &one, sizeof(one)) < 0)
		return; // full counter: the loop is told already
}

static void write_group(struct reg_db *db, struct reg_txn *group)
{
	uint64_t t0 = util_now_ns(), took, seq = 0, event = 0, n = 0;
	struct timespec pause = {0, RETRY_MS * 1000000l};

	for (unsigned tries = 0; !commit_group(db, group); tries++) {
		if (is_stopping(db) && tries >= CLOSE_RETRIES) {
			txns_free(group);
			return;
		}
		nanosleep(&pause, NULL);
	}
	for (struct reg_txn *t = group; t; t = t->next, n++) {
		seq = t->seq;
		if (t->last_event)
			event = t->last_event;
	}
	txns_free(group);
	took = util_now_ns() - t0;
	pthread_mutex_lock(&db->lock);
	db->trouble[0] = '\0';
	db->done_seq = seq;
	if (event)
		db->done_event = event;
	db->stats.commits++;
	db->stats.transactions += n;
	db->stats.longest_commit_ns = MAX(db->stats.longest_commit_ns, took);
	pthread_mutex_unlock(&db->lock);
	tell_loop(db);
}

static void do_read(struct reg_db *db, struct db_read *rd)
{
	sqlite3_stmt *st = db->page;

	rd->out.text = calloc(rd->max, sizeof(char *));
	sqlite3_bind_int64(st, 1, (sqlite3_int64)rd->from);
	sqlite3_bind_int64(st, 2, (sqlite3_int64)rd->max);
	while (rd->out.text && rd->out.n < rd->max &&
	       sqlite3_step(st) == SQLITE_ROW) {
		uint64_t cursor = (uint64_t)sqlite3_column_int64(st, 0);
		const char *doc = (const char *)sqlite3_column_text(st, 1);

		// A hole or a corrupt row ends the page: the reader is told.
		if (!rd->out.n)
			rd->out.first = cursor;
		if (!doc || cursor != rd->out.first + rd->out.n ||
		    reg_row_sum(REG_EVENTS, NULL, cursor, doc) !=
			sqlite3_column_int64(st, 2))
			break;
		rd->out.text[rd->out.n++] = strdup(doc);
	}
	sqlite3_reset(st);
	pthread_mutex_lock(&db->lock);
	rd->next = NULL;
	*db->read_done_tail = rd;
	db->read_done_tail = &rd->next;
	pthread_mutex_unlock(&db->lock);
	tell_loop(db);
}

static void *writer_main(void *arg)
{
	struct reg_db *db = arg;

	pthread_mutex_lock(&db->lock);
	for (;;) {
		struct reg_txn *group = db->txns;
		struct db_read *reads = db->reads;

		if (!group && !reads) {
			if (db->stopping)
				break;
			pthread_cond_wait(&db->more, &db->lock);
			continue;
		}
		db->txns = NULL;
		db->txn_tail = &db->txns;
		db->reads = NULL;
		db->read_tail = &db->reads;
		pthread_mutex_unlock(&db->lock);
		if (group)
			write_group(db, group);
		while (reads) {
			struct db_read *next = reads->next;

			do_read(db, reads);
			reads = next;
		}
		pthread_mutex_lock(&db->lock);
	}
	pthread_mutex_unlock(&db->lock);
	return NULL;
}

// --- the loop's side -------------------------------------------------------

static void read_free(struct db_read *rd)
{
	for (size_t i = 0; i < rd->out.n; i++)
		free(rd->out.text[i]);
	free(rd->out.text);
	free(rd);
}

static void on_done(void *ctx, unsigned what)
{
	struct reg_db *db = ctx;
	struct db_read *reads;
	uint64_t n, seq, event;

	(void)what;
	if (read(db->done_fd, &n, sizeof(n)) < 0)
		return;
	pthread_mutex_lock(&db->lock);
	seq = db->done_seq;
	event = db->done_event;
	reads = db->read_done;
	db->read_done = NULL;
	db->read_done_tail = &db->read_done;
	pthread_mutex_unlock(&db->lock);
	db->committed(db->ctx, seq, event);
	while (reads) {
		struct db_read *next = reads->next;

		reads->cb(reads->ctx, &reads->out);
		read_free(reads);
		reads = next;
	}
}

int reg_db_start(struct reg_db *db,
		 void (*committed)(void *ctx, uint64_t seq,
				   uint64_t last_event),
		 void *ctx, struct err *e)
{
	sigset_t all, old;
	int rc;

	db->committed = committed;
	db->ctx = ctx;
	db->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (db->done_fd < 0)
		return err_sys(e, "make an eventfd");
	db->watch = eng_watch_create(db->loop, db->done_fd, ENG_READ, on_done,
				     db, "registry commit");
	if (!db->watch)
		return err_set(e, -ENOMEM, "watch the registry");
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = pthread_create(&db->writer, NULL, writer_main, db);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (rc)
		return err_set(e, -rc, "start the registry's writer");
	db->writing = true;
	return 0;
}

static void wake(void *ctx)
{
	struct reg_db *db = ctx;

	db->waking = false;
	pthread_mutex_lock(&db->lock);
	pthread_cond_signal(&db->more);
	pthread_mutex_unlock(&db->lock);
}

// The writer is woken when the loop has served what was ready: requests that
// came together share a commit.
void reg_db_put(struct reg_db *db, struct reg_txn *t)
{
	t->next = NULL;
	pthread_mutex_lock(&db->lock);
	*db->txn_tail = t;
	db->txn_tail = &t->next;
	pthread_mutex_unlock(&db->lock);
	if (!db->waking)
		eng_loop_defer(db->loop, wake, db, "registry commit");
	db->waking = true;
}

void reg_db_read(struct reg_db *db, uint64_t from, size_t max,
		 void (*cb)(void *ctx, const struct reg_events *ev), void *ctx)
{
	struct db_read *rd = calloc(1, sizeof(*rd));

	if (!rd)
		abort();
	rd->from = from;
	rd->max = max;
	rd->cb = cb;
	rd->ctx = ctx;
	pthread_mutex_lock(&db->lock);
	*db->read_tail = rd;
	db->read_tail = &rd->next;
	pthread_cond_signal(&db->more);
	pthread_mutex_unlock(&db->lock);
}

bool reg_db_healthy(struct reg_db *db, struct err *e)
{
	bool ok;

	pthread_mutex_lock(&db->lock);
	ok = !db->trouble[0];
	if (!ok)
		err_set(e, -EIO, "the registry cannot be written: %s",
			db->trouble);
	pthread_mutex_unlock(&db->lock);
	return ok;
}

void reg_db_get_stats(struct reg_db *db, struct reg_stats *out)
{
	struct stat st;

	pthread_mutex_lock(&db->lock);
	*out = db->stats;
	pthread_mutex_unlock(&db->lock);
	out->bytes = stat(db->path, &st) ? 0 : (uint64_t)st.st_size;
}

void reg_writer_stop(struct reg_db *db)
{
	if (db->writing) {
		pthread_mutex_lock(&db->lock);
		db->stopping = true;
		pthread_cond_signal(&db->more);
		pthread_mutex_unlock(&db->lock);
		pthread_join(db->writer, NULL);
	}
	while (db->read_done) {
		struct db_read *rd = db->read_done;

		db->read_done = rd->next;
		read_free(rd);
	}
}
