// Hooks and timers of microVMs, with fake cells: each transition with each kind
// of answer, and each deadline, also across a restart. Time passes when a test says
// so (CMakeLists.txt wraps the clocks and timers): what must come before a deadline
// does, however slow the host.
#include "fake_cells.h"
#include "roles.h"
#include "vm_internal.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define OK "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
#define BUSY "HTTP/1.1 503 Busy\r\n\r\n"
#define BAD "HTTP/1.1 400 Bad\r\n\r\n"
#define NO_CONTENT "HTTP/1.1 204 No Content\r\n\r\n"
#define PATH HOOK_PATH

static char dir[64];
static struct eng_loop *loop;
static struct eng_jobs *jobs;
static struct eng_reg *reg;
static struct eng_cells *cells;
static struct pgc_store *store;
static struct eng_vms *vms;
static struct reg_image *image;
static struct reg_version *version;
static struct eng_roles *roles;
static unsigned scale;

// --- time ------------------------------------------------------------------------

enum { SHORT_MS = 100, WAITING = 64, PATIENCE_MS = 120000 };

static _Atomic uint64_t now_ms = 1000000; // workers look at it, too
static struct waiting {
	struct eng_timer *t;
	uint64_t due_ms;
} waiting[WAITING];

uint64_t __real_util_now_ns(void);
uint64_t __wrap_util_now_ns(void);
uint64_t __wrap_util_wall_ns(void);
void __real_eng_timer_set(struct eng_timer *t, uint64_t after_ms);
void __wrap_eng_timer_set(struct eng_timer *t, uint64_t after_ms);
void __real_eng_timer_stop(struct eng_timer *t);
void __wrap_eng_timer_stop(struct eng_timer *t);
void __real_eng_timer_destroy(struct eng_timer *t);
void __wrap_eng_timer_destroy(struct eng_timer *t);

uint64_t __wrap_util_now_ns(void)
{
	return now_ms * 1000000;
}

uint64_t __wrap_util_wall_ns(void)
{
	return (1700000000000 + now_ms) * 1000000;
}

// The place of a timer, or with NULL an empty one.
static struct waiting *waiting_of(const struct eng_timer *t)
{
	for (unsigned i = 0; i < WAITING; i++)
		if (waiting[i].t == t)
			return &waiting[i];
	return NULL;
}

static void forget(const struct eng_timer *t)
{
	struct waiting *w = t ? waiting_of(t) : NULL;

	if (w)
		w->t = NULL;
}

// Short ones only bring things about, and take what they take.
void __wrap_eng_timer_set(struct eng_timer *t, uint64_t after_ms)
{
	struct waiting *w;

	forget(t);
	if (after_ms < SHORT_MS) {
		__real_eng_timer_set(t, after_ms);
		return;
	}
	__real_eng_timer_stop(t);
	w = waiting_of(NULL);
	cr_assert_not_null(w);
	*w = (struct waiting){t, now_ms + after_ms};
}

void __wrap_eng_timer_stop(struct eng_timer *t)
{
	forget(t);
	__real_eng_timer_stop(t);
}

void __wrap_eng_timer_destroy(struct eng_timer *t)
{
	forget(t);
	__real_eng_timer_destroy(t);
}

static void stop(void *ctx)
{
	(void)ctx;
	eng_loop_stop(loop);
}

static void turn(uint64_t ms)
{
	struct eng_timer *t = eng_timer_create(loop, stop, NULL, "test");

	__real_eng_timer_set(t, ms);
	eng_loop_run(loop);
	eng_timer_destroy(t);
}

// The timers that are due on the way fire in their order.
static void pass(uint64_t ms)
{
	uint64_t end = now_ms + ms;

	for (;;) {
		struct waiting *w = NULL;
		struct eng_timer *t;

		for (unsigned i = 0; i < WAITING; i++)
			if (waiting[i].t && waiting[i].due_ms <= end &&
			    (!w || waiting[i].due_ms < w->due_ms))
				w = &waiting[i];
		if (!w)
			break;
		t = w->t;
		w->t = NULL;
		now_ms = MAX((uint64_t)now_ms, w->due_ms);
		__real_eng_timer_set(t, 0);
		turn(5);
	}
	now_ms = end;
}

