// The registry: durability and order of transactions, reloading, refusal of
// what is damaged, tokens, and events read back.
#include "registry.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static char dir[64], path[96];
static struct eng_loop *loop;
static struct eng_reg *reg;
static bool fresh;

static void open_reg(void)
{
	struct err e = ERR_INIT;

	cr_assert_eq(eng_loop_create(&loop, &e), 0, "%s", e.msg);
	cr_assert_eq(eng_reg_open(&reg, loop, path, &fresh, &e), 0, "%s",
		     e.msg);
}

static void close_reg(void)
{
	eng_reg_close(reg);
	eng_loop_destroy(loop);
	reg = NULL;
}

static void setup(void)
{
	strcpy(dir, "/tmp/thaw-reg-XXXXXX");
	cr_assert_not_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/registry.db", dir);
	log_init("test", LOG_LVL_ERR);
	open_reg();
}

static void teardown(void)
{
	char cmd[128];

	if (reg)
		close_reg();
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	cr_assert_eq(system(cmd), 0);
}

TestSuite(registry, .init = setup, .fini = teardown);

static void stop(void *ctx)
{
	(void)ctx;
	eng_loop_stop(loop);
}

static void settle(void)
{
	if (eng_reg_durable(reg) < eng_reg_queued(reg)) {
		eng_reg_after(reg, eng_reg_queued(reg), stop, NULL);
		eng_loop_run(loop);
	}
}

static struct reg_vm *add_vm(enum vm_state state)
{
	struct reg_vm *vm = eng_reg_vm_add(reg);

	strcpy(vm->image, "img");
	strcpy(vm->version, "1.0");
	vm->mem_mib = 64;
	vm->vcpus = 1;
	vm->max_duration_s = 60;
	vm->state = state;
	return vm;
}

static void put_vm(const struct reg_vm *vm)
{
	struct reg_txn *t = eng_reg_begin(reg);

	eng_reg_put_vm(t, vm);
	eng_reg_commit(t);
}

Test(registry, everything_comes_back)
{
	struct reg_vm *vm = add_vm(VM_SUSPENDED);
	struct reg_image *im = eng_reg_image_add(reg, "img");
	struct reg_version *v = eng_reg_version_add(im);
	struct reg_txn *t;
	char id[REG_ID_LEN + 1], endpoint[REG_UUID_LEN + 1];
	uint8_t params[16] = "0123456789abcde";
	const struct reg_token *tok;
	size_t n;

	cr_expect(fresh);
	strcpy(id, vm->id);
	strcpy(endpoint, vm->endpoint);
	cr_expect_eq(strlen(endpoint), REG_UUID_LEN);
	cr_expect_null(strstr(id, endpoint), "the name tells not the id");
	strcpy(vm->name, "web");
	strcpy(vm->reason, "b\xff"
			   "d utf-8");
	vm->labels = json_pack("{s:s}", "k", "v");
	memset(vm->own.b, 0xab, 16);
	vm->has_own = vm->agent = true;
	vm->started_ms = 1234567890123;
	v->mem_mib = 128;
	v->vcpus = 2;
	v->spec = json_pack("{s:[s]}", "entrypoint", "/bin/x");
	memset(v->snap.b, 0xcd, 16);
	t = eng_reg_begin(reg);
	eng_reg_put_image(t, im);
	eng_reg_put_version(t, im, v);
	eng_reg_put_vm(t, vm);
	eng_reg_put_token(t, "tok", params, id, 7);
	eng_reg_event(t, json_pack("{s:s}", "type", "x"));
	eng_reg_commit(t);
	close_reg(); // commits what is queued
	open_reg();
	cr_expect_not(fresh);
	vm = eng_reg_vm(reg, id);
	cr_assert_not_null(vm);
	cr_expect_str_eq(vm->name, "web");
	cr_expect_str_eq(vm->endpoint, endpoint);
	cr_expect_eq(vm->state, VM_SUSPENDED);
	cr_expect_str_eq(json_string_value(json_object_get(vm->labels, "k")),
			 "v");
	cr_expect(vm->has_own && vm->own.b[15] == 0xab);
	cr_expect_eq(vm->started_ms, 1234567890123);
	cr_expect(vm->agent && !vm->cold);
	im = eng_reg_image(reg, "img");
	cr_assert(im && im->nversions == 1);
	v = eng_reg_version(im, "1.0");
	cr_assert_not_null(v);
	cr_expect(v->mem_mib == 128 && v->vcpus == 2 && v->snap.b[0] == 0xcd);
	cr_expect_eq(v->active, true);
	cr_expect_str_eq(eng_reg_version_add(im)->version, "2.0");
	tok = eng_reg_token(reg, "tok");
	cr_assert_not_null(tok);
	cr_expect(!memcmp(tok->params, params, 16) && !strcmp(tok->vm, id));
	cr_expect_null(eng_reg_token(reg, "tok2"));
	cr_expect_eq(eng_reg_last_event(reg), 1);
	eng_reg_vms(reg, &n);
	cr_expect_eq(n, 1);
}

