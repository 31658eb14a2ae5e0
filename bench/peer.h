// (interface) Peers: other ways to restore the very same guest, each behind one
// adapter in bench/peers/, so that thaw-bench measures them in the run in which it
// measures thaw, interleaved with it.
//
// What every adapter does: boots spec->elf with spec->mem_mib of memory and
// spec->cmdline, gives it the line "poke NONCE_AT NONCE" when it answers, takes a
// snapshot into spec->dir and ends the VM (prepare); then restores it as often as it
// is asked to, one at a time. The guest is told `serial` first in its
// command line when it has to talk through COM1 instead of the doorbell
// (tests/ring3/README.md); everything else about it is the same for all.
//
// A restore counts only when the guest has answered "peek NONCE_AT" with the
// nonce: it proves that it executes, and that it was restored and not booted.
#ifndef THAW_BENCH_PEER_H
#define THAW_BENCH_PEER_H

#include "base.h"

struct peer_spec {
	const char *bin_dir; // of thaw-bench: programs of our own lie here
	const char *binary;  // the peer's program; NULL: its default, by $PATH
	const char *elf;     // the ring-3 guest
	const char *cmdline; // commands, without `serial`, that end in no ';'
	const char *dir;     // empty directory on a disk; the caller removes it
	unsigned mem_mib;
	uint64_t nonce_at, nonce;
};

// CLOCK_MONOTONIC ns; 0: this peer cannot tell.
struct peer_times {
	uint64_t t0; // right before anything is done for this restore,
		     // starting the peer's process included
	uint64_t
	    t1; // the VM is there: its API has answered, its ioctls returned
	uint64_t t2; // the first sign that the guest executes: its first exit
	    // where that can be seen, else the first byte of its answer
	uint64_t t5; // the last byte of the answer to `command` was read
};

struct peer_sample {
	struct peer_times t;
	char answer[128]; // to `command`, without its newline
	double cpu_ms;	  // of the peer's processes until their end; 0: unknown
};

struct peer {
	const char *name;   // "qemu", "firecracker-uffd": no dots
	const char *what;   // one line for --help and the report
	const char *option; // names the binary's option ("firecracker"), or
			    // NULL: nothing has to be given

	// 1: not on this machine, with the reason in *e (it is left out of the
	// report, with that reason); -errno: it failed.
	int (*prepare)(void **state, const struct peer_spec *spec,
		       struct err *e);
	// `command` is a line for the guest without newline, or NULL: then t5
	// stays 0. The VM and every process of it is gone on return.
	int (*restore)(void *state, const char *command,
		       struct peer_sample *out, struct err *e);
	// Forgets what the peer keeps in memory of the snapshot between two
	// restores (programs of its own that keep it open); the caller drops the page
	// cache afterwards. May be NULL.
	int (*forget)(void *state, struct err *e);
	void (*finish)(void *state); // ends all; also after a failed prepare
};

// All that were compiled in, ended by NULL (bench/peers/list.c).
extern const struct peer *const peers[];

#endif
