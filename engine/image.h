// Images: finding them, building new versions, deleting them.
#ifndef THAW_ENG_IMAGE_H
#define THAW_ENG_IMAGE_H

#include "arn.h"
#include "build.h"
#include "vm.h"

struct eng_images;

int eng_images_create(struct eng_images **out, const struct eng_build_env *env,
		      struct eng_vms *vms, struct eng_reg *reg, struct err *e);
void eng_images_stop(struct eng_images *im); // cancels builds
bool eng_images_busy(const struct eng_images *im);
void eng_images_destroy(struct eng_images *im);

// By full ARN, name or unique prefix of a name. -ENOENT, -EINVAL (ambiguous).
int eng_image_find(struct eng_reg *reg, const char *text,
		   struct reg_image **out, struct err *e);
// The version to run: the given one, or the newest ACTIVE. -ENOENT.
int eng_image_pick(const struct reg_image *im, const char *version,
		   struct reg_version **out, struct err *e);
const struct reg_version *eng_image_latest(const struct reg_image *im,
					   bool active);

// Versions that were superseded and that no microVM refers to lose their
// templates and working sets.
void eng_image_retire(const struct eng_build_env *env, struct eng_reg *reg,
		      const struct reg_image *im);
void eng_images_retire(struct eng_images *ims, const struct reg_image *im);

// -EBUSY while a microVM of it is not TERMINATED, or it is being built.
// `version` NULL: the whole image, with its pool. *seq: the transaction that
// reports it. -EINPROGRESS: parked microVMs end first; again when *ending has.
int eng_image_delete(struct eng_images *ims, struct reg_image *im,
		     struct reg_version *version, struct reg_vm **ending,
		     uint64_t *seq, struct err *e);

struct image_build; // one running build

struct image_build_events {
	void (*progress)(void *ctx, const char *stage, int percent,
			 const char *text);
	void (*log)(void *ctx, const char *text, size_t n);
	// Once, when the new version is durable, or it failed (version NULL).
	void (*done)(void *ctx, const struct reg_image *im,
		     const struct reg_version *version, int rc,
		     const char *why);
};
// `spec` is the request's JSON, checked by eng_image_check_spec().
int eng_image_build(struct eng_images *ims, json_t *spec, uid_t uid, gid_t gid,
		    const struct image_build_events *ev, void *ctx,
		    struct image_build **out, struct err *e);
// The requester is gone: done() will not be called; the build is cancelled.
void eng_image_build_abandon(struct image_build *b);

// Checks a build request and fills in defaults. -EINVAL names the member.
int eng_image_check_spec(json_t *spec, struct err *e);

json_t *eng_image_arn(const char *name);

#endif
