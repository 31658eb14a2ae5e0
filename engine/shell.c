// A shell: a program with a terminal in the guest, and a client's WebSocket.
//
//   WAKING   the microVM is on its way to RUNNING
//   OPEN     `ws` (the front has the other end) and `agent` (an EXEC stream) are
//            joined: binary frames are what is typed, output goes back as binary
//            frames; a text {"type":"resize"} sets the size, others are ignored
//   CLOSING  our close frame is queued, and the agent's stream closed, which ends
//            the program; what the client still says is thrown away until it
//            closes too, or CLOSE_MS are over
//   DEAD     freed on a later turn
//
// Bytes wait in two queues of fixed size; a side is read only while the queues
// that this may fill have room for whatever a read can bring, so that neither a
// program that writes for ever nor a client that does not read costs memory.
// Guest and client are both hostile: frames of either are checked.
#include "shell.h"

#include "agent.h"
#include "wsframe.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

enum {
	READ_MAX = 16 * 1024, // bytes of one read
	QUEUE = 128 * 1024,
	// What a read from the client may queue: for the agent, a frame's head
	// for each byte of 7 that came; for the client, pongs, shorter than pings.
	TYPED_MAX = 2 * READ_MAX + 64,
	PONGS_MAX = READ_MAX + 512,
	// What a read from the agent may queue: a head for each frame of 8 or
	// more bytes that came, and the last words.
	OUTPUT_MAX = 2 * READ_MAX + 1024,
	WORDS_MAX = 256, // of an agent's EXIT or ERROR
	CLOSE_MS = 5000,
};

struct queue {
	uint8_t p[QUEUE];
	size_t at, n;
};

enum shell_state { SHELL_WAKING, SHELL_OPEN, SHELL_CLOSING, SHELL_DEAD };

struct shell {
	struct shell *next, **link;
	struct eng_shells *all;
	struct reg_vm *vm; // while WAKING
	enum shell_state state;
	struct vm_opening *waking;
	void (*cb)(void *ctx, int fd, const char *why);
	void *ctx;
	int ws, agent; // -1: closed
	struct eng_watch *ws_watch, *agent_watch;
	// CLOSING: it ends; DEAD: it is freed; WAKING: it is one too many.
	struct eng_timer *timer;
	bool ws_eof;
	struct queue to_ws, to_agent;
	struct ws_in in;
	// The agent's frame at hand.
	uint8_t head[AGENT_FRAME_HEAD], words[WORDS_MAX];
	size_t nhead, nwords;
	struct eng_agent_head frame;
};

struct eng_shells {
	struct eng_loop *loop;
	struct eng_vms *vms;
	struct shell *list;
	unsigned n;
};

// --- queues --------------------------------------------------------------------

static size_t room(const struct queue *q)
{
	return QUEUE - q->n;
}

static void put(struct queue *q, const void *p, size_t n)
{
	if (n > room(q))
		abort(); // a bug: whoever reads asks for room first
	if (q->at + q->n + n > QUEUE) {
		memmove(q->p, q->p + q->at, q->n);
		q->at = 0;
	}
	if (n)
		memcpy(q->p + q->at + q->n, p, n);
	q->n += n;
}

// -errno: nobody reads at the other end.
static int flush(struct queue *q, int fd)
{
	ssize_t n;

	while (q->n) {
		n = send(fd, q->p + q->at, q->n, MSG_NOSIGNAL);
		if (n < 0)
			return errno == EAGAIN || errno == EINTR ? 0 : -errno;
		q->at += (size_t)n;
		q->n -= (size_t)n;
	}
	q->at = 0;
	return 0;
}

// --- the end ----------------------------------------------------------------------

static void agent_close(struct shell *sh)
{
	eng_watch_destroy(ptr_steal(sh->agent_watch));
	fd_close(&sh->agent);
	sh->to_agent.n = 0;
}

// From now on nothing of it is used; freed when nobody's call is in it.
static void die(struct shell *sh)
{
	sh->state = SHELL_DEAD;
	agent_close(sh);
	eng_watch_destroy(ptr_steal(sh->ws_watch));
	fd_close(&sh->ws);
	eng_vm_open_cancel(ptr_steal(sh->waking));
	eng_timer_set(sh->timer, 0);
}

static void shell_free(struct shell *sh)
{
	*sh->link = sh->next;
	if (sh->next)
		sh->next->link = sh->link;
	sh->all->n--;
	agent_close(sh);
	eng_watch_destroy(sh->ws_watch);
	fd_close(&sh->ws);
	eng_vm_open_cancel(sh->waking);
	eng_timer_destroy(sh->timer);
	free(sh);
}

