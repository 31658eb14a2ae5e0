// The image calls: AWS's shapes, thaw's lists, and builds as a stream of lines.
#include "api.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

// Members that AWS requires of a version and that thaw has no use for.
#define BASE_ARN "arn:aws:lambda:us-east-1:aws:microvm-image:thaw-rootfs"
#define ROLE_ARN "arn:aws:iam::000000000000:role/thaw"

enum { DELETE_TRIES = 10, DELETE_WAIT_MS = 10000 };

// --- shapes ------------------------------------------------------------------

static json_t *image_shape(const struct reg_image *im)
{
	const struct reg_version *ok = eng_image_latest(im);
	json_t *j =
	    json_pack("{s:o,s:s,s:s,s:o,s:o}", "imageArn",
		      eng_image_arn(im->name), "name", im->name, "state",
		      im->last_major > 1 ? "UPDATED" : "CREATED", "createdAt",
		      api_seconds(im->created_ms), "updatedAt",
		      api_seconds(im->updated_ms));

	if (ok)
		json_object_set_new(j, "latestActiveImageVersion",
				    json_string(ok->version));
	return j;
}

static json_t *artifact(const struct reg_version *v)
{
	const char *path =
	    json_string_value(json_object_get(v->spec, "rootfs"));

	if (!path)
		path = json_string_value(json_object_get(v->spec, "kernel"));
	return json_pack("{s:o}", "uri",
			 json_sprintf("file://%s", path ? path : "/"));
}

static json_t *version_shape(const struct reg_image *im,
			     const struct reg_version *v)
{
	json_t *j = json_pack(
	    "{s:s,s:s,s:o,s:o,s:s,s:s,s:s,s:o,s:[{s:i}]}", "baseImageArn",
	    BASE_ARN, "buildRoleArn", ROLE_ARN, "codeArtifact", artifact(v),
	    "imageArn", eng_image_arn(im->name), "imageVersion", v->version,
	    "state", v->broken ? "FAILED" : "SUCCESSFUL", "status",
	    v->active && !v->broken ? "ACTIVE" : "INACTIVE", "createdAt",
	    api_seconds(v->created_ms), "resources", "minimumMemoryInMiB",
	    (int)v->mem_mib);

	if (v->broken)
		json_object_set_new(
		    j, "stateReason",
		    json_string("its snapshot is missing from the store"));
	return j;
}

static json_t *thaw_version(const struct reg_version *v)
{
	char hex[2 * sizeof(v->snap.b) + 1];

	util_hex(hex, v->snap.b, sizeof(v->snap.b));
	return json_pack("{s:s,s:s,s:s,s:i,s:i,s:b,s:o,s:s,s:O,s:O}", "version",
			 v->version, "state",
			 v->broken ? "FAILED" : "SUCCESSFUL", "status",
			 v->active ? "ACTIVE" : "INACTIVE", "memoryMiB",
			 (int)v->mem_mib, "vcpus", (int)v->vcpus, "agent",
			 v->agent, "createdAt", api_seconds(v->created_ms),
			 "snapshot", hex, "sizes", v->sizes, "spec", v->spec);
}

