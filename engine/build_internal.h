// Private to build*.c: the disk stage, and the parts of the pipeline.
#ifndef THAW_ENG_BUILD_INTERNAL_H
#define THAW_ENG_BUILD_INTERNAL_H

#include "agent.h"
#include "build.h"
#include "hook.h"

// --- the disk stage (build_disk.c) ---------------------------------------

struct build_disk;

struct build_disk_req { // strings live until done
	const char *rootfs;
	uid_t uid;
	gid_t gid;
	uint64_t disk_mib;
	struct pgc_id id; // of the snapshot to publish
};

struct build_disk_events {
	void (*progress)(void *ctx, const char *stage, int percent,
			 const char *text);
	// Once. rc 0: the snapshot is published. Else nothing is left.
	void (*done)(void *ctx, int rc, const char *why);
};

int build_disk_start(struct build_disk **out, const struct eng_build_env *env,
		     const struct build_disk_req *req,
		     const struct build_disk_events *ev, void *ctx,
		     struct err *e);
void build_disk_cancel(struct build_disk *d); // done(-ECANCELED) follows

// --- the last bytes of the guest's output, for error sentences (build_tail.c)

enum { BUILD_TAIL = 2048 };

struct build_tail {
	char buf[BUILD_TAIL];
	size_t len;
};

void build_tail_add(struct build_tail *t, const void *p, size_t n);
// The last lines as one printable line of at most `cap` bytes, " | " between.
void build_tail_text(const struct build_tail *t, char *out, size_t cap);

// --- a request to a throw-away copy (build_ask.c) ------------------------

enum { BUILD_PATH_MAX = 1000 }; // bytes of its path

struct build_ask;

// Sends `GET path` on `fd` (consumed, also on an error), a stream to a port of
// a guest, and reads what comes. done() comes once, never from within, with the
// bytes that came; the handle is gone then.
int build_ask_start(struct build_ask **out, struct eng_loop *loop, int fd,
		    const char *path, void (*done)(void *ctx, size_t got),
		    void *ctx);
void build_ask_cancel(struct build_ask *q); // without done(); NULL is fine

// --- the pipeline (build.c, build_guest.c, build_record.c) ---------------

enum build_hook { BUILD_HOOK_READY, BUILD_HOOK_VALIDATE };

enum build_stage {
	BUILD_DISK,    // thaw-mkdisk and the store; `disk` is set
	BUILD_BOOT,    // the kernel comes up, the agent is asked to start
	BUILD_READY,   // the application starts; probed until it is ready
	BUILD_FREEZE,  // the agent freezes and syncs
	BUILD_CAPTURE, // the snapshot is made; the cell ends
	BUILD_RECORD,  // a copy runs and its working set is noted
	BUILD_PUBLISH, // a job writes the working set, reads the figures
	BUILD_CLEAR,   // waiting for what still runs, then done()
};

// Every stage but the last leaves by build_fail() or by entering the next.
// `cell`, `disk`, `call` and `job` are what may be under way; done() comes when
// none of the first two and no job is left.
struct eng_build {
	const struct eng_build_env *env;
	struct eng_build_req req; // strings and lists are copies
	struct eng_build_events ev;
	void *ctx;

	enum build_stage stage;
	bool failed;
	struct err err;

	struct build_disk *disk;
	struct eng_cell *cell;
	struct eng_agent_call *call;
	struct eng_agent_log *log;
	struct build_ask *ask;
	struct eng_hook *hook;
	enum build_hook asked_hook;
	uint64_t hook_by_ns;
	void (*hook_done)(struct eng_build *b, bool yes);
	bool by_quiet; // it was ready without its port
	bool job;      // a worker has `workset`, `res` and `job_err`
	struct err job_err;
	struct eng_timer *step;	    // the next try
	struct eng_timer *deadline; // of the stage
	uint64_t step_deadline_ns;  // tries stop

	struct pgc_id disk_id, image_id;
	bool have_disk, have_image; // published by this build
	struct build_tail tail;

	uint64_t t0, t_boot, t_app, t_ready, t_capture;
	uint64_t quiet_since_ns, quiet_cpu_us;

	bool is_ready;		// BUILD_READY: only its rest is awaited
	bool greeted, recorded; // BUILD_RECORD
	unsigned watches;	// so often it was looked at, alone,
	size_t watched;		// and it had needed so many pages
	uint32_t *workset;
	size_t workset_len;
	struct eng_build_result res;
};

// Ends the build with this error; the first one counts.
void build_fail(struct eng_build *b, int rc, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
// False when the build was cancelled from within the callback: go no further.
bool build_progress(struct eng_build *b, const char *stage, int percent,
		    const char *fmt, ...) __attribute__((format(printf, 4, 5)));
void build_output(struct eng_build *b, const void *p, size_t n);
// Starts an agent call of the current stage on a new stream; its errors come to
// `cb` as well. The stream of a CONNECT is given to `cb`.
void build_agent(struct eng_build *b, struct wire_writer *w,
		 uint64_t timeout_ms,
		 void (*cb)(void *ctx, const struct eng_agent_answer *a));
// Something of BUILD_CLEAR ended: call done() if it was the last.
void build_settle(struct eng_build *b);
const char *build_end_text(enum eng_end why);

// --- the hooks of a build (build_hook.c) -----------------------------------

// Asks once, until `by_ns` (CLOCK_MONOTONIC): done(b, true) after 200, and
// done(b, false) when it is to be asked again in a while; else the build fails.
void build_hook_ask(struct eng_build *b, enum build_hook which, uint64_t by_ns,
		    void (*done)(struct eng_build *b, bool yes));
void build_hook_late(struct eng_build *b, enum build_hook which);

void build_boot_enter(struct eng_build *b);
void build_record_enter(struct eng_build *b);
// The step timer and the deadline of their stages.
void build_guest_step(struct eng_build *b);
void build_guest_late(struct eng_build *b);
void build_record_step(struct eng_build *b);
void build_record_late(struct eng_build *b);

#endif
