// A value against its shape. The depth is the table's, never the value's.
//
// The sentence is AWS's ("1 validation error detected: Value at ..."), so that
// its clients' users read what they know, and never repeats a value.
#include "shape_internal.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { PATH_TEXT = 200 };

// What a client called something, fit for a line of text.
static const char *printable(const char *name, char out[80])
{
	snprintf(out, 80, "%s", name);
	for (char *p = out; *p; p++) {
		if ((unsigned char)*p < ' ' || *p == 0x7f)
			*p = '?';
	}
	return out;
}

static void put_path(char *out, size_t cap, const struct shape_at *at)
{
	char name[80];
	size_t n;

	if (!at)
		return;
	put_path(out, cap, at->up);
	n = strlen(out);
	if (at->name)
		snprintf(out + n, cap - n, "%s%s", n ? "." : "",
			 printable(at->name, name));
	else
		snprintf(out + n, cap - n, "[%zu]", at->index);
}

int shape_bad(struct err *e, const struct shape_at *at, const char *fmt, ...)
{
	char path[PATH_TEXT] = "", why[300];
	va_list ap;

	put_path(path, sizeof(path), at);
	va_start(ap, fmt);
	vsnprintf(why, sizeof(why), fmt, ap);
	va_end(ap);
	return err_set(e, -EINVAL,
		       "1 validation error detected: Value at '%s' failed to "
		       "satisfy constraint: %s",
		       path, why);
}

static size_t characters(const char *s)
{
	size_t n = 0;

	for (; *s; s++)
		n += ((unsigned char)*s & 0xc0) != 0x80;
	return n;
}

static int in_range(const struct shape *s, int64_t n, const char *unit,
		    const struct shape_at *at, struct err *e)
{
	const char *have = unit[0] ? "have" : "be";
	long long lo = s->min, hi = s->max;
	char got[40] = "";

	if (n >= s->min && n <= s->max)
		return 0;
	if (unit[0])
		snprintf(got, sizeof(got), ", it has %lld", (long long)n);
	if (s->min != SHAPE_NO_MIN && s->max != SHAPE_NO_MAX)
		return shape_bad(e, at,
				 "Member must %s between %lld and %lld%s%s",
				 have, lo, hi, unit, got);
	if (s->max != SHAPE_NO_MAX)
		return shape_bad(e, at, "Member must %s at most %lld%s%s", have,
				 hi, unit, got);
	return shape_bad(e, at, "Member must %s at least %lld%s%s", have, lo,
			 unit, got);
}

static int string_ok(const struct shape *s, json_t *v,
		     const struct shape_at *at, struct err *e)
{
	const char *text = json_string_value(v);
	int rc;

	if (!text)
		return shape_bad(e, at, "Member must be a string");
	rc = in_range(s, (int64_t)(s->bytes ? strlen(text) : characters(text)),
		      s->bytes ? " UTF-8 bytes" : " characters", at, e);
	if (rc || !s->pattern || s->prose || shape_match(s->pattern, text))
		return rc;
	return shape_bad(
	    e, at, "Member must satisfy regular expression pattern: %.200s",
	    s->pattern);
}

static bool one_of(const char *const *values, const char *text)
{
	for (; values && *values; values++) {
		if (!strcmp(*values, text))
			return true;
	}
	return false;
}

static void put_values(char *out, size_t cap, const char *const *values)
{
	for (; values && *values; values++) {
		size_t n = strlen(out);

		snprintf(out + n, cap - n, "%s%s", n ? ", " : "", *values);
	}
}

static int enum_ok(const struct shape *s, json_t *v, const struct shape_at *at,
		   struct err *e)
{
	const char *text = json_string_value(v);
	char set[250] = "";

	if (!text)
		return shape_bad(e, at, "Member must be a string");
	if (one_of(s->values, text) || one_of(s->own, text))
		return 0;
	put_values(set, sizeof(set), s->values);
	put_values(set, sizeof(set), s->own);
	return shape_bad(e, at, "Member must satisfy enum value set: [%s]",
			 set);
}

