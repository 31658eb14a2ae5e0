// thaw call: one HTTP request to a port of a guest, through thawd's socket. It
// needs neither endpoint nor token.
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "cli.h"

enum {
	DATA_MAX = 64 * 1024 * 1024,
	TIMEOUT_DEFAULT_S = 60,
	HEADERS_MAX = 256,
};

struct call {
	struct cli *c;
	unsigned port;
	uint64_t timeout_s;
	char *data; // owned
	size_t len;
	bool has_data;
	// Of the answer: its head's lines, owned.
	char *lines[HEADERS_MAX];
	size_t nlines;
};

// --- the request ---------------------------------------------------------

static int read_file(struct call *k, const char *name)
{
	FILE *f = strcmp(name, "-") != 0 ? fopen(name, "re") : stdin;
	size_t cap = 0, n;
	int code = 0;

	if (!f)
		return cli_fail(CLI_FAILED, "cannot read %s: %s", name,
				strerror(errno));
	do {
		if (k->len + 65536 > cap) {
			cap = 2 * (k->len + 65536);
			k->data = realloc(k->data, cap);
			if (!k->data)
				abort();
		}
		n = fread(k->data + k->len, 1, 65536, f);
		k->len += n;
	} while (n && k->len <= DATA_MAX);
	if (ferror(f))
		code = cli_fail(CLI_FAILED, "cannot read %s: %s", name,
				strerror(errno));
	if (f != stdin)
		fclose(f);
	if (k->len > DATA_MAX)
		code = cli_usage(k->c, "%s is longer than %d MiB", name,
				 DATA_MAX >> 20);
	return code;
}

static int set_data(struct call *k)
{
	const char *v = cli_value(k->c, "data");

	if (!v)
		return 0;
	k->has_data = true;
	if (v[0] == '@')
		return read_file(k, v + 1);
	k->data = strdup(v);
	k->len = strlen(v);
	return 0;
}

// Nothing that would end a line of the head, or a target.
static bool clean(const char *s, bool blanks)
{
	for (; *s; s++)
		if ((unsigned char)*s < 0x20 || *s == 0x7f ||
		    (*s == ' ' && !blanks))
			return false;
	return true;
}

static bool is_token(const char *s, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (!isalnum((unsigned char)s[i]) &&
		    !strchr("!#$%&'*+-.^_`|~", s[i]))
			return false;
	return n > 0;
}

static int check_words(struct cli *c)
{
	const char *method = cli_value(c, "request"), *v;

	if (c->argc > 1 && c->argv[1][0] != '/')
		return cli_usage(c, "the path '%s' does not begin with /",
				 c->argv[1]);
	if (c->argc > 1 && !clean(c->argv[1], false))
		return cli_usage(c, "the path has blanks or control "
				    "characters: write them as %%20");
	if (method && !is_token(method, strlen(method)))
		return cli_usage(c, "'%s' is no method", method);
	for (size_t i = 0; (v = cli_value_at(c, "header", i)); i++) {
		const char *colon = strchr(v, ':');

		if (!colon || !is_token(v, (size_t)(colon - v)) ||
		    !clean(v, true))
			return cli_usage(c, "--header '%s' is not NAME: VALUE",
					 v);
		if (!strncasecmp(v, "content-length:", 15) ||
		    !strncasecmp(v, "transfer-encoding:", 18))
			return cli_usage(c,
					 "--header '%s': that follows from "
					 "the data",
					 v);
	}
	return 0;
}

static bool has_header(const struct cli *c, const char *name)
{
	size_t n = strlen(name);
	const char *v;

	for (size_t i = 0; (v = cli_value_at(c, "header", i)); i++)
		if (!strncasecmp(v, name, n) && v[n] == ':')
			return true;
	return false;
}

static const char *method_of(const struct call *k)
{
	const char *given = cli_value(k->c, "request");

	if (given)
		return given;
	return cli_flag(k->c, "head") ? "HEAD" : k->has_data ? "POST" : "GET";
}

static const char *type_of(const struct call *k)
{
	json_t *j = json_loadb(k->data ? k->data : "", k->len, 0, NULL);

	json_decref(j);
	return j ? "application/json" : "text/plain; charset=utf-8";
}

// Caller frees.
static char *make_head(const struct call *k)
{
	const struct cli *c = k->c;
	size_t len = 0;
	char *out = NULL;
	const char *v;
	FILE *f = open_memstream(&out, &len);

	if (!f)
		abort();
	fprintf(f, "%s %s HTTP/1.1\r\n", method_of(k),
		c->argc > 1 ? c->argv[1] : "/");
	if (!has_header(c, "Host"))
		fprintf(f, "Host: localhost:%u\r\n", k->port);
	if (!has_header(c, "User-Agent"))
		fputs("User-Agent: thaw/" THAW_VERSION "\r\n", f);
	if (!has_header(c, "Accept"))
		fputs("Accept: */*\r\n", f);
	for (size_t i = 0; (v = cli_value_at(c, "header", i)); i++)
		fprintf(f, "%s\r\n", v);
	if (k->has_data && !has_header(c, "Content-Type"))
		fprintf(f, "Content-Type: %s\r\n", type_of(k));
	if (k->has_data)
		fprintf(f, "Content-Length: %zu\r\n", k->len);
	fputs("Connection: close\r\n\r\n", f);
	fclose(f);
	return out;
}

