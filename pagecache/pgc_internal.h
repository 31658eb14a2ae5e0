// What the files of this room share. Nothing here is for other rooms.
//
// Locks, outermost first: gc_lock (one collection at a time), names_lock (the
// names in snaps/), merge_lock (one index rewrite at a time), index.lock
// (rwlock: lookups share it), lock (registry of packs, open maps). Whoever
// holds one may take those after it, never those before it.
#ifndef PGC_INTERNAL_H
#define PGC_INTERNAL_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "pagecache.h"
#include "pgc_format.h"

// --- codec.c -----------------------------------------------------------------

struct page_id {
	uint64_t lo, hi; // XXH3-128; lo is the key of index and maps
};

// Test hooks; zero in production. hash_mask: bits of every page id that are
// forced to 0, so that different pages collide. uid_seed: file uids count up
// from here instead of being random, so that output is reproducible.
extern struct pgc_test_hooks {
	uint64_t hash_mask;
	_Atomic uint64_t uid_seed;
	void (*gc_marked)(void *ctx); // between survey and deletion
	void *gc_ctx;
} pgc_test_hooks;

struct page_id page_id_of(const void *page);
bool page_is_zero(const void *page);
uint64_t hash64(const void *p, size_t len);
void hash128(uint8_t out[16], const void *p, size_t len);
// Compresses into dst (PGC_PAGE bytes); returns the stored length, PGC_PAGE
// when the page itself was copied because lz4 does not make it smaller.
uint32_t page_encode(uint8_t *dst, const void *page);
// Writes a whole record: header and data (len bytes).
void rec_make(uint8_t *dst, const struct page_id *id, const void *data,
	      uint32_t len, uint64_t uid, uint64_t off);
// Parses and checks a record without decoding it; 0 or -EBADMSG.
int rec_parse(const uint8_t *rec, size_t avail, uint64_t uid, uint64_t off,
	      struct page_id *id, uint32_t *len);
// Decodes the record at `rec` (loc_size(loc) bytes readable) and verifies that
// it is the page that `key` names. `why` (may be NULL) gets the reason of
// -EBADMSG.
int rec_decode(const uint8_t *rec, uint64_t uid, uint64_t loc, uint64_t key,
	       void *page, const char **why);
uint64_t new_uid64(void);
void new_uid128(uint8_t out[16]);

// --- pack.c ------------------------------------------------------------------

struct pack {
	uint64_t uid, size, records;
	uint32_t slot;
	int fd;		  // open while pinned, once it was needed
	unsigned pins;	  // by open maps and builders
	uint64_t touched; // the collection that was running at the last unpin
	bool building;	  // a builder's, not published yet
	bool indexed;	  // its records are in index or delta
	bool keep;	  // not to be collected in this process
};

struct packs {
	struct pack **slot; // by slot; NULL: none (any more)
	uint32_t n, cap;
};

// Makes a slot for a pack; pinned once when `building`. NULL: no memory or
// slots.
struct pack *pack_add(struct pgc_store *s, uint64_t uid, uint64_t size,
		      bool building);
// Pin by slot or uid; NULL when there is no such published pack.
struct pack *pack_pin(struct pgc_store *s, uint32_t slot);
struct pack *pack_pin_uid(struct pgc_store *s, uint64_t uid);
void pack_unpin(struct pgc_store *s, struct pack *p);
// Opens and validates the file of a pinned pack: 0, -EBADMSG, -ENOTSUP, -errno.
int pack_open(struct pgc_store *s, struct pack *p, struct err *e);
// Takes an unpinned pack out of the registry and deletes its file if nobody
// touched it since collection `gen` began; bytes freed or 0.
uint64_t pack_doom(struct pgc_store *s, struct pack *p, uint64_t gen);
// Ends a collection's own pin, which must not count as a touch.
void pack_unpin_quietly(struct pgc_store *s, struct pack *p);
// The records field of a pack's header; 0 when it cannot be read.
uint64_t pack_peek_records(struct pgc_store *s, uint64_t uid);
void pack_drop(struct pgc_store *s, struct pack *p); // a builder's, gone wrong
void pack_path(char *dst, size_t n, const char *folder, uint64_t uid);
// Calls back for every record, in order; stops at the first damage (-EBADMSG)
// or when cb returns nonzero. Contents are the callback's to verify.
struct rec_info {
	struct page_id id;
	uint64_t loc;
	const uint8_t *rec;
};
int pack_scan(struct pgc_store *s, struct pack *p,
	      int (*cb)(void *ctx, const struct rec_info *r), void *ctx,
	      struct err *e);
