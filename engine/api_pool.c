// Pools: how many microVMs of an image wait parked, and how well that went.
#include "api.h"

#include <errno.h>

static json_t *pool_shape(struct api *a, const struct reg_pool *p)
{
	struct pool_counts c;
	json_t *j;

	eng_pool_count(a->vms, p->image, &c);
	j = json_pack("{s:s,s:o,s:I,s:I,s:I,s:I,s:I,s:I,s:o,s:o}", "image",
		      p->image, "imageArn", eng_image_arn(p->image), "size",
		      (json_int_t)p->size, "parked", (json_int_t)c.parked,
		      "starting", (json_int_t)c.starting, "hits",
		      (json_int_t)p->hits, "misses", (json_int_t)p->misses,
		      "wasted", (json_int_t)p->wasted, "createdAt",
		      api_seconds(p->created_ms), "updatedAt",
		      api_seconds(p->updated_ms));
	if (c.version[0])
		json_object_set_new(j, "imageVersion", json_string(c.version));
	return j;
}

static struct reg_pool *pool_of(struct api *a, struct http_req *r)
{
	struct reg_image *im = api_image_of(a, r, r->seg[3]);
	struct err e = ERR_INIT;
	struct reg_pool *p;

	if (!im)
		return NULL;
	p = eng_reg_pool(a->reg, im->name);
	if (p)
		return p;
	err_set(&e, -ENOENT, "MicroVM image %s has no pool", im->name);
	api_fail(a, r, &e, "pool", im->name);
	return NULL;
}

void api_list_pools(struct api *a, struct http_req *r)
{
	json_t *items = json_array();
	struct reg_pool *const *pools;
	size_t n;

	pools = eng_reg_pools(a->reg, &n);
	for (size_t i = 0; i < n; i++)
		json_array_append_new(items, pool_shape(a, pools[i]));
	api_answer(a, r, 200, json_pack("{s:o}", "items", items));
}

void api_get_pool(struct api *a, struct http_req *r)
{
	struct reg_pool *p = pool_of(a, r);

	if (p)
		api_answer(a, r, 200, pool_shape(a, p));
}

static int read_size(const struct http_req *r, unsigned *size, struct err *e)
{
	static const struct check_field fields[] = {
	    {"size", CHECK_INT, true, 0, REG_POOL_MAX}};
	json_t *body = shape_body(r->body, r->body_len, e);
	int rc = body ? check_object(body, "", fields, 1, e) : -EINVAL;

	if (!rc)
		*size =
		    (unsigned)json_integer_value(json_object_get(body, "size"));
	json_decref(body);
	return rc;
}

void api_put_pool(struct api *a, struct http_req *r)
{
	struct reg_image *im = api_image_of(a, r, r->seg[3]);
	struct err e = ERR_INIT;
	struct reg_pool *p;
	unsigned size;
	uint64_t seq;

	if (!im)
		return;
	if (read_size(r, &size, &e) ||
	    eng_pool_set(a->vms, im->name, size, &p, &seq, &e))
		api_fail(a, r, &e, NULL, NULL);
	else
		api_answer_at(a, r, seq, 200, pool_shape(a, p));
}

void api_delete_pool(struct api *a, struct http_req *r)
{
	struct reg_pool *p = pool_of(a, r);
	struct err e = ERR_INIT;
	uint64_t seq;

	if (!p)
		return;
	if (eng_pool_delete(a->vms, p, &seq, &e))
		api_fail(a, r, &e, NULL, NULL);
	else
		api_answer_at(a, r, seq, 200, json_object());
}
