// thaw build: one long request whose answer is lines of progress.
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"

enum { LINE_MAX_BYTES = 1024 * 1024 };

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

static int set_env(struct cli *c, json_t *body)
{
	json_t *env = json_array();
	const char *v;

	for (size_t i = 0; (v = cli_value_at(c, "env", i)); i++) {
		const char *host;
		char *kv = NULL;

		if (strchr(v, '=')) {
			json_array_append_new(env, json_string(v));
			continue;
		}
		host = getenv(v); // as docker: a bare name passes ours on
		if (host && asprintf(&kv, "%s=%s", v, host) >= 0)
			json_array_append_new(env, json_string(kv));
		free(kv);
	}
	if (json_array_size(env))
		json_object_set(body, "env", env);
	json_decref(env);
	return 0;
}

static int make_request(struct cli *c, json_t *body)
{
	const char *rootfs = cli_value(c, "rootfs");
	const char *kernel = cli_value(c, "kernel");
	int rc;

	if (!rootfs == !kernel)
		return cli_usage(c, "give one of --rootfs and --kernel");
	json_object_set_new(body, "name", json_string(c->argv[0]));
	if (kernel) {
		if (cli_value(c, "entrypoint") || c->argc > 1)
			return cli_usage(c, "--kernel has no entrypoint: the "
					    "kernel is the program");
		json_object_set_new(body, "kernel", absolute(kernel));
		set_text(c, body, "cmdline", "cmdline");
	} else {
		if (cli_value(c, "cmdline"))
			return cli_usage(c, "--cmdline belongs to --kernel");
		json_object_set_new(body, "rootfs", absolute(rootfs));
		rc = set_entrypoint(c, body);
		if (rc)
			return rc;
	}
	set_text(c, body, "user", "user");
	set_text(c, body, "workdir", "workingDirectory");
	rc = set_env(c, body);
	return rc ? rc : set_numbers(c, body);
}

static void show_image(struct cli *c, const json_t *image)
{
	const json_t *sizes = json_object_get(image, "sizes");
	double raw = (double)(cli_int(sizes, "memoryNonZeroBytes", 0) +
			      cli_int(sizes, "diskNonZeroBytes", 0));
	char a[32], b[32];

	if (c->json) {
		cli_print_json(image, false);
		return;
	}
	cli_put(stdout, c->argv[0]);
	putchar(' ');
	cli_put(stdout, cli_str(image, "version"));
	printf(": %s of pages, %s stored, built in %.1f s\n",
	       cli_mib_text(raw, a, sizeof(a)),
	       cli_mib_text((double)cli_int(sizes, "storedBytes", 0), b,
			    sizeof(b)),
	       (double)cli_int(sizes, "totalMs", 0) / 1000);
}

// One line of the answer. Returns -1 to go on, or the exit code.
static int take_line(struct cli *c, struct cli_progress *p, const char *line)
{
	bool quiet = cli_flag(c, "quiet");
	json_t *j = json_loads(line, 0, NULL);
	const json_t *v;
	int code = -1;

	if (!j)
		return cli_fail(CLI_FAILED, "build: thawd sent a malformed "
					    "line");
	if ((v = json_object_get(j, "progress"))) {
		if (!quiet)
			cli_progress(p, cli_str(v, "stage"),
				     (int)cli_int(v, "percent", -1),
				     cli_str(v, "text"));
	} else if ((v = json_object_get(j, "log"))) {
		const char *text = json_string_value(v);

		if (cli_flag(c, "verbose") && text) {
			cli_progress_clear(p);
			for (; *text; text++)
				if (*text == '\n' || *text == '\t' ||
				    (unsigned char)*text >= 0x20)
					fputc(*text, stderr);
		}
	} else if ((v = json_object_get(j, "image"))) {
		cli_progress_clear(p);
		show_image(c, v);
		code = 0;
	} else if ((v = json_object_get(j, "error"))) {
		cli_progress_clear(p);
		code = cli_say_error("build", v);
	}
	json_decref(j);
	return code;
}

static int follow(struct cli *c, struct httpc *h)
{
	cleanup_free char *line = NULL;
	struct err e = ERR_INIT;
	struct cli_progress p;
	size_t cap = 0;
	int code = -1, rc;

	cli_progress_init(&p);
	while (code < 0) {
		rc = httpc_line(h, &line, &cap, LINE_MAX_BYTES, &e);
		if (rc == 0)
			err_set(&e, -EPIPE,
				"thawd went away before it was "
				"done; its log says why");
		if (rc <= 0) {
			cli_progress_clear(&p);
			return cli_fail(CLI_FAILED, "build: %s", e.msg);
		}
		if (*line)
			code = take_line(c, &p, line);
	}
	return code;
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
	code = follow(c, &h); // closing the connection cancels the build
	httpc_close(&h);
	return code;
}
