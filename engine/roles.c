// Roles and their files.
//
// A file is what a program prints that AWS's SDKs take as a credential_process:
//
//   {"Version": 1, "AccessKeyId": "...", "SecretAccessKey": "...",
//    "SessionToken": "...", "Expiration": "2026-11-28T12:00:00Z"}
//
// Unlike ~/.aws/credentials it says until when they count, which the guests' SDKs
// have to know. Whoever renews it does so by rename or in place: it is read again
// when its inode, size or times are others, and judged as a whole. A file caught
// half written is malformed, what was read before stays, and the next look finds it
// complete.
#include "roles.h"

#include "auth.h"
#include "shape.h"

#include <ctype.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define ROLE_ARN "arn:aws[a-z\\-]*:iam::[0-9]{12}:role/?[a-zA-Z_0-9+=,.@\\-_/]+"

struct role {
	char *arn, *path;
	struct stat seen;
	uint32_t version;
	struct eng_creds creds;
};

struct eng_roles {
	size_t n;
	uint32_t versions; // given out
	struct role role[ROLES_MAX];
};

// --- a file ------------------------------------------------------------------

// "2026-11-28T12:00:00Z", also with a fraction, and with an offset for Z.
static bool parse_time(const char *s, uint64_t *out)
{
	struct tm tm = {0};
	const char *p = strptime(s, "%Y-%m-%dT%H:%M:%S", &tm);
	unsigned h = 0, m = 0;
	time_t t;
	int n = 0;

	if (!p)
		return false;
	if (*p == '.') {
		for (p++; isdigit((unsigned char)*p); p++)
			n++;
		if (!n)
			return false;
	}
	t = timegm(&tm);
	n = 0;
	if ((*p == '+' || *p == '-') &&
	    sscanf(p + 1, "%2u:%2u%n", &h, &m, &n) == 2 && n == 5 && !p[6] &&
	    h < 24 && m < 60)
		t -= (*p == '+' ? 1 : -1) * (time_t)(h * 3600 + m * 60);
	else if (strcmp(p, "Z"))
		return false;
	*out = (uint64_t)t;
	return t > 0;
}

// Printable, without what JSON would need an escape for: the agent puts it there.
static bool take(char *to, json_t *doc, const char *key, size_t min, size_t max)
{
	json_t *v = json_object_get(doc, key);
	const char *s = json_string_value(v);
	size_t n = json_string_length(v);

	if (!v && !min)
		return true;
	if (!s || n < min || n > max)
		return false;
	for (size_t i = 0; i < n; i++) {
		if (s[i] <= ' ' || s[i] > '~' || s[i] == '"' || s[i] == '\\')
			return false;
	}
	memcpy(to, s, n);
	to[n] = '\0';
	return true;
}

static const char *read_members(struct eng_creds *out, json_t *doc)
{
	json_t *expires = json_object_get(doc, "Expiration");

	if (!json_is_object(doc))
		return "is no JSON object";
	if (json_integer_value(json_object_get(doc, "Version")) != 1)
		return "lacks \"Version\": 1, as what a credential process "
		       "prints has it";
	if (!take(out->key, doc, "AccessKeyId", CREDS_KEY_MIN, CREDS_KEY_MAX))
		return "has no usable AccessKeyId";
	if (!take(out->secret, doc, "SecretAccessKey", 1, CREDS_SECRET_MAX))
		return "has no usable SecretAccessKey";
	if (!take(out->token, doc, "SessionToken", 0, CREDS_TOKEN_MAX))
		return "has a SessionToken that cannot be used";
	if (expires && !json_is_null(expires) &&
	    (!json_is_string(expires) ||
	     !parse_time(json_string_value(expires), &out->expires_s)))
		return "has an Expiration that is no time, as "
		       "2026-11-28T12:00:00Z";
	return NULL;
}

int eng_creds_parse(struct eng_creds *out, const char *text, size_t len,
		    const char *path, struct err *e)
{
	json_error_t je;
	json_t *doc = json_loadb(text, len, JSON_REJECT_DUPLICATES, &je);
	const char *why;

	memset(out, 0, sizeof(*out));
	if (!doc) // its own words would show what is there
		return err_set(
		    e, -EINVAL,
		    "credentials file %s is no JSON: line %d, column "
		    "%d",
		    path, je.line, je.column);
	why = read_members(out, doc);
	json_decref(doc);
	if (!why)
		return 0;
	explicit_bzero(out, sizeof(*out));
	return err_set(e, -EINVAL, "credentials file %s %s", path, why);
}

static bool same_file(const struct stat *a, const struct stat *b)
{
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino &&
	       a->st_size == b->st_size && a->st_mode == b->st_mode &&
	       a->st_uid == b->st_uid &&
	       a->st_mtim.tv_sec == b->st_mtim.tv_sec &&
	       a->st_mtim.tv_nsec == b->st_mtim.tv_nsec &&
	       a->st_ctim.tv_sec == b->st_ctim.tv_sec &&
	       a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
}

