// thaw: the command line. A client of thawd's socket, and of nothing else.
//
// Parses an invocation by the table of verbs.c, and calls the verb, whose file is
// named after it.
#include <errno.h>
#include <getopt.h>
#include <locale.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

const struct cli_opt cli_global_opts[] = {
    {0, "socket", "PATH", "thawd's socket ($THAW_SOCKET, /run/thaw/thaw.sock)"},
    {0, "json", NULL, "print the API's JSON instead of text"},
    {'h', "help", NULL, "show help"},
    {0, NULL, NULL, NULL}};

// --- messages ------------------------------------------------------------

int cli_fail(int code, const char *fmt, ...)
{
	char text[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	fputs("thaw: ", stderr);
	cli_put(stderr, text);
	fputc('\n', stderr);
	return code;
}

int cli_usage(const struct cli *c, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	cli_fail(CLI_USAGE, "%s", text);
	fprintf(stderr, "usage: thaw %s %s\n       thaw help %s\n",
		c->cmd->name, c->cmd->args, c->cmd->name);
	return CLI_USAGE;
}

// --- options -------------------------------------------------------------

bool cli_flag(const struct cli *c, const char *name)
{
	return cli_value(c, name) != NULL;
}

const char *cli_value(const struct cli *c, const char *name)
{
	for (size_t i = c->ngiven; i-- > 0;)
		if (!strcmp(c->given[i].opt->name, name))
			return c->given[i].value;
	return NULL;
}

const char *cli_value_at(const struct cli *c, const char *name, size_t nth)
{
	for (size_t i = 0; i < c->ngiven; i++)
		if (!strcmp(c->given[i].opt->name, name) && nth-- == 0)
			return c->given[i].value;
	return NULL;
}

int cli_number(const struct cli *c, const char *name, uint64_t max,
	       uint64_t *out)
{
	const char *text = cli_value(c, name);
	char *end;

	if (!text)
		return 0;
	errno = 0;
	*out = strtoull(text, &end, 10);
	if (errno || end == text || *end || text[0] == '-' || *out > max)
		return cli_usage(c, "--%s '%s' is not a number from 0 to %llu",
				 name, text, (unsigned long long)max);
	return 0;
}

// A plain number is MiB; with a unit it is bytes.
int cli_mib(const struct cli *c, const char *name, uint64_t *out)
{
	const char *text = cli_value(c, name);
	uint64_t v;

	if (!text)
		return 0;
	if (util_parse_size(text, &v))
		return cli_usage(c, "--%s '%s' is not a size like 512M or 2G",
				 name, text);
	if (strspn(text, "0123456789") == strlen(text))
		*out = v;
	else
		*out = (v + (1u << 20) - 1) >> 20;
	return 0;
}

static const struct cli_opt *nth_opt(const struct cli_command *cmd, size_t n)
{
	size_t globals = ARRAY_SIZE(cli_global_opts) - 1;

	return n < globals ? &cli_global_opts[n] : &cmd->opts[n - globals];
}

// getopt's tables from ours. In `shorts`: '+' stops at the first argument.
static void getopt_tables(const struct cli_command *cmd, struct option *longs,
			  char *shorts)
{
	const struct cli_opt *o;
	char *s = shorts;
	size_t n = 0;

	if (cmd->stop_at_first)
		*s++ = '+';
	*s++ = ':';
	for (; (o = nth_opt(cmd, n))->name; n++) {
		longs[n] = (struct option){o->name, o->arg ? 1 : 0, NULL,
					   (int)(1000 + n)};
		if (o->letter) {
			*s++ = o->letter;
			if (o->arg)
				*s++ = ':';
		}
	}
	longs[n] = (struct option){NULL, 0, NULL, 0};
	*s = '\0';
}

static const struct cli_opt *find_opt(const struct cli_command *cmd, int code)
{
	const struct cli_opt *o;

	for (size_t n = 0; (o = nth_opt(cmd, n))->name; n++)
		if (code == (int)(1000 + n) || (o->letter && code == o->letter))
			return o;
	return NULL;
}

static int parse_opts(struct cli *c, int argc, char **argv)
{
	struct option longs[CLI_OPTS_MAX + 8];
	char shorts[2 * CLI_OPTS_MAX + 8];
	const struct cli_opt *o;
	int code;

	getopt_tables(c->cmd, longs, shorts);
	optind = 1;
	opterr = 0;
	while ((code = getopt_long(argc, argv, shorts, longs, NULL)) != -1) {
		if (code == '?')
			return cli_usage(c, "unknown option '%s'",
					 argv[optind - 1]);
		if (code == ':')
			return cli_usage(c, "option '%s' needs a value",
					 argv[optind - 1]);
		o = find_opt(c->cmd, code);
		if (!o || c->ngiven == CLI_GIVEN_MAX)
			return cli_usage(c, "too many options");
		c->given[c->ngiven].opt = o;
		c->given[c->ngiven++].value = optarg ? optarg : "";
	}
	c->argc = argc - optind;
	c->argv = argv + optind;
	return 0;
}

// Arguments after "--" are found before getopt reorders them: it moves "--" to
// the front of what is left, and so they are the last ones.
static void find_dash(struct cli *c, int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--") != 0)
			continue;
		c->double_dash = true;
		c->dash_at = argc - i - 1; // from the end, for now
		return;
	}
}

