// exec: a command in a guest, as a stream of the agent's frames after an
// upgrade, or collected into one answer.
//
// The connection is taken over at once, so that a client that goes away is
// noticed and its command is given up.
#include "api.h"
#include "jtext.h"

#include "agent.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define OUT_MAX (1024 * 1024) // of stdout and stderr each, without upgrade

struct exec {
	struct api *a;
	struct http_stream *st;
	struct vm_opening *opening; // of its microVM; NULL: it is awake
	struct reg_vm *vm;	    // until then
	json_t *body;		    // likewise
	char vm_id[REG_ID_LEN + 1];
	uint64_t moved_ns;
	int fd; // to the agent; -1 once handed over
	struct eng_watch *watch;
	struct eng_timer *timer;
	uint8_t *out; // opening and stdin, to be sent
	size_t out_len, out_at;
	uint8_t *in; // a frame coming in
	size_t in_len;
	struct {
		uint8_t *p;
		size_t n;
		bool truncated;
	} text[2]; // stdout, stderr
};

static void exec_stop(struct exec *x)
{
	eng_watch_destroy(x->watch);
	x->watch = NULL;
	eng_timer_stop(x->timer);
	fd_close(&x->fd); // the agent ends what it started
}

static void exec_closed(void *ctx)
{
	struct exec *x = ctx;

	exec_stop(x);
	eng_vm_open_cancel(x->opening);
	json_decref(x->body);
	eng_timer_destroy(x->timer);
	free(x->text[0].p);
	free(x->text[1].p);
	free(x->out);
	free(x->in);
	free(x);
}

static void exec_fail(struct exec *x, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static void exec_fail(struct exec *x, int code, const char *fmt, ...)
{
	struct err e = {.code = code};
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(e.msg, sizeof(e.msg), fmt, ap);
	va_end(ap);
	exec_stop(x);
	api_fail_stream(x->a, x->st, &e);
}

static void exec_timeout(void *ctx)
{
	exec_fail(ctx, -ETIMEDOUT, "the command did not end in time");
}

static void exec_keep(struct exec *x, unsigned which, const uint8_t *p,
		      size_t n)
{
	size_t room = OUT_MAX - x->text[which].n;

	if (n > room) {
		x->text[which].truncated = true;
		n = room;
	}
	if (!n)
		return;
	if (!x->text[which].p)
		x->text[which].p = malloc(OUT_MAX);
	if (!x->text[which].p)
		abort();
	memcpy(x->text[which].p + x->text[which].n, p, n);
	x->text[which].n += n;
}

static void exec_exit(struct exec *x, uint32_t code)
{
	json_t *j = json_pack(
	    "{s:i,s:o,s:o}", "exitCode", (int)(code & 0xff), "stdout",
	    api_bytes(x->text[0].p ? (char *)x->text[0].p : "", x->text[0].n),
	    "stderr",
	    api_bytes(x->text[1].p ? (char *)x->text[1].p : "", x->text[1].n));

	if (x->text[0].truncated || x->text[1].truncated)
		json_object_set_new(j, "truncated", json_true());
	exec_stop(x);
	http_stream_reply(x->st, 200, j);
}

// One whole frame; false when the conversation is over.
static bool exec_frame(struct exec *x, unsigned type, const uint8_t *p,
		       size_t n)
{
	struct wire_reader r = wire_reader_of(p, n);
	uint32_t code;

	switch (type) {
	case AGENT_STDOUT:
	case AGENT_STDERR:
		exec_keep(x, type == AGENT_STDERR, p, n);
		return true;
	case AGENT_EXIT:
		exec_exit(x, wire_get_u32(&r));
		return false;
	case AGENT_ERROR:
		code = wire_get_u32(&r);
		exec_fail(x, -EINVAL,
			  "the command could not be started: %.*s%s",
			  (int)MIN(wire_left(&r), (size_t)200),
			  (const char *)r.p, code ? "" : " (unknown)");
		return false;
	default:
		exec_fail(x, -EIO, "the guest's agent sent frame %u", type);
		return false;
	}
}

static void exec_frames(struct exec *x)
{
	size_t at = 0;

	while (x->in_len - at >= AGENT_FRAME_HEAD) {
		struct eng_agent_head h;

		if (eng_agent_head(x->in + at, &h)) {
			exec_fail(x, -EIO,
				  "the guest's agent sent a bad frame");
			return;
		}
		if (x->in_len - at < AGENT_FRAME_HEAD + h.len)
			break;
		if (!exec_frame(x, h.type, x->in + at + AGENT_FRAME_HEAD,
				h.len))
			return;
		at += AGENT_FRAME_HEAD + h.len;
	}
	x->in_len -= at;
	memmove(x->in, x->in + at, x->in_len);
}

static void exec_io(void *ctx, unsigned what)
{
	struct exec *x = ctx;
	ssize_t n;

	if (what & ENG_WRITE) {
		n = write(x->fd, x->out + x->out_at, x->out_len - x->out_at);
		if (n > 0)
			x->out_at += (size_t)n;
		else if (n < 0 && errno != EAGAIN && errno != EINTR)
			x->out_at = x->out_len; // its answer still comes
		if (x->out_at == x->out_len)
			eng_watch_set(x->watch, ENG_READ);
	}
	if (!(what & ENG_READ))
		return;
	n = read(x->fd, x->in + x->in_len,
		 AGENT_FRAME_MAX + AGENT_FRAME_HEAD - x->in_len);
	if (n > 0) {
		x->in_len += (size_t)n;
		exec_frames(x);
	} else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
		exec_fail(x, -EIO, "the guest's agent closed the stream");
	}
}

