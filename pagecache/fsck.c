// Checking everything there is: index, packs, snapshots with what they build
// on, working sets. Reads only; what is published or collected meanwhile may be
// missed.
#include <stdlib.h>

#include "pgc_internal.h"

struct fsck {
	struct pgc_store *s;
	void (*bad)(void *ctx, const char *what);
	void *ctx;
	struct err *e;
	struct pack *pack; // being scanned
	uint64_t records;
};

static void report(struct fsck *f, const struct err *e, int rc)
{
	f->bad(f->ctx, e->msg[0] ? e->msg : strerror(-rc));
}

// --- packs -------------------------------------------------------------------

static int check_record(void *ctx, const struct rec_info *r)
{
	struct fsck *f = ctx;
	uint8_t page[PGC_PAGE];
	struct err e = ERR_INIT;
	const char *why = "";

	f->records++;
	if (rec_decode(r->rec, f->pack->uid, r->loc, r->id.lo, page, &why)) {
		err_set(&e, -EBADMSG,
			"pack %016llx is corrupt: the record at byte %u: %s",
			(unsigned long long)f->pack->uid, loc_off(r->loc), why);
		report(f, &e, -EBADMSG);
	}
	return 0;
}

static void check_packs(struct fsck *f)
{
	uint32_t n;

	must_lock(&f->s->lock);
	n = f->s->packs.n;
	must_unlock(&f->s->lock);
	for (uint32_t k = 1; k < n; k++) {
		struct err e = ERR_INIT;
		int rc;

		f->pack = pack_pin(f->s, k);
		if (!f->pack)
			continue;
		f->records = 0;
		rc = pack_scan(f->s, f->pack, check_record, f, &e);
		if (rc) {
			report(f, &e, rc);
		} else if (f->records != f->pack->records) {
			err_set(&e, -EBADMSG,
				"pack %016llx is corrupt: it has %llu records "
				"instead of %llu",
				(unsigned long long)f->pack->uid,
				(unsigned long long)f->records,
				(unsigned long long)f->pack->records);
			report(f, &e, -EBADMSG);
		}
		pack_unpin(f->s, f->pack);
	}
}

// --- snapshots ---------------------------------------------------------------

enum { CHUNK = 256 };

static void check_pages(struct fsck *f, enum pgc_stream st, const char *name,
			struct plan *p, uint8_t *buf)
{
	uint8_t page[PGC_PAGE];

	for (uint32_t i = 0; i < p->npages; i++) {
		const struct plan_page *g = &p->pages[i];
		struct err e = ERR_INIT;
		const char *why = "it cannot be read";
		int rc =
		    pack_read(g->pack, loc_off(g->loc), buf, loc_size(g->loc));

		if (!rc)
			rc = rec_decode(buf, g->pack->uid, g->loc, g->key, page,
					&why);
		if (rc) {
			err_set(&e, rc,
				"%s page %llu of snapshot %s is corrupt: %s "
				"(pack %016llx, byte %u)",
				st == PGC_MEM ? "memory" : "disk",
				(unsigned long long)g->pgno, name, why,
				(unsigned long long)g->pack->uid,
				loc_off(g->loc));
			report(f, &e, rc);
		}
	}
}

// Only what this map itself says: what it takes from its base is checked there.
static int check_map(struct fsck *f, const struct map *m, const char *name)
{
	cleanup_free uint8_t *buf = malloc(REC_HEADER + PGC_PAGE);
	struct plan p;
	int rc = plan_init(&p, CHUNK);

	if (rc || !buf)
		return err_set(f->e, -ENOMEM, "no memory to check");
	for (int k = 0; k < PGC_NUM_STREAMS; k++) {
		enum pgc_stream st = (enum pgc_stream)k;
		uint64_t at = 0;

		while (at < m->st[st].npages) {
			struct mseg g;

			map_seg(m, st, at, &g);
			if (g.data && g.owner == m) {
				g.npages = MIN(g.npages, (uint64_t)CHUNK);
				p.npages = 0;
				plan_add(&p, m, st, at, g.npages);
				check_pages(f, st, name, &p, buf);
			}
			at += g.npages;
		}
	}
	plan_fini(&p);
	return 0;
}

static int check_snap(void *ctx, const uint8_t name[16])
{
	struct fsck *f = ctx;
	struct err e = ERR_INIT;
	struct pgc_id id;
	struct map *m;
	char hex[33];
	int rc;

	memcpy(id.b, name, 16);
	util_hex(hex, name, 16);
	rc = map_open(f->s, &id, &m, &e);
	if (rc == -ENOENT)
		return 0; // removed meanwhile
	if (rc) {
		report(f, &e, rc);
		return 0;
	}
	rc = check_map(f, m, hex);
	for (int st = 0; st < PGC_NUM_STREAMS && !rc; st++) {
		struct err we = ERR_INIT;
		int wrc = ws_verify(f->s, m, (enum pgc_stream)st, &we);

		if (wrc && wrc != -ENOENT)
			report(f, &we, wrc);
	}
	map_unref(m);
	return rc;
}

static int check_base(void *ctx, const uint8_t uid[16])
{
	struct fsck *f = ctx;
	struct err e = ERR_INIT;
	struct map *m;
	char hex[33];
	int rc = map_open_base(f->s, uid, &m, &e);

	// One that nobody builds on may have lost packs already; one that
	// somebody builds on is reported with that snapshot.
	if (rc)
		return 0;
	util_hex(hex, m->id.b, 16);
	rc = check_map(f, m, hex);
	map_unref(m);
	return rc;
}

int pgc_fsck(struct pgc_store *s, void (*bad)(void *ctx, const char *what),
	     void *ctx, struct err *e)
{
	struct err own = ERR_INIT;
	struct fsck f = {.s = s, .bad = bad, .ctx = ctx, .e = e ? e : &own};
	int rc = index_verify(s, &own);

	if (rc && rc != -ENOENT)
		report(&f, &own, rc);
	check_packs(&f);
	rc = store_each(s, ".snap", check_snap, &f, f.e);
	return rc ? rc : store_each(s, ".base", check_base, &f, f.e);
}
