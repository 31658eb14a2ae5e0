// The openings' payloads, decoded: every length, count and string checked,
// every list NUL-terminated in one block, nothing left over at the end.
#ifndef THAW_AG_SPEC_H
#define THAW_AG_SPEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ag_frame.h"

enum { AG_ARGV_MAX = 4096, AG_ENV_MAX = 4096 };

// A program to start. `block` owns everything; ag_spec_fini() frees it.
struct ag_spec {
	char **argv, **env; // NULL-terminated; argv has at least one entry
	char *user, *cwd, *hostname; // "" when absent, never NULL
	bool all_caps;		     // of START
	bool pty;
	uint16_t rows, cols;
	void *block;
};

// 0, -EPROTO (malformed: what is wrong is in *why, a constant) or -ENOMEM.
int ag_spec_app(struct ag_spec *s, const uint8_t *p, size_t len,
		const char **why);
int ag_spec_exec(struct ag_spec *s, const uint8_t *p, size_t len,
		 const char **why);
void ag_spec_fini(struct ag_spec *s); // zeroed is fine

struct ag_thaw {
	uint8_t entropy[AG_ENTROPY_LEN];
	uint64_t wall_ns;
	uint8_t machine_id[16];
	char hostname[AG_HOSTNAME_MAX + 1]; // "": keep
};
int ag_thaw_parse(struct ag_thaw *t, const uint8_t *p, size_t len,
		  const char **why);

// A new environment of `extra` spare NULL slots, the entries of `over`, and
// those of `base` whose names `over` does not set. The strings are borrowed,
// the array is the caller's. NULL: no memory. Either list may be NULL.
char **ag_env_merge(char *const *base, char *const *over, size_t extra);
// The value of `name` in `env`, or NULL.
const char *ag_env_get(char *const *env, const char *name);

#endif
