// The jail's second filter of system calls: it lists what a cell needs from its
// guest's first instruction on, and nothing else exists for it. Whoever takes over a
// device model finds this much of the kernel.
//
// When. jail_filter() is set at the jail's entry, when a cell still has to make a VM,
// threads and mappings. This one is set for all threads at once by the vCPU-0 thread
// right before vmm_start(), or before PREPARED is said, where nobody waits for it
// yet; no guest code runs before it. It is one for all threads: they share their
// memory, so who has one of them has all.
//
// What it keeps:
// - no descriptor is mapped, no mapping moved, none made executable, none registered
//   or unregistered: so no page of zeroes gets into a template. (A cell unmaps or
//   covers its guest's memory? The guest's loss alone. It has nothing to map there.)
// - no thread, process or program is made, no file opened; the only new descriptors
//   are a saved state's memfd and what thawd sends,
// - of KVM what runs, saves and unpauses a VM that is there.
//
// What becomes of other calls:
// - the end of the process, which is the end of its own microVM only. A cell that
//   makes one has a bug or is taken over: neither should go on, and thawd says of
//   what the microVM died. Which call it was is in the host's audit log (type 1326).
// - EPERM for those that a C library makes by the way and does without: mremap
//   (realloc() then copies), madvise (an allocator's or a thread's end gives memory
//   back) and odd kinds of anonymous memory. No madvise at all: MADV_DONTNEED of
//   guest memory would read the template again and do no harm, but MADV_COLLAPSE
//   may fill holes of a file with zeroes, and nothing here needs any.
// - ENOSYS for those newer than this list, as in the first filter.
// Built with sanitizers, a cell has what their allocators and locks need beside. Their
// reports open files, so what they find ends as a call that is refused; nobody reads
// the reports of a cell, whose standard error is /dev/null.
//
// 37 calls, 8 of them only with certain arguments (Firecracker's lists have 27 for
// the thread of a vCPU and 50 for its VMM). Arguments are looked at by their lower
// 32 bits: the kernel takes no more of these, or knows no meaning of the rest.
//
// Most calls depend on nothing but their number: the kernel finds that out once and
// runs no filter for them again. KVM_RUN is not among those, so it is looked for
// first. Setting the filter costs the kernel a run for each number, hence the tree.
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/memfd.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "jail.h"
#include "vmm.h"

#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif

enum { FIRST_UNKNOWN = 425, INSNS_MAX = 200 };

// What of anonymous memory the sanitizers' allocators ask for.
#ifdef SANITIZED
enum { MAP_MORE = MAP_FIXED | MAP_NORESERVE };
#else
enum { MAP_MORE = 0 };
#endif

enum what {
	FREE,	// allowed
	BITS,	// allowed if argument `arg` has no other than `bits`
	WAITS,	// futex: waiting and waking; nothing with inheritance
	MEMORY, // mmap: anonymous memory, private and not executable
	DENIED, // EPERM
	NEWER,	// ENOSYS, also for all numbers above
};

