// AWS Signature Version 4, header form, the verifier's side.
//
//   key       = HMAC(HMAC(HMAC(HMAC("AWS4" secret, day), region), service),
//                    "aws4_request")
//   signature = HMAC(key, "AWS4-HMAC-SHA256 \n time \n scope \n
//                    digest of the canonical request")
//
// The order of the checks: form, key, time, what must be signed, the body's
// digest, the signature. Nothing before the last needs a secret. A request that
// is replayed within the 15 minutes is taken, as at AWS: what must happen once
// has a client token.
#include "auth_internal.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#define ALGORITHM "AWS4-HMAC-SHA256"
#define TERMINATOR "aws4_request"
#define MD_BYTES 32

// What the Authorization header says.
struct claim {
	struct part credential, signed_headers, signature;
	struct part id, day, region, service; // of the credential
	struct sigv4_names names;
};

static bool is(struct part a, const char *text)
{
	return a.n == strlen(text) && !memcmp(a.p, text, a.n);
}

static enum sigv4_verdict incomplete(struct err *e, const char *why)
{
	return auth_refuse(e, SIGV4_INCOMPLETE, "the Authorization header %s",
			   why);
}

// --- the Authorization header -----------------------------------------------

static bool in(char c, const char *also)
{
	return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ||
	       (c && strchr(also, c));
}

static bool all_in(struct part a, size_t max, const char *also)
{
	for (size_t i = 0; i < a.n; i++) {
		if (!in(a.p[i], also))
			return false;
	}
	return a.n && a.n <= max;
}

static const char upper[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ_";

static bool access_key_id(struct part a)
{
	return all_in(a, AUTH_ID_MAX, upper);
}

// ID/DAY/REGION/SERVICE/aws4_request
static enum sigv4_verdict parse_credential(struct claim *c, struct err *e)
{
	struct part *out[] = {&c->id, &c->day, &c->region, &c->service};
	struct part rest = c->credential;

	for (size_t i = 0; i < ARRAY_SIZE(out); i++) {
		if (!part_cut(&rest, '/', out[i]))
			return incomplete(e, "has no Credential=ID/DAY/REGION/"
					     "SERVICE/" TERMINATOR);
	}
	if (!is(rest, TERMINATOR) || c->day.n != 8 || !all_in(c->day, 8, "") ||
	    !all_in(c->region, 64, "-") || !all_in(c->service, 64, "-"))
		return incomplete(
		    e, "has no Credential=ID/DAY/REGION/SERVICE/" TERMINATOR);
	if (!access_key_id(c->id))
		return incomplete(e, "has an access key id of other characters "
				     "than letters, digits and _");
	return SIGV4_OK;
}

// host;x-amz-date, ascending.
static enum sigv4_verdict parse_names(struct claim *c, struct err *e)
{
	struct sigv4_names *names = &c->names;
	struct part rest = c->signed_headers, last = {"", 0}, a;
	bool more = true;

	while (more) {
		int order;

		more = part_cut(&rest, ';', &a);
		order = memcmp(a.p, last.p, MIN(a.n, last.n));

		if (!all_in(a, 256, "-_.") || names->n == SIGV4_SIGNED_MAX)
			return incomplete(e, "has no SignedHeaders list of at "
					     "most 64 names in lower case");
		if (order < 0 || (order == 0 && a.n <= last.n))
			return incomplete(e, "names the SignedHeaders out of "
					     "order, or one twice");
		names->name[names->n].p = a.p;
		names->name[names->n++].len = a.n;
		last = a;
	}
	return SIGV4_OK;
}

static struct part *field_of(struct claim *c, const char **p)
{
	static const char *const keys[] = {
	    "Credential=", "SignedHeaders=", "Signature="};
	struct part *fields[] = {&c->credential, &c->signed_headers,
				 &c->signature};

	for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
		if (strncmp(*p, keys[i], strlen(keys[i])))
			continue;
		*p += strlen(keys[i]);
		return fields[i];
	}
	return NULL;
}

// ALGORITHM Credential=…, SignedHeaders=…, Signature=…; each once.
static enum sigv4_verdict parse_claim(struct claim *c, const char *v,
				      struct err *e)
{
	const char *p = v + strlen(ALGORITHM " ");
	enum sigv4_verdict rc;

	*c = (struct claim){0};
	for (unsigned i = 0; i < 3; i++) {
		struct part *f = field_of(c, &p);

		if (!f || f->p)
			return incomplete(e, "must have Credential, "
					     "SignedHeaders and Signature, "
					     "each once");
		*f = (struct part){p, strcspn(p, ", ")};
		p += f->n;
		if (i == 2)
			break;
		if (*p++ != ',')
			return incomplete(e, "has no comma between its parts");
		p += strspn(p, " ");
	}
	if (*p)
		return incomplete(e, "goes on after its three parts");
	if (c->signature.n != 2 * MD_BYTES || !all_in(c->signature, 64, "") ||
	    strspn(c->signature.p, "0123456789abcdef") < 64)
		return incomplete(e, "has a Signature that is not 64 digits of "
				     "hex in lower case");
	rc = parse_credential(c, e);
	return rc ? rc : parse_names(c, e);
}

