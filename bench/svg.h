// Small plots as SVG, to be embedded in Markdown by <img>: one file, no scripts, no
// fonts of its own; colours follow the reader's light or dark preference.
#ifndef THAW_BENCH_SVG_H
#define THAW_BENCH_SVG_H

#include <stddef.h>
#include <stdio.h>

struct svg_series {
	const char *name;
	const double *x, *y;
	size_t n;
};

struct svg_plot {
	const char *title, *x_label, *y_label;
	int log_x, log_y; // decades; values of 0 and less are left out
	const struct svg_series *series;
	size_t n; // at most SVG_MAX_SERIES
};
enum { SVG_MAX_SERIES = 10 };

// Lines. 0, or -EINVAL: nothing to draw, or a value that is not finite.
int svg_lines(FILE *out, const struct svg_plot *p);

struct svg_bar {
	const char *name;
	double value;
	const char *note; // behind the bar; or NULL: the value
};
// Horizontal bars from 0, or in decades. Same errors.
int svg_bars(FILE *out, const char *title, const char *unit,
	     const struct svg_bar *bars, size_t n, int log_x);

#endif
