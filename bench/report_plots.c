// The report's plots. A plot is drawn from whatever results there are; without any
// of its own it is left out.
#include <errno.h>
#include <stdio.h>
#include <string.h>

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

static int bars(const struct plots *p, const char *name,
		const struct svg_chart *c)
{
	FILE *f = plot_open(p, name);

	return f ? plot_close(p, f, name, c->title, svg_bars(f, c)) : -errno;
}

static double p50_of(struct result *r)
{
	return r ? samples_percentile(&r->samples, 50) : 0;
}

static double extra(const struct result *r, const char *member)
{
	return json_number_value(json_object_get(r->extra, member));
}

// --- latency distributions ----------------------------------------------------------

struct cdf {
	struct svg_series series[SVG_MAX_SERIES];
	char names[SVG_MAX_SERIES][96];
	double *xy[SVG_MAX_SERIES];
	double p50[SVG_MAX_SERIES];
	size_t n;
};

// The samples, in microseconds, as a curve in milliseconds. The names tell the
// median, and the quickest comes first.
static void cdf_add(struct cdf *c, const char *name, struct samples *s,
		    enum svg_kind kind)
{
	double p50 = samples_percentile(s, 50) / 1000; // sorts
	size_t at = c->n;
	double *xy;
	char num[24];

	if (!s->n || c->n == SVG_MAX_SERIES)
		return;
	xy = malloc(2 * s->n * sizeof(*xy));
	if (!xy)
		abort();
	for (size_t i = 0; i < s->n; i++) {
		xy[i] = s->v[i] / 1000;
		xy[s->n + i] = 100.0 * (double)(i + 1) / (double)s->n;
	}
	for (; at && c->p50[at - 1] > p50; at--) {
		c->series[at] = c->series[at - 1];
		c->xy[at] = c->xy[at - 1];
		c->p50[at] = c->p50[at - 1];
		memcpy(c->names[at], c->names[at - 1], sizeof(c->names[0]));
	}
	svg_number(num, sizeof(num), p50);
	snprintf(c->names[at], sizeof(c->names[0]), "%s: %s", name, num);
	c->series[at] = (struct svg_series){NULL, xy, xy + s->n, s->n, kind};
	c->xy[at] = xy;
	c->p50[at] = p50;
	c->n++;
}

static void cdf_finish(struct cdf *c)
{
	for (size_t i = 0; i < c->n; i++)
		c->series[i].name = c->names[i];
}

static void cdf_free(struct cdf *c)
{
	for (size_t i = 0; i < c->n; i++)
		free(c->xy[i]);
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
	struct result *shell = report_find(p->r, "restore.shell");
	struct result *fresh = report_find(p->r, "restore.fresh");
	struct cdf c = {0};
	struct svg_plot plot = {
	    .title = "From the request to the guest's first instructions",
	    .subtitle = "the same 256 MiB guest, everything in memory; behind "
			"each name its p50",
	    .x_label = "milliseconds",
	    .y_label = "% of restores",
	    .log_x = 1,
	    .series = c.series};
	char name[64];
	int rc;

	if (shell) {
		cdf_add(&c, "thaw, prepared", &shell->samples, SVG_THAW);
		cdf_add(&c, "bare ioctls (floor)", &shell->floor, SVG_FLOOR);
	}
	if (fresh)
		cdf_add(&c, "thaw, fresh", &fresh->samples, SVG_THAW);
	for (size_t i = 0; i < p->r->n; i++) {
		struct result *r = &p->r->v[i];

		if (peer_name(r->name, "warm", name, sizeof(name)))
			cdf_add(&c, name, &r->samples, SVG_PEER);
	}
	cdf_finish(&c);
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

	if (p->n == ARRAY_SIZE(p->x) || y <= 0)
		return;
	for (; at && p->x[at - 1] > x; at--) { // in order of x
		p->x[at] = p->x[at - 1];
		p->y[at] = p->y[at - 1];
	}
	p->x[at] = x;
	p->y[at] = y;
	p->n++;
}

static void series_add(struct svg_plot *plot, struct svg_series *s,
		       const char *name, const struct points *p,
		       enum svg_kind kind)
{
	if (p->n)
		s[plot->n++] =
		    (struct svg_series){name, p->x, p->y, p->n, kind};
}

