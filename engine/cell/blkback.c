// A block (4 KiB) of the disk is in one of these states:
//
//   UNKNOWN    never asked for. The template has a hole there or not: reading
//              it now could give zeroes for data.
//   LOADING    asked for; thawd answers with where to read it from
//   TEMPLATE   the template's block is filled
//   OVERLAY    the overlay has it: written here, or loaded from this microVM's
//   own
//              snapshot
//   ZERO       zeroes (a block that became zero before the last suspend)
//   BAD        could not be had; lasts for one answer, then UNKNOWN again
//
// A write makes a block OVERLAY. It waits while the block is LOADING, because
// thawd may be writing an older content of it into the overlay; a write of a
// part of a block that is UNKNOWN asks for it first. Every other write goes
// ahead: thawd writes only blocks that were asked for.
//
// A request waits in `pending` until none of the blocks that it needs is
// UNKNOWN or LOADING. Flushes complete at once: the overlay is memory, and what
// makes a disk durable is suspending the microVM (docs/CELLS.md).
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "blkback.h"
#include "cellproto.h"

enum { BLK = 4096, RA_BLOCKS = 16, RA_SEQ_BLOCKS = 64 };

enum state {
	ST_UNKNOWN,
	ST_TEMPLATE = CP_BLK_TEMPLATE,
	ST_OVERLAY = CP_BLK_OVERLAY,
	ST_ZERO = CP_BLK_ZERO,
	ST_BAD = CP_BLK_BAD,
	ST_LOADING,
};

struct pending {
	struct pending *next;
	struct vmm_disk_req *req;
};

struct extent {
	uint32_t block, blocks;
};

struct blkback {
	struct vmm *vm;
	int template_fd, overlay_fd, sock;
	uint32_t nblocks;
	uint8_t *state; // one a block
	struct pending *pending, **tail;
	struct extent want[CP_MAX_EXTENTS]; // collected, not yet sent
	uint32_t nwant, want_blocks;
	uint32_t tag, unanswered;
	uint32_t next_seq; // where a sequential reader would miss next
	bool eager;
};

// --- moving bytes -----------------------------------------------------------

// The part [skip, skip+len) of a request's iovec, at most `cap` entries.
static int iov_slice(const struct vmm_disk_req *req, size_t skip, size_t len,
		     struct iovec *out, int cap)
{
	int n = 0;

	for (int i = 0; i < req->niov && len && n < cap; i++) {
		size_t part = req->iov[i].iov_len;

		if (skip >= part) {
			skip -= part;
			continue;
		}
		part = MIN(part - skip, len);
		out[n].iov_base = (char *)req->iov[i].iov_base + skip;
		out[n++].iov_len = part;
		len -= part;
		skip = 0;
	}
	return n;
}

// Moves [skip, skip+len) of the request between guest memory and `fd` (-1: fill
// with zeroes).
static int xfer(const struct vmm_disk_req *req, size_t skip, size_t len, int fd,
		bool write)
{
	while (len) {
		struct iovec iov[64];
		int niov = iov_slice(req, skip, len, iov, 64);
		off_t off = (off_t)(req->off + skip);
		ssize_t n = 0;

		if (fd < 0) {
			for (int i = 0; i < niov; i++) {
				memset(iov[i].iov_base, 0, iov[i].iov_len);
				n += (ssize_t)iov[i].iov_len;
			}
		} else {
			n = write ? pwritev(fd, iov, niov, off)
				  : preadv(fd, iov, niov, off);
		}
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		skip += (size_t)n;
		len -= (size_t)n;
	}
	return 0;
}

static uint32_t first_block(const struct vmm_disk_req *req)
{
	return (uint32_t)(req->off / BLK);
}

static uint32_t end_block(const struct vmm_disk_req *req)
{
	return (uint32_t)((req->off + req->len + BLK - 1) / BLK);
}

