// (interface) Long work off the loop: a small pool of worker threads.
#ifndef THAW_ENG_JOBS_H
#define THAW_ENG_JOBS_H

#include "loop.h"

struct eng_jobs;

int eng_jobs_create(struct eng_jobs **out, struct eng_loop *l, unsigned threads,
		    struct err *e);
// Waits for running jobs; done callbacks not yet called are dropped.
void eng_jobs_destroy(struct eng_jobs *j);

// Runs work(ctx) on a worker, then done(ctx) on the loop, a turn of its own that
// bears done's name. FIFO.
#define eng_job_run(j, work, done, ctx) \
	eng_job_run_named(j, work, done, ctx, #done)
// `name`: a string constant. done may be NULL.
void eng_job_run_named(struct eng_jobs *j, void (*work)(void *ctx),
		       void (*done)(void *ctx), void *ctx, const char *name);

#endif
