// The disk stage of a build: thaw-mkdisk makes an ext4 image in a work
// directory of its own, a worker puts the image's pages into the store, and the
// directory goes, whatever happened. Directories that a killed thawd left are
// removed at the next start (eng_build_sweep()).
//
// States: MAKING (the program runs; cancel kills it), STORING (a job runs;
// cancel sets a flag that it looks at), then done. What thaw-mkdisk says is
// bounded and checked: below it are processes that met a hostile archive.
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "build_internal.h"
#include "child.h"

#define WORK_PREFIX "build-"

enum {
	CHUNK = 1024 * 1024,
	PROGRESS_MS = 250,
};

struct build_disk {
	const struct eng_build_env *env;
	struct build_disk_req req;
	struct build_disk_events ev;
	void *ctx;

	char work[32]; // name in tmp_dir
	int tmp_fd;
	struct eng_child *program;
	struct eng_timer *tick;
	uint64_t image_bytes; // from the result line; 0: none came

	atomic_bool cancelled;
	atomic_int percent;
	int rc; // first failure
	struct err err;
};

static void disk_free(struct build_disk *d)
{
	eng_child_destroy(d->program);
	eng_timer_destroy(d->tick);
	fd_close(&d->tmp_fd);
	free(d);
}

static void disk_fail(struct build_disk *d, int rc, const char *why)
{
	if (!d->rc)
		d->rc = err_set(&d->err, rc < 0 ? rc : -EIO, "%s", why);
}

// --- storing -------------------------------------------------------------

static int store_range(struct build_disk *d, struct pgc_builder *b, int fd,
		       void *buf, off_t at, off_t end, struct err *e)
{
	for (; at < end; at += CHUNK) {
		size_t n = (size_t)MIN((off_t)CHUNK, end - at);
		int rc;

		if (atomic_load(&d->cancelled))
			return err_set(e, -ECANCELED, "cancelled");
		rc = util_pread_all(fd, buf, n, at);
		if (rc)
			return err_wrap(e, rc, "reading the disk image");
		rc = pgc_builder_put(b, PGC_DISK, (uint64_t)at / PGC_PAGE, buf,
				     n / PGC_PAGE, e);
		if (rc)
			return rc;
		atomic_store(&d->percent,
			     (int)((uint64_t)at * 100 / d->image_bytes));
	}
	return 0;
}

// Data ranges only: the rest of the image reads as zero, as unput pages do.
static int store_all(struct build_disk *d, struct pgc_builder *b, int fd,
		     struct err *e)
{
	cleanup_free void *buf = malloc(CHUNK);
	off_t size = (off_t)d->image_bytes, at = 0, end;
	int rc;

	if (!buf)
		return err_set(e, -ENOMEM, "out of memory");
	while (at < size) {
		at = lseek(fd, at, SEEK_DATA);
		if (at < 0 && errno == ENXIO)
			return 0; // only a hole is left
		if (at < 0)
			return err_sys(e, "reading the disk image");
		end = lseek(fd, at, SEEK_HOLE);
		if (end < 0)
			return err_sys(e, "reading the disk image");
		at = ALIGN_DOWN(at, (off_t)PGC_PAGE);
		end = MIN(ALIGN_UP(end, (off_t)PGC_PAGE), size);
		rc = store_range(d, b, fd, buf, at, end, e);
		if (rc)
			return rc;
		at = end;
	}
	return 0;
}

static int store_image(struct build_disk *d, struct err *e)
{
	uint64_t npages[PGC_NUM_STREAMS] = {0};
	cleanup_fd int work = -1, fd = -1;
	struct pgc_builder *b;
	struct stat st;
	int rc;

	work = openat(d->tmp_fd, d->work,
		      O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC | O_RDONLY);
	if (work >= 0)
		fd =
		    openat(work, "disk.img", O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st))
		return err_sys(e, "opening the disk image");
	if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != d->image_bytes ||
	    d->image_bytes % PGC_PAGE ||
	    d->image_bytes / PGC_PAGE > PGC_STREAM_MAX_PAGES)
		return err_set(e, -EIO, "the disk image has a wrong size");
	npages[PGC_DISK] = d->image_bytes / PGC_PAGE;
	rc = pgc_builder_begin(d->env->store, &d->req.id, NULL, npages, &b, e);
	if (rc)
		return rc;
	rc = store_all(d, b, fd, e);
	if (!rc && atomic_load(&d->cancelled))
		rc = err_set(e, -ECANCELED, "cancelled");
	if (rc) {
		pgc_builder_abort(b);
		return rc;
	}
	return pgc_builder_commit(b, e);
}

static void store_job(void *ctx)
{
	struct build_disk *d = ctx;
	struct err e = ERR_INIT;
	int rc;

	if (!d->rc) {
		rc = store_image(d, &e);
		if (rc)
			disk_fail(d, rc, e.msg);
	}
	util_rmtree(d->tmp_fd, d->work, &e);
}

// The loop may have cancelled after the job's last look: the pipeline's owner
// then finds a published snapshot and rc 0, and removes it like any other.
static void store_done(void *ctx)
{
	struct build_disk *d = ctx;
	struct build_disk_events ev = d->ev;
	void *up = d->ctx;
	int rc = d->rc;
	struct err err = d->err;

	disk_free(d);
	ev.done(up, rc, err.msg);
}