static int do_read(struct blkback *b, const struct vmm_disk_req *req)
{
	uint64_t pos = req->off, end = req->off + req->len;

	while (pos < end) {
		uint32_t blk = (uint32_t)(pos / BLK);
		uint8_t st = b->state[blk];
		uint64_t stop = (uint64_t)(blk + 1) * BLK;
		int fd = -1, rc;

		while (stop < end && b->state[stop / BLK] == st)
			stop += BLK;
		stop = MIN(stop, end);
		if (st == ST_TEMPLATE)
			fd = b->template_fd;
		else if (st == ST_OVERLAY)
			fd = b->overlay_fd;
		else if (st != ST_ZERO)
			return -EIO; // cannot be: advance() waited for it
		rc = xfer(req, pos - req->off, stop - pos, fd, false);
		if (rc)
			return rc;
		pos = stop;
	}
	return 0;
}

// Whether the request covers only a part of this block.
static bool is_partial(const struct vmm_disk_req *req, uint32_t blk)
{
	uint64_t at = (uint64_t)blk * BLK;

	return req->off > at || req->off + req->len < at + BLK;
}

// Gives the overlay the block's present content, before a part is overwritten.
static int copy_up(struct blkback *b, uint32_t blk)
{
	uint8_t page[BLK];
	off_t off = (off_t)blk * BLK;
	int rc = 0;

	if (b->state[blk] == ST_OVERLAY)
		return 0;
	if (b->state[blk] == ST_TEMPLATE)
		rc = util_pread_all(b->template_fd, page, BLK, off);
	else
		memset(page, 0, BLK);
	if (!rc)
		rc = util_pwrite_all(b->overlay_fd, page, BLK, off);
	if (!rc)
		b->state[blk] = ST_OVERLAY;
	return rc;
}

// A failed write leaves no block in the overlay that does not count as there: a
// capture takes all that the overlay has.
static void undo_write(struct blkback *b, const struct vmm_disk_req *req)
{
	for (uint32_t k = first_block(req); k < end_block(req); k++) {
		if (b->state[k] != ST_OVERLAY)
			(void)fallocate(b->overlay_fd,
					FALLOC_FL_PUNCH_HOLE |
					    FALLOC_FL_KEEP_SIZE,
					(off_t)k * BLK, BLK);
	}
}

static int do_write(struct blkback *b, const struct vmm_disk_req *req)
{
	uint32_t first = first_block(req), end = end_block(req);
	int rc = 0;

	if (is_partial(req, first))
		rc = copy_up(b, first);
	if (!rc && end - first > 1 && is_partial(req, end - 1))
		rc = copy_up(b, end - 1);
	if (!rc)
		rc = xfer(req, 0, req->len, b->overlay_fd, true);
	if (rc) {
		undo_write(b, req);
		return rc;
	}
	memset(b->state + first, ST_OVERLAY, end - first);
	return 0;
}

// --- asking for blocks ------------------------------------------------------

static void send_want(struct blkback *b)
{
	uint8_t buf[CP_HEAD + 8 + CP_MAX_EXTENTS * 8];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	if (!b->nwant)
		return;
	cp_begin(&w, CP_EXTENTS);
	wire_put_u32(&w, ++b->tag);
	wire_put_u32(&w, b->nwant);
	for (uint32_t i = 0; i < b->nwant; i++) {
		wire_put_u32(&w, b->want[i].block);
		wire_put_u32(&w, b->want[i].blocks);
	}
	b->nwant = b->want_blocks = 0;
	b->unanswered++;
	// A socket without thawd at its other end: the cell is about to go.
	if (cp_send(b->sock, &w, NULL, 0))
		_exit(0);
}