static int plot_cold(const struct plots *p)
{
	struct points seq = {.n = 0}, rand = {.n = 0};
	struct points fl[2] = {{.n = 0}, {.n = 0}};
	struct svg_series s[4];
	struct svg_plot plot = {
	    .title =
		"From the request until the guest has read its working set",
	    .subtitle = "nothing of it in memory: page cache dropped, thawd "
			"started anew",
	    .x_label = "working set, MiB",
	    .y_label = "milliseconds, p50",
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
		point(*order == 's' ? &seq : &rand, mib, p50_of(r));
		point(&fl[*order != 's'], mib, result_floor(r));
	}
	series_add(&plot, s, "thaw, in random order", &rand, SVG_THAW);
	series_add(&plot, s, "thaw, in order", &seq, SVG_THAW);
	series_add(&plot, s, "floor, in random order", &fl[1], SVG_FLOOR);
	series_add(&plot, s, "floor, in order", &fl[0], SVG_FLOOR);
	return lines(p, "workingset", &plot);
}

static struct result *touch_result(const struct plots *p, const char *kind,
				   unsigned mib)
{
	struct result *r;
	char name[64];

	snprintf(name, sizeof(name), "touch.warm.%s.%um.seq", kind, mib);
	r = report_find(p->r, name);
	if (r || mib != 16)
		return r;
	snprintf(name, sizeof(name), "touch.warm.%s", kind); // the headline
	return report_find(p->r, name);
}

static int plot_touch(const struct plots *p)
{
	static const char *const kinds[] = {"read", "write"};
	static const unsigned sizes[] = {1, 16, 128};
	struct points thaw[2] = {{.n = 0}, {.n = 0}};
	struct points fl[2] = {{.n = 0}, {.n = 0}};
	struct svg_series s[4];
	struct svg_plot plot = {
	    .title = "A page's first touch by the guest",
	    .subtitle =
		"the template in memory, pages in order; the floor is a "
		"private mapping",
	    .x_label = "touched, MiB",
	    .y_label = "microseconds a page, p50",
	    .log_x = 1,
	    .series = s};

	for (size_t k = 0; k < 2; k++) {
		for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
			struct result *r = touch_result(p, kinds[k], sizes[i]);

			if (!r)
				continue;
			point(&thaw[k], sizes[i], p50_of(r) / 1000);
			point(&fl[k], sizes[i], result_floor(r) / 1000);
		}
	}
	series_add(&plot, s, "thaw, write", &thaw[1], SVG_THAW);
	series_add(&plot, s, "thaw, read", &thaw[0], SVG_THAW);
	series_add(&plot, s, "floor, write", &fl[1], SVG_FLOOR);
	series_add(&plot, s, "floor, read", &fl[0], SVG_FLOOR);
	return lines(p, "touch", &plot);
}

// --- bars ---------------------------------------------------------------------------

enum { MAX_BARS = 40 };
struct bar_list {
	struct svg_bar v[MAX_BARS];
	char names[MAX_BARS][64];
	size_t n;
};

static void bar(struct bar_list *l, enum svg_kind kind, const char *name,
		double value)
{
	if (l->n == MAX_BARS)
		return;
	snprintf(l->names[l->n], sizeof(l->names[0]), "%s", name);
	l->v[l->n] =
	    (struct svg_bar){l->names[l->n], MAX(value, 0), NULL, kind};
	l->n++;
}

// Puts the bars from `first` on in order, the shortest first.
static void sort_bars(struct bar_list *l, size_t first)
{
	for (size_t i = first + 1; i < l->n; i++) {
		struct svg_bar b = l->v[i];
		size_t at = i;

		for (; at > first && l->v[at - 1].value > b.value; at--)
			l->v[at] = l->v[at - 1];
		l->v[at] = b; // its name stays where it is
	}
}

// A peer is measured beside thaw, and all have a thaw of their own: its middle.
static double thaw_beside(const struct plots *p, const char *figure)
{
	struct samples s = {0};
	char name[64];
	double v;

	for (size_t i = 0; i < p->r->n; i++) {
		struct result *r = &p->r->v[i];

		if (peer_name(r->name, figure, name, sizeof(name)))
			samples_add(&s, extra(r, "thaw_p50"));
	}
	v = samples_percentile(&s, 50);
	samples_free(&s);
	return v;
}

