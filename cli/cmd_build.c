// thaw build: one long request whose answer is lines of progress; build_show.c
// shows them.
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"

enum { HOOKS_PORT = 9000 };

// Splits like a shell: blanks, '...', "...", \. No expansions of any kind. NULL
// when a quote is not closed.
static json_t *split_words(const char *s)
{
	json_t *words = json_array();
	char *word = malloc(strlen(s) + 1), *w = word;
	bool in_word = false, ok = true;
	char quote = 0;

	for (; *s; s++) {
		if (quote) {
			if (*s == quote)
				quote = 0;
			else if (*s == '\\' && quote == '"' && s[1] &&
				 strchr("\"\\$`", s[1]))
				*w++ = *++s;
			else
				*w++ = *s;
		} else if (*s == '\'' || *s == '"') {
			quote = *s;
			in_word = true;
		} else if (*s == '\\' && s[1]) {
			*w++ = *++s;
			in_word = true;
		} else if (isspace((unsigned char)*s)) {
			if (in_word)
				json_array_append_new(
				    words,
				    json_stringn(word, (size_t)(w - word)));
			in_word = false;
			w = word;
		} else {
			*w++ = *s;
			in_word = true;
		}
	}
	if (in_word)
		json_array_append_new(words,
				      json_stringn(word, (size_t)(w - word)));
	ok = !quote;
	free(word);
	if (ok)
		return words;
	json_decref(words);
	return NULL;
}

// thawd has another working directory.
static json_t *absolute(const char *path)
{
	char cwd[PATH_MAX], *full;
	json_t *j;

	if (path[0] == '/' || !getcwd(cwd, sizeof(cwd)))
		return json_string(path);
	if (asprintf(&full, "%s/%s", cwd, path) < 0)
		return NULL;
	j = json_string(full);
	free(full);
	return j;
}

static int set_entrypoint(struct cli *c, json_t *body)
{
	const char *text = cli_value(c, "entrypoint");
	json_t *words;

	if (text && c->argc > 1)
		return cli_usage(c, "give either --entrypoint or the words "
				    "after --, not both");
	if (c->argc > 1 && (!c->double_dash || c->dash_at != 1))
		return cli_usage(c,
				 "'%s' is one argument too many: the program "
				 "to start stands after --",
				 c->argv[1]);
	if (text) {
		words = split_words(text);
		if (!words)
			return cli_usage(c, "--entrypoint has a quote that is "
					    "not closed");
	} else {
		words = json_array();
		for (int i = 1; i < c->argc; i++)
			json_array_append_new(words, json_string(c->argv[i]));
	}
	if (json_array_size(words) == 0) {
		json_decref(words);
		return cli_usage(c, "which program shall be started? Give "
				    "--entrypoint CMD, or -- CMD ARG...");
	}
	json_object_set_new(body, "entrypoint", words);
	return 0;
}

static void set_text(struct cli *c, json_t *body, const char *opt,
		     const char *key)
{
	const char *v = cli_value(c, opt);

	if (v)
		json_object_set_new(body, key, json_string(v));
}

static int set_numbers(struct cli *c, json_t *body)
{
	uint64_t mem = 0, disk = 0, vcpus = 0, port = 0, ready = 300;
	int rc = cli_mib(c, "memory", &mem);

	rc = rc ? rc : cli_mib(c, "disk", &disk);
	rc = rc ? rc : cli_number(c, "vcpus", 16, &vcpus);
	rc = rc ? rc : cli_number(c, "port", 65535, &port);
	rc = rc ? rc : cli_number(c, "ready-timeout", 3600, &ready);
	if (rc)
		return rc;
	if (mem)
		json_object_set_new(body, "memoryMiB",
				    json_integer((json_int_t)mem));
	if (disk)
		json_object_set_new(body, "diskMiB",
				    json_integer((json_int_t)disk));
	if (vcpus)
		json_object_set_new(body, "vcpus",
				    json_integer((json_int_t)vcpus));
	if (port)
		json_object_set_new(body, "readyPort",
				    json_integer((json_int_t)port));
	if (ready)
		json_object_set_new(body, "readyTimeoutSeconds",
				    json_integer((json_int_t)ready));
	return 0;
}

// A list of K=V from a repeated option; as docker has it, a bare name passes
// ours on.
static void set_pairs(struct cli *c, json_t *body, const char *opt,
		      const char *key)
{
	json_t *list = json_array();
	const char *v;

	for (size_t i = 0; (v = cli_value_at(c, opt, i)); i++) {
		const char *host;
		char *kv = NULL;

		if (strchr(v, '=')) {
			json_array_append_new(list, json_string(v));
			continue;
		}
		host = getenv(v);
		if (host && asprintf(&kv, "%s=%s", v, host) >= 0)
			json_array_append_new(list, json_string(kv));
		free(kv);
	}
	if (json_array_size(list))
		json_object_set(body, key, list);
	json_decref(list);
}

// --- hooks ---------------------------------------------------------------

static const struct hook {
	const char *name;
	bool of_image;
	unsigned long max_s;
} hook_kinds[] = {
    {"ready", true, 3600}, {"validate", true, 3600}, {"run", false, 60},
    {"resume", false, 60}, {"suspend", false, 60},   {"terminate", false, 60},
};

