// Private to thaw-mkroot: an artifact in, a root file system and its
// configuration out. Unpacking and talking are thaw-mkdisk's (mk_*).
#ifndef THAW_MKROOT_H
#define THAW_MKROOT_H

#include "dockerfile.h"
#include "img_reason.h"
#include "mkdisk.h"

enum { MR_ARGS_MAX = 64 };

struct mr_opts {
	struct mk_opts mk; // source: a path, or NULL with `url`
	const char *url, *region, *credentials;
	const char *fetch;	       // thaw-fetch
	const char *bases;	       // base images' store, or NULL
	const char *args[MR_ARGS_MAX]; // KEY=VALUE
	size_t nargs;
	bool network;
	unsigned timeout_s;
};

// What crosses from the contained process to the outer one.
struct mr_shared {
	struct mk_shared mk;
	int reason;    // enum img_reason, of mk.error
	unsigned line; // of the Dockerfile
};

// Like err_set(), and says why in the service's words. `line` 0: none.
int mr_fail(struct mr_shared *sh, enum img_reason reason, unsigned line,
	    struct err *e, int code, const char *fmt, ...)
    __attribute__((format(printf, 6, 7)));
void mr_stage(const char *name);
// A line of the build's log: the build's own, and thaw's ("thaw: ...").
void mr_log(const char *line, size_t n);
void mr_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

// Outer process: waits for `pid`; SIGTERM kills it and makes this -ECANCELED.
int mr_wait(pid_t pid, int *st, struct err *e);

// Fetches s3 objects with thaw-fetch into a file of `work`; src->fd is it.
int mr_fetch(const struct mr_opts *o, struct mr_shared *sh,
	     struct mk_source *src, struct err *e);
// A network of its own for this process and what it starts: none, or with
// `o->network` one that reaches out through slirp4netns (its pid in *helper).
int mr_net(const struct mr_opts *o, pid_t *helper, struct err *e);

// The place in which builds run; the caller is PID 1 of a namespace.
int mr_jail_enter(const struct mr_opts *o, struct err *e);

// Runs a program in there to its end, kills what it left, and gives every line
// that it writes (stdout and stderr) to `line`, without '\n'.
struct mr_run {
	char *const *argv;
	void (*line)(void *ctx, const char *p, size_t n); // n <= MR_LINE
	void *ctx;
	uint64_t deadline_ns;
	uint64_t reserve; // bytes that must stay free on the disk
	int status;	  // as of waitpid()
	bool timed_out, disk_full;
};
enum { MR_LINE = 4096 };
int mr_run(struct mr_run *r, struct err *e);

int mr_build(const struct mr_opts *o, const struct dockerfile *d,
	     struct mr_shared *sh, uint64_t deadline_ns, struct err *e);
// Writes /work/rootfs.tar and /work/config.json.
int mr_export(const struct mr_opts *o, const struct dockerfile *d,
	      struct mr_shared *sh, uint64_t deadline_ns, struct err *e);

#define MR_IMAGE "localhost/thaw-build:latest"
// Must stay free on the state file system while a build runs.
#define MR_RESERVE ((uint64_t)512 << 20)

#endif
