// The ports of a fake guest are this host's.
#include "fake_cells.h"

#include "loop.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>

struct way { // from end[i] to end[!i]
	uint8_t buf[256 * 1024];
	size_t n;
	bool eof, done;
};

struct fake_bridge {
	int end[2]; // the engine's, the host's
	struct eng_watch *watch[2];
	struct eng_timer *over;
	struct way way[2];
	void (*ended)(void *ctx);
	void *ctx;
};

static int dial(unsigned port)
{
	struct sockaddr_in sa = {.sin_family = AF_INET,
				 .sin_port = htons((uint16_t)port)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (fd >= 0 && connect(fd, (struct sockaddr *)&sa, sizeof(sa)))
		fd_close(&fd);
	if (fd >= 0)
		fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	return fd;
}

static void move(struct fake_bridge *b, int i)
{
	struct way *w = &b->way[i];
	ssize_t n;

	if (!w->n && !w->eof) {
		n = read(b->end[i], w->buf, sizeof(w->buf));
		w->eof = !n || (n < 0 && errno != EAGAIN && errno != EINTR);
		w->n = n > 0 ? (size_t)n : 0;
	}
	if (w->n) {
		n = send(b->end[!i], w->buf, w->n, MSG_NOSIGNAL);
		if (n < 0 && errno != EAGAIN && errno != EINTR) {
			w->n = 0;
			w->eof = true;
		} else if (n > 0) {
			w->n -= (size_t)n;
			memmove(w->buf, w->buf + n, w->n);
		}
	}
	if (w->eof && !w->n && !w->done) {
		w->done = true;
		shutdown(b->end[!i], SHUT_WR);
	}
}

static void turn(void *ctx, unsigned what)
{
	struct fake_bridge *b = ctx;

	(void)what;
	move(b, 0);
	move(b, 1);
	for (int i = 0; i < 2; i++) {
		bool more = !b->way[i].n && !b->way[i].eof;

		eng_watch_set(b->watch[i], (more ? ENG_READ : 0u) |
					       (b->way[!i].n ? ENG_WRITE : 0u));
	}
	if (b->way[0].done && b->way[1].done)
		eng_timer_set(b->over, 0);
}

static void over(void *ctx)
{
	struct fake_bridge *b = ctx;

	b->ended(b->ctx);
}

struct fake_bridge *fake_bridge_create(struct eng_loop *l, int fd,
				       unsigned port, void (*ended)(void *ctx),
				       void *ctx)
{
	struct fake_bridge *b = calloc(1, sizeof(*b));

	if (!b)
		abort();
	b->end[0] = fd;
	b->end[1] = dial(port);
	if (b->end[1] < 0) {
		free(b);
		return NULL;
	}
	b->ended = ended;
	b->ctx = ctx;
	b->over = eng_timer_create(l, over, b, "fake bridge");
	b->watch[1] = eng_watch_create(l, b->end[1], 0, turn, b, "fake bridge");
	b->watch[0] = eng_watch_create(l, fd, 0, turn, b, "fake bridge");
	return b;
}

void fake_bridge_start(struct fake_bridge *b, const void *early, size_t n)
{
	memcpy(b->way[0].buf, early, MIN(n, sizeof(b->way[0].buf)));
	b->way[0].n = n;
	turn(b, 0);
}

void fake_bridge_free(struct fake_bridge *b)
{
	if (!b)
		return;
	eng_watch_destroy(b->watch[0]);
	eng_watch_destroy(b->watch[1]);
	eng_timer_destroy(b->over);
	close(b->end[1]);
	free(b);
}
