// Calls that reach into a guest besides exec: forward, logs, mailbox.
#include "api.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define LOG_HIGH (256 * 1024)

struct reg_vm *api_guest_of(struct api *a, struct http_req *r)
{
	struct reg_vm *vm = api_vm_of(a, r, r->seg[3]);
	struct err e = ERR_INIT;

	if (!vm)
		return NULL;
	if (!vm->live || vm->state == VM_PARKED || vm->state == VM_TERMINATING)
		err_set(&e, -EBUSY, "MicroVM %s is %s, not RUNNING", vm->id,
			eng_state_name(vm->state));
	else if (!vm->agent)
		err_set(&e, -EINVAL,
			"MicroVM %s has no agent (its image was built from a "
			"kernel alone)",
			vm->id);
	if (!e.code)
		return vm;
	api_fail(a, r, &e, "microvm", vm->id);
	return NULL;
}

#define TRAFFIC_NS 1000000000u // looked for no more often

void api_guest_traffic(struct api *a, const char *id, uint64_t *last_ns)
{
	uint64_t now = util_now_ns();
	struct reg_vm *vm;

	if (now - *last_ns < TRAFFIC_NS)
		return;
	*last_ns = now;
	vm = eng_reg_vm(a->reg, id);
	if (vm)
		eng_vm_traffic(vm);
}

int api_reach_error(int rc)
{
	switch (rc) {
	case -ETIMEDOUT:
	case -EBUSY: // its idle policy lets nothing but ResumeMicrovm wake it
		return rc;
	case -EDQUOT:
		return -EAGAIN;
	case -ENOENT: // it has ended
		return -EBUSY;
	case -EIO: // a resume that failed
		return -EIO;
	default:
		return -ECONNREFUSED;
	}
}

// --- forward ----------------------------------------------------------------

struct forward {
	struct api *a;
	struct http_stream *st;
	struct vm_opening *opening; // NULL: over
	char vm[REG_ID_LEN + 1];
	uint64_t moved_ns;
};

static void forward_closed(void *ctx)
{
	struct forward *f = ctx;

	eng_vm_open_cancel(f->opening);
	free(f);
}

static void forward_moved(void *ctx)
{
	struct forward *f = ctx;

	api_guest_traffic(f->a, f->vm, &f->moved_ns);
}

static void forward_opened(void *ctx, int fd, const char *why)
{
	struct forward *f = ctx;
	struct err e = ERR_INIT;

	f->opening = NULL;
	if (fd >= 0) {
		http_stream_relay(f->st, "thaw-forward", fd, true);
		return;
	}
	err_set(&e, api_reach_error(fd), "%s", why ? why : err_name(fd));
	api_fail_stream(f->a, f->st, &e);
}

static void forward_start(struct api *a, struct http_req *r, struct reg_vm *vm,
			  long port)
{
	static const struct http_stream_ops ops = {.closed = forward_closed,
						   .moved = forward_moved};
	struct forward *f = calloc(1, sizeof(*f));
	struct err e = ERR_INIT;

	if (!f)
		abort();
	f->a = a;
	strcpy(f->vm, vm->id);
	f->st = http_stream_take(r, &ops, f);
	if (!f->st)
		free(f);
	else if (eng_vm_open(a->vms, vm, (unsigned)port, API_REACH_MS,
			     forward_opened, f, &f->opening, &e))
		api_fail_stream(a, f->st, &e);
}

void api_forward(struct api *a, struct http_req *r)
{
	const char *text = http_query(r, "port");
	struct err e = ERR_INIT;
	struct reg_vm *vm;
	long port = 0;

	if (!text || check_number(text, 1, 65535, &port))
		err_set(&e, -EINVAL, "port must be given, from 1 to 65535");
	else if (strcmp(r->upgrade, "thaw-forward"))
		err_set(&e, -EINVAL, "Upgrade: thaw-forward is required");
	if (e.code)
		api_fail(a, r, &e, NULL, NULL);
	else if ((vm = api_guest_of(a, r)))
		forward_start(a, r, vm, port);
}

// --- logs -------------------------------------------------------------------

struct logs {
	struct http_stream *st;
	struct vmlog *log;
	bool owned, follow;
	uint64_t pos, end; // end: without follow
	struct vmlog_follower *follower;
};

static void logs_closed(void *ctx)
{
	struct logs *lg = ctx;

	vmlog_unfollow(lg->follower);
	if (lg->owned)
		vmlog_close(lg->log);
	free(lg);
}

