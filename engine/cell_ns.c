// The namespaces that all cells of a thawd share: a root without a single file, a
// network without a device, no SysV IPC, no message queues.
//
// Made once, by a child that leaves them behind: what holds them is their
// descriptors, which each cell gets at its start and joins (cell/jail.c). A
// namespace of its own for each cell costs most of what starting one does: the
// network's alone 0.9 ms of processor time for making and unmaking it, waits for
// grace periods of RCU, and 200 KiB of the kernel's memory; a copy of all of the
// host's mounts, and a walk over all of the host's processes.
//
// What a namespace of its own keeps cells from is meeting each other in it.
// These are empty and cannot be written to, and the jail's filter of system calls
// leaves a cell nothing to meet by: no new sockets and no names for those it has,
// no IPC, no mounts, no namespaces. The process id namespace, which costs
// nothing, is each cell's own.
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "cells_priv.h"

// An empty tmpfs becomes the root. Any existing directory serves as the place
// to mount it on; /proc is on every Linux.
static int empty_root(struct err *e)
{
	if (mount("", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		return err_sys(e, "cannot make mounts private");
	if (mount("cell", "/proc", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC,
		  "size=4k,nr_inodes=2,mode=0555") < 0)
		return err_sys(e, "cannot mount an empty root");
	if (chdir("/proc") < 0)
		return err_sys(e, "cannot enter the empty root");
	if (syscall(SYS_pivot_root, ".", ".") < 0)
		return err_sys(e, "cannot pivot to the empty root");
	if (umount2(".", MNT_DETACH) < 0)
		return err_sys(e, "cannot let the old root go");
	if (chdir("/") < 0)
		return err_sys(e, "cannot enter the new root");
	if (mount("", "/", NULL,
		  MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV |
		      MS_NOEXEC,
		  NULL) < 0)
		return err_sys(e, "cannot make the root read-only");
	return 0;
}

// Says how it went, 0 or a sentence, and lives until it is killed.
static _Noreturn void make_and_wait(int out)
{
	struct err e = ERR_INIT;

	prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	if (unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWUTS) <
	    0)
		err_sys(&e, "cannot make namespaces");
	else
		empty_root(&e);
	(void)util_write_all(out, &e, sizeof(e));
	for (;;)
		pause();
}

static int open_all(pid_t pid, int ns[CP_NUM_NS], struct err *e)
{
	static const char *const names[CP_NUM_NS] = {"mnt", "net", "ipc",
						     "uts"};
	char path[64];

	for (int i = 0; i < CP_NUM_NS; i++) {
		snprintf(path, sizeof(path), "/proc/%d/ns/%s", pid, names[i]);
		ns[i] = open(path, O_RDONLY | O_CLOEXEC);
		if (ns[i] < 0)
			return err_sys(e, "cannot open %s", path);
	}
	return 0;
}

int cell_ns_make(int ns[CP_NUM_NS], struct err *e)
{
	cleanup_fd int in = -1, out = -1;
	struct err said = ERR_INIT;
	int p[2], rc = 0;
	pid_t pid;

	if (pipe2(p, O_CLOEXEC) < 0)
		return err_sys(e, "cannot make a pipe");
	in = p[0];
	out = p[1];
	pid = fork();
	if (pid < 0)
		return err_sys(e, "cannot start the maker of namespaces");
	if (pid == 0)
		make_and_wait(out);
	fd_close(&out);
	if (util_read_all(in, &said, sizeof(said)))
		rc = err_set(e, -EIO, "the maker of namespaces died");
	else if (said.code)
		rc = err_set(e, said.code, "the cells' jail: %s", said.msg);
	else
		rc = open_all(pid, ns, e);
	kill(pid, SIGKILL);
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	return rc;
}
