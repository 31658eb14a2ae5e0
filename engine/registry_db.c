// The registry's database: opening, checking, loading, and the writer thread.
//
// One queue from the loop to the writer holds transactions and reads in order;
// one list back holds what is finished. The writer takes the whole queue and
// commits the transactions at its head as one SQLite transaction: with
// synchronous=FULL a commit costs an fsync, and however many requests wait,
// they wait for one. A group that fails is rolled back and tried again, whole:
// transactions are never reordered or dropped, so what is durable is always a
// prefix of what the loop did.
//
// SQLite does not checksum its pages, so each row carries a sum of its own; a
// row that does not match stops the start instead of becoming a wrong answer.
#include "registry_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <time.h>

#define SCHEMA_VERSION 1
#define APPLICATION_ID 0x74686177 // "thaw"
#define RETRY_MS 250
#define CLOSE_RETRIES 40 // 10 s of failures at the end

static const char *const table_names[] = {"images", "versions", "microvms",
					  "tokens", "events"};
_Static_assert(ARRAY_SIZE(table_names) == REG_NUM_TABLES, "a name per table");

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

// --- rows ------------------------------------------------------------------

static uint64_t fnv(uint64_t h, const char *s)
{
	do {
		h = (h ^ (uint8_t)*s) * 0x100000001b3u;
	} while (*s++); // the terminator too: it parts the fields
	return h;
}

static sqlite3_int64 row_sum(enum reg_table t, const char *key, uint64_t cursor,
			     const char *doc)
{
	uint64_t h = fnv(0xcbf29ce484222325u, table_names[t]);
	char num[24];

	if (!key) {
		snprintf(num, sizeof(num), "%" PRIu64, cursor);
		key = num;
	}
	return (sqlite3_int64)fnv(fnv(h, key), doc);
}

// --- opening ---------------------------------------------------------------

static int sql_err(struct reg_db *db, struct err *e, const char *what)
{
	int code = sqlite3_errcode(db->sql) & 0xff;
	int rc = code == SQLITE_CORRUPT || code == SQLITE_NOTADB ? -EBADMSG
		 : code == SQLITE_FULL				 ? -ENOSPC
		 : code == SQLITE_BUSY				 ? -EBUSY
								 : -EIO;

	return err_set(e, rc, "registry %s: %s: %s%s", db->path, what,
		       sqlite3_errmsg(db->sql),
		       rc == -EBADMSG ? "; restore the file from a copy" : "");
}

static int run(struct reg_db *db, const char *sql, struct err *e)
{
	if (sqlite3_exec(db->sql, sql, NULL, NULL, NULL) != SQLITE_OK)
		return sql_err(db, e, sql);
	return 0;
}

static int ask(struct reg_db *db, const char *sql, int64_t *num, char *text,
	       size_t cap, struct err *e)
{
	sqlite3_stmt *st;
	int rc = 0;

	if (sqlite3_prepare_v2(db->sql, sql, -1, &st, NULL) != SQLITE_OK)
		return sql_err(db, e, sql);
	if (sqlite3_step(st) != SQLITE_ROW)
		rc = sql_err(db, e, sql);
	else if (text)
		snprintf(text, cap, "%s",
			 (const char *)sqlite3_column_text(st, 0));
	else
		*num = sqlite3_column_int64(st, 0);
	sqlite3_finalize(st);
	return rc;
}

static int make_schema(struct reg_db *db, struct err *e)
{
	char sql[256];
	int rc = run(db, "BEGIN IMMEDIATE", e);

	for (unsigned t = 0; !rc && t < REG_NUM_TABLES; t++) {
		snprintf(sql, sizeof(sql),
			 "CREATE TABLE %s(%s PRIMARY KEY, doc TEXT NOT NULL, "
			 "sum INTEGER NOT NULL)%s",
			 table_names[t],
			 t == REG_EVENTS ? "cursor INTEGER" : "key TEXT",
			 t == REG_EVENTS ? "" : " WITHOUT ROWID");
		rc = run(db, sql, e);
	}
	snprintf(sql, sizeof(sql),
		 "PRAGMA user_version=%d; PRAGMA application_id=%d; COMMIT",
		 SCHEMA_VERSION, APPLICATION_ID);
	return rc ? rc : run(db, sql, e);
}

