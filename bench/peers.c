// peer.NAME.warm and peer.NAME.cold: other ways to restore the same guest, beside
// thaw's own, in turns. Their ratio is the peer's p50 over thaw's.
//
// warm: from the request (a process that the peer needs is started after it) to
// the first sign of the guest's life, everything in memory; thaw's is
// restore.shell's. cold: until the guest has read and summed every page of a
// 24 MiB working set, nothing of it in memory; thaw's is cold.workingset's.
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "bench.h"
#include "cold.h"
#include "peer.h"

// Figure 0 is warm; figure i is cold, in cold_orders[i - 1].
enum { MAX_PEERS = 16, NUM_FIGURES = 1 + COLD_ORDERS };

static const char *const figures[NUM_FIGURES] = {
    "warm", "cold", "cold.rand", "cold.scattered", "cold.sparse"};

// A peer's snapshots: of a guest with 24 MiB in memory, and with eight and twenty
// times that, over which 24 MiB are spread.
enum { NUM_SNAPSHOTS = 3 };
static const struct snapshot {
	const char *dir, *cmdline;
	unsigned mem_mib;
} snapshots[NUM_SNAPSHOTS] = {
    {"", "fill 1 16M 24M", 256},
    {"-scattered", "fill 1 16M 192M", 256},
    {"-sparse", "fill 1 16M 480M", 512},
};
static const unsigned snapshot_of[NUM_FIGURES] = {0, 0, 0, 1, 2};

struct contender {
	const struct peer *peer;
	void *state[NUM_SNAPSHOTS];
	char dir[NUM_SNAPSHOTS][160], elf[600];
	struct result *r[NUM_FIGURES];
	double cpu_ms[NUM_FIGURES];
	struct samples t1[NUM_FIGURES], t2[NUM_FIGURES]; // ms
};

struct rig {
	struct daemon d;
	struct contender c[MAX_PEERS];
	size_t n;
	struct samples thaw[NUM_FIGURES];
};

static bool chosen(const struct bench_options *o, const char *name)
{
	const char *p = o->peers;
	size_t len = strlen(name);

	for (; p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL) {
		if (strncmp(p, name, len) == 0 &&
		    (p[len] == '\0' || p[len] == ','))
			return true;
	}
	return !o->peers;
}

static void contender_finish(struct contender *c)
{
	for (size_t i = 0; i < NUM_SNAPSHOTS; i++) {
		if (c->state[i])
			c->peer->finish(c->state[i]);
		c->state[i] = NULL;
	}
}

static int prepare_one(struct contender *c, const struct bench_options *o,
		       const char *base, unsigned i, struct err *e)
{
	const struct snapshot *s = &snapshots[i];
	const struct peer *p = c->peer;
	char *dir = c->dir[i];
	struct peer_spec spec = {
	    .bin_dir = o->bin_dir,
	    .binary = p->option ? o->peer_binary(p->option) : NULL,
	    .cmdline = s->cmdline,
	    .mem_mib = s->mem_mib,
	    .nonce_at = (uint64_t)(s->mem_mib - 8) << 20, // not filled
	};

	snprintf(c->elf, sizeof(c->elf), "%s/ring3.elf", o->bin_dir);
	snprintf(dir, sizeof(c->dir[i]), "%s/peer-%s%s", base, p->name, s->dir);
	if (mkdir(dir, 0700))
		return err_sys(e, "cannot make %s", dir);
	util_random(&spec.nonce, 4); // its answer is decimal: readable
	spec.nonce &= 0x7fffffff;
	spec.elf = c->elf; // kept, as dir is
	spec.dir = dir;
	return p->prepare(&c->state[i], &spec, e);
}

static int prepare(struct rig *g, const struct bench_options *o,
		   struct report *rep, const struct peer *p, struct err *e)
{
	struct contender *c = &g->c[g->n];
	char name[64];
	int rc = 0;

	c->peer = p;
	for (unsigned i = 0; i < NUM_SNAPSHOTS && !rc; i++)
		rc = prepare_one(c, o, g->d.dir, i, e);
	if (rc < 0)
		return rc;
	if (rc > 0) {
		fprintf(stderr, "%s is left out: %s\n", p->name, e->msg);
		snprintf(name, sizeof(name), "peer.%s", p->name);
		report_leave_out(rep, name, e->msg);
		contender_finish(c);
		return 0;
	}
	g->n++;
	return 0;
}

static int add_sample(struct contender *c, unsigned figure,
		      const struct peer_sample *s, struct err *e)
{
	double ns;

	c->cpu_ms[figure] += s->cpu_ms;
	if (s->t.t1 > s->t.t0)
		samples_add(&c->t1[figure], (double)(s->t.t1 - s->t.t0) / 1e6);
	if (s->t.t2 > s->t.t0)
		samples_add(&c->t2[figure], (double)(s->t.t2 - s->t.t0) / 1e6);
	if (!figure) {
		if (s->t.t2 <= s->t.t0)
			return err_set(e, -EIO, "%s told no first sign",
				       c->peer->name);
		samples_add(&c->r[0]->samples,
			    (double)(s->t.t2 - s->t.t0) / 1000);
		return 0;
	}
	if (s->t.t5 <= s->t.t0)
		return err_set(e, -EIO, "%s told no end", c->peer->name);
	samples_add(&c->r[figure]->samples, (double)(s->t.t5 - s->t.t0) / 1e6);
	return cold_parse(s->answer, 1, COLD_MIB, &cold_orders[figure - 1], &ns,
			  e);
}

