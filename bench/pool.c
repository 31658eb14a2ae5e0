// pool.claim: 8 clients at once take microVMs that wait, parked, in a pool: from
// the request to the answer that it runs. The floor is an empty round trip on the
// same socket by the same 8 clients, and one wake-up of a vCPU that waits.
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "bench.h"
#include "clients.h"

enum { CLIENTS = 8, EACH = 8, MEM_MIB = 256 };

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

// What the clients have claimed, to be ended when the clock has stopped.
static struct microvm claimed[CLIENTS][EACH];

static int claim_once(struct client *c, struct microvm *vm)
{
	json_t *j = NULL, *thaw;
	bool pooled;
	int rc = daemon_call(c->d, "POST", "/2025-09-09/microvms",
			     json_pack("{s:s}", "imageIdentifier", "ring3"), &j,
			     &vm->t0, &c->e);

	if (rc)
		return rc;
	samples_add(&c->us, (double)(util_now_ns() - vm->t0) / 1000);
	thaw = json_object_get(j, "thaw");
	pooled = json_is_true(json_object_get(thaw, "pooled"));
	snprintf(vm->id, sizeof(vm->id), "%s",
		 json_string_value(json_object_get(j, "microvmId")));
	json_decref(j);
	if (!pooled)
		return err_set(&c->e, -EIO, "a claim missed a full pool");
	return 0;
}

static int claim(struct client *c)
{
	int rc = 0;

	for (int i = 0; i < EACH && !rc; i++)
		rc = claim_once(c, &claimed[c->index][i]);
	return rc;
}

static int round_trips(struct client *c)
{
	int rc = 0;

	for (int i = 0; i < EACH && !rc; i++) {
		uint64_t t0;

		rc = daemon_call(c->d, "GET", "/thaw/v1/version", NULL, NULL,
				 &t0, &c->e);
		if (!rc)
			samples_add(&c->us,
				    (double)(util_now_ns() - t0) / 1000);
	}
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
		rc = rounds(&d, &floor, o->quick ? 2 : 15, &r->samples, &trips,
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
