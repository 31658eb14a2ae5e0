// The parts of thaw-bench that need no thawd: percentiles, ratios, the report's
// JSON and page, the plots, and what it expects in the guest's memory.
#include <criterion/criterion.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bench.h"
#include "svg.h"

static struct report rep;

static struct result *result_of(const char *name, const double *v, size_t n)
{
	struct result *r = report_add(&rep, "us", "%s", name);

	for (size_t i = 0; i < n; i++)
		samples_add(&r->samples, v[i]);
	return r;
}

// --- statistics ---------------------------------------------------------------

Test(samples, nearest_rank)
{
	struct samples s = {0};

	for (int i = 100; i >= 1; i--)
		samples_add(&s, i);
	cr_assert_eq(samples_percentile(&s, 50), 50);
	cr_assert_eq(samples_percentile(&s, 99), 99);
	cr_assert_eq(samples_percentile(&s, 100), 100);
	cr_assert_eq(samples_percentile(&s, 0), 1);
	samples_add(&s, 1000);
	cr_assert_eq(samples_percentile(&s, 50), 51);
	cr_assert_eq(samples_percentile(&s, 100), 1000);
	samples_free(&s);
	cr_assert_eq(samples_percentile(&s, 50), 0);
}

Test(samples, one_is_all_of_them)
{
	struct samples s = {0};

	samples_add(&s, 7);
	cr_assert_eq(samples_percentile(&s, 1), 7);
	cr_assert_eq(samples_percentile(&s, 99), 7);
	samples_free(&s);
}

Test(results, ratio_is_p50_over_the_floors)
{
	struct result *r = result_of("a.b", (double[]){30, 10, 20}, 3);

	cr_assert_eq(result_floor(r), 0);
	cr_assert_eq(result_ratio(r), 0);
	r->floor_p50 = 8;
	cr_assert_float_eq(result_ratio(r), 2.5, 1e-9);
	samples_add(&r->floor, 40); // samples go before a given floor
	cr_assert_eq(result_floor(r), 40);
	cr_assert_float_eq(result_ratio(r), 0.5, 1e-9);
	r->ratio = 3;
	cr_assert_eq(result_ratio(r), 3);
	report_free(&rep);
}

Test(results, are_found_by_their_whole_name)
{
	result_of("touch.warm.read.1m.seq", NULL, 0);
	result_of("touch.warm.read", NULL, 0);
	cr_assert_eq(report_find(&rep, "touch.warm.read"), &rep.v[1]);
	cr_assert_null(report_find(&rep, "touch.warm"));
	report_free(&rep);
}

// --- JSON ------------------------------------------------------------------------

Test(json, has_the_fixed_members)
{
	struct result *r =
	    result_of("restore.shell", (double[]){1.23456, 2}, 2);
	json_t *j, *o;

	r->floor_p50 = 0.5;
	result_number(r, "cpu_ms", 1.00049);
	result_of("no.floor", (double[]){5}, 1);
	j = report_json(&rep);
	o = json_array_get(json_object_get(j, "results"), 0);
	cr_assert_str_eq(json_string_value(json_object_get(o, "name")),
			 "restore.shell");
	cr_assert_eq(json_integer_value(json_object_get(o, "n")), 2);
	cr_assert_str_eq(json_string_value(json_object_get(o, "unit")), "us");
	cr_assert_float_eq(json_number_value(json_object_get(o, "p50")), 1.235,
			   1e-9);
	cr_assert_eq(json_number_value(json_object_get(o, "p99")), 2);
	cr_assert_eq(json_number_value(json_object_get(o, "max")), 2);
	cr_assert_eq(json_number_value(json_object_get(o, "floor_p50")), 0.5);
	cr_assert_float_eq(json_number_value(json_object_get(o, "ratio")),
			   2.469, 1e-9);
	cr_assert_eq(json_number_value(json_object_get(o, "cpu_ms")), 1.0);
	o = json_array_get(json_object_get(j, "results"), 1);
	cr_assert(json_is_null(json_object_get(o, "floor_p50")));
	cr_assert(json_is_null(json_object_get(o, "ratio")));
	json_decref(j);
	report_free(&rep);
}