// --- the answer ----------------------------------------------------------

static void take_head(void *arg, const char *line)
{
	struct call *k = arg;

	if (!strncmp(line, "HTTP/", 5)) // after an interim answer: anew
		while (k->nlines)
			free(k->lines[--k->nlines]);
	if (k->nlines < HEADERS_MAX)
		k->lines[k->nlines++] = strdup(line);
}

static void print_head(const struct call *k)
{
	for (size_t i = 0; i < k->nlines; i++) {
		cli_put(stdout, k->lines[i]);
		putchar('\n');
	}
	putchar('\n');
}

static json_t *head_json(const struct call *k)
{
	json_t *all = json_object();

	for (size_t i = 1; i < k->nlines; i++) {
		char *colon = strchr(k->lines[i], ':'), *v, *name, *p;
		json_t *had, *joined;

		if (!colon)
			continue;
		name = strndup(k->lines[i], (size_t)(colon - k->lines[i]));
		for (p = name; p && *p; p++)
			*p = (char)tolower((unsigned char)*p);
		v = colon + 1 + strspn(colon + 1, " \t");
		had =
		    json_object_get(all, name); // repeated: joined, as HTTP has
		joined = had ? json_sprintf("%s, %s", json_string_value(had), v)
			     : json_string(v);
		if (joined)
			json_object_set_new(all, name, joined);
		free(name);
	}
	return all;
}

// A body that is not UTF-8 has its bytes from 0x80 replaced: JSON has no bytes.
static json_t *body_json(char *text, size_t len)
{
	json_t *j = json_stringn(text, len);

	for (size_t i = 0; !j && i < len; i++)
		if ((unsigned char)text[i] >= 0x80)
			text[i] = '?';
	return j ? j : json_stringn(text, len);
}

static int print_json(struct call *k, struct httpc *h, struct err *e)
{
	char *text;
	size_t len;
	json_t *all;
	int rc = httpc_body_all(h, &text, &len, e);

	if (rc)
		return rc;
	all = json_pack("{s:i,s:o,s:o}", "status", h->status, "headers",
			head_json(k), "body", body_json(text, len));
	free(text);
	cli_print_json(all, false);
	json_decref(all);
	return 0;
}

static int print_body(struct httpc *h, struct err *e)
{
	char buf[16384];
	ssize_t n;

	while ((n = httpc_body(h, buf, sizeof(buf), e)) > 0) {
		fwrite(buf, 1, (size_t)n, stdout);
		if (fflush(stdout))
			return 0; // main says why
	}
	return (int)n;
}

static int answer(struct call *k, struct httpc *h, struct err *e)
{
	int rc = httpc_head(h, e);

	if (!rc && k->c->json) {
		rc = print_json(k, h, e);
	} else if (!rc) {
		if (cli_flag(k->c, "include") || cli_flag(k->c, "head"))
			print_head(k);
		rc = print_body(h, e);
	}
	if (rc)
		return cli_fail(CLI_FAILED, "call: %s; see 'thaw logs %s'",
				e->msg, k->c->argv[0]);
	if (h->status >= 400)
		return cli_fail(CLI_FAILED, "call: the application answered %s",
				k->nlines ? k->lines[0] + 9 : "an error");
	return 0;
}

static int call(struct call *k, struct httpc *h)
{
	struct timeval tv = {.tv_sec = (time_t)k->timeout_s};
	struct err e = ERR_INIT;
	struct cli *c = k->c;
	char *path = cli_path(CLI_OWN "/microvms/%s/forward?port=%u",
			      c->argv[0], k->port);
	char *head = make_head(k), what[32];
	bool no_body = !strcmp(method_of(k), "HEAD");
	int code, rc;

	snprintf(what, sizeof(what), "call to port %u", k->port);
	code = cli_open(c, h, what, "POST", path, "thaw-forward", NULL);
	free(path);
	if (code) {
		if (h->status == 502)
			cli_say_listeners(c, c->argv[0]);
		free(head);
		return code;
	}
	setsockopt(h->fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	setsockopt(h->fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
	h->on_head = take_head;
	h->on_head_arg = k;
	rc = httpc_through(h, "the application", head, k->data, k->len, no_body,
			   &e);
	free(head);
	code = rc ? cli_fail(CLI_FAILED, "call: %s", e.msg) : answer(k, h, &e);
	httpc_close(h);
	return code;
}

int cmd_call(struct cli *c)
{
	struct call k = {.c = c, .timeout_s = TIMEOUT_DEFAULT_S};
	uint64_t port = 0;
	struct httpc h;
	int code = check_words(c);

	code = code ? code : cli_number(c, "port", 65535, &port);
	code = code ? code : cli_number(c, "timeout", 86400, &k.timeout_s);
	code = code ? code : set_data(&k);
	k.port = (unsigned)port;
	if (!code && !port)
		code = cli_default_port(c, c->argv[0], &k.port);
	if (!code)
		code = call(&k, &h);
	while (k.nlines)
		free(k.lines[--k.nlines]);
	free(k.data);
	return code;
}
