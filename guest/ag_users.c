#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "ag_lines.h"
#include "ag_users.h"
#include "util.h"

// A decimal id below 2^32 - 1 (which means "unchanged" to the kernel).
static bool parse_id(const char *s, uint32_t *out)
{
	uint64_t v = 0;

	if (!*s)
		return false;
	for (; *s; s++) {
		if (*s < '0' || *s > '9')
			return false;
		v = v * 10 + (uint64_t)(*s - '0');
		if (v >= UINT32_MAX)
			return false;
	}
	*out = (uint32_t)v;
	return true;
}

// Splits "a:b:c" in place; returns how many fields there were (at most max).
static size_t split(char *line, char **field, size_t max)
{
	size_t n = 0;

	while (n < max) {
		field[n++] = line;
		line = strchr(line, ':');
		if (!line)
			break;
		*line++ = '\0';
	}
	return n;
}

// Finds the account by its number where `who` is one, else by its name. `name`
// receives its name ("" when a number has no account).
static int find_user(const char *passwd, const char *who, struct ag_user *u,
		     char *name, size_t size)
{
	struct ag_lines l;
	uint32_t want = 0, uid, gid;
	bool number = parse_id(who, &want), found = false;
	char *line, *f[7];

	name[0] = '\0';
	if (ag_lines_open(&l, passwd) == 0) {
		while (!found && (line = ag_lines_next(&l))) {
			if (split(line, f, 7) < 6 || !parse_id(f[2], &uid) ||
			    !parse_id(f[3], &gid) || strlen(f[0]) >= size)
				continue;
			if (number ? uid != want : strcmp(f[0], who) != 0)
				continue;
			found = true;
			u->uid = uid;
			u->gid = gid;
			strcpy(name, f[0]);
			if (f[5][0] == '/' && strlen(f[5]) < sizeof(u->home))
				strcpy(u->home, f[5]);
		}
		ag_lines_close(&l);
	}
	if (found)
		return 0;
	if (number) {
		u->uid = want;
		u->gid = 0;
		return 0;
	}
	return -ENOENT;
}

static int find_group(const char *group, const char *who, gid_t *out)
{
	struct ag_lines l;
	uint32_t gid;
	char *line, *f[4];
	int rc = -ENOENT;

	if (parse_id(who, &gid)) {
		*out = gid;
		return 0;
	}
	if (ag_lines_open(&l, group) < 0)
		return -ENOENT;
	while (rc && (line = ag_lines_next(&l))) {
		if (split(line, f, 4) < 3 || !parse_id(f[2], &gid) ||
		    strcmp(f[0], who) != 0)
			continue;
		*out = gid;
		rc = 0;
	}
	ag_lines_close(&l);
	return rc;
}

static bool lists(char *members, const char *name)
{
	char *save = NULL;

	for (char *m = strtok_r(members, ",", &save); m;
	     m = strtok_r(NULL, ",", &save)) {
		if (strcmp(m, name) == 0)
			return true;
	}
	return false;
}

static void add_group(struct ag_user *u, gid_t gid)
{
	for (size_t i = 0; i < u->ngroups; i++) {
		if (u->groups[i] == gid)
			return;
	}
	if (u->ngroups < AG_GROUPS_MAX)
		u->groups[u->ngroups++] = gid;
}

static void add_memberships(const char *group, const char *name,
			    struct ag_user *u)
{
	struct ag_lines l;
	uint32_t gid;
	char *line, *f[4];

	if (!name[0] || ag_lines_open(&l, group) < 0)
		return;
	while ((line = ag_lines_next(&l))) {
		if (split(line, f, 4) == 4 && parse_id(f[2], &gid) &&
		    lists(f[3], name))
			add_group(u, gid);
	}
	ag_lines_close(&l);
}

int ag_user_resolve(const char *passwd, const char *group, const char *spec,
		    struct ag_user *out)
{
	char who[256], name[256];
	const char *colon = strchr(spec, ':');
	size_t n = colon ? (size_t)(colon - spec) : strlen(spec);
	int rc;

	*out = (struct ag_user){.home = "/"};
	if (n >= sizeof(who) || (colon && (!n || !colon[1])))
		return -EINVAL;
	memcpy(who, spec, n);
	who[n] = '\0';
	rc = find_user(passwd, n ? who : "0", out, name, sizeof(name));
	if (rc == 0 && colon)
		rc = find_group(group, colon + 1, &out->gid);
	if (rc < 0)
		return rc;
	add_group(out, out->gid);
	if (!colon)
		add_memberships(group, name, out);
	return 0;
}
