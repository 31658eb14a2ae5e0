// thaw exec, shell: agent frames (guest/include/agent_proto.h), end to end through
// thawd.
//
// One poll loop. Input is read only when all of the last was sent, so nothing
// grows; output is written as it comes. In TTY mode the terminal is raw and put
// back whatever ends us; without one, signals that would end us go to the
// command instead, and the third one ends us after all.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#include "agent_proto.h"
#include "cli.h"

enum {
	INPUT_CHUNK = 32 * 1024,
	SIGNALS_BEFORE_END = 3,
};

struct exec {
	int fd, sigfd;
	bool tty, input_open;
	unsigned signals;
	uint8_t out[INPUT_CHUNK + 512]; // frames on their way to the guest
	size_t out_at, out_len;
	uint8_t *in; // bytes from the guest, at most one frame and a bit
	size_t in_len;
	int code; // exit code, -1 until known
};

static struct termios saved_termios;
static bool raw_mode;

static void restore_terminal(void)
{
	if (raw_mode)
		tcsetattr(STDIN_FILENO, TCSADRAIN, &saved_termios);
	raw_mode = false;
}

static void make_raw(void)
{
	struct termios t;

	if (tcgetattr(STDIN_FILENO, &saved_termios))
		return;
	t = saved_termios;
	cfmakeraw(&t);
	raw_mode = true;
	atexit(restore_terminal);
	tcsetattr(STDIN_FILENO, TCSADRAIN, &t);
}

// --- to the guest --------------------------------------------------------

// There is room: input is read only when the buffer is empty, and what else is
// sent is small and dropped when the guest has not taken the last.
static void put_frame(struct exec *x, unsigned type, const void *p, size_t n)
{
	struct wire_writer w =
	    wire_writer_of(x->out + x->out_len, sizeof(x->out) - x->out_len);

	wire_put_u8(&w, (uint8_t)type);
	wire_put_u8(&w, 0);
	wire_put_u16(&w, 0);
	wire_put_u32(&w, (uint32_t)n);
	wire_put_bytes(&w, p, n);
	if (!w.bad)
		x->out_len += w.len;
}

static void put_size(struct exec *x)
{
	struct winsize ws;
	uint8_t buf[4];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	if (ioctl(STDIN_FILENO, TIOCGWINSZ, &ws) || !ws.ws_row || !ws.ws_col)
		return; // some terminals do not know theirs
	wire_put_u16(&w, ws.ws_row);
	wire_put_u16(&w, ws.ws_col);
	put_frame(x, AGENT_RESIZE, buf, sizeof(buf));
}

static void put_signal(struct exec *x, uint32_t signo)
{
	uint8_t buf[4];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	wire_put_u32(&w, signo);
	put_frame(x, AGENT_SIGNAL, buf, sizeof(buf));
}

static void flush_out(struct exec *x)
{
	while (x->out_at < x->out_len) {
		ssize_t n =
		    send(x->fd, x->out + x->out_at, x->out_len - x->out_at,
			 MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n < 0) { // the answer, or its absence, says why
			x->input_open = false;
			break;
		}
		x->out_at += (size_t)n;
	}
	x->out_at = x->out_len = 0;
}

static void read_input(struct exec *x)
{
	uint8_t buf[INPUT_CHUNK];
	ssize_t n = read(STDIN_FILENO, buf, sizeof(buf));

	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return;
	if (n <= 0) {
		x->input_open = false;
		n = 0; // an empty frame is the end of input
	}
	put_frame(x, AGENT_STDIN, buf, (size_t)n);
}

static void read_signal(struct exec *x)
{
	struct signalfd_siginfo si;

	if (read(x->sigfd, &si, sizeof(si)) != sizeof(si))
		return;
	if (si.ssi_signo == SIGWINCH) {
		if (x->tty)
			put_size(x);
		return;
	}
	if (++x->signals >= SIGNALS_BEFORE_END || si.ssi_signo == SIGHUP)
		x->code = 128 + (int)si.ssi_signo;
	else
		put_signal(x, si.ssi_signo);
}

// --- from the guest ------------------------------------------------------

static int broken(const char *what)
{
	return cli_fail(CLI_FAILED, "exec: the guest sent %s", what);
}

