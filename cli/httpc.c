#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "httpc.h"

int httpc_open(struct httpc *h, const char *socket_path, struct err *e)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	const char *what = "is it running? Start it with 'thawd', or name its "
			   "socket with --socket or $THAW_SOCKET";

	memset(h, 0, sizeof(*h));
	h->fd = -1;
	h->peer = "thawd";
	if (strlen(socket_path) >= sizeof(sa.sun_path))
		return err_set(e, -ENAMETOOLONG,
			       "the socket's path is longer than %zu bytes: %s",
			       sizeof(sa.sun_path) - 1, socket_path);
	memcpy(sa.sun_path, socket_path, strlen(socket_path) + 1);
	h->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (h->fd < 0)
		return err_sys(e, "socket");
	if (connect(h->fd, (struct sockaddr *)&sa, sizeof(sa))) {
		int rc = -errno;

		if (rc == -EACCES)
			what = "ask for membership in the group that thawd was "
			       "given with --socket-group, or use sudo";
		httpc_close(h);
		return err_set(e, rc, "cannot reach thawd at %s (%s); %s",
			       socket_path, strerror(-rc), what);
	}
	return 0;
}

void httpc_close(struct httpc *h)
{
	fd_close(&h->fd);
}

int httpc_take(struct httpc *h)
{
	return fd_steal(&h->fd);
}

static int send_all(int fd, const void *p, size_t n)
{
	const char *s = p;

	while (n) { // MSG_NOSIGNAL: an early answer closes the other end
		ssize_t r = send(fd, s, n, MSG_NOSIGNAL);

		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0)
			return -errno;
		s += r;
		n -= (size_t)r;
	}
	return 0;
}

int httpc_send(struct httpc *h, const char *method, const char *target,
	       const char *upgrade, const char *type, const void *body,
	       size_t len, struct err *e)
{
	char *head = NULL;
	int n, rc;

	n = asprintf(
	    &head,
	    "%s %s HTTP/1.1\r\nHost: localhost\r\n"
	    "User-Agent: thaw/" THAW_VERSION "\r\n"
	    "Connection: %s\r\n%s%s%s%s%s%sContent-Length: %zu\r\n\r\n",
	    method, target, upgrade ? "Upgrade" : "close",
	    upgrade ? "Upgrade: " : "", upgrade ? upgrade : "",
	    upgrade ? "\r\n" : "", len ? "Content-Type: " : "", len ? type : "",
	    len ? "\r\n" : "", len);
	if (n < 0)
		return err_set(e, -ENOMEM, "out of memory");
	rc = send_all(h->fd, head, (size_t)n);
	free(head);
	if (!rc)
		rc = send_all(h->fd, body, len);
	// A server that refuses early has answered already: read that.
	if (rc && rc != -EPIPE && rc != -ECONNRESET)
		return err_set(e, rc, "sending to thawd: %s", strerror(-rc));
	return 0;
}

int httpc_through(struct httpc *h, const char *peer, const char *head,
		  const void *body, size_t len, bool no_body, struct err *e)
{
	int rc = send_all(h->fd, head, strlen(head));

	if (!rc)
		rc = send_all(h->fd, body, len);
	if (rc && rc != -EPIPE && rc != -ECONNRESET)
		return err_set(e, rc, "sending to %s: %s", peer, strerror(-rc));
	h->peer = peer;
	h->status = 0;
	h->error_type[0] = '\0';
	h->retry_after = 0;
	h->head_used = 0;
	h->in_chunk = h->ended = false;
	h->no_body = no_body;
	return 0;
}

// More bytes into the buffer; 0 at the end of the stream.
static ssize_t fill(struct httpc *h, struct err *e)
{
	ssize_t n;

	if (h->at == h->len)
		h->at = h->len = 0;
	if (h->len == sizeof(h->buf)) {
		memmove(h->buf, h->buf + h->at, h->len - h->at);
		h->len -= h->at;
		h->at = 0;
	}
	do
		n = read(h->fd, h->buf + h->len, sizeof(h->buf) - h->len);
	while (n < 0 && errno == EINTR);
	if (n < 0) {
		err_set(e, -errno, "reading from %s: %s", h->peer,
			errno == EAGAIN ? "it took too long" : strerror(errno));
		return -EIO;
	}
	h->len += (size_t)n;
	return n;
}

static int malformed(const struct httpc *h, struct err *e, const char *what)
{
	err_set(e, -EBADMSG, "%s's answer is malformed: %s", h->peer, what);
	return -EBADMSG;
}

static int cut_short(const struct httpc *h, struct err *e)
{
	err_set(e, -EPIPE, "the connection to %s ended within its answer",
		h->peer);
	return -EPIPE;
}

