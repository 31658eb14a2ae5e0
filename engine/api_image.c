// Images and their versions: AWS's shapes and calls, and thaw's lists. What makes
// them is in api_build.c.
#include "api.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DELETE_TRIES = 10, DELETE_WAIT_MS = 10000 };

// --- shapes ------------------------------------------------------------------

// As lists have it: AWS's summaries are without the time of the last change.
static json_t *image_summary(const struct reg_image *im)
{
	const struct reg_version *ok = eng_image_latest(im);
	const struct reg_version *bad = eng_image_latest_failed(im);
	json_t *j =
	    json_pack("{s:o,s:s,s:s,s:o}", "imageArn", eng_image_arn(im->name),
		      "name", im->name, "state", eng_image_state(im),
		      "createdAt", api_seconds(im->created_ms));

	if (ok)
		json_object_set_new(j, "latestActiveImageVersion",
				    json_string(ok->version));
	if (bad)
		json_object_set_new(j, "latestFailedImageVersion",
				    json_string(bad->version));
	return j;
}

json_t *api_image_shape(const struct reg_image *im)
{
	json_t *j = image_summary(im);

	json_object_set_new(j, "updatedAt", api_seconds(im->updated_ms));
	return j;
}

static const char *state_of(const struct reg_version *v)
{
	return v->broken ? "FAILED" : eng_version_state_name(v->state);
}

// Why its build failed is said of the build alone, as AWS does.
static json_t *version_shape(const struct reg_image *im,
			     const struct reg_version *v)
{
	bool active = v->active && !v->broken && v->state == VER_SUCCESSFUL;
	json_t *j = eng_image_members(v);

	json_object_set_new(j, "imageArn", eng_image_arn(im->name));
	json_object_set_new(j, "imageVersion", json_string(v->version));
	json_object_set_new(j, "state", json_string(state_of(v)));
	json_object_set_new(j, "status",
			    json_string(active ? "ACTIVE" : "INACTIVE"));
	json_object_set_new(j, "createdAt", api_seconds(v->created_ms));
	if (v->updated_ms)
		json_object_set_new(j, "updatedAt", api_seconds(v->updated_ms));
	if (json_object_size(im->tags))
		json_object_set(j, "tags", im->tags);
	if (v->broken)
		json_object_set_new(
		    j, "stateReason",
		    json_string("its snapshot is missing from the store"));
	return j;
}

json_t *api_thaw_version(const struct reg_version *v)
{
	char hex[2 * sizeof(v->snap.b) + 1];
	json_t *j = json_pack(
	    "{s:s,s:s,s:s,s:i,s:i,s:b,s:o,s:O,s:O}", "version", v->version,
	    "state", state_of(v), "status", v->active ? "ACTIVE" : "INACTIVE",
	    "memoryMiB", (int)v->mem_mib, "vcpus", (int)v->vcpus, "agent",
	    v->agent, "createdAt", api_seconds(v->created_ms), "sizes",
	    v->sizes, "spec", v->spec);

	util_hex(hex, v->snap.b, sizeof(v->snap.b));
	if (v->state == VER_SUCCESSFUL)
		json_object_set_new(j, "snapshot", json_string(hex));
	if (v->build_id[0])
		json_object_set_new(j, "buildId", json_string(v->build_id));
	if (v->reason[0])
		json_object_set_new(j, "stateReason", api_text(v->reason));
	if (json_object_get(v->aws, "hooks"))
		json_object_set(j, "hooks", json_object_get(v->aws, "hooks"));
	return j;
}

static json_t *thaw_image(struct api *a, const struct reg_image *im)
{
	json_t *list = json_array();
	struct reg_vm *const *vms;
	size_t n, used = 0;

	for (size_t i = 0; i < im->nversions; i++)
		json_array_append_new(list, api_thaw_version(im->versions[i]));
	vms = eng_reg_vms(a->reg, &n);
	for (size_t i = 0; i < n; i++)
		used += vms[i]->live && !vms[i]->parked &&
			!strcmp(vms[i]->image, im->name);
	return json_pack("{s:s,s:o,s:o,s:o,s:I,s:o}", "name", im->name,
			 "imageArn", eng_image_arn(im->name), "createdAt",
			 api_seconds(im->created_ms), "updatedAt",
			 api_seconds(im->updated_ms), "microvms",
			 (json_int_t)used, "versions", list);
}

// --- finding ----------------------------------------------------------------

static struct reg_image *image_of(struct api *a, struct http_req *r,
				  const char *id, bool begin)
{
	struct err e = ERR_INIT;
	struct reg_image *im;

	if (strlen(id) > 1024) // 256 characters
		err_set(&e, -EINVAL,
			"1 validation error detected: Value at "
			"'imageIdentifier' failed to satisfy constraint: "
			"Member must have between 1 and 256 characters");
	else if (!eng_image_find(a->reg, id, begin, &im, &e))
		return im;
	api_fail(a, r, &e, "microvm-image", e.code == -ENOENT ? id : NULL);
	return NULL;
}

