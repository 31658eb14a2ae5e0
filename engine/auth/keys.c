// The keys file: the format of ~/.aws/credentials, which callers have already.
//
//   # a comment, or ;
//   [profile name]
//   aws_access_key_id = AKIA...
//   aws_secret_access_key = ...
//
// Every line is checked before any key counts. Refused: another setting, a
// profile with one of the two missing or given twice, an id or a name that
// appears twice, a line that begins with a blank, anything before the first
// profile. Other settings are not skipped, for a misspelt or a temporary key
// (aws_session_token) would then be found out at the first request.
#include "auth.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

struct parser {
	struct auth_keys *out;
	struct auth_key *cur; // the profile that is open
	size_t room;	      // in out->key
	const char *path;
	unsigned line, opened; // of `cur`
	struct err *e;
};

static int bad(const struct parser *p, unsigned line, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static int bad(const struct parser *p, unsigned line, const char *fmt, ...)
{
	char why[ERR_MSG_MAX];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why, sizeof(why), fmt, ap);
	va_end(ap);
	return err_set(p->e, -EINVAL, "keys file %s, line %u: %s", p->path,
		       line, why);
}

static bool word(const char *s, size_t n, const char *also)
{
	for (size_t i = 0; i < n; i++) {
		bool alnum = (s[i] >= 'a' && s[i] <= 'z') ||
			     (s[i] >= 'A' && s[i] <= 'Z') ||
			     (s[i] >= '0' && s[i] <= '9');

		if (!alnum && (!s[i] || !strchr(also, s[i])))
			return false;
	}
	return true;
}

static int close_profile(struct parser *p)
{
	const struct auth_key *k = p->cur;

	p->cur = NULL;
	if (!k)
		return 0;
	if (!k->id[0])
		return bad(p, p->opened, "[%s] has no aws_access_key_id",
			   k->name);
	if (!k->secret[0])
		return bad(p, p->opened, "[%s] has no aws_secret_access_key",
			   k->name);
	return 0;
}

static int open_profile(struct parser *p, const char *s, size_t n)
{
	struct auth_keys *out = p->out;
	struct auth_key *k;
	int rc = close_profile(p);

	if (rc)
		return rc;
	if (n < 3 || s[n - 1] != ']')
		return bad(p, p->line, "a profile begins with [NAME]");
	if (n - 2 > AUTH_NAME_MAX || !word(s + 1, n - 2, "-_.@+: "))
		return bad(p, p->line,
			   "a profile's name has at most %d letters, digits, "
			   "blanks and -_.@+:",
			   AUTH_NAME_MAX);
	if (out->n == p->room)
		return bad(p, p->line, "there are more than %d profiles",
			   AUTH_KEYS_MAX);
	k = &out->key[out->n];
	memcpy(k->name, s + 1, n - 2);
	for (size_t i = 0; i < out->n; i++) {
		if (!strcmp(out->key[i].name, k->name))
			return bad(p, p->line, "[%s] is there twice", k->name);
	}
	out->n++;
	p->cur = k;
	p->opened = p->line;
	return 0;
}

static int take_id(struct parser *p, const char *v, size_t n)
{
	if (p->cur->id[0])
		return bad(p, p->line, "[%s] has two aws_access_key_id",
			   p->cur->name);
	if (n < AUTH_ID_MIN || n > AUTH_ID_MAX || !word(v, n, "_"))
		return bad(p, p->line,
			   "an access key id has %d to %d letters, digits "
			   "and _",
			   AUTH_ID_MIN, AUTH_ID_MAX);
	if (auth_keys_find(p->out, v, n))
		return bad(p, p->line,
			   "another profile has this access key id");
	memcpy(p->cur->id, v, n);
	return 0;
}

// What is wrong with a secret is said without showing it.
static int take_secret(struct parser *p, const char *v, size_t n)
{
	if (p->cur->secret[0])
		return bad(p, p->line, "[%s] has two aws_secret_access_key",
			   p->cur->name);
	if (n < AUTH_SECRET_MIN || n > AUTH_SECRET_MAX)
		return bad(p, p->line,
			   "a secret access key has %d to %d characters, this "
			   "one has %zu",
			   AUTH_SECRET_MIN, AUTH_SECRET_MAX, n);
	for (size_t i = 0; i < n; i++) {
		if (v[i] <= ' ' || v[i] > '~')
			return bad(p, p->line,
				   "a secret access key has blanks or bytes "
				   "that are not ASCII");
	}
	memcpy(p->cur->secret, v, n);
	return 0;
}

