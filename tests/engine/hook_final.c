// Calls behind the final filter, each by its number: the C library is not asked.
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/kvm.h>
#include <linux/memfd.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "hook_final.h"
#include "util.h"

enum { RW = PROT_READ | PROT_WRITE, PAGE = 4096 };

#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)

static const struct {
	const char *name;
	long nr, a[6]; // -7: a descriptor that can be mapped
} refused[] = {
    // a template's zeroes
    {"map", SYS_mmap, {0, PAGE, PROT_READ, MAP_PRIVATE, -7, 0}},
    {"map-shared", SYS_mmap, {0, PAGE, PROT_READ, MAP_SHARED, -7, 0}},
    {"unregister", SYS_ioctl, {-7, (long)UFFDIO_UNREGISTER, 0}},
    {"register", SYS_ioctl, {-7, (long)UFFDIO_REGISTER, 0}},
    {"zeropage", SYS_ioctl, {-7, (long)UFFDIO_ZEROPAGE, 0}},
    {"new-uffd", SYS_ioctl, {-7, (long)USERFAULTFD_IOC_NEW, 0}},
    {"uffd", SYS_userfaultfd, {0}},
    {"remap-pages", SYS_remap_file_pages, {0}},
    // code
    {"map-code", SYS_mmap, {0, PAGE, PROT_READ | PROT_EXEC, ANON, -1, 0}},
    {"make-code", SYS_mprotect, {0, 0, PROT_READ | PROT_EXEC}},
    {"pkey", SYS_pkey_mprotect, {0, 0, PROT_READ, -1}},
    {"memfd-code", SYS_memfd_create, {(long)"x", MFD_CLOEXEC | 0x10}},
    {"memfd-huge", SYS_memfd_create, {(long)"x", MFD_CLOEXEC | MFD_HUGETLB}},
    {"exec", SYS_execve, {(long)"/x", 0, 0}},
    {"exec-fd", SYS_execveat, {-7, (long)"", 0, 0, AT_EMPTY_PATH}},
    {"personality", SYS_personality, {0x400000}},
    // processes and threads
    {"thread", SYS_clone, {CLONE_VM | CLONE_SIGHAND | CLONE_THREAD, 0}},
    {"fork", SYS_fork, {0}},
    {"read-process", SYS_process_vm_readv, {1, 0, 0, 0, 0, 0}},
    {"trace", SYS_ptrace, {0}},
    {"kill", SYS_kill, {1, 0}},
    // files, sockets
    {"open", SYS_open, {(long)"/", O_RDONLY}},
    {"openat", SYS_openat, {AT_FDCWD, (long)"/", O_RDONLY}},
    {"socket", SYS_socket, {AF_UNIX, SOCK_STREAM, 0}},
    {"pair", SYS_socketpair, {AF_UNIX, SOCK_STREAM, 0, 0}},
    {"option", SYS_setsockopt, {0, 0, 0, 0, 0}},
    {"urgent", SYS_sendmsg, {0, 0, MSG_OOB}},
    {"urgent-read", SYS_recvmsg, {0, 0, MSG_OOB}},
    {"peek", SYS_recvmsg, {0, 0, MSG_PEEK}},
    {"pipe", SYS_pipe2, {0, 0}},
    {"dup", SYS_dup, {0}},
    {"fcntl", SYS_fcntl, {0, F_GETFL}},
    {"truncate", SYS_ftruncate, {-7, 0}},
    {"allocate", SYS_fallocate, {-7, FALLOC_FL_ZERO_RANGE, 0, PAGE}},
    // KVM and terminals
    {"vm", SYS_ioctl, {-7, (long)KVM_CREATE_VM, 0}},
    {"vcpu", SYS_ioctl, {-7, (long)KVM_CREATE_VCPU, 0}},
    {"slot", SYS_ioctl, {-7, (long)KVM_SET_USER_MEMORY_REGION, 0}},
    {"device", SYS_ioctl, {-7, (long)KVM_CREATE_DEVICE, 0}},
    {"terminal", SYS_ioctl, {0, 0x5412 /* TIOCSTI */, 0}},
    {"no-request", SYS_ioctl, {0, 0, 0}},
    // the jail's own
    {"prctl", SYS_prctl, {PR_SET_DUMPABLE, 1, 0, 0, 0}},
    {"seccomp", SYS_seccomp, {SECCOMP_SET_MODE_FILTER, 0, 0}},
    {"limit", SYS_prlimit64, {0, RLIMIT_NPROC, 0, 0}},
    {"inherit", SYS_futex, {0, FUTEX_LOCK_PI, 0, 0, 0, 0}},
    {"requeue", SYS_futex, {0, FUTEX_CMP_REQUEUE_PI, 0, 0, 0, 0}},
    {"bpf", SYS_bpf, {0}},
    {"module", SYS_init_module, {0}},
    {"last", 424 /* pidfd_send_signal */, {0}},
};

static long call(long nr, const long *a)
{
	return syscall(nr, a[0], a[1], a[2], a[3], a[4], a[5]);
}

static void try_one(const char *name, int fd)
{
	for (size_t i = 0; i < ARRAY_SIZE(refused); i++) {
		long a[6];

		if (strcmp(refused[i].name, name))
			continue;
		memcpy(a, refused[i].a, sizeof(a));
		for (int k = 0; k < 6; k++)
			if (a[k] == -7)
				a[k] = fd;
		call(refused[i].nr, a);
	}
	if (!strcmp(name, "abi")) // socketpair of the 32-bit ABI
		__asm__ volatile("int $0x80" ::"a"(360), "b"(1), "c"(1), "d"(0)
				 : "memory");
	if (!strcmp(name, "x32"))
		syscall(0x40000000 | SYS_read, -1, 0, 0);
}

