// The build pipeline, with real disks, a real store, real agent frames, and
// fake cells: eng_cell_*() here stand in for the engine's own, and play a guest
// that does as the test says. What a real guest makes of it is tested in
// tests/guest.
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent_proto.h"
#include "build_internal.h"

// --- the fake ------------------------------------------------------------

enum { FAKE_PAGES = 64, HOOKS = 9000, AGENTS = 2048, PATIENCE_MS = 60000 };

static struct fake {
	// The script.
	unsigned deaf; // connections that end before the agent listens
	bool die_at_boot;
	uint32_t start_flags;
	int start_errno, freeze_errno, capture_errno;
	unsigned closed;  // probes before the port listens
	bool app_ends;	  // with code 3, after it wrote something,
	unsigned ends_at; // or at so many probes
	unsigned busy;	  // probes at which the application used CPU
	bool copy_dies, copy_app_ends;
	int connect_errno; // of a stream to the copy's port
	bool stays_open;   // the copy's server keeps the stream
	bool dies_asked;
	// What passes with each answer to a probe, while nothing passes else; 0:
	// time is as it is (CMakeLists.txt wraps the clock).
	unsigned probe_ms;
	bool endless; // timers of 8 s and more never fire
	// The application's hooks on HOOKS: so often they say 503, then this. 0:
	// nothing, and the stream stays open.
	unsigned unready;
	int ready_says, validate_says;
	// What happened.
	unsigned readies, validates;
	unsigned connects, probes, probes_at_freeze, boots, thaws, captures,
	    kills, alive;
	bool froze, thawed, log_open_at_freeze;
	uint32_t freeze_flags;
	char asked[600]; // the request to the copy
	unsigned asks;
	unsigned logs_open;
	char cmdline[200], argv0[64], kernel[200];
	bool had_disk;
	pthread_mutex_t lock;
} fake = {.lock = PTHREAD_MUTEX_INITIALIZER};

static struct eng_loop *loop;
static struct pgc_store *store;

uint64_t __real_util_now_ns(void);
uint64_t __wrap_util_now_ns(void);
uint64_t __wrap_util_now_ns(void)
{
	unsigned ms = __atomic_load_n(&fake.probe_ms, __ATOMIC_SEQ_CST);
	unsigned probes = __atomic_load_n(&fake.probes, __ATOMIC_SEQ_CST);

	return ms ? (1000ull + (uint64_t)probes * ms) * 1000000
		  : __real_util_now_ns();
}

void __real_eng_timer_set(struct eng_timer *t, uint64_t after_ms);
void __wrap_eng_timer_set(struct eng_timer *t, uint64_t after_ms);
void __wrap_eng_timer_set(struct eng_timer *t, uint64_t after_ms)
{
	if (fake.endless && after_ms >= 8000)
		eng_timer_stop(t);
	else
		__real_eng_timer_set(t, after_ms);
}

struct eng_cell {
	struct eng_cell_events ev;
	void *ctx;
	bool copy, kernel_only, dead;
	enum eng_end why;
	const char *detail;
	void (*captured)(void *ctx, int rc, const char *why,
			 const struct eng_capture_stats *st);
	void *captured_ctx;
	struct pgc_id id;
	uint32_t recorded[3];
};

static void cell_gone(void *ctx)
{
	struct eng_cell *c = ctx;

	fake.alive--;
	c->ev.gone(c->ctx, c->why, c->detail);
	free(c);
}

static void end_cell(struct eng_cell *c, enum eng_end why, const char *detail)
{
	if (c->dead)
		return;
	c->dead = true;
	c->why = why;
	c->detail = detail;
	eng_loop_defer(loop, cell_gone, c, "fake gone");
}

static void cell_up(void *ctx)
{
	struct eng_cell *c = ctx;
	struct eng_cell_times t = {0};

	if (c->dead)
		return;
	if (!c->copy && fake.die_at_boot) {
		c->ev.console(c->ctx, "Kernel panic: no\n\x1b[1minit\n", 26);
		end_cell(c, ENG_END_RESET, "");
		return;
	}
	if (c->copy && fake.copy_dies) {
		end_cell(c, ENG_END_MEMORY, "page 7");
		return;
	}
	c->ev.started(c->ctx, &t);
	if (c->copy)
		return;
	c->ev.console(c->ctx, "booted\n", 7);
	if (c->kernel_only)
		c->ev.ready(c->ctx);
	else
		c->ev.vsock_up(c->ctx);
}

static struct eng_cell *new_cell(const struct eng_cell_events *ev, void *ctx)
{
	struct eng_cell *c = calloc(1, sizeof(*c));

	c->ev = *ev;
	c->ctx = ctx;
	fake.alive++;
	eng_loop_defer(loop, cell_up, c, "fake up");
	return c;
}

