// thaw-fetch: fetches one object of an S3-compatible store. thaw-mkroot starts
// it, as nobody and with a limit on the size of files; it is the only program of
// thaw's that speaks HTTP outwards, and it speaks to the endpoint that thawd was
// given.
//
// stdin: three lines, the access key's id, its secret, a session token (all may
// be empty: the request is then not signed). Descriptor 3: where the object
// goes. stdout: "ok BYTES", or "error REASON TEXT" and exit code 1. libcurl
// makes the signature (AWS Signature Version 4, service "s3").
//
// What answers with 5xx, or not at all, is asked again: 3 times, 1 s and 3 s
// apart.
#include <ctype.h>
#include <curl/curl.h>
#include <getopt.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base.h"

enum {
	BODY_FD = 3,
	SAID_MAX = 16 * 1024, // of an error's XML
	TRIES = 3,
	CONNECT_S = 15,
	STALL_S = 30, // without 1 KiB/s
	TOTAL_S = 3600,
};

struct fetch {
	const char *url, *region;
	uint64_t max;
	char id[256], secret[256], token[4200];
	CURL *curl;
	uint64_t got;
	bool too_big, no_room;
	char said[SAID_MAX + 1];
	size_t nsaid;
	char why[CURL_ERROR_SIZE];
};

static int fail(const char *reason, const char *fmt, ...)
{
	char text[600];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	for (char *c = text; *c; c++)
		if ((unsigned char)*c < 0x20 || *c == 0x7f)
			*c = '?';
	printf("error %s %s\n", reason, text);
	return 1;
}

static size_t on_body(char *p, size_t size, size_t n, void *ctx)
{
	struct fetch *f = ctx;
	long status = 0;

	n *= size;
	curl_easy_getinfo(f->curl, CURLINFO_RESPONSE_CODE, &status);
	if (status != 200) {
		size_t m = MIN(n, SAID_MAX - f->nsaid);

		memcpy(f->said + f->nsaid, p, m);
		f->nsaid += m;
		return n;
	}
	if (n > f->max - f->got) {
		f->too_big = true;
		return 0;
	}
	if (util_write_all(BODY_FD, p, n)) {
		f->no_room = true;
		return 0;
	}
	f->got += n;
	return n;
}

static bool read_line(char *out, size_t cap)
{
	if (!fgets(out, (int)cap, stdin))
		return false;
	out[strcspn(out, "\n")] = '\0';
	return true;
}

#define SET(option, value)                                          \
	do {                                                        \
		if (curl_easy_setopt(c, option, value) != CURLE_OK) \
			bad = -1;                                   \
	} while (0)

static int set_up(struct fetch *f, struct curl_slist **headers)
{
	char value[4300], keys[600];
	CURL *c = f->curl;
	int bad = 0;

	SET(CURLOPT_URL, f->url);
	SET(CURLOPT_PATH_AS_IS, 1L);
	SET(CURLOPT_PROTOCOLS_STR, "http,https");
	SET(CURLOPT_NOSIGNAL, 1L);
	SET(CURLOPT_PROXY, ""); // the endpoint, directly
	SET(CURLOPT_NETRC, 0L);
	SET(CURLOPT_CONNECTTIMEOUT, (long)CONNECT_S);
	SET(CURLOPT_LOW_SPEED_LIMIT, 1024L);
	SET(CURLOPT_LOW_SPEED_TIME, (long)STALL_S);
	SET(CURLOPT_TIMEOUT, (long)TOTAL_S);
	SET(CURLOPT_WRITEFUNCTION, on_body);
	SET(CURLOPT_WRITEDATA, f);
	SET(CURLOPT_ERRORBUFFER, f->why);
	SET(CURLOPT_USERAGENT, "thaw");
	if (!f->id[0])
		return bad;
	snprintf(value, sizeof(value), "aws:amz:%s:s3", f->region);
	snprintf(keys, sizeof(keys), "%s:%s", f->id, f->secret);
	SET(CURLOPT_AWS_SIGV4, value);
	SET(CURLOPT_USERPWD, keys);
	// S3 wants the body's digest as a header; a GET's body is empty.
	*headers = curl_slist_append(
	    NULL, "x-amz-content-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41"
		  "e4649b934ca495991b7852b855");
	if (f->token[0]) {
		snprintf(value, sizeof(value), "x-amz-security-token: %s",
			 f->token);
		*headers = curl_slist_append(*headers, value);
	}
	SET(CURLOPT_HTTPHEADER, *headers);
	return bad;
}

// The text of <name> in the error that the store sent.
static void element(const struct fetch *f, const char *name, char *out,
		    size_t cap)
{
	char tag[64];
	const char *p;

	snprintf(tag, sizeof(tag), "<%s>", name);
	p = strstr(f->said, tag);
	*out = '\0';
	if (p)
		p += strlen(tag);
	if (p)
		snprintf(out, cap, "%.*s", (int)MIN(strcspn(p, "<"), cap), p);
}

