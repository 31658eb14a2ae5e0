#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ag_lines.h"

int ag_lines_open(struct ag_lines *l, const char *path)
{
	struct stat st;

	l->len = l->pos = 0;
	l->eof = l->skipping = false;
	l->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (l->fd < 0)
		return -errno;
	if (fstat(l->fd, &st) < 0 || !S_ISREG(st.st_mode)) {
		ag_lines_close(l);
		return -EINVAL;
	}
	return 0;
}

static void fill(struct ag_lines *l)
{
	ssize_t n;

	memmove(l->buf, l->buf + l->pos, l->len - l->pos);
	l->len -= l->pos;
	l->pos = 0;
	do
		n = read(l->fd, l->buf + l->len, sizeof(l->buf) - 1 - l->len);
	while (n < 0 && errno == EINTR);
	if (n <= 0)
		l->eof = true;
	else
		l->len += (size_t)n;
}

char *ag_lines_next(struct ag_lines *l)
{
	for (;;) {
		char *line = l->buf + l->pos;
		char *nl = memchr(line, '\n', l->len - l->pos);
		bool skip = l->skipping;

		if (nl) {
			*nl = '\0';
			l->pos = (size_t)(nl - l->buf) + 1;
			l->skipping = false;
			if (!skip)
				return line;
		} else if (l->eof) {
			if (skip || l->pos == l->len)
				return NULL;
			l->buf[l->len] = '\0';
			l->pos = l->len;
			return line;
		} else if (l->pos == 0 && l->len == sizeof(l->buf) - 1) {
			l->len = 0; // too long: drop it up to its newline
			l->skipping = true;
		} else {
			fill(l);
		}
	}
}

void ag_lines_close(struct ag_lines *l)
{
	if (l->fd >= 0)
		close(l->fd);
	l->fd = -1;
}
