// See api_check.h. botocore checks only types, required members and minima, so
// every maximum, pattern and enumeration of the model is enforced here.
#include "api_check.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

size_t check_chars(const char *s)
{
	size_t n = 0;

	for (; *s; s++)
		n += ((unsigned char)*s & 0xc0) != 0x80;
	return n;
}

bool check_name(const char *s, size_t max)
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

bool check_label_key(const char *s)
{
	size_t n = strlen(s);

	if (!n || n > 63)
		return false;
	for (; *s; s++) {
		if (!isalnum((unsigned char)*s) && !strchr("-_./", *s))
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

static bool no_blank(const char *s)
{
	for (; *s; s++) {
		if (isspace((unsigned char)*s))
			return false;
	}
	return true;
}

// arn:aws[a-z\-]*:iam::[0-9]{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+
static bool role_arn(const char *s)
{
	size_t n = strlen(s);

	if (n < 20 || n > 2048 || strncmp(s, "arn:aws", 7))
		return false;
	for (s += 7; islower((unsigned char)*s) || *s == '-'; s++)
		;
	if (strncmp(s, ":iam::", 6))
		return false;
	s += 6;
	for (int i = 0; i < 12; i++, s++) {
		if (!isdigit((unsigned char)*s))
			return false;
	}
	if (strncmp(s, ":role", 5))
		return false;
	s += 5;
	if (!*s)
		return false;
	for (; *s; s++) {
		if (!isalnum((unsigned char)*s) && !strchr("+=,.@-_/", *s))
			return false;
	}
	return true;
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
							    : check_chars(s),
	    f->kind == CHECK_BYTES ? "UTF-8 bytes" : "characters", prefix, e);
	if (rc)
		return rc;
	if (f->kind == CHECK_NAME && !check_name(s, (size_t)f->hi))
		return bad(e, prefix, f->name,
			   "Member must satisfy regular expression pattern: "
			   "[a-zA-Z0-9-_]+");
	if (f->kind == CHECK_NOBLANK && !no_blank(s))
		return bad(e, prefix, f->name,
			   "Member must satisfy regular expression pattern: "
			   "[^\\s]+");
	if (f->kind == CHECK_PATH && s[0] != '/')
		return bad(e, prefix, f->name,
			   "Member must be an absolute path");
	if (f->kind == CHECK_ROLE && !role_arn(s))
		return bad(e, prefix, f->name, "Member must be a role's ARN");
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
		if (f->kind == CHECK_CONNECTORS &&
		    (!*s || strlen(s) > 2048 || !no_blank(s)))
			return bad(e, prefix, f->name,
				   "Entry %zu must have 1 to 2048 characters "
				   "and no blanks",
				   i);
	}
	return 0;
}

static int check_labels(const struct check_field *f, json_t *v,
			const char *prefix, struct err *e)
{
	const char *key;
	json_t *value;

	if (!json_is_object(v))
		return bad(e, prefix, f->name, "Member must be an object");
	if (json_object_size(v) > (size_t)f->hi)
		return bad(e, prefix, f->name,
			   "Member must have at most %ld entries", f->hi);
	json_object_foreach(v, key, value)
	{
		const char *s = json_string_value(value);

		if (!check_label_key(key))
			return bad(e, prefix, f->name,
				   "Key \"%.70s\" must match "
				   "[a-zA-Z0-9-_./]{1,63}",
				   key);
		if (!s || check_chars(s) > 255)
			return bad(e, prefix, f->name,
				   "Value of \"%.70s\" must be a string of at "
				   "most 255 characters",
				   key);
	}
	return 0;
}

static int check_idle(json_t *v, struct err *e)
{
	static const struct check_field fields[] = {
	    {"maxIdleDurationSeconds", CHECK_INT, true, 60, 1000000000},
	    {"suspendedDurationSeconds", CHECK_INT, true, 0, 1000000000},
	    {"autoResumeEnabled", CHECK_BOOL, true, 0, 0},
	};

	return check_object(v, "idlePolicy.", fields, ARRAY_SIZE(fields), e);
}

static bool log_group_ok(const char *s)
{
	for (; *s; s++) {
		if (!isalnum((unsigned char)*s) && !strchr("_-/.#", *s))
			return false;
	}
	return true;
}

static int check_cloudwatch(json_t *v, struct err *e)
{
	static const struct check_field fields[] = {
	    {"logGroup", CHECK_STRING, false, 1, 512},
	    {"logStream", CHECK_STRING, false, 1, 512},
	};
	const char *prefix = "logging.cloudWatch.", *s;
	int rc = check_object(v, prefix, fields, ARRAY_SIZE(fields), e);

	if (rc)
		return rc;
	s = json_string_value(json_object_get(v, "logGroup"));
	if (s && !log_group_ok(s))
		return bad(e, prefix, "logGroup",
			   "Member must satisfy regular expression pattern: "
			   "[a-zA-Z0-9_\\-/.#]+");
	s = json_string_value(json_object_get(v, "logStream"));
	if (s && strpbrk(s, ":*"))
		return bad(e, prefix, "logStream",
			   "Member must satisfy regular expression pattern: "
			   "[^:*]*");
	return 0;
}

static int check_logging(json_t *v, struct err *e)
{
	json_t *cw = json_object_get(v, "cloudWatch");
	json_t *off = json_object_get(v, "disabled");

	if (!json_is_object(v) || json_object_size(v) != 1 || !(cw || off))
		return bad(e, "", "logging",
			   "Member must have exactly one of disabled and "
			   "cloudWatch");
	if (off && (!json_is_object(off) || json_object_size(off)))
		return bad(e, "logging.", "disabled",
			   "Member must be an empty object");
	return cw ? check_cloudwatch(cw, e) : 0;
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
	case CHECK_CONNECTORS:
		return check_list(f, v, prefix, e);
	case CHECK_LABELS:
		return check_labels(f, v, prefix, e);
	case CHECK_IDLE:
		return check_idle(v, e);
	case CHECK_LOGGING:
		return check_logging(v, e);
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

json_t *check_body(const void *body, size_t len, struct err *e)
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
