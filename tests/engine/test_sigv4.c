// SigV4 by requests that others signed: AWS's published vectors, and what
// botocore, the SDK for JavaScript and curl sent (tests/golden/sigv4, recorded
// by sigv4_clients.py). Then every byte of them changed, and every rule of form.
#include "sigv4_case.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <strings.h>
#include <time.h>

static void each_case(const char *file, size_t want,
		      void (*fn)(struct sigv4_case *, void *), void *ctx)
{
	char path[512];
	json_error_t je;
	size_t n = 0;
	json_t *j;
	FILE *f;

	snprintf(path, sizeof(path), GOLDEN "/%s", file);
	f = fopen(path, "r");
	cr_assert_not_null(f, "%s", path);
	for (; (j = json_loadf(f, JSON_DISABLE_EOF_CHECK, &je)); n++) {
		struct sigv4_case c;

		sigv4_case_of(&c, j);
		fn(&c, ctx);
		sigv4_case_free(&c);
	}
	fclose(f);
	cr_assert_eq(n, want, "%s has %zu cases", file, n);
}

static const struct {
	const char *file;
	size_t cases;
} files[] = {
    {"published.jsonl", 43},
    {"botocore.jsonl", 24},
    {"js.jsonl", 24},
    {"curl.jsonl", 5},
};

static enum sigv4_verdict verify(const struct sigv4_case *c, struct err *e)
{
	const struct auth_key *who = NULL;
	enum sigv4_verdict v;

	*e = (struct err)ERR_INIT;
	v = sigv4_verify(&c->req, &c->policy, c->now, &who, e);
	cr_assert((who == &c->key) == (v == SIGV4_OK));
	cr_assert((e->code == -EACCES && e->msg[0]) == (v != SIGV4_OK));
	return v;
}

static const char *type_of(enum sigv4_verdict v)
{
	return sigv4_error_type(v) ?: "ok";
}

static void as_expected(struct sigv4_case *c, void *ctx)
{
	struct err e;
	const char *got = type_of(verify(c, &e));

	(void)ctx;
	cr_assert_str_eq(got, c->expect, "%s: %s: %s", c->name, got, e.msg);
	cr_assert_not_null(strstr(e.msg, c->because), "%s: %s", c->name, e.msg);
}

Test(sigv4, recorded_and_published)
{
	for (size_t i = 0; i < ARRAY_SIZE(files); i++)
		each_case(files[i].file, files[i].cases, as_expected, NULL);
}

// --- every byte changed -----------------------------------------------------

struct tries {
	size_t n, accepted;
};

static void try_changed(struct sigv4_case *c, char *p, char to, struct tries *t)
{
	char was = *p;
	struct err e;

	if (!to || to == was)
		return;
	*p = to;
	t->n++;
	if (verify(c, &e) == SIGV4_OK) {
		t->accepted++;
		cr_log_error("%s: accepted with %d for %d before \"%.20s\"",
			     c->name, to, was, p + 1);
	}
	*p = was;
}

// `field` points to the text of length n; a copy of it is changed, byte by byte.
static void change_each(struct sigv4_case *c, const char **field, size_t n,
			bool name, struct tries *t)
{
	const char *was = *field;
	char *copy = malloc(n + 1);

	memcpy(copy, was, n + 1);
	*field = copy;
	for (size_t i = 0; i < n; i++) {
		static const int masks[] = {0x01, 0x02, 0x10, 0x20, 0x40, 0x80};

		for (size_t m = 0; m < ARRAY_SIZE(masks); m++) {
			char to = (char)(copy[i] ^ masks[m]);

			// "Host" and "hOST" are the same header.
			if (name && strncasecmp(&to, &copy[i], 1) == 0)
				continue;
			try_changed(c, &copy[i], to, t);
		}
	}
	*field = was;
	free(copy);
}

