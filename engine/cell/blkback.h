// The disk behind virtio-blk: a shared read-only template filled by thawd, and
// this microVM's own overlay of written blocks.
#ifndef THAW_CELL_BLKBACK_H
#define THAW_CELL_BLKBACK_H

#include "vmm.h"

struct blkback;

// Attaches a disk of `bytes` to `vm`. Consumes the descriptors on success;
// `sock` is borrowed. Before vmm_state_load() or vmm_boot().
int blk_attach(struct blkback **out, struct vmm *vm, uint64_t bytes,
	       int template_fd, int overlay_fd, int sock, struct err *e);

// Sends the extent requests that were collected. Device thread.
void blk_flush(struct blkback *b); // NULL is fine
// While set, requests are sent one by one instead of being collected: for
// vmm_pause(), which dispatches by itself.
void blk_eager(struct blkback *b, bool on); // NULL is fine

#endif
