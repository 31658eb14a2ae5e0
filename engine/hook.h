// One call of a lifecycle hook: an HTTP POST to the application's own server in
// the guest, over a stream to its port. The guest is hostile: of its answer only
// the status is read, and that bounded and timed.
#ifndef THAW_ENG_HOOK_H
#define THAW_ENG_HOOK_H

#include "loop.h"

enum {
	HOOK_HEAD_MAX = 16 * 1024, // bytes of an answer's head
	HOOK_LINGER_MS = 1000,	   // for the rest of it, which is thrown away
};

// AWS's path of each.
#define HOOK_PATH "/aws/lambda-microvms/runtime/v1/"
#define HOOK_PORT 9000 // of an image whose hooks name none

struct hook_ask {
	const char *name; // "ready", "validate", "run", "resume", ...
	unsigned port;	  // for the Host header
	const char *body; // JSON text
	uint64_t timeout_ms;
};

struct eng_hook;

// Asks on `fd` (consumed, also on error; connected and non-blocking). `cb` is
// called once, on a later turn: `status` 100 to 599 with the answer's status; or
// -ETIMEDOUT, -EPIPE (the stream ended before an answer), -EPROTO (no HTTP), and
// `why` a sentence without its full stop. The handle is gone after it.
int eng_hook_call(struct eng_hook **out, struct eng_loop *l, int fd,
		  const struct hook_ask *ask,
		  void (*cb)(void *ctx, int status, const char *why), void *ctx,
		  struct err *e);
// cb does not come. NULL is fine.
void eng_hook_cancel(struct eng_hook *h);

// The status of an answer's head, n bytes of which have come: 0 while it is
// not whole, or -EPROTO.
int eng_hook_status(const char *head, size_t n);

#endif
