// Streams to a microVM's ports and wakes, with fake cells: what is resumed for
// them, what they wait for, and how they end.
#include "fake_cells.h"
#include "vm_internal.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static char dir[64];
static struct eng_loop *loop;
static struct eng_jobs *jobs;
static struct eng_reg *reg;
static struct eng_cells *cells;
static struct pgc_store *store;
static struct eng_vms *vms;
static struct reg_image *image;
static struct reg_version *version;
static unsigned calls, ends;
static int got;
static char got_why[320];

static void ended(void *ctx, struct reg_vm *vm)
{
	(void)ctx;
	cr_expect_eq(vm->state, VM_TERMINATED);
	ends++;
}

static void opened(void *ctx, int fd, const char *why)
{
	(void)ctx;
	calls++;
	got = fd;
	snprintf(got_why, sizeof(got_why), "%s", why ? why : "");
	eng_loop_stop(loop);
}

static void stop(void *ctx)
{
	(void)ctx;
	eng_loop_stop(loop);
}

static void turn(uint64_t ms)
{
	struct eng_timer *t = eng_timer_create(loop, stop, NULL, "test");

	eng_timer_set(t, ms);
	eng_loop_run(loop);
	eng_timer_destroy(t);
}

static void setup(void)
{
	struct eng_cells_config cfg = {.struct_size = sizeof(cfg)};
	struct eng_vms_env env;
	struct err e = ERR_INIT;
	char path[96];
	bool fresh;

	signal(SIGPIPE, SIG_IGN); // as thawd does
	strcpy(dir, "/tmp/thaw-traffic-XXXXXX");
	cr_assert_not_null(mkdtemp(dir));
	log_init("test", LOG_LVL_ERR);
	snprintf(path, sizeof(path), "%s/registry.db", dir);
	cr_assert_eq(eng_loop_create(&loop, &e), 0);
	cr_assert_eq(eng_jobs_create(&jobs, loop, 1, &e), 0);
	cr_assert_eq(eng_reg_open(&reg, loop, path, &fresh, &e), 0);
	snprintf(path, sizeof(path), "%s/store", dir);
	cr_assert_eq(pgc_store_open(&store, path, NULL, &e), 0, "%s", e.msg);
	cr_assert_eq(eng_cells_create(&cells, loop, jobs, store, &cfg, &e), 0);
	env = (struct eng_vms_env){.loop = loop,
				   .jobs = jobs,
				   .cells = cells,
				   .store = store,
				   .reg = reg,
				   .log_dir = dir};
	cr_assert_eq(eng_vms_create(&vms, &env, &e), 0);
	eng_vms_on_end(vms, ended, NULL);
	image = eng_reg_image_add(reg, "img");
	version = eng_reg_version_add(image);
	strcpy(version->version, "1.0");
	version->mem_mib = 64;
	version->vcpus = 1;
	version->state = VER_SUCCESSFUL;
	version->active = true;
	version->spec = json_object();
	version->sizes = json_object();
	util_random(version->snap.b, sizeof(version->snap.b));
	cr_assert_eq(fake_snapshot(store, &version->snap, NULL, NULL, &e), 0,
		     "%s", e.msg);
	calls = ends = 0;
	got = -1;
}

static void teardown(void)
{
	char cmd[96];

	eng_vms_stop(vms);
	while (eng_vms_busy(vms))
		turn(5);
	turn(20);
	eng_cells_destroy(cells);
	eng_jobs_destroy(jobs);
	eng_vms_destroy(vms);
	eng_reg_close(reg);
	pgc_store_close(store);
	eng_loop_destroy(loop);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	cr_assert_eq(system(cmd), 0);
}

TestSuite(traffic, .init = setup, .fini = teardown, .timeout = 300);

static struct reg_vm *run_with(bool agent, const char *idle,
			       const char *payload)
{
	json_t *extra =
	    idle ? json_pack("{s:o}", "idlePolicy", json_loads(idle, 0, NULL))
		 : NULL;
	struct vm_run rq = {.image = image,
			    .version = version,
			    .name = "",
			    .extra = extra,
			    .payload = payload,
			    .payload_len = payload ? strlen(payload) : 0,
			    .max_duration_s = 600,
			    .t0 = util_now_ns()};
	struct err e = ERR_INIT;
	struct reg_vm *vm;

	version->agent = agent;
	cr_assert_eq(eng_vm_run(vms, &rq, &vm, &e), 0, "%s", e.msg);
	json_decref(extra);
	return vm;
}

static struct reg_vm *run_one(bool agent, const char *idle)
{
	return run_with(agent, idle, NULL);
}

