// Ports of a guest: the one that its image is asked on, and those on which
// something listens.
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

enum { PORT_WHEN_UNKNOWN = 8080, LISTENERS_MAX = 64, TCP_LISTEN = 0x0a };

struct listener {
	unsigned port;
	char host[INET6_ADDRSTRLEN];
};

// The first port that the image's Dockerfile EXPOSEs, else the one it was
// frozen on.
static unsigned port_of(const json_t *spec)
{
	const json_t *exposed = json_object_get(spec, "ports");
	json_int_t port = json_integer_value(json_array_get(exposed, 0));

	if (!port)
		port = cli_int(spec, "readyPort", 0);
	return port > 0 && port < 65536 ? (unsigned)port : 0;
}

unsigned cli_image_port(struct cli *c, const json_t *vm)
{
	const char *version = cli_str(vm, "imageVersion");
	char *path = cli_path(CLI_OWN "/images/%s",
			      cli_image_name(cli_str(vm, "imageArn")));
	json_t *image = NULL, *v;
	unsigned port = 0;
	size_t i;

	cli_try(c, path, &image);
	free(path);
	json_array_foreach(json_object_get(image, "versions"), i, v)
	{
		if (!strcmp(cli_str(v, "version"), version))
			port = port_of(json_object_get(v, "spec"));
	}
	json_decref(image);
	return port ? port : PORT_WHEN_UNKNOWN;
}

int cli_default_port(struct cli *c, const char *id, unsigned *port)
{
	char *path = cli_path(CLI_AWS "/microvms/%s", id);
	json_t *vm = NULL;
	int code = cli_call(c, id, "GET", path, NULL, &vm);

	free(path);
	if (!code)
		*port = cli_image_port(c, vm);
	json_decref(vm);
	return code;
}

// An address as /proc/net/tcp has it: 32-bit words of the machine's order, in
// hex. False when it is none.
static bool parse_host(const char *hex, size_t n, char *out, size_t cap)
{
	uint32_t words[4];
	char digits[9] = "";

	if (n != 8 && n != 32)
		return false;
	for (size_t i = 0; i < n / 8; i++) {
		memcpy(digits, hex + 8 * i, 8);
		words[i] = (uint32_t)strtoul(digits, NULL, 16);
	}
	return inet_ntop(n == 8 ? AF_INET : AF_INET6, words, out,
			 (socklen_t)cap) != NULL;
}

// "  0: 0100007F:1F90 00000000:0000 0A ...": true when it listens.
static bool parse_line(const char *line, struct listener *out)
{
	char host[33], rest[64];
	unsigned state;

	if (sscanf(line, " %*u: %32[0-9A-F]:%4x %63s %2x", host, &out->port,
		   rest, &state) != 4 ||
	    state != TCP_LISTEN || !out->port)
		return false;
	// The agent's metadata service is not what anybody looks for.
	return parse_host(host, strlen(host), out->host, sizeof(out->host)) &&
	       strcmp(out->host, "169.254.169.254") != 0;
}

static int by_port(const void *a, const void *b)
{
	const struct listener *x = a, *y = b;

	if (x->port != y->port)
		return x->port < y->port ? -1 : 1;
	return strcmp(x->host, y->host);
}

// All of them, each once. `text` is the guest's and is taken apart.
static size_t parse_listeners(char *text, struct listener *all)
{
	size_t n = 0, kept = 0;
	char *save = NULL;

	for (char *line = strtok_r(text, "\n", &save);
	     line && n < LISTENERS_MAX; line = strtok_r(NULL, "\n", &save))
		n += parse_line(line, &all[n]);
	qsort(all, n, sizeof(*all), by_port);
	for (size_t i = 0; i < n; i++)
		if (!kept || by_port(&all[i], &all[kept - 1]) != 0)
			all[kept++] = all[i];
	return kept;
}

static void say(const struct listener *all, size_t n)
{
	if (!n) {
		fputs("thaw: nothing listens on any port in it\n", stderr);
		return;
	}
	fputs("thaw: in it listen: ", stderr);
	for (size_t i = 0; i < n; i++)
		fprintf(stderr, "%s%u (%s)", i ? ", " : "", all[i].port,
			all[i].host);
	fputc('\n', stderr);
}

void cli_say_listeners(struct cli *c, const char *id)
{
	char *path = cli_path(CLI_OWN "/microvms/%s/exec", id);
	json_t *body =
	    json_pack("{s:[s,s,s],s:i}", "command", "cat", "/proc/net/tcp",
		      "/proc/net/tcp6", "timeoutSeconds", 20);
	struct listener all[LISTENERS_MAX];
	json_t *out = NULL;
	char *text = NULL;

	// cat fails where there is no IPv6, and has printed the first file.
	if (!cli_quiet(c, "POST", path, body, &out) &&
	    strstr(cli_str(out, "stdout"), "local_address"))
		text = strdup(cli_str(out, "stdout"));
	if (text)
		say(all, parse_listeners(text, all));
	else
		fputs("thaw: which ports listen in it could not be read: it "
		      "has no cat, or no agent\n",
		      stderr);
	free(text);
	json_decref(out);
	json_decref(body);
	free(path);
}
