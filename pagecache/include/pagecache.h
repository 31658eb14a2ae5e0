// pagecache: the content-addressed store of 4 KiB pages, and templates.
//
// A *store* is a directory of packs, an index and snapshots
// (docs/STORE_FORMAT.md). A *snapshot* has streams of pages (memory, disk) and
// named blobs (CPU and device state, configuration). A *template* is one
// stream of one snapshot, decompressed lazily into a memfd that any number of
// microVMs map privately.
//
// Pages are keyed by XXH3-128, compared byte by byte before they are
// deduplicated, compressed by lz4 (raw where that is smaller) and verified
// each time they are read. Zero pages are a flag and are never stored.
//
// Threads. A store handle may be used from several threads where a function
// says "any thread". Everything else is for the owner thread (the loop). The
// room has no event loop: pgc_event_fd() is pollable, pgc_drain() completes.
#ifndef THAW_PAGECACHE_H
#define THAW_PAGECACHE_H

#include "base.h"

enum {
	PGC_PAGE = 4096,
	PGC_CLUSTER_PAGES = 16, // 64 KiB: what one fill reads and installs
	PGC_BLOB_MAX = 16 * 1024 * 1024,
	PGC_STREAM_MAX_PAGES = 1u << 26, // 256 GiB
};

struct pgc_id {
	uint8_t b[16]; // random, chosen by the caller
};

enum pgc_stream { PGC_MEM, PGC_DISK, PGC_NUM_STREAMS };

// --- store --------------------------------------------------------------------

struct pgc_store;

struct pgc_options {
	size_t struct_size;
	bool no_uring;	 // the plain fallback, as if io_uring were refused
	bool keep_index; // tests: do not rebuild the index from the packs
};

// Opens (or makes) the store in `dir`, takes its lock (-EBUSY: somebody else
// has it), recovers: unpublished leftovers are removed, a missing or corrupt
// index is rebuilt from the packs. opt may be NULL.
int pgc_store_open(struct pgc_store **out, const char *dir,
		   const struct pgc_options *opt, struct err *e);
void pgc_store_close(struct pgc_store *s); // NULL is fine

struct pgc_store_stats {
	uint64_t pages, raw_bytes, stored_bytes; // unique pages and their sizes
	uint64_t pack_bytes, index_bytes, map_bytes, packs, snapshots;
	bool uring;		// io_uring in use
	uint64_t workset_bytes; // not in map_bytes
};
void pgc_store_get_stats(struct pgc_store *s, struct pgc_store_stats *out);

// --- building a snapshot (any one thread per builder) -----------------------------

struct pgc_builder;
struct pgc_snap;

// Starts a snapshot. `parent` (or NULL) is a published snapshot: a page that is
// not put keeps the parent's content; without a parent it is zero. `npages` are
// the stream lengths, 0 for a stream that does not exist; with a parent they
// must equal the parent's.
int pgc_builder_begin(struct pgc_store *s, const struct pgc_id *id,
		      const struct pgc_id *parent,
		      const uint64_t npages[PGC_NUM_STREAMS],
		      struct pgc_builder **out, struct err *e);
// Puts `n` pages at [pgno, pgno+n): hash, deduplicate (byte compare), compress,
// append. Pages of zeroes become zero pages. May be called again for a page.
int pgc_builder_put(struct pgc_builder *b, enum pgc_stream st, uint64_t pgno,
		    const void *pages, size_t n, struct err *e);
// Attaches a blob under a name of 1..31 characters; replaces an older one. With a
// parent, blobs are NOT inherited.
int pgc_builder_blob(struct pgc_builder *b, const char *name, const void *p,
		     size_t len, struct err *e);
// Makes pages [pgno, pgno+n) refer to what `from` has there: nothing is read or
// stored. (A new image takes its disk so; a suspend keeps blocks it never loaded.)
int pgc_builder_ref(struct pgc_builder *b, enum pgc_stream st, uint64_t pgno,
		    uint64_t n, const struct pgc_snap *from, struct err *e);
// Publishes: after 0 the snapshot survives a power cut; after an error nothing
// of it is visible. Consumes the builder either way.
int pgc_builder_commit(struct pgc_builder *b, struct err *e);
void pgc_builder_abort(struct pgc_builder *b); // consumes; NULL is fine

