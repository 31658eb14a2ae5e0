// Which pages of another process's private mapping were written.
#ifndef THAW_ENG_PAGESCAN_H
#define THAW_ENG_PAGESCAN_H

#include "base.h"

struct pagescan_run {
	uint32_t pgno, npages; // relative to the scanned range
};
struct pagescan {
	struct pagescan_run *runs;
	size_t n, cap;
	uint64_t pages;
};

enum pagescan_how {
	PAGESCAN_BEST,	// the ioctl where the kernel has it
	PAGESCAN_IOCTL, // PAGEMAP_SCAN (Linux 6.7)
	PAGESCAN_READ,	// /proc/PID/pagemap, read as root
};

// Lists the written pages of [base, base+bytes): present or swapped, not of a
// file, not the zero page. `pagemap` is an open /proc/PID/pagemap. The memory
// must stand still. -ENOTTY: PAGESCAN_IOCTL on a kernel without it.
int pagescan_run(int pagemap, uint64_t base, uint64_t bytes,
		 enum pagescan_how how, struct pagescan *out, struct err *e);
// Lists the 4 KiB blocks of a sparse file of `bytes` that hold data.
int pagescan_file(int fd, uint64_t bytes, struct pagescan *out, struct err *e);
void pagescan_free(struct pagescan *s);

#endif