static bool counts(const struct sigv4_case *c, const char *name)
{
	const char *list = NULL, *p;
	size_t n = strlen(name);

	for (size_t i = 0; i < c->req.nheaders; i++) {
		if (!strcasecmp(c->headers[i].name, "authorization"))
			list = strstr(c->headers[i].value, "SignedHeaders=");
	}
	if (!strcasecmp(name, "authorization"))
		return true;
	cr_assert_not_null(list);
	list += strlen("SignedHeaders=");
	for (p = list; *p && *p != ','; p += p[0] == ';') {
		size_t len = strcspn(p, ";,");

		if (len == n && !strncasecmp(p, name, n))
			return true;
		p += len;
	}
	return false;
}

static void change_all(struct sigv4_case *c, void *ctx)
{
	struct tries *t = ctx;

	if (strcmp(c->expect, "ok"))
		return;
	change_each(c, &c->req.method, strlen(c->req.method), false, t);
	change_each(c, &c->req.path, strlen(c->req.path), false, t);
	change_each(c, &c->req.query, strlen(c->req.query), false, t);
	change_each(c, (const char **)&c->req.body, c->req.body_len, false, t);
	for (size_t i = 0; i < c->req.nheaders; i++) {
		struct sigv4_header *h = &c->headers[i];

		if (!counts(c, h->name))
			continue;
		change_each(c, &h->name, strlen(h->name), true, t);
		change_each(c, &h->value, strlen(h->value), false, t);
	}
}

Test(sigv4, every_changed_byte_is_refused)
{
	struct tries t = {0, 0};

	for (size_t i = 0; i < ARRAY_SIZE(files); i++)
		each_case(files[i].file, files[i].cases, change_all, &t);
	cr_log_info("%zu changed requests", t.n);
	cr_assert_geq(t.n, 150000, "only %zu tries", t.n);
	cr_assert_eq(t.accepted, 0, "%zu of %zu accepted", t.accepted, t.n);
}

// --- one request, bent ------------------------------------------------------

// The first of botocore's: content-type;host;x-amz-date, a body.
static void keep_first(struct sigv4_case *c, void *ctx)
{
	struct sigv4_case *out = ctx;

	if (!out->json)
		sigv4_case_of(out, json_deep_copy(c->json));
}

static void first_of(struct sigv4_case *out, const char *file)
{
	*out = (struct sigv4_case){0};
	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		if (!strcmp(files[i].file, file))
			each_case(file, files[i].cases, keep_first, out);
	}
	cr_assert_not_null(out->json);
}

static struct sigv4_header *header(struct sigv4_case *c, const char *name)
{
	for (size_t i = 0; i < c->req.nheaders; i++) {
		if (!strcasecmp(c->headers[i].name, name))
			return &c->headers[i];
	}
	cr_assert_fail("no %s", name);
	return NULL;
}

static void expect(struct sigv4_case *c, enum sigv4_verdict want,
		   const char *because, const char *what)
{
	struct err e;
	enum sigv4_verdict v = verify(c, &e);

	cr_assert_eq(v, want, "%s: %s: %s", what, type_of(v), e.msg);
	cr_assert_not_null(strstr(e.msg, because), "%s: %s", what, e.msg);
}

Test(sigv4, clock)
{
	static const struct {
		int64_t off;
		enum sigv4_verdict want;
	} cases[] = {
	    {0, SIGV4_OK},	  {900, SIGV4_OK},	 {-900, SIGV4_OK},
	    {901, SIGV4_EXPIRED}, {-901, SIGV4_EXPIRED}, {86400, SIGV4_EXPIRED},
	};
	struct sigv4_case c;
	uint64_t at;

	first_of(&c, "js.jsonl");
	{
		struct tm tm = {0};

		cr_assert_not_null(strptime(header(&c, "x-amz-date")->value,
					    "%Y%m%dT%H%M%SZ", &tm));
		at = (uint64_t)timegm(&tm);
	}
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		c.now = (uint64_t)((int64_t)at + cases[i].off);
		expect(&c, cases[i].want,
		       !cases[i].want	  ? ""
		       : cases[i].off > 0 ? "seconds ago"
					  : "in the future",
		       "clock");
	}
	c.now = 0;
	expect(&c, SIGV4_EXPIRED, "in the future", "a clock at 1970");
	c.now = UINT64_MAX;
	expect(&c, SIGV4_EXPIRED, "ago", "a clock at the end of time");
	sigv4_case_free(&c);
}

