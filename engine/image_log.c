// The logs of builds: a file each, beside those of microVMs. It stays for as long
// as a version remembers the build.
#include "image_internal.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define LOG_PREFIX "build-"

void image_log_name(const char *build_id, char out[REG_BUILD_ID + 8])
{
	snprintf(out, REG_BUILD_ID + 8, LOG_PREFIX "%s", build_id);
}

static bool has_build(const struct eng_images *ims, const char *id)
{
	size_t n;
	struct reg_image *const *all = eng_reg_images(ims->env.reg, &n);

	for (size_t i = 0; i < n; i++)
		for (size_t k = 0; k < all[i]->nversions; k++)
			if (!strcmp(all[i]->versions[k]->build_id, id))
				return true;
	return false;
}

void image_logs_sweep(const struct eng_images *ims)
{
	DIR *dp = opendir(ims->env.log_dir);
	const struct dirent *de;
	char id[REG_BUILD_ID + 1], name[REG_BUILD_ID + 8];

	while (dp && (de = readdir(dp))) {
		if (strncmp(de->d_name, LOG_PREFIX, sizeof(LOG_PREFIX) - 1))
			continue;
		snprintf(id, sizeof(id), "%s",
			 de->d_name + sizeof(LOG_PREFIX) - 1);
		image_log_name(id, name);
		if (!has_build(ims, id))
			vmlog_remove(ims->env.log_dir, name);
	}
	if (dp)
		closedir(dp);
}

struct vmlog *image_log_open(const struct eng_images *ims, const char *build_id,
			     struct err *e)
{
	char name[REG_BUILD_ID + 8];
	struct vmlog *log;

	image_log_name(build_id, name);
	return vmlog_open(&log, ims->env.build.loop, ims->env.log_dir, name, e)
		   ? NULL
		   : log;
}

struct vmlog *eng_image_log(struct eng_images *ims, const struct reg_image *im,
			    const struct reg_version *v, bool *owned,
			    struct err *e)
{
	const struct image_build *b = image_building(ims, im->name);
	char name[REG_BUILD_ID + 8];
	cleanup_free char *path = NULL;

	*owned = !b || !image_build_is(b, v->build_id);
	if (!*owned && image_build_log(b))
		return image_build_log(b);
	image_log_name(v->build_id, name);
	if (asprintf(&path, "%s/%s.log", ims->env.log_dir, name) < 0)
		abort();
	if (!*owned || !v->build_id[0] || access(path, F_OK)) {
		err_set(e, -ENOENT,
			"no log was kept of the build of version %s of "
			"MicroVM image %s",
			v->version, im->name);
		return NULL;
	}
	return image_log_open(ims, v->build_id, e);
}
