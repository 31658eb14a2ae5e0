// Reading packs without blocking the loop: io_uring, or two threads with pread.
//
// One owner thread queues and reaps. An eventfd is readable when something
// finished. Urgent reads are submitted before others. In the io_uring way the
// kernel is given at most RING reads at a time; in the other, each thread does
// one, so an urgent read waits at most for one already begun.
#include <fcntl.h>
#include <liburing.h>
#include <stdlib.h>
#include <sys/eventfd.h>

#include "pgc_internal.h"

enum { RING = 64, THREADS = 2 };

struct io_list {
	struct io_read *head, **tail;
};

struct io {
	int efd;
	bool uring;
	struct io_uring ring;
	unsigned inflight;	 // io_uring: given to the kernel
	struct io_list wait[2];	 // [urgent]
	struct io_list finished; // threads
	pthread_mutex_t lock;	 // threads: wait, finished, stop
	pthread_cond_t work;
	pthread_t threads[THREADS];
	unsigned nthreads;
	bool stop;
};

static void list_init(struct io_list *l)
{
	l->head = NULL;
	l->tail = &l->head;
}

static void list_add(struct io_list *l, struct io_read *r)
{
	r->next = NULL;
	*l->tail = r;
	l->tail = &r->next;
}

static struct io_read *list_take(struct io_list *l)
{
	struct io_read *r = l->head;

	if (r) {
		l->head = r->next;
		if (!l->head)
			l->tail = &l->head;
	}
	return r;
}

static struct io_read *next_read(struct io *io)
{
	struct io_read *r = list_take(&io->wait[1]);

	return r ? r : list_take(&io->wait[0]);
}

int io_create(struct io **out, bool no_uring, struct err *e)
{
	struct io *io = calloc(1, sizeof(*io));

	if (!io)
		return err_set(e, -ENOMEM, "no memory for page reads");
	list_init(&io->wait[0]);
	list_init(&io->wait[1]);
	list_init(&io->finished);
	pthread_mutex_init(&io->lock, NULL);
	pthread_cond_init(&io->work, NULL);
	io->efd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (io->efd < 0) {
		int rc = err_sys(e, "cannot make an eventfd");

		io_destroy(io);
		return rc;
	}
	if (!no_uring && !io_uring_queue_init(RING, &io->ring, 0)) {
		io->uring = true;
		if (io_uring_register_eventfd(&io->ring, io->efd)) {
			io_uring_queue_exit(&io->ring);
			io->uring = false;
		}
	}
	*out = io;
	return 0;
}

int io_fd(const struct io *io)
{
	return io->efd;
}

bool io_is_uring(const struct io *io)
{
	return io->uring;
}

void io_poke(struct io *io)
{
	uint64_t one = 1;

	// Only fails when it is readable already.
	(void)!write(io->efd, &one, sizeof(one));
}

void io_clear(struct io *io)
{
	uint64_t v;

	(void)!read(io->efd, &v, sizeof(v));
}

// Reads of this batch that nobody has begun go before what is not urgent.
void io_hurry(struct io *io, const struct batch *b)
{
	struct io_list all;
	struct io_read *r;

	must_lock(&io->lock); // io_uring: not shared, no harm
	all = io->wait[0];
	if (!all.head)
		list_init(&all);
	list_init(&io->wait[0]);
	while ((r = list_take(&all))) {
		r->urgent = r->urgent || r->batch == b;
		list_add(&io->wait[r->urgent], r);
	}
	must_unlock(&io->lock);
}

// --- threads -----------------------------------------------------------------

static void *io_thread(void *arg)
{
	struct io *io = arg;

	must_lock(&io->lock);
	for (;;) {
		struct io_read *r = next_read(io);

		if (!r && io->stop)
			break;
		if (!r) {
			pthread_cond_wait(&io->work, &io->lock);
			continue;
		}
		must_unlock(&io->lock);
		r->rc = util_pread_all(r->fd, r->buf, r->len, (off_t)r->off);
		must_lock(&io->lock);
		list_add(&io->finished, r);
		io_poke(io);
	}
	must_unlock(&io->lock);
	return NULL;
}

