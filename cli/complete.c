// Help and shell completion, both from the command table.
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static void print_opts(const struct cli_opt *opts, FILE *to)
{
	for (const struct cli_opt *o = opts; o->name; o++) {
		char left[64];

		snprintf(left, sizeof(left), "%c%c%s --%s%s%s",
			 o->letter ? '-' : ' ', o->letter ? o->letter : ' ',
			 o->letter ? "," : " ", o->name, o->arg ? " " : "",
			 o->arg ? o->arg : "");
		fprintf(to, "  %-28s %s\n", left, o->help);
	}
}

void cli_help(const struct cli_command *cmd, FILE *to)
{
	if (cmd) {
		fprintf(to, "usage: thaw %s %s%s\n\n%s\n", cmd->name,
			cmd->opts[0].name ? "[OPTION...] " : "", cmd->args,
			cmd->summary ? cmd->summary : "");
		if (cmd->text)
			fprintf(to, "\n%s", cmd->text);
		fputs("\noptions:\n", to);
		print_opts(cmd->opts, to);
		print_opts(cli_global_opts, to);
		return;
	}
	fputs("usage: thaw [--socket PATH] [--json] VERB ...\n\n"
	      "Freezes running microVMs, and thaws copies of them.\n\n"
	      "verbs:\n",
	      to);
	for (const struct cli_command *k = cli_commands; k->name; k++)
		if (k->summary)
			fprintf(to, "  %-11s %s\n", k->name, k->summary);
	fputs("\nA microVM is named by its id, the beginning of its id, or its "
	      "name.\n"
	      "exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 conflict or "
	      "wrong state,\n"
	      "5 quota or space, 125 thawd cannot be reached\n\n"
	      "'thaw help VERB' shows a verb's options.\n",
	      to);
}

static const char *ids_of(const struct cli_command *k)
{
	switch (k->complete) {
	case COMPLETE_VM:
		return "vm";
	case COMPLETE_IMAGE:
	case COMPLETE_POOL:
		return "image";
	case COMPLETE_BOTH:
		return "both";
	default:
		return NULL;
	}
}

static void bash_words(const struct cli_opt *opts)
{
	for (const struct cli_opt *o = opts; o->name; o++)
		printf(" --%s", o->name);
}

// The verb is the first word that is no option and no --socket's value. zsh
// runs the same function through bashcompinit.
static void bash_script(void)
{
	puts("_thaw() {\n"
	     "	local cur=${COMP_WORDS[COMP_CWORD]} verb= words= i\n"
	     "	COMPREPLY=()\n"
	     "	for ((i = 1; i < COMP_CWORD; i++)); do\n"
	     "		case ${COMP_WORDS[i]} in\n"
	     "		--socket) ((i++)) ;;\n"
	     "		-*) ;;\n"
	     "		*) verb=${COMP_WORDS[i]}; break ;;\n"
	     "		esac\n"
	     "	done\n"
	     "	case ${COMP_WORDS[COMP_CWORD-1]} in\n"
	     "	--rootfs|--kernel|--socket)\n"
	     "		COMPREPLY=($(compgen -f -- \"$cur\")); return ;;\n"
	     "	esac\n"
	     "	case $verb in");
	printf("	''|help) words='");
	for (const struct cli_command *k = cli_commands; k->name; k++)
		if (k->summary)
			printf("%s ", k->name);
	printf("--json --socket --help' ;;\n");
	for (const struct cli_command *k = cli_commands; k->name; k++) {
		if (!k->summary || !strcmp(k->name, "help"))
			continue;
		printf("	%s) words='", k->name);
		bash_words(cli_global_opts);
		bash_words(k->opts);
		putchar('\'');
		if (k->complete == COMPLETE_SHELL)
			printf("; words+=' bash zsh fish'");
		if (k->complete == COMPLETE_POOL)
			printf("; words+=' set ls rm'");
		if (!strcmp(k->name, "wait"))
			printf("; words+=' RUNNING SUSPENDED TERMINATED'");
		if (k->complete == COMPLETE_FILE)
			printf(
			    "\n		[[ $cur == -* ]] || {\n"
			    "			compopt -o filenames "
			    "2>/dev/null\n"
			    "			COMPREPLY=($(compgen -f -- "
			    "\"$cur\")); return; }\n		");
		if (ids_of(k))
			printf("\n		[[ $cur == -* ]] || words+=\" "
			       "$(thaw __ids %s 2>/dev/null)\"",
			       ids_of(k));
		puts(" ;;");
	}
	puts("	esac\n"
	     "	COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
	     "}\n"
	     "complete -F _thaw thaw");
}