Test(json, tells_the_host)
{
	static const char *const members[] = {
	    "kernel", "cpu",	"cpus",		 "hz",	    "kvm",
	    "nested", "cgroup", "nx_huge_pages", "emulated"};
	json_t *j = host_facts();

	for (size_t i = 0; i < ARRAY_SIZE(members); i++)
		cr_assert_not_null(json_object_get(j, members[i]), "%s",
				   members[i]);
	cr_assert_geq(json_integer_value(json_object_get(j, "hz")), 100);
	cr_assert_geq(json_integer_value(json_object_get(j, "cpus")), 1);
	json_decref(j);
}

// --- JSON read back --------------------------------------------------------------

static char saved[] = "/tmp/test-bench-XXXXXX.json";

static void save_to_file(const char *text)
{
	static bool made;
	FILE *f;

	if (!made) {
		int fd = mkstemps(saved, 5);

		cr_assert_geq(fd, 0);
		close(fd);
		made = true;
	}
	if (!text)
		return;
	f = fopen(saved, "we");
	cr_assert_not_null(f);
	fputs(text, f);
	fclose(f);
}

Test(json, comes_back_as_it_was_saved)
{
	struct err e = ERR_INIT;
	struct result *r =
	    result_of("restore.shell", (double[]){700, 800, 905.123}, 3);
	json_t *before, *after;

	samples_add(&r->floor, 1000);
	result_number(r, "cpu_ms", 1.5);
	r = result_of("peer.x.warm", (double[]){9000}, 1);
	r->ratio = 11.25;
	r = result_of("a.put.together", (double[]){10}, 1);
	r->floor_p50 = 8;
	report_leave_out(&rep, "peer.y", "it is not here");
	before = report_json(&rep);
	save_to_file(NULL);
	cr_assert_eq(report_save(saved, &rep, &e), 0, "%s", e.msg);
	report_free(&rep);
	cr_assert_eq(report_load(&rep, saved, &e), 0, "%s", e.msg);
	after = report_json(&rep);
	cr_assert(json_equal(before, after), "%s\n%s", json_dumps(before, 0),
		  json_dumps(after, 0));
	cr_assert_eq(samples_percentile(
			 &report_find(&rep, "restore.shell")->samples, 100),
		     905.123);
	cr_assert_eq(report_load(&rep, saved, &e), -EEXIST);
	cr_assert_not_null(strstr(e.msg, "restore.shell"));
	json_decref(before);
	json_decref(after);
	report_free(&rep);
	unlink(saved);
}

Test(json, of_a_result_measured_again_only_the_new_one_stays)
{
	struct result *r = result_of("a", (double[]){1, 2}, 2);

	result_number(r, "cpu_ms", 1.5);
	result_of("b", (double[]){3}, 1);
	r = result_of("a", (double[]){4}, 1);
	cr_assert_eq(rep.n, 2);
	cr_assert_eq(report_find(&rep, "a"), r);
	cr_assert_eq(samples_percentile(&r->samples, 0), 4);
	cr_assert_null(r->extra);
	report_free(&rep);
}

Test(json, that_is_no_report_is_refused)
{
	static const char *const bad[] = {
	    "",
	    "[]",
	    "{\"results\": []}",
	    "{\"host\": {}, \"results\": 1}",
	    "{\"host\": {}, \"results\": [{\"name\": \"a\"}]}",
	    "{\"host\": {}, \"results\": [{\"name\": \"a\", \"unit\": \"s\"}]}",
	    "{\"host\": {}, \"results\": [{\"name\": \"a\", \"unit\": \"s\", "
	    "\"samples\": []}]}",
	    "{\"host\": {}, \"results\": [{\"name\": \"a\", \"unit\": \"s\", "
	    "\"samples\": [1, \"2\"]}]}"};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct err e = ERR_INIT;

		save_to_file(bad[i]);
		cr_assert_eq(report_load(&rep, saved, &e), -EPROTO, "%s",
			     bad[i]);
		cr_assert_not_null(strstr(e.msg, saved), "%s", e.msg);
		report_free(&rep);
	}
	unlink(saved);
}

