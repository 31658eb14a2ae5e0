// thaw-pool: keeps thawd's pools of parked microVMs full.
//
// It holds no state. What shall be is thawd's registry; what is, thawd's too.
// It follows the events, parks what is missing, and that is all: who may have
// what, and what must go, thawd decides. So it may be killed at any moment and
// started again, thawd may, and a second one beside it does no harm. When it
// ends, parked microVMs stay, and can be claimed.
#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "pool.h"

#define RECONNECT_MIN_MS 100
#define RECONNECT_MAX_MS 5000

static const char usage[] =
    "usage: thaw-pool [--socket PATH] [--log-level LEVEL]\n"
    "Keeps thawd's pools full; 'thaw pool set IMAGE N' says how many microVMs\n"
    "of an image shall wait. Runs until SIGTERM; what is parked then stays.\n"
    "  --socket PATH      thawd's socket ($THAW_SOCKET, /run/thaw/thaw.sock)\n"
    "  --log-level LEVEL  error, warn, info or debug (info)\n"
    "  --help, --version\n";

static volatile sig_atomic_t stop;
static sigset_t while_waiting; // signals arrive only then

static void on_signal(int sig)
{
	(void)sig;
	stop = 1;
}

static void catch_signals(void)
{
	struct sigaction sa = {.sa_handler = on_signal};
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, &while_waiting);
	sigdelset(&while_waiting, SIGTERM);
	sigdelset(&while_waiting, SIGINT);
	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGINT, &sa, NULL);
	signal(SIGPIPE, SIG_IGN);
}

// Until the descriptor is readable (fd -1: none), the time has come, or a
// signal. UINT64_MAX: no time.
static bool wait_for(int fd, uint64_t at_ns)
{
	struct pollfd p = {fd, POLLIN, 0};
	uint64_t now = util_now_ns(), left = at_ns > now ? at_ns - now : 0;
	struct timespec ts = {(time_t)(left / 1000000000),
			      (long)(left % 1000000000)};

	return ppoll(&p, 1, at_ns == UINT64_MAX ? NULL : &ts, &while_waiting) >
	       0;
}

// Serves until thawd is gone (`e` says how) or the program is told to stop.
static void serve(struct fill *f, struct err *e)
{
	uint64_t at = 0;

	f->stale = true;
	while (!stop) {
		bool more = thawd_has_event(f->t);
		int rc;

		// With at 0: also takes a signal that came meanwhile.
		if (wait_for(f->t->events.fd, more ? 0 : at) || more) {
			json_t *ev = thawd_event(f->t, e);

			if (!ev)
				return;
			fill_event(f, ev);
			json_decref(ev);
			at = 0;
			continue;
		}
		if (stop)
			return;
		rc = fill_step(f, util_now_ns(), &at, e);
		if (rc < 0)
			return;
		if (rc > 0)
			at = 0;
		else // a stream that fell silent is noticed, too
			at = MIN(at, util_now_ns() + 10000000000ull);
	}
}

static void run(struct fill *f)
{
	uint64_t backoff_ms = RECONNECT_MIN_MS;
	bool told = false;

	while (!stop) {
		struct err e = ERR_INIT;

		if (!thawd_follow(f->t, &e)) {
			log_info("following thawd at %s", f->t->socket);
			backoff_ms = RECONNECT_MIN_MS;
			told = false;
			serve(f, &e);
			thawd_unfollow(f->t);
		}
		if (stop)
			break;
		if (!told)
			log_warn("%s; trying again", e.msg);
		told = true;
		wait_for(-1, util_now_ns() + backoff_ms * 1000000);
		backoff_ms = MIN(2 * backoff_ms, (uint64_t)RECONNECT_MAX_MS);
	}
	log_info("stopped; what is parked stays");
}

static const char *default_socket(void)
{
	const char *env = getenv("THAW_SOCKET");

	return env && *env ? env : "/run/thaw/thaw.sock";
}

// -1: go on; else the exit code.
static int parse(int argc, char **argv, const char **socket,
		 enum log_level *level)
{
	static const struct option longs[] = {
	    {"socket", required_argument, NULL, 's'},
	    {"log-level", required_argument, NULL, 'l'},
	    {"help", no_argument, NULL, 'h'},
	    {"version", no_argument, NULL, 'v'},
	    {NULL, 0, NULL, 0}};
	int c;

	while ((c = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		if (c == 's') {
			*socket = optarg;
		} else if (c == 'l' && !log_level_parse(optarg, level)) {
			continue;
		} else if (c == 'h') {
			fputs(usage, stdout);
			return 0;
		} else if (c == 'v') {
			puts("thaw-pool " THAW_VERSION);
			return 0;
		} else {
			fputs(usage, stderr);
			return 2;
		}
	}
	if (optind == argc)
		return -1;
	fputs(usage, stderr);
	return 2;
}

int main(int argc, char **argv)
{
	static struct thawd t = {.events = {.fd = -1}};
	static struct fill f = {.t = &t};
	enum log_level level = LOG_LVL_INFO;
	int code;

	t.socket = default_socket();
	code = parse(argc, argv, &t.socket, &level);
	if (code >= 0)
		return code;
	log_init("thaw-pool", level);
	catch_signals();
	run(&f);
	fill_free(&f);
	free(t.line);
	return 0;
}
