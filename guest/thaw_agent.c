// thaw-agent: PID 1 of a guest, and what thawd talks to in it. See ag.h for how
// it works, docs/AGENT_PROTOCOL.md for what it speaks.
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ag.h"

static struct agent agent;

static void usage(FILE *to)
{
	fputs("Usage: thaw-agent --listen-unix PATH [--cgroup DIR] "
	      "[--keep-clock]\n"
	      "                  [--imds]\n"
	      "\n"
	      "Without options it must be PID 1 of a guest. With them it runs "
	      "as a test, on\n"
	      "any host, in that host's root and name spaces: a thaw CHANGES "
	      "the machine's\n"
	      "clock (unless --keep-clock), its host name and "
	      "/etc/machine-id.\n"
	      "\n"
	      "  --listen-unix PATH  serve this socket instead of vsock\n"
	      "  --cgroup DIR        the application's cgroup (v2), made when "
	      "missing\n"
	      "  --keep-clock        leave the clock alone\n"
	      "  --imds              the metadata service, in a network name "
	      "space of its own\n",
	      to);
}

__attribute__((noreturn)) static void run_as_init(struct agent *a)
{
	int rc;

	ag_boot_early(a);
	rc = ag_listen_vsock(a);
	if (rc < 0)
		ag_say(a, "cannot listen on vsock: %s", strerror(-rc));
	ag_boot_root(a);
	ag_loop(a);
	// PID 1 must never end: the kernel would panic. The power is off, or
	// about to be.
	for (;;)
		pause();
}

static int run_as_test(struct agent *a, const char *path, const char *cgroup,
		       bool imds)
{
	int rc;

	umask(022);
	rc = cgroup ? ag_cgroup_open(a, cgroup) : 0;
	if (rc < 0) {
		ag_say(a, "%s: %s", cgroup, strerror(-rc));
		return 1;
	}
	rc = ag_listen_unix(a, path);
	if (rc < 0) {
		ag_say(a, "%s: %s", path, strerror(-rc));
		return 1;
	}
	rc = imds ? ag_imds_open(a) : 0;
	if (rc < 0) {
		ag_say(a, "the metadata service: %s", strerror(-rc));
		return 1;
	}
	ag_loop(a);
	ag_conn_end_others(a, NULL);
	ag_conn_sweep(a);
	ag_imds_close(a);
	ag_spec_fini(&a->app.spec);
	unlink(path);
	return 0;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
	    {"listen-unix", required_argument, NULL, 'l'},
	    {"cgroup", required_argument, NULL, 'c'},
	    {"keep-clock", no_argument, NULL, 'k'},
	    {"imds", no_argument, NULL, 'i'},
	    {"help", no_argument, NULL, 'h'},
	    {NULL, 0, NULL, 0}};
	const char *path = NULL, *cgroup = NULL;
	struct agent *a = &agent;
	bool imds = false;
	int opt;

	a->epoll = epoll_create1(EPOLL_CLOEXEC);
	a->boot_id_fd = a->cg.dir = a->cg.events.fd = -1;
	a->listener.fd = a->signals.fd = a->imds.listener.fd = -1;
	a->init = getpid() == 1;
	ag_app_init(a);
	// The kernel's command line gives init words that are not for it.
	if (a->init)
		run_as_init(a);
	while ((opt = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		switch (opt) {
		case 'l':
			path = optarg;
			break;
		case 'c':
			cgroup = optarg;
			break;
		case 'k':
			a->keep_clock = true;
			break;
		case 'i':
			imds = true;
			break;
		case 'h':
			usage(stdout);
			return 0;
		default:
			usage(stderr);
			return 2;
		}
	}
	if (!path) {
		usage(stderr);
		return 2;
	}
	return run_as_test(a, path, cgroup, imds);
}
