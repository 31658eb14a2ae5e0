// Console bytes on their way out: a ring that vCPU threads fill without ever
// blocking and the device thread empties. What does not fit is dropped and
// counted: a guest that shouts must not stop, nor make us hold its output.
//
// A guest writes its lines byte by byte, each an exit. The device thread is woken for
// the end of a line or a full ring's part, not for each byte, which it would write
// alone; what has no end of line follows a timer, LATE_NS after its first byte.
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

#include "vmm_internal.h"

enum { LATE_NS = 2000000, MANY = CONSOLE_RING / 16 };

void console_init(struct console *c, int fd, int wake_fd, int late_fd)
{
	*c = (struct console){.fd = fd, .wake = wake_fd, .late = late_fd};
	pthread_mutex_init(&c->lock, NULL);
}

void console_fini(struct console *c)
{
	free(c->ring);
	c->ring = NULL;
	pthread_mutex_destroy(&c->lock);
}

// With the lock.
static void wake_for(struct console *c, bool now)
{
	const struct itimerspec t = {.it_value.tv_nsec = LATE_NS};

	if (now && !c->woken) {
		c->woken = true;
		eventfd_write(c->wake, 1);
	} else if (!now && !c->woken && !c->timed) {
		c->timed = timerfd_settime(c->late, 0, &t, NULL) == 0;
		if (!c->timed)
			eventfd_write(c->wake, 1);
	}
}

void console_put(struct console *c, const uint8_t *p, size_t n)
{
	if (c->fd < 0)
		return;
	pthread_mutex_lock(&c->lock);
	if (!c->ring)
		c->ring = malloc(CONSOLE_RING);
	for (size_t i = 0; i < n; i++) {
		if (!c->ring || c->used == CONSOLE_RING) {
			c->dropped += n - i;
			break;
		}
		c->ring[(c->head + c->used++) % CONSOLE_RING] = p[i];
	}
	wake_for(c, memchr(p, '\n', n) || c->used >= MANY);
	pthread_mutex_unlock(&c->lock);
}

void console_timed(struct console *c)
{
	uint64_t n;

	pthread_mutex_lock(&c->lock);
	(void)!read(c->late, &n, sizeof(n));
	c->timed = false;
	pthread_mutex_unlock(&c->lock);
}

bool console_flush(struct console *c)
{
	bool left;

	pthread_mutex_lock(&c->lock);
	c->woken = false;
	while (c->used) {
		uint32_t run = MIN(c->used, CONSOLE_RING - c->head);
		ssize_t n = write(c->fd, c->ring + c->head, run);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			break;
		if (n <= 0) { // nobody listens any more
			c->dropped += c->used;
			c->used = 0;
			break;
		}
		c->head = (c->head + (uint32_t)n) % CONSOLE_RING;
		c->used -= (uint32_t)n;
	}
	left = c->used > 0;
	pthread_mutex_unlock(&c->lock);
	return left;
}
