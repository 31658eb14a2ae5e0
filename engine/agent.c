// thawd's side of the agent protocol: openings, one-answer conversations and
// the log stream, on the loop.
//
// A guest is hostile, its agent too: an answer has one of few types, each with
// its length; an error's code is an errno and its text is cut and cleaned
// before anybody logs it; a log frame is bounded and read a piece at a time.
// Exactly one frame is read from a stream that is handed over (AGENT_CONNECT),
// never a byte behind it.
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "agent.h"
#include "roles.h"

enum {
	ENTROPY_LEN = 64,
	ERROR_TEXT_MAX = 400, // longer ones are cut
	ANSWER_MAX = 4096,
	LOG_TURN_BYTES = 65536, // read in one turn of the loop
	LOG_BUF = 16384,
};

// --- openings ----------------------------------------------------------------

static size_t begin(struct wire_writer *w, unsigned type)
{
	wire_put_u8(w, (uint8_t)type);
	wire_put_u8(w, 0);
	wire_put_u16(w, 0);
	wire_put_u32(w, 0);
	return w->len;
}

static void finish(struct wire_writer *w, size_t at)
{
	size_t len = w->len - at;

	if (len > AGENT_FRAME_MAX)
		w->bad = true;
	else if (!w->bad)
		wire_patch_u32(w, at - 4, (uint32_t)len);
}

static void put_str(struct wire_writer *w, const char *s)
{
	size_t n = s ? strlen(s) : 0;

	wire_put_u32(w, (uint32_t)n);
	wire_put_bytes(w, s, n);
}

static void put_list(struct wire_writer *w, const char *const *list)
{
	uint32_t n = 0;

	while (list && list[n])
		n++;
	wire_put_u32(w, n);
	for (uint32_t i = 0; i < n; i++)
		put_str(w, list[i]);
}

void eng_agent_put_start(struct wire_writer *w, const struct eng_app_spec *a)
{
	size_t at = begin(w, AGENT_START);

	wire_put_u32(w, a->all_caps ? AGENT_START_ALL_CAPS : 0);
	put_list(w, a->argv);
	put_list(w, a->env);
	put_str(w, a->user);
	put_str(w, a->cwd);
	put_str(w, a->hostname);
	finish(w, at);
}

void eng_agent_put_freeze(struct wire_writer *w, unsigned flags)
{
	size_t at = begin(w, AGENT_FREEZE);

	wire_put_u32(w, flags);
	finish(w, at);
}

void eng_agent_put_unfreeze(struct wire_writer *w)
{
	finish(w, begin(w, AGENT_UNFREEZE));
}

static void put_identity(struct wire_writer *w, enum agent_frame type,
			 const uint8_t machine_id[16], const char *hostname)
{
	size_t at = begin(w, type);
	uint8_t entropy[ENTROPY_LEN];

	util_random(entropy, sizeof(entropy));
	wire_put_bytes(w, entropy, sizeof(entropy));
	explicit_bzero(entropy, sizeof(entropy));
	wire_put_u64(w, util_wall_ns());
	wire_put_bytes(w, machine_id, 16);
	put_str(w, hostname);
	finish(w, at);
}

void eng_agent_put_thaw(struct wire_writer *w, const uint8_t machine_id[16],
			const char *hostname)
{
	put_identity(w, AGENT_THAW, machine_id, hostname);
}

void eng_agent_put_renew(struct wire_writer *w, const uint8_t machine_id[16],
			 const char *hostname)
{
	put_identity(w, AGENT_RENEW, machine_id, hostname);
}

void eng_agent_put_exec(struct wire_writer *w, const struct eng_app_spec *a,
			bool pty, uint16_t rows, uint16_t cols)
{
	size_t at = begin(w, AGENT_EXEC);

	wire_put_u32(w, pty ? AGENT_EXEC_PTY : 0);
	wire_put_u16(w, rows);
	wire_put_u16(w, cols);
	put_list(w, a->argv);
	put_list(w, a->env);
	put_str(w, a->user);
	put_str(w, a->cwd);
	finish(w, at);
}

static void put_port(struct wire_writer *w, unsigned type, uint16_t port)
{
	size_t at = begin(w, type);

	wire_put_u16(w, port);
	finish(w, at);
}

void eng_agent_put_connect(struct wire_writer *w, uint16_t port)
{
	put_port(w, AGENT_CONNECT, port);
}

