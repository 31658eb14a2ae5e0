// The grammar as BuildKit has it: directives ("# escape=`") in the leading
// comments; an instruction ends at a line that does not end in the escape
// character; comment lines within an instruction are dropped, and so are empty
// ones.
#include "dockerfile.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

struct reader {
	const char *p, *end;
	unsigned line; // of the line that line_next() gave
	char escape;
	bool directives; // still in the head of the file
	char *mem;	 // len + 1 bytes, filled up to `used`
	size_t used;
	struct dockerfile *d;
	unsigned *bad_line;
	struct err *e;
};

static int bad(struct reader *r, unsigned line, const char *what,
	       const char *word)
{
	*r->bad_line = line;
	return err_set(r->e, -EINVAL, "Dockerfile line %u: %s%.60s", line, what,
		       word);
}

#define BLANKS " \t\v\f\r"

static bool blank(char c)
{
	return c && strchr(BLANKS, c);
}

// The next line without its end; false after the last one.
static bool line_next(struct reader *r, const char **from, size_t *n)
{
	const char *nl;

	if (r->p >= r->end)
		return false;
	nl = memchr(r->p, '\n', (size_t)(r->end - r->p));
	*from = r->p;
	*n = (size_t)((nl ? nl : r->end) - r->p);
	r->p = nl ? nl + 1 : r->end;
	r->line++;
	if (*n && (*from)[*n - 1] == '\r')
		(*n)--;
	return true;
}

static void strip(const char **from, size_t *n)
{
	while (*n && blank(**from)) {
		(*from)++;
		(*n)--;
	}
	while (*n && blank((*from)[*n - 1]))
		(*n)--;
}

// "# escape=`"; any other comment but a directive ends the directives.
static int directive(struct reader *r, const char *p, size_t n)
{
	char name[16] = "", value[8] = "";
	char copy[64];

	snprintf(copy, sizeof(copy), "%.*s", (int)MIN(n, sizeof(copy) - 1), p);
	if (sscanf(copy, "# %15[a-zA-Z] = %7s", name, value) < 1 ||
	    !memchr(p, '=', n)) {
		r->directives = false;
		return 0;
	}
	if (strcasecmp(name, "escape") != 0)
		return 0; // "syntax", "check": nothing for buildah
	if (strcmp(value, "\\") != 0 && strcmp(value, "`") != 0)
		return bad(r, r->line, "escape must be \\ or `, not ", value);
	r->escape = value[0];
	return 0;
}

static void put(struct reader *r, const char *p, size_t n)
{
	memcpy(r->mem + r->used, p, n);
	r->used += n;
}

// One instruction's lines, joined, at `*at`; false at the end of the file.
static int logical(struct reader *r, char **at, unsigned *first, bool *more)
{
	bool open = false;
	const char *p;
	size_t n;
	int rc;

	*at = r->mem + r->used;
	while (line_next(r, &p, &n)) {
		const char *q = p;
		size_t m = n;

		strip(&q, &m);
		if (m && *q == '#') {
			rc = r->directives && !open ? directive(r, q, m) : 0;
			if (rc)
				return rc;
			continue;
		}
		r->directives = r->directives && !m && !open;
		if (!m)
			continue;
		if (!open) {
			*first = r->line;
			p = q;
			n = m;
			open = true;
		} else {
			n = (size_t)(q + m - p); // leading blanks are kept
		}
		if (q[m - 1] == r->escape) {
			put(r, p, n - 1);
			continue;
		}
		put(r, p, n);
		break;
	}
	r->mem[r->used++] = '\0';
	*more = open;
	return 0;
}

static bool heredoc(const struct dockerfile_instr *in)
{
	const char *p = in->args;

	if (strcmp(in->word, "RUN") && strcmp(in->word, "COPY") &&
	    strcmp(in->word, "ADD"))
		return false;
	while ((p = strstr(p, "<<"))) {
		p += 2;
		if (*p == '<') { // "<<<": a here-string of bash
			p += strspn(p, "<");
			continue;
		}
		p += *p == '-';
		p += *p == '"' || *p == '\'';
		if (isalpha((unsigned char)*p) || *p == '_')
			return true;
	}
	return false;
}

