// The user space of the guest of tests/guest/test_virtio.sh, as its static
// /init. A vsock server on port 1000; the first byte of a connection says what
// it is for:
//   E  echo until end of file          S  send N MiB (u32) of pattern
//   K  take until end of file, then answer count and sum (2 * u64)
//   D  disk load: three processes write, sync and verify /dev/vda; "k" or "b"
//   Q  answer one line of counters     G  connect to the host; its errno (u8)
//   R  64 bytes of /dev/hwrng          P  power off
#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PORT = 1000, AREA = 2 << 20, BLOCK = 4096, OPS = 80, WORKERS = 3 };

struct counters {
	int disk_done, disk_bad, resets, eofs;
};
static struct counters *counters;

static void add(int *p)
{
	__atomic_fetch_add(p, 1, __ATOMIC_SEQ_CST);
}

static void load_modules(void)
{
	FILE *f = fopen("/modules.load", "r");
	char line[300];

	while (f && fgets(line, sizeof(line), f)) {
		int fd;

		line[strcspn(line, "\n")] = 0;
		fd = open(line, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || syscall(SYS_finit_module, fd, "", 0) < 0)
			fprintf(stderr, "init: %s: %s\n", line,
				strerror(errno));
		close(fd);
	}
	if (f)
		fclose(f);
}

static int write_all(int fd, const void *p, size_t n)
{
	while (n) {
		ssize_t k = write(fd, p, n);

		if (k <= 0)
			return -1;
		p = (const char *)p + k;
		n -= (size_t)k;
	}
	return 0;
}

static int read_all(int fd, void *p, size_t n)
{
	while (n) {
		ssize_t k = read(fd, p, n);

		if (k <= 0)
			return -1;
		p = (char *)p + k;
		n -= (size_t)k;
	}
	return 0;
}

// --- disk -------------------------------------------------------------------

static void fill(uint8_t *p, uint32_t block, uint32_t gen)
{
	uint32_t x = block * 2654435761u + gen * 40503u + 1;

	for (int i = 0; i < BLOCK; i += 4) {
		x ^= x << 13;
		x ^= x >> 17;
		x ^= x << 5;
		memcpy(p + i, &x, 4);
	}
}

static int verify(int fd, uint32_t block, uint32_t gen, uint8_t *buf)
{
	static uint8_t want[BLOCK];

	if (gen == 0)
		return 0;
	if (pread(fd, buf, BLOCK, (off_t)block * BLOCK) != BLOCK)
		return -1;
	fill(want, block, gen);
	return memcmp(buf, want, BLOCK) ? -1 : 0;
}

static int disk_worker(int w)
{
	enum { BLOCKS = AREA / BLOCK, MOST = 16 };
	static uint32_t gen[BLOCKS];
	uint32_t x = 77u + (uint32_t)w, first = (uint32_t)w * BLOCKS;
	int fd = open("/dev/vda", O_RDWR | O_DIRECT | O_CLOEXEC);
	uint8_t *buf = aligned_alloc(BLOCK, MOST * BLOCK);

	if (fd < 0 || !buf)
		return -1;
	for (uint32_t op = 1; op <= OPS; op++) {
		uint32_t n, at;

		x = x * 1103515245u + 12345u;
		n = 1 + (x >> 16) % MOST;
		at = (x >> 8) % (BLOCKS - MOST);
		for (uint32_t i = 0; i < n; i++) {
			gen[at + i] = op;
			fill(buf + i * BLOCK, first + at + i, op);
		}
		if (pwrite(fd, buf, n * BLOCK, (off_t)(first + at) * BLOCK) !=
		    (ssize_t)(n * BLOCK))
			return -1;
		if (op % 16 == 0 && fsync(fd) < 0)
			return -1;
		at = (x >> 4) % BLOCKS;
		if (verify(fd, first + at, gen[at], buf) < 0)
			return -1;
	}
	for (uint32_t i = 0; i < BLOCKS; i++)
		if (verify(fd, first + i, gen[i], buf) < 0)
			return -1;
	close(fd);
	free(buf);
	return 0;
}