// Asks for the unknown blocks in [from, to). False when no more can be asked
// for at the moment; the request is then looked at again after the next answer.
static bool ask(struct blkback *b, uint32_t from, uint32_t to)
{
	uint32_t k = from;

	while (k < to) {
		uint32_t start;

		if (b->state[k] != ST_UNKNOWN) {
			k++;
			continue;
		}
		if (b->nwant == CP_MAX_EXTENTS ||
		    b->want_blocks == CP_MAX_REQ_BLOCKS)
			send_want(b);
		if (b->unanswered >= CP_MAX_DISK_REQS)
			return false;
		for (start = k; k < to && b->state[k] == ST_UNKNOWN &&
				b->want_blocks < CP_MAX_REQ_BLOCKS;
		     k++, b->want_blocks++)
			b->state[k] = ST_LOADING;
		b->want[b->nwant++] = (struct extent){start, k - start};
	}
	return true;
}

// Widens a miss to its cluster, further for a sequential reader.
static bool ask_around(struct blkback *b, uint32_t from, uint32_t to)
{
	uint32_t ahead = RA_BLOCKS;
	uint32_t lo = ALIGN_DOWN(from, (uint32_t)RA_BLOCKS), hi;

	if (from >= b->next_seq && from - b->next_seq < RA_BLOCKS)
		ahead = RA_SEQ_BLOCKS;
	hi = to > b->nblocks - MIN(ahead, b->nblocks) ? b->nblocks
						      : ALIGN_UP(to, ahead);
	b->next_seq = hi;
	return ask(b, lo, MIN(hi, b->nblocks));
}

// Whether the request can be done now: 1, 0 (it waits), or -EIO.
static int advance(struct blkback *b, const struct vmm_disk_req *req)
{
	uint32_t first = first_block(req), end = end_block(req);
	bool wait = false;

	for (uint32_t k = first; k < end; k++) {
		bool needed = !req->write || is_partial(req, k);

		if (b->state[k] == ST_UNKNOWN && needed) {
			uint32_t to = k + 1;

			while (!req->write && to < end &&
			       b->state[to] == ST_UNKNOWN)
				to++;
			wait = true;
			if (!ask_around(b, k, to))
				return 0;
		} else if (b->state[k] == ST_LOADING) {
			wait = true;
		} else if (b->state[k] == ST_BAD && needed) {
			return -EIO;
		}
	}
	return !wait;
}

static void perform(struct blkback *b, struct vmm_disk_req *req)
{
	int rc = req->write ? do_write(b, req) : do_read(b, req);

	vmm_disk_done(b->vm, req, rc);
}

static void blk_submit(void *ctx, struct vmm_disk_req *req)
{
	struct blkback *b = ctx;
	struct pending *p;
	int rc;

	if (req->off > (uint64_t)b->nblocks * BLK ||
	    req->len > (uint64_t)b->nblocks * BLK - req->off) {
		vmm_disk_done(b->vm, req, -EINVAL);
		return;
	}
	rc = advance(b, req);
	if (rc == 1) {
		perform(b, req);
		return;
	}
	p = rc == 0 ? malloc(sizeof(*p)) : NULL;
	if (!p) {
		vmm_disk_done(b->vm, req, rc ? rc : -ENOMEM);
		return;
	}
	*p = (struct pending){NULL, req};
	*b->tail = p;
	b->tail = &p->next;
	if (b->eager)
		send_want(b);
}

static void blk_flush_req(void *ctx, struct vmm_disk_req *req)
{
	struct blkback *b = ctx;

	vmm_disk_done(b->vm, req, 0);
}

// --- answers ----------------------------------------------------------------

// Completing a request may submit the next one, which appends to the list: so
// the list is taken away first, and what still waits is put back in its order.
static void retry_pending(struct blkback *b)
{
	struct pending *list = b->pending, *p;

	b->pending = NULL;
	b->tail = &b->pending;
	while ((p = list)) {
		int rc = advance(b, p->req);

		list = p->next;
		if (rc == 0) {
			p->next = NULL;
			*b->tail = p;
			b->tail = &p->next;
			continue;
		}
		if (rc == 1)
			perform(b, p->req);
		else
			vmm_disk_done(b->vm, p->req, rc);
		free(p);
	}
}

