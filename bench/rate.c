// restores.rate: how many microVMs a second are restored, run and ended by clients
// that do nothing else; and how long one waits for its own while a large image is
// loaded from the disk beside it.
#include <errno.h>
#include <stdio.h>

#include "bench.h"
#include "clients.h"
#include "cold.h"

enum { CLIENTS = 4, MEM_MIB = 256, LOADED_MIB = 96, PACE_US = 10000 };

struct job {
	uint64_t until; // CLOCK_MONOTONIC ns
};

static int run_and_end(struct client *c)
{
	const struct job *job = c->ctx;
	struct microvm vm;
	int rc = 0;

	while (util_now_ns() < job->until && !rc) {
		rc = microvm_run(c->d, "ring3", NULL, &vm, &c->e);
		if (rc)
			break;
		samples_add(&c->us, (double)(vm.answered - vm.t0) / 1000);
		samples_add(&c->stamp, (double)vm.answered / 1000);
		rc = microvm_end(c->d, &vm, &c->e);
	}
	return rc;
}

// Restores a second, one sample for each quarter of a second.
static void windows(struct samples *stamp, uint64_t from_ns, double seconds,
		    struct samples *rate)
{
	double from = (double)from_ns / 1000, width = 250000;

	for (double at = 0; at + width <= seconds * 1e6; at += width) {
		unsigned n = 0;

		for (size_t i = 0; i < stamp->n; i++)
			n += stamp->v[i] >= from + at &&
			     stamp->v[i] < from + at + width;
		samples_add(rate, n * 1e6 / width);
	}
}

static int sustained(const struct daemon *d, struct report *rep, double seconds,
		     struct err *e)
{
	struct result *r = report_add(rep, "1/s", "restores.rate");
	struct samples us = {0}, stamp = {0};
	struct busy busy = {0};
	uint64_t t0 = util_now_ns();
	struct job job = {t0 + (uint64_t)(seconds * 1e9)};
	int rc;

	busy_begin(&busy);
	rc = clients_run(d, CLIENTS, run_and_end, &job, &us, &stamp, e);
	busy_end(&busy, us.n);
	busy_report(&busy, r);
	windows(&stamp, t0, seconds, &r->samples);
	result_number(r, "clients", CLIENTS);
	result_number(r, "mean", (double)us.n / seconds);
	result_number(r, "latency_us_p50", samples_percentile(&us, 50));
	result_number(r, "latency_us_p99", samples_percentile(&us, 99));
	samples_free(&us);
	samples_free(&stamp);
	return rc;
}

// Client 0 asks for a small one now and then; the other loads the large one.
static int beside(struct client *c)
{
	const struct job *job = c->ctx;
	struct cold_sample cold;
	struct microvm vm;
	int rc = 0;

	if (c->index)
		return cold_once(c->d, LOADED_MIB, &cold_orders[COLD_RAND],
				 &cold, &c->e);
	while (util_now_ns() < job->until && !rc) {
		rc = microvm_run(c->d, "ring3", NULL, &vm, &c->e);
		if (!rc)
			samples_add(&c->us, (double)(vm.t2 - vm.t0) / 1000);
		if (!rc)
			rc = microvm_end(c->d, &vm, &c->e);
		usleep(PACE_US);
	}
	return rc;
}

static int latency(struct daemon *d, struct report *rep, unsigned rounds,
		   struct err *e)
{
	struct result *r = report_add(rep, "us", "restores.rate.latency");
	struct samples warm = {0};
	int rc = 0;

	for (unsigned i = 0; i < rounds && !rc; i++) {
		struct job job;

		rc = cold_forget(d, COLD_DROPPED, e);
		job.until = util_now_ns() + 300000000;
		if (!rc) // fills the small one's template
			rc = clients_run(d, 1, beside, &job, &warm, NULL, e);
		job.until = util_now_ns() + 300000000;
		if (!rc)
			rc =
			    clients_run(d, 1, beside, &job, &r->floor, NULL, e);
		job.until = util_now_ns() + 150000000;
		if (!rc)
			rc = clients_run(d, 2, beside, &job, &r->samples, NULL,
					 e);
	}
	result_text(r, "what",
		    "T2 while an image loads cold; the floor is the same idle");
	result_number(r, "idle_p99", samples_percentile(&r->floor, 99));
	samples_free(&warm);
	return rc;
}

int bench_rate(const struct bench_options *o, struct report *rep, struct err *e)
{
	struct daemon d = {0};
	int rc = daemon_start(&d, o->bin_dir, 0, 4, 2, e);

	if (!rc)
		rc = daemon_build_ring3(&d, "ring3", "fill 1 16M 1M", MEM_MIB,
					e);
	if (!rc)
		rc = cold_build(&d, LOADED_MIB, &cold_orders[COLD_RAND], e);
	if (!rc)
		rc = daemon_settle(&d, e);
	if (!rc)
		rc = sustained(&d, rep, o->quick ? 2 : 10, e);
	if (!rc)
		rc = latency(&d, rep, o->quick ? 2 : 10, e);
	daemon_stop(&d);
	return rc;
}
