// EXEC: one program with its own stdin, stdout and stderr, or on a terminal.
//
// Flow control is the sockets' and pipes' own: output is read only when its
// frame has room, the host's frames only when the last STDIN has gone into the
// program (a program that reads nothing holds back SIGNAL and RESIZE behind its
// own STDIN, as with ssh). The end of the stream is always noticed and kills
// the program's process group.
//
// The end of a program: it was reaped, and its output is complete. With pipes
// that is what was in them when it was reaped (a child it left behind may hold
// them open for ever); on a terminal, what comes until the hang-up that the end
// of a session's leader brings. Then EXIT.
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "ag.h"
#include "ag_spawn.h"
#include "util.h"
#include "wire.h"

enum { OUT_CAP = 65536, READ_MIN = 4096, TTY_END_MS = 1000 };

struct ag_exec {
	struct conn *c;
	pid_t pid; // 0: reaped
	bool pty, exited, closed;
	int code;
	struct watch result; // exec's result
	struct watch in;     // its stdin; the terminal's copy for writing
	struct watch out[2]; // its stdout and stderr; out[0] is the terminal
	bool done[2];	     // the empty frame was queued
	bool all[2];	     // nothing more is to be read
	int left[2];	     // after its end: bytes still to be read
	bool stdin_frame;    // c->in holds a STDIN frame being written
	uint32_t stdin_off;
};

static void update(struct conn *c)
{
	struct ag_exec *x = c->exec;
	struct agent *a = c->a;
	bool room = ag_out_room(&c->out) >= READ_MIN;
	uint32_t ev = EPOLLRDHUP;

	if (!x->stdin_frame)
		ev |= EPOLLIN;
	if (c->out.len)
		ev |= EPOLLOUT;
	ag_watch_set(a, &c->w, ev);
	for (int i = 0; i < 2; i++)
		ag_watch_set(a, &x->out[i], room ? EPOLLIN : 0);
	ag_watch_set(a, &x->in, x->stdin_frame ? EPOLLOUT : 0);
}

// Queues what is due, sends, and ends the stream after the last byte.
static void push(struct conn *c)
{
	struct ag_exec *x = c->exec;
	uint8_t code[4];
	struct wire_writer w = wire_writer_of(code, sizeof(code));

	for (int i = 0; i < 2; i++) {
		if (x->all[i] && !x->done[i] &&
		    ag_out_frame(&c->out, AGENT_STDOUT + (unsigned)i, NULL,
				 0) == 0)
			x->done[i] = true;
	}
	if (x->exited && x->done[0] && x->done[1] && !c->end_after_flush) {
		wire_put_u32(&w, (uint32_t)x->code);
		if (ag_out_frame(&c->out, AGENT_EXIT, code, w.len) == 0)
			c->end_after_flush = true;
	}
	if (ag_out_flush(&c->out, c->w.fd) < 0 ||
	    (c->end_after_flush && !c->out.len))
		ag_conn_end(c);
	else
		update(c);
}

static void end_output(struct conn *c, int i)
{
	ag_watch_close(c->a, &c->exec->out[i]);
	c->exec->all[i] = true;
}

// Reads once; false when there is nothing now.
static bool read_output(struct conn *c, int i)
{
	struct ag_exec *x = c->exec;
	size_t room = ag_out_room(&c->out);
	ssize_t n;

	if (x->all[i] || room < READ_MIN)
		return false;
	room = MIN(room, (size_t)AG_IO_BUF);
	if (x->exited && !x->pty)
		room = MIN(room, (size_t)x->left[i]);
	n = read(x->out[i].fd, ag_out_payload(&c->out), room);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	// EIO is how a terminal says that nobody holds its other side.
	if (n <= 0) {
		end_output(c, i);
		return false;
	}
	ag_out_commit(&c->out, AGENT_STDOUT + (unsigned)i, (size_t)n);
	if (x->exited && !x->pty && (x->left[i] -= (int)n) <= 0)
		end_output(c, i);
	return true;
}

static void on_output(struct watch *w, uint32_t events)
{
	struct conn *c = w->ctx;

	(void)events;
	read_output(c, w == &c->exec->out[1]);
	push(c);
}

// --- the host's frames -------------------------------------------------------

static void end_stdin(struct conn *c)
{
	struct ag_exec *x = c->exec;
	uint8_t eof = 4;
	struct termios t;

	if (x->pty && x->in.fd >= 0) {
		if (tcgetattr(x->in.fd, &t) == 0)
			eof = t.c_cc[VEOF];
		if (write(x->in.fd, &eof, 1) < 0)
			errno = 0;
		return;
	}
	ag_watch_close(c->a, &x->in);
}

