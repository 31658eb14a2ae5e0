// The strict parser of HTTP/1.1 heads (RFC 9110, 9112), both directions.
//
// A proxy is safe when it and the server behind it agree on where a message
// ends. So a message passes only if it can be read in one way, and what goes on
// is written from the result: nobody behind sees the bytes that came.
//
//   bytes    lines end in CRLF; a CR or LF alone, NUL and other control
//            characters end the connection as soon as they come, not when the
//            head is complete; at most HEAD_MAX bytes, HEAD_FIELDS fields
//   request  METHOD SP TARGET SP HTTP/1.0|1.1, single spaces; no empty line
//            before it. TARGET is /..., or * for OPTIONS, or absolute with the
//            authority that Host has; CONNECT is refused
//   fields   token ":" value; no space before the colon, no folded lines.
//            Names that servers take for framing ones (Content_Length) are
//            refused too
//   length   at most one Content-Length, digits only, below 2^63; or one
//            Transfer-Encoding, exactly "chunked", in HTTP/1.1; never both
//   Host     exactly one, in HTTP/1.0 too: it says whose request this is
//
// A response is read with the same rules (a guest is hostile); there a missing
// length means a body up to the end of the connection.
//
// head_bytes.c collects and writes, head_lines.c knows the syntax, head_mean.c the
// meaning; here they are in order.
#include "head_internal.h"

#include <string.h>
#include <strings.h>

// --- fields ------------------------------------------------------------------------

const char *head_get(const struct head *h, const char *name, bool *again)
{
	const char *found = NULL;

	*again = false;
	for (unsigned i = 0; i < h->n; i++) {
		if (strcasecmp(h->f[i].name, name) != 0)
			continue;
		*again = found != NULL;
		if (!found)
			found = h->f[i].value;
	}
	return found;
}

void head_list(const char *value,
	       bool (*cb)(void *ctx, const char *item, size_t n), void *ctx)
{
	while (*value) {
		size_t n = strcspn(value, ","), m = n;
		const char *next = value + n + (value[n] == ',');

		while (m && (value[0] == ' ' || value[0] == '\t')) {
			value++;
			m--;
		}
		while (m && (value[m - 1] == ' ' || value[m - 1] == '\t'))
			m--;
		if (m && !cb(ctx, value, m))
			return;
		value = next;
	}
}

// --- messages ----------------------------------------------------------------------

static void begin(struct head *h, struct head_in *in)
{
	*h = (struct head){.text = ptr_steal(in->buf)};
	head_in_reset(in);
}

static int finish(struct head *h, int rc, const char **why)
{
	if (rc)
		head_free(h);
	else
		*why = NULL;
	return rc;
}

static int request(struct head *h, const char **why)
{
	char *at = h->text, *line = head_line(&at);
	int rc = head_request_line(h, line ? line : at, why);

	if (!rc)
		rc = head_fields(h, at, why);
	if (!rc)
		rc = head_framing(h, why);
	if (!rc)
		rc = head_host(h, why);
	if (!rc)
		rc = head_target(h, why);
	if (!rc)
		rc = head_connection(h, why);
	if (!rc)
		rc = head_expect(h, why);
	if (!rc && h->upgrade && h->framing != FRAMING_NONE &&
	    (h->framing == FRAMING_CHUNKED || h->length)) {
		*why = "an upgrade with a body";
		rc = 400;
	}
	return rc;
}

int head_parse_request(struct head *h, struct head_in *in, const char **why)
{
	begin(h, in);
	return finish(h, request(h, why), why);
}

static bool bodiless(int status, bool to_head)
{
	return to_head || status < 200 || status == 204 || status == 304;
}

static int response(struct head *h, bool to_head, const char **why)
{
	char *at = h->text, *line = head_line(&at);
	int rc = head_status_line(h, line ? line : at, why);

	if (!rc)
		rc = head_fields(h, at, why);
	if (!rc)
		rc = head_framing(h, why);
	if (!rc)
		rc = head_connection(h, why);
	if (rc)
		return rc;
	if (h->status < 200 || h->status == 204)
		h->has_length = false; // RFC 9110 8.6: there must be none
	if (h->status != 101)
		h->upgrade = NULL;
	if (bodiless(h->status, to_head))
		h->framing = FRAMING_NONE;
	else if (h->framing == FRAMING_NONE)
		h->framing = FRAMING_CLOSE;
	return 0;
}

int head_parse_response(struct head *h, struct head_in *in, bool to_head,
			const char **why)
{
	begin(h, in);
	return finish(h, response(h, to_head, why), why);
}

int head_parse_trailers(struct head *h, struct head_in *in, const char **why)
{
	int rc;

	begin(h, in);
	rc = head_fields(h, h->text, why);
	for (unsigned i = 0; !rc && i < h->n; i++) {
		*why = "a trailer field that frames or routes";
		if (head_frames(h->f[i].name, false))
			rc = 400;
		head_drop_hop(&h->f[i]);
		if (head_name_like(h->f[i].name, "x-aws-proxy-", 12))
			h->f[i].drop = true;
	}
	return finish(h, rc, why);
}

void head_free(struct head *h)
{
	free(h->text);
	free(h->host);
	*h = (struct head){.text = NULL};
}
