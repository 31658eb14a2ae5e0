// (interface) Building an image: a root file system becomes a disk in the
// store, a VM boots it, the application starts and gets ready, everything is
// frozen into one snapshot, and its working set is recorded on a throw-away
// thaw. Runs beside the loop; every callback comes on the loop.
#ifndef THAW_ENG_BUILD_H
#define THAW_ENG_BUILD_H

#include "cells.h"

struct eng_build;

struct eng_build_env { // what builds work with; outlives them
	struct eng_loop *loop;
	struct eng_jobs *jobs;
	struct eng_cells *cells;
	struct pgc_store *store;
	const char *kernel_path, *initrd_path; // of guests with an agent
	const char *mkdisk_path;	       // thaw-mkdisk
	const char *tmp_dir;		       // on the state file system
};

struct eng_build_req {
	const char *name; // for logs and the guest's host name
	// With an agent (the usual case): a root file system and an
	// application.
	const char *rootfs; // absolute path of a directory or tar, or NULL
	uid_t peer_uid;	    // the file system is read with this user's rights
	gid_t peer_gid;
	const char *const *argv, *const *env; // NULL-terminated
	const char *user, *cwd;
	bool all_caps;	     // as eng_app_spec's
	uint64_t disk_mib;   // 0: what the contents need and half as much again
	uint16_t ready_port; // frozen once it accepts; 0: after quiet
	// Quiet will do as well, and so will ready_timeout_s: an application
	// that has neither a hook nor, perhaps, a port.
	bool port_optional;
	uint32_t ready_timeout_s;
	// Lifecycle hooks, on hook_port; 0 s: it has no such hook. With `ready`
	// it is frozen once that says 200; a copy must say 200 to `validate`.
	uint16_t hook_port;
	uint32_t ready_hook_s, validate_hook_s;
	// What the copy whose working set is recorded is asked for on
	// ready_port: a path of printable ASCII without spaces; NULL or "":
	// nothing.
	const char *record_path;
	// Without an agent: a kernel that rings the doorbell when it is ready.
	const char *kernel; // absolute path, or NULL
	const char *cmdline;
	uint32_t mem_mib;
	unsigned vcpus;
	const char *config; // JSON, stored in the snapshot as blob "config"
};

struct eng_build_result {
	struct pgc_id snap; // the image
	bool has_disk;
	struct pgc_id disk; // the file system as made, never booted (cold runs)
	uint64_t boot_ms;   // VM start to ready
	uint64_t capture_ms, total_ms;
	uint64_t disk_dirty_bytes; // written since it was made
	struct pgc_snap_stats stats;
};

struct eng_build_events {
	// stage: "disk", "store", "boot", "ready", "freeze", "capture",
	// "record"; percent 0..100 or -1 when it cannot be known.
	void (*progress)(void *ctx, const char *stage, int percent,
			 const char *text);
	void (*log)(void *ctx, const char *text, size_t n); // console and app
	// Once; the handle is gone after it. rc 0 or -errno and why.
	void (*done)(void *ctx, int rc, const char *why,
		     const struct eng_build_result *res);
};

int eng_build_start(struct eng_build **out, const struct eng_build_env *env,
		    const struct eng_build_req *req, // copied
		    const struct eng_build_events *ev, void *ctx,
		    struct err *e);
// done(-ECANCELED) follows; leaves nothing behind in the store or on disk.
void eng_build_cancel(struct eng_build *b);

// Removes what builds of an earlier thawd left in tmp_dir (their disks' work
// directories). Called before the first build. Blocks for the removals.
int eng_build_sweep(const char *tmp_dir, struct err *e);

// The command line with which every guest with an agent boots.
extern const char eng_guest_cmdline[];

#endif
