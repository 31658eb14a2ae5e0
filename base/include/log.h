// One line per record on stderr: time, level, text. Libraries return errors
// instead of logging; programs and their top layer log. Thread-safe.
#ifndef THAW_LOG_H
#define THAW_LOG_H

#include <stdbool.h>

enum log_level { LOG_LVL_ERR, LOG_LVL_WARN, LOG_LVL_INFO, LOG_LVL_DEBUG };

// `prog` must outlive the program. The default level is INFO.
void log_init(const char *prog, enum log_level level);
bool log_enabled(enum log_level level);
// Parses "error", "warn", "info", "debug"; 0 or -EINVAL.
int log_level_parse(const char *text, enum log_level *out);

void log_at(enum log_level level, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

#define log_err(...) log_at(LOG_LVL_ERR, __VA_ARGS__)
#define log_warn(...) log_at(LOG_LVL_WARN, __VA_ARGS__)
#define log_info(...) log_at(LOG_LVL_INFO, __VA_ARGS__)
#define log_debug(...)                                      \
	do {                                                \
		if (log_enabled(LOG_LVL_DEBUG))             \
			log_at(LOG_LVL_DEBUG, __VA_ARGS__); \
	} while (0)

#endif
