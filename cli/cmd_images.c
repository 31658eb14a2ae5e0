// thaw images, rmi.
#include <stdlib.h>
#include <string.h>

#include "cli.h"

// The newest version stands for the image.
static void add_row(struct cli_table *t, const json_t *im)
{
	const json_t *versions = json_object_get(im, "versions");
	const json_t *v = json_array_get(versions, json_array_size(versions) -
						       1); // NULL when empty
	const json_t *sizes = json_object_get(v, "sizes");
	double when = json_number_value(json_object_get(im, "updatedAt"));
	double raw = (double)(cli_int(sizes, "memoryNonZeroBytes", 0) +
			      cli_int(sizes, "diskNonZeroBytes", 0));
	char a[32], b[32], d[32];

	cli_table_add(t, 0, "%s", cli_str(im, "name"));
	cli_table_add(t, 1, "%s", cli_str(v, "version"));
	cli_table_add(t, 2, "%s", cli_str(v, "state"));
	cli_table_add(t, 3, "%s", cli_ago(when, a, sizeof(a)));
	cli_table_add(t, 4, "%lld MiB", (long long)cli_int(v, "memoryMiB", 0));
	cli_table_add(t, 5, "%lld", (long long)cli_int(v, "vcpus", 0));
	cli_table_add(t, 6, "%s", cli_mib_text(raw, b, sizeof(b)));
	cli_table_add(t, 7, "%s",
		      cli_mib_text((double)cli_int(sizes, "storedBytes", -1), d,
				   sizeof(d)));
	cli_table_add(t, 8, "%lld", (long long)cli_int(im, "microvms", 0));
}

int cmd_images(struct cli *c)
{
	static const char *const heads[] = {"NAME",    "VERSION", "STATE",
					    "CREATED", "MEMORY",  "VCPUS",
					    "RAW",     "STORED",  "MICROVMS"};
	struct cli_table t;
	json_t *all = NULL, *list, *im;
	size_t i;
	int code = cli_call(c, "images", "GET", CLI_OWN "/images", NULL, &all);

	if (code)
		return code;
	list = json_object_get(all, "items");
	if (!json_is_array(list)) {
		json_decref(all);
		return cli_fail(CLI_FAILED, "images: thawd's answer has no "
					    "list in it");
	}
	cli_table_init(&t, heads, ARRAY_SIZE(heads));
	json_array_foreach(list, i, im)
	{
		if (!c->json && cli_flag(c, "quiet")) {
			cli_put(stdout, cli_str(im, "name"));
			putchar('\n');
		} else if (!c->json) {
			add_row(&t, im);
		}
	}
	if (c->json)
		cli_print_json(list, false);
	else if (!cli_flag(c, "quiet"))
		cli_table_print(&t, !cli_flag(c, "no-header"));
	json_decref(all);
	return 0;
}

// Also when another one's name only begins so.
static bool is_gone(struct cli *c, const char *image, const char *path)
{
	json_t *j = NULL;
	int code = cli_try(c, path, &j);
	const char *name = cli_image_name(cli_str(j, "imageArn"));
	bool gone = code == CLI_NOT_FOUND ||
		    (!code && strcmp(name, cli_image_name(image)));

	json_decref(j);
	return gone;
}

int cmd_rmi(struct cli *c)
{
	int worst = 0;

	for (int i = 0; i < c->argc; i++) {
		char *version;
		char *image = cli_image_version(c->argv[i], &version);
		char *path =
		    version ? cli_path(CLI_AWS "/microvm-images/%s/versions/%s",
				       image, version)
			    : cli_path(CLI_AWS "/microvm-images/%s", image);
		int code = 0;

		if (!cli_flag(c, "force") || !is_gone(c, image, path))
			code = cli_delete(c, c->argv[i], path);
		free(path);
		free(image);
		worst = code ? code : worst;
		if (code == CLI_UNREACHABLE)
			return code;
	}
	return worst;
}
