// One build of an image: an artifact with a Dockerfile becomes a root file
// system (img.h), a root file system or a kernel becomes a snapshot (build.h),
// and that a version of the registry.
//
//	        img_start()          eng_build_start()
//	begin ──────────────► ROOT ──────────────────► GUEST ──► version ──► durable
//	          with an artifact       │ failed, cancelled │
//	                                 └─────────► failed version, or none
//
// The root file system is given up as soon as its disk is made. Whatever ends a
// build, both stages have cleaned up behind themselves by then; what is left is
// the version's record, its log, and on success its snapshots.
#include "image_internal.h"

#include "hook.h"
#include "jtext.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

struct image_build {
	struct image_build *next, **link;
	struct eng_images *ims;
	struct img_build *img;	 // the first stage, until its result is let go
	bool img_held;		 // it has one
	struct eng_build *build; // the second
	struct vmlog *log;	 // or NULL
	char last[200];		 // its last line about progress

	char name[REG_NAME_MAX + 1];
	char version[16]; // "" until it is recorded
	char build_id[REG_BUILD_ID + 1];
	bool recorded; // before it is built: AWS's calls
	json_t *spec, *aws, *sizes;
	uint32_t mem_mib;
	unsigned vcpus;
	bool port_optional;

	struct image_build_events ev; // of its requester, or none
	void *ctx;
	bool abandoned;	  // nobody is told
	const char *stop; // why it was cancelled; or NULL
};

static const char *text_of(const json_t *spec, const char *key)
{
	return json_string_value(json_object_get(spec, key));
}

static json_int_t int_of(const json_t *spec, const char *key)
{
	return json_integer_value(json_object_get(spec, key));
}

// --- its log -----------------------------------------------------------------

static void open_log(struct image_build *b)
{
	struct err e = ERR_INIT;

	b->log = image_log_open(b->ims, b->build_id, &e);
	if (!b->log)
		log_warn("image %s: its build has no log: %s", b->name, e.msg);
}

static void note(struct image_build *b, const char *stage, const char *text)
{
	char line[400];
	int n = snprintf(line, sizeof(line), "thaw: %s: %s\n", stage, text);

	if (b->log)
		vmlog_write(b->log, line, MIN((size_t)n, sizeof(line) - 1));
}

struct vmlog *image_build_log(const struct image_build *b)
{
	return b->log;
}

bool image_build_is(const struct image_build *b, const char *build_id)
{
	return strcmp(b->build_id, build_id) == 0;
}

// --- life --------------------------------------------------------------------

struct image_build *image_building(const struct eng_images *ims,
				   const char *name)
{
	struct image_build *b = ims->builds;

	while (b && strcmp(b->name, name))
		b = b->next;
	return b;
}

int image_build_may(struct eng_images *ims, const char *name, uint32_t mem_mib,
		    struct err *e)
{
	unsigned n = 0;

	if (image_building(ims, name))
		return err_set(e, -EBUSY,
			       "MicroVM image %s is being built already", name);
	for (const struct image_build *b = ims->builds; b; b = b->next)
		n++;
	if (n >= IMAGE_BUILDS_MAX)
		return err_set(e, -EAGAIN,
			       "%u images are being built; wait for one of "
			       "them",
			       n);
	if (!eng_reg_healthy(ims->env.reg, e))
		return -EIO;
	return eng_vms_fits(ims->env.vms, mem_mib, e);
}

static void build_free(struct image_build *b)
{
	*b->link = b->next;
	if (b->next)
		b->next->link = b->link;
	eng_vms_reserve(b->ims->env.vms, -(int64_t)b->mem_mib, -(int)b->vcpus);
	vmlog_close(b->log);
	json_decref(b->spec);
	json_decref(b->aws);
	json_decref(b->sizes);
	free(b);
}

static void let_go(struct image_build *b)
{
	if (b->img && b->img_held)
		img_release(ptr_steal(b->img));
	b->img_held = false;
}

void image_build_tell(struct image_build *b,
		      const struct image_build_events *ev, void *ctx)
{
	b->ev = *ev;
	b->ctx = ctx;
}

