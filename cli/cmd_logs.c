// thaw logs, events: streams.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli.h"

enum { EVENT_MAX_BYTES = 1024 * 1024 };

// A guest's output goes out as it is when stdout is a file or pipe; a terminal
// gets no control characters but line breaks, tabs and colours' escapes.
static void put_output(const char *p, size_t n, bool raw)
{
	if (raw) {
		fwrite(p, 1, n, stdout);
		return;
	}
	for (size_t i = 0; i < n; i++) {
		unsigned char ch = (unsigned char)p[i];

		if (ch >= 0x20 || ch == '\n' || ch == '\t')
			putchar(ch);
	}
}

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
static int copy_out(struct cli *c, const char *path)
{
	bool raw = !isatty(STDOUT_FILENO);
	struct err e = ERR_INIT;
	char buf[8192];
	struct httpc h;
	ssize_t n;
	int code = cli_open(c, &h, c->argv[0], "GET", path, NULL, NULL);

	if (code)
		return code;
	while ((n = httpc_body(&h, buf, sizeof(buf), &e)) > 0) {
		put_output(buf, (size_t)n, raw);
		if (fflush(stdout))
			break; // nobody reads any more
	}
	httpc_close(&h);
	return n < 0 ? cli_fail(CLI_FAILED, "logs: %s", e.msg) : 0;
}

int cmd_logs(struct cli *c)
{
	char *path = NULL, *full, count[40] = "";
	uint64_t tail = 0;
	int code = cli_number(c, "tail", 1000000000, &tail);

	if (!code && cli_flag(c, "build"))
		code = build_log_path(c, &path);
	else if (!code)
		path = cli_path(CLI_OWN "/microvms/%s/logs", c->argv[0]);
	if (code)
		return code;
	if (cli_flag(c, "tail"))
		snprintf(count, sizeof(count), "&tail=%llu",
			 (unsigned long long)tail);
	if (asprintf(&full, "%s?follow=%d%s", path, cli_flag(c, "follow"),
		     count) < 0)
		abort();
	free(path);
	code = copy_out(c, full);
	free(full);
	return code;
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
