// vsock-box: one guest on the vmm room alone, for the agent's tests. Its vsock
// is a Unix socket: each connection becomes one to the agent's port.
//
//   vsock-box --kernel FILE --initrd FILE --cmdline TEXT --vsock PATH
//             [--disk FILE] [--mem MIB] [--vcpus N]
//   vsock-box --load DIR --vsock PATH [--disk FILE]
//
// The console goes to stdout. A line "save DIR" on stdin captures the guest
// into DIR/{state,mem}, which is answered by "saved" on stderr, and the guest
// goes on; the end of stdin ends it. Exit code: 0 power-off or end of stdin, 2
// reset, 3 fatal, 1 anything else.
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "agent_proto.h"
#include "vmm.h"

struct box {
	const char *kernel, *initrd, *cmdline, *load, *vsock, *disk;
	unsigned mem_mib, vcpus;
	struct vmm *vm;
	int disk_fd, listener, console_rd, console_wr;
	bool quit;
};

static void die(const char *what, const struct err *e)
{
	fprintf(stderr, "vsock-box: %s: %s\n", what,
		e ? e->msg : strerror(errno));
	exit(1);
}

static const void *map_file(const char *path, size_t *len)
{
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	void *p;

	if (fd < 0 || fstat(fd, &st) < 0)
		die(path, NULL);
	*len = (size_t)st.st_size;
	p = mmap(NULL, *len, PROT_READ, MAP_PRIVATE, fd, 0);
	if (p == MAP_FAILED)
		die(path, NULL);
	return p;
}

static void disk_submit(void *ctx, struct vmm_disk_req *r)
{
	struct box *b = ctx;
	ssize_t n = r->write
			? pwritev(b->disk_fd, r->iov, r->niov, (off_t)r->off)
			: preadv(b->disk_fd, r->iov, r->niov, (off_t)r->off);

	vmm_disk_done(b->vm, r, n == (ssize_t)r->len ? 0 : -EIO);
}

static void disk_flush(void *ctx, struct vmm_disk_req *r)
{
	vmm_disk_done(((struct box *)ctx)->vm, r, 0);
}

static void create(struct box *b, uint64_t bytes, unsigned vcpus, int mem)
{
	static const struct vmm_disk_ops ops = {disk_submit, disk_flush};
	struct err e = ERR_INIT;
	cleanup_fd int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	struct vmm_config cfg = {.struct_size = sizeof(cfg),
				 .kvm_fd = kvm,
				 .mem_bytes = bytes,
				 .vcpus = vcpus,
				 .console_fd = b->console_wr};
	struct stat st;

	if (kvm < 0 || vmm_create(&b->vm, &cfg, &e) < 0)
		die("creating", kvm < 0 ? NULL : &e);
	if (mmap(vmm_mem_base(b->vm), bytes, PROT_READ | PROT_WRITE,
		 MAP_FIXED | MAP_PRIVATE | MAP_NORESERVE |
		     (mem < 0 ? MAP_ANONYMOUS : 0),
		 mem, 0) == MAP_FAILED)
		die("mapping memory", NULL);
	if (!b->disk)
		return;
	b->disk_fd = open(b->disk, O_RDWR | O_CLOEXEC);
	if (b->disk_fd < 0 || fstat(b->disk_fd, &st) < 0)
		die(b->disk, NULL);
	if (vmm_attach_disk(b->vm, (uint64_t)st.st_size, &ops, b, &e) < 0)
		die("the disk", &e);
}

static void boot(struct box *b)
{
	struct err e = ERR_INIT;
	struct vmm_boot vb = {.cmdline = b->cmdline};

	vb.kernel = map_file(b->kernel, &vb.kernel_len);
	vb.initrd = map_file(b->initrd, &vb.initrd_len);
	create(b, (uint64_t)b->mem_mib << 20, b->vcpus, -1);
	if (vmm_boot(b->vm, &vb, &e) < 0)
		die("booting", &e);
}

static void load(struct box *b)
{
	struct err e = ERR_INIT;
	struct vmm_state_info info;
	char path[4096];
	const void *state;
	size_t len;
	cleanup_fd int mem = -1;

	snprintf(path, sizeof(path), "%s/mem", b->load);
	mem = open(path, O_RDONLY | O_CLOEXEC);
	if (mem < 0)
		die(path, NULL);
	snprintf(path, sizeof(path), "%s/state", b->load);
	state = map_file(path, &len);
	if (vmm_state_check(state, len, &info, &e) < 0)
		die("checking", &e);
	create(b, info.mem_bytes, info.vcpus, mem);
	if (vmm_state_load(b->vm, state, len, &e) < 0)
		die("loading", &e);
}

static void write_file(const char *dir, const char *name, const void *p,
		       size_t len)
{
	static const uint8_t zero[4096];
	char path[4096];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)len) < 0)
		die(path, NULL);
	for (size_t at = 0; at < len; at += sizeof(zero)) {
		size_t n = MIN(sizeof(zero), len - at);
		const uint8_t *from = (const uint8_t *)p + at;

		if (memcmp(from, zero, n) != 0 &&
		    util_pwrite_all(fd, from, n, (off_t)at) < 0)
			die(path, NULL);
	}
	close(fd);
}