Test(registry, what_is_deleted_stays_deleted)
{
	struct reg_vm *a = add_vm(VM_TERMINATED), *b = add_vm(VM_TERMINATED);
	struct reg_image *im = eng_reg_image_add(reg, "img");
	struct reg_txn *t;
	size_t n;
	char id[REG_ID_LEN + 1];

	strcpy(id, b->id);
	eng_reg_version_add(im)->mem_mib = 64;
	eng_reg_version_add(im)->mem_mib = 64;
	im->versions[0]->vcpus = im->versions[1]->vcpus = 1;
	t = eng_reg_begin(reg);
	eng_reg_put_image(t, im);
	eng_reg_put_version(t, im, im->versions[0]);
	eng_reg_put_version(t, im, im->versions[1]);
	eng_reg_commit(t);
	put_vm(a);
	put_vm(b);
	t = eng_reg_begin(reg);
	eng_reg_del_vm(t, a);
	eng_reg_del_version(t, im, im->versions[0]);
	eng_reg_commit(t);
	close_reg();
	open_reg();
	eng_reg_vms(reg, &n);
	cr_expect_eq(n, 1);
	cr_expect_not_null(eng_reg_vm(reg, id));
	im = eng_reg_image(reg, "img");
	cr_assert(im && im->nversions == 1);
	cr_expect_str_eq(im->versions[0]->version, "2.0");
	t = eng_reg_begin(reg);
	eng_reg_del_image(t, im);
	eng_reg_commit(t);
	close_reg();
	open_reg();
	cr_expect_null(eng_reg_image(reg, "img"));
}

static unsigned order[64], norder;
static void note_order(void *ctx)
{
	order[norder++] = (unsigned)(uintptr_t)ctx;
}

Test(registry, callbacks_come_after_their_commit_and_in_order)
{
	struct reg_vm *vm = add_vm(VM_RUNNING);
	uint64_t seq = 0;

	norder = 0;
	for (unsigned i = 0; i < 50; i++) {
		struct reg_txn *t = eng_reg_begin(reg);

		eng_reg_put_vm(t, vm);
		seq = eng_reg_commit(t);
		eng_reg_after(reg, seq, note_order, (void *)(uintptr_t)i);
		cr_assert_eq(norder, 0, "nothing is durable within the turn");
	}
	settle();
	cr_assert_eq(norder, 50);
	for (unsigned i = 0; i < 50; i++)
		cr_assert_eq(order[i], i);
	cr_expect_eq(eng_reg_durable(reg), seq);
	eng_reg_after(reg, seq, note_order, (void *)(uintptr_t)50);
	cr_expect_eq(norder, 51, "at once, when it is durable already");
}

Test(registry, commits_are_grouped)
{
	struct reg_vm *vm = add_vm(VM_RUNNING);
	struct reg_stats st;

	for (unsigned i = 0; i < 2000; i++)
		put_vm(vm);
	settle();
	eng_reg_get_stats(reg, &st);
	cr_expect_eq(st.transactions, 2000);
	// How many there are is the disk's affair.
	cr_expect_lt(st.commits, st.transactions, "%lu commits",
		     (unsigned long)st.commits);
}

