// thaw-bench: measures thaw, its floors and its peers in one run and reports the
// ratios.
#include <errno.h>
#include <getopt.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "bench.h"
#include "peer.h"

enum { BINARY = 256 }; // first of the long options without a letter

static const struct {
	const char *name, *what;
	int (*run)(const struct bench_options *o, struct report *r,
		   struct err *e);
} measurements[] = {
    {"restore", "request to first guest exit, fresh and from a shell",
     bench_restore},
    {"touch", "a page's first touch in a guest, the template in memory",
     bench_touch},
    {"cold", "request until a guest has read a working set off the disk",
     bench_cold},
    {"suspend", "how long a guest stands still while it is suspended",
     bench_suspend},
    {"clones", "what each of many clones takes from the host's memory",
     bench_clones},
    {"rate", "restores a second, and latency beside a cold load", bench_rate},
    {"store", "what the store keeps of an image and of its versions",
     bench_store},
    {"pool", "8 clients that claim parked microVMs at once", bench_pool},
    {"peers", "other VMMs' restores of the same guest, beside thaw's",
     bench_peers},
};

// Programs of peers that were given on the command line.
static struct {
	const char *option, *path;
} binaries[] = {
    {"qemu", NULL}, {"firecracker", NULL}, {"cloud-hypervisor", NULL}};

static const char *peer_binary(const char *option)
{
	for (size_t i = 0; i < ARRAY_SIZE(binaries); i++) {
		if (strcmp(binaries[i].option, option) == 0)
			return binaries[i].path;
	}
	return NULL;
}

static void usage(FILE *out)
{
	fprintf(out,
		"usage: thaw-bench [options] [MEASUREMENT...]\n\n"
		"Measures thaw, its floor programs and its peers in one run,\n"
		"interleaved, and prints each figure as a ratio. Starts a "
		"thawd of\n"
		"its own (needs root and /dev/kvm). Without a name it runs all "
		"of:\n\n");
	for (size_t i = 0; i < ARRAY_SIZE(measurements); i++)
		fprintf(out, "  %-10s %s\n", measurements[i].name,
			measurements[i].what);
	fprintf(out, "\n  -n, --runs N      samples of the quickest figures "
		     "(default 200); slow\n"
		     "                    ones take fewer\n"
		     "  -q, --quick       few samples, small sizes: a first "
		     "look, no result\n"
		     "  -j, --json FILE   write host and results as JSON too\n"
		     "  -r, --report DIR  write a report with plots\n"
		     "  -f, --from FILE   take the results of an earlier "
		     "--json into this report\n"
		     "                    (may be repeated); alone, "
		     "nothing is measured\n"
		     "  -p, --peers LIST  only these peers, comma-separated; "
		     "\"\" for none\n"
		     "  --firecracker PATH, --cloud-hypervisor PATH, --qemu "
		     "PATH\n"
		     "                    programs of peers that are not in "
		     "$PATH\n"
		     "  -h, --help        this text\n");
}

static int find_bin_dir(char *dir, size_t cap)
{
	ssize_t n = readlink("/proc/self/exe", dir, cap - 1);

	if (n < 0)
		return -errno;
	dir[n] = '\0';
	dirname(dir);
	return 0;
}

static bool wanted(const char *name, char **argv)
{
	if (!*argv)
		return true;
	for (; *argv; argv++) {
		if (strcmp(*argv, name) == 0)
			return true;
	}
	return false;
}

static int check_names(char **argv)
{
	for (; *argv; argv++) {
		bool known = false;

		for (size_t i = 0; i < ARRAY_SIZE(measurements); i++)
			known |= strcmp(*argv, measurements[i].name) == 0;
		if (!known) {
			fprintf(stderr,
				"thaw-bench: no measurement is named %s: see "
				"thaw-bench --help\n",
				*argv);
			return 2;
		}
	}
	return 0;
}

// What was measured before something failed is worth its report.
static int measure(const struct bench_options *o, char **names,
		   struct report *r)
{
	struct err e = ERR_INIT;
	int failed = 0;

