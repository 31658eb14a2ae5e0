// thaw ps, inspect.
#include <stdlib.h>
#include <string.h>

#include "cli.h"

// Filters that thawd knows go into the query, the others are applied here.
static int list_path(struct cli *c, char **out)
{
	size_t len = 0;
	FILE *f = open_memstream(out, &len);
	char sep = '?';
	const char *v;
	char *enc;

	fputs(CLI_AWS "/microvms", f);
	for (size_t i = 0; (v = cli_value_at(c, "filter", i)); i++) {
		const char *eq = strchr(v, '=');
		bool label = !strncmp(v, "label=", 6);
		bool image = !strncmp(v, "image=", 6);

		if (!eq || (!label && !image && strncmp(v, "state=", 6) != 0 &&
			    strncmp(v, "name=", 5) != 0)) {
			fclose(f);
			free(*out);
			cli_usage(c,
				  "--filter '%s' is none of label=, state=, "
				  "image=, name=",
				  v);
			return CLI_USAGE;
		}
		if (!label && !image)
			continue;
		enc = httpc_encode(eq + 1);
		fprintf(f, "%c%s=%s", sep, label ? "label" : "imageIdentifier",
			enc);
		free(enc);
		sep = '&';
	}
	fclose(f);
	return 0;
}

static bool shown(const struct cli *c, const json_t *vm)
{
	const char *state = cli_str(vm, "state"), *v;
	const char *name = cli_str(json_object_get(vm, "thaw"), "name");
	bool by_state = false;

	for (size_t i = 0; (v = cli_value_at(c, "filter", i)); i++) {
		if (!strncmp(v, "state=", 6)) {
			by_state = true;
			if (strcasecmp(v + 6, state) != 0)
				return false;
		} else if (!strncmp(v, "name=", 5) && !strstr(name, v + 5)) {
			return false;
		}
	}
	return by_state || cli_flag(c, "all") ||
	       strcmp(state, "TERMINATED") != 0;
}

static char *labels_text(json_t *labels)
{
	const char *key;
	json_t *value;
	size_t len = 0;
	char *out = NULL;
	FILE *f = open_memstream(&out, &len);

	json_object_foreach(labels, key, value)
	{
		if (json_is_string(value))
			fprintf(f, "%s%s=%s", ftell(f) > 0 ? "," : "", key,
				json_string_value(value));
	}
	fclose(f);
	return out;
}

static void add_row(struct cli *c, struct cli_table *t, const json_t *vm)
{
	const json_t *own = json_object_get(vm, "thaw");
	const char *id = cli_str(vm, "microvmId");
	char a[64], b[64];
	char *labels = labels_text(json_object_get(own, "labels"));

	cli_table_add(t, 0, "%s",
		      cli_flag(c, "no-trunc") ? id
					      : cli_short_id(id, a, sizeof(a)));
	cli_table_add(t, 1, "%s", cli_str(own, "name"));
	cli_table_add(t, 2, "%s", cli_image_name(cli_str(vm, "imageArn")));
	cli_table_add(t, 3, "%s", cli_str(vm, "state"));
	cli_table_add(
	    t, 4, "%s",
	    cli_ago(json_number_value(json_object_get(vm, "startedAt")), b,
		    sizeof(b)));
	cli_table_add(t, 5, "%s", labels);
	free(labels);
}

int cmd_ps(struct cli *c)
{
	static const char *const heads[] = {"ID",    "NAME",	"IMAGE",
					    "STATE", "CREATED", "LABELS"};
	json_t *list, *vm, *out;
	struct cli_table t;
	char *path;
	size_t i;
	int code = list_path(c, &path);

	if (code)
		return code;
	code = cli_list(c, "ps", path, &list);
	free(path);
	if (code)
		return code;
	out = json_array();
	json_array_foreach(list, i, vm)
	{
		if (shown(c, vm))
			json_array_append(out, vm);
	}
	json_decref(list);
	cli_table_init(&t, heads, ARRAY_SIZE(heads));
	json_array_foreach(out, i, vm)
	{
		if (!c->json && cli_flag(c, "quiet"))
			printf("%s\n", cli_str(vm, "microvmId"));
		else if (!c->json)
			add_row(c, &t, vm);
	}
	if (c->json)
		cli_print_json(out, false);
	else if (!cli_flag(c, "quiet"))
		cli_table_print(&t, !cli_flag(c, "no-header"));
	json_decref(out);
	return 0;
}

int cmd_inspect(struct cli *c)
{
	int worst = 0;

	for (int i = 0; i < c->argc; i++) {
		char *path = cli_path(CLI_OWN "/microvms/%s", c->argv[i]);
		char *image = cli_path(CLI_OWN "/images/%s", c->argv[i]);
		json_t *j = NULL;
		int code = cli_try(c, image, &j);

		// A microVM of that name goes first; its error is the one said
		// when there is neither.
		if (code) {
			code = cli_call(c, c->argv[i], "GET", path, NULL, &j);
		} else {
			json_t *vm = NULL;

			if (!cli_try(c, path, &vm)) {
				json_decref(j);
				j = vm;
			}
		}
		if (!code)
			cli_print_json(j, !c->json);
		json_decref(j);
		free(path);
		free(image);
		worst = code ? code : worst;
		if (code == CLI_UNREACHABLE)
			break;
	}
	return worst;
}