static int number_ok(const struct shape *s, json_t *v,
		     const struct shape_at *at, struct err *e)
{
	json_int_t n = json_integer_value(v);

	if (!json_is_integer(v))
		return shape_bad(e, at, "Member must be an integer");
	if (s->kind == SHAPE_INT && (n < INT32_MIN || n > INT32_MAX) &&
	    (s->max == SHAPE_NO_MAX || s->min == SHAPE_NO_MIN))
		return shape_bad(e, at, "Member must be an integer of 32 bits");
	return in_range(s, n, "", at, e);
}

static int list_ok(const struct shape *s, json_t *v, const struct shape_at *at,
		   struct err *e)
{
	size_t i;
	json_t *entry;
	int rc;

	if (!json_is_array(v))
		return shape_bad(e, at, "Member must be a list");
	rc = in_range(s, (int64_t)json_array_size(v), " entries", at, e);
	if (rc)
		return rc;
	json_array_foreach(v, i, entry)
	{
		struct shape_at here = {at, NULL, i};

		rc = shape_walk(s->of, entry, &here, e);
		if (rc)
			return rc;
	}
	return 0;
}

static int key_ok(const struct shape *s, const char *key,
		  const struct shape_at *at, struct err *e)
{
	int64_t n = (int64_t)characters(key);
	char name[80];

	if (n < s->min || n > s->max)
		return shape_bad(e, at,
				 "Key \"%.70s\" must have between %lld and "
				 "%lld characters",
				 printable(key, name), (long long)s->min,
				 (long long)s->max);
	if (!s->pattern || shape_match(s->pattern, key))
		return 0;
	return shape_bad(e, at,
			 "Key \"%.70s\" must satisfy regular expression "
			 "pattern: %.100s",
			 printable(key, name), s->pattern);
}

static int map_ok(const struct shape *s, json_t *v, const struct shape_at *at,
		  struct err *e)
{
	const char *key;
	json_t *value;
	int rc;

	if (!json_is_object(v))
		return shape_bad(e, at, "Member must be an object");
	rc = in_range(s, (int64_t)json_object_size(v), " entries", at, e);
	if (rc)
		return rc;
	json_object_foreach(v, key, value)
	{
		struct shape_at here = {at, key, 0};

		rc = key_ok(s->key, key, at, e);
		if (!rc)
			rc = shape_walk(s->of, value, &here, e);
		if (rc)
			return rc;
	}
	return 0;
}

static const struct shape_member *member_of(const struct shape *s,
					    const char *name)
{
	for (unsigned i = 0; i < s->n; i++) {
		if (!strcmp(s->members[i].name, name))
			return &s->members[i];
	}
	return NULL;
}

static int all_known(const struct shape *s, json_t *v,
		     const struct shape_at *at, struct err *e)
{
	const char *key;
	json_t *value;
	void *next;

	json_object_foreach_safe(v, next, key, value)
	{
		struct shape_at here = {at, key, 0};

		if (!s->n)
			return shape_bad(e, at,
					 "Member must be an empty object");
		if (!member_of(s, key))
			return shape_bad(e, &here, "Member is unknown");
		if (json_is_null(value)) // as good as absent
			json_object_del(v, key);
	}
	return 0;
}

static int only_one(const struct shape *s, json_t *v, const struct shape_at *at,
		    struct err *e)
{
	char set[200] = "";

	if (json_object_size(v) == 1)
		return 0;
	for (unsigned i = 0; i < s->n; i++) {
		size_t n = strlen(set);

		snprintf(set + n, sizeof(set) - n, "%s%s", n ? ", " : "",
			 s->members[i].name);
	}
	return shape_bad(e, at, "Member must have exactly one member of: %s",
			 set);
}

