// On-disk constants; docs/STORE_FORMAT.md is the authority. Everything is
// little-endian, and read and written through the accessors below.
#ifndef PGC_FORMAT_H
#define PGC_FORMAT_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

// First byte not ASCII, CR LF and ^Z inside: a transfer in text mode shows.
#define PACK_MAGIC "\x89TPK\r\n\x1a\n"
#define SNAP_MAGIC "\x89TSN\r\n\x1a\n"
#define INDEX_MAGIC "\x89TIX\r\n\x1a\n"
#define WS_MAGIC "\x89TWS\r\n\x1a\n"

enum {
	FORMAT_VERSION = 1, // what is written; also the oldest that is read

	PACK_HEADER = 64,
	PACK_MAX = 64 * 1024 * 1024, // a builder starts the next one here
	REC_HEADER = 20,
	REC_RAW = 1 << 12, // in the length field: data is the page itself

	SNAP_HEADER = 256,
	SNAP_F_PARENT = 1,
	SNAP_F_BASE = 2,
	SNAP_ENT = 16,
	SNAP_BLOB_ENT = 40,
	SNAP_BLOB_NAME = 32,
	SNAP_MAX_BLOBS = 64,

	INDEX_HEADER = 64,
	INDEX_ENT = 16,

	WS_VERSION = 3, // of working sets; 1 had no pages, 2 whole clusters
	WS_HEADER = 128,
	WS_ENT = 8,
	WS_ALIGN = 4096,
	WS_FRAME_PAGES = 16,
	WS_FRAME_MAX = 65536,
};

#define WS_RAW 0x80000000u // in a frame's length: the pages themselves

// A location: pack (24 bits), byte offset of the record (28), stored length - 1
// (12). In files the pack is an index into the file's own table of packs; in
// memory it is a slot of the registry. Slot 0 is never used, so that small
// values can mean other things.
#define LOC_OFF_MAX (UINT64_C(1) << 28)
#define LOC_PACK_MAX (1u << 24)

static inline uint64_t loc_make(uint32_t pack, uint64_t off, uint32_t len)
{
	return (uint64_t)pack << 40 | off << 12 | (uint64_t)(len - 1);
}
static inline uint32_t loc_pack(uint64_t loc)
{
	return (uint32_t)(loc >> 40);
}
static inline uint32_t loc_off(uint64_t loc)
{
	return (uint32_t)(loc >> 12 & (LOC_OFF_MAX - 1));
}
static inline uint32_t loc_len(uint64_t loc)
{
	return (uint32_t)(loc & 0xfff) + 1;
}
// Bytes of the whole record, header included.
static inline uint32_t loc_size(uint64_t loc)
{
	return REC_HEADER + loc_len(loc);
}
static inline uint64_t loc_with_pack(uint64_t loc, uint32_t pack)
{
	return (loc & ((UINT64_C(1) << 40) - 1)) | (uint64_t)pack << 40;
}

// Runs of a snapshot's map: 27 bits of count, then the kind.
#define RUN_COUNT(v) ((v)&0x7ffffffu)
#define RUN_KIND(v) ((v) >> 28 & 3u)
#define RUN_SAME 0x80000000u // same content as the parent's page
#define RUN_RESERVED 0x48000000u

enum { RUN_K_ZERO, RUN_K_DATA, RUN_K_BASE };

static inline uint16_t le16(const void *p)
{
	uint16_t v;

	memcpy(&v, p, sizeof(v));
	return le16toh(v);
}
static inline uint32_t le32(const void *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return le32toh(v);
}
static inline uint64_t le64(const void *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return le64toh(v);
}
static inline void put_le16(void *p, uint16_t v)
{
	v = htole16(v);
	memcpy(p, &v, sizeof(v));
}
static inline void put_le32(void *p, uint32_t v)
{
	v = htole32(v);
	memcpy(p, &v, sizeof(v));
}
static inline void put_le64(void *p, uint64_t v)
{
	v = htole64(v);
	memcpy(p, &v, sizeof(v));
}

#endif
