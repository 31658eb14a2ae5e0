// One build of an artifact through img.h, for test_img.py: the log goes to
// stderr, then a line of JSON to stdout. A root file system is held until stdin
// ends.
//   img_tool --mkroot P --tmp DIR [--bases DIR] [--endpoint URL] [--region R]
//            [--credentials FILE] [--network] [--arg K=V]... [--timeout S]
//            [--max-bytes N] [--uid N] [--cancel-at TEXT] [--sweep] URI
#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "img.h"

static struct eng_loop *loop;
static struct img_build *build;
static const char *cancel_at;
static bool cancelled, held;
static json_t *answer;

static void on_progress(void *ctx, const char *stage, int percent,
			const char *text)
{
	(void)ctx;
	fprintf(stderr, "[%s %d] %s\n", stage, percent, text);
}

static void on_log(void *ctx, const char *text, size_t n)
{
	(void)ctx;
	fwrite(text, 1, n, stderr);
	fflush(stderr);
	if (!cancelled && cancel_at &&
	    memmem(text, n, cancel_at, strlen(cancel_at))) {
		cancelled = true;
		img_cancel(build);
	}
}

static json_t *list(const char *const *p)
{
	json_t *j = json_array();

	for (; *p; p++)
		json_array_append_new(j, json_string(*p));
	return j;
}

static void on_done(void *ctx, const struct img_failure *f,
		    const struct img_result *r)
{
	json_t *ports = json_array();

	(void)ctx;
	if (f) {
		answer =
		    json_pack("{s:b,s:i,s:s,s:i,s:s,s:s}", "ok", 0, "rc", f->rc,
			      "reason", img_reason_name(f->reason), "line",
			      (int)f->line, "why", f->why, "tail", f->tail);
	} else {
		for (size_t i = 0; i < r->nports; i++)
			json_array_append_new(ports, json_integer(r->ports[i]));
		answer = json_pack(
		    "{s:b,s:s,s:I,s:o,s:o,s:s,s:s,s:O,s:o,s:I}", "ok", 1,
		    "rootfs", r->rootfs, "bytes", (json_int_t)r->rootfs_bytes,
		    "argv", list(r->argv), "env", list(r->env), "user", r->user,
		    "cwd", r->cwd, "ports", ports, "volumes", list(r->volumes),
		    "ms", (json_int_t)r->total_ms);
		held = true;
	}
	json_decref(ports);
	eng_loop_stop(loop);
}

static int failed(const struct err *e)
{
	printf("{\"ok\": false, \"rc\": %d, \"reason\": \"\", \"line\": 0, "
	       "\"why\": \"%s\"}\n",
	       e->code, e->msg);
	return 1;
}

int main(int argc, char **argv)
{
	static const struct option longs[] = {
	    {"mkroot", 1, NULL, 'm'},  {"tmp", 1, NULL, 't'},
	    {"bases", 1, NULL, 'b'},   {"endpoint", 1, NULL, 'e'},
	    {"region", 1, NULL, 'r'},  {"credentials", 1, NULL, 'c'},
	    {"network", 0, NULL, 'n'}, {"arg", 1, NULL, 'a'},
	    {"timeout", 1, NULL, 'T'}, {"max-bytes", 1, NULL, 'M'},
	    {"uid", 1, NULL, 'u'},     {"cancel-at", 1, NULL, 'C'},
	    {"sweep", 0, NULL, 's'},   {NULL, 0, NULL, 0}};
	static const struct img_events ev = {on_progress, on_log, on_done};
	const char *args[80] = {NULL};
	struct img_req req = {.build_args = args};
	struct img_env env = {0};
	struct err e = ERR_INIT;
	bool sweep = false;
	size_t nargs = 0;
	char byte;
	int c;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (c) {
		case 'm':
			env.mkroot_path = optarg;
			break;
		case 't':
			env.tmp_dir = optarg;
			break;
		case 'b':
			env.base_store = optarg;
			break;
		case 'e':
			req.s3.endpoint = optarg;
			break;
		case 'r':
			req.s3.region = optarg;
			break;
		case 'c':
			req.s3.credentials = optarg;
			break;
		case 'n':
			req.network = true;
			break;
		case 'a':
			args[nargs++] = optarg;
			break;
		case 'T':
			req.timeout_s = (uint32_t)atoi(optarg);
			break;
		case 'M':
			req.max_bytes = strtoull(optarg, NULL, 10);
			break;
		case 'u':
			req.peer_uid = (uid_t)atoi(optarg);
			break;
		case 'C':
			cancel_at = optarg;
			break;
		case 's':
			sweep = true;
			break;
		default:
			return 2;
		}
	}
	req.peer_gid = req.peer_uid;
	if (sweep && img_sweep(env.tmp_dir, &e))
		return failed(&e);
	if (optind == argc)
		return 0;
	req.uri = argv[optind];
	if (eng_loop_create(&loop, &e) ||
	    eng_jobs_create(&env.jobs, loop, 1, &e))
		return failed(&e);
	env.loop = loop;
	if (img_start(&build, &env, &req, &ev, NULL, &e))
		return failed(&e);
	eng_loop_run(loop);
	if (!answer || json_dumpf(answer, stdout, JSON_COMPACT))
		return 3; // a text that is no UTF-8
	printf("\n");
	fflush(stdout);
	json_decref(answer);
	if (held) {
		while (fread(&byte, 1, 1, stdin) == 1)
			;
		img_release(build);
		eng_loop_once(loop);
	}
	eng_jobs_destroy(env.jobs);
	eng_loop_destroy(loop);
	return held ? 0 : 1;
}