// Turns the loop until `cond`, or for two minutes; no time passes.
#define TURN_UNTIL(cond)                                                      \
	for (uint64_t end_ = __real_util_now_ns() + PATIENCE_MS * 1000000ull; \
	     !(cond) && __real_util_now_ns() < end_;)                         \
	turn(5)

#define ROLE "arn:aws:iam::123456789012:role/app"

// Replaces the file of ROLE, as who renews credentials does.
static void give(const char *key, const char *secret)
{
	char path[96], tmp[112];
	FILE *f;

	snprintf(path, sizeof(path), "%s/creds", dir);
	snprintf(tmp, sizeof(tmp), "%s.new", path);
	f = fopen(tmp, "w");
	cr_assert_not_null(f);
	fprintf(f,
		"{\"Version\": 1, \"AccessKeyId\": \"%s\", "
		"\"SecretAccessKey\": \"%s\"}",
		key, secret);
	fchmod(fileno(f), 0600);
	fclose(f);
	cr_assert_eq(rename(tmp, path), 0);
}

static void read_roles(void)
{
	struct err e = ERR_INIT;
	char map[200];

	snprintf(map, sizeof(map), ROLE "=%s/creds", dir);
	cr_assert_eq(
	    eng_roles_create(&roles, (const char *const[]){map}, 1, &e), 0,
	    "%s", e.msg);
}

static void start(void)
{
	struct eng_cells_config cfg = {.struct_size = sizeof(cfg)};
	struct eng_vms_env env;
	struct err e = ERR_INIT;
	char path[96];
	bool fresh;

	read_roles();
	snprintf(path, sizeof(path), "%s/registry.db", dir);
	cr_assert_eq(eng_loop_create(&loop, &e), 0);
	cr_assert_eq(eng_jobs_create(&jobs, loop, 1, &e), 0);
	cr_assert_eq(eng_reg_open(&reg, loop, path, &fresh, &e), 0, "%s",
		     e.msg);
	snprintf(path, sizeof(path), "%s/store", dir);
	cr_assert_eq(pgc_store_open(&store, path, NULL, &e), 0, "%s", e.msg);
	cr_assert_eq(eng_cells_create(&cells, loop, jobs, store, &cfg, &e), 0);
	env = (struct eng_vms_env){.loop = loop,
				   .jobs = jobs,
				   .cells = cells,
				   .store = store,
				   .reg = reg,
				   .time_scale = scale,
				   .roles = roles,
				   .region = "eu-west-1",
				   .kernel_path = "/k",
				   .initrd_path = "/i",
				   .log_dir = dir};
	cr_assert_eq(eng_vms_create(&vms, &env, &e), 0);
	cr_assert_eq(eng_vms_recover(vms, fresh, &e), 0, "%s", e.msg);
}

static void end(void)
{
	eng_vms_stop(vms);
	TURN_UNTIL(!eng_vms_busy(vms));
	cr_expect_not(eng_vms_busy(vms));
	turn(20);
	eng_cells_destroy(cells);
	eng_jobs_destroy(jobs);
	eng_vms_destroy(vms);
	eng_roles_destroy(roles);
	eng_reg_close(reg);
	pgc_store_close(store);
	eng_loop_destroy(loop);
}

static void setup(void)
{
	struct err e = ERR_INIT;
	struct reg_txn *t;

	signal(SIGPIPE, SIG_IGN); // as thawd does
	strcpy(dir, "/tmp/thaw-life-XXXXXX");
	cr_assert_not_null(mkdtemp(dir));
	log_init("test", LOG_LVL_ERR);
	scale = 100;
	give("AKIAFIRST0123456", "first");
	start();
	image = eng_reg_image_add(reg, "img");
	version = eng_reg_version_add(image);
	version->mem_mib = 64;
	version->vcpus = 1;
	version->agent = true;
	version->state = VER_SUCCESSFUL;
	version->active = true;
	version->spec = json_object();
	version->sizes = json_object();
	util_random(version->snap.b, sizeof(version->snap.b));
	cr_assert_eq(fake_snapshot(store, &version->snap, NULL, NULL, &e), 0,
		     "%s", e.msg);
	t = eng_reg_begin(reg);
	eng_reg_put_image(t, image);
	eng_reg_put_version(t, image, version);
	eng_reg_commit(t);
	memset(&fake_hooks, 0, sizeof(fake_hooks));
	fake_hooks.answer = OK;
	memset(&fake_agent, 0, sizeof(fake_agent));
}

