// thaw images, rmi.
#include <stdlib.h>
#include <string.h>

#include "cli.h"

int cmd_images(struct cli *c)
{
	static const char *const heads[] = {"NAME",    "VERSION", "STATE",
					    "CREATED", "MEMORY",  "VCPUS",
					    "RAW",     "STORED"};
	struct cli_table t;
	json_t *list, *im;
	char a[32], b[32], d[32];
	size_t i;
	int code = cli_list(c, "images", CLI_OWN "/images", &list);

	if (code)
		return code;
	if (c->json) {
		cli_print_json(list, false);
		json_decref(list);
		return 0;
	}
	cli_table_init(&t, heads, ARRAY_SIZE(heads));
	json_array_foreach(list, i, im)
	{
		if (cli_flag(c, "quiet")) {
			cli_put(stdout, cli_str(im, "name"));
			putchar('\n');
			continue;
		}
		cli_table_add(&t, 0, "%s", cli_str(im, "name"));
		cli_table_add(&t, 1, "%s", cli_str(im, "imageVersion"));
		cli_table_add(&t, 2, "%s", cli_str(im, "state"));
		cli_table_add(
		    &t, 3, "%s",
		    cli_ago(json_number_value(json_object_get(im, "createdAt")),
			    a, sizeof(a)));
		cli_table_add(&t, 4, "%lld MiB",
			      (long long)cli_int(im, "memoryMiB", 0));
		cli_table_add(&t, 5, "%lld",
			      (long long)cli_int(im, "vcpus", 0));
		cli_table_add(&t, 6, "%s",
			      cli_mib_text((double)cli_int(im, "rawBytes", -1),
					   b, sizeof(b)));
		cli_table_add(
		    &t, 7, "%s",
		    cli_mib_text((double)cli_int(im, "storedBytes", -1), d,
				 sizeof(d)));
	}
	if (cli_flag(c, "quiet"))
		free(t.cells);
	else
		cli_table_print(&t, !cli_flag(c, "no-header"));
	json_decref(list);
	return 0;
}

int cmd_rmi(struct cli *c)
{
	int worst = 0;

	for (int i = 0; i < c->argc; i++) {
		char *path = cli_path(CLI_AWS "/microvm-images/%s", c->argv[i]);
		json_t *j = NULL;
		int code;

		if (cli_flag(c, "force") &&
		    cli_try(c, path, &j) == CLI_NOT_FOUND) {
			free(path);
			continue;
		}
		json_decref(j);
		j = NULL;
		code = cli_call(c, c->argv[i], "DELETE", path, NULL, &j);
		free(path);
		worst = code ? code : worst;
		if (code == CLI_UNREACHABLE)
			return code;
		if (code)
			continue;
		if (c->json)
			cli_print_json(j, false);
		else
			puts(c->argv[i]);
		json_decref(j);
	}
	return worst;
}
