// thaw forward: a local TCP port that leads into a guest. Each connection is an
// upgraded request of its own, served by a thread until both sides are done.
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>

#include "cli.h"

enum { CONNECTIONS_MAX = 512, PIPE_BYTES = 64 * 1024 };

static atomic_uint connections;

struct link { // one direction
	int from, to;
	bool ended;
	size_t at, len;
	char buf[PIPE_BYTES];
};

struct connection {
	struct cli *cli;
	int fd;
	const char *path;
	const char *what;
};

// Reads when empty, writes when not. False when this direction is over.
static bool move(struct link *l)
{
	ssize_t n;

	if (l->ended)
		return false;
	if (l->at == l->len) {
		n = recv(l->from, l->buf, sizeof(l->buf), MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return true;
		if (n <= 0) {
			shutdown(l->to, SHUT_WR); // half-closed, as it came
			l->ended = true;
			return false;
		}
		l->at = 0;
		l->len = (size_t)n;
	}
	n = send(l->to, l->buf + l->at, l->len - l->at,
		 MSG_DONTWAIT | MSG_NOSIGNAL);
	if (n < 0 && errno != EAGAIN && errno != EINTR) {
		l->ended = true;
		return false;
	}
	l->at += n > 0 ? (size_t)n : 0;
	return true;
}

static void splice_both(int a, int b, struct link *there, struct link *back)
{
	there->from = back->to = a;
	there->to = back->from = b;
	while (!there->ended || !back->ended) {
		bool t_full = there->at < there->len;
		bool b_full = back->at < back->len;
		short ea = 0, eb = 0;

		if (!there->ended) {
			ea = (short)(ea | (t_full ? 0 : POLLIN));
			eb = (short)(eb | (t_full ? POLLOUT : 0));
		}
		if (!back->ended) {
			eb = (short)(eb | (b_full ? 0 : POLLIN));
			ea = (short)(ea | (b_full ? POLLOUT : 0));
		}
		// A side without anything to wait for must not wake us with
		// its hang-up.
		struct pollfd p[2] = {{ea ? a : -1, ea, 0},
				      {eb ? b : -1, eb, 0}};

		if (poll(p, 2, -1) < 0 && errno != EINTR)
			return;
		move(there);
		move(back);
	}
}

static void *serve(void *arg)
{
	struct connection *k = arg;
	struct link *links = calloc(2, sizeof(*links));
	struct httpc *h = calloc(1, sizeof(*h));
	size_t early;

	if (links && h &&
	    cli_open(k->cli, h, k->what, "POST", k->path, "thaw-forward",
		     NULL) == 0) {
		early = h->len - h->at; // bytes that came with the head
		memcpy(links[1].buf, h->buf + h->at, early);
		links[1].len = early;
		splice_both(k->fd, h->fd, &links[0], &links[1]);
		httpc_close(h);
	}
	close(k->fd);
	free(links);
	free(h);
	free(k);
	atomic_fetch_sub(&connections, 1);
	return NULL;
}

static void start(struct cli *c, int fd, const char *path, const char *what)
{
	struct connection *k = malloc(sizeof(*k));
	pthread_attr_t at;
	pthread_t t;

	pthread_attr_init(&at);
	pthread_attr_setdetachstate(&at, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&at, (size_t)256 * 1024);
	if (k && atomic_fetch_add(&connections, 1) < CONNECTIONS_MAX) {
		*k = (struct connection){c, fd, path, what};
		if (pthread_create(&t, &at, serve, k) == 0)
			return;
	}
	cli_fail(0, "forward: too many connections; one was refused");
	if (k)
		atomic_fetch_sub(&connections, 1);
	free(k);
	close(fd);
}

// "[HOST:]LOCAL:GUEST", HOST may be "[::1]".
static int parse_ports(struct cli *c, char *text, const char **host,
		       const char **local, unsigned *guest)
{
	char *last = strrchr(text, ':'), *mid, *end;
	unsigned long v;

	if (!last)
		return cli_usage(c, "'%s' is not LOCAL:GUEST", text);
	*last = '\0';
	v = strtoul(last + 1, &end, 10);
	if (!last[1] || *end || v == 0 || v > 65535)
		return cli_usage(c, "'%s' is no port of a guest", last + 1);
	*guest = (unsigned)v;
	mid = strrchr(text, ':');
	*host = "127.0.0.1";
	*local = text;
	if (mid) {
		*mid = '\0';
		*host = text;
		*local = mid + 1;
		if (text[0] == '[' && mid > text + 1 && mid[-1] == ']') {
			mid[-1] = '\0';
			*host = text + 1;
		}
	}
	v = strtoul(*local, &end, 10);
	if (!**local || *end || v > 65535)
		return cli_usage(c, "'%s' is no local port", *local);
	return 0;
}

static int listen_on(const char *host, const char *port, int *out)
{
	struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICSERV,
				 .ai_socktype = SOCK_STREAM};
	struct addrinfo *ai;
	int fd, one = 1, rc = getaddrinfo(host, port, &hints, &ai);

	if (rc)
		return cli_fail(CLI_FAILED, "forward: '%s': %s", host,
				gai_strerror(rc));
	fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK,
		    0);
	if (fd >= 0)
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (fd < 0 || bind(fd, ai->ai_addr, ai->ai_addrlen) ||
	    listen(fd, 128)) {
		cli_fail(0,
			 "forward: cannot listen on %s port %s: %s; local port "
			 "0 picks a free one",
			 host, port, strerror(errno));
		freeaddrinfo(ai);
		fd_close(&fd);
		return CLI_FAILED;
	}
	freeaddrinfo(ai);
	*out = fd;
	return 0;
}

