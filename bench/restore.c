// restore.fresh and restore.shell: from the client's write() to the guest's first
// exit, beside the floor program, interleaved.
//
// Two daemons run: one that keeps shells ready, and one that keeps only blanks,
// where every restore makes its VM inside the measured time. A sample counts only when
// the guest has executed: the stamp is taken by the vCPU's thread when the guest
// leaves for the first time (it asks its mailbox).
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "bench.h"

enum { MEM_MIB = 256 };
static const char guest_cmdline[] = "fill 1 16M 1M";

struct floor {
	pid_t pid;
	int to, from;
};

static int floor_start(struct floor *f, const char *bin_dir, struct err *e)
{
	char exe[512], elf[512], mem[16];
	int in[2], out[2];

	snprintf(exe, sizeof(exe), "%s/thaw-bench-floor", bin_dir);
	snprintf(elf, sizeof(elf), "%s/ring3.elf", bin_dir);
	snprintf(mem, sizeof(mem), "%dM", MEM_MIB);
	if (pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0)
		return err_sys(e, "cannot make pipes");
	f->pid = fork();
	if (f->pid < 0)
		return err_sys(e, "cannot fork");
	if (f->pid == 0) {
		dup2(in[0], STDIN_FILENO);
		dup2(out[1], STDOUT_FILENO);
		execl(exe, exe, elf, mem, guest_cmdline, (char *)NULL);
		_exit(127);
	}
	close(in[0]);
	close(out[1]);
	f->to = in[1];
	f->from = out[0];
	return 0;
}

static int floor_once(struct floor *f, struct samples *s, struct err *e)
{
	uint64_t t0 = util_now_ns(), t2;

	if (util_write_all(f->to, "x", 1) ||
	    util_read_all(f->from, &t2, sizeof(t2)))
		return err_set(e, -EIO, "the floor program ended");
	samples_add(s, (double)(t2 - t0) / 1000);
	return 0;
}

static void floor_stop(struct floor *f)
{
	if (f->pid <= 0)
		return;
	close(f->to);
	close(f->from);
	while (waitpid(f->pid, NULL, 0) < 0 && errno == EINTR)
		;
}

// Waits until the daemon has both of its cells ready, which are of the kind
// `ready` (a member of the host's report).
static int settle(const struct daemon *d, const char *ready, struct err *e)
{
	for (int i = 0; i < 500; i++) {
		json_t *host = NULL;
		json_int_t n;
		int rc;

		rc = daemon_call(d, "GET", "/thaw/v1/host", NULL, &host, NULL,
				 e);
		if (rc)
			return rc;
		n = json_integer_value(json_object_get(host, ready));
		json_decref(host);
		if (n >= 2)
			return 0;
		usleep(10000);
	}
	return err_set(e, -ETIMEDOUT, "no cell got ready in 5 s: %s", ready);
}

static int run_once(const struct daemon *d, struct samples *s, struct err *e)
{
	json_t *vm = NULL, *timings;
	char id[80], path[160];
	uint64_t t0, t2;
	int rc;

	rc = daemon_call(d, "POST",
			 "/2025-09-09/microvms?wait=RUNNING&timeout=30",
			 json_pack("{s:s}", "imageIdentifier", "ring3"), &vm,
			 &t0, e);
	if (rc)
		return rc;
	snprintf(id, sizeof(id), "%s",
		 json_string_value(json_object_get(vm, "microvmId")));
	json_decref(vm);
	snprintf(path, sizeof(path), "/thaw/v1/microvms/%s", id);
	rc = daemon_call(d, "GET", path, NULL, &vm, NULL, e);
	if (rc)
		return rc;
	timings = json_object_get(
	    json_object_get(json_object_get(vm, "thaw"), "timings"), "run");
	// thawd counts in microseconds from when it read the request.
	t2 = (uint64_t)json_integer_value(json_object_get(timings, "t0Ns")) +
	     1000 * (uint64_t)json_integer_value(
			json_object_get(timings, "firstExit"));
	json_decref(vm);
	if (t2 <= t0)
		return err_set(e, -EIO,
			       "the guest's first exit is not in its timings");
	samples_add(s, (double)(t2 - t0) / 1000);
	// Terminating is off the measured path.
	snprintf(path, sizeof(path), "/2025-09-09/microvms/%s", id);
	return daemon_call(d, "DELETE", path, NULL, NULL, NULL, e);
}

struct rig {
	struct daemon shell, fresh;
	struct floor floor;
};

static int rig_start(struct rig *g, const struct bench_options *o,
		     struct err *e)
{
	// The users of one's cells are not those of the other's.
	static const char *const shells[] = {
	    "--shells", "2", "--blanks", "0", "--uid-base", "2100000", NULL};
	static const char *const blanks[] = {
	    "--shells", "0", "--blanks", "2", "--uid-base", "2200000", NULL};
	char elf[512];
	int rc;

	snprintf(elf, sizeof(elf), "%s/ring3.elf", o->bin_dir);
	rc = daemon_start(&g->shell, o->bin_dir, shells, e);
	if (!rc)
		rc = daemon_start(&g->fresh, o->bin_dir, blanks, e);
	if (!rc)
		rc = daemon_build_kernel(&g->shell, "ring3", elf, guest_cmdline,
					 MEM_MIB, e);
	if (!rc)
		rc = daemon_build_kernel(&g->fresh, "ring3", elf, guest_cmdline,
					 MEM_MIB, e);
	if (!rc)
		rc = floor_start(&g->floor, o->bin_dir, e);
	return rc;
}

// Waits until nothing is left to do of the last sample: cells made anew, and the
// kernel done with the old one's memory, VM and namespaces.
static int quiet(const struct rig *g, struct err *e)
{
	int rc = settle(&g->shell, "shellsReady", e);

	if (!rc)
		rc = settle(&g->fresh, "blanksReady", e);
	usleep(100000);
	return rc;
}

static int measure(struct rig *g, const struct bench_options *o,
		   struct samples *fresh, struct samples *shell,
		   struct samples *floor, struct err *e)
{
	struct samples warm = {0};
	int rc = 0;

	for (unsigned i = 0; i < o->runs + 5 && !rc; i++) {
		bool count = i >= 5; // the first ones fill the templates

		rc = quiet(g, e);
		if (!rc)
			rc = floor_once(&g->floor, count ? floor : &warm, e);
		if (!rc)
			rc = quiet(g, e);
		if (!rc)
			rc = run_once(&g->shell, count ? shell : &warm, e);
		if (!rc)
			rc = quiet(g, e);
		if (!rc)
			rc = run_once(&g->fresh, count ? fresh : &warm, e);
	}
	samples_free(&warm);
	return rc;
}

int bench_restore(const struct bench_options *o, struct result *results,
		  size_t max, struct err *e)
{
	static struct samples fresh, shell, floor;
	struct rig g = {0};
	int rc;

	if (max < 2)
		return -EINVAL;
	rc = rig_start(&g, o, e);
	if (!rc)
		rc = measure(&g, o, &fresh, &shell, &floor, e);
	floor_stop(&g.floor);
	daemon_stop(&g.fresh);
	daemon_stop(&g.shell);
	if (rc)
		return rc;
	results[0] = (struct result){"restore.fresh", "us", &fresh, &floor};
	results[1] = (struct result){"restore.shell", "us", &shell, &floor};
	return 2;
}
