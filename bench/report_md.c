// The report as a page with plots. A plot is drawn from whatever results there
// are; without any of its own it is left out.
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "bench.h"
#include "svg.h"

struct plots {
	const char *dir;
	FILE *md;
	struct report *r;
};

static FILE *plot_open(const struct plots *p, const char *name)
{
	char path[4096];

	snprintf(path, sizeof(path), "%s/%s.svg", p->dir, name);
	return fopen(path, "we");
}

// Names the plot in the page, or removes it when there was nothing to draw.
static int plot_close(const struct plots *p, FILE *f, const char *name,
		      const char *title, int rc)
{
	char path[4096];

	if (fclose(f) && !rc)
		rc = -EIO;
	if (!rc) {
		fprintf(p->md, "![%s](%s.svg)\n\n", title, name);
		return 0;
	}
	snprintf(path, sizeof(path), "%s/%s.svg", p->dir, name);
	unlink(path);
	return rc == -EINVAL ? 0 : rc;
}

static int lines(const struct plots *p, const char *name,
		 const struct svg_plot *plot)
{
	FILE *f = plot_open(p, name);

	return f ? plot_close(p, f, name, plot->title, svg_lines(f, plot))
		 : -errno;
}

static int bars(const struct plots *p, const char *name, const char *title,
		const char *unit, const struct svg_bar *b, size_t n, int log_x)
{
	FILE *f = plot_open(p, name);

	return f ? plot_close(p, f, name, title,
			      svg_bars(f, title, unit, b, n, log_x))
		 : -errno;
}

// --- latency distributions ----------------------------------------------------------

struct cdf {
	struct svg_series series[SVG_MAX_SERIES];
	size_t n;
};

static void cdf_add(struct cdf *c, const char *name, struct samples *s)
{
	double *y;

	if (!s->n || c->n == SVG_MAX_SERIES)
		return;
	samples_percentile(s, 50); // sorts
	y = malloc(s->n * sizeof(*y));
	if (!y)
		abort();
	for (size_t i = 0; i < s->n; i++)
		y[i] = 100.0 * (double)(i + 1) / (double)s->n;
	c->series[c->n++] = (struct svg_series){name, s->v, y, s->n};
}

static void cdf_free(struct cdf *c)
{
	for (size_t i = 0; i < c->n; i++)
		free((void *)(uintptr_t)c->series[i].y);
}

// "peer.NAME.FIGURE": the name, cut out into `name`.
static bool peer_name(const char *full, const char *figure, char *name,
		      size_t cap)
{
	const char *dot;

	if (strncmp(full, "peer.", 5) != 0)
		return false;
	dot = strchr(full + 5, '.');
	if (!dot || strcmp(dot + 1, figure) != 0)
		return false;
	snprintf(name, cap, "%.*s", (int)(dot - full - 5), full + 5);
	return true;
}

static int plot_restore(const struct plots *p)
{
	static char names[MAX_RESULTS][64];
	struct result *shell = report_find(p->r, "restore.shell");
	struct result *fresh = report_find(p->r, "restore.fresh");
	struct cdf c = {0};
	struct svg_plot plot = {
	    .title = "Request to first guest exit, everything in memory",
	    .x_label = "microseconds",
	    .y_label = "% of restores",
	    .log_x = 1,
	    .series = c.series};
	int rc;

	if (shell) {
		cdf_add(&c, "thaw, shell", &shell->samples);
		cdf_add(&c, "bare ioctls", &shell->floor);
	}
	if (fresh)
		cdf_add(&c, "thaw, fresh", &fresh->samples);
	for (size_t i = 0; i < p->r->n; i++) {
		struct result *r = &p->r->v[i];

		if (peer_name(r->name, "warm", names[i], sizeof(names[i])))
			cdf_add(&c, names[i], &r->samples);
	}
	plot.n = c.n;
	rc = lines(p, "restore", &plot);
	cdf_free(&c);
	return rc;
}

// --- cost against size ----------------------------------------------------------------

struct points {
	double x[8], y[8];
	size_t n;
};