// One record of a pinned, opened pack into buf (loc_size bytes); 0 or -errno.
int pack_read(const struct pack *p, uint64_t off, void *buf, size_t len);

// --- packwriter.c ------------------------------------------------------------

struct packwriter {
	struct pgc_store *s;
	struct pack **packs; // sealed ones, then the one being written
	uint32_t n, cap;
	struct pack *cur;
	uint8_t *buf; // bytes [flushed, flushed + buffered) of cur
	size_t buffered;
	uint64_t flushed, kicked, records;
	uint64_t appended; // over all packs, with record headers
};

int pw_init(struct packwriter *w, struct pgc_store *s);
// Appends a record whose data is `len` bytes.
int pw_append(struct packwriter *w, const struct page_id *id, const void *data,
	      uint32_t len, uint64_t *loc, struct err *e);
// Bytes of a record that may still be in the buffer.
int pw_read(struct packwriter *w, uint64_t loc, void *buf);
int pw_read_header(struct packwriter *w, uint64_t loc, void *buf);
int pw_seal(struct packwriter *w, struct err *e);
// After pw_seal: fsync, rename into packs/, fsync the folder.
int pw_publish(struct packwriter *w, struct err *e);
// Registers what was published (gc may see it) but keeps the pins.
void pw_release(struct packwriter *w);
// Deletes files (if !published) and frees everything; pins go.
void pw_fini(struct packwriter *w, bool published);

// --- index.c -----------------------------------------------------------------

struct kent {
	uint64_t key, loc; // loc 0: empty
};
struct ktab { // open addressing, several entries may share a key
	struct kent *e;
	size_t n, cap;
	uint64_t mul; // random
};
int ktab_add(struct ktab *t, uint64_t key, uint64_t loc);
size_t ktab_find(const struct ktab *t, uint64_t key, uint64_t *locs,
		 size_t max);
void ktab_free(struct ktab *t);

struct index {
	pthread_rwlock_t lock;
	const uint8_t *map; // the file, mapped; NULL: none
	size_t map_len;
	const uint8_t *ents; // inside map
	uint64_t count;
	uint32_t *slots; // the file's pack table -> slot (0: that pack is gone)
	uint32_t npacks;
	struct ktab delta;
};

enum { INDEX_MAX_CANDIDATES = 8 };

int index_init(struct index *ix);
void index_fini(struct index *ix);
// Loads the file and binds it to the registry; -ENOENT, -EBADMSG, -ENOTSUP.
int index_load(struct pgc_store *s, struct err *e);
size_t index_find(struct pgc_store *s, uint64_t key,
		  uint64_t locs[INDEX_MAX_CANDIDATES]);
// Takes in a builder's (or a scan's) entries and marks the packs as indexed.
int index_take(struct pgc_store *s, const struct ktab *t,
	       struct pack *const *packs, uint32_t npacks);
// Scans packs that no index knows.
int index_catch_up(struct pgc_store *s, struct err *e);
// Rewrites the file when the delta (or the dead part) has grown, or if forced.
int index_merge(struct pgc_store *s, bool force, struct err *e);
void index_relax(struct pgc_store *s);		      // gives mapped pages back
int index_verify(struct pgc_store *s, struct err *e); // fsck: the file