static void teardown(void)
{
	char cmd[96];

	end();
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	cr_assert_eq(system(cmd), 0);
}

TestSuite(life, .init = setup, .fini = teardown, .timeout = 300);

// The image's hooks: `which` is ENABLED, with a timeout of 1 s.
static void enable(const char *which)
{
	json_decref(version->aws);
	version->aws = json_pack("{s:{s:i,s:{s:s}}}", "hooks", "port", 9001,
				 "microvmHooks", which, "ENABLED");
	fake_hooks.port = 9001;
}

static int try_run(const char *idle, uint32_t max_s, const char *payload,
		   bool parked, struct reg_vm **vm, struct err *e)
{
	json_t *extra =
	    idle ? json_pack("{s:o}", "idlePolicy", json_loads(idle, 0, NULL))
		 : NULL;
	struct vm_run rq = {.image = image,
			    .version = version,
			    .name = "",
			    .extra = extra,
			    .parked = parked,
			    .payload = payload,
			    .payload_len = payload ? strlen(payload) : 0,
			    .max_duration_s = max_s,
			    .t0 = util_now_ns()};
	int rc = eng_vm_run(vms, &rq, vm, e);

	json_decref(extra);
	return rc;
}

static struct reg_vm *run_one(const char *idle, uint32_t max_s,
			      const char *payload)
{
	struct err e = ERR_INIT;
	struct reg_vm *vm;

	cr_assert_eq(try_run(idle, max_s, payload, false, &vm, &e), 0, "%s",
		     e.msg);
	return vm;
}

static void until(struct reg_vm *vm, enum vm_state state)
{
	TURN_UNTIL(vm->state == state);
	cr_assert_eq(vm->state, state, "%s, not %s: %s",
		     eng_state_name(vm->state), eng_state_name(state),
		     vm->reason);
}

static void suspend(struct reg_vm *vm)
{
	struct err e = ERR_INIT;

	until(vm, VM_RUNNING);
	cr_assert_eq(eng_vm_suspend(vms, vm, &e), 0, "%s", e.msg);
}

static void resume(struct reg_vm *vm)
{
	struct err e = ERR_INIT;

	cr_assert_eq(eng_vm_resume(vms, vm, util_now_ns(), &e), 0, "%s", e.msg);
}

static void op_ends(struct reg_vm *vm)
{
	TURN_UNTIL(!vm->live || vm->live->op == OP_NONE);
	cr_assert(!vm->live || vm->live->op == OP_NONE);
}

// --- hooks -------------------------------------------------------------------

Test(life, run_is_told_id_and_payload_before_it_runs)
{
	char want[200];
	struct reg_vm *vm;

	enable("run");
	fake_hooks.answer = NULL;
	vm = run_one(NULL, 600, "a \"secret\"\n");
	TURN_UNTIL(fake_hooks.asked);
	cr_expect_eq(fake_hooks.asked, 1);
	cr_expect_str_eq(fake_hooks.path, PATH "run");
	snprintf(want, sizeof(want),
		 "{\"microvmId\":\"%s\",\"runHookPayload\":"
		 "\"a \\\"secret\\\"\\n\"}",
		 vm->id);
	cr_expect_str_eq(fake_hooks.body, want);
	cr_expect_eq(vm->state, VM_PENDING, "no traffic before it answered");
}

Test(life, it_runs_once_run_answered_200)
{
	struct reg_vm *vm;

	enable("run");
	vm = run_one(NULL, 600, NULL);
	until(vm, VM_RUNNING);
	cr_expect_eq(fake_hooks.asked, 1);
	cr_expect_not_null(strstr(fake_hooks.body, "\"runHookPayload\":\"\""));
	suspend(vm);
	until(vm, VM_SUSPENDED);
	resume(vm);
	until(vm, VM_RUNNING);
	cr_expect_eq(fake_hooks.asked, 1, "only run is ENABLED");
}