struct reg_image *api_image_of(struct api *a, struct http_req *r,
			       const char *id)
{
	return image_of(a, r, id, !r->remote);
}

struct reg_image *api_image_whole(struct api *a, struct http_req *r,
				  const char *id)
{
	return image_of(a, r, id, false);
}

static struct reg_version *version_in(struct api *a, struct http_req *r,
				      json_t *in, const struct reg_image *im)
{
	const char *version = api_member(in, "imageVersion");
	struct err e = ERR_INIT;
	struct reg_version *v;

	if (!im)
		return NULL;
	v = eng_reg_version(im, version);
	if (!v) {
		err_set(&e, -ENOENT, "MicroVM image %s has no version %.32s",
			im->name, version);
		api_fail(a, r, &e, "microvm-image-version", version);
	}
	return v;
}

struct reg_version *api_version_of(struct api *a, struct http_req *r,
				   json_t *in, struct reg_image **im)
{
	*im = api_image_of(a, r, api_member(in, "imageIdentifier"));
	return version_in(a, r, in, *im);
}

static struct reg_version *version_whole(struct api *a, struct http_req *r,
					 json_t *in, struct reg_image **im)
{
	*im = api_image_whole(a, r, api_member(in, "imageIdentifier"));
	return version_in(a, r, in, *im);
}

// --- AWS's calls ------------------------------------------------------------

void api_get_image(struct api *a, struct http_req *r, json_t *in)
{
	struct reg_image *im =
	    api_image_of(a, r, api_member(in, "imageIdentifier"));

	json_t *j;

	if (!im)
		return;
	j = api_image_shape(im);
	if (json_object_size(im->tags))
		json_object_set(j, "tags", im->tags);
	api_answer(a, r, 200, j);
}

// Where an image stands in lists of them: by its age, and among those of one
// millisecond by its name. It stands there whatever is deleted before it, so that
// who deletes page by page meets all of them.
static uint64_t place_of(const struct reg_image *im)
{
	uint32_t h = 0x811c9dc5; // FNV-1a

	for (const char *p = im->name; *p; p++)
		h = (h ^ (uint8_t)*p) * 0x01000193;
	return im->created_ms << 20 | (h & 0xfffff);
}

// The first one behind `after`; NULL: there is none.
static struct reg_image *image_after(const struct api *a, uint64_t after)
{
	struct reg_image *best = NULL;
	struct reg_image *const *ims;
	size_t n;

	ims = eng_reg_images(a->reg, &n);
	for (size_t i = 0; i < n; i++) {
		if (place_of(ims[i]) > after &&
		    (!best || place_of(ims[i]) < place_of(best)))
			best = ims[i];
	}
	return best;
}

void api_list_images(struct api *a, struct http_req *r, json_t *in)
{
	const char *filter = api_member(in, "nameFilter");
	char token[SHAPE_PAGE_TEXT];
	const struct reg_image *im;
	struct api_page p;
	struct err e = ERR_INIT;
	json_t *items, *out;

	// A page is cut before the filter, as AWS does.
	if (api_page_of(a, r, in, &p, &e)) {
		api_fail(a, r, &e, NULL, NULL);
		return;
	}
	items = json_array();
	out = json_pack("{s:o}", "items", items);
	for (; p.max && (im = image_after(a, p.after)); p.max--) {
		if (!filter || strstr(im->name, filter))
			json_array_append_new(items, image_summary(im));
		p.after = place_of(im);
	}
	if (image_after(a, p.after)) {
		api_page_next(a, r, in, p.after, token);
		json_object_set_new(out, "nextToken", json_string(token));
	}
	api_answer(a, r, 200, out);
}

// --- deleting ---------------------------------------------------------------

// A deletion waits for parked microVMs of the image to end. While it does, a
// client may park others; it does not wait for ever.
struct deletion {
	struct api *a;
	struct http_req *r;
	char image[REG_NAME_MAX + 1], version[16]; // "": the image
	unsigned tries;
};

static json_t *deleted_shape(const struct deletion *d)
{
	json_t *j = json_pack("{s:o,s:s}", "imageIdentifier",
			      eng_image_arn(d->image), "state", "DELETED");

	if (d->version[0])
		json_object_set_new(j, "imageVersion", json_string(d->version));
	return j;
}

static void delete_step(struct deletion *d);

static void parked_ended(void *ctx, struct reg_vm *vm, enum vm_wait_end how)
{
	(void)vm;
	(void)how;
	delete_step(ctx);
}

