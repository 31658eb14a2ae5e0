// A throw-away copy is sent one request, `GET PATH`, on the port at which its
// image is ready, so that what answering takes is recorded as well. What comes
// back is read and dropped: any answer will do, and so will none. The guest is
// hostile: it gets a few seconds, and no more than MOST bytes are taken from it.
//
// The end is the first of: the stream's end; QUIET_MS without a byte after
// there were some (a server that keeps connections open, or no HTTP server);
// ASK_MS in all.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "build_internal.h"

enum { ASK_MS = 10000, QUIET_MS = 300, MOST = 4 << 20, PIECE = 16384 };

struct build_ask {
	int fd;
	struct eng_watch *watch;
	struct eng_timer *quiet, *late;
	size_t got;
	void (*done)(void *ctx, size_t got);
	void *ctx;
};

void build_ask_cancel(struct build_ask *q)
{
	if (!q)
		return;
	eng_watch_destroy(q->watch);
	eng_timer_destroy(q->quiet);
	eng_timer_destroy(q->late);
	fd_close(&q->fd);
	free(q);
}

static void over(void *ctx)
{
	struct build_ask *q = ctx;
	void (*done)(void *, size_t) = q->done;
	void *up = q->ctx;
	size_t got = q->got;

	build_ask_cancel(q);
	done(up, got);
}

static void readable(void *ctx, unsigned what)
{
	struct build_ask *q = ctx;
	char buf[PIECE];
	ssize_t n = recv(q->fd, buf, sizeof(buf), 0);

	(void)what;
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n > 0)
		q->got += (size_t)n;
	if (n <= 0 || q->got >= MOST)
		over(q);
	else
		eng_timer_set(q->quiet, QUIET_MS);
}

int build_ask_start(struct build_ask **out, struct eng_loop *loop, int fd,
		    const char *path, void (*done)(void *ctx, size_t got),
		    void *ctx)
{
	struct build_ask *q = calloc(1, sizeof(*q));
	char text[BUILD_PATH_MAX + 100];
	int n = snprintf(text, sizeof(text),
			 "GET %s HTTP/1.0\r\nHost: localhost\r\n"
			 "User-Agent: thaw-build\r\nConnection: close\r\n\r\n",
			 path);

	if (!q || n >= (int)sizeof(text) ||
	    fcntl(fd, F_SETFL, O_NONBLOCK) < 0) {
		close(fd);
		free(q);
		return -ENOMEM;
	}
	*q = (struct build_ask){.fd = fd, .done = done, .ctx = ctx};
	q->watch = eng_watch_create(loop, fd, ENG_READ, readable, q,
				    "recording's answer");
	q->quiet = eng_timer_create(loop, over, q, "recording's quiet");
	q->late = eng_timer_create(loop, over, q, "recording's end");
	// A new stream takes so few bytes at once; if not, nobody answers.
	if (!q->watch || !q->quiet || !q->late ||
	    send(fd, text, (size_t)n, MSG_NOSIGNAL) != n) {
		build_ask_cancel(q);
		return -EIO;
	}
	eng_timer_set(q->late, ASK_MS);
	*out = q;
	return 0;
}
