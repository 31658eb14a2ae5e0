// (interface) From a code artifact to a root file system: an archive or a folder
// with a Dockerfile at its root is fetched, unpacked, built, and left as a tar,
// with what the image's configuration says beside it: what eng_build_start()
// (build.h) takes as its rootfs, argv, env, user and cwd. Everything happens in
// processes of its own (thaw-mkroot); every callback comes on the loop.
//
// docs/IMAGES.md says what is contained how, and what the limits are.
#ifndef THAW_IMG_H
#define THAW_IMG_H

#include "img_reason.h"
#include "jobs.h"

struct img_build;

struct img_env { // what builds work with; outlives them
	struct eng_loop *loop;
	struct eng_jobs *jobs;
	const char *mkroot_path; // thaw-mkroot; thaw-fetch lies beside it
	const char *tmp_dir;	 // on the state file system
	// What scripts/base-image fills: the images that FROM finds without a
	// network. NULL: none.
	const char *base_store;
};

struct img_s3 { // where s3:// artifacts are
	// "http://127.0.0.1:9000": requests go to ENDPOINT/BUCKET/KEY. NULL:
	// https://BUCKET.s3.REGION.amazonaws.com/KEY
	const char *endpoint;
	const char *region; // NULL: us-east-1
	// A file in the format of ~/.aws/credentials, of which [default] counts,
	// or the first profile; readable by root alone. NULL: unsigned requests.
	const char *credentials;
};

// Is it "http://HOST[:PORT]", or https, and no more? -EINVAL.
int img_s3_endpoint(const char *url, struct err *e);

struct img_req { // copied
	// "s3://BUCKET/KEY", or "file:///PATH" (percent-encoded) of a zip, a tar
	// (plain, gzip, bzip2, xz, zstd) or a folder, read with the rights of
	// this user.
	const char *uri;
	uid_t peer_uid;
	gid_t peer_gid;
	struct img_s3 s3;
	// RUN steps and FROM reach the network, but not this host's loopback
	// and no metadata; it takes slirp4netns. Else they have none.
	bool network;
	const char *const *build_args; // "KEY=VALUE", NULL-terminated, or NULL
	uint64_t max_bytes; // of the unpacked artifact, and of the root file
			    // system; 0: 32 GiB
	uint32_t timeout_s; // 0: an hour
};

struct img_failure {
	int rc;			// -errno
	enum img_reason reason; // IMG_NO_REASON: cancelled
	unsigned line;		// of the Dockerfile; 0: none is to blame
	const char *why; // a sentence, with "Dockerfile line N: " where known
	// Both are UTF-8 without control characters but '\n' and '\t'.
	const char *tail; // the log's last lines, at most 2 KiB; may be ""
};

struct img_result {	    // belongs to the build, until img_release()
	const char *rootfs; // a tar that only root reads: eng_build_req.rootfs
	uint64_t rootfs_bytes;
	const char *const *argv, *const *env; // ENTRYPOINT and CMD; ENV
	const char *user, *cwd;		      // "": root, "/"
	const uint16_t *ports; // TCP, as EXPOSEd: the Dockerfile's own first
	size_t nports;
	const char *const *volumes; // directories; they exist in the tree
	uint64_t fetch_ms, build_ms, total_ms;
};

struct img_events {
	// stage: "fetch", "unpack", "build", "export"; percent -1: unknown.
	void (*progress)(void *ctx, const char *stage, int percent,
			 const char *text);
	// Lines of the build's log, each with its '\n'. Bytes are the build's
	// own but for zero bytes: not fit for a terminal unseen.
	void (*log)(void *ctx, const char *text, size_t n);
	// Once. `f` is NULL on success: then `r` is there, and the caller owes
	// an img_release(). Else the handle is gone after it.
	void (*done)(void *ctx, const struct img_failure *f,
		     const struct img_result *r);
};

// -EINVAL: the request is no good (then the sentence says why, and done() does
// not come).
int img_start(struct img_build **out, const struct img_env *env,
	      const struct img_req *req, const struct img_events *ev, void *ctx,
	      struct err *e);
// done() with -ECANCELED follows; nothing is left by then: no process, mount or
// file. Not after done().
void img_cancel(struct img_build *b);
// Takes the root file system away (a worker does); `r` is no longer valid.
void img_release(struct img_build *b);

// Removes what builds of a killed thawd left in tmp_dir. Called before the
// first build. Blocks for the removals.
int img_sweep(const char *tmp_dir, struct err *e);

// --- managed base images ---------------------------------------------------

// The name of a managed image in "arn:aws:lambda:REGION:aws:microvm-image:NAME",
// if it is one that this thaw serves: -EINVAL (no ARN of that form) or -ENOENT.
// "al2023-1", AWS's own, is an alias of the local default. It selects kernel and
// agent; a Dockerfile's FROM is independent of it.
int img_managed_find(const char *arn, const char **name, struct err *e);
// All names served, the default first, NULL-terminated.
extern const char *const img_managed_names[];

#endif