#define WANT(x)                    \
	do {                       \
		if (!(x))          \
			return #x; \
	} while (0)

static bool fails(long rc, int error)
{
	return rc == -1 && errno == error;
}

// Each by the error that the kernel itself gives, where the arguments make no sense.
static const char *needed(int fd)
{
	char byte = 0, *p;
	struct iovec iov = {&byte, 1};
	uint32_t word = 1;
	struct timespec ts = {0, 0};
	sigset_t set;
	int m;

	// Not the end.
	p = mmap(NULL, PAGE, RW, ANON, -1, 0);
	WANT(p != MAP_FAILED);
	WANT(mprotect(p, PAGE, PROT_READ) == 0);
	WANT(fails(syscall(SYS_mremap, p, PAGE, 2 * PAGE, 1), EPERM));
	WANT(fails(syscall(SYS_madvise, p, PAGE, MADV_DONTNEED), EPERM));
	WANT(fails(syscall(SYS_madvise, p, PAGE, 25 /* COLLAPSE */), EPERM));
	WANT(mmap(NULL, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0) ==
		 MAP_FAILED &&
	     errno == EPERM);
	WANT(mmap(NULL, PAGE, RW, ANON | MAP_HUGETLB, -1, 0) == MAP_FAILED &&
	     errno == EPERM);
	WANT(fails(syscall(SYS_io_uring_setup, 1, p), ENOSYS));
	WANT(fails(syscall(999), ENOSYS));
	WANT(munmap(p, PAGE) == 0);
	// Needed.
	WANT(fails(syscall(SYS_ioctl, -1, KVM_RUN, 0), EBADF));
	WANT(fails(syscall(SYS_ioctl, -1, KVM_SET_CLOCK, 0), EBADF));
	WANT(fails(syscall(SYS_read, -1, p, 1), EBADF));
	WANT(fails(syscall(SYS_write, -1, p, 1), EBADF));
	WANT(fails(syscall(SYS_close, -1), EBADF));
	WANT(syscall(SYS_brk, 0) > 0);
	WANT(syscall(SYS_rt_sigaction, SIGUSR1, NULL, NULL, 8) == 0);
	WANT(syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &set, 8) == 0);
	WANT(fails(syscall(SYS_pread64, -1, p, 1, 0), EBADF));
	WANT(fails(syscall(SYS_pwrite64, -1, p, 1, 0), EBADF));
	WANT(fails(syscall(SYS_preadv, -1, &iov, 1, 0, 0), EBADF));
	WANT(fails(syscall(SYS_pwritev, -1, &iov, 1, 0, 0), EBADF));
	WANT(fails(syscall(SYS_writev, -1, &iov, 1), EBADF));
	WANT(syscall(SYS_getpid) == 1);
	WANT(syscall(SYS_gettid) == 1);
	WANT(fails(syscall(SYS_sendmsg, -1, p, MSG_NOSIGNAL | MSG_DONTWAIT),
		   EBADF));
	WANT(fails(syscall(SYS_recvmsg, -1, p, MSG_CMSG_CLOEXEC | MSG_DONTWAIT),
		   EBADF));
	WANT(fails(syscall(SYS_shutdown, -1, SHUT_WR), EBADF));
	WANT(syscall(SYS_tkill, 1, 0) == 0);
	WANT(syscall(SYS_tgkill, 1, 1, 0) == 0);
	WANT(fails(syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, NULL),
		   EAGAIN));
	WANT(fails(syscall(SYS_futex, &word,
			   FUTEX_WAIT_BITSET_PRIVATE | FUTEX_CLOCK_REALTIME, 0,
			   &ts, NULL, ~0u),
		   EAGAIN));
	WANT(syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1) == 0);
	WANT(syscall(SYS_futex, &word, FUTEX_REQUEUE, 0, 1, &word) == 0);
	WANT(fails(syscall(SYS_restart_syscall), EINTR));
	WANT(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &ts) == 0);
	WANT(fails(syscall(SYS_epoll_wait, -1, &set, 1, 0), EBADF));
	WANT(fails(syscall(SYS_epoll_pwait, -1, &set, 1, 0, NULL, 8), EBADF));
	WANT(fails(syscall(SYS_epoll_ctl, -1, EPOLL_CTL_DEL, 0, NULL), EBADF));
	ts = (struct timespec){0, 0};
	WANT(syscall(SYS_ppoll, NULL, 0, &ts, NULL, 8) == 0);
	WANT(fails(syscall(SYS_set_robust_list, NULL, 1), EINVAL));
	WANT(fails(syscall(SYS_fallocate, -1,
			   FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE),
		   EBADF));
	WANT(fails(syscall(SYS_timerfd_settime, -1, 0, NULL, NULL), EFAULT));
	WANT(syscall(SYS_getrandom, &byte, 1, 0) == 1);
	m = (int)syscall(SYS_memfd_create, "state", MFD_CLOEXEC);
	WANT(m >= 0);
	WANT(write(m, &byte, 1) == 1);
	(void)fd;
	return NULL;
}

const char *hook_final(const char *name, int fd)
{
	if (!strcmp(name, "needed"))
		return needed(fd);
	try_one(name, fd);
	return "it lives";
}

// One at a time, for the test that goes through them; NULL at the end.
const char *hook_final_name(unsigned i)
{
	return i < ARRAY_SIZE(refused)	      ? refused[i].name
	       : i == ARRAY_SIZE(refused)     ? "abi"
	       : i == ARRAY_SIZE(refused) + 1 ? "x32"
					      : NULL;
}
