// The metadata service's answers, to SDKs and to everybody else.
#include <criterion/criterion.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "ag_meta.h"
#include "util.h"
#include "wire.h"

#define S UINT64_C(1000000000)
#define NOW (5 * S)
#define WALL 1795867200 // 2026-11-28T12:00:00Z
#define LIST "/latest/meta-data/iam/security-credentials/"
#define TTL "X-aws-ec2-metadata-token-ttl-seconds: "

static struct ag_meta m;
static char out[AG_META_OUT_MAX + 1];

struct spec {
	const char *vm, *region, *key, *secret, *token;
	uint64_t expires;
};
static const struct spec good = {
    "microvm-0123", "eu-west-3",	"ASIAEXAMPLE",
    "s3cr3t/+=",    "session/token+==", 1795870800};

static uint8_t frame[9000];

static size_t encode(const struct spec *s)
{
	const char *const texts[] = {s->vm, s->region, s->key, s->secret,
				     s->token};
	struct wire_writer w = wire_writer_of(frame, sizeof(frame));

	for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
		wire_put_u32(&w, (uint32_t)strlen(texts[i]));
		wire_put_bytes(&w, texts[i], strlen(texts[i]));
	}
	wire_put_u64(&w, s->expires);
	cr_assert_not(w.bad);
	return w.len;
}

static int role(const struct spec *s)
{
	const char *why;

	return ag_meta_role(&m, frame, encode(s), WALL, &why);
}

// The status of the answer, which must be one complete message.
static int ask_bytes(const char *head, size_t len, uint64_t now)
{
	size_t n = ag_meta_answer(&m, head, len, now, WALL, out), length;
	const char *at, *body;
	int status;

	cr_assert_leq(n, AG_META_OUT_MAX);
	out[n] = '\0';
	cr_assert_eq(sscanf(out, "HTTP/1.1 %d ", &status), 1, "%s", out);
	at = strstr(out, "\r\nContent-Length: ");
	body = strstr(out, "\r\n\r\n");
	cr_assert(at && body && at < body);
	cr_assert_eq(sscanf(at + 18, "%zu", &length), 1);
	if (strncmp(head, "HEAD ", 5) || status != 200)
		cr_assert_eq(n, (size_t)(body + 4 - out) + length);
	else
		cr_assert(length && body + 4 == out + n);
	cr_assert(strstr(out, "\r\nConnection: close\r\n"));
	return status;
}

