// Templates: one stream of a snapshot as a memfd that clones map privately.
//
// The one rule is that a page either is a hole or has its right content, at
// every moment and for every mapper. So the memfd is never written, and our own
// shared mapping never touched (it is PROT_NONE, and registered with a
// userfaultfd of ours that nobody reads): pages appear by UFFDIO_COPY into that
// mapping, which inserts a complete page or nothing. Zero pages stay holes: the
// clone's owner answers those itself. Should a page be there already, somebody
// read the hole through an unregistered mapping and put zeroes into it: the
// template cannot be trusted, and the fill fails.
//
// The memfd is sealed against shrinking, growing and further seals
// (F_SEAL_FUTURE_WRITE would forbid filling), has mode 0, and is given away
// only as a read-only descriptor, so that another user id can neither write nor
// reopen it for writing.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "pgc_internal.h"

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

static int uffd_new(struct err *e)
{
	cleanup_fd int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	int fd = -1;

	if (dev >= 0)
		fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		fd = (int)syscall(SYS_userfaultfd,
				  O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (fd < 0)
		return err_sys(e, "cannot make a userfaultfd (run as root, or "
				  "set vm.unprivileged_userfaultfd)");
	return fd;
}

// The memfd and its read-only twin.
static int make_memfd(struct pgc_template *t, struct err *e)
{
	const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
	const unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
	char path[64];

	t->memfd = memfd_create("thaw-template", flags | MFD_NOEXEC_SEAL);
	if (t->memfd < 0 && errno == EINVAL) // Linux before 6.3
		t->memfd = memfd_create("thaw-template", flags);
	if (t->memfd < 0)
		return err_sys(e, "cannot make a template's memfd");
	if (ftruncate(t->memfd, (off_t)(t->npages * PGC_PAGE)))
		return err_sys(e, "cannot size a template's memfd");
	snprintf(path, sizeof(path), "/proc/self/fd/%d", t->memfd);
	t->rofd = open(path, O_RDONLY | O_CLOEXEC);
	if (t->rofd < 0)
		return err_sys(e, "cannot reopen a template's memfd");
	if (fchmod(t->memfd, 0) || fcntl(t->memfd, F_ADD_SEALS, seals))
		return err_sys(e, "cannot seal a template's memfd");
	return 0;
}

static int map_memfd(struct pgc_template *t, struct err *e)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register reg = {0};
	size_t len = t->npages * PGC_PAGE;
	void *mem =
	    mmap(NULL, len, PROT_NONE, MAP_SHARED | MAP_NORESERVE, t->memfd, 0);

	if (mem == MAP_FAILED)
		return err_sys(e, "cannot map a template");
	t->mem = mem;
	// With huge pages a fill of one page would show zeroes in 511 others.
	// EINVAL: this kernel has none.
	if (madvise(mem, len, MADV_NOHUGEPAGE) && errno != EINVAL)
		return err_sys(e, "cannot keep huge pages off a template");
	if (madvise(mem, len, MADV_DONTFORK))
		return err_sys(e, "cannot keep a template from children");
	t->uffd = uffd_new(e);
	if (t->uffd < 0)
		return t->uffd;
	if (ioctl(t->uffd, UFFDIO_API, &api))
		return err_sys(e, "this kernel's userfaultfd is too old");
	reg.range.start = (uintptr_t)mem;
	reg.range.len = len;
	reg.mode = UFFDIO_REGISTER_MODE_MISSING;
	if (ioctl(t->uffd, UFFDIO_REGISTER, &reg))
		return err_sys(e, "cannot register a template (userfaultfd)");
	if (!(reg.ioctls & (UINT64_C(1) << _UFFDIO_COPY)))
		return err_set(e, -ENOTSUP,
			       "this kernel cannot fill shared memory by "
			       "userfaultfd");
	return 0;
}

int pgc_template_open(struct pgc_snap *sn, enum pgc_stream st,
		      struct pgc_template **out, struct err *e)
{
	struct pgc_template *t;
	int rc;

	if (sn->map->st[st].npages == 0)
		return err_set(e, -ENOENT, "the snapshot has no such stream");
	t = calloc(1, sizeof(*t));
	if (!t)
		return err_set(e, -ENOMEM, "no memory for a template");
	t->s = sn->map->s;
	t->snap = pgc_snap_ref(sn);
	t->st = st;
	t->npages = sn->map->st[st].npages;
	t->nclusters = (t->npages + PGC_CLUSTER_PAGES - 1) / PGC_CLUSTER_PAGES;
	t->memfd = t->rofd = t->uffd = -1;
	for (int i = 0; i < INSTALL_LOCKS; i++)
		pthread_mutex_init(&t->install[i], NULL);
	t->cl = calloc(1, t->nclusters);
	t->in = calloc(t->nclusters, sizeof(*t->in));
	t->coming = calloc(t->nclusters, sizeof(*t->coming));
	t->ring = malloc(t->nclusters * sizeof(*t->ring));
	t->ringed = calloc(1, t->nclusters);
	t->want = calloc(t->nclusters, sizeof(*t->want));
	rc = t->cl && t->in && t->coming && t->want && t->ring && t->ringed
		 ? make_memfd(t, e)
		 : err_set(e, -ENOMEM, "no memory for a template");
	if (!rc)
		rc = map_memfd(t, e);
	t->next = t->s->templates;
	t->s->templates = t;
	if (rc) {
		pgc_template_close(t);
		return rc;
	}
	*out = t;
	return 0;
}

