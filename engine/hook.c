// A hook's call. States, each with its one way out:
//
//   asking    the request is being written       -> answering, over
//   answering an answer's head is being read     -> lingering, over
//   lingering the status was told; what else the application writes is read and
//             dropped, so that it is not killed by a pipe that broke -> over
//
// `over` frees the handle. Between told and over nobody has the handle any more:
// that is why cancelling ends with the call of cb.
#include "hook.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

enum { LINGER_MAX = 1 << 20 };

struct eng_hook {
	struct eng_loop *loop;
	int fd;
	struct eng_watch *watch;
	struct eng_timer *timer;
	char *text; // the request
	size_t len, sent;
	char head[HOOK_HEAD_MAX];
	size_t have, dropped;
	bool told;
	void (*cb)(void *ctx, int status, const char *why);
	void *ctx;
};

int eng_hook_status(const char *head, size_t n)
{
	static const char version[] = "HTTP/1.";
	const char *end;
	int status;

	if (memcmp(head, version, MIN(n, sizeof(version) - 1)))
		return -EPROTO;
	end = memmem(head, n, "\r\n\r\n", 4);
	if (!end)
		return n < HOOK_HEAD_MAX ? 0 : -EPROTO;
	// "HTTP/1.1 200", and a space or the line's end.
	if (end - head < 12 || (head[7] != '0' && head[7] != '1') ||
	    head[8] != ' ' || (head[12] != ' ' && head[12] != '\r'))
		return -EPROTO;
	status = 0;
	for (unsigned i = 9; i < 12; i++) {
		if (head[i] < '0' || head[i] > '9')
			return -EPROTO;
		status = status * 10 + (head[i] - '0');
	}
	return status >= 100 && status < 600 ? status : -EPROTO;
}

static void over(struct eng_hook *h)
{
	eng_watch_destroy(h->watch);
	eng_timer_destroy(h->timer);
	fd_close(&h->fd);
	free(h->text);
	free(h);
}

static void tell(struct eng_hook *h, int status, const char *why)
{
	h->told = true;
	h->cb(h->ctx, status, why);
	if (status < 0) {
		over(h);
		return;
	}
	eng_watch_set(h->watch, ENG_READ);
	eng_timer_set(h->timer, HOOK_LINGER_MS);
}

static void on_time(void *ctx)
{
	struct eng_hook *h = ctx;

	if (h->told)
		over(h);
	else
		tell(h, -ETIMEDOUT, "it did not answer in time");
}

// What follows an interim answer (1xx) is the answer.
static int drop_interim(struct eng_hook *h)
{
	int status;

	while ((status = eng_hook_status(h->head, h->have)) >= 100 &&
	       status < 200) {
		char *end = memmem(h->head, h->have, "\r\n\r\n", 4);
		size_t n = (size_t)(end + 4 - h->head);

		h->have -= n;
		memmove(h->head, h->head + n, h->have);
	}
	return status;
}

static void answer(struct eng_hook *h)
{
	ssize_t n = recv(h->fd, h->head + h->have, sizeof(h->head) - h->have,
			 MSG_DONTWAIT);
	int status;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		tell(h, -EPIPE, "it closed the connection without an answer");
		return;
	}
	h->have += (size_t)n;
	status = drop_interim(h);
	if (status == -EPROTO)
		tell(h, status, "what it answered is not HTTP");
	else if (status)
		tell(h, status, "");
}

static void linger(struct eng_hook *h)
{
	ssize_t n = recv(h->fd, h->head, sizeof(h->head), MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	h->dropped += n > 0 ? (size_t)n : 0;
	if (n <= 0 || h->dropped > LINGER_MAX)
		over(h);
}

static void ask_more(struct eng_hook *h)
{
	ssize_t n = send(h->fd, h->text + h->sent, h->len - h->sent,
			 MSG_DONTWAIT | MSG_NOSIGNAL);

	if (n > 0)
		h->sent += (size_t)n;
	else if (n < 0 && errno != EAGAIN && errno != EINTR)
		h->sent = h->len; // its answer, if any, says more
	if (h->sent == h->len)
		eng_watch_set(h->watch, ENG_READ);
}

static void on_fd(void *ctx, unsigned what)
{
	struct eng_hook *h = ctx;

	if (h->told)
		linger(h);
	else if (what & ENG_READ)
		answer(h); // it may come before all was written
	else
		ask_more(h);
}

int eng_hook_call(struct eng_hook **out, struct eng_loop *l, int fd,
		  const struct hook_ask *ask,
		  void (*cb)(void *ctx, int status, const char *why), void *ctx,
		  struct err *e)
{
	struct eng_hook *h = calloc(1, sizeof(*h));
	int len;

	if (!h) {
		close(fd);
		return err_set(e, -ENOMEM, "call the hook %s: no memory",
			       ask->name);
	}
	*h = (struct eng_hook){.loop = l, .fd = fd, .cb = cb, .ctx = ctx};
	len = asprintf(&h->text,
		       "POST " HOOK_PATH "%s HTTP/1.1\r\n"
		       "Host: localhost:%u\r\n"
		       "Content-Type: application/json\r\n"
		       "Content-Length: %zu\r\n"
		       "Connection: close\r\n\r\n%s",
		       ask->name, ask->port, strlen(ask->body), ask->body);
	if (len < 0)
		h->text = NULL;
	h->len = len < 0 ? 0 : (size_t)len;
	h->watch =
	    eng_watch_create(l, fd, ENG_READ | ENG_WRITE, on_fd, h, "hook");
	h->timer = eng_timer_create(l, on_time, h, "hook");
	if (!h->text || !h->watch || !h->timer) {
		over(h);
		return err_set(e, -ENOMEM, "call the hook %s: no memory",
			       ask->name);
	}
	eng_timer_set(h->timer, ask->timeout_ms);
	*out = h;
	return 0;
}

void eng_hook_cancel(struct eng_hook *h)
{
	if (h)
		over(h);
}