struct pgc_snap_stats {
	uint64_t pages[PGC_NUM_STREAMS];   // length of the streams
	uint64_t nonzero[PGC_NUM_STREAMS]; // pages that are not zero
	uint64_t own[PGC_NUM_STREAMS]; // pages that differ from the parent's
	// Pack bytes that this snapshot was first to store.
	uint64_t stored_bytes;
	// Compressed bytes of all pages it references, once each.
	uint64_t unique_bytes;
	uint64_t map_bytes; // its snapshot file
	// Its working sets' files, as this handle has them.
	uint64_t workset_bytes;
};

// --- snapshots -----------------------------------------------------------------

struct pgc_snap; // an opened snapshot, reference-counted

// Opens and validates completely. -ENOENT, -EBADMSG (corrupt), -ENOTSUP (version).
int pgc_snap_open(struct pgc_store *s, const struct pgc_id *id,
		  struct pgc_snap **out, struct err *e); // any thread
struct pgc_snap *pgc_snap_ref(struct pgc_snap *sn);
void pgc_snap_unref(struct pgc_snap *sn); // NULL is fine
const struct pgc_id *pgc_snap_id(const struct pgc_snap *sn);
bool pgc_snap_parent(const struct pgc_snap *sn, struct pgc_id *out);
uint64_t pgc_snap_pages(const struct pgc_snap *sn, enum pgc_stream st);
// Borrowed until the last unref; NULL when there is no such blob.
const void *pgc_snap_blob(const struct pgc_snap *sn, const char *name,
			  size_t *len);
// The working set: page numbers of a stream in order of first access, recorded on
// an earlier thaw; those that the guest wrote with PGC_WRITTEN. Setting it
// writes the side file of a published snapshot, with these pages in it,
// atomically and durably; handles opened before keep the old one. It reads,
// compresses and waits for the disk: for workers, any thread.
#define PGC_WRITTEN 0x80000000u
int pgc_snap_set_workset(struct pgc_store *s, const struct pgc_id *id,
			 enum pgc_stream st, const uint32_t *pgnos, size_t n,
			 struct err *e);
// Removes the working sets' files of a snapshot: second copies, which a thaw of it
// makes anew. Handles that are open keep them. Any thread.
int pgc_snap_drop_worksets(struct pgc_store *s, const struct pgc_id *id,
			   struct err *e);
// As it was recorded, but what was named of a cluster comes at its first
// mention, by page number, and of a cluster with more than four such pages all
// of it; no page twice.
size_t pgc_snap_workset(const struct pgc_snap *sn, enum pgc_stream st,
			const uint32_t **pgnos); // borrowed
void pgc_snap_get_stats(const struct pgc_snap *sn, struct pgc_snap_stats *out);

// Runs of equal kind, for laying out guest memory and for resume.
enum pgc_run_kind {
	PGC_RUN_ZERO,	// zero pages
	PGC_RUN_PARENT, // same content as the parent snapshot's page
	PGC_RUN_OWN, // stored, differs from the parent (or there is no parent)
};
struct pgc_run {
	uint64_t pgno, npages;
	enum pgc_run_kind kind;
};
// The run at or after `pgno`, clipped to start there; false at the end. A zero
// page that is zero in the parent too is PGC_RUN_ZERO without a parent and
// PGC_RUN_PARENT with one; a page that became zero is PGC_RUN_ZERO.
bool pgc_snap_run(const struct pgc_snap *sn, enum pgc_stream st, uint64_t pgno,
		  struct pgc_run *out);

// Reads, decodes and verifies `n` pages into dst (synchronous; for worker threads).
// -EBADMSG: a stored page is corrupt; the sentence names it.
int pgc_snap_read(struct pgc_snap *sn, enum pgc_stream st, uint64_t pgno,
		  void *dst, size_t n, struct err *e); // any thread

// Every published snapshot id; calls back in no order. Stops when cb is nonzero.
int pgc_store_list(struct pgc_store *s,
		   int (*cb)(void *ctx, const struct pgc_id *id), void *ctx,
		   struct err *e);
