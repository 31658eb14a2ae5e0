// What people read: tables, times, sizes, progress. Whatever came from the
// server or a guest is printed without its control characters.
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "cli.h"

const char *cli_str(const json_t *o, const char *key)
{
	const char *s = json_string_value(json_object_get(o, key));

	return s ? s : "";
}

int64_t cli_int(const json_t *o, const char *key, int64_t missing)
{
	const json_t *v = json_object_get(o, key);

	if (json_is_integer(v))
		return json_integer_value(v);
	return json_is_real(v) ? (int64_t)json_real_value(v) : missing;
}

void cli_put(FILE *f, const char *text)
{
	for (const unsigned char *p = (const unsigned char *)text; *p; p++)
		fputc(*p < 0x20 || *p == 0x7f ? '?' : *p, f);
}

void cli_put_output(const char *p, size_t n, bool raw)
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

void cli_print_json(const json_t *j, bool pretty)
{
	json_dumpf(j, stdout, pretty ? JSON_INDENT(2) : JSON_COMPACT);
	putchar('\n');
}

// --- tables --------------------------------------------------------------

void cli_table_init(struct cli_table *t, const char *const *heads, size_t ncols)
{
	memset(t, 0, sizeof(*t));
	t->heads = heads;
	t->ncols = ncols;
}

// Column 0 starts a row.
void cli_table_add(struct cli_table *t, size_t col, const char *fmt, ...)
{
	va_list ap;
	char *cell;

	if (col == 0 && (t->nrows++ + 1) * t->ncols > t->cap) {
		size_t cap = t->cap ? 2 * t->cap : 16 * t->ncols;
		char **more = reallocarray(t->cells, cap, sizeof(*more));

		if (!more)
			abort();
		memset(more + t->cap, 0, (cap - t->cap) * sizeof(*more));
		t->cells = more;
		t->cap = cap;
	}
	va_start(ap, fmt);
	if (vasprintf(&cell, fmt, ap) < 0)
		abort();
	va_end(ap);
	t->cells[(t->nrows - 1) * t->ncols + col] = cell;
}

// Characters, not bytes: UTF-8 continuation bytes have no width.
static size_t width(const char *s)
{
	size_t n = 0;

	for (; *s; s++)
		n += ((unsigned char)*s & 0xc0) != 0x80;
	return n;
}

static void print_row(const struct cli_table *t, const char *const *cells,
		      const size_t *widths)
{
	for (size_t i = 0; i < t->ncols; i++) {
		const char *s = cells[i] ? cells[i] : "";

		cli_put(stdout, s);
		if (i + 1 < t->ncols)
			for (size_t n = width(s); n < widths[i] + 2; n++)
				putchar(' ');
	}
	putchar('\n');
}

void cli_table_print(struct cli_table *t, bool header)
{
	size_t widths[CLI_COLUMNS] = {0};

	for (size_t i = 0; i < t->ncols && header; i++)
		widths[i] = width(t->heads[i]);
	for (size_t i = 0; i < t->nrows * t->ncols; i++)
		if (t->cells[i])
			widths[i % t->ncols] =
			    MAX(widths[i % t->ncols], width(t->cells[i]));
	if (header)
		print_row(t, t->heads, widths);
	for (size_t r = 0; r < t->nrows; r++)
		print_row(t, (const char *const *)t->cells + r * t->ncols,
			  widths);
	for (size_t i = 0; i < t->nrows * t->ncols; i++)
		free(t->cells[i]);
	free(t->cells);
}

// --- words ---------------------------------------------------------------

const char *cli_ago(double when, char *buf, size_t cap)
{
	static const struct {
		double seconds;
		const char *name;
	} units[] = {{86400 * 365.0, "year"},
		     {86400 * 30.0, "month"},
		     {86400 * 7.0, "week"},
		     {86400, "day"},
		     {3600, "hour"},
		     {60, "minute"},
		     {1, "second"}};
	double age = (double)util_wall_ns() / 1e9 - when;

	if (when <= 0)
		return "-";
	for (size_t i = 0; i < ARRAY_SIZE(units); i++) {
		unsigned long n;

		if (age < units[i].seconds)
			continue;
		n = (unsigned long)(age / units[i].seconds);
		snprintf(buf, cap, "%lu %s%s ago", n, units[i].name,
			 n == 1 ? "" : "s");
		return buf;
	}
	return "just now";
}

