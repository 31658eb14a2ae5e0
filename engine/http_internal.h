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

void http_req_free(struct http_req *r);
const char *http_reason(int status);
char *http_json_text(json_t *j);			     // steals
json_t *http_error_body(const char *message, json_t *extra); // steals
void http_streams_drop(struct http_server *s); // at the end: no callbacks

#endif
