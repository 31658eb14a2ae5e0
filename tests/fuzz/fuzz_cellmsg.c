// What a cell says to thawd, which may be a guest that took it over: messages on ctl and
// on disk, in every state of the cell and its process (engine/cellproto.c, cell_proc.c,
// cell_talk.c, cell_disk.c), and START as a cell reads it. The sockets, the loop and the
// bookkeeping are thawd's own; the store's templates, workers and captures are stood in
// for below. The input says who sends what, and what is answered when.
#include "fuzz.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "cells_priv.h"

enum { OPS_MAX = 200, DISK_BLOCKS = 4096, PENDING = 8192 };

enum {
	S_STARTED,
	S_READY,
	S_ENDED,
	S_LAST_WORDS,
	S_PARKED,
	S_PAUSED,
	S_MAPPED,
	S_PREPARED,
	S_HELLO,
	S_VIOLATION,
	S_FLOOD,
	S_TOO_LONG,
	S_DESCRIPTORS,
	S_DISK,
	S_DISK_WAITS,
	S_DISK_OWN,
	S_DISK_ANSWERED,
	S_DISK_REFUSED,
	S_START,
};
struct fuzz_state fuzz_states[] = {
    [S_STARTED] = {"a cell that started", 0},
    [S_READY] = {"a doorbell", 0},
    [S_ENDED] = {"an end that it told", 0},
    [S_LAST_WORDS] = {"last words", 0},
    [S_PARKED] = {"a parked cell", 0},
    [S_PAUSED] = {"a paused cell", 0},
    [S_MAPPED] = {"a mapped one", 0},
    [S_PREPARED] = {"a prepared one", 0},
    [S_HELLO] = {"a greeting that is refused", 0},
    [S_VIOLATION] = {"a message that makes no sense", 0},
    [S_FLOOD] = {"a flood", 0},
    [S_TOO_LONG] = {"a message too long", 0},
    [S_DESCRIPTORS] = {"descriptors that nobody asked for", 0},
    [S_DISK] = {"a disk request", 0},
    [S_DISK_WAITS] = {"one that waits for the store", 0},
    [S_DISK_OWN] = {"one that a worker serves", 0},
    [S_DISK_ANSWERED] = {"an answer", 0},
    [S_DISK_REFUSED] = {"a disk request that makes no sense", 0},
    [S_START] = {"a START that is read", 0},
    {0},
};
const size_t fuzz_around = 150;

static void seen(int s)
{
	fuzz_states[s].seen++;
}

// --- what stands in ---------------------------------------------------------

static struct {
	uint8_t how; // the store's temper
	struct {
		struct disk_req *dr;
		uint32_t cluster;
	} waits[PENDING];
	unsigned nwaits;
	struct cell_job *jobs[CP_MAX_DISK_REQS];
	unsigned njobs;
} fake;

int __wrap_pgc_template_fill(struct pgc_template *t, uint64_t pgno, uint64_t n,
			     bool urgent, struct err *e);
bool __wrap_pgc_snap_run(const struct pgc_snap *sn, enum pgc_stream st,
			 uint64_t pgno, struct pgc_run *out);
int __wrap_faults_wait(struct eng_snap *sn, enum pgc_stream st, uint64_t pgno,
		       uint64_t npages, struct cell_proc *p,
		       struct disk_req *dr);
void __wrap_cell_job_run_named(struct eng_cell *cell, struct cell_job *j,
			       void (*work)(struct cell_job *j),
			       void (*done)(struct cell_job *j),
			       const char *name);
void __wrap_capture_paused(struct eng_cell *cell, int rc, const char *why,
			   uint32_t state_len, int fd);
void __wrap_cell_mapped(struct eng_cell *cell);
void __wrap_prepared_done(struct cell_proc *p);
uint64_t __wrap_util_now_ns(void);

// No time passes: what is a flood does not depend on how fast we are.
uint64_t __wrap_util_now_ns(void)
{
	return 1000000000000000;
}

