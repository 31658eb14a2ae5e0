// (interface) A program that thawd starts, and that says in lines on its stdout
// how far it is: thaw-mkdisk and thaw-mkroot.
#ifndef THAW_ENG_CHILD_H
#define THAW_ENG_CHILD_H

#include "loop.h"

enum { ENG_CHILD_LINE = 4096 + 64 }; // bytes; a longer line loses its rest

struct eng_child;

struct eng_child_events {
	// A line without its '\n'; line[n] is NUL. The text is the callee's to
	// change, that NUL too, until it returns.
	void (*line)(void *ctx, char *line, size_t n);
	// Once, after the last line; the program is reaped. `how` says it in
	// words ("exit code 1", "signal 9"); `ok` is an exit code of 0. The
	// child may be destroyed in here, and not before.
	void (*ended)(void *ctx, bool ok, const char *how);
};

// Starts argv[0], a path, with nothing of thawd's: signals as a fresh program
// expects them, a PATH for an environment, /dev/null for stdin. stderr is
// thawd's. `name` is a string constant, shown as the longest turn's name.
// Nothing runs after an error.
int eng_child_start(struct eng_child **out, struct eng_loop *l,
		    char *const argv[], const struct eng_child_events *ev,
		    void *ctx, const char *name, struct err *e);
bool eng_child_runs(const struct eng_child *c);	   // false from ended() on
void eng_child_kill(struct eng_child *c, int sig); // nothing when it ended
void eng_child_destroy(struct eng_child *c);	   // NULL is fine

#endif
