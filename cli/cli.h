// Private to the command line: the command table, options, requests, output.
#ifndef THAW_CLI_H
#define THAW_CLI_H

#include <jansson.h>
#include <stdio.h>

#include "httpc.h"

enum cli_exit {
	CLI_OK = 0,
	CLI_FAILED = 1,
	CLI_USAGE = 2,
	CLI_NOT_FOUND = 3,
	CLI_CONFLICT = 4,
	CLI_QUOTA = 5,
	CLI_UNREACHABLE = 125,
};

#define CLI_AWS "/2025-09-09"
#define CLI_OWN "/thaw/v1"

// --- commands and options (table in verbs.c) ------------------------------

struct cli_opt {
	char letter;	  // 0: none
	const char *name; // without --
	const char *arg;  // what its value is called; NULL: a flag
	const char *help;
};

enum cli_complete { // what its arguments are, for completion
	COMPLETE_NOTHING,
	COMPLETE_VM,
	COMPLETE_IMAGE,
	COMPLETE_BOTH,
	COMPLETE_SHELL,
	COMPLETE_POOL,
	COMPLETE_FILE,
};

enum { CLI_OPTS_MAX = 24 };

struct cli;
struct cli_command {
	const char *name;
	const char *args; // for the usage line
	const char *summary;
	const char *text;	// more help, lines ended by \n; may be NULL
	int min_args, max_args; // max -1: any
	bool stop_at_first;	// options end at the first argument (exec)
	enum cli_complete complete;
	int (*run)(struct cli *c);
	struct cli_opt opts[CLI_OPTS_MAX]; // ended by a NULL name
};
extern const struct cli_command cli_commands[];
extern const struct cli_opt cli_global_opts[];

enum { CLI_GIVEN_MAX = 512 };

struct cli { // one invocation
	const char *socket;
	bool json;
	const struct cli_command *cmd;
	int argc; // arguments left after the options
	char **argv;
	struct {
		const struct cli_opt *opt;
		const char *value;
	} given[CLI_GIVEN_MAX];
	size_t ngiven;
	bool double_dash; // arguments after "--" start at argv[dash_at]
	int dash_at;
};

bool cli_flag(const struct cli *c, const char *name);
const char *cli_value(const struct cli *c, const char *name); // last, or NULL
// The i-th value of a repeated option, or NULL.
const char *cli_value_at(const struct cli *c, const char *name, size_t i);
// 0 (leaves *out when not given), or CLI_USAGE after saying why.
int cli_number(const struct cli *c, const char *name, uint64_t max,
	       uint64_t *out);
int cli_mib(const struct cli *c, const char *name, uint64_t *out);