static void time_over(void *ctx)
{
	struct shell *sh = ctx;
	bool waking = sh->state == SHELL_WAKING;

	if (sh->state == SHELL_DEAD) {
		shell_free(sh);
		return;
	}
	die(sh); // the client did not close, or
	if (waking)
		sh->cb(sh->ctx, -EDQUOT,
		       "too many shells are open on this host");
}

static void put_frame(struct shell *sh, enum ws_op op, const void *p, size_t n)
{
	uint8_t head[WS_HEAD_MAX];

	put(&sh->to_ws, head, ws_head(head, op, n));
	put(&sh->to_ws, p, n);
}

static void put_close(struct shell *sh, unsigned code, const char *reason)
{
	uint8_t p[WS_CONTROL_MAX] = {(uint8_t)(code >> 8), (uint8_t)code};
	size_t n = MIN(strlen(reason), sizeof(p) - 2);

	memcpy(p + 2, reason, n);
	put_frame(sh, WS_CLOSE, p, 2 + n);
	agent_close(sh);
	sh->state = SHELL_CLOSING;
	eng_timer_set(sh->timer, CLOSE_MS);
}

// --- the guest ----------------------------------------------------------------------

static void put_agent(struct shell *sh, unsigned type, const void *p, size_t n)
{
	uint8_t head[AGENT_FRAME_HEAD];
	struct wire_writer w = wire_writer_of(head, sizeof(head));

	wire_put_u8(&w, (uint8_t)type);
	wire_put_u8(&w, 0);
	wire_put_u16(&w, 0);
	wire_put_u32(&w, (uint32_t)n);
	put(&sh->to_agent, head, sizeof(head));
	put(&sh->to_agent, p, n);
}

static void exited(struct shell *sh, unsigned code)
{
	char text[64];
	int n = snprintf(text, sizeof(text), "{\"type\":\"exit\",\"code\":%u}",
			 code & 0xff);

	put_frame(sh, WS_TEXT, text, (size_t)n);
	put_close(sh, WS_NORMAL, "shell exited");
}

// A guest's words are not UTF-8 because it says so.
static void not_started(struct shell *sh, const uint8_t *p, size_t n)
{
	char text[WS_CONTROL_MAX];
	int at = snprintf(text, sizeof(text), "the shell did not start: ");

	for (size_t i = 0; i < n && at < (int)sizeof(text) - 3; i++)
		text[at++] = p[i] < 0x20 || p[i] > 0x7e ? '?' : (char)p[i];
	text[at] = '\0';
	put_close(sh, WS_INTERNAL, text);
}

// A frame that is not output, whole.
static void last_words(struct shell *sh)
{
	struct wire_reader r = wire_reader_of(sh->words, sh->nwords);
	uint32_t code = wire_get_u32(&r);

	if (sh->frame.type == AGENT_EXIT && !r.bad)
		exited(sh, code);
	else if (sh->frame.type == AGENT_ERROR && !r.bad)
		not_started(sh, r.p, wire_left(&r));
	else
		put_close(sh, WS_INTERNAL,
			  "the guest's agent sent a bad frame");
}

static bool is_output(unsigned type)
{
	return type == AGENT_STDOUT || type == AGENT_STDERR;
}

static void agent_bytes(struct shell *sh, const uint8_t *p, size_t n)
{
	while (n && sh->state == SHELL_OPEN) {
		size_t some;

		if (sh->nhead < AGENT_FRAME_HEAD) {
			sh->head[sh->nhead++] = *p++;
			n--;
			if (sh->nhead < AGENT_FRAME_HEAD)
				continue;
			sh->nwords = 0;
			if (eng_agent_head(sh->head, &sh->frame) ||
			    (!is_output(sh->frame.type) &&
			     sh->frame.len > WORDS_MAX)) {
				last_words(sh); // none: a bad frame
				return;
			}
		}
		some = MIN(n, (size_t)sh->frame.len);
		if (!is_output(sh->frame.type)) {
			memcpy(sh->words + sh->nwords, p, some);
			sh->nwords += some;
		} else if (some) {
			put_frame(sh, WS_BINARY, p, some);
		}
		p += some;
		n -= some;
		sh->frame.len -= (uint32_t)some;
		if (sh->frame.len)
			continue;
		sh->nhead = 0;
		if (!is_output(sh->frame.type))
			last_words(sh);
	}
}

static void rearm(struct shell *sh);

