// Theory: everything is computed in pixels of a fixed canvas and written at once.
// An axis maps [lo, hi] to pixels, straight or by the logarithm; its ticks are
// round numbers (1, 2 or 5 times a power of ten). Colours are CSS classes, so that
// one media query turns the whole picture dark; each is legible on both grounds,
// and lines differ by their dashes too. Names come from our own code or from peers'
// adapters, and are escaped all the same.
#include "svg.h"

#include <errno.h>
#include <math.h>
#include <string.h>

enum {
	WIDTH = 800,
	HEIGHT = 400,
	LEFT = 62,
	RIGHT = 268, // room for the legend
	TOP = 66,
	BOTTOM = 54,
	BAR = 26,
	BAR_RIGHT = 84, // room for the last bar's number
	MARKED = 8,	// at most so many points of a line get a dot
};
// About the width of a character of the text.
static const double CHAR = 6.7;

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

// The nearest round number at or above `v` (dir 1), or at or below it (-1).
static double round_to(double v, int dir)
{
	static const double steps[] = {1, 2, 5, 10};
	double p = pow(10, floor(log10(v) + 1e-9));

	for (int i = 0; i < 4; i++) {
		int k = dir > 0 ? i : 3 - i;

		if (dir > 0 ? steps[k] * p >= v * 0.999999
			    : steps[k] * p <= v * 1.000001)
			return steps[k] * p;
	}
	return dir > 0 ? 10 * p : p;
}

// Widens the range to round ends.
static void settle(struct axis *a)
{
	double step;

	if (a->log) {
		a->lo = round_to(a->lo, -1);
		a->hi = round_to(a->hi, 1);
		if (a->hi <= a->lo)
			a->hi = a->lo * 10;
		return;
	}
	a->lo = a->lo < 0 ? a->lo : 0;
	if (a->hi <= a->lo)
		a->hi = a->lo + 1;
	step = round_to((a->hi - a->lo) / 5, 1);
	a->hi = ceil(a->hi / step - 1e-9) * step;
}

static double next_tick(const struct axis *a, double at)
{
	if (!a->log)
		return at + round_to((a->hi - a->lo) / 5, 1);
	// Over many decades 2 and 5 would be too many.
	return a->hi / a->lo > 2000 ? round_to(at * 5.1, 1)
				    : round_to(at * 1.1, 1);
}

