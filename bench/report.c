// The report as a table and as JSON.
#include <math.h>
#include <stdio.h>

#include "bench.h"

static void number_or_dash(FILE *out, int width, int digits, double v)
{
	if (v > 0)
		fprintf(out, " %*.*f", width, digits, v);
	else
		fprintf(out, " %*s", width, "-");
}

void report_table(FILE *out, struct report *r)
{
	fprintf(out, "%-28s %6s %10s %10s %10s  %-7s %10s %7s\n", "name", "n",
		"p50", "p99", "max", "unit", "floor p50", "ratio");
	for (size_t i = 0; i < r->n; i++) {
		struct result *x = &r->v[i];

		fprintf(out, "%-28s %6zu %10.1f %10.1f %10.1f  %-7s", x->name,
			x->samples.n, samples_percentile(&x->samples, 50),
			samples_percentile(&x->samples, 99),
			samples_percentile(&x->samples, 100), x->unit);
		number_or_dash(out, 10, 1, result_floor(x));
		number_or_dash(out, 7, 2, result_ratio(x));
		fputc('\n', out);
	}
}

static double rounded(double v)
{
	return round(v * 1000) / 1000;
}

static json_t *number_or_null(double v)
{
	return v > 0 ? json_real(rounded(v)) : json_null();
}

static json_t *result_json(struct result *r)
{
	json_t *o =
	    json_pack("{s:s, s:I, s:s, s:f, s:f, s:f}", "name", r->name, "n",
		      (json_int_t)r->samples.n, "unit", r->unit, "p50",
		      rounded(samples_percentile(&r->samples, 50)), "p99",
		      rounded(samples_percentile(&r->samples, 99)), "max",
		      rounded(samples_percentile(&r->samples, 100)));

	json_object_set_new(o, "floor_p50", number_or_null(result_floor(r)));
	json_object_set_new(o, "ratio", number_or_null(result_ratio(r)));
	if (r->extra)
		json_object_update(o, r->extra);
	return o;
}

json_t *report_json(struct report *r)
{
	json_t *list = json_array();

	for (size_t i = 0; i < r->n; i++)
		json_array_append_new(list, result_json(&r->v[i]));
	return json_pack("{s:o, s:o}", "host", host_facts(), "results", list);
}
