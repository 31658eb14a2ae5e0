// The floor programs' own idea of a microVM: KVM's ioctls and the ring-3 guest,
// nothing else. One thread; every failure ends the program.
#ifndef THAW_BENCH_FLOOR_KVM_H
#define THAW_BENCH_FLOOR_KVM_H

#include <linux/kvm.h>

#include "base.h"

struct machine {
	int vm, vcpu;
	struct kvm_run *run;
	uint8_t *mem;
	uint64_t bytes;
};

struct snapshot {
	int template_fd; // the memory, a memfd
	uint64_t bytes;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
};

// Prints what failed, with errno, and exits.
_Noreturn void die(const char *what);

// Opens /dev/kvm and learns what every machine needs. First of all.
void floor_kvm_init(void);
// A VM without memory contents: one slot over a mapping of `mem_fd` with
// `map_flags` (MAP_SHARED, MAP_PRIVATE), in the fastest order (docs/KVM.md).
void machine_open(struct machine *m, int mem_fd, uint64_t bytes, int map_flags);
void machine_close(struct machine *m);
// Runs until the guest leaves on a port; dies on anything else.
void machine_run(struct machine *m);
void machine_load(struct machine *m, const struct snapshot *s);

// Boots `elf` to READY and keeps what a restore needs.
void snapshot_make(struct snapshot *s, const char *elf, const char *cmdline);

// Gives a guest that asks its mailbox one line, and waits for the first line that
// it writes: without newline into answer[cap].
void machine_ask(struct machine *m, const char *line, char *answer, size_t cap);

// The answer to a guest that left for its mailbox; it sees it when it runs again.
void machine_mail(struct machine *m, char c);

#endif