static int ask(uint64_t now, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
static int ask(uint64_t now, const char *fmt, ...)
{
	char head[8192];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(head, sizeof(head), fmt, ap);
	va_end(ap);
	return ask_bytes(head, (size_t)n, now);
}

static const char *body(void)
{
	return strstr(out, "\r\n\r\n") + 4;
}

// A token of `ttl` seconds, given at `now`.
static const char *token(unsigned ttl, uint64_t now)
{
	static char text[2][64];
	static int which;

	which = !which;
	cr_assert_eq(ask(now,
			 "PUT /latest/api/token HTTP/1.1\r\nHost: x\r\n" TTL
			 "%u\r\n\r\n",
			 ttl),
		     200);
	snprintf(text[which], sizeof(text[which]), "%s", body());
	cr_assert_eq(strlen(text[which]), 32);
	return text[which];
}

static int get(const char *path, const char *tok, uint64_t now)
{
	return ask(now,
		   "GET %s HTTP/1.1\r\nHost: 169.254.169.254\r\n"
		   "x-aws-ec2-metadata-token: %s\r\n\r\n",
		   path, tok);
}

static void fresh(void)
{
	memset(&m, 0, sizeof(m));
	cr_assert_eq(role(&good), 0);
}
TestSuite(meta, .init = fresh);

Test(meta, what_sdks_ask)
{
	const char *t = token(21600, NOW);

	cr_expect(strstr(out, "Ttl-Seconds: 21600\r\n"));
	cr_expect_eq(get(LIST, t, NOW), 200);
	cr_expect_str_eq(body(), "execution_role");
	cr_expect_eq(get("/latest/meta-data/iam/security-credentials", t, NOW),
		     200);
	cr_expect_eq(get(LIST "execution_role", t, NOW), 200);
	cr_expect_str_eq(body(),
			 "{\n  \"Code\" : \"Success\",\n"
			 "  \"LastUpdated\" : \"2026-11-28T12:00:00Z\",\n"
			 "  \"Type\" : \"AWS-HMAC\",\n"
			 "  \"AccessKeyId\" : \"ASIAEXAMPLE\",\n"
			 "  \"SecretAccessKey\" : \"s3cr3t/+=\",\n"
			 "  \"Token\" : \"session/token+==\",\n"
			 "  \"Expiration\" : \"2026-11-28T13:00:00Z\"\n}");
	cr_expect_eq(get("/latest/meta-data/instance-id", t, NOW), 200);
	cr_expect_str_eq(body(), "microvm-0123");
	cr_expect_eq(get("/latest/meta-data/placement/region", t, NOW), 200);
	cr_expect_str_eq(body(), "eu-west-3");
	cr_expect_eq(
	    get("/latest/meta-data/placement/availability-zone/", t, NOW), 200);
	cr_expect_str_eq(body(), "eu-west-3a");
	cr_expect_eq(get("/latest/dynamic/instance-identity/document", t, NOW),
		     200);
	cr_expect(strstr(body(), "\"region\" : \"eu-west-3\""));
}

Test(meta, the_rest_is_not_there)
{
	static const char *const paths[] = {
	    "/",
	    "/latest",
	    "/latest/meta-data/",
	    "/latest/user-data",
	    LIST "other",
	    LIST "execution_role//",
	    LIST "execution_rol",
	    "/latest/meta-data/../meta-data/instance-id",
	    "/latest/api/token",
	    "/latest/meta-data/instance-id?x",
	    "http://169.254.169.254/latest/meta-data/instance-id",
	};
	const char *t = token(60, NOW);

	for (size_t i = 0; i < ARRAY_SIZE(paths); i++)
		cr_expect_eq(get(paths[i], t, NOW), 404, "%s", paths[i]);
	cr_expect_eq(ask(NOW,
			 "HEAD " LIST " HTTP/1.1\r\n"
			 "X-AWS-EC2-METADATA-TOKEN:%s\t\r\n\r\n",
			 t),
		     200);
}

Test(meta, nothing_without_a_token)
{
	const char *t;
	char wrong[33];

	cr_expect_eq(ask(NOW, "GET " LIST "execution_role HTTP/1.1\r\n\r\n"),
		     401, "IMDSv1");
	cr_expect_eq(get(LIST, "", NOW), 401);
	cr_expect_eq(get(LIST, "00000000000000000000000000000000", NOW), 401,
		     "what an unused place in the table holds");
	t = token(60, NOW);
	for (size_t i = 0; i < 32; i++) {
		strcpy(wrong, t);
		wrong[i] = wrong[i] == '0' ? '1' : '0';
		cr_expect_eq(get(LIST, wrong, NOW), 401);
	}
	cr_expect_eq(get(LIST, t, NOW + 60 * S - 1), 200);
	cr_expect_eq(get(LIST, t, NOW + 60 * S), 401, "it has ended");
	t = token(60, NOW);
	ag_meta_forget_tokens(&m);
	cr_expect_eq(get(LIST, t, NOW), 401);
	cr_expect_eq(get("/nothing", t, NOW), 401, "before the path is seen");
}

Test(meta, tokens_have_a_time)
{
	static const char *const bad[] = {
	    "",	   "0",	   "21601", "-1",    "+1",	   "1s",
	    "1 1", "0x10", "1.0",   "99999", "4294967297", "000060"};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		cr_expect_eq(ask(NOW,
				 "PUT /latest/api/token HTTP/1.1\r\n" TTL
				 "%s\r\n\r\n",
				 bad[i]),
			     400, "%s", bad[i]);
	cr_expect_eq(ask(NOW, "PUT /latest/api/token HTTP/1.1\r\n\r\n"), 400);
	cr_expect_eq(ask(NOW, "PUT /latest/api/token HTTP/1.1\r\n" TTL
			      "60\r\nContent-Length: 0\r\n\r\n"),
		     200);
	token(1, NOW);
	cr_expect(strstr(out, "Ttl-Seconds: 1\r\n"));
}

Test(meta, more_tokens_end_the_one_that_ends_next)
{
	char first[33], second[33];

	strcpy(first, token(100, NOW));
	strcpy(second, token(99, NOW));
	for (int i = 0; i < AG_META_TOKENS - 2; i++)
		token(200, NOW);
	cr_expect_eq(get(LIST, second, NOW), 200);
	token(200, NOW);
	cr_expect_eq(get(LIST, second, NOW), 401);
	cr_expect_eq(get(LIST, first, NOW), 200);
}

Test(meta, through_a_proxy_nothing)
{
	const char *t = token(60, NOW);

	cr_expect_eq(ask(NOW, "PUT /latest/api/token HTTP/1.1\r\n" TTL
			      "60\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n"),
		     403);
	cr_expect_eq(ask(NOW,
			 "GET " LIST " HTTP/1.1\r\nx-forwarded-for:\r\n"
			 "X-aws-ec2-metadata-token: %s\r\n\r\n",
			 t),
		     403);
}

Test(meta, malformed_requests)
{
	static const char *const bad[] = {
	    "GET / HTTP/1.1\r\n",
	    "\r\n\r\n",
	    "GET /\r\n\r\n",
	    "GET  / HTTP/1.1\r\n\r\n",
	    "GET / HTTP/2.0\r\n\r\n",
	    "GET / HTTP/1.1 \r\n\r\n",
	    " GET / HTTP/1.1\r\n\r\n",
	    "G T / HTTP/1.1\r\n\r\n",
	    "GET / HTTP/1.1\nA: b\n\n\r\n\r\n",
	    "GET / HTTP/1.1\r\nA b\r\n\r\n",
	    "GET / HTTP/1.1\r\nA : b\r\n\r\n",
	    "GET / HTTP/1.1\r\n: b\r\n\r\n",
	    "GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n",
	    "GET / HTTP/1.1\r\nA: b\rc\r\n\r\n",
	    "GET / HTTP/1.1\r\nA: b\1\r\n\r\n",
	    "GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n",
	    "GET / HTTP/1.1\r\nContent-Length: 1\r\n\r\n",
	    "GET / HTTP/1.1\r\nContent-Length: 00\r\n\r\n",
	    "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
	    ("GET / HTTP/1.1\r\nX-aws-ec2-metadata-token: a\r\n"
	     "X-aws-ec2-metadata-token: a\r\n\r\n"),
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		cr_expect_eq(ask_bytes(bad[i], strlen(bad[i]), NOW), 400, "%s",
			     bad[i]);
	cr_expect_eq(ask_bytes("GET / HTTP/1.1\r\nA: \0\r\n\r\n", 23, NOW),
		     400);
	cr_expect_eq(ask(NOW, "POST /latest/api/token HTTP/1.1\r\n\r\n"), 405);
	cr_expect_eq(ask(NOW, "PUT /latest/user-data HTTP/1.1\r\n\r\n"), 405);
	cr_expect_geq(ag_meta_too_long(out), 10);
	cr_expect_eq(strncmp(out, "HTTP/1.1 431 ", 13), 0);
}

// Every prefix, and every byte set to a few values: the sanitizers watch.
Test(meta, hostile_heads)
{
	static const char values[] = {0, ' ', '\r', '\n', ':', 'x', (char)0xff};
	char head[300];
	size_t len = (size_t)snprintf(head, sizeof(head),
				      "GET " LIST
				      "execution_role HTTP/1.1\r\nHost: a\r\n"
				      "X-aws-ec2-metadata-token: %s\r\n\r\n",
				      token(60, NOW));

	cr_assert_eq(ask_bytes(head, len, NOW), 200);
	for (size_t n = 0; n < len; n++) {
		char *copy = malloc(n ? n : 1);

		memcpy(copy, head, n);
		cr_expect_eq(ask_bytes(copy, n, NOW), 400, "length %zu", n);
		free(copy);
	}
	for (size_t at = 0; at < len; at++) {
		for (size_t v = 0; v < ARRAY_SIZE(values); v++) {
			char *copy = malloc(len);

			memcpy(copy, head, len);
			copy[at] = values[v];
			ask_bytes(copy, len, NOW);
			free(copy);
		}
	}
}

Test(meta, nobody_and_nothing)
{
	struct spec none = good;
	const char *t = token(60, NOW);

	ag_meta_forget_role(&m);
	cr_expect_eq(get(LIST, t, NOW), 404);
	cr_expect_eq(get(LIST "execution_role", t, NOW), 404);
	cr_expect_eq(get("/latest/meta-data/instance-id", t, NOW), 404);
	for (size_t i = 0; i < sizeof(m.role); i++)
		cr_assert_eq(((uint8_t *)&m.role)[i], 0, "something stays");
	none.key = none.secret = none.token = "";
	cr_assert_eq(role(&none), 0);
	cr_expect_eq(get(LIST, t, NOW), 404, "it is somebody, with nothing");
	cr_expect_eq(get(LIST "execution_role", t, NOW), 404);
	cr_expect_eq(get("/latest/meta-data/instance-id", t, NOW), 200);
}

Test(meta, long_term_credentials_are_asked_for_again)
{
	struct spec s = good;

	s.token = "";
	s.expires = 0;
	cr_assert_eq(role(&s), 0);
	cr_expect_eq(get(LIST "execution_role", token(60, NOW), NOW), 200);
	cr_expect(strstr(body(), "\"Token\" : \"\""));
	cr_expect(strstr(body(), "\"Expiration\" : \"2026-11-28T18:00:00Z\""));
}

static char *times(char c, size_t n)
{
	char *s = malloc(n + 1);

	memset(s, c, n);
	s[n] = '\0';
	return s;
}

Test(meta, roles_limits)
{
	char *key = times('k', AG_ROLE_KEY_MAX);
	char *secret = times('s', AG_ROLE_SECRET_MAX);
	char *tok = times('t', AG_ROLE_TOKEN_MAX);
	char *name = times('n', AG_ROLE_NAME_MAX);
	struct spec s = {name, name, key, secret, tok, 253402300799u};

	cr_assert_eq(role(&s), 0);
	cr_expect_eq(get(LIST "execution_role", token(60, NOW), NOW), 200);
	cr_expect(strstr(body(), tok) && strstr(body(), secret));
	cr_expect(strstr(body(), "9999-12-31T23:59:59Z\"\n}"));
	free(key);
	free(secret);
	free(tok);
	free(name);
}

Test(meta, hostile_roles)
{
	char *longer = times('x', AG_ROLE_TOKEN_MAX + 1);
	struct spec bad[14];
	const char *why;
	size_t len = encode(&good);

	for (size_t n = 0; n < len; n++)
		cr_expect_eq(ag_meta_role(&m, frame, n, WALL, &why), -EPROTO);
	frame[len] = 0;
	cr_expect_eq(ag_meta_role(&m, frame, len + 1, WALL, &why), -EPROTO);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		bad[i] = good;
	bad[0].vm = "";
	bad[1].region = "";
	bad[2].vm = "a\"b";
	bad[3].region = "a b";
	bad[4].key = "";
	bad[5].secret = "";
	bad[6].key = bad[6].secret = "";
	bad[7].secret = "back\\slash";
	bad[8].token = "new\nline";
	bad[9].key = "\xc3\xa4";
	bad[10].token = longer;
	bad[11].secret = longer + 1;
	bad[12].vm = longer + AG_ROLE_TOKEN_MAX - AG_ROLE_NAME_MAX;
	bad[13].expires = 253402300800u;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		cr_expect_eq(role(&bad[i]), -EPROTO, "number %zu", i);
	free(longer);
	cr_expect_eq(get(LIST, token(60, NOW), NOW), 200, "the old one stays");
}
