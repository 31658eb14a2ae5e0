// What names an artifact, and what a build left of its configuration
// (engine/image/img_uri.c, img_config.c). The first byte says which. Beside not
// crashing: a path is absolute and has no zero byte; a URL has no blanks or control
// characters and stays at the endpoint; a configuration that is accepted can be run.
#include <ctype.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "img_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

#define ENDPOINT "http://127.0.0.1:9000"

static void uri(const char *text)
{
	const struct img_s3 s3 = {.endpoint = ENDPOINT};
	struct img_source src = {.path = NULL};
	struct err e = ERR_INIT;

	if (img_uri_parse(text, &s3, &src, &e)) {
		if (!e.msg[0])
			abort();
		return;
	}
	if (!src.path == !src.url || (src.path && src.path[0] != '/'))
		abort();
	if (src.url && strncmp(src.url, ENDPOINT "/", strlen(ENDPOINT) + 1))
		abort();
	for (const char *p = src.url; p && *p; p++) {
		if (!isgraph((unsigned char)*p) || *p == '?' || *p == '#')
			abort();
	}
	img_source_free(&src);
}

static void config(const char *text, size_t n)
{
	struct img_config c;
	struct err e = ERR_INIT;

	if (img_config_parse(text, n, &c, &e)) {
		if (!e.msg[0])
			abort();
		return;
	}
	if (!c.argv[0] || (c.cwd[0] && c.cwd[0] != '/'))
		abort();
	for (size_t i = 0; c.env[i]; i++) {
		if (!strchr(c.env[i], '=') || c.env[i][0] == '=')
			abort();
	}
	for (size_t i = 0; c.volumes[i]; i++) {
		if (c.volumes[i][0] != '/')
			abort();
	}
	for (size_t i = 0; i < c.nports; i++) {
		if (!c.ports[i])
			abort();
	}
	img_config_free(&c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	char *text;

	if (!n)
		return 0;
	text = malloc(n);
	if (!text)
		abort();
	memcpy(text, data + 1, n - 1);
	text[n - 1] = '\0';
	if (data[0] == 'U')
		uri(text);
	else
		config(text, n - 1);
	free(text);
	return 0;
}
