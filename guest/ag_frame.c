#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ag_frame.h"
#include "util.h"
#include "wire.h"

static bool length_fits(unsigned type, uint32_t len)
{
	switch (type) {
	case AGENT_UNFREEZE:
	case AGENT_LOG:
		return len == 0;
	case AGENT_CONNECT:
	case AGENT_PROBE:
		return len == 2;
	case AGENT_FREEZE:
	case AGENT_POWEROFF:
	case AGENT_RESIZE:
	case AGENT_SIGNAL:
		return len == 4;
	case AGENT_THAW:
	case AGENT_RENEW:
		return len >= AG_THAW_MIN &&
		       len <= AG_THAW_MIN + AG_HOSTNAME_MAX;
	case AGENT_ROLE:
		return len >= 28 && len <= 8192;
	case AGENT_START:
	case AGENT_EXEC:
		return len >= 4 && len <= AGENT_FRAME_MAX;
	case AGENT_STDIN:
		return len <= AGENT_FRAME_MAX;
	default:
		return false;
	}
}

void ag_head_put(uint8_t head[AGENT_FRAME_HEAD], unsigned type, uint32_t len)
{
	struct wire_writer w = wire_writer_of(head, AGENT_FRAME_HEAD);

	wire_put_u8(&w, (uint8_t)type);
	wire_put_u8(&w, 0);
	wire_put_u16(&w, 0);
	wire_put_u32(&w, len);
}

int ag_head_get(const uint8_t head[AGENT_FRAME_HEAD], unsigned *type,
		uint32_t *len)
{
	struct wire_reader r = wire_reader_of(head, AGENT_FRAME_HEAD);
	unsigned reserved;

	*type = wire_get_u8(&r);
	reserved = wire_get_u8(&r);
	reserved |= wire_get_u16(&r);
	*len = wire_get_u32(&r);
	return reserved == 0 && length_fits(*type, *len) ? 0 : -EPROTO;
}

void *ag_reader_next(struct ag_reader *r, size_t *want)
{
	if (r->got < AGENT_FRAME_HEAD) {
		*want = AGENT_FRAME_HEAD - r->got;
		return r->head + r->got;
	}
	*want = AGENT_FRAME_HEAD + (size_t)r->len - r->got;
	return r->payload + (r->got - AGENT_FRAME_HEAD);
}

int ag_reader_add(struct ag_reader *r, size_t n)
{
	bool in_head = r->got < AGENT_FRAME_HEAD;
	int rc;

	r->got += (uint32_t)n;
	if (r->got < AGENT_FRAME_HEAD)
		return 0;
	if (in_head) {
		rc = ag_head_get(r->head, &r->type, &r->len);
		if (rc < 0)
			return rc;
		if (r->len && !(r->payload = malloc(r->len)))
			return -ENOMEM;
	}
	return r->got == AGENT_FRAME_HEAD + r->len;
}

void ag_reader_reset(struct ag_reader *r)
{
	// One that did not come to its end has nobody else who would.
	if (r->payload && r->type == AGENT_ROLE)
		explicit_bzero(r->payload, r->len);
	free(r->payload);
	*r = (struct ag_reader){0};
}

int ag_out_init(struct ag_out *o, size_t cap)
{
	*o = (struct ag_out){.buf = malloc(cap), .cap = cap};
	return o->buf ? 0 : -ENOMEM;
}

void ag_out_fini(struct ag_out *o)
{
	free(o->buf);
	*o = (struct ag_out){0};
}

size_t ag_out_room(struct ag_out *o)
{
	size_t left;

	if (o->off) {
		memmove(o->buf, o->buf + o->off, o->len);
		o->off = 0;
	}
	left = o->cap - o->len;
	left = left > AGENT_FRAME_HEAD ? left - AGENT_FRAME_HEAD : 0;
	return MIN(left, AGENT_FRAME_MAX);
}

uint8_t *ag_out_payload(struct ag_out *o)
{
	return o->buf + o->off + o->len + AGENT_FRAME_HEAD;
}

void ag_out_commit(struct ag_out *o, unsigned type, size_t len)
{
	ag_head_put(o->buf + o->off + o->len, type, (uint32_t)len);
	o->len += AGENT_FRAME_HEAD + len;
}

int ag_out_frame(struct ag_out *o, unsigned type, const void *p, size_t len)
{
	if (!o->buf || o->len + AGENT_FRAME_HEAD > o->cap ||
	    ag_out_room(o) < len)
		return -ENOBUFS;
	if (len)
		memcpy(ag_out_payload(o), p, len);
	ag_out_commit(o, type, len);
	return 0;
}

int ag_out_flush(struct ag_out *o, int fd)
{
	while (o->len) {
		ssize_t n = send(fd, o->buf + o->off, o->len, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN ? 0 : -errno;
		o->off += (size_t)n;
		o->len -= (size_t)n;
	}
	o->off = 0;
	return 0;
}