static bool names_has(const struct sigv4_names *names, const char *name)
{
	for (size_t i = 0; i < names->n; i++) {
		if (names->name[i].len == strlen(name) &&
		    !strncasecmp(names->name[i].p, name, names->name[i].len))
			return true;
	}
	return false;
}

static const char *header(const struct sigv4_request *r, const char *name,
			  size_t *count)
{
	return sigv4_header(r, name, strlen(name), count);
}

// --- time -------------------------------------------------------------------

// n decimal digits; -1.
static int digits(const char *p, size_t n)
{
	int v = 0;

	for (size_t i = 0; i < n; i++) {
		if (p[i] < '0' || p[i] > '9')
			return -1;
		v = v * 10 + (p[i] - '0');
	}
	return v;
}

// Seconds since 1970 of a date that exists; -1.
static int64_t seconds(int year, int mon, int day, int h, int min, int s)
{
	struct tm tm = {.tm_year = year - 1900,
			.tm_mon = mon - 1,
			.tm_mday = day,
			.tm_hour = h,
			.tm_min = min,
			.tm_sec = s};
	time_t t;

	if (year < 1970 || mon < 1 || mon > 12 || day < 1 || h < 0 || h > 23 ||
	    min < 0 || min > 59 || s < 0 || s > 59)
		return -1;
	t = timegm(&tm);
	return tm.tm_mday == day && tm.tm_mon == mon - 1 ? t : -1;
}

// 20150830T123600Z
static int64_t iso_time(const char *v)
{
	if (strlen(v) != 16 || v[8] != 'T' || v[15] != 'Z')
		return -1;
	return seconds(digits(v, 4), digits(v + 4, 2), digits(v + 6, 2),
		       digits(v + 9, 2), digits(v + 11, 2), digits(v + 13, 2));
}

// Sun, 30 Aug 2015 12:36:00 GMT (RFC 9110 section 5.6.7); the day of the week is
// not looked at.
static int64_t http_time(const char *v)
{
	static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
	const char *m;

	if (strlen(v) != 29 || strcmp(v + 25, " GMT") || v[3] != ',' ||
	    v[4] != ' ' || v[7] != ' ' || v[11] != ' ' || v[16] != ' ' ||
	    v[19] != ':' || v[22] != ':')
		return -1;
	for (m = months; *m && memcmp(m, v + 8, 3); m += 3)
		;
	return seconds(digits(v + 12, 4), (int)(m - months) / 3 + 1,
		       digits(v + 5, 2), digits(v + 17, 2), digits(v + 20, 2),
		       digits(v + 23, 2));
}

// When it was signed, as X-Amz-Date or else Date says: seconds and, in `stamp`,
// the text that is hashed.
static enum sigv4_verdict signed_at(const struct sigv4_request *r,
				    const struct claim *c, int64_t *at,
				    char stamp[static 17], struct err *e)
{
	size_t count;
	const char *name = "x-amz-date", *v = header(r, name, &count);
	struct tm tm;
	time_t t;

	if (!count) {
		name = "date";
		v = header(r, name, &count);
	}
	if (!v)
		return auth_refuse(e, SIGV4_INCOMPLETE,
				   "the request has no X-Amz-Date and no Date "
				   "header, or several");
	if (!names_has(&c->names, name))
		return auth_refuse(e, SIGV4_INCOMPLETE,
				   "the %s header is not signed", name);
	*at = iso_time(v);
	if (*at < 0 && name[0] == 'd')
		*at = http_time(v);
	if (*at < 0)
		return auth_refuse(e, SIGV4_INCOMPLETE,
				   "the %s header is not a time such as "
				   "20260131T235959Z",
				   name);
	t = (time_t)*at;
	gmtime_r(&t, &tm);
	strftime(stamp, 17, "%Y%m%dT%H%M%SZ", &tm);
	if (memcmp(stamp, c->day.p, 8))
		return auth_refuse(e, SIGV4_MISMATCH,
				   "the Credential is scoped to %.8s, but the "
				   "request was signed at %s",
				   c->day.p, stamp);
	return SIGV4_OK;
}