// One line of the head or of the chunk framing, without CR LF, in the buffer.
// At most HTTPC_BUF bytes a line and HTTPC_HEAD_MAX in all.
static int get_line(struct httpc *h, char **out, struct err *e)
{
	char *nl;

	while (!(nl = memchr(h->buf + h->at, '\n', h->len - h->at))) {
		ssize_t n;

		if (h->len - h->at >= sizeof(h->buf) / 2)
			return malformed(h, e, "a line is too long");
		n = fill(h, e);
		if (n <= 0)
			return n < 0 ? -EIO : cut_short(h, e);
	}
	*out = h->buf + h->at;
	h->head_used += (size_t)(nl + 1 - *out);
	h->at = (size_t)(nl + 1 - h->buf);
	if (h->head_used > HTTPC_HEAD_MAX)
		return malformed(h, e, "its head is too long");
	if (nl == *out || nl[-1] != '\r')
		return malformed(h, e, "a line ends without CR LF");
	nl[-1] = '\0';
	if (strlen(*out) != (size_t)(nl - 1 - *out))
		return malformed(h, e, "a NUL in the head");
	return 0;
}

static int parse_number(const char *s, int base, uint64_t *out)
{
	size_t digits = 0;
	uint64_t v = 0;

	for (; base == 16 ? isxdigit((unsigned char)*s)
			  : isdigit((unsigned char)*s);
	     s++) {
		unsigned d =
		    (unsigned)(isdigit((unsigned char)*s)
				   ? *s - '0'
				   : tolower((unsigned char)*s) - 'a' + 10);

		if (++digits > 15)
			return -EINVAL;
		v = v * (unsigned)base + d;
	}
	if (!digits || (*s && !(base == 16 && *s == ';')))
		return -EINVAL;
	*out = v;
	return 0;
}

static int take_header(struct httpc *h, char *line, struct err *e)
{
	char *colon = strchr(line, ':'), *v;
	size_t n;

	if (!colon || colon == line ||
	    strcspn(line, " \t") < (size_t)(colon - line))
		return malformed(h, e, "a header line");
	*colon = '\0';
	v = colon + 1;
	v += strspn(v, " \t");
	n = strlen(v);
	while (n && (v[n - 1] == ' ' || v[n - 1] == '\t'))
		v[--n] = '\0';
	if (!strcasecmp(line, "content-length")) {
		if (h->framing != HTTPC_TO_END)
			return malformed(h, e, "two lengths");
		if (parse_number(v, 10, &h->left))
			return malformed(h, e, "Content-Length");
		h->framing = HTTPC_LENGTH;
	} else if (!strcasecmp(line, "transfer-encoding")) {
		if (h->framing != HTTPC_TO_END)
			return malformed(h, e, "two lengths");
		if (strcasecmp(v, "chunked") != 0)
			return malformed(h, e, "Transfer-Encoding");
		h->framing = HTTPC_CHUNKED;
	} else if (!strcasecmp(line, "x-amzn-errortype")) {
		snprintf(h->error_type, sizeof(h->error_type), "%.*s",
			 (int)strcspn(v, ":"), v);
	} else if (!strcasecmp(line, "retry-after")) {
		uint64_t s;

		if (!parse_number(v, 10, &s) && s < 100000)
			h->retry_after = (unsigned)s;
	}
	return 0;
}

static int status_line(struct httpc *h, struct err *e)
{
	char *line;
	int rc = get_line(h, &line, e);

	if (rc)
		return rc;
	if (h->on_head)
		h->on_head(h->on_head_arg, line);
	if (strncmp(line, "HTTP/1.", 7) != 0 ||
	    !isdigit((unsigned char)line[7]) || line[8] != ' ' ||
	    !isdigit((unsigned char)line[9]) ||
	    !isdigit((unsigned char)line[10]) ||
	    !isdigit((unsigned char)line[11]) || (line[12] && line[12] != ' '))
		return malformed(h, e, "it does not start with HTTP/1.1");
	h->status =
	    (line[9] - '0') * 100 + (line[10] - '0') * 10 + line[11] - '0';
	return 0;
}

int httpc_head(struct httpc *h, struct err *e)
{
	char *line;
	int rc;

	do {
		h->framing = HTTPC_TO_END;
		rc = status_line(h, e);
		if (rc)
			return rc;
		for (;;) {
			rc = get_line(h, &line, e);
			if (rc)
				return rc;
			if (!*line)
				break;
			if (h->on_head)
				h->on_head(h->on_head_arg, line);
			rc = take_header(h, line, e);
			if (rc)
				return rc;
		}
	} while (h->status < 200 && h->status != 101); // interim answers
	if (h->status < 200 || h->status == 204 || h->status == 304 ||
	    h->no_body)
		h->framing = HTTPC_NONE;
	return 0;
}

