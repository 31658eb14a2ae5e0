// The hook's disk: thaw-cell's own backend (blkback.c) with a made-up
// virtio-blk above it. Random reads and writes are compared with a model of the
// disk.
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "blkback.h"
#include "cellproto.h"
#include "hook_disk.h"

enum { OPS = 3000, MAX_LEN = 64 * 1024, DEPTH = 8 };

struct op {
	struct vmm_disk_req req; // first
	struct iovec iov[3];
	uint8_t *buf;
	bool busy;
	int rc;
};

static const struct vmm_disk_ops *ops;
static void *ops_ctx;
static void (*watch_cb)(void *ctx, uint32_t events);
static void *watch_ctx;

// What vmm gives to blkback.c.
int vmm_attach_disk(struct vmm *vm, uint64_t bytes,
		    const struct vmm_disk_ops *o, void *ctx, struct err *e)
{
	(void)vm;
	(void)bytes;
	(void)e;
	ops = o;
	ops_ctx = ctx;
	return 0;
}

int vmm_watch(struct vmm *vm, int fd, uint32_t events,
	      void (*cb)(void *ctx, uint32_t events), void *ctx)
{
	(void)vm;
	(void)fd;
	(void)events;
	watch_cb = cb;
	watch_ctx = ctx;
	return 0;
}

void vmm_disk_done(struct vmm *vm, struct vmm_disk_req *req, int rc)
{
	struct op *op = (struct op *)req;

	(void)vm;
	op->busy = false;
	op->rc = rc;
}

static uint32_t rnd(uint32_t n)
{
	static uint32_t x = 12345;

	x = x * 1103515245u + 12345u;
	return (x >> 8) % n;
}

// Three uneven pieces, as a guest's scatter list has them.
static void start(struct op *op, bool write, uint64_t off, size_t len)
{
	size_t a = len / 3 / 512 * 512, b = a;

	op->iov[0] = (struct iovec){op->buf, a};
	op->iov[1] = (struct iovec){op->buf + a, b};
	op->iov[2] = (struct iovec){op->buf + a + b, len - a - b};
	op->req = (struct vmm_disk_req){write, off, len, op->iov, 3};
	op->busy = true;
	op->rc = 1;
	ops->submit(ops_ctx, &op->req);
}

static void turn(struct blkback *b)
{
	struct pollfd p = {CP_FD_DISK, POLLIN, 0};

	blk_flush(b);
	poll(&p, 1, 1000);
	watch_cb(watch_ctx, POLLIN);
}

static void wait_all(struct blkback *b, struct op *o)
{
	for (int i = 0; i < DEPTH; i++) {
		while (o[i].busy)
			turn(b);
	}
}

// Compares a finished read; adds what a finished write did to the model.
static bool settle(struct op *op, uint8_t *model, unsigned *errors)
{
	if (op->rc == 1)
		return true; // never used
	if (op->rc) {
		(*errors)++;
		return op->rc == -EIO && !op->req.write;
	}
	if (op->req.write)
		memcpy(model + op->req.off, op->buf, op->req.len);
	return memcmp(op->buf, model + op->req.off, op->req.len) == 0;
}

static bool overlaps(const struct op *o, uint64_t off, size_t len)
{
	for (int i = 0; i < DEPTH; i++) {
		if (o[i].busy && off < o[i].req.off + o[i].req.len &&
		    o[i].req.off < off + len)
			return true;
	}
	return false;
}

static const char *run(struct blkback *b, uint8_t *model, uint64_t bytes,
		       bool read_only, unsigned *errors)
{
	static struct op o[DEPTH];
	uint64_t last = 0;

	for (int i = 0; i < DEPTH; i++) {
		o[i].buf = malloc(MAX_LEN);
		o[i].rc = 1;
	}
	for (int n = 0; n < OPS; n++) {
		struct op *op = &o[n % DEPTH];
		size_t len = (1 + rnd(MAX_LEN / 512)) * 512;
		uint64_t off = (uint64_t)rnd((uint32_t)(bytes / 512)) * 512;
		bool write = !read_only && rnd(3) == 0;

		if (rnd(4)) // near the last one, as file systems do
			off = last + rnd(32 * 8) * 512;
		off = MIN(off, bytes - 512);
		last = off;
		if (rnd(2)) { // whole blocks
			len = ALIGN_UP(len, (size_t)4096);
			off = ALIGN_DOWN(off, 4096ull);
		}
		len = MIN(len, bytes - off);
		while (op->busy || overlaps(o, off, len))
			turn(b);
		if (!settle(op, model, errors))
			return "wrong bytes";
		for (size_t k = 0; write && k < len; k += 64)
			op->buf[k] = (uint8_t)rnd(256);
		start(op, write, off, len);
	}
	wait_all(b, o);
	for (int i = 0; i < DEPTH; i++) {
		if (!settle(&o[i], model, errors))
			return "wrong bytes";
		o[i].rc = 1;
	}
	for (uint64_t off = 0; off < bytes; off += MAX_LEN) {
		start(&o[0], false, off, MAX_LEN);
		wait_all(b, o);
		if (!settle(&o[0], model, errors))
			return "wrong bytes in the end";
	}
	return NULL;
}

const char *hook_disk(uint64_t bytes, int template_fd, int overlay_fd,
		      const char *how)
{
	static char text[80];
	bool own = strcmp(how, "own") == 0;
	struct blkback *b;
	struct err e = ERR_INIT;
	uint8_t *model = malloc(bytes);
	unsigned errors = 0;
	const char *wrong;

	for (uint32_t k = 0; k < bytes / 4096; k++)
		hook_disk_block(model + (size_t)k * 4096, k,
				hook_disk_kind(k, own));
	if (blk_attach(&b, NULL, bytes, template_fd, overlay_fd, CP_FD_DISK,
		       &e))
		return "no disk";
	wrong = run(b, model, bytes, strcmp(how, "bad") == 0, &errors);
	if (wrong)
		return wrong;
	snprintf(text, sizeof(text), "disk ok, %s errors",
		 errors ? "some" : "no");
	return text;
}