// Real figures say where real ones come from, whatever was read first.
Test(json, the_host_is_one_whose_times_are_real)
{
	static const char real[] = "{\"host\": {\"kernel\": \"real\", "
				   "\"emulated\": false}, \"results\": []}";
	static const char box[] = "{\"host\": {\"kernel\": \"box\", "
				  "\"emulated\": true}, \"results\": []}";
	const char *const orders[][2] = {{real, box}, {box, real}};

	for (size_t i = 0; i < 2; i++) {
		struct err e = ERR_INIT;

		for (size_t k = 0; k < 2; k++) {
			save_to_file(orders[i][k]);
			cr_assert_eq(report_load(&rep, saved, &e), 0);
		}
		cr_assert_str_eq(
		    json_string_value(json_object_get(rep.host, "kernel")),
		    "real");
		report_free(&rep);
	}
	unlink(saved);
}

Test(host, is_told_in_one_line)
{
	json_t *host = json_pack(
	    "{s:s, s:s, s:i, s:i, s:s, s:b, s:s, s:s, s:b}", "kernel", "6.1",
	    "cpu", "C", "cpus", 2, "hz", 250, "kvm", "kvm_amd", "nested", 1,
	    "cgroup", "v2", "nx_huge_pages", "N", "emulated", 1);
	char line[256];

	host_line(host, line, sizeof(line));
	cr_assert_str_eq(line, "Linux 6.1, HZ=250, kvm_amd, nested, 2 CPUs "
			       "(C), cgroup v2, nx_huge_pages=N; all times "
			       "are emulated");
	json_decref(host);
}

// --- plots --------------------------------------------------------------------------

static char *drawn;
static size_t drawn_len;

static int draw_lines(const struct svg_plot *p)
{
	FILE *f;
	int rc;

	free(drawn);
	drawn = NULL;
	f = open_memstream(&drawn, &drawn_len);
	rc = svg_lines(f, p);
	fclose(f);
	return rc;
}

static int draw_bars(const struct svg_bar *b, size_t n)
{
	FILE *f;
	int rc;

	free(drawn);
	drawn = NULL;
	f = open_memstream(&drawn, &drawn_len);
	rc = svg_bars(f, &(struct svg_chart){"title", NULL, "unit", b, n});
	fclose(f);
	return rc;
}

// Coordinates of the first polyline.
static size_t points(double *x, double *y, size_t cap)
{
	char *p = strstr(drawn, "points=\""), *end;
	size_t n = 0;

	cr_assert_not_null(p);
	p += 8;
	while (*p != '"' && n < cap) {
		x[n] = strtod(p, &end);
		cr_assert_eq(*end, ',');
		y[n++] = strtod(end + 1, &p);
		p += *p == ' ';
	}
	return n;
}

static const double xs[] = {1, 10, 100}, ys[] = {0, 5, 10};

static struct svg_plot plot_of(struct svg_series *s, int log_x)
{
	*s = (struct svg_series){"a<b & \"c\"", xs, ys, 3, SVG_THAW};
	return (struct svg_plot){.title = "t",
				 .x_label = "x",
				 .y_label = "y",
				 .log_x = log_x,
				 .series = s,
				 .n = 1};
}

