// thaw logs --group: the logs of all microVMs that log to one group, each line
// after the name of its own.
//
// A log has no times. So the logs come one after the other, in the order in which
// their microVMs were run; with --follow, each line as it comes. It goes out when it
// is whole, or its log is at its end: half of one would be torn by another's. Those
// that are run meanwhile join.
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

enum {
	LINE_MAX_BYTES = 64 * 1024, // a longer one is cut
	JOIN_MS = 2000,		    // how often new ones are looked for
};

struct source {
	struct source *next;
	char *id, *label;
	struct httpc h;
	bool open;
	char *line; // LINE_MAX_BYTES; what of a line has come
	size_t len;
};

struct group {
	struct cli *c;
	char *list; // the request that lists its microVMs
	struct source *all, **last;
	int width; // of the labels
	bool raw;  // no terminal
};

static void put_line(struct group *g, struct source *s)
{
	printf("%-*s | ", g->width, s->label);
	cli_put_output(s->line, s->len, g->raw);
	putchar('\n');
	s->len = 0;
}

static void take(struct group *g, struct source *s, const char *p, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (p[i] != '\n')
			s->line[s->len++] = p[i];
		if (p[i] == '\n' || s->len == LINE_MAX_BYTES)
			put_line(g, s);
	}
}

static void end(struct group *g, struct source *s)
{
	if (s->len)
		put_line(g, s);
	httpc_close(&s->h);
	s->open = false;
}

// An exit code.
static int read_some(struct group *g, struct source *s)
{
	struct err e = ERR_INIT;
	char buf[8192];
	ssize_t n = httpc_body(&s->h, buf, sizeof(buf), &e);

	if (n > 0) {
		take(g, s, buf, (size_t)n);
		return 0;
	}
	end(g, s);
	return n < 0 ? cli_fail(CLI_FAILED, "logs: %s: %s", s->label, e.msg)
		     : 0;
}

// What has come, without waiting.
static int read_here(struct group *g, struct source *s, bool polled)
{
	int code = 0;

	while (!code && s->open && httpc_ready(&s->h, polled)) {
		code = read_some(g, s);
		polled = false;
	}
	return code;
}

static int open_log(struct group *g, struct source *s, const char *query)
{
	char *path = cli_path(CLI_OWN "/microvms/%s/logs", s->id), *full;
	int code;

	if (asprintf(&full, "%s%s", path, query) < 0)
		abort();
	code = cli_open(g->c, &s->h, s->id, "GET", full, NULL, NULL);
	s->open = !code;
	free(full);
	free(path);
	return code;
}

static void add(struct group *g, const json_t *vm)
{
	const char *id = cli_str(vm, "microvmId"), *name;
	struct source *s = calloc(1, sizeof(*s));
	char shorter[64];

	name = cli_str(json_object_get(vm, "thaw"), "name");
	if (!*name)
		name = cli_short_id(id, shorter, sizeof(shorter));
	if (!s || !(s->id = strdup(id)) || !(s->label = strdup(name)) ||
	    !(s->line = malloc(LINE_MAX_BYTES)))
		abort();
	s->h.fd = -1;
	g->width = MAX(g->width, (int)strlen(name));
	*g->last = s;
	g->last = &s->next;
}

static bool knows(const struct group *g, const char *id)
{
	const struct source *s = g->all;

	while (s && strcmp(s->id, id))
		s = s->next;
	return s != NULL;
}

// Adds those that are not known yet. Returns the first of them in *fresh.
static int look(struct group *g, struct source **fresh)
{
	struct source **at = g->last;
	json_t *vms, *vm;
	size_t i;
	int code = cli_list(g->c, "logs", g->list, &vms);

	*fresh = NULL;
	if (code)
		return code;
	json_array_foreach(vms, i, vm)
	{
		if (!knows(g, cli_str(vm, "microvmId")))
			add(g, vm);
	}
	json_decref(vms);
	*fresh = *at;
	return 0;
}

// Waits for more of the open ones; 0 when none is open. -1: nobody reads.
static int wait_more(struct group *g, int *code)
{
	struct pollfd fds[1024];
	struct source *of[1024];
	nfds_t n = 0;
	int got;

	for (struct source *s = g->all; s && n < ARRAY_SIZE(fds); s = s->next) {
		if (!s->open)
			continue;
		fds[n] = (struct pollfd){.fd = s->h.fd, .events = POLLIN};
		of[n++] = s;
	}
	if (!n)
		return 0;
	got = poll(fds, n, JOIN_MS);
	for (nfds_t i = 0; got > 0 && i < n; i++) {
		int rc = fds[i].revents ? read_here(g, of[i], true) : 0;

		*code = rc ? rc : *code;
	}
	return fflush(stdout) ? -1 : 1;
}

// `fresh` and those after it, with what they have had so far.
static int begin(struct group *g, struct source *fresh, const char *query)
{
	bool follow = cli_flag(g->c, "follow");
	int code = 0;

	for (struct source *s = fresh; s; s = s->next) {
		int rc = open_log(g, s, query);

		while (!rc && s->open && !follow)
			rc = read_some(g, s);
		if (!rc && s->open)
			rc = read_here(g, s, false);
		code = rc ? rc : code;
	}
	return fflush(stdout) ? CLI_FAILED : code;
}

static int follow_all(struct group *g)
{
	uint64_t looked = util_now_ns(), now;
	struct source *fresh;
	int code = 0, rc;

	for (;;) {
		rc = wait_more(g, &code);
		now = util_now_ns();
		if (rc < 0)
			return CLI_FAILED;
		if (rc && now - looked < JOIN_MS * 1000000ull)
			continue;
		looked = now;
		rc = look(g, &fresh) ? -1 : rc;
		if (rc < 0 || (!rc && !fresh))
			return rc ? CLI_FAILED : code;
		rc = begin(g, fresh, "?follow=1");
		code = rc ? rc : code;
	}
}

static void drop(struct group *g)
{
	struct source *s;

	while ((s = g->all)) {
		g->all = s->next;
		httpc_close(&s->h);
		free(s->id);
		free(s->label);
		free(s->line);
		free(s);
	}
	free(g->list);
}

static char *list_path(const char *group, const char *stream)
{
	return stream ? cli_path(CLI_AWS "/microvms?logGroup=%s&logStream=%s",
				 group, stream)
		      : cli_path(CLI_AWS "/microvms?logGroup=%s", group);
}

int cli_group_logs(struct cli *c, const char *query, char **one)
{
	const char *name = cli_value(c, "group");
	const char *stream = cli_value(c, "stream");
	struct group g = {.c = c, .raw = !isatty(STDOUT_FILENO)};
	struct source *fresh;
	int code;

	g.last = &g.all;
	g.list = list_path(name, stream);
	code = look(&g, &fresh);
	if (!code && !fresh)
		code = cli_fail(
		    CLI_NOT_FOUND, "logs: no microVM logs to group %s%s%s",
		    name, stream ? ", stream " : "", stream ? stream : "");
	else if (!code && stream && !fresh->next)
		*one = strdup(fresh->id);
	else if (!code)
		code = begin(&g, fresh, query);
	if (!code && !*one && cli_flag(c, "follow"))
		code = follow_all(&g);
	drop(&g);
	return code;
}