static const struct check_field exec_fields[] = {
    {"command", CHECK_STRINGS, true, 1, 1024},
    {"env", CHECK_ENV, false, 0, 256},
    {"user", CHECK_STRING, false, 0, 128},
    {"cwd", CHECK_STRING, false, 0, 4000},
    {"tty", CHECK_BOOL, false, 0, 0},
    {"rows", CHECK_INT, false, 1, 1000},
    {"cols", CHECK_INT, false, 1, 1000},
    {"stdin", CHECK_BYTES, false, 0, HTTP_MAX_BODY},
    {"timeoutSeconds", CHECK_INT, false, 1, 3600},
};

static json_int_t int_or(json_t *body, const char *key, json_int_t other)
{
	json_t *v = json_object_get(body, key);

	return v ? json_integer_value(v) : other;
}

static void put_stdin(struct wire_writer *w, const void *p, size_t n)
{
	wire_put_u8(w, AGENT_STDIN);
	wire_put_u8(w, 0);
	wire_put_u16(w, 0);
	wire_put_u32(w, (uint32_t)n);
	wire_put_bytes(w, p, n);
}

// The opening and, without an upgrade, all of stdin and its end.
static void encode(struct wire_writer *w, json_t *body, bool upgrade)
{
	cleanup_free const char **argv =
	    jt_texts(json_object_get(body, "command"));
	cleanup_free const char **env = jt_texts(json_object_get(body, "env"));
	json_t *in = json_object_get(body, "stdin");
	const char *p = json_string_value(in);
	size_t left = json_string_length(in);
	struct eng_app_spec spec = {
	    .argv = argv,
	    .env = env,
	    .user = json_string_value(json_object_get(body, "user")),
	    .cwd = json_string_value(json_object_get(body, "cwd")),
	};

	eng_agent_put_exec(w, &spec, json_is_true(json_object_get(body, "tty")),
			   (uint16_t)int_or(body, "rows", 24),
			   (uint16_t)int_or(body, "cols", 80));
	if (upgrade)
		return;
	while (left) {
		size_t n = MIN(left, (size_t)64 * 1024);

		put_stdin(w, p, n);
		p += n;
		left -= n;
	}
	put_stdin(w, NULL, 0);
}

static int exec_encode(struct exec *x, json_t *body, bool upgrade,
		       struct err *e)
{
	struct wire_writer w = wire_writer_of(NULL, 0);

