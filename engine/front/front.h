// The endpoint: one port in front of all microVMs, each at its own host name
// (docs/ENDPOINT.md). A strict reverse proxy on the engine's loop that knows
// nothing of microVMs but what `struct front_ops` tells it. One thread.
#ifndef THAW_FRONT_H
#define THAW_FRONT_H

#include "base.h"
#include "loop.h"

struct front;

enum front_verdict {
	FRONT_OK,
	FRONT_UNAUTHORIZED, // no token: 401
	FRONT_FORBIDDEN,    // not a token for this: 403
	FRONT_PORT,	    // a token, but not for this port: 403
};

// cb(arg, fd, why): fd >= 0 is a connected, non-blocking stream, the front's
// from then on; else -errno, and `why` may be a sentence (NULL: none).
typedef void front_opened(void *arg, int fd, const char *why);

// What the engine answers. All of it on the loop; none may call the front back
// from within, but by cb later.
struct front_ops {
	// The microVM at LABEL.domain, or NULL: 404. It stays valid until
	// front_vm_gone().
	void *(*find)(void *ctx, const char *label);
	// May this token (NULL: none came) reach the port, or open a shell?
	enum front_verdict (*allow)(void *ctx, void *vm, const char *token,
				    size_t n, unsigned port, bool shell);
	// A byte stream to a port of the guest; a suspended microVM is resumed
	// first. cb is called once, never from within, and not after cancel().
	// -ECONNREFUSED: nobody listens there: 502. -EBUSY: 503. -ETIMEDOUT:
	// 504. -EDQUOT: 429. -ENOENT: 404. Others: 502.
	void *(*open)(void *ctx, void *vm, unsigned port, front_opened *cb,
		      void *arg);
	// The same for a shell. The stream carries the server's side of
	// WebSocket frames (RFC 6455 5); the handshake is done here.
	void *(*shell)(void *ctx, void *vm, front_opened *cb, void *arg);
	void (*cancel)(void *ctx, void *opening, bool shell);
	// Bytes pass, in either direction: it is not idle.
	void (*traffic)(void *ctx, void *vm);
};

// Milliseconds and counts; 0 means the default.
struct front_limits {
	unsigned head_ms;   // from accept or first byte to a whole head: 10 s
	unsigned idle_ms;   // between two requests: 60 s
	unsigned body_ms;   // silence within a request's body: 30 s
	unsigned stall_ms;  // a client that does not read: 60 s
	unsigned open_ms;   // a request held for its microVM: 60 s
	unsigned answer_ms; // silence of a guest that owes an answer: 900 s
	unsigned relay_ms;  // silence on a WebSocket: 3600 s
	unsigned half_closed_ms; // after one side's end of file: 60 s
	// 4096. For one more, a connection between two requests makes room, of
	// the microVM that has most of those; if there is none, it is closed.
	unsigned max_conns;
	unsigned max_strangers; // without a token so far: 256; the oldest goes
	unsigned max_per_vm;	// requests at a time: 512; more get 429
};

struct front_config {
	const char *listen; // addr_parse(): "8443", "127.0.0.1:8443", "[::1]:0"
	const char *domain; // "localhost": microVMs are LABEL.localhost
	// PEM files of a chain and its key. NULL: certificates are made here,
	// signed by an authority of our own that is kept in tls_dir, a folder
	// that is nobody else's. ca_copy, unless NULL: its certificate is there
	// too, for everybody.
	const char *cert, *key;
	const char *tls_dir, *ca_copy;
	bool plain; // HTTP without TLS is accepted too, on loopback only
	const struct front_ops *ops;
	void *ctx;
	struct eng_loop *loop;
	struct front_limits limits;
};

struct front_stats {
	unsigned conns, strangers, waiting, exchanges, opening;
	uint64_t accepted, requests, refused;
};

// Binds and listens. The configuration's strings are copied.
int front_create(struct front **out, const struct front_config *cfg,
		 struct err *e);
unsigned front_port(const struct front *f);	  // the one bound
const char *front_address(const struct front *f); // as bound, with the port
// The certificate that clients have to trust; NULL: one was given. Borrowed.
const char *front_ca_path(const struct front *f);
void front_stats(const struct front *f, struct front_stats *out);
// The microVM is no more: what is open to it ends, what waits for it gets 404.
// Its pointer is not used again.
void front_vm_gone(struct front *f, void *vm);
void front_stop(struct front *f); // accepts no more; what is open goes on
// After the loop has returned, or at any time outside of the front's callbacks.
void front_destroy(struct front *f); // NULL is fine

#endif
