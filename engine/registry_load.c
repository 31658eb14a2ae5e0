// Loading the registry's rows into the model, in the order in which they came
// to be. Any row that is not right stops the start.
#include "registry_internal.h"

#include <errno.h>
#include <string.h>

struct loading {
	struct eng_reg *r;
	struct reg_tok **tokens;
	size_t ntokens;
};

static int load_image(struct loading *ld, const char *key, json_t *doc,
		      struct err *e)
{
	struct reg_image *im = reg_must(calloc(1, sizeof(*im)));

	reg_images_push(ld->r, im); // freed with the model, also on error
	return reg_undoc_image(im, key, doc, e);
}

static int load_version(struct loading *ld, const char *key, json_t *doc,
			struct err *e)
{
	struct reg_version *v;
	struct reg_image *im;
	char name[REG_NAME_MAX + 1];
	const char *slash = strchr(key, '/');

	if (!slash || slash - key > REG_NAME_MAX)
		return err_set(e, -EBADMSG,
			       "versions row \"%.80s\" has a bad "
			       "key",
			       key);
	memcpy(name, key, (size_t)(slash - key));
	name[slash - key] = '\0';
	im = eng_reg_image(ld->r, name);
	if (!im)
		return err_set(e, -EBADMSG,
			       "versions row \"%.80s\" belongs to "
			       "no image",
			       key);
	v = reg_must(calloc(1, sizeof(*v)));
	reg_versions_push(im, v);
	return reg_undoc_version(v, slash + 1, doc, e);
}

static int load_vm(struct loading *ld, const char *key, json_t *doc,
		   struct err *e)
{
	struct reg_vm *vm = reg_must(calloc(1, sizeof(*vm)));
	int rc;

	reg_vms_push(ld->r, vm);
	rc = reg_undoc_vm(vm, key, doc, e);
	ld->r->next_vm_seq = MAX(ld->r->next_vm_seq, vm->seq + 1);
	return rc;
}

static int load_token(struct loading *ld, const char *key, json_t *doc,
		      struct err *e)
{
	struct reg_tok *t = reg_must(calloc(1, sizeof(*t)));

	if ((ld->ntokens & (ld->ntokens - 1)) == 0)
		ld->tokens =
		    reg_must(realloc(ld->tokens, MAX(16u, ld->ntokens * 2) *
						     sizeof(*ld->tokens)));
	ld->tokens[ld->ntokens++] = t;
	return reg_undoc_token(&t->t, key, doc, e);
}

static int load_pool(struct loading *ld, const char *key, json_t *doc,
		     struct err *e)
{
	struct reg_pool *p = reg_must(calloc(1, sizeof(*p)));
	int rc;

	reg_pools_push(ld->r, p);
	rc = reg_undoc_pool(p, key, doc, e);
	if (!rc && !eng_reg_image(ld->r, p->image))
		rc = err_set(e, -EBADMSG,
			     "pools row \"%.80s\" belongs to no image", key);
	return rc;
}

static int load_row(void *ctx, const struct reg_db_row *row, struct err *e)
{
	struct loading *ld = ctx;
	json_error_t je;
	json_t *doc = json_loads(row->doc, JSON_REJECT_DUPLICATES, &je);
	int rc;

	if (!doc)
		return err_set(e, -EBADMSG, "registry row \"%.64s\": %s",
			       row->key, je.text);
	switch (row->table) {
	case REG_IMAGES:
		rc = load_image(ld, row->key, doc, e);
		break;
	case REG_VERSIONS:
		rc = load_version(ld, row->key, doc, e);
		break;
	case REG_VMS:
		rc = load_vm(ld, row->key, doc, e);
		break;
	case REG_POOLS:
		rc = load_pool(ld, row->key, doc, e);
		break;
	default:
		rc = load_token(ld, row->key, doc, e);
		break;
	}
	json_decref(doc);
	return rc;
}

static int by_image_age(const void *a, const void *b)
{
	const struct reg_image *x = *(struct reg_image *const *)a;
	const struct reg_image *y = *(struct reg_image *const *)b;

	if (x->created_ms != y->created_ms)
		return x->created_ms < y->created_ms ? -1 : 1;
	return strcmp(x->name, y->name);
}

static int by_version(const void *a, const void *b)
{
	const struct reg_version *x = *(struct reg_version *const *)a;
	const struct reg_version *y = *(struct reg_version *const *)b;
	unsigned long m = strtoul(x->version, NULL, 10);
	unsigned long n = strtoul(y->version, NULL, 10);

	return m < n ? -1 : m > n;
}

static int by_seq(const void *a, const void *b)
{
	const struct reg_vm *x = *(struct reg_vm *const *)a;
	const struct reg_vm *y = *(struct reg_vm *const *)b;

	return x->seq < y->seq ? -1 : x->seq > y->seq;
}

static int by_token_age(const void *a, const void *b)
{
	const struct reg_tok *x = *(struct reg_tok *const *)a;
	const struct reg_tok *y = *(struct reg_tok *const *)b;

	return x->t.created_ms < y->t.created_ms
		   ? -1
		   : x->t.created_ms > y->t.created_ms;
}

static void sort_model(struct loading *ld)
{
	struct eng_reg *r = ld->r;

	if (r->nimages)
		qsort(r->images, r->nimages, sizeof(*r->images), by_image_age);
	for (size_t i = 0; i < r->nimages; i++) {
		struct reg_image *im = r->images[i];

		if (im->nversions)
			qsort(im->versions, im->nversions,
			      sizeof(*im->versions), by_version);
	}
	if (r->nvms)
		qsort(r->vms, r->nvms, sizeof(*r->vms), by_seq);
	if (ld->ntokens)
		qsort(ld->tokens, ld->ntokens, sizeof(*ld->tokens),
		      by_token_age);
	for (size_t i = 0; i < ld->ntokens; i++)
		reg_token_push(r, ld->tokens[i]);
	free(ld->tokens);
}

int reg_load(struct eng_reg *r, struct err *e)
{
	struct loading ld = {.r = r};
	int rc = 0;

	// The order matters: versions look for their images.
	for (unsigned t = 0; !rc && t < REG_EVENTS; t++)
		rc = reg_db_load(r->db, (enum reg_table)t, load_row, &ld, e);
	sort_model(&ld);
	if (!rc)
		rc = reg_db_event_range(r->db, &r->first_event, &r->last_event,
					e);
	if (!r->first_event)
		r->first_event = r->last_event + 1;
	r->next_event = r->last_event + 1;
	return rc;
}
