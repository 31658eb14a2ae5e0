// The endpoint with fake microVMs, for test_front.py. A guest's port N is
// 127.0.0.1:N of this host. What a host name's label does:
//
//   vm*        is there at once           slow*  opens after --delay ms
//   never*     opens never                busy*  -EBUSY      gone*  -ENOENT
//   quota*     -EDQUOT                    late*  -ETIMEDOUT
//   anything else: no such microVM
//
// Tokens: "good"; "port-N"; "shell" for a shell. Standard input takes lines:
// "stats" (answered with JSON), "kill LABEL" (front_vm_gone), "end".
#include "front.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

struct vm {
	struct vm *next;
	char label[64];
	unsigned traffic;
};

struct opening {
	struct rig *rig;
	struct vm *vm;
	unsigned port;
	front_opened *cb;
	void *arg;
	struct eng_timer *timer;
};

struct rig {
	struct eng_loop *loop;
	struct front *front;
	struct vm *vms;
	unsigned delay_ms, shell_port, sndbuf, openings, cancelled;
	struct eng_watch *input;
	char line[256];
	size_t have;
};

static struct rig rig;

static bool starts(const char *s, const char *with)
{
	return strncmp(s, with, strlen(with)) == 0;
}

static struct vm *vm_of(const char *label, bool make)
{
	struct vm *v = rig.vms;

	while (v && strcmp(v->label, label) != 0)
		v = v->next;
	if (v || !make)
		return v;
	v = calloc(1, sizeof(*v));
	if (!v)
		abort();
	snprintf(v->label, sizeof(v->label), "%s", label);
	v->next = rig.vms;
	rig.vms = v;
	return v;
}

static void *find(void *ctx, const char *label)
{
	static const char *const known[] = {"vm",   "slow",  "never", "busy",
					    "gone", "quota", "late"};

	(void)ctx;
	for (size_t i = 0; i < ARRAY_SIZE(known); i++) {
		if (starts(label, known[i]))
			return vm_of(label, true);
	}
	return NULL;
}

static enum front_verdict allow(void *ctx, void *vm, const char *token,
				size_t n, unsigned port, bool shell)
{
	char want[32];

	(void)ctx;
	(void)vm;
	if (!token)
		return FRONT_UNAUTHORIZED;
	if (shell)
		return n == 5 && memcmp(token, "shell", 5) == 0
			   ? FRONT_OK
			   : FRONT_FORBIDDEN;
	if (n == 4 && memcmp(token, "good", 4) == 0)
		return FRONT_OK;
	snprintf(want, sizeof(want), "port-%u", port);
	if (n > 5 && memcmp(token, "port-", 5) == 0)
		return strlen(want) == n && memcmp(token, want, n) == 0
			   ? FRONT_OK
			   : FRONT_PORT;
	return FRONT_FORBIDDEN;
}

static int connect_to(unsigned port)
{
	struct sockaddr_in sa = {.sin_family = AF_INET,
				 .sin_port = htons((uint16_t)port)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (rig.sndbuf)
		setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &rig.sndbuf,
			   sizeof(rig.sndbuf));
	sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (fd < 0 || connect(fd, (struct sockaddr *)&sa, sizeof(sa))) {
		int rc = -errno;

		if (fd >= 0)
			close(fd);
		return rc;
	}
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	return fd;
}

static void opening_free(struct opening *o)
{
	rig.openings--;
	eng_timer_destroy(o->timer);
	free(o);
}

static void open_now(void *ctx)
{
	struct opening *o = ctx;
	front_opened *cb = o->cb;
	const char *label = o->vm->label;
	void *arg = o->arg;
	int fd;

	if (starts(label, "busy"))
		fd = -EBUSY;
	else if (starts(label, "gone"))
		fd = -ENOENT;
	else if (starts(label, "quota"))
		fd = -EDQUOT;
	else if (starts(label, "late"))
		fd = -ETIMEDOUT;
	else
		fd = connect_to(o->port);
	opening_free(o);
	cb(arg, fd, NULL);
}

static void *open_port(void *ctx, void *vm, unsigned port, front_opened *cb,
		       void *arg)
{
	struct opening *o = calloc(1, sizeof(*o));

	(void)ctx;
	if (!o)
		abort();
	*o = (struct opening){&rig, vm, port, cb, arg, NULL};
	rig.openings++;
	o->timer = eng_timer_create(rig.loop, open_now, o, "rig open");
	if (starts(o->vm->label, "slow"))
		eng_timer_set(o->timer, rig.delay_ms);
	else if (!starts(o->vm->label, "never"))
		eng_timer_set(o->timer, 0);
	return o;
}

static void *open_shell(void *ctx, void *vm, front_opened *cb, void *arg)
{
	return open_port(ctx, vm, rig.shell_port, cb, arg);
}

static void cancel(void *ctx, void *opening, bool shell)
{
	(void)ctx;
	(void)shell;
	rig.cancelled++;
	opening_free(opening);
}

static void traffic(void *ctx, void *vm)
{
	(void)ctx;
	((struct vm *)vm)->traffic++;
}

static const struct front_ops ops = {
    .find = find,
    .allow = allow,
    .open = open_port,
    .shell = open_shell,
    .cancel = cancel,
    .traffic = traffic,
};

