// Theory: everything is computed in pixels of a fixed canvas and written at once.
// An axis maps [lo, hi] to pixels, straight or by the logarithm; its ticks are
// round numbers. Colours are CSS classes, so that one media query turns the whole
// picture dark. Names come from our own code or from peers' adapters, and are
// escaped all the same.
#include "svg.h"

#include <errno.h>
#include <math.h>
#include <string.h>

enum {
	WIDTH = 720,
	HEIGHT = 380,
	LEFT = 64,
	RIGHT = 190, // room for the legend
	TOP = 40,
	BOTTOM = 52,
	BAR = 22,
	BAR_LEFT = 210,
	BAR_RIGHT = 110,
};

struct axis {
	double lo, hi;
	double from, to; // pixels
	int log;
};

static double scale(const struct axis *a, double v)
{
	double lo = a->log ? log10(a->lo) : a->lo;
	double hi = a->log ? log10(a->hi) : a->hi;

	v = a->log ? log10(v) : v;
	return a->from + (v - lo) / (hi - lo) * (a->to - a->from);
}

// The first round step (1, 2 or 5 times a power of ten) that is at least `raw`.
static double round_step(double raw)
{
	double p = pow(10, floor(log10(raw)));

	for (int i = 0; i < 3; i++) {
		static const double steps[] = {1, 2, 5};

		if (steps[i] * p >= raw * 0.999999)
			return steps[i] * p;
	}
	return 10 * p;
}

// Widens the range to round ends.
static void settle(struct axis *a)
{
	double step;

	if (a->log) {
		a->lo = pow(10, floor(log10(a->lo) + 1e-9));
		a->hi = pow(10, ceil(log10(a->hi) - 1e-9));
		if (a->hi <= a->lo)
			a->hi = a->lo * 10;
		return;
	}
	a->lo = a->lo < 0 ? a->lo : 0;
	if (a->hi <= a->lo)
		a->hi = a->lo + 1;
	step = round_step((a->hi - a->lo) / 5);
	a->hi = ceil(a->hi / step - 1e-9) * step;
}

static double next_tick(const struct axis *a, double at)
{
	return a->log ? at * 10 : at + round_step((a->hi - a->lo) / 5);
}

static void put_text(FILE *out, const char *s)
{
	for (; *s; s++) {
		switch (*s) {
		case '<':
			fputs("&lt;", out);
			break;
		case '>':
			fputs("&gt;", out);
			break;
		case '&':
			fputs("&amp;", out);
			break;
		case '"':
			fputs("&quot;", out);
			break;
		default:
			fputc((unsigned char)*s < ' ' ? ' ' : *s, out);
		}
	}
}

static void text(FILE *out, double x, double y, const char *class,
		 const char *anchor, const char *s)
{
	fprintf(out,
		"<text x=\"%.1f\" y=\"%.1f\" class=\"%s\" "
		"text-anchor=\"%s\">",
		x, y, class, anchor);
	put_text(out, s);
	fputs("</text>\n", out);
}

// Okabe and Ito's colours, which colour-blind readers can tell apart too.
static const char *const colours[SVG_MAX_SERIES] = {
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00",
    "#56b4e9", "#8c564b", "#7f7f7f", "#bcbd22", "#9467bd"};

static void open_svg(FILE *out, int w, int h, const char *title)
{
	fprintf(out,
		"<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d "
		"%d\" width=\"%d\" height=\"%d\" role=\"img\" "
		"font-family=\"system-ui,sans-serif\" font-size=\"12\">\n"
		"<style>\n"
		".bg{fill:#ffffff}.t{fill:#1f2328}.l{fill:#59636e}"
		".g{stroke:#d1d9e0;stroke-width:1}"
		".s{fill:none;stroke-width:2;stroke-linejoin:round}\n"
		"@media (prefers-color-scheme:dark){.bg{fill:#0d1117}"
		".t{fill:#f0f6fc}.l{fill:#9198a1}.g{stroke:#3d444d}}\n"
		"</style>\n",
		w, h, w, h);
	fputs("<title>", out);
	put_text(out, title);
	fprintf(out,
		"</title>\n<rect class=\"bg\" width=\"%d\" height=\"%d\" "
		"rx=\"6\"/>\n",
		w, h);
	text(out, 16, 24, "t", "start", title);
}

static void grid_x(FILE *out, const struct axis *x, double top, double bottom)
{
	char s[32];

	for (double v = x->lo; v <= x->hi * 1.000001; v = next_tick(x, v)) {
		double px = scale(x, v);

		fprintf(out,
			"<line class=\"g\" x1=\"%.1f\" y1=\"%.1f\" "
			"x2=\"%.1f\" y2=\"%.1f\"/>\n",
			px, top, px, bottom);
		snprintf(s, sizeof(s), "%g", v);
		text(out, px, bottom + 16, "l", "middle", s);
	}
}

static void grid_y(FILE *out, const struct axis *y, double left, double right)
{
	char s[32];

	for (double v = y->lo; v <= y->hi * 1.000001; v = next_tick(y, v)) {
		double py = scale(y, v);

		fprintf(out,
			"<line class=\"g\" x1=\"%.1f\" y1=\"%.1f\" "
			"x2=\"%.1f\" y2=\"%.1f\"/>\n",
			left, py, right, py);
		snprintf(s, sizeof(s), "%g", v);
		text(out, left - 8, py + 4, "l", "end", s);
	}
}

