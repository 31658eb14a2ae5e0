// How the metadata's address can be served on port 80 while the application has
// port 80: a socket bound to 0.0.0.0:80 and one bound to 169.254.169.254:80 exclude
// each other, whoever comes first. So ours is bound to a port of its own, and a
// program in the kernel, run when a connection looks for its listener (sk_lookup,
// Linux 5.9), hands it those for port 80. Nobody else's lookup changes.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/bpf.h>

#include "ag_steer.h"
#include "util.h"

static int bpf(int cmd, union bpf_attr *a)
{
	int fd = (int)syscall(SYS_bpf, cmd, a, sizeof(*a));

	return fd < 0 ? -errno : fd;
}

// A map of one socket.
static int make_map(int listener)
{
	union bpf_attr a = {.map_type = BPF_MAP_TYPE_SOCKMAP,
			    .key_size = 4,
			    .value_size = 8,
			    .max_entries = 1};
	uint32_t key = 0;
	uint64_t value = (uint64_t)listener;
	int map = bpf(BPF_MAP_CREATE, &a), rc;

	if (map < 0)
		return map;
	a = (union bpf_attr){.map_fd = (uint32_t)map,
			     .key = (uintptr_t)&key,
			     .value = (uintptr_t)&value};
	rc = bpf(BPF_MAP_UPDATE_ELEM, &a);
	if (rc < 0)
		close(map);
	return rc < 0 ? rc : map;
}

#define OP(c, d, s, o, i)                                                \
	{                                                                \
		.code = (c), .dst_reg = (d), .src_reg = (s), .off = (o), \
		.imm = (i)                                               \
	}
#define LOAD(d, field)                      \
	OP(BPF_LDX | BPF_MEM | BPF_W, d, 1, \
	   offsetof(struct bpf_sk_lookup, field), 0)
#define UNLESS(d, i, skip) OP(BPF_JMP32 | BPF_JNE | BPF_K, d, 0, skip, i)
#define MOVE(d, s) OP(BPF_ALU64 | BPF_MOV | BPF_X, d, s, 0, 0)
#define SET(d, i) OP(BPF_ALU64 | BPF_MOV | BPF_K, d, 0, 0, i)
#define CALL(f) OP(BPF_JMP | BPF_CALL, 0, 0, 0, f)

// r6: the lookup, r7: our socket. A jump counts from the next instruction to the
// last two.
static int load(uint32_t addr, uint16_t port, int map)
{
	static const char license[] = "Apache-2.0";
	struct bpf_insn code[] = {
	    MOVE(6, 1),
	    LOAD(2, family),
	    UNLESS(2, AF_INET, 20),
	    LOAD(2, protocol),
	    UNLESS(2, IPPROTO_TCP, 18),
	    LOAD(2, local_ip4),
	    UNLESS(2, (int)htonl(addr), 16),
	    LOAD(2, local_port),
	    UNLESS(2, port, 14),
	    OP(BPF_ST | BPF_MEM | BPF_W, 10, 0, -4, 0),
	    MOVE(2, 10),
	    OP(BPF_ALU64 | BPF_ADD | BPF_K, 2, 0, 0, -4),
	    OP(BPF_LD | BPF_DW | BPF_IMM, 1, BPF_PSEUDO_MAP_FD, 0, map),
	    OP(0, 0, 0, 0, 0),
	    CALL(BPF_FUNC_map_lookup_elem),
	    OP(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 7, 0),
	    MOVE(7, 0),
	    MOVE(1, 6),
	    MOVE(2, 7),
	    SET(3, 0),
	    CALL(BPF_FUNC_sk_assign),
	    MOVE(1, 7),
	    CALL(BPF_FUNC_sk_release),
	    SET(0, SK_PASS),
	    OP(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
	};
	union bpf_attr a = {.prog_type = BPF_PROG_TYPE_SK_LOOKUP,
			    .insn_cnt = ARRAY_SIZE(code),
			    .insns = (uintptr_t)code,
			    .license = (uintptr_t)license,
			    .expected_attach_type = BPF_SK_LOOKUP};

	return bpf(BPF_PROG_LOAD, &a);
}

int ag_steer(uint32_t addr, uint16_t port, int listener)
{
	cleanup_fd int net = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	cleanup_fd int map = -1, prog = -1;
	union bpf_attr a;

	if (net < 0)
		return -errno;
	map = make_map(listener);
	if (map < 0)
		return map;
	prog = load(addr, port, map);
	if (prog < 0)
		return prog;
	a = (union bpf_attr){.link_create = {.prog_fd = (uint32_t)prog,
					     .target_fd = (uint32_t)net,
					     .attach_type = BPF_SK_LOOKUP}};
	// The link keeps the program, and that the map.
	return bpf(BPF_LINK_CREATE, &a);
}