int eng_cell_boot(struct eng_cells *cs, const struct eng_boot_req *req,
		  const struct eng_cell_events *ev, void *ctx,
		  struct eng_cell **out, struct err *e)
{
	(void)cs;
	(void)e;
	fake.boots++;
	fake.had_disk = req->has_disk;
	snprintf(fake.cmdline, sizeof(fake.cmdline), "%s", req->cmdline);
	snprintf(fake.kernel, sizeof(fake.kernel), "%s", req->kernel_path);
	*out = new_cell(ev, ctx);
	(*out)->kernel_only = !req->initrd_path;
	return 0;
}

int eng_cell_thaw(struct eng_cells *cs, const struct eng_thaw_req *req,
		  const struct eng_cell_events *ev, void *ctx,
		  struct eng_cell **out, struct err *e)
{
	struct pgc_snap *sn;

	(void)cs;
	cr_assert(req->record && !req->has_own);
	cr_assert_eq(pgc_snap_open(store, &req->base, &sn, e), 0);
	pgc_snap_unref(sn);
	fake.thaws++;
	*out = new_cell(ev, ctx);
	(*out)->copy = true;
	return 0;
}

static void publish(const struct pgc_id *id, const char *config)
{
	static uint8_t page[PGC_PAGE] = {1};
	uint64_t npages[PGC_NUM_STREAMS] = {FAKE_PAGES, 0};
	struct pgc_builder *b;
	struct err e = ERR_INIT;

	cr_assert_eq(pgc_builder_begin(store, id, NULL, npages, &b, &e), 0,
		     "%s", e.msg);
	cr_assert_eq(pgc_builder_put(b, PGC_MEM, 5, page, 1, &e), 0);
	cr_assert_eq(pgc_builder_blob(b, "config", config, strlen(config), &e),
		     0);
	cr_assert_eq(pgc_builder_commit(b, &e), 0, "%s", e.msg);
}

static void capture_over(void *ctx)
{
	struct eng_cell *c = ctx;
	struct eng_capture_stats st = {0};

	c->captured(c->captured_ctx, fake.capture_errno,
		    fake.capture_errno ? "the store is full" : "", &st);
	if (!fake.capture_errno)
		end_cell(c, ENG_END_KILLED, "");
}

int eng_cell_capture(struct eng_cell *c, const struct eng_capture_req *req,
		     void (*done)(void *ctx, int rc, const char *why,
				  const struct eng_capture_stats *st),
		     void *ctx, struct err *e)
{
	(void)e;
	cr_assert(req->image && !req->keep_running);
	fake.captures++;
	c->captured = done;
	c->captured_ctx = ctx;
	if (!fake.capture_errno) // also when it is cancelled a moment later
		publish(&req->id, req->config);
	eng_loop_defer(loop, capture_over, c, "fake captured");
	return 0;
}

void eng_cell_kill(struct eng_cell *c)
{
	fake.kills++;
	end_cell(c, ENG_END_KILLED, "");
}

size_t eng_cell_recorded(const struct eng_cell *c, const uint32_t **pgnos)
{
	static const uint32_t order[] = {48, 0, 16};

	(void)c;
	*pgnos = order;
	return 3;
}

void eng_template_drop(struct eng_cells *cs, const struct pgc_id *id)
{
	(void)cs;
	(void)id;
}

// --- the fake agent: a thread for each stream ----------------------------

static void send_frame(int fd, unsigned type, const struct wire_writer *body)
{
	uint8_t head[AGENT_FRAME_HEAD];
	struct wire_writer w = wire_writer_of(head, sizeof(head));

	wire_put_u8(&w, (uint8_t)type);
	wire_put_u8(&w, 0);
	wire_put_u16(&w, 0);
	wire_put_u32(&w, body ? (uint32_t)body->len : 0);
	util_write_all(fd, head, sizeof(head));
	if (body)
		util_write_all(fd, body->buf, body->len);
}

static void ok_or(int fd, int eno)
{
	uint8_t buf[64];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	if (!eno) {
		send_frame(fd, AGENT_OK, NULL);
		return;
	}
	wire_put_u32(&w, (uint32_t)eno);
	wire_put_bytes(&w, "it would not", 12);
	send_frame(fd, AGENT_ERROR, &w);
}

static void answer_probe(int fd)
{
	uint8_t buf[64];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	unsigned n = __atomic_fetch_add(&fake.probes, 1, __ATOMIC_SEQ_CST);
	bool ended = fake.app_ends || (fake.ends_at && n >= fake.ends_at) ||
		     (fake.thawed && fake.copy_app_ends);

	wire_put_u8(&w, n >= fake.closed);
	wire_put_u8(&w, !ended);
	wire_put_u32(&w, ended ? 3 : 0);
	wire_put_u64(&w, 1000000ull * MIN(n, fake.busy));
	wire_put_u64(&w, 5000);
	send_frame(fd, AGENT_PROBED, &w);
}

static void send_log(int fd)
{
	uint8_t buf[64], byte;
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	fake.logs_open++;
	wire_put_u8(&w, 2);
	wire_put_bytes(&w, "cannot bind\n", 12);
	send_frame(fd, AGENT_LOGDATA, &w);
	pthread_mutex_unlock(&fake.lock);
	while (read(fd, &byte, 1) > 0)
		;
	pthread_mutex_lock(&fake.lock);
	fake.logs_open--;
}

