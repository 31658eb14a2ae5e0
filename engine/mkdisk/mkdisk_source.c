// Opening the source with the peer's rights.
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "mkdisk.h"

enum { MAX_GROUPS = 256 };

// The peer's groups as the host's user database has them.
static int peer_groups(const struct mk_opts *o, gid_t *out)
{
	const struct passwd *pw = getpwuid(o->uid);
	int n = MAX_GROUPS;

	out[0] = o->gid;
	if (!pw)
		return 1;
	if (getgrouplist(pw->pw_name, o->gid, out, &n) < 0)
		return 1; // more than fit: only the primary one
	return n;
}

static const char *what(const struct mk_opts *o)
{
	return o->context ? "" : "the root file system ";
}

// Effective ids only, for one open(2); root's come back after it. With a
// non-zero effective uid the kernel takes the capabilities away as well. Each
// change of them makes it forget the parent-death signal.
static int open_as_peer(const struct mk_opts *o, struct err *e)
{
	gid_t groups[MAX_GROUPS];
	int n = peer_groups(o, groups), fd, saved;
	pid_t parent = getppid();

	if (setgroups((size_t)n, groups) || setegid(o->gid) || seteuid(o->uid))
		return err_sys(e, "taking the caller's identity (uid %u)",
			       (unsigned)o->uid);
	mk_die_with(parent); // who opens a hostile path may wait
	// Not blocking: a FIFO would wait for a writer.
	fd = open(o->source, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	saved = errno;
	if (seteuid(0) || setegid(0) || setgroups(0, NULL))
		_exit(125); // cannot go on as somebody else
	mk_die_with(parent);
	errno = saved;
	if (fd < 0)
		return err_sys(e, "cannot read %s'%s' as uid %u", what(o),
			       o->source, (unsigned)o->uid);
	return fd;
}

static int become_peer(const struct mk_opts *o, struct err *e)
{
	static const int root_caps[] = {CAP_DAC_READ_SEARCH, -1};
	gid_t groups[MAX_GROUPS];
	int n = peer_groups(o, groups);

	if (setgroups((size_t)n, groups) || setresgid(o->gid, o->gid, o->gid))
		return err_sys(e, "setgid");
	if (o->uid == 0) // root reads everything, and does nothing else
		return mk_jail_caps(root_caps, e);
	if (setresuid(o->uid, o->uid, o->uid))
		return err_sys(e, "setuid");
	return 0;
}

static void tar_child(const struct mk_opts *o, pid_t parent, int dir, int out,
		      int err_fd)
{
	char *const argv[] = {"tar", MK_TAR_WORDS, "--file=-", ".", NULL};
	char *const envp[] = {"PATH=/usr/bin:/bin", "LC_ALL=C", NULL};
	struct err e = ERR_INIT;
	int null = open("/dev/null", O_RDONLY | O_CLOEXEC);

	if (fchdir(dir) || dup2(null, 0) < 0 || dup2(out, 1) < 0 ||
	    dup2(err_fd, 2) < 0)
		_exit(126);
	signal(SIGPIPE, SIG_DFL);
	if (become_peer(o, &e)) {
		dprintf(2, "tar: %s\n", e.msg);
		_exit(126);
	}
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	mk_die_with(parent); // setuid had made it forget
	execve("/usr/bin/tar", argv, envp);
	execve("/bin/tar", argv, envp);
	dprintf(2, "tar: cannot be started: %s\n", strerror(errno));
	_exit(127);
}

static int start_tar(const struct mk_opts *o, int dir, struct mk_source *src,
		     struct err *e)
{
	cleanup_fd int r = -1, w = -1;
	pid_t self = getpid();
	int p[2];

	if (pipe2(p, O_CLOEXEC))
		return err_sys(e, "pipe");
	r = p[0];
	w = p[1];
	(void)fcntl(r, F_SETPIPE_SZ, 1 << 20);
	src->tar_err = memfd_create("tar-errors", MFD_CLOEXEC);
	if (src->tar_err < 0)
		return err_sys(e, "memfd");
	src->tar = fork();
	if (src->tar < 0)
		return err_sys(e, "fork for tar");
	if (src->tar == 0)
		tar_child(o, self, dir, w, src->tar_err);
	src->fd = fd_steal(&r);
	return 0;
}

int mk_source_open(const struct mk_opts *o, struct mk_source *src,
		   struct err *e)
{
	cleanup_fd int fd = open_as_peer(o, e);
	struct stat st;

	if (fd < 0)
		return fd;
	if (fstat(fd, &st))
		return err_sys(e, "cannot stat '%s'", o->source);
	if (S_ISDIR(st.st_mode))
		return start_tar(o, fd, src, e);
	if (!S_ISREG(st.st_mode))
		return err_set(
		    e, -EINVAL, "%s'%s' is neither a directory nor a %s file",
		    what(o), o->source, o->context ? "zip or tar" : "tar");
	src->size = (uint64_t)st.st_size;
	src->fd = fd_steal(&fd);
	return 0;
}

int mk_source_finish(const struct mk_opts *o, struct mk_source *src,
		     struct err *e)
{
	char text[240] = "";
	char *nl;
	ssize_t n;
	int st, rc;

	if (!src->tar)
		return 0;
	rc = mk_wait(src->tar, &st, "tar", e);
	if (rc)
		return rc;
	src->tar = 0;
	n = pread(src->tar_err, text, sizeof(text) - 1, 0);
	fd_close(&src->tar_err);
	if (WIFEXITED(st) && WEXITSTATUS(st) == 0)
		return 0;
	if (WIFSIGNALED(st) && WTERMSIG(st) == SIGPIPE)
		return err_set(e, -EPIPE, "tar lost its reader");
	text[n > 0 ? n : 0] = '\0';
	nl = strchr(text, '\n');
	if (nl)
		*nl = '\0';
	return err_set(e, strstr(text, "Permission denied") ? -EACCES : -EIO,
		       "reading '%s' as uid %u failed: %s; use a tar made by "
		       "its owner, or fix the permissions",
		       o->source, (unsigned)o->uid,
		       text[0] ? text : "tar gave no reason");
}
