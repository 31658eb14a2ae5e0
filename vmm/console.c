// Console bytes on their way out: a ring that vCPU threads fill without ever
// blocking and the device thread empties. What does not fit is dropped and
// counted: a guest that shouts must not stop, nor make us hold its output.
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>

#include "vmm_internal.h"

void console_init(struct console *c, int fd, int wake_fd)
{
	*c = (struct console){.fd = fd, .wake = wake_fd};
	pthread_mutex_init(&c->lock, NULL);
}

void console_fini(struct console *c)
{
	free(c->ring);
	c->ring = NULL;
	pthread_mutex_destroy(&c->lock);
}

void console_put(struct console *c, const uint8_t *p, size_t n)
{
	bool first;

	if (c->fd < 0)
		return;
	pthread_mutex_lock(&c->lock);
	if (!c->ring)
		c->ring = malloc(CONSOLE_RING);
	first = c->used == 0;
	for (size_t i = 0; i < n; i++) {
		if (!c->ring || c->used == CONSOLE_RING) {
			c->dropped += n - i;
			break;
		}
		c->ring[(c->head + c->used++) % CONSOLE_RING] = p[i];
	}
	pthread_mutex_unlock(&c->lock);
	if (first)
		eventfd_write(c->wake, 1);
}

bool console_flush(struct console *c)
{
	bool left;

	pthread_mutex_lock(&c->lock);
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
