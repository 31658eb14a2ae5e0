// The HTTP/1.1 servers. Of the Unix socket: libevent's evhttp with every limit
// set, requests as a checked struct, answers, and connections taken over for
// streams (chunked answers, upgrades). Of TCP (http_tcp.c): our own, for signed
// requests and plain answers. Know nothing of microVMs.
#ifndef THAW_ENG_HTTP_H
#define THAW_ENG_HTTP_H

#include "loop.h"

#include <jansson.h>

struct http_server;
struct http_stream;
struct http_tcp;
struct http_conn;

enum {
	HTTP_MAX_HEAD = 64 * 1024,
	HTTP_MAX_BODY = 1024 * 1024,
	HTTP_MAX_SEGS = 10,
	HTTP_MAX_QUERY = 72,   // 50 tagKeys fit
	HTTP_MAX_FIELDS = 100, // of a head over TCP
	HTTP_ID = 37,
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
	const char *k, *v;
};

struct shape_op;

// One request. Whoever holds it must end it: http_reply(), http_error() or
// http_stream_take(), each of which consumes it.
struct http_req {
	struct http_server *srv;
	struct evhttp_request *ev; // of the Unix socket; else NULL and
	struct http_conn *conn;	   // of TCP; NULL: the peer is gone
	enum http_method method;
	char *text;			// owns the segments and the query
	const char *seg[HTTP_MAX_SEGS]; // path, split and then decoded
	unsigned nseg;
	struct http_kv query[HTTP_MAX_QUERY];
	unsigned nquery;
	const void *body;
	size_t body_len;
	uint64_t t0; // CLOCK_MONOTONIC ns: its last bytes were read
	bool remote; // came over TCP, signed
	uid_t uid; // the peer's, from the kernel; over TCP, the configured one
	gid_t gid;
	char upgrade[32];	   // the Upgrade header, "" without
	char id[HTTP_ID];	   // goes back as x-amzn-RequestId
	const struct shape_op *op; // set by the handler; NULL: thaw's own call
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

// --- over TCP ------------------------------------------------------------------

struct http_field {
	const char *name, *value;
};
// A request as it came, for its signature: still encoded.
struct http_wire {
	const char *method, *path, *query; // query NULL: none
	const struct http_field *fields;   // at most HTTP_MAX_FIELDS
	size_t nfields;
};

struct http_tcp_config {
	const char *listen; // addr_parse()
	uid_t uid;	    // of every caller
	gid_t gid;
	// Called first. false: it has answered the request (http_error()).
	bool (*admit)(void *ctx, struct http_req *r, const struct http_wire *w);
	void (*handle)(void *ctx, struct http_req *r);
	void *ctx;
};
// Binds and listens; the configuration's text is borrowed.
int http_tcp_create(struct http_tcp **out, struct eng_loop *l,
		    const struct http_tcp_config *cfg, struct err *e);
const char *http_tcp_address(const struct http_tcp *s); // as bound
void http_tcp_stop(struct http_tcp *s); // accepts no more; NULL is fine
// After the loop has returned; answers still owed go nowhere. NULL is fine.
void http_tcp_destroy(struct http_tcp *s);

// --- requests and answers ---------------------------------------------------------

const char *http_method_name(enum http_method m);
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
	void (*moved)(void *ctx);   // a relay carried bytes; may be NULL
};

// Takes the connection over (the Unix socket's only). Consumes the request, whose fields stay readable
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