static bool log_closes(void)
{
	uint64_t end = __real_util_now_ns() + PATIENCE_MS * 1000000ull;

	while (fake.logs_open && __real_util_now_ns() < end) {
		pthread_mutex_unlock(&fake.lock);
		usleep(1000);
		pthread_mutex_lock(&fake.lock);
	}
	return !fake.logs_open;
}

// The copy's server, behind the agent.
static void serve(int fd, unsigned port)
{
	static const char answer[] = "HTTP/1.0 200 OK\r\n\r\nhello\n";
	ssize_t n;

	cr_assert_eq(port, 8080);
	cr_assert(fake.thawed, "the guest that is frozen was asked");
	fake.asks++;
	ok_or(fd, fake.connect_errno);
	if (fake.connect_errno)
		return;
	n = read(fd, fake.asked, sizeof(fake.asked) - 1);
	fake.asked[MAX(n, 0)] = '\0';
	if (fake.dies_asked)
		return;
	util_write_all(fd, answer, sizeof(answer) - 1);
	if (!fake.stays_open)
		return;
	pthread_mutex_unlock(&fake.lock);
	while (read(fd, &n, 1) > 0)
		;
	pthread_mutex_lock(&fake.lock);
}

// The application's server of hooks.
static void serve_hook(int fd)
{
	bool ready = !fake.froze;
	unsigned n = ready ? fake.readies++ : fake.validates++;
	int says = ready ? fake.ready_says : fake.validate_says;
	char buf[600], want[100];
	ssize_t len;

	cr_assert(ready || fake.thawed, "the frozen guest was asked");
	ok_or(fd, 0);
	len = read(fd, buf, sizeof(buf) - 1);
	if (len <= 0)
		return; // its time was up before it could ask
	buf[len] = '\0';
	snprintf(want, sizeof(want),
		 "POST /aws/lambda-microvms/runtime/v1/%s HTTP/1.1\r\n",
		 ready ? "ready" : "validate");
	cr_assert_eq(strncmp(buf, want, strlen(want)), 0, "%s", buf);
	if (n < fake.unready)
		says = 503;
	snprintf(buf, sizeof(buf), "HTTP/1.1 %d X\r\n\r\n", says);
	if (says) {
		util_write_all(fd, buf, strlen(buf));
		return;
	}
	pthread_mutex_unlock(&fake.lock);
	while (read(fd, &n, 1) > 0)
		;
	pthread_mutex_lock(&fake.lock);
}

static void *agent(void *arg)
{
	int fd = (int)(intptr_t)arg;
	uint8_t head[AGENT_FRAME_HEAD] = {0}, *body = NULL;
	struct wire_reader r = wire_reader_of(head, sizeof(head));
	uint32_t len;
	unsigned type;

	if (util_read_all(fd, head, sizeof(head)))
		goto out;
	type = wire_get_u8(&r);
	wire_get_u8(&r);
	wire_get_u16(&r);
	len = wire_get_u32(&r);
	body = calloc(1, len + 1);
	if (util_read_all(fd, body, len))
		goto out;
	pthread_mutex_lock(&fake.lock);
	if (type == AGENT_START) {
		// flags; argv: count, length of the first, the first
		memcpy(&fake.start_flags, body, 4);
		snprintf(fake.argv0, sizeof(fake.argv0), "%.*s", (int)body[8],
			 body + 12);
		ok_or(fd, fake.start_errno);
	} else if (type == AGENT_PROBE) {
		answer_probe(fd);
	} else if (type == AGENT_FREEZE) {
		// One that was closed is seen to be, sooner or later.
		fake.log_open_at_freeze = !log_closes();
		fake.froze = true;
		fake.probes_at_freeze = fake.probes;
		memcpy(&fake.freeze_flags, body, 4);
		ok_or(fd, fake.freeze_errno);
	} else if (type == AGENT_THAW) {
		fake.thawed = true;
		ok_or(fd, 0);
	} else if (type == AGENT_CONNECT && body[0] + 256 * body[1] == HOOKS) {
		serve_hook(fd);
	} else if (type == AGENT_CONNECT) {
		serve(fd, body[0] + 256u * body[1]);
	} else if (type == AGENT_LOG) {
		send_log(fd);
	}
	pthread_mutex_unlock(&fake.lock);
out:
	free(body);
	close(fd);
	return NULL;
}

static pthread_t agents[AGENTS];
static unsigned nagents;

// Streams that the build closed have ended for their agents, too.
static void join_agents(void)
{
	while (nagents)
		cr_assert_eq(pthread_join(agents[--nagents], NULL), 0);
}

