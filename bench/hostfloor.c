// thaw-bench-host: what the host itself needs for the work inside a suspend and
// inside a cold thaw, without KVM and without thaw.
//
// Serves lines on standard input, one answer (numbers, nanoseconds) to each:
//
//   suspend MEM DIRTY  a private mapping of MEM bytes of a memfd of which DIRTY
//                      bytes were written: "SCAN COPY", the list of written pages
//                      by PAGEMAP_SCAN, and their copy into memory that is
//                      there already
//   pack BYTES FILE    makes a working set like the ring-3 guest's: BYTES in 64 KiB
//                      blocks compressed by lz4, one after another, in FILE:
//                      "STORED"
//   decode             of that: decoded into memory that is there, on all
//                      processors
//   install            BYTES copied into an empty memfd, on all processors
//   read FILE          all of it in large reads past the page cache, several at once
#include <errno.h>
#include <fcntl.h>
#include <lz4.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base.h"
#include "guestmem.h"

enum { PAGE = 4096, BLOCK = 64 << 10, CHUNK = 1 << 20, MAX_THREADS = 16 };

static void die(const char *what)
{
	log_err("%s: %m", what);
	exit(1);
}

static void *map(size_t bytes, int flags, int fd)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);

	if (p == MAP_FAILED)
		die("mapping memory");
	return p;
}

static void *map_present(size_t bytes)
{
	return map(bytes, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1);
}