static void point(struct points *p, double x, double y)
{
	size_t at = p->n;

	if (p->n == ARRAY_SIZE(p->x))
		return;
	for (; at && p->x[at - 1] > x; at--) { // in order of x
		p->x[at] = p->x[at - 1];
		p->y[at] = p->y[at - 1];
	}
	p->x[at] = x;
	p->y[at] = y;
	p->n++;
}

static struct svg_series series_of(const char *name, const struct points *p)
{
	return (struct svg_series){name, p->x, p->y, p->n};
}

static double extra(const struct result *r, const char *member)
{
	return json_number_value(json_object_get(r->extra, member));
}

static int plot_cold(const struct plots *p)
{
	struct points seq = {0}, rand = {0}, fl = {0};
	struct svg_series s[3];
	struct svg_plot plot = {
	    .title = "Request until the guest has read its working set, cold",
	    .x_label = "working set, MiB",
	    .y_label = "milliseconds",
	    .log_x = 1,
	    .log_y = 1,
	    .series = s};

	for (size_t i = 0; i < p->r->n; i++) {
		struct result *r = &p->r->v[i];
		double mib = extra(r, "working_set_mib");
		const char *order =
		    json_string_value(json_object_get(r->extra, "order"));
		bool other = strstr(r->name, ".pagecache.") ||
			     strstr(r->name, ".template.");

		if (!order || other)
			continue;
		point(*order == 's' ? &seq : &rand, mib,
		      samples_percentile(&r->samples, 50));
		if (*order == 's')
			point(&fl, mib, result_floor(r));
	}
	if (seq.n)
		s[plot.n++] = series_of("thaw, in order", &seq);
	if (rand.n)
		s[plot.n++] = series_of("thaw, random", &rand);
	if (fl.n)
		s[plot.n++] = series_of("floor", &fl);
	return lines(p, "workingset", &plot);
}

static int plot_touch(const struct plots *p)
{
	static const char *const kinds[] = {"read", "write"};
	struct points thaw[2] = {0}, fl[2] = {0};
	struct svg_series s[4];
	struct svg_plot plot = {
	    .title = "First touch of a page, the template in memory, in order",
	    .x_label = "touched, MiB",
	    .y_label = "ns a page",
	    .log_x = 1,
	    .series = s};

	for (size_t k = 0; k < 2; k++) {
		static const unsigned sizes[] = {1, 16, 128};

		for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
			char name[64];
			struct result *r;

			snprintf(name, sizeof(name), "touch.warm.%s.%um.seq",
				 kinds[k], sizes[i]);
			r = report_find(p->r, name);
			if (!r && sizes[i] == 16) {
				snprintf(name, sizeof(name), "touch.warm.%s",
					 kinds[k]);
				r = report_find(p->r, name);
			}
			if (!r)
				continue;
			point(&thaw[k], sizes[i],
			      samples_percentile(&r->samples, 50));
			point(&fl[k], sizes[i], result_floor(r));
		}
		if (!thaw[k].n)
			continue;
		s[plot.n++] =
		    series_of(k ? "thaw, write" : "thaw, read", &thaw[k]);
		s[plot.n++] =
		    series_of(k ? "floor, write" : "floor, read", &fl[k]);
	}
	return lines(p, "touch", &plot);
}

// --- bars ---------------------------------------------------------------------------

static int plot_peers(const struct plots *p)
{
	static char names[MAX_RESULTS][64];
	struct svg_bar b[24];
	size_t n = 0;

	for (size_t i = 0; i < p->r->n && n + 1 < ARRAY_SIZE(b); i++) {
		struct result *r = &p->r->v[i];

		if (!peer_name(r->name, "cold.rand", names[i],
			       sizeof(names[i])) ||
		    !r->samples.n)
			continue;
		if (!n)
			b[n++] = (struct svg_bar){"thaw", extra(r, "thaw_p50"),
						  NULL};
		b[n++] = (struct svg_bar){
		    names[i], samples_percentile(&r->samples, 50), NULL};
	}
	return bars(p, "peers-cold",
		    "24 MiB working set in random order, nothing in memory",
		    "milliseconds, p50", b, n, 1);
}

