// Files that hold secrets: refused unless they are root's or ours, and nobody
// else's to read.
#include "auth.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <string.h>

static int check(int fd, const char *what, const char *path, size_t max,
		 struct stat *st, struct err *e)
{
	if (fstat(fd, st))
		return err_sys(e, "look at the %s %s", what, path);
	if (!S_ISREG(st->st_mode))
		return err_set(e, -EINVAL, "%s %s: not a regular file", what,
			       path);
	if (st->st_uid != 0 && st->st_uid != geteuid())
		return err_set(e, -EACCES,
			       "%s %s: it belongs to user %u, who is "
			       "neither root nor who runs this: chown it",
			       what, path, st->st_uid);
	if (st->st_mode & 0077)
		return err_set(e, -EACCES,
			       "%s %s: its mode is %04o, so others may "
			       "use it: chmod 0600 it, and change its keys if "
			       "others did read it",
			       what, path, st->st_mode & 07777);
	if ((uint64_t)st->st_size > max)
		return err_set(e, -EINVAL,
			       "%s %s: it has %lld bytes, at most %zu "
			       "are read",
			       what, path, (long long)st->st_size, max);
	return 0;
}

int auth_secret_read(const char *what, const char *path, size_t max,
		     char **text, struct stat *st, struct err *e)
{
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	size_t len;
	int rc;

	*text = NULL;
	if (fd < 0)
		return err_sys(e, "open the %s %s", what, path);
	rc = check(fd, what, path, max, st, e);
	if (rc)
		return rc;
	len = (size_t)st->st_size;
	*text = calloc(1, len + 1);
	if (!*text)
		return err_set(e, -ENOMEM, "%s %s: no memory", what, path);
	rc = util_read_all(fd, *text, len);
	if (!rc)
		return 0;
	err_set(e, rc, "read the %s %s: %s", what, path, strerror(-rc));
	auth_secret_free(ptr_steal(*text), len);
	return rc;
}

void auth_secret_free(char *text, size_t len)
{
	if (text)
		OPENSSL_cleanse(text, len);
	free(text);
}
