// Shells of microVMs over WebSocket (docs/ENDPOINT.md, "The shell"). On the loop.
#ifndef THAW_ENG_SHELL_H
#define THAW_ENG_SHELL_H

#include "vm.h"

struct shell;
struct eng_shells; // all that are open

// NULL: no memory.
struct eng_shells *eng_shells_create(struct eng_loop *l, struct eng_vms *vms);
void eng_shells_destroy(struct eng_shells *s); // ends them; NULL is fine

// Starts a shell in the guest, which is resumed for it as by eng_vm_open(). cb is
// called once, on a later turn, with a stream of the server's WebSocket frames (the
// caller's), or as eng_vm_open()'s. -EDQUOT: there are SHELLS_MAX already. NULL:
// no memory, and cb does not come.
enum { SHELLS_MAX = 256 };
struct shell *eng_shell_open(struct eng_shells *s, struct reg_vm *vm,
			     uint64_t timeout_ms,
			     void (*cb)(void *ctx, int fd, const char *why),
			     void *ctx);
void eng_shell_cancel(struct shell *sh); // before cb; NULL is fine

#endif