static int agent_error(const uint8_t *p, size_t n)
{
	struct wire_reader r = wire_reader_of(p, n);
	uint32_t code = wire_get_u32(&r);
	size_t left = wire_left(&r);
	const char *text = wire_borrow(&r, left);

	if (r.bad)
		return broken("a malformed error");
	cli_fail(0, "exec: %.*s", (int)MIN(left, 400u), text);
	if (code == ENOENT)
		return 127;
	return code == EACCES || code == ENOEXEC || code == EISDIR ? 126
								   : CLI_FAILED;
}

static int take_frame(struct exec *x, unsigned type, const uint8_t *p, size_t n)
{
	struct wire_reader r = wire_reader_of(p, n);
	uint32_t code;

	switch (type) {
	case AGENT_OK:
		return -1;
	case AGENT_STDOUT:
	case AGENT_STDERR:
		// A reader that went away ends us as it would end the command.
		if (util_write_all(type == AGENT_STDOUT ? STDOUT_FILENO
							: STDERR_FILENO,
				   p, n) == -EPIPE)
			return 128 + SIGPIPE;
		return -1;
	case AGENT_EXIT:
		code = wire_get_u32(&r);
		if (r.bad || wire_left(&r) || code > 255)
			return broken("a malformed exit code");
		return (int)code;
	case AGENT_ERROR:
		return agent_error(p, n);
	default:
		(void)x;
		return broken("a frame of unknown type");
	}
}

static void take_frames(struct exec *x)
{
	size_t at = 0;

	while (x->code < 0 && x->in_len - at >= AGENT_FRAME_HEAD) {
		struct wire_reader r =
		    wire_reader_of(x->in + at, AGENT_FRAME_HEAD);
		unsigned type = wire_get_u8(&r);
		unsigned zero = wire_get_u8(&r);
		uint32_t len;

		zero |= wire_get_u16(&r);
		len = wire_get_u32(&r);
		if (zero || len > AGENT_FRAME_MAX) {
			x->code = broken("a malformed frame");
			return;
		}
		if (x->in_len - at - AGENT_FRAME_HEAD < len)
			break;
		at += AGENT_FRAME_HEAD;
		x->code = take_frame(x, type, x->in + at, len);
		at += len;
	}
	memmove(x->in, x->in + at, x->in_len - at);
	x->in_len -= at;
}

static void read_guest(struct exec *x)
{
	size_t cap = AGENT_FRAME_HEAD + AGENT_FRAME_MAX;
	ssize_t n =
	    recv(x->fd, x->in + x->in_len, cap - x->in_len, MSG_DONTWAIT);

	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return;
	if (n <= 0) {
		x->code = cli_fail(CLI_FAILED,
				   "exec: the microVM went away before the "
				   "command ended; see 'thaw inspect'");
		return;
	}
	x->in_len += (size_t)n;
	take_frames(x);
}

// --- the loop ------------------------------------------------------------

static int catch_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGWINCH);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGQUIT);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static void pump(struct exec *x)
{
	while (x->code < 0) {
		bool sending = x->out_at < x->out_len;
		struct pollfd p[3] = {
		    {x->fd, (short)(POLLIN | (sending ? POLLOUT : 0)), 0},
		    {x->sigfd, POLLIN, 0},
		    {x->input_open && !sending ? STDIN_FILENO : -1, POLLIN, 0},
		};

		if (poll(p, 3, -1) < 0 && errno != EINTR) {
			x->code =
			    cli_fail(CLI_FAILED, "poll: %s", strerror(errno));
			return;
		}
		if (p[0].revents & (POLLIN | POLLHUP | POLLERR))
			read_guest(x);
		if (x->code < 0 && p[1].revents)
			read_signal(x);
		if (x->code < 0 && p[2].revents)
			read_input(x);
		flush_out(x);
	}
}