static json_t *thaw_image(struct api *a, const struct reg_image *im)
{
	json_t *list = json_array();
	struct reg_vm *const *vms;
	size_t n, used = 0;

	for (size_t i = 0; i < im->nversions; i++)
		json_array_append_new(list, thaw_version(im->versions[i]));
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

struct reg_image *api_image_of(struct api *a, struct http_req *r, unsigned seg)
{
	struct err e = ERR_INIT;
	struct reg_image *im;

	if (strlen(r->seg[seg]) > 256)
		err_set(&e, -EINVAL,
			"1 validation error detected: Value at "
			"'imageIdentifier' failed to satisfy constraint: "
			"Member must have between 1 and 256 characters");
	else if (!eng_image_find(a->reg, r->seg[seg], &im, &e))
		return im;
	api_fail(a, r, &e, "microvm-image",
		 e.code == -ENOENT ? r->seg[seg] : NULL);
	return NULL;
}

static struct reg_version *version_of(struct api *a, struct http_req *r,
				      struct reg_image **im)
{
	struct err e = ERR_INIT;
	struct reg_version *v;

	*im = api_image_of(a, r, 2);
	if (!*im)
		return NULL;
	v = eng_reg_version(*im, r->seg[4]);
	if (!v) {
		err_set(&e, -ENOENT, "MicroVM image %s has no version %.32s",
			(*im)->name, r->seg[4]);
		api_fail(a, r, &e, "microvm-image-version", r->seg[4]);
	}
	return v;
}

// --- AWS's calls ------------------------------------------------------------

void api_get_image(struct api *a, struct http_req *r)
{
	struct reg_image *im = api_image_of(a, r, 2);

	if (im)
		api_answer(a, r, 200, image_shape(im));
}

void api_list_images(struct api *a, struct http_req *r)
{
	const char *filter = http_query(r, "nameFilter");
	struct reg_image *const *ims;
	struct err e = ERR_INIT;
	size_t n, max = 0;
	uint64_t at = 0;
	json_t *items, *out;

	// `at` counts images; a page is cut before the filter, as AWS does.
	if (api_page_params(r, &max, &at, &e)) {
		api_fail(a, r, &e, NULL, NULL);
		return;
	}
	ims = eng_reg_images(a->reg, &n);
	items = json_array();
	out = json_pack("{s:o}", "items", items);
	for (; at < n && max; at++, max--) {
		if (!filter || strstr(ims[at]->name, filter))
			json_array_append_new(items, image_shape(ims[at]));
	}
	if (at < n)
		json_object_set_new(out, "nextToken", api_next_token(at));
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

void api_delete_image(struct api *a, struct http_req *r)
{
	struct reg_image *im = api_image_of(a, r, 2);

	if (im)
		start_deletion(a, r, im, NULL);
}

void api_delete_version(struct api *a, struct http_req *r)
{
	struct reg_image *im;
	struct reg_version *v = version_of(a, r, &im);

	if (v)
		start_deletion(a, r, im, v);
}

// --- AWS's other calls ------------------------------------------------------

void api_get_version(struct api *a, struct http_req *r)
{
	struct reg_image *im;
	struct reg_version *v = version_of(a, r, &im);

	if (v)
		api_answer(a, r, 200, version_shape(im, v));
}

void api_list_versions(struct api *a, struct http_req *r)
{
	struct reg_image *im = api_image_of(a, r, 2);
	struct err e = ERR_INIT;
	size_t max = 0;
	uint64_t at = 0;
	json_t *items, *out;

	if (!im)
		return;
	if (api_page_params(r, &max, &at, &e)) {
		api_fail(a, r, &e, NULL, NULL);
		return;
	}
	items = json_array();
	out = json_pack("{s:o}", "items", items);
	for (; at < im->nversions && max; at++, max--)
		json_array_append_new(items,
				      version_shape(im, im->versions[at]));
	if (at < im->nversions)
		json_object_set_new(out, "nextToken", api_next_token(at));
	api_answer(a, r, 200, out);
}

static int read_status(const struct http_req *r, bool *active, struct err *e)
{
	static const struct check_field fields[] = {
	    {"status", CHECK_STRING, true, 1, 64}};
	json_t *body = check_body(r->body, r->body_len, e);
	const char *s;
	int rc = body ? check_object(body, "", fields, 1, e) : -EINVAL;

	if (!rc) {
		s = json_string_value(json_object_get(body, "status"));
		*active = strcmp(s, "ACTIVE") == 0;
		if (!*active && strcmp(s, "INACTIVE"))
			rc = err_set(e, -EINVAL,
				     "1 validation error detected: Value at "
				     "'status' failed to satisfy constraint: "
				     "Member must satisfy enum value set: "
				     "[ACTIVE, INACTIVE]");
	}
	json_decref(body);
	return rc;
}

void api_update_version(struct api *a, struct http_req *r)
{
	struct reg_image *im;
	struct reg_version *v = version_of(a, r, &im);
	struct err e = ERR_INIT;
	struct reg_txn *t;
	bool active;

	if (!v)
		return;
	if (read_status(r, &active, &e)) {
		api_fail(a, r, &e, NULL, NULL);
		return;
	}
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
	struct reg_image *im = api_image_of(a, r, 3);

	if (im)
		api_answer(a, r, 200, thaw_image(a, im));
}

struct build_stream {
	struct api *a;
	struct http_stream *st;
	struct image_build *build; // NULL: over
};

static void build_closed(void *ctx)
{
	struct build_stream *bs = ctx;

	if (bs->build)
		eng_image_build_abandon(bs->build);
	free(bs);
}

static void build_progress(void *ctx, const char *stage, int percent,
			   const char *text)
{
	struct build_stream *bs = ctx;
	json_t *p = json_pack("{s:s,s:i,s:o}", "stage", stage, "percent",
			      percent, "text", api_text(text ? text : ""));

	http_stream_json(bs->st, json_pack("{s:o}", "progress", p));
}

static void build_log(void *ctx, const char *text, size_t n)
{
	struct build_stream *bs = ctx;

	// When its reader is far behind, the log is cut; progress still comes.
	if (http_stream_backlog(bs->st) < 1024 * 1024)
		http_stream_json(bs->st,
				 json_pack("{s:o}", "log", api_bytes(text, n)));
}

static void build_done(void *ctx, const struct reg_image *im,
		       const struct reg_version *v,
		       const struct image_failure *f)
{
	struct build_stream *bs = ctx;
	json_t *j;

	bs->build = NULL;
	if (im && v) {
		j = thaw_version(v);
		json_object_set_new(j, "name", json_string(im->name));
		json_object_set_new(j, "imageArn", eng_image_arn(im->name));
		j = json_pack("{s:o}", "image", j);
	} else {
		j = json_pack("{s:{s:s,s:o}}", "error", "type", err_name(f->rc),
			      "message", api_text(f->why));
	}
	http_stream_json(bs->st, j);
	http_stream_end(bs->st);
}

void api_build_image(struct api *a, struct http_req *r)
{
	static const struct image_build_events ev = {
	    .progress = build_progress, .log = build_log, .done = build_done};
	static const struct http_stream_ops ops = {.closed = build_closed};
	struct err e = ERR_INIT;
	struct build_stream *bs;
	json_t *spec = check_body(r->body, r->body_len, &e);
	int rc = spec ? eng_image_check_spec(spec, &e) : -EINVAL;
	uid_t uid = r->uid;
	gid_t gid = r->gid;

	if (rc) {
		json_decref(spec);
		api_fail(a, r, &e, NULL, NULL);
		return;
	}
	bs = calloc(1, sizeof(*bs));
	if (!bs)
		abort();
	bs->a = a;
	bs->st = http_stream_take(r, &ops, bs);
	if (!bs->st) {
		free(bs);
	} else if (eng_image_build(a->images, spec, uid, gid, &ev, bs,
				   &bs->build, &e)) {
		api_fail_stream(a, bs->st, &e);
	} else {
		http_stream_begin(bs->st, "application/x-ndjson");
	}
	json_decref(spec);
}
