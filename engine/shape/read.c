// Requests: to which operation one goes, and its members in one object.
#include "shape_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

// Compares a path's next segment with a template's and goes on past that.
static bool segment_fits(const char **tmpl, const char *seg)
{
	const char *from = *tmpl + 1; // past '/'
	size_t n = strcspn(from, "/");

	*tmpl = from + n;
	if (from[0] == '{')
		return seg[0] != '\0';
	return strlen(seg) == n && !memcmp(seg, from, n);
}

static bool path_fits(const char *tmpl, const char *const *seg, unsigned nseg)
{
	for (unsigned i = 0; i < nseg; i++) {
		if (!*tmpl || !segment_fits(&tmpl, seg[i]))
			return false;
	}
	return !*tmpl;
}

int shape_route(const char *method, const char *const *seg, unsigned nseg,
		const struct shape_op **op)
{
	int rc = -ENOENT;

	for (size_t i = 0; i < shape_nops; i++) {
		if (!path_fits(shape_ops[i].path, seg, nseg))
			continue;
		rc = -EOPNOTSUPP;
		if (strcmp(shape_ops[i].method, method))
			continue;
		*op = &shape_ops[i];
		return 0;
	}
	return rc;
}

const struct shape_op *shape_op(const char *name)
{
	for (size_t i = 0; i < shape_nops; i++) {
		if (!strcmp(shape_ops[i].name, name))
			return &shape_ops[i];
	}
	return NULL;
}

json_t *shape_body(const void *body, size_t len, struct err *e)
{
	json_error_t je;
	json_t *j;

	if (!len)
		return json_object();
	j = json_loadb(body, len, JSON_REJECT_DUPLICATES, &je);
	if (!j) {
		err_set(e, -EINVAL,
			"the body is not valid JSON: %s at line %d column %d",
			je.text, je.line, je.column);
		return NULL;
	}
	if (!json_is_object(j)) {
		json_decref(j);
		err_set(e, -EINVAL, "the body must be a JSON object");
		return NULL;
	}
	return j;
}

static const struct shape_member *
find(const struct shape *s, enum shape_place place, const char *wire, size_t n)
{
	for (unsigned i = 0; i < s->n; i++) {
		const char *name = shape_wire(&s->members[i]);

		if (s->members[i].place == place && strlen(name) == n &&
		    !memcmp(name, wire, n))
			return &s->members[i];
	}
	return NULL;
}

// A text as the value that its shape asks for; as a text where it is none, so
// that the check says so. NULL: no UTF-8.
static json_t *value_of(const struct shape *s, const char *text)
{
	size_t digits = strspn(text + (text[0] == '-'), "0123456789");

	if ((s->kind == SHAPE_INT || s->kind == SHAPE_LONG) && digits &&
	    digits < 18 && !text[digits + (text[0] == '-')])
		return json_integer(strtoll(text, NULL, 10));
	return json_string(text);
}

static int put(json_t *in, const struct shape_member *m, const char *text,
	       struct err *e)
{
	const struct shape *s = m->shape;
	struct shape_at at = {NULL, m->name, 0};
	json_t *list = json_object_get(in, m->name), *v;

	if (list && s->kind != SHAPE_LIST)
		return shape_bad(e, &at, "Member must be given once");
	v = value_of(s->kind == SHAPE_LIST ? s->of : s, text);
	if (!v)
		return shape_bad(e, &at, "Member must be UTF-8");
	if (s->kind != SHAPE_LIST)
		return json_object_set_new(in, m->name, v);
	if (!list) {
		list = json_array();
		json_object_set_new(in, m->name, list);
	}
	return json_array_append_new(list, v);
}

static int body_members(const struct shape *s, json_t *in, struct err *e)
{
	const char *key;
	json_t *v;

	json_object_foreach(in, key, v)
	{
		struct shape_at at = {NULL, key, 0};

		if (!find(s, SHAPE_BODY, key, strlen(key)))
			return shape_bad(e, &at, "Member is unknown");
	}
	return 0;
}

static int labels(const struct shape_op *op, const struct shape_request *r,
		  json_t *in, struct err *e)
{
	const char *t = op->path;
	int rc = 0;

	for (unsigned i = 0; !rc && i < r->nseg && *t; i++) {
		size_t n = strcspn(t + 1, "/");

		if (t[1] == '{')
			rc = put(in, find(op->in, SHAPE_PATH, t + 2, n - 2),
				 r->seg[i], e);
		t += 1 + n;
	}
	return rc;
}

static int query(const struct shape_op *op, const struct shape_request *r,
		 json_t *in, struct err *e)
{
	int rc = 0;

	for (unsigned i = 0; !rc && i < r->nquery; i++) {
		const struct shape_kv *q = &r->query[i];
		const struct shape_member *m =
		    find(op->in, SHAPE_QUERY, q->k, strlen(q->k));

		if (m)
			rc = put(in, m, q->v, e);
		else
			rc = err_set(e, -EINVAL,
				     "the query parameter \"%.60s\" is unknown "
				     "here",
				     q->k);
	}
	return rc;
}

json_t *shape_read(const struct shape_op *op, const struct shape_request *r,
		   struct err *e)
{
	json_t *in = shape_body(r->body, r->body_len, e);
	int rc = in ? body_members(op->in, in, e) : -EINVAL;

	if (!rc)
		rc = labels(op, r, in, e);
	if (!rc)
		rc = query(op, r, in, e);
	if (!rc)
		rc = shape_walk(op->in, in, NULL, e);
	if (!rc)
		return in;
	json_decref(in);
	return NULL;
}
