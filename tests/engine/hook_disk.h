// See hook_disk.c.
#ifndef THAW_TESTS_HOOK_DISK_H
#define THAW_TESTS_HOOK_DISK_H

#include <stdbool.h>
#include <stdint.h>

// Content of a block: 0 zeroes, 1 the image's, 2 the suspended microVM's.
unsigned hook_disk_kind(uint32_t block, bool own);
void hook_disk_block(uint8_t *dst, uint32_t block, unsigned kind);

// how: "base", "own", or "bad" (reads only; errors are allowed, wrong bytes
// not). "disk ok, no errors", "disk ok, some errors", or what was wrong.
const char *hook_disk(uint64_t bytes, int template_fd, int overlay_fd,
		      const char *how);

#endif