static enum sigv4_verdict check_clock(int64_t at, const char *stamp,
				      uint64_t now_s, struct err *e)
{
	uint64_t then = (uint64_t)at;
	bool past = then < now_s;
	uint64_t apart = past ? now_s - then : then - now_s;

	if (apart <= SIGV4_SKEW_S)
		return SIGV4_OK;
	return auth_refuse(
	    e, SIGV4_EXPIRED,
	    "the request was signed at %s, %llu seconds %s by this "
	    "host's clock, and at most %d are allowed: sign it "
	    "again, or set the clock that is wrong",
	    stamp, (unsigned long long)apart, past ? "ago" : "in the future",
	    SIGV4_SKEW_S);
}

// --- what must be signed ----------------------------------------------------

// Host, and whatever changes the meaning of the request: Content-Type and every
// X-Amz-. (x-amz-security-token means nothing where it is ignored, and some
// clients add it after signing.)
static enum sigv4_verdict check_coverage(const struct sigv4_request *r,
					 const struct claim *c, struct err *e)
{
	if (!names_has(&c->names, "host"))
		return auth_refuse(e, SIGV4_INCOMPLETE,
				   "the host header is not signed");
	for (size_t i = 0; i < r->nheaders; i++) {
		const char *name = r->headers[i].name;

		if (strncasecmp(name, "x-amz-", 6) &&
		    strcasecmp(name, "content-type"))
			continue;
		if (strcasecmp(name, "x-amz-security-token") &&
		    !names_has(&c->names, name))
			return auth_refuse(e, SIGV4_INCOMPLETE,
					   "the %.64s header is not signed",
					   name);
	}
	return SIGV4_OK;
}

static enum sigv4_verdict check_session(const struct sigv4_request *r,
					const struct sigv4_policy *p,
					struct err *e)
{
	size_t count;

	header(r, "x-amz-security-token", &count);
	if (!count || p->ignore_session_token)
		return SIGV4_OK;
	return auth_refuse(
	    e, SIGV4_UNKNOWN_KEY,
	    "the request has a session token, which thaw does not "
	    "issue: use a key of its keys file, without "
	    "AWS_SESSION_TOKEN");
}

static enum sigv4_verdict
check_scope(const struct claim *c, const struct sigv4_policy *p, struct err *e)
{
	const char *service = p->service ? p->service : "lambda";

	if (!is(c->service, service))
		return auth_refuse(
		    e, SIGV4_MISMATCH,
		    "the Credential is scoped to the service %.*s; "
		    "this one is signed for as %s",
		    (int)c->service.n, c->service.p, service);
	if (p->region && !is(c->region, p->region))
		return auth_refuse(
		    e, SIGV4_MISMATCH,
		    "the Credential is scoped to the region %.*s; "
		    "this is %s",
		    (int)c->region.n, c->region.p, p->region);
	return SIGV4_OK;
}

// The body's digest in hex: computed, and equal to what the client declares. It
// may not declare UNSIGNED-PAYLOAD or chunks: then whoever is between (the API's
// port speaks plain HTTP) could put another body under the signature, and no SDK
// does for these operations.
static enum sigv4_verdict body_digest(const struct sigv4_request *r,
				      char hex[static 65], struct err *e)
{
	uint8_t md[MD_BYTES];
	size_t count;
	const char *given = header(r, "x-amz-content-sha256", &count);

	if (r->body_sha256)
		memcpy(md, r->body_sha256, MD_BYTES);
	else if (!EVP_Digest(r->body_len ? r->body : "", r->body_len, md, NULL,
			     EVP_sha256(), NULL))
		return auth_refuse(e, SIGV4_MISMATCH,
				   "OpenSSL's SHA-256 failed");
	util_hex(hex, md, MD_BYTES);
	if (!count)
		return SIGV4_OK;
	if (!given || strlen(given) != 64)
		return auth_refuse(
		    e, SIGV4_INCOMPLETE,
		    "X-Amz-Content-SHA256 must be the SHA-256 of the "
		    "body; unsigned and streamed payloads are not "
		    "taken");
	if (CRYPTO_memcmp(given, hex, 64))
		return auth_refuse(
		    e, SIGV4_MISMATCH,
		    "X-Amz-Content-SHA256 is not the SHA-256 of the "
		    "body that came");
	return SIGV4_OK;
}

// --- the signature ----------------------------------------------------------

static bool hmac(uint8_t out[static MD_BYTES], const void *key, size_t key_len,
		 const void *data, size_t len)
{
	unsigned n = 0;

	return HMAC(EVP_sha256(), key, (int)key_len, data, len, out, &n) &&
	       n == MD_BYTES;
}

static bool signing_key(uint8_t out[static MD_BYTES], const char *secret,
			const struct claim *c)
{
	char first[4 + AUTH_SECRET_MAX + 1];
	size_t n = (size_t)snprintf(first, sizeof(first), "AWS4%s", secret);
	bool ok = n < sizeof(first) &&
		  hmac(out, first, n, c->day.p, c->day.n) &&
		  hmac(out, out, MD_BYTES, c->region.p, c->region.n) &&
		  hmac(out, out, MD_BYTES, c->service.p, c->service.n) &&
		  hmac(out, out, MD_BYTES, TERMINATOR, strlen(TERMINATOR));

	OPENSSL_cleanse(first, sizeof(first));
	return ok;
}

