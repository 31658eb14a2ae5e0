// Worker threads for long work. Two lists under one lock: jobs waiting, and jobs
// done whose callbacks the loop still owes; an eventfd tells the loop of the
// second. Jobs start in the order in which they were given.
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>

#include "jobs.h"

enum { JOBS_MAX_THREADS = 16 };

struct job {
	struct job *next;
	void (*work)(void *ctx);
	void (*done)(void *ctx);
	void *ctx;
	const char *name;
};

struct job_list {
	struct job *head, **tail;
};

struct eng_jobs {
	struct eng_loop *loop;
	struct eng_watch *watch;
	int done_fd;
	pthread_mutex_t lock;
	pthread_cond_t more;
	struct job_list waiting, finished; // under lock
	bool stopping;			   // under lock
	unsigned nthreads;
	pthread_t threads[JOBS_MAX_THREADS];
};

static void list_init(struct job_list *l)
{
	l->head = NULL;
	l->tail = &l->head;
}

static void list_push(struct job_list *l, struct job *j)
{
	j->next = NULL;
	*l->tail = j;
	l->tail = &j->next;
}

static struct job *list_pop(struct job_list *l)
{
	struct job *j = l->head;

	if (!j)
		return NULL;
	l->head = j->next;
	if (!l->head)
		l->tail = &l->head;
	return j;
}

static void *worker(void *arg)
{
	struct eng_jobs *js = arg;
	struct job *j;

	pthread_mutex_lock(&js->lock);
	for (;;) {
		while (!js->waiting.head && !js->stopping)
			pthread_cond_wait(&js->more, &js->lock);
		j = list_pop(&js->waiting);
		if (!j)
			break; // stopping, and nothing is left
		pthread_mutex_unlock(&js->lock);
		j->work(j->ctx);
		pthread_mutex_lock(&js->lock);
		list_push(&js->finished, j);
		// The counter cannot overflow: the loop drains it.
		(void)eventfd_write(js->done_fd, 1);
	}
	pthread_mutex_unlock(&js->lock);
	return NULL;
}

static void jobs_finished(void *ctx, unsigned what)
{
	struct eng_jobs *js = ctx;
	struct job_list due;
	struct job *j;
	eventfd_t n;

	(void)what;
	(void)eventfd_read(js->done_fd, &n);
	pthread_mutex_lock(&js->lock);
	due = js->finished;
	if (!due.head)
		due.tail = &due.head;
	list_init(&js->finished);
	pthread_mutex_unlock(&js->lock);
	// Each callback is a deferred turn of its own.
	while ((j = list_pop(&due))) {
		if (j->done)
			eng_loop_defer(js->loop, j->done, j->ctx, j->name);
		free(j);
	}
}

static int start_threads(struct eng_jobs *js, unsigned threads, struct err *e)
{
	sigset_t all, old;
	int rc = 0;

	// Signals are the loop's.
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	while (js->nthreads < threads && !rc) {
		rc = pthread_create(&js->threads[js->nthreads], NULL, worker,
				    js);
		if (!rc)
			js->nthreads++;
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (rc)
		return err_set(e, -rc, "cannot start a worker thread: error %d",
			       rc);
	return 0;
}

int eng_jobs_create(struct eng_jobs **out, struct eng_loop *l, unsigned threads,
		    struct err *e)
{
	struct eng_jobs *js;
	int rc;

	*out = NULL;
	if (threads < 1 || threads > JOBS_MAX_THREADS)
		return err_set(e, -EINVAL,
			       "%u worker threads: must be between 1 and %d",
			       threads, JOBS_MAX_THREADS);
	js = calloc(1, sizeof(*js));
	if (!js)
		return err_set(e, -ENOMEM, "no memory for the worker threads");
	js->loop = l;
	pthread_mutex_init(&js->lock, NULL);
	pthread_cond_init(&js->more, NULL);
	list_init(&js->waiting);
	list_init(&js->finished);
	js->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (js->done_fd < 0) {
		rc = err_sys(e, "cannot make an eventfd");
		eng_jobs_destroy(js);
		return rc;
	}
	js->watch = eng_watch_create(l, js->done_fd, ENG_READ, jobs_finished,
				     js, "jobs");
	if (!js->watch) {
		eng_jobs_destroy(js);
		return err_set(e, -ENOMEM, "no memory for the worker threads");
	}
	rc = start_threads(js, threads, e);
	if (rc) {
		eng_jobs_destroy(js);
		return rc;
	}
	*out = js;
	return 0;
}

void eng_jobs_destroy(struct eng_jobs *js)
{
	struct job *j;

	if (!js)
		return;
	pthread_mutex_lock(&js->lock);
	js->stopping = true;
	while ((j = list_pop(&js->waiting)))
		free(j);
	pthread_cond_broadcast(&js->more);
	pthread_mutex_unlock(&js->lock);
	for (unsigned i = 0; i < js->nthreads; i++)
		pthread_join(js->threads[i], NULL);
	while ((j = list_pop(&js->finished)))
		free(j);
	eng_watch_destroy(js->watch);
	fd_close(&js->done_fd);
	pthread_cond_destroy(&js->more);
	pthread_mutex_destroy(&js->lock);
	free(js);
}

void eng_job_run_named(struct eng_jobs *js, void (*work)(void *ctx),
		       void (*done)(void *ctx), void *ctx, const char *name)
{
	struct job *j = malloc(sizeof(*j));

	if (!j)
		abort(); // as in eng_loop_defer()
	*j = (struct job){NULL, work, done, ctx, name};
	pthread_mutex_lock(&js->lock);
	list_push(&js->waiting, j);
	pthread_cond_signal(&js->more);
	pthread_mutex_unlock(&js->lock);
}
