// thaw suspend, resume, rm: one verb on several microVMs. Each is tried; the
// last failure's code is the exit code.
#include <stdlib.h>
#include <string.h>

#include "cli.h"

enum { WAIT_DEFAULT_S = 300 };

struct change {
	const char *method, *tail; // of the request
	const char *state;	   // that it ends in
};

static int change_one(struct cli *c, const struct change *k, const char *id,
		      uint64_t timeout_s)
{
	char *base = cli_path(CLI_AWS "/microvms/%s", id), *path;
	json_t *vm = NULL;
	int code;

	// Waiting in the request itself brings the reason when it fails.
	if (cli_flag(c, "no-wait")
		? asprintf(&path, "%s%s", base, k->tail) < 0
		: asprintf(&path, "%s%s?wait=%s&timeout=%u", base, k->tail,
			   k->state, (unsigned)MIN(timeout_s, 3600u)) < 0)
		abort();
	free(base);
	code = cli_call(c, id, k->method, path, NULL, NULL);
	free(path);
	if (!code && !cli_flag(c, "no-wait"))
		code = cli_wait(c, id, k->state, timeout_s, &vm);
	if (!code && c->json && vm)
		cli_print_json(vm, false);
	else if (!code)
		puts(id);
	json_decref(vm);
	return code;
}

// As docker's: what has stopped is removed, which SUSPENDED and TERMINATED are;
// what runs is thrown away with --force alone.
static int may_remove(struct cli *c, const char *id, bool *skip)
{
	char *path = cli_path(CLI_AWS "/microvms/%s", id);
	json_t *vm = NULL;
	int code = 0;

	*skip = false;
	if (cli_flag(c, "force")) {
		*skip = cli_try(c, path, &vm) == CLI_NOT_FOUND;
	} else {
		code = cli_call(c, id, "GET", path, NULL, &vm);
		if (!code && strcmp(cli_str(vm, "state"), "SUSPENDED") != 0 &&
		    strcmp(cli_str(vm, "state"), "TERMINATED") != 0)
			code = cli_fail(CLI_CONFLICT,
					"%s: it is %s, and its state would be "
					"lost; 'thaw rm -f %s' removes it",
					id, cli_str(vm, "state"), id);
	}
	json_decref(vm);
	free(path);
	return code;
}

static int change_all(struct cli *c, const struct change *k, bool removing)
{
	uint64_t timeout_s = WAIT_DEFAULT_S;
	int worst = cli_number(c, "timeout", 1u << 30, &timeout_s);

	for (int i = 0; i < c->argc && worst != CLI_USAGE; i++) {
		bool skip = false;
		int code = 0;

		if (removing)
			code = may_remove(c, c->argv[i], &skip);
		if (!code && !skip)
			code = change_one(c, k, c->argv[i], timeout_s);
		worst = code ? code : worst;
		if (code == CLI_UNREACHABLE)
			break;
	}
	return worst;
}

int cmd_suspend(struct cli *c)
{
	static const struct change k = {"POST", "/suspend", "SUSPENDED"};

	return change_all(c, &k, false);
}

int cmd_resume(struct cli *c)
{
	static const struct change k = {"POST", "/resume", "RUNNING"};

	return change_all(c, &k, false);
}

int cmd_rm(struct cli *c)
{
	static const struct change k = {"DELETE", "", "TERMINATED"};

	return change_all(c, &k, true);
}
