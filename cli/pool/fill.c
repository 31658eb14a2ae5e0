// Which microVM is parked next, and when.
//
// What shall be is thawd's (GET /thaw/v1/pools); it is read anew after every
// event that may change it and after a refusal, and between those kept up to
// date from the events. A count that is wrong costs one refused request.
//
// Parking takes processor time from those who claim. So a pool that is more
// than half full waits until nobody has claimed from it for QUIET_NS.
//
// A refusal for memory, or a failure, puts a pool off for a while that doubles;
// a microVM that ends or is suspended makes room and ends the wait.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "pool.h"

#define QUIET_NS 20000000ull
#define BACKOFF_MIN_NS 500000000ull
#define BACKOFF_MAX_NS 60000000000ull

static const char *text_of(const json_t *o, const char *key)
{
	const char *s = json_string_value(json_object_get(o, key));

	return s ? s : "";
}

static struct pool *find(struct fill *f, const char *image)
{
	struct pool *p = f->pools;

	while (p && strcmp(p->image, image) != 0)
		p = p->next;
	return p;
}

// --- the pools as thawd has them ---------------------------------------------

static unsigned count_of(const json_t *o, const char *key)
{
	json_int_t n = json_integer_value(json_object_get(o, key));

	return n < 0 ? 0 : n > 1000000 ? 1000000 : (unsigned)n;
}

static void take(struct fill *f, const json_t *item)
{
	const char *image = text_of(item, "image");
	bool runs = *text_of(item, "imageVersion") != '\0';
	struct pool *p = find(f, image);

	if (!*image || strlen(image) >= sizeof(p->image))
		return;
	if (!p) {
		p = calloc(1, sizeof(*p));
		if (!p)
			return; // the next reading tries again
		strcpy(p->image, image);
		p->next = f->pools;
		f->pools = p;
	}
	p->seen = true;
	p->size = runs ? count_of(item, "size") : 0;
	p->parked = count_of(item, "parked");
	p->starting = count_of(item, "starting");
}

static void forget_unseen(struct fill *f)
{
	struct pool **at = &f->pools;

	while (*at) {
		struct pool *p = *at;

		if (p->seen) {
			at = &p->next;
			continue;
		}
		*at = p->next;
		free(p);
	}
}

static int read_pools(struct fill *f, struct err *e)
{
	json_t *j = NULL, *list, *item;
	size_t i;
	int rc = thawd_call(f->t, "GET", "/thaw/v1/pools", NULL, &j, e);

	if (rc < 0)
		return rc;
	list = json_object_get(j, "items");
	if (rc != 200 || !json_is_array(list)) {
		rc = err_set(e, -EPROTO, "thawd does not list its pools: %s",
			     text_of(j, "message"));
		json_decref(j);
		return rc;
	}
	for (struct pool *p = f->pools; p; p = p->next)
		p->seen = false;
	json_array_foreach(list, i, item) take(f, item);
	forget_unseen(f);
	json_decref(j);
	f->stale = false;
	return 0;
}

// --- events ------------------------------------------------------------------

static void room_was_made(struct fill *f)
{
	for (struct pool *p = f->pools; p; p = p->next)
		p->not_before_ns = p->backoff_ns = 0;
}

static void left_parked(struct fill *f, const json_t *ev)
{
	struct pool *p = find(f, text_of(ev, "image"));

	if (!p)
		return;
	if (p->parked)
		p->parked--;
	if (strcmp(text_of(ev, "reason"), "claimed") == 0)
		p->claimed_ns = util_now_ns();
	else
		f->stale = true; // given up: why, the pools tell
}

void fill_event(struct fill *f, const json_t *ev)
{
	const char *type = text_of(ev, "type"), *to = text_of(ev, "to");

	if (strncmp(type, "pool.", 5) == 0 || strncmp(type, "image.", 6) == 0)
		f->stale = true;
	if (strcmp(type, "microvm.state") != 0)
		return;
	if (strcmp(text_of(ev, "from"), "PARKED") == 0)
		left_parked(f, ev);
	else if (strcmp(to, "TERMINATED") == 0 || strcmp(to, "SUSPENDED") == 0)
		room_was_made(f);
}

// --- parking -----------------------------------------------------------------

static void put_off(struct pool *p, const json_t *answer, uint64_t now_ns)
{
	if (!p->backoff_ns)
		log_warn("%s: %s", p->image, text_of(answer, "message"));
	p->backoff_ns =
	    MIN(MAX(2 * p->backoff_ns, BACKOFF_MIN_NS), BACKOFF_MAX_NS);
	p->not_before_ns = now_ns + p->backoff_ns;
}

static int park_one(struct fill *f, struct pool *p, struct err *e)
{
	json_t *body =
	    json_pack("{s:s,s:b}", "imageIdentifier", p->image, "parked", 1);
	json_t *answer = NULL;
	int rc =
	    thawd_call(f->t, "POST", "/2025-09-09/microvms", body, &answer, e);

	json_decref(body);
	if (rc < 0)
		return rc;
	if (rc == 200) {
		if (strcmp(text_of(answer, "state"), "PARKED") == 0)
			p->parked++;
		else // slow: it is PENDING
			f->stale = true;
		p->backoff_ns = 0;
	} else if (rc == 409 || rc == 404) {
		f->stale = true; // full, or gone; put off in case it repeats
		p->not_before_ns = util_now_ns() + QUIET_NS;
	} else {
		put_off(p, answer, util_now_ns());
	}
	json_decref(answer);
	return 0;
}

// When one more is due for this pool; UINT64_MAX: not before an event.
static uint64_t due(const struct pool *p)
{
	unsigned have = p->parked + p->starting;
	uint64_t at = p->not_before_ns;

	if (have >= p->size)
		return UINT64_MAX;
	if (have * 2 > p->size)
		at = MAX(at, p->claimed_ns + QUIET_NS);
	return at;
}

int fill_step(struct fill *f, uint64_t now_ns, uint64_t *at_ns, struct err *e)
{
	struct pool *next = NULL, **at;
	int rc;

	*at_ns = UINT64_MAX;
	if (f->stale) {
		rc = read_pools(f, e);
		return rc ? rc : 1;
	}
	for (struct pool *p = f->pools; p; p = p->next) {
		*at_ns = MIN(*at_ns, due(p));
		// The emptiest first, by share.
		if (due(p) <= now_ns &&
		    (!next || (uint64_t)p->parked * next->size <
				  (uint64_t)next->parked * p->size))
			next = p;
	}
	if (!next)
		return 0;
	rc = park_one(f, next, e);
	if (rc)
		return rc;
	// To the end of the list, so that equals take turns.
	for (at = &f->pools; *at != next; at = &(*at)->next)
		;
	*at = next->next;
	while (*at)
		at = &(*at)->next;
	*at = next;
	next->next = NULL;
	return 1;
}

void fill_free(struct fill *f)
{
	while (f->pools) {
		struct pool *p = f->pools;

		f->pools = p->next;
		free(p);
	}
}
