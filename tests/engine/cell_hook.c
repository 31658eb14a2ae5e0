// Stands in for thaw-cell in tests: enters the same jail with the same
// descriptors, greets thawd like a cell, and then misbehaves, as the first word
// of its mailbox says. What it found out goes to thawd as its last words.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/prctl.h>
#include <dirent.h>

#include "cellproto.h"
#include "hook_disk.h"
#include "hook_final.h"
#include "jail.h"

static char report[CP_TEXT_MAX];
static struct cp_start start;
static uint64_t mem_bytes;
static char *mem;

static void say(const char *text)
{
	uint8_t buf[CP_HEAD + CP_TEXT_MAX];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	cp_begin(&w, CP_FAILED);
	cp_put_text(&w, text);
	cp_send(CP_FD_CTL, &w, NULL, 0);
	_exit(1);
}

// Notes an attempt that succeeded.
static void escaped(bool yes, const char *what)
{
	if (yes && strlen(report) + strlen(what) + 2 < sizeof(report)) {
		strcat(report, what);
		strcat(report, "; ");
	}
}

static bool can_connect(const char *name, bool abstract)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	size_t n = strlen(name);
	bool ok;

	memcpy(a.sun_path + abstract, name, n);
	ok = connect(fd, (struct sockaddr *)&a,
		     (socklen_t)(offsetof(struct sockaddr_un, sun_path) +
				 abstract + n + !abstract)) == 0;
	close(fd);
	return ok;
}

static bool can_reach_network(uint16_t port)
{
	struct sockaddr_in a = {.sin_family = AF_INET,
				.sin_port = htons(port),
				.sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	bool ok = fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0;

	if (fd >= 0)
		close(fd);
	return ok;
}

static void try_template(int fd)
{
	char path[64], page[4096] = "hostile";
	void *p;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	escaped(open(path, O_RDWR) >= 0, "reopened the template");
	snprintf(path, sizeof(path), "/dev/fd/%d", fd);
	escaped(open(path, O_RDWR) >= 0, "reopened the template by /dev");
	escaped(openat(fd, "", O_RDWR) >= 0, "reopened the template by openat");
	escaped(pwrite(fd, page, sizeof(page), 0) > 0, "wrote the template");
	escaped(ftruncate(fd, 0) == 0, "truncated the template");
	escaped(fchmod(fd, 0777) == 0, "changed the template's mode");
	escaped(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
			  4096) == 0,
		"punched the template");
	p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	escaped(p != MAP_FAILED, "mapped the template for writing");
	p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
	escaped(p != MAP_FAILED && mprotect(p, 4096, PROT_WRITE) == 0,
		"made the template writable");
}

static void try_names(char *store, char *sock, char *abstract)
{
	struct dirent *d;
	DIR *dp = opendir("/");

	while (dp && (d = readdir(dp)))
		escaped(strcmp(d->d_name, ".") && strcmp(d->d_name, ".."),
			"saw a file in /");
	escaped(open(store, O_RDONLY) >= 0, "opened the store");
	escaped(open("/proc", O_RDONLY) >= 0, "opened /proc");
	escaped(open("/etc/passwd", O_RDONLY) >= 0, "opened /etc");
	escaped(open("..", O_RDONLY | O_DIRECTORY) >= 0 &&
		    openat(open("..", O_RDONLY | O_DIRECTORY), "etc",
			   O_RDONLY) >= 0,
		"went up");
	escaped(open("/x", O_CREAT | O_RDWR, 0600) >= 0, "made a file");
	escaped(mkdir("/y", 0700) == 0, "made a directory");
	escaped(mount("p", "/", "proc", 0, NULL) == 0, "mounted /proc");
	escaped(can_connect(sock, false), "connected to thawd's socket");
	escaped(can_connect(abstract, true), "connected by an abstract name");
}

