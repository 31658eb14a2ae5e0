// The wire between thawd and a thaw-cell (docs/CELLS.md). Three SOCK_SEQPACKET
// pairs a cell: *ctl* (the cell's device thread), *boot* (its vCPU-0 thread,
// until the guest runs) and *disk* (extent requests). One message is one
// packet; integers are little-endian; descriptors travel as SCM_RIGHTS.
//
// Both sides treat what they receive as hostile: a message that does not parse
// to its last byte, or comes when it may not, ends the cell.
#ifndef THAW_ENG_CELLPROTO_H
#define THAW_ENG_CELLPROTO_H

#include "base.h"

#define CP_MAGIC 0x31434854u // "THC1"

enum {
	CP_VERSION = 3,
	CP_HEAD = 8,		// magic u32, version u16, type u16
	CP_MSG_MAX = 96 * 1024, // of any message
	CP_MAX_FDS = 4,
	CP_MAX_ZERO_EXTENTS = 128, // anonymous mappings over a template
	CP_MAX_EXTENTS = 64,	   // of one disk request
	CP_MAX_REQ_BLOCKS = 4096,  // of all extents of one disk request
	CP_MAX_DISK_REQS = 64,	   // disk requests not yet answered
	CP_MAILBOX_MAX = 64 * 1024,
	CP_MAILBOX_CHUNK = 16 * 1024, // of one CP_MAILBOX
	CP_CMDLINE_MAX = 4096,
	CP_TEXT_MAX = 300,
};

enum cp_type {
	// thawd to the vCPU-0 thread (boot socket)
	CP_START_THAW =
	    1,	       // fds: state, memory template [, disk template, overlay]
	CP_START_BOOT, // fds: kernel [, initrd] [, disk template, overlay]
	CP_GO,	       // after CP_MAPPED, when a resumed VM's pages are laid
	CP_PREPARE,    // as CP_START_THAW, but wait for CP_RUN
	CP_RUN,	       // bytes for the mailbox

	// thawd to the device thread (ctl socket)
	CP_STARTING = 16, // a start is under way: report how it went
	CP_PAUSE,	  // timeout_ms u32
	CP_UNPAUSE,
	CP_CONNECT, // port u32; fd: the stream
	CP_MAILBOX, // bytes
	CP_PARK, // timeout_ms u32: as PAUSE, but nothing is saved; fd: a socket

	// thawd to the vCPU-0 thread (the socket of PARK)
	CP_UNPARK, // bytes for the mailbox; it goes on at once, unanswered

	// thawd to the device thread (disk socket)
	CP_EXTENTS_ACK =
	    32, // tag u32, n u32, n of {block u32, blocks u32, kind u32}

	// vCPU-0 thread to thawd (ctl socket)
	CP_MAPPED = 64,
	CP_FAILED,   // text: the cell gives up (either thread)
	CP_PREPARED, // CP_PREPARE is done: all but the guest's time is in place

	// device thread to thawd (ctl socket)
	CP_HELLO =
	    80,	    // mem_base u64, mem_bytes u64, vcpus u32; fd: userfaultfd
	CP_STARTED, // mapped, loaded, first_exit u64 (CLOCK_MONOTONIC ns)
	CP_FIRST_EXIT, // first_exit u64
	CP_EVENT,      // kind u32 (enum cp_event), text
	CP_PAUSED,     // rc i32, text; rc 0: state length u32, fd: the state
	CP_UNPAUSED,   // rc i32, text
	CP_PARKED,     // rc i32, text

	// device thread to thawd (disk socket)
	CP_EXTENTS = 96, // tag u32, n u32, n of {block u32, blocks u32}
};

enum cp_event {
	CP_EV_READY = 1,
	CP_EV_POWEROFF,
	CP_EV_RESET,
	CP_EV_FATAL,
	CP_EV_VSOCK_UP,
};

// Flags of CP_START_*.
enum {
	CP_F_TWO_STEP = 1, // say CP_MAPPED and wait for CP_GO
	CP_F_INITRD = 2,
	CP_F_DISK = 4,
};

// What an acknowledged extent of the disk is to be read from.
enum cp_block {
	CP_BLK_TEMPLATE = 1,
	CP_BLK_OVERLAY,
	CP_BLK_ZERO,
	CP_BLK_BAD, // cannot be had: an I/O error for the guest
};

// Descriptor numbers with which thaw-cell starts.
enum {
	CP_FD_CTL = 3,
	CP_FD_BOOT,
	CP_FD_DISK,
	CP_FD_CONSOLE,
	CP_FD_KVM,
	CP_FD_UFFD,
	CP_FD_HOST,	      // what KVM supports here: vmm_facts_load()
	CP_FD_END,	      // what a cell keeps
	CP_FD_NS = CP_FD_END, // to be joined first: mount, net, IPC, UTS
	CP_NUM_NS = 4,
	CP_FD_ALL = CP_FD_NS + CP_NUM_NS,
};

struct cp_zero_extent {
	uint32_t pgno, npages;
};

struct cp_start { // CP_START_THAW, CP_START_BOOT and CP_PREPARE
	uint32_t flags;
	uint32_t mem_mib, vcpus; // the shell's; what a blank is to become
	uint64_t disk_bytes;
	uint32_t state_len; // thaw only
	uint32_t nzero;
	struct cp_zero_extent zero[CP_MAX_ZERO_EXTENTS];
	const void *mailbox; // borrowed from the message
	size_t mailbox_len;
	char cmdline[CP_CMDLINE_MAX]; // boot only
};

// Starts a message in `w`; the caller appends the body and checks w->bad.
void cp_begin(struct wire_writer *w, enum cp_type type);
// Reads a header: the type, or -EBADMSG (magic, version, short).
int cp_head(struct wire_reader *r);
// A message ends where its packet ends.
static inline bool cp_ok(const struct wire_reader *r)
{
	return !r->bad && wire_left(r) == 0;
}
// Texts are the rest of a message, printable ASCII after cp_get_text().
void cp_put_text(struct wire_writer *w, const char *text);
void cp_get_text(struct wire_reader *r, char dst[CP_TEXT_MAX]);

void cp_put_start(struct wire_writer *w, enum cp_type type,
		  const struct cp_start *s);
int cp_get_start(struct wire_reader *r, enum cp_type type, struct cp_start *s);

// One packet with descriptors. MSG_NOSIGNAL. 0 or -errno (-EAGAIN: full).
int cp_send(int sock, const struct wire_writer *w, const int *fds,
	    unsigned nfds);
// One packet: its length, 0 at the end of the stream, -errno (-EAGAIN: none;
// -EMSGSIZE: did not fit, or more than CP_MAX_FDS descriptors). Descriptors are
// the caller's, close-on-exec; on an error there are none.
// `flags`: MSG_DONTWAIT or 0.
ssize_t cp_recv(int sock, int flags, void *buf, size_t cap, int fds[CP_MAX_FDS],
		unsigned *nfds);
void cp_close_fds(int *fds, unsigned nfds);

#endif
