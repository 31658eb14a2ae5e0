// What a head's fields mean: where its body ends, whose request it is, what is of
// this hop only. The rules are head.c's; each function here keeps one of them.
#include "head_internal.h"

#include <string.h>
#include <strings.h>

static const char *const framing_names[] = {
    "content-length", "transfer-encoding", "host", "connection", "upgrade",
};

bool head_frames(const char *name, bool exactly)
{
	for (size_t i = 0; i < ARRAY_SIZE(framing_names); i++) {
		const char *f = framing_names[i];
		size_t n = strlen(f);

		if (exactly ? strcasecmp(name, f) == 0
			    : strlen(name) == n && head_name_like(name, f, n))
			return true;
	}
	return false;
}

static int parse_length(struct head *h, const char *v, const char **why)
{
	uint64_t n = 0;

	*why = "a Content-Length that is not one number";
	if (!*v || strlen(v) > 18)
		return 400;
	for (; *v; v++) {
		if (*v < '0' || *v > '9')
			return 400;
		n = n * 10 + (uint64_t)(*v - '0');
	}
	h->has_length = true;
	h->length = n;
	return 0;
}

int head_framing(struct head *h, const char **why)
{
	bool length_again, te_again;
	const char *length = head_get(h, "content-length", &length_again);
	const char *te = head_get(h, "transfer-encoding", &te_again);

	for (unsigned i = 0; i < h->n; i++) {
		if (head_frames(h->f[i].name, false) &&
		    !head_frames(h->f[i].name, true)) {
			*why = "a header name that some take for another one";
			return 400;
		}
	}
	if (length && te) {
		*why = "both Content-Length and Transfer-Encoding";
		return 400;
	}
	if (length_again || te_again) {
		*why = "Content-Length or Transfer-Encoding more than once";
		return 400;
	}
	if (te && strcasecmp(te, "chunked") != 0) {
		*why = "a Transfer-Encoding other than chunked";
		return 501;
	}
	if (te && !h->minor) {
		*why = "Transfer-Encoding in HTTP/1.0";
		return 400;
	}
	if (te)
		h->framing = FRAMING_CHUNKED;
	if (length && parse_length(h, length, why))
		return 400;
	if (h->has_length)
		h->framing = FRAMING_LENGTH;
	return 0;
}

struct connection {
	struct head *h;
	bool close, keep, upgrade, bad;
};

static bool item_is(const char *item, size_t n, const char *word)
{
	return strlen(word) == n && strncasecmp(item, word, n) == 0;
}

// A field that Connection names is of this hop only.
static bool connection_item(void *ctx, const char *item, size_t n)
{
	struct connection *c = ctx;

	if (item_is(item, n, "close")) {
		c->close = true;
	} else if (item_is(item, n, "keep-alive")) {
		c->keep = true;
	} else if (item_is(item, n, "upgrade")) {
		c->upgrade = true;
	} else {
		cleanup_free char *name = strndup(item, n);

		// Else a client could take away what the guest relies on.
		if (!name || head_token_len(name) != n ||
		    head_frames(name, false))
			c->bad = true;
		for (unsigned i = 0; !c->bad && i < c->h->n; i++) {
			if (strcasecmp(c->h->f[i].name, name) == 0)
				c->h->f[i].drop = true;
		}
	}
	return !c->bad;
}

static const char *const hop_names[] = {
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
};

void head_drop_hop(struct head_field *f)
{
	for (size_t i = 0; i < ARRAY_SIZE(hop_names); i++)
		f->drop |= strcasecmp(f->name, hop_names[i]) == 0;
}

int head_connection(struct head *h, const char **why)
{
	struct connection c = {.h = h};
	bool again;
	const char *upgrade = head_get(h, "upgrade", &again);

	for (unsigned i = 0; i < h->n; i++) {
		if (strcasecmp(h->f[i].name, "connection") == 0)
			head_list(h->f[i].value, connection_item, &c);
		head_drop_hop(&h->f[i]);
	}
	if (c.bad || again) {
		*why = "a Connection or Upgrade field that makes no sense";
		return 400;
	}
	h->close = c.close || !h->minor;
	if (upgrade && c.upgrade && h->minor) {
		// One protocol; h2c would take the stream away from us.
		if (head_token_len(upgrade) == strlen(upgrade) &&
		    strncasecmp(upgrade, "h2", 2) != 0 && *upgrade)
			h->upgrade = upgrade;
	}
	return 0;
}

// Host, to lower case, without the port: 0 or 400.
int head_host(struct head *h, const char **why)
{
	bool again;
	const char *v = head_get(h, "host", &again);
	size_t n = 0;

	*why = again ? "more than one Host" : "no proper Host";
	if (!v || again || !*v)
		return 400;
	if (*v == '[') {
		n = 1 + strspn(v + 1, "0123456789abcdefABCDEF:.");
		if (v[n++] != ']')
			return 400;
	} else {
		while (head_token_char((unsigned char)v[n]) &&
		       !strchr("#%^|`", v[n]))
			n++;
	}
	if (!n)
		return 400;
	if (v[n] == ':' && strspn(v + n + 1, "0123456789") != strlen(v + n + 1))
		return 400;
	if (v[n] && v[n] != ':')
		return 400;
	h->host = strndup(v, n);
	if (!h->host)
		return 500;
	for (char *p = h->host; *p; p++)
		*p = head_lower(*p);
	return 0;
}

// Absolute form becomes origin form.
int head_target(struct head *h, const char **why)
{
	char *t = h->text + (h->target - h->text);
	size_t scheme = 0, n;
	bool again;

	*why = "a request target of a form that is not served";
	if (*t == '/')
		return 0;
	if (strcmp(t, "*") == 0)
		return strcmp(h->method, "OPTIONS") == 0 ? 0 : 400;
	if (strncasecmp(t, "http://", 7) == 0)
		scheme = 7;
	else if (strncasecmp(t, "https://", 8) == 0)
		scheme = 8;
	else
		return 400;
	n = strcspn(t + scheme, "/?");
	if (strlen(head_get(h, "host", &again)) != n ||
	    strncasecmp(t + scheme, head_get(h, "host", &again), n) != 0) {
		*why = "a request target whose host is not Host";
		return 400;
	}
	t += scheme + n;
	if (*t != '/') // "" or "?query": over the authority's last byte
		*--t = '/';
	h->target = t;
	return 0;
}

int head_expect(struct head *h, const char **why)
{
	bool again;
	const char *v = head_get(h, "expect", &again);
	const char *te = head_get(h, "te", &again);

	h->te_trailers = te && strcasecmp(te, "trailers") == 0;
	if (!v || !h->minor)
		return 0;
	head_get(h, "expect", &again);
	if (again || strcasecmp(v, "100-continue") != 0) {
		*why = "an expectation other than 100-continue";
		return 417;
	}
	h->expect_continue = true;
	return 0;
}
