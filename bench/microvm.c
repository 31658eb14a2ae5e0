// MicroVMs through the socket: run, talk, watch, end.
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "bench.h"

int microvm_inspect(const struct daemon *d, const struct microvm *vm,
		    json_t **out, struct err *e)
{
	char path[160];

	snprintf(path, sizeof(path), "/thaw/v1/microvms/%s", vm->id);
	return daemon_call(d, "GET", path, NULL, out, NULL, e);
}

// The clock points of the answer; 1: the first exit is not among them yet.
static int read_times(struct microvm *vm, const json_t *answer)
{
	const json_t *thaw = json_object_get(answer, "thaw");
	const json_t *t =
	    json_object_get(json_object_get(thaw, "timings"), "run");
	const json_t *exit = json_object_get(t, "firstExit");
	// thawd counts in microseconds from when it read the request.
	uint64_t zero =
	    (uint64_t)json_integer_value(json_object_get(t, "t0Ns"));

	vm->pid = (pid_t)json_integer_value(json_object_get(thaw, "pid"));
	if (!exit)
		return 1;
	vm->t1 = zero + 1000 * (uint64_t)json_integer_value(
				   json_object_get(t, "loaded"));
	vm->t2 = zero + 1000 * (uint64_t)json_integer_value(exit);
	return 0;
}

int microvm_start(const struct daemon *d, const char *image,
		  const char *payload, struct microvm *vm, struct err *e)
{
	json_t *body = json_pack("{s:s}", "imageIdentifier", image);
	json_t *answer = NULL;
	int rc;

	memset(vm, 0, sizeof(*vm));
	if (payload)
		json_object_set_new(body, "runHookPayload",
				    json_string(payload));
	rc = daemon_call(d, "POST",
			 "/2025-09-09/microvms?wait=RUNNING&timeout=30", body,
			 &answer, &vm->t0, e);
	if (rc)
		return rc;
	vm->answered = util_now_ns();
	snprintf(vm->id, sizeof(vm->id), "%s",
		 json_string_value(json_object_get(answer, "microvmId")));
	(void)read_times(vm, answer);
	json_decref(answer);
	return 0;
}

int microvm_executed(const struct daemon *d, struct microvm *vm, struct err *e)
{
	json_t *answer;
	int rc;

	for (unsigned i = 0; !vm->t2 && i < 200; i++) {
		usleep(i * 100);
		rc = microvm_inspect(d, vm, &answer, e);
		if (rc)
			return rc;
		(void)read_times(vm, answer);
		json_decref(answer);
	}
	if (vm->t2 <= vm->t0)
		return err_set(e, -EIO,
			       "the guest's first exit is not in its timings");
	return 0;
}

int microvm_run(const struct daemon *d, const char *image, const char *payload,
		struct microvm *vm, struct err *e)
{
	int rc = microvm_start(d, image, payload, vm, e);

	return rc ? rc : microvm_executed(d, vm, e);
}

int microvm_mail(const struct daemon *d, const struct microvm *vm,
		 const char *line, struct err *e)
{
	char path[160], text[256];

	snprintf(text, sizeof(text), "%s\n", line);
	snprintf(path, sizeof(path), "/thaw/v1/microvms/%s/mailbox", vm->id);
	return daemon_call_raw(d, "POST", path, text, NULL, NULL, e);
}

int microvm_end(const struct daemon *d, const struct microvm *vm, struct err *e)
{
	char path[160];

	snprintf(path, sizeof(path), "/2025-09-09/microvms/%s", vm->id);
	return daemon_call(d, "DELETE", path, NULL, NULL, NULL, e);
}

// --- following a log ----------------------------------------------------------------

// A chunked body as it arrives: `left` bytes of the chunk are still to come.
struct chunks {
	size_t left;
	char size[20]; // the line of the next chunk's size, so far
	size_t nsize;
	bool body; // the head has been seen
	char head[4];
};

// Moves what belongs to the body from in[0..n) to out; how much that is.
static size_t chunks_take(struct chunks *c, const char *in, size_t n, char *out)
{
	size_t len = 0;

	for (size_t i = 0; i < n; i++) {
		if (!c->body) {
			memmove(c->head, c->head + 1, 3);
			c->head[3] = in[i];
			c->body = memcmp(c->head, "\r\n\r\n", 4) == 0;
		} else if (c->left) {
			out[len++] = in[i];
			c->left--;
		} else if (in[i] != '\n') {
			if (c->nsize < sizeof(c->size) - 1)
				c->size[c->nsize++] = in[i];
		} else {
			c->size[c->nsize] = '\0';
			c->left = strtoul(c->size, NULL, 16);
			c->nsize = 0;
		}
	}
	return len;
}

// Whether text[0..n) has a whole line that begins with prefix; copies it.
static bool find_line(const char *text, size_t n, const char *prefix,
		      char *line, size_t cap)
{
	const char *p = text, *end = text + n, *nl;

	while ((nl = memchr(p, '\n', (size_t)(end - p)))) {
		size_t len = (size_t)(nl - p);

		if (len >= strlen(prefix) &&
		    memcmp(p, prefix, strlen(prefix)) == 0) {
			snprintf(line, cap, "%.*s", (int)len, p);
			return true;
		}
		p = nl + 1;
	}
	return false;
}

int microvm_line(const struct daemon *d, const struct microvm *vm,
		 const char *prefix, char *line, size_t cap, uint64_t *when,
		 struct err *e)
{
	char req[256], in[4096], text[16384];
	cleanup_fd int fd = daemon_connect(d);
	struct chunks c = {0};
	size_t have = 0;
	int len;

	len = snprintf(req, sizeof(req),
		       "GET /thaw/v1/microvms/%s/logs?follow=1 HTTP/1.1\r\n"
		       "Host: thaw\r\n\r\n",
		       vm->id);
	if (fd < 0 || util_write_all(fd, req, (size_t)len))
		return err_set(e, -EIO, "cannot follow the log of %s", vm->id);
	for (;;) {
		ssize_t n = read(fd, in, sizeof(in));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0 || have + (size_t)n > sizeof(text))
			break;
		*when = util_now_ns();
		have += chunks_take(&c, in, (size_t)n, text + have);
		if (find_line(text, have, prefix, line, cap))
			return 0;
	}
	return err_set(e, -EIO, "%s never said %s: its log is \"%.*s\"", vm->id,
		       prefix, (int)MIN(have, (size_t)200), text);
}
