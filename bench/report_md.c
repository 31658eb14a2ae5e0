// The report as a page: figures, clock points, what was left out, plots.
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "bench.h"

static void cell(FILE *md, double v)
{
	if (v > 0)
		fprintf(md, " %.4g |", v);
	else
		fputs(" - |", md);
}

// A member that may be 0, which is a figure too.
static void member(FILE *md, const struct result *r, const char *name,
		   double unit)
{
	const json_t *v = json_object_get(r->extra, name);

	if (json_is_number(v))
		fprintf(md, " %.4g |", json_number_value(v) / unit);
	else
		fputs(" - |", md);
}

static void table(FILE *md, struct report *r)
{
	fputs("| name | n | unit | p50 | p99 | max | floor p50 | ratio |\n"
	      "|---|---:|---|---:|---:|---:|---:|---:|\n",
	      md);
	for (size_t i = 0; i < r->n; i++) {
		struct result *x = &r->v[i];
		bool emulated =
		    json_is_true(json_object_get(x->extra, "emulated"));

		fprintf(md, "| %s | %zu | %s%s |", x->name, x->samples.n,
			x->unit, emulated ? ", emulated" : "");
		cell(md, samples_percentile(&x->samples, 50));
		cell(md, samples_percentile(&x->samples, 99));
		cell(md, samples_percentile(&x->samples, 100));
		cell(md, result_floor(x));
		cell(md, result_ratio(x));
		fputc('\n', md);
	}
	fputc('\n', md);
}

static bool has_any(const struct result *r, const char *const *names, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (json_object_get(r->extra, names[i]))
			return true;
	}
	return false;
}

static void costs(FILE *md, const struct report *r)
{
	static const char *const names[] = {
	    "t1_ms",	    "t2_ms",	    "t3_ms",	 "t4_ms",
	    "t5_ms",	    "cpu_ms",	    "faults",	 "fault_pages",
	    "faults_minor", "faults_major", "bytes_read"};

	fputs(
	    "Clock points in milliseconds from the request (T1 loaded, T2 the "
	    "guest's first exit,\nT3 its agent answers, T4 the "
	    "application's result, T5 the working set was read),\nprocessor "
	    "time, page faults (those that reached thawd's fault "
	    "handling and the pages\nthey brought; those the kernel "
	    "resolved in the cell), and what disks read; medians:\n\n"
	    "| name | T1 | T2 | T3 | T4 | T5 | CPU ms | faults | pages | "
	    "minor | major | MiB read |\n"
	    "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
	    md);
	for (size_t i = 0; i < r->n; i++) {
		const struct result *x = &r->v[i];

		if (!has_any(x, names, ARRAY_SIZE(names)))
			continue;
		fprintf(md, "| %s |", x->name);
		for (size_t k = 0; k < ARRAY_SIZE(names); k++)
			member(md, x, names[k],
			       k + 1 == ARRAY_SIZE(names) ? 1048576 : 1);
		fputc('\n', md);
	}
	fputc('\n', md);
}

static void left_out(FILE *md, const struct report *r)
{
	if (!r->num_left_out)
		return;
	fputs("Left out:\n\n", md);
	for (size_t i = 0; i < r->num_left_out; i++)
		fprintf(md, "- %s: %s\n", r->left_out[i].name,
			r->left_out[i].why);
	fputc('\n', md);
}

static int write_page(const char *dir, FILE *md, struct report *r)
{
	json_t *host = r->host ? json_incref(r->host) : host_facts();
	char line[512];

	host_line(host, line, sizeof(line));
	json_decref(host);
	fprintf(md,
		"# thaw-bench\n\n%s.\n\n"
		"The ratio is a figure's p50 over its floor's; a peer's is its "
		"p50 over thaw's in\nthe same run.\n\n",
		line);
	table(md, r);
	left_out(md, r);
	costs(md, r);
	return report_plots(dir, md, r);
}

int report_write(const char *dir, struct report *r, struct err *e)
{
	char path[4096];
	FILE *md;
	int rc;

	if (mkdir(dir, 0755) && errno != EEXIST)
		return err_sys(e, "cannot make %s", dir);
	snprintf(path, sizeof(path), "%s/report.md", dir);
	md = fopen(path, "we");
	if (!md)
		return err_sys(e, "cannot write %s", path);
	rc = write_page(dir, md, r);
	if (fclose(md) && !rc)
		rc = -EIO;
	if (rc)
		return err_set(e, rc, "cannot write %s: %s", dir,
			       strerror(-rc));
	snprintf(path, sizeof(path), "%s/bench.json", dir);
	return report_save(path, r, e);
}
