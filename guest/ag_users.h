// Who a program runs as: /etc/passwd and /etc/group, read without NSS.
#ifndef THAW_AG_USERS_H
#define THAW_AG_USERS_H

#include <stddef.h>
#include <sys/types.h>

enum { AG_GROUPS_MAX = 64 };

struct ag_user {
	uid_t uid;
	gid_t gid;
	gid_t groups[AG_GROUPS_MAX]; // supplementary, gid among them
	size_t ngroups;
	char home[256]; // "/" when unknown
};

// `spec` is "" (root), NAME, UID, NAME:GROUP or UID:GID (either side may be a
// name or a number). Without a group: the account's own and those that list it;
// with one: only that. A number needs no account (then the group is 0). 0;
// -ENOENT: no such user or group; -EINVAL: malformed.
int ag_user_resolve(const char *passwd, const char *group, const char *spec,
		    struct ag_user *out);

#endif
