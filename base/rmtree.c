// Removing a tree that a stranger made.
//
// - It may be deeper than this process may have descriptors: what lies deep is
//   moved up beside the tree, and removed from there.
// - No link is followed, and nothing mounted is entered: what a process with a
//   namespace of mounts of its own has seen there is not the tree's.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base.h"

enum { DEPTH_MAX = 40 };

struct removal {
	int top;	  // the folder whose entry is removed
	unsigned hoisted; // entries of `top` that came from below
	char prefix[40];
	struct err *e;
};

static void hoisted_name(const struct removal *r, unsigned i, char *out,
			 size_t cap)
{
	snprintf(out, cap, "%s-%u", r->prefix, i);
}

static int open_folder(int dir, const char *name)
{
	struct open_how how = {
	    .flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC,
	    .resolve = RESOLVE_NO_XDEV,
	};

	return (int)syscall(SYS_openat2, dir, name, &how, sizeof(how));
}

static int empty_dir(struct removal *r, int fd, unsigned depth);

static int remove_entry(struct removal *r, int dir, const char *name,
			unsigned depth)
{
	char up[64];
	int fd, rc;

	if (unlinkat(dir, name, 0) == 0 || errno == ENOENT)
		return 0;
	if (unlinkat(dir, name, AT_REMOVEDIR) == 0)
		return 0;
	if (depth == DEPTH_MAX) {
		hoisted_name(r, r->hoisted, up, sizeof(up));
		if (renameat(dir, name, r->top, up))
			return err_sys(r->e, "moving %.100s", name);
		r->hoisted++;
		return 0;
	}
	fd = open_folder(dir, name);
	if (fd < 0 && errno == EXDEV)
		return err_set(r->e, -EXDEV,
			       "removing %.100s: something is mounted there, "
			       "which is left alone; unmount it",
			       name);
	if (fd < 0)
		return err_sys(r->e, "removing %.100s", name);
	rc = empty_dir(r, fd, depth + 1);
	if (unlinkat(dir, name, AT_REMOVEDIR) && !rc)
		rc = err_sys(r->e, "removing %.100s", name);
	return rc;
}

// Consumes fd.
static int empty_dir(struct removal *r, int fd, unsigned depth)
{
	const struct dirent *de;
	DIR *dp = fdopendir(fd);
	int rc = 0, one;

	if (!dp) {
		close(fd);
		return err_set(r->e, -ENOMEM, "out of memory");
	}
	while ((de = readdir(dp))) {
		if (!strcmp(de->d_name, ".") || !strcmp(de->d_name, ".."))
			continue;
		one = remove_entry(r, fd, de->d_name, depth);
		rc = rc ? rc : one;
	}
	closedir(dp);
	return rc;
}

int util_rmtree(int dir, const char *name, struct err *e)
{
	struct removal r = {.top = dir, .e = e};
	char up[64];
	int rc;

	snprintf(r.prefix, sizeof(r.prefix), "%.30s.up", name);
	rc = remove_entry(&r, dir, name, 0);
	for (unsigned i = 0; i < r.hoisted && !rc; i++) {
		hoisted_name(&r, i, up, sizeof(up));
		rc = remove_entry(&r, dir, up, 0);
	}
	return rc;
}

int util_sweep(const char *dir, const char *prefix, struct err *e)
{
	const struct dirent *de;
	int rc = 0, one;
	DIR *dp = opendir(dir);

	if (!dp)
		return err_sys(e, "reading %s", dir);
	while ((de = readdir(dp))) {
		if (strncmp(de->d_name, prefix, strlen(prefix)) != 0)
			continue;
		one = util_rmtree(dirfd(dp), de->d_name, e);
		rc = rc ? rc : one;
	}
	closedir(dp);
	return rc;
}