void eng_agent_put_role(struct wire_writer *w, const char *vm,
			const char *region, const struct eng_creds *c)
{
	size_t at = begin(w, AGENT_ROLE);

	put_str(w, vm);
	put_str(w, region);
	put_str(w, c->key);
	put_str(w, c->secret);
	put_str(w, c->token);
	wire_put_u64(w, c->expires_s);
	finish(w, at);
}

void eng_agent_put_probe(struct wire_writer *w, uint16_t port)
{
	put_port(w, AGENT_PROBE, port);
}

void eng_agent_put_log(struct wire_writer *w)
{
	finish(w, begin(w, AGENT_LOG));
}

void eng_agent_put_poweroff(struct wire_writer *w, uint32_t timeout_ms)
{
	size_t at = begin(w, AGENT_POWEROFF);

	wire_put_u32(w, timeout_ms);
	finish(w, at);
}

// --- frames from the guest --------------------------------------------------

int eng_agent_head(const uint8_t bytes[AGENT_FRAME_HEAD],
		   struct eng_agent_head *h)
{
	struct wire_reader r = wire_reader_of(bytes, AGENT_FRAME_HEAD);
	unsigned reserved;

	h->type = wire_get_u8(&r);
	reserved = wire_get_u8(&r);
	reserved |= wire_get_u16(&r);
	h->len = wire_get_u32(&r);
	return reserved || h->len > AGENT_FRAME_MAX ? -EPROTO : 0;
}

static bool answer_fits(const struct eng_agent_head *h)
{
	switch (h->type) {
	case AGENT_OK:
		return h->len == 0;
	case AGENT_PROBED:
		return h->len == 22;
	case AGENT_ERROR:
		return h->len >= 4 && h->len <= ANSWER_MAX;
	default:
		return false;
	}
}

int eng_agent_parse_probed(const uint8_t *p, size_t len, struct eng_probe *out)
{
	struct wire_reader r = wire_reader_of(p, len);
	unsigned listening = wire_get_u8(&r), running = wire_get_u8(&r);

	out->listening = listening == 1;
	out->app_running = running == 1;
	out->app_exit = wire_get_u32(&r);
	out->app_cpu_us = wire_get_u64(&r);
	out->uptime_ms = wire_get_u64(&r);
	if (r.bad || wire_left(&r) || listening > 1 || running > 1)
		return -EPROTO;
	return 0;
}

int eng_agent_probed(const struct eng_agent_answer *a, struct eng_probe *out,
		     const char **why)
{
	*why = a->why;
	if (a->rc)
		return a->rc;
	*why = "a malformed answer";
	return a->type == AGENT_PROBED
		   ? eng_agent_parse_probed(a->payload, a->len, out)
		   : -EPROTO;
}

// What a guest calls an error, fit for our logs and API.
static int parse_error(const uint8_t *p, size_t len, char *text)
{
	struct wire_reader r = wire_reader_of(p, len);
	uint32_t code = wire_get_u32(&r);
	size_t n = MIN(wire_left(&r), (size_t)ERROR_TEXT_MAX - 1);

	for (size_t i = 0; i < n; i++) {
		uint8_t c = r.p[i];

		text[i] = c < 0x20 || c > 0x7e ? '?' : (char)c;
	}
	text[n] = '\0';
	return code >= 1 && code <= 4095 ? -(int)code : -EPROTO;
}

// --- one question, one answer -----------------------------------------------

struct eng_agent_call {
	int fd;
	bool want_fd, in_cb;
	struct eng_watch *watch;
	struct eng_timer *timer;
	uint8_t *opening;
	size_t len, off; // of the opening: bytes, and those sent
	uint8_t head[AGENT_FRAME_HEAD];
	size_t got; // of head and payload
	struct eng_agent_head h;
	uint8_t payload[ANSWER_MAX];
	char text[ERROR_TEXT_MAX];
	void (*cb)(void *ctx, const struct eng_agent_answer *a);
	void *ctx;
};

static void call_free(struct eng_agent_call *call)
{
	eng_watch_destroy(call->watch);
	eng_timer_destroy(call->timer);
	if (call->fd >= 0)
		close(call->fd);
	if (call->opening)
		explicit_bzero(call->opening, call->len); // a thaw's entropy
	free(call->opening);
	free(call);
}

void eng_agent_cancel(struct eng_agent_call *call)
{
	if (call && !call->in_cb)
		call_free(call);
}