static void threads_start(struct io *io)
{
	while (io->nthreads < THREADS &&
	       !pthread_create(&io->threads[io->nthreads], NULL, io_thread, io))
		io->nthreads++;
}

static void threads_queue(struct io *io, struct io_read *r)
{
	threads_start(io);
	if (!io->nthreads) { // not even one: better late than never
		r->rc = util_pread_all(r->fd, r->buf, r->len, (off_t)r->off);
		list_add(&io->finished, r);
		io_poke(io);
		return;
	}
	must_lock(&io->lock);
	list_add(&io->wait[r->urgent], r);
	pthread_cond_signal(&io->work);
	must_unlock(&io->lock);
}

// --- io_uring ----------------------------------------------------------------

void io_queue(struct io *io, struct io_read *r)
{
	r->done = 0;
	r->rc = 0;
	if (io->uring)
		list_add(&io->wait[r->urgent], r);
	else
		threads_queue(io, r);
}

void io_submit(struct io *io)
{
	struct io_read *r;

	if (!io->uring)
		return;
	while (io->inflight < RING && (r = next_read(io))) {
		struct io_uring_sqe *sqe = io_uring_get_sqe(&io->ring);

		if (!sqe) {
			list_add(&io->wait[r->urgent], r);
			break;
		}
		io_uring_prep_read(sqe, r->fd, r->buf + r->done,
				   r->len - r->done, r->off + r->done);
		io_uring_sqe_set_data(sqe, r);
		io->inflight++;
	}
	// What it cannot take now stays in the ring for the next time; then
	// something is in flight, whose end brings us back here.
	if (io_uring_sq_ready(&io->ring) && io_uring_submit(&io->ring) < 0)
		io_poke(io);
}

// True when the read is finished; else it is queued again.
static bool finished(struct io *io, struct io_read *r, int res)
{
	if (res == -EINTR || res == -EAGAIN) {
		list_add(&io->wait[r->urgent], r);
		return false;
	}
	if (res <= 0) {
		r->rc = res ? res : -ENODATA;
		return true;
	}
	r->done += (uint32_t)res;
	if (r->done < r->len)
		list_add(&io->wait[r->urgent], r);
	return r->done == r->len;
}

struct io_read *io_reap(struct io *io)
{
	struct io_list out;
	struct io_uring_cqe *cqe;

	list_init(&out);
	if (!io->uring) {
		struct io_read *head;

		must_lock(&io->lock);
		head = io->finished.head;
		list_init(&io->finished);
		must_unlock(&io->lock);
		return head;
	}
	while (!io_uring_peek_cqe(&io->ring, &cqe)) {
		struct io_read *r = io_uring_cqe_get_data(cqe);
		int res = cqe->res;

		io_uring_cqe_seen(&io->ring, cqe);
		io->inflight--;
		if (finished(io, r, res))
			list_add(&out, r);
	}
	io_submit(io);
	return out.head;
}

void io_destroy(struct io *io)
{
	struct io_uring_cqe *cqe;

	if (!io)
		return;
	must_lock(&io->lock);
	io->stop = true;
	pthread_cond_broadcast(&io->work);
	must_unlock(&io->lock);
	for (unsigned i = 0; i < io->nthreads; i++)
		pthread_join(io->threads[i], NULL);
	if (io->uring) {
		// The kernel writes into buffers of ours until then.
		while (io->inflight && !io_uring_wait_cqe(&io->ring, &cqe)) {
			io_uring_cqe_seen(&io->ring, cqe);
			io->inflight--;
		}
		io_uring_queue_exit(&io->ring);
	}
	fd_close(&io->efd);
	pthread_mutex_destroy(&io->lock);
	pthread_cond_destroy(&io->work);
	free(io);
}
