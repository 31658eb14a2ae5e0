// Talking to thawd: one connection for each request, one for the events.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "pool.h"

enum {
	ANSWER_S = 60,	  // thawd holds a run's answer for 10 s at most
	HEARTBEAT_S = 10, // asked for
	SILENCE_S = 30,
	LINE_MAX_BYTES = 64 * 1024,
};

static void limit_waiting(int fd, long seconds)
{
	struct timeval tv = {seconds, 0};

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
}

static int send_request(struct httpc *h, const char *socket, long timeout_s,
			const char *method, const char *path,
			const json_t *body, struct err *e)
{
	char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
	int rc = httpc_open(h, socket, e);

	if (!rc) {
		limit_waiting(h->fd, timeout_s);
		rc = httpc_send(h, method, path, NULL, "application/json", text,
				text ? strlen(text) : 0, e);
	}
	free(text);
	return rc ? rc : httpc_head(h, e);
}

static int read_body(struct httpc *h, json_t **out, struct err *e)
{
	json_error_t je;
	size_t len;
	char *text;
	int rc = httpc_body_all(h, &text, &len, e);

	if (rc)
		return rc;
	*out = len ? json_loadb(text, len, 0, &je) : json_object();
	free(text);
	if (!*out)
		return err_set(e, -EBADMSG, "thawd's answer is not JSON: %s",
			       je.text);
	return 0;
}

int thawd_call(struct thawd *t, const char *method, const char *path,
	       const json_t *body, json_t **out, struct err *e)
{
	struct httpc h;
	json_t *j = NULL;
	int rc = send_request(&h, t->socket, ANSWER_S, method, path, body, e);

	if (!rc)
		rc = read_body(&h, &j, e);
	httpc_close(&h);
	if (rc)
		return rc;
	if (out)
		*out = j;
	else
		json_decref(j);
	return h.status;
}

// --- events ------------------------------------------------------------------

static int newest_event(struct thawd *t, json_int_t *cursor, struct err *e)
{
	json_t *j = NULL, *last;
	int rc = thawd_call(t, "GET", "/thaw/v1/stats", NULL, &j, e);

	last = json_object_get(json_object_get(j, "registry"), "lastEvent");
	*cursor = json_integer_value(last);
	if (rc >= 0)
		rc = rc == 200 && json_is_integer(last)
			 ? 0
			 : err_set(e, -EPROTO,
				   "thawd does not say its newest event "
				   "(status %d)",
				   rc);
	json_decref(j);
	return rc;
}

int thawd_follow(struct thawd *t, struct err *e)
{
	json_int_t cursor = 0;
	char path[128];
	int rc = newest_event(t, &cursor, e);

	if (rc)
		return rc;
	snprintf(path, sizeof(path),
		 "/thaw/v1/events?since=%lld&follow=1&heartbeat=%d",
		 (long long)cursor, HEARTBEAT_S);
	rc = send_request(&t->events, t->socket, SILENCE_S, "GET", path, NULL,
			  e);
	if (!rc && t->events.status != 200)
		rc = err_set(e, -EPROTO, "thawd gives no events (status %d)",
			     t->events.status);
	if (rc)
		thawd_unfollow(t);
	t->heard_ns = util_now_ns();
	return rc;
}

void thawd_unfollow(struct thawd *t)
{
	httpc_close(&t->events);
}

// A line is a chunk: when its data is read, the chunk's end may still be there.
bool thawd_has_event(const struct thawd *t)
{
	const struct httpc *h = &t->events;

	if (util_now_ns() - t->heard_ns > SILENCE_S * 1000000000ull)
		return true; // to find out
	return h->len - h->at > (h->in_chunk && h->left == 0 ? 2u : 0u);
}

json_t *thawd_event(struct thawd *t, struct err *e)
{
	json_error_t je;
	json_t *j;
	int rc = httpc_line(&t->events, &t->line, &t->cap, LINE_MAX_BYTES, e);

	if (rc <= 0) {
		if (!rc)
			err_set(e, -EPIPE, "thawd ended the event stream");
		return NULL;
	}
	t->heard_ns = util_now_ns();
	j = json_loads(t->line, 0, &je);
	if (!j)
		err_set(e, -EBADMSG, "an event of thawd is not JSON: %s",
			je.text);
	return j;
}