int eng_cell_connect(struct eng_cell *c, uint32_t port, int *fd, struct err *e)
{
	int p[2];

	(void)e;
	cr_assert(!c->dead);
	cr_assert_eq(port, AGENT_PORT);
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, p), 0);
	fcntl(p[0], F_SETFL, O_NONBLOCK);
	*fd = p[0];
	if (fake.connects++ < fake.deaf) {
		close(p[1]);
		return 0;
	}
	cr_assert_lt(nagents, AGENTS);
	cr_assert_eq(pthread_create(&agents[nagents++], NULL, agent,
				    (void *)(intptr_t)p[1]),
		     0);
	return 0;
}

// --- the bench -----------------------------------------------------------

static struct eng_jobs *jobs;
static struct eng_build_env env;
static char top[64], rootfs[128], tmp[128], mkdisk[PATH_MAX];
static struct outcome {
	bool done;
	int rc;
	char why[ERR_MSG_MAX];
	struct eng_build_result res;
	char texts[4000];
	char stages[400];
	char log[4096];
} got;
static struct eng_build *build;
static const char *cancel_at;

static void write_file(const char *path, const char *text)
{
	FILE *f = fopen(path, "w");

	cr_assert(f, "%s", path);
	fputs(text, f);
	fclose(f);
}

static void set_up(void)
{
	struct err e = ERR_INIT;
	char path[200];
	ssize_t n;

	signal(SIGPIPE, SIG_IGN); // as thawd does
	strcpy(top, "/tmp/thaw-build-test-XXXXXX");
	cr_assert(mkdtemp(top));
	snprintf(rootfs, sizeof(rootfs), "%s/rootfs", top);
	snprintf(tmp, sizeof(tmp), "%s/tmp", top);
	mkdir(rootfs, 0755);
	mkdir(tmp, 0700);
	snprintf(path, sizeof(path), "%s/needle", rootfs);
	write_file(path, "a needle in the disk\n");
	snprintf(path, sizeof(path), "%s/store", top);
	n = readlink("/proc/self/exe", mkdisk, sizeof(mkdisk) - 32);
	cr_assert(n > 0);
	mkdisk[n] = '\0';
	strcpy(strrchr(mkdisk, '/'), "/thaw-mkdisk");
	cr_assert_eq(eng_loop_create(&loop, &e), 0, "%s", e.msg);
	cr_assert_eq(eng_jobs_create(&jobs, loop, 2, &e), 0, "%s", e.msg);
	cr_assert_eq(pgc_store_open(&store, path, NULL, &e), 0, "%s", e.msg);
	env = (struct eng_build_env){.loop = loop,
				     .jobs = jobs,
				     .store = store,
				     .kernel_path = "/k",
				     .initrd_path = "/i",
				     .mkdisk_path = mkdisk,
				     .tmp_dir = tmp};
}

static void tear_down(void)
{
	struct err e = ERR_INIT;

	eng_jobs_destroy(jobs);
	pgc_store_close(store);
	eng_loop_destroy(loop);
	cr_assert_eq(util_rmtree(AT_FDCWD, top, &e), 0, "%s", e.msg);
}

TestSuite(build, .init = set_up, .fini = tear_down, .timeout = 300);

static void on_progress(void *ctx, const char *stage, int percent,
			const char *text)
{
	size_t n = strlen(got.stages);

	(void)ctx;
	if (strlen(got.texts) + strlen(text) + 2 < sizeof(got.texts)) {
		strcat(got.texts, text);
		strcat(got.texts, "\n");
	}
	cr_assert(percent >= -1 && percent <= 100);
	if (n < strlen(stage) || strcmp(got.stages + n - strlen(stage), stage))
		snprintf(got.stages + n, sizeof(got.stages) - n, "%s%s",
			 n ? " " : "", stage);
	if (cancel_at && !strcmp(cancel_at, stage)) {
		cancel_at = NULL;
		eng_build_cancel(build);
	}
}

static void on_log(void *ctx, const char *text, size_t n)
{
	size_t have = strlen(got.log);

	(void)ctx;
	n = MIN(n, sizeof(got.log) - have - 1);
	memcpy(got.log + have, text, n);
	got.log[have + n] = '\0';
}

static void on_done(void *ctx, int rc, const char *why,
		    const struct eng_build_result *res)
{
	(void)ctx;
	cr_assert(!got.done, "done() came twice");
	got.done = true;
	got.rc = rc;
	snprintf(got.why, sizeof(got.why), "%s", why);
	if (res)
		got.res = *res;
	cr_assert_eq(!res, rc != 0);
	eng_loop_stop(loop);
}

static const char *const argv_ok[] = {"/bin/app", "--serve", NULL};

static struct eng_build_req request(void)
{
	return (struct eng_build_req){.name = "demo",
				      .rootfs = rootfs,
				      .argv = argv_ok,
				      .ready_port = 8080,
				      .record_path = "/",
				      .mem_mib = 256,
				      .vcpus = 1,
				      .config = "{\"a\":1}"};
}

static void run(const struct eng_build_req *req)
{
	static const struct eng_build_events ev = {on_progress, on_log,
						   on_done};
	struct err e = ERR_INIT;
	int rc;

	memset(&got, 0, sizeof(got));
	rc = eng_build_start(&build, &env, req, &ev, NULL, &e);
	cr_assert_eq(rc, 0, "%s", e.msg);
	eng_loop_run(loop);
	cr_assert(got.done);
	join_agents();
}