// "80", "80/tcp", "8000-8010/udp", or with a variable.
static bool port_ok(const char *p, size_t n)
{
	unsigned long v;
	size_t digits = 0;

	if (memchr(p, '$', n))
		return true;
	for (int part = 0; part < 2; part++) {
		for (v = 0, digits = 0;
		     digits < n && isdigit((unsigned char)p[digits]); digits++)
			v = MIN(v * 10 + (unsigned long)(p[digits] - '0'),
				100000ul);
		if (!digits || !v || v > 65535)
			return false;
		p += digits;
		n -= digits;
		if (part || !n || *p != '-')
			break;
		p++;
		n--;
	}
	return !n || (n == 4 && (!strncasecmp(p, "/tcp", 4) ||
				 !strncasecmp(p, "/udp", 4)));
}

static int check(struct reader *r, const struct dockerfile_instr *in)
{
	static const char *const words[] = {
	    "FROM",   "RUN",	    "CMD",	  "LABEL", "MAINTAINER",
	    "EXPOSE", "ENV",	    "ADD",	  "COPY",  "ENTRYPOINT",
	    "VOLUME", "USER",	    "WORKDIR",	  "ARG",   "ONBUILD",
	    "SHELL",  "STOPSIGNAL", "HEALTHCHECK"};
	char token[64];
	size_t n;
	bool known = false;

	for (size_t i = 0; i < ARRAY_SIZE(words); i++)
		known = known || !strcmp(in->word, words[i]);
	if (!known)
		return bad(r, in->line, "unknown instruction ", in->word);
	if (!in->stage && strcmp(in->word, "ARG") != 0)
		return bad(r, in->line,
			   "the first instruction must be FROM (or ARG before "
			   "it), not ",
			   in->word);
	if (!*in->args)
		return bad(r, in->line, "an argument is missing after ",
			   in->word);
	// Nothing follows the last one: it would swallow what is put after it.
	if (in->text[strlen(in->text) - 1] == r->escape)
		return bad(r, in->line,
			   "no line follows the one that goes on: ", in->word);
	if (heredoc(in))
		return bad(r, in->line,
			   "heredocs (<<WORD) are not supported: write the "
			   "lines as a file and COPY it, or join them with && "
			   "\\ after ",
			   in->word);
	if (strcmp(in->word, "EXPOSE") != 0)
		return 0;
	for (const char *p = in->args; *p; p += n, p += strspn(p, BLANKS)) {
		n = strcspn(p, BLANKS);
		snprintf(token, sizeof(token), "%.*s", (int)MIN(n, 63u), p);
		if (!port_ok(p, n))
			return bad(r, in->line,
				   "EXPOSE takes ports (1 to 65535, with /tcp "
				   "or /udp), not ",
				   token);
	}
	return 0;
}

static int add(struct reader *r, char *text, unsigned line)
{
	struct dockerfile *d = r->d;
	struct dockerfile_instr *in;
	size_t n;

	text += strspn(text, BLANKS); // of a first line that only goes on
	n = strlen(text);
	while (n && blank(text[n - 1])) // of a line that went on
		text[--n] = '\0';
	if (!n)
		return bad(r, line, "there is nothing but a line's end", "");
	n = strcspn(text, BLANKS);
	if (d->n == DOCKERFILE_INSTRS_MAX)
		return bad(r, line, "more instructions than are allowed", "");
	in = &d->instr[d->n++];
	*in = (struct dockerfile_instr){.line = line, .text = text};
	for (size_t i = 0; i < MIN(n, sizeof(in->word) - 1); i++)
		in->word[i] = (char)toupper((unsigned char)text[i]);
	in->args = text + n + strspn(text + n, BLANKS);
	if (!strcmp(in->word, "FROM")) {
		in->stage = ++d->stages;
		in->step = 1;
	} else if (d->stages) {
		in->stage = d->stages;
		in->step = in[-1].step + 1;
	}
	return check(r, in);
}