static int take_setting(struct parser *p, const char *s, size_t n)
{
	static const char id[] = "aws_access_key_id";
	static const char secret[] = "aws_secret_access_key";
	const char *eq = memchr(s, '=', n), *v;
	size_t kn, vn;

	if (!eq)
		return bad(p, p->line,
			   "this is no [PROFILE] and no NAME = "
			   "VALUE");
	if (!p->cur)
		return bad(p, p->line, "a setting before the first [PROFILE]");
	for (kn = (size_t)(eq - s); kn && s[kn - 1] == ' '; kn--)
		;
	for (v = eq + 1; v < s + n && *v == ' '; v++)
		;
	vn = (size_t)(s + n - v);
	if (kn == strlen(id) && !strncasecmp(s, id, kn))
		return take_id(p, v, vn);
	if (kn == strlen(secret) && !strncasecmp(s, secret, kn))
		return take_secret(p, v, vn);
	if (kn > 64 || !word(s, kn, "_-."))
		kn = 0; // not for a log
	return bad(p, p->line,
		   "\"%.*s\" is not a setting of this file: it holds "
		   "permanent keys alone, as aws_access_key_id and "
		   "aws_secret_access_key",
		   (int)kn, s);
}

static int take_line(struct parser *p, const char *s, size_t n)
{
	if (n && s[n - 1] == '\r')
		n--;
	for (size_t i = 0; i < n; i++) {
		if (((unsigned char)s[i] < ' ' && s[i] != '\t') || s[i] == 0x7f)
			return bad(p, p->line, "control characters");
	}
	while (n && (s[n - 1] == ' ' || s[n - 1] == '\t'))
		n--;
	if (!n || s[0] == '#' || s[0] == ';')
		return 0;
	if (s[0] == ' ' || s[0] == '\t')
		return bad(p, p->line, "begins with a blank");
	return s[0] == '[' ? open_profile(p, s, n) : take_setting(p, s, n);
}

static int parse(struct parser *p, const char *text, size_t len)
{
	const char *end = text + len;
	int rc = 0;

	for (p->line = 1; text < end && !rc; p->line++) {
		const char *nl = memchr(text, '\n', (size_t)(end - text));
		const char *eol = nl ? nl : end;

		rc = take_line(p, text, (size_t)(eol - text));
		text = nl ? nl + 1 : end;
	}
	if (!rc)
		rc = close_profile(p);
	if (!rc && !p->out->n)
		rc = err_set(p->e, -EINVAL,
			     "keys file %s: it has no profile with a key",
			     p->path);
	return rc;
}

// Room for as many keys as there are lines that open a profile.
static size_t count_profiles(const char *text, size_t len)
{
	size_t n = len && text[0] == '[';

	for (size_t i = 1; i < len; i++)
		n += text[i - 1] == '\n' && text[i] == '[';
	return MIN(n, (size_t)AUTH_KEYS_MAX);
}

int auth_keys_parse(struct auth_keys *out, const char *text, size_t len,
		    const char *path, struct err *e)
{
	struct parser p = {.out = out, .path = path, .e = e};
	int rc;

	p.room = count_profiles(text, len);
	*out = (struct auth_keys){calloc(p.room + 1, sizeof(*out->key)), 0};
	if (!out->key)
		return err_set(e, -ENOMEM, "keys file %s: no memory", path);
	rc = parse(&p, text, len);
	if (rc)
		auth_keys_free(out);
	return rc;
}

int auth_keys_load(struct auth_keys *out, const char *path, struct err *e)
{
	struct stat st;
	char *text;
	int rc;

	*out = (struct auth_keys){0};
	rc = auth_secret_read("keys file", path, AUTH_FILE_MAX, &text, &st, e);
	if (!rc)
		rc = auth_keys_parse(out, text, (size_t)st.st_size, path, e);
	auth_secret_free(text, text ? (size_t)st.st_size : 0);
	return rc;
}

void auth_keys_free(struct auth_keys *k)
{
	if (k->key)
		OPENSSL_cleanse(k->key, k->n * sizeof(*k->key));
	free(k->key);
	*k = (struct auth_keys){0};
}

const struct auth_key *auth_keys_find(const struct auth_keys *k, const char *id,
				      size_t n)
{
	for (size_t i = 0; i < k->n; i++) {
		if (strlen(k->key[i].id) == n && !memcmp(k->key[i].id, id, n))
			return &k->key[i];
	}
	return NULL;
}
