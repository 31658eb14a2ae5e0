// cold.workingset: from the request until the guest itself has read and summed
// every page of a working set that is only on the disk: the page cache is dropped,
// and thawd was started anew, so that no template is in memory. The image's
// recorded working set is the same one, in the order in which the guest needs it.
//
// The floor is the slowest of what has to be done, as the floor programs do each
// alone at full speed: reading as many compressed bytes, decoding them over all
// processors, installing them, and the guest's own touch of as many pages of a
// template in memory.
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "bench.h"
#include "cold.h"

const struct cold_order cold_orders[COLD_ORDERS] = {
    [COLD_SEQ] = {"seq", 1, 0, 256},
    [COLD_RAND] = {"rand", 1, 0, 256},
    [COLD_SCATTERED] = {"scattered", 8, 32, 256},
    [COLD_SPARSE] = {"sparse", 20, 80, 512},
};

int cold_parse(const char *answer, unsigned seed, unsigned mib,
	       const struct cold_order *order, double *ns, struct err *e)
{
	uint64_t span = (uint64_t)(order->spread * mib) << 20;

	return order->block ? touch_parse_scattered(answer, seed, span,
						    order->block, ns, e)
			    : touch_parse(answer, seed, span, ns, e);
}

static int image_name(char *name, size_t cap, unsigned mib,
		      const struct cold_order *order)
{
	return snprintf(name, cap, "cold-%u-%s", mib, order->name);
}

// No two images have a page in common: none lies where another one put it.
static unsigned seed_of(unsigned mib, const struct cold_order *order)
{
	return 10 * mib + (unsigned)(order - cold_orders);
}

int cold_build(const struct daemon *d, unsigned mib,
	       const struct cold_order *order, struct err *e)
{
	unsigned span = order->spread * mib;
	char name[32], cmdline[128];

	image_name(name, sizeof(name), mib, order);
	// What follows `freeze` is what each copy begins with, the one included
	// whose working set is recorded.
	snprintf(cmdline, sizeof(cmdline),
		 "fill %u 16M %uM;freeze;touch read %s 16M %uM",
		 seed_of(mib, order), span, order->name, span);
	return daemon_build_ring3(d, name, cmdline, order->guest_mib, e);
}

int cold_forget(struct daemon *d, enum cold_state state, struct err *e)
{
	int rc = state == COLD_TEMPLATE ? 0 : daemon_restart(d, e);

	if (!rc)
		rc = daemon_settle(d, e);
	if (!rc && state == COLD_DROPPED)
		rc = host_drop_caches(e);
	usleep(50000);
	return rc;
}

static double usage(const json_t *vm, const char *member)
{
	const json_t *u = json_object_get(json_object_get(vm, "thaw"), "usage");

	return (double)json_integer_value(json_object_get(u, member));
}

static int details(const struct daemon *d, const struct microvm *vm,
		   struct cold_sample *out, struct err *e)
{
	json_t *j = NULL;
	int rc = microvm_inspect(d, vm, &j, e);

	if (rc)
		return rc;
	out->faults = usage(j, "faults");
	out->fault_pages = usage(j, "faultPages");
	json_decref(j);
	return 0;
}

int cold_once(const struct daemon *d, unsigned mib,
	      const struct cold_order *order, struct cold_sample *out,
	      struct err *e)
{
	pid_t thawd = daemon_main_pid(d);
	uint64_t cpu = host_cpu_ns(thawd), disk = host_disk_read(), when = 0;
	char name[32], line[128];
	struct microvm vm;
	double ns = 0;
	int rc;

