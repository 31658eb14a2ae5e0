// The HTTP/1.1 server of the Unix socket: libevent's evhttp with every limit
// set, requests as a checked struct, answers, and connections taken over for
// streams (chunked answers, upgrades). Knows nothing of microVMs.
#ifndef THAW_ENG_HTTP_H
#define THAW_ENG_HTTP_H

#include "loop.h"

#include <jansson.h>

struct http_server;
struct http_stream;

enum {
	HTTP_MAX_HEAD = 64 * 1024,
	HTTP_MAX_BODY = 1024 * 1024,
	HTTP_MAX_SEGS = 10,
	HTTP_MAX_QUERY = 24,
	HTTP_IDLE_S = 30, // a connection that sends nothing, or half a request
};

enum http_method {
	HTTP_GET = 1,
	HTTP_POST,
	HTTP_PUT,
	HTTP_PATCH,
	HTTP_DELETE,
};

struct http_kv {
	char *k, *v;
};

// One request. Whoever holds it must end it: http_reply(), http_error() or
// http_stream_take(), each of which consumes it.
struct http_req {
	struct http_server *srv;
	struct evhttp_request *ev;
	enum http_method method;
	char *text;			// owns the segments and the query
	const char *seg[HTTP_MAX_SEGS]; // path, split and then decoded
	unsigned nseg;
	struct http_kv query[HTTP_MAX_QUERY];
	unsigned nquery;
	const void *body;
	size_t body_len;
	uint64_t t0; // CLOCK_MONOTONIC ns: its last bytes were read
	uid_t uid;   // the peer's, from the kernel
	gid_t gid;
	char upgrade[32]; // the Upgrade header, "" without
	char id[37];	  // goes back as x-amzn-RequestId
};

struct http_config {
	const char *path; // of the socket
	bool has_group;
	gid_t group; // may connect too (mode 0660)
	// Called on the loop for every well-formed request.
	void (*handle)(void *ctx, struct http_req *r);
	void *ctx;
};

// Binds and listens. A socket file that nobody listens on is replaced; one that
// somebody does is -EADDRINUSE.
int http_server_create(struct http_server **out, struct eng_loop *l,
		       const struct http_config *cfg, struct err *e);
// Stops accepting and removes the socket file; open connections go on.
void http_server_stop(struct http_server *s);
// After the loop has returned. Streams still open get their closed().
void http_server_destroy(struct http_server *s);
struct eng_loop *http_loop(const struct http_server *s);
const char *http_library_version(void); // libevent's

// First value of a query parameter, or NULL.
const char *http_query(const struct http_req *r, const char *k);

// Answers with JSON (stolen; NULL: an empty body) and consumes the request.
void http_reply(struct http_req *r, int status, json_t *body);
void http_reply_text(struct http_req *r, int status, char *json); // likewise
// AWS's error shape: x-amzn-ErrorType and {"message"} plus `extra` (stolen,
// may be NULL). retry_after_s 0: no header.
void http_error(struct http_req *r, int status, const char *type,
		unsigned retry_after_s, json_t *extra, const char *message);

// --- streams ---------------------------------------------------------------

struct http_stream_ops {
	// The peer is gone, or http_stream_end() has flushed. Exactly once,
	// never from within a call of this module; the handle is gone after it.
	void (*closed)(void *ctx);
	void (*drained)(void *ctx); // backlog fell to nothing; may be NULL
};

// Takes the connection over. Consumes the request, whose fields stay readable
// through http_stream_req() for the stream's life. NULL: the peer is gone
// already (the request is consumed; no callback comes).
struct http_stream *http_stream_take(struct http_req *r,
				     const struct http_stream_ops *ops,
				     void *ctx);
const struct http_req *http_stream_req(const struct http_stream *st);
// 200 with a chunked body.
void http_stream_begin(struct http_stream *st, const char *content_type);
void http_stream_write(struct http_stream *st, const void *p, size_t n);
void http_stream_json(struct http_stream *st, json_t *line); // stolen; + "\n"
size_t http_stream_backlog(const struct http_stream *st);    // bytes unsent
// An error instead of a body (before begin), then the end.
void http_stream_fail(struct http_stream *st, int status, const char *type,
		      const char *message);
// A whole JSON answer instead of a body, then the end.
void http_stream_reply(struct http_stream *st, int status, json_t *body);
// Ends the body; closed() follows when it is flushed (or the peer is gone, or
// does not read it for a while).
void http_stream_end(struct http_stream *st);
// 101, then bytes both ways between the peer and `fd` (consumed), each
// direction bounded to 256 KiB. half_close: the end of one direction leaves the
// other open; else it ends both.
void http_stream_relay(struct http_stream *st, const char *protocol, int fd,
		       bool half_close);

#endif
