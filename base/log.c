#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "log.h"

static const char *log_prog = "thaw";
static enum log_level log_max = LOG_LVL_INFO;
static const char *const log_names[] = {"error", "warn", "info", "debug"};

void log_init(const char *prog, enum log_level level)
{
	log_prog = prog;
	log_max = level;
}

bool log_enabled(enum log_level level)
{
	return level <= log_max;
}

int log_level_parse(const char *text, enum log_level *out)
{
	for (int i = 0; i <= LOG_LVL_DEBUG; i++) {
		if (strcmp(text, log_names[i]) == 0) {
			*out = (enum log_level)i;
			return 0;
		}
	}
	return -EINVAL;
}

void log_at(enum log_level level, const char *fmt, ...)
{
	int saved = errno;
	char line[1024];
	struct timespec ts;
	struct tm tm;
	va_list ap;
	size_t n, cap = sizeof(line) - 1; // room for the newline
	int add;

	if (!log_enabled(level))
		return;
	clock_gettime(CLOCK_REALTIME, &ts);
	gmtime_r(&ts.tv_sec, &tm);
	n = strftime(line, cap, "%Y-%m-%dT%H:%M:%S", &tm);
	add =
	    snprintf(line + n, cap - n, ".%03ldZ %s %s: ", ts.tv_nsec / 1000000,
		     log_prog, log_names[level]);
	n += (size_t)add;
	va_start(ap, fmt);
	errno = saved; // for %m
	add = vsnprintf(line + n, cap - n, fmt, ap);
	va_end(ap);
	if (add > 0)
		n += (size_t)add < cap - n ? (size_t)add : cap - n - 1;
	line[n++] = '\n';
	// One write per record keeps lines of several processes whole. A log
	// that cannot be written has nowhere to report that.
	if (write(STDERR_FILENO, line, n) < 0)
		errno = saved;
	errno = saved;
}
