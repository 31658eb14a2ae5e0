#include <criterion/criterion.h>
#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "cell_rig.h"
#include "keeper.h"

bool rig_usable(void)
{
	return geteuid() == 0 && access("/dev/kvm", R_OK | W_OK) == 0 &&
	       access("/dev/userfaultfd", R_OK | W_OK) == 0;
}

void rig_need(void)
{
	if (!rig_usable())
		cr_skip_test("needs root, /dev/kvm and /dev/userfaultfd");
}

// What a guest teaches is written down two seconds later (learn.c), and the next
// thaw loads it ahead. Tests that count faults would depend on whether they take so
// long; so nothing is written down in a rig.
enum { LEARN_SAVE_MS = 2000 };

void __real_eng_timer_set(struct eng_timer *t, uint64_t after_ms);
void __wrap_eng_timer_set(struct eng_timer *t, uint64_t after_ms);
void __wrap_eng_timer_set(struct eng_timer *t, uint64_t after_ms)
{
	if (after_ms != LEARN_SAVE_MS)
		__real_eng_timer_set(t, after_ms);
}

static void ticked(void *ctx)
{
	struct rig *r = ctx;

	r->ticks++;
	eng_timer_set(r->tick, 20);
}

static void fork_keeper(struct rig *r)
{
	int sv[2];

	cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv),
		     0);
	r->keeper = fork();
	cr_assert_geq(r->keeper, 0);
	if (r->keeper == 0) {
		close(sv[1]);
		eng_keeper_run(sv[0], 0);
		_exit(0);
	}
	close(sv[0]);
	fcntl(sv[1], F_SETFL, O_NONBLOCK);
	r->keeper_sock = sv[1];
}

static void find_bin(struct rig *r)
{
	ssize_t n = readlink("/proc/self/exe", r->bin, sizeof(r->bin) - 1);

	cr_assert_gt(n, 0);
	r->bin[n] = '\0';
	*strrchr(r->bin, '/') = '\0';
}

void rig_open(struct rig *r, const struct rig_opts *o)
{
	static const struct rig_opts none;
	struct eng_cells_config cfg = {.struct_size = sizeof(cfg)};
	struct err e = ERR_INIT;
	char cell[320], store[128];

	rig_need();
	if (!o)
		o = &none;
	memset(r, 0, sizeof(*r));
	signal(SIGPIPE, SIG_IGN); // as thawd does
	log_init("rig", LOG_LVL_INFO);
	find_bin(r);
	strcpy(r->dir, "/tmp/thaw-rig-XXXXXX");
	cr_assert(mkdtemp(r->dir));
	if (o->keeper_sock)
		r->keeper_sock = o->keeper_sock;
	else
		fork_keeper(r);
	r->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	r->uffd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	snprintf(store, sizeof(store), "%s/store", r->dir);
	snprintf(cell, sizeof(cell), "%s/%s", r->bin,
		 o->cell ? o->cell : "thaw-cell");
	cr_assert_eq(eng_loop_create(&r->loop, &e), 0, "%s", e.msg);
	cr_assert_eq(eng_jobs_create(&r->jobs, r->loop, 2, &e), 0, "%s", e.msg);
	cr_assert_eq(
	    pgc_store_open(&r->store, o->store ? o->store : store, NULL, &e), 0,
	    "%s", e.msg);
	cfg.cell_path = cell;
	cfg.kvm_fd = r->kvm;
	cfg.uffd_fd = r->uffd;
	cfg.keeper_fd = r->keeper_sock;
	// Rigs of tests that run side by side share no user.
	cfg.uid_base = 1000000 + (uint32_t)getpid() % 1000000 * 64;
	cfg.shells = o->shells;
	cfg.blanks = o->blanks;
	cfg.max_cells = o->max_cells ? o->max_cells : 32;
	cr_assert_eq(
	    eng_cells_create(&r->cells, r->loop, r->jobs, r->store, &cfg, &e),
	    0, "%s", e.msg);
	r->tick = eng_timer_create(r->loop, ticked, r, "tick");
	eng_timer_set(r->tick, 20);
}

void rig_close(struct rig *r)
{
	char cmd[128];
	int status = -1;

	eng_cells_destroy(r->cells);
	eng_timer_destroy(r->tick);
	eng_jobs_destroy(r->jobs);
	pgc_store_close(r->store);
	eng_loop_destroy(r->loop);
	close(r->kvm);
	close(r->uffd);
	close(r->keeper_sock);
	if (r->keeper) {
		cr_assert_eq(waitpid(r->keeper, &status, 0), r->keeper);
		cr_assert_eq(status, 0);
	}
	snprintf(cmd, sizeof(cmd), "rm -rf %s", r->dir);
	cr_assert_eq(system(cmd), 0);
}

