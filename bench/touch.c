// touch.warm.*: what a page costs the guest at its first touch, when the template
// holds all of it. The guest counts the cycles itself, so that neither the socket
// nor the console is in the figure; the floor program's guest does the same.
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "bench.h"

enum { MEM_MIB = 256 };
static const char guest_cmdline[] = "fill 1 16M 128M";

// MiB; the headline first. A quick run leaves the last one out.
static const unsigned sizes[] = {16, 1, 128};
static const char *const orders[] = {"seq", "rand"};
static const char *const kinds[] = {"read", "write"};

static int parse(const char *answer, uint64_t want, uint64_t pages, double *ns,
		 struct err *e)
{
	unsigned long long sum, cycles;

	if (sscanf(answer, "SUM %llx CYCLES %llu", &sum, &cycles) != 2)
		return err_set(e, -EPROTO, "the guest says \"%s\"", answer);
	if (sum != want)
		return err_set(e, -EILSEQ,
			       "the guest read other pages than were written: "
			       "its sum is %llx, not %llx",
			       sum, (unsigned long long)want);
	*ns = (double)cycles / host_tsc_ghz() / (double)pages;
	return 0;
}

int touch_parse(const char *answer, uint64_t seed, uint64_t bytes, double *ns,
		struct err *e)
{
	return parse(answer, guestmem_sum(seed, 16 << 20, bytes),
		     bytes / PAGE_SIZE_4K, ns, e);
}

int touch_parse_scattered(const char *answer, uint64_t seed, uint64_t bytes,
			  unsigned block, double *ns, struct err *e)
{
	return parse(answer,
		     guestmem_sum_scattered(seed, 16 << 20, bytes, block),
		     bytes / PAGE_SIZE_4K / block * GUESTMEM_RUN, ns, e);
}

static int floor_once(struct proc *f, const char *how, const char *cmd,
		      uint64_t bytes, struct samples *s, struct err *e)
{
	char line[128], answer[128];
	double ns = 0;
	int rc;

	snprintf(line, sizeof(line), "touch %s %s", how, cmd);
	rc = proc_ask(f, line, answer, sizeof(answer), NULL, e);
	if (!rc)
		rc = touch_parse(answer, 1, bytes, &ns, e);
	if (!rc)
		samples_add(s, ns);
	return rc;
}

static int thaw_once(const struct daemon *d, const char *cmd, uint64_t bytes,
		     struct samples *s, struct cost *c, struct err *e)
{
	char payload[80], line[128];
	struct microvm vm;
	uint64_t when;
	double ns = 0;
	int rc;

	snprintf(payload, sizeof(payload), "%s\n", cmd);
	cost_begin(c, d);
	rc = microvm_run(d, "ring3", payload, &vm, e);
	if (rc)
		return rc;
	rc = microvm_line(d, &vm, "SUM", line, sizeof(line), &when, e);
	if (!rc)
		rc = touch_parse(line, 1, bytes, &ns, e);
	if (!rc)
		samples_add(s, ns);
	if (!rc)
		rc = cost_end(c, d, &vm, e);
	if (!rc)
		rc = microvm_end(d, &vm, e);
	return rc;
}

struct rig {
	struct daemon d;
	struct proc floor;
};

static void other_floors(struct result *r, struct samples *populated,
			 struct samples *uffd)
{
	result_number(r, "floor_populated_p50",
		      samples_percentile(populated, 50));
	result_number(r, "floor_userfaultfd_p50", samples_percentile(uffd, 50));
}

// One size, order and kind.
static int variant(struct rig *g, struct result *r, const char *cmd,
		   uint64_t bytes, unsigned runs, struct err *e)
{
	struct samples populated = {0}, uffd = {0};
	struct cost cost = {0};
	int rc = 0;

	for (unsigned i = 0; i < runs && !rc; i++) {
		rc = daemon_settle(&g->d, e);
		usleep(20000);
		if (!rc)
			rc = floor_once(&g->floor, "private", cmd, bytes,
					&r->floor, e);
		if (!rc)
			rc =
			    thaw_once(&g->d, cmd, bytes, &r->samples, &cost, e);
		if (!rc && i < 10)
			rc = floor_once(&g->floor, "populated", cmd, bytes,
					&populated, e);
		if (!rc && i < 3)
			rc =
			    floor_once(&g->floor, "uffd", cmd, bytes, &uffd, e);
	}
	other_floors(r, &populated, &uffd);
	cost_report(&cost, r);
	samples_free(&populated);
	samples_free(&uffd);
	return rc;
}

static int one_size(struct rig *g, const struct bench_options *o,
		    struct report *rep, unsigned mib, struct err *e)
{
	bool headline = mib == sizes[0];
	unsigned runs = headline ? o->runs / 4 : o->runs / 20;
	int rc = 0;

	for (size_t i = 0; i < 4 && !rc; i++) {
		const char *kind = kinds[i % 2], *order = orders[i / 2];
		char cmd[64];
		struct result *r;

		r = headline && i < 2
			? report_add(rep, "ns/page", "touch.warm.%s", kind)
			: report_add(rep, "ns/page", "touch.warm.%s.%um.%s",
				     kind, mib, order);
		snprintf(cmd, sizeof(cmd), "touch %s %s 16M %uM", kind, order,
			 mib);
		rc = variant(g, r, cmd, (uint64_t)mib << 20, MAX(runs, 3u), e);
	}
	return rc;
}

int bench_touch(const struct bench_options *o, struct report *rep,
		struct err *e)
{
	struct samples warm = {0};
	struct cost unused = {0};
	struct result none = {.name = ""};
	struct rig g = {0};
	int rc;

	rc = daemon_start(&g.d, o->bin_dir, 0, 2, 0, e);
	if (!rc)
		rc = daemon_build_ring3(&g.d, "ring3", guest_cmdline, MEM_MIB,
					e);
	if (!rc)
		rc = floor_start(&g.floor, o->bin_dir, MEM_MIB, guest_cmdline,
				 e);
	// Fills the template.
	if (!rc)
		rc = thaw_once(&g.d, "touch read seq 16M 128M", 128 << 20,
			       &warm, &unused, e);
	for (size_t i = 0; i < ARRAY_SIZE(sizes) - o->quick && !rc; i++)
		rc = one_size(&g, o, rep, sizes[i], e);
	samples_free(&warm);
	cost_report(&unused, &none);
	json_decref(none.extra);
	proc_stop(&g.floor);
	daemon_stop(&g.d);
	return rc;
}
