// store.size: what the store keeps of an image, beside what lz4 in 64 KiB blocks
// makes of the same pages; and what further versions of it add.
#include <errno.h>
#include <stdio.h>

#include "bench.h"

enum { MIB = 64, MEM_MIB = 256, CHANGED_MIB = 4, VERSIONS = 10 };

static int stored_mib(const struct daemon *d, double *out, struct err *e)
{
	json_t *j = NULL, *s;
	int rc = daemon_call(d, "GET", "/thaw/v1/stats", NULL, &j, NULL, e);

	if (rc)
		return rc;
	s = json_object_get(j, "store");
	*out = (double)(json_integer_value(json_object_get(s, "packBytes")) +
			json_integer_value(json_object_get(s, "indexBytes")) +
			json_integer_value(json_object_get(s, "mapBytes"))) /
	       1048576;
	json_decref(j);
	return 0;
}

// Version `v` differs from the first in CHANGED_MIB, each in others.
static int build(const struct daemon *d, unsigned v, struct err *e)
{
	char cmdline[128];

	snprintf(cmdline, sizeof(cmdline), "fill 1 16M %dM;fill %u %dM %dM",
		 MIB, v + 1, 16 + (int)v * CHANGED_MIB, CHANGED_MIB);
	return daemon_build_ring3(d, "ring3", cmdline, MEM_MIB, e);
}

static int floor_mib(const struct bench_options *o, const struct daemon *d,
		     double *out, struct err *e)
{
	char *argv[] = {(char[]){"thaw-bench-host"}, NULL};
	char line[200], answer[64];
	struct proc host = {0};
	int rc = proc_start(&host, o->bin_dir, argv, e);

	snprintf(line, sizeof(line), "pack %llu %s/floor",
		 (unsigned long long)MIB << 20, d->dir);
	if (!rc)
		rc = proc_ask(&host, line, answer, sizeof(answer), NULL, e);
	if (!rc)
		*out = (double)strtoull(answer, NULL, 10) / 1048576;
	proc_stop(&host);
	return rc;
}

int bench_store(const struct bench_options *o, struct report *rep,
		struct err *e)
{
	struct result *r = report_add(rep, "MiB", "store.size");
	unsigned versions = o->quick ? 3 : VERSIONS;
	double before = 0, first = 0, second = 0, all = 0;
	struct daemon d = {0};
	int rc = daemon_start(&d, o->bin_dir, 0, 1, 0, e);

	if (!rc)
		rc = stored_mib(&d, &before, e);
	if (!rc)
		rc = build(&d, 0, e);
	if (!rc)
		rc = stored_mib(&d, &first, e);
	for (unsigned v = 1; v < versions && !rc; v++) {
		rc = build(&d, v, e);
		if (!rc && v == 1)
			rc = stored_mib(&d, &second, e);
	}
	if (!rc)
		rc = stored_mib(&d, &all, e);
	if (!rc)
		rc = floor_mib(o, &d, &r->floor_p50, e);
	samples_add(&r->samples, first - before);
	result_number(r, "changed_mib", CHANGED_MIB);
	result_number(r, "second_adds_mib", second - first);
	result_number(r, "versions", versions);
	result_number(r, "versions_over_first",
		      (all - before) / (first - before));
	daemon_stop(&d);
	return rc;
}
