// thaw-agent's inside: one process, one thread, one epoll loop.
//
// Everything that can happen is a descriptor that became ready or a deadline
// that passed; nothing polls, and an idle agent sleeps in epoll_wait() for
// ever. Each stream that the host opened is a `struct conn` with one kind of
// conversation. Rules that keep callbacks simple:
// - a watch is armed from one place per kind, its *_update() function, which
//   recomputes interest from the queues' state;
// - a watch without interest is out of the epoll set (an epoll set reports
//   hang-ups that nobody asked for, for ever);
// - nothing is freed in a callback: conn_end() marks, the loop sweeps after the
//   batch. A watch whose fd is -1 is dead, and stale events for it are skipped.
//
// Memory is bounded by AG_CONN_MAX streams: 64 KiB of buffers each, and one
// frame of the host's in the making (256 KiB at most).
#ifndef THAW_AG_H
#define THAW_AG_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "ag_frame.h"
#include "ag_meta.h"
#include "ag_ring.h"
#include "ag_spec.h"

enum {
	AG_CONN_MAX = 256,
	AG_CONN_HARD_MAX = AG_CONN_MAX + 16, // the rest only for control
	AG_OPENING_MS = 10000,	// an opening must be complete by then
	AG_FREEZE_MS = 10000,	// the cgroup must be frozen by then
	AG_CONNECT_MS = 10000,	// a local TCP connection is made by then
	AG_LOG_STALL_MS = 1000, // a reader that takes nothing for so long
				// no longer holds the application back
	AG_IO_BUF = 32768,
};

struct agent;

struct watch {
	int fd;		// -1: none
	uint32_t armed; // EPOLL* bits; 0: not in the set
	void (*cb)(struct watch *w, uint32_t events);
	void *ctx;
};

enum conn_kind {
	CONN_OPENING, // no complete opening yet
	CONN_REPLY,   // an answer is being sent, then the stream closes
	CONN_WAIT,    // START, FREEZE or POWEROFF is under way
	CONN_EXEC,
	CONN_FORWARD,
	CONN_LOG,
};

struct conn {
	struct conn *next;
	struct agent *a;
	struct watch w;
	enum conn_kind kind;
	bool dead;
	bool end_after_flush;
	uint64_t deadline_ns; // 0: none
	struct ag_reader in;
	struct ag_out out;
	struct ag_exec *exec;	// CONN_EXEC
	struct ag_forward *fwd; // CONN_FORWARD
};

// The application, of which there is one.
struct app {
	enum { APP_NONE, APP_STARTING, APP_RUNNING, APP_ENDED } state;
	pid_t pid;
	int status;	     // exit code, 128+n for a signal; when APP_ENDED
	struct ag_spec spec; // environment, user and cwd serve EXEC too
	struct watch err;    // exec's result (closed by a successful exec)
	struct watch out[2]; // its stdout and stderr
	struct conn *starter;
	struct ag_ring ring;
	struct conn *reader; // the LOG stream
	bool in_flight;	     // a peeked record is in reader->out
	bool held;	     // the ring is full and the reader is waited for
	uint64_t stall_ns;   // when held: until then
	bool stalled;	     // it was waited for in vain
};

struct cgroup {
	bool usable;
	int dir;	     // the application's cgroup
	struct watch events; // its cgroup.events
	bool frozen, populated;
};

struct imds_conn;

// The metadata service (ag_imds.c).
struct imds {
	struct watch listener;	 // fd -1: there is none
	int steer_fd;		 // see ag_steer()
	struct imds_conn *conns; // the youngest first
	unsigned nconns;	 // of them that are not dead
	struct ag_meta meta;
	uint8_t identity[16]; // the machine's id that the tokens belong to
};

struct agent {
	int epoll;
	bool init; // PID 1 of a guest; else a test on some host
	bool keep_clock;
	bool quit; // test mode: leave the loop
	struct watch listener, signals;
	bool vsock;
	struct conn *conns;
	size_t nconns;
	struct app app;
	struct cgroup cg;
	bool freezing, frozen; // what the host asked for and was told
	uint32_t freeze_flags;
	struct conn *freezer;
	uint64_t freeze_deadline_ns;
	enum { OFF_NO, OFF_TERM, OFF_KILL, OFF_FLUSH } off;
	struct conn *off_conn;
	uint64_t off_deadline_ns;
	struct imds imds;
	int boot_id_fd;	      // what covers /proc/.../boot_id, or -1
	const char *root_why; // why the root is not the disk, or NULL
};

