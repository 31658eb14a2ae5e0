// Images: names and versions in the registry, and the builds that make them.
//
// A version is one snapshot (and the disk as made, for cold runs). It becomes
// visible in the transaction that reports it and not before: a build that
// fails, is cancelled or dies with thawd leaves no version, and its half-made
// snapshots are orphans that the next start removes.
#include "image.h"
#include "jtext.h"

#include "api_check.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

struct image_build {
	struct image_build *next, **link;
	struct eng_images *ims;
	struct eng_build *build;
	char name[REG_NAME_MAX + 1];
	json_t *spec;
	uint32_t mem_mib;
	unsigned vcpus;
	struct image_build_events ev;
	void *ctx;
	bool abandoned;
	char version[16]; // once made
};

struct eng_images {
	struct eng_build_env env;
	struct eng_vms *vms;
	struct eng_reg *reg;
	struct image_build *builds;
};

// --- finding ----------------------------------------------------------------

json_t *eng_image_arn(const char *name)
{
	return json_sprintf("%s%s", eng_arn_prefix(), name);
}

int eng_image_find(struct eng_reg *reg, const char *text,
		   struct reg_image **out, struct err *e)
{
	size_t n, hits = 0, len, cut = strlen(eng_arn_prefix());
	struct reg_image *const *ims = eng_reg_images(reg, &n);
	bool arn = strncmp(text, eng_arn_prefix(), cut) == 0;
	const char *name = arn ? text + cut : text;
	const struct reg_image *other = NULL;

	*out = eng_reg_image(reg, name);
	if (*out)
		return 0;
	len = strlen(name);
	for (size_t i = 0; !arn && len && i < n; i++) {
		if (strncmp(ims[i]->name, name, len))
			continue;
		other = *out;
		*out = ims[i];
		hits++;
	}
	if (hits == 1)
		return 0;
	if (hits)
		return err_set(e, -EINVAL,
			       "\"%.64s\" is ambiguous: %s and %s begin so; "
			       "give more of the name",
			       text, other->name, (*out)->name);
	return err_set(e, -ENOENT, "MicroVM image %.256s does not exist", text);
}

static bool runnable(const struct reg_version *v)
{
	return v->active && !v->broken;
}

const struct reg_version *eng_image_latest(const struct reg_image *im,
					   bool active)
{
	for (size_t i = im->nversions; i-- > 0;) {
		if (runnable(im->versions[i]) == active)
			return im->versions[i];
	}
	return NULL;
}

int eng_image_pick(const struct reg_image *im, const char *version,
		   struct reg_version **out, struct err *e)
{
	*out = NULL;
	for (size_t i = im->nversions; i-- > 0 && !*out;) {
		struct reg_version *v = im->versions[i];

		if (runnable(v) && (!version || !strcmp(v->version, version)))
			*out = v;
	}
	if (*out)
		return 0;
	return err_set(e, -ENOENT,
		       "No active version found for MicroVM image %s%s%s%.32s",
		       eng_arn_prefix(), im->name, version ? " and version " : "",
		       version ? version : "");
}

// --- deleting ---------------------------------------------------------------

static struct image_build *building(struct eng_images *ims, const char *name)
{
	struct image_build *b = ims->builds;

	while (b && strcmp(b->name, name))
		b = b->next;
	return b;
}

static int in_use(struct eng_images *ims, const struct reg_image *im,
		  const char *version, struct err *e)
{
	size_t n, uses = 0;
	struct reg_vm *const *vms = eng_reg_vms(ims->reg, &n);
	const struct reg_vm *one = NULL;

	for (size_t i = 0; i < n; i++) {
		if (!vms[i]->live || vms[i]->parked ||
		    strcmp(vms[i]->image, im->name) ||
		    (version && strcmp(vms[i]->version, version)))
			continue;
		one = vms[i];
		uses++;
	}
	if (uses)
		return err_set(e, -EBUSY,
			       "MicroVM image %s is in use by %zu microVMs "
			       "(%s is %s); terminate them first",
			       im->name, uses, one->id,
			       eng_state_name(one->state));
	if (building(ims, im->name))
		return err_set(e, -EBUSY, "MicroVM image %s is being built",
			       im->name);
	return 0;
}

static void delete_event(struct reg_txn *t, const char *type, const char *name,
			 const char *version)
{
	json_t *ev = json_pack("{s:s,s:s}", "type", type, "image", name);

	if (version)
		json_object_set_new(ev, "version", json_string(version));
	eng_reg_event(t, ev);
}

static size_t ids_of(const struct reg_version *v, struct pgc_id *ids)
{
	ids[0] = v->snap;
	if (v->has_disk)
		ids[1] = v->disk;
	return v->has_disk ? 2 : 1;
}

