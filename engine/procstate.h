// What the kernel says in /proc: of a process that is on its way out, and of the
// host's memory.
#ifndef THAW_ENG_PROCSTATE_H
#define THAW_ENG_PROCSTATE_H

#include "base.h"

// True when every thread of the process is past its last instruction in user
// mode (PF_EXITING, or gone): no guest code runs in it ever again, though the
// process may still be waiting inside its exit. False when that is not known.
bool eng_pid_exiting(pid_t pid);

// The process of a pidfd as this namespace numbers it, or -errno (-ESRCH: it was
// reaped).
pid_t eng_pidfd_pid(int pidfd);

// Bytes that could be had without swapping (MemAvailable), and all there are
// (`total` may be NULL). 0 when that is not known.
uint64_t eng_host_memory(uint64_t *total);

#endif
