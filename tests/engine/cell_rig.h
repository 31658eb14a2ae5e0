// A thawd without its API, for tests: loop, workers, store, keeper and cells,
// in a temporary directory, with ring-3 guests. Needs root, /dev/kvm and
// /dev/userfaultfd: elsewhere rig_open() skips the test.
#ifndef THAW_TESTS_CELL_RIG_H
#define THAW_TESTS_CELL_RIG_H

#include "cells.h"

struct rig_opts {
	unsigned shells, max_cells; // 0: 0 and 32
	unsigned blanks;
	const char *cell;  // program beside this one; NULL: thaw-cell
	const char *store; // existing directory; NULL: a new one
	int keeper_sock;   // 0: forks a keeper of its own
};

struct rig {
	char dir[64]; // temporary, removed by rig_close()
	char bin[256];
	struct eng_loop *loop;
	struct eng_jobs *jobs;
	struct pgc_store *store;
	struct eng_cells *cells;
	struct eng_timer *tick;
	unsigned ticks; // turns of the loop that are its
	int kvm, uffd, keeper_sock;
	pid_t keeper;
};

// How long the rig, and who uses rig_until(), wait for what comes at once.
enum { RIG_MS = 120000 };

bool rig_usable(void);
void rig_need(void); // skips the test where rigs are not usable
// Needs, then asserts; o may be NULL.
void rig_open(struct rig *r, const struct rig_opts *o);
void rig_close(struct rig *r);

struct rig_vm {
	struct rig *r;
	struct eng_cell *cell;
	bool started, ready, gone, captured;
	unsigned nready;
	struct eng_cell_times times;
	enum eng_end why;
	char detail[400];
	unsigned kill_after_us; // SIGKILL so long after a capture began; 0: no
	int rc;			// of the capture
	char capture_why[400];
	struct eng_capture_stats st;
	unsigned fills; // of its boot's commands, each of which prints FILLED
	size_t len, seen;
	char text[1 << 16]; // console
};

// All of these assert that what they start succeeds, and turn the loop.
void rig_boot(struct rig *r, struct rig_vm *vm, uint32_t mem_mib,
	      unsigned vcpus, const char *commands);
void rig_thaw(struct rig *r, struct rig_vm *vm, const struct pgc_id *base,
	      const struct pgc_id *own);
void rig_thaw_req(struct rig *r, struct rig_vm *vm,
		  const struct eng_thaw_req *req);
void rig_launch(struct rig *r, struct rig_vm *vm,
		const struct eng_thaw_req *req); // does not wait
void rig_boot_req(struct rig *r, struct rig_vm *vm,
		  const struct eng_boot_req *req); // does not wait
void rig_capture_begin(struct rig_vm *vm, struct pgc_id *id, bool image,
		       bool keep); // does not wait
// Captures; keep: the guest runs on. Returns the capture's rc.
int rig_capture(struct rig_vm *vm, struct pgc_id *id, bool image, bool keep);
// Boots, runs the commands, captures an image, ends the guest.
void rig_image(struct rig *r, struct pgc_id *id, uint32_t mem_mib,
	       unsigned vcpus, const char *commands);
// Sends a command line and returns the answer's line (valid until the next).
const char *rig_cmd(struct rig_vm *vm, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
void rig_kill(struct rig_vm *vm); // and waits for its end

// Turns the loop until cond(arg), at most `ms`; whether it became true.
bool rig_until(struct rig *r, bool (*cond)(void *arg), void *arg, unsigned ms);
bool rig_is_started(void *vm);
bool rig_is_ready(void *vm);
bool rig_is_gone(void *vm);
void rig_turn(struct rig *r, unsigned ms); // for so long

#endif
