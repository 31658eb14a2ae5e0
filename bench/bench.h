// What every measurement of thaw-bench shares: samples, results, the report, and
// the ways to drive thawd and the floor programs.
#ifndef THAW_BENCH_H
#define THAW_BENCH_H

#include <jansson.h>
#include <stdio.h>

#include "base.h"
#include "guestmem.h"

// --- samples and results (stats.c, report.c) --------------------------------------

struct samples {
	double *v;
	size_t n, cap;
};

void samples_add(struct samples *s, double v);
void samples_free(struct samples *s);
// p in 0..100, nearest rank; sorts in place. 0 when empty.
double samples_percentile(struct samples *s, double p);

// One line of the table and one member of "results".
struct result {
	char name[64];
	const char *unit;
	struct samples samples;
	struct samples floor; // of the same unit; or empty, and then
	double floor_p50;     // a floor put together of several; 0: none
	double ratio;	      // 0: p50 over the floor's p50
	json_t *extra;	      // more members; or NULL
};

enum { MAX_RESULTS = 160, MAX_LEFT_OUT = 32 };
struct report {
	struct result v[MAX_RESULTS];
	size_t n;
	struct {
		char name[64], why[240];
	} left_out[MAX_LEFT_OUT]; // what could not be measured here
	size_t num_left_out;
	json_t *host; // of loaded results; NULL: this one's
};

// A new result, owned by the report; one of that name is forgotten.
struct result *report_add(struct report *r, const char *unit, const char *fmt,
			  ...) __attribute__((format(printf, 3, 4)));
struct result *report_find(struct report *r, const char *name); // or NULL
// Says in the report that something is not in it. A name's first reason stays.
void report_leave_out(struct report *r, const char *name, const char *why);
void report_free(struct report *r);
void result_number(struct result *r, const char *member, double v);
void result_text(struct result *r, const char *member, const char *v);
double result_floor(struct result *r); // its p50; 0: none
double result_ratio(struct result *r); // 0: none

// What the figures were measured on: kernel, CPU, KVM flavour, HZ, ...
json_t *host_facts(void);
// One line of them: "Linux 6.1.0, HZ=250, kvm_amd, nested, ...".
void host_line(const json_t *host, char *buf, size_t cap);
void report_table(FILE *out, struct report *r);
// {"host": {...}, "results": [{...}, ...], "left_out": [{"name", "reason"}, ...]}
json_t *report_json(struct report *r);
// The same to a file, a line for each result.
int report_save(const char *path, struct report *r, struct err *e);
// Adds the results of such a file. -EEXIST: a name is there already; -EPROTO: the
// file is not one of report_save().
int report_load(struct report *r, const char *path, struct err *e);
// The same as pages to read: DIR/report.md with DIR/*.svg and DIR/bench.json.
int report_write(const char *dir, struct report *r, struct err *e);
// The page's plots into `dir`, named in `md` (report_plots.c).
int report_plots(const char *dir, FILE *md, struct report *r);

// --- thawd, as the harness drives it (daemon.c) -----------------------------------

struct daemon {
	pid_t pid;
	char dir[64]; // state, socket and log; removed by daemon_stop()
	char socket[96];
	char bin_dir[512];
	char args[3][16];
	json_int_t ready; // cells that it keeps ready: shells, or else blanks
	bool shells;
};

// Starts a thawd of its own in a temporary directory and waits until its socket
// answers. `shells` and `blanks` are how many it keeps ready. Daemons that run
// at the same time have different `which` (0..9).
int daemon_start(struct daemon *d, const char *bin_dir, unsigned which,
		 unsigned shells, unsigned blanks, struct err *e);
// Ends it and starts it again on the same state: nothing is in its memory then.
int daemon_restart(struct daemon *d, struct err *e);
void daemon_stop(struct daemon *d);

// One request on a fresh connection; the answer's JSON in *out (owned by the
// caller; NULL for an empty body). Takes `body`. A status of 400 and more is -EIO
// with the answer's message. If `t0` is given it gets CLOCK_MONOTONIC ns right
// before the request's bytes are written (the connection stands by then).
int daemon_call(const struct daemon *d, const char *method, const char *path,
		json_t *body, json_t **out, uint64_t *t0, struct err *e);
// The same with a body that is text.
int daemon_call_raw(const struct daemon *d, const char *method,
		    const char *path, const char *body, json_t **out,
		    uint64_t *t0, struct err *e);
// A connection to its socket, or -errno.
int daemon_connect(const struct daemon *d);
// Builds an image from the ring-3 guest, which has no agent.
int daemon_build_ring3(const struct daemon *d, const char *name,
		       const char *cmdline, unsigned mem_mib, struct err *e);
// Waits until all of its cells are ready again.
int daemon_settle(const struct daemon *d, struct err *e);
// thawd's own process: its keeper is its parent.
pid_t daemon_main_pid(const struct daemon *d);

// --- microVMs through the socket (microvm.c) ----------------------------------------

struct microvm {
	char id[80];
	pid_t pid;
	uint64_t t0; // right before the request was written
	uint64_t t2; // the guest's first exit
	uint64_t t1; // its state was loaded
	uint64_t answered;
};

// Runs a microVM; `payload` goes to its mailbox; or NULL. Returns with the answer,
// which may come before the guest's first exit: t2 is 0 then.
int microvm_start(const struct daemon *d, const char *image,
		  const char *payload, struct microvm *vm, struct err *e);
