// From the kernel's hands to a usable system.
//
// The kernel starts /init of an initramfs that holds this program, the modules
// of virtio, and nothing else. In order: /proc, /sys and /dev; the console; the
// modules of /modules.load; from then on the host can connect (main() listens
// between the two halves, so that it waits in the backlog instead of retrying).
// Then the disk becomes the root: mounted, the mounts moved into it, and by
// mount --move and chroot taken for "/". The initramfs' files are deleted
// first, as their memory would be in every snapshot.
//
// Without a disk the initramfs stays the root (tests use that); why is kept in
// root_why, which START tells when the application cannot be run.
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <dirent.h>

#include "ag.h"
#include "ag_lines.h"
#include "util.h"

enum { DISK_WAIT_MS = 10000, DISK_NONE_MS = 300 };

static const char disk[] = "/dev/vda";
static const char new_root[] = "/newroot";

struct mount_line {
	const char *target, *type;
	unsigned long flags;
	const char *data;
	mode_t mode; // of the mount point, where it is missing
};

static int do_mount(struct agent *a, const struct mount_line *m)
{
	if (mkdir(m->target, m->mode) < 0 && errno != EEXIST) {
		ag_say(a, "mkdir %s: %s", m->target, strerror(errno));
		return -errno;
	}
	if (mount(m->type, m->target, m->type, m->flags, m->data) < 0 &&
	    errno != EBUSY) {
		ag_say(a, "mounting %s: %s", m->target, strerror(errno));
		return -errno;
	}
	return 0;
}

// --- the first half ---------------------------------------------------------

static void open_console(void)
{
	int fd = open("/dev/console", O_RDWR | O_NOCTTY);

	if (fd < 0)
		fd = open("/dev/null", O_RDWR);
	for (int i = 0; fd >= 0 && i < 3; i++) {
		if (fd != i)
			dup2(fd, i);
	}
	if (fd > 2)
		close(fd);
}

static void load_modules(struct agent *a)
{
	static struct ag_lines l;
	char *path;

	if (ag_lines_open(&l, "/modules.load") < 0)
		return;
	while ((path = ag_lines_next(&l))) {
		cleanup_fd int fd = -1;

		if (path[0] != '/')
			continue;
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 &&
			       errno != EEXIST))
			ag_say(a, "loading %s: %s", path, strerror(errno));
		unlink(path);
	}
	ag_lines_close(&l);
}