// Clusters are there, are to come, or cannot be had, by number.
int __wrap_pgc_template_fill(struct pgc_template *t, uint64_t pgno, uint64_t n,
			     bool urgent, struct err *e)
{
	uint64_t cluster = pgno / PGC_CLUSTER_PAGES;

	(void)t, (void)urgent, (void)e;
	fuzz_must(n && pgno < DISK_BLOCKS && n <= DISK_BLOCKS - pgno);
	if (fake.how & 1)
		return 1;
	return cluster % 5 == 4 ? -EIO : (int)(cluster % 2);
}

// The microVM's own disk: runs of 24 blocks, of the three kinds in turn.
bool __wrap_pgc_snap_run(const struct pgc_snap *sn, enum pgc_stream st,
			 uint64_t pgno, struct pgc_run *out)
{
	(void)sn, (void)st;
	if (pgno >= DISK_BLOCKS)
		return false;
	out->pgno = pgno;
	out->npages = MIN(24 - pgno % 24, DISK_BLOCKS - pgno);
	out->kind = (enum pgc_run_kind)(pgno / 24 % 3);
	return true;
}

int __wrap_faults_wait(struct eng_snap *sn, enum pgc_stream st, uint64_t pgno,
		       uint64_t npages, struct cell_proc *p,
		       struct disk_req *dr)
{
	(void)sn, (void)st, (void)npages;
	fuzz_must(!p && dr);
	if (fake.nwaits == PENDING)
		return -ENOMEM;
	fake.waits[fake.nwaits].dr = dr;
	fake.waits[fake.nwaits++].cluster =
	    (uint32_t)(pgno / PGC_CLUSTER_PAGES);
	seen(S_DISK_WAITS);
	return 0;
}

// A worker's part comes later; what it reads is not there to be read.
void __wrap_cell_job_run_named(struct eng_cell *cell, struct cell_job *j,
			       void (*work)(struct cell_job *j),
			       void (*done)(struct cell_job *j),
			       const char *name)
{
	(void)work, (void)name;
	fuzz_must(fake.njobs < CP_MAX_DISK_REQS);
	j->cell = cell;
	j->done = done;
	cell_hold(cell);
	fake.jobs[fake.njobs++] = j;
	seen(S_DISK_OWN);
}

void __wrap_capture_paused(struct eng_cell *cell, int rc, const char *why,
			   uint32_t state_len, int fd)
{
	(void)cell, (void)state_len;
	fuzz_must((rc == 0) == (fd >= 0) && strlen(why) < CP_TEXT_MAX);
	fd_close(&fd);
	seen(S_PAUSED);
}

void __wrap_cell_mapped(struct eng_cell *cell)
{
	cell->state = CELL_LAYING;
	seen(S_MAPPED);
}

void __wrap_prepared_done(struct cell_proc *p)
{
	p->state = PROC_PREPARED;
	seen(S_PREPARED);
}

// --- a cell and its process -------------------------------------------------

struct guest {
	struct fuzz_in *in;
	struct eng_cells c;
	struct cell_class class;
	struct cell_proc *p;
	struct eng_cell cell;
	struct eng_snap base, own;
	int ctl, disk; // the cell's ends
};

static void on_started(void *ctx, const struct eng_cell_times *t)
{
	(void)ctx, (void)t;
	seen(S_STARTED);
}

static void on_ready(void *ctx)
{
	(void)ctx;
	seen(S_READY);
}

static void on_parked(void *ctx, int rc, const char *why)
{
	(void)ctx, (void)rc;
	fuzz_must(strlen(why) < CP_TEXT_MAX);
	seen(S_PARKED);
}

static const struct eng_cell_events events = {
    .started = on_started, .ready = on_ready, .parked = on_parked};

static int pair(int *other)
{
	int sv[2];

	fuzz_must(!socketpair(
	    AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv));
	*other = sv[1];
	return sv[0];
}