Test(registry, events_are_visible_when_durable)
{
	struct reg_txn *t = eng_reg_begin(reg);
	uint64_t a, b;
	const char *text;

	a = eng_reg_event(t, json_pack("{s:s}", "type", "first"));
	b = eng_reg_event(t, json_pack("{s:s}", "type", "second"));
	cr_expect_eq(b, a + 1);
	eng_reg_commit(t);
	cr_expect_null(eng_reg_recent_event(reg, a), "not yet durable");
	cr_expect_eq(eng_reg_last_event(reg), 0);
	settle();
	text = eng_reg_recent_event(reg, b);
	cr_assert_not_null(text);
	cr_expect_not_null(strstr(text, "\"second\""));
	cr_expect_not_null(strstr(text, "\"cursor\":2"));
	cr_expect_null(eng_reg_recent_event(reg, b + 1));
}

static struct {
	uint64_t first;
	size_t n;
	char text[256];
} page;
static void got_page(void *ctx, const struct reg_events *ev)
{
	(void)ctx;
	page.first = ev->first;
	page.n = ev->n;
	snprintf(page.text, sizeof(page.text), "%s",
		 ev->n ? ev->text[ev->n - 1] : "");
	eng_loop_stop(loop);
}

static void add_events(unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		struct reg_txn *t = eng_reg_begin(reg);

		eng_reg_event(t, json_pack("{s:i}", "i", (int)i));
		eng_reg_commit(t);
	}
}

Test(registry, old_events_are_read_from_the_database)
{
	add_events(5000);
	settle();
	cr_expect_null(eng_reg_recent_event(reg, 1), "out of memory's ring");
	cr_expect_not_null(eng_reg_recent_event(reg, 5000));
	eng_reg_read_events(reg, 7, 100, got_page, NULL);
	eng_loop_run(loop);
	cr_expect_eq(page.first, 7);
	cr_expect_eq(page.n, 100);
	cr_expect_not_null(strstr(page.text, "\"cursor\":106"));
	close_reg();
	open_reg();
	cr_expect_eq(eng_reg_last_event(reg), 5000);
	cr_expect_eq(eng_reg_first_event(reg), 1);
	eng_reg_read_events(reg, 4999, 100, got_page, NULL);
	eng_loop_run(loop);
	cr_expect_eq(page.n, 2, "up to the end");
	add_events(1);
	settle();
	cr_expect_eq(eng_reg_last_event(reg), 5001, "cursors go on");
}

// Changes the file behind the registry's back, with SQLite's own means.
static void tamper(const char *sql)
{
	sqlite3 *db;

	cr_assert_eq(sqlite3_open(path, &db), SQLITE_OK);
	cr_assert_eq(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK, "%s",
		     sqlite3_errmsg(db));
	sqlite3_close(db);
}

static int reopen(struct err *e)
{
	int rc;

	*e = (struct err)ERR_INIT;
	cr_assert_eq(eng_loop_create(&loop, e), 0);
	rc = eng_reg_open(&reg, loop, path, &fresh, e);
	if (rc) {
		eng_loop_destroy(loop);
		reg = NULL;
	}
	return rc;
}

Test(registry, changed_rows_are_refused)
{
	static const struct {
		const char *sql, *part;
		int code;
	} cases[] = {
	    {"UPDATE microvms SET doc=replace(doc,'64','65')", "its sum",
	     -EBADMSG},
	    {"UPDATE microvms SET key='microvm-other'", "its sum", -EBADMSG},
	    {"UPDATE microvms SET sum=sum+1", "its sum", -EBADMSG},
	    {"UPDATE microvms SET doc=NULL WHERE 0; DROP TABLE tokens",
	     "tokens", -EIO},
	    {"PRAGMA user_version=3", "schema version 3", -ENOTSUP},
	    {"PRAGMA application_id=1", "not thaw's", -EBADMSG},
	};
	struct err e;
	char copy[128], cmd[400];

	put_vm(add_vm(VM_SUSPENDED));
	close_reg();
	snprintf(copy, sizeof(copy), "%s/copy", dir);
	snprintf(cmd, sizeof(cmd), "cp %s %s", path, copy);
	cr_assert_eq(system(cmd), 0);
	snprintf(cmd, sizeof(cmd), "rm -f %s*; cp %s %s", path, copy, path);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		int rc;

		tamper(cases[i].sql);
		rc = reopen(&e);
		cr_expect_eq(rc, cases[i].code, "%s: %d %s", cases[i].sql, rc,
			     e.msg);
		cr_expect_not_null(strstr(e.msg, cases[i].part), "%s: %s",
				   cases[i].sql, e.msg);
		cr_assert_eq(system(cmd), 0);
	}
	cr_expect_eq(reopen(&e), 0, "%s", e.msg);
}

