// The manual page, thaw(1), from the command table: `thaw __man`, which the build
// calls once. What has to be said beside the table is here.
#include <ctype.h>
#include <string.h>

#include "cli.h"

// Text as roff takes it: a dot or quote at a line's beginning is a request, and a
// backslash is the escape; a hyphen would become another character.
static void put(const char *s)
{
	bool begin = true;

	for (; *s; s++) {
		if (begin && (*s == '.' || *s == '\''))
			fputs("\\&", stdout);
		if (*s == '\\')
			fputs("\\e", stdout);
		else if (*s == '-')
			fputs("\\-", stdout);
		else
			putchar(*s);
		begin = *s == '\n';
	}
}

static void put_upper(const char *s)
{
	for (; *s; s++)
		putchar(toupper((unsigned char)*s));
}

static void options(const struct cli_opt *o)
{
	for (; o->name; o++) {
		fputs(".TP\n", stdout);
		if (o->letter)
			printf("\\fB\\-%c\\fR, ", o->letter);
		fputs("\\fB", stdout);
		put("--");
		put(o->name);
		fputs("\\fR", stdout);
		if (o->arg) {
			fputs(" \\fI", stdout);
			put(o->arg);
			fputs("\\fR", stdout);
		}
		putchar('\n');
		put(o->help);
		putchar('\n');
	}
}

static void verb(const struct cli_command *k)
{
	printf(".SS \\fBthaw %s\\fR ", k->name);
	put(k->opts[0].name ? "[OPTION...] " : "");
	put(k->args);
	putchar('\n');
	put(k->summary);
	fputs(".\n", stdout);
	if (k->text) {
		fputs(".PP\n.nf\n", stdout);
		put(k->text);
		fputs(".fi\n", stdout);
	}
	options(k->opts);
}

int cli_man(struct cli *c)
{
	(void)c;
	fputs(".TH ", stdout);
	put_upper("thaw");
	puts(" 1 \"\" \"thaw " THAW_VERSION "\" \"User Commands\"\n"
	     ".SH NAME\n"
	     "thaw \\- freeze running microVMs, and thaw copies of them\n"
	     ".SH SYNOPSIS\n"
	     "\\fBthaw\\fR [\\fIOPTION\\fR...] \\fIVERB\\fR "
	     "[\\fIARGUMENT\\fR...]\n"
	     ".SH DESCRIPTION\n"
	     "thaw is the command line of thawd, which keeps images of Linux "
	     "microVMs with\n"
	     "a started application, and runs copies of them. A microVM is "
	     "named by its id,\n"
	     "the beginning of its id, or its name.\n"
	     ".SH OPTIONS\nFor every verb:");
	options(cli_global_opts);
	puts(".SH VERBS");
	for (const struct cli_command *k = cli_commands; k->name; k++)
		if (k->summary)
			verb(k);
	puts(".SH EXIT STATUS\n"
	     "0 ok, 1 failed, 2 usage, 3 not found, 4 conflict or wrong state, "
	     "5 quota or\n"
	     "space, 125 thawd cannot be reached; of \\fBthaw exec\\fR that of "
	     "the command.\n"
	     ".SH ENVIRONMENT\n.TP\n\\fBTHAW_SOCKET\\fR\n"
	     "thawd's socket, where \\fB\\-\\-socket\\fR is not given.\n"
	     ".SH FILES\n.TP\n\\fI/run/thaw/thaw.sock\\fR\nthawd's socket.\n"
	     ".TP\n\\fI/var/lib/thaw\\fR\n"
	     "images, microVMs and thawd's registry.\n"
	     ".SH SEE ALSO\n"
	     "\\fBthawd \\-\\-help\\fR, \\fBthaw\\-pool \\-\\-help\\fR, "
	     "\\fBthaw\\-bench \\-\\-help\\fR");
	return 0;
}
