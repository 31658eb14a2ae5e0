// A split virtqueue, device side (virtio 1.2 section 2.7).
//
// Everything that the driver writes is hostile and can change at any moment:
//   - the three areas are translated and checked once, when the driver sets
//     DRIVER_OK (virtq_latch); what it programs later has no effect;
//   - each descriptor is read exactly once, into memory of ours, and judged
//     there; chains are bounded by VIRTQ_MAX_SEGS, also through an indirect
//     table;
//   - a rule that the driver breaks makes the queue `broken`: it yields
//     nothing more, and the transport sets DEVICE_NEEDS_RESET.
// Lengths and payloads stay in guest memory; a device that judges payload
// bytes copies them first (virtq_iov_read).
//
// Not thread-safe: the transport's lock guards it.
#ifndef THAW_VIRTQ_H
#define THAW_VIRTQ_H

#include "guestmem.h"

enum {
	VIRTQ_MAX_SIZE = 256, // entries of a ring, at most
	VIRTQ_MAX_SEGS = 128, // descriptors with bytes in a chain, at most
};

// What the driver programs, and what a saved state carries.
struct virtq_geom {
	uint32_t num; // entries, a power of two
	bool ready;
	uint64_t desc, avail, used; // guest-physical
};

struct virtq {
	struct virtq_geom geom;
	bool live;		  // latched, usable
	bool broken;		  // the driver broke a rule (only while live)
	bool indirect, event_idx; // negotiated features
	uint16_t last_avail;	  // next avail entry to take
	uint16_t used_idx;	  // next used entry to write
	uint16_t last_signalled;  // used_idx at the last interrupt decision
	const struct guestmem *gm;
	uint8_t *desc, *avail, *used; // host addresses, while live
};

// One taken chain. Its segments are iov[0..out_n) (the device reads) and
// iov[out_n..out_n+in_n) (the device writes) of the caller's array.
struct virtq_chain {
	uint16_t head;
	unsigned out_n, in_n;
	uint64_t out_len, in_len;
};

// Forgets everything (device reset).
void virtq_reset(struct virtq *q);

// Judges a geometry against a RAM size, without any memory: 0 or -EINVAL.
int virtq_geom_check(const struct virtq_geom *g, uint64_t mem_bytes);

// Makes a ready queue live. 0, or -EINVAL when its geometry is impossible.
int virtq_latch(struct virtq *q, const struct guestmem *gm, bool indirect,
		bool event_idx);

// Takes the next chain: 1 and *c, iov[0..max_iov) filled; 0 when there is none
// (or the queue is not live); -EPROTO when the driver broke a rule: the queue
// is then broken. `max_iov` is at least VIRTQ_MAX_SEGS. Empty segments are left
// out.
int virtq_pop(struct virtq *q, struct virtq_chain *c, struct iovec *iov,
	      unsigned max_iov);
// Puts the last `n` chains that were taken, and not pushed, back.
void virtq_unpop(struct virtq *q, unsigned n);
// Gives a chain back; `written` bytes at the start of its writable part are
// the device's.
void virtq_push(struct virtq *q, uint16_t head, uint32_t written);
// Whether the driver wants an interrupt for what was pushed since the last
// call.
bool virtq_should_signal(struct virtq *q);

// Asks the driver not to ring / to ring for the next chain. After enabling,
// true says that a chain is there already: the caller looks again.
void virtq_quiet(struct virtq *q);
bool virtq_listen(struct virtq *q);

// Copies `len` bytes at `off` of a scattered range; the number of bytes that
// were there.
size_t virtq_iov_read(const struct iovec *iov, unsigned n, size_t off,
		      void *dst, size_t len);
size_t virtq_iov_write(const struct iovec *iov, unsigned n, size_t off,
		       const void *src, size_t len);
// The part [off, off+len) of a scattered range as a scattered range in `out`
// (room for n entries); the number of entries. Stops at the end of the range.
unsigned virtq_iov_slice(const struct iovec *iov, unsigned n, size_t off,
			 size_t len, struct iovec *out);

#endif