// ag_loop.c
// Takes the descriptor over; not armed yet.
void ag_watch_init(struct watch *w, int fd,
		   void (*cb)(struct watch *, uint32_t), void *ctx);
void ag_watch_set(struct agent *a, struct watch *w, uint32_t events);
void ag_watch_close(struct agent *a, struct watch *w); // closes the fd too
void ag_loop(struct agent *a);
uint64_t ag_deadline(uint64_t ms);
// A line to the console and to the log stream, with "thaw-agent: " before it.
void ag_say(struct agent *a, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

// ag_conn.c
int ag_listen_vsock(struct agent *a);
int ag_listen_unix(struct agent *a, const char *path);
// Each answers and ends the conversation.
void ag_conn_answer(struct conn *c, unsigned type, const void *p, size_t len);
void ag_conn_ok(struct conn *c);
void ag_conn_error(struct conn *c, int err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void ag_conn_end(struct conn *c);
void ag_conn_end_others(struct agent *a, struct conn *keep);
void ag_conn_sweep(struct agent *a);
void ag_conn_timers(struct agent *a, uint64_t now);
// Reads towards one frame: 1 complete, 0 not yet, -errno (-EPIPE: the end).
int ag_conn_read(struct conn *c);

// ag_control.c: one call per opening
void ag_open_freeze(struct conn *c);
void ag_open_thaw(struct conn *c);
void ag_open_unfreeze(struct conn *c);
void ag_open_probe(struct conn *c);
void ag_open_poweroff(struct conn *c);
void ag_control_cgroup_event(struct agent *a);
void ag_control_conn_gone(struct conn *c);
void ag_control_timers(struct agent *a, uint64_t now);
uint64_t ag_control_deadline(const struct agent *a);

// ag_app.c
void ag_app_init(struct agent *a);
void ag_open_start(struct conn *c);
void ag_open_log(struct conn *c);
bool ag_app_reaped(struct agent *a, pid_t pid, int status);
void ag_app_timers(struct agent *a, uint64_t now);
void ag_log_pump(struct agent *a);
void ag_log_conn_event(struct conn *c, uint32_t events);
void ag_app_conn_gone(struct conn *c);

// ag_exec.c, ag_forward.c: their streams
void ag_open_exec(struct conn *c);
bool ag_exec_reaped(struct agent *a, pid_t pid, int status);
void ag_exec_conn_event(struct conn *c, uint32_t events);
void ag_exec_timeout(struct conn *c);
void ag_exec_close(struct conn *c);
void ag_open_connect(struct conn *c);
void ag_forward_conn_event(struct conn *c, uint32_t events);
void ag_forward_timeout(struct conn *c);
void ag_forward_close(struct conn *c);

// ag_imds.c
// At 169.254.169.254 of this network name space. 0 or -errno.
int ag_imds_open(struct agent *a);
void ag_imds_close(struct agent *a);
void ag_imds_pause(struct agent *a); // nobody is answered
void ag_imds_wipe(struct agent *a);  // while paused: no secret is in memory
void ag_imds_resume(struct agent *a);
void ag_imds_identity(struct agent *a, const uint8_t machine_id[16]);
void ag_open_role(struct conn *c);
uint64_t ag_imds_deadline(const struct agent *a);
void ag_imds_timers(struct agent *a, uint64_t now);
void ag_imds_sweep(struct agent *a);

// ag_cgroup.c
// Makes or takes the folder `path` as the application's cgroup.
int ag_cgroup_open(struct agent *a, const char *path);
int ag_cgroup_write(struct agent *a, const char *file, const char *value);
uint64_t ag_cgroup_cpu_us(struct agent *a);
int ag_cgroup_procs_fd(struct agent *a); // for ag_spawn(); -1 when unusable

// ag_compact.c
// Zeroes the guest's free memory (init only). Takes its time.
void ag_compact(struct agent *a);

// ag_identity.c: what must differ between two thaws. `err` gets a sentence.
int ag_entropy(const uint8_t bytes[AG_ENTROPY_LEN], char *err, size_t size);
int ag_machine_id(const uint8_t id[16], char *err, size_t size);
void ag_machine_id_warm(void); // brings its file into memory
// Covers the kernel's boot id by a file of ours (init only), and renews it.
void ag_boot_id_cover(struct agent *a);
int ag_boot_id_renew(struct agent *a);

// ag_boot.c: from the kernel's hands to a usable system (init only).
void ag_boot_early(struct agent *a); // /proc, /sys, /dev, console, modules
void ag_boot_root(struct agent *a);  // the disk, its mounts, lo, cgroup

#endif
