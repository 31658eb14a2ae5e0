#include <errno.h>
#include <stdlib.h>

#include "written.h"
#include "wire.h"

enum {
	RUN_BYTES = 8,
	RUNS_MAX = 65536,
	PAGES_MAX = 16384, // 64 MiB
};

static const char blob_name[] = "written";

int written_put(struct pgc_builder *b, const struct pagescan *written,
		struct err *e)
{
	size_t n = MIN(written->n, (size_t)RUNS_MAX);
	cleanup_free uint8_t *buf = malloc(n * RUN_BYTES + 1);
	struct wire_writer w = wire_writer_of(buf, n * RUN_BYTES);

	if (!buf)
		return err_set(e, -ENOMEM,
			       "no memory for the list of written pages");
	for (size_t i = 0; i < n; i++) {
		wire_put_u32(&w, written->runs[i].pgno);
		wire_put_u32(&w, written->runs[i].npages);
	}
	return n ? pgc_builder_blob(b, blob_name, buf, w.len, e) : 0;
}

// Adds what of [at, end) is the parent's, as far as there is room.
static size_t add_parents(const struct pgc_snap *sn, uint64_t at, uint64_t end,
			  uint32_t *out, size_t n)
{
	struct pgc_run run;

	while (at < end && n < PAGES_MAX &&
	       pgc_snap_run(sn, PGC_MEM, at, &run)) {
		uint64_t to = MIN(run.pgno + run.npages, end);

		for (; run.kind == PGC_RUN_PARENT && at < to && n < PAGES_MAX;
		     at++)
			out[n++] = (uint32_t)at | PGC_WRITTEN;
		at = to;
	}
	return n;
}

uint32_t *written_as_parent(const struct pgc_snap *sn, size_t *n)
{
	uint64_t pages = pgc_snap_pages(sn, PGC_MEM), last = 0;
	uint32_t *out = malloc(PAGES_MAX * sizeof(*out));
	struct wire_reader r = {0};
	size_t len;
	const void *blob = pgc_snap_blob(sn, blob_name, &len);

	*n = 0;
	if (blob)
		r = wire_reader_of(blob, len);
	while (out && wire_left(&r)) {
		uint64_t pgno = wire_get_u32(&r), npages = wire_get_u32(&r);

		if (r.bad || !npages || pgno < last || pgno >= pages ||
		    npages > pages - pgno) {
			*n = 0;
			break;
		}
		last = pgno + npages;
		*n = add_parents(sn, pgno, last, out, *n);
	}
	if (!*n) {
		free(out);
		return NULL;
	}
	return out;
}
