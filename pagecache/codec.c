// Page contents: identity, zero test, compression, and the one place where a
// record is turned back into a page. A record that does not decode to exactly
// the page that was asked for is never handed on.
#include <lz4.h>
#include <xxhash.h>

#include "pgc_internal.h"

struct pgc_test_hooks pgc_test_hooks;

struct page_id page_id_of(const void *page)
{
	XXH128_hash_t h = XXH3_128bits(page, PGC_PAGE);
	uint64_t keep = ~pgc_test_hooks.hash_mask;

	return (struct page_id){h.low64 & keep, h.high64 & keep};
}

bool page_is_zero(const void *page)
{
	const uint8_t *p = page;
	uint64_t head;

	memcpy(&head, p, sizeof(head));
	// All bytes equal their left neighbours and the first ones are zero.
	return head == 0 && memcmp(p, p + 8, PGC_PAGE - 8) == 0;
}

uint64_t hash64(const void *p, size_t len)
{
	return XXH3_64bits(p, len);
}

void hash128(uint8_t out[16], const void *p, size_t len)
{
	XXH128_hash_t h = XXH3_128bits(p, len);

	put_le64(out, h.low64);
	put_le64(out + 8, h.high64);
}

uint32_t page_encode(uint8_t *dst, const void *page)
{
	int n = LZ4_compress_default(page, (char *)dst, PGC_PAGE, PGC_PAGE - 1);

	if (n > 0)
		return (uint32_t)n;
	memcpy(dst, page, PGC_PAGE);
	return PGC_PAGE;
}

// Binds the record to its place: one that was moved, or that belongs to another
// pack, does not check. It covers compressed data too, because some flips in
// it decode to the same page; a raw page's own hash leaves none.
static uint16_t rec_check(const uint8_t *rec, uint32_t len, uint64_t uid,
			  uint64_t off)
{
	uint64_t h = XXH3_64bits_withSeed(rec, REC_HEADER - 2, uid ^ off);

	if (len < PGC_PAGE)
		h ^= XXH3_64bits(rec + REC_HEADER, len);
	return (uint16_t)h;
}

void rec_make(uint8_t *dst, const struct page_id *id, const void *data,
	      uint32_t len, uint64_t uid, uint64_t off)
{
	uint32_t field = (len - 1) | (len == PGC_PAGE ? REC_RAW : 0);

	put_le64(dst, id->lo);
	put_le64(dst + 8, id->hi);
	put_le16(dst + 16, (uint16_t)field);
	memcpy(dst + REC_HEADER, data, len);
	put_le16(dst + 18, rec_check(dst, len, uid, off));
}

int rec_parse(const uint8_t *rec, size_t avail, uint64_t uid, uint64_t off,
	      struct page_id *id, uint32_t *len)
{
	uint32_t field;

	if (avail < REC_HEADER)
		return -EBADMSG;
	field = le16(rec + 16);
	if (field & ~(uint32_t)(REC_RAW | 0xfff))
		return -EBADMSG;
	*len = (field & 0xfff) + 1;
	if (!!(field & REC_RAW) != (*len == PGC_PAGE) ||
	    avail - REC_HEADER < *len ||
	    le16(rec + 18) != rec_check(rec, *len, uid, off))
		return -EBADMSG;
	id->lo = le64(rec);
	id->hi = le64(rec + 8);
	return 0;
}

static int bad(const char **why, const char *text)
{
	if (why)
		*why = text;
	return -EBADMSG;
}

int rec_decode(const uint8_t *rec, uint64_t uid, uint64_t loc, uint64_t key,
	       void *page, const char **why)
{
	const char *data = (const char *)rec + REC_HEADER;
	struct page_id id, got;
	uint32_t len;
	int n;

	if (rec_parse(rec, loc_size(loc), uid, loc_off(loc), &id, &len))
		return bad(why, "its record is damaged");
	if (len != loc_len(loc) || id.lo != key)
		return bad(why, "another page is stored in its place");
	if (len == PGC_PAGE) {
		memcpy(page, data, PGC_PAGE);
	} else {
		n = LZ4_decompress_safe(data, page, (int)len, PGC_PAGE);
		if (n != PGC_PAGE)
			return bad(why, "its compressed data is damaged");
	}
	got = page_id_of(page);
	if (got.lo != id.lo || got.hi != id.hi)
		return bad(why, "its data does not match its checksum");
	return 0;
}

uint64_t new_uid64(void)
{
	uint64_t v;

	if (pgc_test_hooks.uid_seed)
		return atomic_fetch_add(&pgc_test_hooks.uid_seed, 1);
	util_random(&v, sizeof(v));
	return v;
}

void new_uid128(uint8_t out[16])
{
	put_le64(out, new_uid64());
	put_le64(out + 8, new_uid64());
}