// To the data of the next chunk, or to the end of all.
static int next_chunk(struct httpc *h, struct err *e)
{
	char *line;
	int rc;

	h->head_used = 0;
	if (h->in_chunk) {
		rc = get_line(h, &line, e);
		if (rc)
			return rc;
		if (*line)
			return malformed(h, e,
					 "a chunk is longer than it says");
	}
	rc = get_line(h, &line, e);
	if (rc)
		return rc;
	if (parse_number(line, 16, &h->left))
		return malformed(h, e, "a chunk's size");
	h->in_chunk = true;
	if (h->left)
		return 0;
	do { // trailers
		rc = get_line(h, &line, e);
		if (rc)
			return rc;
	} while (*line);
	h->ended = true;
	return 0;
}

ssize_t httpc_body(struct httpc *h, void *dst, size_t cap, struct err *e)
{
	ssize_t n;
	int rc;

	if (h->framing == HTTPC_NONE || h->ended)
		return 0;
	if (h->framing == HTTPC_CHUNKED && !h->left) {
		rc = next_chunk(h, e);
		if (rc || h->ended)
			return rc;
	}
	if (h->framing == HTTPC_LENGTH && !h->left)
		return 0;
	if (h->at == h->len) {
		n = fill(h, e);
		if (n < 0)
			return n;
		if (n == 0) {
			h->ended = true;
			return h->framing == HTTPC_TO_END ? 0 : cut_short(h, e);
		}
	}
	cap = MIN(cap, h->len - h->at);
	if (h->framing != HTTPC_TO_END) {
		cap = (size_t)MIN((uint64_t)cap, h->left);
		h->left -= cap;
	}
	memcpy(dst, h->buf + h->at, cap);
	h->at += cap;
	return (ssize_t)cap;
}

bool httpc_ready(struct httpc *h, bool polled)
{
	bool between = h->framing == HTTPC_CHUNKED && h->in_chunk && !h->left;
	size_t had = h->len - h->at;
	ssize_t n;

	if (!between || had > 2)
		return had || polled;
	// What ends the last chunk is not yet the next one.
	if (!polled)
		return false;
	memmove(h->buf, h->buf + h->at, had);
	h->at = 0;
	h->len = had;
	n = recv(h->fd, h->buf + had, sizeof(h->buf) - had, 0);
	if (n > 0)
		h->len += (size_t)n;
	return n <= 0 || h->len > 2; // an end is seen once more
}

int httpc_body_all(struct httpc *h, char **out, size_t *len, struct err *e)
{
	size_t cap = 0, at = 0;
	char *buf = NULL;
	ssize_t n;

	do {
		if (cap - at < HTTPC_BUF) {
			char *more = realloc(buf, cap + (size_t)2 * HTTPC_BUF);

			if (!more || cap > HTTPC_BODY_MAX) {
				free(more ? more : buf);
				return err_set(e, -EFBIG,
					       "%s's answer is too long",
					       h->peer);
			}
			buf = more;
			cap += (size_t)2 * HTTPC_BUF;
		}
		n = httpc_body(h, buf + at, cap - at - 1, e);
		if (n < 0) {
			free(buf);
			return (int)n;
		}
		at += (size_t)n;
	} while (n);
	buf[at] = '\0';
	*out = buf;
	*len = at;
	return 0;
}

int httpc_line(struct httpc *h, char **line, size_t *cap, size_t max,
	       struct err *e)
{
	size_t at = 0;
	char c;

	for (;;) {
		ssize_t n = httpc_body(h, &c, 1, e);

		if (n < 0)
			return (int)n;
		if (n == 0 && at == 0)
			return 0;
		if (n == 0 || c == '\n')
			break;
		if (at + 2 > *cap) {
			size_t want = *cap ? 2 * *cap : 1024;
			char *more = at < max ? realloc(*line, want) : NULL;

			if (!more)
				return err_set(e, -EFBIG,
					       "a line of thawd's answer is "
					       "too long");
			*line = more;
			*cap = want;
		}
		(*line)[at++] = c;
	}
	if (*cap == 0) { // an empty line comes first
		*line = malloc(16);
		if (!*line)
			return err_set(e, -ENOMEM, "out of memory");
		*cap = 16;
	}
	(*line)[at] = '\0';
	return 1;
}

char *httpc_encode(const char *text)
{
	static const char hex[] = "0123456789ABCDEF";
	char *out = malloc(3 * strlen(text) + 1), *o = out;

	if (!out)
		return NULL;
	for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
		if (isalnum(*p) || strchr("-._~", *p)) {
			*o++ = (char)*p;
		} else {
			*o++ = '%';
			*o++ = hex[*p >> 4];
			*o++ = hex[*p & 15];
		}
	}
	*o = '\0';
	return out;
}
