// A thawd of the harness's own, and the smallest HTTP client that can time it:
// the connection is made first, the clock is read, then the request is written in
// one piece.
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "bench.h"

int daemon_connect(const struct daemon *d)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", d->socket);
	if (connect(fd, (void *)&sa, sizeof(sa)) < 0) {
		int rc = -errno;

		close(fd);
		return rc;
	}
	return fd;
}

static int remove_dir(const char *dir)
{
	pid_t pid = fork();
	int status = 0;

	if (pid == 0) {
		execlp("rm", "rm", "-rf", "--", dir, (char *)NULL);
		_exit(127);
	}
	while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return pid > 0 && status == 0 ? 0 : -EIO;
}

static void exec_daemon(const struct daemon *d)
{
	char exe[600], state[96], log[96];
	const char *argv[] = {
	    exe,	"--state",     state,	   "--socket", d->socket,
	    "--shells", d->args[0],    "--blanks", d->args[1], "--uid-base",
	    d->args[2], "--log-level", "warn",	   NULL};
	int fd;

	snprintf(exe, sizeof(exe), "%s/thawd", d->bin_dir);
	snprintf(state, sizeof(state), "%s/state", d->dir);
	snprintf(log, sizeof(log), "%s/log", d->dir);
	fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
	if (fd >= 0) {
		dup2(fd, STDOUT_FILENO);
		dup2(fd, STDERR_FILENO);
	}
	execv(exe, (char **)(void *)argv);
	_exit(127);
}

static int launch(struct daemon *d, struct err *e)
{
	uint64_t deadline = util_now_ns() + 20000000000ull;

	d->pid = fork();
	if (d->pid < 0)
		return err_sys(e, "cannot fork");
	if (d->pid == 0)
		exec_daemon(d);
	while (util_now_ns() < deadline) {
		int fd = daemon_connect(d);

		if (fd >= 0) {
			close(fd);
			return 0;
		}
		if (waitpid(d->pid, NULL, WNOHANG) == d->pid) {
			d->pid = 0;
			break;
		}
		usleep(2000);
	}
	return err_set(e, -EIO, "thawd did not come up: see %s/log", d->dir);
}

int daemon_start(struct daemon *d, const char *bin_dir, unsigned which,
		 unsigned shells, unsigned blanks, struct err *e)
{
	// The users of one's cells are not those of another's.
	snprintf(d->args[0], sizeof(d->args[0]), "%u", shells);
	snprintf(d->args[1], sizeof(d->args[1]), "%u", blanks);
	snprintf(d->args[2], sizeof(d->args[2]), "%u",
		 2100000 + which * 100000);
	snprintf(d->bin_dir, sizeof(d->bin_dir), "%s", bin_dir);
	d->ready = shells ? shells : blanks;
	d->shells = shells > 0;
	// Not /tmp, which may be memory: cold figures need a disk.
	snprintf(d->dir, sizeof(d->dir), "/var/tmp/thaw-bench-XXXXXX");
	if (!mkdtemp(d->dir))
		return err_sys(e, "cannot make a directory in /var/tmp");
	snprintf(d->socket, sizeof(d->socket), "%s/sock", d->dir);
	return launch(d, e);
}

static void end(struct daemon *d)
{
	if (d->pid <= 0)
		return;
	kill(d->pid, SIGTERM);
	while (waitpid(d->pid, NULL, 0) < 0 && errno == EINTR)
		;
	d->pid = 0;
}

int daemon_restart(struct daemon *d, struct err *e)
{
	end(d);
	unlink(d->socket);
	return launch(d, e);
}

void daemon_stop(struct daemon *d)
{
	end(d);
	if (d->dir[0])
		remove_dir(d->dir);
	d->dir[0] = '\0';
}

// Reads to the end of the connection into a malloc'ed, NUL-terminated buffer.
static char *read_answer(int fd)
{
	size_t len = 0, cap = 16384;
	char *buf = malloc(cap);
	ssize_t n;

	while (buf && (n = read(fd, buf + len, cap - 1 - len)) != 0) {
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			break;
		len += (size_t)n;
		if (len + 1 == cap) {
			cap *= 2;
			buf = realloc(buf, cap);
		}
	}
	if (buf)
		buf[len] = '\0';
	return buf;
}