// Turns the loop until `cond`, or for two minutes.
#define TURN_UNTIL(cond)                                      \
	for (uint64_t end_ = util_now_ns() + 120000000000ull; \
	     !(cond) && util_now_ns() < end_;)                \
	turn(5)

static void until(struct reg_vm *vm, enum vm_state state)
{
	TURN_UNTIL(vm->state == state);
	cr_assert_eq(vm->state, state, "%s", eng_state_name(vm->state));
}

static void suspend(struct reg_vm *vm)
{
	struct err e = ERR_INIT;

	until(vm, VM_RUNNING);
	cr_assert_eq(eng_vm_suspend(vms, vm, &e), 0, "%s", e.msg);
}

static struct vm_opening *ask(struct reg_vm *vm, unsigned port, uint64_t ms)
{
	struct vm_opening *o = NULL;
	struct err e = ERR_INIT;
	int rc = port ? eng_vm_open(vms, vm, port, ms, opened, NULL, &o, &e)
		      : eng_vm_wake(vms, vm, ms, opened, NULL, &o, &e);

	cr_assert_eq(rc, 0, "%s", e.msg);
	cr_assert_eq(calls, 0, "never from within");
	return o;
}

static void answered(void)
{
	TURN_UNTIL(calls);
	cr_assert_eq(calls, 1);
}

Test(traffic, a_pending_one_is_waited_for_and_the_stream_works)
{
	char buf[4] = "";

	ask(run_one(true, NULL), 8080, 60000);
	answered();
	cr_assert_geq(got, 0, "%s", got_why);
	cr_assert_eq(write(got, "abc", 3), 3);
	TURN_UNTIL(recv(got, buf, 3, MSG_PEEK | MSG_DONTWAIT) == 3);
	cr_expect_str_eq(buf, "abc");
	close(got);
}

Test(traffic, a_suspended_one_is_resumed)
{
	struct reg_vm *vm = run_one(true, NULL);

	suspend(vm);
	until(vm, VM_SUSPENDED);
	ask(vm, 8080, 60000);
	answered();
	cr_expect_geq(got, 0, "%s", got_why);
	close(got);
	cr_expect_eq(vm->resumes, 1);
}

Test(traffic, one_that_is_being_suspended_is_resumed_after_it)
{
	struct reg_vm *vm = run_one(false, NULL);

	suspend(vm);
	ask(vm, 0, 60000);
	answered();
	cr_expect_eq(got, 0, "%s", got_why);
	cr_expect_eq(vm->state, VM_RUNNING);
	cr_expect_eq(vm->resumes, 1);
}

Test(traffic, the_idle_policy_may_forbid_it)
{
	struct reg_vm *vm = run_one(false, "{\"maxIdleDurationSeconds\":60,"
					   "\"suspendedDurationSeconds\":60,"
					   "\"autoResumeEnabled\":false}");

	suspend(vm);
	until(vm, VM_SUSPENDED);
	ask(vm, 0, 60000);
	answered();
	cr_expect_eq(got, -EBUSY);
	cr_expect_eq(vm->state, VM_SUSPENDED);
}

Test(traffic, without_an_agent_there_are_no_ports)
{
	struct reg_vm *vm = run_one(false, NULL);

	suspend(vm);
	until(vm, VM_SUSPENDED);
	ask(vm, 8080, 60000);
	answered();
	cr_expect_eq(got, -ECONNREFUSED);
	cr_expect_eq(vm->resumes, 0);
}

Test(traffic, its_end_ends_what_waits)
{
	struct reg_vm *vm = run_one(false, NULL);

	ask(vm, 0, 60000);
	eng_vm_terminate(vms, vm, "requested", "");
	answered();
	cr_expect_eq(got, -ENOENT);
	until(vm, VM_TERMINATED);
	cr_expect_eq(ends, 1);
	calls = 0;
	ask(vm, 0, 60000);
	answered();
	cr_expect_eq(got, -ENOENT);
}

Test(traffic, cancelled_is_not_called_back)
{
	struct reg_vm *vm = run_one(true, NULL);

	eng_vm_open_cancel(ask(vm, 8080, 60000));
	eng_vm_open_cancel(NULL);
	turn(100);
	cr_expect_eq(calls, 0);
}

// What did not come is said, and to the log.
Test(traffic, too_late_says_what_is_awaited)
{
	struct reg_vm *vm = run_with(false, NULL, "never");

	ask(vm, 0, 50);
	answered();
	cr_expect_eq(got, -ETIMEDOUT);
	cr_expect(strstr(got_why, "its virtual machine has not started"), "%s",
		  got_why);
	eng_vm_terminate(vms, vm, "requested", "");
	until(vm, VM_TERMINATED);
}
