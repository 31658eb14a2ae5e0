// thaw token: what opens a microVM's endpoint.
#include <stdlib.h>
#include <string.h>

#include "cli.h"

enum { MINUTES_MAX = 60 };

// "8080" or "8000-8010" as a PortSpecification; NULL when it is neither.
static json_t *parse_ports(const char *text)
{
	char *end;
	unsigned long first = strtoul(text, &end, 10), last = first;

	if (end == text || text[0] == '-' || text[0] == '+')
		return NULL;
	if (*end == '-') {
		text = end + 1;
		last = strtoul(text, &end, 10);
		if (end == text || *text == '-' || *text == '+')
			return NULL;
	}
	if (*end || first == 0 || last > 65535 || last < first)
		return NULL;
	if (last == first)
		return json_pack("{s:i}", "port", (int)first);
	return json_pack("{s:{s:i,s:i}}", "range", "startPort", (int)first,
			 "endPort", (int)last);
}

static int set_ports(struct cli *c, json_t *body)
{
	json_t *list = json_array();
	unsigned port = 0;
	const char *v;
	int code = 0;

	for (size_t i = 0; (v = cli_value_at(c, "port", i)); i++) {
		json_t *spec = parse_ports(v);

		if (!spec) {
			json_decref(list);
			return cli_usage(c,
					 "--port '%s' is no port and no range "
					 "like 8000-8010",
					 v);
		}
		json_array_append_new(list, spec);
	}
	if (cli_flag(c, "all-ports"))
		json_array_append_new(list, json_pack("{s:{}}", "allPorts"));
	if (!json_array_size(list)) {
		code = cli_default_port(c, c->argv[0], &port);
		json_array_append_new(list,
				      json_pack("{s:i}", "port", (int)port));
	}
	json_object_set_new(body, "allowedPorts", list);
	return code;
}

static int ask(struct cli *c, const json_t *body, bool shell)
{
	char *path = cli_path(CLI_AWS "/microvms/%s", c->argv[0]), *full;
	json_t *j = NULL, *value;
	const char *key;
	int code;

	if (asprintf(&full, "%s/%s", path,
		     shell ? "shell-auth-token" : "auth-token") < 0)
		abort();
	free(path);
	code = cli_call(c, c->argv[0], "POST", full, body, &j);
	free(full);
	if (code)
		return code;
	if (c->json)
		cli_print_json(j, false);
	json_object_foreach(json_object_get(j, "authToken"), key, value)
	{
		if (c->json)
			break;
		if (cli_flag(c, "header")) {
			cli_put(stdout, key);
			fputs(": ", stdout);
		}
		cli_put(stdout, json_string_value(value)
				    ? json_string_value(value)
				    : "");
		putchar('\n');
	}
	json_decref(j);
	return 0;
}

int cmd_token(struct cli *c)
{
	bool shell = cli_flag(c, "shell");
	uint64_t minutes = MINUTES_MAX;
	json_t *body;
	int code = cli_number(c, "minutes", MINUTES_MAX, &minutes);

	if (code)
		return code;
	if (!minutes)
		return cli_usage(c, "a token is good for 1 to %d minutes",
				 MINUTES_MAX);
	if ((shell && (cli_flag(c, "port") || cli_flag(c, "all-ports"))) ||
	    (cli_flag(c, "port") && cli_flag(c, "all-ports")))
		return cli_usage(c, "give one of --port, --all-ports and "
				    "--shell");
	body = json_pack("{s:I}", "expirationInMinutes", (json_int_t)minutes);
	code = shell ? 0 : set_ports(c, body);
	if (!code)
		code = ask(c, body, shell);
	json_decref(body);
	return code;
}