static void begin(struct guest *g, uint8_t how)
{
	static struct eng_loop *loop;
	struct cell_proc *p = calloc(1, sizeof(*p));

	if (!loop) {
		log_init("fuzz", LOG_LVL_ERR);
		fuzz_must(!eng_loop_create(&loop, NULL));
	}
	g->c.loop = loop;
	g->class = (struct cell_class){.mem_mib = 64, .vcpus = 1};
	*p = (struct cell_proc){.c = &g->c,
				.class = &g->class,
				.state = PROC_BOUND,
				.credit = 300,
				.boot = -1,
				.uffd = -1,
				.pagemap = -1,
				.statm = -1,
				.overlay = -1,
				.credit_at = util_now_ns() / 1000000};
	p->ctl = pair(&g->ctl);
	p->disk = pair(&g->disk);
	p->pidfd = eventfd(0, EFD_CLOEXEC); // signals to it go nowhere
	p->console = eventfd(0, EFD_CLOEXEC);
	fuzz_must(!proc_watch(p, NULL));
	g->p = p;
	g->base.disk_bytes = (uint64_t)DISK_BLOCKS * PGC_PAGE;
	g->cell =
	    (struct eng_cell){.c = &g->c,
			      .ev = &events,
			      .holds = 1, // ours
			      .state = how & 1 ? CELL_STARTING : CELL_RUNNING,
			      .has_disk = !(how & 2),
			      .has_own = how & 4,
			      .claim_fd = -1,
			      .kernel_fd = -1,
			      .initrd_fd = -1,
			      .overlay = how & 8 ? -1 : 1 << 20,
			      .base = &g->base,
			      .own = how & 4 ? &g->own : NULL,
			      .proc = p};
	p->cell = how & 0x10 ? NULL : &g->cell;
	if (!p->cell)
		p->state = how & 0x20 ? PROC_SPAWNING : PROC_PREPARING;
	fake.how = how >> 6;
}

static void disk_step(unsigned which)
{
	struct disk_req *dr;
	uint32_t cluster;

	if (!fake.nwaits)
		return;
	which %= fake.nwaits;
	dr = fake.waits[which].dr;
	cluster = fake.waits[which].cluster;
	fake.waits[which] = fake.waits[--fake.nwaits];
	disk_fill_done(dr, cluster, which % 3 ? 0 : -EIO);
}

static void job_step(void)
{
	struct cell_job *j;
	struct eng_cell *cell;

	if (!fake.njobs)
		return;
	j = fake.jobs[--fake.njobs];
	cell = j->cell;
	j->done(j);
	cell_release(cell);
}

static void end(struct guest *g)
{
	while (fake.nwaits)
		disk_step(0);
	while (fake.njobs)
		job_step();
	fuzz_must(g->cell.holds == 1);
	fuzz_must(g->p->dying || !g->p->disk_reqs);
	proc_free(g->p);
	fd_close(&g->cell.claim_fd);
	fd_close(&g->ctl);
	fd_close(&g->disk);
}

// --- what it says -----------------------------------------------------------

static void look(struct guest *g, unsigned type, unsigned nfds, size_t len)
{
	const struct cell_proc *p = g->p;

	if (p->failed[0] && type == CP_FAILED)
		seen(S_LAST_WORDS);
	if (p->failed[0] && type == CP_HELLO)
		seen(S_HELLO);
	if (g->cell.ended && type == CP_EVENT)
		seen(S_ENDED);
	if (p->dying) {
		seen(S_VIOLATION);
		if (nfds)
			seen(S_DESCRIPTORS);
		if (len > 2000)
			seen(S_TOO_LONG);
		if (strstr(g->cell.detail, "floods"))
			seen(S_FLOOD);
		if (strstr(g->cell.detail, "makes no sense") &&
		    type == CP_EXTENTS)
			seen(S_DISK_REFUSED);
	}
	for (size_t i = 0; p->failed[i]; i++)
		fuzz_must(p->failed[i] >= ' ' && p->failed[i] < 0x7f);
	fuzz_must(p->disk_reqs <= CP_MAX_DISK_REQS);
}

// thawd reads what there is.
static void listen_to(struct guest *g)
{
	char byte;

	while (!g->p->dying &&
	       (recv(g->p->ctl, &byte, 1, MSG_PEEK | MSG_DONTWAIT) >= 0 ||
		recv(g->p->disk, &byte, 1, MSG_PEEK | MSG_DONTWAIT) >= 0))
		eng_loop_once(g->c.loop);
}