static void disk_load(int c)
{
	int bad = 0;
	char answer;

	signal(SIGCHLD, SIG_DFL);
	for (int w = 0; w < WORKERS; w++)
		if (fork() == 0)
			_exit(disk_worker(w) < 0);
	for (int w = 0; w < WORKERS; w++) {
		int status = 0;

		wait(&status);
		bad += status != 0;
	}
	add(bad ? &counters->disk_bad : &counters->disk_done);
	printf("init: disk load %s\n", bad ? "BAD" : "fine");
	answer = bad ? 'b' : 'k';
	write_all(c, &answer, 1);
}

// --- streams ----------------------------------------------------------------

static void echo(int c)
{
	static char buf[65536];
	ssize_t n;

	while ((n = read(c, buf, sizeof(buf))) > 0)
		if (write_all(c, buf, (size_t)n) < 0) {
			n = -1;
			break;
		}
	add(n == 0 ? &counters->eofs : &counters->resets);
}

static void source(int c)
{
	static uint8_t buf[65536];
	uint32_t mib;

	if (read_all(c, &mib, 4) < 0)
		return;
	for (uint32_t i = 0; i < sizeof(buf); i++)
		buf[i] = (uint8_t)(i * 7 + i / 256);
	for (uint32_t i = 0; i < mib * 16; i++)
		if (write_all(c, buf, sizeof(buf)) < 0)
			return;
}

static void sink(int c)
{
	static uint8_t buf[65536];
	uint64_t r[2] = {0, 0};
	ssize_t n;

	while ((n = read(c, buf, sizeof(buf))) > 0) {
		for (ssize_t i = 0; i < n; i++)
			r[1] = r[1] * 31 + buf[i];
		r[0] += (uint64_t)n;
	}
	write_all(c, r, sizeof(r));
}

static void dial_host(int c)
{
	struct sockaddr_vm a = {
	    .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = 5};
	int s = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
	uint8_t e = 0;

	if (connect(s, (struct sockaddr *)&a, sizeof(a)) < 0)
		e = (uint8_t)errno;
	close(s);
	write_all(c, &e, 1);
}

static void noise(int c)
{
	char buf[64];
	int fd = open("/dev/hwrng", O_RDONLY | O_CLOEXEC);

	if (fd >= 0 && read_all(fd, buf, sizeof(buf)) == 0)
		write_all(c, buf, sizeof(buf));
	close(fd);
}

static void query(int c)
{
	dprintf(c, "disk_done=%d disk_bad=%d resets=%d eofs=%d\n",
		counters->disk_done, counters->disk_bad, counters->resets,
		counters->eofs);
}

static void serve(int c)
{
	char what = 0;

	if (read_all(c, &what, 1) < 0)
		return;
	switch (what) {
	case 'E':
		echo(c);
		break;
	case 'S':
		source(c);
		break;
	case 'K':
		sink(c);
		break;
	case 'D':
		disk_load(c);
		break;
	case 'Q':
		query(c);
		break;
	case 'G':
		dial_host(c);
		break;
	case 'R':
		noise(c);
		break;
	case 'P':
		sync();
		reboot(RB_POWER_OFF);
	}
}

int main(void)
{
	struct sockaddr_vm a = {.svm_family = AF_VSOCK,
				.svm_cid = VMADDR_CID_ANY,
				.svm_port = PORT};
	int s, fd;

	mkdir("/dev", 0755);
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sys", "/sys", "sysfs", 0, NULL);
	fd = open("/dev/console", O_RDWR);
	for (int i = 0; i < 3; i++)
		dup2(fd, i);
	setvbuf(stdout, NULL, _IOLBF, 0);
	load_modules();
	counters = mmap(NULL, sizeof(*counters), PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	signal(SIGCHLD, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	s = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (bind(s, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(s, 128) < 0)
		printf("init: vsock: %s\n", strerror(errno));
	printf("init: serving\n");
	for (;;) {
		int c = accept(s, NULL, NULL);

		if (c < 0)
			continue;
		if (fork() == 0) {
			serve(c);
			_exit(0);
		}
		close(c);
	}
}
