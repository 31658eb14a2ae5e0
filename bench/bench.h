// What every measurement of thaw-bench shares: samples, results, and the report.
#ifndef THAW_BENCH_H
#define THAW_BENCH_H

#include <jansson.h>

#include "base.h"

struct samples {
	double *v;
	size_t n, cap;
};

void samples_add(struct samples *s, double v);
void samples_free(struct samples *s);
// p in 0..100, nearest rank; sorts in place. 0 when empty.
double samples_percentile(struct samples *s, double p);

// One line of the table and one member of "results". Samples are borrowed;
// `floor` may be NULL.
struct result {
	const char *name, *unit;
	struct samples *samples, *floor;
};

// What the figures were measured on: kernel, CPU, KVM flavour, HZ, ...
json_t *host_facts(void);
void report_table(FILE *out, const struct result *r, size_t n);
json_t *report_json(const struct result *r, size_t n);

// --- thawd, as the harness drives it ---------------------------------------------

struct daemon {
	pid_t pid;
	char dir[64]; // state, socket and log; removed by daemon_stop()
	char socket[96];
};

// Starts a thawd of its own in a temporary directory and waits until its socket
// answers. `extra` are more arguments, NULL-terminated.
int daemon_start(struct daemon *d, const char *bin_dir,
		 const char *const *extra, struct err *e);
void daemon_stop(struct daemon *d);

// One request on a fresh connection; the answer's JSON in *out (owned by the
// caller; NULL for an empty body). A status of 400 and more is -EIO with the
// answer's message. If `t0` is given it gets CLOCK_MONOTONIC ns right before the
// request's bytes are written (the connection stands by then).
int daemon_call(const struct daemon *d, const char *method, const char *path,
		json_t *body, json_t **out, uint64_t *t0, struct err *e);
// Builds an image from a kernel without an agent.
int daemon_build_kernel(const struct daemon *d, const char *name,
			const char *elf, const char *cmdline, unsigned mem_mib,
			struct err *e);

// --- measurements ------------------------------------------------------------------

struct bench_options {
	const char *bin_dir; // where thawd, ring3.elf and the floors are
	unsigned runs;
	bool verbose;
};
// Fills results[]; returns how many, or -errno.
int bench_restore(const struct bench_options *o, struct result *results,
		  size_t max, struct err *e);

#endif
