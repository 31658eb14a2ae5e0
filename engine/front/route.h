// Where a request is to go and by what right, read from its head alone.
#ifndef THAW_FRONT_ROUTE_H
#define THAW_FRONT_ROUTE_H

#include "head.h"

enum { ROUTE_PORT_DEFAULT = 8080, ROUTE_PORT_SHELL = 8022 };

struct route {
	char label[64]; // of the host name, before the domain
	unsigned port;
	const char *token; // NULL: none; not terminated there
	size_t token_len;
	bool websocket;
	bool shell_path; // a WebSocket to /shell: a shell, if the token says so
	bool h2;	 // the guest is to be spoken to in HTTP/2
	bool base;	 // "lambda-microvms" was offered
	char *protocols; // the sub-protocols left for the guest, or NULL
};

// Reads the route and marks every field that the guest must not see. 0; else
// the HTTP status that refuses the request, with *why (a constant). The token is
// borrowed from `h`.
int route_of(struct route *r, struct head *h, const char *domain,
	     const char **why);
void route_free(struct route *r);
// Sec-WebSocket-Accept of a Sec-WebSocket-Key (RFC 6455 4.2.2); false: no such
// key can be.
bool route_accept(const char *key, char out[29]);

#endif
