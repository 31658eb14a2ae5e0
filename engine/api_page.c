// Pages of lists: their tokens are sums with a key that outlives a restart.
#include "api.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

enum { MOST = 50 };

static int write_key(const char *path, const uint8_t key[SHAPE_PAGE_KEY],
		     struct err *e)
{
	cleanup_free char *tmp = NULL;
	cleanup_fd int fd = -1;

	if (asprintf(&tmp, "%s.new", path) < 0)
		abort();
	fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW,
		  0600);
	if (fd < 0 || write(fd, key, SHAPE_PAGE_KEY) != SHAPE_PAGE_KEY ||
	    fsync(fd) || rename(tmp, path))
		return err_sys(e, "write %s", path);
	return 0;
}

int api_page_key(struct api *a, const char *state_dir, struct err *e)
{
	cleanup_free char *path = NULL;
	cleanup_fd int fd = -1;

	if (asprintf(&path, "%s/page.key", state_dir) < 0)
		abort();
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd >= 0 && read(fd, a->page_key, SHAPE_PAGE_KEY) == SHAPE_PAGE_KEY)
		return 0;
	// Without it a client asks for the first page again; no more is lost.
	util_random(a->page_key, SHAPE_PAGE_KEY);
	return write_key(path, a->page_key, e);
}

int api_page_of(struct api *a, const struct http_req *r, json_t *in,
		struct api_page *p, struct err *e)
{
	const json_t *max = json_object_get(in, "maxResults");

	p->max = max ? (size_t)json_integer_value(max) : MOST;
	return shape_page_read(a->page_key, r->op, in, &p->after, e);
}

void api_page_next(struct api *a, const struct http_req *r, json_t *in,
		   uint64_t after, char out[SHAPE_PAGE_TEXT])
{
	shape_page_make(a->page_key, r->op, in, after, out);
}