Test(life, run_that_fails_ends_it_with_awss_words)
{
	static const struct {
		const char *answer, *reason;
	} bad[] = {
	    {BAD, "Run lifecycle hook returned HTTP status 400. Please check "
		  "your hook endpoint and application logs for more details."},
	    {BUSY, "Run lifecycle hook returned HTTP status 503. Please check "
		   "your hook endpoint and application logs for more details."},
	    {NO_CONTENT,
	     "Run lifecycle hook returned HTTP status 204. Please check "
	     "your hook endpoint and application logs for more details."},
	    {NULL, "Run hook invocation timed out after PT1S"},
	    {"", "Run lifecycle hook could not be called on port 9001: it "
		 "closed the connection without an answer. Please check your "
		 "hook endpoint and application logs for more details."},
	};

	enable("run");
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct reg_vm *vm;

		fake_hooks.answer = bad[i].answer;
		vm = run_one(NULL, 600, NULL);
		TURN_UNTIL(fake_hooks.asked > i);
		if (!bad[i].answer)
			pass(1100);
		until(vm, VM_TERMINATED);
		cr_expect_str_eq(vm->reason, bad[i].reason);
		cr_expect_str_eq(vm->code, "run-hook-failed");
		cr_expect_eq(vm->started_ms, 0, "it never ran");
	}
	cr_expect_eq(fake_hooks.asked, ARRAY_SIZE(bad), "none is asked twice");
}

Test(life, nobody_at_the_hooks_port)
{
	struct reg_vm *vm;

	enable("run");
	fake_hooks.refuses = true;
	vm = run_one(NULL, 600, NULL);
	until(vm, VM_TERMINATED);
	cr_expect_not_null(strstr(vm->reason, "port 9001"), "%s", vm->reason);
	cr_expect_eq(fake_hooks.asked, 0);
}

Test(life, the_payload_of_a_parked_one_comes_with_its_claim)
{
	struct err e = ERR_INIT;
	struct reg_pool *p;
	struct reg_vm *vm, *claimed;
	uint64_t seq;

	enable("run");
	cr_assert_eq(eng_pool_set(vms, "img", 1, &p, &seq, &e), 0);
	cr_assert_eq(try_run(NULL, 600, NULL, true, &vm, &e), 0, "%s", e.msg);
	until(vm, VM_PARKED);
	cr_expect_eq(fake_hooks.asked, 0);
	claimed = run_one(NULL, 600, "pay");
	cr_assert_eq(claimed, vm);
	cr_expect_eq(vm->state, VM_PENDING);
	until(vm, VM_RUNNING);
	cr_expect_eq(fake_hooks.asked, 1);
	cr_expect_not_null(strstr(fake_hooks.body, "\"pay\""));
}

Test(life, hooks_need_an_agent)
{
	struct err e = ERR_INIT;
	struct reg_vm *vm;

	enable("terminate");
	version->agent = false;
	cr_expect_eq(try_run(NULL, 600, NULL, false, &vm, &e), -EINVAL);
	cr_expect_not_null(strstr(e.msg, "agent"), "%s", e.msg);
}

Test(life, a_suspend_that_its_hook_refuses_is_none)
{
	struct reg_vm *vm;

	enable("suspend");
	fake_hooks.answer = BUSY;
	vm = run_one(NULL, 600, NULL);
	suspend(vm);
	cr_expect_eq(vm->state, VM_SUSPENDING);
	op_ends(vm);
	cr_expect_eq(vm->state, VM_RUNNING);
	cr_expect_str_eq(fake_hooks.path, PATH "suspend");
	cr_expect_not_null(strstr(eng_vm_op_error(vm),
				  "Suspend lifecycle hook returned HTTP "
				  "status 503"),
			   "%s", eng_vm_op_error(vm));
	fake_hooks.answer = OK;
	suspend(vm);
	until(vm, VM_SUSPENDED);
	cr_expect_eq(fake_hooks.asked, 2);
}

Test(life, a_resume_that_its_hook_refuses_leaves_it_suspended)
{
	struct reg_vm *vm;

	enable("resume");
	vm = run_one(NULL, 600, NULL);
	suspend(vm);
	until(vm, VM_SUSPENDED);
	fake_hooks.answer = BAD;
	resume(vm);
	op_ends(vm);
	cr_expect_eq(vm->state, VM_SUSPENDED);
	cr_expect_str_eq(fake_hooks.path, PATH "resume");
	cr_expect_not_null(strstr(eng_vm_op_error(vm),
				  "Resume lifecycle hook returned HTTP status "
				  "400"),
			   "%s", eng_vm_op_error(vm));
	fake_hooks.answer = OK;
	resume(vm);
	until(vm, VM_RUNNING);
	cr_expect_eq(vm->resumes, 1);
}

