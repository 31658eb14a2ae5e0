// What makes images: CreateMicrovmImage, UpdateMicrovmImage and what they say of
// their builds, the managed base images, and thaw's own build call, which is a
// stream of lines.
#include "api.h"

#include <cpuid.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

// --- CreateMicrovmImage, UpdateMicrovmImage ------------------------------------

// The whole shape. What a replayed token made may be gone: then it is told as it
// was at first.
static json_t *made_shape(const struct image_made *m, json_t *in, bool tags)
{
	static const char *const not_its[] = {"clientToken", "imageIdentifier",
					      "tags"};
	json_t *j, *members;

	if (m->version) {
		j = api_image_shape(m->image);
		members = eng_image_members(m->version);
		if (tags && json_object_size(m->image->tags))
			json_object_set(j, "tags", m->image->tags);
	} else {
		j = json_pack("{s:o,s:s,s:s,s:o,s:o}", "imageArn",
			      eng_image_arn(m->name), "name", m->name, "state",
			      tags ? "CREATING" : "UPDATING", "createdAt",
			      api_seconds(m->created_ms), "updatedAt",
			      api_seconds(m->created_ms));
		members = json_copy(in);
		json_object_set_new(members, "baseImageVersion",
				    json_string(ENG_MANAGED_VERSION ".0"));
		if (tags && json_object_get(in, "tags"))
			json_object_set(j, "tags", json_object_get(in, "tags"));
		for (size_t i = 0; i < ARRAY_SIZE(not_its); i++)
			json_object_del(members, not_its[i]);
	}
	json_object_update_missing(j, members);
	json_decref(members);
	json_object_set_new(j, "imageVersion", json_string(m->version_name));
	return j;
}

static void make(struct api *a, struct http_req *r, json_t *in,
		 struct reg_image *im)
{
	struct image_make mk = {
	    .image = im, .in = in, .uid = r->uid, .gid = r->gid};
	const char *what = im ? im->name : api_member(in, "baseImageArn");
	struct err e = ERR_INIT;
	struct image_made made;

	if (eng_image_make(a->images, &mk, &made, &e))
		api_fail(a, r, &e, "microvm-image",
			 e.code == -ENOENT || im ? what
						 : api_member(in, "name"));
	else
		api_answer(a, r, im ? 200 : 201, made_shape(&made, in, !im));
}

void api_create_image(struct api *a, struct http_req *r, json_t *in)
{
	struct err e = ERR_INIT;

	if (api_tags_check(json_object_get(in, "tags"), &e))
		api_fail(a, r, &e, NULL, NULL);
	else
		make(a, r, in, NULL);
}

// A token is remembered for good: also when the image that it updated is gone.
void api_update_image(struct api *a, struct http_req *r, json_t *in)
{
	const char *id = api_member(in, "imageIdentifier");
	const char *name = eng_image_bare(id);
	struct err e = ERR_INIT;
	struct image_made made;
	struct reg_image *im;
	int rc = eng_reg_image(a->reg, name)
		     ? 0
		     : eng_image_updated(a->images, name, in, &made, &e);

	if (rc < 0)
		api_fail(a, r, &e, "microvm-image", id);
	else if (rc)
		api_answer(a, r, 200, made_shape(&made, in, false));
	else if ((im = api_image_whole(a, r, id)))
		make(a, r, in, im);
}

// --- builds ----------------------------------------------------------------------

// What this host is, in the words of the shapes. AWS's generations are of its own
// chips; here it is the processor's family and model.
struct chip {
	const char *chipset;
	char generation[24];
};

static struct chip this_chip(void)
{
	unsigned ax = 0, bx = 0, cx = 0, dx = 0, family, model;
	struct chip c = {.chipset = "INTEL"};

	if (__get_cpuid(0, &ax, &bx, &cx, &dx) &&
	    bx == signature_AMD_ebx) // "Auth"
		c.chipset = "AMD";
	ax = 0;
	__get_cpuid(1, &ax, &bx, &cx, &dx);
	family = (ax >> 8 & 15) + ((ax >> 8 & 15) == 15 ? ax >> 20 & 255 : 0);
	model = (ax >> 4 & 15) | (ax >> 12 & 240);
	snprintf(c.generation, sizeof(c.generation), "%u.%u", family, model);
	return c;
}

