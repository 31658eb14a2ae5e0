// Private to img*.c.
#ifndef THAW_IMG_INTERNAL_H
#define THAW_IMG_INTERNAL_H

#include "img.h"

// Where an artifact is: one of the two is set, both allocated.
struct img_source {
	char *path; // absolute
	char *url;  // http or https
};

// -EINVAL and a sentence: the URI, or the endpoint, is no good.
int img_uri_parse(const char *uri, const struct img_s3 *s3,
		  struct img_source *out, struct err *e);
void img_source_free(struct img_source *s);

// What thaw-mkroot left in WORK/config.json.
struct img_config {
	const char *const *argv, *const *env, *const *volumes;
	const char *user, *cwd;
	uint16_t *ports;
	size_t nports;
	void *doc; // what the strings are in
};

// Bounds and checks everything: the text was made where a stranger's programs
// ran. On error `out` holds nothing.
int img_config_parse(const char *text, size_t len, struct img_config *out,
		     struct err *e);
void img_config_free(struct img_config *c);
enum { IMG_CONFIG_MAX = 256 * 1024 };

// Bytes that are no UTF-8, and control characters but newlines and tabs, become
// '?', in place.
void img_text_mend(char *s);

#define IMG_WORK_PREFIX "img-"

#endif
