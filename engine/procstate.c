#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "procstate.h"

// include/linux/sched.h: "Getting shut down". Shown in field 9 of stat.
enum { PF_EXITING = 0x4 };

static int read_file(const char *path, char *buf, size_t cap)
{
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, buf, cap - 1);

	if (n < 0)
		return -errno;
	buf[n] = '\0';
	return 0;
}

static bool thread_exiting(pid_t pid, const char *tid)
{
	char path[64], buf[512], *at;

	snprintf(path, sizeof(path), "/proc/%d/task/%.12s/stat", (int)pid, tid);
	if (read_file(path, buf, sizeof(buf)))
		return true; // it is gone
	// The name in parentheses may hold anything: fields count from its end.
	at = strrchr(buf, ')');
	for (int field = 2; at && field < 9; field++)
		at = strchr(at + 1, ' ');
	return at && (strtoul(at, NULL, 10) & PF_EXITING);
}

bool eng_pid_exiting(pid_t pid)
{
	char path[32];
	struct dirent *d;
	bool all = true;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	dir = opendir(path);
	if (!dir)
		return errno == ENOENT;
	while (all && (d = readdir(dir))) {
		if (d->d_name[0] != '.')
			all = thread_exiting(pid, d->d_name);
	}
	closedir(dir);
	return all;
}

pid_t eng_pidfd_pid(int pidfd)
{
	char path[48], buf[512], *at;
	long pid;
	int rc;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", pidfd);
	rc = read_file(path, buf, sizeof(buf));
	if (rc)
		return rc;
	at = strstr(buf, "\nPid:");
	pid = at ? strtol(at + 5, NULL, 10) : 0;
	return pid > 0 ? (pid_t)pid : -ESRCH;
}

uint64_t eng_host_memory(uint64_t *total)
{
	unsigned long long kib, available = 0;
	cleanup_free char *buf = malloc(4096);
	const char *at;

	if (total)
		*total = 0;
	if (!buf || read_file("/proc/meminfo", buf, 4096))
		return 0;
	at = strstr(buf, "MemAvailable:");
	if (at && sscanf(at, "MemAvailable: %llu kB", &kib) == 1)
		available = kib;
	if (total && sscanf(buf, "MemTotal: %llu kB", &kib) == 1)
		*total = (uint64_t)kib << 10;
	return (uint64_t)available << 10;
}
