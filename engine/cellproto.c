// Encoding and transport of the cells' wire; used by thawd and by thaw-cell.
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "cellproto.h"

void cp_begin(struct wire_writer *w, enum cp_type type)
{
	w->len = 0;
	w->bad = false;
	wire_put_u32(w, CP_MAGIC);
	wire_put_u16(w, CP_VERSION);
	wire_put_u16(w, (uint16_t)type);
}

int cp_head(struct wire_reader *r)
{
	uint32_t magic = wire_get_u32(r);
	uint16_t version = wire_get_u16(r);
	uint16_t type = wire_get_u16(r);

	if (r->bad || magic != CP_MAGIC || version != CP_VERSION)
		return -EBADMSG;
	return type;
}

void cp_put_text(struct wire_writer *w, const char *text)
{
	size_t n = strlen(text);

	wire_put_bytes(w, text, MIN(n, (size_t)CP_TEXT_MAX - 1));
}

void cp_get_text(struct wire_reader *r, char dst[CP_TEXT_MAX])
{
	size_t n = wire_left(r);
	size_t keep = MIN(n, (size_t)CP_TEXT_MAX - 1);
	const uint8_t *p = wire_borrow(r, n);

	if (!p)
		keep = 0;
	for (size_t i = 0; i < keep; i++)
		dst[i] = p[i] >= ' ' && p[i] < 0x7f ? (char)p[i] : '?';
	dst[keep] = '\0';
}

void cp_put_start(struct wire_writer *w, enum cp_type type,
		  const struct cp_start *s)
{
	size_t cmdline = strlen(s->cmdline);

	cp_begin(w, type);
	wire_put_u32(w, s->flags);
	wire_put_u32(w, s->mem_mib);
	wire_put_u32(w, s->vcpus);
	wire_put_u64(w, s->disk_bytes);
	wire_put_u32(w, s->state_len);
	wire_put_u32(w, s->nzero);
	for (uint32_t i = 0; i < s->nzero; i++) {
		wire_put_u32(w, s->zero[i].pgno);
		wire_put_u32(w, s->zero[i].npages);
	}
	wire_put_u32(w, (uint32_t)cmdline);
	wire_put_bytes(w, s->cmdline, cmdline);
	wire_put_u32(w, (uint32_t)s->mailbox_len);
	if (s->mailbox_len)
		wire_put_bytes(w, s->mailbox, s->mailbox_len);
}

int cp_get_start(struct wire_reader *r, enum cp_type type, struct cp_start *s)
{
	uint32_t n;

	memset(s, 0, sizeof(*s));
	s->flags = wire_get_u32(r);
	s->mem_mib = wire_get_u32(r);
	s->vcpus = wire_get_u32(r);
	s->disk_bytes = wire_get_u64(r);
	s->state_len = wire_get_u32(r);
	s->nzero = wire_get_u32(r);
	if (s->nzero > CP_MAX_ZERO_EXTENTS ||
	    (type == CP_START_BOOT && s->nzero))
		return -EBADMSG;
	for (uint32_t i = 0; i < s->nzero; i++) {
		s->zero[i].pgno = wire_get_u32(r);
		s->zero[i].npages = wire_get_u32(r);
	}
	n = wire_get_u32(r);
	if (n >= CP_CMDLINE_MAX)
		return -EBADMSG;
	wire_get_bytes(r, s->cmdline, n);
	n = wire_get_u32(r);
	if (n > CP_MAILBOX_MAX)
		return -EBADMSG;
	s->mailbox_len = n;
	s->mailbox = n ? wire_borrow(r, n) : NULL;
	return cp_ok(r) ? 0 : -EBADMSG;
}

int cp_send(int sock, const struct wire_writer *w, const int *fds,
	    unsigned nfds)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int) * CP_MAX_FDS)];
	} ctl;
	struct iovec iov = {w->buf, w->len};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
	struct cmsghdr *c;
	ssize_t n;

	if (w->bad || nfds > CP_MAX_FDS)
		return -EMSGSIZE;
	if (nfds) {
		memset(&ctl, 0, sizeof(ctl));
		m.msg_control = ctl.buf;
		m.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
		c = CMSG_FIRSTHDR(&m);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * nfds);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * nfds);
	}
	do {
		n = sendmsg(sock, &m, MSG_NOSIGNAL);
	} while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : 0;
}

// Takes the descriptors out of a received header; those that do not fit are
// closed and counted as an error.
static int take_fds(struct msghdr *m, int fds[CP_MAX_FDS], unsigned *nfds)
{
	struct cmsghdr *c;
	int rc = 0;

	for (c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		size_t n;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
			if (*nfds < CP_MAX_FDS) {
				fds[(*nfds)++] = fd;
			} else {
				close(fd);
				rc = -EMSGSIZE;
			}
		}
	}
	return rc;
}

ssize_t cp_recv(int sock, int flags, void *buf, size_t cap, int fds[CP_MAX_FDS],
		unsigned *nfds)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int) * CP_MAX_FDS)];
	} ctl;
	struct iovec iov = {buf, cap};
	struct msghdr m = {.msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = ctl.buf,
			   .msg_controllen = sizeof(ctl.buf)};
	ssize_t n;
	int rc;

	*nfds = 0;
	do {
		n = recvmsg(sock, &m, flags | MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	rc = take_fds(&m, fds, nfds);
	if (rc || (m.msg_flags & (MSG_TRUNC | MSG_CTRUNC))) {
		cp_close_fds(fds, *nfds);
		*nfds = 0;
		return -EMSGSIZE;
	}
	return n;
}

void cp_close_fds(int *fds, unsigned nfds)
{
	for (unsigned i = 0; i < nfds; i++)
		fd_close(&fds[i]);
}