void ag_boot_early(struct agent *a)
{
	static const struct mount_line first[] = {
	    {"/dev", "devtmpfs", MS_NOSUID, "mode=755", 0755},
	    {"/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL, 0555},
	    {"/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL, 0555},
	};

	umask(0);
	for (size_t i = 0; i < ARRAY_SIZE(first); i++) {
		do_mount(a, &first[i]);
		if (i == 0)
			open_console();
	}
	load_modules(a);
}

// --- the disk ---------------------------------------------------------------

// Is there a virtio-blk device (id 2)? Its disk then appears soon.
static bool virtio_blk_expected(void)
{
	DIR *d = opendir("/sys/bus/virtio/devices");
	struct dirent *e;
	bool found = false;

	while (d && !found && (e = readdir(d))) {
		char path[300], text[16] = "";
		cleanup_fd int fd = -1;

		snprintf(path, sizeof(path),
			 "/sys/bus/virtio/devices/%s/device", e->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		found = fd >= 0 && read(fd, text, sizeof(text) - 1) > 0 &&
			strtoul(text, NULL, 16) == 2;
	}
	if (d)
		closedir(d);
	return found;
}

static bool wait_for_disk(void)
{
	const struct timespec step = {.tv_nsec = 2000000};
	uint64_t start = util_now_ns();

	while (access(disk, F_OK) < 0) {
		uint64_t ms = (util_now_ns() - start) / 1000000u;

		if (ms > DISK_WAIT_MS ||
		    (ms > DISK_NONE_MS && !virtio_blk_expected()))
			return false;
		nanosleep(&step, NULL);
	}
	return true;
}

static int mount_disk(struct agent *a)
{
	static char why[160];

	a->root_why = why;
	if (!wait_for_disk()) {
		snprintf(why, sizeof(why),
			 "there is no disk %s, the root is the initramfs",
			 disk);
		return -ENODEV;
	}
	if (mkdir(new_root, 0755) < 0 && errno != EEXIST)
		return -errno;
	if (mount(disk, new_root, "ext4", MS_NOATIME, NULL) < 0) {
		snprintf(why, sizeof(why),
			 "the disk %s cannot be mounted as ext4 (%s), the "
			 "root is the initramfs",
			 disk, strerror(errno));
		return -EIO;
	}
	a->root_why = NULL;
	return 0;
}

// Into the disk, with /dev, /proc and /sys.
static int switch_root(struct agent *a)
{
	static const char *const moved[] = {"/dev", "/proc", "/sys"};
	char to[64];

	for (size_t i = 0; i < ARRAY_SIZE(moved); i++) {
		snprintf(to, sizeof(to), "%s%s", new_root, moved[i]);
		if (mkdir(to, 0755) < 0 && errno != EEXIST)
			return -errno;
		if (mount(moved[i], to, NULL, MS_MOVE, NULL) < 0)
			return -errno;
	}
	unlink("/init");
	unlink("/modules.load");
	rmdir("/modules");
	if (chdir(new_root) < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 ||
	    chroot(".") < 0 || chdir("/") < 0)
		return -errno;
	ag_say(a, "the root is %s", disk);
	return 0;
}

// --- the rest ---------------------------------------------------------------

static void mount_rest(struct agent *a)
{
	static const struct mount_line rest[] = {
	    {"/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
	     "gid=5,mode=620,ptmxmode=666", 0755},
	    {"/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777", 01777},
	    {"/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755", 0755},
	    {"/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC,
	     NULL, 0755},
	};
	static const char *const links[][2] = {
	    {"/proc/self/fd", "/dev/fd"},
	    {"/proc/self/fd/0", "/dev/stdin"},
	    {"/proc/self/fd/1", "/dev/stdout"},
	    {"/proc/self/fd/2", "/dev/stderr"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(rest); i++)
		do_mount(a, &rest[i]);
	for (size_t i = 0; i < ARRAY_SIZE(links); i++) {
		if (symlink(links[i][0], links[i][1]) < 0 && errno != EEXIST)
			ag_say(a, "%s: %s", links[i][1], strerror(errno));
	}
	if (mkdir("/tmp", 01777) < 0 && errno != EEXIST)
		ag_say(a, "mkdir /tmp: %s", strerror(errno));
}

static void lo_up(struct agent *a)
{
	cleanup_fd int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct ifreq r = {.ifr_name = "lo"};

	if (fd < 0 || ioctl(fd, SIOCGIFFLAGS, &r) < 0) {
		ag_say(a, "lo: %s", strerror(errno));
		return;
	}
	r.ifr_flags = (short)(r.ifr_flags | IFF_UP | IFF_RUNNING);
	if (ioctl(fd, SIOCSIFFLAGS, &r) < 0)
		ag_say(a, "lo: %s", strerror(errno));
}

// Without it "localhost" is unknown, and many applications do not start.
static void default_hosts(void)
{
	static const char text[] = "127.0.0.1\tlocalhost\n"
				   "::1\tlocalhost ip6-localhost\n";
	cleanup_fd int fd =
	    open("/etc/hosts", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);

	if (fd >= 0 && write(fd, text, sizeof(text) - 1) < 0)
		errno = 0;
}

static void set_limits(void)
{
	// The kernel gives init 1024 and 4096, few for a server.
	static const struct rlimit files = {.rlim_cur = 65536,
					    .rlim_max = 524288};
	cleanup_fd int fd =
	    open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	if (setrlimit(RLIMIT_NOFILE, &files) < 0)
		errno = 0;
	if (fd >= 0 && write(fd, "-1000", 5) < 0)
		errno = 0;
}

void ag_boot_root(struct agent *a)
{
	int rc = mount_disk(a);

	if (rc < 0)
		ag_say(a, "%s", a->root_why);
	else if ((rc = switch_root(a)) < 0)
		ag_say(a, "switching to the disk: %s", strerror(-rc));
	mount_rest(a);
	lo_up(a);
	default_hosts();
	set_limits();
	if (sethostname("thaw", 4) < 0)
		ag_say(a, "the host name: %s", strerror(errno));
	rc = ag_cgroup_open(a, "/sys/fs/cgroup/app");
	if (rc < 0)
		ag_say(a, "the application's cgroup: %s", strerror(-rc));
	ag_boot_id_cover(a);
	rc = ag_imds_open(a);
	if (rc < 0)
		ag_say(a, "the metadata service: %s", strerror(-rc));
	umask(022);
}
