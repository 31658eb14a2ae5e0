// The calls of the API: AWS's operations and thaw's own (docs/API.md). Routing,
// the shape of errors, and one function for each call.
#ifndef THAW_ENG_API_H
#define THAW_ENG_API_H

#include "api_auth.h"
#include "api_check.h"
#include "arn.h"
#include "config.h"
#include "http.h"
#include "image.h"
#include "shape.h"
#include "vm.h"

struct api {
	struct eng_loop *loop;
	struct eng_jobs *jobs;
	struct eng_cells *cells;
	struct pgc_store *store;
	struct eng_reg *reg;
	struct eng_vms *vms;
	struct eng_images *images;
	struct eng_events *events;
	struct eng_endpoint *endpoint;
	const struct eng_roles *roles; // NULL: none is mapped
	const struct eng_config *cfg;
	uint64_t started_ns;
	const struct api_auth *auth; // NULL: not over TCP
	const struct http_tcp *tcp;  // likewise
	uint8_t page_key[SHAPE_PAGE_KEY];
	uint64_t requests, errors; // answered so far
};

// The server's handler; ctx is the struct api.
void api_handle(void *ctx, struct http_req *r);

// --- for the calls -----------------------------------------------------------

// Answers with the AWS exception that the error's code stands for (vm.h), by the
// name that the operation has for it. The resource is said where that exception
// has members for it; NULL: none.
void api_fail(struct api *a, struct http_req *r, const struct err *e,
	      const char *resource_type, const char *resource_id);
void api_fail_stream(struct api *a, struct http_stream *st,
		     const struct err *e);
// Answers once everything put into the registry so far is durable: an answer
// never reports what a crash could undo.
void api_answer(struct api *a, struct http_req *r, int status, json_t *body);
// Likewise, once transaction `seq` is: for answers that report no more than it.
void api_answer_at(struct api *a, struct http_req *r, uint64_t seq, int status,
		   json_t *body);
// Likewise with the text of a JSON document (stolen).
void api_answer_text(struct api *a, struct http_req *r, uint64_t seq,
		     int status, char *text);

// A call of the contract (api_ops.c). `in` has all members of the request, from
// wherever they came, each constraint checked; it is the dispatcher's, and the
// handler may take members out of it. r->op is the operation.
typedef void api_op(struct api *a, struct http_req *r, json_t *in);
// Serves a request that is for the contract's paths.
void api_contract(struct api *a, struct http_req *r);
// 404, or 405 where the path has other methods.
void api_no_route(struct api *a, struct http_req *r, bool path_known);
// A string member of `in`, or NULL.
const char *api_member(json_t *in, const char *name);
// Against the contract, in sanitizer builds alone: what is wrong is our bug, and
// ends thawd. `body` may be NULL (none); `text` instead of it.
void api_check_answer(const struct http_req *r, int status, const json_t *body,
		      const char *text);
void api_check_error(const struct http_req *r, int status, const char *type,
		     const json_t *extra);

// Members wait and timeout. *mask 0: no wait asked for. -EINVAL.
int api_wait_of(json_t *in, unsigned *mask, uint64_t *ms, struct err *e);

// Pages (api_page.c): at most `max` entries, of those after `after` (0: all).
struct api_page {
	size_t max;
	uint64_t after;
};
// STATE/page.key, made where there is none: tokens live as long as it does.
int api_page_key(struct api *a, const char *state_dir, struct err *e);
int api_page_of(struct api *a, const struct http_req *r, json_t *in,
		struct api_page *p, struct err *e);
// The token that goes on after `after`.
void api_page_next(struct api *a, const struct http_req *r, json_t *in,
		   uint64_t after, char out[SHAPE_PAGE_TEXT]);

// Finds a microVM; answers by itself and returns NULL otherwise.
struct reg_vm *api_vm_of(struct api *a, struct http_req *r, const char *id);
// Likewise. Who asks over TCP is one of AWS's clients, which mean what they name:
// a beginning of a name does for nobody else.
struct reg_image *api_image_of(struct api *a, struct http_req *r,
			       const char *id);
// Likewise, for what would be lost or changed were it another: by its whole name.
struct reg_image *api_image_whole(struct api *a, struct http_req *r,
				  const char *id);
// The microVM of seg[3], which runs or may be waited for (eng_vm_open, eng_vm_wake:
// a suspended one is resumed, as by traffic), and has an agent; or NULL after
// answering.
#define API_REACH_MS 60000
struct reg_vm *api_guest_of(struct api *a, struct http_req *r);
// Bytes passed to or from it: it is not idle. The record may be gone by now.
void api_guest_traffic(struct api *a, const char *id, uint64_t *last_ns);
// What to answer where those ended with -errno.
int api_reach_error(int rc);
// The image and version that `in` names; answers by itself and returns NULL
// otherwise.
struct reg_version *api_version_of(struct api *a, struct http_req *r,
				   json_t *in, struct reg_image **im);
// Streams a log as the query says (follow, tail). `owned`: it is closed after.
void api_send_log(struct api *a, struct http_req *r, struct vmlog *log,
		  bool owned);
json_t *api_image_shape(const struct reg_image *im); // AWS's, without tags
json_t *api_thaw_version(const struct reg_version *v);
json_t *api_seconds(uint64_t ms); // epoch milliseconds as AWS's timestamp
json_t *api_text(const char *s);  // a string even when it is not UTF-8
json_t *api_bytes(const void *p, size_t n); // likewise; other bytes become '?'

// api_vm.c
api_op api_run_microvm, api_get_microvm, api_list_microvms, api_suspend_microvm,
    api_resume_microvm, api_terminate_microvm;
// api_build.c
api_op api_create_image, api_update_image, api_list_builds, api_get_build,
    api_list_managed, api_list_managed_versions;
// api_image.c
api_op api_get_image, api_list_images, api_delete_image, api_get_version,
    api_list_versions, api_update_version, api_delete_version;
// api_token.c
api_op api_create_auth_token, api_create_shell_auth_token;

// api_tags.c
api_op api_list_tags, api_tag, api_untag;
// All tags that an image would have: how many, and whose. -EINVAL.
int api_tags_check(const json_t *tags, struct err *e);

// thaw's own calls, routed in api.c.
typedef void api_call(struct api *a, struct http_req *r);
// api_vm.c
api_call api_inspect_microvm;
// api_image.c
api_call api_thaw_images, api_thaw_image;
// api_build.c
api_call api_build_image, api_build_log, api_cancel_build;
// api_pool.c
api_call api_list_pools, api_get_pool, api_put_pool, api_delete_pool;
// api_exec.c, api_guest.c
api_call api_exec, api_forward, api_logs, api_mailbox;
// api_host.c
api_call api_host, api_stats, api_doctor, api_version, api_events;

#endif
