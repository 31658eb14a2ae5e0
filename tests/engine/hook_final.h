// What the hostile program tries behind the cell's final filter.
#ifndef THAW_TESTS_HOOK_FINAL_H
#define THAW_TESTS_HOOK_FINAL_H

// The names of the calls that are the end, one after the other; NULL: no more.
const char *hook_final_name(unsigned i);
// Makes the call of that name, with `fd`, which could be mapped, where it takes one.
// "needed": all that a cell needs, and what fails and is not the end. Returns what
// did not go as it should, or NULL.
const char *hook_final(const char *name, int fd);

#endif
