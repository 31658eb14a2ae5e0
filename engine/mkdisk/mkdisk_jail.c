// The place in which archives are unpacked: programs read-only, one work
// directory, nothing else of the host.
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "mkdisk.h"

#ifdef MK_ASAN
// The leak checker needs ptrace, which the jail does not have. This holds
// whatever ASAN_OPTIONS says.
int __lsan_is_turned_off(void);
int __lsan_is_turned_off(void)
{
	return 1;
}
#endif

// Programs and what the dynamic linker needs to start them. On a merged-/usr
// host all but the first are symbolic links, and are made again as such.
static const char *const program_dirs[] = {"usr",   "bin",   "sbin",  "lib",
					   "lib32", "lib64", "libx32"};

int mk_jail_bind(const char *from, const char *to, unsigned long flags,
		 struct err *e)
{
	if (mount(from, to, NULL, MS_BIND, NULL) ||
	    mount(NULL, to, NULL, MS_REMOUNT | MS_BIND | flags, NULL))
		return err_sys(e, "mounting %s in the builder's root", from);
	return 0;
}

static int program_dir(const char *name, struct err *e)
{
	char host[64], link[256];
	struct stat st;
	ssize_t n;

	snprintf(host, sizeof(host), "/%s", name);
	if (lstat(host, &st))
		return 0;
	if (S_ISLNK(st.st_mode)) {
		n = readlink(host, link, sizeof(link) - 1);
		if (n < 0)
			return err_sys(e, "reading %s", host);
		link[n] = '\0';
		return symlink(link, name) ? err_sys(e, "linking %s", host) : 0;
	}
	if (mkdir(name, 0755))
		return err_sys(e, "making %s in the builder's root", name);
	return mk_jail_bind(host, name, MS_RDONLY | MS_NODEV | MS_NOSUID, e);
}

static int swap_root(struct err *e)
{
	if (syscall(SYS_pivot_root, ".", ".") == 0)
		return umount2(".", MNT_DETACH)
			   ? err_sys(e, "leaving the host's root")
			   : 0;
	if (errno != EINVAL)
		return err_sys(e, "pivot_root");
	// The host's root is itself no mount (a chroot, an initramfs).
	if (mount(".", "/", NULL, MS_MOVE, NULL) || chroot("."))
		return err_sys(e, "entering the builder's root");
	return 0;
}

int mk_jail_open(const char *work, unsigned long flags, struct err *e)
{
	char jail[PATH_MAX];
	int rc;

	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		return err_sys(e, "making mounts private");
	if (snprintf(jail, sizeof(jail), "%s/jail", work) >= PATH_MAX)
		return err_set(e, -ENAMETOOLONG, "the work path is too long");
	if (mkdir(jail, 0700) && errno != EEXIST)
		return err_sys(e, "making %s", jail);
	if (mount("none", jail, "tmpfs", MS_NOSUID | MS_NODEV,
		  "size=1m,mode=755"))
		return err_sys(e, "mounting the builder's root");
	if (chdir(jail))
		return err_sys(e, "entering %s", jail);
	for (size_t i = 0; i < ARRAY_SIZE(program_dirs); i++) {
		rc = program_dir(program_dirs[i], e);
		if (rc)
			return rc;
	}
	if (mkdir("work", 0700))
		return err_sys(e, "making /work");
	return mk_jail_bind(work, "work", flags, e);
}

int mk_jail_close(struct err *e)
{
	int rc = swap_root(e);

	if (rc)
		return rc;
	if (chdir("/") ||
	    mount(NULL, "/", NULL,
		  MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV, NULL))
		return err_sys(e, "closing the builder's root");
	return 0;
}

int mk_jail_enter(const char *work, struct err *e)
{
	static const int keep[] = {
	    CAP_CHOWN,	    CAP_DAC_OVERRIDE, CAP_FOWNER,
	    CAP_FSETID,	    CAP_SETFCAP,      CAP_DAC_READ_SEARCH,
	    CAP_SYS_CHROOT, CAP_SETPCAP,      -1};
	int rc = mk_jail_open(work, MS_NODEV | MS_NOSUID | MS_NOEXEC, e);

	if (!rc)
		rc = mk_jail_close(e);
	if (rc)
		return rc;
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	return mk_jail_caps(keep, e);
}

int mk_jail_caps(const int *caps, struct err *e)
{
	struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2] = {{0, 0, 0}, {0, 0, 0}};
	uint64_t set = 0;

	for (; *caps >= 0; caps++)
		set |= (uint64_t)1 << *caps;
	// The bounding set first: dropping it takes CAP_SETPCAP.
	for (int c = 0; prctl(PR_CAPBSET_READ, c, 0, 0, 0) >= 0; c++)
		if (!(set >> c & 1) && prctl(PR_CAPBSET_DROP, c, 0, 0, 0))
			return err_sys(e, "dropping capability %d", c);
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	for (unsigned i = 0; i < 2; i++)
		data[i].effective = data[i].permitted =
		    (uint32_t)(set >> (32 * i));
	if (syscall(SYS_capset, &head, data))
		return err_sys(e, "dropping capabilities");
	return 0;
}