	image_name(name, sizeof(name), mib, order);
	// An empty command: a guest that was captured before it waited to be, which
	// happens on a busy machine, waits for its mailbox now.
	rc = microvm_start(d, name, "\n", &vm, e);
	if (!rc)
		rc = microvm_line(d, &vm, "SUM", line, sizeof(line), &when, e);
	if (!rc) // its first exit is not before all has been touched
		rc = microvm_executed(d, &vm, e);
	if (!rc)
		rc = cold_parse(line, seed_of(mib, order), mib, order, &ns, e);
	if (rc)
		return rc;
	out->t1_ms = (double)(vm.t1 - vm.t0) / 1e6;
	out->t5_ms = (double)(when - vm.t0) / 1e6;
	out->cpu_ms =
	    (double)(host_cpu_ns(thawd) - cpu + host_cpu_ns(vm.pid)) / 1e6;
	out->read_bytes = (double)(host_disk_read() - disk);
	rc = details(d, &vm, out, e);
	return rc ? rc : microvm_end(d, &vm, e);
}

// --- the floor -----------------------------------------------------------------------

struct floors {
	struct samples read, decode, install, touch;
};

struct rig {
	struct daemon d;
	struct proc host, guest;
	char pack[128]; // what the read floor reads
	unsigned packed_mib;
};

static int ask_ms(struct proc *p, const char *line, struct samples *s,
		  struct err *e)
{
	char answer[64];
	int rc = proc_ask(p, line, answer, sizeof(answer), NULL, e);

	if (!rc)
		samples_add(s, (double)strtoull(answer, NULL, 10) / 1e6);
	return rc;
}

static int touch_ms(struct proc *p, unsigned mib,
		    const struct cold_order *order, struct samples *s,
		    struct err *e)
{
	char line[96], answer[128];
	double ns = 0;
	int rc;

	snprintf(line, sizeof(line), "touch private touch read %s 16M %uM",
		 order->name, order->spread * mib);
	rc = proc_ask(p, line, answer, sizeof(answer), NULL, e);
	if (!rc)
		rc = cold_parse(answer, 1, mib, order, &ns, e);
	if (!rc)
		samples_add(s, ns * mib * 256 / 1e6);
	return rc;
}

static int floors_once(struct rig *g, unsigned mib,
		       const struct cold_order *order, struct floors *f,
		       struct err *e)
{
	char line[200];
	int rc;

	snprintf(line, sizeof(line), "read %s", g->pack);
	rc = ask_ms(&g->host, line, &f->read, e);
	if (!rc)
		rc = ask_ms(&g->host, "decode", &f->decode, e);
	if (!rc)
		rc = ask_ms(&g->host, "install", &f->install, e);
	if (!rc)
		rc = touch_ms(&g->guest, mib, order, &f->touch, e);
	return rc;
}

// The packed working set of `mib` that floors are measured with.
static int floors_pack(struct rig *g, unsigned mib, struct err *e)
{
	char line[200], answer[64];

	if (g->packed_mib == mib)
		return 0;
	g->packed_mib = mib;
	snprintf(g->pack, sizeof(g->pack), "%s/floor-%u", g->d.dir, mib);
	snprintf(line, sizeof(line), "pack %llu %s",
		 (unsigned long long)mib << 20, g->pack);
	return proc_ask(&g->host, line, answer, sizeof(answer), NULL, e);
}

static void floors_report(struct result *r, struct floors *f)
{
	static const char *const names[] = {"floor_read_ms", "floor_decode_ms",
					    "floor_install_ms",
					    "floor_touch_ms"};
	struct samples *s[] = {&f->read, &f->decode, &f->install, &f->touch};

	for (size_t i = 0; i < ARRAY_SIZE(s); i++) {
		double p50 = samples_percentile(s[i], 50);

		result_number(r, names[i], p50);
		r->floor_p50 = MAX(r->floor_p50, p50);
		samples_free(s[i]);
	}
}

// --- the measurement -------------------------------------------------------------------

void cold_details(struct result *r, const struct cold_sample *s, size_t n)
{
	struct samples v[5] = {{0}};
	static const char *const names[] = {"t1_ms", "cpu_ms", "faults",
					    "fault_pages", "bytes_read"};

	for (size_t i = 0; i < n; i++) {
		samples_add(&v[0], s[i].t1_ms);
		samples_add(&v[1], s[i].cpu_ms);
		samples_add(&v[2], s[i].faults);
		samples_add(&v[3], s[i].fault_pages);
		samples_add(&v[4], s[i].read_bytes);
	}
	for (size_t i = 0; i < ARRAY_SIZE(v); i++) {
		result_number(r, names[i], samples_percentile(&v[i], 50));
		samples_free(&v[i]);
	}
}

