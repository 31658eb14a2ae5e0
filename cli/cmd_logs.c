// thaw logs, events: streams.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli.h"

enum { EVENT_MAX_BYTES = 1024 * 1024 };

// IMAGE or IMAGE:VERSION; without one, the newest. Sets *out, the log's path.
static int build_log_path(struct cli *c, char **out)
{
	char *version, *image = cli_image_version(c->argv[0], &version);
	char *path = cli_path(CLI_OWN "/images/%s", image);
	const json_t *all, *last;
	json_t *j = NULL;
	int code = 0;

	if (!version)
		code = cli_call(c, image, "GET", path, NULL, &j);
	free(path);
	all = json_object_get(j, "versions");
	last = json_array_get(all, json_array_size(all) - 1);
	if (!code && !version && !last)
		code = cli_fail(CLI_NOT_FOUND, "%s: it has no versions", image);
	if (!code)
		*out = cli_path(CLI_OWN "/images/%s/versions/%s/log", image,
				version ? version : cli_str(last, "version"));
	json_decref(j);
	free(image);
	return code;
}

// All of the answer's body to standard output.
static int copy_out(struct cli *c, const char *what, const char *path)
{
	bool raw = !isatty(STDOUT_FILENO);
	struct err e = ERR_INIT;
	char buf[8192];
	struct httpc h;
	ssize_t n;
	int code = cli_open(c, &h, what, "GET", path, NULL, NULL);

	if (code)
		return code;
	while ((n = httpc_body(&h, buf, sizeof(buf), &e)) > 0) {
		cli_put_output(buf, (size_t)n, raw);
		if (fflush(stdout))
			break; // nobody reads any more
	}
	httpc_close(&h);
	return n < 0 ? cli_fail(CLI_FAILED, "logs: %s", e.msg) : 0;
}

// What says whose log is meant is given once.
static int check_whose(const struct cli *c)
{
	bool group = cli_flag(c, "group");

	if (cli_flag(c, "stream") && !group)
		return cli_usage(c, "--stream goes with --group");
	if (group && (c->argc || cli_flag(c, "build")))
		return cli_usage(c, "--group goes without ID and --build");
	if (!group && !c->argc)
		return cli_usage(c, "ID or --group is missing");
	return 0;
}

int cmd_logs(struct cli *c)
{
	cleanup_free char *path = NULL, *full = NULL, *one = NULL;
	char query[64] = "", count[40] = "";
	uint64_t tail = 0;
	int code = check_whose(c);

	if (!code)
		code = cli_number(c, "tail", 1000000000, &tail);
	if (code)
		return code;
	if (cli_flag(c, "tail"))
		snprintf(count, sizeof(count), "&tail=%llu",
			 (unsigned long long)tail);
	snprintf(query, sizeof(query), "?follow=%d%s", cli_flag(c, "follow"),
		 count);
	if (cli_flag(c, "group"))
		code = cli_group_logs(c, query, &one);
	if (cli_flag(c, "build"))
		code = build_log_path(c, &path);
	else if (one || c->argc)
		path = cli_path(CLI_OWN "/microvms/%s/logs",
				one ? one : c->argv[0]);
	if (code || !path)
		return code;
	if (asprintf(&full, "%s%s", path, query) < 0)
		abort();
	return copy_out(c, one ? one : c->argv[0], full);
}

static void show_event(const json_t *ev)
{
	double t = json_number_value(json_object_get(ev, "time"));
	const char *name = cli_str(ev, "name");
	time_t sec = (time_t)t;
	char when[32] = "-", id[64];
	struct tm tm;

	if (localtime_r(&sec, &tm))
		strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S", &tm);
	printf("%s  ", when);
	if (*cli_str(ev, "id"))
		cli_put(stdout,
			cli_short_id(cli_str(ev, "id"), id, sizeof(id)));
	else
		cli_put(stdout, cli_str(ev, "image"));
	if (*name) {
		putchar(' ');
		cli_put(stdout, name);
	}
	printf("  ");
	cli_put(stdout, cli_str(ev, "type"));
	if (*cli_str(ev, "to")) {
		printf("  ");
		cli_put(stdout,
			*cli_str(ev, "from") ? cli_str(ev, "from") : "-");
		printf(" -> ");
		cli_put(stdout, cli_str(ev, "to"));
	}
	if (*cli_str(ev, "reason")) {
		printf("  ");
		cli_put(stdout, cli_str(ev, "reason"));
	}
	if (*cli_str(ev, "detail")) {
		printf(": ");
		cli_put(stdout, cli_str(ev, "detail"));
	}
	putchar('\n');
}

static int one_event(struct cli *c, const char *line)
{
	json_t *ev = json_loads(line, 0, NULL);

	if (!ev)
		return cli_fail(CLI_FAILED, "events: thawd sent a malformed "
					    "line");
	if (c->json)
		cli_print_json(ev, false);
	else
		show_event(ev);
	json_decref(ev);
	return 0;
}

int cmd_events(struct cli *c)
{
	const char *since = cli_value(c, "since");
	cleanup_free char *line = NULL;
	struct err e = ERR_INIT;
	size_t cap = 0;
	struct httpc h;
	char *path;
	int code;

	path = since ? cli_path(CLI_OWN "/events?follow=%u&since=%s",
				(unsigned)cli_flag(c, "follow"), since)
		     : cli_path(CLI_OWN "/events?follow=%u",
				(unsigned)cli_flag(c, "follow"));
	code = cli_open(c, &h, "events", "GET", path, NULL, NULL);
	free(path);
	if (code)
		return code;
	while (!code && httpc_line(&h, &line, &cap, EVENT_MAX_BYTES, &e) > 0) {
		if (*line)
			code = one_event(c, line);
		if (fflush(stdout))
			break;
	}
	httpc_close(&h);
	if (!code && e.code)
		code = cli_fail(CLI_FAILED, "events: %s", e.msg);
	return code;
}