static void extents(struct fuzz_in *in, struct wire_writer *w)
{
	uint8_t how = in_u8(in), n = how & 0x40 ? in_u8(in) : how & 3;

	wire_put_u32(w, in_u8(in));
	wire_put_u32(w, how & 0x80 ? (uint32_t)in_odd(in) : n);
	for (unsigned i = 0; i < n; i++) {
		uint8_t v = in_u8(in);

		if (v == 0xff) {
			wire_put_u32(w, (uint32_t)in_odd(in));
			wire_put_u32(w, (uint32_t)in_odd(in));
		} else {
			wire_put_u32(w, v * 7u);
			wire_put_u32(w, 1 + v % 40u);
		}
	}
}

static void body(struct fuzz_in *in, struct wire_writer *w, unsigned type)
{
	static const char words[] = "the guest\x1b[31m gave up\n";

	switch (type) {
	case CP_EXTENTS:
		extents(in, w);
		return;
	case CP_STARTED:
		wire_put_u64(w, in_u8(in));
		wire_put_u64(w, in_u8(in));
		wire_put_u64(w, in_u8(in));
		return;
	case CP_FIRST_EXIT:
		wire_put_u64(w, in_u8(in));
		return;
	case CP_HELLO:
		wire_put_u64(w, in_odd(in) << 12);
		wire_put_u64(w, 64ull << 20);
		wire_put_u32(w, in_u8(in) % 4);
		return;
	case CP_PAUSED:
	case CP_UNPAUSED:
	case CP_PARKED: {
		uint8_t rc = in_u8(in) & 3;

		wire_put_u32(w, rc);
		if (type == CP_PAUSED && !rc)
			wire_put_u32(w, in_u16(in));
		else
			wire_put_bytes(w, words, in_u8(in) % sizeof(words));
		return;
	}
	case CP_EVENT:
		wire_put_u32(w, in_u8(in) % 7);
		__attribute__((fallthrough));
	case CP_FAILED:
		wire_put_bytes(w, words, in_u8(in) % sizeof(words));
		return;
	}
}

static void message(struct guest *g, bool to_disk)
{
	static const uint16_t types[] = {
	    CP_STARTED,	 CP_EVENT,	CP_PAUSED,  CP_UNPAUSED,
	    CP_PARKED,	 CP_FAILED,	CP_MAPPED,  CP_HELLO,
	    CP_PREPARED, CP_FIRST_EXIT, CP_EXTENTS, CP_PARK,
	};
	static uint8_t buf[8192];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	uint8_t how = in_u8(g->in), what = in_u8(g->in);
	unsigned type = to_disk ? CP_EXTENTS : types[what % 12];
	int fds[CP_MAX_FDS] = {g->ctl, g->ctl, g->ctl, g->ctl};
	unsigned nfds = type == CP_HELLO;

	if (how == 0xff)
		type = in_u16(g->in);
	cp_begin(&w, (enum cp_type)type);
	body(g->in, &w, type);
	if (type == CP_PAUSED && w.len == CP_HEAD + 8 && !buf[CP_HEAD])
		nfds = 1;
	if (how >= 0xf0) // rarely: another number of descriptors
		nfds = how & 3;
	if ((how & 0xf0) == 0xe0) // of bytes
		w.len =
		    MIN(w.len + (how & 8 ? (size_t)how * 32 : 0), sizeof(buf)) -
		    MIN(w.len, (size_t)(how & 7));
	if ((how & 0xf0) == 0xd0)
		buf[(how & 15) % w.len] ^= what;
	if (cp_send(to_disk ? g->disk : g->ctl, &w, fds, nfds))
		return;
	if (to_disk)
		seen(S_DISK);
	listen_to(g);
	look(g, type, nfds, w.len);
}

