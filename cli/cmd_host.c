// thaw stats, doctor, version: about the host and the programs.
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"

// Any JSON as "path  value" lines.
static void flatten(struct cli_table *t, const char *path, json_t *j)
{
	const char *key;
	char *sub, *text;
	json_t *v;
	size_t i;

	if (json_is_object(j)) {
		json_object_foreach(j, key, v)
		{
			if (asprintf(&sub, "%s%s%s", path, *path ? "." : "",
				     key) < 0)
				abort();
			flatten(t, sub, v);
			free(sub);
		}
	} else if (json_is_array(j)) {
		json_array_foreach(j, i, v)
		{
			if (asprintf(&sub, "%s[%zu]", path, i) < 0)
				abort();
			flatten(t, sub, v);
			free(sub);
		}
	} else {
		cli_table_add(t, 0, "%s", path);
		if (json_is_string(j)) {
			cli_table_add(t, 1, "%s", json_string_value(j));
		} else {
			text = json_dumps(j, JSON_ENCODE_ANY |
						 JSON_REAL_PRECISION(6));
			cli_table_add(t, 1, "%s", text ? text : "");
			free(text);
		}
	}
}

int cmd_stats(struct cli *c)
{
	static const char *const heads[] = {"FIGURE", "VALUE"};
	json_t *host = NULL, *stats = NULL, *both;
	struct cli_table t;
	int code = cli_call(c, "stats", "GET", CLI_OWN "/host", NULL, &host);

	if (!code)
		code =
		    cli_call(c, "stats", "GET", CLI_OWN "/stats", NULL, &stats);
	if (!code) {
		both = json_pack("{s:O,s:O}", "host", host, "thawd", stats);
		if (c->json) {
			cli_print_json(both, false);
		} else {
			cli_table_init(&t, heads, ARRAY_SIZE(heads));
			flatten(&t, "", both);
			cli_table_print(&t, false);
		}
		json_decref(both);
	}
	json_decref(host);
	json_decref(stats);
	return code;
}

// thawd beside this program, as it is installed or as it was built, or in PATH.
static void find_thawd(char *out, size_t cap)
{
	static const char *const places[] = {"thawd", "../sbin/thawd",
					     "../bin/thawd"};
	char self[PATH_MAX], *slash;
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	snprintf(out, cap, "thawd");
	if (n <= 0)
		return;
	self[n] = '\0';
	slash = strrchr(self, '/');
	if (!slash)
		return;
	*slash = '\0';
	for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
		char path[PATH_MAX + 32];

		snprintf(path, sizeof(path), "%s/%s", self, places[i]);
		if (access(path, X_OK) == 0) {
			snprintf(out, cap, "%s", path);
			return;
		}
	}
}

static int ask_program(struct cli *c)
{
	char path[PATH_MAX + 32];

	find_thawd(path, sizeof(path));
	execlp(path, path, "--doctor", c->json ? "--json" : NULL, NULL);
	return cli_fail(CLI_UNREACHABLE,
			"no thawd answers at %s, and none is installed beside "
			"this program or in PATH (%s)",
			c->socket, strerror(errno));
}

static void show_check(struct cli_table *t, const json_t *k)
{
	const json_t *ok = json_object_get(k, "ok");
	const char *status = cli_str(k, "status");
	const char *fix = cli_str(k, "remedy");

	if (!*status)
		status = json_is_true(ok) ? "ok" : "FAIL";
	cli_table_add(t, 0, "%s", status);
	cli_table_add(t, 1, "%s", cli_str(k, "name"));
	cli_table_add(t, 2, "%s%s%s", cli_str(k, "detail"), *fix ? "; " : "",
		      fix);
}

int cmd_doctor(struct cli *c)
{
	static const char *const heads[] = {"", "CHECK", "DETAIL"};
	json_t *j = NULL, *k;
	struct cli_table t;
	bool ok;
	size_t i;
	int code = cli_try(c, CLI_OWN "/doctor", &j);

	if (code == CLI_UNREACHABLE)
		return ask_program(c);
	if (code)
		return cli_call(c, "doctor", "GET", CLI_OWN "/doctor", NULL,
				NULL); // says why
	ok = json_is_true(json_object_get(j, "ok"));
	if (c->json) {
		cli_print_json(j, false);
	} else {
		cli_table_init(&t, heads, ARRAY_SIZE(heads));
		json_array_foreach(json_object_get(j, "checks"), i, k)
		    show_check(&t, k);
		cli_table_print(&t, false);
	}
	json_decref(j);
	return ok ? 0 : CLI_FAILED;
}

int cmd_version(struct cli *c)
{
	json_t *j = NULL;
	int code = cli_try(c, CLI_OWN "/version", &j);

	if (c->json) {
		json_t *both = json_pack("{s:s}", "thaw", THAW_VERSION);

		if (j)
			json_object_set(both, "thawd", j);
		cli_print_json(both, false);
		json_decref(both);
	} else {
		puts("thaw  " THAW_VERSION);
		if (code == 0)
			printf("thawd %s\n", cli_str(j, "version"));
		else if (code == CLI_UNREACHABLE)
			printf("thawd not running at %s\n", c->socket);
		else
			printf("thawd did not answer\n");
	}
	json_decref(j);
	return 0;
}