static void say_address(struct cli *c, int fd, unsigned guest)
{
	struct sockaddr_storage sa;
	socklen_t len = sizeof(sa);
	char host[64], port[16];
	json_t *j;

	getsockname(fd, (struct sockaddr *)&sa, &len);
	getnameinfo((struct sockaddr *)&sa, len, host, sizeof(host), port,
		    sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV);
	if (c->json) {
		j = json_pack("{s:s,s:i,s:s,s:i}", "host", host, "port",
			      (int)strtol(port, NULL, 10), "microvm",
			      c->argv[0], "guestPort", (int)guest);
		cli_print_json(j, false);
		json_decref(j);
	} else {
		printf(strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
		printf(" -> %s:%u\n", c->argv[0], guest);
	}
	fflush(stdout);
}

static int accept_all(struct cli *c, int fd, const char *path, const char *what)
{
	sigset_t set;
	int sig;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	sig = signalfd(-1, &set, SFD_CLOEXEC);
	for (;;) {
		struct pollfd p[2] = {{fd, POLLIN, 0}, {sig, POLLIN, 0}};
		int conn;

		if (poll(p, 2, -1) < 0 && errno != EINTR)
			return cli_fail(CLI_FAILED, "poll: %s",
					strerror(errno));
		if (p[1].revents)
			return 0; // Ctrl-C: the process's end closes the rest
		conn = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
		if (conn >= 0)
			start(c, conn, path, what);
		else if (errno == EMFILE || errno == ENFILE)
			usleep(100000);
	}
}

int cmd_forward(struct cli *c)
{
	const char *host = NULL, *local = NULL;
	static char *path, what[80]; // threads use them to the process's end
	json_t *vm = NULL;
	unsigned guest = 0;
	int fd = -1;
	int code = parse_ports(c, c->argv[1], &host, &local, &guest);

	if (code)
		return code;
	path = cli_path(CLI_AWS "/microvms/%s", c->argv[0]);
	code = cli_call(c, c->argv[0], "GET", path, NULL, &vm);
	free(path);
	if (!code && strcmp(cli_str(vm, "state"), "RUNNING") != 0)
		code = cli_fail(CLI_CONFLICT, "%s: it is %s, not RUNNING",
				c->argv[0], cli_str(vm, "state"));
	json_decref(vm);
	if (!code)
		code = listen_on(host, local, &fd);
	if (code)
		return code;
	say_address(c, fd, guest);
	path =
	    cli_path(CLI_OWN "/microvms/%s/forward?port=%u", c->argv[0], guest);
	snprintf(what, sizeof(what), "forward to port %u", guest);
	code = accept_all(c, fd, path, what);
	close(fd);
	return code;
}
