// Inside of the vsock device: virtio_vsock.c (device, packets from the guest),
// virtio_vsock_rx.c (packets to the guest), virtio_vsock_stream.c (streams and
// their sockets). The theory is in virtio_vsock.c.
#ifndef THAW_VIRTIO_VSOCK_H
#define THAW_VIRTIO_VSOCK_H

#include "virtio_mmio.h"

#include <linux/virtio_vsock.h>
#include <sys/queue.h>

enum { VSK_RX, VSK_TX, VSK_EV, VSK_NQUEUES };

enum {
	VSK_HOST_CID = 2,
	VSK_STREAMS_MAX = 1024, // sockets held at a time
	// Answers to packets of unknown streams that may wait for an RX buffer;
	// with that many the TX queue waits too.
	VSK_REPLIES_MAX = 64,
	VSK_RSTS_MAX = VSK_STREAMS_MAX + VSK_REPLIES_MAX,
	VSK_BUF_FEW = 256 * 1024, // buf_alloc of the first VSK_FEW streams
	VSK_BUF_MANY = 64 * 1024, // and of further ones
	VSK_FEW = 32,
	VSK_PACKET_MAX = 64 * 1024, // bytes in a packet to the guest
	VSK_PORT_MIN = 1024,
};

// FREE        in the free list.
// CONNECTING  REQUEST is owed or sent. Moved by RESPONSE (OPEN), RST, or the
//             host closing its end. Nothing is read from the socket.
// OPEN        bytes move. Each direction can end on its own.
// CLOSING     SHUTDOWN with both bits is owed or sent; the socket is closed;
//             waits for the guest's RST.
// LINGER      the guest has forgotten it; what it sent before is still being
//             written to the socket. Not in the port table.
enum vsk_state { VSK_FREE, VSK_CONNECTING, VSK_OPEN, VSK_CLOSING, VSK_LINGER };

// Packets owed to the guest, by stream.
enum {
	VSK_CTL_REQUEST = 1,
	VSK_CTL_CREDIT = 2,
	VSK_CTL_CREDIT_REQ = 4,
	VSK_CTL_SHUTDOWN = 8,
};

struct vio_vsock;

struct vsk_stream {
	struct vio_vsock *v;
	enum vsk_state state;
	int fd;
	uint32_t armed; // epoll events asked for at the machine
	uint32_t local_port, guest_port;
	struct vsk_stream *hash_next; // or next in the free list

	// guest to host: we advertise buf_alloc and fwd_cnt
	uint32_t buf_alloc, rx_cnt, fwd_cnt, fwd_told;
	uint8_t *buf; // ring of buf_alloc bytes, while anything is in it
	uint32_t buf_at, buf_len;
	// host to guest: the guest's view of its buffer
	uint32_t peer_alloc, peer_fwd, tx_cnt;
	unsigned burst; // RX chains to try for in the next read

	unsigned ctl;		 // VSK_CTL_* owed
	bool request_sent;	 // the guest may know of this stream
	uint32_t shut;		 // VIRTIO_VSOCK_SHUTDOWN_* that we told
	uint32_t guest_shut;	 // ... that the guest told
	bool host_eof, host_hup; // socket: end of file seen, closed entirely
	bool write_dead;	 // socket takes nothing more
	bool credit_asked;	 // since the last credit
	bool stalled;		 // readable, but no RX buffer: in `stalls`
	bool ctl_queued;	 // in `ctls`
	TAILQ_ENTRY(vsk_stream) ctl_link, stall_link;
};

TAILQ_HEAD(vsk_list, vsk_stream);

struct vsk_pair {
	uint32_t local_port, guest_port;
};

enum { VSK_SEGS = 512, VSK_CHAINS = 64, VSK_HASH = 1024 };

struct vio_vsock {
	struct vio_dev dev;
	uint64_t cid;
	uint32_t next_port;
	struct vsk_stream *slots[VSK_STREAMS_MAX]; // allocated ones, any state
	unsigned nslots;
	struct vsk_stream *free;
	struct vsk_stream *hash[VSK_HASH]; // by local port
	unsigned live;			   // in the hash
	struct vsk_list ctls, stalls;
	struct vsk_pair rsts[VSK_RSTS_MAX]; // ring of owed RSTs
	unsigned rst_at, rst_n;
	bool tx_blocked; // TX waits until the RSTs have gone
	uint8_t *spare;	 // one VSK_BUF_FEW buffer kept for the next need
	struct virtq_chain chains[VSK_CHAINS];
	struct iovec segs[VSK_SEGS], data[VSK_SEGS];
	struct iovec tx_segs[VIRTQ_MAX_SEGS];
};

// --- virtio_vsock_rx.c ---

// Sends what is owed and readable, as far as RX buffers go; then interrupts.
void vsk_pump(struct vio_vsock *v);
void vsk_owe_rst(struct vio_vsock *v, uint32_t local, uint32_t guest);
bool vsk_rst_owed(const struct vio_vsock *v, uint32_t local, uint32_t guest);
// Owes the guest packets about this stream.
void vsk_owe(struct vsk_stream *s, unsigned ctl);
// Bytes that the guest has room for.
uint32_t vsk_credit(const struct vsk_stream *s);
// Moves bytes from the socket to the guest. s may be CLOSING afterwards.
void vsk_read(struct vsk_stream *s);

// --- virtio_vsock_stream.c ---

struct vsk_stream *vsk_find(struct vio_vsock *v, uint32_t local,
			    uint32_t guest);
// A CONNECTING stream; NULL when there is no room. Owns `fd` on success.
struct vsk_stream *vsk_open(struct vio_vsock *v, uint32_t guest_port, int fd);
// Gives up on one stream whose SHUTDOWN the guest never answered, as virtio 1.2
// section 5.10.6.5 allows; false when there is none. Its RST may have to go out
// before vsk_open() finds room.
bool vsk_reclaim(struct vio_vsock *v);
void vsk_free(struct vsk_stream *s);
// The guest has forgotten s: what is buffered still goes out, then it is free.
void vsk_forget(struct vsk_stream *s);
// Ends s at once, telling the guest if it may know of s.
void vsk_kill(struct vsk_stream *s);
// Bytes [off, off+len) of iov came from the guest; false: it broke its credit,
// or there is no memory.
bool vsk_deliver(struct vsk_stream *s, const struct iovec *iov, unsigned n,
		 size_t off, uint32_t len);
// The guest told SHUTDOWN flags.
void vsk_guest_shutdown(struct vsk_stream *s, uint32_t flags);
// The socket read end of file (or died).
void vsk_host_eof(struct vsk_stream *s);
// Asks the machine for exactly the events that matter now.
void vsk_rearm(struct vsk_stream *s);

#endif