static int struct_ok(const struct shape *s, json_t *v,
		     const struct shape_at *at, struct err *e)
{
	int rc;

	if (!json_is_object(v))
		return shape_bad(e, at, "Member must be an object");
	rc = all_known(s, v, at, e);
	if (!rc && s->kind == SHAPE_UNION)
		rc = only_one(s, v, at, e);
	for (unsigned i = 0; !rc && i < s->n; i++) {
		const struct shape_member *m = &s->members[i];
		json_t *value = json_object_get(v, m->name);
		struct shape_at here = {at, m->name, 0};

		if (value)
			rc = shape_walk(m->shape, value, &here, e);
		else if (m->flags & SHAPE_REQUIRED)
			rc = shape_bad(e, &here, "Member must not be null");
	}
	return rc;
}

int shape_walk(const struct shape *s, json_t *v, const struct shape_at *at,
	       struct err *e)
{
	switch (s->kind) {
	case SHAPE_STRUCT:
	case SHAPE_UNION:
		return struct_ok(s, v, at, e);
	case SHAPE_LIST:
		return list_ok(s, v, at, e);
	case SHAPE_MAP:
		return map_ok(s, v, at, e);
	case SHAPE_STRING:
		return string_ok(s, v, at, e);
	case SHAPE_ENUM:
		return enum_ok(s, v, at, e);
	case SHAPE_INT:
	case SHAPE_LONG:
		return number_ok(s, v, at, e);
	case SHAPE_BOOL:
		return json_is_boolean(v)
			   ? 0
			   : shape_bad(e, at, "Member must be true or false");
	case SHAPE_TIME:
		return json_is_number(v) && json_number_value(v) >= 0
			   ? 0
			   : shape_bad(e, at,
				       "Member must be seconds since 1970");
	case SHAPE_ANY:
		break;
	}
	return 0;
}

int shape_check(const struct shape *s, json_t *v, struct err *e)
{
	return shape_walk(s, v, NULL, e);
}

// --- answers -----------------------------------------------------------------

// Members that travel in headers are not of the body.
static int body_ok(const struct shape *s, const json_t *body, struct err *e)
{
	json_t *copy = json_deep_copy(body);
	int rc = 0;

	for (unsigned i = 0; i < s->n; i++) {
		if (s->members[i].place == SHAPE_HEADER &&
		    json_object_get(copy, s->members[i].name))
			rc = err_set(e, -EINVAL, "%s belongs into a header",
				     s->members[i].name);
	}
	if (!rc)
		rc = shape_walk(s, copy, NULL, e);
	json_decref(copy);
	return rc;
}

int shape_check_answer(const struct shape_op *op, int status,
		       const json_t *body, struct err *e)
{
	int rc = 0;

	if (status != op->status)
		rc = err_set(e, -EINVAL, "the status is %d, not %d", status,
			     op->status);
	else if (!op->out != !body)
		rc = err_set(e, -EINVAL, "there is %s body", body ? "a" : "no");
	else if (body)
		rc = body_ok(op->out, body, e);
	return rc ? err_wrap(e, rc, "the answer of %s", op->name) : 0;
}

const struct shape_error *shape_error_of(const struct shape_op *op,
					 const char *name)
{
	for (size_t i = 0; i < SHAPE_ERRORS_MAX && op->errors[i]; i++) {
		if (!strcmp(op->errors[i]->name, name))
			return op->errors[i];
	}
	return NULL;
}

bool shape_has(const struct shape *s, const char *member)
{
	return member_of(s, member) != NULL;
}

int shape_check_error(const struct shape_op *op, int status, const char *type,
		      const json_t *body, struct err *e)
{
	const struct shape_error *x = shape_error_of(op, type);

	if (!x)
		return err_set(e, -EINVAL, "%s declares no %s", op->name, type);
	// An agent's refusal and its silence have a status of their own.
	if (status != x->status &&
	    !(x->status == 500 && (status == 502 || status == 504)))
		return err_set(e, -EINVAL, "%s: %s has status %d", op->name,
			       type, status);
	if (body_ok(x->shape, body, e))
		return err_wrap(e, -EINVAL, "%s: %s", op->name, type);
	return 0;
}
