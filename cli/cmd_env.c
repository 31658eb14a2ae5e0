// thaw env: what an AWS SDK needs to be pointed here, as a shell takes it.
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

enum { KEYS_LINE_MAX = 1024 };

struct key {
	char id[160], secret[160];
};

// Cuts blanks off both ends, in place.
static char *trim(char *s)
{
	size_t n;

	s += strspn(s, " \t\r\n");
	n = strlen(s);
	while (n && isspace((unsigned char)s[n - 1]))
		s[--n] = '\0';
	return s;
}

// "name = value" of a profile.
static void take_setting(struct key *k, char *line)
{
	char *eq = strchr(line, '='), *name, *value;

	if (!eq)
		return;
	*eq = '\0';
	name = trim(line);
	value = trim(eq + 1);
	if (!strcasecmp(name, "aws_access_key_id"))
		snprintf(k->id, sizeof(k->id), "%s", value);
	else if (!strcasecmp(name, "aws_secret_access_key"))
		snprintf(k->secret, sizeof(k->secret), "%s", value);
}

// The key of a profile of thawd's keys file (docs/AUTH.md), or of its first one
// when none is named. thawd has judged the file; this only looks.
static int read_key(const char *path, const char *profile, struct key *k)
{
	FILE *f = fopen(path, "re");
	char line[KEYS_LINE_MAX], *s, *end;
	bool in = false, done = false;

	if (!f)
		return cli_fail(CLI_FAILED,
				"env: cannot read thawd's keys, %s: %s%s", path,
				strerror(errno),
				errno == EACCES ? "; use sudo, or ask for a "
						  "key of your own there"
						: "");
	while (!done && fgets(line, sizeof(line), f)) {
		s = trim(line);
		end = s + strlen(s);
		if (*s == '[' && end > s + 1 && end[-1] == ']') {
			done = in; // the wanted one is over
			end[-1] = '\0';
			in = !profile || !strcmp(trim(s + 1), profile);
		} else if (in && *s != '#' && *s != ';') {
			take_setting(k, s);
		}
	}
	fclose(f);
	explicit_bzero(line, sizeof(line));
	if (k->id[0] && k->secret[0])
		return 0;
	return cli_fail(CLI_NOT_FOUND, "env: %s has no key%s%s", path,
			profile ? " for the profile " : "",
			profile ? profile : "");
}

// A word that every shell takes as it is.
static void put_quoted(const char *s)
{
	putchar('\'');
	for (; *s; s++)
		if (*s == '\'')
			fputs("'\\''", stdout);
		else if ((unsigned char)*s >= 0x20)
			putchar(*s);
	putchar('\'');
}

static void put_all(const json_t *vars, bool fish)
{
	const char *key;
	json_t *value;

	json_object_foreach((json_t *)vars, key, value)
	{
		printf(fish ? "set -gx %s " : "export %s=", key);
		put_quoted(json_string_value(value));
		putchar('\n');
	}
}

// Where the endpoint is, and whom to trust for it. AWS_CA_BUNDLE is not set: the
// SDK would then trust nobody else, S3 included.
static void say_endpoint(const json_t *host, bool fish)
{
	const char *ca = cli_str(host, "endpointCa");

	if (!*cli_str(host, "endpoint")) {
		puts("# microVMs have no endpoint: thawd runs without "
		     "--endpoint ADDR:PORT");
	} else if (*ca) {
		printf("# microVMs' endpoints are signed by the authority in "
		       "$THAW_ENDPOINT_CA: curl --cacert\n# "
		       "\"$THAW_ENDPOINT_CA\", requests' verify=, Node.js "
		       "NODE_EXTRA_CA_CERTS\n");
	}
	printf("# to use it: %s\n", fish ? "thaw env --shell fish | source"
					 : "eval \"$(thaw env)\"");
}

// A client cannot call "every address".
static json_t *url_of(const char *listen)
{
	if (!strncmp(listen, "0.0.0.0:", 8))
		return json_sprintf("http://127.0.0.1:%s", listen + 8);
	if (!strncmp(listen, "[::]:", 5))
		return json_sprintf("http://[::1]:%s", listen + 5);
	return json_sprintf("http://%s", listen);
}

static int make_vars(struct cli *c, const json_t *host, json_t *vars)
{
	const char *listen = cli_str(host, "listen");
	const char *region = cli_str(host, "region");
	struct key k = {0};
	int code;

	if (!*listen)
		return cli_fail(CLI_CONFLICT,
				"env: thawd at %s does not listen for AWS's "
				"SDKs; start it with --listen 127.0.0.1:8480",
				c->socket);
	code = read_key(cli_str(host, "keysFile"), cli_value(c, "profile"), &k);
	if (code)
		return code;
	json_object_set_new(vars, "AWS_ENDPOINT_URL_LAMBDA_MICROVMS",
			    url_of(listen));
	json_object_set_new(vars, "AWS_ACCESS_KEY_ID", json_string(k.id));
	json_object_set_new(vars, "AWS_SECRET_ACCESS_KEY",
			    json_string(k.secret));
	json_object_set_new(vars, "AWS_REGION", json_string(region));
	json_object_set_new(vars, "AWS_DEFAULT_REGION", json_string(region));
	if (*cli_str(host, "endpointCa"))
		json_object_set_new(vars, "THAW_ENDPOINT_CA",
				    json_string(cli_str(host, "endpointCa")));
	explicit_bzero(&k, sizeof(k));
	return 0;
}

int cmd_env(struct cli *c)
{
	const char *shell = cli_value(c, "shell");
	bool fish = shell && !strcmp(shell, "fish");
	json_t *host = NULL, *vars;
	int code;

	if (shell && !fish && strcmp(shell, "sh") != 0 &&
	    strcmp(shell, "bash") != 0 && strcmp(shell, "zsh") != 0)
		return cli_usage(c, "'%s' is none of sh, bash, zsh and fish",
				 shell);
	code = cli_call(c, "env", "GET", CLI_OWN "/host", NULL, &host);
	if (code)
		return code;
	vars = json_object();
	code = make_vars(c, host, vars);
	if (!code && c->json) {
		cli_print_json(vars, false);
	} else if (!code) {
		put_all(vars, fish);
		// A session token of other credentials would be sent along; and
		// the SDK for JavaScript prefers a profile's to these.
		puts(fish ? "set -e AWS_SESSION_TOKEN AWS_PROFILE"
			  : "unset AWS_SESSION_TOKEN AWS_PROFILE");
		say_endpoint(host, fish);
	}
	json_decref(vars);
	json_decref(host);
	return code;
}