// --- map.c -------------------------------------------------------------------

struct mrun {
	uint32_t start, first; // first page; first entry (DATA)
	uint32_t kind;	       // RUN_K_*, maybe | RUN_SAME
};
struct mstream {
	uint64_t npages, nonzero, own;
	uint32_t nruns, nents;
	struct mrun *runs; // and one more, whose start is npages
	const uint8_t *ents;
};
struct mblob {
	char name[SNAP_BLOB_NAME];
	const uint8_t *p;
	size_t len;
};
struct map {
	struct pgc_store *s;
	struct map *next; // store's list of open maps
	unsigned refs;
	uint8_t uid[16];
	struct pgc_id id, parent, base_id;
	uint8_t base_uid[16];
	bool has_parent, has_base;
	struct map *base;
	struct mstream st[PGC_NUM_STREAMS];
	uint64_t stored_bytes, unique_bytes;
	uint32_t npacks, nblobs;
	uint64_t *pack_uids;
	struct pack **packs; // bound: pinned, same order
	struct mblob *blobs;
	uint8_t *buf; // the file
	size_t len;
};

// Parses and validates a whole file; takes `buf` over in any case. Not bound to
// packs: `what` names the file in errors.
int map_parse(struct map **out, uint8_t *buf, size_t len, const char *what,
	      struct err *e);
int map_read_file(struct map **out, struct pgc_store *s, const char *path,
		  struct err *e);
void map_free(struct map *m); // an unbound one
// Opens the published map of `id`, bound and with its base; shared by uid.
int map_open(struct pgc_store *s, const struct pgc_id *id, struct map **out,
	     struct err *e);
// The same for a file that only others build on (snaps/UID.base).
int map_open_base(struct pgc_store *s, const uint8_t uid[16], struct map **out,
		  struct err *e);
struct map *map_ref(struct map *m);
void map_unref(struct map *m);

// A stretch of pages of one nature.
struct mseg {
	uint64_t pgno, npages;
	bool data, same;	 // not zero; same as the parent's
	const struct map *owner; // whose packs and entries
	const uint8_t *ents;	 // of the first page (data only)
};
// The stretch at pgno, clipped to start there; pgno < npages of the stream.
void map_seg(const struct map *m, enum pgc_stream st, uint64_t pgno,
	     struct mseg *out);
static inline uint64_t seg_loc(const struct mseg *g, uint64_t i)
{
	uint64_t loc = le64(g->ents + i * SNAP_ENT);

	return loc_with_pack(loc, g->owner->packs[loc_pack(loc)]->slot);
}
static inline uint64_t seg_key(const struct mseg *g, uint64_t i)
{
	return le64(g->ents + i * SNAP_ENT + 8);
}
static inline struct pack *seg_pack(const struct mseg *g, uint64_t i)
{
	return g->owner->packs[loc_pack(le64(g->ents + i * SNAP_ENT))];
}

// Writes a file image from its parts (header fields in `m`, which needs no
// buf).
struct mapsrc {
	const uint32_t *runs[PGC_NUM_STREAMS];
	uint32_t nruns[PGC_NUM_STREAMS];
	const uint8_t *ents[PGC_NUM_STREAMS];
	uint32_t nents[PGC_NUM_STREAMS];
};
int map_serialise(const struct map *m, const struct mapsrc *src, uint8_t **out,
		  size_t *len);
// Recomputes both checksums of a file image that was edited in place.
void map_reseal(uint8_t *buf, size_t len);

// --- workset.c ---------------------------------------------------------------

