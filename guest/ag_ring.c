#include <stdio.h>
#include <string.h>

#include "ag_ring.h"
#include "util.h"

// A record is [stream u8][len u16][bytes], wrapped around the ring's end.
enum { HEAD = 3 };

static void copy_in(struct ag_ring *r, const void *p, size_t n)
{
	size_t at = (size_t)(r->tail % AG_RING_SIZE);
	size_t first = MIN(n, AG_RING_SIZE - at);

	memcpy(r->buf + at, p, first);
	memcpy(r->buf, (const uint8_t *)p + first, n - first);
	r->tail += n;
}

static void copy_out(const struct ag_ring *r, uint64_t pos, void *p, size_t n)
{
	size_t at = (size_t)(pos % AG_RING_SIZE);
	size_t first = MIN(n, AG_RING_SIZE - at);

	memcpy(p, r->buf + at, first);
	memcpy((uint8_t *)p + first, r->buf, n - first);
}

static size_t head_len(const struct ag_ring *r, unsigned *stream)
{
	uint8_t h[HEAD];

	copy_out(r, r->head, h, HEAD);
	*stream = h[0];
	return (size_t)h[1] | (size_t)h[2] << 8;
}

static void drop_oldest(struct ag_ring *r)
{
	unsigned stream;
	size_t n = head_len(r, &stream);

	// What was peeked is already on its way.
	if (r->peeked != r->head + 1)
		r->dropped += n;
	r->head += HEAD + n;
}

size_t ag_ring_room(const struct ag_ring *r)
{
	size_t left = AG_RING_SIZE - (size_t)(r->tail - r->head);

	left = left > HEAD ? left - HEAD : 0;
	return MIN(left, (size_t)AG_RECORD_MAX);
}

void ag_ring_put(struct ag_ring *r, unsigned stream, const void *p, size_t n)
{
	const uint8_t *from = p;

	while (n) {
		size_t part = MIN(n, (size_t)AG_RECORD_MAX);
		uint8_t h[HEAD] = {(uint8_t)stream, (uint8_t)part,
				   (uint8_t)(part >> 8)};

		while (ag_ring_room(r) < part)
			drop_oldest(r);
		copy_in(r, h, HEAD);
		copy_in(r, from, part);
		from += part;
		n -= part;
	}
}

bool ag_ring_empty(const struct ag_ring *r)
{
	return r->head == r->tail && !r->dropped;
}

size_t ag_ring_peek(struct ag_ring *r, unsigned *stream, void *dst)
{
	size_t n;

	r->telling = r->dropped != 0;
	if (r->telling) {
		*stream = AG_LOG_AGENT;
		n = (size_t)snprintf(dst, AG_RECORD_MAX,
				     "thaw-agent: %llu bytes of output were "
				     "dropped, nobody read them in time\n",
				     (unsigned long long)r->dropped);
		r->dropped = 0;
		return n;
	}
	if (r->head == r->tail)
		return 0;
	n = head_len(r, stream);
	copy_out(r, r->head + HEAD, dst, n);
	r->peeked = r->head + 1;
	return n;
}

void ag_ring_consume(struct ag_ring *r)
{
	unsigned stream;

	// It may have been dropped meanwhile; then it is gone already.
	if (!r->telling && r->peeked == r->head + 1 && r->head != r->tail)
		r->head += HEAD + head_len(r, &stream);
	r->peeked = 0;
	r->telling = false;
}

void ag_ring_unpeek(struct ag_ring *r)
{
	r->peeked = 0;
	r->telling = false;
}