// Writes the STDIN frame at hand; true when it is finished with.
static bool write_stdin(struct conn *c)
{
	struct ag_exec *x = c->exec;

	while (x->in.fd >= 0 && x->stdin_off < c->in.len) {
		ssize_t n = write(x->in.fd, c->in.payload + x->stdin_off,
				  c->in.len - x->stdin_off);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return false;
		if (n < 0)
			ag_watch_close(c->a, &x->in); // it reads no more
		else
			x->stdin_off += (uint32_t)n;
	}
	return true;
}

static void send_signal(struct ag_exec *x, uint32_t signo)
{
	pid_t group = x->pid;

	if (!x->pid || signo < 1 || signo >= NSIG)
		return;
	if (x->pty && x->out[0].fd >= 0 &&
	    (ioctl(x->out[0].fd, TIOCGPGRP, &group) < 0 || group <= 0))
		group = x->pid;
	kill(-group, (int)signo);
}

// One complete frame is in c->in. 0, or -EPROTO.
static int take_frame(struct conn *c)
{
	struct ag_exec *x = c->exec;
	struct wire_reader r = wire_reader_of(c->in.payload, c->in.len);
	struct winsize ws = {.ws_row = 0};

	switch (c->in.type) {
	case AGENT_STDIN:
		if (!c->in.len) {
			end_stdin(c);
			break;
		}
		x->stdin_off = 0;
		x->stdin_frame = !write_stdin(c);
		return 0;
	case AGENT_RESIZE:
		ws.ws_row = wire_get_u16(&r);
		ws.ws_col = wire_get_u16(&r);
		if (x->pty && x->out[0].fd >= 0)
			ioctl(x->out[0].fd, TIOCSWINSZ, &ws);
		break;
	case AGENT_SIGNAL:
		send_signal(x, wire_get_u32(&r));
		break;
	default:
		return -EPROTO;
	}
	return 0;
}

static void on_stdin(struct watch *w, uint32_t events)
{
	struct conn *c = w->ctx;

	(void)events;
	if (c->exec->stdin_frame && write_stdin(c)) {
		c->exec->stdin_frame = false;
		ag_reader_reset(&c->in);
	}
	update(c);
}

void ag_exec_conn_event(struct conn *c, uint32_t events)
{
	struct ag_exec *x = c->exec;
	int rc;

	if (events & (EPOLLHUP | EPOLLERR | EPOLLRDHUP)) {
		ag_conn_end(c);
		return;
	}
	if (events & EPOLLIN && !x->stdin_frame) {
		rc = ag_conn_read(c);
		if (rc == 1)
			rc = take_frame(c);
		else if (rc == 0)
			goto out;
		if (rc < 0) {
			ag_conn_end(c);
			return;
		}
		if (!x->stdin_frame)
			ag_reader_reset(&c->in);
	}
out:
	push(c);
}

// --- its life ----------------------------------------------------------------

// The memory stays until the loop's sweep: events for it may be at hand.
void ag_exec_close(struct conn *c)
{
	struct ag_exec *x = c->exec;

	if (!x || x->closed)
		return;
	x->closed = true;
	// Not reaped yet, so that the number is still its own.
	if (x->pid > 0)
		kill(-x->pid, SIGKILL), kill(x->pid, SIGKILL);
	ag_watch_close(c->a, &x->result);
	ag_watch_close(c->a, &x->in);
	ag_watch_close(c->a, &x->out[0]);
	ag_watch_close(c->a, &x->out[1]);
}

static void on_result(struct watch *w, uint32_t events)
{
	struct conn *c = w->ctx;
	struct ag_spawn_error e;
	ssize_t n = read(w->fd, &e, sizeof(e));

	(void)events;
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	ag_watch_close(c->a, w);
	if (n != (ssize_t)sizeof(e))
		return;
	e.text[sizeof(e.text) - 1] = '\0';
	ag_exec_close(c);
	c->out.len = 0;
	ag_conn_error(c, e.err, "%s", e.text);
}

static void exited(struct conn *c, int status)
{
	struct ag_exec *x = c->exec;

	x->exited = true;
	x->code =
	    WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
	ag_watch_close(c->a, &x->in);
	if (x->stdin_frame)
		ag_reader_reset(&c->in);
	x->stdin_frame = false;
	if (x->pty) {
		c->deadline_ns = ag_deadline(TTY_END_MS);
		push(c);
		return;
	}
	for (int i = 0; i < 2; i++) {
		if (x->all[i])
			continue;
		if (ioctl(x->out[i].fd, FIONREAD, &x->left[i]) < 0 ||
		    x->left[i] <= 0)
			end_output(c, i);
	}
	push(c);
}

bool ag_exec_reaped(struct agent *a, pid_t pid, int status)
{
	for (struct conn *c = a->conns; c; c = c->next) {
		if (!c->exec || c->exec->pid != pid)
			continue;
		c->exec->pid = 0;
		if (c->exec->result.fd >= 0)
			on_result(&c->exec->result, 0);
		if (!c->exec->closed)
			exited(c, status);
		return true;
	}
	return false;
}