// --- turning the loop -------------------------------------------------------

bool rig_until(struct rig *r, bool (*cond)(void *arg), void *arg, unsigned ms)
{
	uint64_t end = util_now_ns() + (uint64_t)ms * 1000000;

	while (!cond(arg)) {
		if (util_now_ns() > end)
			return false;
		event_base_loop(eng_loop_base(r->loop), EVLOOP_ONCE);
	}
	return true;
}

static bool never(void *arg)
{
	(void)arg;
	return false;
}

void rig_turn(struct rig *r, unsigned ms)
{
	rig_until(r, never, NULL, ms);
}

bool rig_is_started(void *vm)
{
	return ((struct rig_vm *)vm)->started || ((struct rig_vm *)vm)->gone;
}

bool rig_is_ready(void *vm)
{
	return ((struct rig_vm *)vm)->ready || ((struct rig_vm *)vm)->gone;
}

bool rig_is_gone(void *vm)
{
	return ((struct rig_vm *)vm)->gone;
}

static bool is_captured(void *vm)
{
	return ((struct rig_vm *)vm)->captured;
}

// --- events -----------------------------------------------------------------

static void on_started(void *ctx, const struct eng_cell_times *t)
{
	struct rig_vm *vm = ctx;

	cr_assert(!vm->started && !vm->gone);
	vm->started = true;
	vm->times = *t;
}

static void on_ready(void *ctx)
{
	struct rig_vm *vm = ctx;

	cr_assert(!vm->gone);
	vm->ready = true;
	vm->nready++;
}

static void on_console(void *ctx, const void *bytes, size_t n)
{
	struct rig_vm *vm = ctx;

	cr_assert(!vm->gone);
	n = MIN(n, sizeof(vm->text) - 1 - vm->len);
	memcpy(vm->text + vm->len, bytes, n);
	vm->len += n;
	vm->text[vm->len] = '\0';
}

static void on_gone(void *ctx, enum eng_end why, const char *detail)
{
	struct rig_vm *vm = ctx;

	cr_assert(!vm->gone);
	vm->gone = true;
	vm->why = why;
	vm->cell = NULL;
	snprintf(vm->detail, sizeof(vm->detail), "%s", detail);
}

static const struct eng_cell_events events = {
    .started = on_started,
    .ready = on_ready,
    .console = on_console,
    .gone = on_gone,
};

static void on_captured(void *ctx, int rc, const char *why,
			const struct eng_capture_stats *st)
{
	struct rig_vm *vm = ctx;

	cr_assert(!vm->captured && !vm->gone);
	vm->captured = true;
	vm->rc = rc;
	vm->st = *st;
	snprintf(vm->capture_why, sizeof(vm->capture_why), "%s", why);
}

// --- verbs ------------------------------------------------------------------

static unsigned count(const char *text, const char *word)
{
	unsigned n = 0;

	for (; (text = strstr(text, word)); text += strlen(word))
		n++;
	return n;
}

static bool has_filled(void *arg)
{
	const struct rig_vm *vm = arg;

	return vm->gone || (count(vm->text, "FILLED ") >= vm->fills &&
			    (!vm->len || vm->text[vm->len - 1] == '\n'));
}

// READY and what the guest printed before it come on ways of their own, in either
// order, and a line in pieces: a later command's answer must not be taken for one of
// the boot's, nor the end of that for an answer.
void rig_boot(struct rig *r, struct rig_vm *vm, uint32_t mem_mib,
	      unsigned vcpus, const char *commands)
{
	char elf[320];
	struct eng_boot_req req = {
	    .mem_mib = mem_mib,
	    .vcpus = vcpus,
	    .kernel_path = elf,
	    .cmdline = commands,
	    .t0 = util_now_ns(),
	};

	snprintf(elf, sizeof(elf), "%s/ring3.elf", r->bin);
	rig_boot_req(r, vm, &req);
	cr_assert(rig_until(r, rig_is_ready, vm, RIG_MS), "not ready: %s",
		  vm->text);
	vm->fills = count(commands, "fill ");
	cr_assert(rig_until(r, has_filled, vm, RIG_MS), "not filled: %s",
		  vm->text);
	cr_assert(!vm->gone, "boot ended: %s", vm->detail);
}

