// The registry's database file: opening, checking, loading.
//
// SQLite does not checksum its pages, so each row carries a sum of its own; a
// row that does not match stops the start instead of becoming a wrong answer.
#include "registry_db.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define SCHEMA_VERSION 2	  // 1 had no pools
#define APPLICATION_ID 0x74686177 // "thaw"

static const char *const table_names[] = {"images", "versions", "microvms",
					  "tokens", "pools",	"events"};
_Static_assert(ARRAY_SIZE(table_names) == REG_NUM_TABLES, "a name per table");

// --- rows ------------------------------------------------------------------

static uint64_t fnv(uint64_t h, const char *s)
{
	do {
		h = (h ^ (uint8_t)*s) * 0x100000001b3u;
	} while (*s++); // the terminator too: it parts the fields
	return h;
}

sqlite3_int64 reg_row_sum(enum reg_table t, const char *key, uint64_t cursor,
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

static int make_table(struct reg_db *db, unsigned t, struct err *e)
{
	char sql[256];

	snprintf(sql, sizeof(sql),
		 "CREATE TABLE %s(%s PRIMARY KEY, doc TEXT NOT NULL, "
		 "sum INTEGER NOT NULL)%s",
		 table_names[t],
		 t == REG_EVENTS ? "cursor INTEGER" : "key TEXT",
		 t == REG_EVENTS ? "" : " WITHOUT ROWID");
	return run(db, sql, e);
}

static int make_schema(struct reg_db *db, struct err *e)
{
	char sql[256];
	int rc = run(db, "BEGIN IMMEDIATE", e);

	for (unsigned t = 0; !rc && t < REG_NUM_TABLES; t++)
		rc = make_table(db, t, e);
	snprintf(sql, sizeof(sql),
		 "PRAGMA user_version=%d; PRAGMA application_id=%d; COMMIT",
		 SCHEMA_VERSION, APPLICATION_ID);
	return rc ? rc : run(db, sql, e);
}

// From version 1, which lacks the table of pools.
static int raise_schema(struct reg_db *db, struct err *e)
{
	char sql[64];
	int rc = run(db, "BEGIN IMMEDIATE", e);

	if (!rc)
		rc = make_table(db, REG_POOLS, e);
	snprintf(sql, sizeof(sql), "PRAGMA user_version=%d; COMMIT",
		 SCHEMA_VERSION);
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
	if (version != SCHEMA_VERSION && version != 1)
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
	if (!rc && version == 1)
		rc = raise_schema(db, e);
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
	// Nobody else may have it: then SQLite needs no locks and no shared
	// memory, a dozen calls less in each commit.
	if (!rc)
		rc = run(db, "PRAGMA locking_mode=EXCLUSIVE", e);
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
		    reg_row_sum(table, r.key, 0, r.doc) !=
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

void reg_db_close(struct reg_db *db)
{
	if (!db)
		return;
	reg_writer_stop(db);
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
