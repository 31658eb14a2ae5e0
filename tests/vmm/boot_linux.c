// vmm-boot: runs one guest straight on the vmm room, without an engine. A tool
// for development and for the real-guest tests (tests/guest/test_vmm.sh).
//
//   vmm-boot --kernel FILE [--initrd FILE] [--cmdline TEXT] [--disk FILE]
//            [--mem MIB] [--vcpus N] [--timeout S] [--mailbox TEXT]
//            [--save DIR [--save-at TEXT] [--save-and-go]]
//   vmm-boot --load DIR [--disk FILE] [--timeout S] [--mailbox TEXT] ...
//
// The console goes to stdout. With --save, the guest is captured into
// DIR/{state,mem} at its READY doorbell, or when TEXT appears on the console,
// and the program ends; with --save-and-go the guest goes on, too. Exit code: 0
// power-off (or saved), 2 reset, 3 fatal, 124 timed out, 1 anything else.
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "vmm.h"

struct options {
	const char *kernel, *initrd, *cmdline, *disk, *save, *load, *save_at;
	const char *mailbox;
	unsigned mem_mib, vcpus, timeout_s;
	bool go;
};

struct tool {
	struct options o;
	struct vmm *vm;
	int disk_fd, pipe_rd, pipe_wr;
	bool want_save;
	size_t matched; // bytes of save_at seen in a row
};

static void die(const char *what, const struct err *e)
{
	fprintf(stderr, "vmm-boot: %s: %s\n", what,
		e ? e->msg : strerror(errno));
	exit(1);
}

struct blob {
	void *p;
	size_t len;
};

static struct blob map_file(const char *path)
{
	struct blob b = {NULL, 0};
	struct stat st;
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || fstat(fd, &st) < 0)
		die(path, NULL);
	b.len = (size_t)st.st_size;
	b.p = mmap(NULL, b.len, PROT_READ, MAP_PRIVATE, fd, 0);
	if (b.p == MAP_FAILED)
		die(path, NULL);
	return b;
}

// --- a disk in a file -------------------------------------------------------

static void disk_submit(void *ctx, struct vmm_disk_req *r)
{
	struct tool *t = ctx;
	ssize_t n = r->write
			? pwritev(t->disk_fd, r->iov, r->niov, (off_t)r->off)
			: preadv(t->disk_fd, r->iov, r->niov, (off_t)r->off);

	vmm_disk_done(t->vm, r, n == (ssize_t)r->len ? 0 : -EIO);
}

static void disk_flush(void *ctx, struct vmm_disk_req *r)
{
	struct tool *t = ctx;

	vmm_disk_done(t->vm, r, fdatasync(t->disk_fd) < 0 ? -errno : 0);
}

static const struct vmm_disk_ops disk_ops = {disk_submit, disk_flush};

static void attach_disk(struct tool *t)
{
	struct err e = ERR_INIT;
	struct stat st;

	if (!t->o.disk)
		return;
	t->disk_fd = open(t->o.disk, O_RDWR | O_CLOEXEC);
	if (t->disk_fd < 0 || fstat(t->disk_fd, &st) < 0)
		die(t->o.disk, NULL);
	if (vmm_attach_disk(t->vm, (uint64_t)st.st_size & ~4095ull, &disk_ops,
			    t, &e))
		die("disk", &e);
}

// --- making and loading -----------------------------------------------------

static void create(struct tool *t, uint64_t mem_bytes, unsigned vcpus)
{
	struct err e = ERR_INIT;
	cleanup_fd int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	struct vmm_config cfg = {
	    .struct_size = sizeof(cfg),
	    .kvm_fd = kvm,
	    .mem_bytes = mem_bytes,
	    .vcpus = vcpus,
	    .console_fd = t->pipe_wr,
	};

	if (kvm < 0)
		die("/dev/kvm", NULL);
	if (vmm_create(&t->vm, &cfg, &e))
		die("creating", &e);
}

static void map_memory(struct tool *t, int fd)
{
	int flags = MAP_FIXED | MAP_PRIVATE | MAP_NORESERVE |
		    (fd < 0 ? MAP_ANONYMOUS : 0);

	if (mmap(vmm_mem_base(t->vm), vmm_mem_bytes(t->vm),
		 PROT_READ | PROT_WRITE, flags, fd, 0) == MAP_FAILED)
		die("mapping memory", NULL);
}