Test(sigv4, keys_and_scope)
{
	struct auth_key two[2];
	struct sigv4_case c;

	first_of(&c, "botocore.jsonl");
	c.policy.region = NULL;
	expect(&c, SIGV4_OK, "", "any region");
	c.policy.region = "us-east-1";
	expect(&c, SIGV4_MISMATCH, "region", "another region");
	c.policy.region = "eu-central-1";
	c.policy.service = NULL;
	expect(&c, SIGV4_OK, "", "lambda is the default");
	c.policy.service = "s3";
	expect(&c, SIGV4_MISMATCH, "service lambda", "another service");
	c.policy.service = NULL;
	c.key.secret[7] ^= 1;
	expect(&c, SIGV4_MISMATCH, "secret access key", "another secret");
	c.key.secret[7] ^= 1;
	c.key.id[3] ^= 1;
	expect(&c, SIGV4_UNKNOWN_KEY, "AKIDTHAWEXAMPLE00001", "another id");
	c.key.id[3] ^= 1;
	c.keys.n = 0;
	expect(&c, SIGV4_UNKNOWN_KEY, "nobody", "no keys");
	two[0] = c.key;
	two[0].id[19] = '2';
	two[1] = c.key;
	c.keys = (struct auth_keys){two, 2};
	{
		const struct auth_key *who = NULL;

		cr_assert_eq(sigv4_verify(&c.req, &c.policy, c.now, &who, NULL),
			     SIGV4_OK);
		cr_assert_eq(who, &two[1]);
	}
	sigv4_case_free(&c);
}