static void logs_copy(struct logs *lg, size_t high)
{
	char buf[32 * 1024];
	size_t n = 1;

	while (n && http_stream_backlog(lg->st) < high) {
		size_t cap = sizeof(buf);

		if (!lg->follow)
			cap = lg->end > lg->pos ? (size_t)MIN((uint64_t)cap,
							      lg->end - lg->pos)
						: 0;
		n = cap ? vmlog_read(lg->log, &lg->pos, buf, cap) : 0;
		http_stream_write(lg->st, buf, n);
	}
	if (!n && !lg->follow)
		http_stream_end(lg->st);
}

static void logs_drained(void *ctx)
{
	struct logs *lg = ctx;

	if (lg->log)
		logs_copy(lg, LOG_HIGH);
}

static void logs_more(void *ctx, bool more)
{
	struct logs *lg = ctx;

	if (more) {
		logs_copy(lg, LOG_HIGH);
		return;
	}
	// The microVM ended: the rest, which its cap bounds.
	logs_copy(lg, 2 * (size_t)VMLOG_CAP);
	lg->follower = NULL;
	lg->log = NULL;
	lg->owned = false;
	http_stream_end(lg->st);
}

static int logs_params(const struct http_req *r, bool *follow, long *tail,
		       struct err *e)
{
	const char *f = http_query(r, "follow"), *t = http_query(r, "tail");

	*follow = f && strcmp(f, "1") == 0;
	*tail = -1;
	if (f && strcmp(f, "0") && strcmp(f, "1"))
		return err_set(e, -EINVAL, "follow is 0 or 1");
	if (t && check_number(t, 0, 1000000, tail))
		return err_set(e, -EINVAL,
			       "tail takes a number of lines from "
			       "0 to 1000000");
	return 0;
}

void api_send_log(struct api *a, struct http_req *r, struct vmlog *log,
		  bool owned)
{
	static const struct http_stream_ops ops = {.closed = logs_closed,
						   .drained = logs_drained};
	struct err e = ERR_INIT;
	struct logs *lg;
	bool follow;
	long tail;

	if (logs_params(r, &follow, &tail, &e)) {
		if (owned)
			vmlog_close(log);
		api_fail(a, r, &e, NULL, NULL);
		return;
	}
	lg = calloc(1, sizeof(*lg));
	if (!lg)
		abort();
	lg->log = log;
	lg->owned = owned;
	lg->follow = follow && !lg->owned;
	lg->end = vmlog_end(lg->log);
	lg->pos = tail < 0 ? vmlog_start(lg->log)
			   : vmlog_tail(lg->log, (unsigned)tail);
	lg->st = http_stream_take(r, &ops, lg);
	if (!lg->st) {
		logs_closed(lg);
		return;
	}
	http_stream_begin(lg->st, "text/plain; charset=utf-8");
	if (lg->follow)
		lg->follower = vmlog_follow(lg->log, logs_more, lg);
	logs_copy(lg, LOG_HIGH);
}

void api_logs(struct api *a, struct http_req *r)
{
	struct reg_vm *vm = api_vm_of(a, r, r->seg[3]);
	struct err e = ERR_INIT;
	struct vmlog *log;
	bool owned;

	if (!vm)
		return;
	log = eng_vm_log(a->vms, vm, &owned, &e);
	if (log)
		api_send_log(a, r, log, owned);
	else
		api_fail(a, r, &e, NULL, NULL);
}

// --- mailbox ----------------------------------------------------------------

// The running guest's cell, or NULL after answering.
static struct eng_cell *mailbox_of(struct api *a, struct http_req *r,
				   struct reg_vm **out)
{
	struct reg_vm *vm = api_vm_of(a, r, r->seg[3]);
	struct eng_cell *cell = vm ? eng_vm_cell(vm) : NULL;
	struct err e = ERR_INIT;

	if (!vm)
		return NULL;
	*out = vm;
	if (!cell)
		err_set(&e, -EBUSY, "MicroVM %s is %s, not RUNNING", vm->id,
			eng_state_name(vm->state));
	else if (vm->agent)
		err_set(&e, -EINVAL,
			"MicroVM %s has an agent; only guests without one "
			"have a mailbox",
			vm->id);
	if (!e.code) {
		eng_vm_traffic(vm);
		return cell;
	}
	api_fail(a, r, &e, "microvm", vm->id);
	return NULL;
}

void api_mailbox(struct api *a, struct http_req *r)
{
	struct err e = ERR_INIT;
	struct eng_cell *cell;
	struct reg_vm *vm;

	cell = mailbox_of(a, r, &vm);
	if (!cell)
		return;
	if (!eng_cell_mailbox(cell, r->body, r->body_len, &e)) {
		http_reply(r, 200, json_object());
		return;
	}
	if (e.code == -ENOSPC)
		e.code = -EAGAIN; // the guest has not read the last ones yet
	api_fail(a, r, &e, "microvm", vm->id);
}