void pgc_template_detach(struct pgc_template *t)
{
	struct pgc_template **at;

	filler_forget(t->s->filler, t);
	for (at = &t->s->templates; *at != t; at = &(*at)->next)
		;
	*at = t->next;
}

void pgc_template_free(struct pgc_template *t)
{
	if (t->mem)
		munmap(t->mem, t->npages * PGC_PAGE);
	fd_close(&t->uffd);
	fd_close(&t->rofd);
	fd_close(&t->memfd);
	pgc_snap_unref(t->snap);
	for (int i = 0; i < INSTALL_LOCKS; i++)
		pthread_mutex_destroy(&t->install[i]);
	free(t->ring);
	free(t->ringed);
	free(t->want);
	free((void *)t->coming);
	free((void *)t->in);
	free((void *)t->cl);
	free(t);
}

void pgc_template_close(struct pgc_template *t)
{
	if (!t)
		return;
	pgc_template_detach(t);
	pgc_template_free(t);
}

int pgc_template_fd(const struct pgc_template *t)
{
	return t->rofd;
}

void pgc_template_guards(const struct pgc_template *t, int *memfd, int *uffd)
{
	*memfd = t->memfd;
	*uffd = t->uffd;
}

uint64_t pgc_template_resident(const struct pgc_template *t)
{
	return t->resident;
}

static uint16_t page_bits(uint64_t pgno, uint64_t n)
{
	return (uint16_t)(((1u << n) - 1) << pgno % PGC_CLUSTER_PAGES);
}

enum pgc_have pgc_template_have(const struct pgc_template *t, uint64_t pgno)
{
	uint64_t c = pgno / PGC_CLUSTER_PAGES;
	struct mseg g;

	if (pgno >= t->npages)
		return PGC_MISSING;
	map_seg(t->snap->map, t->st, pgno, &g);
	if (!g.data)
		return PGC_ZERO;
	if (t->in[c] & page_bits(pgno, 1))
		return PGC_FILLED;
	return t->cl[c] != CL_IDLE || t->coming[c] & page_bits(pgno, 1)
		   ? PGC_FILLING
		   : PGC_MISSING;
}

uint16_t template_lacks(const struct pgc_template *t, uint64_t pgno, uint64_t n)
{
	uint64_t c = pgno / PGC_CLUSTER_PAGES, end = pgno + n;
	uint16_t data = 0;

	while (pgno < end) {
		struct mseg g;
		uint64_t k;

		map_seg(t->snap->map, t->st, pgno, &g);
		k = MIN(g.npages, end - pgno);
		if (g.data)
			data |= page_bits(pgno, k);
		pgno += k;
	}
	return data & (uint16_t)~t->in[c];
}

// Marks the clusters of some pages as queued where pages are missing that no
// prefetch is bringing. *wait: some are missing.
static bool queue_clusters(struct pgc_template *t, uint64_t pgno, uint64_t n,
			   bool *wait)
{
	uint64_t end = pgno + n;
	bool queued = false;

	while (pgno < end) {
		uint64_t c = pgno / PGC_CLUSTER_PAGES;
		uint64_t stop = MIN(end, (c + 1) * PGC_CLUSTER_PAGES);
		// In this order: what comes in leaves `coming` afterwards.
		uint16_t coming = t->coming[c];
		uint16_t lacks = template_lacks(t, pgno, stop - pgno);

		pgno = stop;
		if (!lacks)
			continue;
		*wait = true;
		if (!(lacks & ~coming))
			continue;
		t->want[c] |= lacks;
		if (t->cl[c] == CL_IDLE)
			t->cl[c] = CL_QUEUED;
		queued = true;
	}
	return queued;
}

// A request that could not be queued must not leave clusters marked.
static void unqueue_clusters(struct pgc_template *t, uint64_t pgno, uint64_t n)
{
	uint64_t last = (pgno + n - 1) / PGC_CLUSTER_PAGES;

	for (uint64_t c = pgno / PGC_CLUSTER_PAGES; c <= last; c++)
		if (t->cl[c] == CL_QUEUED)
			t->cl[c] = CL_IDLE;
}