static void boot(struct tool *t)
{
	struct err e = ERR_INIT;
	struct blob k = map_file(t->o.kernel), i = {NULL, 0};
	struct vmm_boot b;

	if (t->o.initrd)
		i = map_file(t->o.initrd);
	create(t, (uint64_t)t->o.mem_mib << 20, t->o.vcpus);
	map_memory(t, -1);
	attach_disk(t);
	b = (struct vmm_boot){k.p, k.len, i.p, i.len, t->o.cmdline};
	if (vmm_boot(t->vm, &b, &e))
		die("booting", &e);
	munmap(k.p, k.len);
	if (i.p)
		munmap(i.p, i.len);
}

static void load(struct tool *t)
{
	struct err e = ERR_INIT;
	struct vmm_state_info info;
	struct blob s;
	char path[4096];
	uint64_t t0, t1;
	cleanup_fd int mem = -1;

	snprintf(path, sizeof(path), "%s/state", t->o.load);
	s = map_file(path);
	if (vmm_state_check(s.p, s.len, &info, &e))
		die("checking", &e);
	snprintf(path, sizeof(path), "%s/mem", t->o.load);
	mem = open(path, O_RDONLY | O_CLOEXEC);
	if (mem < 0)
		die(path, NULL);
	t0 = util_now_ns();
	create(t, info.mem_bytes, info.vcpus);
	map_memory(t, mem);
	attach_disk(t);
	t1 = util_now_ns();
	if (vmm_state_load(t->vm, s.p, s.len, &e))
		die("loading", &e);
	fprintf(stderr, "vmm-boot: shell %llu us, load %llu us\n",
		(unsigned long long)(t1 - t0) / 1000,
		(unsigned long long)(util_now_ns() - t1) / 1000);
	munmap(s.p, s.len);
}

// --- saving -----------------------------------------------------------------

static void write_file(const char *dir, const char *name, const void *p,
		       size_t len)
{
	char path[4096];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || util_write_all(fd, p, len) < 0 || close(fd) < 0)
		die(path, NULL);
}

// Memory with its holes: a page of zeroes stays one.
static void write_mem(struct tool *t)
{
	static const uint8_t zero[4096];
	uint64_t len = vmm_mem_bytes(t->vm);
	const uint8_t *p = vmm_mem_base(t->vm);
	char path[4096];
	int fd;

	snprintf(path, sizeof(path), "%s/mem", t->o.save);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)len) < 0)
		die(path, NULL);
	for (uint64_t off = 0; off < len; off += 4096)
		if (memcmp(p + off, zero, 4096) != 0 &&
		    util_pwrite_all(fd, p + off, 4096, (off_t)off) < 0)
			die(path, NULL);
	close(fd);
}

static void save(struct tool *t)
{
	static uint8_t buf[VMM_STATE_MAX];
	struct err e = ERR_INIT;
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	uint64_t t0 = util_now_ns(), t1, t2;

	if (vmm_pause(t->vm, 60000, &e))
		die("pausing", &e);
	t1 = util_now_ns();
	if (vmm_state_save(t->vm, &w, &e))
		die("saving", &e);
	t2 = util_now_ns();
	mkdir(t->o.save, 0700);
	write_file(t->o.save, "state", buf, w.len);
	write_mem(t);
	fprintf(stderr,
		"vmm-boot: saved: pause %llu us, state %llu us, %zu B\n",
		(unsigned long long)(t1 - t0) / 1000,
		(unsigned long long)(t2 - t1) / 1000, w.len);
	if (!t->o.go) {
		vmm_destroy(t->vm);
		exit(0);
	}
	t->want_save = false;
	t->o.save = NULL;
	if (vmm_unpause(t->vm, &e))
		die("unpausing", &e);
}

// --- running ----------------------------------------------------------------

static void scan(struct tool *t, const char *p, size_t n)
{
	const char *want = t->o.save_at;

	for (size_t i = 0; want && i < n; i++) {
		if (p[i] != want[t->matched])
			t->matched = 0;
		if (p[i] == want[t->matched] && !want[++t->matched]) {
			t->want_save = true;
			t->matched = 0;
		}
	}
}

static void pump_console(struct tool *t)
{
	char buf[4096];
	ssize_t n;

	while ((n = read(t->pipe_rd, buf, sizeof(buf))) > 0) {
		util_write_all(STDOUT_FILENO, buf, (size_t)n);
		scan(t, buf, (size_t)n);
	}
}