static void cancel(struct image_build *b)
{
	if (b->build)
		eng_build_cancel(b->build);
	else if (b->img && !b->img_held)
		img_cancel(b->img);
}

void eng_image_build_abandon(struct image_build *b)
{
	b->abandoned = true;
	cancel(b);
}

int eng_image_cancel(struct eng_images *ims, const struct reg_image *im,
		     const struct reg_version *v, struct err *e)
{
	struct image_build *b = image_building(ims, im->name);

	if (!b || strcmp(b->build_id, v->build_id) ||
	    v->state != VER_IN_PROGRESS)
		return err_set(e, -EBUSY,
			       "version %s of MicroVM image %s is not being "
			       "built",
			       v->version, im->name);
	b->stop = "The build was cancelled.";
	cancel(b);
	return 0;
}

void eng_images_stop(struct eng_images *ims)
{
	for (struct image_build *b = ims->builds; b; b = b->next) {
		b->stop = "INTERNAL_PLATFORM_ERROR: thawd was stopped during "
			  "the build";
		cancel(b); // its requester is told
	}
}

void eng_images_destroy(struct eng_images *ims)
{
	if (!ims)
		return;
	while (ims->builds)
		build_free(ims->builds);
	free(ims);
}

// --- the end -----------------------------------------------------------------

static void build_durable(void *ctx)
{
	struct image_build *b = ctx;
	struct reg_image *im = eng_reg_image(b->ims->env.reg, b->name);
	struct reg_version *v = im ? eng_reg_version(im, b->version) : NULL;

	// The name was ours until now: nobody can have deleted it.
	if (b->ev.done && !b->abandoned)
		b->ev.done(b->ctx, im, v, NULL);
	build_free(b);
}

static void version_event(struct reg_txn *t, const struct reg_image *im,
			  const struct reg_version *v, const char *type)
{
	json_t *ev = json_pack("{s:s,s:s,s:s}", "type", type, "image", im->name,
			       "version", v->version);

	if (v->reason[0])
		json_object_set_new(ev, "detail", json_string(v->reason));
	eng_reg_event(t, ev);
}

static uint64_t put(struct image_build *b, struct reg_image *im,
		    struct reg_version *v, const char *type)
{
	struct reg_txn *t = eng_reg_begin(b->ims->env.reg);

	eng_reg_put_image(t, im);
	eng_reg_put_version(t, im, v);
	version_event(t, im, v, type);
	return eng_reg_commit(t);
}

// Of the guest's end of the build. What the application itself did wrong has no
// code of AWS's.
static enum img_reason reason_of(int rc)
{
	switch (rc) {
	case -ECHILD:
	case -ETIMEDOUT:
	case -EPROTO:
	case -E2BIG:
	case -ENOENT:
	case -EACCES:
	case -ENOEXEC:
		return IMG_NO_REASON;
	case -ENOSPC:
	case -EFBIG:
		return IMG_DISK_STORAGE_FULL;
	default:
		return IMG_INTERNAL_PLATFORM_ERROR;
	}
}

static void record_failure(struct image_build *b, const struct image_failure *f)
{
	struct reg_image *im = eng_reg_image(b->ims->env.reg, b->name);
	struct reg_version *v = im ? eng_reg_version(im, b->version) : NULL;
	uint64_t seq = eng_reg_queued(b->ims->env.reg);

	if (v) {
		v->state = VER_FAILED;
		v->updated_ms = im->updated_ms = util_wall_ns() / 1000000;
		snprintf(v->reason, sizeof(v->reason), "%s%s%s", f->reason,
			 *f->reason ? ": " : "", f->why);
		json_object_update(v->sizes, b->sizes);
		seq = put(b, im, v, "image.version-failed");
	}
	// The build is over once that is durable: a stop waits for it.
	eng_reg_after(b->ims->env.reg, seq, build_durable, b);
}

