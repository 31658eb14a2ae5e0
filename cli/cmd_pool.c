// thaw pool: how many microVMs of an image wait parked.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static int pool_set(struct cli *c)
{
	json_t *body, *j = NULL;
	unsigned long n;
	char *end, *path;
	int code;

	if (c->argc != 3)
		return cli_usage(c, "pool set needs IMAGE and N");
	errno = 0;
	n = strtoul(c->argv[2], &end, 10);
	if (errno || end == c->argv[2] || *end || c->argv[2][0] == '-' ||
	    n > 1000000)
		return cli_usage(c, "'%s' is not a number of microVMs",
				 c->argv[2]);
	body = json_pack("{s:I}", "size", (json_int_t)n);
	path = cli_path(CLI_OWN "/pools/%s", c->argv[1]);
	code = cli_call(c, c->argv[1], "PUT", path, body, &j);
	free(path);
	json_decref(body);
	if (code)
		return code;
	if (c->json)
		cli_print_json(j, false);
	json_decref(j);
	return 0;
}

static void add_row(struct cli_table *t, const json_t *p)
{
	int64_t hits = cli_int(p, "hits", 0), misses = cli_int(p, "misses", 0);

	cli_table_add(t, 0, "%s", cli_str(p, "image"));
	cli_table_add(t, 1, "%s", cli_str(p, "imageVersion"));
	cli_table_add(t, 2, "%lld", (long long)cli_int(p, "size", 0));
	cli_table_add(t, 3, "%lld", (long long)cli_int(p, "parked", 0));
	cli_table_add(t, 4, "%lld", (long long)hits);
	cli_table_add(t, 5, "%lld", (long long)misses);
	if (hits + misses > 0)
		cli_table_add(t, 6, "%.1f%%",
			      100.0 * (double)hits / (double)(hits + misses));
	else
		cli_table_add(t, 6, "-");
	cli_table_add(t, 7, "%lld", (long long)cli_int(p, "wasted", 0));
}

static int pool_ls(struct cli *c)
{
	static const char *const heads[] = {"IMAGE",  "VERSION", "SIZE",
					    "PARKED", "HITS",	 "MISSES",
					    "RATE",   "WASTED"};
	json_t *all = NULL, *list, *p;
	struct cli_table t;
	size_t i;
	int code;

	if (c->argc != 1)
		return cli_usage(c, "pool ls takes no argument");
	code = cli_call(c, "pool", "GET", CLI_OWN "/pools", NULL, &all);
	if (code)
		return code;
	list = json_object_get(all, "items");
	if (!json_is_array(list)) {
		json_decref(all);
		return cli_fail(CLI_FAILED,
				"pool: thawd's answer has no list in it");
	}
	if (c->json) {
		cli_print_json(list, false);
	} else {
		cli_table_init(&t, heads, ARRAY_SIZE(heads));
		json_array_foreach(list, i, p) add_row(&t, p);
		cli_table_print(&t, !cli_flag(c, "no-header"));
	}
	json_decref(all);
	return 0;
}

static int pool_rm(struct cli *c)
{
	int worst = 0;

	if (c->argc < 2)
		return cli_usage(c, "pool rm needs IMAGE");
	for (int i = 1; i < c->argc; i++) {
		char *path = cli_path(CLI_OWN "/pools/%s", c->argv[i]);
		int code = cli_delete(c, c->argv[i], path);

		free(path);
		worst = code ? code : worst;
		if (code == CLI_UNREACHABLE)
			return code;
	}
	return worst;
}

int cmd_pool(struct cli *c)
{
	if (!strcmp(c->argv[0], "set"))
		return pool_set(c);
	if (!strcmp(c->argv[0], "ls") || !strcmp(c->argv[0], "list"))
		return pool_ls(c);
	if (!strcmp(c->argv[0], "rm"))
		return pool_rm(c);
	return cli_usage(c, "'%s' is none of set, ls and rm", c->argv[0]);
}
