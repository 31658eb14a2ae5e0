// What a build says while it goes on: progress, as a bar on a terminal; its log,
// line by line; and what came of it.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

enum {
	LINE_MAX_BYTES = 1024 * 1024,
	LOG_LINE_MAX = 4096, // longer ones are shown in pieces
	LAST_LINES = 12,     // of the log, said again when it fails
};

struct show {
	struct cli *c;
	struct cli_progress progress;
	bool log; // the log is shown as it comes
	char line[LOG_LINE_MAX];
	size_t len;
	char *last[LAST_LINES]; // a ring, owned
	size_t nlines;
};

// --- the log -------------------------------------------------------------

static void end_line(struct show *s)
{
	char **slot = &s->last[s->nlines % LAST_LINES];

	s->line[s->len] = '\0';
	s->len = 0;
	if (s->log) {
		cli_progress_clear(&s->progress);
		fprintf(stderr, "%s\n", s->line);
		cli_progress_again(&s->progress);
	}
	free(*slot);
	*slot = strdup(s->line);
	s->nlines++;
}

// Log text comes in pieces of any length; a guest's or a RUN step's, and so it
// is shown without control characters.
static void take_log(struct show *s, const char *text)
{
	for (; *text; text++) {
		unsigned char ch = (unsigned char)*text;

		if (ch == '\n' || s->len == sizeof(s->line) - 1)
			end_line(s);
		if (ch >= 0x20 && ch != 0x7f)
			s->line[s->len++] = (char)ch;
		else if (ch == '\t')
			s->line[s->len++] = ' ';
	}
}

// For who has not seen it go by.
static void say_last_lines(struct show *s)
{
	size_t n = MIN(s->nlines, (size_t)LAST_LINES);

	if (s->log || !n)
		return;
	fputs("thaw: build: its log ends:\n", stderr);
	for (size_t i = s->nlines - n; i < s->nlines; i++)
		fprintf(stderr, "  %s\n",
			s->last[i % LAST_LINES] ? s->last[i % LAST_LINES] : "");
}

// --- its end -------------------------------------------------------------

static void show_image(struct cli *c, const json_t *image)
{
	const json_t *sizes = json_object_get(image, "sizes");
	double raw = (double)(cli_int(sizes, "memoryNonZeroBytes", 0) +
			      cli_int(sizes, "diskNonZeroBytes", 0));
	char a[32], b[32];

	if (c->json) {
		cli_print_json(image, false);
		return;
	}
	cli_put(stdout, c->argv[0]);
	putchar(' ');
	cli_put(stdout, cli_str(image, "version"));
	printf(": %s of pages, %s stored, built in %.1f s\n",
	       cli_mib_text(raw, a, sizeof(a)),
	       cli_mib_text((double)cli_int(sizes, "storedBytes", 0), b,
			    sizeof(b)),
	       (double)cli_int(sizes, "totalMs", 0) / 1000);
}

// "thaw: build: CONTAINER_BUILD_FAILED, Dockerfile line 5: RUN make: ...".
// The message may name the line itself. The verb's PATH is a file's: what AWS's
// reasons call a path that cannot be had, as if it were S3's, is not said.
static int show_error(struct show *s, const json_t *error)
{
	const char *reason = cli_str(error, "reason");
	const char *text = cli_str(error, "message");
	bool named = *reason && strncmp(reason, "S3_", 3) != 0;
	int64_t line = cli_int(error, "line", 0);
	char what[160] = "build", where[64];

	if (named)
		snprintf(what, sizeof(what), "build: %.100s", reason);
	snprintf(where, sizeof(where), "Dockerfile line %lld", (long long)line);
	if (line > 0 && !strstr(text, where)) {
		size_t n = strlen(what);

		snprintf(what + n, sizeof(what) - n, "%s %s", named ? "," : ":",
			 where);
	}
	if (s->len)
		end_line(s);
	say_last_lines(s);
	if (s->c->json)
		cli_print_json(error, false);
	cli_say_error(what, error);
	return cli_exit_of(*reason ? reason : cli_str(error, "type"), 0);
}

// --- the stream ----------------------------------------------------------

// One line of the answer. Returns -1 to go on, or the exit code.
static int take_line(struct show *s, const char *line)
{
	json_t *j = json_loads(line, 0, NULL);
	const json_t *v;
	int code = -1;

	if (!j)
		return cli_fail(CLI_FAILED, "build: thawd sent a malformed "
					    "line");
	if ((v = json_object_get(j, "progress"))) {
		if (!cli_flag(s->c, "quiet"))
			cli_progress(&s->progress, cli_str(v, "stage"),
				     (int)cli_int(v, "percent", -1),
				     cli_str(v, "text"));
	} else if ((v = json_object_get(j, "log"))) {
		if (json_is_string(v))
			take_log(s, json_string_value(v));
	} else if ((v = json_object_get(j, "image"))) {
		if (s->len)
			end_line(s);
		cli_progress_clear(&s->progress);
		show_image(s->c, v);
		code = 0;
	} else if ((v = json_object_get(j, "error"))) {
		cli_progress_clear(&s->progress);
		code = show_error(s, v);
	}
	json_decref(j);
	return code;
}

int cli_build_show(struct cli *c, struct httpc *h)
{
	cleanup_free char *line = NULL;
	struct err e = ERR_INIT;
	struct show *s = calloc(1, sizeof(*s));
	size_t cap = 0;
	int code = -1, rc;

	if (!s)
		abort();
	s->c = c;
	// A Dockerfile's steps are what its author waits for; a guest's console
	// only matters to who asks.
	s->log = cli_flag(c, "verbose") ||
		 (cli_has_context(c) && !cli_flag(c, "quiet"));
	cli_progress_init(&s->progress);
	while (code < 0) {
		rc = httpc_line(h, &line, &cap, LINE_MAX_BYTES, &e);
		if (rc == 0)
			err_set(&e, -EPIPE,
				"thawd went away before it was "
				"done; its log says why");
		if (rc <= 0) {
			cli_progress_clear(&s->progress);
			code = cli_fail(CLI_FAILED, "build: %s", e.msg);
		} else if (*line) {
			code = take_line(s, line);
		}
	}
	for (size_t i = 0; i < LAST_LINES; i++)
		free(s->last[i]);
	free(s);
	return code;
}
