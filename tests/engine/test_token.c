// Endpoint tokens: what is granted, and that nothing else is. The known ones
// were made by another implementation of JWE (jose of npm) with the same key.
#include "auth_internal.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define VM "microvm-01234567-89ab-cdef-0123-456789abcdef"
#define OTHER "microvm-01234567-89ab-cdef-0123-456789abcdee"
#define T0 1800000000u

static const uint8_t key_bytes[TOKEN_KEY_BYTES] = {
    1,	2,  3,	4,  5,	6,  7,	8,  9,	10, 11, 12, 13, 14, 15, 16,
    17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32};

static struct token_ring ring_of(const uint8_t *bytes)
{
	struct token_ring r = {0};

	cr_assert_eq(token_ring_add(&r, bytes), 0);
	return r;
}

static struct token_claims app_claims(void)
{
	return (struct token_claims){
	    .vm = VM,
	    .kind = TOKEN_APP,
	    .issued_s = T0,
	    .expires_s = T0 + 3600,
	    .nports = 2,
	    .ports = {{8080, 8080}, {9000, 9010}},
	};
}

static struct token_claims shell_claims(void)
{
	return (struct token_claims){.vm = VM,
				     .kind = TOKEN_SHELL,
				     .issued_s = T0,
				     .expires_s = T0 + 60};
}

static const struct token_ask app = {VM, TOKEN_APP, 8080};
static const struct token_ask shell = {VM, TOKEN_SHELL, 0};

static enum token_verdict check(const struct token_ring *r, const char *text,
				size_t n, const struct token_ask *ask,
				uint64_t now)
{
	struct err e = ERR_INIT;
	enum token_verdict v = token_check(r, text, n, ask, now, &e);

	cr_assert((e.code == -EACCES && e.msg[0]) == (v != TOKEN_OK), "%s",
		  e.msg);
	return v;
}

static size_t issue(const struct token_ring *r, struct token_claims c,
		    char out[TOKEN_TEXT_MAX + 1])
{
	struct err e = ERR_INIT;
	int n = token_issue(r, &c, out, TOKEN_TEXT_MAX + 1, &e);

	cr_assert_gt(n, 0, "%s", e.msg);
	cr_assert_eq(strlen(out), (size_t)n);
	return (size_t)n;
}

static const char known_app[] =
    "eyJraWQiOiI2ODI1Y2EzMDRiOGZjMTJjIiwiYWxnIjoiZGlyIiwiZW5jIjoiQTI1NkdDTSJ9."
    ".WDYToGWQxDiQlOYl."
    "Rq7lfLyVmHFLtjdbz7auSzoOf_mjsQYs0tuxnirD34ihGFKlp-"
    "TMgALvotmEuvlpzmTseimW8btx2FBNZxhMgsOZZWGcCsoyPIfBGBeYCLbVun3aUWP5hW3uHg."
    "qUxbUn-pxiSkwnHFznIG9A";
static const char known_shell[] =
    "eyJraWQiOiI2ODI1Y2EzMDRiOGZjMTJjIiwiYWxnIjoiZGlyIiwiZW5jIjoiQTI1NkdDTSJ9."
    "._mL9uSEmhgFNce7C.2Dw7HP55mO4FBcMLQovJmPUh85makznzSRI311tNWmI1Kf5JmvH8Rd_"
    "YJOXZ10XukwgL4_Y8L-6oK_nyzWT18uwB1viuqFsguqJmi09wQ_sLVsY._"
    "fKqWB6emXdLDKBYcKn4Zw";

Test(token, known_from_elsewhere)
{
	struct token_ring r = ring_of(key_bytes);
	size_t n = sizeof(known_app) - 1;

	cr_assert_str_eq(r.key[0].kid, "6825ca304b8fc12c");
	cr_assert_eq(check(&r, known_app, n, &app, T0), TOKEN_OK);
	cr_assert_eq(check(&r, known_app, n, &app, T0 + 3600), TOKEN_EXPIRED);
	cr_assert_eq(
	    check(&r, known_shell, sizeof(known_shell) - 1, &shell, T0),
	    TOKEN_OK);
}