static int read_all(struct reader *r)
{
	unsigned line = 0;
	bool more;
	char *text;
	int rc;

	for (;;) {
		rc = logical(r, &text, &line, &more);
		if (rc || !more)
			break;
		rc = add(r, text, line);
		if (rc)
			break;
	}
	if (rc || r->d->stages)
		return rc;
	if (r->d->n)
		return bad(r, r->d->instr[0].line, "there is no FROM", "");
	return err_set(r->e, -EINVAL, "the Dockerfile is empty");
}

int dockerfile_parse(struct dockerfile *out, const char *text, size_t len,
		     unsigned *bad_line, struct err *e)
{
	struct reader r = {.end = text + len,
			   .p = text,
			   .escape = '\\',
			   .directives = true,
			   .d = out,
			   .bad_line = bad_line,
			   .e = e};
	const char *nul;
	int rc;

	memset(out, 0, sizeof(*out));
	*bad_line = 0;
	if (len > DOCKERFILE_MAX)
		return err_set(e, -EFBIG,
			       "the Dockerfile is larger than %u KiB",
			       DOCKERFILE_MAX >> 10);
	nul = memchr(text, '\0', len);
	if (nul) {
		for (const char *p = text; p < nul; p++)
			r.line += *p == '\n';
		return bad(&r, r.line + 1, "a zero byte: this is not text", "");
	}
	if (len >= 3 && !memcmp(text, "\xef\xbb\xbf", 3))
		r.p += 3;
	// A joined instruction ends with one byte where its last line had one.
	out->mem = r.mem = malloc(len + 2);
	out->instr = calloc(DOCKERFILE_INSTRS_MAX, sizeof(*out->instr));
	if (!out->mem || !out->instr)
		rc = err_set(e, -ENOMEM, "out of memory");
	else
		rc = read_all(&r);
	out->escape = r.escape;
	if (rc)
		dockerfile_free(out);
	return rc;
}

char *dockerfile_plain(const struct dockerfile *d)
{
	size_t cap = 32, n;
	char *out;

	for (size_t i = 0; i < d->n; i++)
		cap += strlen(d->instr[i].text) + 1;
	out = malloc(cap);
	if (!out)
		return NULL;
	n = (size_t)snprintf(out, cap, "# escape=%c\n", d->escape);
	for (size_t i = 0; i < d->n; i++)
		n += (size_t)snprintf(out + n, cap - n, "%s\n",
				      d->instr[i].text);
	return out;
}

void dockerfile_free(struct dockerfile *d)
{
	free(d->instr);
	free(d->mem);
	memset(d, 0, sizeof(*d));
}

const struct dockerfile_instr *dockerfile_step(const struct dockerfile *d,
					       unsigned stage, unsigned step)
{
	if (!stage)
		stage = d->stages;
	for (size_t i = 0; i < d->n; i++)
		if (d->instr[i].stage == stage && d->instr[i].step == step)
			return &d->instr[i];
	return NULL;
}

const struct dockerfile_instr *dockerfile_last(const struct dockerfile *d,
					       const char *word)
{
	for (size_t i = d->n; i-- > 0 && d->instr[i].stage == d->stages;)
		if (!strcmp(d->instr[i].word, word))
			return &d->instr[i];
	return NULL;
}

size_t dockerfile_ports(const struct dockerfile *d,
			uint16_t out[DOCKERFILE_PORTS_MAX])
{
	size_t n = 0, k;

	for (size_t i = 0; i < d->n; i++) {
		const char *p = d->instr[i].args;

		if (d->instr[i].stage != d->stages ||
		    strcmp(d->instr[i].word, "EXPOSE") != 0)
			continue;
		for (; *p; p += strcspn(p, BLANKS), p += strspn(p, BLANKS)) {
			char *end;
			unsigned long v = strtoul(p, &end, 10);

			if (end == p || !v || v > 65535 ||
			    !strncasecmp(end, "/udp", 4) ||
			    n == DOCKERFILE_PORTS_MAX)
				continue;
			for (k = 0; k < n && out[k] != v; k++)
				;
			if (k == n)
				out[n++] = (uint16_t)v;
		}
	}
	return n;
}
