// What a cell that has its guest says, and what it is told: the messages and the
// orders of a running one. (cell_start.c has those of its start, capture.c those
// of a capture.)
//
// A message that makes no sense in the cell's state is a violation: the other
// side may be a guest that took the cell over.
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "cells_priv.h"

enum { PARK_TIMEOUT_MS = 10000 };

// --- messages ---------------------------------------------------------------

static void on_started(struct eng_cell *cell, uint64_t mapped, uint64_t loaded,
		       uint64_t first_exit)
{
	cell->times.mapped = mapped;
	cell->times.loaded = loaded;
	cell->times.first_exit = first_exit;
	cell->state = CELL_RUNNING;
	fd_close(&cell->proc->boot);
	proc_expect_start(cell->proc, false);
	if (!cell->ended && cell->ev && cell->ev->started)
		cell->ev->started(cell->ctx, &cell->times);
}

static bool on_event(struct eng_cell *cell, uint32_t kind, const char *text)
{
	const struct eng_cell_events *ev = cell->ev;

	switch (kind) {
	case CP_EV_READY:
		if (!cell->ended && ev && ev->ready)
			ev->ready(cell->ctx);
		return true;
	case CP_EV_VSOCK_UP:
		if (!cell->ended && ev && ev->vsock_up)
			ev->vsock_up(cell->ctx);
		return true;
	case CP_EV_POWEROFF:
		cell_end(cell, ENG_END_POWEROFF, "the guest powered off");
		return true;
	case CP_EV_RESET:
		cell_end(cell, ENG_END_RESET, "%s",
			 text[0] ? text : "the guest asked for a reset");
		return true;
	case CP_EV_FATAL:
		cell_end(cell, ENG_END_FATAL, "%s", text);
		return true;
	default:
		return false;
	}
}

static void on_parked(struct eng_cell *cell, int rc, const char *why)
{
	if (rc)
		fd_close(&cell->claim_fd);
	cell->parking = false;
	cell->parked = rc == 0;
	if (!cell->ended && cell->ev && cell->ev->parked)
		cell->ev->parked(cell->ctx, rc, why);
}

bool cell_message(struct eng_cell *cell, int type, struct wire_reader *r,
		  int *fds, unsigned nfds)
{
	bool two_step = cell->has_own;
	uint64_t a = 0, b = 0, x = 0;
	uint32_t u = 0, len = 0;
	char text[CP_TEXT_MAX] = "";

	if (type == CP_EVENT || type == CP_PAUSED || type == CP_UNPAUSED ||
	    type == CP_PARKED)
		u = wire_get_u32(r);
	if (type == CP_STARTED) {
		a = wire_get_u64(r);
		b = wire_get_u64(r);
	}
	if (type == CP_STARTED || type == CP_FIRST_EXIT)
		x = wire_get_u64(r);
	if (type == CP_PAUSED && u == 0)
		len = wire_get_u32(r);
	else if (type == CP_EVENT || type == CP_PAUSED || type == CP_UNPAUSED ||
		 type == CP_PARKED)
		cp_get_text(r, text);
	if (!cp_ok(r) || nfds != (type == CP_PAUSED && u == 0))
		return false;
	if (type == CP_MAPPED && two_step && cell->state == CELL_STARTING) {
		cell_mapped(cell);
		return true;
	}
	if (type == CP_STARTED && cell->state == CELL_STARTING) {
		on_started(cell, a, b, x);
		return true;
	}
	if (cell->state != CELL_RUNNING)
		return false;
	if (type == CP_FIRST_EXIT) {
		cell->times.first_exit = x;
		return true;
	}
	if (type == CP_EVENT)
		return on_event(cell, u, text);
	if (type == CP_PAUSED && cell->capture) {
		capture_paused(cell, (int32_t)u, text, len,
			       nfds ? fd_steal(&fds[0]) : -1);
		return true;
	}
	if (type == CP_UNPAUSED) {
		capture_unpaused(cell, (int32_t)u, text);
		return true;
	}
	if (type == CP_PARKED && cell->parking) {
		on_parked(cell, (int32_t)u, text);
		return true;
	}
	return false;
}