// Those that wait in its pool are nobody's: they go, and it is waited for them.
static struct reg_vm *empty_pool(struct eng_images *ims,
				 const struct reg_image *im,
				 const struct reg_version *version)
{
	struct reg_pool *p = eng_reg_pool(ims->reg, im->name);

	if (p && !version)
		p->size = 0; // and no new ones meanwhile
	return eng_pool_clear(ims->vms, im->name,
			      version ? version->version : NULL);
}

int eng_image_delete(struct eng_images *ims, struct reg_image *im,
		     struct reg_version *version, struct reg_vm **ending,
		     uint64_t *seq, struct err *e)
{
	struct reg_pool *pool = eng_reg_pool(ims->reg, im->name);
	struct pgc_id *ids;
	struct reg_txn *t;
	size_t n = 0;
	int rc = in_use(ims, im, version ? version->version : NULL, e);

	if (!rc && !eng_reg_healthy(ims->reg, e))
		rc = -EIO;
	if (!rc && version && im->nversions == 1)
		rc = err_set(e, -EBUSY,
			     "version %s is the last one of MicroVM image %s; "
			     "delete the image instead",
			     version->version, im->name);
	if (rc)
		return rc;
	*ending = empty_pool(ims, im, version);
	if (*ending)
		return -EINPROGRESS;
	ids = calloc(im->nversions * 2 + 1, sizeof(*ids));
	if (!ids)
		return err_set(e, -ENOMEM, "delete an image");
	t = eng_reg_begin(ims->reg);
	if (version) {
		n = ids_of(version, ids);
		delete_event(t, "image.version-deleted", im->name,
			     version->version);
		eng_reg_del_version(t, im, version);
	} else {
		for (size_t i = 0; i < im->nversions; i++)
			n += ids_of(im->versions[i], ids + n);
		delete_event(t, "image.deleted", im->name, NULL);
		if (pool)
			eng_reg_del_pool(t, pool);
		eng_reg_del_image(t, im);
	}
	*seq = eng_reg_commit(t);
	eng_snaps_drop(ims->vms, *seq, ids, n);
	free(ids);
	return 0;
}

// --- the build request ------------------------------------------------------

static int defaults(json_t *spec, struct err *e)
{
	static const struct {
		const char *key;
		json_int_t value;
	} ints[] = {
	    {"memoryMiB", 512},
	    {"vcpus", 1},
	    {"diskMiB", 0},
	    {"readyPort", 0},
	    {"readyTimeoutSeconds", 120},
	};

	for (size_t i = 0; i < ARRAY_SIZE(ints); i++) {
		if (!json_object_get(spec, ints[i].key))
			json_object_set_new(spec, ints[i].key,
					    json_integer(ints[i].value));
	}
	if (!json_object_get(spec, "recordPath"))
		json_object_set_new(spec, "recordPath", json_string("/"));
	if (!json_object_get(spec, "kernel") &&
	    !json_array_size(json_object_get(spec, "entrypoint")))
		return err_set(e, -EINVAL,
			       "entrypoint is required: the program to start "
			       "and its arguments");
	return 0;
}

// It stands in the first line of a request.
static int check_record_path(json_t *spec, struct err *e)
{
	const char *s = json_string_value(json_object_get(spec, "recordPath"));

	if (!s || !*s)
		return 0;
	for (const char *p = s; *p; p++)
		if (*p <= ' ' || *p > '~')
			s = "";
	if (*s == '/')
		return 0;
	return err_set(e, -EINVAL,
		       "recordPath must be a URL's path: a slash, then "
		       "printable ASCII without spaces");
}

int eng_image_check_spec(json_t *spec, struct err *e)
{
	static const struct check_field fields[] = {
	    {"name", CHECK_NAME, true, 1, REG_NAME_MAX},
	    {"rootfs", CHECK_PATH, false, 1, 4000},
	    {"kernel", CHECK_PATH, false, 1, 4000},
	    {"cmdline", CHECK_STRING, false, 0, 2000},
	    {"entrypoint", CHECK_STRINGS, false, 1, 256},
	    {"env", CHECK_ENV, false, 0, 256},
	    {"user", CHECK_STRING, false, 0, 128},
	    {"workingDirectory", CHECK_STRING, false, 0, 4000},
	    {"memoryMiB", CHECK_INT, false, 64, 32768},
	    {"vcpus", CHECK_INT, false, 1, 16},
	    {"diskMiB", CHECK_INT, false, 0, 262144},
	    {"readyPort", CHECK_INT, false, 0, 65535},
	    {"readyTimeoutSeconds", CHECK_INT, false, 1, 3600},
	    {"recordPath", CHECK_STRING, false, 0, 1000},
	};
	int rc = check_object(spec, "", fields, ARRAY_SIZE(fields), e);
	bool rootfs = json_object_get(spec, "rootfs") != NULL;
	bool kernel = json_object_get(spec, "kernel") != NULL;

	if (!rc && rootfs == kernel)
		rc = err_set(e, -EINVAL,
			     "exactly one of rootfs (a directory or tar file) "
			     "and kernel (a guest without an agent) is "
			     "required");
	if (!rc)
		rc = check_record_path(spec, e);
	return rc ? rc : defaults(spec, e);
}

