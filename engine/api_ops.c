// The contract's operations: a request is routed and read by the table of shape/,
// which enforces every constraint, and goes to its operation's handler. In
// sanitizer builds what comes back is held against the same table.
#include "api.h"

#include <errno.h>
#include <string.h>

static const struct {
	const char *name;
	api_op *call;
} handlers[] = {
    {"RunMicrovm", api_run_microvm},
    {"GetMicrovm", api_get_microvm},
    {"ListMicrovms", api_list_microvms},
    {"SuspendMicrovm", api_suspend_microvm},
    {"ResumeMicrovm", api_resume_microvm},
    {"TerminateMicrovm", api_terminate_microvm},
    {"CreateMicrovmAuthToken", api_create_auth_token},
    {"CreateMicrovmShellAuthToken", api_create_shell_auth_token},
    {"CreateMicrovmImage", api_create_image},
    {"UpdateMicrovmImage", api_update_image},
    {"GetMicrovmImage", api_get_image},
    {"DeleteMicrovmImage", api_delete_image},
    {"ListMicrovmImages", api_list_images},
    {"GetMicrovmImageVersion", api_get_version},
    {"UpdateMicrovmImageVersion", api_update_version},
    {"DeleteMicrovmImageVersion", api_delete_version},
    {"ListMicrovmImageVersions", api_list_versions},
    {"ListMicrovmImageBuilds", api_list_builds},
    {"GetMicrovmImageBuild", api_get_build},
    {"ListManagedMicrovmImages", api_list_managed},
    {"ListManagedMicrovmImageVersions", api_list_managed_versions},
    {"ListTags", api_list_tags},
    {"TagResource", api_tag},
    {"UntagResource", api_untag},
};

static api_op *handler_of(const struct shape_op *op)
{
	for (size_t i = 0; i < ARRAY_SIZE(handlers); i++) {
		if (!strcmp(handlers[i].name, op->name))
			return handlers[i].call;
	}
	abort(); // one of the contract that nobody wrote: test_api_ops.py
}

static json_t *read_members(const struct http_req *r, struct err *e)
{
	struct shape_kv query[HTTP_MAX_QUERY];
	struct shape_request rq = {
	    .seg = r->seg,
	    .nseg = r->nseg,
	    .query = query,
	    .nquery = r->nquery,
	    .body = r->body,
	    .body_len = r->body_len,
	};

	for (unsigned i = 0; i < r->nquery; i++)
		query[i] = (struct shape_kv){r->query[i].k, r->query[i].v};
	return shape_read(r->op, &rq, e);
}

void api_contract(struct api *a, struct http_req *r)
{
	struct err e = ERR_INIT;
	json_t *in;
	int rc =
	    shape_route(http_method_name(r->method), r->seg, r->nseg, &r->op);

	if (rc) {
		api_no_route(a, r, rc == -EOPNOTSUPP);
		return;
	}
	in = read_members(r, &e);
	if (in)
		handler_of(r->op)(a, r, in);
	else
		api_fail(a, r, &e, NULL, NULL);
	json_decref(in);
}

const char *api_member(json_t *in, const char *name)
{
	return json_string_value(json_object_get(in, name));
}

// --- answers against the contract -----------------------------------------------

#ifdef __SANITIZE_ADDRESS__

static void broken(const struct err *e)
{
	log_err("an answer breaks the contract: %s", e->msg);
	abort();
}

void api_check_answer(const struct http_req *r, int status, const json_t *body,
		      const char *text)
{
	json_t *read = text ? json_loads(text, 0, NULL) : NULL;
	struct err e = ERR_INIT;

	if (r->op && shape_check_answer(r->op, status, text ? read : body, &e))
		broken(&e);
	json_decref(read);
}

void api_check_error(const struct http_req *r, int status, const char *type,
		     const json_t *extra)
{
	json_t *body = json_deep_copy(extra);
	struct err e = ERR_INIT;

	json_object_set_new(body, "message", json_string(""));
	if (r->op && shape_check_error(r->op, status, type, body, &e))
		broken(&e);
	json_decref(body);
}

#else

void api_check_answer(const struct http_req *r, int status, const json_t *body,
		      const char *text)
{
	(void)r;
	(void)status;
	(void)body;
	(void)text;
}

void api_check_error(const struct http_req *r, int status, const char *type,
		     const json_t *extra)
{
	(void)r;
	(void)status;
	(void)type;
	(void)extra;
}

#endif