static bool is(const char *asked, const char *have)
{
	return !asked || !strcmp(asked, have);
}

static json_t *build_summary(const struct reg_image *im,
			     const struct reg_version *v)
{
	struct chip c = this_chip();
	json_t *j = json_pack(
	    "{s:o,s:s,s:s,s:s,s:s,s:s,s:s,s:o}", "imageArn",
	    eng_image_arn(im->name), "imageVersion", v->version, "buildId",
	    v->build_id, "buildState", eng_version_state_name(v->state),
	    "architecture", "X86_64", "chipset", c.chipset, "chipsetGeneration",
	    c.generation, "createdAt", api_seconds(v->created_ms));

	if (v->reason[0])
		json_object_set_new(j, "stateReason", api_text(v->reason));
	return j;
}

// Each as far as the build came.
static json_t *snapshot_sizes(const struct reg_version *v)
{
	static const char *const names[][2] = {
	    {"memoryNonZeroBytes", "memorySnapshotSizeInBytes"},
	    {"codeBytes", "codeInstallSizeInBytes"},
	    {"diskDirtyBytes", "diskSnapshotSizeInBytes"},
	};
	json_t *j = json_object(), *n;

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		n = json_object_get(v->sizes, names[i][0]);
		if (n)
			json_object_set(j, names[i][1], n);
	}
	return j;
}

void api_list_builds(struct api *a, struct http_req *r, json_t *in)
{
	struct reg_image *im;
	struct reg_version *v = api_version_of(a, r, in, &im);
	struct chip c = this_chip();
	struct err e = ERR_INIT;
	struct api_page p;
	json_t *items;

	if (!v)
		return;
	if (api_page_of(a, r, in, &p, &e)) {
		api_fail(a, r, &e, NULL, NULL);
		return;
	}
	items = json_array();
	// A version has one build: this host is of one kind.
	if (!p.after && v->build_id[0] &&
	    is(api_member(in, "architecture"), "X86_64") &&
	    is(api_member(in, "chipset"), c.chipset) &&
	    is(api_member(in, "chipsetGeneration"), c.generation))
		json_array_append_new(items, build_summary(im, v));
	api_answer(a, r, 200, json_pack("{s:o}", "items", items));
}

void api_get_build(struct api *a, struct http_req *r, json_t *in)
{
	const char *id = api_member(in, "buildId");
	struct reg_image *im;
	struct reg_version *v = api_version_of(a, r, in, &im);
	struct err e = ERR_INIT;
	json_t *j, *sizes;

	if (!v)
		return;
	if (!v->build_id[0] || strcmp(id, v->build_id)) {
		err_set(&e, -ENOENT,
			"version %s of MicroVM image %s has no build %.64s",
			v->version, im->name, id);
		api_fail(a, r, &e, "microvm-image-build", id);
		return;
	}
	j = build_summary(im, v);
	sizes = snapshot_sizes(v);
	if (json_object_size(sizes))
		json_object_set(j, "snapshotBuild", sizes);
	json_decref(sizes);
	api_answer(a, r, 200, j);
}

// --- managed images ----------------------------------------------------------------

// They are as old as the kernel that they stand for.
static json_t *managed_since(const struct api *a)
{
	const char *path = a->cfg->kernel_path;
	struct stat st;

	return api_seconds(
	    path && !stat(path, &st) ? (uint64_t)st.st_mtim.tv_sec * 1000 : 0);
}

static json_t *managed_shape(const struct api *a, const char *name)
{
	return json_pack("{s:o,s:o,s:o}", "imageArn", eng_managed_arn(name),
			 "createdAt", managed_since(a), "updatedAt",
			 managed_since(a));
}

void api_list_managed(struct api *a, struct http_req *r, json_t *in)
{
	char token[SHAPE_PAGE_TEXT];
	struct err e = ERR_INIT;
	struct api_page p;
	json_t *items, *out;
	size_t at, n = 0;

	if (api_page_of(a, r, in, &p, &e)) {
		api_fail(a, r, &e, NULL, NULL);
		return;
	}
	while (img_managed_names[n])
		n++;
	items = json_array();
	out = json_pack("{s:o}", "items", items);
	for (at = p.after; at < n && at < p.after + p.max; at++)
		json_array_append_new(items,
				      managed_shape(a, img_managed_names[at]));
	if (at < n) {
		api_page_next(a, r, in, at, token);
		json_object_set_new(out, "nextToken", json_string(token));
	}
	api_answer(a, r, 200, out);
}

