// A small HTTP/1.1 client over a Unix socket: one request a connection, bodies
// with Content-Length, chunked, or to the end; upgrades to raw streams. It
// takes nothing on trust: every length is bounded, every line checked.
#ifndef THAW_HTTPC_H
#define THAW_HTTPC_H

#include "base.h"

enum {
	HTTPC_BUF = 32 * 1024,
	HTTPC_HEAD_MAX = 64 * 1024,
	HTTPC_BODY_MAX = 64 * 1024 * 1024, // of httpc_body_all()
};

struct httpc {
	int fd;
	const char *peer; // who answers, for messages
	// Each line of a head as it comes, without its end, or NULL.
	void (*on_head)(void *arg, const char *line);
	void *on_head_arg;
	int status; // after httpc_head()
	char error_type[64];
	unsigned retry_after; // seconds; 0: not said
	enum httpc_framing {
		HTTPC_NONE,
		HTTPC_LENGTH,
		HTTPC_CHUNKED,
		HTTPC_TO_END,
	} framing;
	uint64_t left; // of the body, or of the chunk
	bool in_chunk, ended, no_body;
	size_t head_used;
	size_t at, len; // unread bytes in buf
	char buf[HTTPC_BUF];
};

// Connects. The sentence says what to do when nobody answers there.
int httpc_open(struct httpc *h, const char *socket_path, struct err *e);
void httpc_close(struct httpc *h); // a zeroed or closed one is fine

// Sends a request. `upgrade` (or NULL) asks for that protocol; `type` is the
// body's content type when there is a body.
int httpc_send(struct httpc *h, const char *method, const char *target,
	       const char *upgrade, const char *type, const void *body,
	       size_t len, struct err *e);
// Reads the answer's head. Interim answers (100, 103) are skipped.
int httpc_head(struct httpc *h, struct err *e);
// The next bytes of the body; 0 at its end. An answer that ends too early or is
// malformed is an error, never a short body.
ssize_t httpc_body(struct httpc *h, void *dst, size_t cap, struct err *e);
// Has httpc_body() something to give without waiting for the peer? `polled`: the
// descriptor is readable.
bool httpc_ready(struct httpc *h, bool polled);
// The whole body, NUL-terminated (not counted in *len). Caller frees.
int httpc_body_all(struct httpc *h, char **out, size_t *len, struct err *e);
// One line of the body without its end, NUL-terminated, at most `max` bytes;
// 1 a line, 0 the end. *line is the caller's, grown as needed.
int httpc_line(struct httpc *h, char **line, size_t *cap, size_t max,
	       struct err *e);
// After status 101, where what speaks on at the other end is HTTP too: a new
// exchange with `peer` (borrowed), whose request `head` and `body` are. Then
// httpc_head(). `no_body`: an answer to HEAD.
int httpc_through(struct httpc *h, const char *peer, const char *head,
		  const void *body, size_t len, bool no_body, struct err *e);
// After status 101: takes over the descriptor. Bytes read too far are first in
// h->buf [at, len).
int httpc_take(struct httpc *h);

// Percent-encodes one path segment or query value. Caller frees; NULL: no
// memory.
char *httpc_encode(const char *text);

#endif