static int refused(const struct fetch *f, long status)
{
	static const struct {
		const char *code, *reason;
	} codes[] = {
	    {"NoSuchKey", "S3_NO_SUCH_KEY"},
	    {"NoSuchVersion", "S3_NO_SUCH_KEY"},
	    {"NoSuchBucket", "S3_NO_SUCH_BUCKET"},
	    {"InvalidBucketName", "S3_NO_SUCH_BUCKET"},
	    {"InvalidObjectState", "S3_INVALID_OBJECT"},
	    {"PermanentRedirect", "S3_CROSS_REGION_ACCESS_DENIED"},
	    {"TemporaryRedirect", "S3_CROSS_REGION_ACCESS_DENIED"},
	    {"AuthorizationHeaderMalformed", "S3_CROSS_REGION_ACCESS_DENIED"},
	    {"IllegalLocationConstraintException",
	     "S3_CROSS_REGION_ACCESS_DENIED"}};
	const char *reason = NULL;
	char code[80], message[300];

	element(f, "Code", code, sizeof(code));
	element(f, "Message", message, sizeof(message));
	for (size_t i = 0; i < ARRAY_SIZE(codes); i++)
		if (!strcmp(code, codes[i].code))
			reason = codes[i].reason;
	if (!reason)
		reason = status == 404 ? "S3_NO_SUCH_KEY"
			 : status == 301 || status == 307 || status == 308
			     ? "S3_CROSS_REGION_ACCESS_DENIED"
			 : status >= 400 && status < 500
			     ? "S3_ACCESS_DENIED"
			     : "INTERNAL_PLATFORM_ERROR";
	return fail(reason, "%s: the store answered %ld %s%s%s", f->url, status,
		    code, message[0] ? ": " : "", message);
}

static int one_try(struct fetch *f, bool *again)
{
	struct curl_slist *headers = NULL;
	long status = 0;
	CURLcode rc;

	*again = false;
	f->got = f->nsaid = 0;
	f->curl = curl_easy_init();
	if (!f->curl || ftruncate(BODY_FD, 0) || lseek(BODY_FD, 0, SEEK_SET) ||
	    set_up(f, &headers)) {
		curl_slist_free_all(headers);
		curl_easy_cleanup(f->curl);
		return fail("INTERNAL_PLATFORM_ERROR",
			    "libcurl cannot be set up");
	}
	rc = curl_easy_perform(f->curl);
	curl_easy_getinfo(f->curl, CURLINFO_RESPONSE_CODE, &status);
	curl_easy_cleanup(f->curl);
	curl_slist_free_all(headers);
	f->said[f->nsaid] = '\0';
	if (f->too_big)
		return fail("S3_INVALID_OBJECT",
			    "%s is larger than the %llu MiB that are allowed",
			    f->url, (unsigned long long)(f->max >> 20));
	if (f->no_room)
		return fail("DISK_STORAGE_FULL",
			    "%s: no room on the disk for it", f->url);
	*again = rc != CURLE_OK || status >= 500;
	if (rc != CURLE_OK)
		return *again ? 1 : 0;
	if (status != 200)
		return *again ? 1 : refused(f, status);
	printf("ok %llu\n", (unsigned long long)f->got);
	return 0;
}

static int fetch(struct fetch *f)
{
	bool again;
	int rc;

	for (unsigned i = 0; i < TRIES; i++) {
		if (i)
			sleep(2 * i - 1);
		rc = one_try(f, &again);
		if (!again)
			return rc;
	}
	if (f->nsaid || !f->why[0])
		return fail("INTERNAL_PLATFORM_ERROR",
			    "%s: the store answered with an error %d times: "
			    "%.200s",
			    f->url, TRIES, f->said);
	return fail("INTERNAL_PLATFORM_ERROR", "%s: %s (tried %d times)",
		    f->url, f->why, TRIES);
}

int main(int argc, char **argv)
{
	static const struct option longs[] = {{"url", 1, NULL, 'u'},
					      {"region", 1, NULL, 'r'},
					      {"max-bytes", 1, NULL, 'm'},
					      {NULL, 0, NULL, 0}};
	static struct fetch f = {.region = "us-east-1", .max = 1ull << 40};
	int c;

	signal(SIGPIPE, SIG_IGN);
	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		if (c == 'u')
			f.url = optarg;
		else if (c == 'r')
			f.region = optarg;
		else if (c == 'm')
			f.max = strtoull(optarg, NULL, 10);
		else
			return 2;
	}
	if (!f.url || optind != argc || !read_line(f.id, sizeof(f.id)) ||
	    !read_line(f.secret, sizeof(f.secret)) ||
	    !read_line(f.token, sizeof(f.token))) {
		fprintf(stderr, "usage: thaw-fetch --url URL [--region R] "
				"[--max-bytes N] <credentials 3>object\n");
		return 2;
	}
	if (curl_global_init(CURL_GLOBAL_DEFAULT))
		return fail("INTERNAL_PLATFORM_ERROR",
			    "libcurl does not start");
	return fetch(&f);
}
