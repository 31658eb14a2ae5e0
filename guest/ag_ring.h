// The application's last output, while nobody reads it: records of up to 4 KiB
// in a ring of fixed size. When it is full the oldest records go, and the
// reader is told how many bytes are missing.
#ifndef THAW_AG_RING_H
#define THAW_AG_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { AG_RING_SIZE = 65536, AG_RECORD_MAX = 4096 };
enum { AG_LOG_STDOUT = 1, AG_LOG_STDERR = 2, AG_LOG_AGENT = 3 };

struct ag_ring {
	uint64_t head, tail; // stream positions: oldest byte, next byte
	uint64_t peeked;     // head + 1 of the record last peeked, or 0
	uint64_t dropped;    // bytes lost since the reader was last told
	bool telling;	     // the last peek gave the note about lost bytes
	uint8_t buf[AG_RING_SIZE];
};

void ag_ring_put(struct ag_ring *r, unsigned stream, const void *p, size_t n);
// Bytes that fit in one record now without dropping anything.
size_t ag_ring_room(const struct ag_ring *r);
bool ag_ring_empty(const struct ag_ring *r);
// Copies the oldest record to `dst` (AG_RECORD_MAX bytes) and returns its
// length, 0 when there is none. It stays until ag_ring_consume().
size_t ag_ring_peek(struct ag_ring *r, unsigned *stream, void *dst);
void ag_ring_consume(struct ag_ring *r);
// The reader went away before it had what was peeked.
void ag_ring_unpeek(struct ag_ring *r);

#endif
