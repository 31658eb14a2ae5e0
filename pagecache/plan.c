// Which bytes of which packs hold these pages, in as few reads as possible.
#include <stdlib.h>

#include "pgc_internal.h"

int plan_init(struct plan *p, uint32_t max_pages)
{
	memset(p, 0, sizeof(*p));
	p->pages = malloc(max_pages * sizeof(*p->pages));
	p->reads = malloc(max_pages * sizeof(*p->reads));
	if (!p->pages || !p->reads) {
		plan_fini(p);
		return -ENOMEM;
	}
	p->cap = max_pages;
	return 0;
}

void plan_fini(struct plan *p)
{
	free(p->pages);
	free(p->reads);
	p->pages = NULL;
	p->reads = NULL;
}

void plan_add(struct plan *p, const struct map *m, enum pgc_stream st,
	      uint64_t pgno, uint64_t n)
{
	while (n) {
		struct mseg g;
		uint64_t k;

		map_seg(m, st, pgno, &g);
		k = MIN(n, g.npages);
		for (uint64_t i = 0; g.data && i < k && p->npages < p->cap; i++)
			p->pages[p->npages++] = (struct plan_page){
			    pgno + i, seg_loc(&g, i), seg_key(&g, i),
			    seg_pack(&g, i), 0};
		pgno += k;
		n -= k;
	}
}

static int by_loc(const void *a, const void *b)
{
	uint64_t x = ((const struct plan_page *)a)->loc;
	uint64_t y = ((const struct plan_page *)b)->loc;

	return x < y ? -1 : x > y;
}

void plan_layout(struct plan *p, uint32_t gap)
{
	struct plan_read *r = NULL;
	bool sorted = true;

	for (uint32_t i = 1; i < p->npages && sorted; i++)
		sorted = p->pages[i - 1].loc <= p->pages[i].loc;
	if (!sorted)
		qsort(p->pages, p->npages, sizeof(*p->pages), by_loc);
	p->nreads = 0;
	p->bytes = 0;
	for (uint32_t i = 0; i < p->npages; i++) {
		struct plan_page *g = &p->pages[i];
		uint64_t off = loc_off(g->loc), end = off + loc_size(g->loc);

		if (!r || r->pack != g->pack || off > r->off + r->len + gap) {
			r = &p->reads[p->nreads++];
			*r = (struct plan_read){g->pack, off, 0, p->bytes};
		}
		if (end > r->off + r->len) {
			p->bytes += (uint32_t)(end - r->off) - r->len;
			r->len = (uint32_t)(end - r->off);
		}
		g->pos = r->pos + (uint32_t)(off - r->off);
	}
}

static int by_pgno(const void *a, const void *b)
{
	uint64_t x = ((const struct plan_page *)a)->pgno;
	uint64_t y = ((const struct plan_page *)b)->pgno;

	return x < y ? -1 : x > y;
}

void plan_by_page(struct plan *p)
{
	bool sorted = true;

	for (uint32_t i = 1; i < p->npages && sorted; i++)
		sorted = p->pages[i - 1].pgno < p->pages[i].pgno;
	if (!sorted)
		qsort(p->pages, p->npages, sizeof(*p->pages), by_pgno);
}
