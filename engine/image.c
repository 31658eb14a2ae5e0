// Images: finding, deleting, and what a restart finds of them.
//
// A version that runs is one snapshot (and the disk as made, for cold runs). One
// that CreateMicrovmImage or UpdateMicrovmImage asked for is there from the start,
// IN_PROGRESS, and ends as SUCCESSFUL or FAILED; only a SUCCESSFUL one has
// snapshots. One of thaw's own call becomes visible in the transaction that
// reports it and not before. Either way the snapshots of a build that fails, is
// cancelled or dies with thawd are orphans, which the next start removes.
#include "image_internal.h"

#include "jtext.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

// --- finding ----------------------------------------------------------------

json_t *eng_image_arn(const char *name)
{
	return json_sprintf("%s%s", eng_arn_prefix(), name);
}

json_t *eng_managed_arn(const char *name)
{
	return json_sprintf("arn:aws:lambda:%s:aws:microvm-image:%s",
			    eng_arn_region(), name);
}

const char *eng_image_bare(const char *text)
{
	size_t cut = strlen(eng_arn_prefix());

	return strncmp(text, eng_arn_prefix(), cut) ? text : text + cut;
}

int eng_image_find(struct eng_reg *reg, const char *text, bool begin,
		   struct reg_image **out, struct err *e)
{
	size_t n, hits = 0, len;
	struct reg_image *const *ims = eng_reg_images(reg, &n);
	const char *name = eng_image_bare(text);
	bool arn = name != text;
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
	if (hits == 1 && begin)
		return 0;
	if (hits && !begin)
		return err_set(e, -ENOENT,
			       "MicroVM image %.64s does not exist; %s begins "
			       "so, but its whole name or ARN is needed here",
			       text, (*out)->name);
	if (hits)
		return err_set(e, -EINVAL,
			       "\"%.64s\" is ambiguous: %s and %s begin so; "
			       "give more of the name",
			       text, other->name, (*out)->name);
	return err_set(e, -ENOENT, "MicroVM image %.256s does not exist", text);
}

static bool runnable(const struct reg_version *v)
{
	return v->active && !v->broken && v->state == VER_SUCCESSFUL;
}

static bool failed(const struct reg_version *v)
{
	return v->broken || v->state == VER_FAILED;
}

static const struct reg_version *newest(const struct reg_image *im,
					bool (*ok)(const struct reg_version *v))
{
	for (size_t i = im->nversions; i-- > 0;) {
		if (ok(im->versions[i]))
			return im->versions[i];
	}
	return NULL;
}

const struct reg_version *eng_image_latest(const struct reg_image *im)
{
	return newest(im, runnable);
}

const struct reg_version *eng_image_latest_failed(const struct reg_image *im)
{
	return newest(im, failed);
}

// An image was CREATEd by its first version, and UPDATEd by all later ones.
const char *eng_image_state(const struct reg_image *im)
{
	const struct reg_version *v =
	    im->nversions ? im->versions[im->nversions - 1] : NULL;
	bool first = im->last_major <= 1;

	if (v && (v->state == VER_PENDING || v->state == VER_IN_PROGRESS))
		return first ? "CREATING" : "UPDATING";
	if (v && failed(v))
		return first ? "CREATE_FAILED" : "UPDATE_FAILED";
	return first ? "CREATED" : "UPDATED";
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
		       eng_arn_prefix(), im->name,
		       version ? " and version " : "", version ? version : "");
}

// --- deleting ---------------------------------------------------------------

static int in_use(struct eng_images *ims, const struct reg_image *im,
		  const char *version, struct err *e)
{
	size_t n, uses = 0;
	struct reg_vm *const *vms = eng_reg_vms(ims->env.reg, &n);
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
	if (image_building(ims, im->name))
		return err_set(e, -EBUSY, "MicroVM image %s is being built",
			       im->name);
	return 0;
}