// The signature that the request should have, in hex.
static bool expected(char hex[static 65], const struct claim *c,
		     const char *secret, const char *stamp,
		     const uint8_t canon[static MD_BYTES])
{
	uint8_t key[MD_BYTES], md[MD_BYTES];
	char digest[65], text[512];
	bool ok = false;
	int n;

	util_hex(digest, canon, MD_BYTES);
	n = snprintf(text, sizeof(text), "%s\n%s\n%.*s\n%s", ALGORITHM, stamp,
		     (int)(c->credential.n - c->id.n - 1),
		     c->credential.p + c->id.n + 1, digest);
	if (n > 0 && (size_t)n < sizeof(text) && signing_key(key, secret, c)) {
		ok = hmac(md, key, MD_BYTES, text, (size_t)n);
		util_hex(hex, md, MD_BYTES);
	}
	OPENSSL_cleanse(key, sizeof(key));
	return ok;
}

static enum sigv4_verdict check_signature(const struct sigv4_request *r,
					  const struct claim *c,
					  const struct auth_key *k,
					  const char *stamp, const char *body,
					  struct err *e)
{
	uint8_t canon[MD_BYTES];
	char hex[65];
	bool ok;

	if (sigv4_canon_digest(r, &c->names, body, canon, e)) {
		if (e)
			e->code = -EACCES;
		return SIGV4_MISMATCH;
	}
	ok = expected(hex, c, k->secret, stamp, canon) &&
	     !CRYPTO_memcmp(hex, c->signature.p, 64);
	OPENSSL_cleanse(hex, sizeof(hex));
	if (ok)
		return SIGV4_OK;
	return auth_refuse(
	    e, SIGV4_MISMATCH,
	    "the signature is not the one that %s's secret makes for "
	    "this request: check the secret access key, and whether "
	    "something on the way changes the request",
	    k->id);
}

// The claim of the one Authorization header.
static enum sigv4_verdict read_claim(const struct sigv4_request *r,
				     struct claim *c, struct err *e)
{
	size_t count;
	const char *v = header(r, "authorization", &count);

	if (!count)
		return auth_refuse(e, SIGV4_MISSING,
				   "the request is not signed: it has no "
				   "Authorization header");
	if (r->nheaders > SIGV4_HEADERS_MAX)
		return auth_refuse(e, SIGV4_INCOMPLETE,
				   "the request has more than %d headers",
				   SIGV4_HEADERS_MAX);
	if (!v)
		return auth_refuse(
		    e, SIGV4_INCOMPLETE,
		    "the request has several Authorization headers");
	if (strncmp(v, ALGORITHM " ", strlen(ALGORITHM " ")))
		return auth_refuse(e, SIGV4_MISSING,
				   "the request is not signed with " ALGORITHM);
	return parse_claim(c, v, e);
}

enum sigv4_verdict sigv4_verify(const struct sigv4_request *r,
				const struct sigv4_policy *p, uint64_t now_s,
				const struct auth_key **who, struct err *e)
{
	const struct auth_key *k = NULL;
	struct claim c;
	char stamp[17], body[65];
	int64_t at = 0;
	enum sigv4_verdict v = read_claim(r, &c, e);

	if (!v)
		v = check_session(r, p, e);
	if (!v)
		v = check_scope(&c, p, e);
	if (!v) {
		k = auth_keys_find(p->keys, c.id.p, c.id.n);
		if (!k)
			v = auth_refuse(e, SIGV4_UNKNOWN_KEY,
					"nobody here has the access key %.*s",
					(int)c.id.n, c.id.p);
	}
	if (!v)
		v = signed_at(r, &c, &at, stamp, e);
	if (!v)
		v = check_clock(at, stamp, now_s, e);
	if (!v)
		v = check_coverage(r, &c, e);
	if (!v)
		v = body_digest(r, body, e);
	if (!v)
		v = check_signature(r, &c, k, stamp, body, e);
	if (!v && who)
		*who = k;
	return v;
}

const char *sigv4_error_type(enum sigv4_verdict v)
{
	switch (v) {
	case SIGV4_OK:
		return NULL;
	case SIGV4_MISSING:
		return "MissingAuthenticationTokenException";
	case SIGV4_INCOMPLETE:
		return "IncompleteSignatureException";
	case SIGV4_UNKNOWN_KEY:
		return "UnrecognizedClientException";
	case SIGV4_EXPIRED:
		return "RequestExpired";
	case SIGV4_MISMATCH:
		break;
	}
	return "InvalidSignatureException";
}