Test(life, terminate_waits_for_its_hook)
{
	struct reg_vm *vm;

	enable("terminate");
	fake_hooks.answer = NULL;
	vm = run_one(NULL, 600, NULL);
	until(vm, VM_RUNNING);
	eng_vm_terminate(vms, vm, "requested", "");
	cr_expect_eq(vm->state, VM_TERMINATING);
	TURN_UNTIL(fake_hooks.asked);
	pass(990);
	turn(20);
	cr_expect_eq(vm->state, VM_TERMINATING);
	cr_expect_eq(fake_hooks.asked, 1);
	pass(20); // no longer than that
	until(vm, VM_TERMINATED);
	cr_expect_str_eq(vm->code, "requested");
}

Test(life, only_what_runs_is_told_of_its_end)
{
	struct reg_vm *vm;

	enable("terminate");
	vm = run_one(NULL, 600, NULL);
	suspend(vm);
	until(vm, VM_SUSPENDED);
	eng_vm_terminate(vms, vm, "requested", "");
	cr_expect_eq(vm->state, VM_TERMINATED);
	vm = run_one(NULL, 600, NULL);
	eng_vm_terminate(vms, vm, "requested", "");
	until(vm, VM_TERMINATED);
	cr_expect_eq(fake_hooks.asked, 0);
}

Test(life, a_stop_of_thawd_tells_the_application)
{
	enable("terminate");
	until(run_one(NULL, 600, NULL), VM_RUNNING);
	eng_vms_stop(vms);
	TURN_UNTIL(!eng_vms_busy(vms));
	cr_expect_eq(fake_hooks.asked, 1);
}

Test(life, terminate_cuts_into_a_hook)
{
	struct reg_vm *vm;

	enable("run");
	fake_hooks.answer = NULL;
	vm = run_one(NULL, 600, NULL);
	TURN_UNTIL(fake_hooks.asked);
	eng_vm_terminate(vms, vm, "requested", "");
	until(vm, VM_TERMINATED);
	cr_expect_str_eq(vm->code, "requested");
}

// --- deadlines ---------------------------------------------------------------

// Nothing happens to it before so much has passed.
static void stays_for(struct reg_vm *vm, uint64_t ms)
{
	enum vm_state state = vm->state;

	pass(ms - 1);
	turn(10);
	cr_assert_eq(vm->state, state, "%s", eng_state_name(vm->state));
	pass(1);
}

#define POLICY(max, susp, resume)              \
	"{\"maxIdleDurationSeconds\":" #max    \
	",\"suspendedDurationSeconds\":" #susp \
	",\"autoResumeEnabled\":" #resume "}"

Test(life, idle_suspends)
{
	struct reg_vm *vm = run_one(POLICY(60, 6000, true), 28800, NULL);

	until(vm, VM_RUNNING);
	stays_for(vm, 600); // 60 s, a hundred times as fast
	until(vm, VM_SUSPENDED);
	cr_expect_str_eq(vm->code, "idle");
	cr_expect_str_eq(vm->reason, "no traffic for 60 s");
}

Test(life, traffic_keeps_it)
{
	struct reg_vm *vm = run_one(POLICY(60, 6000, true), 28800, NULL);

	until(vm, VM_RUNNING);
	for (unsigned i = 0; i < 12; i++) {
		pass(100);
		turn(5);
		eng_vm_traffic(vm);
		cr_assert_eq(vm->state, VM_RUNNING, "%u", i);
	}
	stays_for(vm, 600);
	until(vm, VM_SUSPENDED);
}

Test(life, idle_counts_from_the_resume)
{
	struct reg_vm *vm = run_one(POLICY(60, 60000, true), 28800, NULL);

	until(vm, VM_RUNNING);
	pass(600);
	until(vm, VM_SUSPENDED);
	pass(700);
	resume(vm);
	until(vm, VM_RUNNING);
	stays_for(vm, 600);
	until(vm, VM_SUSPENDED);
}

Test(life, suspended_too_long_ends)
{
	struct reg_vm *vm = run_one(POLICY(600, 60, true), 28800, NULL);

	suspend(vm);
	until(vm, VM_SUSPENDED);
	stays_for(vm, 600);
	until(vm, VM_TERMINATED);
	cr_expect_str_eq(vm->code, "suspended-duration");
	cr_expect_eq(vm->ended_ms - vm->suspended_ms, 600);
}

