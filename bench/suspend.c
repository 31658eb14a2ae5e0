// suspend.parked: how long a guest with 24 MB of written pages stands still while
// it is suspended, beside what the host needs to list and copy as many.
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "bench.h"

enum { DIRTY_MIB = 24 };
static const unsigned sizes[] = {256, 4096}; // MiB of guest memory

struct rig {
	struct daemon d;
	struct proc host;
};

struct floors {
	struct samples scan, copy;
};

static int floor_once(struct rig *g, unsigned mib, struct samples *sum,
		      struct floors *f, struct err *e)
{
	unsigned long long scan, copy;
	char line[80], answer[80];
	int rc;

	snprintf(line, sizeof(line), "suspend %llu %llu",
		 (unsigned long long)mib << 20, DIRTY_MIB * 1048576ull);
	rc = proc_ask(&g->host, line, answer, sizeof(answer), NULL, e);
	if (rc)
		return rc;
	if (sscanf(answer, "%llu %llu", &scan, &copy) != 2)
		return err_set(e, -EPROTO, "the floor says \"%s\"", answer);
	samples_add(&f->scan, (double)scan / 1000);
	samples_add(&f->copy, (double)copy / 1000);
	samples_add(sum, (double)(scan + copy) / 1000);
	return 0;
}

static int suspend(const struct daemon *d, const struct microvm *vm,
		   json_t **timings, struct err *e)
{
	json_t *j = NULL;
	char path[200];
	int rc;

	snprintf(path, sizeof(path),
		 "/2025-09-09/microvms/%s/suspend?wait=SUSPENDED", vm->id);
	rc = daemon_call(d, "POST", path, NULL, NULL, NULL, e);
	if (!rc)
		rc = microvm_inspect(d, vm, &j, e);
	if (rc)
		return rc;
	*timings = json_incref(json_object_get(
	    json_object_get(json_object_get(j, "thaw"), "timings"), "suspend"));
	json_decref(j);
	if (!*timings)
		return err_set(e, -EIO,
			       "no timings of a suspend: is it "
			       "SUSPENDED?");
	return 0;
}

static double member(const json_t *j, const char *name)
{
	return (double)json_integer_value(json_object_get(j, name));
}

static int thaw_once(const struct daemon *d, const char *image,
		     struct samples *parked, struct samples *total,
		     struct busy *busy, struct err *e)
{
	char payload[64], line[128];
	struct microvm vm;
	json_t *t = NULL;
	uint64_t when;
	int rc;

	snprintf(payload, sizeof(payload), "fill %u 16M %uM\n",
		 (unsigned)(util_now_ns() % 100000) + 2, DIRTY_MIB);
	rc = microvm_run(d, image, payload, &vm, e);
	if (rc)
		return rc;
	rc = microvm_line(d, &vm, "FILLED", line, sizeof(line), &when, e);
	busy_begin(busy);
	if (!rc)
		rc = suspend(d, &vm, &t, e);
	busy_end(busy, 1);
	if (rc)
		return rc;
	if (member(t, "dirtyMemoryPages") < DIRTY_MIB * 256.0)
		rc = err_set(e, -EIO, "fewer pages were saved than written");
	samples_add(parked, member(t, "parked"));
	samples_add(total, member(t, "total"));
	json_decref(t);
	return rc ? rc : microvm_end(d, &vm, e);
}

static int one_size(struct rig *g, struct report *rep, unsigned mib,
		    unsigned runs, struct err *e)
{
	struct result *r =
	    mib == sizes[0]
		? report_add(rep, "us", "suspend.parked")
		: report_add(rep, "us", "suspend.parked.%ug", mib / 1024);
	struct samples total = {0};
	struct busy busy = {0};
	struct floors f = {0};
	char image[16];
	int rc;

	snprintf(image, sizeof(image), "ring3-%u", mib);
	rc = daemon_build_ring3(&g->d, image, "fill 1 16M 1M", mib, e);
	for (unsigned i = 0; i < runs && !rc; i++) {
		rc = daemon_settle(&g->d, e);
		usleep(50000);
		if (!rc)
			rc = floor_once(g, mib, &r->floor, &f, e);
		if (!rc)
			rc = thaw_once(&g->d, image, &r->samples, &total, &busy,
				       e);
	}
	busy_report(&busy, r);
	result_number(r, "dirty_mib", DIRTY_MIB);
	result_number(r, "floor_scan_p50", samples_percentile(&f.scan, 50));
	result_number(r, "floor_copy_p50", samples_percentile(&f.copy, 50));
	result_number(r, "beyond_scan_p50",
		      samples_percentile(&r->samples, 50) -
			  samples_percentile(&f.scan, 50));
	result_number(r, "total_p50", samples_percentile(&total, 50));
	samples_free(&f.scan);
	samples_free(&f.copy);
	samples_free(&total);
	return rc;
}

int bench_suspend(const struct bench_options *o, struct report *rep,
		  struct err *e)
{
	char *argv[] = {(char[]){"thaw-bench-host"}, NULL};
	struct rig g = {0};
	int rc;

	rc = daemon_start(&g.d, o->bin_dir, 0, 2, 0, e);
	if (!rc)
		rc = proc_start(&g.host, o->bin_dir, argv, e);
	for (size_t i = 0; i < ARRAY_SIZE(sizes) && !rc; i++)
		rc = one_size(&g, rep, sizes[i], MAX(o->runs / 8, 5u), e);
	proc_stop(&g.host);
	daemon_stop(&g.d);
	return rc;
}
