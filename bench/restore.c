// restore.fresh and restore.shell: from the client's write() to the guest's first
// exit, beside the floor program, interleaved.
//
// Two daemons run: one that keeps shells ready, and one that keeps only blanks,
// where every restore makes its VM inside the measured time. A sample counts only when
// the guest has executed: the stamp is taken by the vCPU's thread when the guest
// leaves for the first time (it asks its mailbox).
#include <errno.h>
#include <stdio.h>

#include "bench.h"

enum { MEM_MIB = 256 };
static const char guest_cmdline[] = "fill 1 16M 1M";

struct rig {
	struct daemon shell, fresh;
	struct proc floor;
};

static int floor_once(struct proc *f, struct samples *s, struct err *e)
{
	char answer[64];
	uint64_t t0;
	int rc = proc_ask(f, "restore", answer, sizeof(answer), &t0, e);

	if (!rc)
		samples_add(s,
			    (double)(strtoull(answer, NULL, 10) - t0) / 1000);
	return rc;
}

static int run_once(const struct daemon *d, struct samples *s, struct cost *c,
		    struct err *e)
{
	struct microvm vm;
	int rc;

	cost_begin(c, d);
	rc = microvm_run(d, "ring3", NULL, &vm, e);
	if (rc)
		return rc;
	samples_add(s, (double)(vm.t2 - vm.t0) / 1000);
	rc = cost_end(c, d, &vm, e);
	if (rc)
		return rc;
	return microvm_end(d, &vm, e); // off the measured path
}

static int rig_start(struct rig *g, const struct bench_options *o,
		     struct err *e)
{
	int rc = daemon_start(&g->shell, o->bin_dir, 0, 2, 0, e);

	if (!rc)
		rc = daemon_start(&g->fresh, o->bin_dir, 1, 0, 2, e);
	if (!rc)
		rc = daemon_build_ring3(&g->shell, "ring3", guest_cmdline,
					MEM_MIB, e);
	if (!rc)
		rc = daemon_build_ring3(&g->fresh, "ring3", guest_cmdline,
					MEM_MIB, e);
	if (!rc)
		rc = floor_start(&g->floor, o->bin_dir, MEM_MIB, guest_cmdline,
				 e);
	return rc;
}

// Waits until nothing is left to do of the last sample: cells made anew, and the
// kernel done with the old one's memory, VM and namespaces.
static int quiet(const struct rig *g, struct err *e)
{
	int rc = daemon_settle(&g->shell, e);

	if (!rc)
		rc = daemon_settle(&g->fresh, e);
	usleep(100000);
	return rc;
}

static int measure(struct rig *g, const struct bench_options *o,
		   struct result *fresh, struct result *shell, struct err *e)
{
	struct cost costs[2] = {{0}};
	struct samples warm = {0};
	int rc = 0;

	for (unsigned i = 0; i < o->runs + 5 && !rc; i++) {
		bool count = i >= 5; // the first ones fill the templates

		rc = quiet(g, e);
		if (!rc)
			rc = floor_once(&g->floor,
					count ? &shell->floor : &warm, e);
		if (!rc)
			rc = quiet(g, e);
		if (!rc)
			rc =
			    run_once(&g->shell, count ? &shell->samples : &warm,
				     &costs[0], e);
		if (!rc)
			rc = quiet(g, e);
		if (!rc)
			rc =
			    run_once(&g->fresh, count ? &fresh->samples : &warm,
				     &costs[1], e);
	}
	samples_free(&warm);
	cost_report(&costs[0], shell);
	cost_report(&costs[1], fresh);
	for (size_t i = 0; i < shell->floor.n; i++)
		samples_add(&fresh->floor, shell->floor.v[i]);
	return rc;
}

int bench_restore(const struct bench_options *o, struct report *r,
		  struct err *e)
{
	struct result *fresh = report_add(r, "us", "restore.fresh");
	struct result *shell = report_add(r, "us", "restore.shell");
	struct rig g = {0};
	int rc;

	rc = rig_start(&g, o, e);
	if (!rc)
		rc = measure(&g, o, fresh, shell, e);
	proc_stop(&g.floor);
	daemon_stop(&g.fresh);
	daemon_stop(&g.shell);
	return rc;
}
