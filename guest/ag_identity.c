// What two thaws of one snapshot must not share: the kernel's random numbers,
// the machine's id, its boot id. (The host name and the clock are set where the
// thaw is served.)
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/random.h>

#include "ag.h"
#include "util.h"

static const char boot_id_path[] = "/proc/sys/kernel/random/boot_id";
static const char machine_id_path[] = "/etc/machine-id";

int ag_entropy(const uint8_t bytes[AG_ENTROPY_LEN], char *err, size_t size)
{
	struct {
		struct rand_pool_info info;
		uint8_t bytes[AG_ENTROPY_LEN];
	} pool = {.info = {.entropy_count = 8 * AG_ENTROPY_LEN,
			   .buf_size = AG_ENTROPY_LEN}};
	cleanup_fd int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
	int rc = 0;

	static_assert(sizeof(pool) == 2 * sizeof(int) + AG_ENTROPY_LEN,
		      "the bytes follow the head at once");
	memcpy(pool.bytes, bytes, AG_ENTROPY_LEN);
	// The first mixes and credits the bytes. The second makes a new key of
	// them at once: without it the generator goes on with the snapshot's
	// key until its next reseeding, minutes later.
	if (fd < 0 || ioctl(fd, RNDADDENTROPY, &pool) < 0 ||
	    ioctl(fd, RNDRESEEDCRNG) < 0) {
		rc = -errno;
		snprintf(err, size, "reseeding the kernel's generator: %s",
			 strerror(errno));
	}
	explicit_bzero(&pool, sizeof(pool));
	return rc;
}

// Overwrites a regular file in place: its pages are in memory already (see
// ag_machine_id_warm()), so a thaw waits for no disk. Its readers are frozen.
static int overwrite(const char *path, const char *text, size_t len)
{
	cleanup_fd int fd = open(path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW |
					   O_NONBLOCK | O_NOCTTY);
	struct stat st;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		return -EINVAL;
	if (pwrite(fd, text, len, 0) != (ssize_t)len)
		return errno ? -errno : -EIO;
	if (st.st_size > (off_t)len && ftruncate(fd, (off_t)len) < 0)
		return -errno;
	return 0;
}

// For a missing file, a link, or something else in its place.
static int replace(const char *path, const char *text, size_t len)
{
	char tmp[128];
	cleanup_fd int fd = -1;

	snprintf(tmp, sizeof(tmp), "%s.thaw", path);
	unlink(tmp);
	fd = open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444);
	if (fd < 0)
		return -errno;
	if (write(fd, text, len) != (ssize_t)len || rename(tmp, path) < 0) {
		int rc = errno ? -errno : -EIO;

		unlink(tmp);
		return rc;
	}
	return 0;
}

int ag_machine_id(const uint8_t id[16], char *err, size_t size)
{
	static const char dbus[] = "/var/lib/dbus/machine-id";
	char text[34];
	struct stat st;
	int rc;

	util_hex(text, id, 16);
	text[32] = '\n';
	rc = overwrite(machine_id_path, text, 33);
	if (rc < 0)
		rc = replace(machine_id_path, text, 33);
	// Usually a link to the one above; a copy where it is not.
	if (rc == 0 && lstat(dbus, &st) == 0 && S_ISREG(st.st_mode))
		rc = overwrite(dbus, text, 33);
	if (rc < 0)
		snprintf(err, size, "writing the machine's id: %s",
			 strerror(-rc));
	return rc;
}

void ag_machine_id_warm(void)
{
	cleanup_fd int fd =
	    open(machine_id_path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	char buf[64];

	if (fd >= 0 && read(fd, buf, sizeof(buf)) < 0)
		errno = 0;
}

void ag_boot_id_cover(struct agent *a)
{
	static const char cover[] = "/run/thaw/boot_id";
	char text[37] = "";
	cleanup_fd int from = open(boot_id_path, O_RDONLY | O_CLOEXEC);
	cleanup_fd int fd = -1;

	if (from < 0 || read(from, text, sizeof(text)) != sizeof(text))
		return;
	if (mkdir("/run/thaw", 0755) < 0 && errno != EEXIST)
		return;
	fd = open(cover, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0444);
	if (fd < 0 || write(fd, text, sizeof(text)) != sizeof(text) ||
	    mount(cover, boot_id_path, NULL, MS_BIND, NULL) < 0) {
		ag_say(a, "cannot cover the boot id: %s", strerror(errno));
		return;
	}
	a->boot_id_fd = fd_steal(&fd);
}

int ag_boot_id_renew(struct agent *a)
{
	uint8_t id[16];
	char hex[33], text[38];

	if (a->boot_id_fd < 0)
		return 0;
	util_random(id, sizeof(id));
	id[6] = (uint8_t)((id[6] & 0x0f) | 0x40); // a random UUID, version 4
	id[8] = (uint8_t)((id[8] & 0x3f) | 0x80);
	util_hex(hex, id, sizeof(id));
	snprintf(text, sizeof(text), "%.8s-%.4s-%.4s-%.4s-%.12s\n", hex,
		 hex + 8, hex + 12, hex + 16, hex + 20);
	return pwrite(a->boot_id_fd, text, 37, 0) == 37 ? 0 : -errno;
}