// Ascending. Each with who makes it; "end" is a vCPU thread's, when the guest has
// ended. Two C libraries (musl, glibc) need some that the other does not.
static const struct call {
	uint16_t nr;
	uint8_t what, arg;
	uint32_t bits;
} calls[] = {
    {.nr = SYS_read},		      // eventfds, the console's timer
    {.nr = SYS_write},		      // eventfds, the console, a saved state
    {.nr = SYS_close},		      // streams
    {.nr = SYS_mmap, .what = MEMORY}, // malloc()
    {SYS_mprotect, BITS, 2, PROT_READ | PROT_WRITE}, // malloc(), musl
    {.nr = SYS_munmap},				     // free(), end
    {.nr = SYS_brk},				     // malloc()
    {.nr = SYS_rt_sigaction},	// a SIGBUS that is not a guest's; abort()
    {.nr = SYS_rt_sigprocmask}, // pthread_kill(), abort(), end
    {.nr = SYS_rt_sigreturn},	// a vCPU was kicked
    {.nr = SYS_pread64},	// the disk
    {.nr = SYS_pwrite64},	// the disk
    {.nr = SYS_writev},		// last words before abort(), glibc
#ifdef SANITIZED
    {.nr = SYS_sched_yield},
#endif
    {.nr = SYS_mremap, .what = DENIED},	 // realloc()
    {.nr = SYS_madvise, .what = DENIED}, // free() and end, glibc
    {.nr = SYS_getpid},			 // pthread_kill() and abort(), glibc
    // No MSG_OOB, MSG_PEEK or other rare ways through the sockets' code.
    {SYS_sendmsg, BITS, 2, MSG_NOSIGNAL | MSG_DONTWAIT},     // thawd, streams
    {SYS_recvmsg, BITS, 2, MSG_CMSG_CLOEXEC | MSG_DONTWAIT}, // the same
    {.nr = SYS_shutdown},				     // streams
    {.nr = SYS_exit},					     // end
#ifdef SANITIZED
    {.nr = SYS_sigaltstack}, // end
#endif
    {.nr = SYS_gettid}, // abort(), glibc
    {.nr = SYS_tkill},	// pthread_kill(), musl: it sees no other process
    {.nr = SYS_futex, .what = WAITS}, // locks and conditions
    {.nr = SYS_restart_syscall},      // a wait that SIGSTOP interrupted
    {.nr = SYS_clock_gettime},	      // where the vDSO cannot
    {.nr = SYS_exit_group},	      // cell_die(), and when thawd is gone
    {.nr = SYS_epoll_wait},	      // the devices, glibc
    {.nr = SYS_epoll_ctl},	      // streams, the console
    {.nr = SYS_tgkill},		      // as tkill, glibc
    {.nr = SYS_ppoll},		      // the device thread
    {.nr = SYS_set_robust_list},      // end, musl
    {.nr = SYS_epoll_pwait},	      // the devices, musl
    // A disk write that failed is undone.
    {SYS_fallocate, BITS, 1, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE},
    {.nr = SYS_timerfd_settime},	      // the console's timer
    {.nr = SYS_preadv},			      // the disk
    {.nr = SYS_pwritev},		      // the disk
    {.nr = SYS_getrandom},		      // virtio-rng, the generation id
    {SYS_memfd_create, BITS, 1, MFD_CLOEXEC}, // a saved state
    {.nr = FIRST_UNKNOWN, .what = NEWER},
};

// --- the program ------------------------------------------------------------

// A jump's targets: the instruction after it and so on, or one of the answers, which
// stand once, at the end, where put_answers() turns these into distances.
enum target { NEXT, ALLOW = 250, KILL, PERM, NOSYS };

_Static_assert((int)INSNS_MAX < (int)ALLOW, "a distance is no target");

struct prog {
	struct sock_filter f[INSNS_MAX];
	unsigned n;
	bool bad; // too long
};

static void put(struct prog *p, unsigned code, uint32_t k, unsigned yes,
		unsigned no)
{
	if (p->n == INSNS_MAX)
		p->bad = true;
	else
		p->f[p->n++] = (struct sock_filter){
		    (uint16_t)code, (uint8_t)yes, (uint8_t)no, k};
}

static void load(struct prog *p, size_t off)
{
	put(p, BPF_LD | BPF_W | BPF_ABS, (uint32_t)off, NEXT, NEXT);
}

static void load_arg(struct prog *p, unsigned i)
{
	load(p, offsetof(struct seccomp_data, args) + 8 * i);
}

static void jump(struct prog *p, unsigned op, uint32_t k, unsigned yes,
		 unsigned no)
{
	put(p, BPF_JMP | op | BPF_K, k, yes, no);
}

static void keep(struct prog *p, uint32_t bits)
{
	put(p, BPF_ALU | BPF_AND | BPF_K, bits, NEXT, NEXT);
}

static void one_of(struct prog *p, const uint32_t *v, size_t n)
{
	for (size_t i = 0; i < n; i++)
		jump(p, BPF_JEQ, v[i], ALLOW, i + 1 < n ? NEXT : KILL);
}

static void put_answers(struct prog *p)
{
	static const uint32_t ends[] = {
	    [ALLOW - ALLOW] = SECCOMP_RET_ALLOW,
	    [KILL - ALLOW] = SECCOMP_RET_KILL_PROCESS,
	    [PERM - ALLOW] = SECCOMP_RET_ERRNO | EPERM,
	    [NOSYS - ALLOW] = SECCOMP_RET_ERRNO | ENOSYS,
	};
	unsigned first = p->n;

	for (unsigned i = 0; i < first; i++) {
		struct sock_filter *f = &p->f[i];

		if (f->jt >= ALLOW)
			f->jt = (uint8_t)(first + f->jt - ALLOW - i - 1);
		if (f->jf >= ALLOW)
			f->jf = (uint8_t)(first + f->jf - ALLOW - i - 1);
	}
	for (unsigned i = 0; i < ARRAY_SIZE(ends); i++)
		put(p, BPF_RET | BPF_K, ends[i], NEXT, NEXT);
}

