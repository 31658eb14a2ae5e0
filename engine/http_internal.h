// Shared by http.c and http_stream.c only.
#ifndef THAW_ENG_HTTP_INTERNAL_H
#define THAW_ENG_HTTP_INTERNAL_H

#include "http.h"

#include <event2/listener.h>

struct http_server {
	struct eng_loop *loop;
	struct http_config cfg;
	char *path;
	bool has_group, bound, stopped;
	gid_t group;
	struct evconnlistener *listener;
	struct evhttp *http;
	struct eng_timer *accept_timer;
	struct http_stream *streams; // open ones
	uint64_t last_read_ns;
};

// One answer; nothing is stolen.
struct http_answer {
	int status;
	const char *type;	// of an error; or NULL
	unsigned retry_after_s; // 0: no header
	const char *json;	// NULL: no body
};
void http_conn_answer(struct http_req *r, const struct http_answer *an);

#define HTTP_BAD_TARGET                                                     \
	"the request path or query is malformed: broken percent-encoding, " \
	"control characters, or too many parts"
// Path and query of a request line into the request; false: malformed.
bool http_parse_target(struct http_req *r, const char *target);
void http_request_id(char out[HTTP_ID]);
void http_req_free(struct http_req *r);
const char *http_reason(int status);
char *http_json_text(json_t *j);			     // steals
json_t *http_error_body(const char *message, json_t *extra); // steals
void http_streams_drop(struct http_server *s); // at the end: no callbacks

#endif