	json_decref(r->host); // of earlier results: now it is this one
	r->host = NULL;
	for (size_t i = 0; i < ARRAY_SIZE(measurements); i++) {
		size_t before = r->n;

		if (!wanted(measurements[i].name, names))
			continue;
		fprintf(stderr, "measuring %s\n", measurements[i].name);
		if (measurements[i].run(o, r, &e)) {
			log_err("%s: %s", measurements[i].name, e.msg);
			report_leave_out(r, measurements[i].name, e.msg);
			r->n = before;
			failed = 1;
		}
	}
	return failed;
}

static int report(struct report *r, const char *json, const char *dir)
{
	struct err e = ERR_INIT;
	int failed = 0;

	if (getenv("KVMBOX"))
		printf("These times are emulated (kvmbox): compare ratios "
		       "only.\n");
	report_table(stdout, r);
	if (json && report_save(json, r, &e)) {
		log_err("%s", e.msg);
		failed = 1;
	}
	if (dir && report_write(dir, r, &e)) {
		log_err("%s", e.msg);
		failed = 1;
	}
	return failed;
}

struct args {
	struct bench_options o;
	const char *json, *dir;
	bool loaded; // results of earlier runs
	struct report r;
};

static const char letters[] = "n:qj:r:f:p:h";
static const struct option options[] = {
    {"runs", required_argument, NULL, 'n'},
    {"quick", no_argument, NULL, 'q'},
    {"json", required_argument, NULL, 'j'},
    {"report", required_argument, NULL, 'r'},
    {"from", required_argument, NULL, 'f'},
    {"help", no_argument, NULL, 'h'},
    {"peers", required_argument, NULL, 'p'},
    {"qemu", required_argument, NULL, BINARY},
    {"firecracker", required_argument, NULL, BINARY + 1},
    {"cloud-hypervisor", required_argument, NULL, BINARY + 2},
    {NULL, 0, NULL, 0}};

static int load(struct args *a, const char *path)
{
	struct err e = ERR_INIT;

	a->loaded = true;
	if (!report_load(&a->r, path, &e))
		return -1;
	log_err("%s", e.msg);
	return 1;
}

// The exit code of one that ends the program, or -1.
static int take_option(struct args *a, int c)
{
	switch (c) {
	case 'n':
		a->o.runs = (unsigned)strtoul(optarg, NULL, 10);
		return -1;
	case 'q':
		a->o.quick = true;
		a->o.runs = 40;
		return -1;
	case 'j':
		a->json = optarg;
		return -1;
	case 'r':
		a->dir = optarg;
		return -1;
	case 'f':
		return load(a, optarg);
	case 'p':
		a->o.peers = optarg;
		return -1;
	case BINARY:
	case BINARY + 1:
	case BINARY + 2:
		binaries[c - BINARY].path = optarg;
		return -1;
	case 'h':
		usage(stdout);
		return 0;
	default:
		usage(stderr);
		return 2;
	}
}

int main(int argc, char **argv)
{
	static char bin_dir[PATH_MAX];
	static struct args a = {
	    .o = {.bin_dir = bin_dir, .peer_binary = peer_binary, .runs = 200}};
	int c, failed = 0;

	log_init("thaw-bench", LOG_LVL_INFO);
	while ((c = getopt_long(argc, argv, letters, options, NULL)) != -1) {
		int code = take_option(&a, c);

		if (code >= 0)
			return code;
	}
	if (a.o.runs < 1 || a.o.runs > 1000000) {
		fprintf(stderr, "thaw-bench: --runs must be between 1 and "
				"1000000\n");
		return 2;
	}
	if (check_names(argv + optind))
		return 2;
	if (find_bin_dir(bin_dir, sizeof(bin_dir))) {
		log_err("cannot find my own executable: %m");
		return 1;
	}
	if (!a.loaded || argv[optind])
		failed = measure(&a.o, argv + optind, &a.r);
	failed |= report(&a.r, a.json, a.dir);
	report_free(&a.r);
	return failed;
}
