// How much free memory is taken, to be zeroed, before an image is captured. The
// theory is in ag_compact.c.
#ifndef THAW_AG_COMPACT_H
#define THAW_AG_COMPACT_H

#include <stdbool.h>
#include <stdint.h>

enum {				    // bytes
	AG_COMPACT_STEP = 32 << 20, // taken at once; a multiple of a huge page
	AG_COMPACT_CPU_STEP =
	    2 << 20, // of small pages: more than a CPU's list holds
	AG_COMPACT_MOST = 512 << 20, // of a guest that has more than that free
	AG_COMPACT_KEEP = 1 << 20,   // stays free above the watermarks
};

// How many bytes are to be taken next; 0: it is enough. first: what was spare in the
// beginning; small: for a CPU's own list; spare: now; taken: so far.
uint64_t ag_compact_next(uint64_t first, bool small, uint64_t spare,
			 uint64_t taken);

#endif
