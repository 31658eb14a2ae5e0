// (interface) thawd's side of the agent protocol (guest/include/agent_proto.h):
// encoders for the openings, one-answer conversations, and the log stream. All
// of it on the loop; guests are hostile, so every answer is bounded and timed.
#ifndef THAW_ENG_AGENT_H
#define THAW_ENG_AGENT_H

#include "agent_proto.h"
#include "loop.h"

struct eng_app_spec {
	const char *const *argv, *const *env; // NULL-terminated
	const char *user, *cwd, *hostname;    // NULL means ""
	// Of START: root in it has all capabilities (additionalOsCapabilities
	// ["ALL"]), else those of a container (docs/AGENT_PROTOCOL.md).
	bool all_caps;
};

// Encode a whole opening frame into `w` (check w->bad once).
void eng_agent_put_start(struct wire_writer *w, const struct eng_app_spec *a);
// flags: AGENT_FREEZE_*.
void eng_agent_put_freeze(struct wire_writer *w, unsigned flags);
void eng_agent_put_unfreeze(struct wire_writer *w);
// Entropy is taken from this host's getrandom, the time from its clock, now.
void eng_agent_put_thaw(struct wire_writer *w, const uint8_t machine_id[16],
			const char *hostname);
// The same, but the application stays frozen.
void eng_agent_put_renew(struct wire_writer *w, const uint8_t machine_id[16],
			 const char *hostname);
void eng_agent_put_exec(struct wire_writer *w, const struct eng_app_spec *a,
			bool pty, uint16_t rows, uint16_t cols);
void eng_agent_put_connect(struct wire_writer *w, uint16_t port);
// Of struct eng_creds (roles.h); `vm` is the microVM's id.
struct eng_creds;
void eng_agent_put_role(struct wire_writer *w, const char *vm,
			const char *region, const struct eng_creds *c);
void eng_agent_put_probe(struct wire_writer *w, uint16_t port);
void eng_agent_put_log(struct wire_writer *w);
void eng_agent_put_poweroff(struct wire_writer *w, uint32_t timeout_ms);

// Sends the opening on `fd` (consumed, a stream from eng_cell_connect()) and
// waits for one answer. rc 0: `type` and payload are what came (AGENT_OK,
// AGENT_PROBED, ...). AGENT_ERROR arrives as its -errno with the text; -EPIPE: the
// stream ended (no agent listening yet, or the guest died); -ETIMEDOUT.
// `cb` is called once, never from within; eng_agent_cancel() prevents it.
// want_fd: on success the stream is handed over in *fd (>= 0) instead of closed
// (AGENT_CONNECT); bytes that followed the answer are left in the socket.
struct eng_agent_call;
struct eng_agent_answer {
	int rc;
	const char *why;
	unsigned type;
	const uint8_t *payload;
	size_t len;
	int fd;
};
struct eng_agent_call *
eng_agent_call(struct eng_loop *l, int fd, const void *opening, size_t len,
	       uint64_t timeout_ms, bool want_fd,
	       void (*cb)(void *ctx, const struct eng_agent_answer *a),
	       void *ctx, struct err *e);
void eng_agent_cancel(struct eng_agent_call *call); // NULL is fine

// The head of a frame from the guest: 0, or -EPROTO when it is none.
struct eng_agent_head {
	unsigned type;
	uint32_t len; // of what follows; at most AGENT_FRAME_MAX
};
int eng_agent_head(const uint8_t bytes[AGENT_FRAME_HEAD],
		   struct eng_agent_head *h);

struct eng_probe {
	bool listening, app_running;
	uint32_t app_exit;
	uint64_t app_cpu_us, uptime_ms;
};
int eng_agent_parse_probed(const uint8_t *p, size_t len, struct eng_probe *out);
// What the answer to PROBE says: 0 and *out; else -errno and *why, the reason,
// borrowed from the answer.
int eng_agent_probed(const struct eng_agent_answer *a, struct eng_probe *out,
		     const char **why);

// The application's output. `fd` is consumed. bytes(stream 1|2|3, bytes) as they
// come, not by line; closed() once, when the stream ends or misbehaves: the log
// is gone then. eng_agent_log_close() ends it without closed(), also from within
// a callback.
struct eng_agent_log;
struct eng_agent_log *eng_agent_log_open(
    struct eng_loop *l, int fd,
    void (*bytes)(void *ctx, unsigned stream, const void *p, size_t n),
    void (*closed)(void *ctx), void *ctx, struct err *e);
void eng_agent_log_close(struct eng_agent_log *lg); // NULL is fine

#endif