// The body: what follows the head, or the last line of a chunked answer.
static json_t *parse_body(const char *answer)
{
	const char *body = strstr(answer, "\r\n\r\n");
	const char *last;

	if (!body)
		return NULL;
	body += 4;
	last = strcasestr(answer, "transfer-encoding: chunked");
	if (last && last < body) {
		// JSON lines in chunks: the last object is the outcome.
		const char *p = body, *found = NULL;

		while ((p = strchr(p, '{'))) {
			if (p == body || p[-1] == '\n')
				found = p;
			p++;
		}
		body = found ? found : "";
	}
	return json_loads(body, JSON_DISABLE_EOF_CHECK, NULL);
}

int daemon_call_raw(const struct daemon *d, const char *method,
		    const char *path, const char *body, json_t **out,
		    uint64_t *t0, struct err *e)
{
	cleanup_free char *req = NULL, *answer = NULL;
	cleanup_fd int fd = daemon_connect(d);
	int len, status = 0;
	json_t *json;

	if (fd < 0)
		return err_set(e, fd, "cannot reach %s: %s", d->socket,
			       strerror(-fd));
	len = asprintf(&req,
		       "%s %s HTTP/1.1\r\nHost: thaw\r\nConnection: close\r\n"
		       "Content-Type: application/json\r\n"
		       "Content-Length: %zu\r\n\r\n%s",
		       method, path, strlen(body), body);
	if (len < 0)
		return err_set(e, -ENOMEM, "no memory for a request");
	if (t0)
		*t0 = util_now_ns();
	if (util_write_all(fd, req, (size_t)len))
		return err_set(e, -EIO, "%s %s: cannot send", method, path);
	answer = read_answer(fd);
	if (answer && strncmp(answer, "HTTP/1.1 ", 9) == 0)
		status = (int)strtol(answer + 9, NULL, 10);
	if (status < 100)
		return err_set(e, -EIO, "%s %s: no answer", method, path);
	json = parse_body(answer);
	if (status >= 400 || (json && json_object_get(json, "error"))) {
		const json_t *in = json_object_get(json, "error");
		const char *msg = json_string_value(
		    json_object_get(in ? in : json, "message"));

		err_set(e, -EIO, "%s %s: %d %s", method, path, status,
			msg ? msg : answer);
		json_decref(json);
		return -EIO;
	}
	if (out)
		*out = json;
	else
		json_decref(json);
	return 0;
}

int daemon_call(const struct daemon *d, const char *method, const char *path,
		json_t *body, json_t **out, uint64_t *t0, struct err *e)
{
	cleanup_free char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;

	json_decref(body);
	return daemon_call_raw(d, method, path, text ? text : "", out, t0, e);
}

int daemon_build_ring3(const struct daemon *d, const char *name,
		       const char *cmdline, unsigned mem_mib, struct err *e)
{
	char elf[600];

	snprintf(elf, sizeof(elf), "%s/ring3.elf", d->bin_dir);
	return daemon_call(d, "POST", "/thaw/v1/images",
			   json_pack("{s:s, s:s, s:s, s:i, s:i}", "name", name,
				     "kernel", elf, "cmdline", cmdline,
				     "memoryMiB", (int)mem_mib, "vcpus", 1),
			   NULL, NULL, e);
}

int daemon_settle(const struct daemon *d, struct err *e)
{
	const char *what = d->shells ? "shellsReady" : "blanksReady";

	for (int i = 0; i < 1000; i++) {
		json_t *host = NULL;
		json_int_t n;
		int rc;

		rc = daemon_call(d, "GET", "/thaw/v1/host", NULL, &host, NULL,
				 e);
		if (rc)
			return rc;
		n = json_integer_value(json_object_get(host, what));
		json_decref(host);
		if (n >= d->ready)
			return 0;
		usleep(5000);
	}
	return err_set(e, -ETIMEDOUT, "no cell got ready in 5 s: %s", what);
}

pid_t daemon_main_pid(const struct daemon *d)
{
	char path[64];
	FILE *f;
	int pid = 0;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", (int)d->pid,
		 (int)d->pid);
	f = fopen(path, "re");
	if (f && fscanf(f, "%d", &pid) != 1)
		pid = 0;
	if (f)
		fclose(f);
	return pid;
}
