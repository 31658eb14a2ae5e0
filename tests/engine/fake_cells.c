// A FAKE of cells.h, for tests only: thawd's API, lifecycle, registry and
// events without KVM. "Cells" are timers; snapshots are real ones of the store,
// a page long; the "agent" answers every opening. Linked ahead of thaw_engine,
// so that the linker takes these functions and leaves the real ones out.
//
// A guest without an agent obeys words in its mailbox (or runHookPayload), one with
// an agent those that a command is given as input:
//   print TEXT   console output        poweroff, reset, crash, memory: it ends
//   stuck        the next capture fails, the guest runs on
//   held FIFO    the next capture waits until somebody opens it for writing
//   kept FIFO    so does its end, when the snapshot is published
//   nostart, never  (payload) the thaw fails, or never ends
// One with an agent has an echo behind each of its ports; with FAKE_BRIDGE in the
// environment, port N of this host (fake_bridge.c). A command with a terminal is
// a fake shell, see there.
#include "fake_cells.h"

#include "agent_proto.h"
#include "cells.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

struct fake_hooks fake_hooks;
struct fake_agent fake_agent;

struct fake_conn {
	struct fake_conn *next;
	struct eng_cell *cell;
	struct eng_watch *watch;
	int fd;
	unsigned opening; // 0: none yet
	unsigned port;	  // of AGENT_CONNECT
	bool shell;	  // of AGENT_EXEC: with a terminal
	struct fake_bridge *bridge;
	uint8_t buf[AGENT_FRAME_MAX + AGENT_FRAME_HEAD];
	size_t len;
	uint8_t *out; // frames that wait for room
	size_t nout;
};

struct eng_cell {
	struct eng_cell *next;
	struct eng_cells *cells;
	struct eng_cell_events ev;
	void *ctx;
	struct eng_timer *timer;
	enum { STARTING, RUNNING, ENDING } state;
	bool booted, has_parent, nostart, stuck, capturing, parking, parked;
	struct pgc_id parent;
	char *held, *kept;
	enum eng_end why;
	struct eng_cell_times t;
	struct fake_conn *conns;
	struct fake_capture *cap;
	char *payload; // obeyed once it runs
};

struct eng_cells {
	struct eng_loop *loop;
	struct eng_jobs *jobs;
	struct pgc_store *store;
	struct eng_cell *list;
	unsigned shells, blanks;
};

struct fake_capture {
	struct eng_cell *cell; // NULL: it ended meanwhile
	struct eng_cells *cells;
	struct eng_capture_req req;
	struct pgc_id parent;
	char *config;
	void (*done)(void *ctx, int rc, const char *why,
		     const struct eng_capture_stats *st);
	void *ctx;
	int rc;
	struct err e;
	char *held, *kept;
	bool stuck;
};

// --- life --------------------------------------------------------------------

static void conn_free(struct fake_conn *c)
{
	struct fake_conn **p = &c->cell->conns;

	while (*p != c)
		p = &(*p)->next;
	*p = c->next;
	eng_watch_destroy(c->watch);
	fake_bridge_free(c->bridge);
	close(c->fd);
	free(c->out);
	free(c);
}

static void bridge_ended(void *ctx)
{
	conn_free(ctx);
}

static void cell_gone(struct eng_cell *c)
{
	struct eng_cell **p = &c->cells->list;

	while (*p != c)
		p = &(*p)->next;
	*p = c->next;
	while (c->conns)
		conn_free(c->conns);
	if (c->cap)
		c->cap->cell = NULL;
	c->ev.gone(c->ctx, c->why, "fake");
	eng_timer_destroy(c->timer);
	free(c->payload);
	free(c->held);
	free(c->kept);
	free(c);
}

static void cell_end(struct eng_cell *c, enum eng_end why)
{
	if (c->state == ENDING)
		return;
	c->state = ENDING;
	c->why = why;
	eng_timer_set(c->timer, 1);
}

static void take_fifo(char **to, const char *path)
{
	free(*to);
	*to = strdup(path);
}

