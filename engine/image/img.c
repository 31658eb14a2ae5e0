// A build from the loop's side: one thaw-mkroot in a work folder of its own.
//
// States: RUNNING (the program runs; cancel asks it to end, which it does in
// order, and kills it if it does not), CLEARING (a worker removes what is not
// the result, or everything, and reads the configuration), HELD (done() was
// called with a result; the root file system is the caller's until
// img_release()). Whatever ends a build, done() comes when nothing of it runs or
// lies about any more. What the program says is bounded and checked: below it a
// stranger's programs ran.
#include "img.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "child.h"
#include "img_internal.h"

enum {
	TAIL_BYTES = 2048,
	ARGS_MAX = 64,
	END_MS = 10000, // between asking and killing
	REMOVE_TRIES = 20,
};

enum state { RUNNING, CLEARING, HELD };

struct img_build {
	const struct img_env *env;
	struct img_events ev;
	void *ctx;
	enum state state;

	char work[32]; // name in tmp_dir
	int tmp_fd;
	struct eng_child *program;
	struct eng_timer *patience;
	bool cancelled;

	char stage[16];
	char tail[TAIL_BYTES + 1]; // the log's end
	size_t tail_len;

	bool got_result;
	struct err err;
	enum img_reason reason;
	unsigned blamed; // line of the Dockerfile

	bool keep; // what CLEARING shall leave: the tar
	char *rootfs;
	struct img_config config;
	struct img_result res;
	uint64_t t0;
};

static void build_free(struct img_build *b)
{
	eng_child_destroy(b->program);
	eng_timer_destroy(b->patience);
	fd_close(&b->tmp_fd);
	img_config_free(&b->config);
	free(b->rootfs);
	free(b);
}

// The first failure counts.
static void set_failed(struct img_build *b, int rc, enum img_reason reason,
		       unsigned line, const char *why)
{
	if (b->err.code)
		return;
	err_set(&b->err, rc < 0 ? rc : -EIO, "%s", why);
	b->reason = reason;
	b->blamed = line;
}

// --- clearing --------------------------------------------------------------