void rig_boot_req(struct rig *r, struct rig_vm *vm,
		  const struct eng_boot_req *req)
{
	struct err e = ERR_INIT;

	memset(vm, 0, sizeof(*vm));
	vm->r = r;
	cr_assert_eq(eng_cell_boot(r->cells, req, &events, vm, &vm->cell, &e),
		     0, "%s", e.msg);
}

void rig_launch(struct rig *r, struct rig_vm *vm,
		const struct eng_thaw_req *req)
{
	struct err e = ERR_INIT;

	memset(vm, 0, sizeof(*vm));
	vm->r = r;
	cr_assert_eq(eng_cell_thaw(r->cells, req, &events, vm, &vm->cell, &e),
		     0, "%s", e.msg);
}

void rig_thaw_req(struct rig *r, struct rig_vm *vm,
		  const struct eng_thaw_req *req)
{
	rig_launch(r, vm, req);
	cr_assert(rig_until(r, rig_is_started, vm, RIG_MS), "no start");
}

void rig_thaw(struct rig *r, struct rig_vm *vm, const struct pgc_id *base,
	      const struct pgc_id *own)
{
	struct eng_thaw_req req = {
	    .base = *base,
	    .has_own = own != NULL,
	    .t0 = util_now_ns(),
	};

	if (own)
		req.own = *own;
	rig_thaw_req(r, vm, &req);
}

void rig_capture_begin(struct rig_vm *vm, struct pgc_id *id, bool image,
		       bool keep)
{
	struct eng_capture_req req = {
	    .image = image, .keep_running = keep, .config = "{}"};
	struct err e = ERR_INIT;

	util_random(&req.id, sizeof(req.id));
	*id = req.id;
	vm->captured = false;
	cr_assert_eq(eng_cell_capture(vm->cell, &req, on_captured, vm, &e), 0,
		     "%s", e.msg);
}

int rig_capture(struct rig_vm *vm, struct pgc_id *id, bool image, bool keep)
{
	rig_capture_begin(vm, id, image, keep);
	if (vm->kill_after_us) {
		uint64_t end = util_now_ns() + vm->kill_after_us * 1000ull;

		while (!vm->captured && util_now_ns() < end)
			event_base_loop(eng_loop_base(vm->r->loop),
					EVLOOP_NONBLOCK);
		if (vm->cell)
			kill(eng_cell_pid(vm->cell), SIGKILL);
	}
	cr_assert(rig_until(vm->r, is_captured, vm, RIG_MS),
		  "no end of the capture");
	if (vm->rc == 0 && !keep)
		cr_assert(rig_until(vm->r, rig_is_gone, vm, RIG_MS));
	return vm->rc;
}

void rig_image(struct rig *r, struct pgc_id *id, uint32_t mem_mib,
	       unsigned vcpus, const char *commands)
{
	static struct rig_vm vm;

	rig_boot(r, &vm, mem_mib, vcpus, commands);
	cr_assert_eq(rig_capture(&vm, id, true, false), 0, "%s",
		     vm.capture_why);
	cr_assert_eq(vm.why, ENG_END_KILLED);
}

static bool has_line(void *arg)
{
	struct rig_vm *vm = arg;

	return vm->gone || strchr(vm->text + vm->seen, '\n');
}

const char *rig_cmd(struct rig_vm *vm, const char *fmt, ...)
{
	static char line[300];
	char cmd[256];
	struct err e = ERR_INIT;
	const char *start, *nl;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(cmd, sizeof(cmd) - 1, fmt, ap);
	va_end(ap);
	strcpy(cmd + n, "\n");
	vm->seen = vm->len;
	if (!vm->cell)
		return "(gone)";
	cr_assert_eq(eng_cell_mailbox(vm->cell, cmd, (size_t)n + 1, &e), 0,
		     "%s", e.msg);
	cr_assert(rig_until(vm->r, has_line, vm, RIG_MS), "no answer to: %s",
		  cmd);
	start = vm->text + vm->seen;
	nl = strchr(start, '\n');
	if (!nl)
		return "(gone)";
	snprintf(line, sizeof(line), "%.*s", (int)MIN(nl - start, 299), start);
	return line;
}

void rig_kill(struct rig_vm *vm)
{
	if (vm->cell)
		eng_cell_kill(vm->cell);
	cr_assert(rig_until(vm->r, rig_is_gone, vm, RIG_MS));
}
