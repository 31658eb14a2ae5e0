// The log of one microVM: what its console and application wrote, in a file
// that is rotated at half its cap, and told to whoever follows it.
#ifndef THAW_ENG_VMLOG_H
#define THAW_ENG_VMLOG_H

#include "loop.h"

struct vmlog;
struct vmlog_follower;

enum { VMLOG_CAP = 4 * 1024 * 1024 }; // both files together

// Appends to DIR/ID.log; the older half is DIR/ID.log.1.
int vmlog_open(struct vmlog **out, struct eng_loop *l, const char *dir,
	       const char *id, struct err *e);
void vmlog_close(struct vmlog *lg); // NULL is fine; followers are told
void vmlog_write(struct vmlog *lg, const void *p, size_t n);
// Positions count the bytes of the log's life in this thawd; those below
// vmlog_start() are gone.
uint64_t vmlog_start(const struct vmlog *lg);
uint64_t vmlog_end(const struct vmlog *lg);
// Position at which the last `lines` lines begin.
uint64_t vmlog_tail(const struct vmlog *lg, unsigned lines);
// Up to `cap` bytes at *pos, which moves (also past bytes that are gone).
size_t vmlog_read(const struct vmlog *lg, uint64_t *pos, void *buf, size_t cap);
// cb(more): there is more to read; cb(false): the log was closed, the follower
// is gone.
struct vmlog_follower *
vmlog_follow(struct vmlog *lg, void (*cb)(void *ctx, bool more), void *ctx);
void vmlog_unfollow(struct vmlog_follower *f); // NULL is fine
void vmlog_remove(const char *dir, const char *id);

#endif