Test(sigv4, body)
{
	static const char *const refused[] = {
	    "UNSIGNED-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "",
	    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b85"};
	static const uint8_t zero[32];
	struct sigv4_case c;

	first_of(&c, "botocore.jsonl");
	c.req.body_sha256 = zero;
	expect(&c, SIGV4_MISMATCH, "signature", "another digest");
	sigv4_case_free(&c);
	first_of(&c, "js.jsonl");
	c.req.body_sha256 = zero;
	expect(&c, SIGV4_MISMATCH, "body that came", "another digest");
	c.req.body_sha256 = NULL;
	c.req.body_len--;
	expect(&c, SIGV4_MISMATCH, "body that came", "a shorter body");
	c.req.body = NULL;
	c.req.body_len = 0;
	expect(&c, SIGV4_MISMATCH, "body that came", "no body");
	for (size_t i = 0; i < ARRAY_SIZE(refused); i++) {
		header(&c, "x-amz-content-sha256")->value = refused[i];
		expect(&c, SIGV4_INCOMPLETE, "not taken", refused[i]);
	}
	sigv4_case_free(&c);
}

#define CRED                                                            \
	"Credential=AKIDTHAWEXAMPLE00001/20261123/eu-central-1/lambda/" \
	"aws4_request"
#define NAMES "SignedHeaders=content-type;host;x-amz-date"
#define SIG          \
	"Signature=" \
	"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define ALG "AWS4-HMAC-SHA256 "

Test(sigv4, form_of_the_authorization_header)
{
	static const struct {
		const char *value;
		enum sigv4_verdict want;
		const char *because;
	} cases[] = {
	    // The last check is the signature's: these are formed well.
	    {ALG CRED ", " NAMES ", " SIG, SIGV4_MISMATCH, "signature"},
	    {ALG CRED "," NAMES "," SIG, SIGV4_MISMATCH, "signature"},
	    {ALG SIG ",  " NAMES "," CRED, SIGV4_MISMATCH, "signature"},
	    {"", SIGV4_MISSING, "not signed with"},
	    {"Bearer x", SIGV4_MISSING, "not signed with"},
	    {"AWS4-HMAC-SHA256", SIGV4_MISSING, "not signed with"},
	    {"AWS4-HMAC-SHA512 " CRED, SIGV4_MISSING, "not signed with"},
	    {"AWS4-ECDSA-P256-SHA256 " CRED, SIGV4_MISSING, "not signed with"},
	    {"aws4-hmac-sha256 " CRED ", " NAMES ", " SIG, SIGV4_MISSING, ""},
	    {ALG, SIGV4_INCOMPLETE, "each once"},
	    {ALG " " CRED ", " NAMES ", " SIG, SIGV4_INCOMPLETE, "each once"},
	    {ALG CRED ", " NAMES, SIGV4_INCOMPLETE, "comma"},
	    {ALG CRED ", " NAMES ",", SIGV4_INCOMPLETE, "each once"},
	    {ALG CRED " " NAMES " " SIG, SIGV4_INCOMPLETE, "comma"},
	    {ALG CRED ", " CRED ", " SIG, SIGV4_INCOMPLETE, "each once"},
	    {ALG CRED ", " NAMES ", " SIG ",", SIGV4_INCOMPLETE, "goes on"},
	    {ALG CRED ", " NAMES ", " SIG " ", SIGV4_INCOMPLETE, "goes on"},
	    {ALG CRED ", " NAMES ", " SIG ", X=1", SIGV4_INCOMPLETE, "goes on"},
	    {ALG CRED ", " NAMES ", " SIG "0", SIGV4_INCOMPLETE, "64 digits"},
	    {ALG CRED ", " NAMES ", Signature=", SIGV4_INCOMPLETE, "64"},
	    {ALG CRED ", " NAMES ", Signature=0123456789ABCDEF0123456789abcdef"
		      "0123456789abcdef0123456789abcdef",
	     SIGV4_INCOMPLETE, "64"},
	    {ALG "Credential=, " NAMES ", " SIG, SIGV4_INCOMPLETE, "no Cred"},
	    {ALG "Credential=A/20261123/r/lambda, " NAMES ", " SIG,
	     SIGV4_INCOMPLETE, "no Cred"},
	    {ALG "Credential=A/20261123/r/lambda/aws4_request/x, " NAMES
		 ", " SIG,
	     SIGV4_INCOMPLETE, "no Cred"},
	    {ALG "Credential=A/20261123/r/lambda/aws5_request, " NAMES ", " SIG,
	     SIGV4_INCOMPLETE, "no Cred"},
	    {ALG "Credential=A/2026112/r/lambda/aws4_request, " NAMES ", " SIG,
	     SIGV4_INCOMPLETE, "no Cred"},
	    {ALG "Credential=A/20261123//lambda/aws4_request, " NAMES ", " SIG,
	     SIGV4_INCOMPLETE, "no Cred"},
	    {ALG "Credential=/20261123/r/lambda/aws4_request, " NAMES ", " SIG,
	     SIGV4_INCOMPLETE, "access key id"},
	    {ALG "Credential=A%s/20261123/r/lambda/aws4_request, " NAMES
		 ", " SIG,
	     SIGV4_INCOMPLETE, "access key id"},
	    {ALG "Credential=AKIDTHAWEXAMPLE00001/20261124/eu-central-1/lambda"
		 "/aws4_request, " NAMES ", " SIG,
	     SIGV4_MISMATCH, "scoped to 20261124"},
	    {ALG CRED ", SignedHeaders=, " SIG, SIGV4_INCOMPLETE, "list"},
	    {ALG CRED ", SignedHeaders=host;;x-amz-date, " SIG,
	     SIGV4_INCOMPLETE, "list"},
	    {ALG CRED ", SignedHeaders=host;x-amz-date;, " SIG,
	     SIGV4_INCOMPLETE, "list"},
	    {ALG CRED ", SignedHeaders=Host;x-amz-date, " SIG, SIGV4_INCOMPLETE,
	     "list"},
	    {ALG CRED ", SignedHeaders=x-amz-date;host, " SIG, SIGV4_INCOMPLETE,
	     "order"},
	    {ALG CRED ", SignedHeaders=host;host;x-amz-date, " SIG,
	     SIGV4_INCOMPLETE, "twice"},
	    {ALG CRED ", SignedHeaders=content-type;x-amz-date, " SIG,
	     SIGV4_INCOMPLETE, "host header is not signed"},
	    {ALG CRED ", SignedHeaders=content-type;host, " SIG,
	     SIGV4_INCOMPLETE, "x-amz-date header is not signed"},
	    {ALG CRED ", SignedHeaders=host;x-amz-date, " SIG, SIGV4_INCOMPLETE,
	     "Content-Type header is not signed"},
	    {ALG CRED ", SignedHeaders=content-type;host;x-amz-date;x-b, " SIG,
	     SIGV4_MISMATCH, "x-b is there 0 times"},
	};
	struct sigv4_case c;

	first_of(&c, "botocore.jsonl");
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		header(&c, "authorization")->value = cases[i].value;
		expect(&c, cases[i].want, cases[i].because, cases[i].value);
	}
	sigv4_case_free(&c);
}

