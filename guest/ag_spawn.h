// Starts one program of the guest: its own session, in the application's
// cgroup, as its user, in its folder.
#ifndef THAW_AG_SPAWN_H
#define THAW_AG_SPAWN_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct ag_spawn {
	char *const *argv; // argv[0] is searched in PATH of env
	char **env;	   // ag_env_merge()'s, with 2 spare slots at its end
	const char *user, *cwd; // "" is root, "/"
	int fds[3];		// what become stdin, stdout and stderr
	bool all_caps;		// else ag_caps_default alone
	bool tty;	  // fds[0] is a terminal: make it the controlling one
	int cgroup_procs; // descriptor of cgroup.procs, or -1
};

// What is read from the result descriptor when exec failed. Nothing (the end)
// means that the program runs.
struct ag_spawn_error {
	int32_t err; // errno
	char text[124];
};

// Returns the child's pid, or -errno. *result (non-blocking) is the caller's.
// Everything that can block happens in the child.
pid_t ag_spawn(const struct ag_spawn *s, int *result);

#endif
