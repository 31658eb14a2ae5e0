// thaw builds: an image's versions with how each was built.
#include <stdlib.h>
#include <string.h>

#include "cli.h"

// One version's builds, as AWS lists them, each told in full: only there is the
// reason of a failure.
static int builds_of(struct cli *c, const char *image, const char *version,
		     json_t *out)
{
	char *path = cli_path(CLI_AWS "/microvm-images/%s/versions/%s/builds",
			      image, version);
	json_t *list = NULL, *b;
	size_t i;
	int code = cli_list(c, image, path, &list);

	free(path);
	if (code)
		return code;
	json_array_foreach(list, i, b)
	{
		json_t *full = NULL;

		path = cli_path(CLI_AWS "/microvm-images/%s/versions/%s/builds/"
					"%s",
				image, version, cli_str(b, "buildId"));
		if (cli_try(c, path, &full))
			full = json_incref(b); // deleted meanwhile
		json_array_append_new(out, full);
		free(path);
	}
	json_decref(list);
	return 0;
}

static void add_row(struct cli_table *t, const json_t *b)
{
	const json_t *snap = json_object_get(b, "snapshotBuild");
	double when = json_number_value(json_object_get(b, "createdAt"));
	char ago[32], size[32];

	cli_table_add(t, 0, "%s", cli_str(b, "imageVersion"));
	cli_table_add(t, 1, "%s", cli_str(b, "buildState"));
	cli_table_add(t, 2, "%s", cli_ago(when, ago, sizeof(ago)));
	cli_table_add(
	    t, 3, "%s",
	    cli_mib_text((double)cli_int(snap, "memorySnapshotSizeInBytes", -1),
			 size, sizeof(size)));
	cli_table_add(t, 4, "%s", cli_str(b, "buildId"));
	cli_table_add(t, 5, "%s", cli_str(b, "stateReason"));
}

int cmd_builds(struct cli *c)
{
	static const char *const heads[] = {"VERSION", "STATE", "CREATED",
					    "MEMORY",  "BUILD", "REASON"};
	char *path =
	    cli_path(CLI_AWS "/microvm-images/%s/versions", c->argv[0]);
	json_t *versions = NULL, *all, *v;
	struct cli_table t;
	size_t i;
	int code = cli_list(c, c->argv[0], path, &versions);

	free(path);
	if (code)
		return code;
	all = json_array();
	json_array_foreach(versions, i, v)
	{
		if (!code)
			code = builds_of(c, c->argv[0],
					 cli_str(v, "imageVersion"), all);
	}
	if (!code && c->json) {
		cli_print_json(all, false);
	} else if (!code) {
		cli_table_init(&t, heads, ARRAY_SIZE(heads));
		json_array_foreach(all, i, v) add_row(&t, v);
		cli_table_print(&t, !cli_flag(c, "no-header"));
	}
	json_decref(all);
	json_decref(versions);
	return code;
}