static int run(struct cli *c, int argc, char **argv)
{
	const char *v;
	int rc;

	find_dash(c, argc, argv);
	rc = parse_opts(c, argc, argv);
	if (rc)
		return rc;
	if (cli_flag(c, "help")) {
		cli_help(c->cmd, stdout);
		return 0;
	}
	c->dash_at = c->argc - c->dash_at;
	if (cli_flag(c, "json"))
		c->json = true;
	v = cli_value(c, "socket");
	if (v)
		c->socket = v;
	if (c->argc < c->cmd->min_args)
		return cli_usage(c, "%s needs %s", c->cmd->name, c->cmd->args);
	if (c->cmd->max_args >= 0 && c->argc > c->cmd->max_args)
		return cli_usage(c, "'%s' is one argument too many",
				 c->argv[c->cmd->max_args]);
	return c->cmd->run(c);
}

static const struct cli_command *find_command(const char *name)
{
	static const char *const aliases[][2] = {
	    {"ls", "ps"}, {"terminate", "rm"}, {"log", "logs"}};

	for (const struct cli_command *k = cli_commands; k->name; k++)
		if (!strcmp(k->name, name))
			return k;
	for (size_t i = 0; i < ARRAY_SIZE(aliases); i++)
		if (!strcmp(aliases[i][0], name))
			return find_command(aliases[i][1]);
	return NULL;
}

int cmd_help(struct cli *c)
{
	const struct cli_command *k = NULL;

	if (c->argc) {
		k = find_command(c->argv[0]);
		if (!k)
			return cli_fail(CLI_USAGE,
					"there is no verb '%s'; 'thaw help' "
					"lists them",
					c->argv[0]);
	}
	cli_help(k, stdout);
	return 0;
}

// Options that stand before the verb.
static int leading(struct cli *c, int argc, char **argv)
{
	int i = 1;

	for (; i < argc && argv[i][0] == '-'; i++) {
		if (!strcmp(argv[i], "--json")) {
			c->json = true;
		} else if (!strcmp(argv[i], "--socket") && i + 1 < argc) {
			c->socket = argv[++i];
		} else if (!strncmp(argv[i], "--socket=", 9)) {
			c->socket = argv[i] + 9;
		} else if (!strcmp(argv[i], "--help") ||
			   !strcmp(argv[i], "-h")) {
			cli_help(NULL, stdout);
			return -1;
		} else if (!strcmp(argv[i], "--version")) {
			puts("thaw " THAW_VERSION);
			return -1;
		} else {
			cli_fail(0,
				 "unknown option '%s'; 'thaw help' lists what "
				 "there is",
				 argv[i]);
			return -CLI_USAGE;
		}
	}
	return i;
}

int main(int argc, char **argv)
{
	static struct cli c;
	const char *env = getenv("THAW_SOCKET");
	int at, code;

	setlocale(LC_ALL, "");
	signal(SIGPIPE, SIG_IGN);
	c.socket = env && *env ? env : "/run/thaw/thaw.sock";
	at = leading(&c, argc, argv);
	if (at < 0)
		return at == -1 ? 0 : CLI_USAGE;
	if (at >= argc) {
		cli_help(NULL, stderr);
		return CLI_USAGE;
	}
	c.cmd = find_command(argv[at]);
	if (!c.cmd)
		return cli_fail(CLI_USAGE,
				"there is no verb '%s'; 'thaw help' lists them",
				argv[at]);
	code = run(&c, argc - at, argv + at);
	if ((fflush(stdout) || ferror(stdout)) && !code)
		code = cli_fail(CLI_FAILED, "writing the output: %s",
				strerror(errno));
	return code;
}