static void on_agent(void *ctx, unsigned what)
{
	struct shell *sh = ctx;
	uint8_t buf[READ_MAX];
	ssize_t n;

	if ((what & ENG_WRITE) && flush(&sh->to_agent, sh->agent))
		sh->to_agent.n = 0; // its last words may still come
	if ((what & ENG_READ) && room(&sh->to_ws) >= OUTPUT_MAX + PONGS_MAX) {
		n = read(sh->agent, buf, sizeof(buf));
		if (n > 0)
			agent_bytes(sh, buf, (size_t)n);
		else if (!n || (errno != EAGAIN && errno != EINTR))
			put_close(sh, WS_GOING_AWAY,
				  "the microVM was suspended or has ended");
	}
	rearm(sh);
}

// --- the client ----------------------------------------------------------------------

static void resize(struct shell *sh, json_t *j)
{
	json_int_t rows = json_integer_value(json_object_get(j, "rows"));
	json_int_t cols = json_integer_value(json_object_get(j, "cols"));
	uint8_t p[4];
	struct wire_writer w = wire_writer_of(p, sizeof(p));

	if (rows < 1 || rows > 1000 || cols < 1 || cols > 1000)
		return;
	wire_put_u16(&w, (uint16_t)rows);
	wire_put_u16(&w, (uint16_t)cols);
	put_agent(sh, AGENT_RESIZE, p, sizeof(p));
}

// Unknown and malformed ones are ignored: never typed into the shell.
static void control_text(struct shell *sh, const struct ws_piece *t)
{
	json_t *text = json_stringn((const char *)t->p, t->n), *j;
	const char *type;

	if (!text) { // RFC 6455 8.1
		put_close(sh, WS_NOT_TEXT, "a text is not UTF-8");
		return;
	}
	json_decref(text);
	j = json_loadb((const char *)t->p, t->n, 0, NULL);
	type = json_string_value(json_object_get(j, "type"));
	if (type && strcmp(type, "resize") == 0)
		resize(sh, j);
	json_decref(j);
}

static void piece(struct shell *sh, const struct ws_piece *w)
{
	switch (w->op) {
	case WS_BINARY:
		put_agent(sh, AGENT_STDIN, w->p, w->n);
		break;
	case WS_TEXT:
		control_text(sh, w);
		break;
	case WS_PING:
		put_frame(sh, WS_PONG, w->p, w->n);
		break;
	case WS_CLOSE:
		put_close(sh, ws_close_code(w), "");
		sh->ws_eof = true; // it says no more
		break;
	default:
		break;
	}
}

static void client_bytes(struct shell *sh, uint8_t *p, size_t n)
{
	while (n) {
		struct ws_piece w;
		size_t took;
		int rc = ws_feed(&sh->in, p, n, &took, &w);

		p += took;
		n -= took;
		if (rc < 0 && sh->state == SHELL_OPEN)
			put_close(sh, (unsigned)-rc,
				  rc == -WS_TOO_BIG ? "a message is too large"
						    : "a frame is malformed");
		if (rc < 0)
			return;
		if (rc && sh->state == SHELL_OPEN)
			piece(sh, &w);
		else if (rc && w.op == WS_CLOSE)
			sh->ws_eof = true; // it answers ours
	}
}

static void on_ws(void *ctx, unsigned what)
{
	struct shell *sh = ctx;
	uint8_t buf[READ_MAX];
	ssize_t n;

	if ((what & ENG_WRITE) && flush(&sh->to_ws, sh->ws)) {
		die(sh);
		return;
	}
	if (what & ENG_READ) {
		n = read(sh->ws, buf, sizeof(buf));
		if (n > 0) {
			client_bytes(sh, buf, (size_t)n);
		} else if (!n || (errno != EAGAIN && errno != EINTR)) {
			die(sh);
			return;
		}
	}
	rearm(sh);
}

// What is watched follows from the queues.
static void rearm(struct shell *sh)
{
	bool closing = sh->state == SHELL_CLOSING;

	if (sh->state == SHELL_DEAD)
		return;
	if (closing && sh->ws_eof && !sh->to_ws.n) {
		die(sh);
		return;
	}
	eng_watch_set(sh->ws_watch,
		      (sh->to_ws.n ? ENG_WRITE : 0u) |
			  (closing || (room(&sh->to_agent) >= TYPED_MAX &&
				       room(&sh->to_ws) >= PONGS_MAX)
			       ? ENG_READ
			       : 0u));
	if (sh->agent_watch)
		eng_watch_set(sh->agent_watch,
			      (sh->to_agent.n ? ENG_WRITE : 0u) |
				  (room(&sh->to_ws) >= OUTPUT_MAX + PONGS_MAX
				       ? ENG_READ
				       : 0u));
}

