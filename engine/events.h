// Streams of events to whoever asks: from the durable log, each once, in order.
#ifndef THAW_ENG_EVENTS_H
#define THAW_ENG_EVENTS_H

#include "http.h"
#include "registry.h"

struct eng_events;

int eng_events_create(struct eng_events **out, struct eng_loop *l,
		      struct eng_reg *reg, struct err *e);
void eng_events_destroy(struct eng_events *ev); // no streams are left
unsigned eng_events_followers(const struct eng_events *ev);

// Consumes the request and sends the events after cursor `since`, as JSON
// lines; with `follow` for ever, with a heartbeat line every so many seconds
// (0: none).
void eng_events_stream(struct eng_events *ev, struct http_req *r,
		       uint64_t since, bool follow, unsigned heartbeat_s);

#endif