// What two cells could meet by, in the namespaces that they share.
static void try_to_meet(void)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX, .sun_path = "\0meet"};
	int sv[2];

	escaped(socket(AF_UNIX, SOCK_DGRAM, 0) >= 0, "made a socket");
	escaped(socketpair(AF_UNIX, SOCK_STREAM, 0, sv) == 0, "made sockets");
	escaped(bind(CP_FD_DISK, (struct sockaddr *)&a, 8) == 0,
		"named its socket");
	escaped(listen(CP_FD_DISK, 1) == 0, "listens");
	escaped(syscall(SYS_shmget, 7, 4096, IPC_CREAT | 0666) >= 0, "shmget");
	escaped(syscall(SYS_semget, 7, 1, IPC_CREAT | 0666) >= 0, "semget");
	escaped(syscall(SYS_msgget, 7, IPC_CREAT | 0666) >= 0, "msgget");
	escaped(syscall(SYS_mq_open, "q", O_CREAT | O_RDWR, 0666, NULL) >= 0,
		"mq_open");
	escaped(syscall(SYS_keyctl, 0, -3, 1) >= 0, "has a keyring");
	escaped(syscall(SYS_io_uring_setup, 1, mem) >= 0 || errno != ENOSYS,
		"io_uring");
	escaped(unshare(CLONE_NEWUSER) == 0, "made a user namespace");
	if (syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL) >= 0)
		say("made a process");
}

static void try_rights(pid_t thawd)
{
	struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct cap[2];
	struct rlimit lim;
	char byte;
	struct iovec l = {&byte, 1}, r = {(void *)0x400000, 1};

	escaped(syscall(SYS_capget, &head, cap) != 0 || cap[0].effective ||
		    cap[0].permitted || cap[1].effective || cap[1].permitted,
		"has capabilities");
	escaped(prctl(PR_CAPBSET_READ, CAP_SYS_ADMIN) != 0,
		"has a bounding set");
	escaped(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1,
		"may get new privileges");
	escaped(prctl(PR_GET_DUMPABLE) != 0, "is dumpable");
	escaped(getuid() == 0 || geteuid() == 0 || getgid() == 0 ||
		    getgroups(0, NULL) != 0,
		"has root's ids or groups");
	escaped(setuid(0) == 0 || setgid(0) == 0, "became root");
	escaped(getppid() != 0 || getpid() != 1, "sees other processes");
	for (pid_t pid = 2; pid < 5; pid++)
		escaped(kill(pid, 0) == 0, "can signal a process");
	escaped(kill(thawd, 0) == 0, "can signal thawd");
	escaped(ptrace(PTRACE_ATTACH, thawd, 0, 0) == 0, "traces thawd");
	escaped(process_vm_readv(thawd, &l, 1, &r, 1, 0) >= 0, "reads thawd");
	escaped(unshare(CLONE_NEWNS) == 0, "made a mount namespace");
	escaped(getrlimit(RLIMIT_CORE, &lim) || lim.rlim_max != 0,
		"can dump core");
	escaped(getrlimit(RLIMIT_NPROC, &lim) || lim.rlim_max > 64,
		"can fork without end");
	for (int fd = CP_FD_END + 8; fd < 512; fd++)
		escaped(fcntl(fd, F_GETFD) >= 0, "inherited a descriptor");
	escaped(can_reach_network(22), "reached the network");
	// Last, because it changes what this process is.
	if (unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0)
		escaped(mount("p", "/", "proc", 0, NULL) == 0,
			"mounted /proc in a user namespace");
}

// "jail STORE SOCKET ABSTRACT PID"
static void try_everything(char *mail, const int *fds)
{
	char *store = strtok(mail + 5, " "), *sock = strtok(NULL, " ");
	char *abstract = strtok(NULL, " "), *pid = strtok(NULL, " ");

	try_template(fds[1]);
	try_names(store, sock, abstract);
	try_to_meet();
	try_rights(atoi(pid));
	say(report[0] ? report : "jailed");
}

static void send_started(void)
{
	uint8_t buf[CP_HEAD + 24];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	cp_begin(&w, CP_STARTED);
	for (int i = 0; i < 3; i++)
		wire_put_u64(&w, 1);
	cp_send(CP_FD_CTL, &w, NULL, 0);
}

static void send_mapped(void)
{
	uint8_t buf[CP_HEAD];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	int fds[CP_MAX_FDS];
	unsigned nfds;

	cp_begin(&w, CP_MAPPED);
	cp_send(CP_FD_CTL, &w, NULL, 0);
	if (cp_recv(CP_FD_BOOT, 0, buf, sizeof(buf), fds, &nfds) <= 0)
		_exit(0);
}

static void send_event(uint32_t kind)
{
	uint8_t buf[CP_HEAD + 4];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	cp_begin(&w, CP_EVENT);
	wire_put_u32(&w, kind);
	if (cp_send(CP_FD_CTL, &w, NULL, 0))
		_exit(0);
}

static void send_extents(uint32_t block, uint32_t n)
{
	uint8_t buf[CP_HEAD + 16];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	cp_begin(&w, CP_EXTENTS);
	wire_put_u32(&w, 1);
	wire_put_u32(&w, 1);
	wire_put_u32(&w, block);
	wire_put_u32(&w, n);
	cp_send(CP_FD_DISK, &w, NULL, 0);
}