// A terminal whose session ended, and that somebody holds open all the same.
void ag_exec_timeout(struct conn *c)
{
	if (!c->exec->all[0])
		end_output(c, 0);
	push(c);
}

// Makes the program's descriptors (`fds`) and our ends of them.
static int open_pipes(struct conn *c, int fds[3])
{
	struct ag_exec *x = c->exec;
	int p[2];

	for (int i = 0; i < 3; i++) {
		if (pipe2(p, O_CLOEXEC) < 0)
			return -errno;
		fds[i] = p[i == 0 ? 0 : 1];
		p[0] = p[i == 0 ? 1 : 0];
		fcntl(p[0], F_SETFL, O_NONBLOCK);
		if (i == 0)
			ag_watch_init(&x->in, p[0], on_stdin, c);
		else
			ag_watch_init(&x->out[i - 1], p[0], on_output, c);
	}
	return 0;
}

static int open_tty(struct conn *c, const struct ag_spec *s, int fds[3])
{
	struct ag_exec *x = c->exec;
	struct winsize ws = {.ws_row = s->rows, .ws_col = s->cols};
	int fd = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	ag_watch_init(&x->out[0], fd, on_output, c);
	x->all[1] = x->done[1] = true; // no stderr of its own
	if (unlockpt(fd) < 0)
		return -errno;
	fcntl(fd, F_SETFL, O_NONBLOCK);
	ioctl(fd, TIOCSWINSZ, &ws);
	// The same file: an epoll set takes a descriptor only once.
	fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (fd < 0)
		return -errno;
	ag_watch_init(&x->in, fd, on_stdin, c);
	for (int i = 0; i < 3; i++) {
		fds[i] =
		    i ? fcntl(fds[0], F_DUPFD_CLOEXEC, 3)
		      : ioctl(fd, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
		if (fds[i] < 0)
			return -errno;
	}
	return 0;
}

static int run(struct conn *c, struct ag_spec *s, int fds[3])
{
	struct ag_exec *x = c->exec;
	const struct app *app = &c->a->app;
	char *const defaults[] = {
	    (char *)"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
		    ":/sbin:/bin",
	    s->pty ? (char *)"TERM=xterm" : NULL, NULL};
	cleanup_free char **app_env = ag_env_merge(defaults, app->spec.env, 0);
	cleanup_free char **env = NULL;
	int rc = s->pty ? open_tty(c, s, fds) : open_pipes(c, fds);
	int result;
	pid_t pid;

	env = app_env ? ag_env_merge(app_env, s->env, 2) : NULL;
	if (rc < 0 || !env)
		return rc < 0 ? rc : -ENOMEM;
	// Not given: as the application has it.
	pid = ag_spawn(
	    &(struct ag_spawn){
		.argv = s->argv,
		.env = env,
		.user =
		    s->user[0] || !app->spec.user ? s->user : app->spec.user,
		.cwd = s->cwd[0] || !app->spec.cwd ? s->cwd : app->spec.cwd,
		.all_caps = !app->spec.block || app->spec.all_caps,
		.fds = {fds[0], fds[1], fds[2]},
		.tty = s->pty,
		.cgroup_procs = ag_cgroup_procs_fd(c->a)},
	    &result);
	if (pid < 0)
		return pid;
	x->pid = pid;
	ag_watch_init(&x->result, result, on_result, c);
	ag_watch_set(c->a, &x->result, EPOLLIN);
	return 0;
}

static struct ag_exec *make(struct conn *c)
{
	struct ag_exec *x = calloc(1, sizeof(*x));

	if (!x || ag_out_init(&c->out, OUT_CAP) < 0) {
		free(x);
		return NULL;
	}
	x->c = c;
	x->result.fd = x->in.fd = x->out[0].fd = x->out[1].fd = -1;
	return x;
}

void ag_open_exec(struct conn *c)
{
	struct agent *a = c->a;
	struct ag_spec s;
	const char *why;
	int fds[3] = {-1, -1, -1};
	int rc;

	if (a->freezing || a->off || a->nconns > AG_CONN_MAX) {
		ag_conn_error(c, EBUSY,
			      "frozen, powering off, or too many "
			      "streams");
		return;
	}
	rc = ag_spec_exec(&s, c->in.payload, c->in.len, &why);
	if (rc < 0) {
		ag_conn_error(c, rc, "exec: %s", why);
		return;
	}
	c->exec = make(c);
	rc = -ENOMEM;
	if (c->exec) {
		c->exec->pty = s.pty;
		rc = run(c, &s, fds);
	}
	for (int i = 0; i < 3; i++)
		fd_close(&fds[i]);
	ag_spec_fini(&s);
	if (rc < 0) {
		ag_exec_close(c);
		ag_conn_error(c, rc, "exec: %s", strerror(-rc));
		return;
	}
	c->kind = CONN_EXEC;
	update(c);
}
