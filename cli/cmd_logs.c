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

int cmd_logs(struct cli *c)
{
	bool raw = !isatty(STDOUT_FILENO);
	struct err e = ERR_INIT;
	uint64_t tail = 0;
	char buf[8192], *path, *full;
	struct httpc h;
	ssize_t n;
	int code = cli_number(c, "tail", 1000000000, &tail);

	if (code)
		return code;
	path = cli_path(CLI_OWN "/microvms/%s/logs", c->argv[0]);
	if (asprintf(&full, "%s?follow=%d", path, cli_flag(c, "follow")) < 0)
		abort();
	free(path);
	path = full;
	if (cli_flag(c, "tail") &&
	    asprintf(&full, "%s&tail=%llu", path, (unsigned long long)tail) < 0)
		abort();
	if (full != path)
		free(path);
	code = cli_open(c, &h, c->argv[0], "GET", full, NULL, NULL);
	free(full);
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