// Waits until its guest has executed, by asking now and then: not while a time is
// taken that this could lengthen.
int microvm_executed(const struct daemon *d, struct microvm *vm, struct err *e);
// Both.
int microvm_run(const struct daemon *d, const char *image, const char *payload,
		struct microvm *vm, struct err *e);
int microvm_mail(const struct daemon *d, const struct microvm *vm,
		 const char *line, struct err *e);
// Waits for the first line of its log, from now on also the past, that begins with
// `prefix`; *when: CLOCK_MONOTONIC ns at which its end arrived.
int microvm_line(const struct daemon *d, const struct microvm *vm,
		 const char *prefix, char *line, size_t cap, uint64_t *when,
		 struct err *e);
int microvm_inspect(const struct daemon *d, const struct microvm *vm,
		    json_t **out, struct err *e);
int microvm_end(const struct daemon *d, const struct microvm *vm,
		struct err *e);

// --- what a sample costs beside its time (cost.c) ------------------------------------

// CPU time of thawd in the meantime and of the cell in all its life (its
// preparation too), what the guest's pages missed, and what disks read.
struct cost {
	pid_t thawd;
	uint64_t cpu0, read0;
	struct samples cpu_ms, faults, fault_pages, minor, major, read;
	struct samples t1_ms, t2_ms;
};

void cost_begin(struct cost *c, const struct daemon *d);
// Before microvm_end(). On an error nothing is added.
int cost_end(struct cost *c, const struct daemon *d, const struct microvm *vm,
	     struct err *e);
// Medians as members of the result: cpu_ms, faults, fault_pages, faults_minor,
// faults_major, bytes_read, t1_ms and t2_ms. Frees the samples.
void cost_report(struct cost *c, struct result *r);

// For what is done by many processes at once: the whole machine's time, in jiffies,
// so only the mean of many samples means something.
struct busy {
	uint64_t cpu0, read0, cpu, read;
	size_t n;
};
void busy_begin(struct busy *b);
void busy_end(struct busy *b, size_t samples); // that were taken since
void busy_report(const struct busy *b, struct result *r); // cpu_ms, bytes_read

// --- floor programs (proc.c) --------------------------------------------------------

struct proc {
	pid_t pid;
	FILE *to, *from;
};
// argv[0] is a name in bin_dir.
int proc_start(struct proc *p, const char *bin_dir, char *const argv[],
	       struct err *e);
// One line out, one line back (without newline). "ERR ..." is -EIO. `t0` may be
// NULL: CLOCK_MONOTONIC ns right before the line was written.
int proc_ask(struct proc *p, const char *line, char *answer, size_t cap,
	     uint64_t *t0, struct err *e);
void proc_stop(struct proc *p);
// The floor program with the ring-3 guest.
int floor_start(struct proc *p, const char *bin_dir, unsigned mem_mib,
		const char *cmdline, struct err *e);

// --- the host (host.c) ---------------------------------------------------------------

// Kilobytes of a line of /proc/meminfo ("MemAvailable"); 0: no such line.
uint64_t host_meminfo(const char *name);
uint64_t host_pss_kb(pid_t pid);
// Nanoseconds on a processor of all threads of a process, so far.
uint64_t host_cpu_ns(pid_t pid);
// Page faults of a process that the kernel counted, so far.
void host_faults(pid_t pid, uint64_t *minor, uint64_t *major);
// Nanoseconds that all processors were busy, so far.
uint64_t host_busy_ns(void);
// Bytes read from the host's disks, so far.
uint64_t host_disk_read(void);
// Writes out and drops the page cache, dentries and inodes. -EPERM: not root.
int host_drop_caches(struct err *e);
double host_tsc_ghz(void); // cycles a nanosecond

// --- measurements ------------------------------------------------------------------

struct bench_options {
	const char *bin_dir; // where thawd, ring3.elf and the floors are
	const char *peers; // names, comma-separated; "" for none; NULL for all
	const char *(*peer_binary)(const char *option);
	unsigned runs;
	bool quick;
};

// The answer of the ring-3 guest to `touch`: checks the sum of `bytes` from 16M
// under `seed`, and gives ns a page.
int touch_parse(const char *answer, uint64_t seed, uint64_t bytes, double *ns,
		struct err *e);
// The same of `touch read scattered` and `sparse`: a run of pages in each `block`.
int touch_parse_scattered(const char *answer, uint64_t seed, uint64_t bytes,
			  unsigned block, double *ns, struct err *e);

// Each adds its results; 0 or -errno.
int bench_restore(const struct bench_options *o, struct report *r,
		  struct err *e);
int bench_touch(const struct bench_options *o, struct report *r, struct err *e);
int bench_cold(const struct bench_options *o, struct report *r, struct err *e);
int bench_suspend(const struct bench_options *o, struct report *r,
		  struct err *e);
int bench_clones(const struct bench_options *o, struct report *r,
		 struct err *e);
int bench_rate(const struct bench_options *o, struct report *r, struct err *e);
int bench_store(const struct bench_options *o, struct report *r, struct err *e);
int bench_pool(const struct bench_options *o, struct report *r, struct err *e);
int bench_peers(const struct bench_options *o, struct report *r, struct err *e);

#endif
