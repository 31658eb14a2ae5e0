// thaw-bench-floor: what restoring the ring-3 guest, and touching its memory,
// costs in bare ioctls.
//
// The floor that thaw is compared with: no cells, no page store, no protocol. It
// boots the guest once, keeps its memory as a memfd (the template) and its registers
// in variables, and then serves lines on its standard input:
//
//   restore         restores the guest with the fastest order of ioctls that we
//                   know: VM, one memory slot over a private mapping of the
//                   template, split irqchip, vCPU, CPUID, registers, KVM_RUN until
//                   the first exit. Answers the CLOCK_MONOTONIC nanoseconds of that
//                   exit, and tears the VM down again before the next line.
//   touch HOW LINE  restores it, gives it LINE, answers with its answer. HOW is
//                   what its memory is: "private", the template mapped privately;
//                   "populated", the same with every page in the page tables
//                   beforehand (written ones copied); "uffd", anonymous memory
//                   that a thread fills by 4 KiB pages from the template.
//   open            restores it and leaves it waiting for its mailbox, until
//   wake            gives it an empty line: answers when it has taken it
//                   (CLOCK_MONOTONIC ns), and
//   close           ends it.
//
// The clock starts in the client, right before it writes; so the floor pays for
// one wake-up of a waiting thread, as every server does.
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "floor_kvm.h"

static struct snapshot snap;

static void restore(void)
{
	struct machine m;
	uint64_t t;

	machine_open(&m, snap.template_fd, snap.bytes, MAP_PRIVATE);
	machine_load(&m, &snap);
	machine_run(&m);
	t = util_now_ns();
	printf("%llu\n", (unsigned long long)t);
	fflush(stdout);
	machine_close(&m);
}

// --- memory behind a userfaultfd --------------------------------------------------

struct uffd {
	int fd, stop[2];
	pthread_t thread;
	const uint8_t *from; // the template, mapped
	uint8_t *to;
};

static void *uffd_serve(void *arg)
{
	struct uffd *u = arg;
	struct pollfd p[2] = {{.fd = u->fd, .events = POLLIN},
			      {.fd = u->stop[0], .events = POLLIN}};

	while (poll(p, 2, -1) >= 0 && !p[1].revents) {
		struct uffd_msg msg;
		struct uffdio_copy c = {.len = 4096};

		if (read(u->fd, &msg, sizeof(msg)) != sizeof(msg))
			continue;
		c.dst = msg.arg.pagefault.address & ~4095ull;
		c.src = (uintptr_t)u->from + (c.dst - (uintptr_t)u->to);
		if (ioctl(u->fd, UFFDIO_COPY, &c) < 0 && errno != EEXIST)
			die("UFFDIO_COPY");
	}
	return NULL;
}

// /dev/userfaultfd, or the system call where there is no such device.
static int uffd_new(void)
{
	int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC), fd;

	if (dev < 0)
		return (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	fd = ioctl(dev, _IO(0xAA, 0), O_CLOEXEC | O_NONBLOCK);
	close(dev);
	return fd;
}

static void uffd_start(struct uffd *u, struct machine *m)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register reg = {.range = {(uintptr_t)m->mem, m->bytes},
				      .mode = UFFDIO_REGISTER_MODE_MISSING};

	u->to = m->mem;
	if (mmap(m->mem, m->bytes, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
		 0) == MAP_FAILED)
		die("mapping anonymous memory");
	u->from = mmap(NULL, m->bytes, PROT_READ, MAP_SHARED | MAP_POPULATE,
		       snap.template_fd, 0);
	u->fd = uffd_new();
	if (u->from == MAP_FAILED || u->fd < 0 || pipe2(u->stop, O_CLOEXEC) ||
	    ioctl(u->fd, UFFDIO_API, &api) < 0 ||
	    ioctl(u->fd, UFFDIO_REGISTER, &reg) < 0)
		die("userfaultfd");
	if (pthread_create(&u->thread, NULL, uffd_serve, u))
		die("a thread");
}

static void uffd_stop(struct uffd *u, struct machine *m)
{
	close(u->stop[1]); // its other end hangs up
	pthread_join(u->thread, NULL);
	close(u->stop[0]);
	close(u->fd);
	munmap((void *)(uintptr_t)u->from, m->bytes);
}

static void populate(struct machine *m, const char *line)
{
	bool write = strncmp(line, "touch write", 11) == 0;

	if (madvise(m->mem, m->bytes,
		    write ? MADV_POPULATE_WRITE : MADV_POPULATE_READ) < 0)
		die("populating");
}

static void touch(const char *args)
{
	char how[16], answer[128];
	struct machine m;
	struct uffd u;
	bool uffd;
	int at = 0;

	if (sscanf(args, "%15s %n", how, &at) != 1 || !args[at]) {
		puts("ERR touch HOW LINE");
		return;
	}
	uffd = strcmp(how, "uffd") == 0;
	machine_open(&m, snap.template_fd, snap.bytes, MAP_PRIVATE);
	if (uffd)
		uffd_start(&u, &m);
	else if (strcmp(how, "populated") == 0)
		populate(&m, args + at);
	machine_load(&m, &snap);
	machine_ask(&m, args + at, answer, sizeof(answer));
	if (uffd)
		uffd_stop(&u, &m);
	machine_close(&m);
	puts(answer);
}

static struct machine held;

static void serve(char *line)
{
	if (strcmp(line, "restore") == 0) {
		restore();
	} else if (strncmp(line, "touch ", 6) == 0) {
		touch(line + 6);
	} else if (strcmp(line, "open") == 0) {
		machine_open(&held, snap.template_fd, snap.bytes, MAP_PRIVATE);
		machine_load(&held, &snap);
		machine_run(&held);
		puts("OPEN");
	} else if (strcmp(line, "wake") == 0 && held.mem) {
		machine_mail(&held, '\n');
		machine_run(&held);
		printf("%llu\n", (unsigned long long)util_now_ns());
	} else if (strcmp(line, "close") == 0 && held.mem) {
		machine_close(&held);
		held.mem = NULL;
		puts("CLOSED");
	} else {
		puts("ERR command");
	}
	fflush(stdout);
}

int main(int argc, char **argv)
{
	char line[256];

	log_init("thaw-bench-floor", LOG_LVL_INFO);
	if (argc != 4 || util_parse_size(argv[2], &snap.bytes)) {
		fprintf(stderr, "usage: thaw-bench-floor ELF MEMORY CMDLINE\n"
				"Serves thaw-bench: lines on standard input, "
				"one answer to each.\n");
		return 2;
	}
	floor_kvm_init();
	snapshot_make(&snap, argv[1], argv[3]);
	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = '\0';
		serve(line);
	}
	return 0;
}