// Unpublishes a snapshot, durably. Snapshots that have it as parent keep working
// (maps are complete). Its pages are freed by pgc_gc(). Any thread (handles that
// are open keep their pages and working sets).
int pgc_snap_remove(struct pgc_store *s, const struct pgc_id *id,
		    struct err *e);
// Frees packs that no published or open snapshot references, rewriting mostly
// dead ones; safe beside builders. Any thread.
int pgc_gc(struct pgc_store *s, uint64_t *freed_bytes, struct err *e);
// Reads and verifies everything; calls back once for each fault found.
int pgc_fsck(struct pgc_store *s, void (*bad)(void *ctx, const char *what),
	     void *ctx,
	     struct err *e); // any thread

// --- templates (owner thread) -----------------------------------------------------

// One stream of a snapshot as a shared memfd. The memfd is sealed against
// shrinking, growing and sealing, has mode 0, and is written only here, a
// whole page at a time, through a userfaultfd-registered shared mapping that is
// never touched otherwise (docs/STORE_FORMAT.md, "Templates"). The caller's read-only
// descriptor reads zeroes in pages that are not yet filled: whoever maps it
// must register the mapping for missing faults first.
struct pgc_template;

int pgc_template_open(struct pgc_snap *sn, enum pgc_stream st,
		      struct pgc_template **out, struct err *e);
void pgc_template_close(struct pgc_template *t); // no reader may be left
// The same in two steps: the first on the owner thread, at once; the second on
// any thread, before the store is closed. It gives the memory back, which takes
// 200 ms for a GiB.
void pgc_template_detach(struct pgc_template *t);
void pgc_template_free(struct pgc_template *t);
int pgc_template_fd(const struct pgc_template *t); // read-only, borrowed
// The writable descriptors that must outlive this process (for the keeper):
// the memfd's and its userfaultfd's; borrowed.
void pgc_template_guards(const struct pgc_template *t, int *memfd, int *uffd);
uint64_t pgc_template_resident(const struct pgc_template *t); // bytes

enum pgc_have { PGC_MISSING, PGC_FILLING, PGC_FILLED, PGC_ZERO };
enum pgc_have pgc_template_have(const struct pgc_template *t, uint64_t pgno);

// Asks for pages [pgno, pgno+n) to be filled: the clusters that hold them, unless
// a prefetch is bringing just what is missing. Returns 1 when all of these pages are
// filled already, 0 when a completion will come for each that is not, -errno.
// A completion may be for a part of a cluster, and a page that it names may be evicted by
// then: who waits asks again. `urgent` goes before prefetches.
int pgc_template_fill(struct pgc_template *t, uint64_t pgno, uint64_t n,
		      bool urgent, struct err *e);
// From now on fills bring only the pages that are asked for, not their clusters:
// so that every first touch of a page is an event of the clone, which is how it is
// recorded which pages are needed. Slow.
void pgc_template_exact(struct pgc_template *t, bool on);
// Starts filling the recorded working set in the background, in its order and in
// large reads, by threads of this room.
int pgc_template_prefetch(struct pgc_template *t, struct err *e);
// Whether that is still under way.
bool pgc_template_prefetching(const struct pgc_template *t);
// Gives up to about `bytes` of a memory template back, what was filled longest ago
// first; returns how many. Clones fault for them again. Nothing of a disk template
// (its readers do not fault) or of one that is pinned.
uint64_t pgc_template_evict(struct pgc_template *t, uint64_t bytes);
// While pinned, what is PGC_FILLED stays so, and any thread may read it from the
// descriptor. pgc_template_have() may then be called by any thread.
void pgc_template_pin(struct pgc_template *t);
void pgc_template_unpin(struct pgc_template *t);

// Completions. fd is pollable for reading for as long as something is due.
struct pgc_done {
	struct pgc_template *t;
	uint64_t pgno, npages; // filled (rc 0) or failed; in one cluster
	int rc;		       // -EBADMSG: corrupt, never installed; -EIO
	char why[160];
};
int pgc_event_fd(const struct pgc_store *s);
// Up to `max` completions; never blocks for I/O; bounded work per call (decodes
// and installs at most 32 clusters). 0: nothing left now.
size_t pgc_drain(struct pgc_store *s, struct pgc_done *out, size_t max);

#endif