static const char *const commands[NUM_FIGURES] = {
    NULL, "touch read seq 16M 24M", "touch read rand 16M 24M",
    "touch read scattered 16M 192M", "touch read sparse 16M 480M"};

static int peer_once(struct contender *c, unsigned figure, struct err *e)
{
	void *state = c->state[snapshot_of[figure]];
	struct peer_sample s = {0};
	int rc = 0;

	if (figure && c->peer->forget)
		rc = c->peer->forget(state, e);
	if (!rc && figure)
		rc = host_drop_caches(e);
	usleep(50000);
	if (!rc)
		rc = c->peer->restore(state, commands[figure], &s, e);
	return rc ? rc : add_sample(c, figure, &s, e);
}

static int thaw_once(struct rig *g, unsigned figure, struct err *e)
{
	struct cold_sample s;
	struct microvm vm;
	int rc;

	rc = cold_forget(&g->d, figure ? COLD_DROPPED : COLD_TEMPLATE, e);
	if (rc)
		return rc;
	if (figure) {
		rc =
		    cold_once(&g->d, COLD_MIB, &cold_orders[figure - 1], &s, e);
		if (!rc)
			samples_add(&g->thaw[figure], s.t5_ms);
		return rc;
	}
	rc = microvm_run(&g->d, "warm", NULL, &vm, e);
	if (rc)
		return rc;
	samples_add(&g->thaw[0], (double)(vm.t2 - vm.t0) / 1000);
	return microvm_end(&g->d, &vm, e);
}

static int figure_runs(struct rig *g, unsigned figure, unsigned runs,
		       struct err *e)
{
	int rc = 0;

	if (!figure) { // fills the template
		rc = thaw_once(g, 0, e);
		samples_free(&g->thaw[0]);
	}
	for (unsigned i = 0; i < runs && !rc; i++) {
		rc = thaw_once(g, figure, e);
		for (size_t k = 0; k < g->n && !rc; k++)
			rc = peer_once(&g->c[k], figure, e);
	}
	return rc;
}

static void finish_figure(struct contender *c, unsigned i, double thaw)
{
	struct result *r = c->r[i];
	double p50 = samples_percentile(&r->samples, 50);

	if (r->samples.n) {
		r->ratio = thaw > 0 ? p50 / thaw : 0;
		result_number(r, "thaw_p50", thaw);
		result_number(r, "cpu_ms", c->cpu_ms[i] / (double)r->samples.n);
		result_text(r, "what", c->peer->what);
		if (c->t1[i].n)
			result_number(r, "t1_ms",
				      samples_percentile(&c->t1[i], 50));
		if (c->t2[i].n)
			result_number(r, "t2_ms",
				      samples_percentile(&c->t2[i], 50));
		if (i)
			result_number(r, "t5_ms", p50);
	}
	samples_free(&c->t1[i]);
	samples_free(&c->t2[i]);
}

static void finish_figures(struct rig *g)
{
	for (size_t k = 0; k < g->n; k++) {
		for (unsigned i = 0; i < NUM_FIGURES; i++)
			finish_figure(&g->c[k], i,
				      samples_percentile(&g->thaw[i], 50));
	}
}

static int rig_start(struct rig *g, const struct bench_options *o,
		     struct report *rep, struct err *e)
{
	int rc = daemon_start(&g->d, o->bin_dir, 0, 2, 0, e);

	if (!rc)
		rc = daemon_build_ring3(&g->d, "warm", snapshots[0].cmdline,
					snapshots[0].mem_mib, e);
	for (unsigned i = 1; i < NUM_FIGURES && !rc; i++)
		rc = cold_build(&g->d, COLD_MIB, &cold_orders[i - 1], e);
	for (size_t i = 0; peers[i] && g->n < MAX_PEERS && !rc; i++) {
		if (chosen(o, peers[i]->name))
			rc = prepare(g, o, rep, peers[i], e);
	}
	for (size_t k = 0; k < g->n; k++) {
		for (unsigned i = 0; i < NUM_FIGURES; i++) {
			g->c[k].r[i] =
			    report_add(rep, i ? "ms" : "us", "peer.%s.%s",
				       g->c[k].peer->name, figures[i]);
		}
	}
	return rc;
}

int bench_peers(const struct bench_options *o, struct report *rep,
		struct err *e)
{
	struct rig g = {0};
	int rc = 0;

	if (o->peers && !*o->peers)
		return 0;
	rc = rig_start(&g, o, rep, e);
	if (!rc && g.n)
		rc = figure_runs(&g, 0, MAX(o->runs / 10, 5u), e);
	for (unsigned i = 1; i < NUM_FIGURES && !rc && g.n; i++)
		rc = figure_runs(&g, i, MAX(o->runs / 20, 3u), e);
	finish_figures(&g);
	for (size_t k = 0; k < g.n; k++)
		contender_finish(&g.c[k]);
	for (unsigned i = 0; i < NUM_FIGURES; i++)
		samples_free(&g.thaw[i]);
	daemon_stop(&g.d);
	return rc;
}