static int count_one(void *ctx, const struct pgc_id *id)
{
	(void)id;
	++*(unsigned *)ctx;
	return 0;
}

static unsigned snapshots(void)
{
	unsigned n = 0;

	cr_assert_eq(pgc_store_list(store, count_one, &n, NULL), 0);
	return n;
}

static unsigned files_in(const char *dir)
{
	const struct dirent *de;
	unsigned n = 0;
	DIR *d = opendir(dir);

	while ((de = readdir(d)))
		n += de->d_name[0] != '.';
	closedir(d);
	return n;
}

static void nothing_left(const char *when)
{
	cr_assert_eq(snapshots(), 0, "%s: snapshots stay", when);
	cr_assert_eq(files_in(tmp), 0, "%s: work directories stay", when);
	cr_assert_eq(fake.alive, 0, "%s: cells stay", when);
	cr_assert_eq(waitpid(-1, NULL, WNOHANG), -1, "%s: processes stay",
		     when);
	cr_assert_eq(errno, ECHILD);
}

// --- tests ---------------------------------------------------------------

Test(build, makes_an_image)
{
	static const char needle[] = "a needle in the disk\n";
	struct eng_build_req req = request();
	struct err e = ERR_INIT;
	struct pgc_snap *sn;
	const uint32_t *ws;
	const void *blob;
	uint64_t npages;
	bool found = false;
	uint8_t *disk;
	size_t len;

	fake.closed = 2;
	req.all_caps = true;
	run(&req);
	cr_assert_eq(got.rc, 0, "%s", got.why);
	cr_assert_str_eq(got.stages,
			 "disk store boot ready freeze capture record");
	cr_assert(fake.froze && fake.thawed);
	cr_assert(!fake.log_open_at_freeze, "a stream was open at the freeze");
	cr_assert_geq(fake.probes, 4); // 3 until it listened, 1 in the copy
	cr_assert_str_eq(fake.argv0, "/bin/app");
	cr_assert_eq(fake.start_flags, AGENT_START_ALL_CAPS);
	cr_assert_str_eq(fake.cmdline, eng_guest_cmdline);
	cr_assert_str_eq(fake.kernel, "/k");
	cr_assert(fake.had_disk && got.res.has_disk);
	cr_assert(strstr(got.log, "booted\n") &&
		  strstr(got.log, "cannot bind"));
	cr_assert_eq(snapshots(), 2);
	cr_assert_eq(files_in(tmp), 0);
	cr_assert_eq(fake.alive, 0);
	cr_assert_eq(got.res.stats.nonzero[PGC_MEM], 1);

	cr_assert_eq(pgc_snap_open(store, &got.res.snap, &sn, &e), 0);
	blob = pgc_snap_blob(sn, "config", &len);
	cr_assert(blob && len == 7 && !memcmp(blob, "{\"a\":1}", 7));
	cr_assert_eq(pgc_snap_workset(sn, PGC_MEM, &ws), 3);
	cr_assert(ws[0] == 48 && ws[1] == 0 && ws[2] == 16);
	pgc_snap_unref(sn);

	cr_assert_eq(pgc_snap_open(store, &got.res.disk, &sn, &e), 0);
	npages = pgc_snap_pages(sn, PGC_DISK);
	cr_assert_geq(npages, 8192); // 32 MiB are the least
	disk = malloc(npages * PGC_PAGE);
	cr_assert_eq(pgc_snap_read(sn, PGC_DISK, 0, disk, npages, &e), 0);
	cr_assert(disk[1024 + 0x38] == 0x53 && disk[1024 + 0x39] == 0xef);
	for (size_t i = 0; i < npages; i++)
		found |=
		    !memcmp(disk + i * PGC_PAGE, needle, sizeof(needle) - 1);
	cr_assert(found, "the file's contents are not in the disk");
	free(disk);
	pgc_snap_unref(sn);
}

Test(build, the_copy_is_asked_once)
{
	struct eng_build_req req = request();

	req.record_path = "/ready?now";
	run(&req);
	cr_assert_eq(got.rc, 0, "%s", got.why);
	cr_assert_eq(fake.asks, 1);
	cr_assert_eq(strncmp(fake.asked, "GET /ready?now HTTP/1.0\r\n", 25), 0,
		     "%s", fake.asked);
	cr_assert(strstr(fake.asked, "\r\nConnection: close\r\n\r\n"));
	cr_assert_eq(fake.freeze_flags,
		     AGENT_FREEZE_SYNC | AGENT_FREEZE_COMPACT);
}

