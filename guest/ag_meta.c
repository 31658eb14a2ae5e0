// The metadata service's answers: AWS's IMDSv2, as far as SDKs ask it.
//
// A request needs a token of PUT /latest/api/token in its header, which a server
// that can be made to fetch a URL for somebody cannot send; one that came through
// a proxy (X-Forwarded-For) is refused altogether. A token is a random number in a
// table. It ends after the time that was asked for, with the identity of the
// microVM (a clone does not take its image's), or when AG_META_TOKENS younger ones
// were given out; then the answer is 401, and SDKs ask for another.
//
// Everything in a request is the application's, and hostile: a head is bounded,
// split once, and judged before anything is looked up. There is no body: one that
// is announced is an error.
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "ag_meta.h"
#include "util.h"
#include "wire.h"

enum { LONG_TERM_S = 6 * 3600 }; // when clients are to ask again

#define ROLE_NAME "execution_role"
#define TTL_HEADER "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"

// --- what ROLE brings --------------------------------------------------------

// Printable, without what JSON would need an escape for.
static bool get_text(struct wire_reader *r, char *to, size_t max)
{
	uint32_t n = wire_get_u32(r);
	const char *p = n <= max ? wire_borrow(r, n) : NULL;

	for (uint32_t i = 0; p && i < n; i++) {
		if (p[i] <= ' ' || p[i] > '~' || p[i] == '"' || p[i] == '\\')
			return false;
	}
	if (!p || r->bad)
		return false;
	memcpy(to, p, n);
	to[n] = '\0';
	return true;
}

static const char *decode(struct ag_role *to, struct wire_reader *r)
{
	if (!get_text(r, to->vm, AG_ROLE_NAME_MAX) || !to->vm[0] ||
	    !get_text(r, to->region, AG_ROLE_NAME_MAX) || !to->region[0])
		return "the microVM's id or region is malformed";
	if (!get_text(r, to->key, AG_ROLE_KEY_MAX) ||
	    !get_text(r, to->secret, AG_ROLE_SECRET_MAX) ||
	    !get_text(r, to->token, AG_ROLE_TOKEN_MAX))
		return "the credentials are malformed";
	if (!to->key[0] != !to->secret[0] || (!to->key[0] && to->token[0]))
		return "a part of the credentials is missing";
	to->expires_s = wire_get_u64(r);
	if (r->bad || wire_left(r))
		return "the frame's length is wrong";
	// A time that can be printed with four digits of its year.
	return to->expires_s < 253402300800u ? NULL
					     : "the time is out of range";
}

int ag_meta_role(struct ag_meta *m, const uint8_t *p, size_t len, time_t wall,
		 const char **why)
{
	struct wire_reader r = wire_reader_of(p, len);
	struct ag_role role = {.known = true, .updated = wall};

	*why = decode(&role, &r);
	if (!*why)
		m->role = role;
	explicit_bzero(&role, sizeof(role));
	return *why ? -EPROTO : 0;
}

void ag_meta_forget_role(struct ag_meta *m)
{
	explicit_bzero(&m->role, sizeof(m->role));
}

void ag_meta_forget_tokens(struct ag_meta *m)
{
	explicit_bzero(m->tokens, sizeof(m->tokens));
}

// --- requests ----------------------------------------------------------------

struct text {
	const char *p; // NULL: absent
	size_t n;
};

struct request {
	struct text method, path, token, ttl;
	bool forwarded, body;
};

static bool is(const struct text *t, const char *s)
{
	return t->n == strlen(s) && memcmp(t->p, s, t->n) == 0;
}

static bool named(const struct text *t, const char *s)
{
	return t->n == strlen(s) && strncasecmp(t->p, s, t->n) == 0;
}

// From the text at *rest up to `end`, and behind that; false: there is no such.
static bool cut(struct text *rest, const char *end, struct text *out)
{
	size_t n = strlen(end);
	const char *at = memmem(rest->p, rest->n, end, n);

	if (!at)
		return false;
	*out = (struct text){rest->p, (size_t)(at - rest->p)};
	rest->n -= out->n + n;
	rest->p = at + n;
	return true;
}

static bool is_name(const struct text *t)
{
	static const char also[] = "!#$%&'*+-.^_`|~"; // RFC 9110, 5.6.2

	for (size_t i = 0; i < t->n; i++) {
		char c = t->p[i];
		bool alnum = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
			     (c >= '0' && c <= '9');

		if (!alnum && !(c && strchr(also, c)))
			return false;
	}
	return t->n > 0;
}

