// Images: finding them, building new versions, deleting them.
//
// Versions come about in two ways. CreateMicrovmImage and UpdateMicrovmImage
// record a version IN_PROGRESS, and whoever asked is gone when it becomes
// SUCCESSFUL or FAILED: eng_image_make(). thaw's own call is a stream, and its
// version exists once it is built: eng_image_build().
#ifndef THAW_ENG_IMAGE_H
#define THAW_ENG_IMAGE_H

#include "arn.h"
#include "build.h"
#include "img.h"
#include "vm.h"

struct eng_images;

struct eng_images_env { // outlives the images; strings as well
	struct eng_build_env build;
	struct img_env img;
	struct img_s3 s3;
	const char *log_dir; // of builds as well
	struct eng_vms *vms;
	struct eng_reg *reg;
};

// Builds that an earlier thawd did not end become FAILED.
int eng_images_create(struct eng_images **out, const struct eng_images_env *env,
		      struct err *e);
void eng_images_stop(struct eng_images *im); // cancels builds
bool eng_images_busy(const struct eng_images *im);
void eng_images_destroy(struct eng_images *im);

// The name in an image's ARN; what is none, as it is.
const char *eng_image_bare(const char *text);
// By full ARN or name; with `begin`, by a unique beginning of a name too. -ENOENT,
// -EINVAL (ambiguous).
int eng_image_find(struct eng_reg *reg, const char *text, bool begin,
		   struct reg_image **out, struct err *e);
// The version to run: the given one, or the newest ACTIVE. -ENOENT.
int eng_image_pick(const struct reg_image *im, const char *version,
		   struct reg_version **out, struct err *e);
// The newest that can be run, and the newest whose build failed; or NULL.
const struct reg_version *eng_image_latest(const struct reg_image *im);
const struct reg_version *eng_image_latest_failed(const struct reg_image *im);
// AWS's word for it, which follows from its versions.
const char *eng_image_state(const struct reg_image *im);

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

// --- builds for AWS's calls (image_aws.c) ------------------------------------

struct image_make {
	struct reg_image *image; // gets another version; NULL: a new image
	const json_t *in;	 // the operation's members, checked by shape.h
	uid_t uid;		 // whose rights read its artifact
	gid_t gid;
};
struct image_made {
	// The image and version; NULL when a clientToken was used before and
	// they are gone since.
	struct reg_image *image;
	struct reg_version *version;
	char name[REG_NAME_MAX + 1], version_name[16];
	uint64_t created_ms;
};
// Records a new version and starts its build; or finds what the same clientToken
// made before. Nothing was made when it fails: -EINVAL, -ENOENT (no such base
// image), -EBUSY (being built; a token with other parameters), -EDQUOT, -EAGAIN.
int eng_image_make(struct eng_images *ims, const struct image_make *mk,
		   struct image_made *out, struct err *e);
// What an update of image `name`, which is not there any more, made with the same
// clientToken before: 1. 0: it is new. -EBUSY: with other parameters.
int eng_image_updated(struct eng_images *ims, const char *name,
		      const json_t *in, struct image_made *out, struct err *e);
// What a version was made from, as its shape says: a new reference.
json_t *eng_image_members(const struct reg_version *v);
// The one version that managed images have.
#define ENG_MANAGED_VERSION "1"

// --- thaw's own builds -------------------------------------------------------

struct image_build; // one running build

struct image_failure {
	int rc;		    // -errno
	const char *reason; // AWS's code; "": none says it
	unsigned line;	    // of the Dockerfile; 0: none is to blame
	const char *why;    // a sentence
};
struct image_build_events {
	void (*progress)(void *ctx, const char *stage, int percent,
			 const char *text);
	void (*log)(void *ctx, const char *text, size_t n);
	// Once, when the new version is durable, or it failed (version NULL).
	void (*done)(void *ctx, const struct reg_image *im,
		     const struct reg_version *version,
		     const struct image_failure *f);
};
// `spec` is the request's JSON, checked by eng_image_check_spec().
int eng_image_build(struct eng_images *ims, json_t *spec, uid_t uid, gid_t gid,
		    const struct image_build_events *ev, void *ctx,
		    struct image_build **out, struct err *e);
// The requester is gone: done() will not be called; the build is cancelled.
void eng_image_build_abandon(struct image_build *b);

// Checks a build request and fills in defaults. -EINVAL names the member.
int eng_image_check_spec(json_t *spec, struct err *e);

// Ends the build of a version that is IN_PROGRESS: it becomes FAILED. -EBUSY.
int eng_image_cancel(struct eng_images *ims, const struct reg_image *im,
		     const struct reg_version *v, struct err *e);
// A version's build log; NULL and -ENOENT when none was kept. `owned`: the
// caller closes it; else it goes on until the build ends.
struct vmlog *eng_image_log(struct eng_images *ims, const struct reg_image *im,
			    const struct reg_version *v, bool *owned,
			    struct err *e);

json_t *eng_image_arn(const char *name);
json_t *eng_managed_arn(const char *name);

#endif