static int new_memfd(size_t bytes)
{
	int fd = memfd_create("floor", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
		die("memfd");
	return fd;
}

// --- suspend ------------------------------------------------------------------------

// From Linux 6.7's <linux/fs.h>, which Debian 12 does not have.
struct scan_region {
	uint64_t start, end, categories;
};
struct scan_arg {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages,
	    category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define SCAN_IOCTL _IOWR('f', 16, struct scan_arg)
enum { SCAN_FILE = 4, SCAN_PRESENT = 8, SCAN_SWAPPED = 16, SCAN_ZERO = 32 };

// Lists written pages of [mem, mem + bytes) into vec; how many regions.
static size_t scan(int pagemap, const uint8_t *mem, size_t bytes,
		   struct scan_region *vec, size_t cap)
{
	struct scan_arg a = {
	    .size = sizeof(a),
	    .start = (uintptr_t)mem,
	    .end = (uintptr_t)mem + bytes,
	    .category_inverted = SCAN_FILE | SCAN_ZERO,
	    .category_mask = SCAN_FILE | SCAN_ZERO,
	    .category_anyof_mask = SCAN_PRESENT | SCAN_SWAPPED,
	};
	size_t n = 0;

	while (a.start < a.end && n < cap) {
		int rc;

		a.vec = (uintptr_t)(vec + n);
		a.vec_len = cap - n;
		rc = ioctl(pagemap, SCAN_IOCTL, &a);
		if (rc < 0)
			die("PAGEMAP_SCAN");
		n += (size_t)rc;
		a.start = a.walk_end;
	}
	return n;
}

static void suspend(size_t bytes, size_t dirty)
{
	int fd = new_memfd(bytes);
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint8_t *mem = map(bytes, MAP_PRIVATE | MAP_NORESERVE, fd);
	uint8_t *copy = map_present(dirty);
	static struct scan_region vec[4096];
	uint64_t t0, t1, t2;
	size_t n, at = 0;

	if (pagemap < 0)
		die("/proc/self/pagemap");
	madvise(mem, bytes, MADV_NOHUGEPAGE);
	for (size_t i = 0; i < dirty; i += PAGE)
		memset(mem + (16 << 20) + i, (int)(i / PAGE % 255 + 1), PAGE);
	t0 = util_now_ns();
	n = scan(pagemap, mem, bytes, vec, ARRAY_SIZE(vec));
	t1 = util_now_ns();
	for (size_t i = 0; i < n; i++) {
		size_t len = vec[i].end - vec[i].start;

		memcpy(copy + at, (void *)(uintptr_t)vec[i].start, len);
		at += len;
	}
	t2 = util_now_ns();
	if (at != dirty) {
		log_err("the scan found %zu of %zu bytes", at, dirty);
		exit(1);
	}
	printf("%llu %llu\n", (unsigned long long)(t1 - t0),
	       (unsigned long long)(t2 - t1));
	munmap(mem, bytes);
	munmap(copy, dirty);
	close(fd);
	close(pagemap);
}

// --- work over all processors ---------------------------------------------------

struct share {
	void (*run)(size_t index); // one of `n` pieces
	size_t n, next;
};

static void *share_worker(void *arg)
{
	struct share *s = arg;
	size_t i;

	while ((i = __atomic_fetch_add(&s->next, 1, __ATOMIC_RELAXED)) < s->n)
		s->run(i);
	return NULL;
}

static uint64_t share_run(void (*run)(size_t), size_t n, size_t threads)
{
	struct share s = {.run = run, .n = n};
	pthread_t t[MAX_THREADS];
	uint64_t t0 = util_now_ns();

	for (size_t i = 1; i < threads; i++) {
		if (pthread_create(&t[i], NULL, share_worker, &s))
			die("a thread");
	}
	share_worker(&s);
	for (size_t i = 1; i < threads; i++)
		pthread_join(t[i], NULL);
	return util_now_ns() - t0;
}

static size_t processors(void)
{
	long n = sysconf(_SC_NPROCESSORS_ONLN);

	return n < 1 ? 1 : MIN((size_t)n, (size_t)MAX_THREADS);
}

// --- a cold working set ----------------------------------------------------------

static struct {
	size_t bytes, blocks;
	uint8_t *raw, *stored;
	size_t *off; // blocks + 1
	uint8_t *into;
	int fd;
	size_t file_bytes;
} ws;

static void pack(size_t bytes, const char *path)
{
	size_t bound = (size_t)LZ4_compressBound(BLOCK), at = 0;
	int fd;

	if (ws.raw) {
		munmap(ws.raw, ws.bytes);
		munmap(ws.stored, ws.blocks * bound);
		free(ws.off);
	}
	ws.bytes = bytes;
	ws.blocks = bytes / BLOCK;
	ws.raw = map_present(bytes);
	ws.stored = map_present(ws.blocks * bound);
	ws.off = calloc(ws.blocks + 1, sizeof(*ws.off));
	if (!ws.off)
		die("memory");
	guestmem_fill(1, 16 << 20, ws.raw, bytes);
	for (size_t i = 0; i < ws.blocks; i++) {
		int n = LZ4_compress_default((char *)ws.raw + i * BLOCK,
					     (char *)ws.stored + at, BLOCK,
					     (int)bound);

		if (n <= 0)
			die("lz4");
		ws.off[i] = at;
		at += (size_t)n;
	}
	ws.off[ws.blocks] = at;
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 ||
	    util_write_all(fd, ws.stored, ALIGN_UP(at, (size_t)PAGE)) ||
	    fsync(fd))
		die(path);
	close(fd);
	printf("%zu\n", at);
}

static void decode_block(size_t i)
{
	int n = LZ4_decompress_safe((char *)ws.stored + ws.off[i],
				    (char *)ws.into + i * BLOCK,
				    (int)(ws.off[i + 1] - ws.off[i]), BLOCK);

	if (n != BLOCK)
		die("lz4 block");
}

static void decode(void)
{
	uint64_t ns;

	ws.into = map_present(ws.bytes);
	ns = share_run(decode_block, ws.blocks, processors());
	if (memcmp(ws.into, ws.raw, ws.bytes) != 0)
		die("decoded bytes differ");
	munmap(ws.into, ws.bytes);
	printf("%llu\n", (unsigned long long)ns);
}

static void install_block(size_t i)
{
	memcpy(ws.into + i * BLOCK, ws.raw + i * BLOCK, BLOCK);
}

static void install(void)
{
	int fd = new_memfd(ws.bytes);
	uint64_t ns;

	ws.into = map(ws.bytes, MAP_SHARED, fd);
	ns = share_run(install_block, ws.blocks, processors());
	munmap(ws.into, ws.bytes);
	close(fd);
	printf("%llu\n", (unsigned long long)ns);
}

static void read_chunk(size_t i)
{
	size_t len = MIN((size_t)CHUNK, ws.file_bytes - i * CHUNK);

	if (util_pread_all(ws.fd, ws.into + i * CHUNK,
			   ALIGN_UP(len, (size_t)PAGE), (off_t)(i * CHUNK)))
		die("reading");
}

static void read_file(const char *path)
{
	struct stat st;
	uint64_t ns;
	size_t n;

	ws.fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (ws.fd < 0 || fstat(ws.fd, &st) < 0)
		die(path);
	ws.file_bytes = (size_t)st.st_size;
	n = (ws.file_bytes + CHUNK - 1) / CHUNK;
	ws.into = map_present(n * CHUNK);
	ns = share_run(read_chunk, n, 4);
	munmap(ws.into, n * CHUNK);
	close(ws.fd);
	printf("%llu\n", (unsigned long long)ns);
}

static void serve(const char *line)
{
	unsigned long long a, b;
	char path[256];

	if (sscanf(line, "suspend %llu %llu", &a, &b) == 2 && b && b < a)
		suspend(a, b);
	else if (sscanf(line, "pack %llu %255s", &a, path) == 2 && a >= BLOCK)
		pack(a, path);
	else if (strcmp(line, "decode") == 0 && ws.raw)
		decode();
	else if (strcmp(line, "install") == 0 && ws.raw)
		install();
	else if (sscanf(line, "read %255s", path) == 1)
		read_file(path);
	else
		puts("ERR command");
	fflush(stdout);
}

int main(void)
{
	char line[512];

	log_init("thaw-bench-host", LOG_LVL_INFO);
	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = '\0';
		serve(line);
	}
	return 0;
}