// --- orders -----------------------------------------------------------------

static bool is_running(const struct eng_cell *cell)
{
	return !cell->ended && cell->proc && cell->state == CELL_RUNNING;
}

int eng_cell_connect(struct eng_cell *cell, uint32_t port, int *fd,
		     struct err *e)
{
	uint8_t buf[CP_HEAD + 4];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	int sv[2], rc;

	*fd = -1;
	if (!is_running(cell))
		return err_set(e, -ENOTCONN, "the microVM does not run");
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0,
		       sv) < 0)
		return err_sys(e, "cannot make a stream");
	cp_begin(&w, CP_CONNECT);
	wire_put_u32(&w, port);
	rc = cp_send(cell->proc->ctl, &w, &sv[1], 1);
	close(sv[1]);
	if (rc) {
		close(sv[0]);
		return err_set(e, rc, "the cell takes no stream: %s",
			       strerror(-rc));
	}
	*fd = sv[0];
	return 0;
}

int eng_cell_mailbox(struct eng_cell *cell, const void *bytes, size_t n,
		     struct err *e)
{
	uint8_t buf[CP_HEAD + CP_MAILBOX_CHUNK];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	const uint8_t *p = bytes;

	if (!is_running(cell))
		return err_set(e, -ENOTCONN, "the microVM does not run");
	if (n > CP_MAILBOX_MAX)
		return err_set(e, -E2BIG,
			       "%zu bytes for the mailbox: at most %d fit", n,
			       CP_MAILBOX_MAX);
	while (n) {
		size_t part = MIN(n, (size_t)CP_MAILBOX_CHUNK);
		int rc;

		cp_begin(&w, CP_MAILBOX);
		wire_put_bytes(&w, p, part);
		rc = cp_send(cell->proc->ctl, &w, NULL, 0);
		if (rc)
			return err_set(e, rc, "the cell takes no mail: %s",
				       strerror(-rc));
		p += part;
		n -= part;
	}
	return 0;
}

int eng_cell_park(struct eng_cell *cell, struct err *e)
{
	uint8_t buf[CP_HEAD + 4];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	int rc, pair[2];

	if (!is_running(cell) || cell->parking || cell->parked)
		return err_set(e, -ENOTCONN, "the microVM does not run");
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return err_sys(e, "cannot make a socket to park a microVM");
	cp_begin(&w, CP_PARK);
	wire_put_u32(&w, PARK_TIMEOUT_MS);
	rc = cp_send(cell->proc->ctl, &w, &pair[1], 1);
	close(pair[1]);
	fd_close(&cell->claim_fd);
	cell->claim_fd = pair[0];
	if (rc)
		return err_set(e, rc, "the cell takes no order: %s",
			       strerror(-rc));
	cell->parking = true;
	return 0;
}

bool eng_cell_is_parked(const struct eng_cell *cell)
{
	return is_running(cell) && cell->parked;
}

int eng_cell_unpark(struct eng_cell *cell, const void *mailbox, size_t len,
		    struct err *e)
{
	uint8_t buf[CP_HEAD + CP_MAILBOX_CHUNK];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	int rc;

	if (!eng_cell_is_parked(cell))
		return err_set(e, -ENOTCONN, "the microVM is not parked");
	if (len > CP_MAILBOX_CHUNK)
		return err_set(e, -E2BIG,
			       "%zu bytes for the mailbox: at most %d fit", len,
			       CP_MAILBOX_CHUNK);
	cp_begin(&w, CP_UNPARK);
	if (len)
		wire_put_bytes(&w, mailbox, len);
	rc = cp_send(cell->claim_fd, &w, NULL, 0);
	fd_close(&cell->claim_fd);
	if (rc)
		return err_set(e, rc, "the cell takes no order: %s",
			       strerror(-rc));
	cell->parked = false;
	return 0;
}