// START, as thaw-cell reads it.
static void start(struct guest *g)
{
	static uint8_t buf[CP_MSG_MAX], mail[256];
	static struct cp_start s, got;
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	uint8_t how = in_u8(g->in);
	enum cp_type type = how & 1 ? CP_START_BOOT : CP_START_THAW;
	struct wire_reader r;
	size_t at;

	memset(&s, 0, sizeof(s));
	s.mem_mib = (uint32_t)in_odd(g->in);
	s.nzero = how & 2 ? in_u8(g->in) % CP_MAX_ZERO_EXTENTS : 0;
	s.mailbox = mail;
	s.mailbox_len = how & 4 ? in_u8(g->in) : 0;
	memset(s.cmdline, 'c', how & 8 ? in_u8(g->in) : 0);
	cp_put_start(&w, type, &s);
	fuzz_must(!w.bad);
	if (how & 0x10) {
		at = in_u16(g->in) % w.len;
		buf[at] = in_u8(g->in);
	}
	at = how & 0x20 ? in_u8(g->in) : 0;
	w.len -= MIN(at, w.len);
	r = wire_reader_of(buf, w.len);
	if (cp_head(&r) != (int)type || cp_get_start(&r, type, &got))
		return;
	seen(S_START);
	fuzz_must(got.nzero <= CP_MAX_ZERO_EXTENTS);
	fuzz_must(memchr(got.cmdline, 0, sizeof(got.cmdline)));
	fuzz_must(!got.mailbox_len ||
		  ((const uint8_t *)got.mailbox >= buf &&
		   got.mailbox_len <=
		       w.len - (size_t)((const uint8_t *)got.mailbox - buf)));
}

// What comes back on the disk's socket.
static void answers(struct guest *g)
{
	static uint8_t buf[CP_MSG_MAX];
	int fds[CP_MAX_FDS];
	unsigned nfds;
	ssize_t n;

	while ((n = cp_recv(g->disk, MSG_DONTWAIT, buf, sizeof(buf), fds,
			    &nfds)) > 0) {
		struct wire_reader r = wire_reader_of(buf, (size_t)n);
		uint32_t count, total = 0;

		fuzz_must(!nfds && cp_head(&r) == CP_EXTENTS_ACK);
		wire_get_u32(&r);
		count = wire_get_u32(&r);
		for (uint32_t i = 0; i < count; i++) {
			uint32_t block = wire_get_u32(&r);
			uint32_t blocks = wire_get_u32(&r);
			uint32_t kind = wire_get_u32(&r);

			total += blocks;
			fuzz_must(blocks && block < DISK_BLOCKS &&
				  blocks <= DISK_BLOCKS - block);
			fuzz_must(kind >= CP_BLK_TEMPLATE &&
				  kind <= CP_BLK_BAD);
		}
		fuzz_must(cp_ok(&r) && total <= CP_MAX_REQ_BLOCKS);
		seen(S_DISK_ANSWERED);
	}
}

// What thawd does meanwhile.
static void thawd(struct guest *g)
{
	static struct capture *const some = (struct capture *)&fake;
	uint8_t what = in_u8(g->in);

	switch (what % 8) {
	case 0:
		g->cell.capture = g->cell.capture ? NULL : some;
		break;
	case 1:
		g->cell.parking = true;
		break;
	case 2:
		if (g->cell.state == CELL_LAYING)
			g->cell.state = CELL_STARTING;
		break;
	case 3:
	case 4:
	case 5:
		disk_step(what / 8);
		break;
	case 6:
		job_step();
		break;
	case 7:
		g->p->credit = what / 8;
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	static struct guest g;
	struct fuzz_in in = {data, data + n};

	memset(&g, 0, sizeof(g));
	g.in = &in;
	begin(&g, in_u8(&in));
	for (unsigned i = 0; i < OPS_MAX && in_left(&in); i++) {
		switch (in_u8(&in) % 8) {
		case 0:
		case 1:
		case 2:
			message(&g, false);
			break;
		case 3:
		case 4:
			message(&g, true);
			break;
		case 5:
			start(&g);
			break;
		case 6:
			answers(&g);
			break;
		case 7:
			thawd(&g);
			break;
		}
	}
	answers(&g);
	end(&g);
	return 0;
}