void svg_number(char *buf, size_t cap, double v)
{
	double a = fabs(v);

	if (a >= 999.5)
		snprintf(buf, cap, "%.0f,%03.0f", trunc(round(v) / 1000),
			 fmod(round(a), 1000));
	else
		snprintf(buf, cap, "%.*f",
			 a >= 99.95   ? 0
			 : a >= 9.995 ? 1
				      : 2,
			 v);
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

// a: thaw's, b: floors', c: peers'. Light, then dark.
static const char style[] =
    "<style>\n"
    ".bg{fill:#fff}.h{fill:#1f2328;font-weight:600;font-size:15px}"
    ".t{fill:#1f2328}.w{fill:#1f2328;font-weight:600}.l{fill:#59636e}"
    ".g{stroke:#d1d9e0;stroke-width:1}"
    ".s{fill:none;stroke-width:2;stroke-linejoin:round}"
    ".k0{stroke-width:3}.k1{stroke-dasharray:5 4}\n"
    ".a0{stroke:#0969da}.a1{stroke:#0e7490}.a2{stroke:#8250df}"
    ".a3{stroke:#1a7f37}"
    ".b0{stroke:#6e7781}.b1{stroke:#9aa4ae}.b2{stroke:#6e7781}"
    ".b3{stroke:#9aa4ae}"
    ".c0{stroke:#bc4c00}.c1{stroke:#bf3989}.c2{stroke:#9a6700}"
    ".c3{stroke:#cf222e;stroke-dasharray:9 3}"
    ".c4{stroke:#57606a}.c5{stroke:#953800;stroke-dasharray:2 3}"
    ".c6{stroke:#116329;stroke-dasharray:9 3}.c7{stroke:#6639ba}\n"
    ".d{stroke:none}"
    ".f0{fill:#0969da}.f1{fill:#afb8c1}.f2{fill:#dd8452}\n"
    "@media (prefers-color-scheme:dark){.bg{fill:#0d1117}"
    ".h,.t,.w{fill:#f0f6fc}.l{fill:#9198a1}.g{stroke:#30363d}"
    ".a0{stroke:#4493f8}.a1{stroke:#39c5cf}.a2{stroke:#ab7df8}"
    ".a3{stroke:#3fb950}"
    ".b0,.b2{stroke:#9198a1}.b1,.b3{stroke:#656c76}"
    ".c0{stroke:#f0883e}.c1{stroke:#f778ba}.c2{stroke:#d29922}"
    ".c3{stroke:#ff7b72}.c4{stroke:#c9d1d9}.c5{stroke:#ffa657}"
    ".c6{stroke:#7ee787}.c7{stroke:#d2a8ff}"
    ".f0{fill:#4493f8}.f1{fill:#656c76}.f2{fill:#c4703a}}\n"
    "</style>\n";

static void open_svg(FILE *out, int h, const char *title, const char *subtitle)
{
	fprintf(out,
		"<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d "
		"%d\" width=\"%d\" height=\"%d\" role=\"img\" "
		"font-family=\"system-ui,-apple-system,'Segoe UI',"
		"'DejaVu Sans',sans-serif\" font-size=\"12\">\n",
		WIDTH, h, WIDTH, h);
	fputs(style, out);
	fputs("<title>", out);
	put_text(out, title);
	fprintf(out,
		"</title>\n<rect class=\"bg\" width=\"%d\" height=\"%d\" "
		"rx=\"6\"/>\n",
		WIDTH, h);
	text(out, 18, 27, "h", "start", title);
	if (subtitle)
		text(out, 18, 46, "l", "start", subtitle);
}

static void rule(FILE *out, double x1, double y1, double x2, double y2)
{
	fprintf(out,
		"<line class=\"g\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" "
		"y2=\"%.1f\"/>\n",
		x1, y1, x2, y2);
}

static void tick_label(char *s, size_t cap, double v)
{
	if (fabs(v) >= 1000)
		svg_number(s, cap, v);
	else
		snprintf(s, cap, "%g", v);
}

static void grid_x(FILE *out, const struct axis *x, double top, double bottom)
{
	char s[32];

	for (double v = x->lo; v <= x->hi * 1.000001; v = next_tick(x, v)) {
		double px = scale(x, v);

		rule(out, px, top, px, bottom);
		tick_label(s, sizeof(s), v);
		text(out, px, bottom + 17, "l", "middle", s);
	}
}

static void grid_y(FILE *out, const struct axis *y, double left, double right)
{
	char s[32];

	for (double v = y->lo; v <= y->hi * 1.000001; v = next_tick(y, v)) {
		double py = scale(y, v);

		rule(out, left, py, right, py);
		tick_label(s, sizeof(s), v);
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

// The classes of the i-th series: its kind's look, and the next colour of it.
static void series_class(const struct svg_plot *p, size_t i, char *buf,
			 size_t cap)
{
	static const struct {
		char letter;
		int colours;
	} kinds[] = {{'a', 4}, {'b', 4}, {'c', 8}};
	enum svg_kind kind = p->series[i].kind;
	int nth = 0;

	for (size_t k = 0; k < i; k++)
		nth += p->series[k].kind == kind;
	snprintf(buf, cap, "s k%d %c%d", (int)kind, kinds[kind].letter,
		 nth % kinds[kind].colours);
}

static void draw_series(FILE *out, const struct svg_plot *p, size_t i,
			const struct axis *x, const struct axis *y)
{
	const struct svg_series *s = &p->series[i];
	double ly = TOP + 14 + 21 * (double)i;
	char class[32];

	series_class(p, i, class, sizeof(class));
	fprintf(out, "<polyline class=\"%s\" points=\"", class);
	for (size_t k = 0; k < s->n; k++) {
		if (usable(s->x[k], p->log_x) && usable(s->y[k], p->log_y))
			fprintf(out, "%.1f,%.1f ", scale(x, s->x[k]),
				scale(y, s->y[k]));
	}
	fputs("\"/>\n", out);
	for (size_t k = 0; k < s->n && s->n <= MARKED; k++) {
		if (usable(s->x[k], p->log_x) && usable(s->y[k], p->log_y))
			fprintf(out,
				"<circle class=\"%s\" style=\"fill:none;"
				"stroke-dasharray:none\" cx=\"%.1f\" "
				"cy=\"%.1f\" r=\"2.5\"/>\n",
				class, scale(x, s->x[k]), scale(y, s->y[k]));
	}
	fprintf(out,
		"<line class=\"%s\" x1=\"%d\" y1=\"%.1f\" x2=\"%d\" "
		"y2=\"%.1f\"/>\n",
		class, WIDTH - RIGHT + 16, ly - 4, WIDTH - RIGHT + 40, ly - 4);
	text(out, WIDTH - RIGHT + 47, ly, s->kind == SVG_THAW ? "w" : "t",
	     "start", s->name);
}

int svg_lines(FILE *out, const struct svg_plot *p)
{
	struct axis x = {.from = LEFT, .to = WIDTH - RIGHT, .log = p->log_x};
	struct axis y = {.from = HEIGHT - BOTTOM, .to = TOP, .log = p->log_y};

	if (p->n > SVG_MAX_SERIES || ranges(p, &x, &y))
		return -EINVAL;
	for (size_t i = 0; i < p->n; i++) {
		if (p->series[i].kind > SVG_PEER)
			return -EINVAL;
	}
	open_svg(out, HEIGHT, p->title, p->subtitle);
	grid_x(out, &x, TOP, HEIGHT - BOTTOM);
	grid_y(out, &y, LEFT, WIDTH - RIGHT);
	for (size_t i = p->n; i-- > 0;) // the first on top
		draw_series(out, p, i, &x, &y);
	text(out, (LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 14, "l", "middle",
	     p->x_label);
	fprintf(out, "<g transform=\"translate(17 %d) rotate(-90)\">\n",
		(TOP + HEIGHT - BOTTOM) / 2);
	text(out, 0, 0, "l", "middle", p->y_label);
	fputs("</g>\n</svg>\n", out);
	return ferror(out) ? -EIO : 0;
}

// --- bars ---------------------------------------------------------------------------

// The axis, and where bars begin: right of the longest name.
static int bar_range(const struct svg_chart *c, struct axis *x)
{
	double longest = 0;
	size_t bars = 0;

	x->lo = x->hi = 0;
	for (size_t i = 0; i < c->n; i++) {
		const struct svg_bar *b = &c->bars[i];

		if (b->kind == SVG_HEADING)
			continue;
		if (!isfinite(b->value) || b->value < 0)
			return -EINVAL;
		longest = fmax(longest, (double)strlen(b->name));
		x->hi = fmax(x->hi, b->value);
		bars++;
	}
	x->from = fmin(fmax(48 + CHAR * longest, 110), WIDTH / 2.0);
	x->to = WIDTH - BAR_RIGHT;
	settle(x);
	return bars ? 0 : -EINVAL;
}

static void draw_bar(FILE *out, const struct svg_bar *b, const struct axis *x,
		     double y)
{
	double end = scale(x, b->value);
	char s[64];

	if (b->kind == SVG_HEADING) {
		text(out, 18, y + 18, "w", "start", b->name);
		return;
	}
	svg_number(s, sizeof(s), b->value);
	text(out, x->from - 9, y + 17, b->kind == SVG_THAW ? "w" : "t", "end",
	     b->name);
	fprintf(out,
		"<rect class=\"f%d\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" "
		"height=\"%d\" rx=\"2\"/>\n",
		(int)b->kind, x->from, y + 4, fmax(end - x->from, 1), BAR - 8);
	text(out, end + 6, y + 17, b->kind == SVG_THAW ? "w" : "t", "start",
	     b->note ? b->note : s);
}

int svg_bars(FILE *out, const struct svg_chart *c)
{
	int height = TOP + BAR * (int)c->n + BOTTOM;
	struct axis x = {0};

	if (bar_range(c, &x))
		return -EINVAL;
	open_svg(out, height, c->title, c->subtitle);
	grid_x(out, &x, TOP, height - BOTTOM);
	for (size_t i = 0; i < c->n; i++)
		draw_bar(out, &c->bars[i], &x, TOP + BAR * (double)i);
	text(out, (x.from + x.to) / 2, height - 14, "l", "middle", c->unit);
	fputs("</svg>\n", out);
	return ferror(out) ? -EIO : 0;
}