static const char *text_of(json_t *spec, const char *key)
{
	return json_string_value(json_object_get(spec, key));
}

static json_int_t int_of(json_t *spec, const char *key)
{
	return json_integer_value(json_object_get(spec, key));
}

// --- building ---------------------------------------------------------------

static void build_free(struct image_build *b)
{
	*b->link = b->next;
	if (b->next)
		b->next->link = b->link;
	eng_vms_reserve(b->ims->vms, -(int64_t)b->mem_mib, -(int)b->vcpus);
	json_decref(b->spec);
	free(b);
}

static json_t *sizes_of(const struct eng_build_result *res)
{
	const struct pgc_snap_stats *s = &res->stats;

	return json_pack(
	    "{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "storedBytes",
	    (json_int_t)s->stored_bytes, "uniqueBytes",
	    (json_int_t)s->unique_bytes, "mapBytes", (json_int_t)s->map_bytes,
	    "memoryBytes", (json_int_t)(s->pages[PGC_MEM] * PGC_PAGE),
	    "memoryNonZeroBytes", (json_int_t)(s->nonzero[PGC_MEM] * PGC_PAGE),
	    "diskBytes", (json_int_t)(s->pages[PGC_DISK] * PGC_PAGE),
	    "diskNonZeroBytes", (json_int_t)(s->nonzero[PGC_DISK] * PGC_PAGE),
	    "bootMs", (json_int_t)res->boot_ms, "captureMs",
	    (json_int_t)res->capture_ms, "totalMs", (json_int_t)res->total_ms);
}

static void build_durable(void *ctx)
{
	struct image_build *b = ctx;
	struct reg_image *im = eng_reg_image(b->ims->reg, b->name);
	struct reg_version *v = im ? eng_reg_version(im, b->version) : NULL;

	// The name was ours until now: nobody can have deleted it.
	if (!b->abandoned)
		b->ev.done(b->ctx, im, v, 0, NULL);
	build_free(b);
}

static void add_version(struct image_build *b,
			const struct eng_build_result *res)
{
	struct eng_reg *reg = b->ims->reg;
	struct reg_image *im = eng_reg_image(reg, b->name);
	struct reg_version *v;
	struct reg_txn *t;

	if (!im)
		im = eng_reg_image_add(reg, b->name);
	v = eng_reg_version_add(im);
	v->snap = res->snap;
	v->has_disk = res->has_disk;
	v->disk = res->disk;
	v->mem_mib = b->mem_mib;
	v->vcpus = b->vcpus;
	v->agent = !json_object_get(b->spec, "kernel");
	v->spec = json_incref(b->spec);
	v->sizes = sizes_of(res);
	strcpy(b->version, v->version);
	t = eng_reg_begin(reg);
	eng_reg_put_image(t, im);
	eng_reg_put_version(t, im, v);
	eng_reg_event(t, json_pack("{s:s,s:s,s:s}", "type",
				   "image.version-created", "image", im->name,
				   "version", v->version));
	// The newest image is the likeliest to be run next.
	eng_cells_want(b->ims->env.cells, v->mem_mib, v->vcpus);
	eng_pool_trim(b->ims->vms, im->name);
	eng_images_retire(b->ims, im);
	log_info("image %s version %s: built in %llu ms", im->name, v->version,
		 (unsigned long long)res->total_ms);
	eng_reg_after(reg, eng_reg_commit(t), build_durable, b);
}

static void build_done(void *ctx, int rc, const char *why,
		       const struct eng_build_result *res)
{
	struct image_build *b = ctx;
	struct pgc_id ids[2];

	b->build = NULL;
	if (!rc && !b->abandoned) {
		add_version(b, res);
		return;
	}
	if (!rc) { // finished before it noticed that nobody wants it
		ids[0] = res->snap;
		ids[1] = res->disk;
		eng_snaps_drop(b->ims->vms, 0, ids, res->has_disk ? 2 : 1);
	} else {
		log_info("image %s: build failed: %s", b->name,
			 why ? why : err_name(rc));
	}
	if (!b->abandoned)
		b->ev.done(b->ctx, NULL, NULL, rc, why ? why : err_name(rc));
	build_free(b);
}