static int measure(struct rig *g, struct result *r, unsigned mib,
		   const struct cold_order *order, enum cold_state state,
		   unsigned runs, struct err *e)
{
	cleanup_free struct cold_sample *all = calloc(runs, sizeof(*all));
	struct floors f = {0};
	unsigned n = 0;
	int rc = all ? floors_pack(g, mib, e)
		     : err_set(e, -ENOMEM, "no memory for samples");

	for (; n < runs && !rc; n++) {
		rc = cold_forget(&g->d, state, e);
		if (!rc)
			rc = cold_once(&g->d, mib, order, &all[n], e);
		if (!rc)
			rc = floors_once(g, mib, order, &f, e);
		if (!rc)
			samples_add(&r->samples, all[n].t5_ms);
	}
	if (!rc)
		cold_details(r, all, n);
	result_number(r, "t5_ms", samples_percentile(&r->samples, 50));
	result_number(r, "working_set_mib", mib);
	result_text(r, "order", order->name);
	floors_report(r, &f);
	return rc;
}

static const char *const state_names[] = {"dropped", "pagecache", "template"};

static int one_size(struct rig *g, const struct bench_options *o,
		    struct report *rep, unsigned mib, struct err *e)
{
	unsigned runs = MAX(o->runs / (mib == COLD_MIB ? 10 : 40), 3u);
	size_t norders = // scattered: as far as it fits
	    mib == COLD_MIB ? COLD_ORDERS : COLD_SCATTERED;
	int rc = 0;

	for (size_t i = 0; i < norders && !rc; i++)
		rc = cold_build(&g->d, mib, &cold_orders[i], e);
	for (size_t i = 0; i < norders && !rc; i++) {
		struct result *r =
		    mib == COLD_MIB && !i
			? report_add(rep, "ms", "cold.workingset")
			: report_add(rep, "ms", "cold.workingset.%um.%s", mib,
				     cold_orders[i].name);

		rc = measure(g, r, mib, &cold_orders[i], COLD_DROPPED, runs, e);
	}
	return rc;
}

// The same with less forgotten.
static int other_states(struct rig *g, const struct bench_options *o,
			struct report *rep, struct err *e)
{
	unsigned runs = MAX(o->runs / 20, 3u);
	int rc = 0;

	for (int i = 0; i < 4 && !rc; i++) {
		enum cold_state state = i / 2 ? COLD_TEMPLATE : COLD_PAGECACHE;
		struct result *r =
		    report_add(rep, "ms", "cold.workingset.%s.%s",
			       state_names[state], cold_orders[i % 2].name);

		rc = measure(g, r, COLD_MIB, &cold_orders[i % 2], state, runs,
			     e);
	}
	return rc;
}

int bench_cold(const struct bench_options *o, struct report *rep, struct err *e)
{
	static const unsigned more[] = {4, 96};
	char *argv[] = {(char[]){"thaw-bench-host"}, NULL};
	struct rig g = {0};
	int rc;

	rc = daemon_start(&g.d, o->bin_dir, 0, 2, 0, e);
	if (!rc)
		rc = proc_start(&g.host, o->bin_dir, argv, e);
	if (!rc)
		rc = floor_start(&g.guest, o->bin_dir,
				 cold_orders[COLD_SPARSE].guest_mib,
				 "fill 1 16M 480M", e);
	if (!rc)
		rc = one_size(&g, o, rep, COLD_MIB, e);
	if (!rc)
		rc = other_states(&g, o, rep, e);
	for (size_t i = 0; i < ARRAY_SIZE(more) && !rc && !o->quick; i++)
		rc = one_size(&g, o, rep, more[i], e);
	proc_stop(&g.guest);
	proc_stop(&g.host);
	daemon_stop(&g.d);
	return rc;
}