// --- the beginning ----------------------------------------------------------------------

// The guest's own: bash where there is one. As root, like AWS's; with what the
// application has in its environment, in its folder.
static void put_exec(struct shell *sh)
{
	static const char *const argv[] = {
	    "/bin/sh", "-c",
	    "command -v bash >/dev/null 2>&1 && exec bash; exec sh", NULL};
	static const char *const env[] = {"TERM=xterm", NULL};
	struct eng_app_spec spec = {.argv = argv, .env = env, .user = "0"};
	uint8_t buf[512];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	eng_agent_put_exec(&w, &spec, true, 24, 80);
	put(&sh->to_agent, buf, w.len);
}

static void put_init(struct shell *sh)
{
	char uuid[REG_UUID_LEN + 1], text[128];
	int n;

	eng_reg_uuid(uuid);
	n = snprintf(text, sizeof(text),
		     "{\"type\":\"session_init\",\"session_id\":\"%s\"}", uuid);
	put_frame(sh, WS_TEXT, text, (size_t)n);
}

static int join(struct shell *sh, int *out, struct err *e)
{
	struct eng_cell *cell = eng_vm_cell(sh->vm);
	int sv[2], rc;

	if (!sh->vm->agent)
		return err_set(e, -ECONNREFUSED,
			       "its guest has no agent, and so no shell");
	if (!cell)
		return err_set(e, -EBUSY, "the microVM does not run");
	rc = eng_cell_connect(cell, AGENT_PORT, &sh->agent, e);
	if (rc)
		return rc;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0,
		       sv))
		return err_sys(e, "make a socket pair");
	sh->ws = sv[0];
	*out = sv[1];
	sh->ws_watch =
	    eng_watch_create(sh->all->loop, sh->ws, 0, on_ws, sh, "shell");
	sh->agent_watch = eng_watch_create(sh->all->loop, sh->agent, 0,
					   on_agent, sh, "shell's guest");
	if (sh->ws_watch && sh->agent_watch)
		return 0;
	fd_close(out);
	return err_set(e, -ENOMEM, "no memory for a shell");
}

static void awake(void *ctx, int rc, const char *why)
{
	struct shell *sh = ctx;
	struct err e = ERR_INIT;
	int fd = -1;

	sh->waking = NULL;
	if (!rc) {
		rc = join(sh, &fd, &e);
		why = e.msg;
	}
	sh->vm = NULL;
	if (rc) {
		die(sh);
		sh->cb(sh->ctx, rc, why);
		return;
	}
	sh->state = SHELL_OPEN;
	put_exec(sh);
	put_init(sh);
	rearm(sh);
	sh->cb(sh->ctx, fd, NULL);
}

struct shell *eng_shell_open(struct eng_shells *s, struct reg_vm *vm,
			     uint64_t timeout_ms,
			     void (*cb)(void *ctx, int fd, const char *why),
			     void *ctx)
{
	bool full = s->n >= SHELLS_MAX;
	struct shell *sh = calloc(1, sizeof(*sh));
	struct err e = ERR_INIT;

	if (!sh)
		return NULL;
	*sh = (struct shell){.all = s, .vm = vm, .cb = cb, .ctx = ctx};
	sh->ws = sh->agent = -1;
	sh->next = s->list;
	sh->link = &s->list;
	if (sh->next)
		sh->next->link = &sh->next;
	s->list = sh;
	s->n++;
	sh->timer = eng_timer_create(s->loop, time_over, sh, "shell end");
	if (sh->timer && full) {
		eng_timer_set(sh->timer, 0);
	} else if (!sh->timer || eng_vm_wake(s->vms, vm, timeout_ms, awake, sh,
					     &sh->waking, &e)) {
		shell_free(sh);
		return NULL;
	}
	return sh;
}

void eng_shell_cancel(struct shell *sh)
{
	if (sh)
		die(sh);
}

struct eng_shells *eng_shells_create(struct eng_loop *l, struct eng_vms *vms)
{
	struct eng_shells *s = calloc(1, sizeof(*s));

	if (s)
		*s = (struct eng_shells){.loop = l, .vms = vms};
	return s;
}

void eng_shells_destroy(struct eng_shells *s)
{
	while (s && s->list)
		shell_free(s->list);
	free(s);
}