Test(sigv4, headers_added)
{
	static const struct {
		struct sigv4_header h;
		enum sigv4_verdict want;
		const char *because;
	} cases[] = {
	    {{"X-Unsigned", "1"}, SIGV4_OK, ""},
	    {{"X-Amz-New", "1"}, SIGV4_INCOMPLETE, "X-Amz-New"},
	    {{"x-AMZ-date", "1"}, SIGV4_INCOMPLETE, "several"},
	    {{"HOST", "other"}, SIGV4_MISMATCH, "host is there 2 times"},
	    {{"content-type", "a/b"}, SIGV4_MISMATCH, "2 times"},
	    {{"AUTHORIZATION", ALG CRED ", " NAMES ", " SIG},
	     SIGV4_INCOMPLETE,
	     "several"},
	    {{"X-Amz-Security-Token", "t"}, SIGV4_UNKNOWN_KEY, "session"},
	};
	struct sigv4_header many[SIGV4_HEADERS_MAX + 1];
	struct sigv4_case c;

	first_of(&c, "botocore.jsonl");
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		c.headers[c.req.nheaders++] = cases[i].h;
		expect(&c, cases[i].want, cases[i].because, cases[i].h.name);
		c.req.nheaders--;
	}
	c.policy.ignore_session_token = true;
	c.headers[c.req.nheaders++] = cases[6].h;
	expect(&c, SIGV4_OK, "", "session token ignored");
	for (size_t i = 0; i < ARRAY_SIZE(many); i++)
		many[i] = i < c.req.nheaders ? c.headers[i] : cases[0].h;
	c.req.headers = many;
	c.req.nheaders = SIGV4_HEADERS_MAX;
	expect(&c, SIGV4_OK, "", "128 headers");
	c.req.nheaders++;
	expect(&c, SIGV4_INCOMPLETE, "128", "129 headers");
	c.req.nheaders = 0;
	expect(&c, SIGV4_MISSING, "no Authorization", "no headers");
	sigv4_case_free(&c);
}