static void delete_step(struct deletion *d)
{
	struct reg_image *im = eng_reg_image(d->a->reg, d->image);
	struct reg_version *v =
	    im && d->version[0] ? eng_reg_version(im, d->version) : NULL;
	struct err e = ERR_INIT;
	struct reg_vm *ending = NULL;
	uint64_t seq;
	int rc;

	if (!im || (d->version[0] && !v))
		rc =
		    err_set(&e, -ENOENT,
			    "MicroVM image %s was deleted meanwhile", d->image);
	else
		rc = eng_image_delete(d->a->images, im, v, &ending, &seq, &e);
	if (rc == -EINPROGRESS && d->tries++ < DELETE_TRIES) {
		eng_vm_wait(d->a->vms, ending, 1u << VM_TERMINATED, false,
			    DELETE_WAIT_MS, parked_ended, d);
		return;
	}
	if (rc == -EINPROGRESS)
		err_set(&e, -EBUSY,
			"microVMs of %s are being parked all the time; remove "
			"its pool first",
			d->image);
	if (rc)
		api_fail(d->a, d->r, &e, "microvm-image", d->image);
	else
		api_answer(d->a, d->r, 200, deleted_shape(d));
	free(d);
}

static void start_deletion(struct api *a, struct http_req *r,
			   const struct reg_image *im,
			   const struct reg_version *v)
{
	struct deletion *d = calloc(1, sizeof(*d));

	if (!d)
		abort();
	d->a = a;
	d->r = r;
	strcpy(d->image, im->name);
	if (v)
		strcpy(d->version, v->version);
	delete_step(d);
}

void api_delete_image(struct api *a, struct http_req *r, json_t *in)
{
	struct reg_image *im =
	    api_image_whole(a, r, api_member(in, "imageIdentifier"));

	if (im)
		start_deletion(a, r, im, NULL);
}

void api_delete_version(struct api *a, struct http_req *r, json_t *in)
{
	struct reg_image *im;
	struct reg_version *v = version_whole(a, r, in, &im);

	if (v)
		start_deletion(a, r, im, v);
}

// --- AWS's other calls ------------------------------------------------------

void api_get_version(struct api *a, struct http_req *r, json_t *in)
{
	struct reg_image *im;
	struct reg_version *v = api_version_of(a, r, in, &im);

	if (v)
		api_answer(a, r, 200, version_shape(im, v));
}

// "3.0" is 3, given once: where it stands in the list.
static uint64_t number_of(const struct reg_version *v)
{
	return strtoull(v->version, NULL, 10);
}

void api_list_versions(struct api *a, struct http_req *r, json_t *in)
{
	struct reg_image *im =
	    api_image_of(a, r, api_member(in, "imageIdentifier"));
	struct err e = ERR_INIT;
	char token[SHAPE_PAGE_TEXT];
	struct api_page p;
	size_t at;
	json_t *items, *out;

	if (!im)
		return;
	if (api_page_of(a, r, in, &p, &e)) {
		api_fail(a, r, &e, NULL, NULL);
		return;
	}
	items = json_array();
	out = json_pack("{s:o}", "items", items);
	for (at = 0; at < im->nversions && p.max; at++) {
		if (number_of(im->versions[at]) <= p.after)
			continue;
		json_array_append_new(items,
				      version_shape(im, im->versions[at]));
		p.after = number_of(im->versions[at]);
		p.max--;
	}
	if (at < im->nversions) {
		api_page_next(a, r, in, p.after, token);
		json_object_set_new(out, "nextToken", json_string(token));
	}
	api_answer(a, r, 200, out);
}

void api_update_version(struct api *a, struct http_req *r, json_t *in)
{
	struct reg_image *im;
	struct reg_version *v = version_whole(a, r, in, &im);
	bool active = !strcmp(api_member(in, "status"), "ACTIVE");
	struct err e = ERR_INIT;
	struct reg_txn *t;

	if (!v)
		return;
	if (active && (v->broken || v->state != VER_SUCCESSFUL)) {
		err_set(&e, -EBUSY,
			"version %s of MicroVM image %s is %s: it cannot be "
			"run",
			v->version, im->name, state_of(v));
		api_fail(a, r, &e, "microvm-image-version", v->version);
		return;
	}
	v->updated_ms = util_wall_ns() / 1000000;
	v->active = active;
	t = eng_reg_begin(a->reg);
	eng_reg_put_version(t, im, v);
	eng_reg_event(t, json_pack("{s:s,s:s,s:s,s:s}", "type",
				   "image.version-status", "image", im->name,
				   "version", v->version, "to",
				   active ? "ACTIVE" : "INACTIVE"));
	eng_reg_commit(t);
	eng_pool_trim(a->vms, im->name);
	eng_images_retire(a->images, im);
	api_answer(a, r, 200, version_shape(im, v));
}

// --- thaw's calls -----------------------------------------------------------

void api_thaw_images(struct api *a, struct http_req *r)
{
	struct reg_image *const *ims;
	json_t *items = json_array();
	size_t n;

	ims = eng_reg_images(a->reg, &n);
	for (size_t i = 0; i < n; i++)
		json_array_append_new(items, thaw_image(a, ims[i]));
	api_answer(a, r, 200, json_pack("{s:o}", "items", items));
}

void api_thaw_image(struct api *a, struct http_req *r)
{
	struct reg_image *im = api_image_of(a, r, r->seg[3]);

	if (im)
		api_answer(a, r, 200, thaw_image(a, im));
}
