// The report as a table and as JSON, and JSON read back: a long run can be made in
// pieces, and real guests are measured by a program of their own.
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bench.h"

static void number_or_dash(FILE *out, int width, int digits, double v)
{
	if (v > 0)
		fprintf(out, " %*.*f", width, digits, v);
	else
		fprintf(out, " %*s", width, "-");
}

static json_t *host_of(const struct report *r)
{
	return r->host ? json_incref(r->host) : host_facts();
}

static bool emulated(const struct result *r)
{
	return json_is_true(json_object_get(r->extra, "emulated"));
}

void report_table(FILE *out, struct report *r)
{
	json_t *host = host_of(r);
	char line[512];

	host_line(host, line, sizeof(line));
	json_decref(host);
	fprintf(out, "%s\n\n", line);
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
		fputs(emulated(x) ? "  emulated\n" : "\n", out);
	}
	for (size_t i = 0; i < r->num_left_out; i++)
		fprintf(out, "%-28s left out: %s\n", r->left_out[i].name,
			r->left_out[i].why);
}

// --- to JSON ------------------------------------------------------------------------

static double rounded(double v)
{
	return round(v * 1000) / 1000;
}

static json_t *number_or_null(double v)
{
	return v > 0 ? json_real(rounded(v)) : json_null();
}

static json_t *samples_json(struct samples *s)
{
	json_t *list = json_array();

	samples_percentile(s, 50); // sorts
	for (size_t i = 0; i < s->n; i++)
		json_array_append_new(list, json_real(rounded(s->v[i])));
	return list;
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
	json_object_set_new(o, "samples", samples_json(&r->samples));
	if (r->floor.n)
		json_object_set_new(o, "floor_samples",
				    samples_json(&r->floor));
	return o;
}

json_t *report_json(struct report *r)
{
	json_t *list = json_array(), *out = json_array();

	for (size_t i = 0; i < r->n; i++)
		json_array_append_new(list, result_json(&r->v[i]));
	for (size_t i = 0; i < r->num_left_out; i++)
		json_array_append_new(
		    out, json_pack("{s:s, s:s}", "name", r->left_out[i].name,
				   "reason", r->left_out[i].why));
	return json_pack("{s:o, s:o, s:o}", "host", host_of(r), "results", list,
			 "left_out", out);
}

static void put_list(FILE *f, const char *name, const json_t *list)
{
	const json_t *v;
	size_t i;

	fprintf(f, ",\n\"%s\": [", name);
	json_array_foreach(list, i, v)
	{
		fputs(i ? ",\n " : "\n ", f);
		// Eight digits: what was rounded stays as short as it is.
		json_dumpf(v, f, JSON_REAL_PRECISION(12));
	}
	fputs("]", f);
}

int report_save(const char *path, struct report *r, struct err *e)
{
	FILE *f = fopen(path, "we");
	json_t *j;
	int bad;

	if (!f)
		return err_sys(e, "cannot write %s", path);
	j = report_json(r);
	fputs("{\"host\": ", f);
	json_dumpf(json_object_get(j, "host"), f, 0);
	put_list(f, "results", json_object_get(j, "results"));
	put_list(f, "left_out", json_object_get(j, "left_out"));
	fputs("}\n", f);
	json_decref(j);
	bad = ferror(f);
	if (fclose(f) || bad)
		return err_set(e, -EIO, "cannot write all of %s", path);
	return 0;
}

// --- from JSON ----------------------------------------------------------------------

static int load_samples(const json_t *list, struct samples *s)
{
	const json_t *v;
	size_t i;

	json_array_foreach(list, i, v)
	{
		if (!json_is_number(v) || !isfinite(json_number_value(v)))
			return -EPROTO;
		samples_add(s, json_number_value(v));
	}
	return 0;
}

static int load_result(struct report *r, json_t *o)
{
	const char *name = json_string_value(json_object_get(o, "name"));
	const char *unit = json_string_value(json_object_get(o, "unit"));
	struct result *x;

	if (!name || !unit || strlen(name) >= sizeof(x->name) ||
	    r->n == MAX_RESULTS)
		return -EPROTO;
	if (report_find(r, name))
		return -EEXIST;
	x = report_add(r, "", "%s", name);
	x->extra = json_deep_copy(o); // all of it is written again
	if (!x->extra)
		return -ENOMEM;
	x->unit = json_string_value(json_object_get(x->extra, "unit"));
	x->floor_p50 = json_number_value(json_object_get(o, "floor_p50"));
	x->ratio = json_number_value(json_object_get(o, "ratio"));
	if (load_samples(json_object_get(o, "samples"), &x->samples) ||
	    load_samples(json_object_get(o, "floor_samples"), &x->floor) ||
	    !x->samples.n)
		return -EPROTO;
	json_object_del(x->extra, "samples");
	json_object_del(x->extra, "floor_samples");
	return 0;
}

static void load_left_out(struct report *r, const json_t *list)
{
	const json_t *v;
	size_t i;

	json_array_foreach(list, i, v)
	{
		const char *name =
		    json_string_value(json_object_get(v, "name"));
		const char *why =
		    json_string_value(json_object_get(v, "reason"));

		if (name && why)
			report_leave_out(r, name, why);
	}
}

// Of several files, the facts of a host whose times are real.
static void load_host(struct report *r, json_t *host)
{
	if (r->host && (!json_is_true(json_object_get(r->host, "emulated")) ||
			json_is_true(json_object_get(host, "emulated"))))
		return;
	json_decref(r->host);
	r->host = json_incref(host);
}

int report_load(struct report *r, const char *path, struct err *e)
{
	json_error_t je;
	json_t *j = json_load_file(path, JSON_REJECT_DUPLICATES, &je), *v;
	json_t *host = json_object_get(j, "host");
	json_t *list = json_object_get(j, "results");
	size_t i;
	int rc = 0;

	if (!j)
		return err_set(e, -EPROTO, "cannot read %s: %s", path, je.text);
	if (!json_is_object(host) || !json_is_array(list))
		rc = err_set(e, -EPROTO, "%s has no host and results", path);
	json_array_foreach(list, i, v)
	{
		if (!rc)
			rc = load_result(r, v);
		if (rc == -EEXIST)
			err_set(e, rc, "%s: %s was measured already", path,
				json_string_value(json_object_get(v, "name")));
		else if (rc)
			err_set(e, rc,
				"%s: result %zu lacks a name, a unit or "
				"samples",
				path, i);
		if (rc)
			break;
	}
	if (!rc) {
		load_host(r, host);
		load_left_out(r, json_object_get(j, "left_out"));
	}
	json_decref(j);
	return rc;
}
