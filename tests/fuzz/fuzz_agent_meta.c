// What an application in a guest asks the metadata service (guest/ag_meta.c). Beside
// not crashing: every answer is one message of at most AG_META_OUT_MAX bytes, and
// nobody reads a credential without a token. Of an input that begins with 'T' the
// first "@" is replaced by a token that holds, so that a corpus gets further.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ag_meta.h"
#include "util.h"
#include "wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

#define SECRET "a-secret-key"
#define SESSION "a-session-token"
#define ASK_TOKEN                            \
	"PUT /latest/api/token HTTP/1.1\r\n" \
	"X-aws-ec2-metadata-token-ttl-seconds: 600\r\n\r\n"

enum { WALL = 1795867200, NOW = 1000000000, TOKEN = 32 };

static struct ag_meta meta;
static char token[TOKEN + 1];

static void put_str(struct wire_writer *w, const char *s)
{
	wire_put_u32(w, (uint32_t)strlen(s));
	wire_put_bytes(w, s, strlen(s));
}

static void prepare(void)
{
	uint8_t role[256];
	struct wire_writer w = wire_writer_of(role, sizeof(role));
	char out[AG_META_OUT_MAX];
	const char *why;
	size_t n;

	put_str(&w, "microvm-0123");
	put_str(&w, "eu-west-3");
	put_str(&w, "ASIAEXAMPLE");
	put_str(&w, SECRET);
	put_str(&w, SESSION);
	wire_put_u64(&w, WALL + 3600);
	if (ag_meta_role(&meta, role, w.len, WALL, &why))
		abort();
	n = ag_meta_answer(&meta, ASK_TOKEN, strlen(ASK_TOKEN), NOW, WALL, out);
	if (n < TOKEN)
		abort();
	memcpy(token, out + n - TOKEN, TOKEN);
}

static bool has(const char *p, size_t n, const char *what)
{
	return memmem(p, n, what, strlen(what)) != NULL;
}

// One message: a head, and a body as long as that says, or none of it.
static void judge(const char *p, size_t n)
{
	char head[AG_META_OUT_MAX + 1];
	const char *end, *at;
	size_t len, body;
	int status;

	if (n > AG_META_OUT_MAX)
		abort();
	memcpy(head, p, n);
	head[n] = '\0';
	end = strstr(head, "\r\n\r\n");
	at = strstr(head, "\r\nContent-Length: ");
	if (!end || !at || at > end || strlen(head) != n ||
	    sscanf(head, "HTTP/1.1 %d ", &status) != 1 || status < 200 ||
	    status > 499 || sscanf(at + 18, "%zu", &len) != 1)
		abort();
	body = n - (size_t)(end + 4 - head);
	if (body != len && body != 0) // of a HEAD
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	static char out[AG_META_OUT_MAX];
	bool known = n && data[0] == 'T';
	char *head;
	const uint8_t *at;
	size_t len;

	if (!n)
		return 0;
	if (!token[0])
		prepare();
	data++;
	n--;
	at = known ? memchr(data, '@', n) : NULL;
	head = malloc(n + TOKEN);
	if (!head)
		abort();
	len = at ? (size_t)(at - data) : n;
	memcpy(head, data, len);
	if (at) {
		memcpy(head + len, token, TOKEN);
		memcpy(head + len + TOKEN, at + 1, n - len - 1);
		len = n - 1 + TOKEN;
	}
	if (len > AG_META_HEAD_MAX) {
		judge(out, ag_meta_too_long(out));
	} else {
		size_t got = ag_meta_answer(&meta, head, len, NOW, WALL, out);

		judge(out, got);
		if (!at && (has(out, got, SECRET) || has(out, got, SESSION)))
			abort(); // without a token
	}
	free(head);
	return 0;
}
