// Event streams.
//
// A cursor is given in the transaction that holds the state change, and an
// event is sent only when that transaction is durable, so what a reader has
// seen is never taken back, and `since` its last cursor gives exactly the rest,
// also from the next thawd.
//
// A stream is a position, never a queue: it copies from the newest events in
// memory, or from the database when it is further behind, until HIGH bytes wait
// in its socket, and goes on when they are gone. A reader that does not read
// costs those bytes and nothing else.
#include "events.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { HIGH = 128 * 1024, PAGE = 256, PER_TURN = 512 };

struct subscriber {
	struct subscriber *next, **link;
	struct eng_events *ev;
	struct http_stream *st;
	uint64_t at;   // cursor of the last event sent
	uint64_t upto; // without follow: the end
	bool follow, reading, closed;
	unsigned heartbeat_s;
	struct eng_timer *heartbeat, *again;
};

struct eng_events {
	struct eng_loop *loop;
	struct eng_reg *reg;
	struct subscriber *subs;
	unsigned n;
};

static void pump(struct subscriber *s);

static void sub_free(struct subscriber *s)
{
	*s->link = s->next;
	if (s->next)
		s->next->link = s->link;
	s->ev->n--;
	eng_timer_destroy(s->heartbeat);
	eng_timer_destroy(s->again);
	free(s);
}

static void sub_closed(void *ctx)
{
	struct subscriber *s = ctx;

	s->closed = true;
	if (!s->reading) // else the read's callback frees it
		sub_free(s);
}

static void send_line(struct subscriber *s, const char *text)
{
	char line[2048];
	size_t n = strlen(text);

	if (n + 1 < sizeof(line)) { // in one chunk
		memcpy(line, text, n);
		line[n] = '\n';
		http_stream_write(s->st, line, n + 1);
	} else {
		http_stream_write(s->st, text, n);
		http_stream_write(s->st, "\n", 1);
	}
}

static void page_read(void *ctx, const struct reg_events *got)
{
	struct subscriber *s = ctx;

	s->reading = false;
	if (s->closed) {
		sub_free(s);
		return;
	}
	if (!got->n || got->first != s->at + 1) {
		// Pruned while we were reading, or a corrupt row. Never skip
		// silently: the reader learns it from the early end.
		log_err("event %llu cannot be read from the registry",
			(unsigned long long)(s->at + 1));
		http_stream_end(s->st);
		return;
	}
	for (size_t i = 0; i < got->n; i++) {
		send_line(s, got->text[i]);
		s->at++;
	}
	pump(s);
}

static void pump(struct subscriber *s)
{
	uint64_t last = eng_reg_last_event(s->ev->reg);
	unsigned budget = PER_TURN;

	if (s->reading || s->closed)
		return;
	if (!s->follow)
		last = MIN(last, s->upto);
	while (s->at < last && http_stream_backlog(s->st) < HIGH) {
		const char *text = eng_reg_recent_event(s->ev->reg, s->at + 1);

		if (!text) {
			s->reading = true;
			eng_reg_read_events(s->ev->reg, s->at + 1,
					    MIN((uint64_t)PAGE, last - s->at),
					    page_read, s);
			return;
		}
		if (!budget--) {
			eng_timer_set(s->again, 0);
			return;
		}
		send_line(s, text);
		s->at++;
	}
	if (!s->follow && s->at >= last)
		http_stream_end(s->st);
}

static void sub_drained(void *ctx)
{
	pump(ctx);
}

static void pump_again(void *ctx)
{
	pump(ctx);
}

static void beat(void *ctx)
{
	struct subscriber *s = ctx;

	if (!http_stream_backlog(s->st))
		http_stream_json(s->st,
				 json_pack("{s:s}", "type", "heartbeat"));
	eng_timer_set(s->heartbeat, (uint64_t)s->heartbeat_s * 1000);
}

static void came(void *ctx)
{
	struct eng_events *ev = ctx;

	for (struct subscriber *s = ev->subs; s; s = s->next)
		pump(s);
}

void eng_events_stream(struct eng_events *ev, struct http_req *r,
		       uint64_t since, bool follow, unsigned heartbeat_s)
{
	static const struct http_stream_ops ops = {.closed = sub_closed,
						   .drained = sub_drained};
	struct subscriber *s = calloc(1, sizeof(*s));

	if (!s)
		abort();
	s->ev = ev;
	s->at = since;
	s->upto = eng_reg_last_event(ev->reg);
	s->follow = follow;
	s->heartbeat_s = heartbeat_s;
	s->next = ev->subs;
	s->link = &ev->subs;
	if (s->next)
		s->next->link = &s->next;
	ev->subs = s;
	ev->n++;
	s->again = eng_timer_create(ev->loop, pump_again, s, "events");
	s->heartbeat = eng_timer_create(ev->loop, beat, s, "events heartbeat");
	s->st = http_stream_take(r, &ops, s);
	if (!s->st) {
		sub_free(s);
		return;
	}
	http_stream_begin(s->st, "application/x-ndjson");
	if (follow && heartbeat_s)
		eng_timer_set(s->heartbeat, (uint64_t)heartbeat_s * 1000);
	pump(s);
}

int eng_events_create(struct eng_events **out, struct eng_loop *l,
		      struct eng_reg *reg, struct err *e)
{
	struct eng_events *ev = calloc(1, sizeof(*ev));

	if (!ev)
		return err_set(e, -ENOMEM, "make the event streams");
	ev->loop = l;
	ev->reg = reg;
	eng_reg_on_events(reg, came, ev);
	*out = ev;
	return 0;
}

void eng_events_destroy(struct eng_events *ev)
{
	if (!ev)
		return;
	eng_reg_on_events(ev->reg, NULL, NULL);
	free(ev);
}

unsigned eng_events_followers(const struct eng_events *ev)
{
	return ev->n;
}
