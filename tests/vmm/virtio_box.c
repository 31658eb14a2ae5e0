// virtio-box: the host side of tests/guest/test_virtio.sh. Boots a real Linux
// guest (its user space is virtio_init.c), loads disk, vsock and rng, pauses it
// all the while, saves it with everything in flight, lets the source go on to
// its end, and then loads the copy. Prints TAP.
//
//   virtio-box KERNEL INITRD [-v]
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>

#include "vmm.h"

enum {
	MEM_MIB = 192,
	DISK = 16 << 20,
	HELD = 256,
	STREAMS = 12,
	ECHO_BYTES = 100 * 1024,
	BULK_MIB = 3,
	// The longest waits, on emulated machines of slow hosts.
	PAUSE_MS = 60000,
	ASK_S = 120,
	LOAD_S = 600,
};

static int tap_n, tap_bad;
static bool verbose;

static void ok(bool good, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
static void ok(bool good, const char *fmt, ...)
{
	va_list ap;

	printf("%sok %d - ", good ? "" : "not ", ++tap_n);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n");
	fflush(stdout);
	tap_bad += !good;
}

static void die(const char *what, const struct err *e)
{
	printf("Bail out! %s: %s\n", what, e ? e->msg : strerror(errno));
	exit(1);
}

// --- a machine --------------------------------------------------------------

struct box {
	struct vmm *vm;
	uint8_t *disk;
	struct vmm_disk_req *held[HELD]; // completed a tick later
	unsigned nheld, most, requests, flushes;
	int timer, console_rd, console_wr;
	bool up, off, fatal;
	pthread_mutex_t lock; // of what other threads ask for
	int want_fd;	      // a socket to connect, or -1
};

static void finish(struct box *b, struct vmm_disk_req *r)
{
	uint64_t off = r->off;

	for (int i = 0; i < r->niov; i++) {
		if (r->write)
			memcpy(b->disk + off, r->iov[i].iov_base,
			       r->iov[i].iov_len);
		else
			memcpy(r->iov[i].iov_base, b->disk + off,
			       r->iov[i].iov_len);
		off += r->iov[i].iov_len;
	}
	vmm_disk_done(b->vm, r, 0);
}

static void on_tick(void *ctx, uint32_t events)
{
	struct box *b = ctx;
	uint64_t n;
	ssize_t rc = read(b->timer, &n, sizeof(n));

	(void)events;
	(void)rc;
	// Newest first: a disk may reorder. What this submits waits its turn.
	for (unsigned k = b->nheld; k; k--)
		finish(b, b->held[--b->nheld]);
}

static void hold(struct box *b, struct vmm_disk_req *r)
{
	if (b->nheld == HELD)
		die("more requests in flight than there may be", NULL);
	b->held[b->nheld++] = r;
	b->most = MAX(b->most, b->nheld);
	b->requests++;
}

static void on_submit(void *ctx, struct vmm_disk_req *r)
{
	hold(ctx, r);
}

static void on_flush(void *ctx, struct vmm_disk_req *r)
{
	((struct box *)ctx)->flushes++;
	hold(ctx, r);
}

static const struct vmm_disk_ops disk_ops = {on_submit, on_flush};

static void box_create(struct box *b)
{
	struct itimerspec t = {{0, 2000000}, {0, 2000000}};
	cleanup_fd int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	struct err e = ERR_INIT;
	struct vmm_config cfg = {.struct_size = sizeof(cfg),
				 .kvm_fd = kvm,
				 .mem_bytes = (uint64_t)MEM_MIB << 20,
				 .vcpus = 1};
	int p[2];

	memset(b, 0, sizeof(*b));
	b->want_fd = -1;
	pthread_mutex_init(&b->lock, NULL);
	b->disk = mmap(NULL, DISK, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (pipe2(p, O_NONBLOCK | O_CLOEXEC) < 0)
		die("pipe", NULL);
	b->console_rd = p[0];
	b->console_wr = cfg.console_fd = p[1];
	if (vmm_create(&b->vm, &cfg, &e))
		die("creating", &e);
	if (mmap(vmm_mem_base(b->vm), vmm_mem_bytes(b->vm),
		 PROT_READ | PROT_WRITE,
		 MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED)
		die("memory", NULL);
	if (vmm_attach_disk(b->vm, DISK, &disk_ops, b, &e))
		die("disk", &e);
	b->timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	timerfd_settime(b->timer, 0, &t, NULL);
	if (vmm_watch(b->vm, b->timer, EPOLLIN, on_tick, b) < 0)
		die("timer", NULL);
}

static void box_start(struct box *b)
{
	struct err e = ERR_INIT;

	if (vmm_spawn_vcpus(b->vm, 0, &e) || vmm_start(b->vm, &e))
		die("starting", &e);
}

static void box_destroy(struct box *b)
{
	vmm_stop(b->vm);
	vmm_watch(b->vm, b->timer, 0, NULL, NULL);
	vmm_destroy(b->vm);
	close(b->timer);
	close(b->console_rd);
	close(b->console_wr);
	munmap(b->disk, DISK);
}

// One turn of the device thread.
static void turn(struct box *b)
{
	struct pollfd p[2] = {{vmm_event_fd(b->vm), POLLIN, 0},
			      {b->console_rd, POLLIN, 0}};
	struct vmm_event ev;
	char buf[4096];
	ssize_t n;

	poll(p, 2, 5);
	vmm_dispatch(b->vm);
	while ((n = read(b->console_rd, buf, sizeof(buf))) > 0)
		if (verbose)
			util_write_all(STDERR_FILENO, buf, (size_t)n);
	while (vmm_next_event(b->vm, &ev)) {
		b->up |= ev.kind == VMM_EV_VSOCK_UP;
		b->off |= ev.kind == VMM_EV_POWEROFF;
		b->fatal |= ev.kind == VMM_EV_FATAL || ev.kind == VMM_EV_RESET;
		if (ev.kind == VMM_EV_FATAL)
			printf("# fatal: %s\n", ev.text);
	}
	pthread_mutex_lock(&b->lock);
	if (b->want_fd >= 0)
		vmm_vsock_connect(b->vm, 1000, b->want_fd, NULL);
	b->want_fd = -1;
	pthread_mutex_unlock(&b->lock);
}

// --- streams, each on a thread ----------------------------------------------

struct task {
	struct box *b;
	int fd, id;
	bool good, done;
	char text[200];
	uint64_t ns;
	pthread_t thread;
};

static int stream(struct box *b, char what)
{
	int sv[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0)
		die("socketpair", NULL);
	fcntl(sv[1], F_SETFL, O_NONBLOCK);
	if (vmm_vsock_connect(b->vm, 1000, sv[1], NULL) < 0)
		printf("# connect was refused\n");
	if (send(sv[0], &what, 1, MSG_NOSIGNAL) != 1)
		printf("# send failed\n");
	return sv[0];
}

static void *echo_task(void *arg)
{
	struct task *t = arg;
	static const unsigned chunk = 9000;
	uint8_t out[9000], in[9000];
	unsigned sent = 0;

	while (sent < ECHO_BYTES) {
		unsigned n = MIN(chunk, ECHO_BYTES - sent);

		for (unsigned i = 0; i < n; i++)
			out[i] = (uint8_t)((sent + i) * 11 + (unsigned)t->id);
		if (util_write_all(t->fd, out, n) < 0 ||
		    util_read_all(t->fd, in, n) < 0 || memcmp(in, out, n))
			goto out;
		sent += n;
	}
	shutdown(t->fd, SHUT_WR);
	t->good = read(t->fd, in, 1) == 0;
out:
	__atomic_store_n(&t->done, true, __ATOMIC_SEQ_CST);
	return NULL;
}

static void *source_task(void *arg)
{
	struct task *t = arg;
	uint32_t mib = BULK_MIB;
	uint64_t got = 0, t0 = util_now_ns();
	static uint8_t buf[65536];
	ssize_t n;

	t->good = util_write_all(t->fd, &mib, 4) == 0;
	while ((n = read(t->fd, buf, sizeof(buf))) > 0)
		for (ssize_t i = 0; i < n; i++, got++) {
			uint32_t k = got & 0xffff;

			if (buf[i] != (uint8_t)(k * 7 + k / 256))
				t->good = false;
		}
	t->good = t->good && got == (uint64_t)mib << 20;
	t->ns = util_now_ns() - t0;
	__atomic_store_n(&t->done, true, __ATOMIC_SEQ_CST);
	return NULL;
}

static void *sink_task(void *arg)
{
	struct task *t = arg;
	uint64_t t0 = util_now_ns(), sum = 0, r[2] = {0, 0};
	static uint8_t buf[65536];

	for (unsigned i = 0; i < BULK_MIB * 16; i++) {
		for (unsigned k = 0; k < sizeof(buf); k++) {
			buf[k] = (uint8_t)(k * 3 + i);
			sum = sum * 31 + buf[k];
		}
		if (util_write_all(t->fd, buf, sizeof(buf)) < 0)
			break;
	}
	shutdown(t->fd, SHUT_WR);
	t->good = util_read_all(t->fd, r, sizeof(r)) == 0 &&
		  r[0] == (uint64_t)BULK_MIB << 20 && r[1] == sum;
	t->ns = util_now_ns() - t0;
	__atomic_store_n(&t->done, true, __ATOMIC_SEQ_CST);
	return NULL;
}

// The short ones: read until end of file.
static void *text_task(void *arg)
{
	struct task *t = arg;
	size_t at = 0;
	ssize_t n;

	while (at < sizeof(t->text) - 1 &&
	       (n = read(t->fd, t->text + at, sizeof(t->text) - 1 - at)) > 0)
		at += (size_t)n;
	t->id = (int)at;
	__atomic_store_n(&t->done, true, __ATOMIC_SEQ_CST);
	return NULL;
}

static void task_start(struct task *t, struct box *b, char what,
		       void *(*fn)(void *))
{
	int id = t->id;

	*t = (struct task){.b = b, .id = id, .fd = stream(b, what)};
	pthread_create(&t->thread, NULL, fn, t);
}

static bool task_done(struct task *t)
{
	return __atomic_load_n(&t->done, __ATOMIC_SEQ_CST);
}

// Turns the machine until all are done, `s` seconds at most; late ones fail.
static bool wait_tasks(struct box *b, struct task *t, unsigned n, unsigned s,
		       unsigned *pauses)
{
	uint64_t end = util_now_ns() + s * 1000000000ull, next = 0;
	unsigned done = 0;

	while (done < n && util_now_ns() < end && !b->fatal) {
		turn(b);
		if (pauses && util_now_ns() > next) {
			struct err e = ERR_INIT;

			if (vmm_pause(b->vm, PAUSE_MS, &e) ||
			    vmm_unpause(b->vm, &e))
				die("pausing", &e);
			next = util_now_ns() + 40000000;
			++*pauses;
		}
		done = 0;
		for (unsigned i = 0; i < n; i++)
			done += task_done(&t[i]);
	}
	for (unsigned i = 0; i < n; i++) {
		if (!task_done(&t[i]))
			shutdown(t[i].fd, SHUT_RDWR);
		pthread_join(t[i].thread, NULL);
		close(t[i].fd);
	}
	return done == n;
}

// One short exchange; the answer's length, or -1.
static int ask(struct box *b, char what, char *text, unsigned s)
{
	struct task t = {0};
	bool in_time;

	task_start(&t, b, what, text_task);
	in_time = wait_tasks(b, &t, 1, s, NULL);
	memcpy(text, t.text, sizeof(t.text));
	return in_time ? t.id : -1;
}

// --- the test ---------------------------------------------------------------

struct blob {
	void *p;
	size_t len;
};

static struct blob map_file(const char *path)
{
	struct stat st;
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct blob b = {NULL, 0};

	if (fd < 0 || fstat(fd, &st) < 0)
		die(path, NULL);
	b.len = (size_t)st.st_size;
	b.p = mmap(NULL, b.len, PROT_READ, MAP_PRIVATE, fd, 0);
	return b;
}

static void boot(struct box *b, const char *kernel, const char *initrd)
{
	struct blob k = map_file(kernel), i = map_file(initrd);
	struct vmm_boot req = {k.p, k.len, i.p, i.len,
			       "console=ttyS0 quiet panic=-1"};
	struct err e = ERR_INIT;
	uint64_t end = util_now_ns() + LOAD_S * 1000000000ull;
	char text[200] = "";

	box_create(b);
	if (vmm_boot(b->vm, &req, &e))
		die("booting", &e);
	box_start(b);
	while (!b->up && !b->fatal && util_now_ns() < end)
		turn(b);
	ok(b->up, "the guest's vsock driver comes up");
	if (!b->up)
		exit(1);
	while (ask(b, 'Q', text, 10) <= 0 && util_now_ns() < end && !b->fatal)
		for (int n = 0; n < 40; n++)
			turn(b);
	ok(strstr(text, "disk_done=0"), "the guest serves: %.60s", text);
}

static void start_load(struct box *b, struct task *t)
{
	for (int i = 0; i < STREAMS; i++) {
		t[i].id = i;
		task_start(&t[i], b, 'E', echo_task);
	}
	task_start(&t[STREAMS], b, 'S', source_task);
	task_start(&t[STREAMS + 1], b, 'K', sink_task);
	task_start(&t[STREAMS + 2], b, 'D', text_task);
}

static void judge_load(struct box *b, struct task *t, const char *when)
{
	unsigned good = 0;

	for (int i = 0; i < STREAMS; i++)
		good += t[i].good;
	ok(good == STREAMS, "%s: %u of %d echo streams", when, good, STREAMS);
	ok(t[STREAMS].good, "%s: %d MiB from the guest, %.1f MiB/s", when,
	   BULK_MIB, BULK_MIB * 1e9 / (double)(t[STREAMS].ns + 1));
	ok(t[STREAMS + 1].good, "%s: %d MiB to the guest, %.1f MiB/s", when,
	   BULK_MIB, BULK_MIB * 1e9 / (double)(t[STREAMS + 1].ns + 1));
	ok(t[STREAMS + 2].text[0] == 'k',
	   "%s: disk load verified (%u requests, %u flushes, at most %u in "
	   "flight)",
	   when, b->requests, b->flushes, b->most);
}

struct saved {
	uint8_t *state;
	size_t len;
	uint8_t *mem, *disk;
};

static void save(struct box *b, struct saved *s)
{
	struct wire_writer w;
	struct err e = ERR_INIT;

	s->state = malloc(VMM_STATE_MAX);
	s->mem = malloc(vmm_mem_bytes(b->vm));
	s->disk = malloc(DISK);
	w = wire_writer_of(s->state, VMM_STATE_MAX);
	if (vmm_pause(b->vm, PAUSE_MS, &e) || vmm_state_save(b->vm, &w, &e))
		die("saving", &e);
	s->len = w.len;
	memcpy(s->mem, vmm_mem_base(b->vm), vmm_mem_bytes(b->vm));
	memcpy(s->disk, b->disk, DISK);
	if (vmm_unpause(b->vm, &e))
		die("unpausing", &e);
}

static void load(struct box *b, const struct saved *s)
{
	struct err e = ERR_INIT;
	int rc;

	box_create(b);
	memcpy(vmm_mem_base(b->vm), s->mem, vmm_mem_bytes(b->vm));
	memcpy(b->disk, s->disk, DISK);
	rc = vmm_state_load(b->vm, s->state, s->len, &e);
	ok(rc == 0, "a state saved with everything in flight loads: %s", e.msg);
	if (rc)
		exit(1);
	box_start(b);
}

static void after_load(struct box *b)
{
	struct task t = {.id = 3};
	char text[200] = "";
	int resets = 0, eofs = 0, disk = 0;
	uint64_t end = util_now_ns() + LOAD_S * 1000000000ull;

	// At once: before the guest has heard that the old streams are gone.
	task_start(&t, b, 'E', echo_task);
	wait_tasks(b, &t, 1, ASK_S, NULL);
	ok(t.good, "a stream made right after the load is not reset");
	while ((!disk || resets + eofs < 2 * STREAMS + 1) && !b->fatal &&
	       util_now_ns() < end) {
		if (ask(b, 'Q', text, ASK_S) <= 0)
			continue;
		disk = strstr(text, "disk_done=2") != NULL ||
		       strstr(text, "disk_bad=1") != NULL;
		sscanf(text, "disk_done=%*d disk_bad=%*d resets=%d eofs=%d",
		       &resets, &eofs);
		for (int n = 0; n < 100; n++)
			turn(b);
	}
	ok(strstr(text, "disk_done=2 disk_bad=0"),
	   "the copy's disk load goes on to its end: %.60s", text);
	// Linux shows the RST of an open stream as an end of file. Those of the
	// first load, those that were open at the save, and the fresh one.
	ok(resets + eofs == 2 * STREAMS + 1,
	   "the copy's old streams have ended (%d)", resets + eofs);
	ask(b, 'P', text, 2);
	end = util_now_ns() + ASK_S * 1000000000ull;
	while (!b->off && !b->fatal && util_now_ns() < end)
		turn(b);
	ok(b->off, "the copy powers off");
}

int main(int argc, char **argv)
{
	static struct task t[STREAMS + 3];
	struct box b;
	struct saved s;
	char text[200] = "";
	unsigned pauses = 0;
	int n;

	if (argc < 3)
		return 2;
	verbose = argc > 3;
	boot(&b, argv[1], argv[2]);
	ok(ask(&b, 'R', text, ASK_S) == 64, "64 bytes from /dev/hwrng");
	n = ask(&b, 'G', text, ASK_S);
	ok(n == 1 && text[0] == ECONNRESET,
	   "a guest's own connect is reset (errno %d)", text[0]);

	start_load(&b, t);
	n = wait_tasks(&b, t, STREAMS + 3, LOAD_S, &pauses);
	ok(n && pauses > 5, "all of it ends, with %u pauses", pauses);
	judge_load(&b, t, "under pauses");

	start_load(&b, t);
	for (int i = 0; i < 60; i++) // well into it
		turn(&b);
	save(&b, &s);
	n = 0;
	for (int i = 0; i < STREAMS + 3; i++)
		n += !task_done(&t[i]);
	ok(n == STREAMS + 3, "saved with %d of %d streams open: %zu bytes", n,
	   STREAMS + 3, s.len);
	ok(wait_tasks(&b, t, STREAMS + 3, LOAD_S, NULL), "the source goes on");
	judge_load(&b, t, "source after the save");
	box_destroy(&b);
	load(&b, &s);
	after_load(&b);
	box_destroy(&b);
	printf("1..%d\n", tap_n);
	return tap_bad != 0;
}