static bool once(struct text *to, const struct text *value)
{
	bool first = !to->p;

	*to = *value;
	return first;
}

static bool take_header(struct request *q, struct text *line)
{
	struct text name;

	if (!cut(line, ":", &name) || !is_name(&name))
		return false;
	for (; line->n && (line->p[0] == ' ' || line->p[0] == '\t'); line->n--)
		line->p++;
	while (line->n &&
	       (line->p[line->n - 1] == ' ' || line->p[line->n - 1] == '\t'))
		line->n--;
	if (named(&name, "X-aws-ec2-metadata-token"))
		return once(&q->token, line);
	if (named(&name, TTL_HEADER))
		return once(&q->ttl, line);
	if (named(&name, "X-Forwarded-For"))
		q->forwarded = true;
	else if (named(&name, "Transfer-Encoding"))
		q->body = true;
	else if (named(&name, "Content-Length"))
		q->body = q->body || !is(line, "0");
	return true;
}

static bool parse(struct request *q, const char *head, size_t len)
{
	struct text rest = {head, len}, line, version;

	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)head[i];

		// A CR belongs to an LF and the other way round.
		if ((c < ' ' && c != '\t' && c != '\r' && c != '\n') ||
		    c == 0x7f ||
		    (c == '\r' && (i + 1 == len || head[i + 1] != '\n')) ||
		    (c == '\n' && (!i || head[i - 1] != '\r')))
			return false;
	}
	if (!cut(&rest, "\r\n", &line) || !cut(&line, " ", &q->method) ||
	    !cut(&line, " ", &q->path) || !is_name(&q->method))
		return false;
	version = line;
	if (!is(&version, "HTTP/1.1") && !is(&version, "HTTP/1.0"))
		return false;
	while (cut(&rest, "\r\n", &line)) {
		if (!line.n)
			return !rest.n;
		if (!take_header(q, &line))
			return false;
	}
	return false;
}

// --- answers -----------------------------------------------------------------

static size_t put(char *out, bool head_only, int status, const char *extra,
		  const char *fmt, ...) __attribute__((format(printf, 5, 6)));
static size_t put(char *out, bool head_only, int status, const char *extra,
		  const char *fmt, ...)
{
	static const struct {
		int status;
		const char *reason;
	} known[] = {{200, "OK"},
		     {400, "Bad Request"},
		     {401, "Unauthorized"},
		     {403, "Forbidden"},
		     {404, "Not Found"},
		     {405, "Method Not Allowed"},
		     {431, "Request Header Fields Too Large"}};
	char body[AG_META_OUT_MAX - 512] = "";
	size_t i = 0;
	va_list ap;
	int n;

	va_start(ap, fmt);
	vsnprintf(body, sizeof(body), fmt, ap);
	va_end(ap);
	while (known[i].status != status)
		i++;
	n = snprintf(out, AG_META_OUT_MAX,
		     "HTTP/1.1 %d %s\r\nContent-Type: "
		     "text/plain\r\nContent-Length: %zu\r\n%sConnection: "
		     "close\r\n\r\n%s",
		     status, known[i].reason, strlen(body), extra,
		     head_only ? "" : body);
	explicit_bzero(body, sizeof(body));
	return (size_t)n;
}

static size_t fail(char *out, int status)
{
	return put(out, false, status, "", "%s", "");
}

size_t ag_meta_too_long(char *out)
{
	return fail(out, 431);
}

static bool parse_ttl(const struct text *t, unsigned *out)
{
	*out = 0;
	for (size_t i = 0; i < t->n; i++) {
		if (t->p[i] < '0' || t->p[i] > '9' || t->n > 5)
			return false;
		*out = *out * 10 + (unsigned)(t->p[i] - '0');
	}
	return *out >= 1 && *out <= AG_META_TTL_MAX;
}

