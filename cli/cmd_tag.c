// thaw tag, untag: an image's tags, as AWS has them.
#include <stdlib.h>
#include <string.h>

#include "cli.h"

#define TAGS "/2017-03-31/tags/%s"

// Tags hang on ARNs. Caller frees.
static int arn_of(struct cli *c, char **out)
{
	char *path = cli_path(CLI_OWN "/images/%s", c->argv[0]);
	json_t *j = NULL;
	int code = cli_call(c, c->argv[0], "GET", path, NULL, &j);

	free(path);
	if (!code && !(*out = strdup(cli_str(j, "imageArn"))))
		abort();
	json_decref(j);
	return code;
}

static int show(struct cli *c, const char *arn)
{
	char *path = cli_path(TAGS, arn);
	json_t *j = NULL, *tags, *value;
	const char *key;
	int code = cli_call(c, c->argv[0], "GET", path, NULL, &j);

	free(path);
	if (code)
		return code;
	tags = json_object_get(j, "Tags");
	if (c->json)
		cli_print_json(tags ? tags : j, false);
	json_object_foreach(tags, key, value)
	{
		if (c->json)
			break;
		cli_put(stdout, key);
		putchar('=');
		cli_put(stdout, json_string_value(value)
				    ? json_string_value(value)
				    : "");
		putchar('\n');
	}
	json_decref(j);
	return 0;
}

// The arguments after the first as {"KEY": "VALUE"}; NULL after saying why not.
static json_t *tags_of(struct cli *c)
{
	json_t *tags = json_object();

	for (int i = 1; i < c->argc; i++) {
		const char *eq = strchr(c->argv[i], '=');
		char *key =
		    eq ? strndup(c->argv[i], (size_t)(eq - c->argv[i])) : NULL;
		bool ok = key && *key &&
			  !json_object_set_new(tags, key, json_string(eq + 1));

		free(key);
		if (ok)
			continue;
		json_decref(tags);
		cli_usage(c, "'%s' is not KEY=VALUE", c->argv[i]);
		return NULL;
	}
	return tags;
}

int cmd_tag(struct cli *c)
{
	json_t *tags = tags_of(c), *body;
	char *arn = NULL, *path;
	int code = tags ? arn_of(c, &arn) : CLI_USAGE;

	if (!code && !json_object_size(tags)) {
		code = show(c, arn);
	} else if (!code) {
		body = json_pack("{s:O}", "Tags", tags);
		path = cli_path(TAGS, arn);
		code = cli_call(c, c->argv[0], "POST", path, body, NULL);
		free(path);
		json_decref(body);
		if (!code && c->json)
			code = show(c, arn);
	}
	free(arn);
	json_decref(tags);
	return code;
}

int cmd_untag(struct cli *c)
{
	char *arn = NULL, *path = NULL, *enc;
	size_t len = 0;
	FILE *f;
	int code = arn_of(c, &arn);

	if (code)
		return code;
	f = open_memstream(&path, &len);
	enc = cli_path(TAGS, arn);
	fprintf(f, "%s", enc);
	free(enc);
	for (int i = 1; i < c->argc; i++) {
		enc = cli_path("%s", c->argv[i]);
		fprintf(f, "%ctagKeys=%s", i == 1 ? '?' : '&', enc);
		free(enc);
	}
	fclose(f);
	code = cli_call(c, c->argv[0], "DELETE", path, NULL, NULL);
	free(path);
	if (!code && c->json)
		code = show(c, arn);
	free(arn);
	return code;
}