static void obey(struct eng_cell *c, char *line)
{
	char *arg = strchr(line, ' ');

	if (arg)
		*arg++ = '\0';
	if (!strcmp(line, "print") && arg)
		c->ev.console(c->ctx, arg, strlen(arg));
	if (!strcmp(line, "print"))
		c->ev.console(c->ctx, "\n", 1);
	else if (!strcmp(line, "poweroff"))
		cell_end(c, ENG_END_POWEROFF);
	else if (!strcmp(line, "reset"))
		cell_end(c, ENG_END_RESET);
	else if (!strcmp(line, "crash"))
		cell_end(c, ENG_END_CRASHED);
	else if (!strcmp(line, "memory"))
		cell_end(c, ENG_END_MEMORY);
	else if (!strcmp(line, "stuck"))
		c->stuck = true;
	else if (!strcmp(line, "held") && arg)
		take_fifo(&c->held, arg);
	else if (!strcmp(line, "kept") && arg)
		take_fifo(&c->kept, arg);
	else if (!strcmp(line, "nostart"))
		c->nostart = true;
}

static void obey_all(struct eng_cell *c, const void *p, size_t n)
{
	char *text = strndup(p, n), *save = text, *line;

	while ((line = strsep(&save, "\n")))
		obey(c, line);
	free(text);
}

static void cell_timer(void *ctx)
{
	struct eng_cell *c = ctx;

	if (c->state == ENDING) {
		cell_gone(c);
		return;
	}
	if (c->state == RUNNING) { // it parks, or is told its payload
		if (c->parking) {
			c->parking = false;
			c->ev.parked(c->ctx, 0, "");
		} else if (c->payload) {
			obey_all(c, c->payload, strlen(c->payload));
		}
		return;
	}
	if (c->nostart) {
		cell_end(c, ENG_END_START);
		return;
	}
	c->state = RUNNING;
	c->t.handed = c->t.mapped = c->t.loaded = c->t.first_exit =
	    util_now_ns();
	if (c->ev.started)
		c->ev.started(c->ctx, &c->t);
	if (c->payload)
		obey_all(c, c->payload, strlen(c->payload));
	if (c->booted && c->ev.vsock_up)
		c->ev.vsock_up(c->ctx);
	if (c->booted && c->ev.ready)
		c->ev.ready(c->ctx);
}

static struct eng_cell *cell_new(struct eng_cells *cells,
				 const struct eng_cell_events *ev, void *ctx,
				 uint64_t t0)
{
	struct eng_cell *c = calloc(1, sizeof(*c));

	c->cells = cells;
	c->ev = *ev;
	c->ctx = ctx;
	c->t.t0 = t0;
	c->next = cells->list;
	cells->list = c;
	c->timer = eng_timer_create(cells->loop, cell_timer, c, "fake cell");
	eng_timer_set(c->timer, 1);
	return c;
}

int eng_cells_create(struct eng_cells **out, struct eng_loop *l,
		     struct eng_jobs *j, struct pgc_store *s,
		     const struct eng_cells_config *cfg, struct err *e)
{
	struct eng_cells *c = calloc(1, sizeof(*c));

	(void)e;
	log_warn("FAKE CELLS: this is a test program, no guest runs");
	c->loop = l;
	c->jobs = j;
	c->store = s;
	c->shells = cfg->shells;
	c->blanks = cfg->blanks;
	*out = c;
	return 0;
}

void eng_cells_destroy(struct eng_cells *c)
{
	while (c->list) {
		c->list->why = ENG_END_KILLED;
		cell_gone(c->list);
	}
	free(c);
}

void eng_cells_want(struct eng_cells *c, uint32_t mem_mib, unsigned vcpus)
{
	(void)c;
	(void)mem_mib;
	(void)vcpus;
}

unsigned eng_cells_ready(const struct eng_cells *c)
{
	return c->shells;
}

unsigned eng_cells_blanks_ready(const struct eng_cells *c)
{
	return c->blanks;
}

unsigned eng_cells_prepared_ready(const struct eng_cells *c)
{
	(void)c;
	return 0;
}

unsigned eng_cells_prepared_of(const struct eng_cells *c,
			       const struct pgc_id *snap)
{
	(void)c;
	(void)snap;
	return 0;
}

// --- starting ---------------------------------------------------------------

