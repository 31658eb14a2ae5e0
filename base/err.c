#define ERR_IMPLEMENTATION
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "err.h"

int err_set(struct err *e, int code, const char *fmt, ...)
{
	if (e) {
		va_list ap;

		e->code = code;
		va_start(ap, fmt);
		vsnprintf(e->msg, sizeof(e->msg), fmt, ap);
		va_end(ap);
	}
	return code;
}

int err_sys(struct err *e, const char *fmt, ...)
{
	int saved = errno ? errno : EIO;

	if (e) {
		va_list ap;
		size_t n;

		e->code = -saved;
		va_start(ap, fmt);
		vsnprintf(e->msg, sizeof(e->msg), fmt, ap);
		va_end(ap);
		n = strlen(e->msg);
		snprintf(e->msg + n, sizeof(e->msg) - n, ": %s",
			 strerror(saved));
	}
	return -saved;
}

int err_wrap(struct err *e, int rc, const char *fmt, ...)
{
	if (e) {
		char inner[ERR_MSG_MAX];
		va_list ap;
		size_t n;

		if (e->code == 0 || e->msg[0] == '\0')
			snprintf(inner, sizeof(inner), "%s", strerror(-rc));
		else
			memcpy(inner, e->msg, sizeof(inner));
		e->code = rc;
		va_start(ap, fmt);
		vsnprintf(e->msg, sizeof(e->msg), fmt, ap);
		va_end(ap);
		n = strlen(e->msg);
		snprintf(e->msg + n, sizeof(e->msg) - n, ": %s", inner);
	}
	return rc;
}
