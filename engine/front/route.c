// What a client says to the endpoint itself, and not to the application:
//
//   Host                     LABEL.DOMAIN: which microVM
//   X-aws-proxy-auth         the token; else, for a WebSocket, the sub-protocol
//                            lambda-microvms.authentication.TOKEN
//   X-aws-proxy-port         else lambda-microvms.port.N, else 8080
//   X-aws-proxy-force-h2     "true": HTTP/2 towards the guest, as for a request
//                            whose type is application/grpc
//
// Every X-aws-proxy-* field, known or not, and every sub-protocol that begins
// with lambda-microvms ends here. Anything said twice is refused: of two tokens
// or ports, another reader might take the other.
#include "route.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define PREFIX "x-aws-proxy-"
#define BASE "lambda-microvms"
#define AUTH BASE ".authentication."
#define PORT BASE ".port."

// 1 to 65535 in digits, or 0.
static unsigned parse_port(const char *p, size_t n)
{
	unsigned v = 0;

	if (!n || n > 5 || *p == '0')
		return 0;
	for (size_t i = 0; i < n; i++) {
		if (p[i] < '0' || p[i] > '9')
			return 0;
		v = v * 10 + (unsigned)(p[i] - '0');
	}
	return v <= 65535 ? v : 0;
}

static int label_of(struct route *r, const char *host, const char *domain,
		    const char **why)
{
	size_t n = strcspn(host, ".");

	*why = "no microVM has this host name";
	if (!n || n >= sizeof(r->label) || host[n] != '.' ||
	    strcasecmp(host + n + 1, domain) != 0)
		return 404;
	memcpy(r->label, host, n);
	r->label[n] = '\0';
	return 0;
}

static int said_twice(const char **why)
{
	*why = "a token or a port said twice";
	return 400;
}

static int proxy_fields(struct route *r, struct head *h, const char **why)
{
	const size_t skip = strlen(PREFIX);
	bool force = false;

	for (unsigned i = 0; i < h->n; i++) {
		struct head_field *f = &h->f[i];

		if (!head_name_like(f->name, PREFIX, skip))
			continue;
		f->drop = true;
		if (strchr(f->name, '_'))
			continue; // not ours, and not the guest's either
		if (strcasecmp(f->name + skip, "auth") == 0) {
			if (r->token)
				return said_twice(why);
			r->token = f->value;
			r->token_len = strlen(f->value);
		} else if (strcasecmp(f->name + skip, "port") == 0) {
			if (r->port)
				return said_twice(why);
			r->port = parse_port(f->value, strlen(f->value));
			*why = "X-aws-proxy-port is not a port";
			if (!r->port)
				return 400;
		} else if (strcasecmp(f->name + skip, "force-h2") == 0) {
			force |= strcasecmp(f->value, "true") == 0;
		}
	}
	r->h2 = force;
	return 0;
}

// --- sub-protocols -----------------------------------------------------------

struct offers {
	struct route *r;
	struct head_out left;
	const char *token, *port;
	size_t token_len, port_len;
	bool twice;
};

static bool offer(void *ctx, const char *item, size_t n)
{
	struct offers *o = ctx;
	const size_t auth = strlen(AUTH), port = strlen(PORT);

	if (n < strlen(BASE) || strncasecmp(item, BASE, strlen(BASE)) != 0) {
		head_put(&o->left, "%s%.*s", o->left.len ? ", " : "", (int)n,
			 item);
	} else if (n == strlen(BASE)) {
		o->r->base |= memcmp(item, BASE, n) == 0;
	} else if (n > auth && strncmp(item, AUTH, auth) == 0) {
		o->twice |= o->token != NULL;
		o->token = item + auth;
		o->token_len = n - auth;
	} else if (n > port && strncmp(item, PORT, port) == 0) {
		o->twice |= o->port != NULL;
		o->port = item + port;
		o->port_len = n - port;
	}
	return true;
}

static int sub_protocols(struct route *r, struct head *h, const char **why)
{
	static const char name[] = "sec-websocket-protocol";
	struct offers o = {.r = r};

	for (unsigned i = 0; i < h->n; i++) {
		if (strlen(h->f[i].name) != strlen(name) ||
		    !head_name_like(h->f[i].name, name, strlen(name)))
			continue;
		h->f[i].drop = true;
		if (!strchr(h->f[i].name, '_'))
			head_list(h->f[i].value, offer, &o);
	}
	r->protocols = o.left.p;
	if (o.left.bad)
		return 500;
	if (o.twice)
		return said_twice(why);
	if (!r->websocket)
		return 0;
	if (!r->token) {
		r->token = o.token;
		r->token_len = o.token_len;
	}
	if (!r->port && o.port) {
		r->port = parse_port(o.port, o.port_len);
		*why = "the sub-protocol " PORT "N has no port";
		if (!r->port)
			return 400;
	}
	return 0;
}

static bool is_grpc(const char *type)
{
	size_t n = strlen("application/grpc");

	return type && strncasecmp(type, "application/grpc", n) == 0 &&
	       (!type[n] || strchr("+; \t", type[n]));
}

static bool is_shell(const char *target)
{
	size_t n = strcspn(target, "?");

	return n == strlen("/shell") && strncmp(target, "/shell", n) == 0;
}

int route_of(struct route *r, struct head *h, const char *domain,
	     const char **why)
{
	bool again;
	int rc;

	*r = (struct route){.port = 0};
	r->websocket = h->upgrade && strcasecmp(h->upgrade, "websocket") == 0;
	rc = label_of(r, h->host, domain, why);
	if (!rc)
		rc = proxy_fields(r, h, why);
	if (!rc)
		rc = sub_protocols(r, h, why);
	if (!r->port)
		r->port = ROUTE_PORT_DEFAULT;
	r->shell_path = r->websocket && is_shell(h->target) &&
			strcmp(h->method, "GET") == 0;
	r->h2 = !h->upgrade &&
		(r->h2 || is_grpc(head_get(h, "content-type", &again)));
	return rc;
}

void route_free(struct route *r)
{
	free(r->protocols);
	r->protocols = NULL;
}

bool route_accept(const char *key, char out[29])
{
	static const char guid[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
	char text[64];
	unsigned char sum[EVP_MAX_MD_SIZE];
	unsigned n = 0;

	if (!key || strlen(key) != 24)
		return false;
	snprintf(text, sizeof(text), "%s%s", key, guid);
	if (!EVP_Digest(text, strlen(text), sum, &n, EVP_sha1(), NULL) ||
	    n != 20)
		return false;
	EVP_EncodeBlock((unsigned char *)out, sum, (int)n);
	return true;
}