int eng_cell_boot(struct eng_cells *c, const struct eng_boot_req *req,
		  const struct eng_cell_events *ev, void *ctx,
		  struct eng_cell **out, struct err *e)
{
	(void)e;
	*out = cell_new(c, ev, ctx, req->t0);
	(*out)->booted = true;
	return 0;
}

int eng_cell_thaw(struct eng_cells *c, const struct eng_thaw_req *req,
		  const struct eng_cell_events *ev, void *ctx,
		  struct eng_cell **out, struct err *e)
{
	struct pgc_snap *sn;
	int rc = pgc_snap_open(c->store, req->has_own ? &req->own : &req->base,
			       &sn, e);

	if (rc)
		return rc;
	pgc_snap_unref(sn);
	*out = cell_new(c, ev, ctx, req->t0);
	(*out)->has_parent = true;
	(*out)->parent = req->base;
	// Nothing may be called back from within: only notes are taken.
	if (req->mailbox && req->mailbox_len >= 7 &&
	    !memcmp(req->mailbox, "nostart", 7))
		(*out)->nostart = true;
	if (req->mailbox && req->mailbox_len == 5 &&
	    !memcmp(req->mailbox, "never", 5))
		eng_timer_stop((*out)->timer);
	if (req->mailbox_len)
		(*out)->payload = strndup(req->mailbox, req->mailbox_len);
	return 0;
}

int eng_cell_mailbox(struct eng_cell *cell, const void *bytes, size_t n,
		     struct err *e)
{
	(void)e;
	obey_all(cell, bytes, n);
	return 0;
}

// --- capture ----------------------------------------------------------------

// Returns when somebody opens it for writing.
static void meet(const char *fifo)
{
	int fd = fifo ? open(fifo, O_RDONLY | O_CLOEXEC) : -1;

	if (fd >= 0)
		close(fd);
}

int fake_snapshot(struct pgc_store *store, const struct pgc_id *id,
		  const struct pgc_id *parent, const char *config,
		  struct err *e)
{
	static const uint8_t page[PGC_PAGE] = "fake";
	const uint64_t npages[PGC_NUM_STREAMS] = {1, 0};
	struct pgc_builder *b;
	int rc = pgc_builder_begin(store, id, parent, npages, &b, e);

	if (rc)
		return rc;
	rc = pgc_builder_put(b, PGC_MEM, 0, page, 1, e);
	if (!rc && config)
		rc = pgc_builder_blob(b, "config", config, strlen(config), e);
	if (!rc)
		return pgc_builder_commit(b, e);
	pgc_builder_abort(b);
	return rc;
}

static void capture_work(void *ctx)
{
	struct fake_capture *k = ctx;

	meet(k->held);
	if (k->stuck) {
		k->rc = err_set(&k->e, -EIO, "the fake guest is stuck");
		return;
	}
	k->rc =
	    fake_snapshot(k->cells->store, &k->req.id,
			  k->req.image ? NULL : &k->parent, k->config, &k->e);
	meet(k->kept);
}

static void capture_done(void *ctx)
{
	struct fake_capture *k = ctx;
	struct eng_cell *c = k->cell;
	struct eng_capture_stats st = {1000000, 2000000, 1, 0};

	if (c) {
		c->cap = NULL;
		k->done(k->ctx, k->rc, k->rc ? k->e.msg : NULL, &st);
		if (!k->rc && !k->req.keep_running)
			cell_end(c, ENG_END_KILLED);
	}
	free(k->config);
	free(k->held);
	free(k->kept);
	free(k);
}

int eng_cell_capture(struct eng_cell *cell, const struct eng_capture_req *req,
		     void (*done)(void *ctx, int rc, const char *why,
				  const struct eng_capture_stats *st),
		     void *ctx, struct err *e)
{
	struct fake_capture *k;

	if (cell->cap)
		return err_set(e, -EBUSY, "one capture at a time");
	k = calloc(1, sizeof(*k));
	k->cell = cell;
	k->cells = cell->cells;
	k->req = *req;
	k->parent = cell->parent;
	k->config = req->config ? strdup(req->config) : NULL;
	k->done = done;
	k->ctx = ctx;
	k->stuck = cell->stuck;
	k->held = cell->held;
	k->kept = cell->kept;
	cell->stuck = false;
	cell->held = cell->kept = NULL;
	cell->cap = k;
	eng_job_run(cell->cells->jobs, capture_work, capture_done, k);
	return 0;
}

