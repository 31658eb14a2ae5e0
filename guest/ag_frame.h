// Frames: reading exactly one at a time from a stream, and queueing them for
// writing. What a host may send is bounded per type before anything is
// allocated for it.
#ifndef THAW_AG_FRAME_H
#define THAW_AG_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "agent_proto.h"

#define AG_HOSTNAME_MAX 64u
#define AG_ENTROPY_LEN 64u
#define AG_THAW_MIN (AG_ENTROPY_LEN + 8u + 16u + 4u)

void ag_head_put(uint8_t head[AGENT_FRAME_HEAD], unsigned type, uint32_t len);

// Splits and checks a head that the host sent: 0, or -EPROTO (unknown type, a
// type that only the agent sends, reserved bytes not zero, a length that this
// type cannot have).
int ag_head_get(const uint8_t head[AGENT_FRAME_HEAD], unsigned *type,
		uint32_t *len);

// Reads one frame, and never a byte more: after AGENT_CONNECT raw bytes follow.
// Zero-initialised. Usage: read(fd, ag_reader_next(&r, &want), want), then
// ag_reader_add() with what read() returned; on 1 use type, len and payload,
// then ag_reader_reset().
struct ag_reader {
	uint8_t head[AGENT_FRAME_HEAD];
	uint32_t got; // bytes of head and payload received
	unsigned type;
	uint32_t len;
	uint8_t *payload; // NULL while len is 0 or unknown
};
void *ag_reader_next(struct ag_reader *r, size_t *want);
// 1: complete; 0: more is needed; -EPROTO, -ENOMEM: end the conversation.
int ag_reader_add(struct ag_reader *r, size_t n);
void ag_reader_reset(struct ag_reader *r);

// Bytes on their way to the host.
struct ag_out {
	uint8_t *buf;
	size_t cap, off, len; // bytes [off, off + len) are still to be sent
};
int ag_out_init(struct ag_out *o, size_t cap); // 0 or -ENOMEM
void ag_out_fini(struct ag_out *o);
// Room for one frame's payload behind what is queued (0: not even a head).
size_t ag_out_room(struct ag_out *o);
// Where such a payload may be put; then ag_out_commit() makes it a frame.
uint8_t *ag_out_payload(struct ag_out *o);
void ag_out_commit(struct ag_out *o, unsigned type, size_t len);
// Both in one: 0, or -ENOBUFS.
int ag_out_frame(struct ag_out *o, unsigned type, const void *p, size_t len);
// Writes what the descriptor takes: 0 (o->len says what is left) or -errno.
int ag_out_flush(struct ag_out *o, int fd);

#endif