static int check_schema(struct reg_db *db, struct err *e)
{
	int64_t version = 0, app = 0;
	char check[200] = "";
	int rc;

	rc = ask(db, "PRAGMA user_version", &version, NULL, 0, e);
	if (!rc)
		rc = ask(db, "PRAGMA application_id", &app, NULL, 0, e);
	if (rc)
		return rc;
	if (app != APPLICATION_ID)
		return err_set(e, -EBADMSG,
			       "registry %s is not thaw's (application id "
			       "%" PRIx64 "); restore the file from a copy",
			       db->path, (uint64_t)app);
	if (version != SCHEMA_VERSION)
		return err_set(e, -ENOTSUP,
			       "registry %s has schema version %" PRId64
			       " and this thawd knows %d; run the newer thawd",
			       db->path, version, SCHEMA_VERSION);
	rc = ask(db, "PRAGMA quick_check(1)", NULL, check, sizeof(check), e);
	if (!rc && strcmp(check, "ok"))
		rc = err_set(e, -EBADMSG,
			     "registry %s is corrupt: %s; restore the file "
			     "from a copy",
			     db->path, check);
	return rc;
}

static int prepare(struct reg_db *db, const char *sql, sqlite3_stmt **out,
		   struct err *e)
{
	if (sqlite3_prepare_v3(db->sql, sql, -1, SQLITE_PREPARE_PERSISTENT, out,
			       NULL) != SQLITE_OK)
		return sql_err(db, e, sql);
	return 0;
}

static int prepare_all(struct reg_db *db, struct err *e)
{
	char sql[160];
	int rc = 0;

	for (unsigned t = 0; !rc && t < REG_NUM_TABLES; t++) {
		snprintf(sql, sizeof(sql),
			 "INSERT OR REPLACE INTO %s VALUES(?1,?2,?3)",
			 table_names[t]);
		rc = prepare(db, sql, &db->put[t], e);
		snprintf(sql, sizeof(sql), "DELETE FROM %s WHERE %s=?1",
			 table_names[t], t == REG_EVENTS ? "cursor" : "key");
		if (!rc)
			rc = prepare(db, sql, &db->del[t], e);
	}
	if (!rc)
		rc = prepare(db, "DELETE FROM events WHERE cursor<=?1",
			     &db->upto, e);
	if (!rc)
		rc = prepare(db,
			     "SELECT cursor,doc,sum FROM events WHERE "
			     "cursor>=?1 ORDER BY cursor LIMIT ?2",
			     &db->page, e);
	return rc;
}

static int open_file(struct reg_db *db, bool *fresh, struct err *e)
{
	int64_t tables = 0;
	mode_t old = umask(0077);
	int rc, flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE |
			SQLITE_OPEN_NOMUTEX;

	rc = sqlite3_open_v2(db->path, &db->sql, flags, NULL);
	umask(old);
	if (rc != SQLITE_OK)
		return sql_err(db, e, "open");
	sqlite3_busy_timeout(db->sql, 2000);
	rc = ask(db, "SELECT count(*) FROM sqlite_schema", &tables, NULL, 0, e);
	if (rc)
		return rc;
	*fresh = tables == 0;
	rc = *fresh ? 0 : check_schema(db, e);
	if (!rc)
		rc = run(db, "PRAGMA journal_mode=WAL", e);
	if (!rc)
		rc = run(db, "PRAGMA synchronous=FULL", e);
	if (!rc)
		rc = run(db, "PRAGMA cache_size=-2000", e);
	if (!rc && *fresh)
		rc = make_schema(db, e);
	return rc ? rc : prepare_all(db, e);
}

