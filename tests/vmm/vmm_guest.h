// Helpers of the tests that run the tiny guest (tiny.S) on the host's KVM.
#ifndef TEST_VMM_GUEST_H
#define TEST_VMM_GUEST_H

#include "vmm_internal.h"

enum { G_COUNTERS = 0x300000, G_STOP = 0x301000 };

// For what comes at once, on a host that has other things to do.
enum { G_PATIENCE_MS = 60000 };

struct guest {
	struct vmm *vm;
	int pipe_rd, pipe_wr;
};

// A shell with anonymous memory mapped over it; aborts the test on failure.
struct guest guest_shell(uint64_t mem_bytes, unsigned vcpus);
// Boots tiny.S; vCPUs from 1 on are set at its entry, too.
void guest_boot(struct guest *g);
void guest_go(struct guest *g); // spawns and starts
void guest_end(struct guest *g);
// Dispatches until an event of `kind` arrives; false when the VM ended otherwise,
// or none comes.
bool guest_wait(struct guest *g, enum vmm_event_kind kind,
		struct vmm_event *out);
volatile uint64_t *guest_counter(struct guest *g, unsigned vcpu);
// Waits until a vCPU has counted beyond `was`; false when it stands still.
bool guest_counts(struct guest *g, unsigned vcpu, uint64_t was);
void guest_stop_counting(struct guest *g);
// Dispatches until the console gave `n` bytes; returns how many it gave.
size_t guest_says(struct guest *g, void *buf, size_t n);
// Waits for every vCPU's verdict; true when all of them agree with themselves.
bool guest_verdicts(struct guest *g);
bool have_kvm(void);

#endif