Test(svg, logarithmic_axis_puts_decades_at_equal_distances)
{
	struct svg_series s;
	struct svg_plot p = plot_of(&s, 1);
	double x[8], y[8];

	cr_assert_eq(draw_lines(&p), 0);
	cr_assert_eq(points(x, y, 8), 3);
	cr_assert_float_eq(x[1] - x[0], x[2] - x[1], 0.2);
	cr_assert_gt(x[1], x[0] + 100);
	cr_assert_not_null(strstr(drawn, ">20</text>")); // 1, 2, 5, 10, ...
	cr_assert_float_eq(y[0] - y[1], y[1] - y[2], 0.2);
	cr_assert_gt(y[0], y[1]); // up is more
}

Test(svg, straight_axis_is_straight)
{
	struct svg_series s;
	struct svg_plot p = plot_of(&s, 0);
	double x[8], y[8];

	cr_assert_eq(draw_lines(&p), 0);
	cr_assert_eq(points(x, y, 8), 3);
	cr_assert_float_eq((x[2] - x[1]) / (x[1] - x[0]), 10, 0.2);
}

Test(svg, names_are_escaped_and_both_themes_are_there)
{
	struct svg_series s;
	struct svg_plot p = plot_of(&s, 1);

	cr_assert_eq(draw_lines(&p), 0);
	cr_assert_not_null(strstr(drawn, "a&lt;b &amp; &quot;c&quot;"));
	cr_assert_null(strstr(drawn, "a<b"));
	cr_assert_not_null(strstr(drawn, "prefers-color-scheme:dark"));
	cr_assert_not_null(strstr(drawn, "viewBox"));
	cr_assert_str_eq(drawn + drawn_len - 7, "</svg>\n");
}

Test(svg, all_points_lie_on_the_canvas)
{
	static const double wide_x[] = {0.003, 7, 123456.7};
	static const double wide_y[] = {3, 0.2, 99.9};
	struct svg_series s = {"a", wide_x, wide_y, 3, SVG_PEER};
	struct svg_plot p = plot_of(&s, 1);
	double x[8], y[8];

	s.x = wide_x;
	s.y = wide_y;
	cr_assert_eq(draw_lines(&p), 0);
	cr_assert_eq(points(x, y, 8), 3);
	for (int i = 0; i < 3; i++)
		cr_assert(x[i] >= 62 && x[i] <= 532 && y[i] >= 66 &&
			      y[i] <= 346,
			  "%g %g", x[i], y[i]);
}

Test(svg, what_cannot_be_drawn_is_refused)
{
	static const double bad[] = {1, NAN, 3};
	struct svg_series s;
	struct svg_plot p = plot_of(&s, 1);

	p.n = 0;
	cr_assert_eq(draw_lines(&p), -EINVAL);
	p = plot_of(&s, 1);
	s.y = bad;
	cr_assert_eq(draw_lines(&p), -EINVAL);
	p = plot_of(&s, 1);
	p.n = SVG_MAX_SERIES + 1;
	cr_assert_eq(draw_lines(&p), -EINVAL);
	p = plot_of(&s, 1);
	s.kind = SVG_HEADING; // of bars only
	cr_assert_eq(draw_lines(&p), -EINVAL);
	cr_assert_eq(draw_bars(NULL, 0), -EINVAL);
	cr_assert_eq(draw_bars(&(struct svg_bar){"x", 0, NULL, SVG_HEADING}, 1),
		     -EINVAL);
	cr_assert_eq(draw_bars(&(struct svg_bar){"x", -1, NULL, SVG_THAW}, 1),
		     -EINVAL);
}

Test(svg, a_full_disk_is_an_error)
{
	struct svg_series s;
	struct svg_plot p = plot_of(&s, 1);
	FILE *f = fopen("/dev/full", "we");

	cr_assert_not_null(f);
	setvbuf(f, NULL, _IONBF, 0);
	cr_assert_eq(svg_lines(f, &p), -EIO);
	fclose(f);
}

// Widths of the bars, in order; the background's rectangle has class first.
static size_t widths(double *w, size_t cap)
{
	const char *p = drawn;
	size_t n = 0;

	while (n < cap && (p = strstr(p, "<rect class=\"f"))) {
		p = strstr(p, "width=\"") + 7;
		w[n++] = strtod(p, NULL);
	}
	return n;
}

