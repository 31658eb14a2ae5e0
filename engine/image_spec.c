// The request of thaw's own build call: POST /thaw/v1/images (docs/API.md).
#include "image_internal.h"

#include "api_check.h"
#include "jtext.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

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
	    !json_object_get(spec, "context") &&
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
	    {"context", CHECK_PATH, false, 1, 4000},
	    {"buildArgs", CHECK_ENV, false, 0, 64},
	    {"network", CHECK_BOOL, false, 0, 0},
	    {"hooks", CHECK_ANY, false, 0, 0},
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
	static const char *const with_context[] = {"buildArgs", "network"};
	int rc = check_object(spec, "", fields, ARRAY_SIZE(fields), e);
	bool context = json_object_get(spec, "context") != NULL;
	bool kernel = json_object_get(spec, "kernel") != NULL;
	int from = context + kernel + (json_object_get(spec, "rootfs") != NULL);

	if (!rc && from != 1)
		rc = err_set(e, -EINVAL,
			     "exactly one of context (a folder or archive with "
			     "a Dockerfile), rootfs (a directory or tar file) "
			     "and kernel (a guest without an agent) is "
			     "required");
	for (size_t i = 0; !rc && !context && i < ARRAY_SIZE(with_context); i++)
		if (json_object_get(spec, with_context[i]))
			rc = err_set(e, -EINVAL,
				     "%s needs context: it is about a "
				     "Dockerfile",
				     with_context[i]);
	if (!rc && kernel && json_object_get(spec, "hooks"))
		rc = err_set(e, -EINVAL,
			     "a guest without an agent has no hooks");
	if (!rc)
		rc = image_check_hooks(json_object_get(spec, "hooks"), e);
	if (!rc)
		rc = check_record_path(spec, e);
	return rc ? rc : defaults(spec, e);
}

char *image_file_uri(const char *path)
{
	static const char plain[] = "abcdefghijklmnopqrstuvwxyz"
				    "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
				    "0123456789-._~/+@,:=";
	char *out = malloc(3 * strlen(path) + 8), *to = out;

	if (!out)
		abort();
	to = stpcpy(to, "file://");
	for (; *path; path++) {
		if (strchr(plain, *path))
			*to++ = *path;
		else
			to += sprintf(to, "%%%02X", (unsigned char)*path);
	}
	*to = '\0';
	return out;
}

int eng_image_build(struct eng_images *ims, json_t *request, uid_t uid,
		    gid_t gid, const struct image_build_events *ev, void *ctx,
		    struct image_build **out, struct err *e)
{
	json_t *spec = json_deep_copy(request);
	const char *name = json_string_value(json_object_get(request, "name"));
	const char *path = json_string_value(json_object_get(spec, "context"));
	cleanup_free char *uri = path ? image_file_uri(path) : NULL;
	cleanup_free const char **args =
	    jt_texts(json_object_get(spec, "buildArgs"));
	json_t *hooks = json_object_get(spec, "hooks");
	json_t *aws = hooks ? json_pack("{s:O,s:[s]}", "hooks", hooks,
					"additionalOsCapabilities", "ALL")
			    : NULL;
	struct image_source src = {
	    .uri = uri,
	    .network = json_is_true(json_object_get(spec, "network")),
	    .args = args,
	    .uid = uid,
	    .gid = gid,
	};
	uint32_t mem =
	    (uint32_t)json_integer_value(json_object_get(spec, "memoryMiB"));
	int rc = image_build_may(ims, name, mem, e);

	json_object_del(spec, "name");
	json_object_del(spec, "hooks");
	if (!rc)
		rc = image_build_start(ims, name, spec, aws, &src, out, e);
	if (!rc)
		image_build_tell(*out, ev, ctx);
	json_decref(aws);
	json_decref(spec);
	return rc;
}