// --- parking -----------------------------------------------------------------

int eng_cell_park(struct eng_cell *cell, struct err *e)
{
	if (cell->state != RUNNING || cell->parked)
		return err_set(e, -ENOTCONN, "the fake guest does not run");
	cell->parked = cell->parking = true;
	eng_timer_set(cell->timer, 1);
	return 0;
}

bool eng_cell_is_parked(const struct eng_cell *cell)
{
	return cell->state == RUNNING && cell->parked;
}

int eng_cell_unpark(struct eng_cell *cell, const void *mailbox, size_t len,
		    struct err *e)
{
	if (cell->state != RUNNING || !cell->parked)
		return err_set(e, -ENOTCONN, "the fake guest is not parked");
	cell->parked = false;
	if (len) { // obeyed on a later turn: nothing is called from within
		cell->payload = strndup(mailbox, len);
		eng_timer_set(cell->timer, 1);
	}
	return 0;
}

void eng_cell_kill(struct eng_cell *cell)
{
	cell_end(cell, ENG_END_KILLED);
}

// --- the fake agent ---------------------------------------------------------

// What the other end has no room for waits; what it does not want is dropped.
static void send_out(struct fake_conn *c)
{
	ssize_t n = send(c->fd, c->out, c->nout, MSG_NOSIGNAL);

	if (n < 0 && errno != EAGAIN && errno != EINTR) {
		log_warn("fake agent: the other end does not read");
		n = (ssize_t)c->nout;
	}
	if (n > 0) {
		c->nout -= (size_t)n;
		memmove(c->out, c->out + n, c->nout);
	}
	eng_watch_set(c->watch, c->nout ? ENG_READ | ENG_WRITE : ENG_READ);
}

static void frame(struct fake_conn *c, unsigned type, const void *p, size_t n)
{
	uint8_t buf[64 * 1024 + AGENT_FRAME_HEAD];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	wire_put_u8(&w, (uint8_t)type);
	wire_put_u8(&w, 0);
	wire_put_u16(&w, 0);
	wire_put_u32(&w, (uint32_t)n);
	wire_put_bytes(&w, p, n);
	if (w.bad)
		return;
	c->out = realloc(c->out, c->nout + w.len);
	memcpy(c->out + c->nout, buf, w.len);
	c->nout += w.len;
	send_out(c);
}

static void connect_to(struct fake_conn *c, const uint8_t *p, size_t n)
{
	static const char refused[] = {111, 0, 0, 0, 'n', 'o', 'n', 'e'};
	struct wire_reader r = wire_reader_of(p, n);

	c->port = wire_get_u16(&r);
	if (c->port == fake_hooks.port && fake_hooks.refuses) {
		c->opening = AGENT_PROBE; // no stream
		frame(c, AGENT_ERROR, refused, sizeof(refused));
	} else if (c->port != fake_hooks.port && getenv("FAKE_BRIDGE")) {
		c->bridge = fake_bridge_create(c->cell->cells->loop, c->fd,
					       c->port, bridge_ended, c);
		if (!c->bridge)
			c->opening = AGENT_PROBE;
		frame(c, c->bridge ? AGENT_OK : AGENT_ERROR,
		      c->bridge ? NULL : refused,
		      c->bridge ? 0 : sizeof(refused));
	} else {
		frame(c, AGENT_OK, NULL, 0);
	}
}

// Says what it is told, and obeys lines: "size" is answered with the terminal's,
// "exit N" and the end of input end it, "flood N" writes N (at most 64) kilobytes.
static void shell(struct fake_conn *c, unsigned type, const uint8_t *p,
		  size_t n)
{
	uint8_t code[4] = {0};
	char text[64 * 1024];

	if (type == AGENT_RESIZE && n == 4) {
		snprintf(text, sizeof(text), "size %u %u\r\n",
			 p[0] | (unsigned)p[1] << 8,
			 p[2] | (unsigned)p[3] << 8);
		frame(c, AGENT_STDOUT, text, strlen(text));
	} else if (type == AGENT_STDIN && n >= 7 && !memcmp(p, "exit ", 5)) {
		code[0] = (uint8_t)atoi((const char *)p + 5);
		frame(c, AGENT_EXIT, code, 4);
	} else if (type == AGENT_STDIN && n >= 8 && !memcmp(p, "flood ", 6)) {
		n = MIN((size_t)atoi((const char *)p + 6), (size_t)64) * 1024;
		memset(text, 'x', n);
		frame(c, AGENT_STDOUT, text, n);
	} else if (type == AGENT_STDIN && n) {
		frame(c, AGENT_STDOUT, p, n);
	} else if (type == AGENT_STDIN) {
		frame(c, AGENT_EXIT, code, 4);
	}
}