Test(build, a_server_that_keeps_the_stream_or_refuses_it_does_not_matter)
{
	struct eng_build_req req = request();

	fake.stays_open = true;
	fake.endless = true; // who waited for the end would wait for ever
	run(&req);
	cr_assert_eq(got.rc, 0, "%s", got.why);
	fake.endless = false;
	fake.connect_errno = ECONNREFUSED;
	run(&req);
	cr_assert_eq(got.rc, 0, "%s", got.why);
	fake.connect_errno = 0;
	fake.stays_open = false;
	fake.dies_asked = true;
	run(&req);
	cr_assert_eq(got.rc, 0, "%s", got.why);
	cr_assert_eq(fake.asks, 3);
}

Test(build, without_a_path_the_copy_is_not_asked)
{
	struct eng_build_req req = request();

	req.record_path = "";
	run(&req);
	cr_assert_eq(got.rc, 0, "%s", got.why);
	req = request();
	req.record_path = NULL;
	run(&req);
	cr_assert_eq(got.rc, 0, "%s", got.why);
	cr_assert_eq(fake.asks, 0);
	cr_assert_eq(fake.captures, 2);
}

Test(build, waits_for_an_agent_that_listens_late)
{
	struct eng_build_req req = request();

	fake.deaf = 3;
	run(&req);
	cr_assert_eq(got.rc, 0, "%s", got.why);
	cr_assert_geq(fake.connects, 4);
}

Test(build, without_a_port_it_waits_for_quiet)
{
	struct eng_build_req req = request();

	req.ready_port = 0;
	fake.busy = 3;
	fake.probe_ms = 250;
	run(&req);
	cr_assert_eq(got.rc, 0, "%s", got.why);
	// While it was busy, and for 2 s after it.
	cr_assert_geq(fake.probes_at_freeze, 3 + 8u);
	cr_assert_lt(fake.probes_at_freeze, 3 + 8 + 4u);
}

Test(build, what_listens_and_goes_on_starting_is_let_come_to_rest)
{
	struct eng_build_req req = request();
	unsigned before;

	fake.busy = 6;
	fake.probe_ms = 100;
	run(&req);
	cr_assert_eq(got.rc, 0, "%s", got.why);
	cr_assert_gt(fake.probes_at_freeze, fake.busy);
	fake.busy = UINT32_MAX; // it never rests: that has an end, too
	fake.probe_ms = 1000;
	fake.froze = false;
	before = fake.probes;
	run(&req);
	cr_assert_eq(got.rc, 0, "%s", got.why);
	cr_assert(fake.froze);
	cr_assert_geq(fake.probes_at_freeze - before, 4u,
		      "it was not waited for");
}

Test(build, an_agentless_kernel)
{
	struct eng_build_req req = request();

	req.rootfs = NULL;
	req.argv = NULL;
	req.kernel = "/some/kernel";
	req.cmdline = "a=b";
	run(&req);
	cr_assert_eq(got.rc, 0, "%s", got.why);
	cr_assert_str_eq(got.stages, "boot ready capture record");
	cr_assert_str_eq(fake.cmdline, "a=b");
	cr_assert_str_eq(fake.kernel, "/some/kernel");
	cr_assert(!got.res.has_disk && !fake.had_disk);
	cr_assert_eq(fake.connects, 0);
	cr_assert_eq(snapshots(), 1);
}

Test(build, an_optional_port_may_accept)
{
	struct eng_build_req req = request();

	req.port_optional = true;
	run(&req);
	cr_assert_eq(got.rc, 0, "%s", got.why);
	cr_assert_eq(fake.asks, 1);
	cr_assert(strstr(got.texts, "port 8080 accepts"), "%s", got.texts);
}

Test(build, or_quiet_stands_for_it)
{
	struct eng_build_req req = request();

	req.port_optional = true;
	req.ready_timeout_s = 60;
	fake.closed = 1000000;
	fake.probe_ms = 1000;
	run(&req);
	cr_assert_eq(got.rc, 0, "%s", got.why);
	cr_assert_geq(fake.probes_at_freeze, 10u); // 10 s of quiet
	cr_assert_eq(fake.asks, 0, "a port that is closed was asked");
	cr_assert(strstr(got.texts, "it is quiet"), "%s", got.texts);
}

Test(build, or_the_end_of_the_time)
{
	struct eng_build_req req = request();

	req.port_optional = true;
	req.ready_timeout_s = 1;
	fake.closed = 1000000;
	run(&req);
	cr_assert_eq(got.rc, 0, "%s", got.why);
	cr_assert_eq(fake.asks, 0);
	cr_assert(strstr(got.texts, "taken as it is"), "%s", got.texts);
}

static struct eng_build_req hooked(void)
{
	struct eng_build_req req = request();

	req.port_optional = true;
	req.hook_port = HOOKS;
	req.ready_hook_s = req.validate_hook_s = 60;
	fake.ready_says = fake.validate_says = 200;
	return req;
}

Test(build, hooks_are_asked_until_they_agree)
{
	struct eng_build_req req = hooked();

	fake.unready = 2;
	fake.closed = 1000000; // the port does not matter then
	run(&req);
	cr_assert_eq(got.rc, 0, "%s", got.why);
	cr_assert_eq(fake.readies, 3);
	cr_assert_eq(fake.validates, 3);
	cr_assert_eq(fake.asks, 0, "beside its hook, a copy was asked");
	cr_assert(strstr(got.texts, "the ready hook said so"), "%s", got.texts);
}

