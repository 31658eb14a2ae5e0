// Running buildah, and understanding it. Of what it writes three things count:
//   "[2/3] STEP 4/7: RUN make"       which line of the Dockerfile is at work
//   "Error: building at STEP ..."    why it ended
//   what the step itself wrote last  which is what its author wants to see
// RUN steps write into the same stream, so a step may pretend to be another; it
// deceives nobody but its author.
#include "mkroot.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

enum {
	LOG_MAX = 16 * 1024 * 1024, // bytes of a build's log that are passed on
	LAST_LINES = 3,
	LAST_MAX = 120,
	STEP_MAX = 400,
};

struct watch {
	const struct dockerfile *d;
	const struct dockerfile_instr *at; // before any step: the first FROM
	char step[STEP_MAX];		   // as buildah wrote it
	char error[600];		   // after "Error: "
	char last[LAST_LINES][LAST_MAX];   // a ring, of this step
	unsigned nlast;
	size_t logged;
	bool no_space;
};

// What buildah says besides; not a step's own words.
static bool noise(const char *line)
{
	static const char *const heads[] = {"COMMIT ",
					    "Getting image ",
					    "Copying ",
					    "Writing ",
					    "Storing ",
					    "--> ",
					    "time=\"",
					    "process exited with",
					    "subprocess exited with"};

	for (size_t i = 0; i < ARRAY_SIZE(heads); i++)
		if (!strncmp(line, heads[i], strlen(heads[i])))
			return true;
	return !line[strspn(line, " \t\r")];
}

static bool take_step(struct watch *w, const char *line)
{
	unsigned stage = 0, stages = 0, step = 0, steps = 0;
	const struct dockerfile_instr *in;
	int n = 0;
	size_t i;

	if (sscanf(line, "[%u/%u] STEP %u/%u: %n", &stage, &stages, &step,
		   &steps, &n) < 4 ||
	    !n) {
		stage = 0;
		if (sscanf(line, "STEP %u/%u: %n", &step, &steps, &n) < 2 || !n)
			return false;
	}
	in = dockerfile_step(w->d, stage, step);
	if (!in)
		return false;
	w->at = in;
	w->nlast = 0;
	snprintf(w->step, sizeof(w->step), "%s", line + n);
	i = (size_t)(in - w->d->instr);
	mk_progress((int)(i * 100 / w->d->n), "Dockerfile line %u: %.200s",
		    in->line, in->text);
	return true;
}

static void on_line(void *ctx, const char *p, size_t n)
{
	struct watch *w = ctx;
	char line[MR_LINE + 1];

	if (w->logged <= LOG_MAX) {
		mr_log(p, n);
		w->logged += n + 1;
		if (w->logged > LOG_MAX)
			mr_note("the log has more than %d MiB: the rest is "
				"dropped",
				LOG_MAX >> 20);
	}
	memcpy(line, p, n);
	line[n] = '\0';
	if (strcasestr(line, "no space left on device"))
		w->no_space = true;
	if (take_step(w, line) || noise(line))
		return;
	if (!strncmp(line, "Error: ", 7))
		snprintf(w->error, sizeof(w->error), "%s", line + 7);
	else
		snprintf(w->last[w->nlast++ % LAST_LINES], LAST_MAX, "%s",
			 line);
}

// "building at STEP "RUN x": exit status 1" to "exit status 1".
static const char *reason_of(struct watch *w)
{
	static const char head[] = "building at STEP \"";
	const char *p = w->error, *q;

	if (strncmp(p, head, sizeof(head) - 1) != 0)
		return p;
	p += sizeof(head) - 1;
	if (!strncmp(p, w->step, strlen(w->step)))
		p += strlen(w->step);
	q = strstr(p, "\": ");
	return q ? q + 3 : p;
}

static void last_words(const struct watch *w, char *out, size_t cap)
{
	unsigned n = MIN(w->nlast, (unsigned)LAST_LINES);
	size_t len = 0;

	*out = '\0';
	for (unsigned i = w->nlast - n; i != w->nlast && len < cap; i++)
		len += (size_t)snprintf(out + len, cap - len, "%s%s",
					len ? " | " : "; its last output: ",
					w->last[i % LAST_LINES]);
}

static const char *hint(const struct mr_opts *o, const char *why)
{
	if (strstr(why, "image not known") ||
	    strstr(why, "no stage or image found"))
		return o->network
			   ? ""
			   : " (there is no such base image here, and the "
			     "build "
			     "has no network: scripts/base-image makes and "
			     "names base images)";
	if (!o->network && (strstr(why, "network is unreachable") ||
			    strstr(why, "name resolution")))
		return " (the build has no network)";
	return "";
}