static size_t give_token(struct ag_meta *m, const struct request *q,
			 uint64_t now_ns, char *out)
{
	char hex[33], extra[80];
	unsigned ttl;
	size_t at = 0;

	if (!q->ttl.p || !parse_ttl(&q->ttl, &ttl))
		return fail(out, 400);
	for (size_t i = 1; i < AG_META_TOKENS; i++) {
		if (m->tokens[i].until_ns < m->tokens[at].until_ns)
			at = i;
	}
	util_random(m->tokens[at].id, sizeof(m->tokens[at].id));
	m->tokens[at].until_ns = now_ns + ttl * UINT64_C(1000000000);
	util_hex(hex, m->tokens[at].id, sizeof(m->tokens[at].id));
	snprintf(extra, sizeof(extra), TTL_HEADER ": %u\r\n", ttl);
	return put(out, false, 200, extra, "%s", hex);
}

static bool token_holds(const struct ag_meta *m, const struct text *t,
			uint64_t now_ns)
{
	char hex[33];
	uint8_t id[16];
	bool found = false;

	if (!t->p || t->n != 32)
		return false;
	memcpy(hex, t->p, 32);
	hex[32] = '\0';
	if (util_unhex(id, sizeof(id), hex))
		return false;
	for (size_t i = 0; i < AG_META_TOKENS; i++) {
		uint8_t differ = 0;

		for (size_t k = 0; k < sizeof(id); k++)
			differ |= id[k] ^ m->tokens[i].id[k];
		found |= !differ && now_ns < m->tokens[i].until_ns;
	}
	return found;
}

static void put_time(char to[24], time_t t)
{
	struct tm tm;

	gmtime_r(&t, &tm);
	strftime(to, 24, "%Y-%m-%dT%H:%M:%SZ", &tm);
}

static size_t put_credentials(const struct ag_role *r, bool head_only,
			      time_t wall, char *out)
{
	char updated[24], expires[24];

	put_time(updated, r->updated);
	put_time(expires,
		 r->expires_s ? (time_t)r->expires_s : wall + LONG_TERM_S);
	return put(out, head_only, 200, "",
		   "{\n  \"Code\" : \"Success\",\n  \"LastUpdated\" : \"%s\",\n"
		   "  \"Type\" : \"AWS-HMAC\",\n  \"AccessKeyId\" : \"%s\",\n"
		   "  \"SecretAccessKey\" : \"%s\",\n  \"Token\" : \"%s\",\n"
		   "  \"Expiration\" : \"%s\"\n}",
		   updated, r->key, r->secret, r->token, expires);
}

#define META "/latest/meta-data/"
#define CREDENTIALS META "iam/security-credentials"

// SDKs ask some of these with a slash at their end, and some without.
static size_t look_up(const struct ag_role *r, struct text path, bool head_only,
		      time_t wall, char *out)
{
	if (!r->known)
		return fail(out, 404);
	if (path.n && path.p[path.n - 1] == '/')
		path.n--;
	if (r->key[0] && is(&path, CREDENTIALS))
		return put(out, head_only, 200, "", "%s", ROLE_NAME);
	if (r->key[0] && is(&path, CREDENTIALS "/" ROLE_NAME))
		return put_credentials(r, head_only, wall, out);
	if (is(&path, META "instance-id"))
		return put(out, head_only, 200, "", "%s", r->vm);
	if (is(&path, META "placement/region"))
		return put(out, head_only, 200, "", "%s", r->region);
	if (is(&path, META "placement/availability-zone"))
		return put(out, head_only, 200, "", "%sa", r->region);
	if (is(&path, "/latest/dynamic/instance-identity/document"))
		return put(out, head_only, 200, "",
			   "{\n  \"availabilityZone\" : \"%sa\",\n"
			   "  \"instanceId\" : \"%s\",\n"
			   "  \"region\" : \"%s\"\n}",
			   r->region, r->vm, r->region);
	return fail(out, 404);
}

size_t ag_meta_answer(struct ag_meta *m, const char *head, size_t len,
		      uint64_t now_ns, time_t wall, char *out)
{
	struct request q = {.body = false};
	bool put_it, head_only;

	if (!parse(&q, head, len) || q.body)
		return fail(out, 400);
	if (q.forwarded)
		return fail(out, 403);
	put_it = is(&q.method, "PUT");
	head_only = is(&q.method, "HEAD");
	if (put_it && is(&q.path, "/latest/api/token"))
		return give_token(m, &q, now_ns, out);
	if (!head_only && !is(&q.method, "GET"))
		return fail(out, 405);
	if (!token_holds(m, &q.token, now_ns))
		return fail(out, 401);
	return look_up(&m->role, q.path, head_only, wall, out);
}