static void tick(void *ctx)
{
	struct build_disk *d = ctx;

	d->ev.progress(d->ctx, "store", atomic_load(&d->percent),
		       "storing the disk");
	eng_timer_set(d->tick, PROGRESS_MS);
}

static void start_storing(struct build_disk *d)
{
	if (!d->rc) {
		d->ev.progress(d->ctx, "store", 0, "storing the disk");
		eng_timer_set(d->tick, PROGRESS_MS);
	}
	eng_job_run(d->env->jobs, store_job, store_done, d);
}

// --- the program ---------------------------------------------------------

// "WORD NUMBER REST": false when `line` does not begin so.
static bool parse_line(const char *line, const char *word, long long *number,
		       const char **rest)
{
	size_t n = strlen(word);
	char *end;

	if (strncmp(line, word, n) != 0 || line[n] != ' ')
		return false;
	errno = 0;
	*number = strtoll(line + n + 1, &end, 10);
	if (errno || end == line + n + 1 || *end != ' ')
		return false;
	*rest = end + 1;
	return true;
}

static void take_line(void *ctx, char *line, size_t n)
{
	struct build_disk *d = ctx;
	const char *rest;
	long long v;

	(void)n;
	if (parse_line(line, "progress", &v, &rest))
		d->ev.progress(d->ctx, "disk", v < 0 || v > 100 ? -1 : (int)v,
			       rest);
	else if (!strncmp(line, "note ", 5))
		d->ev.progress(d->ctx, "disk", -1, line + 5);
	else if (parse_line(line, "error", &v, &rest))
		disk_fail(d, v < 0 && v > -4096 ? (int)v : -EIO, rest);
	else if (parse_line(line, "result", &v, &rest) && v > 0)
		d->image_bytes = (uint64_t)v;
}

static void program_ended(void *ctx, bool ok, const char *how)
{
	struct build_disk *d = ctx;
	char why[100];

	if (atomic_load(&d->cancelled)) {
		disk_fail(d, -ECANCELED, "cancelled");
	} else if (!ok || !d->image_bytes) {
		snprintf(why, sizeof(why),
			 "thaw-mkdisk ended without a word (%s)", how);
		disk_fail(d, -EIO, why);
	}
	start_storing(d);
}

static int start_program(struct build_disk *d, struct err *e)
{
	char work[PATH_MAX], uid[16], gid[16], bytes[24], parent[16];
	static const struct eng_child_events events = {take_line,
						       program_ended};
	char *argv[] = {(char *)d->env->mkdisk_path,
			"--source",
			(char *)d->req.rootfs,
			"--work",
			work,
			"--uid",
			uid,
			"--gid",
			gid,
			"--parent",
			parent,
			"--disk-bytes",
			bytes,
			NULL};

	if (snprintf(work, sizeof(work), "%s/%s", d->env->tmp_dir, d->work) >=
	    (int)sizeof(work))
		return err_set(e, -ENAMETOOLONG, "the state path is too long");
	snprintf(uid, sizeof(uid), "%u", (unsigned)d->req.uid);
	snprintf(gid, sizeof(gid), "%u", (unsigned)d->req.gid);
	snprintf(parent, sizeof(parent), "%d", (int)getpid());
	snprintf(bytes, sizeof(bytes), "%llu",
		 (unsigned long long)(d->req.disk_mib << 20));
	return eng_child_start(&d->program, d->env->loop, argv, &events, d,
			       "mkdisk", e);
}

int build_disk_start(struct build_disk **out, const struct eng_build_env *env,
		     const struct build_disk_req *req,
		     const struct build_disk_events *ev, void *ctx,
		     struct err *e)
{
	struct build_disk *d = calloc(1, sizeof(*d));
	uint8_t rnd[8];
	int rc;

	if (!d)
		return err_set(e, -ENOMEM, "out of memory");
	*d = (struct build_disk){
	    .env = env, .req = *req, .ev = *ev, .ctx = ctx, .tmp_fd = -1};
	util_random(rnd, sizeof(rnd));
	memcpy(d->work, WORK_PREFIX, sizeof(WORK_PREFIX));
	util_hex(d->work + strlen(WORK_PREFIX), rnd, sizeof(rnd));
	d->tick = eng_timer_create(env->loop, tick, d, "build disk progress");
	d->tmp_fd = open(env->tmp_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (!d->tick)
		rc = err_set(e, -ENOMEM, "out of memory");
	else if (d->tmp_fd < 0 || mkdirat(d->tmp_fd, d->work, 0700))
		rc = err_sys(e, "making a work directory in %s", env->tmp_dir);
	else
		rc = start_program(d, e);
	if (rc) {
		if (d->tmp_fd >= 0)
			unlinkat(d->tmp_fd, d->work, AT_REMOVEDIR);
		disk_free(d);
		return rc;
	}
	*out = d;
	return 0;
}

void build_disk_cancel(struct build_disk *d)
{
	atomic_store(&d->cancelled, true);
	eng_child_kill(d->program, SIGKILL);
}

int eng_build_sweep(const char *tmp_dir, struct err *e)
{
	return util_sweep(tmp_dir, WORK_PREFIX, e);
}
