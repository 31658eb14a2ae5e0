// pool.claim: 8 clients at once take microVMs that wait, parked, in a pool: from
// the request to the answer that it runs. The floor is an empty round trip on the
// same socket by the same 8 clients, and one wake-up of a vCPU that waits.
//
// Clients and thawd share the processors, so what a client does between two
// requests is on the clock of the others: both kinds of request go through the same
// few calls, and answers are taken apart when the clock has stopped.
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "bench.h"
#include "clients.h"

enum { CLIENTS = 8, EACH = 32, MEM_MIB = 256, ANSWER = 4096 };

static int park_all(const struct daemon *d, struct err *e)
{
	int rc = 0;

	for (int i = 0; i < CLIENTS * EACH && !rc; i++)
		rc = daemon_call(d, "POST", "/2025-09-09/microvms?wait=PARKED",
				 json_pack("{s:s, s:b}", "imageIdentifier",
					   "ring3", "parked", 1),
				 NULL, NULL, e);
	return rc;
}

static char answers[CLIENTS][EACH][ANSWER];

// One request on a connection of its own; its answer's text.
static int ask(struct client *c, const char *request, size_t len, char *answer)
{
	cleanup_fd int fd = daemon_connect(c->d);
	uint64_t t0 = util_now_ns();
	size_t got = 0;
	ssize_t n;

	if (fd < 0)
		return err_set(&c->e, fd, "cannot reach %s", c->d->socket);
	if (util_write_all(fd, request, len))
		return err_sys(&c->e, "cannot send a request");
	while ((n = read(fd, answer + got, ANSWER - 1 - got)) > 0)
		got += (size_t)n;
	samples_add(&c->us, (double)(util_now_ns() - t0) / 1000);
	answer[got] = '\0';
	if (n < 0 || strncmp(answer, "HTTP/1.1 200 ", 13) != 0)
		return err_set(&c->e, -EIO, "a request failed: %.200s", answer);
	return 0;
}

static int ask_often(struct client *c, const char *line, const char *body)
{
	char request[512];
	int rc = 0;
	int len = snprintf(request, sizeof(request),
			   "%s HTTP/1.1\r\nHost: thaw\r\nConnection: close\r\n"
			   "Content-Length: %zu\r\n\r\n%s",
			   line, strlen(body), body);

	for (int i = 0; i < EACH && !rc; i++)
		rc = ask(c, request, (size_t)len, answers[c->index][i]);
	return rc;
}

static int claim(struct client *c)
{
	return ask_often(c, "POST /2025-09-09/microvms",
			 "{\"imageIdentifier\":\"ring3\"}");
}

static int round_trips(struct client *c)
{
	return ask_often(c, "GET /thaw/v1/version", "");
}

// What the clients have claimed.
static struct microvm claimed[CLIENTS][EACH];

static int take_answer(const char *answer, struct microvm *vm, struct err *e)
{
	const char *body = strstr(answer, "\r\n\r\n");
	json_t *j = body ? json_loads(body + 4, 0, NULL) : NULL;
	bool pooled =
	    json_is_true(json_object_get(json_object_get(j, "thaw"), "pooled"));
	const char *id = json_string_value(json_object_get(j, "microvmId"));

	snprintf(vm->id, sizeof(vm->id), "%s", id ? id : "");
	json_decref(j);
	if (!pooled)
		return err_set(e, -EIO, "a claim missed a full pool: %.200s",
			       answer);
	return 0;
}

static int take_answers(struct err *e)
{
	int rc = 0;

	for (int i = 0; i < CLIENTS * EACH && !rc; i++)
		rc = take_answer((&answers[0][0])[i], &claimed[0][0] + i, e);
	return rc;
}

// Ends what was claimed; that no two claims got the same one shows in their ids.
static int end_all(const struct daemon *d, struct err *e)
{
	const struct microvm *all = &claimed[0][0];
	int rc = 0;

	for (int i = 0; i < CLIENTS * EACH && !rc; i++) {
		for (int k = 0; k < i; k++) {
			if (strcmp(all[i].id, all[k].id) == 0)
				return err_set(e, -EIO,
					       "%s was handed out twice",
					       all[i].id);
		}
		rc = microvm_end(d, &all[i], e);
	}
	return rc;
}

static int wakes(struct proc *floor, struct samples *us, struct err *e)
{
	char answer[64];
	uint64_t t0;
	int rc = proc_ask(floor, "open", answer, sizeof(answer), NULL, e);

	for (int i = 0; i < 20 && !rc; i++) {
		usleep(2000); // it sleeps
		rc = proc_ask(floor, "wake", answer, sizeof(answer), &t0, e);
		if (!rc)
			samples_add(us,
				    (double)(strtoull(answer, NULL, 10) - t0) /
					1000);
	}
	return rc ? rc
		  : proc_ask(floor, "close", answer, sizeof(answer), NULL, e);
}

static int rounds(const struct daemon *d, struct proc *floor, unsigned n,
		  struct samples *claims, struct samples *trips,
		  struct samples *wake, struct busy *busy, struct err *e)
{
	int rc = 0;

	for (unsigned i = 0; i < n && !rc; i++) {
		rc = park_all(d, e);
		usleep(100000);
		if (!rc)
			rc = clients_run(d, CLIENTS, round_trips, NULL, trips,
					 NULL, e);
		if (!rc)
			rc = wakes(floor, wake, e);
		busy_begin(busy);
		if (!rc)
			rc = clients_run(d, CLIENTS, claim, NULL, claims, NULL,
					 e);
		busy_end(busy, (size_t)CLIENTS * EACH);
		if (!rc)
			rc = take_answers(e);
		if (!rc)
			rc = end_all(d, e);
	}
	return rc;
}

int bench_pool(const struct bench_options *o, struct report *rep, struct err *e)
{
	struct result *r = report_add(rep, "us", "pool.claim");
	struct samples trips = {0}, wake = {0};
	struct busy busy = {0};
	struct daemon d = {0};
	struct proc floor = {0};
	int rc = daemon_start(&d, o->bin_dir, 0, 2, 0, e);

	if (!rc)
		rc = daemon_build_ring3(&d, "ring3", "fill 1 16M 1M", MEM_MIB,
					e);
	if (!rc)
		rc = daemon_call(&d, "PUT", "/thaw/v1/pools/ring3",
				 json_pack("{s:i}", "size", CLIENTS * EACH),
				 NULL, NULL, e);
	if (!rc)
		rc = floor_start(&floor, o->bin_dir, MEM_MIB, "fill 1 16M 1M",
				 e);
	if (!rc)
		rc = rounds(&d, &floor, o->quick ? 2 : 8, &r->samples, &trips,
			    &wake, &busy, e);
	r->floor_p50 =
	    samples_percentile(&trips, 50) + samples_percentile(&wake, 50);
	busy_report(&busy, r);
	result_number(r, "clients", CLIENTS);
	result_number(r, "floor_round_trip_p50",
		      samples_percentile(&trips, 50));
	result_number(r, "floor_wake_p50", samples_percentile(&wake, 50));
	samples_free(&trips);
	samples_free(&wake);
	proc_stop(&floor);
	daemon_stop(&d);
	return rc;
}
