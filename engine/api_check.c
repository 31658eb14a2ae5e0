// See api_check.h.
#include "api_check.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

static size_t characters(const char *s)
{
	size_t n = 0;

	for (; *s; s++)
		n += ((unsigned char)*s & 0xc0) != 0x80;
	return n;
}

static bool is_name(const char *s, size_t max)
{
	size_t n = strlen(s);

	if (!n || n > max)
		return false;
	for (; *s; s++) {
		if (!isalnum((unsigned char)*s) && *s != '-' && *s != '_')
			return false;
	}
	return true;
}

int check_number(const char *text, long lo, long hi, long *out)
{
	char *end;

	if (!isdigit((unsigned char)text[0]) || strlen(text) > 12)
		return -EINVAL;
	*out = strtol(text, &end, 10);
	return *end || *out < lo || *out > hi ? -EINVAL : 0;
}

// AWS's sentence, so that its clients' users read what they know.
static int bad(struct err *e, const char *prefix, const char *name,
	       const char *fmt, ...) __attribute__((format(printf, 4, 5)));
static int bad(struct err *e, const char *prefix, const char *name,
	       const char *fmt, ...)
{
	char why[200];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why, sizeof(why), fmt, ap);
	va_end(ap);
	return err_set(e, -EINVAL,
		       "1 validation error detected: Value at '%s%.80s' failed "
		       "to satisfy constraint: %s",
		       prefix, name, why);
}

static int want_length(const struct check_field *f, size_t n, const char *unit,
		       const char *prefix, struct err *e)
{
	if (n < (size_t)f->lo || n > (size_t)f->hi)
		return bad(e, prefix, f->name,
			   "Member must have between %ld and %ld %s, it has "
			   "%zu",
			   f->lo, f->hi, unit, n);
	return 0;
}

static int check_text(const struct check_field *f, json_t *v,
		      const char *prefix, struct err *e)
{
	const char *s = json_string_value(v);
	int rc;

	if (!s)
		return bad(e, prefix, f->name, "Member must be a string");
	rc = want_length(
	    f,
	    f->kind == CHECK_BYTES || f->kind == CHECK_PATH ? strlen(s)
							    : characters(s),
	    f->kind == CHECK_BYTES ? "UTF-8 bytes" : "characters", prefix, e);
	if (rc)
		return rc;
	if (f->kind == CHECK_NAME && !is_name(s, (size_t)f->hi))
		return bad(e, prefix, f->name,
			   "Member must satisfy regular expression pattern: "
			   "[a-zA-Z0-9-_]+");
	if (f->kind == CHECK_PATH && s[0] != '/')
		return bad(e, prefix, f->name,
			   "Member must be an absolute path");
	return 0;
}

static int check_int(const struct check_field *f, json_t *v, const char *prefix,
		     struct err *e)
{
	json_int_t n = json_integer_value(v);

	if (!json_is_integer(v))
		return bad(e, prefix, f->name, "Member must be an integer");
	if (n < f->lo || n > f->hi)
		return bad(e, prefix, f->name,
			   "Member must be between %ld and %ld", f->lo, f->hi);
	return 0;
}

static bool env_entry(const char *s)
{
	const char *eq = strchr(s, '=');

	return eq && eq != s;
}

static int check_list(const struct check_field *f, json_t *v,
		      const char *prefix, struct err *e)
{
	size_t i;
	json_t *entry;
	int rc;

	if (!json_is_array(v))
		return bad(e, prefix, f->name, "Member must be a list");
	rc = want_length(f, json_array_size(v), "entries", prefix, e);
	if (rc)
		return rc;
	json_array_foreach(v, i, entry)
	{
		const char *s = json_string_value(entry);

		if (!s || strlen(s) > 32768)
			return bad(e, prefix, f->name,
				   "Entry %zu must be a string of at most "
				   "32768 bytes",
				   i);
		if (f->kind == CHECK_ENV && !env_entry(s))
			return bad(e, prefix, f->name,
				   "Entry %zu must be NAME=VALUE", i);
	}
	return 0;
}

static int check_one(const struct check_field *f, json_t *v, const char *prefix,
		     struct err *e)
{
	switch (f->kind) {
	case CHECK_INT:
		return check_int(f, v, prefix, e);
	case CHECK_BOOL:
		return json_is_boolean(v) ? 0
					  : bad(e, prefix, f->name,
						"Member must be true or false");
	case CHECK_STRINGS:
	case CHECK_ENV:
		return check_list(f, v, prefix, e);
	case CHECK_ANY:
		return 0;
	default:
		return check_text(f, v, prefix, e);
	}
}

static bool known(const char *key, const struct check_field *f, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (strcmp(f[i].name, key) == 0)
			return true;
	}
	return false;
}

int check_object(json_t *o, const char *prefix, const struct check_field *f,
		 size_t n, struct err *e)
{
	const char *key;
	json_t *v;
	int rc;

	if (!json_is_object(o))
		return err_set(e, -EINVAL, "%s must be a JSON object",
			       prefix[0] ? prefix : "the body");
	json_object_foreach(o, key, v)
	{
		if (!known(key, f, n))
			return bad(e, prefix, key, "Member is unknown");
	}
	for (size_t i = 0; i < n; i++) {
		v = json_object_get(o, f[i].name);
		if (json_is_null(v)) // as good as absent
			v = NULL;
		if (!v && f[i].required)
			return bad(e, prefix, f[i].name,
				   "Member must not be null");
		rc = v ? check_one(&f[i], v, prefix, e) : 0;
		if (rc)
			return rc;
		if (!v)
			json_object_del(o, f[i].name);
	}
	return 0;
}