static void build_progress(void *ctx, const char *stage, int percent,
			   const char *text)
{
	struct image_build *b = ctx;

	if (!b->abandoned)
		b->ev.progress(b->ctx, stage, percent, text);
}

static void build_log(void *ctx, const char *text, size_t n)
{
	struct image_build *b = ctx;

	if (!b->abandoned)
		b->ev.log(b->ctx, text, n);
}

static int start_build(struct image_build *b, uid_t uid, gid_t gid,
		       struct err *e)
{
	static const struct eng_build_events ev = {
	    .progress = build_progress, .log = build_log, .done = build_done};
	cleanup_free char *config = json_dumps(b->spec, JSON_COMPACT);
	cleanup_free const char **argv =
	    jt_texts(json_object_get(b->spec, "entrypoint"));
	cleanup_free const char **env =
	    jt_texts(json_object_get(b->spec, "env"));
	struct eng_build_req q = {
	    .name = b->name,
	    .rootfs = text_of(b->spec, "rootfs"),
	    .peer_uid = uid,
	    .peer_gid = gid,
	    .argv = argv,
	    .env = env,
	    .user = text_of(b->spec, "user"),
	    .cwd = text_of(b->spec, "workingDirectory"),
	    .disk_mib = (uint64_t)int_of(b->spec, "diskMiB"),
	    .ready_port = (uint16_t)int_of(b->spec, "readyPort"),
	    .ready_timeout_s = (uint32_t)int_of(b->spec, "readyTimeoutSeconds"),
	    .record_path = text_of(b->spec, "recordPath"),
	    .kernel = text_of(b->spec, "kernel"),
	    .cmdline = text_of(b->spec, "cmdline"),
	    .mem_mib = b->mem_mib,
	    .vcpus = b->vcpus,
	    .config = config,
	};

	return eng_build_start(&b->build, &b->ims->env, &q, &ev, b, e);
}

int eng_image_build(struct eng_images *ims, json_t *spec, uid_t uid, gid_t gid,
		    const struct image_build_events *ev, void *ctx,
		    struct image_build **out, struct err *e)
{
	const char *name = text_of(spec, "name");
	struct image_build *b;
	int rc = 0;

	if (building(ims, name))
		return err_set(e, -EBUSY,
			       "MicroVM image %s is being built already", name);
	if (!eng_reg_healthy(ims->reg, e))
		return -EIO;
	rc = eng_vms_fits(ims->vms, (uint32_t)int_of(spec, "memoryMiB"), e);
	if (rc)
		return rc;
	b = calloc(1, sizeof(*b));
	if (!b)
		return err_set(e, -ENOMEM, "start a build");
	b->ims = ims;
	b->ev = *ev;
	b->ctx = ctx;
	strcpy(b->name, name);
	b->mem_mib = (uint32_t)int_of(spec, "memoryMiB");
	b->vcpus = (unsigned)int_of(spec, "vcpus");
	b->spec = json_deep_copy(spec);
	json_object_del(b->spec, "name");
	b->next = ims->builds;
	b->link = &ims->builds;
	if (b->next)
		b->next->link = &b->next;
	ims->builds = b;
	eng_vms_reserve(ims->vms, b->mem_mib, (int)b->vcpus);
	rc = start_build(b, uid, gid, e);
	if (rc) {
		build_free(b);
		return rc;
	}
	log_info("image %s: building", name);
	*out = b;
	return 0;
}

void eng_image_build_abandon(struct image_build *b)
{
	b->abandoned = true;
	if (b->build)
		eng_build_cancel(b->build);
}

void eng_images_retire(struct eng_images *ims, const struct reg_image *im)
{
	eng_image_retire(&ims->env, ims->reg, im);
}

// --- life --------------------------------------------------------------------

int eng_images_create(struct eng_images **out, const struct eng_build_env *env,
		      struct eng_vms *vms, struct eng_reg *reg, struct err *e)
{
	struct eng_images *ims = calloc(1, sizeof(*ims));
	struct reg_image *const *all;
	size_t n;

	if (!ims)
		return err_set(e, -ENOMEM, "make the image table");
	ims->env = *env;
	ims->vms = vms;
	ims->reg = reg;
	*out = ims;
	all = eng_reg_images(reg, &n);
	for (size_t i = 0; i < n; i++)
		eng_images_retire(ims, all[i]);
	return 0;
}

void eng_images_stop(struct eng_images *ims)
{
	for (struct image_build *b = ims->builds; b; b = b->next) {
		if (b->build)
			eng_build_cancel(b->build); // its requester is told
	}
}

bool eng_images_busy(const struct eng_images *ims)
{
	return ims->builds != NULL;
}

void eng_images_destroy(struct eng_images *ims)
{
	if (!ims)
		return;
	while (ims->builds)
		build_free(ims->builds);
	free(ims);
}
