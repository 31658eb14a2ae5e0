// thaw-bench: measures thaw and its floors in one run and reports the ratios.
#include <errno.h>
#include <getopt.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "bench.h"

enum { MAX_RESULTS = 64 };

static const struct {
	const char *name, *what;
	int (*run)(const struct bench_options *o, struct result *results,
		   size_t max, struct err *e);
} measurements[] = {
    {"restore", "request to first guest exit, fresh and from a shell",
     bench_restore},
};

static void usage(FILE *out)
{
	fprintf(out,
		"usage: thaw-bench [options] [MEASUREMENT...]\n\n"
		"Measures thaw and its floor programs in one run, interleaved, and\n"
		"prints each figure as a ratio to its floor. Starts a thawd of its own\n"
		"(needs root and /dev/kvm). Without a name it runs all of:\n\n");
	for (size_t i = 0; i < ARRAY_SIZE(measurements); i++)
		fprintf(out, "  %-10s %s\n", measurements[i].name,
			measurements[i].what);
	fprintf(out,
		"\n  -n, --runs N      samples of each figure (default 200)\n"
		"  -q, --quick       40 samples: a first look, not a result\n"
		"  -j, --json FILE   write host and results as JSON too\n"
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

static int write_json(const char *path, const struct result *r, size_t n)
{
	json_t *j = report_json(r, n);
	int rc = json_dump_file(j, path, JSON_INDENT(2));

	json_decref(j);
	if (rc < 0)
		log_err("cannot write %s: %m", path);
	return rc;
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

static int run_all(const struct bench_options *o, char **names,
		   const char *json)
{
	struct result results[MAX_RESULTS];
	struct err e = ERR_INIT;
	size_t n = 0;

	for (size_t i = 0; i < ARRAY_SIZE(measurements); i++) {
		int rc;

		if (!wanted(measurements[i].name, names))
			continue;
		fprintf(stderr, "measuring %s, %u runs\n",
			measurements[i].name, o->runs);
		rc = measurements[i].run(o, results + n, MAX_RESULTS - n, &e);
		if (rc < 0) {
			log_err("%s: %s", measurements[i].name, e.msg);
			return 1;
		}
		n += (size_t)rc;
	}
	if (getenv("KVMBOX"))
		printf("These times are emulated (kvmbox): compare ratios "
		       "only.\n");
	report_table(stdout, results, n);
	return json && write_json(json, results, n) < 0 ? 1 : 0;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
	    {"runs", required_argument, NULL, 'n'},
	    {"quick", no_argument, NULL, 'q'},
	    {"json", required_argument, NULL, 'j'},
	    {"help", no_argument, NULL, 'h'},
	    {NULL, 0, NULL, 0}};
	static char bin_dir[PATH_MAX];
	struct bench_options o = {.bin_dir = bin_dir, .runs = 200};
	const char *json = NULL;
	int c;

	log_init("thaw-bench", LOG_LVL_INFO);
	while ((c = getopt_long(argc, argv, "n:qj:h", options, NULL)) != -1) {
		switch (c) {
		case 'n':
			o.runs = (unsigned)strtoul(optarg, NULL, 10);
			break;
		case 'q':
			o.runs = 40;
			break;
		case 'j':
			json = optarg;
			break;
		case 'h':
			usage(stdout);
			return 0;
		default:
			usage(stderr);
			return 2;
		}
	}
	if (o.runs < 1 || o.runs > 1000000) {
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
	return run_all(&o, argv + optind, json);
}