// Another range than its guest's memory is registered, and faults. (A new mapping
// may lie where thawd takes the guest's memory to be: this process maps none of it.)
static void fault_outside(int uffd)
{
	char *p = mem - 4096;
	struct uffdio_register reg = {.range = {(uintptr_t)p, 4096},
				      .mode = UFFDIO_REGISTER_MODE_MISSING};

	if (ioctl(uffd, UFFDIO_REGISTER, &reg) < 0)
		say("cannot register");
	report[0] = *(volatile char *)p;
}

static void behind_final(const char *name, const int *fds)
{
	struct err e = ERR_INIT;
	const char *bad;

	if (jail_final(&e) || jail_final(&e))
		say(e.msg);
	bad = hook_final(name, fds[1]);
	say(bad ? bad : "jailed");
}

static void misbehave(char *mail, const int *fds, int uffd)
{
	if (!strncmp(mail, "disk ", 5))
		say(hook_disk(start.disk_bytes, fds[2], fds[3], mail + 5));
	if (!strncmp(mail, "jail ", 5))
		try_everything(mail, fds);
	if (!strcmp(mail, "outside"))
		fault_outside(uffd);
	if (!strncmp(mail, "final ", 6))
		behind_final(mail + 6, fds);
	send_started();
	if (!strcmp(mail, "segv")) {
		signal(SIGSEGV, SIG_DFL);
		mprotect(mem, 4096, PROT_NONE);
		*(volatile char *)mem = 1;
	}
	if (!strcmp(mail, "exit"))
		_exit(3);
	if (!strcmp(mail, "abi")) // socketpair of the 32-bit ABI
		__asm__ volatile("int $0x80" ::"a"(360), "b"(1), "c"(1), "d"(0)
				 : "memory");
	if (!strcmp(mail, "x32"))
		syscall(0x40000000 | SYS_getpid);
	if (!strcmp(mail, "garbage"))
		(void)!write(CP_FD_CTL, "garbage", 7);
	if (!strcmp(mail, "event"))
		send_event(99);
	if (!strcmp(mail, "long"))
		(void)!write(CP_FD_CTL, mem - 8192, 8192);
	if (!strcmp(mail, "disk"))
		send_extents(0, 1); // it has none
	while (!strcmp(mail, "flood"))
		send_event(CP_EV_READY);
	if (!strcmp(mail, "last"))
		say("last \x1b[31mwords\n");
	for (;;)
		pause();
}

static void greet(int uffd, unsigned vcpus)
{
	uint8_t buf[CP_HEAD + 20];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	cp_begin(&w, CP_HELLO);
	wire_put_u64(&w, (uintptr_t)mem);
	wire_put_u64(&w, mem_bytes);
	wire_put_u32(&w, vcpus);
	cp_send(CP_FD_CTL, &w, &uffd, 1);
}

int main(int argc, char **argv)
{
	static uint8_t buf[CP_MSG_MAX];
	struct jail_config jail = {
	    .first_closed = CP_FD_END, .threads = 2, .max_file = 1ull << 38};
	int fds[CP_MAX_FDS], uffd;
	unsigned nfds;
	struct wire_reader r;
	struct err e = ERR_INIT;
	char mail[512];
	ssize_t n;

	if (argc != 4)
		return 2;
	mem_bytes = strtoull(argv[1], NULL, 10) << 20;
	jail.uid = (uid_t)strtoul(argv[3], NULL, 10);
	if (jail_enter(&jail, &e))
		say(e.msg);
	uffd = ioctl(CP_FD_UFFD, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	mem = mmap(NULL, mem_bytes + 8192, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	mem += 8192;
	greet(uffd, (unsigned)atoi(argv[2]));
	n = cp_recv(CP_FD_BOOT, 0, buf, sizeof(buf), fds, &nfds);
	r = wire_reader_of(buf, n > 0 ? (size_t)n : 0);
	if (cp_head(&r) != CP_START_THAW ||
	    cp_get_start(&r, CP_START_THAW, &start))
		say("no start");
	n = (ssize_t)MIN(start.mailbox_len, sizeof(mail) - 1);
	memcpy(mail, start.mailbox, (size_t)n);
	mail[n] = '\0';
	if (start.flags & CP_F_TWO_STEP)
		send_mapped();
	misbehave(mail, fds, uffd);
}