// "thaw: ..." on stderr; returns `code`.
int cli_fail(int code, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
int cli_usage(const struct cli *c, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

void cli_help(const struct cli_command *cmd, FILE *to); // NULL: overview
int cli_completion(struct cli *c);
int cli_man(struct cli *c); // man.c
int cli_complete_ids(struct cli *c);

// --- requests (request.c) ------------------------------------------------

// A path from a format whose strings are percent-encoded. Caller frees.
char *cli_path(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

// Sends, reads the head. On an error status says "thaw: WHAT: ..." on stderr
// and returns the exit code; on 0 the body is to be read and h to be closed.
int cli_open(struct cli *c, struct httpc *h, const char *what,
	     const char *method, const char *path, const char *upgrade,
	     const json_t *body);
// A complete exchange. *out (may be NULL): the answer, an empty object when
// there was no body.
int cli_call(struct cli *c, const char *what, const char *method,
	     const char *path, const json_t *body, json_t **out);
// DELETEs, and prints the answer or, as text, what was deleted.
int cli_delete(struct cli *c, const char *what, const char *path);
// Quiet form of GET: returns the exit code, says nothing.
int cli_try(struct cli *c, const char *path, json_t **out);
// The same with a method and a body.
int cli_quiet(struct cli *c, const char *method, const char *path,
	      const json_t *body, json_t **out);
// All pages of a list: an array. Caller decrefs.
int cli_list(struct cli *c, const char *what, const char *path, json_t **out);
// GETs ?wait= until the microVM has `state` or the time is over.
int cli_wait(struct cli *c, const char *id, const char *state,
	     uint64_t timeout_s, json_t **out);
// Exit code for an error's type (and status, 0: none).
int cli_exit_of(const char *type, int status);
// Says an error object {"type","message"}; returns its exit code.
int cli_say_error(const char *what, const json_t *error);

// --- output (output.c) ---------------------------------------------------

// "" when absent. Text from the server is printed by cli_put only.
const char *cli_str(const json_t *o, const char *key);
int64_t cli_int(const json_t *o, const char *key, int64_t missing);
// Prints text with control characters made harmless.
void cli_put(FILE *f, const char *text);
// A guest's output goes out as it is when stdout is a file or pipe (`raw`); a
// terminal gets no control characters but line breaks and tabs.
void cli_put_output(const char *p, size_t n, bool raw);
void cli_print_json(const json_t *j, bool pretty);

enum { CLI_COLUMNS = 10 };
struct cli_table {
	size_t ncols, nrows, cap;
	const char *const *heads;
	char **cells; // owned
};
void cli_table_init(struct cli_table *t, const char *const *heads,
		    size_t ncols);
void cli_table_add(struct cli_table *t, size_t col, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void cli_table_print(struct cli_table *t, bool header); // and frees

const char *cli_ago(double when, char *buf, size_t cap); // "3 minutes ago"
const char *cli_mib_text(double bytes, char *buf, size_t cap);
const char *cli_short_id(const char *id, char *buf, size_t cap);
const char *cli_image_name(const char *arn);
// IMAGE[:VERSION]: the image, for free(); *version is in it, or NULL.
char *cli_image_version(const char *text, char **version);

struct cli_progress {
	bool bar; // a terminal that may be redrawn
	char stage[24], text[160];
	int percent;
	uint64_t last_ns;
};
void cli_progress_init(struct cli_progress *p);
void cli_progress(struct cli_progress *p, const char *stage, int percent,
		  const char *text);
void cli_progress_clear(struct cli_progress *p);
// Draws the bar once more, below what was printed after a clear.
void cli_progress_again(struct cli_progress *p);

// --- guests' ports (ports.c) ---------------------------------------------

// The port that a microVM's application answers on: the first that its image's
// Dockerfile EXPOSEs, else the one it was frozen on, else 8080.
unsigned cli_image_port(struct cli *c, const json_t *vm);
// The same of an id; an exit code after saying why.
int cli_default_port(struct cli *c, const char *id, unsigned *port);
// On stderr: the ports on which something listens in a microVM.
void cli_say_listeners(struct cli *c, const char *id);

// --- parts of verbs ------------------------------------------------------

// build: is a PATH with a Dockerfile given?
bool cli_has_context(const struct cli *c);
// Shows the answer's lines to their end; returns the exit code.
int cli_build_show(struct cli *c, struct httpc *h);
// logs --group: shows the logs of those that log there. `query`: of each log's
// request. *one: the id of the only one that logs to --stream, for free(), whose
// log is not shown yet.
int cli_group_logs(struct cli *c, const char *query, char **one);
// exec, shell: the request for a command, and a session of it in the microVM
// that the verb's first argument names; returns the command's exit code.
json_t *cli_exec_request(struct cli *c, int argc, char *const *argv, bool tty);
int cli_exec(struct cli *c, const json_t *body, bool tty, bool input);

// --- verbs ---------------------------------------------------------------

int cmd_build(struct cli *c);
int cmd_builds(struct cli *c);
int cmd_images(struct cli *c);
int cmd_tag(struct cli *c);
int cmd_untag(struct cli *c);
int cmd_rmi(struct cli *c);
int cmd_run(struct cli *c);
int cmd_ps(struct cli *c);
int cmd_top(struct cli *c);
int cmd_inspect(struct cli *c);
int cmd_call(struct cli *c);
int cmd_exec(struct cli *c);
int cmd_shell(struct cli *c);
int cmd_forward(struct cli *c);
int cmd_token(struct cli *c);
int cmd_env(struct cli *c);
int cmd_logs(struct cli *c);
int cmd_suspend(struct cli *c);
int cmd_resume(struct cli *c);
int cmd_rm(struct cli *c);
int cmd_pool(struct cli *c);
int cmd_events(struct cli *c);
int cmd_wait(struct cli *c);
int cmd_stats(struct cli *c);
int cmd_doctor(struct cli *c);
int cmd_version(struct cli *c);
int cmd_help(struct cli *c);

#endif