Test(svg, bars_are_as_long_as_their_values)
{
	static const struct svg_bar b[] = {{"group", 0, NULL, SVG_HEADING},
					   {"thaw", 10, NULL, SVG_THAW},
					   {"peer", 40, NULL, SVG_PEER},
					   {"other", 20, NULL, SVG_FLOOR}};
	double w[4];

	cr_assert_eq(draw_bars(b, 4), 0);
	cr_assert_eq(widths(w, 4), 3);
	cr_assert_float_eq(w[1] / w[0], 4, 0.05);
	cr_assert_float_eq(w[2] / w[0], 2, 0.05);
}

Test(svg, numbers_are_short)
{
	static const struct {
		double v;
		const char *s;
	} all[] = {{0, "0.00"},	     {0.567, "0.57"},  {9.99, "9.99"},
		   {9.996, "10.0"},  {12.34, "12.3"},  {99.96, "100"},
		   {999.4, "999"},   {999.6, "1,000"}, {1749.4, "1,749"},
		   {26005, "26,005"}};
	char s[24];

	for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
		svg_number(s, sizeof(s), all[i].v);
		cr_assert_str_eq(s, all[i].s);
	}
}

// Each series' class, in the order in which they were drawn: the last first.
Test(svg, kinds_look_different_and_so_do_two_of_one_kind)
{
	struct svg_series s[4] = {{"a", xs, ys, 3, SVG_THAW},
				  {"b", xs, ys, 3, SVG_PEER},
				  {"c", xs, ys, 3, SVG_PEER},
				  {"d", xs, ys, 3, SVG_FLOOR}};
	struct svg_plot p = {
	    .title = "t", .x_label = "x", .y_label = "y", .series = s, .n = 4};

	cr_assert_eq(draw_lines(&p), 0);
	cr_assert_not_null(strstr(drawn, "<polyline class=\"s k0 a0\""));
	cr_assert_not_null(strstr(drawn, "<polyline class=\"s k2 c0\""));
	cr_assert_not_null(strstr(drawn, "<polyline class=\"s k2 c1\""));
	cr_assert_not_null(strstr(drawn, "<polyline class=\"s k1 b0\""));
}

// --- the page --------------------------------------------------------------------

static char *slurp(const char *dir, const char *name)
{
	static char buf[65536];
	char path[256];
	size_t n;
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	f = fopen(path, "re");
	if (!f)
		return NULL;
	n = fread(buf, 1, sizeof(buf) - 1, f);
	buf[n] = '\0';
	fclose(f);
	return buf;
}

static void remove_page(const char *dir)
{
	static const char *const names[] = {"report.md", "bench.json",
					    "restore.svg"};
	char path[256];

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		snprintf(path, sizeof(path), "%s/%s", dir, names[i]);
		unlink(path);
	}
	cr_assert_eq(rmdir(dir), 0, "more files than expected");
}