// Notes what the agent hears; true: that it did not like it.
static bool hear(unsigned type, const uint8_t *p, size_t n)
{
	static const char letters[] = {
	    [AGENT_START] = 'S',    [AGENT_FREEZE] = 'F', [AGENT_THAW] = 'T',
	    [AGENT_UNFREEZE] = 'U', [AGENT_RENEW] = 'R',  [AGENT_ROLE] = 'C'};
	size_t at = strlen(fake_agent.heard);

	if (type < sizeof(letters) && letters[type] &&
	    at + 1 < sizeof(fake_agent.heard))
		fake_agent.heard[at] = letters[type];
	if (type == AGENT_START && n >= 4)
		memcpy(&fake_agent.start_flags, p, 4);
	if (type == AGENT_ROLE && n <= sizeof(fake_agent.role)) {
		memcpy(fake_agent.role, p, n);
		fake_agent.role_len = n;
	}
	return (type == AGENT_ROLE && fake_agent.old) ||
	       (type == AGENT_FREEZE && fake_agent.stuck);
}

static void answer(struct fake_conn *c, unsigned type, const uint8_t *p,
		   size_t n)
{
	static const uint8_t unknown[] = {EPROTO, 0, 0, 0, 'n', 'o'};
	uint8_t probed[22] = {1, 1};
	uint8_t zero[4] = {0};

	if (c->opening == AGENT_EXEC && c->shell) {
		shell(c, type, p, n);
		return;
	}
	if (c->opening == AGENT_EXEC && type == AGENT_STDIN) {
		if (n) {
			obey_all(c->cell, p, n);
			frame(c, AGENT_STDOUT, p, n); // a fake cat
		} else {
			frame(c, AGENT_EXIT, zero, 4);
		}
		return;
	}
	c->opening = type;
	switch (type) {
	case AGENT_CONNECT:
		connect_to(c, p, n);
		break;
	case AGENT_LOG:
		frame(c, AGENT_LOGDATA, "\1fake application\n", 18);
		break;
	case AGENT_PROBE:
		frame(c, AGENT_PROBED, probed, sizeof(probed));
		break;
	case AGENT_EXEC:
		c->shell =
		    n && (p[0] & AGENT_EXEC_PTY) && getenv("FAKE_BRIDGE");
		frame(c, AGENT_STDERR, "fake exec\n", 10);
		break;
	default:
		if (hear(type, p, n))
			frame(c, AGENT_ERROR, unknown, sizeof(unknown));
		else
			frame(c, AGENT_OK, NULL, 0);
		break;
	}
	if (type == AGENT_POWEROFF)
		cell_end(c->cell, ENG_END_POWEROFF);
}

static void frames(struct fake_conn *c)
{
	size_t at = 0;

	while (c->len - at >= AGENT_FRAME_HEAD) {
		struct wire_reader r =
		    wire_reader_of(c->buf + at, AGENT_FRAME_HEAD);
		unsigned type = wire_get_u8(&r);
		size_t len;

		wire_get_u8(&r);
		wire_get_u16(&r);
		len = wire_get_u32(&r);
		if (c->len - at < AGENT_FRAME_HEAD + len)
			break;
		answer(c, type, c->buf + at + AGENT_FRAME_HEAD, len);
		at += AGENT_FRAME_HEAD + len;
		if (c->opening == AGENT_CONNECT)
			break;
	}
	c->len -= at;
	memmove(c->buf, c->buf + at, c->len);
}

