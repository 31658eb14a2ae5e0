// (interface) Execution roles: which file has the credentials of which role on
// this host. docs/LIFECYCLE.md has the format.
#ifndef THAW_ENG_ROLES_H
#define THAW_ENG_ROLES_H

#include "base.h"

enum {
	ROLES_MAX = 64,
	ROLE_ARN_MAX = 2048,
	ROLE_FILE_MAX = 16 * 1024, // bytes of a file
	// Of its members: what the guest's agent takes (AGENT_ROLE).
	CREDS_KEY_MIN = 16,
	CREDS_KEY_MAX = 128,
	CREDS_SECRET_MAX = 256,
	CREDS_TOKEN_MAX = 4096,
};

struct eng_creds {
	char key[CREDS_KEY_MAX + 1], secret[CREDS_SECRET_MAX + 1];
	char token[CREDS_TOKEN_MAX + 1]; // "": long-term ones
	uint64_t expires_s;		 // since 1970; 0: never
};

// The text of a file, what a credential process prints. -EINVAL and a sentence
// that shows nothing of it; `out` is wiped then.
int eng_creds_parse(struct eng_creds *out, const char *text, size_t len,
		    const char *path, struct err *e);

struct eng_roles;

// `maps` are ARN=FILE. Reads all files: one that cannot be used is an error, as
// is an ARN that is none or there twice.
int eng_roles_create(struct eng_roles **out, const char *const *maps, size_t n,
		     struct err *e);
void eng_roles_destroy(struct eng_roles *roles); // wiped; NULL is fine
// Reads files again that have changed; one that cannot be used any more leaves
// what was read before, and a warning. True: somebody's credentials are new.
bool eng_roles_refresh(struct eng_roles *roles);
// The ARNs that are mapped, in the order of `maps`; NULL after the last one.
const char *eng_roles_arn(const struct eng_roles *roles, size_t i);
// The credentials of a role, until the next refresh; NULL: it is not mapped.
// *version is never 0, and another with other credentials.
const struct eng_creds *eng_roles_get(const struct eng_roles *roles,
				      const char *arn, uint32_t *version);

#endif
