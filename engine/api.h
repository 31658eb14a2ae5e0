// The calls of the API: AWS's operations and thaw's own (docs/API.md). Routing,
// the shape of errors, and one function for each call.
#ifndef THAW_ENG_API_H
#define THAW_ENG_API_H

#include "api_check.h"
#include "config.h"
#include "http.h"
#include "image.h"
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
	const struct eng_config *cfg;
	uint64_t started_ns;
	uint64_t requests, errors; // answered so far
};

// The server's handler; ctx is the struct api.
void api_handle(void *ctx, struct http_req *r);

// --- for the calls -----------------------------------------------------------

struct api_extra { // what an error says besides its message; may be NULL
	const char *resource_type, *resource_id;
};
// Answers with the AWS exception that the error's code stands for (vm.h).
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

// ?wait=STATE&timeout=S. *mask 0: no wait asked for. -EINVAL.
int api_wait_params(const struct http_req *r, unsigned *mask, uint64_t *ms,
		    struct err *e);
// ?maxResults and ?nextToken: *after is the sequence number to go on after.
int api_page_params(const struct http_req *r, size_t *max, uint64_t *after,
		    struct err *e);
json_t *api_next_token(uint64_t after);

// Finds the microVM of seg[n]; answers by itself and returns NULL otherwise.
struct reg_vm *api_vm_of(struct api *a, struct http_req *r, unsigned seg);
struct reg_image *api_image_of(struct api *a, struct http_req *r,
			       unsigned seg); // likewise
// The running guest's cell for seg[3], or NULL after answering.
struct eng_cell *api_cell_of(struct api *a, struct http_req *r, bool need_agent,
			     struct reg_vm **out);
json_t *api_seconds(uint64_t ms); // epoch milliseconds as AWS's timestamp
json_t *api_text(const char *s);  // a string even when it is not UTF-8
json_t *api_bytes(const void *p, size_t n); // likewise; other bytes become '?'

typedef void api_call(struct api *a, struct http_req *r);
// api_vm.c
api_call api_run_microvm, api_get_microvm, api_list_microvms,
    api_suspend_microvm, api_resume_microvm, api_terminate_microvm,
    api_inspect_microvm;
// api_image.c
api_call api_get_image, api_list_images, api_delete_image, api_get_version,
    api_list_versions, api_update_version, api_delete_version, api_build_image,
    api_thaw_images, api_thaw_image;
// api_pool.c
api_call api_list_pools, api_get_pool, api_put_pool, api_delete_pool;
// api_exec.c, api_guest.c
api_call api_exec, api_forward, api_logs, api_mailbox;
// api_host.c
api_call api_host, api_stats, api_doctor, api_version, api_events;

#endif
