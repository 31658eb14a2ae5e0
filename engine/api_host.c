// Calls about the host: what is promised, what is going on, events.
#include "api.h"

#include "doctor.h"
#include "endpoint.h"
#include "events.h"
#include "procstate.h"
#include "roles.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

static json_int_t mib(uint64_t bytes)
{
	return (json_int_t)(bytes >> 20);
}

static json_t *templates(struct api *a)
{
	struct reg_image *const *ims;
	json_t *out = json_array();
	size_t n;

	ims = eng_reg_images(a->reg, &n);
	for (size_t i = 0; i < n; i++) {
		for (size_t k = 0; k < ims[i]->nversions; k++) {
			const struct reg_version *v = ims[i]->versions[k];
			uint64_t b = eng_template_bytes(a->cells, &v->snap);
			unsigned ready =
			    eng_cells_prepared_of(a->cells, &v->snap);

			if (!b && !ready)
				continue;
			json_array_append_new(
			    out, json_pack("{s:s,s:s,s:I,s:i}", "image",
					   ims[i]->name, "version", v->version,
					   "residentBytes", (json_int_t)b,
					   "preparedReady", (int)ready));
		}
	}
	return out;
}

static json_t *text_or_null(const char *s)
{
	return s ? api_text(s) : json_null();
}

// How to reach microVMs from outside; `thaw env` reads it.
static void put_endpoint(struct api *a, json_t *j)
{
	json_object_set_new(j, "endpoint",
			    text_or_null(eng_endpoint_where(a->endpoint)));
	json_object_set_new(j, "endpointDomain",
			    api_text(a->cfg->endpoint_domain));
	json_object_set_new(j, "endpointCa",
			    text_or_null(eng_endpoint_ca(a->endpoint)));
	json_object_set_new(j, "endpointPlain",
			    json_boolean(a->cfg->endpoint_plain));
}

static void put_listening(struct api *a, json_t *j)
{
	const char *where = a->tcp ? http_tcp_address(a->tcp) : NULL;
	const char *keys = a->auth ? api_auth_path(a->auth) : NULL;

	json_object_set_new(j, "listen", text_or_null(where));
	json_object_set_new(j, "keysFile", text_or_null(keys));
	json_object_set_new(j, "region", json_string(eng_arn_region()));
}

// Which roles have credentials here; the credentials are nobody's to see.
static json_t *roles(struct api *a)
{
	json_t *out = json_array();
	const char *arn;

	for (size_t i = 0; (arn = eng_roles_arn(a->roles, i)); i++)
		json_array_append_new(out, json_string(arn));
	return out;
}

void api_host(struct api *a, struct http_req *r)
{
	struct vm_totals t;
	uint64_t limit;
	json_t *j, *states = json_object();

	eng_vms_totals(a->vms, &t);
	limit = t.memory_budget ? t.memory_budget : t.memory_total;
	for (unsigned s = 0; s < VM_NUM_STATES; s++)
		json_object_set_new(states, eng_state_name((enum vm_state)s),
				    json_integer(t.by_state[s]));
	j = json_pack(
	    "{s:{s:I,s:o,s:I,s:I,s:I},s:{s:I,s:I,s:I},s:I,s:I,s:I,s:o,s:o}",
	    "memory", "totalMiB", mib(t.memory_total), "budgetMiB",
	    t.memory_budget ? json_integer(mib(t.memory_budget)) : json_null(),
	    "committedMiB", mib(t.memory_committed), "freeMiB",
	    mib(limit > t.memory_committed ? limit - t.memory_committed : 0),
	    "availableMiB", mib(eng_host_memory(NULL)), "vcpus", "total",
	    (json_int_t)t.vcpus_total, "committed",
	    (json_int_t)t.vcpus_committed, "free",
	    (json_int_t)(t.vcpus_total > t.vcpus_committed
			     ? t.vcpus_total - t.vcpus_committed
			     : 0),
	    "shellsReady", (json_int_t)eng_cells_ready(a->cells), "blanksReady",
	    (json_int_t)eng_cells_blanks_ready(a->cells), "preparedReady",
	    (json_int_t)eng_cells_prepared_ready(a->cells), "microvms", states,
	    "templates", templates(a));
	put_endpoint(a, j);
	put_listening(a, j);
	json_object_set_new(j, "roles", roles(a));
	http_reply(r, 200, j); // of this moment: holds for nothing
}

static json_t *loop_stats(struct api *a)
{
	struct eng_turn_stats ts;

	eng_loop_turn_stats(a->loop, &ts);
	return json_pack("{s:I,s:f,s:f,s:s,s:I}", "turns", (json_int_t)ts.turns,
			 "longestTurnMs", (double)ts.longest_ns / 1e6,
			 "longestTurnCpuMs", (double)ts.longest_cpu_ns / 1e6,
			 "longestTurnName",
			 ts.longest_name ? ts.longest_name : "",
			 "turnsOver10ms", (json_int_t)ts.over_10ms);
}

static json_t *registry_stats(struct api *a)
{
	struct reg_stats rs;

	eng_reg_get_stats(a->reg, &rs);
	return json_pack("{s:I,s:I,s:f,s:I,s:I,s:I,s:I,s:b}", "commits",
			 (json_int_t)rs.commits, "transactions",
			 (json_int_t)rs.transactions, "longestCommitMs",
			 (double)rs.longest_commit_ns / 1e6, "bytes",
			 (json_int_t)rs.bytes, "tokens", (json_int_t)rs.tokens,
			 "firstEvent", (json_int_t)eng_reg_first_event(a->reg),
			 "lastEvent", (json_int_t)eng_reg_last_event(a->reg),
			 "healthy", eng_reg_healthy(a->reg, NULL));
}