static void hook_fails(struct eng_build_req req, int rc, const char *part)
{
	run(&req);
	cr_assert_eq(got.rc, rc, "%s: %d, %s", part, got.rc, got.why);
	cr_assert(strstr(got.why, part), "%s: %s", part, got.why);
	nothing_left(part);
}

Test(build, hooks_that_refuse_or_never_agree_end_it)
{
	struct eng_build_req req = hooked();

	fake.ready_says = 404;
	hook_fails(req, -ECHILD, "Ready hook returned HTTP status 404. ");
	cr_assert(!fake.froze, "it was frozen all the same");
	hooked();
	fake.validate_says = 500;
	hook_fails(req, -ECHILD, "Validate hook returned HTTP status 500. ");
	fake.froze = fake.thawed = false;
	hooked();
	req.ready_hook_s = 1;
	fake.unready = 1000000;
	hook_fails(req, -ETIMEDOUT,
		   "Ready hook invocation timed out after PT1S");
	hooked();
	req = hooked();
	fake.unready = 0;
	fake.ready_says = 0;
	req.ready_hook_s = 2;
	hook_fails(req, -ETIMEDOUT,
		   "Ready hook invocation timed out after PT2S");
	for (int silent = 0; silent < 2; silent++) {
		fake.froze = fake.thawed = false;
		req = hooked();
		fake.validate_says = silent ? 0 : 503;
		req.validate_hook_s = 1;
		hook_fails(req, -ETIMEDOUT,
			   "Validate hook invocation timed out after PT1S");
	}
}

Test(build, cancelled_while_a_hook_is_asked)
{
	struct eng_build_req req = hooked();

	fake.ready_says = 0;
	cancel_at = "ready";
	run(&req);
	cr_assert_eq(got.rc, -ECANCELED, "%d %s", got.rc, got.why);
	nothing_left("cancelled");
}

// One failure a row: how the script is set, the code, a part of the sentence.
static void fails(const char *name, void (*set)(void), int rc, const char *part)
{
	struct eng_build_req req = request();
	struct fake fresh = {.lock = PTHREAD_MUTEX_INITIALIZER};

	fake = fresh;
	set();
	// Only what never comes is waited for in vain.
	req.ready_timeout_s = fake.closed ? 1 : 60;
	run(&req);
	cr_assert_eq(got.rc, rc, "%s: %d, %s", name, got.rc, got.why);
	cr_assert(strstr(got.why, part), "%s: %s", name, got.why);
	nothing_left(name);
}

static void set_boot(void)
{
	fake.die_at_boot = true;
}
static void set_start(void)
{
	fake.start_errno = ENOENT;
}
static void set_closed(void)
{
	fake.closed = 1000000;
}
static void set_ends(void)
{
	fake.app_ends = true;
}
static void set_ends_at_last(void) // it listened, and never rested
{
	fake.busy = UINT32_MAX;
	fake.ends_at = 3;
}
static void set_freeze(void)
{
	fake.freeze_errno = EIO;
}
static void set_capture(void)
{
	fake.capture_errno = -ENOSPC;
}
static void set_copy(void)
{
	fake.copy_dies = true;
}
static void set_copy_app(void)
{
	fake.copy_app_ends = true;
}
static void set_nothing(void)
{
}

Test(build, every_failure_says_why_and_leaves_nothing)
{
	fails("boot", set_boot, -ECHILD,
	      "its last output: Kernel panic: no | ");
	cr_assert(!strchr(got.why, '\x1b'));
	fails("start", set_start, -ENOENT, "it would not");
	fails("closed", set_closed, -ETIMEDOUT,
	      "nothing listened on port 8080 within 1 s");
	fails("ends while it starts", set_ends_at_last, -ECHILD,
	      "ended with code 3 once it was ready; its last output: booted "
	      "| cannot bind");
	fails("ends", set_ends, -ECHILD,
	      "ended with code 3 before it was ready; its last output: booted "
	      "| cannot bind");
	fails("freeze", set_freeze, -EIO, "freezing the application");
	fails("capture", set_capture, -ENOSPC, "the store is full");
	fails("copy", set_copy, -EIO, "page that could not be read: page 7");
	fails("copy's app", set_copy_app, -ECHILD, "in a thawed copy");
	strcpy(rootfs, "/nonexistent");
	fails("rootfs", set_nothing, -ENOENT, "/nonexistent");
	cr_assert_eq(fake.boots, 0);
}

Test(build, a_missing_program)
{
	strcpy(strrchr(mkdisk, '/'), "/no-such-program");
	{
		static const struct eng_build_events ev = {on_progress, on_log,
							   on_done};
		struct eng_build_req req = request();
		struct err e = ERR_INIT;

		cr_assert_eq(eng_build_start(&build, &env, &req, &ev, NULL, &e),
			     0);
		eng_loop_run(loop);
		cr_assert_eq(got.rc, -ENOENT, "%s", got.why);
		cr_assert(strstr(got.why, "no-such-program"));
		nothing_left("a missing program");
	}
}