// -1: go on; otherwise the exit code.
static int handle_events(struct tool *t)
{
	struct vmm_event ev;
	int code = -1;

	while (vmm_next_event(t->vm, &ev)) {
		if (ev.kind == VMM_EV_READY && t->o.save)
			t->want_save = true;
		else if (ev.kind == VMM_EV_POWEROFF)
			code = 0;
		else if (ev.kind == VMM_EV_RESET)
			code = 2;
		else if (ev.kind == VMM_EV_FATAL)
			code = 3;
		fprintf(stderr, "vmm-boot: event %d: %s\n", ev.kind, ev.text);
	}
	return code;
}

static int run(struct tool *t)
{
	uint64_t start = util_now_ns();
	uint64_t end = start + t->o.timeout_s * 1000000000ull;
	struct err e = ERR_INIT;
	bool told = false;
	int code = -1;

	if (t->o.mailbox &&
	    vmm_mailbox_put(t->vm, t->o.mailbox, strlen(t->o.mailbox)))
		die("mailbox", NULL);
	if (vmm_spawn_vcpus(t->vm, 0, &e) || vmm_start(t->vm, &e))
		die("starting", &e);
	while (code < 0 && util_now_ns() < end) {
		struct pollfd p[2] = {{vmm_event_fd(t->vm), POLLIN, 0},
				      {t->pipe_rd, POLLIN, 0}};

		poll(p, 2, 100);
		vmm_dispatch(t->vm);
		pump_console(t);
		code = handle_events(t);
		if (!told && vmm_first_exit_ns(t->vm)) {
			fprintf(stderr, "vmm-boot: first exit after %llu us\n",
				(unsigned long long)(vmm_first_exit_ns(t->vm) -
						     start) /
				    1000);
			told = true;
		}
		if (t->want_save && t->o.save && code < 0)
			save(t);
	}
	vmm_destroy(t->vm);
	pump_console(t);
	return code < 0 ? 124 : code;
}

static void parse(struct options *o, int argc, char **argv)
{
	static const struct option longs[] = {
	    {"kernel", 1, NULL, 'k'},
	    {"initrd", 1, NULL, 'i'},
	    {"cmdline", 1, NULL, 'c'},
	    {"disk", 1, NULL, 'd'},
	    {"mem", 1, NULL, 'm'},
	    {"vcpus", 1, NULL, 'n'},
	    {"timeout", 1, NULL, 't'},
	    {"mailbox", 1, NULL, 'b'},
	    {"save", 1, NULL, 's'},
	    {"save-at", 1, NULL, 'a'},
	    {"save-and-go", 0, NULL, 'g'},
	    {"load", 1, NULL, 'l'},
	    {NULL, 0, NULL, 0},
	};
	int c;

	*o = (struct options){.mem_mib = 256, .vcpus = 1, .timeout_s = 120};
	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (c) {
		case 'k':
			o->kernel = optarg;
			break;
		case 'i':
			o->initrd = optarg;
			break;
		case 'c':
			o->cmdline = optarg;
			break;
		case 'd':
			o->disk = optarg;
			break;
		case 'm':
			o->mem_mib = (unsigned)atoi(optarg);
			break;
		case 'n':
			o->vcpus = (unsigned)atoi(optarg);
			break;
		case 't':
			o->timeout_s = (unsigned)atoi(optarg);
			break;
		case 'b':
			o->mailbox = optarg;
			break;
		case 's':
			o->save = optarg;
			break;
		case 'a':
			o->save_at = optarg;
			break;
		case 'g':
			o->go = true;
			break;
		case 'l':
			o->load = optarg;
			break;
		default:
			exit(1);
		}
	}
	if (!o->kernel == !o->load) {
		fprintf(stderr, "vmm-boot: give --kernel FILE or --load DIR\n");
		exit(1);
	}
}

int main(int argc, char **argv)
{
	struct tool t = {.disk_fd = -1};
	int fds[2];

	parse(&t.o, argc, argv);
	if (pipe2(fds, O_NONBLOCK | O_CLOEXEC) < 0)
		die("pipe", NULL);
	t.pipe_rd = fds[0];
	t.pipe_wr = fds[1];
	if (t.o.load)
		load(&t);
	else
		boot(&t);
	return run(&t);
}
