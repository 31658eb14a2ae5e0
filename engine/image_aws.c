// CreateMicrovmImage and UpdateMicrovmImage: what their members mean here, beyond
// their shapes, and the version that is recorded for them at once.
//
// A clientToken is remembered for good: with the parameters' digest and with what
// it made, also when that is long deleted. Whoever sends the same again hears the
// same again, and nothing is made.
#include "image_internal.h"

#include "shape.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { BASELINE = 2048, READY_S = 120, URI_MAX = 2048 };

// What a baseline of memory stands for. A guest sees the peak, which is four
// times the baseline; 2 GiB are one vCPU.
static const struct size {
	json_int_t baseline_mib;
	unsigned peak_vcpus, disk_mib;
} sizes[] = {
    {512, 1, 8192},   {1024, 2, 8192},	 {2048, 4, 8192},
    {4096, 8, 16384}, {8192, 16, 32768},
};

static const char *text_of(const json_t *in, const char *key)
{
	return json_string_value(json_object_get(in, key));
}

// --- hooks ---------------------------------------------------------------------

static bool enabled(const json_t *hooks, const char *name)
{
	const char *s = text_of(hooks, name);

	return s && !strcmp(s, "ENABLED");
}

static int check_ready(const json_t *hooks, struct err *e)
{
	static const char *const names[] = {"run", "resume", "suspend",
					    "terminate"};
	const json_t *vm = json_object_get(hooks, "microvmHooks");

	if (enabled(json_object_get(hooks, "microvmImageHooks"), "ready"))
		return 0;
	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (enabled(vm, names[i]))
			return err_set(e, -EINVAL,
				       "hooks: the microVM hook \"%s\" needs "
				       "the image hook \"ready\" to be ENABLED",
				       names[i]);
	return 0;
}

int image_check_hooks(json_t *hooks, struct err *e)
{
	const struct shape *in = shape_op("CreateMicrovmImage")->in;
	int rc = 0;

	if (!hooks)
		return 0;
	for (unsigned i = 0; i < in->n && !rc; i++)
		if (!strcmp(in->members[i].name, "hooks"))
			rc = shape_check(in->members[i].shape, hooks, e);
	return rc ? rc : check_ready(hooks, e);
}

// --- the request ---------------------------------------------------------------

static int check_base(const json_t *in, struct err *e)
{
	const char *version = text_of(in, "baseImageVersion"), *name;
	int rc = img_managed_find(text_of(in, "baseImageArn"), &name, e);

	if (rc || !version || !strcmp(version, ENG_MANAGED_VERSION) ||
	    !strcmp(version, ENG_MANAGED_VERSION ".0"))
		return rc;
	return err_set(e, -EINVAL,
		       "baseImageVersion: %s has no version %.40s; there is "
		       "%s",
		       name, version, ENG_MANAGED_VERSION);
}

static int check_cpu(const json_t *list, struct err *e)
{
	const json_t *v;
	size_t i;

	json_array_foreach(list, i, v)
	{
		if (strcmp(text_of(v, "architecture"), "X86_64"))
			return err_set(e, -EINVAL,
				       "cpuConfigurations: this host runs "
				       "X86_64 alone, not %s",
				       text_of(v, "architecture"));
	}
	return 0;
}

// "A=B": "c" would give A the value "B=c".
static int check_env(const json_t *map, struct err *e)
{
	const char *key;
	json_t *v;

	json_object_foreach((json_t *)map, key, v)
	{
		if (strchr(key, '='))
			return err_set(e, -EINVAL,
				       "environmentVariables: \"%.100s\" "
				       "cannot be the name of a variable: it "
				       "has a =",
				       key);
	}
	return 0;
}

static const struct size *size_of(const json_t *in, struct err *e)
{
	const json_t *r = json_array_get(json_object_get(in, "resources"), 0);
	json_int_t mib =
	    r ? json_integer_value(json_object_get(r, "minimumMemoryInMiB"))
	      : BASELINE;

	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++)
		if (sizes[i].baseline_mib == mib)
			return &sizes[i];
	err_set(e, -EINVAL,
		"resources: minimumMemoryInMiB is 512, 1024, 2048, 4096 or "
		"8192, not %lld",
		(long long)mib);
	return NULL;
}

static bool wants_network(const json_t *in)
{
	return json_array_size(json_object_get(in, "egressNetworkConnectors"));
}

static int check_members(const json_t *in, const struct size **size,
			 struct err *e)
{
	int rc = check_base(in, e);

