// Between http_tcp.c and http_conn.c; the states are told in http_conn.c.
#ifndef THAW_ENG_HTTP_TCP_INTERNAL_H
#define THAW_ENG_HTTP_TCP_INTERNAL_H

#include "head.h"
#include "http_internal.h"

#include <sys/queue.h>

enum conn_state { HEAD, BODY, HANDLED, ANSWER, LINGER, DEAD };

struct http_conn {
	TAILQ_ENTRY(http_conn) link;
	struct http_tcp *srv;
	struct bufferevent *bev;
	struct eng_timer *timer;
	enum conn_state state;
	struct head_in in;
	struct head head;
	struct body body;
	char *data; // of the body so far
	size_t len, cap;
	bool known;	      // it has shown a good signature
	bool close;	      // after this answer
	struct http_req *req; // HANDLED
};

TAILQ_HEAD(conn_list, http_conn);

struct http_tcp {
	struct eng_loop *loop;
	struct http_tcp_config cfg;
	struct evconnlistener *listener;
	struct eng_timer *accept_timer, *reap_timer;
	struct conn_list conns, dead; // conns: longest in its state first
	unsigned n;
	size_t bodies; // bytes
	bool stopped;
	char address[ADDR_TEXT];
};

// --- http_conn.c -------------------------------------------------------------------

// Takes an accepted descriptor.
void http_conn_add(struct http_tcp *s, int fd);
// Ends it at once; http_conns_reap() frees it, outside of its callbacks.
void http_conn_kill(struct http_conn *c);
void http_conns_reap(void *srv);

#endif