int reg_db_open(struct reg_db **out, struct eng_loop *l, const char *path,
		bool *fresh, struct err *e)
{
	struct reg_db *db = calloc(1, sizeof(*db));
	int rc;

	if (!db)
		return err_set(e, -ENOMEM, "open the registry");
	db->loop = l;
	db->done_fd = -1;
	db->txn_tail = &db->txns;
	db->read_tail = &db->reads;
	db->read_done_tail = &db->read_done;
	pthread_mutex_init(&db->lock, NULL);
	pthread_cond_init(&db->more, NULL);
	db->path = strdup(path);
	rc = db->path ? open_file(db, fresh, e)
		      : err_set(e, -ENOMEM, "open the registry");
	if (rc) {
		reg_db_close(db);
		return rc;
	}
	*out = db;
	return 0;
}

int reg_db_load(struct reg_db *db, enum reg_table table,
		int (*row)(void *ctx, const struct reg_db_row *row,
			   struct err *e),
		void *ctx, struct err *e)
{
	sqlite3_stmt *st;
	char sql[96];
	int rc = 0, step = SQLITE_DONE;

	snprintf(sql, sizeof(sql), "SELECT key,doc,sum FROM %s",
		 table_names[table]);
	if (sqlite3_prepare_v2(db->sql, sql, -1, &st, NULL) != SQLITE_OK)
		return sql_err(db, e, sql);
	while (!rc && (step = sqlite3_step(st)) == SQLITE_ROW) {
		struct reg_db_row r = {
		    .table = table,
		    .key = (const char *)sqlite3_column_text(st, 0),
		    .doc = (const char *)sqlite3_column_text(st, 1),
		};

		if (!r.key || !r.doc ||
		    row_sum(table, r.key, 0, r.doc) !=
			sqlite3_column_int64(st, 2))
			rc = err_set(e, -EBADMSG,
				     "registry %s: %s row \"%.64s\" is "
				     "corrupt (its sum is wrong); restore "
				     "the file from a copy",
				     db->path, table_names[table],
				     r.key ? r.key : "");
		else
			rc = row(ctx, &r, e);
	}
	if (!rc && step != SQLITE_DONE)
		rc = sql_err(db, e, "read");
	sqlite3_finalize(st);
	return rc;
}

int reg_db_event_range(struct reg_db *db, uint64_t *first, uint64_t *last,
		       struct err *e)
{
	int64_t lo = 0, hi = 0;
	int rc = ask(db, "SELECT coalesce(min(cursor),0) FROM events", &lo,
		     NULL, 0, e);

	if (!rc)
		rc = ask(db, "SELECT coalesce(max(cursor),0) FROM events", &hi,
			 NULL, 0, e);
	*first = (uint64_t)lo;
	*last = (uint64_t)hi;
	return rc;
}

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
		    st, 3, row_sum(op->table, op->key, op->cursor, op->doc));
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
		    row_sum(REG_EVENTS, NULL, cursor, doc) !=
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

void reg_db_put(struct reg_db *db, struct reg_txn *t)
{
	t->next = NULL;
	pthread_mutex_lock(&db->lock);
	*db->txn_tail = t;
	db->txn_tail = &t->next;
	pthread_cond_signal(&db->more);
	pthread_mutex_unlock(&db->lock);
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

void reg_db_close(struct reg_db *db)
{
	if (!db)
		return;
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
	for (unsigned t = 0; t < REG_NUM_TABLES; t++) {
		sqlite3_finalize(db->put[t]);
		sqlite3_finalize(db->del[t]);
	}
	sqlite3_finalize(db->upto);
	sqlite3_finalize(db->page);
	sqlite3_close(db->sql);
	eng_watch_destroy(db->watch);
	fd_close(&db->done_fd);
	pthread_mutex_destroy(&db->lock);
	pthread_cond_destroy(&db->more);
	free(db->path);
	free(db);
}
