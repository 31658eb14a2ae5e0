// Versions of an image that were superseded: what they cost beside their pages.
//
// A working set holds pages a second time, 10 to 20 MiB a version, and a template
// holds them in memory. Both only make thaws faster, and most old versions are
// never thawed again. So a version that is not the newest ACTIVE one, and that no
// microVM refers to, running or suspended, loses both. A thaw of it still works:
// its pages come by faults, and its working set is learned anew.
//
// Looked at when a version is added or changes its status, and at thawd's start; a
// version whose last microVM ends later waits for the next time.
#include <stdlib.h>
#include <string.h>

#include "image.h"

struct retire {
	struct pgc_store *store;
	size_t n;
	struct pgc_id ids[];
};

static bool referred_to(struct eng_reg *reg, const struct reg_image *im,
			const struct reg_version *v)
{
	size_t n;
	struct reg_vm *const *vms = eng_reg_vms(reg, &n);

	for (size_t i = 0; i < n; i++)
		if (vms[i]->state != VM_TERMINATED &&
		    !strcmp(vms[i]->image, im->name) &&
		    !strcmp(vms[i]->version, v->version))
			return true;
	return false;
}

static void retire_work(void *ctx)
{
	struct retire *r = ctx;
	struct err e = ERR_INIT;

	for (size_t i = 0; i < r->n; i++)
		if (pgc_snap_drop_worksets(r->store, &r->ids[i], &e))
			log_warn("an old version: %s", e.msg);
}

void eng_image_retire(const struct eng_build_env *env, struct eng_reg *reg,
		      const struct reg_image *im)
{
	const struct reg_version *newest = eng_image_latest(im);
	struct retire *r =
	    newest ? calloc(1, sizeof(*r) + im->nversions * sizeof(r->ids[0]))
		   : NULL;

	if (!r)
		return;
	r->store = env->store;
	for (size_t i = 0; i < im->nversions; i++) {
		const struct reg_version *v = im->versions[i];

		if (v == newest || v->state != VER_SUCCESSFUL ||
		    referred_to(reg, im, v))
			continue;
		r->ids[r->n++] = v->snap;
		eng_template_release(env->cells, &v->snap);
	}
	if (r->n)
		eng_job_run(env->jobs, retire_work, free, r);
	else
		free(r);
}
