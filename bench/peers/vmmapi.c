// A VMM's API: HTTP/1.1 on a Unix socket, one short request after the other.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>

#include "vmmproc.h"

enum { ANSWER_MAX = 4096, LOOK_NS = 50000 };

int vmmproc_connect(struct vmmproc *p, const char *path, int *fd, struct err *e)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	uint64_t until = util_now_ns() + VMMPROC_WAIT_MS * 1000000ull;
	struct timespec rest = {.tv_nsec = LOOK_NS};

	if (strlen(path) >= sizeof(sa.sun_path))
		return err_set(e, -ENAMETOOLONG,
			       "%s is too long for a socket's path", path);
	strcpy(sa.sun_path, path);
	*fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (*fd < 0)
		return err_sys(e, "cannot make a socket");
	// There is no event for "listens"; a look costs a microsecond.
	while (connect(*fd, (struct sockaddr *)&sa, sizeof(sa)) < 0) {
		siginfo_t si = {0};

		if (errno != ENOENT && errno != ECONNREFUSED) {
			fd_close(fd);
			return err_sys(e, "cannot connect to %s", path);
		}
		if (waitid(P_PID, (id_t)p->pid, &si,
			   WEXITED | WNOHANG | WNOWAIT) == 0 &&
		    si.si_pid == p->pid) {
			fd_close(fd);
			return err_set(e, -ECHILD, "it ended at once");
		}
		if (util_now_ns() > until) {
			fd_close(fd);
			return err_set(e, -ETIMEDOUT, "%s is not listened on",
				       path);
		}
		nanosleep(&rest, NULL);
	}
	return 0;
}

// Is the answer whole? Sets *body to where its body begins then.
static bool complete(const char *text, size_t len, const char **body)
{
	const char *end = strstr(text, "\r\n\r\n");
	const char *cl = strcasestr(text, "\r\ncontent-length:");
	size_t want = 0;

	if (!end)
		return false;
	if (cl && cl < end)
		want = strtoul(cl + 17, NULL, 10);
	*body = end + 4;
	return len >= (size_t)(*body - text) + want;
}

static int read_answer(int fd, char *text, const char **body, struct err *e)
{
	size_t len = 0;

	text[0] = '\0';
	while (!complete(text, len, body)) {
		struct pollfd pf = {.fd = fd, .events = POLLIN};
		ssize_t n;

		if (len == ANSWER_MAX)
			return err_set(e, -EIO, "its answer is too long");
		if (poll(&pf, 1, VMMPROC_WAIT_MS) == 0)
			return err_set(e, -ETIMEDOUT, "its API is silent");
		n = read(fd, text + len, ANSWER_MAX - len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return err_set(e, -EIO, "it closed its API");
		len += (size_t)n;
		text[len] = '\0';
	}
	return 0;
}

int vmmproc_api(int fd, const char *method, const char *path, const char *body,
		struct err *e)
{
	char text[ANSWER_MAX + 1];
	const char *said = "";
	int n, rc, status;

	n = snprintf(text, sizeof(text),
		     "%s %s HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n"
		     "Content-Type: application/json\r\n"
		     "Content-Length: %zu\r\n\r\n%s",
		     method, path, body ? strlen(body) : 0, body ? body : "");
	if (n < 0 || n >= (int)sizeof(text))
		return err_set(e, -E2BIG, "a request is too long");
	rc = util_write_all(fd, text, (size_t)n);
	if (rc == -EPIPE)
		return err_set(e, -EIO, "it closed its API");
	if (rc)
		return err_wrap(e, rc, "cannot write to its API");
	rc = read_answer(fd, text, &said, e);
	if (rc)
		return err_wrap(e, rc, "%s %s", method, path);
	if (sscanf(text, "HTTP/1.%*d %d", &status) != 1)
		return err_set(e, -EIO, "its API does not speak HTTP");
	if (status < 200 || status > 299)
		return err_set(e, -EIO, "%s %s: %d: %.200s", method, path,
			       status, said);
	return 0;
}