static void done(struct eng_agent_call *call, int rc, const char *why)
{
	struct eng_agent_answer a = {.rc = rc, .why = why, .fd = -1};

	if (rc == 0) {
		a.type = call->h.type;
		a.payload = call->payload;
		a.len = call->h.len;
	}
	// Nothing more can come from this stream: the callback may hand the
	// descriptor to somebody who watches it.
	eng_watch_destroy(ptr_steal(call->watch));
	eng_timer_destroy(ptr_steal(call->timer));
	if (rc == 0 && call->want_fd)
		a.fd = fd_steal(&call->fd);
	fd_close(&call->fd);
	call->in_cb = true;
	call->cb(call->ctx, &a);
	call_free(call);
}

static void ended(struct eng_agent_call *call)
{
	done(call, -EPIPE,
	     "the guest ended the stream without an answer (no agent listens "
	     "yet, or the guest ended)");
}

static void answered(struct eng_agent_call *call)
{
	int rc;

	if (call->h.type != AGENT_ERROR) {
		done(call, 0, "");
		return;
	}
	rc = parse_error(call->payload, call->h.len, call->text);
	done(call, rc, call->text);
}

static void call_send(struct eng_agent_call *call)
{
	while (call->off < call->len) {
		ssize_t n = send(call->fd, call->opening + call->off,
				 call->len - call->off, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		// A refusal may be on its way: what was sent is read first.
		if (n < 0)
			call->off = call->len;
		else
			call->off += (size_t)n;
	}
	eng_watch_set(call->watch, ENG_READ);
}

static void call_recv(struct eng_agent_call *call)
{
	for (;;) {
		bool in_head = call->got < AGENT_FRAME_HEAD;
		size_t end = AGENT_FRAME_HEAD + (in_head ? 0 : call->h.len);
		uint8_t *to =
		    in_head ? call->head + call->got
			    : call->payload + call->got - AGENT_FRAME_HEAD;
		ssize_t n = recv(call->fd, to, end - call->got, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n <= 0) {
			ended(call);
			return;
		}
		call->got += (size_t)n;
		if (in_head && call->got == AGENT_FRAME_HEAD &&
		    (eng_agent_head(call->head, &call->h) < 0 ||
		     !answer_fits(&call->h))) {
			done(call, -EPROTO,
			     "the guest's answer is not one of the protocol");
			return;
		}
		if (call->got >= AGENT_FRAME_HEAD &&
		    call->got == AGENT_FRAME_HEAD + call->h.len) {
			answered(call);
			return;
		}
	}
}

static void call_ready(void *ctx, unsigned what)
{
	struct eng_agent_call *call = ctx;

	if (what & ENG_WRITE)
		call_send(call);
	if (what & ENG_READ)
		call_recv(call);
}

static void call_late(void *ctx)
{
	done(ctx, -ETIMEDOUT, "the guest's agent did not answer in time");
}

struct eng_agent_call *
eng_agent_call(struct eng_loop *l, int fd, const void *opening, size_t len,
	       uint64_t timeout_ms, bool want_fd,
	       void (*cb)(void *ctx, const struct eng_agent_answer *a),
	       void *ctx, struct err *e)
{
	struct eng_agent_call *call = calloc(1, sizeof(*call));

	if (call)
		call->opening = malloc(len ? len : 1);
	if (!call || !call->opening || fcntl(fd, F_SETFL, O_NONBLOCK) < 0) {
		err_set(e, -ENOMEM, "no memory to ask a guest's agent");
		close(fd);
		if (call)
			free(call->opening);
		free(call);
		return NULL;
	}
	memcpy(call->opening, opening, len);
	call->len = len;
	call->fd = fd;
	call->want_fd = want_fd;
	call->cb = cb;
	call->ctx = ctx;
	call->watch = eng_watch_create(l, fd, ENG_READ | ENG_WRITE, call_ready,
				       call, "agent answer");
	call->timer = eng_timer_create(l, call_late, call, "agent timeout");
	if (!call->watch || !call->timer) {
		err_set(e, -ENOMEM, "no memory to ask a guest's agent");
		call_free(call);
		return NULL;
	}
	eng_timer_set(call->timer, timeout_ms);
	return call;
}

// --- the log stream ---------------------------------------------------------

struct eng_agent_log {
	int fd;
	bool running, dead; // in a callback; closed by it
	struct eng_watch *watch;
	uint8_t opening[AGENT_FRAME_HEAD];
	size_t sent;
	uint8_t head[AGENT_FRAME_HEAD + 1]; // and the stream's number
	size_t got;
	uint32_t left; // of the frame at hand: bytes to come
	void (*bytes)(void *ctx, unsigned stream, const void *p, size_t n);
	void (*closed)(void *ctx);
	void *ctx;
};

static void log_free(struct eng_agent_log *lg)
{
	eng_watch_destroy(lg->watch);
	fd_close(&lg->fd);
	free(lg);
}

void eng_agent_log_close(struct eng_agent_log *lg)
{
	if (!lg)
		return;
	if (lg->running)
		lg->dead = true;
	else
		log_free(lg);
}

static void log_end(struct eng_agent_log *lg)
{
	lg->dead = true;
	eng_watch_destroy(ptr_steal(lg->watch));
	fd_close(&lg->fd);
	lg->closed(lg->ctx);
}

// Takes the head of a LOGDATA frame; false when it is none.
static bool log_head(struct eng_agent_log *lg)
{
	struct eng_agent_head h;

	if (eng_agent_head(lg->head, &h) < 0 || h.type != AGENT_LOGDATA ||
	    h.len < 1 || lg->head[AGENT_FRAME_HEAD] < 1 ||
	    lg->head[AGENT_FRAME_HEAD] > 3)
		return false;
	lg->left = h.len - 1;
	return true;
}

// Reads one piece: its length, 0 for "nothing now", or -errno at the end.
static ssize_t log_piece(struct eng_agent_log *lg)
{
	uint8_t buf[LOG_BUF];
	bool in_head = lg->got < sizeof(lg->head);
	void *to = in_head ? lg->head + lg->got : buf;
	size_t want =
	    in_head ? sizeof(lg->head) - lg->got : MIN(lg->left, sizeof(buf));
	ssize_t n = recv(lg->fd, to, want, 0);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n <= 0)
		return n < 0 ? -errno : -EPIPE;
	if (in_head) {
		lg->got += (size_t)n;
		if (lg->got == sizeof(lg->head) && !log_head(lg))
			return -EPROTO;
	} else {
		lg->left -= (uint32_t)n;
		lg->bytes(lg->ctx, lg->head[AGENT_FRAME_HEAD], buf, (size_t)n);
	}
	if (lg->got == sizeof(lg->head) && !lg->left)
		lg->got = 0; // the next frame's head
	return n;
}