Test(token, grants)
{
	static const struct {
		struct token_ask ask;
		int64_t at;
		enum token_verdict want;
	} cases[] = {
	    {{VM, TOKEN_APP, 8080}, 0, TOKEN_OK},
	    {{VM, TOKEN_APP, 9000}, 0, TOKEN_OK},
	    {{VM, TOKEN_APP, 9010}, 0, TOKEN_OK},
	    {{VM, TOKEN_APP, 8080}, 3599, TOKEN_OK},
	    {{VM, TOKEN_APP, 8080}, 3600, TOKEN_EXPIRED},
	    {{VM, TOKEN_APP, 8080}, 3601, TOKEN_EXPIRED},
	    {{VM, TOKEN_APP, 8080}, 1000000000, TOKEN_EXPIRED},
	    {{VM, TOKEN_APP, 8080}, -60, TOKEN_OK},
	    {{VM, TOKEN_APP, 8080}, -61, TOKEN_EXPIRED},
	    {{VM, TOKEN_APP, 8079}, 0, TOKEN_PORT},
	    {{VM, TOKEN_APP, 8081}, 0, TOKEN_PORT},
	    {{VM, TOKEN_APP, 8999}, 0, TOKEN_PORT},
	    {{VM, TOKEN_APP, 9011}, 0, TOKEN_PORT},
	    {{VM, TOKEN_APP, 0}, 0, TOKEN_PORT},
	    {{VM, TOKEN_APP, 65536 + 8080}, 0, TOKEN_PORT},
	    {{VM, TOKEN_SHELL, 8080}, 0, TOKEN_WRONG_KIND},
	    {{OTHER, TOKEN_APP, 8080}, 0, TOKEN_OTHER_VM},
	    {{"", TOKEN_APP, 8080}, 0, TOKEN_OTHER_VM},
	    {{VM "0", TOKEN_APP, 8080}, 0, TOKEN_OTHER_VM},
	    {{"microvm-", TOKEN_APP, 8080}, 0, TOKEN_OTHER_VM},
	};
	struct token_ring r = ring_of(key_bytes);
	char text[TOKEN_TEXT_MAX + 1];
	size_t n = issue(&r, app_claims(), text);

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		enum token_verdict v = check(&r, text, n, &cases[i].ask,
					     (uint64_t)(T0 + cases[i].at));

		cr_assert_eq(v, cases[i].want, "case %zu: %s", i,
			     token_verdict_name(v));
	}
	n = issue(&r, shell_claims(), text);
	cr_assert_eq(check(&r, text, n, &shell, T0 + 59), TOKEN_OK);
	cr_assert_eq(check(&r, text, n, &shell, T0 + 60), TOKEN_EXPIRED);
	cr_assert_eq(check(&r, text, n, &app, T0), TOKEN_WRONG_KIND);
}