// --- the calls --------------------------------------------------------------

static void emit_waits(struct prog *p)
{
	static const uint32_t ops[] = {FUTEX_WAIT, FUTEX_WAKE,
				       FUTEX_WAIT_BITSET, FUTEX_REQUEUE};

	load_arg(p, 1);
	keep(p, (uint32_t) ~(FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME));
	one_of(p, ops, ARRAY_SIZE(ops));
}

static void emit_memory(struct prog *p)
{
	load_arg(p, 2);
	jump(p, BPF_JSET, (uint32_t) ~(PROT_READ | PROT_WRITE), KILL, NEXT);
	load_arg(p, 3);
	jump(p, BPF_JSET, MAP_ANONYMOUS, NEXT, KILL);
	keep(p, (uint32_t) ~(MAP_ANONYMOUS | MAP_MORE));
	jump(p, BPF_JEQ, MAP_PRIVATE, ALLOW, PERM);
}

// Calls in a row that are free, or one call.
struct span {
	uint16_t from, to;
	const struct call *call;
};

static unsigned fold(struct span *s)
{
	unsigned n = 0;

	for (const struct call *c = calls; c < calls + ARRAY_SIZE(calls); c++) {
		if (n && c->what == FREE && s[n - 1].call->what == FREE &&
		    c->nr == s[n - 1].to + 1)
			s[n - 1].to++;
		else
			s[n++] = (struct span){c->nr, c->nr, c};
	}
	return n;
}

// For numbers from the span's first on, up to the next span's.
static void emit_span(struct prog *p, const struct span *s)
{
	const struct call *c = s->call;

	switch ((enum what)c->what) {
	case FREE:
		jump(p, BPF_JGT, s->to, KILL, ALLOW);
		return;
	case DENIED:
		jump(p, BPF_JGT, s->to, KILL, PERM);
		return;
	case NEWER:
		jump(p, BPF_JGE, s->from, NOSYS, KILL);
		return;
	case BITS:
		jump(p, BPF_JGT, s->to, KILL, NEXT);
		load_arg(p, c->arg);
		jump(p, BPF_JSET, ~c->bits, KILL, ALLOW);
		return;
	case WAITS:
		jump(p, BPF_JGT, s->to, KILL, NEXT);
		emit_waits(p);
		return;
	case MEMORY:
		jump(p, BPF_JGT, s->to, KILL, NEXT);
		emit_memory(p);
		return;
	}
}

static void emit_tree(struct prog *p, const struct span *s, unsigned n)
{
	unsigned at = p->n, half = n / 2;

	if (n == 1) {
		emit_span(p, s);
		return;
	}
	jump(p, BPF_JGE, s[half].from, NEXT, NEXT);
	emit_tree(p, s, half);
	if (p->bad)
		return;
	p->f[at].jt = (uint8_t)(p->n - at - 1);
	emit_tree(p, s + half, n - half);
}

// Other ABIs are not looked for: the first filter ends who uses one, whatever this
// one says.
static void emit_all(struct prog *p)
{
	struct span spans[ARRAY_SIZE(calls)];
	size_t nreqs;
	const uint32_t *reqs = vmm_ioctls(&nreqs);

	load(p, offsetof(struct seccomp_data, nr));
	jump(p, BPF_JEQ, SYS_ioctl, NEXT, (unsigned)nreqs + 1);
	load_arg(p, 1);
	one_of(p, reqs, nreqs);
	emit_tree(p, spans, fold(spans));
	put_answers(p);
}

int jail_final(struct err *e)
{
	static bool done; // the vCPU-0 thread's
	struct prog p = {.n = 0};
	struct sock_fprog prog = {.filter = p.f};
	long rc;

	if (done)
		return 0;
	emit_all(&p);
	if (p.bad)
		return err_set(e, -E2BIG, "jail: the final filter is too long");
	prog.len = (unsigned short)p.n;
	rc = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
		     SECCOMP_FILTER_FLAG_TSYNC, &prog);
	if (rc < 0)
		return err_sys(e, "jail: cannot set the final filter");
	if (rc > 0)
		return err_set(e, -EBUSY, "jail: thread %ld has other filters",
			       rc);
	done = true;
	return 0;
}