int pgc_template_fill(struct pgc_template *t, uint64_t pgno, uint64_t n,
		      bool urgent, struct err *e)
{
	uint64_t end = pgno + n, at = pgno / PGC_CLUSTER_PAGES;
	bool wait = false;

	if (pgno > t->npages || n > t->npages - pgno)
		return err_set(e, -EINVAL, "pages beyond the template's end");
	if (!queue_clusters(t, pgno, n, &wait))
		return !wait;
	if (filler_request(t->s->filler, t, at,
			   (end - 1) / PGC_CLUSTER_PAGES - at + 1, urgent)) {
		unqueue_clusters(t, pgno, n);
		return err_set(e, -ENOMEM, "no memory to fill a template");
	}
	filler_pump(t->s->filler);
	return 0;
}

void pgc_template_exact(struct pgc_template *t, bool on)
{
	t->exact = on;
}

// --- filled, and evicted -----------------------------------------------------

// A cluster is in the ring exactly while the owner knows of a page in it.
void template_filled(struct pgc_template *t, uint64_t cluster)
{
	if (t->ringed[cluster])
		return;
	t->ringed[cluster] = 1;
	t->ring[(t->ring_at + t->ring_n++) % t->nclusters] = (uint32_t)cluster;
}

void pgc_template_pin(struct pgc_template *t)
{
	t->pins++;
}

void pgc_template_unpin(struct pgc_template *t)
{
	t->pins--;
}

// Punching a hole takes the pages from clones that have them mapped and did not
// write them; those ask again. What they wrote is theirs and stays.
uint64_t pgc_template_evict(struct pgc_template *t, uint64_t bytes)
{
	uint64_t freed = 0;

	if (t->pins || t->st != PGC_MEM)
		return 0;
	while (freed < bytes && t->ring_n) {
		uint64_t c = t->ring[t->ring_at], first = c * PGC_CLUSTER_PAGES;
		uint64_t n =
		    MIN((uint64_t)PGC_CLUSTER_PAGES, t->npages - first);
		pthread_mutex_t *lock = &t->install[c % INSTALL_LOCKS];
		uint64_t own;
		int rc;

		must_lock(lock);
		rc = fallocate(
		    t->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		    (off_t)(first * PGC_PAGE), (off_t)(n * PGC_PAGE));
		own = rc ? 0
			 : (uint64_t)__builtin_popcount(
			       atomic_exchange(&t->in[c], 0)) *
			       PGC_PAGE;
		atomic_fetch_sub(&t->resident, own);
		must_unlock(lock);
		if (rc)
			break;
		t->ring_at = (t->ring_at + 1) % t->nclusters;
		t->ring_n--;
		t->ringed[c] = 0;
		freed += own;
	}
	return freed;
}

// --- installing --------------------------------------------------------------

// Whole pages or nothing; *done counts the bytes that are in.
static int copy_in(struct pgc_template *t, uint64_t pgno, const uint8_t *from,
		   uint64_t len, uint64_t *done)
{
	*done = 0;
	while (*done < len) {
		struct uffdio_copy c = {
		    .dst = (uintptr_t)t->mem + pgno * PGC_PAGE + *done,
		    .src = (uintptr_t)from + *done,
		    .len = len - *done,
		    .mode = UFFDIO_COPY_MODE_DONTWAKE,
		};
		int rc = ioctl(t->uffd, UFFDIO_COPY, &c) ? errno : 0;

		if (c.copy > 0)
			*done += (uint64_t)c.copy;
		if (rc && rc != EAGAIN && rc != EINTR)
			return -rc;
	}
	return 0;
}

// With the cluster's lock: pages [pgno, pgno + n), none of which is in.
static int install_run(struct pgc_template *t, uint64_t pgno, uint64_t n,
		       const uint8_t *pages)
{
	uint64_t done;
	int rc = copy_in(t, pgno, pages, n * PGC_PAGE, &done);

	if (done) {
		atomic_fetch_add(&t->resident, done);
		atomic_fetch_or(&t->in[pgno / PGC_CLUSTER_PAGES],
				page_bits(pgno, done / PGC_PAGE));
	}
	return rc;
}

int template_install(struct pgc_template *t, uint64_t pgno, unsigned n,
		     const uint8_t *pages, char *why, size_t nwhy)
{
	uint64_t c = pgno / PGC_CLUSTER_PAGES;
	pthread_mutex_t *lock = &t->install[c % INSTALL_LOCKS];
	int rc = 0;

	must_lock(lock);
	for (unsigned i = 0, k; i < n && !rc; i += k) {
		bool in = t->in[c] & page_bits(pgno + i, 1);

		for (k = 1; i + k < n; k++)
			if (in != !!(t->in[c] & page_bits(pgno + i + k, 1)))
				break;
		if (!in)
			rc = install_run(t, pgno + i, k, pages + i * PGC_PAGE);
	}
	must_unlock(lock);
	if (rc == -EEXIST) {
		snprintf(why, nwhy,
			 "pages from %llu: somebody else put a page into the "
			 "template; it cannot be trusted any more",
			 (unsigned long long)pgno);
		return -EIO;
	}
	if (rc)
		snprintf(why, nwhy, "pages from %llu cannot be installed: %s",
			 (unsigned long long)pgno, strerror(-rc));
	return rc;
}
