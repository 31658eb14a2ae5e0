#include "clients.h"

#include <pthread.h>
#include <string.h>

static pthread_barrier_t start;
static int (*work)(struct client *);

static void *client_main(void *arg)
{
	struct client *c = arg;

	pthread_barrier_wait(&start);
	c->rc = work(c);
	return NULL;
}

static void take(struct samples *to, struct samples *from)
{
	for (size_t i = 0; to && i < from->n; i++)
		samples_add(to, from->v[i]);
	samples_free(from);
}

int clients_run(const struct daemon *d, unsigned n, int (*run)(struct client *),
		void *ctx, struct samples *us, struct samples *stamp,
		struct err *e)
{
	static struct client c[MAX_CLIENTS];
	pthread_t threads[MAX_CLIENTS];
	int rc = 0;

	memset(c, 0, sizeof(c));
	work = run;
	pthread_barrier_init(&start, NULL, n);
	for (unsigned i = 0; i < n; i++) {
		c[i].d = d;
		c[i].ctx = ctx;
		c[i].index = i;
		if (pthread_create(&threads[i], NULL, client_main, &c[i]))
			abort(); // the others wait at the barrier
	}
	for (unsigned i = 0; i < n; i++) {
		pthread_join(threads[i], NULL);
		take(us, &c[i].us);
		take(stamp, &c[i].stamp);
		if (c[i].rc && !rc) {
			rc = c[i].rc;
			*e = c[i].e;
		}
	}
	pthread_barrier_destroy(&start);
	return rc;
}