// A fake echo server, which reads on when what it has is sent, or nobody wants it.
static void echo(struct fake_conn *c)
{
	ssize_t n = c->len ? send(c->fd, c->buf, c->len, MSG_NOSIGNAL) : 0;

	if (n < 0 && errno != EAGAIN && errno != EINTR)
		n = (ssize_t)c->len;
	if (n > 0) {
		c->len -= (size_t)n;
		memmove(c->buf, c->buf + n, c->len);
	}
	eng_watch_set(c->watch, c->len ? ENG_WRITE : ENG_READ);
}

// Answers a whole request to the hooks' port; false: it is not, yet or at all.
static bool hook(struct fake_conn *c)
{
	size_t head, body;
	char *end, *len;

	c->buf[MIN(c->len, sizeof(c->buf) - 1)] = '\0';
	end = strstr((char *)c->buf, "\r\n\r\n");
	len = strstr((char *)c->buf, "Content-Length: ");
	if (!end || !len)
		return false;
	head = (size_t)(end + 4 - (char *)c->buf);
	body = (size_t)atoi(len + 16);
	if (c->len < head + body)
		return false;
	sscanf((char *)c->buf, "POST %127s", fake_hooks.path);
	snprintf(fake_hooks.body, sizeof(fake_hooks.body), "%s", end + 4);
	fake_hooks.asked++;
	c->len = 0;
	if (fake_hooks.answer && fake_hooks.answer[0] &&
	    send(c->fd, fake_hooks.answer, strlen(fake_hooks.answer),
		 MSG_NOSIGNAL) < 0)
		log_warn("fake hooks: the caller is gone");
	return fake_hooks.answer;
}

static void conn_io(void *ctx, unsigned what)
{
	struct fake_conn *c = ctx;
	ssize_t n;

	if (c->nout)
		send_out(c);
	if (what & ENG_READ) {
		n = read(c->fd, c->buf + c->len, sizeof(c->buf) - c->len);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n <= 0) {
			conn_free(c);
			return;
		}
		c->len += (size_t)n;
	}
	if (c->opening != AGENT_CONNECT)
		frames(c);
	if (c->bridge) {
		eng_watch_destroy(ptr_steal(c->watch));
		fake_bridge_start(c->bridge, c->buf, c->len);
	} else if (c->opening == AGENT_CONNECT && c->port == fake_hooks.port) {
		if (hook(c))
			conn_free(c);
	} else if (c->opening == AGENT_CONNECT) {
		echo(c);
	}
}

int eng_cell_connect(struct eng_cell *cell, uint32_t port, int *fd,
		     struct err *e)
{
	struct fake_conn *c;
	int sv[2];

	(void)port;
	if (cell->state != RUNNING)
		return err_set(e, -ENOTCONN, "the fake guest does not run");
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0,
		       sv))
		return err_sys(e, "make a socket pair");
	c = calloc(1, sizeof(*c));
	c->cell = cell;
	c->fd = sv[1];
	c->next = cell->conns;
	cell->conns = c;
	c->watch = eng_watch_create(cell->cells->loop, c->fd, ENG_READ, conn_io,
				    c, "fake agent");
	*fd = sv[0];
	return 0;
}

// --- the rest ---------------------------------------------------------------

pid_t eng_cell_pid(const struct eng_cell *cell)
{
	(void)cell;
	return getpid();
}

void eng_cell_get_times(const struct eng_cell *cell, struct eng_cell_times *t)
{
	(void)cell;
	memset(t, 0, sizeof(*t));
}

void eng_cell_usage(const struct eng_cell *cell, struct eng_cell_usage *out)
{
	(void)cell;
	memset(out, 0, sizeof(*out));
}

size_t eng_cell_recorded(const struct eng_cell *cell, const uint32_t **pgnos)
{
	(void)cell;
	*pgnos = NULL;
	return 0;
}

uint64_t eng_template_bytes(const struct eng_cells *c, const struct pgc_id *id)
{
	(void)c;
	(void)id;
	return 0;
}

void eng_template_release(struct eng_cells *c, const struct pgc_id *id)
{
	(void)c;
	(void)id;
}

void eng_template_get_stats(const struct eng_cells *c,
			    struct eng_template_stats *out)
{
	(void)c;
	*out = (struct eng_template_stats){.budget = 1};
}

void eng_template_drop(struct eng_cells *c, const struct pgc_id *id)
{
	(void)c;
	(void)id;
}
