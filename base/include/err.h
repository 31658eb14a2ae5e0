// Errors: a negative errno for the program, and one sentence for the person.
//
// Every function that can fail returns 0 (or a count) on success and -errno on
// failure. Set-up and control paths also take a `struct err *` as the last
// argument and leave a sentence there: what failed, why, what to do. Fault and
// virtqueue paths return -errno only. Nothing here allocates; `e` may be NULL.
#ifndef THAW_ERR_H
#define THAW_ERR_H

#define ERR_MSG_MAX 400

struct err {
	int code; // negative errno, 0 while nothing failed
	char msg[ERR_MSG_MAX];
};

#define ERR_INIT      \
	{             \
		0, "" \
	}

// Sets code and sentence; returns `code`, so that an error site is one line.
int err_set(struct err *e, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

// Like err_set() with -errno, captured first, and ": strerror" appended.
int err_sys(struct err *e, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

// Puts "context: " before the sentence already in `e`; returns `rc`. When `e`
// holds no sentence (the callee returned only a code), strerror(-rc) serves.
int err_wrap(struct err *e, int rc, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#if defined(__clang_analyzer__) && !defined(ERR_IMPLEMENTATION)
// It looks into no other file: so that it knows that these do not return 0.
#define err_set(e, code, ...) ((void)err_set(e, code, __VA_ARGS__), (code))
#define err_sys(e, ...) ((void)err_sys(e, __VA_ARGS__), -1)
#endif

// Name of an errno ("ENOENT"), for logs and the API. Never NULL.
const char *err_name(int code);

#endif