struct ws_frame { // WS_FRAME_PAGES of the list, those that are not zero
	uint32_t len, check;
	bool raw;
	uint64_t off; // in the file
};
struct workset {
	atomic_uint refs;
	int fd; // for direct reads, where they can be had
	size_t n, npgnos;
	struct ws_frame *frames;
	uint32_t *pgnos; // the list, maybe with PGC_WRITTEN
	uint64_t bytes;	 // of the file
};
void ws_path(char *dst, size_t n, const struct pgc_id *id, enum pgc_stream st);
int ws_load(struct pgc_store *s, const struct map *m, enum pgc_stream st,
	    struct workset **out, struct err *e); // -ENOENT: none
void ws_unref(struct workset *w);		  // NULL is fine
// The part of the list that a frame has; how many.
unsigned ws_frame_pages(const struct workset *w, size_t frame,
			const uint32_t **pgnos);
// Decodes a frame into its pages, those that are zero left out, and verifies each
// against the map. -EBADMSG, and why.
int ws_decode(const struct map *m, enum pgc_stream st, const struct workset *w,
	      size_t frame, const uint8_t *data, uint8_t *pages,
	      const char **why);
// Reads and verifies a whole file.
int ws_verify(struct pgc_store *s, const struct map *m, enum pgc_stream st,
	      struct err *e);

// --- snap.c ------------------------------------------------------------------

struct pgc_snap {
	atomic_uint refs;
	struct map *map;
	struct workset *ws[PGC_NUM_STREAMS]; // NULL: none
};

// --- plan.c ------------------------------------------------------------------

// Pages of one request with the reads that fetch their records.
struct plan_page {
	uint64_t pgno, loc, key;
	const struct pack *pack;
	uint32_t pos; // where its record begins in the buffer
};
struct plan_read {
	const struct pack *pack;
	uint64_t off;
	uint32_t len, pos;
};
struct plan {
	uint32_t npages, nreads, bytes;
	uint32_t cap;		 // pages
	struct plan_page *pages; // after plan_layout: by location
	struct plan_read *reads;
};
int plan_init(struct plan *p, uint32_t max_pages);
void plan_fini(struct plan *p);
// Adds the non-zero pages of [pgno, pgno + n).
void plan_add(struct plan *p, const struct map *m, enum pgc_stream st,
	      uint64_t pgno, uint64_t n);
// Lays out the reads: neighbours closer than `gap` bytes become one.
void plan_layout(struct plan *p, uint32_t gap);
void plan_by_page(struct plan *p); // back into the order of page numbers

// --- io.c --------------------------------------------------------------------

struct batch;
struct io_read {
	struct io_read *next;
	struct batch *batch;
	int fd;
	uint64_t off;
	uint32_t len, done;
	uint8_t *buf;
	int rc; // 0, -errno, -ENODATA: the file ends early
	bool urgent;
};
struct io;
int io_create(struct io **out, bool no_uring, struct err *e);
void io_destroy(struct io *io); // waits for reads in flight
int io_fd(const struct io *io);
bool io_is_uring(const struct io *io);
void io_queue(struct io *io, struct io_read *r); // then io_submit()
void io_submit(struct io *io);
void io_hurry(struct io *io, const struct batch *b);
struct io_read *io_reap(struct io *io); // a list of finished reads, or NULL
void io_clear(struct io *io);		// the event was seen
void io_poke(struct io *io);		// make the descriptor readable again

// --- prefetch.c --------------------------------------------------------------

enum { PF_SLICE_MAX = 64 };

struct pf_slice { // frames that a worker has dealt with
	struct pf_slice *next;
	struct pgc_template *t;
	struct workset *w;
	unsigned n, at, page; // the next to be reported
	struct {
		size_t frame;
		int rc;
		bool from_packs; // to be had from there
		char *why;
	} c[PF_SLICE_MAX];
};
struct prefetcher;
int pf_create(struct prefetcher **out, struct io *io, struct err *e);
void pf_destroy(struct prefetcher *f);
struct pf_slice *pf_take(struct prefetcher *f); // the next one, or NULL
void pf_slice_free(struct pf_slice *sl);
void pf_forget(struct prefetcher *f, const struct pgc_template *t);