static void drop_log(struct eng_images *ims, const struct reg_version *v)
{
	char id[REG_BUILD_ID + 8];

	image_log_name(v->build_id, id);
	if (v->build_id[0])
		vmlog_remove(ims->env.log_dir, id);
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
	if (v->state != VER_SUCCESSFUL)
		return 0;
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
	struct reg_pool *p = eng_reg_pool(ims->env.reg, im->name);

	if (p && !version)
		p->size = 0; // and no new ones meanwhile
	return eng_pool_clear(ims->env.vms, im->name,
			      version ? version->version : NULL);
}

int eng_image_delete(struct eng_images *ims, struct reg_image *im,
		     struct reg_version *version, struct reg_vm **ending,
		     uint64_t *seq, struct err *e)
{
	struct reg_pool *pool = eng_reg_pool(ims->env.reg, im->name);
	struct pgc_id *ids;
	struct reg_txn *t;
	size_t n = 0;
	int rc = in_use(ims, im, version ? version->version : NULL, e);

	if (!rc && !eng_reg_healthy(ims->env.reg, e))
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
	t = eng_reg_begin(ims->env.reg);
	if (version) {
		n = ids_of(version, ids);
		drop_log(ims, version);
		delete_event(t, "image.version-deleted", im->name,
			     version->version);
		eng_reg_del_version(t, im, version);
	} else {
		for (size_t i = 0; i < im->nversions; i++) {
			n += ids_of(im->versions[i], ids + n);
			drop_log(ims, im->versions[i]);
		}
		delete_event(t, "image.deleted", im->name, NULL);
		if (pool)
			eng_reg_del_pool(t, pool);
		eng_reg_del_image(t, im);
	}
	*seq = eng_reg_commit(t);
	eng_snaps_drop(ims->env.vms, *seq, ids, n);
	free(ids);
	return 0;
}

// --- life --------------------------------------------------------------------

void eng_images_retire(struct eng_images *ims, const struct reg_image *im)
{
	eng_image_retire(&ims->env.build, ims->env.reg, im);
}

// What was being built when an earlier thawd ended is not, and never will be.
static void fail_cut(struct eng_images *ims, struct reg_image *im)
{
	for (size_t i = 0; i < im->nversions; i++) {
		struct reg_version *v = im->versions[i];
		struct reg_txn *t;

		if (v->state != VER_PENDING && v->state != VER_IN_PROGRESS)
			continue;
		v->state = VER_FAILED;
		v->updated_ms = im->updated_ms = util_wall_ns() / 1000000;
		snprintf(v->reason, sizeof(v->reason),
			 "INTERNAL_PLATFORM_ERROR: thawd ended unexpectedly "
			 "during the build");
		t = eng_reg_begin(ims->env.reg);
		eng_reg_put_image(t, im);
		eng_reg_put_version(t, im, v);
		eng_reg_event(t, json_pack("{s:s,s:s,s:s,s:s}", "type",
					   "image.version-failed", "image",
					   im->name, "version", v->version,
					   "detail", v->reason));
		eng_reg_commit(t);
		log_warn("image %s version %s: %s", im->name, v->version,
			 v->reason);
	}
}

int eng_images_create(struct eng_images **out, const struct eng_images_env *env,
		      struct err *e)
{
	struct eng_images *ims = calloc(1, sizeof(*ims));
	struct reg_image *const *all;
	size_t n;

	if (!ims)
		return err_set(e, -ENOMEM, "make the image table");
	ims->env = *env;
	ims->bases = env->img.base_store;
	*out = ims;
	all = eng_reg_images(env->reg, &n);
	for (size_t i = 0; i < n; i++) {
		fail_cut(ims, all[i]);
		eng_images_retire(ims, all[i]);
	}
	image_logs_sweep(ims);
	return 0;
}

bool eng_images_busy(const struct eng_images *ims)
{
	return ims->builds != NULL;
}
