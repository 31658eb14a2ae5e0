// Small plots as SVG, to be embedded in Markdown by <img>: one file, no scripts, no
// fonts of its own; colours follow the reader's light or dark preference.
#ifndef THAW_BENCH_SVG_H
#define THAW_BENCH_SVG_H

#include <stddef.h>
#include <stdio.h>

// What a line or bar stands for: each kind has its look in all plots.
enum svg_kind {
	SVG_THAW,    // ours: strong
	SVG_FLOOR,   // the least possible: dashed, pale
	SVG_PEER,    // another's
	SVG_HEADING, // bars only: no bar, its name heads those below it
};

struct svg_series {
	const char *name;
	const double *x, *y;
	size_t n;
	enum svg_kind kind;
};

struct svg_plot {
	const char *title, *subtitle; // the latter may be NULL
	const char *x_label, *y_label;
	int log_x, log_y; // values of 0 and less are left out then
	const struct svg_series *series;
	size_t n; // at most SVG_MAX_SERIES
};
enum { SVG_MAX_SERIES = 12 };

// Lines; few points are marked. 0, or -EINVAL: nothing to draw, or a value that is
// not finite; -EIO.
int svg_lines(FILE *out, const struct svg_plot *p);

struct svg_bar {
	const char *name;
	double value;
	const char *note; // behind the bar; or NULL: the value
	enum svg_kind kind;
};
struct svg_chart {
	const char *title, *subtitle, *unit;
	const struct svg_bar *bars;
	size_t n;
};
// Horizontal bars from 0. Same errors.
int svg_bars(FILE *out, const struct svg_chart *c);

// A number as short as it stays readable: "0.57", "12.3", "1,749".
void svg_number(char *buf, size_t cap, double v);

#endif
