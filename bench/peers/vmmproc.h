// What the adapters share: another VMM as a child process, its guest on COM1, and
// its API, HTTP on a Unix socket. Everything waits for 60 s at most.
#ifndef THAW_BENCH_VMMPROC_H
#define THAW_BENCH_VMMPROC_H

#include "../peer.h"

enum { VMMPROC_WAIT_MS = 60000 };

struct vmmproc {
	pid_t pid;     // 0: none
	int to, from;  // the guest's COM1; the same descriptor perhaps; or -1
	char buf[512]; // read and not yet taken
	size_t len;
	uint64_t first_ns; // when the first byte of a line came
	char log[160];	   // its standard error
};

// argv[0] is found by $PATH. fds[] become descriptors 0, 1, 3, 4, ... of the child,
// in this order; 2 is the file `log`. They stay the caller's, and have to be
// close-on-exec. Ignores SIGPIPE from now on. -errno with a sentence.
int vmmproc_start(struct vmmproc *p, const char *log, char *const argv[],
		  const int *fds, int n, struct err *e);
// Kills it and waits; closes COM1; adds its CPU time to *cpu_ms unless NULL.
void vmmproc_end(struct vmmproc *p, double *cpu_ms);
// The sentence in `e`, and the last line of what the VMM has to say.
int vmmproc_explain(const struct vmmproc *p, int rc, struct err *e);

// A line to the guest, without its newline.
int vmmproc_say(struct vmmproc *p, const char *line, struct err *e);
// Its next line without newline; when its first byte came and when its last
// (CLOCK_MONOTONIC ns; may be NULL).
int vmmproc_hear(struct vmmproc *p, char *line, size_t cap, uint64_t *first,
		 uint64_t *last, struct err *e);
// Skips lines until one that is `line`.
int vmmproc_await(struct vmmproc *p, const char *line, struct err *e);

// The command line of a guest that talks through COM1, nonce included.
int vmmproc_cmdline(char *out, size_t cap, const struct peer_spec *spec,
		    bool serial);
// "VALUE n": is it the nonce? -EIO if not: then it was booted, or is another.
int vmmproc_check_nonce(const char *line, const struct peer_spec *spec,
			struct err *e);
// What comes after the guest runs: `command` (already said) and the nonce. Fills
// t2, t5 and answer.
int vmmproc_measure(struct vmmproc *p, const struct peer_spec *spec,
		    const char *command, struct peer_sample *out,
		    struct err *e);
// What the guest is to be told first: the command, or the question for its nonce.
int vmmproc_say_first(struct vmmproc *p, const struct peer_spec *spec,
		      const char *command, struct err *e);

// Connects to a socket that the process is about to listen on; *fd is the
// caller's. -ECHILD: the process ended before.
int vmmproc_connect(struct vmmproc *p, const char *path, int *fd,
		    struct err *e);
// One request and its answer; `body` may be NULL. A status that is not 2xx is
// -EIO with what the answer says.
int vmmproc_api(int fd, const char *method, const char *path, const char *body,
		struct err *e);

// 1 and a sentence if `binary` cannot be executed; else 0. Names without '/' are
// looked up by $PATH.
int vmmproc_have(const char *binary, const char *option, struct err *e);
// Makes an error the sentence of a VMM that cannot run or save the guest on this host;
// returns 1. For programs that were given to us: what they can is theirs.
int vmmproc_not_here(struct err *e);
// dir/name
int vmmproc_path(char *out, size_t cap, const struct peer_spec *spec,
		 const char *name);
// The files of a VMM itself: its program, its libraries, and what else it needs that is
// not the snapshot. A dropped page cache is to be the snapshot's alone: a host that
// runs VMMs all day has them in memory.
struct vmmproc_files {
	char path[96][160];
	int n;
};
// Adds those that the running process has mapped, and `also` (NULL-terminated).
void vmmproc_note(struct vmmproc_files *f, const struct vmmproc *p,
		  const struct peer_spec *spec, const char *const *also);
// Reads them all, so that they are in the page cache.
void vmmproc_warm(const struct vmmproc_files *f);
// Writes the peer's files to the disk, so that the page cache can be dropped.
int vmmproc_sync(const struct peer_spec *spec, struct err *e);

#endif
