// The descriptor keeper: thawd's first process. It holds a duplicate of every
// descriptor whose close would put zeroes into a guest, outlives thawd, and
// when thawd is gone ends every cell before it lets them go.
#ifndef THAW_ENG_KEEPER_H
#define THAW_ENG_KEEPER_H

#include "base.h"

// What a held descriptor is. Kept on the wire so that a later thawd can adopt.
enum eng_keep {
	ENG_KEEP_CELL_PIDFD = 1, // id: the cell's
	ENG_KEEP_CELL_UFFD,
	ENG_KEEP_TMPL_MEMFD, // id: the template's
	ENG_KEEP_TMPL_UFFD,
};

// Forks, before there is any thread: the calling process stays behind as the
// keeper and never returns; the child goes on as thawd, with *sock its socket.
// The keeper passes SIGTERM, SIGINT and SIGHUP on to thawd and exits with its
// status.
int eng_keeper_start(int *sock, struct err *e);

// The keeper's main: serves `sock` until its end, then kills the cells, waits
// for them, closes everything. `thawd` is the process to forward signals to, or
// 0.
void eng_keeper_run(int sock, pid_t thawd);

// thawd's side. The descriptor counts as held when this returns 0: it is in the
// socket's queue, which only the keeper's death empties.
int eng_keeper_hold(int sock, enum eng_keep what, uint64_t id, int fd);
// Lets all descriptors with this id go: the cell is dead and reaped, or the
// template has no reader left.
int eng_keeper_drop(int sock, bool cell, uint64_t id);

#endif