Test(token, issue_refuses)
{
	struct token_ring r = ring_of(key_bytes), none = {0};
	struct token_claims good = app_claims(), c;
	char text[TOKEN_TEXT_MAX + 1];
	struct err e = ERR_INIT;
	int n;

#define BAD(change)                                                       \
	do {                                                              \
		c = good;                                                 \
		change;                                                   \
		cr_assert_eq(token_issue(&r, &c, text, sizeof(text), &e), \
			     -EINVAL, #change);                           \
	} while (0)
	BAD(c.vm[0] = '\0');
	BAD(c.vm[3] = ' ');
	BAD(c.vm[3] = '\n');
	BAD(memset(c.vm, 'a', sizeof(c.vm)));
	BAD(c.kind = 0);
	BAD(c.kind = 3);
	BAD(c.kind = TOKEN_SHELL);
	BAD(c.nports = 0);
	BAD(c.nports = TOKEN_PORTS_MAX + 1);
	BAD(c.ports[1].lo = 0);
	BAD(c.ports[1].lo = 9011);
	BAD(c.expires_s = c.issued_s);
	BAD(c.expires_s = c.issued_s - 1);
	BAD(c.expires_s = c.issued_s + 3601);
#undef BAD
	c = good;
	cr_assert_eq(token_issue(&none, &c, text, sizeof(text), &e), -EINVAL);
	n = token_issue(&r, &c, text, sizeof(text), &e);
	cr_assert_eq(token_issue(&r, &c, text, (size_t)n, &e), -ENOBUFS);
	cr_assert_eq(token_issue(&r, &c, text, (size_t)n + 1, &e), n);
}

// The most that a token can hold fits, and all of it counts.
Test(token, largest)
{
	struct token_ring r = ring_of(key_bytes);
	struct token_claims c = app_claims();
	char text[TOKEN_TEXT_MAX + 1];
	struct token_ask ask = app;
	size_t n;

	memset(c.vm, 'v', TOKEN_VM_MAX);
	ask.vm = c.vm;
	c.nports = TOKEN_PORTS_MAX;
	for (unsigned i = 0; i < c.nports; i++)
		c.ports[i] = (struct token_ports){(uint16_t)(2 * i + 1),
						  (uint16_t)(2 * i + 1)};
	n = issue(&r, c, text);
	for (unsigned port = 0; port < 2 * TOKEN_PORTS_MAX + 2; port++) {
		ask.port = port;
		cr_assert_eq(check(&r, text, n, &ask, T0),
			     port & 1 && port < 2 * TOKEN_PORTS_MAX
				 ? TOKEN_OK
				 : TOKEN_PORT,
			     "%u", port);
	}
}

Test(token, all_ports_and_no_two_alike)
{
	struct token_ring r = ring_of(key_bytes);
	struct token_claims c = app_claims(), seen;
	char a[TOKEN_TEXT_MAX + 1], b[TOKEN_TEXT_MAX + 1];
	struct token_ask ask = app;

	c.nports = 1;
	c.ports[0] = (struct token_ports){1, 65535};
	issue(&r, c, a);
	issue(&r, c, b);
	// After the header: another IV, so another everything.
	cr_assert_neq(memcmp(a + 74, b + 74, 16), 0);
	cr_assert_neq(strcmp(strrchr(a, '.'), strrchr(b, '.')), 0);
	for (ask.port = 1; ask.port <= 65535; ask.port += 13)
		cr_assert_eq(check(&r, a, strlen(a), &ask, T0), TOKEN_OK);
	seen = c;
	cr_assert_gt(token_issue(&r, &c, a, sizeof(a), NULL), 0);
	cr_assert_neq(memcmp(seen.id, c.id, sizeof(c.id)), 0, "an id is drawn");
}

// --- nothing else is granted ------------------------------------------------

struct tries {
	size_t n, accepted;
};

static void try(struct tries *t, const struct token_ring *r, const char *text,
		size_t n, const struct token_ask *ask, uint64_t now)
{
	enum token_verdict v = token_check(r, text, n, ask, now, NULL);

	t->n++;
	if (v == TOKEN_OK) {
		t->accepted++;
		cr_log_error("accepted: %.*s", (int)n, text);
	}
}

// Every bit, every length, every byte gone or doubled.
static void bend(struct tries *t, const struct token_ring *r, char *text,
		 size_t n, const struct token_ask *ask)
{
	char *copy = malloc(n + 1);

	for (size_t bit = 0; bit < 8 * n; bit++) {
		text[bit / 8] = (char)(text[bit / 8] ^ 1 << bit % 8);
		try(t, r, text, n, ask, T0);
		text[bit / 8] = (char)(text[bit / 8] ^ 1 << bit % 8);
	}
	for (size_t len = 0; len < n; len++) {
		try(t, r, text, len, ask, T0);
		try(t, r, text + n - len, len, ask, T0);
		memcpy(copy, text, len);
		memcpy(copy + len, text + len + 1, n - len - 1);
		try(t, r, copy, n - 1, ask, T0);
		memcpy(copy, text, len + 1);
		memcpy(copy + len + 1, text + len, n - len);
		try(t, r, copy, n + 1, ask, T0);
	}
	free(copy);
}

// Every character of the last token another of base64url's.
static void replace(struct tries *t, const struct token_ring *r, char *text,
		    size_t n, const struct token_ask *ask)
{
	static const char set[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqr"
				  "stuvwxyz0123456789-_+/=. \n";

	for (size_t i = 0; i < n; i++) {
		char was = text[i];

		for (size_t k = 0; k < sizeof(set); k++) { // its NUL too
			text[i] = set[k];
			if (set[k] != was)
				try(t, r, text, n, ask, T0);
		}
		text[i] = was;
	}
}

static void part_of(const char *text, unsigned i, const char **p, size_t *n)
{
	for (; i; i--)
		text = strchr(text, '.') + 1;
	*p = text;
	*n = strcspn(text, ".");
}

// Parts of two good tokens, put together in every other way.
static void swap(struct tries *t, const struct token_ring *r, const char *a,
		 const char *b, const struct token_ask *ask)
{
	char text[2 * TOKEN_TEXT_MAX];

	for (unsigned mask = 1; mask < 31; mask++) {
		size_t at = 0;

		if ((mask & 0x1c) == 0 || (mask & 0x1c) == 0x1c)
			continue; // one of the two, whole
		for (unsigned i = 0; i < 5; i++) {
			const char *p;
			size_t n;

			part_of(mask >> i & 1 ? a : b, i, &p, &n);
			memcpy(text + at, p, n);
			at += n;
			text[at++] = '.';
		}
		try(t, r, text, at - 1, ask, T0);
	}
}

static void ask_otherwise(struct tries *t, const struct token_ring *r,
			  const char *text, size_t n,
			  const struct token_claims *c)
{
	struct token_ask ask = {VM, c->kind, 8080};
	char vm[] = VM;

	for (uint64_t s = 0; s < 500; s++) // expired by 1 s, and by more
		try(t, r, text, n, &ask, c->expires_s + s * s * s);
	for (size_t bit = 0; bit < 8 * (sizeof(vm) - 1); bit++) {
		vm[bit / 8] = (char)(vm[bit / 8] ^ 1 << bit % 8);
		ask.vm = vm;
		try(t, r, text, n, &ask, T0);
		vm[bit / 8] = (char)(vm[bit / 8] ^ 1 << bit % 8);
	}
	ask.vm = VM;
	ask.kind = c->kind == TOKEN_APP ? TOKEN_SHELL : TOKEN_APP;
	for (ask.port = 0; ask.port < 1000; ask.port++)
		try(t, r, text, n, &ask, T0);
	if (c->kind == TOKEN_SHELL)
		return;
	ask.kind = TOKEN_APP;
	for (ask.port = 0; ask.port < 70000; ask.port += 7) {
		if (ask.port != 8080 && (ask.port < 9000 || ask.port > 9010))
			try(t, r, text, n, &ask, T0);
	}
}

Test(token, nothing_else_is_granted)
{
	enum { TOKENS = 12 };
	struct token_ring r = ring_of(key_bytes);
	char text[TOKENS][TOKEN_TEXT_MAX + 1];
	uint8_t other_bytes[TOKEN_KEY_BYTES];
	struct tries t = {0, 0};

	for (unsigned i = 0; i < TOKENS; i++) {
		struct token_claims c = i & 1 ? shell_claims() : app_claims();
		const struct token_ask *ask = i & 1 ? &shell : &app;
		size_t n = issue(&r, c, text[i]);

		cr_assert_eq(check(&r, text[i], n, ask, T0), TOKEN_OK);
		bend(&t, &r, text[i], n, ask);
		ask_otherwise(&t, &r, text[i], n, &c);
		if (i >= TOKENS - 2)
			replace(&t, &r, text[i], n, ask);
		if (i >= 2)
			swap(&t, &r, text[i], text[i - 2], ask);
		// Each bit of the key is another key.
		for (unsigned bit = 0; bit < 8 * TOKEN_KEY_BYTES; bit++) {
			struct token_ring other;

			memcpy(other_bytes, key_bytes, sizeof(other_bytes));
			other_bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
			other = ring_of(other_bytes);
			try(&t, &other, text[i], n, ask, T0);
			// Even under this one's name.
			strcpy(other.key[0].kid, r.key[0].kid);
			try(&t, &other, text[i], n, ask, T0);
		}
		cr_assert_eq(check(&r, text[i], n, ask, T0), TOKEN_OK);
	}
	cr_log_info("%zu tries", t.n);
	cr_assert_geq(t.n, 100000, "only %zu tries", t.n);
	cr_assert_eq(t.accepted, 0, "%zu of %zu accepted", t.accepted, t.n);
}

// Which verdict: the header is looked at before any key is.
Test(token, malformed_or_foreign)
{
	static const struct {
		const char *header;
		enum token_verdict want;
	} headers[] = {
	    {"{\"kid\":\"0123456789abcdef\",\"alg\":\"dir\",\"enc\":"
	     "\"A256GCM\"}",
	     TOKEN_FOREIGN},
	    {"{\"kid\":\"another/kind of kid\",\"alg\":\"dir\",\"enc\":"
	     "\"A256GCM\"}",
	     TOKEN_MALFORMED},
	    {"{\"kid\":\"k\",\"alg\":\"dir\",\"enc\":\"A256GCM\"}",
	     TOKEN_FOREIGN},
	    {"{\"kid\":\"\",\"alg\":\"dir\",\"enc\":\"A256GCM\"}",
	     TOKEN_MALFORMED},
	    {"{\"kid\":\"k\",\"alg\":\"none\",\"enc\":\"A256GCM\"}",
	     TOKEN_MALFORMED},
	    {"{\"kid\":\"k\",\"alg\":\"dir\",\"enc\":\"A128GCM\"}",
	     TOKEN_MALFORMED},
	    {"{\"kid\":\"k\",\"alg\":\"dir\",\"enc\":\"A256GCM\",\"zip\":"
	     "\"DEF\"}",
	     TOKEN_MALFORMED},
	    {"{\"alg\":\"dir\",\"enc\":\"A256GCM\",\"kid\":\"k\"}",
	     TOKEN_MALFORMED},
	    {"{}", TOKEN_MALFORMED},
	};
	struct token_ring r = ring_of(key_bytes);
	const char *rest = strchr(known_app, '.');
	char text[1024];

	for (size_t i = 0; i < ARRAY_SIZE(headers); i++) {
		size_t n = strlen(headers[i].header);

		b64url_encode(text, headers[i].header, n);
		strcpy(text + B64URL_CHARS(n), rest);
		cr_assert_eq(check(&r, text, strlen(text), &app, T0),
			     headers[i].want, "%s", headers[i].header);
	}
	strcpy(text, known_app);
	text[strlen(text) - 10] ^= 1;
	cr_assert_eq(check(&r, text, strlen(text), &app, T0), TOKEN_FOREIGN);
	cr_assert_eq(check(&r, "", 0, &app, T0), TOKEN_MALFORMED);
	cr_assert_eq(check(&r, "....", 4, &app, T0), TOKEN_MALFORMED);
}

Test(token, length_is_limited)
{
	struct token_ring r = ring_of(key_bytes);
	char *text = malloc(TOKEN_TEXT_MAX + 2);

	memset(text, 'A', TOKEN_TEXT_MAX + 2);
	memcpy(text, known_app, 91); // up to the third dot
	text[TOKEN_TEXT_MAX - 22] = '.';
	cr_assert_eq(check(&r, text, TOKEN_TEXT_MAX + 1, &app, T0),
		     TOKEN_MALFORMED);
	cr_assert_eq(check(&r, text, SIZE_MAX, &app, T0), TOKEN_MALFORMED);
	free(text);
}

// Even somebody with the key cannot make claims that are not of this version.
Test(token, sealed_claims_are_checked)
{
	struct token_ring r = ring_of(key_bytes);
	struct token_claims c = app_claims();
	uint8_t plain[TOKEN_PLAIN_MAX + 1], bent[TOKEN_PLAIN_MAX + 1];
	char text[TOKEN_TEXT_MAX + 1];
	size_t n = token_claims_encode(&c, plain, sizeof(plain));
	static const struct {
		size_t at;
		uint8_t to;
	} bends[] = {
	    {0, 0},    {0, 2},	  {1, 0},     {1, 3},	{1, TOKEN_SHELL},
	    {2, 1},    {3, 1},	  {36, 0},    {36, 43}, {36, 45},
	    {36, 255}, {40, 0},	  {37, ' '},  {81, 0},	{81, 1},
	    {81, 3},   {82, 255}, {84, 0xff}, {11, 1},	{19, 1},
	};

	cr_assert_eq(n, 91);
	for (size_t len = 1; len <= n + 1; len++) {
		int m;

		plain[n] = 0;
		m = token_seal(&r.key[0], plain, len, text, sizeof(text));
		cr_assert_gt(m, 0);
		cr_assert_eq(check(&r, text, (size_t)m, &app, T0),
			     len == n ? TOKEN_OK : TOKEN_MALFORMED, "%zu", len);
	}
	for (size_t i = 0; i < ARRAY_SIZE(bends); i++) {
		int m;

		memcpy(bent, plain, n);
		bent[bends[i].at] = bends[i].to;
		m = token_seal(&r.key[0], bent, n, text, sizeof(text));
		cr_assert_eq(check(&r, text, (size_t)m, &app, T0),
			     TOKEN_MALFORMED, "%zu", i);
	}
}

Test(token, base64url_is_strict)
{
	static const char *const bad[] = {"A",	  "AAAAA", "AB",	"AAB",
					  "AA=",  "AA==",  "A+AA",	"A/AA",
					  "AA A", "AA\nA", "\xc3\xa9gg"};
	uint8_t out[300], in[256];
	char text[400];

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		cr_assert_eq(b64url_decode(out, bad[i], strlen(bad[i])),
			     -EINVAL, "%s", bad[i]);
	for (size_t i = 0; i < sizeof(in); i++)
		in[i] = (uint8_t)(i * 7);
	for (size_t n = 0; n <= sizeof(in); n++) {
		b64url_encode(text, in, n);
		cr_assert_eq(b64url_decode(out, text, B64URL_CHARS(n)),
			     (ssize_t)n);
		cr_assert_eq(memcmp(out, in, n), 0);
	}
	b64url_encode(text, "\xfb\xef\xff", 3);
	cr_assert_eq(memcmp(text, "--__", 4), 0, "%.4s", text);
}

// --- the key ----------------------------------------------------------------

static char dir[64];

static void make_dir(void)
{
	strcpy(dir, "/tmp/thaw-token-XXXXXX");
	cr_assert_not_null(mkdtemp(dir));
}

static void remove_dir(void)
{
	char cmd[128];

	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	cr_assert_eq(system(cmd), 0);
}

static char *in_dir(const char *name)
{
	static char path[128];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return path;
}

static void put(const char *name, const void *p, size_t n, mode_t mode)
{
	int fd = open(in_dir(name), O_CREAT | O_TRUNC | O_WRONLY, 0600);

	cr_assert_eq(util_write_all(fd, p, n), 0);
	cr_assert_eq(fchmod(fd, mode), 0);
	close(fd);
}

TestSuite(token_key, .init = make_dir, .fini = remove_dir);

Test(token_key, is_made_once_and_kept)
{
	struct token_ring a, b;
	struct err e = ERR_INIT;
	char text[TOKEN_TEXT_MAX + 1];
	struct stat st;
	size_t n;

	put("token.key.new", "left by one that was killed", 27, 0644);
	cr_assert_eq(token_ring_open(&a, dir, &e), 0, "%s", e.msg);
	cr_assert_eq(stat(in_dir("token.key"), &st), 0);
	cr_assert_eq(st.st_mode, S_IFREG | 0600);
	cr_assert_eq(st.st_size, 32);
	cr_assert_eq(access(in_dir("token.key.new"), F_OK), -1);
	n = issue(&a, app_claims(), text);
	cr_assert_eq(token_ring_open(&b, dir, &e), 0, "%s", e.msg);
	cr_assert_eq(memcmp(&a, &b, sizeof(a)), 0);
	cr_assert_eq(check(&b, text, n, &app, T0), TOKEN_OK, "a restart");
	cr_assert_eq(unlink(in_dir("token.key")), 0);
	cr_assert_eq(token_ring_open(&b, dir, &e), 0);
	cr_assert_neq(memcmp(a.key[0].bytes, b.key[0].bytes, 32), 0);
	cr_assert_eq(check(&b, text, n, &app, T0), TOKEN_FOREIGN);
}

Test(token_key, rotation)
{
	static const uint8_t next[TOKEN_KEY_BYTES] = {9};
	struct token_ring old = ring_of(key_bytes), both = ring_of(next);
	char text[TOKEN_TEXT_MAX + 1];
	size_t n = issue(&old, app_claims(), text);

	cr_assert_eq(check(&both, text, n, &app, T0), TOKEN_FOREIGN);
	cr_assert_eq(token_ring_add(&both, key_bytes), 0);
	cr_assert_eq(check(&both, text, n, &app, T0), TOKEN_OK);
	cr_assert_eq(token_ring_add(&both, key_bytes), -EEXIST);
	n = issue(&both, app_claims(), text);
	cr_assert_eq(check(&old, text, n, &app, T0), TOKEN_FOREIGN);
	for (uint8_t i = 2; i < TOKEN_RING_MAX; i++)
		cr_assert_eq(token_ring_add(&both, (uint8_t[32]){i}), 0);
	cr_assert_eq(token_ring_add(&both, (uint8_t[32]){77}), -ENOSPC);
	token_ring_wipe(&both);
	cr_assert_eq(both.n, 0);
	cr_assert_eq(check(&both, text, n, &app, T0), TOKEN_FOREIGN);
}

Test(token_key, bad_files_are_refused)
{
	static const uint8_t zero[32];
	struct token_ring r;
	struct err e = ERR_INIT;

#define REFUSED(want, because)                                                 \
	do {                                                                   \
		cr_assert_eq(token_ring_open(&r, dir, &e), want, "%s", e.msg); \
		cr_assert_not_null(strstr(e.msg, because), "%s", e.msg);       \
		cr_assert_not_null(strstr(e.msg, dir), "%s", e.msg);           \
		cr_assert_eq(r.n, 0);                                          \
	} while (0)
	put("token.key", key_bytes, 31, 0600);
	REFUSED(-EINVAL, "not a file of 32 bytes");
	put("token.key", "0123456789abcdef0123456789abcdef\n", 33, 0600);
	REFUSED(-EINVAL, "not a file of 32 bytes");
	put("token.key", "", 0, 0600);
	REFUSED(-EINVAL, "not a file of 32 bytes");
	put("token.key", zero, 32, 0600);
	REFUSED(-EINVAL, "all zero");
	put("token.key", key_bytes, 32, 0640);
	REFUSED(-EACCES, "0640");
	put("token.key", key_bytes, 32, 0604);
	REFUSED(-EACCES, "0604");
	put("token.key", key_bytes, 32, 0600);
	if (!geteuid()) {
		cr_assert_eq(chown(in_dir("token.key"), 12345, 0), 0);
		REFUSED(-EACCES, "user 12345");
	}
	cr_assert_eq(unlink(in_dir("token.key")), 0);
	put("elsewhere", key_bytes, 32, 0600);
	cr_assert_eq(symlink("elsewhere", in_dir("token.key")), 0);
	REFUSED(-ELOOP, "token.key");
	cr_assert_eq(unlink(in_dir("token.key")), 0);
	cr_assert_eq(mkdir(in_dir("token.key"), 0700), 0);
	REFUSED(-EINVAL, "not a file");
#undef REFUSED
	cr_assert_eq(token_ring_open(&r, "/nonexistent", &e), -ENOENT);
	cr_assert_not_null(strstr(e.msg, "/nonexistent"));
}
