// Names of artifacts: file:///PATH and s3://BUCKET/KEY.
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "img_internal.h"

enum { KEY_MAX = 1024, BUCKET_MIN = 3, BUCKET_MAX = 63 };

void img_source_free(struct img_source *s)
{
	free(s->path);
	free(s->url);
	memset(s, 0, sizeof(*s));
}

// RFC 8089: an empty host or "localhost", then an absolute path.
static int parse_file(const char *p, struct img_source *out, struct err *e)
{
	char *to;

	if (!strncasecmp(p, "localhost/", 10))
		p += 9;
	if (*p != '/')
		return err_set(e, -EINVAL,
			       "an artifact's file URI is file:///PATH, with "
			       "three slashes");
	to = out->path = malloc(strlen(p) + 1);
	if (!to)
		return err_set(e, -ENOMEM, "out of memory");
	for (; *p; p++) {
		uint8_t byte = (uint8_t)*p;
		char hex[3] = {0};

		if (byte == '%') {
			memcpy(hex, p + 1, strnlen(p + 1, 2));
			if (util_unhex(&byte, 1, hex) || !byte)
				return err_set(e, -EINVAL,
					       "a '%%' in a file URI starts "
					       "two hex digits");
			p += 2;
		}
		*to++ = (char)byte;
	}
	*to = '\0';
	return 0;
}

static int check_bucket(const char *p, size_t n, struct err *e)
{
	bool ok = n >= BUCKET_MIN && n <= BUCKET_MAX;

	for (size_t i = 0; ok && i < n; i++)
		ok = islower((unsigned char)p[i]) ||
		     isdigit((unsigned char)p[i]) ||
		     (i && i + 1 < n && (p[i] == '-' || p[i] == '.'));
	if (!ok)
		return err_set(e, -EINVAL,
			       "'%.*s' is no name of a bucket: 3 to 63 lower-"
			       "case letters, digits, '-' and '.'",
			       (int)MIN(n, (size_t)70), p);
	return 0;
}

int img_s3_endpoint(const char *url, struct err *e)
{
	const char *p = strstr(url, "://");
	size_t n;

	if (!strncmp(url, "http://", 7) || !strncmp(url, "https://", 8)) {
		p += 3;
		n = strspn(p, "abcdefghijklmnopqrstuvwxyz"
			      "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-:[]");
		if (n && (!p[n] || !strcmp(p + n, "/")))
			return 0;
	}
	return err_set(e, -EINVAL,
		       "an S3 endpoint is http://HOST[:PORT] or https://..., "
		       "not '%.100s'",
		       url);
}

static bool region_ok(const char *r)
{
	return *r && strlen(r) < 40 &&
	       strspn(r, "abcdefghijklmnopqrstuvwxyz0123456789-") == strlen(r);
}

// S3's own encoding of a key: once, '/' kept.
static void encode(const char *key, char *to)
{
	static const char hex[] = "0123456789ABCDEF";

	for (; *key; key++) {
		unsigned char c = (unsigned char)*key;

		if (isalnum(c) || strchr("-_.~/", c)) {
			*to++ = (char)c;
		} else {
			*to++ = '%';
			*to++ = hex[c >> 4];
			*to++ = hex[c & 15];
		}
	}
	*to = '\0';
}

static int parse_s3(const char *p, const struct img_s3 *s3,
		    struct img_source *out, struct err *e)
{
	const char *region = s3->region ? s3->region : "us-east-1";
	char key[3 * KEY_MAX + 1];
	size_t n = strcspn(p, "/");
	int rc = check_bucket(p, n, e), len;

	if (rc)
		return rc;
	if (!p[n] || !p[n + 1] || strlen(p + n + 1) > KEY_MAX)
		return err_set(
		    e, -EINVAL,
		    "an artifact's S3 URI is s3://BUCKET/KEY, with a "
		    "key of 1 to %d bytes",
		    KEY_MAX);
	if (!region_ok(region))
		return err_set(e, -EINVAL, "'%.50s' is no region", region);
	encode(p + n + 1, key);
	if (!s3->endpoint) {
		len = asprintf(&out->url, "https://%.*s.s3.%s.amazonaws.com/%s",
			       (int)n, p, region, key);
	} else {
		rc = img_s3_endpoint(s3->endpoint, e);
		if (rc)
			return rc;
		len = asprintf(
		    &out->url, "%s%s%.*s/%s", s3->endpoint,
		    s3->endpoint[strlen(s3->endpoint) - 1] == '/' ? "" : "/",
		    (int)n, p, key);
	}
	if (len < 0) {
		out->url = NULL;
		return err_set(e, -ENOMEM, "out of memory");
	}
	return 0;
}

int img_uri_parse(const char *uri, const struct img_s3 *s3,
		  struct img_source *out, struct err *e)
{
	int rc;

	memset(out, 0, sizeof(*out));
	if (!strncasecmp(uri, "file://", 7))
		rc = parse_file(uri + 7, out, e);
	else if (!strncasecmp(uri, "s3://", 5))
		rc = parse_s3(uri + 5, s3, out, e);
	else
		rc = err_set(e, -EINVAL,
			     "an artifact is s3://BUCKET/KEY or file:///PATH, "
			     "not '%.100s'",
			     uri);
	if (rc)
		img_source_free(out);
	return rc;
}