Test(sigv4, dates)
{
	static const char *const bad[] = {
	    "",
	    "20261123T000000",
	    "20261123T000000z",
	    "20261123 000000Z",
	    "20261123T240000Z",
	    "20261123T006000Z",
	    "20261123T000060Z",
	    "20261323T000000Z",
	    "20260023T000000Z",
	    "20260230T000000Z",
	    "20250229T000000Z",
	    "20261100T000000Z",
	    "19691231T235959Z",
	    "2026-11-23T00:00:00Z",
	    "-0261123T000000Z",
	    "20261123T0000001Z",
	    "Mon, 23 Nov 2026 00:00:00 GMT", // for Date alone
	};
	struct sigv4_case c;

	first_of(&c, "botocore.jsonl");
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		header(&c, "x-amz-date")->value = bad[i];
		expect(&c, SIGV4_INCOMPLETE, "not a time", bad[i]);
	}
	header(&c, "x-amz-date")->name = "x-date";
	expect(&c, SIGV4_INCOMPLETE, "no X-Amz-Date and no Date", "no date");
	sigv4_case_free(&c);
}

Test(sigv4, targets)
{
	static const struct {
		const char *path, *query, *because;
	} cases[] = {
	    {"", "", "begin with /"},
	    {"a", "", "begin with /"},
	    {"//", "", "empty segment"},
	    {"/a//b", "", "empty segment"},
	    {"/.", "", "empty segment"},
	    {"/a/../b", "", "empty segment"},
	    {"/a/..", "", "empty segment"},
	    {"/a b", "", "percent-encoded"},
	    {"/a?b", "", "percent-encoded"},
	    {"/a#b", "", "percent-encoded"},
	    {"/\xc3\xa9", "", "percent-encoded"},
	    {"/a", "a", "NAME=VALUE"},
	    {"/a", "=b", "NAME=VALUE"},
	    {"/a", "a=b&", "NAME=VALUE"},
	    {"/a", "&a=b", "NAME=VALUE"},
	    {"/a", "a=b&&c=d", "NAME=VALUE"},
	    {"/a", "a=b+c", "a +"},
	    {"/a", "a=b c", "a +"},
	    {"/a", "a=\xc3\xa9", "a +"},
	    {"/a", "a=%3a", "%-escape"},
	    {"/a", "a=%41", "%-escape"},
	    {"/a", "a=%7E", "%-escape"},
	    {"/a", "a=%", "%-escape"},
	    {"/a", "a=%4", "%-escape"},
	    {"/a", "a=%&b=1", "%-escape"},
	    {"/a", "a=%G0", "%-escape"},
	    {"/a", "a=%3A", "signature"}, // these are formed well
	    {"/a/", "a==:/?", "signature"},
	    {"/...", "a=", "signature"},
	    {"/", "", "signature"},
	};
	char *long_one = calloc(1, SIGV4_TARGET_MAX + 2);
	struct sigv4_case c;

	first_of(&c, "botocore.jsonl");
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		c.req.path = cases[i].path;
		c.req.query = cases[i].query;
		expect(&c, SIGV4_MISMATCH, cases[i].because, cases[i].path);
	}
	memset(long_one, 'a', SIGV4_TARGET_MAX + 1);
	c.req.path = "/";
	c.req.query = long_one;
	expect(&c, SIGV4_MISMATCH, "longer", "a long query");
	long_one[0] = '/';
	c.req.path = long_one;
	expect(&c, SIGV4_MISMATCH, "longer", "a long path");
	c.req.path = "/";
	for (size_t i = 0; i <= SIGV4_PARAMS_MAX; i++)
		memcpy(long_one + 4 * i, "a=b&", 4);
	long_one[4 * SIGV4_PARAMS_MAX + 3] = '\0';
	c.req.query = long_one;
	expect(&c, SIGV4_MISMATCH, "256", "257 parameters");
	long_one[4 * SIGV4_PARAMS_MAX - 1] = '\0';
	expect(&c, SIGV4_MISMATCH, "signature", "256 parameters");
	c.req.method = "get";
	expect(&c, SIGV4_MISMATCH, "method", "a method in lower case");
	free(long_one);
	sigv4_case_free(&c);
}
