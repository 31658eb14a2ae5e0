// Samples and results.
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "bench.h"

void samples_add(struct samples *s, double v)
{
	if (s->n == s->cap) {
		s->cap = s->cap ? 2 * s->cap : 256;
		s->v = realloc(s->v, s->cap * sizeof(*s->v));
		if (!s->v)
			abort();
	}
	s->v[s->n++] = v;
}

void samples_free(struct samples *s)
{
	free(s->v);
	*s = (struct samples){0};
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

double samples_percentile(struct samples *s, double p)
{
	size_t rank;

	if (!s->n)
		return 0;
	qsort(s->v, s->n, sizeof(*s->v), by_value);
	rank = (size_t)((p / 100.0) * (double)s->n + 0.999999);
	if (rank < 1)
		rank = 1;
	return s->v[MIN(rank, s->n) - 1];
}

static void set_member(struct result *r, const char *member, json_t *v)
{
	if (!r->extra)
		r->extra = json_object();
	json_object_set_new(r->extra, member, v);
}

static void result_free(struct result *r)
{
	samples_free(&r->samples);
	samples_free(&r->floor);
	json_decref(r->extra);
}

struct result *report_add(struct report *r, const char *unit, const char *fmt,
			  ...)
{
	struct result *res;
	char name[64];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(name, sizeof(name), fmt, ap);
	va_end(ap);
	res = report_find(r, name);
	if (!res && r->n == MAX_RESULTS)
		abort(); // a measurement that adds without end
	if (res)
		result_free(res); // an earlier run's
	else
		res = &r->v[r->n++];
	memset(res, 0, sizeof(*res));
	memcpy(res->name, name, sizeof(name));
	res->unit = unit;
	if (getenv("KVMBOX"))
		set_member(res, "emulated", json_true());
	return res;
}

struct result *report_find(struct report *r, const char *name)
{
	for (size_t i = 0; i < r->n; i++) {
		if (strcmp(r->v[i].name, name) == 0)
			return &r->v[i];
	}
	return NULL;
}

void report_free(struct report *r)
{
	for (size_t i = 0; i < r->n; i++)
		result_free(&r->v[i]);
	r->n = r->num_left_out = 0;
	json_decref(r->host);
	r->host = NULL;
}

void report_leave_out(struct report *r, const char *name, const char *why)
{
	for (size_t i = 0; i < r->num_left_out; i++) {
		if (strcmp(r->left_out[i].name, name) == 0)
			return;
	}
	if (r->num_left_out == MAX_LEFT_OUT)
		return;
	snprintf(r->left_out[r->num_left_out].name, sizeof(r->left_out[0].name),
		 "%s", name);
	snprintf(r->left_out[r->num_left_out].why, sizeof(r->left_out[0].why),
		 "%s", why);
	r->num_left_out++;
}

void result_number(struct result *r, const char *member, double v)
{
	// Three digits after the point: more is noise, and unreadable.
	set_member(r, member, json_real(round(v * 1000) / 1000));
}

void result_text(struct result *r, const char *member, const char *v)
{
	set_member(r, member, json_string(v));
}

double result_floor(struct result *r)
{
	return r->floor.n ? samples_percentile(&r->floor, 50) : r->floor_p50;
}

double result_ratio(struct result *r)
{
	double fl = result_floor(r);

	if (r->ratio > 0)
		return r->ratio;
	return fl > 0 ? samples_percentile(&r->samples, 50) / fl : 0;
}