static json_t *store_stats(struct api *a)
{
	struct pgc_store_stats s;

	pgc_store_get_stats(a->store, &s);
	return json_pack(
	    "{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:b}", "pages",
	    (json_int_t)s.pages, "rawBytes", (json_int_t)s.raw_bytes,
	    "storedBytes", (json_int_t)s.stored_bytes, "packBytes",
	    (json_int_t)s.pack_bytes, "indexBytes", (json_int_t)s.index_bytes,
	    "mapBytes", (json_int_t)s.map_bytes, "worksetBytes",
	    (json_int_t)s.workset_bytes, "packs", (json_int_t)s.packs,
	    "snapshots", (json_int_t)s.snapshots, "ioUring", s.uring);
}

static json_t *template_stats(struct api *a)
{
	struct eng_template_stats s;

	eng_template_get_stats(a->cells, &s);
	return json_pack("{s:I,s:I,s:I,s:I}", "residentBytes",
			 (json_int_t)s.resident, "budgetBytes",
			 (json_int_t)s.budget, "evictedBytes",
			 (json_int_t)s.evicted, "evictedImages",
			 (json_int_t)s.evicted_images);
}

static json_t *endpoint_stats(struct api *a)
{
	struct front_stats s;

	eng_endpoint_stats(a->endpoint, &s);
	return json_pack(
	    "{s:I,s:I,s:I,s:I,s:I,s:I}", "connections", (json_int_t)s.conns,
	    "waiting", (json_int_t)s.waiting, "open", (json_int_t)s.exchanges,
	    "held", (json_int_t)s.opening, "requests", (json_int_t)s.requests,
	    "refused", (json_int_t)s.refused);
}

void api_stats(struct api *a, struct http_req *r)
{
	uint64_t up = util_now_ns() - a->started_ns;

	http_reply(r, 200,
		   json_pack("{s:f,s:I,s:I,s:I,s:o,s:o,s:o,s:o,s:o}",
			     "uptimeSeconds", (double)(up / 1000000) / 1e3,
			     "requests", (json_int_t)a->requests, "errors",
			     (json_int_t)a->errors, "eventFollowers",
			     (json_int_t)eng_events_followers(a->events),
			     "loop", loop_stats(a), "registry",
			     registry_stats(a), "store", store_stats(a),
			     "templates", template_stats(a), "endpoint",
			     endpoint_stats(a)));
}

void api_version(struct api *a, struct http_req *r)
{
	(void)a;
	http_reply(r, 200,
		   json_pack("{s:s,s:s,s:s,s:s}", "name", "thaw", "version",
			     THAW_VERSION, "api", "2025-09-09", "libevent",
			     http_library_version()));
}

// --- doctor -----------------------------------------------------------------

struct doctor_job {
	struct api *a;
	struct http_req *r;
	json_t *report;
};

static void doctor_work(void *ctx)
{
	struct doctor_job *d = ctx;

	d->report = eng_doctor(d->a->cfg);
}

static void doctor_done(void *ctx)
{
	struct doctor_job *d = ctx;

	http_reply(d->r, 200, d->report);
	free(d);
}

void api_doctor(struct api *a, struct http_req *r)
{
	struct doctor_job *d = calloc(1, sizeof(*d));

	if (!d)
		abort();
	d->a = a;
	d->r = r;
	eng_job_run(a->jobs, doctor_work, doctor_done, d);
}

// --- events -----------------------------------------------------------------

static int parse_cursor(const char *text, uint64_t *out)
{
	char *end;

	if (text[0] < '0' || text[0] > '9' || strlen(text) > 19)
		return -EINVAL;
	*out = strtoull(text, &end, 10);
	return *end ? -EINVAL : 0;
}

static int check_since(struct api *a, uint64_t since, struct err *e)
{
	uint64_t first = eng_reg_first_event(a->reg);
	uint64_t last = eng_reg_last_event(a->reg);

	if (since > last)
		return err_set(e, -EINVAL,
			       "since=%llu is ahead of the newest event, %llu: "
			       "is it another host's cursor?",
			       (unsigned long long)since,
			       (unsigned long long)last);
	if (since && since + 1 < first)
		return err_set(e, -EINVAL,
			       "events up to %llu are no longer kept: list "
			       "everything anew and go on with since=%llu",
			       (unsigned long long)(first - 1),
			       (unsigned long long)(first - 1));
	return 0;
}

void api_events(struct api *a, struct http_req *r)
{
	const char *s = http_query(r, "since"), *f = http_query(r, "follow");
	const char *h = http_query(r, "heartbeat");
	struct err e = ERR_INIT;
	uint64_t since = 0;
	long beat = 0;

	if (s && parse_cursor(s, &since))
		err_set(&e, -EINVAL, "since takes a cursor, a number");
	else if (f && strcmp(f, "0") && strcmp(f, "1"))
		err_set(&e, -EINVAL, "follow is 0 or 1");
	else if (h && check_number(h, 1, 3600, &beat))
		err_set(&e, -EINVAL, "heartbeat takes seconds from 1 to 3600");
	else
		check_since(a, since, &e);
	if (e.code) {
		api_fail(a, r, &e, NULL, NULL);
		return;
	}
	if (!since) // from the oldest that is kept
		since = eng_reg_first_event(a->reg) - 1;
	eng_events_stream(a->events, r, since, f && f[0] == '1',
			  (unsigned)beat);
}
