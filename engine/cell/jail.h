// The cell's jail, entered before anything hostile is looked at.
#ifndef THAW_CELL_JAIL_H
#define THAW_CELL_JAIL_H

#include "base.h"

struct jail_config {
	uid_t uid; // user and group of this cell alone
	// The namespaces to join are from here on, in the order of CP_FD_NS;
	// they and all later descriptors are closed.
	int first_closed;
	unsigned threads;  // at most so many, beside KVM's own
	uint64_t max_file; // bytes: RLIMIT_FSIZE
};

// From root to nobody in particular, nowhere: own user and group, no
// capabilities nor a way to get any, empty namespaces, an empty read-only root.
// Irreversible; on an error the process is half jailed and must exit.
int jail_enter(const struct jail_config *j, struct err *e);

// Its last part: the first filter of system calls (jail_filter.c).
int jail_filter(struct err *e);

// Before guest code runs: the final filter of system calls, for all threads
// (jail_final.c). Then there are no more threads, mappings of descriptors or limits.
// The vCPU-0 thread's; has an effect once. On an error the process must exit.
int jail_final(struct err *e);

// From within, before jail_final(): fewer threads from now on.
int jail_threads(unsigned threads, struct err *e);

#endif