static void build_over(struct image_build *b, int rc, enum img_reason reason,
		       unsigned line, const char *why)
{
	struct image_failure f = {rc, img_reason_name(reason), line, why};
	char text[400], id[REG_BUILD_ID + 8];

	let_go(b);
	if (b->stop) {
		f.reason = "";
		f.why = b->stop;
	}
	snprintf(text, sizeof(text), "%s%s%s", f.reason, *f.reason ? ": " : "",
		 f.why);
	note(b, "failed", text);
	log_info("image %s: build failed: %s", b->name, text);
	if (b->recorded) {
		record_failure(b, &f);
		return;
	}
	if (b->log) { // of no version
		vmlog_close(ptr_steal(b->log));
		image_log_name(b->build_id, id);
		vmlog_remove(b->ims->env.log_dir, id);
	}
	if (b->ev.done && !b->abandoned)
		b->ev.done(b->ctx, NULL, NULL, &f);
	build_free(b);
}

static void put_sizes(struct image_build *b, const struct eng_build_result *res)
{
	const struct pgc_snap_stats *s = &res->stats;
	json_t *j = json_pack(
	    "{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "storedBytes",
	    (json_int_t)s->stored_bytes, "uniqueBytes",
	    (json_int_t)s->unique_bytes, "mapBytes", (json_int_t)s->map_bytes,
	    "memoryBytes", (json_int_t)(s->pages[PGC_MEM] * PGC_PAGE),
	    "memoryNonZeroBytes", (json_int_t)(s->nonzero[PGC_MEM] * PGC_PAGE),
	    "diskBytes", (json_int_t)(s->pages[PGC_DISK] * PGC_PAGE),
	    "diskNonZeroBytes", (json_int_t)(s->nonzero[PGC_DISK] * PGC_PAGE),
	    "diskDirtyBytes", (json_int_t)res->disk_dirty_bytes, "bootMs",
	    (json_int_t)res->boot_ms, "captureMs", (json_int_t)res->capture_ms,
	    "totalMs", (json_int_t)res->total_ms);

	json_object_update(b->sizes, j);
	json_decref(j);
}

static struct reg_version *new_version(struct image_build *b,
				       struct reg_image **im)
{
	struct reg_version *v;

	if (!*im)
		*im = eng_reg_image_add(b->ims->env.reg, b->name);
	v = eng_reg_version_add(*im);
	strcpy(v->build_id, b->build_id);
	return v;
}

static void add_version(struct image_build *b,
			const struct eng_build_result *res)
{
	struct eng_reg *reg = b->ims->env.reg;
	struct reg_image *im = eng_reg_image(reg, b->name);
	struct reg_version *v =
	    b->recorded ? eng_reg_version(im, b->version) : new_version(b, &im);
	uint64_t seq;

	put_sizes(b, res);
	v->snap = res->snap;
	v->has_disk = res->has_disk;
	v->disk = res->disk;
	v->mem_mib = b->mem_mib;
	v->vcpus = b->vcpus;
	v->agent = !json_object_get(b->spec, "kernel");
	v->state = VER_SUCCESSFUL;
	v->updated_ms = im->updated_ms = util_wall_ns() / 1000000;
	json_decref(v->spec);
	json_decref(v->sizes);
	v->spec = json_incref(b->spec);
	v->sizes = json_incref(b->sizes);
	if (!v->aws)
		v->aws = json_incref(b->aws);
	strcpy(b->version, v->version);
	seq = put(b, im, v, "image.version-created");
	// The newest image is the likeliest to be run next.
	eng_cells_want(b->ims->env.build.cells, v->mem_mib, v->vcpus);
	eng_pool_trim(b->ims->env.vms, im->name);
	eng_images_retire(b->ims, im);
	log_info("image %s version %s: built in %llu ms", im->name, v->version,
		 (unsigned long long)res->total_ms);
	note(b, "done", v->version);
	eng_reg_after(reg, seq, build_durable, b);
}

// --- the guest ---------------------------------------------------------------

static void on_progress(void *ctx, const char *stage, int percent,
			const char *text)
{
	struct image_build *b = ctx;

	if (strcmp(text, b->last) && *text) {
		snprintf(b->last, sizeof(b->last), "%s", text);
		note(b, stage, text);
	}
	if (!strcmp(stage, "boot"))
		let_go(b); // its disk is in the store
	if (b->ev.progress && !b->abandoned)
		b->ev.progress(b->ctx, stage, percent, text);
}