Test(page, has_a_table_and_only_the_plots_that_it_has_figures_for)
{
	char dir[] = "/tmp/test-bench-XXXXXX";
	struct err e = ERR_INIT;
	struct result *r;
	char *md;

	cr_assert_not_null(mkdtemp(dir));
	r = result_of("restore.shell", (double[]){700, 800, 900}, 3);
	samples_add(&r->floor, 1000);
	result_number(r, "t2_ms", 0.8);
	result_number(r, "cpu_ms", 1.5);
	result_number(r, "faults", 0);
	result_number(r, "bytes_read", 3 << 20);
	result_of("peer.some-vmm.warm", (double[]){9000}, 1);
	report_leave_out(&rep, "peer.other", "it is not here");
	report_leave_out(&rep, "peer.other", "said twice");
	cr_assert_eq(report_write(dir, &rep, &e), 0, "%s", e.msg);
	md = slurp(dir, "report.md");
	cr_assert_not_null(
	    strstr(md, "| restore.shell | 3 | us | 800 | 900 | 900 | 1000 | "
		       "0.8 |"));
	cr_assert_not_null(strstr(md, "(restore.svg)"));
	cr_assert_null(strstr(md, "(density.svg)"));
	cr_assert_not_null(strstr(md, "| restore.shell | - | 0.8 | - | - | - | "
				      "1.5 | 0 | - | - | - | 3 |"));
	cr_assert_not_null(strstr(md, "\n- peer.other: it is not here\n"));
	cr_assert_null(strstr(md, "said twice"));
	cr_assert_not_null(strstr(md, "HZ="));
	cr_assert_not_null(strstr(md, "nx_huge_pages="));
	cr_assert_not_null(
	    strstr(slurp(dir, "restore.svg"), ">some-vmm: 9.00<"));
	cr_assert_not_null(strstr(slurp(dir, "bench.json"), "\"results\""));
	remove_page(dir);
	report_free(&rep);
}

Test(page, says_why_it_cannot_be_written)
{
	struct err e = ERR_INIT;

	cr_assert_lt(report_write("/proc/none/x", &rep, &e), 0);
	cr_assert_not_null(strstr(e.msg, "/proc/none/x"));
}

// --- the guest's memory -------------------------------------------------------------

Test(guestmem, the_sum_is_that_of_the_first_words)
{
	static uint64_t pages[4 * 512];
	uint64_t sum = 0;

	guestmem_fill(9, 16 << 20, pages, sizeof(pages));
	for (int i = 0; i < 4; i++)
		sum += pages[i * 512];
	cr_assert_eq(guestmem_sum(9, 16 << 20, sizeof(pages)), sum);
	cr_assert_neq(guestmem_sum(8, 16 << 20, sizeof(pages)), sum);
	cr_assert_neq(pages[0], pages[512]); // the address matters
	// Half a page is one word, as the guest's own fill has it.
	cr_assert_eq(pages[0], pages[255]);
	cr_assert_neq(pages[256], pages[257]);
}

// Of each 32, or 80, pages four neighbours, no two blocks alike.
Test(guestmem, a_scattered_sum_is_that_of_runs)
{
	static const unsigned blocks[] = {32, 80};
	const uint64_t at = 16 << 20;

	for (size_t n = 0; n < ARRAY_SIZE(blocks); n++) {
		unsigned b = blocks[n], found = 0;
		uint64_t bytes = 2ull * b * 4096;
		uint64_t want = guestmem_sum_scattered(9, at, bytes, b);

		for (uint64_t i = 0; i <= b - 4; i++)
			for (uint64_t k = b; k <= b + b - 4; k++)
				found +=
				    guestmem_sum(9, at + i * 4096, 16384) +
					guestmem_sum(9, at + k * 4096, 16384) ==
				    want;
		cr_assert_eq(found, 1);
		cr_assert_neq(guestmem_sum_scattered(8, at, bytes, b), want);
	}
}

// --- the host ---------------------------------------------------------------------

Test(host, tells_what_the_kernel_tells)
{
	uint64_t minor, major, more;
	char *touched;

	cr_assert_gt(host_meminfo("MemTotal"), 1024);
	cr_assert_eq(host_meminfo("Mem"), 0); // whole names only
	cr_assert_gt(host_pss_kb(getpid()), 0);
	cr_assert_gt(host_cpu_ns(getpid()), 0);
	cr_assert_gt(host_busy_ns(), host_cpu_ns(getpid()));
	host_faults(getpid(), &minor, &major);
	cr_assert_gt(minor, 0);
	touched = malloc(100 * 4096);
	memset(touched, 1, 100 * 4096);
	host_faults(getpid(), &more, &major);
	cr_assert_geq(more, minor + 99);
	free(touched);
	cr_assert(host_tsc_ghz() > 0.2 && host_tsc_ghz() < 10);
}