// By its ARN, or by its name.
static const char *managed_of(const char *id)
{
	struct err e = ERR_INIT;
	const char *name;

	for (size_t i = 0; img_managed_names[i]; i++)
		if (!strcmp(id, img_managed_names[i]))
			return img_managed_names[i];
	return img_managed_find(id, &name, &e) ? NULL : name;
}

void api_list_managed_versions(struct api *a, struct http_req *r, json_t *in)
{
	const char *id = api_member(in, "imageIdentifier");
	const char *name = managed_of(id);
	struct err e = ERR_INIT;
	json_t *items = json_array(), *v;
	struct api_page p;

	if (!name)
		err_set(&e, -ENOENT,
			"Managed MicroVM image %.256s does not exist", id);
	else
		api_page_of(a, r, in, &p, &e);
	if (e.code) {
		json_decref(items);
		api_fail(a, r, &e, "microvm-image", name ? NULL : id);
		return;
	}
	if (!p.after) {
		v = managed_shape(a, name);
		json_object_set_new(v, "imageVersion",
				    json_string(ENG_MANAGED_VERSION));
		json_object_set_new(v, "status", json_string("AVAILABLE"));
		json_array_append_new(items, v);
	}
	api_answer(a, r, 200, json_pack("{s:o}", "items", items));
}

// --- build logs --------------------------------------------------------------------

static struct reg_version *own_version_of(struct api *a, struct http_req *r,
					  struct reg_image **im)
{
	struct reg_version *v;
	struct err e = ERR_INIT;

	*im = api_image_of(a, r, r->seg[3]);
	if (!*im)
		return NULL;
	v = eng_reg_version(*im, r->seg[5]);
	if (v)
		return v;
	err_set(&e, -ENOENT, "MicroVM image %s has no version %.32s",
		(*im)->name, r->seg[5]);
	api_fail(a, r, &e, "microvm-image-version", r->seg[5]);
	return NULL;
}

void api_build_log(struct api *a, struct http_req *r)
{
	struct reg_image *im;
	struct reg_version *v = own_version_of(a, r, &im);
	struct err e = ERR_INIT;
	struct vmlog *log;
	bool owned;

	if (!v)
		return;
	log = eng_image_log(a->images, im, v, &owned, &e);
	if (log)
		api_send_log(a, r, log, owned);
	else
		api_fail(a, r, &e, "microvm-image-version",
			 e.code == -ENOENT ? v->version : NULL);
}

void api_cancel_build(struct api *a, struct http_req *r)
{
	struct reg_image *im;
	struct reg_version *v = own_version_of(a, r, &im);
	struct err e = ERR_INIT;

	if (!v)
		return;
	if (eng_image_cancel(a->images, im, v, &e))
		api_fail(a, r, &e, "microvm-image-version", v->version);
	else
		http_reply(r, 202, json_object());
}

// --- thaw's own build --------------------------------------------------------------

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

static json_t *failure(const struct image_failure *f)
{
	json_t *j = json_pack("{s:s,s:o}", "type", err_name(f->rc), "message",
			      api_text(f->why));

	if (*f->reason)
		json_object_set_new(j, "reason", json_string(f->reason));
	if (f->line)
		json_object_set_new(j, "line", json_integer(f->line));
	return json_pack("{s:o}", "error", j);
}

static void build_done(void *ctx, const struct reg_image *im,
		       const struct reg_version *v,
		       const struct image_failure *f)
{
	struct build_stream *bs = ctx;
	json_t *j;

	bs->build = NULL;
	if (im && v) {
		j = api_thaw_version(v);
		json_object_set_new(j, "name", json_string(im->name));
		json_object_set_new(j, "imageArn", eng_image_arn(im->name));
		j = json_pack("{s:o}", "image", j);
	} else {
		j = failure(f);
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
	json_t *spec = shape_body(r->body, r->body_len, &e);
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