static int read_config(struct img_build *b, int work, struct err *e)
{
	cleanup_fd int fd =
	    openat(work, "config.json", O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	cleanup_free char *text = malloc(IMG_CONFIG_MAX);
	struct stat st;

	if (fd < 0 || !text || fstat(fd, &st) || !S_ISREG(st.st_mode) ||
	    st.st_size > IMG_CONFIG_MAX ||
	    util_pread_all(fd, text, (size_t)st.st_size, 0))
		return err_set(e, -EIO,
			       "the image's configuration cannot be read");
	return img_config_parse(text, (size_t)st.st_size, &b->config, e);
}

int img_sweep(const char *tmp_dir, struct err *e)
{
	return util_sweep(tmp_dir, IMG_WORK_PREFIX, e);
}

static int keep_result(struct img_build *b, struct err *e)
{
	static const char *const rest[] = {"context", "store",	   "run",
					   "tmp",     "home",	   "cache",
					   "jail",    "Dockerfile"};
	cleanup_fd int work =
	    openat(b->tmp_fd, b->work,
		   O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	struct stat st;
	int rc;

	if (work < 0)
		return err_sys(e, "opening the build's folder");
	for (size_t i = 0; i < ARRAY_SIZE(rest); i++) {
		rc = util_rmtree(work, rest[i], e);
		if (rc)
			return rc;
	}
	if (fstatat(work, "rootfs.tar", &st, AT_SYMLINK_NOFOLLOW) ||
	    !S_ISREG(st.st_mode))
		return err_set(e, -EIO, "the root file system is not there");
	b->res.rootfs_bytes = (uint64_t)st.st_size;
	return read_config(b, work, e);
}

// A builder that had to be killed may still be ending: its last writes make a
// removal fail.
static void remove_all(struct img_build *b)
{
	const struct timespec wait = {0, 100000000};
	struct err e = ERR_INIT;

	for (int i = 0; util_rmtree(b->tmp_fd, b->work, &e); i++) {
		if (i == REMOVE_TRIES) {
			set_failed(b, e.code, IMG_INTERNAL_PLATFORM_ERROR, 0,
				   e.msg);
			return;
		}
		nanosleep(&wait, NULL);
	}
}

static void clear_job(void *ctx)
{
	struct img_build *b = ctx;
	struct err e = ERR_INIT;

	if (b->keep && keep_result(b, &e)) {
		set_failed(b, e.code,
			   e.code == -EINVAL ? IMG_CONTAINER_BUILD_FAILED
					     : IMG_INTERNAL_PLATFORM_ERROR,
			   0, e.msg);
		b->keep = false;
	}
	if (!b->keep)
		remove_all(b);
}

static void fill_result(struct img_build *b)
{
	const struct img_config *c = &b->config;

	b->res.rootfs = b->rootfs;
	b->res.argv = c->argv;
	b->res.env = c->env;
	b->res.user = c->user;
	b->res.cwd = c->cwd;
	b->res.ports = c->ports;
	b->res.nports = c->nports;
	b->res.volumes = c->volumes;
	b->res.total_ms = (util_now_ns() - b->t0) / 1000000;
}

static void cleared(void *ctx);

static void clear(struct img_build *b)
{
	b->state = CLEARING;
	b->keep = b->got_result && !b->err.code && !b->cancelled;
	eng_job_run(b->env->jobs, clear_job, cleared, b);
}

static void cleared(void *ctx)
{
	struct img_build *b = ctx;
	struct img_events ev = b->ev;
	void *up = b->ctx;
	struct img_failure f;

	if (b->cancelled && b->keep) { // it came too late for the job
		clear(b);
		return;
	}
	if (b->cancelled) {
		b->err.code = 0;
		set_failed(b, -ECANCELED, IMG_NO_REASON, 0, "cancelled");
	}
	if (!b->err.code) {
		b->state = HELD;
		fill_result(b);
		ev.done(up, NULL, &b->res);
		return;
	}
	img_text_mend(b->err.msg);
	img_text_mend(b->tail);
	f = (struct img_failure){b->err.code, b->reason, b->blamed, b->err.msg,
				 b->tail};
	ev.done(up, &f, NULL);
	build_free(b);
}

// --- what the program says -------------------------------------------------

static void take_log(struct img_build *b, char *text, size_t n)
{
	size_t drop;

	text[n++] = '\n'; // where its NUL was
	if (n > TAIL_BYTES) {
		text += n - TAIL_BYTES;
		n = TAIL_BYTES;
	}
	drop = b->tail_len + n > TAIL_BYTES ? b->tail_len + n - TAIL_BYTES : 0;
	memmove(b->tail, b->tail + drop, b->tail_len - drop);
	b->tail_len -= drop;
	memcpy(b->tail + b->tail_len, text, n);
	b->tail_len += n;
	b->tail[b->tail_len] = '\0';
}

static void take_error(struct img_build *b, const char *text)
{
	char name[64] = "";
	unsigned line = 0;
	int code = 0, n = 0;

	if (sscanf(text, "%d %63s %u %n", &code, name, &line, &n) < 3 || !n) {
		set_failed(b, -EIO, IMG_INTERNAL_PLATFORM_ERROR, 0,
			   "thaw-mkroot said something unexpected");
		return;
	}
	set_failed(b, code > -4096 ? code : -EIO, img_reason_parse(name),
		   MIN(line, 1000000u), text + n);
}

static void take_line(void *ctx, char *line, size_t n)
{
	struct img_build *b = ctx;
	unsigned long long bytes, fetch, build;
	int percent, at = 0;

	if (!strncmp(line, "log ", 4)) {
		size_t len = n - 4;

		take_log(b, line + 4, len);
		b->ev.log(b->ctx, line + 4, len + 1);
	} else if (!strncmp(line, "note ", 5)) {
		b->ev.progress(b->ctx, b->stage, -1, line + 5);
	} else if (!strncmp(line, "stage ", 6)) {
		snprintf(b->stage, sizeof(b->stage), "%s", line + 6);
		b->ev.progress(b->ctx, b->stage, -1, "");
	} else if (sscanf(line, "progress %d %n", &percent, &at) == 1 && at) {
		b->ev.progress(b->ctx, b->stage, MIN(MAX(percent, -1), 100),
			       line + at);
	} else if (sscanf(line, "result %llu %llu %llu", &bytes, &fetch,
			  &build) == 3) {
		b->got_result = true;
		b->res.fetch_ms = fetch;
		b->res.build_ms = build;
	} else if (!strncmp(line, "error ", 6)) {
		take_error(b, line + 6);
	}
}

static void program_ended(void *ctx, bool ok, const char *how)
{
	struct img_build *b = ctx;
	char why[120];

	eng_timer_stop(b->patience);
	if (!b->err.code && (!ok || !b->got_result)) {
		snprintf(why, sizeof(why),
			 "thaw-mkroot ended without a word (%s)", how);
		set_failed(b, -EIO, IMG_INTERNAL_PLATFORM_ERROR, 0, why);
	}
	clear(b);
}

static void on_patience(void *ctx)
{
	struct img_build *b = ctx;

	eng_child_kill(b->program, SIGKILL);
}

// --- starting --------------------------------------------------------------

struct args {
	char *argv[2 * ARGS_MAX + 40];
	size_t n;
	char text[6][24];
	size_t ntext;
	char fetch[PATH_MAX], work[PATH_MAX];
};

static void arg(struct args *a, const char *name, const char *value)
{
	if (!value)
		return;
	a->argv[a->n++] = (char *)name;
	if (*value)
		a->argv[a->n++] = (char *)value;
}

static void arg_number(struct args *a, const char *name, uint64_t v)
{
	char *text = a->text[a->ntext++];

	snprintf(text, sizeof(a->text[0]), "%llu", (unsigned long long)v);
	arg(a, name, text);
}

static int make_args(struct img_build *b, const struct img_req *r,
		     const struct img_source *src, struct args *a,
		     struct err *e)
{
	const char *dir = strrchr(b->env->mkroot_path, '/');
	int n;

	n = snprintf(a->work, sizeof(a->work), "%s/%s", b->env->tmp_dir,
		     b->work);
	if (n < (int)sizeof(a->work))
		n = snprintf(a->fetch, sizeof(a->fetch), "%.*s/thaw-fetch",
			     (int)(dir ? dir - b->env->mkroot_path : 0),
			     b->env->mkroot_path);
	if (n >= (int)sizeof(a->fetch) ||
	    asprintf(&b->rootfs, "%s/rootfs.tar", a->work) < 0)
		return err_set(e, -ENAMETOOLONG, "the state path is too long");
	arg(a, b->env->mkroot_path, "");
	arg(a, "--source", src->path);
	arg(a, "--url", src->url);
	arg(a, "--fetch", a->fetch);
	arg(a, "--region", r->s3.region);
	arg(a, "--credentials", r->s3.credentials);
	arg(a, "--work", a->work);
	arg(a, "--bases", b->env->base_store);
	arg(a, "--network", r->network ? "" : NULL);
	for (size_t i = 0; r->build_args && r->build_args[i]; i++)
		arg(a, "--build-arg", r->build_args[i]);
	arg_number(a, "--uid", r->peer_uid);
	arg_number(a, "--gid", r->peer_gid);
	arg_number(a, "--parent", (uint64_t)getpid());
	if (r->max_bytes)
		arg_number(a, "--max-bytes", r->max_bytes);
	if (r->timeout_s)
		arg_number(a, "--timeout", r->timeout_s);
	a->argv[a->n] = NULL;
	return 0;
}

static int start_program(struct img_build *b, const struct img_req *r,
			 const struct img_source *src, struct err *e)
{
	static const struct eng_child_events events = {take_line,
						       program_ended};
	cleanup_free struct args *a = calloc(1, sizeof(*a));
	int rc;

	if (!a)
		return err_set(e, -ENOMEM, "out of memory");
	rc = make_args(b, r, src, a, e);
	if (rc)
		return rc;
	return eng_child_start(&b->program, b->env->loop, a->argv, &events, b,
			       "mkroot", e);
}

static int check_req(const struct img_req *r, struct err *e)
{
	size_t n = 0;

	for (; r->build_args && r->build_args[n]; n++)
		if (n == ARGS_MAX || !strchr(r->build_args[n], '=') ||
		    r->build_args[n][0] == '=')
			return err_set(e, -EINVAL,
				       "build arguments are KEY=VALUE, and at "
				       "most %d",
				       ARGS_MAX);
	return 0;
}

int img_start(struct img_build **out, const struct img_env *env,
	      const struct img_req *req, const struct img_events *ev, void *ctx,
	      struct err *e)
{
	struct img_source src = {0};
	struct img_build *b;
	uint8_t rnd[8];
	int rc = check_req(req, e);

	if (!rc)
		rc = img_uri_parse(req->uri, &req->s3, &src, e);
	if (rc)
		return rc;
	b = calloc(1, sizeof(*b));
	if (!b) {
		img_source_free(&src);
		return err_set(e, -ENOMEM, "out of memory");
	}
	*b = (struct img_build){.env = env,
				.ev = *ev,
				.ctx = ctx,
				.tmp_fd = -1,
				.stage = "fetch",
				.t0 = util_now_ns()};
	util_random(rnd, sizeof(rnd));
	memcpy(b->work, IMG_WORK_PREFIX, sizeof(IMG_WORK_PREFIX));
	util_hex(b->work + strlen(IMG_WORK_PREFIX), rnd, sizeof(rnd));
	b->patience =
	    eng_timer_create(env->loop, on_patience, b, "image patience");
	b->tmp_fd = open(env->tmp_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (!b->patience)
		rc = err_set(e, -ENOMEM, "out of memory");
	else if (b->tmp_fd < 0 || mkdirat(b->tmp_fd, b->work, 0700))
		rc = err_sys(e, "making a work directory in %s", env->tmp_dir);
	else
		rc = start_program(b, req, &src, e);
	img_source_free(&src);
	if (rc) {
		if (b->tmp_fd >= 0)
			unlinkat(b->tmp_fd, b->work, AT_REMOVEDIR);
		build_free(b);
		return rc;
	}
	*out = b;
	return 0;
}

void img_cancel(struct img_build *b)
{
	b->cancelled = true;
	if (!eng_child_runs(b->program)) // a worker clears
		return;
	eng_child_kill(b->program, SIGTERM);
	eng_timer_set(b->patience, END_MS);
}

static void released(void *ctx)
{
	build_free(ctx);
}

void img_release(struct img_build *b)
{
	b->keep = false;
	eng_job_run(b->env->jobs, clear_job, released, b);
}
