// thaw-bench-uffd: serves the guest memory of one Firecracker from a file, page by page
// on demand.
//
// Firecracker connects to the socket that is standard input and sends one message: the
// userfaultfd, and JSON that says which of its addresses hold which offsets of the
// memory file. The file is mapped, not read ahead: a page that the page cache
// lacks is waited for here. A page that cannot be installed ends the program.
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base.h"

enum { MAX_REGIONS = 8 };

struct region {
	uint64_t addr, size, offset;
};

static struct region regions[MAX_REGIONS];
static size_t num_regions;

_Noreturn static void die(const char *what)
{
	log_err("%s: %m", what);
	exit(1);
}

static int receive_uffd(int sock, char *text, size_t cap)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec iov = {.iov_base = text, .iov_len = cap - 1};
	struct msghdr m = {.msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = &control,
			   .msg_controllen = sizeof(control)};
	ssize_t n = recvmsg(sock, &m, MSG_CMSG_CLOEXEC);
	struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&m) : NULL;
	int fd;

	if (!c || c->cmsg_type != SCM_RIGHTS)
		die("Firecracker's message has no userfaultfd");
	text[n] = '\0';
	memcpy(&fd, CMSG_DATA(c), sizeof(fd));
	return fd;
}

static uint64_t number(json_t *region, const char *name)
{
	json_t *v = json_object_get(region, name);

	if (!json_is_integer(v)) {
		errno = EBADMSG;
		die(name);
	}
	return (uint64_t)json_integer_value(v);
}

static void read_regions(const char *text, uint64_t file_bytes)
{
	json_t *list = json_loads(text, 0, NULL), *region;
	size_t i;

	json_array_foreach(list, i, region)
	{
		struct region *r = &regions[i];

		if (i == MAX_REGIONS)
			break;
		r->addr = number(region, "base_host_virt_addr");
		r->size = number(region, "size");
		r->offset = number(region, "offset");
		if (r->size > file_bytes || r->offset > file_bytes - r->size) {
			errno = EBADMSG;
			die("a region lies outside of the file");
		}
		num_regions = i + 1;
	}
	json_decref(list);
	errno = EBADMSG;
	if (!num_regions)
		die("Firecracker's regions");
}

static const struct region *region_of(uint64_t addr)
{
	for (size_t i = 0; i < num_regions; i++) {
		if (addr >= regions[i].addr &&
		    addr - regions[i].addr < regions[i].size)
			return &regions[i];
	}
	errno = EFAULT;
	die("a fault outside of all regions");
}

static void install(int uffd, const uint8_t *file, uint64_t addr)
{
	const struct region *r = region_of(addr);
	struct uffdio_copy copy = {
	    .dst = addr,
	    .src = (uint64_t)(uintptr_t)(file + r->offset + (addr - r->addr)),
	    .len = PAGE_SIZE_4K,
	};

	while (ioctl(uffd, UFFDIO_COPY, &copy) < 0) {
		if (errno == EEXIST)
			return;
		if (errno != EAGAIN)
			die("UFFDIO_COPY");
		copy.copy = 0;
	}
}

static void serve(int uffd, const uint8_t *file)
{
	// Reads that wait save the poll() before each.
	if (fcntl(uffd, F_SETFL, 0) < 0)
		die("fcntl");
	for (;;) {
		struct uffd_msg msg;
		ssize_t n = read(uffd, &msg, sizeof(msg));

		if (n < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (n != sizeof(msg))
			die("reading the userfaultfd");
		if (msg.event == UFFD_EVENT_PAGEFAULT)
			install(uffd, file,
				ALIGN_DOWN(msg.arg.pagefault.address,
					   (uint64_t)PAGE_SIZE_4K));
	}
}

int main(int argc, char **argv)
{
	char text[4096];
	struct stat st;
	void *file;
	int fd, sock, uffd;

	log_init("thaw-bench-uffd", LOG_LVL_INFO);
	if (argc != 2) {
		fprintf(stderr, "usage: thaw-bench-uffd FILE <SOCKET\n");
		return 2;
	}
	fd = open(argv[1], O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0)
		die(argv[1]);
	file = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (file == MAP_FAILED)
		die("mapping the file");
	sock = accept4(STDIN_FILENO, NULL, NULL, SOCK_CLOEXEC);
	if (sock < 0)
		die("accept");
	uffd = receive_uffd(sock, text, sizeof(text));
	read_regions(text, (uint64_t)st.st_size);
	serve(uffd, file);
}
