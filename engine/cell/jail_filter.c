// The jail's filter of system calls: what would let a cell meet another in the
// namespaces that all cells share, or make processes and namespaces.
//
// It lists what is refused, not what is needed: it keeps the jail's promises, and
// does not make the kernel's surface small. Refused with EPERM:
// - sockets: new ones, and names or peers for those that a cell has. (These
//   belong to thawd's network namespace, whatever the cell's own is.)
// - SysV IPC, message queues and keyrings,
// - processes: everything but a thread of this one; programs; other processes'
//   memory,
// - namespaces and mounts.
// Calls from number 425 on (io_uring, clone3, the new mount calls, and what is
// not thought of yet) do not exist here, and libc does without. A call of another
// ABI (32 bits, x32), whose numbers mean something else, is the end.
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "jail.h"

enum { FIRST_UNKNOWN = 425, X32_BIT = 0x40000000 };

// Ascending, and apart.
static const struct {
	unsigned short from, to;
} refused[] = {
    {SYS_shmget, SYS_shmctl},
    {SYS_socket, SYS_accept},
    {SYS_bind, SYS_listen},
    {SYS_socketpair, SYS_socketpair},
    {SYS_fork, SYS_execve},
    {SYS_semget, SYS_msgctl},
    {SYS_ptrace, SYS_ptrace},
    {SYS_pivot_root, SYS_pivot_root},
    {SYS_chroot, SYS_chroot},
    {SYS_mount, SYS_umount2},
    {SYS_semtimedop, SYS_semtimedop},
    {SYS_mq_open, SYS_mq_getsetattr},
    {SYS_add_key, SYS_keyctl},
    {SYS_unshare, SYS_unshare},
    {SYS_accept4, SYS_accept4},
    {SYS_perf_event_open, SYS_perf_event_open},
    {SYS_setns, SYS_setns},
    {SYS_process_vm_readv, SYS_process_vm_writev},
    {SYS_bpf, SYS_execveat},
};

#define LOAD(field) \
	BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define JUMP(op, k, yes, no) BPF_JUMP(BPF_JMP | (op) | BPF_K, (k), (yes), (no))
#define RETURN(v) BPF_STMT(BPF_RET | BPF_K, (v))

// A tree over refused[lo..hi): the kernel runs the filter for every number when it
// is set, in each cell.
static unsigned emit(struct sock_filter *f, unsigned n, unsigned lo,
		     unsigned hi)
{
	unsigned mid = (lo + hi) / 2, at = n;

	if (hi - lo == 1) {
		f[n++] =
		    (struct sock_filter)JUMP(BPF_JGE, refused[lo].from, 0, 2);
		f[n++] =
		    (struct sock_filter)JUMP(BPF_JGT, refused[lo].to, 1, 0);
		f[n++] = (struct sock_filter)RETURN(SECCOMP_RET_ERRNO | EPERM);
		f[n++] = (struct sock_filter)RETURN(SECCOMP_RET_ALLOW);
		return n;
	}
	n = emit(f, n + 1, lo, mid);
	f[at] = (struct sock_filter)JUMP(BPF_JGE, refused[mid].from,
					 (uint8_t)(n - at - 1), 0);
	return emit(f, n, mid, hi);
}

int jail_filter(struct err *e)
{
	struct sock_filter f[16 + 5 * ARRAY_SIZE(refused)];
	struct sock_fprog prog = {.filter = f};
	unsigned n = 0;

	f[n++] = (struct sock_filter)LOAD(arch);
	f[n++] = (struct sock_filter)JUMP(BPF_JEQ, AUDIT_ARCH_X86_64, 1, 0);
	f[n++] = (struct sock_filter)RETURN(SECCOMP_RET_KILL_PROCESS);
	f[n++] = (struct sock_filter)LOAD(nr);
	f[n++] = (struct sock_filter)JUMP(BPF_JGE, FIRST_UNKNOWN, 0, 3);
	f[n++] = (struct sock_filter)JUMP(BPF_JGE, X32_BIT, 0, 1);
	f[n++] = (struct sock_filter)RETURN(SECCOMP_RET_KILL_PROCESS);
	f[n++] = (struct sock_filter)RETURN(SECCOMP_RET_ERRNO | ENOSYS);
	// A thread, or nothing: with this flag the kernel refuses most
	// namespaces by itself.
	f[n++] = (struct sock_filter)JUMP(BPF_JEQ, SYS_clone, 0, 4);
	f[n++] = (struct sock_filter)LOAD(args[0]);
	f[n++] = (struct sock_filter)JUMP(BPF_JSET, CLONE_THREAD, 1, 0);
	f[n++] = (struct sock_filter)RETURN(SECCOMP_RET_ERRNO | EPERM);
	f[n++] = (struct sock_filter)RETURN(SECCOMP_RET_ALLOW);
	n = emit(f, n, 0, ARRAY_SIZE(refused));
	prog.len = (unsigned short)n;
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) < 0)
		return err_sys(e, "jail: cannot filter system calls");
	return 0;
}