Test(build, cancelled_in_every_stage_it_leaves_nothing)
{
	static const char *const stages[] = {
	    "disk", "store", "boot", "ready", "freeze", "capture", "record"};

	for (size_t i = 0; i < ARRAY_SIZE(stages); i++) {
		struct eng_build_req req = request();
		struct fake fresh = {.lock = PTHREAD_MUTEX_INITIALIZER};

		fake = fresh;
		cancel_at = stages[i];
		run(&req);
		cr_assert_eq(got.rc, -ECANCELED, "%s: %d %s", stages[i], got.rc,
			     got.why);
		nothing_left(stages[i]);
	}
}

Test(build, cancelled_before_it_began)
{
	static const struct eng_build_events ev = {on_progress, on_log,
						   on_done};
	struct eng_build_req req = request();
	struct err e = ERR_INIT;

	cr_assert_eq(eng_build_start(&build, &env, &req, &ev, NULL, &e), 0);
	eng_build_cancel(build);
	eng_build_cancel(build);
	cr_assert(!got.done, "done() from within");
	eng_loop_run(loop);
	cr_assert_eq(got.rc, -ECANCELED);
	nothing_left("cancelled at once");
}

Test(build, bad_requests)
{
	static const char *const empty[] = {"", NULL}, *const none[] = {NULL};
	static const struct eng_build_events ev = {on_progress, on_log,
						   on_done};
	struct eng_build_req r[9];
	struct err e = ERR_INIT;

	for (size_t i = 0; i < ARRAY_SIZE(r); i++)
		r[i] = request();
	r[0].rootfs = NULL;
	r[1].kernel = "/k";
	r[2].rootfs = "relative";
	r[3].argv = none;
	r[4].argv = empty;
	r[5].mem_mib = 63;
	r[6].mem_mib = 32769;
	r[7].vcpus = 0;
	r[8].vcpus = 17;
	for (size_t i = 0; i < ARRAY_SIZE(r); i++) {
		e.msg[0] = '\0';
		cr_assert_eq(
		    eng_build_start(&build, &env, &r[i], &ev, NULL, &e),
		    -EINVAL, "%zu", i);
		cr_assert(e.msg[0]);
	}
	r[0] = request();
	env.kernel_path = NULL;
	cr_assert_eq(eng_build_start(&build, &env, &r[0], &ev, NULL, &e),
		     -ENOENT);
	cr_assert(strstr(e.msg, "guest-kernel"));
}

Test(build, sweep_removes_work_directories_and_nothing_else)
{
	char path[300], keep[200];
	struct err e = ERR_INIT;

	snprintf(keep, sizeof(keep), "%s/keep", top);
	mkdir(keep, 0755);
	snprintf(path, sizeof(path), "%s/keep/file", top);
	write_file(path, "x");
	snprintf(path, sizeof(path), "%s/build-0123/root/deep/er", tmp);
	for (char *p = path + strlen(tmp) + 1; (p = strchr(p, '/')); p++) {
		*p = '\0';
		mkdir(path, 0);
		*p = '/';
	}
	mkdir(path, 0);
	snprintf(path, sizeof(path), "%s/build-0123/root/out", tmp);
	cr_assert_eq(symlink(keep, path), 0);
	snprintf(path, sizeof(path), "%s/build-link", tmp);
	cr_assert_eq(symlink(keep, path), 0);
	snprintf(path, sizeof(path), "%s/other", tmp);
	write_file(path, "x");
	cr_assert_eq(eng_build_sweep(tmp, &e), 0, "%s", e.msg);
	cr_assert_eq(files_in(tmp), 1);
	cr_assert_eq(files_in(keep), 1, "a link was followed");
	cr_assert_lt(eng_build_sweep("/nonexistent", &e), 0);
}

Test(build_tail, keeps_the_end_and_no_control_characters)
{
	struct build_tail t = {.len = 0};
	char out[64], big[5000];

	memset(big, 'x', sizeof(big));
	build_tail_add(&t, big, sizeof(big));
	build_tail_add(&t, "\nfirst\n\x1b[2Jsecond\x07\r\n\n", 22);
	build_tail_text(&t, out, sizeof(out));
	cr_assert_str_eq(out, "first | [2Jsecond");
	t.len = 0;
	build_tail_add(&t, "a line that has no room any more\n", 33);
	build_tail_add(&t, "this one has\nand this one has, too\n", 35);
	build_tail_text(&t, out, sizeof(out));
	cr_assert_str_eq(out, "this one has | and this one has, too");
	build_tail_add(&t, big, sizeof(big));
	build_tail_text(&t, out, sizeof(out));
	cr_assert_eq(strlen(out), sizeof(out) - 4);
	cr_assert_eq(out[0], 'x');
	t.len = 0;
	build_tail_text(&t, out, sizeof(out));
	cr_assert_str_eq(out, "");
}
