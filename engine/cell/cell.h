// What the files of thaw-cell share.
//
// Two threads matter. The *device thread* (main) talks on the ctl socket and
// dispatches the devices. The *vCPU-0 thread* waits on the boot socket; a START
// there is the only hand-off between a client's request and the guest: that
// same thread maps, registers, loads and runs.
#ifndef THAW_CELL_CELL_H
#define THAW_CELL_CELL_H

#include <stdatomic.h>

#include "blkback.h"
#include "cellproto.h"
#include "vmm.h"

enum cell_phase { CELL_IDLE, CELL_RUNNING };

struct cell {
	struct vmm *vm;		 // a blank's: NULL until `phase` says RUNNING
	uint32_t mem_mib, vcpus; // 0 and 0: a blank
	void *mem_at;		 // a blank's reservation for guest memory
	struct vmm *begun;	 // a blank's: what of its VM has no size
	int uffd; // this cell's dup, until the template is registered
	// Written by the vCPU-0 thread before `phase` says RUNNING.
	uint64_t mapped_ns, loaded_ns;
	struct blkback *disk;
	int claim_fd; // while parked: where the vCPU-0 thread waits for UNPARK
	_Atomic int phase;
};

// Makes the VM and its vCPUs' threads. Main thread, or a blank's vCPU-0 thread.
int cell_make_vm(struct cell *c, uint32_t mem_mib, uint32_t vcpus,
		 struct err *e);

// The vCPU-0 thread's main.
void *cell_vcpu0(void *cell);

// What a parked one's vCPU-0 thread does: waits for UNPARK and obeys it.
void cell_parked(void *cell);

// Tells thawd why (CP_FAILED) and ends the process. Any thread.
_Noreturn void cell_die(const struct err *e);

#endif