const char *cli_mib_text(double bytes, char *buf, size_t cap)
{
	double mib = bytes / 1048576.0;

	if (bytes < 0)
		return "-";
	snprintf(buf, cap, mib < 10 ? "%.1f MiB" : "%.0f MiB", mib);
	return buf;
}

// "microvm-0f3a…" by its first 8 digits, which every verb takes as a prefix.
const char *cli_short_id(const char *id, char *buf, size_t cap)
{
	size_t n = strncmp(id, "microvm-", 8) ? 12 : 16;

	snprintf(buf, cap, "%.*s", (int)n, id);
	return buf;
}

char *cli_image_version(const char *text, char **version)
{
	char *image = strdup(text);
	char *colon = image ? strrchr(image, ':') : NULL;

	if (!image)
		abort();
	if (colon && !strncmp(image, "arn:", 4) && !strchr(colon, '.'))
		colon = NULL; // an ARN's own
	if (colon)
		*colon = '\0';
	*version = colon ? colon + 1 : NULL;
	return image;
}

const char *cli_image_name(const char *arn)
{
	const char *colon = strrchr(arn, ':');

	return !strncmp(arn, "arn:", 4) && colon ? colon + 1 : arn;
}

// --- progress ------------------------------------------------------------

void cli_progress_init(struct cli_progress *p)
{
	const char *term = getenv("TERM");

	memset(p, 0, sizeof(*p));
	p->bar = isatty(STDERR_FILENO) && !getenv("NO_COLOR") &&
		 (!term || strcmp(term, "dumb") != 0);
}

void cli_progress_clear(struct cli_progress *p)
{
	if (p->bar)
		fputs("\r\033[K", stderr);
}

static void draw_bar(const char *stage, int percent, const char *text)
{
	struct winsize ws;
	int cols = 80, room;

	if (ioctl(STDERR_FILENO, TIOCGWINSZ, &ws) == 0 && ws.ws_col > 40)
		cols = ws.ws_col;
	fprintf(stderr, "\r\033[K%-8s ", stage);
	room = cols - 10;
	if (percent >= 0) {
		fputc('[', stderr);
		for (int i = 0; i < 20; i++)
			fputc(i * 5 < percent ? '#' : '.', stderr);
		fprintf(stderr, "] %3d%% ", percent);
		room -= 28;
	}
	for (; *text && room > 0; text++, room--)
		fputc((unsigned char)*text < 0x20 ? '?' : *text, stderr);
	fflush(stderr);
}

// Without a terminal: one line when something new begins, and at most one every
// five seconds within it.
static void say_line(struct cli_progress *p, const char *stage, int percent,
		     const char *text)
{
	uint64_t now = util_now_ns();
	bool fresh = strcmp(p->stage, stage) != 0;

	if (!fresh && now - p->last_ns < 5000000000u)
		return;
	p->last_ns = now;
	fprintf(stderr, *text ? "%s: " : "%s", stage);
	cli_put(stderr, text);
	if (percent > 0)
		fprintf(stderr, " (%d%%)", percent);
	fputc('\n', stderr);
}

void cli_progress(struct cli_progress *p, const char *stage, int percent,
		  const char *text)
{
	if (p->bar)
		draw_bar(stage, percent, text);
	else
		say_line(p, stage, percent, text);
	snprintf(p->stage, sizeof(p->stage), "%s", stage);
	snprintf(p->text, sizeof(p->text), "%s", text);
	p->percent = percent;
}

void cli_progress_again(struct cli_progress *p)
{
	if (p->bar && p->stage[0])
		draw_bar(p->stage, p->percent, p->text);
}