static void on_log(void *ctx, const char *text, size_t n)
{
	struct image_build *b = ctx;

	if (b->log)
		vmlog_write(b->log, text, n);
	if (b->ev.log && !b->abandoned)
		b->ev.log(b->ctx, text, n);
}

static void guest_done(void *ctx, int rc, const char *why,
		       const struct eng_build_result *res)
{
	struct image_build *b = ctx;
	struct pgc_id ids[2];

	b->build = NULL;
	if (!rc && !b->abandoned && !b->stop) {
		let_go(b);
		add_version(b, res);
		return;
	}
	if (!rc) { // finished before it noticed that nobody wants it
		ids[0] = res->snap;
		ids[1] = res->disk;
		eng_snaps_drop(b->ims->env.vms, 0, ids, res->has_disk ? 2 : 1);
		rc = -ECANCELED;
	}
	build_over(b, rc, reason_of(rc), 0, why && *why ? why : err_name(rc));
}

static uint32_t hook_seconds(const json_t *hooks, const char *name)
{
	const json_t *h = json_object_get(hooks, "microvmImageHooks");
	const char *s = text_of(h, name);
	char key[40];
	json_int_t n;

	if (!s || strcmp(s, "ENABLED"))
		return 0;
	snprintf(key, sizeof(key), "%sTimeoutInSeconds", name);
	n = int_of(h, key);
	return n > 0 ? (uint32_t)n : IMAGE_HOOK_S;
}

static int start_guest(struct image_build *b, const char *rootfs, uid_t uid,
		       gid_t gid, struct err *e)
{
	static const struct eng_build_events ev = {
	    .progress = on_progress, .log = on_log, .done = guest_done};
	const json_t *hooks = json_object_get(b->aws, "hooks");
	cleanup_free char *config = json_dumps(b->spec, JSON_COMPACT);
	cleanup_free const char **argv =
	    jt_texts(json_object_get(b->spec, "entrypoint"));
	cleanup_free const char **env =
	    jt_texts(json_object_get(b->spec, "env"));
	bool caps = json_array_size(
	    json_object_get(b->aws, "additionalOsCapabilities"));
	json_int_t port = int_of(hooks, "port");
	struct eng_build_req q = {
	    .name = b->name,
	    .rootfs = rootfs,
	    .peer_uid = uid,
	    .peer_gid = gid,
	    .argv = argv,
	    .env = env,
	    .user = text_of(b->spec, "user"),
	    .cwd = text_of(b->spec, "workingDirectory"),
	    .all_caps = !b->aws || caps,
	    .disk_mib = (uint64_t)int_of(b->spec, "diskMiB"),
	    .ready_port = (uint16_t)int_of(b->spec, "readyPort"),
	    .port_optional = b->port_optional,
	    .ready_timeout_s = (uint32_t)int_of(b->spec, "readyTimeoutSeconds"),
	    .hook_port = (uint16_t)(port ? port : HOOK_PORT),
	    .ready_hook_s = hook_seconds(hooks, "ready"),
	    .validate_hook_s = hook_seconds(hooks, "validate"),
	    .record_path = text_of(b->spec, "recordPath"),
	    .kernel = text_of(b->spec, "kernel"),
	    .cmdline = text_of(b->spec, "cmdline"),
	    .mem_mib = b->mem_mib,
	    .vcpus = b->vcpus,
	    .config = config,
	};

	return eng_build_start(&b->build, &b->ims->env.build, &q, &ev, b, e);
}

// --- the root file system ----------------------------------------------------

// Is the variable of `entry` among `list`?
static bool names(const json_t *list, const char *entry)
{
	size_t i, n = strcspn(entry, "=") + 1;
	json_t *v;

	json_array_foreach(list, i, v)
	{
		if (!strncmp(json_string_value(v), entry, n))
			return true;
	}
	return false;
}

// The image's ENV, and over it what the request has.
static json_t *merged_env(const json_t *own, const char *const *env)
{
	json_t *out = json_array();
	size_t i;
	json_t *v;

	for (; *env; env++)
		if (!names(own, *env))
			json_array_append_new(out, json_string(*env));
	json_array_foreach(own, i, v) json_array_append(out, v);
	return out;
}