	if (!rc)
		rc = check_cpu(json_object_get(in, "cpuConfigurations"), e);
	if (!rc && text_of(in, "kmsKeyIdentifier"))
		rc = err_set(e, -EINVAL,
			     "kmsKeyIdentifier: there is no key service here; "
			     "leave it out");
	if (!rc) // at a build, egress is served
		rc = eng_net_check(
		    NULL, json_object_get(in, "egressNetworkConnectors"), true,
		    e);
	if (!rc)
		rc = check_ready(json_object_get(in, "hooks"), e);
	if (!rc)
		rc = check_env(json_object_get(in, "environmentVariables"), e);
	if (rc)
		return rc;
	*size = size_of(in, e);
	return *size ? 0 : -EINVAL;
}

// More processors than the host has would only cost.
static unsigned vcpus_for(const struct eng_images *ims, const struct size *size)
{
	struct vm_totals totals;

	eng_vms_totals(ims->env.vms, &totals);
	return MAX(1u, MIN(size->peak_vcpus, totals.vcpus_total));
}

static json_t *env_list(const json_t *map)
{
	json_t *out = json_array(), *v;
	const char *key;

	json_object_foreach((json_t *)map, key, v) json_array_append_new(
	    out, json_sprintf("%s=%s", key, json_string_value(v)));
	return out;
}

// In the words of thaw's own builds; what the Dockerfile says comes to it.
static json_t *make_spec(const struct eng_images *ims, const json_t *in,
			 const struct size *size)
{
	json_t *spec = json_pack(
	    "{s:I,s:i,s:i,s:i,s:s,s:o}", "memoryMiB", 4 * size->baseline_mib,
	    "vcpus", (int)vcpus_for(ims, size), "diskMiB", (int)size->disk_mib,
	    "readyTimeoutSeconds", READY_S, "recordPath", "/", "env",
	    env_list(json_object_get(in, "environmentVariables")));

	return spec;
}

// What a version remembers of it.
static json_t *make_members(const json_t *in)
{
	static const char *const not_its[] = {"name", "tags", "clientToken",
					      "imageIdentifier"};
	json_t *out = json_deep_copy(in);

	for (size_t i = 0; i < ARRAY_SIZE(not_its); i++)
		json_object_del(out, not_its[i]);
	json_object_set_new(out, "baseImageVersion",
			    json_string(ENG_MANAGED_VERSION ".0"));
	return out;
}

json_t *eng_image_members(const struct reg_version *v)
{
	json_t *out = v->aws ? json_copy(v->aws) : json_object();
	const char *path = text_of(v->spec, "rootfs");
	cleanup_free char *uri = NULL;

	if (json_object_get(out, "codeArtifact"))
		return out;
	// One of thaw's own builds: AWS requires what thaw has no use for.
	if (!path)
		path = text_of(v->spec, "kernel");
	if (!path)
		path = text_of(v->spec, "context");
	json_object_set_new(out, "baseImageArn",
			    eng_managed_arn(img_managed_names[0]));
	json_object_set_new(out, "buildRoleArn",
			    json_string("arn:aws:iam::000000000000:role/thaw"));
	uri = image_file_uri(path ? path : "/");
	if (strlen(uri) > URI_MAX)
		strcpy(uri, "file:///");
	json_object_set_new(out, "codeArtifact",
			    json_pack("{s:s}", "uri", uri));
	return out;
}

// --- tokens --------------------------------------------------------------------

struct token { // "" and unused without one
	char key[50];
	uint8_t params[16];
};

// Of an operation of its own: a run may have the same.
static void token_of(const json_t *in, const char *name, bool update,
		     struct token *t)
{
	const json_t *given = json_object_get(in, "clientToken");
	json_t *copy = json_copy((json_t *)in);
	json_t *boxed = json_pack("[O]", given ? given : json_null());
	uint8_t digest[16];

	memset(t, 0, sizeof(*t));
	if (given) {
		eng_reg_params(boxed, digest);
		memcpy(t->key, "microvm-image ", 14);
		util_hex(t->key + 14, digest, sizeof(digest));
		json_object_del(copy, "clientToken");
		json_object_del(copy, "imageIdentifier");
		json_object_set_new(copy, "name", json_string(name));
		json_object_set_new(copy, "update", json_boolean(update));
		eng_reg_params(copy, t->params);
	}
	json_decref(boxed);
	json_decref(copy);
}

// 1: *out is what it made, 0: it is new, -EBUSY.
static int replayed(struct eng_images *ims, const struct token *t,
		    struct image_made *out, struct err *e)
{
	const struct reg_token *had =
	    t->key[0] ? eng_reg_token(ims->env.reg, t->key) : NULL;
	const char *slash;

