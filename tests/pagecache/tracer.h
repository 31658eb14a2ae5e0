// Runs a function in a traced child and interferes at its Nth syscall that
// changes the file system: kills the child before it, or makes it fail with an
// errno. Also checks, on the way, that nothing is renamed whose contents were
// not fsynced and that folders are fsynced after renames.
#ifndef TRACER_H
#define TRACER_H

#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>

#include "pgc_test.h"

struct trace {
	unsigned at;	// interfere at this one (from 1); 0: never
	int error;	// errno to inject; 0: SIGKILL
	unsigned count; // mutating syscalls seen
	bool killed;
	int code; // exit status when not killed
	unsigned renames;
	char dirty[64]
		  [256]; // files written, folders changed, since their fsync
	unsigned ndirty;
	unsigned disorder; // renames of unsynced files
};

static inline bool mutates(const struct user_regs_struct *r)
{
	switch (r->orig_rax) {
	case SYS_write:
	case SYS_pwrite64:
	case SYS_fsync:
	case SYS_fdatasync:
	case SYS_sync_file_range:
	case SYS_rename:
	case SYS_renameat:
	case SYS_renameat2:
	case SYS_unlink:
	case SYS_unlinkat:
	case SYS_ftruncate:
	case SYS_mkdir:
	case SYS_mkdirat:
		return true;
	case SYS_openat:
		return r->rdx & O_CREAT;
	default:
		return false;
	}
}

static inline void set_dirty(struct trace *t, const char *path, bool dirty)
{
	for (unsigned i = 0; i < t->ndirty; i++)
		if (!strcmp(t->dirty[i], path)) {
			if (!dirty)
				t->dirty[i][0] = '\0';
			return;
		}
	if (dirty && t->ndirty < 64)
		snprintf(t->dirty[t->ndirty++], 256, "%.255s", path);
}

static inline bool is_dirty(const struct trace *t, const char *path)
{
	for (unsigned i = 0; i < t->ndirty; i++)
		if (!strcmp(t->dirty[i], path))
			return true;
	return false;
}

static inline void fd_path(pid_t pid, int fd, char *out)
{
	char link[64];
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/%d/fd/%d", pid, fd);
	n = readlink(link, out, 255);
	out[n > 0 ? n : 0] = '\0';
}

// Path of (dirfd, name in the child); *dir gets its folder.
static inline void at_path(pid_t pid, int dirfd, unsigned long long name,
			   char *out, char *dir)
{
	struct iovec l, r = {(void *)(uintptr_t)name, 100};
	char base[256], rel[101] = "";

	l = (struct iovec){rel, 100};
	(void)!process_vm_readv(pid, &l, 1, &r, 1, 0);
	fd_path(pid, dirfd, base);
	snprintf(out, 512, "%s/%s", base, rel);
	snprintf(dir, 512, "%s", out);
	*strrchr(dir, '/') = '\0';
}

static inline void note_order(struct trace *t, pid_t pid,
			      const struct user_regs_struct *r)
{
	char path[512], dir[512], to[512], todir[512];

	if (r->orig_rax == SYS_write || r->orig_rax == SYS_pwrite64) {
		fd_path(pid, (int)r->rdi, path);
		if (strstr(path, "/tmp/"))
			set_dirty(t, path, true);
	} else if (r->orig_rax == SYS_fsync) {
		fd_path(pid, (int)r->rdi, path);
		set_dirty(t, path, false);
	} else if (r->orig_rax == SYS_renameat) {
		at_path(pid, (int)r->rdi, r->rsi, path, dir);
		at_path(pid, (int)r->rdx, r->r10, to, todir);
		t->renames++;
		t->disorder += is_dirty(t, path);
		// A snapshot must not be named while its packs' names are not
		// durable.
		if (strstr(to, ".snap"))
			for (unsigned i = 0; i < t->ndirty; i++)
				t->disorder += !!strstr(t->dirty[i], "/packs");
		set_dirty(t, todir, true);
	}
}

static inline void trace_child(struct trace *t, pid_t pid)
{
	bool inject = false;
	int status, sig = 0;

	cr_assert(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status));
	ptrace(PTRACE_SETOPTIONS, pid, NULL,
	       (void *)(uintptr_t)(PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL));
	for (bool entry = true;;) {
		struct user_regs_struct r;

		ptrace(PTRACE_SYSCALL, pid, NULL, (void *)(uintptr_t)sig);
		sig = 0;
		cr_assert_eq(waitpid(pid, &status, 0), pid);
		if (WIFEXITED(status) || WIFSIGNALED(status)) {
			t->killed = WIFSIGNALED(status);
			t->code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
			return;
		}
		if (WSTOPSIG(status) != (SIGTRAP | 0x80)) {
			sig = WSTOPSIG(status);
			continue;
		}
		ptrace(PTRACE_GETREGS, pid, NULL, &r);
		if (entry && mutates(&r)) {
			t->count++;
			if (t->count == t->at && !t->error) {
				kill(pid, SIGKILL);
			} else if (t->count == t->at) {
				inject = true;
				r.orig_rax = (unsigned long long)-1;
				ptrace(PTRACE_SETREGS, pid, NULL, &r);
			} else {
				note_order(t, pid, &r);
			}
		} else if (!entry && inject) {
			r.rax = (unsigned long long)-t->error;
			ptrace(PTRACE_SETREGS, pid, NULL, &r);
			inject = false;
		}
		entry = !entry;
	}
}

// fn's result is the exit code. t->at and t->error are the caller's.
static inline void run_traced(struct trace *t, int (*fn)(void *ctx), void *ctx)
{
	pid_t pid = fork();

	cr_assert_geq(pid, 0);
	if (!pid) {
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		raise(SIGSTOP);
		_exit(fn(ctx));
	}
	trace_child(t, pid);
}

#endif