// "run" or "run=20" into AWS's shape.
static int add_hook(struct cli *c, const char *text, json_t *image,
		    json_t *microvm)
{
	size_t n = strcspn(text, "="), i = 0;
	unsigned long seconds = 0;
	char key[40], *end = NULL;
	json_t *to;

	while (i < ARRAY_SIZE(hook_kinds) &&
	       (strlen(hook_kinds[i].name) != n ||
		strncmp(hook_kinds[i].name, text, n) != 0))
		i++;
	if (i == ARRAY_SIZE(hook_kinds))
		return cli_usage(c,
				 "--hook '%s' is none of ready, validate, run, "
				 "resume, suspend, terminate",
				 text);
	if (text[n]) {
		seconds = strtoul(text + n + 1, &end, 10);
		if (end == text + n + 1 || *end || text[n + 1] == '-' ||
		    !seconds || seconds > hook_kinds[i].max_s)
			return cli_usage(c,
					 "--hook '%s': its timeout is 1 to %lu "
					 "seconds",
					 text, hook_kinds[i].max_s);
	}
	to = hook_kinds[i].of_image ? image : microvm;
	json_object_set_new(to, hook_kinds[i].name, json_string("ENABLED"));
	snprintf(key, sizeof(key), "%sTimeoutInSeconds", hook_kinds[i].name);
	if (seconds)
		json_object_set_new(to, key, json_integer((json_int_t)seconds));
	return 0;
}

static int set_hooks(struct cli *c, json_t *body)
{
	json_t *image = json_object(), *microvm = json_object(), *hooks;
	uint64_t port = HOOKS_PORT;
	const char *v;
	int code = cli_number(c, "hooks-port", 65535, &port);

	if (!code && cli_flag(c, "hooks-port") && !cli_flag(c, "hook"))
		code = cli_usage(c, "--hooks-port without a --hook");
	for (size_t i = 0; !code && (v = cli_value_at(c, "hook", i)); i++)
		code = add_hook(c, v, image, microvm);
	if (!code && json_object_size(microvm) &&
	    !json_object_get(image, "ready"))
		code = cli_usage(c, "a hook of microVMs needs --hook ready "
				    "too: it says when the image is frozen");
	if (!code && cli_flag(c, "hook")) {
		hooks = json_pack("{s:I,s:O}", "port", (json_int_t)port,
				  "microvmImageHooks", image);
		if (json_object_size(microvm))
			json_object_set(hooks, "microvmHooks", microvm);
		json_object_set_new(body, "hooks", hooks);
	}
	json_decref(image);
	json_decref(microvm);
	return code;
}

// --- the request ---------------------------------------------------------

static int refuse_all(struct cli *c, const char *const *names, const char *why)
{
	for (; *names; names++)
		if (cli_flag(c, *names))
			return cli_usage(c, "--%s %s", *names, why);
	return 0;
}

// A folder, zip or tar with a Dockerfile.
static int ask_context(struct cli *c, json_t *body)
{
	static const char *const not_here[] = {"rootfs", "kernel", "entrypoint",
					       "cmdline", NULL};
	int code = refuse_all(
	    c, not_here, "and a PATH with a Dockerfile do not go together");

	if (code)
		return code;
	if (c->argc > 2)
		return cli_usage(c,
				 "'%s' is one argument too many: the "
				 "Dockerfile says what is started",
				 c->argv[2]);
	json_object_set_new(body, "context", absolute(c->argv[1]));
	set_pairs(c, body, "build-arg", "buildArgs");
	if (cli_flag(c, "network"))
		json_object_set_new(body, "network", json_true());
	return set_hooks(c, body);
}

static int ask_kernel(struct cli *c, json_t *body, const char *kernel)
{
	if (cli_value(c, "entrypoint") || c->argc > 1)
		return cli_usage(c, "--kernel has no entrypoint: the kernel is "
				    "the program");
	json_object_set_new(body, "kernel", absolute(kernel));
	set_text(c, body, "cmdline", "cmdline");
	return 0;
}

static int ask_rootfs(struct cli *c, json_t *body, const char *rootfs)
{
	if (cli_value(c, "cmdline"))
		return cli_usage(c, "--cmdline belongs to --kernel");
	json_object_set_new(body, "rootfs", absolute(rootfs));
	return set_entrypoint(c, body);
}

bool cli_has_context(const struct cli *c)
{
	return c->argc > 1 && !(c->double_dash && c->dash_at <= 1);
}

static int make_request(struct cli *c, json_t *body)
{
	static const char *const for_context[] = {"build-arg", "network",
						  "hook", "hooks-port", NULL};
	const char *rootfs = cli_value(c, "rootfs");
	const char *kernel = cli_value(c, "kernel");
	bool context = !rootfs && !kernel && cli_has_context(c);
	int code = 0;

	if (!context && !rootfs == !kernel)
		return cli_usage(c, "give a PATH with a Dockerfile, or one of "
				    "--rootfs and --kernel");
	json_object_set_new(body, "name", json_string(c->argv[0]));
	if (!context)
		code = refuse_all(c, for_context,
				  "belongs to a PATH with a Dockerfile");
	if (!code)
		code = context	? ask_context(c, body)
		       : kernel ? ask_kernel(c, body, kernel)
				: ask_rootfs(c, body, rootfs);
	if (code)
		return code;
	set_text(c, body, "user", "user");
	set_text(c, body, "workdir", "workingDirectory");
	set_pairs(c, body, "env", "env");
	return set_numbers(c, body);
}

int cmd_build(struct cli *c)
{
	json_t *body = json_object();
	struct httpc h;
	int code = make_request(c, body);

	if (!code)
		code = cli_open(c, &h, "build", "POST", CLI_OWN "/images", NULL,
				body);
	json_decref(body);
	if (code)
		return code;
	code =
	    cli_build_show(c, &h); // closing the connection cancels the build
	httpc_close(&h);
	return code;
}