	if (!had)
		return 0;
	if (memcmp(had->params, t->params, sizeof(t->params)))
		return err_set(e, -EBUSY,
			       "this clientToken was used before with other "
			       "parameters, for MicroVM image %s",
			       had->vm);
	slash = strchr(had->vm, '/');
	snprintf(out->name, sizeof(out->name), "%.*s",
		 slash ? (int)(slash - had->vm) : 0, had->vm);
	snprintf(out->version_name, sizeof(out->version_name), "%s",
		 slash ? slash + 1 : "");
	out->created_ms = had->created_ms;
	out->image = eng_reg_image(ims->env.reg, out->name);
	if (out->image)
		out->version = eng_reg_version(out->image, out->version_name);
	// Deleted and made anew under the same name: that is another one.
	if (out->image && out->image->created_ms > had->created_ms)
		out->version = NULL;
	if (!out->version)
		out->image = NULL;
	return 1;
}

int eng_image_updated(struct eng_images *ims, const char *name,
		      const json_t *in, struct image_made *out, struct err *e)
{
	struct token token;

	memset(out, 0, sizeof(*out));
	token_of(in, name, true, &token);
	return replayed(ims, &token, out, e);
}

// --- making --------------------------------------------------------------------

static void record(struct eng_images *ims, const struct image_make *mk,
		   struct image_build *b, json_t *spec, json_t *aws,
		   const struct token *token, struct image_made *out)
{
	struct eng_reg *reg = ims->env.reg;
	json_t *tags = json_object_get(mk->in, "tags");
	struct reg_txn *t = eng_reg_begin(reg);
	char made[REG_MADE_MAX + 1];
	struct reg_version *v;

	if (!out->image) {
		out->image = eng_reg_image_add(reg, out->name);
		out->image->tags = json_incref(tags);
	}
	v = out->version = eng_reg_version_add(out->image);
	v->state = VER_IN_PROGRESS;
	v->agent = true;
	v->mem_mib =
	    (uint32_t)json_integer_value(json_object_get(spec, "memoryMiB"));
	v->vcpus = (unsigned)json_integer_value(json_object_get(spec, "vcpus"));
	v->spec = json_incref(spec);
	v->aws = json_incref(aws);
	v->sizes = json_object();
	image_build_of(b, v);
	strcpy(out->version_name, v->version);
	out->created_ms = mk->image ? v->created_ms : out->image->created_ms;
	eng_reg_put_image(t, out->image);
	eng_reg_put_version(t, out->image, v);
	eng_reg_event(t, json_pack("{s:s,s:s,s:s}", "type",
				   "image.version-started", "image", out->name,
				   "version", v->version));
	if (token->key[0]) {
		snprintf(made, sizeof(made), "%s/%s", out->name, v->version);
		eng_reg_put_token(t, token->key, token->params, made,
				  out->created_ms);
	}
	eng_reg_commit(t);
}

int eng_image_make(struct eng_images *ims, const struct image_make *mk,
		   struct image_made *out, struct err *e)
{
	const json_t *off =
	    json_object_get(json_object_get(mk->in, "logging"), "disabled");
	const char *name =
	    mk->image ? mk->image->name : text_of(mk->in, "name");
	struct image_source src = {
	    .uri = text_of(json_object_get(mk->in, "codeArtifact"), "uri"),
	    .network = wants_network(mk->in),
	    .uid = mk->uid,
	    .gid = mk->gid,
	    .quiet = off != NULL,
	};
	const struct size *size = NULL;
	struct image_build *b;
	json_t *spec, *aws;
	struct token token;
	int rc;

	memset(out, 0, sizeof(*out));
	token_of(mk->in, name, mk->image != NULL, &token);
	rc = replayed(ims, &token, out, e);
	if (rc)
		return MIN(rc, 0);
	out->image = mk->image;
	strcpy(out->name, name);
	if (!mk->image && eng_reg_image(ims->env.reg, name))
		return err_set(e, -EINVAL,
			       "A MicroVM image named %s exists already; "
			       "UpdateMicrovmImage makes another version of it",
			       name);
	rc = check_members(mk->in, &size, e);
	if (!rc)
		rc = image_build_may(ims, name,
				     (uint32_t)(4 * size->baseline_mib), e);
	if (rc)
		return rc;
	spec = make_spec(ims, mk->in, size);
	aws = make_members(mk->in);
	rc = image_build_start(ims, name, spec, aws, &src, &b, e);
	if (!rc)
		record(ims, mk, b, spec, aws, &token, out);
	json_decref(spec);
	json_decref(aws);
	return rc;
}
