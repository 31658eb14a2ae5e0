// Before an image is taken: what nobody needs any more leaves the guest's
// memory, so that it is neither stored nor thawed.
//
// Free pages keep what their last owner wrote: intermediate results, files
// read once, secrets of programs that ended. The kernel hands out pages
// zeroed (init_on_alloc, the default of Debian's kernels), so whoever takes
// all free pages and gives them back untouched has zeroed them; zero pages
// cost the store nothing.
//
// What limits this: the kernel must never get short of memory in it, for it
// would then throw out the page cache that the application's next request
// reads, or kill somebody. So no more is taken than is free above the zones'
// high watermarks, in steps, looking anew at each; and as these watermarks
// keep some MiB of unzeroed pages back, they are lowered meanwhile
// (vm.min_free_kbytes). Everybody but the kernel and this process is frozen.
// What stays unzeroed: those last pages, some hundreds.
//
// A guest with much memory never touched most of it, and zeroing that would cost
// the host all of it. So no more than AG_COMPACT_MOST is taken, and in small pages, for which
// the kernel uses broken-up blocks first: what was in use and is free again.
// Blocks that came together again wholly may keep what they hold.
//
// The page cache stays: its pages are the disk's, so they cost the store no
// more than a reference each, and the next request reads them.
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ag.h"
#include "ag_compact.h"
#include "ag_lines.h"
#include "util.h"

#define MIN_FREE "/proc/sys/vm/min_free_kbytes"
#define LOW_MIN_FREE "128" // KiB; the lowest that the kernel takes

enum {
	STEPS_MAX = 4096,
	PAGE = 4096,
};

static int put_text(const char *path, const char *text)
{
	cleanup_fd int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		return -errno;
	return 0;
}

// What may be taken: each zone's free bytes above its high watermark and the
// part that is kept for who can use no other zone. 0 when that is unknown.
static uint64_t spare_bytes(void)
{
	static struct ag_lines l;
	uint64_t spare = 0, nfree = 0, keep = 0, n;
	char *line, *at;

	if (ag_lines_open(&l, "/proc/zoneinfo") < 0)
		return 0;
	// A zone's figures: "pages free 3840", "high 45", and as their end
	// "protection: (0, 445, 445)".
	while ((line = ag_lines_next(&l))) {
		if (sscanf(line, " pages free %" SCNu64, &n) == 1) {
			nfree = n;
		} else if (sscanf(line, " high %" SCNu64, &n) == 1) {
			keep = n;
		} else if ((at = strstr(line, "protection: (")) && nfree) {
			at = strrchr(at, ' '); // the last is the largest
			keep += strtoull(at + 1, NULL, 10);
			spare += nfree > keep ? nfree - keep : 0;
			nfree = 0;
		}
	}
	ag_lines_close(&l);
	return spare * PAGE;
}

// A mapping of memory that was free.
struct taken {
	struct taken *next;
	size_t len;
};

static struct taken *take(size_t len, bool huge, struct taken *before)
{
	struct taken *t = mmap(NULL, len, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (t == MAP_FAILED)
		return NULL;
	// The kernel's default is huge pages where some are free: fewer faults.
	// MADV_HUGEPAGE would make it reclaim memory to form more.
	if (!huge && madvise(t, len, MADV_NOHUGEPAGE) < 0)
		errno = 0; // a kernel without them
	if (madvise(t, len, MADV_POPULATE_WRITE) < 0) {
		munmap(t, len);
		return NULL;
	}
	t->next = before;
	t->len = len;
	return t;
}

static void give_back(struct taken *t)
{
	while (t) {
		struct taken *next = t->next;
		size_t len = t->len;

		memset(t, 0, sizeof(*t));
		munmap(t, len);
		t = next;
	}
}

// Moves this process to the CPU: false when it may not run there.
static bool run_on(unsigned cpu)
{
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	return sched_setaffinity(0, sizeof(one), &one) == 0;
}

uint64_t ag_compact_next(uint64_t first, bool small, uint64_t spare,
			 uint64_t taken)
{
	const uint64_t most = AG_COMPACT_MOST;
	uint64_t step = small ? AG_COMPACT_CPU_STEP : AG_COMPACT_STEP;

	if (spare < AG_COMPACT_KEEP + PAGE)
		return 0;
	if (first > most)
		step = MIN(step, most - MIN(most, taken));
	return MIN(step, ALIGN_DOWN(spare - AG_COMPACT_KEEP, (uint64_t)PAGE));
}

static void zero_free_pages(void)
{
	long ncpus = sysconf(_SC_NPROCESSORS_CONF);
	uint64_t first = spare_bytes(), taken = 0;
	bool much = first > AG_COMPACT_MOST;
	struct taken *all = NULL;
	cpu_set_t before;

	CPU_ZERO(&before);
	if (sched_getaffinity(0, sizeof(before), &before) < 0)
		ncpus = 0;
	for (long i = 0; i < ncpus + STEPS_MAX; i++) {
		bool small = i < ncpus; // a CPU's own list first
		uint64_t n =
		    ag_compact_next(first, small, spare_bytes(), taken);
		struct taken *t;

		if (!n)
			break;
		if (small && !run_on((unsigned)i))
			continue;
		t = take(n, !small && !much, all);
		if (!t)
			break;
		taken += t->len;
		all = t;
	}
	give_back(all);
	if (ncpus)
		sched_setaffinity(0, sizeof(before), &before);
}

void ag_compact(struct agent *a)
{
	cleanup_fd int fd = open(MIN_FREE, O_RDONLY | O_CLOEXEC);
	char before[24] = "";
	int rc;

	if (!a->init) // a test's host must keep its memory
		return;
	if (fd < 0 || read(fd, before, sizeof(before) - 1) <= 0)
		return;
	rc = put_text(MIN_FREE, LOW_MIN_FREE);
	zero_free_pages();
	if (rc == 0)
		rc = put_text(MIN_FREE, before);
	if (rc < 0)
		ag_say(a, "%s: %s", MIN_FREE, strerror(-rc));
}