// --- fill.c, template.c ------------------------------------------------------

enum { CL_IDLE, CL_QUEUED, CL_READING };
enum { INSTALL_LOCKS = 16 };

struct pgc_template {
	struct pgc_template *next;
	struct pgc_store *s;
	struct pgc_snap *snap;
	enum pgc_stream st;
	uint64_t npages, nclusters;
	_Atomic uint64_t resident;
	int memfd, rofd, uffd;
	uint8_t *mem;
	_Atomic uint8_t *cl; // CL_* of each cluster: what requests do with it
	// For each cluster, a bit a page: those in the memfd, and those that a
	// prefetch is bringing.
	_Atomic uint16_t *in, *coming;
	uint16_t *want; // those that were asked for since the last fill
	bool exact;	// nothing else is installed
	pthread_mutex_t install[INSTALL_LOCKS]; // of clusters, by number
	// Clusters of which the owner knows a page to be in, oldest first.
	uint32_t *ring;
	uint8_t *ringed;
	uint64_t ring_at, ring_n;
	unsigned pins; // nothing may be evicted
};
struct filler;
int filler_create(struct filler **out, struct pgc_store *s, bool no_uring,
		  struct err *e);
void filler_destroy(struct filler *f);
int filler_fd(const struct filler *f);
bool filler_is_uring(const struct filler *f);
struct prefetcher *filler_prefetcher(struct filler *f);
void filler_forget(struct filler *f, struct pgc_template *t);
int filler_request(struct filler *f, struct pgc_template *t, uint64_t first,
		   uint64_t count, bool urgent);
void filler_pump(struct filler *f);
size_t filler_drain(struct filler *f, struct pgc_done *out, size_t max);
// Which of the pages at `pgno`, in one cluster, are data and not in: a bit each,
// the cluster's first page being bit 0. `n` pages are looked at.
uint16_t template_lacks(const struct pgc_template *t, uint64_t pgno,
			uint64_t n);
// Installs `n` decoded pages of one cluster, none of them zero in the snapshot;
// those that are in already are skipped. Any thread.
int template_install(struct pgc_template *t, uint64_t pgno, unsigned n,
		     const uint8_t *pages, char *why, size_t nwhy);
void template_filled(struct pgc_template *t, uint64_t cluster); // owner

// --- store.c -----------------------------------------------------------------

struct pgc_store {
	char *dir;
	int dirfd, packs_fd, snaps_fd, tmp_fd, lock_fd;
	struct pgc_options opt;
	pthread_mutex_t lock, names_lock, gc_lock, merge_lock;
	struct packs packs;
	struct map *maps;
	struct index index;
	uint64_t gc_gen;
	unsigned builders;
	struct filler *filler;
	struct pgc_template *templates; // owner thread
};

void snap_path(char *dst, size_t n, const struct pgc_id *id);
void base_path(char *dst, size_t n, const uint8_t uid[16]);
// Writes tmp/NAME and fsyncs it; on error nothing is left.
int store_write_tmp(struct pgc_store *s, const char *name, const void *buf,
		    size_t len, struct err *e);
int store_sync_dir(int fd, const char *what, struct err *e);
// Reads a whole file, up to `max` bytes; *buf is the caller's.
int store_slurp(struct pgc_store *s, const char *path, size_t max,
		uint8_t **buf, size_t *len, struct err *e);
// Calls back for each file in snaps/ whose name ends in `suffix`; 32 hex digits
// before it are given as bytes.
int store_each(struct pgc_store *s, const char *suffix,
	       int (*cb)(void *ctx, const uint8_t name[16]), void *ctx,
	       struct err *e);

static inline void must_lock(pthread_mutex_t *m)
{
	if (pthread_mutex_lock(m))
		abort(); // only a broken invariant of ours can do that
}
static inline void must_unlock(pthread_mutex_t *m)
{
	if (pthread_mutex_unlock(m))
		abort();
}

#endif