json_t *cli_exec_request(struct cli *c, int argc, char *const *argv, bool tty)
{
	json_t *body = json_object(), *words = json_array(),
	       *env = json_array();
	struct winsize ws;
	const char *v;

	for (int i = 0; i < argc; i++)
		json_array_append_new(words, json_string(argv[i]));
	if (tty && getenv("TERM")) {
		char *term = NULL;

		if (asprintf(&term, "TERM=%s", getenv("TERM")) >= 0)
			json_array_append_new(env, json_string(term));
		free(term);
	}
	for (size_t i = 0; (v = cli_value_at(c, "env", i)); i++)
		json_array_append_new(env, json_string(v));
	json_object_set_new(body, "command", words);
	if (json_array_size(env))
		json_object_set(body, "env", env);
	json_decref(env);
	if ((v = cli_value(c, "user")))
		json_object_set_new(body, "user", json_string(v));
	if ((v = cli_value(c, "workdir")))
		json_object_set_new(body, "cwd", json_string(v));
	json_object_set_new(body, "tty", json_boolean(tty));
	if (tty && ioctl(STDIN_FILENO, TIOCGWINSZ, &ws) == 0 && ws.ws_row &&
	    ws.ws_col) {
		json_object_set_new(body, "rows", json_integer(ws.ws_row));
		json_object_set_new(body, "cols", json_integer(ws.ws_col));
	}
	return body;
}

// --json: the call without an upgrade, whose answer is one object.
static int exec_json(struct cli *c, const json_t *body)
{
	char *path = cli_path(CLI_OWN "/microvms/%s/exec", c->argv[0]);
	json_t *out = NULL;
	int code = cli_call(c, "exec", "POST", path, body, &out);

	free(path);
	if (code)
		return code;
	cli_print_json(out, false);
	code = (int)cli_int(out, "exitCode", CLI_FAILED);
	json_decref(out);
	return code;
}

int cli_exec(struct cli *c, const json_t *body, bool tty, bool input)
{
	char *path = cli_path(CLI_OWN "/microvms/%s/exec", c->argv[0]);
	struct exec *x;
	struct httpc h;
	int code =
	    cli_open(c, &h, c->cmd->name, "POST", path, "thaw-exec", body);

	free(path);
	if (code)
		return code;
	x = calloc(1, sizeof(*x));
	if (x)
		x->in = malloc(AGENT_FRAME_HEAD + AGENT_FRAME_MAX);
	if (!x || !x->in)
		abort();
	x->code = -1;
	x->tty = tty;
	x->input_open = input;
	x->in_len = h.len - h.at; // read along with the head
	memcpy(x->in, h.buf + h.at, x->in_len);
	x->fd = httpc_take(&h);
	x->sigfd = catch_signals();
	if (!x->input_open)
		put_frame(x, AGENT_STDIN, "", 0);
	if (tty)
		make_raw();
	flush_out(x);
	take_frames(x);
	pump(x);
	restore_terminal();
	code = x->code;
	close(x->fd);
	close(x->sigfd);
	free(x->in);
	free(x);
	return code;
}

int cmd_exec(struct cli *c)
{
	bool tty = cli_flag(c, "tty");
	json_t *body;
	int code, first = 1;

	if (tty && c->json)
		return cli_usage(c, "--json and -t do not go together");
	if (tty && !isatty(STDIN_FILENO))
		return cli_usage(c, "-t needs a terminal, and standard input "
				    "is none");
	if (c->argc > 2 && !strcmp(c->argv[1], "--"))
		first = 2;
	body = cli_exec_request(c, c->argc - first, c->argv + first, tty);
	code = c->json
		   ? exec_json(c, body)
		   : cli_exec(c, body, tty, cli_flag(c, "interactive") || tty);
	json_decref(body);
	return code;
}

// Its best shell, as one that somebody logs in to. Standard input that is no
// terminal is a script, and bash and sh read it as such.
int cmd_shell(struct cli *c)
{
	static char script[] = "command -v bash >/dev/null && exec bash -l; "
			       "exec /bin/sh -l";
	static char *const argv[] = {"/bin/sh", "-c", script};
	bool tty = isatty(STDIN_FILENO);
	json_t *body;
	int code;

	if (c->json)
		return cli_usage(c, "a shell has no --json: use 'thaw exec "
				    "--json'");
	body = cli_exec_request(c, ARRAY_SIZE(argv), argv, tty);
	code = cli_exec(c, body, tty, true);
	json_decref(body);
	return code;
}