Test(registry, any_flipped_byte_is_refused_or_harmless)
{
	struct err e;
	long size, refused = 0, same = 0;
	char cmd[400];
	FILE *f;

	// One vm: after each flip it is refused, or comes back as it was.
	for (unsigned i = 0; i < 20; i++)
		put_vm(add_vm(VM_SUSPENDED));
	close_reg();
	snprintf(cmd, sizeof(cmd), "cp %s %s/copy", path, dir);
	cr_assert_eq(system(cmd), 0);
	f = fopen(path, "rb");
	fseek(f, 0, SEEK_END);
	size = ftell(f);
	fclose(f);
	for (long at = 100; at < size; at += size / 300) {
		struct reg_vm *const *vms;
		size_t n;
		int byte;

		snprintf(cmd, sizeof(cmd), "rm -f %s*; cp %s/copy %s", path,
			 dir, path);
		cr_assert_eq(system(cmd), 0);
		f = fopen(path, "r+b");
		fseek(f, at, SEEK_SET);
		byte = fgetc(f);
		fseek(f, at, SEEK_SET);
		fputc(byte ^ 0x04, f);
		fclose(f);
		if (reopen(&e)) {
			cr_expect_neq(e.msg[0], '\0', "a sentence");
			refused++;
			continue;
		}
		vms = eng_reg_vms(reg, &n);
		cr_expect_eq(n, 20, "byte %ld: %zu microVMs", at, n);
		for (size_t i = 0; i < n; i++)
			cr_expect(vms[i]->mem_mib == 64 &&
				      vms[i]->state == VM_SUSPENDED,
				  "byte %ld changed a record", at);
		same++;
		close_reg();
	}
	cr_expect_gt(refused, 20, "%ld refused, %ld harmless", refused, same);
}

Test(registry, states_have_names)
{
	enum vm_state s;

	for (unsigned i = 0; i < VM_NUM_STATES; i++) {
		cr_expect_eq(
		    eng_state_parse(eng_state_name((enum vm_state)i), &s), 0);
		cr_expect_eq(s, i);
	}
	cr_expect_neq(eng_state_parse("RESUMING", &s), 0);
}

static void exec_sql(const char *sql)
{
	sqlite3 *db;
	char *why = NULL;

	cr_assert_eq(sqlite3_open(path, &db), SQLITE_OK);
	cr_assert_eq(sqlite3_exec(db, sql, NULL, NULL, &why), SQLITE_OK, "%s",
		     why);
	sqlite3_close(db);
}

// Pools come back; a file of schema version 1 gets their table.
Test(registry, pools)
{
	struct reg_image *im = eng_reg_image_add(reg, "img");
	struct reg_pool *p = eng_reg_pool_add(reg, "img");
	struct reg_txn *t = eng_reg_begin(reg);

	p->size = 7;
	p->hits = 1ull << 40;
	p->wasted = 3;
	eng_reg_put_image(t, im);
	eng_reg_put_pool(t, p);
	eng_reg_commit(t);
	close_reg();
	open_reg();
	p = eng_reg_pool(reg, "img");
	cr_assert_not_null(p);
	cr_assert(p->size == 7 && p->hits == 1ull << 40 && p->wasted == 3 &&
		  p->misses == 0);
	t = eng_reg_begin(reg);
	eng_reg_del_pool(t, p);
	eng_reg_commit(t);
	close_reg();
	exec_sql("DROP TABLE pools; PRAGMA user_version=1");
	open_reg();
	cr_assert(!fresh);
	cr_assert_null(eng_reg_pool(reg, "img"));
	cr_assert_not_null(eng_reg_image(reg, "img"));
	p = eng_reg_pool_add(reg, "img");
	p->size = 2;
	t = eng_reg_begin(reg);
	eng_reg_put_pool(t, p);
	eng_reg_commit(t);
	close_reg();
	open_reg();
	cr_assert_eq(eng_reg_pool(reg, "img")->size, 2);
}