static void save(struct box *b, const char *dir)
{
	static uint8_t buf[VMM_STATE_MAX];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	struct err e = ERR_INIT;

	if (vmm_pause(b->vm, 60000, &e) < 0 ||
	    vmm_state_save(b->vm, &w, &e) < 0)
		die("saving", &e);
	if (mkdir(dir, 0700) < 0)
		die(dir, NULL);
	write_file(dir, "state", buf, w.len);
	write_file(dir, "mem", vmm_mem_base(b->vm), vmm_mem_bytes(b->vm));
	if (vmm_unpause(b->vm, &e) < 0)
		die("unpausing", &e);
	fprintf(stderr, "saved\n");
}

static void listen_on(struct box *b)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};

	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", b->vsock);
	b->listener =
	    socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (b->listener < 0 ||
	    bind(b->listener, (struct sockaddr *)&sa, sizeof(sa)) < 0 ||
	    listen(b->listener, 64) < 0)
		die(b->vsock, NULL);
}

static void take_connections(struct box *b)
{
	struct err e = ERR_INIT;
	int fd;

	while ((fd = accept4(b->listener, NULL, NULL,
			     SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
		if (vmm_vsock_connect(b->vm, AGENT_PORT, fd, &e) < 0)
			fprintf(stderr, "vsock-box: %s\n", e.msg);
	}
}

static void take_command(struct box *b)
{
	static char line[4096];
	static size_t len;
	ssize_t n = read(STDIN_FILENO, line + len, sizeof(line) - 1 - len);
	char *nl;

	if (n <= 0) {
		b->quit = true;
		return;
	}
	len += (size_t)n;
	line[len] = '\0';
	nl = strchr(line, '\n');
	if (!nl)
		return;
	*nl = '\0';
	if (strncmp(line, "save ", 5) != 0)
		die("a command other than save", NULL);
	save(b, line + 5);
	len = 0;
}

static void pump_console(struct box *b)
{
	char buf[4096];
	ssize_t n;

	while ((n = read(b->console_rd, buf, sizeof(buf))) > 0)
		util_write_all(STDOUT_FILENO, buf, (size_t)n);
}

static int handle_events(struct box *b)
{
	struct vmm_event ev;
	int code = -1;

	while (vmm_next_event(b->vm, &ev)) {
		if (ev.kind == VMM_EV_POWEROFF)
			code = 0;
		else if (ev.kind == VMM_EV_RESET)
			code = 2;
		else if (ev.kind == VMM_EV_FATAL)
			code = 3;
		fprintf(stderr, "vsock-box: event %d: %s\n", ev.kind, ev.text);
	}
	return code;
}

static int run(struct box *b)
{
	struct err e = ERR_INIT;
	int code = -1;

	if (vmm_spawn_vcpus(b->vm, 0, &e) < 0 || vmm_start(b->vm, &e) < 0)
		die("starting", &e);
	while (code < 0 && !b->quit) {
		struct pollfd p[] = {{vmm_event_fd(b->vm), POLLIN, 0},
				     {b->console_rd, POLLIN, 0},
				     {b->listener, POLLIN, 0},
				     {STDIN_FILENO, POLLIN, 0}};

		poll(p, ARRAY_SIZE(p), 1000);
		vmm_dispatch(b->vm);
		pump_console(b);
		take_connections(b);
		if (p[3].revents)
			take_command(b);
		code = handle_events(b);
	}
	vmm_destroy(b->vm);
	pump_console(b);
	return code < 0 ? 0 : code;
}

static void parse(struct box *b, int argc, char **argv)
{
	static const struct option longs[] = {
	    {"kernel", 1, NULL, 'k'},  {"initrd", 1, NULL, 'i'},
	    {"cmdline", 1, NULL, 'c'}, {"disk", 1, NULL, 'd'},
	    {"mem", 1, NULL, 'm'},     {"vcpus", 1, NULL, 'n'},
	    {"load", 1, NULL, 'l'},    {"vsock", 1, NULL, 'v'},
	    {NULL, 0, NULL, 0},
	};
	const char **text[] = {
	    ['k'] = &b->kernel, ['i'] = &b->initrd, ['c'] = &b->cmdline,
	    ['d'] = &b->disk,	['l'] = &b->load,   ['v'] = &b->vsock};
	int c;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		if (c == 'm')
			b->mem_mib = (unsigned)atoi(optarg);
		else if (c == 'n')
			b->vcpus = (unsigned)atoi(optarg);
		else if (c == '?')
			exit(1);
		else
			*text[c] = optarg;
	}
	if (!b->vsock || (!b->load && (!b->kernel || !b->initrd))) {
		fprintf(stderr, "vsock-box: see the head of vsock_box.c\n");
		exit(1);
	}
}

int main(int argc, char **argv)
{
	struct box b = {.mem_mib = 256, .vcpus = 1, .disk_fd = -1};
	int fds[2];

	parse(&b, argc, argv);
	if (pipe2(fds, O_NONBLOCK | O_CLOEXEC) < 0)
		die("pipe", NULL);
	b.console_rd = fds[0];
	b.console_wr = fds[1];
	listen_on(&b);
	if (b.load)
		load(&b);
	else
		boot(&b);
	return run(&b);
}
