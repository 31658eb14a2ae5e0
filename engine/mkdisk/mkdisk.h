// Private to thaw-mkdisk: a root file system in, an ext4 image out. Its processes,
// its walls and its archives are thaw-mkroot's too.
#ifndef THAW_MKDISK_H
#define THAW_MKDISK_H

#include "base.h"

#if defined(__SANITIZE_ADDRESS__)
#define MK_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MK_ASAN 1
#endif
#endif

struct mk_opts {
	const char *source; // directory or tar, as the peer named it
	const char *work;   // private directory on the state file system
	uid_t uid;	    // the peer, whose rights read the source
	gid_t gid;
	uint64_t disk_bytes;  // size of the image, 0: by its contents
	uint64_t max_bytes;   // cap on extracted bytes
	uint64_t max_entries; // cap on files, directories, links
	const char *tree;     // unpacked here, a path of the jail
	// A build's context, not a root file system: zip archives too; owners,
	// set-id bits and attributes are dropped, links that climb out refused.
	bool context;
};

// Results that cross from contained children to the outer process, in shared
// memory. What a child wrote there is checked before use.
struct mk_shared {
	uint64_t entries;    // extracted
	uint64_t bytes;	     // of file contents, in whole blocks
	uint64_t devices;    // device nodes and sockets left out
	uint64_t image_size; // bytes
	uint32_t started;    // wall clock, seconds, before the extraction
	struct err error;
};

// tar's words for a root file system: everything of it that an image has, and the
// same bytes each time.
#define MK_TAR_WORDS                                                           \
	"--create", "--format=posix", "--numeric-owner", "--xattrs",           \
	    "--xattrs-include=user.*", "--xattrs-include=security.capability", \
	    "--acls", "--sparse", "--one-file-system", "--sort=name",          \
	    "--warning=no-file-ignored"

// The stream of tar bytes: the file itself, or the output of a tar process.
struct mk_source {
	int fd;
	uint64_t size; // of the file; 0 for a directory
	pid_t tar;     // 0 for a file
	int tar_err;   // what tar said
};

int mk_source_open(const struct mk_opts *o, struct mk_source *src,
		   struct err *e);
// Waits for tar; an error when it failed.
int mk_source_finish(const struct mk_opts *o, struct mk_source *src,
		     struct err *e);

// The processes; mkdisk_contain.c has their theory.
//
// First of all: what all processes of the program have from here on.
void mk_settle(void);
// Dies with `parent`; at once, if that is dead already. Forgotten when the user
// ids change (prctl(2), PR_SET_PDEATHSIG).
void mk_die_with(pid_t parent);
// Makes these namespaces (CLONE_NEW*, NEWPID among them) and their PID 1, which
// runs fn(ctx, e); its error arrives in sh->error. Closes src->fd on this side.
// The pid, to be waited for; it dies with this process.
pid_t mk_contain(int namespaces, struct mk_source *src, struct mk_shared *sh,
		 int (*fn)(void *ctx, struct err *e), void *ctx, struct err *e);
// PID 1: a child, which can gain no rights, runs fn(ctx, e) to its end.
int mk_child(struct mk_shared *sh, int (*fn)(void *ctx, struct err *e),
	     void *ctx, const char *what, struct err *e);
int mk_wait(pid_t pid, int *st, const char *what, struct err *e);
// The error that a process left which ended so (waitpid()); 0: none to believe.
int mk_said(const struct mk_shared *sh, int st, struct err *e);

// New mount, net, ipc and uts namespaces whose root holds only the programs
// (read- only) and /work. The caller is already alone in a PID namespace.
int mk_jail_enter(const char *work, struct err *e);
// Its halves. After the first the root to be is the working directory, where
// more may be mounted (paths relative); the second makes it the root, read-only.
// `flags`: MS_* of /work.
int mk_jail_open(const char *work, unsigned long flags, struct err *e);
int mk_jail_close(struct err *e);
int mk_jail_bind(const char *from, const char *to, unsigned long flags,
		 struct err *e);
// Keeps these capabilities (a list ended by -1) and no way to any other.
int mk_jail_caps(const int *caps, struct err *e);

// Runs chrooted in the tree it makes; counts into `sh`.
int mk_extract(const struct mk_opts *o, const struct mk_source *src,
	       struct mk_shared *sh, struct err *e);

// Makes `image` from `tree`; sets sh->image_size.
int mk_ext4_make(const struct mk_opts *o, const char *tree, const char *image,
		 struct mk_shared *sh, struct err *e);
// Makes an image's inode times a function of its contents alone.
// Files last changed at or after `since` (seconds) were made by the unpacking.
int mk_ext4_settle(int fd, uint32_t since, struct err *e);

// "progress PERCENT TEXT" on stdout; percent -1: unknown.
void mk_progress(int percent, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
void mk_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

// The last line, "HEAD TEXT", for the outer process.
void mk_say_last(const char *head, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

#endif
