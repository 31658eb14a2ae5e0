// What the metadata service (IMDSv2) knows and answers. No sockets: ag_imds.c has
// them.
#ifndef THAW_AG_META_H
#define THAW_AG_META_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

enum {
	AG_META_HEAD_MAX = 4096, // a request's head, with its empty line
	AG_META_OUT_MAX = 8192,	 // an answer
	AG_META_TOKENS = 256,	 // sessions; more end the one that ends next
	AG_META_TTL_MAX = 21600,
	AG_ROLE_NAME_MAX = 64, // of the microVM's id, and of the region
	AG_ROLE_KEY_MAX = 128,
	AG_ROLE_SECRET_MAX = 256,
	AG_ROLE_TOKEN_MAX = 4096,
};

// What ROLE brought. Its texts need no escape in JSON.
struct ag_role {
	bool known; // else it is empty, and asked-for things are not there
	char vm[AG_ROLE_NAME_MAX + 1], region[AG_ROLE_NAME_MAX + 1];
	char key[AG_ROLE_KEY_MAX + 1]; // "": it has no credentials
	char secret[AG_ROLE_SECRET_MAX + 1];
	char token[AG_ROLE_TOKEN_MAX + 1]; // "": long-term credentials
	uint64_t expires_s;		   // since 1970; 0: they do not
	time_t updated;
};

struct ag_meta {
	struct ag_role role;
	struct {
		uint8_t id[16];
		uint64_t until_ns; // 0: none
	} tokens[AG_META_TOKENS];
};

// Takes a ROLE frame's payload. 0, or -EPROTO and *why, a constant: nothing has
// changed then. `wall`: now.
int ag_meta_role(struct ag_meta *m, const uint8_t *p, size_t len, time_t wall,
		 const char **why);
void ag_meta_forget_role(struct ag_meta *m); // wiped
void ag_meta_forget_tokens(struct ag_meta *m);

// Answers the request whose head is the `len` bytes at `head`, its empty line
// included. `now_ns` is any clock that only goes on; `wall` since 1970. Returns
// the answer's length, at most AG_META_OUT_MAX, which `out` must have.
size_t ag_meta_answer(struct ag_meta *m, const char *head, size_t len,
		      uint64_t now_ns, time_t wall, char *out);
// The answer to a head that is longer than AG_META_HEAD_MAX.
size_t ag_meta_too_long(char *out);

#endif
