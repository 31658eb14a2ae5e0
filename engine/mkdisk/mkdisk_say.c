// What the builder's processes tell: lines on stdout.
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "mkdisk.h"

static void say(const char *head, const char *fmt, va_list ap)
{
	char line[512], *c;
	int n;

	n = snprintf(line, sizeof(line), "%s ", head);
	vsnprintf(line + n, sizeof(line) - (size_t)n - 1, fmt, ap);
	for (c = line; *c; c++) // file names come in here: one line, whatever
		if ((unsigned char)*c < 0x20 || *c == 0x7f)
			*c = '?';
	*c++ = '\n';
	util_write_all(STDOUT_FILENO, line, (size_t)(c - line));
}

void mk_progress(int percent, const char *fmt, ...)
{
	char head[32];
	va_list ap;

	snprintf(head, sizeof(head), "progress %d", percent);
	va_start(ap, fmt);
	say(head, fmt, ap);
	va_end(ap);
}

void mk_note(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say("note", fmt, ap);
	va_end(ap);
}

void mk_say_last(const char *head, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say(head, fmt, ap);
	va_end(ap);
}