Test(life, zero_ends_instead_of_suspending)
{
	struct reg_vm *vm = run_one(POLICY(60, 0, true), 28800, NULL);

	until(vm, VM_RUNNING);
	stays_for(vm, 600);
	until(vm, VM_TERMINATED);
	cr_expect_str_eq(vm->code, "idle");
	cr_expect_eq(vm->suspends, 0);
	vm = run_one(POLICY(6000, 0, true), 28800, NULL);
	suspend(vm);
	until(vm, VM_TERMINATED);
	cr_expect_str_eq(vm->code, "requested");
}

Test(life, the_idle_suspend_asks_its_hook)
{
	struct reg_vm *vm;

	enable("suspend");
	fake_hooks.answer = BUSY;
	vm = run_one(POLICY(60, 6000, true), 28800, NULL);
	until(vm, VM_RUNNING);
	stays_for(vm, 600);
	TURN_UNTIL(fake_hooks.asked);
	until(vm, VM_RUNNING);
	fake_hooks.answer = OK;
	pass(599);
	turn(10);
	cr_expect_eq(fake_hooks.asked, 1, "again after 60 s more, no sooner");
	pass(1);
	until(vm, VM_SUSPENDED);
	cr_expect_eq(fake_hooks.asked, 2);
}

Test(life, the_duration_counts_while_suspended)
{
	struct reg_vm *vm = run_one(NULL, 60, NULL);

	suspend(vm);
	until(vm, VM_SUSPENDED);
	stays_for(vm, 600);
	until(vm, VM_TERMINATED);
	cr_expect_str_eq(vm->code, "max-duration");
	cr_expect_eq(vm->ended_ms - vm->started_ms, 600);
}

static struct reg_vm *restarted(const char *id, uint64_t down_ms)
{
	struct reg_vm *vm;

	end();
	now_ms += down_ms;
	start();
	vm = eng_reg_vm(reg, id);
	cr_assert_not_null(vm);
	return vm;
}

Test(life, deadlines_survive_a_restart)
{
	char id[REG_ID_LEN + 1];
	struct reg_vm *vm = run_one(POLICY(6000, 200, true), 28800, NULL);

	strcpy(id, vm->id);
	suspend(vm);
	until(vm, VM_SUSPENDED);
	vm = restarted(id, 300);
	stays_for(vm, 1700);
	until(vm, VM_TERMINATED);
	cr_expect_str_eq(vm->code, "suspended-duration");
	cr_expect_eq(vm->ended_ms - vm->suspended_ms, 2000);
}

Test(life, one_that_passed_meanwhile_is_due_at_start)
{
	char id[REG_ID_LEN + 1];
	struct reg_vm *vm = run_one(NULL, 60, NULL);
	struct err e = ERR_INIT;

	strcpy(id, vm->id);
	suspend(vm);
	until(vm, VM_SUSPENDED);
	vm = restarted(id, 700);
	cr_expect_eq(eng_vm_resume(vms, vm, util_now_ns(), &e), -EBUSY,
		     "not even when it is asked for before its timer fires");
	cr_expect_eq(vm->state, VM_TERMINATED);
	cr_expect_str_eq(vm->code, "max-duration");
}

// --- execution roles ---------------------------------------------------------

static bool cold;

static struct reg_vm *run_as(const char *arn, bool parked)
{
	struct vm_run rq = {.image = image,
			    .version = version,
			    .name = "",
			    .parked = parked,
			    .cold = cold,
			    .max_duration_s = 600,
			    .t0 = util_now_ns()};
	struct err e = ERR_INIT;
	struct reg_vm *vm;

	rq.extra = arn ? json_pack("{s:s}", "executionRoleArn", arn) : NULL;
	cr_assert_eq(eng_vm_run(vms, &rq, &vm, &e), 0, "%s", e.msg);
	json_decref(rq.extra);
	until(vm, parked ? VM_PARKED : VM_RUNNING);
	return vm;
}

// What the agent was told last: is `text` a string of it?
static bool told(const char *text)
{
	return memmem(fake_agent.role, fake_agent.role_len, text, strlen(text));
}