static bool answer_ok(const struct blkback *b, uint32_t blk, uint32_t n,
		      uint32_t kind)
{
	return blk < b->nblocks && n <= b->nblocks - blk &&
	       kind >= ST_TEMPLATE && kind <= ST_BAD;
}

static void set_answer(struct blkback *b, const uint8_t *body, uint32_t n,
		       uint8_t from_bad)
{
	struct wire_reader r = wire_reader_of(body, (size_t)n * 12);

	for (uint32_t i = 0; i < n; i++) {
		uint32_t blk = wire_get_u32(&r), count = wire_get_u32(&r);
		uint32_t kind = wire_get_u32(&r);

		if (!answer_ok(b, blk, count, kind))
			_exit(0);
		for (uint32_t k = blk; k < blk + count; k++) {
			if (b->state[k] == ST_LOADING && !from_bad)
				b->state[k] = (uint8_t)kind;
			else if (b->state[k] == ST_BAD && from_bad)
				b->state[k] = ST_UNKNOWN;
		}
	}
}

static void blk_answers(void *ctx, uint32_t events)
{
	struct blkback *b = ctx;
	uint8_t buf[CP_HEAD + 8 + 12 * CP_MAX_REQ_BLOCKS];
	int fds[CP_MAX_FDS];
	unsigned nfds;
	ssize_t len;

	(void)events;
	while ((len = cp_recv(b->sock, MSG_DONTWAIT, buf, sizeof(buf), fds,
			      &nfds)) > 0) {
		struct wire_reader r = wire_reader_of(buf, (size_t)len);
		const uint8_t *body;
		uint32_t n;

		if (cp_head(&r) != CP_EXTENTS_ACK || nfds)
			_exit(0);
		(void)wire_get_u32(&r); // tag
		n = wire_get_u32(&r);
		if (n > CP_MAX_REQ_BLOCKS)
			_exit(0);
		body = wire_borrow(&r, (size_t)n * 12);
		if (!cp_ok(&r) || !b->unanswered)
			_exit(0);
		b->unanswered--;
		set_answer(b, body, n, 0);
		retry_pending(b);
		set_answer(b, body, n, 1);
	}
	if (len != -EAGAIN)
		_exit(0); // thawd is gone
	if (b->eager)
		send_want(b);
}

void blk_flush(struct blkback *b)
{
	if (b)
		send_want(b);
}

void blk_eager(struct blkback *b, bool on)
{
	if (b) {
		b->eager = on;
		send_want(b);
	}
}

int blk_attach(struct blkback **out, struct vmm *vm, uint64_t bytes,
	       int template_fd, int overlay_fd, int sock, struct err *e)
{
	static const struct vmm_disk_ops ops = {blk_submit, blk_flush_req};
	struct blkback *b;
	int rc;

	if (bytes == 0 || bytes % BLK || bytes / BLK > UINT32_MAX / 2)
		return err_set(e, -EINVAL, "a disk of %llu bytes",
			       (unsigned long long)bytes);
	b = calloc(1, sizeof(*b));
	if (!b)
		return err_set(e, -ENOMEM, "no memory for the disk");
	b->vm = vm;
	b->nblocks = (uint32_t)(bytes / BLK);
	b->tail = &b->pending;
	b->sock = sock;
	b->template_fd = template_fd;
	b->overlay_fd = overlay_fd;
	b->state = mmap(NULL, b->nblocks, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (b->state == MAP_FAILED) {
		free(b);
		return err_sys(e, "no memory for the disk's block table");
	}
	rc = vmm_attach_disk(vm, bytes, &ops, b, e);
	if (!rc) {
		rc = vmm_watch(vm, sock, EPOLLIN, blk_answers, b);
		if (rc)
			err_set(e, rc, "cannot watch the disk's socket");
	}
	if (rc) {
		munmap(b->state, b->nblocks);
		free(b);
		return rc;
	}
	*out = b;
	return 0;
}
