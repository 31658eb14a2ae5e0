// Tags: of images alone, as at AWS. Their operations are Lambda's older ones, with
// members and errors of their own (api_fail() knows).
#include "api.h"

#include <errno.h>
#include <string.h>

enum { TAGS_MAX = 50 };

int api_tags_check(const json_t *tags, struct err *e)
{
	json_t *of =
	    (json_t *)(uintptr_t)tags; // jansson's macro writes nothing
	const char *key;
	json_t *v;

	if (json_object_size(tags) > TAGS_MAX)
		return err_set(e, -EINVAL,
			       "an image has at most %d tags, and would have "
			       "%zu",
			       TAGS_MAX, json_object_size(tags));
	json_object_foreach(of, key, v)
	{
		if (!strncasecmp(key, "aws:", 4))
			return err_set(e, -EINVAL,
				       "tags that begin with aws: are AWS's "
				       "own, as \"%.60s\"",
				       key);
	}
	return 0;
}

// The image of an ARN, in full; answers by itself and returns NULL otherwise.
static struct reg_image *resource(struct api *a, struct http_req *r, json_t *in)
{
	const char *arn = api_member(in, "Resource");
	const char *name = eng_image_bare(arn);
	struct reg_image *im = name == arn ? NULL : eng_reg_image(a->reg, name);
	struct err e = ERR_INIT;

	if (im)
		return im;
	err_set(&e, -ENOENT,
		"%.200s does not exist: what has tags here are MicroVM images, "
		"%s%s",
		arn, eng_arn_prefix(), "NAME");
	api_fail(a, r, &e, "microvm-image", arn);
	return NULL;
}

void api_list_tags(struct api *a, struct http_req *r, json_t *in)
{
	struct reg_image *im = resource(a, r, in);

	if (im)
		api_answer(
		    a, r, 200,
		    json_pack("{s:o}", "Tags",
			      im->tags ? json_copy(im->tags) : json_object()));
}

static void put_tags(struct api *a, struct http_req *r, struct reg_image *im,
		     json_t *tags)
{
	struct reg_txn *t = eng_reg_begin(a->reg);

	json_decref(im->tags);
	im->tags = tags;
	eng_reg_put_image(t, im);
	eng_reg_event(
	    t, json_pack("{s:s,s:s}", "type", "image.tags", "image", im->name));
	eng_reg_commit(t);
	api_answer(a, r, 204, NULL);
}

void api_tag(struct api *a, struct http_req *r, json_t *in)
{
	struct reg_image *im = resource(a, r, in);
	struct err e = ERR_INIT;
	json_t *tags;

	if (!im)
		return;
	tags = im->tags ? json_copy(im->tags) : json_object();
	json_object_update(tags, json_object_get(in, "Tags"));
	if (!api_tags_check(tags, &e)) {
		put_tags(a, r, im, tags);
		return;
	}
	json_decref(tags);
	api_fail(a, r, &e, NULL, NULL);
}

void api_untag(struct api *a, struct http_req *r, json_t *in)
{
	struct reg_image *im = resource(a, r, in);
	json_t *tags, *key;
	size_t i;

	if (!im)
		return;
	tags = im->tags ? json_copy(im->tags) : json_object();
	json_array_foreach(json_object_get(in, "TagKeys"), i, key)
	{
		json_object_del(tags, json_string_value(key));
	}
	put_tags(a, r, im, tags);
}