// --- standard input --------------------------------------------------------------

static void say_stats(void)
{
	struct front_stats s;
	unsigned traffic = 0;

	front_stats(rig.front, &s);
	for (struct vm *v = rig.vms; v; v = v->next)
		traffic += v->traffic;
	printf("{\"conns\":%u,\"strangers\":%u,\"waiting\":%u,"
	       "\"exchanges\":%u,\"opening\":%u,"
	       "\"accepted\":%llu,\"requests\":%llu,\"refused\":%llu,"
	       "\"openings\":%u,\"cancelled\":%u,\"traffic\":%u}\n",
	       s.conns, s.strangers, s.waiting, s.exchanges, s.opening,
	       (unsigned long long)s.accepted, (unsigned long long)s.requests,
	       (unsigned long long)s.refused, rig.openings, rig.cancelled,
	       traffic);
	fflush(stdout);
}

static void command(const char *line)
{
	if (strcmp(line, "stats") == 0) {
		say_stats();
	} else if (starts(line, "kill ")) {
		struct vm *v = vm_of(line + 5, false);

		if (v)
			front_vm_gone(rig.front, v);
		puts("{}");
		fflush(stdout);
	} else if (strcmp(line, "end") == 0) {
		eng_loop_stop(rig.loop);
	}
}

static void on_input(void *ctx, unsigned what)
{
	ssize_t n =
	    read(0, rig.line + rig.have, sizeof(rig.line) - 1 - rig.have);
	char *nl;

	(void)ctx;
	(void)what;
	if (n <= 0) {
		eng_loop_stop(rig.loop);
		return;
	}
	rig.have += (size_t)n;
	rig.line[rig.have] = '\0';
	while ((nl = strchr(rig.line, '\n'))) {
		*nl++ = '\0';
		command(rig.line);
		rig.have -= (size_t)(nl - rig.line);
		memmove(rig.line, nl, rig.have + 1);
	}
}

// --- flags: --name value ------------------------------------------------------------

static unsigned *number_for(struct front_limits *l, const char *name)
{
	const struct {
		const char *name;
		unsigned *at;
	} all[] = {
	    {"--delay", &rig.delay_ms},
	    {"--shell-port", &rig.shell_port},
	    {"--sndbuf", &rig.sndbuf}, // towards guests
	    {"--head-ms", &l->head_ms},
	    {"--idle-ms", &l->idle_ms},
	    {"--body-ms", &l->body_ms},
	    {"--stall-ms", &l->stall_ms},
	    {"--open-ms", &l->open_ms},
	    {"--answer-ms", &l->answer_ms},
	    {"--relay-ms", &l->relay_ms},
	    {"--half-closed-ms", &l->half_closed_ms},
	    {"--max-conns", &l->max_conns},
	    {"--max-strangers", &l->max_strangers},
	    {"--max-per-vm", &l->max_per_vm},
	};

	for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
		if (strcmp(name, all[i].name) == 0)
			return all[i].at;
	}
	fprintf(stderr, "front-rig: unknown flag %s\n", name);
	exit(2);
}

int main(int argc, char **argv)
{
	struct front_config cfg = {
	    .listen = "127.0.0.1:0", .domain = "localhost", .ops = &ops};
	struct err e = ERR_INIT;

	signal(SIGPIPE, SIG_IGN);
	rig.delay_ms = 300;
	for (int i = 1; i + 1 < argc; i += 2) {
		if (strcmp(argv[i], "--listen") == 0)
			cfg.listen = argv[i + 1];
		else if (strcmp(argv[i], "--domain") == 0)
			cfg.domain = argv[i + 1];
		else if (strcmp(argv[i], "--tls-dir") == 0)
			cfg.tls_dir = argv[i + 1];
		else if (strcmp(argv[i], "--cert") == 0)
			cfg.cert = argv[i + 1];
		else if (strcmp(argv[i], "--key") == 0)
			cfg.key = argv[i + 1];
		else if (strcmp(argv[i], "--plain") == 0)
			cfg.plain = strcmp(argv[i + 1], "yes") == 0;
		else
			*number_for(&cfg.limits, argv[i]) =
			    (unsigned)atoi(argv[i + 1]);
	}
	if (eng_loop_create(&rig.loop, &e)) {
		fprintf(stderr, "front-rig: %s\n", e.msg);
		return 1;
	}
	cfg.loop = rig.loop;
	if (front_create(&rig.front, &cfg, &e)) {
		fprintf(stderr, "front-rig: %s\n", e.msg);
		eng_loop_destroy(rig.loop);
		return 1;
	}
	rig.input =
	    eng_watch_create(rig.loop, 0, ENG_READ, on_input, NULL, "rig");
	printf("{\"port\":%u,\"ca\":\"%s\"}\n", front_port(rig.front),
	       front_ca_path(rig.front) ? front_ca_path(rig.front) : "");
	fflush(stdout);
	eng_loop_run(rig.loop);
	front_destroy(rig.front);
	eng_watch_destroy(rig.input);
	eng_loop_destroy(rig.loop);
	while (rig.vms) {
		struct vm *v = rig.vms;

		rig.vms = v->next;
		free(v);
	}
	return 0;
}