static int plot_density(const struct plots *p)
{
	static const char *const parts[][2] = {
	    {"process (PSS)", "pss_kib"},
	    {"vmalloc", "vmalloc_kib"},
	    {"slab", "slab_kib"},
	    {"page tables", "page_tables_kib"},
	    {"per-CPU", "percpu_kib"},
	    {"kernel stacks", "kernel_stacks_kib"},
	};
	struct result *r = report_find(p->r, "clones.memory");
	struct svg_bar b[1 + ARRAY_SIZE(parts)];
	size_t n = 0;

	if (!r)
		return 0;
	b[n++] = (struct svg_bar){"thaw: fall of MemAvailable",
				  MAX(extra(r, "mean_kib"), 0), NULL};
	for (size_t i = 0; i < ARRAY_SIZE(parts); i++)
		b[n++] = (struct svg_bar){parts[i][0],
					  MAX(extra(r, parts[i][1]), 0), NULL};
	return bars(p, "density", "Memory of one more clone of 256 MiB", "KiB",
		    b, n, 0);
}

static int plot_store(const struct plots *p)
{
	struct result *r = report_find(p->r, "store.size");
	double first;
	struct svg_bar b[4];

	if (!r || !r->samples.n)
		return 0;
	first = samples_percentile(&r->samples, 50);
	b[0] = (struct svg_bar){"thaw: first version", first, NULL};
	b[1] = (struct svg_bar){"the same pages by lz4", result_floor(r), NULL};
	b[2] = (struct svg_bar){"thaw: a second adds",
				extra(r, "second_adds_mib"), NULL};
	b[3] = (struct svg_bar){"thaw: all versions",
				first * extra(r, "versions_over_first"), NULL};
	return bars(p, "store", "What the store keeps of an image", "MiB", b, 4,
		    0);
}

// --- the page ----------------------------------------------------------------------

static void facts(FILE *md)
{
	json_t *host = host_facts(), *v;
	const char *key;

	json_object_foreach(host, key, v)
	{
		cleanup_free char *s = json_dumps(v, JSON_ENCODE_ANY);

		fprintf(md, "- %s: %s\n", key, s ? s : "?");
	}
	json_decref(host);
}

static void cell(FILE *md, double v)
{
	if (v > 0)
		fprintf(md, " %.4g |", v);
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

		fprintf(md, "| %s | %zu | %s |", x->name, x->samples.n,
			x->unit);
		cell(md, samples_percentile(&x->samples, 50));
		cell(md, samples_percentile(&x->samples, 99));
		cell(md, samples_percentile(&x->samples, 100));
		cell(md, result_floor(x));
		cell(md, result_ratio(x));
		fputc('\n', md);
	}
	fputc('\n', md);
}

static int write_page(const struct plots *p)
{
	static int (*const all[])(const struct plots *) = {
	    plot_restore, plot_cold,	plot_peers,
	    plot_touch,	  plot_density, plot_store};
	int rc = 0;

	fputs("# thaw-bench\n\nThe ratio is a figure's p50 over its floor's; a "
	      "peer's is its p50 over thaw's in\nthe same run.\n\n",
	      p->md);
	table(p->md, p->r);
	for (size_t i = 0; i < ARRAY_SIZE(all) && !rc; i++)
		rc = all[i](p);
	fputs("## Host\n\n", p->md);
	facts(p->md);
	return rc;
}

int report_write(const char *dir, struct report *r, struct err *e)
{
	struct plots p = {.dir = dir, .r = r};
	char path[4096];
	json_t *json;
	int rc;

	if (mkdir(dir, 0755) && errno != EEXIST)
		return err_sys(e, "cannot make %s", dir);
	snprintf(path, sizeof(path), "%s/report.md", dir);
	p.md = fopen(path, "we");
	if (!p.md)
		return err_sys(e, "cannot write %s", path);
	rc = write_page(&p);
	if (fclose(p.md) && !rc)
		rc = -EIO;
	if (rc)
		return err_set(e, rc, "cannot write %s: %s", dir,
			       strerror(-rc));
	snprintf(path, sizeof(path), "%s/bench.json", dir);
	json = report_json(r);
	rc = json_dump_file(json, path, JSON_INDENT(2));
	json_decref(json);
	return rc ? err_set(e, -EIO, "cannot write %s", path) : 0;
}