// 1: other credentials than before; 0: the same.
static int load(struct eng_roles *rs, struct role *r, struct err *e)
{
	struct eng_creds fresh;
	struct stat st;
	char *text;
	int rc = auth_secret_read("credentials file", r->path, ROLE_FILE_MAX,
				  &text, &st, e);

	if (rc)
		return rc;
	rc = eng_creds_parse(&fresh, text, (size_t)st.st_size, r->path, e);
	auth_secret_free(text, (size_t)st.st_size);
	r->seen = st;
	if (rc)
		return rc;
	if (fresh.expires_s && fresh.expires_s < util_wall_ns() / 1000000000)
		log_warn("the credentials of %s in %s have expired", r->arn,
			 r->path);
	rc = memcmp(&r->creds, &fresh, sizeof(fresh)) != 0;
	if (rc) {
		memcpy(&r->creds, &fresh, sizeof(fresh));
		r->version = ++rs->versions;
	}
	explicit_bzero(&fresh, sizeof(fresh));
	return rc;
}

bool eng_roles_refresh(struct eng_roles *rs)
{
	bool changed = false;

	for (size_t i = 0; i < rs->n; i++) {
		struct role *r = &rs->role[i];
		struct err e = ERR_INIT;
		struct stat st = {0};
		int rc;

		if (stat(r->path, &st))
			st.st_ino = 0;
		if (same_file(&st, &r->seen))
			continue;
		rc = load(rs, r, &e);
		if (rc < 0) {
			r->seen = st; // said once, until it changes again
			log_warn("%s keeps the credentials it had: %s", r->arn,
				 e.msg);
		} else if (rc) {
			log_info("%s has new credentials", r->arn);
			changed = true;
		}
	}
	return changed;
}

// --- the map -----------------------------------------------------------------

static const struct role *find(const struct eng_roles *rs, const char *arn)
{
	for (size_t i = 0; rs && i < rs->n; i++) {
		if (!strcmp(rs->role[i].arn, arn))
			return &rs->role[i];
	}
	return NULL;
}

const char *eng_roles_arn(const struct eng_roles *rs, size_t i)
{
	return rs && i < rs->n ? rs->role[i].arn : NULL;
}

const struct eng_creds *eng_roles_get(const struct eng_roles *rs,
				      const char *arn, uint32_t *version)
{
	const struct role *r = find(rs, arn);

	if (!r)
		return NULL;
	*version = r->version;
	return &r->creds;
}

static int add(struct eng_roles *rs, const char *map, struct err *e)
{
	// A role's name may have a '=', too: the file's absolute path decides.
	const char *eq = strstr(map, "=/");
	struct role *r = &rs->role[rs->n];
	int rc;

	if (!eq)
		eq = strchr(map, '=');
	if (!eq || !eq[1])
		return err_set(e, -EINVAL,
			       "--role takes ARN=FILE, not \"%.100s\"", map);
	if (rs->n == ROLES_MAX)
		return err_set(e, -EINVAL, "there are more than %d --role",
			       ROLES_MAX);
	r->arn = strndup(map, (size_t)(eq - map));
	r->path = strdup(eq + 1);
	if (!r->arn || !r->path)
		abort();
	if (strlen(r->arn) > ROLE_ARN_MAX || !shape_match(ROLE_ARN, r->arn))
		rc = err_set(e, -EINVAL,
			     "--role: \"%.100s\" is no role's ARN, as "
			     "arn:aws:iam::123456789012:role/NAME",
			     r->arn);
	else if (find(rs, r->arn))
		rc =
		    err_set(e, -EINVAL, "--role %.200s is there twice", r->arn);
	else
		rc = load(rs, r, e);
	rs->n++; // destroyed with the rest
	return MIN(rc, 0);
}

int eng_roles_create(struct eng_roles **out, const char *const *maps, size_t n,
		     struct err *e)
{
	struct eng_roles *rs = calloc(1, sizeof(*rs));
	int rc = 0;

	*out = NULL;
	if (!rs)
		return err_set(e, -ENOMEM, "no memory for roles");
	for (size_t i = 0; i < n && !rc; i++)
		rc = add(rs, maps[i], e);
	if (rc)
		eng_roles_destroy(rs);
	else
		*out = rs;
	return rc;
}

void eng_roles_destroy(struct eng_roles *rs)
{
	if (!rs)
		return;
	for (size_t i = 0; i < rs->n; i++) {
		free(rs->role[i].arn);
		free(rs->role[i].path);
	}
	explicit_bzero(rs, sizeof(*rs));
	free(rs);
}