	encode(&w, body, upgrade); // measures
	x->out = malloc(w.len);
	if (!x->out)
		abort();
	x->out_len = w.len;
	w = wire_writer_of(x->out, x->out_len);
	encode(&w, body, upgrade);
	if (w.bad)
		return err_set(e, -EINVAL, "the command is too long");
	return 0;
}

static void exec_upgrade(struct exec *x)
{
	ssize_t n = write(x->fd, x->out, x->out_len);

	// A fresh socket takes far more than an opening; if not, say so.
	if (n != (ssize_t)x->out_len) {
		exec_fail(x, -EIO, "the command does not fit the socket");
		return;
	}
	http_stream_relay(x->st, "thaw-exec", fd_steal(&x->fd), false);
}

static void exec_collect(struct exec *x, json_t *body)
{
	x->in = malloc(AGENT_FRAME_MAX + AGENT_FRAME_HEAD);
	if (!x->in)
		abort();
	eng_timer_set(x->timer,
		      (uint64_t)int_or(body, "timeoutSeconds", 60) * 1000);
	x->watch = eng_watch_create(x->a->loop, x->fd, ENG_READ | ENG_WRITE,
				    exec_io, x, "exec");
	if (!x->watch)
		abort();
}

static void exec_moved(void *ctx)
{
	struct exec *x = ctx;

	api_guest_traffic(x->a, x->vm_id, &x->moved_ns);
}

// The microVM runs, or never will.
static void exec_awake(void *ctx, int rc, const char *why)
{
	struct exec *x = ctx;
	bool upgrade = http_stream_req(x->st)->upgrade[0];
	struct eng_cell *cell;
	struct err e = ERR_INIT;

	x->opening = NULL;
	if (rc) {
		exec_fail(x, api_reach_error(rc), "%s",
			  why ? why : err_name(rc));
		return;
	}
	cell = eng_vm_cell(x->vm);
	rc = exec_encode(x, x->body, upgrade, &e);
	if (!rc)
		rc = eng_cell_connect(cell, AGENT_PORT, &x->fd, &e);
	if (rc)
		exec_fail(x, e.code ? e.code : rc, "%s", e.msg);
	else if (upgrade)
		exec_upgrade(x);
	else
		exec_collect(x, x->body);
}

static void exec_start(struct api *a, struct http_req *r, struct reg_vm *vm,
		       json_t *body)
{
	static const struct http_stream_ops ops = {.closed = exec_closed,
						   .moved = exec_moved};
	struct exec *x = calloc(1, sizeof(*x));
	struct err e = ERR_INIT;

	if (!x)
		abort();
	x->a = a;
	x->vm = vm;
	strcpy(x->vm_id, vm->id);
	x->body = json_incref(body);
	x->fd = -1;
	x->timer = eng_timer_create(a->loop, exec_timeout, x, "exec timeout");
	x->st = http_stream_take(r, &ops, x);
	if (!x->st) {
		exec_closed(x);
		return;
	}
	if (eng_vm_wake(a->vms, vm, API_REACH_MS, exec_awake, x, &x->opening,
			&e))
		exec_fail(x, e.code, "%s", e.msg);
}

void api_exec(struct api *a, struct http_req *r)
{
	struct err e = ERR_INIT;
	struct reg_vm *vm;
	json_t *body = shape_body(r->body, r->body_len, &e);
	int rc = body ? check_object(body, "", exec_fields,
				     ARRAY_SIZE(exec_fields), &e)
		      : -EINVAL;

	if (!rc && r->upgrade[0] && strcmp(r->upgrade, "thaw-exec"))
		rc = err_set(&e, -EINVAL,
			     "Upgrade must be thaw-exec here, or absent");
	if (!rc && !r->upgrade[0] && json_is_true(json_object_get(body, "tty")))
		rc = err_set(&e, -EINVAL, "tty needs Upgrade: thaw-exec");
	if (!rc && r->upgrade[0] && json_object_get(body, "stdin"))
		rc = err_set(&e, -EINVAL,
			     "stdin is sent as frames after the upgrade");
	if (rc)
		api_fail(a, r, &e, NULL, NULL);
	else if ((vm = api_guest_of(a, r)))
		exec_start(a, r, vm, body);
	json_decref(body);
}