static int usable(double v, int log)
{
	return !log || v > 0;
}

// Ranges of all values that can be drawn; 0, or -EINVAL.
static int ranges(const struct svg_plot *p, struct axis *x, struct axis *y)
{
	int any = 0;

	for (size_t i = 0; i < p->n; i++) {
		const struct svg_series *s = &p->series[i];

		for (size_t k = 0; k < s->n; k++) {
			if (!isfinite(s->x[k]) || !isfinite(s->y[k]))
				return -EINVAL;
			if (!usable(s->x[k], p->log_x) ||
			    !usable(s->y[k], p->log_y))
				continue;
			x->lo = any ? fmin(x->lo, s->x[k]) : s->x[k];
			x->hi = any ? fmax(x->hi, s->x[k]) : s->x[k];
			y->lo = any ? fmin(y->lo, s->y[k]) : s->y[k];
			y->hi = any ? fmax(y->hi, s->y[k]) : s->y[k];
			any = 1;
		}
	}
	if (!any)
		return -EINVAL;
	settle(x);
	settle(y);
	return 0;
}

static void draw_series(FILE *out, const struct svg_plot *p, size_t i,
			const struct axis *x, const struct axis *y)
{
	const struct svg_series *s = &p->series[i];
	double ly = TOP + 12 + 18 * (double)i;

	fprintf(out, "<polyline class=\"s\" stroke=\"%s\" points=\"",
		colours[i]);
	for (size_t k = 0; k < s->n; k++) {
		if (usable(s->x[k], p->log_x) && usable(s->y[k], p->log_y))
			fprintf(out, "%.1f,%.1f ", scale(x, s->x[k]),
				scale(y, s->y[k]));
	}
	fputs("\"/>\n", out);
	fprintf(out,
		"<line class=\"s\" stroke=\"%s\" x1=\"%d\" y1=\"%.1f\" "
		"x2=\"%d\" y2=\"%.1f\"/>\n",
		colours[i], WIDTH - RIGHT + 14, ly - 4, WIDTH - RIGHT + 34,
		ly - 4);
	text(out, WIDTH - RIGHT + 40, ly, "t", "start", s->name);
}

int svg_lines(FILE *out, const struct svg_plot *p)
{
	struct axis x = {.from = LEFT, .to = WIDTH - RIGHT, .log = p->log_x};
	struct axis y = {.from = HEIGHT - BOTTOM, .to = TOP, .log = p->log_y};

	if (p->n > SVG_MAX_SERIES || ranges(p, &x, &y))
		return -EINVAL;
	open_svg(out, WIDTH, HEIGHT, p->title);
	grid_x(out, &x, TOP, HEIGHT - BOTTOM);
	grid_y(out, &y, LEFT, WIDTH - RIGHT);
	for (size_t i = 0; i < p->n; i++)
		draw_series(out, p, i, &x, &y);
	text(out, (LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 14, "l", "middle",
	     p->x_label);
	fprintf(out, "<g transform=\"translate(16 %d) rotate(-90)\">\n",
		(TOP + HEIGHT - BOTTOM) / 2);
	text(out, 0, 0, "l", "middle", p->y_label);
	fputs("</g>\n</svg>\n", out);
	return ferror(out) ? -EIO : 0;
}

static int bar_range(const struct svg_bar *bars, size_t n, struct axis *x)
{
	for (size_t i = 0; i < n; i++) {
		if (!isfinite(bars[i].value) || bars[i].value < 0 ||
		    !usable(bars[i].value, x->log))
			return -EINVAL;
		x->lo = i ? fmin(x->lo, bars[i].value) : bars[i].value;
		x->hi = i ? fmax(x->hi, bars[i].value) : bars[i].value;
	}
	if (x->log)
		x->lo /= 2; // the shortest bar is seen
	else
		x->lo = 0;
	settle(x);
	return n ? 0 : -EINVAL;
}

int svg_bars(FILE *out, const char *title, const char *unit,
	     const struct svg_bar *bars, size_t n, int log_x)
{
	struct axis x = {
	    .from = BAR_LEFT, .to = WIDTH - BAR_RIGHT, .log = log_x};
	int height = TOP + BAR * (int)n + BOTTOM;

	if (bar_range(bars, n, &x))
		return -EINVAL;
	open_svg(out, WIDTH, height, title);
	grid_x(out, &x, TOP, height - BOTTOM);
	for (size_t i = 0; i < n; i++) {
		double y = TOP + BAR * (double)i,
		       end = scale(&x, bars[i].value);
		char s[64];

		snprintf(s, sizeof(s), "%.4g", bars[i].value);
		text(out, BAR_LEFT - 8, y + 16, "t", "end", bars[i].name);
		fprintf(out,
			"<rect fill=\"%s\" x=\"%d\" y=\"%.1f\" width=\"%.1f\" "
			"height=\"%d\" rx=\"2\"/>\n",
			colours[strncmp(bars[i].name, "thaw", 4) == 0 ? 0 : 7],
			BAR_LEFT, y + 4, fmax(end - BAR_LEFT, 1), BAR - 8);
		text(out, fmax(end, BAR_LEFT) + 6, y + 16, "l", "start",
		     bars[i].note ? bars[i].note : s);
	}
	text(out, (BAR_LEFT + WIDTH - BAR_RIGHT) / 2.0, height - 14, "l",
	     "middle", unit);
	fputs("</svg>\n", out);
	return ferror(out) ? -EIO : 0;
}
