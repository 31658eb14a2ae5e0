// The application's cgroup: frozen while the microVM is captured, and what its
// processes are found by at the end. Every program that the agent starts is in
// it. Its cgroup.events descriptor reports changes (EPOLLPRI).
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ag.h"
#include "util.h"

static bool flag_of(const char *text, const char *name)
{
	const char *at = strstr(text, name);

	return at && at[strlen(name)] == '1';
}

static void on_events(struct watch *w, uint32_t events)
{
	struct agent *a = w->ctx;
	char text[256];
	// Reading is also what rearms the notification.
	ssize_t n = pread(w->fd, text, sizeof(text) - 1, 0);

	(void)events;
	if (n <= 0)
		return;
	text[n] = '\0';
	a->cg.frozen = flag_of(text, "frozen ");
	a->cg.populated = flag_of(text, "populated ");
	ag_control_cgroup_event(a);
}

int ag_cgroup_open(struct agent *a, const char *path)
{
	int fd;

	if (mkdir(path, 0755) < 0 && errno != EEXIST)
		return -errno;
	a->cg.dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (a->cg.dir < 0)
		return -errno;
	fd = openat(a->cg.dir, "cgroup.events", O_RDONLY | O_CLOEXEC);
	if (fd < 0 || faccessat(a->cg.dir, "cgroup.freeze", W_OK, 0) < 0) {
		int rc = -errno;

		if (fd >= 0)
			close(fd);
		fd_close(&a->cg.dir);
		return rc;
	}
	a->cg.usable = true;
	ag_watch_init(&a->cg.events, fd, on_events, a);
	ag_watch_set(a, &a->cg.events, EPOLLPRI);
	on_events(&a->cg.events, 0);
	return 0;
}

int ag_cgroup_write(struct agent *a, const char *file, const char *value)
{
	cleanup_fd int fd = -1;

	if (!a->cg.usable)
		return -ENOTSUP;
	fd = openat(a->cg.dir, file, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, value, strlen(value)) < 0)
		return -errno;
	return 0;
}

uint64_t ag_cgroup_cpu_us(struct agent *a)
{
	cleanup_fd int fd = -1;
	char text[512];
	const char *at;
	ssize_t n;

	if (!a->cg.usable)
		return 0;
	fd = openat(a->cg.dir, "cpu.stat", O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	if (n <= 0)
		return 0;
	text[n] = '\0';
	at = strstr(text, "usage_usec ");
	return at ? strtoull(at + strlen("usage_usec "), NULL, 10) : 0;
}

int ag_cgroup_procs_fd(struct agent *a)
{
	static int fd = -1;

	if (a->cg.usable && fd < 0)
		fd = openat(a->cg.dir, "cgroup.procs", O_WRONLY | O_CLOEXEC);
	return fd;
}