Test(life, credentials_come_before_the_application_goes_on)
{
	struct reg_vm *vm = run_as(ROLE, false);

	cr_expect_str_eq(fake_agent.heard, "CT");
	cr_expect(told("AKIAFIRST0123456") && told("first") &&
		  told("eu-west-1") && told(vm->id));
	suspend(vm);
	until(vm, VM_SUSPENDED);
	resume(vm);
	until(vm, VM_RUNNING);
	cr_expect_str_eq(fake_agent.heard, "CTFCT");
}

Test(life, a_role_without_a_file_has_no_credentials)
{
	run_as("arn:aws:iam::123456789012:role/other", false);
	run_as(NULL, false);
	cr_expect_str_eq(fake_agent.heard, "TT");
}

Test(life, credentials_of_a_claim_are_its_own)
{
	struct err e = ERR_INIT;
	struct reg_pool *p;
	struct reg_vm *vm;
	uint64_t seq;

	cr_assert_eq(eng_pool_set(vms, "img", 1, &p, &seq, &e), 0);
	vm = run_as(NULL, true);
	cr_expect_str_eq(fake_agent.heard, "R");
	cr_assert_eq(run_as(ROLE, false), vm);
	cr_expect_str_eq(fake_agent.heard, "RCT");
}

Test(life, a_suspend_that_fails_gives_them_back)
{
	struct reg_vm *vm = run_as(ROLE, false);

	fake_agent.stuck = true;
	suspend(vm);
	until(vm, VM_RUNNING);
	cr_expect_str_eq(fake_agent.heard, "CTFCU");
}

Test(life, new_credentials_reach_those_that_run)
{
	struct reg_vm *vm = run_as(ROLE, false), *sleeps = run_as(ROLE, false);

	suspend(sleeps);
	until(sleeps, VM_SUSPENDED);
	memset(&fake_agent, 0, sizeof(fake_agent));
	give("AKIASECOND012345", "second");
	pass(2500);
	TURN_UNTIL(fake_agent.role_len);
	pass(2500); // and no other look tells them again
	turn(20);
	cr_expect_str_eq(fake_agent.heard, "C");
	cr_expect(told("second") && told(vm->id));
	resume(sleeps);
	until(sleeps, VM_RUNNING);
	cr_expect(told("second") && told(sleeps->id));
}

Test(life, an_image_of_old_runs_without)
{
	struct reg_vm *vm;
	char path[200], text[400] = "";
	FILE *f;

	fake_agent.old = true;
	vm = run_as(ROLE, false);
	cr_expect_str_eq(fake_agent.heard, "CT");
	suspend(vm);
	until(vm, VM_SUSPENDED);
	resume(vm);
	until(vm, VM_RUNNING);
	cr_expect_str_eq(fake_agent.heard, "CTFT", "it is asked once");
	snprintf(path, sizeof(path), "%s/%s.log", dir, vm->id);
	TURN_UNTIL(access(path, R_OK) == 0);
	f = fopen(path, "r");
	cr_assert_not_null(f, "%s", path);
	cr_expect_gt(fread(text, 1, sizeof(text) - 1, f), 0);
	fclose(f);
	cr_expect_not_null(strstr(text, "build the image anew"), "%s", text);
	cr_expect_null(strstr(text, "first"));
}

// A cold run starts its application as the build did.
Test(life, a_cold_run_has_credentials_and_the_capabilities_of_its_image)
{
	static const struct {
		const char *aws; // NULL: thaw's own image
		uint32_t flags;
	} is[] = {{NULL, AGENT_START_ALL_CAPS},
		  {"{}", 0},
		  {"{\"additionalOsCapabilities\": []}", 0},
		  {"{\"additionalOsCapabilities\": [\"ALL\"]}",
		   AGENT_START_ALL_CAPS}};

	cold = true;
	for (size_t i = 0; i < ARRAY_SIZE(is); i++) {
		json_decref(version->aws);
		version->aws =
		    is[i].aws ? json_loads(is[i].aws, 0, NULL) : NULL;
		memset(&fake_agent, 0, sizeof(fake_agent));
		fake_agent.start_flags = UINT32_MAX;
		run_as(ROLE, false);
		cr_expect_str_eq(fake_agent.heard, "CS");
		cr_expect_eq(fake_agent.start_flags, is[i].flags, "%s",
			     is[i].aws ? is[i].aws : "thaw's own");
	}
}