static bool log_send(struct eng_agent_log *lg)
{
	ssize_t n = send(lg->fd, lg->opening + lg->sent,
			 sizeof(lg->opening) - lg->sent, MSG_NOSIGNAL);

	if (n < 0)
		return errno == EAGAIN || errno == EINTR;
	lg->sent += (size_t)n;
	if (lg->sent == sizeof(lg->opening))
		eng_watch_set(lg->watch, ENG_READ);
	return true;
}

static void log_ready(void *ctx, unsigned what)
{
	struct eng_agent_log *lg = ctx;
	size_t total = 0;
	ssize_t n = 0;

	lg->running = true;
	if (what & ENG_WRITE && !log_send(lg))
		n = -EPIPE;
	while (what & ENG_READ && n >= 0 && !lg->dead &&
	       total < LOG_TURN_BYTES) {
		n = log_piece(lg);
		if (n <= 0)
			break;
		total += (size_t)n;
	}
	if (n < 0 && !lg->dead)
		log_end(lg);
	lg->running = false;
	if (lg->dead)
		log_free(lg);
}

struct eng_agent_log *eng_agent_log_open(
    struct eng_loop *l, int fd,
    void (*bytes)(void *ctx, unsigned stream, const void *p, size_t n),
    void (*closed)(void *ctx), void *ctx, struct err *e)
{
	struct eng_agent_log *lg = calloc(1, sizeof(*lg));
	struct wire_writer w;

	if (!lg || fcntl(fd, F_SETFL, O_NONBLOCK) < 0) {
		err_set(e, -ENOMEM, "no memory for a guest's log stream");
		close(fd);
		free(lg);
		return NULL;
	}
	w = wire_writer_of(lg->opening, sizeof(lg->opening));
	eng_agent_put_log(&w);
	lg->fd = fd;
	lg->bytes = bytes;
	lg->closed = closed;
	lg->ctx = ctx;
	lg->watch = eng_watch_create(l, fd, ENG_READ | ENG_WRITE, log_ready, lg,
				     "agent log");
	if (!lg->watch) {
		err_set(e, -ENOMEM, "no memory for a guest's log stream");
		log_free(lg);
		return NULL;
	}
	return lg;
}