static void default_text(json_t *spec, const char *key, const char *text)
{
	if (!json_object_get(spec, key))
		json_object_set_new(spec, key, json_string(text));
}

// What the image's configuration says where the request does not.
static void fill_spec(struct image_build *b, const struct img_result *r)
{
	json_t *spec = b->spec, *list;

	if (!json_object_get(spec, "entrypoint")) {
		list = json_array();
		for (const char *const *p = r->argv; *p; p++)
			json_array_append_new(list, json_string(*p));
		json_object_set_new(spec, "entrypoint", list);
	}
	list = merged_env(json_object_get(spec, "env"), r->env);
	json_object_set_new(spec, "env", list);
	default_text(spec, "user", r->user);
	default_text(spec, "workingDirectory", r->cwd);
	list = json_array();
	for (size_t i = 0; i < r->nports; i++)
		json_array_append_new(list, json_integer(r->ports[i]));
	json_object_set_new(spec, "ports", list);
	if (int_of(spec, "readyPort"))
		return;
	b->port_optional = true;
	json_object_set_new(spec, "readyPort",
			    json_integer(r->nports ? r->ports[0] : IMAGE_PORT));
}

static void root_done(void *ctx, const struct img_failure *f,
		      const struct img_result *r)
{
	struct image_build *b = ctx;
	struct err e = ERR_INIT;
	int rc;

	if (f) {
		b->img = NULL;
		build_over(b, f->rc, f->reason, f->line, f->why);
		return;
	}
	b->img_held = true;
	json_object_set_new(b->sizes, "codeBytes",
			    json_integer((json_int_t)r->rootfs_bytes));
	fill_spec(b, r);
	// The tar is root's.
	rc = b->stop || b->abandoned ? err_set(&e, -ECANCELED, "cancelled")
				     : start_guest(b, r->rootfs, 0, 0, &e);
	if (rc)
		build_over(b, rc, reason_of(rc), 0, e.msg);
}

static int start_root(struct image_build *b, const struct image_source *src,
		      struct err *e)
{
	static const struct img_events ev = {
	    .progress = on_progress, .log = on_log, .done = root_done};
	struct img_env *env = &b->ims->env.img;
	struct img_req q = {
	    .uri = src->uri,
	    .peer_uid = src->uid,
	    .peer_gid = src->gid,
	    .s3 = b->ims->env.s3,
	    .network = src->network,
	    .build_args = src->args,
	};

	// Base images may have been made since the last build.
	env->base_store = access(b->ims->bases, F_OK) ? NULL : b->ims->bases;
	return img_start(&b->img, env, &q, &ev, b, e);
}

// --- the start ---------------------------------------------------------------

int image_build_start(struct eng_images *ims, const char *name,
		      const json_t *spec, const json_t *aws,
		      const struct image_source *src, struct image_build **out,
		      struct err *e)
{
	struct image_build *b = calloc(1, sizeof(*b));
	int rc;

	if (!b)
		return err_set(e, -ENOMEM, "start a build");
	b->ims = ims;
	strcpy(b->name, name);
	eng_reg_uuid(b->build_id);
	b->mem_mib = (uint32_t)int_of(spec, "memoryMiB");
	b->vcpus = (unsigned)int_of(spec, "vcpus");
	b->spec = json_deep_copy(spec);
	b->aws = aws ? json_deep_copy(aws) : NULL;
	b->sizes = json_object();
	b->next = ims->builds;
	b->link = &ims->builds;
	if (b->next)
		b->next->link = &b->next;
	ims->builds = b;
	eng_vms_reserve(ims->env.vms, b->mem_mib, (int)b->vcpus);
	rc = src->uri ? start_root(b, src, e)
		      : start_guest(b, text_of(b->spec, "rootfs"), src->uid,
				    src->gid, e);
	if (rc) {
		build_free(b);
		return rc;
	}
	if (!src->quiet)
		open_log(b);
	log_info("image %s: building", name);
	*out = b;
	return 0;
}

void image_build_of(struct image_build *b, struct reg_version *v)
{
	b->recorded = true;
	strcpy(b->version, v->version);
	strcpy(v->build_id, b->build_id);
}
