// Private to image*.c.
#ifndef THAW_ENG_IMAGE_INTERNAL_H
#define THAW_ENG_IMAGE_INTERNAL_H

#include "image.h"

enum {
	IMAGE_BUILDS_MAX = 16, // at once
	IMAGE_PORT = 8080,     // where readiness is looked for by default
	IMAGE_HOOK_S = 30,     // a build hook's timeout, by default
};

struct eng_images {
	struct eng_images_env env;
	const char *bases; // its base_store, whether it is there or not
	struct image_build *builds;
};

// --- one build (image_build.c) -----------------------------------------------

struct image_source {
	const char *uri; // of an artifact; NULL: the spec's rootfs or kernel
	bool network;
	const char *const *args; // of the Dockerfile
	uid_t uid;
	gid_t gid;
	bool quiet; // its log is not kept
};

struct image_build *image_building(const struct eng_images *ims,
				   const char *name);
// May another one begin, of that image, with so much memory? -EBUSY, -EAGAIN,
// -EDQUOT, -EIO.
int image_build_may(struct eng_images *ims, const char *name, uint32_t mem_mib,
		    struct err *e);
// Starts a build of `spec` (copied; memoryMiB and vcpus are there); `aws`, or NULL,
// is what its version will remember of the request. Calls nobody back from within.
int image_build_start(struct eng_images *ims, const char *name,
		      const json_t *spec, const json_t *aws,
		      const struct image_source *src, struct image_build **out,
		      struct err *e);
// The version that it makes is `v`, which is recorded in this turn of the loop.
void image_build_of(struct image_build *b, struct reg_version *v);
// Its requester hears of it.
void image_build_tell(struct image_build *b,
		      const struct image_build_events *ev, void *ctx);
bool image_build_is(const struct image_build *b, const char *build_id);
struct vmlog *image_build_log(const struct image_build *b); // NULL: it has none

// --- the logs of builds (image_log.c) -----------------------------------------

// The id under which a build keeps its log.
void image_log_name(const char *build_id, char out[REG_BUILD_ID + 8]);
// For its build to write, or to be read; NULL: `e` says why.
struct vmlog *image_log_open(const struct eng_images *ims, const char *build_id,
			     struct err *e);
// Removes the logs of builds that no version is of.
void image_logs_sweep(const struct eng_images *ims);

// --- what requests say (image_spec.c, image_aws.c) -------------------------------

// file:///PATH of an absolute path, percent-encoded; for free().
char *image_file_uri(const char *path);
// Lifecycle hooks, or NULL, beyond their shape. -EINVAL.
int image_check_hooks(json_t *hooks, struct err *e);

#endif
