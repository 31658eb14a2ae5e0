// A microVM of the vmm room on fake_kvm, for the targets of its devices: made, accessed
// as a vCPU does it, dispatched, saved and loaded into another.
#ifndef THAW_FUZZ_MACHINE_H
#define THAW_FUZZ_MACHINE_H

#include "fuzz.h"
#include "vmm_internal.h"

enum {
	MACHINE_DISK = 64 * 1024,
	MACHINE_FLYING = 128, // of a disk that takes its time
};
#define MACHINE_SMALL (64ull << 20)
#define MACHINE_LARGE (VMM_LOW_MAX + (64ull << 20)) // beyond 4 GiB, too

struct machine {
	struct vmm *vm;
	bool slow_disk; // requests wait for machine_disk_done()
	struct vmm_disk_req *flying[MACHINE_FLYING];
	unsigned nflying;
	int fail; // what the disk answers
	uint8_t disk[MACHINE_DISK];
	// Counts.
	unsigned long reads, writes, flushes;
};

// The host of the golden states; by default it is one with little to save.
void machine_golden_host(void);
// A golden state: its length. `buf` has VMM_STATE_MAX bytes.
size_t machine_golden(const char *name, uint8_t *buf);
// Memory is zero. `disk`: bytes, 0 for none.
void machine_begin(struct machine *m, uint64_t mem, uint64_t disk, int console);
// One for a state to be loaded into.
void machine_shell(struct machine *m, const struct vmm_state_info *info);
void machine_end(struct machine *m);

// Guest memory, or NULL.
void *machine_at(struct machine *m, uint64_t gpa, uint64_t len);
// Accesses of vCPU 0, by its exits.
void machine_mmio(struct machine *m, bool write, uint64_t gpa, void *data,
		  unsigned len);
void machine_pio(struct machine *m, bool out, uint16_t port, void *data,
		 unsigned size, unsigned count);
uint32_t machine_rd32(struct machine *m, uint64_t gpa);
void machine_wr32(struct machine *m, uint64_t gpa, uint32_t v);
// Dispatches until nothing is due, a bounded number of times.
void machine_work(struct machine *m);
void machine_disk_done(struct machine *m, unsigned which);
void machine_disk_done_all(struct machine *m);
// Saves, checks, loads into a new one over the same memory, saves that: both states are
// the same. The new one has not run.
void machine_copy(struct machine *m, bool in_two_steps);
// The same of one that runs, which is paused for it; the new one runs.
void machine_move(struct machine *m, bool in_two_steps);

#endif