static int plot_peers(const struct plots *p)
{
	static const char *const figures[][2] = {
	    {"cold", "read in order"}, {"cold.rand", "read in random order"}};
	struct bar_list l = {0};
	char name[64];

	for (size_t k = 0; k < ARRAY_SIZE(figures); k++) {
		double thaw = thaw_beside(p, figures[k][0]);
		size_t first;

		if (thaw <= 0)
			continue;
		bar(&l, SVG_HEADING, figures[k][1], 0);
		first = l.n;
		bar(&l, SVG_THAW, "thaw", thaw);
		for (size_t i = 0; i < p->r->n; i++) {
			struct result *r = &p->r->v[i];

			if (peer_name(r->name, figures[k][0], name,
				      sizeof(name)))
				bar(&l, SVG_PEER, name, p50_of(r));
		}
		sort_bars(&l, first);
	}
	return bars(p, "peers-cold",
		    &(struct svg_chart){
			"A cold start: until the guest has read its 24 MiB",
			"nothing of the snapshot in memory; each beside thaw "
			"in one run",
			"milliseconds, p50", l.v, l.n});
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
	struct bar_list l = {0};
	char subtitle[96];

	if (!r)
		return 0;
	bar(&l, SVG_THAW, "one more clone", extra(r, "mean_kib"));
	for (size_t i = 0; i < ARRAY_SIZE(parts); i++)
		bar(&l, SVG_FLOOR, parts[i][0], extra(r, parts[i][1]));
	snprintf(
	    subtitle, sizeof(subtitle),
	    "of a guest of 256 MiB, %.0f alive, all have run; the parts as "
	    "the kernel counts them",
	    extra(r, "clones"));
	return bars(p, "density",
		    &(struct svg_chart){"What one more clone takes from the "
					"host's memory",
					subtitle, "KiB", l.v, l.n});
}

// Real images if there are any, else the ring-3 guest's.
static int plot_store(const struct plots *p)
{
	struct bar_list l = {0};
	struct result *r;

	for (size_t i = 0; i < p->r->n; i++) {
		char heading[80];
		const char *dot;

		r = &p->r->v[i];
		dot = strrchr(r->name, '.');
		if (strncmp(r->name, "guest.", 6) != 0 ||
		    strcmp(dot, ".store") != 0)
			continue;
		snprintf(heading, sizeof(heading), "%.*s image",
			 (int)(dot - r->name - 6), r->name + 6);
		bar(&l, SVG_HEADING, heading, 0);
		bar(&l, SVG_FLOOR, "memory and disk, not zero",
		    extra(r, "nonzero_mib"));
		bar(&l, SVG_THAW, "stored", p50_of(r));
		bar(&l, SVG_THAW, "a second version adds",
		    extra(r, "second_adds_mib"));
	}
	r = report_find(p->r, "store.size");
	if (!l.n && r && r->samples.n) {
		double first = p50_of(r);

		bar(&l, SVG_FLOOR, "the pages by lz4, 64 KiB each",
		    result_floor(r));
		bar(&l, SVG_THAW, "stored", first);
		bar(&l, SVG_THAW, "a second version adds",
		    extra(r, "second_adds_mib"));
		bar(&l, SVG_THAW, "all versions",
		    first * extra(r, "versions_over_first"));
	}
	return bars(p, "store",
		    &(struct svg_chart){"What the store keeps of an image",
					NULL, "MiB", l.v, l.n});
}

static void guest_bars(const struct plots *p, struct bar_list *l,
		       const char *image, const char *heading)
{
	static const struct {
		const char *name, *what;
		enum svg_kind kind;
	} all[] = {
	    {"thaw.warm", "thaw, template in memory", SVG_THAW},
	    {"thaw.pagecache", "thaw, page cache", SVG_THAW},
	    {"thaw.dropped", "thaw, from the disk", SVG_THAW},
	    {"resume", "resume of a suspended one", SVG_THAW},
	    {"cold.pagecache", "boot, page cache", SVG_PEER},
	    {"cold.dropped", "boot, from the disk", SVG_PEER},
	};
	bool any = false;

	for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
		char name[64];
		struct result *r;

		snprintf(name, sizeof(name), "guest.%s.%s", image, all[i].name);
		r = report_find(p->r, name);
		if (!r)
			continue;
		if (!any)
			bar(l, SVG_HEADING, heading, 0);
		any = true;
		bar(l, all[i].kind, all[i].what, p50_of(r) / 1000);
	}
}

static int plot_guests(const struct plots *p)
{
	struct result *r = report_find(p->r, "guest.flask.thaw.warm");
	struct bar_list l = {0};

	r = r ? r : report_find(p->r, "guest.numpy.thaw.warm");
	guest_bars(p, &l, "flask", "Flask, a web application");
	guest_bars(p, &l, "numpy", "Python and numpy, a matrix product");
	return bars(
	    p, "guests",
	    &(struct svg_chart){
		"From the request to the application's first answer",
		r && json_is_true(json_object_get(r->extra, "emulated"))
		    ? "Debian 12 guests; an emulated processor, only ratios "
		      "mean anything"
		    : "Debian 12 guests",
		"seconds, p50", l.v, l.n});
}

int report_plots(const char *dir, FILE *md, struct report *r)
{
	static int (*const all[])(const struct plots *) = {
	    plot_restore, plot_cold,	plot_peers, plot_guests,
	    plot_touch,	  plot_density, plot_store};
	struct plots p = {dir, md, r};
	int rc = 0;

	for (size_t i = 0; i < ARRAY_SIZE(all) && !rc; i++)
		rc = all[i](&p);
	return rc;
}