static void fish_text(const char *p)
{
	putchar('\'');
	for (; *p; p++)
		if (*p == '\'')
			fputs("\\'", stdout);
		else
			putchar(*p);
	puts("'");
}

static void fish_opts(const struct cli_opt *opts, const char *verb)
{
	for (const struct cli_opt *o = opts; o->name; o++) {
		printf("complete -c thaw");
		if (verb)
			printf(" -n '__fish_seen_subcommand_from %s'", verb);
		printf(" -l %s", o->name);
		if (o->letter)
			printf(" -s %c", o->letter);
		printf("%s -d ", o->arg ? " -r" : "");
		fish_text(o->help);
	}
}

static void fish_script(void)
{
	puts("complete -c thaw -f");
	fish_opts(cli_global_opts, NULL);
	for (const struct cli_command *k = cli_commands; k->name; k++) {
		const char *ids = ids_of(k);

		if (!k->summary)
			continue;
		printf("complete -c thaw -n __fish_use_subcommand -a %s -d ",
		       k->name);
		fish_text(k->summary);
		fish_opts(k->opts, k->name);
		if (ids)
			printf("complete -c thaw -n "
			       "'__fish_seen_subcommand_from %s' -a "
			       "'(thaw __ids %s 2>/dev/null)'\n",
			       k->name, ids);
		if (k->complete == COMPLETE_POOL)
			printf("complete -c thaw -n "
			       "'__fish_seen_subcommand_from pool' -a 'set ls "
			       "rm'\n");
		if (k->complete == COMPLETE_SHELL)
			printf("complete -c thaw -n "
			       "'__fish_seen_subcommand_from %s' -a 'bash zsh "
			       "fish'\n",
			       k->name);
	}
	puts("complete -c thaw -n '__fish_seen_subcommand_from wait' -a "
	     "'RUNNING SUSPENDED TERMINATED'\n"
	     "complete -c thaw -n '__fish_seen_subcommand_from build' -F");
}

int cli_completion(struct cli *c)
{
	const char *shell = c->argv[0];

	if (!strcmp(shell, "bash")) {
		bash_script();
	} else if (!strcmp(shell, "zsh")) {
		puts("autoload -Uz +X compinit bashcompinit && compinit && "
		     "bashcompinit");
		bash_script();
	} else if (!strcmp(shell, "fish")) {
		fish_script();
	} else {
		return cli_usage(c, "'%s' is none of bash, zsh and fish",
				 shell);
	}
	return 0;
}

// Only words that a shell takes as they are: a name that holds anything else
// was not made by thawd.
static void print_word(const char *s)
{
	if (*s &&
	    strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
		      "0123456789-_.") == strlen(s))
		puts(s);
}

int cli_complete_ids(struct cli *c)
{
	json_t *j = NULL, *item;
	size_t i;

	if (strcmp(c->argv[0], "image") != 0 &&
	    !cli_try(c, CLI_AWS "/microvms?maxResults=50", &j)) {
		json_array_foreach(json_object_get(j, "items"), i, item)
		{
			if (!strcmp(cli_str(item, "state"), "TERMINATED"))
				continue;
			print_word(cli_str(item, "microvmId"));
			print_word(
			    cli_str(json_object_get(item, "thaw"), "name"));
		}
		json_decref(j);
	}
	if (strcmp(c->argv[0], "vm") != 0 &&
	    !cli_try(c, CLI_AWS "/microvm-images?maxResults=50", &j)) {
		json_array_foreach(json_object_get(j, "items"), i, item)
		    print_word(cli_str(item, "name"));
		json_decref(j);
	}
	return 0;
}
