// Reads a text file line by line in constant memory. For the guest's files,
// which may be anything: lines that do not fit are skipped, NULs end a line's
// text.
#ifndef THAW_AG_LINES_H
#define THAW_AG_LINES_H

#include <stdbool.h>
#include <stddef.h>

struct ag_lines {
	int fd;
	size_t len, pos; // of buf: filled, consumed
	bool eof, skipping;
	char buf[16384];
};

// 0 or -errno. Only regular files and the kernel's own are opened (no FIFO can
// hold the caller).
int ag_lines_open(struct ag_lines *l, const char *path);
char *ag_lines_next(struct ag_lines *l); // without newline; NULL at the end
void ag_lines_close(struct ag_lines *l);

#endif
