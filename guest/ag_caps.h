// What root may in an application that did not ask for more.
#ifndef THAW_AG_CAPS_H
#define THAW_AG_CAPS_H

#include <stdint.h>

// The capabilities of a container without further ado (Docker's, and what AWS
// gives), one bit each: 1 << CAP_*.
extern const uint64_t ag_caps_default;

// Takes all others from the calling process' bounding set: from its next exec on
// neither it nor a descendant can have them, set-uid programs and files with
// capabilities included. Needs CAP_SETPCAP. 0 or -errno.
int ag_caps_limit(void);

#endif