static int failed(const struct mr_opts *o, struct watch *w,
		  const struct mr_run *r, struct mr_shared *sh, struct err *e)
{
	unsigned line = w->at->line;
	const char *why = reason_of(w);
	char where[160], words[300], ended[64];

	snprintf(where, sizeof(where), "Dockerfile line %u: %.100s: ", line,
		 w->at->text);
	if (r->disk_full || w->no_space)
		return mr_fail(sh, IMG_DISK_STORAGE_FULL, line, e, -ENOSPC,
			       "%sthe disk is full: a build stops when less "
			       "than %llu MiB of the state directory's file "
			       "system are free",
			       where, (unsigned long long)(r->reserve >> 20));
	if (r->timed_out)
		return mr_fail(sh, IMG_CONTAINER_BUILD_FAILED, line, e,
			       -ETIMEDOUT, "%sthe build took longer than %u s",
			       where, o->timeout_s);
	last_words(w, words, sizeof(words));
	if (!*why) {
		snprintf(ended, sizeof(ended),
			 WIFSIGNALED(r->status)
			     ? "the builder was ended by signal %d"
			     : "the builder ended with code %d",
			 WIFSIGNALED(r->status) ? WTERMSIG(r->status)
						: WEXITSTATUS(r->status));
		why = ended;
	}
	return mr_fail(sh, IMG_CONTAINER_BUILD_FAILED, line, e, -ECHILD,
		       "%s%.200s%s%s", where, why, hint(o, why),
		       strncmp(why, "exit status", 11) ? "" : words);
}

// Once per build, before it: what is accepted and has no effect.
static void tell_ignored(const struct dockerfile *d)
{
	for (size_t i = 0; i < d->n; i++) {
		const struct dockerfile_instr *in = &d->instr[i];

		if (in->stage != d->stages)
			continue;
		if (!strcmp(in->word, "HEALTHCHECK"))
			mr_note("Dockerfile line %u: HEALTHCHECK is ignored: a "
				"microVM is ready when its ready hook, or its "
				"port, answers",
				in->line);
		if ((!strcmp(in->word, "CMD") ||
		     !strcmp(in->word, "ENTRYPOINT")) &&
		    *in->args == '[' && in->args[strlen(in->args) - 1] != ']')
			mr_note("Dockerfile line %u: %s begins like a JSON "
				"list and is none: it is taken for a shell's "
				"command",
				in->line, in->word);
	}
}

// buildah reads what was understood here, so that the two cannot differ.
static int write_plain(const struct dockerfile *d, struct err *e)
{
	cleanup_fd int fd = open("/work/Dockerfile",
				 O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	cleanup_free char *text = dockerfile_plain(d);

	if (!text)
		return err_set(e, -ENOMEM, "out of memory");
	if (fd < 0 || util_write_all(fd, text, strlen(text)))
		return err_sys(e, "writing the Dockerfile");
	return 0;
}

int mr_build(const struct mr_opts *o, const struct dockerfile *d,
	     struct mr_shared *sh, uint64_t deadline_ns, struct err *e)
{
	char *argv[2 * MR_ARGS_MAX + 20];
	struct watch w = {.d = d, .at = dockerfile_step(d, 1, 1)};
	struct mr_run r = {.argv = argv,
			   .line = on_line,
			   .ctx = &w,
			   .deadline_ns = deadline_ns,
			   .reserve = MR_RESERVE};
	size_t n = 0;
	int rc = write_plain(d, e);

	if (rc)
		return rc;
	argv[n++] = "/usr/bin/buildah";
	argv[n++] = "build";
	argv[n++] = "--format=docker"; // keeps SHELL and HEALTHCHECK
	argv[n++] = "--isolation=chroot";
	argv[n++] = "--layers=false";
	argv[n++] = o->network ? "--pull=false" : "--pull-never";
	argv[n++] = "--tag=" MR_IMAGE;
	argv[n++] = "--file=/work/Dockerfile";
	for (size_t i = 0; i < o->nargs; i++) {
		argv[n++] = "--build-arg";
		argv[n++] = (char *)o->args[i];
	}
	argv[n++] = "/work/context";
	argv[n] = NULL;
	mr_stage("build");
	tell_ignored(d);
	rc = mr_run(&r, e);
	if (rc)
		return rc;
	if (WIFEXITED(r.status) && !WEXITSTATUS(r.status) && !r.timed_out &&
	    !r.disk_full)
		return 0;
	return failed(o, &w, &r, sh, e);
}
