// The place in which builds run. What is there, all of it:
//   /usr, /bin, /lib ...  the host's programs, read-only, no devices
//   /etc                  written here: no user of the host, no secret
//   /dev                  null zero full random urandom tty, pts, shm
//   /proc, /sys           of these namespaces; /sys read-only
//   /bases                the base images' store, read-only
//   /work                 this build's folder: nosuid, nodev; /work/context,
//                         the artifact's tree, noexec besides
//   /tmp, /var/tmp        in /work
// PID 1 keeps the capabilities that buildah needs to make trees, mounts and
// users; what modules, raw I/O, tracing, time and the network's set-up take is
// gone, also for everything below. RUN steps get fewer still, from buildah.
#include "mkroot.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <net/if.h>
#include <net/route.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>

static int write_file(const char *path, const char *text, struct err *e)
{
	cleanup_fd int fd =
	    open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);

	if (fd < 0 || util_write_all(fd, text, strlen(text)))
		return err_sys(e, "writing %s of the builder's root", path);
	return 0;
}

static int make_dirs(const char *const *dirs, size_t n, struct err *e)
{
	for (size_t i = 0; i < n; i++)
		if (mkdir(dirs[i], 0755) && errno != EEXIST)
			return err_sys(e, "making %s in the builder's root",
				       dirs[i]);
	return 0;
}

static int make_etc(const struct mr_opts *o, struct err *e)
{
	static const char *const dirs[] = {"etc", "etc/containers", "etc/ssl"};
	const struct {
		const char *path, *text;
	} files[] = {
	    {"etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"},
	    {"etc/group", "root:x:0:\n"},
	    {"etc/hosts", "127.0.0.1 localhost\n"},
	    {"etc/hostname", "build\n"},
	    // slirp4netns answers there
	    {"etc/resolv.conf", o->network ? "nameserver 10.0.2.3\n" : ""},
	    {"etc/containers/policy.json",
	     "{\"default\":[{\"type\":\"insecureAcceptAnything\"}]}\n"},
	    // short names are looked for here ("localhost/") first
	    {"etc/containers/registries.conf",
	     "unqualified-search-registries = [\"docker.io\"]\n"
	     "short-name-mode = \"permissive\"\n"},
	    {"etc/containers/storage.conf",
	     o->bases ? "[storage]\ndriver = \"overlay\"\n"
			"runroot = \"/work/run\"\ngraphroot = \"/work/store\"\n"
			"[storage.options]\n"
			"additionalimagestores = [\"/bases\"]\n"
		      : "[storage]\ndriver = \"overlay\"\n"
			"runroot = \"/work/run\"\n"
			"graphroot = \"/work/store\"\n"},
	};
	int rc = make_dirs(dirs, ARRAY_SIZE(dirs), e);

	for (size_t i = 0; !rc && i < ARRAY_SIZE(files); i++)
		rc = write_file(files[i].path, files[i].text, e);
	if (!rc && o->network && access("/etc/ssl", F_OK) == 0)
		rc = mk_jail_bind("/etc/ssl", "etc/ssl",
				  MS_RDONLY | MS_NODEV | MS_NOSUID, e);
	return rc;
}

static int make_dev(struct err *e)
{
	static const struct {
		const char *name;
		unsigned minor;
	} nodes[] = {{"null", 3},   {"zero", 5},    {"full", 7},
		     {"random", 8}, {"urandom", 9}, {"tty", 0}};
	static const char *const links[][2] = {
	    {"pts/ptmx", "dev/ptmx"},
	    {"/proc/self/fd", "dev/fd"},
	    {"/proc/self/fd/0", "dev/stdin"},
	    {"/proc/self/fd/1", "dev/stdout"},
	    {"/proc/self/fd/2", "dev/stderr"}};
	char path[32];

	if (mkdir("dev", 0755) ||
	    mount("none", "dev", "tmpfs", MS_NOSUID | MS_NOEXEC,
		  "size=64k,mode=755"))
		return err_sys(e, "making the builder's /dev");
	for (size_t i = 0; i < ARRAY_SIZE(nodes); i++) {
		snprintf(path, sizeof(path), "dev/%s", nodes[i].name);
		// tty is 5:0, the others are memory's
		if (mknod(path, S_IFCHR | 0666,
			  makedev(nodes[i].minor ? 1 : 5, nodes[i].minor)) ||
		    chmod(path, 0666))
			return err_sys(e, "making the builder's /%s", path);
	}
	for (size_t i = 0; i < ARRAY_SIZE(links); i++)
		if (symlink(links[i][0], links[i][1]))
			return err_sys(e, "making the builder's %s",
				       links[i][1]);
	if (mkdir("dev/pts", 0755) || mkdir("dev/shm", 01777) ||
	    mount("none", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
		  "newinstance,ptmxmode=0666,mode=0620") ||
	    mount("none", "dev/shm", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC,
		  "size=64m,mode=1777"))
		return err_sys(e, "making the builder's /dev");
	return 0;
}

static int make_rest(const struct mr_opts *o, struct err *e)
{
	static const char *const dirs[] = {
	    "proc",	 "sys",	       "run",	     "root",
	    "var",	 "bases",      "work/tmp",   "work/run",
	    "work/home", "work/cache", "work/store", "work/context"};
	const unsigned long safe = MS_NOSUID | MS_NODEV | MS_NOEXEC;
	int rc = make_dirs(dirs, ARRAY_SIZE(dirs), e);

	if (rc)
		return rc;
	if (chmod("work/tmp", 01777) || symlink("work/tmp", "tmp") ||
	    symlink("/work/tmp", "var/tmp") ||
	    symlink("/work/cache", "var/cache")) // of short names
		return err_sys(e, "making the builder's /tmp");
	if (mount("none", "proc", "proc", safe, NULL) ||
	    mount("none", "sys", "sysfs", safe | MS_RDONLY, NULL) ||
	    mount("none", "run", "tmpfs", safe, "size=16m,mode=755"))
		return err_sys(e, "mounting the builder's /proc, /sys, /run");
	rc = mk_jail_bind("work/context", "work/context", safe, e);
	if (!rc && o->bases)
		rc = mk_jail_bind(o->bases, "bases",
				  MS_RDONLY | MS_NODEV | MS_NOSUID, e);
	return rc;
}

int mr_jail_enter(const struct mr_opts *o, struct err *e)
{
	static const int keep[] = {
	    CAP_CHOWN,	   CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH,
	    CAP_FOWNER,	   CAP_FSETID,	     CAP_KILL,
	    CAP_SETGID,	   CAP_SETUID,	     CAP_SETPCAP,
	    CAP_SETFCAP,   CAP_SYS_CHROOT,   CAP_NET_BIND_SERVICE,
	    CAP_SYS_ADMIN, CAP_MKNOD,	     -1};
	const struct rlimit file = {o->mk.max_bytes, o->mk.max_bytes};
	int rc = mk_jail_open(o->mk.work, MS_NODEV | MS_NOSUID, e);

	if (!rc)
		rc = make_etc(o, e);
	if (!rc)
		rc = make_dev(e);
	if (!rc)
		rc = make_rest(o, e);
	if (!rc)
		rc = mk_jail_close(e);
	if (rc)
		return rc;
	if (sethostname("build", 5) || setrlimit(RLIMIT_FSIZE, &file))
		return err_sys(e, "limiting the builder");
	return mk_jail_caps(keep, e);
}

// --- the network -----------------------------------------------------------

static int raise_lo(struct err *e)
{
	cleanup_fd int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct ifreq ifr = {.ifr_name = "lo"};

	ifr.ifr_flags = IFF_UP;
	if (s < 0 || ioctl(s, SIOCSIFFLAGS, &ifr))
		return err_sys(e, "raising the builder's loopback");
	return 0;
}

// Where clouds tell their machines, and whoever else asks from there, what is
// not a stranger's: link-local addresses, which no router forwards anyway, and
// two that are so in all but name (Azure's and Alibaba's). Nothing in the
// namespace may change routes once PID 1 is in its jail.
static int refuse_metadata(struct err *e)
{
	static const struct {
		uint32_t net, mask;
	} shut[] = {{0xa9fe0000, 0xffff0000},  // 169.254.0.0/16
		    {0xa83f8110, 0xffffffff},  // 168.63.129.16
		    {0x646464c8, 0xffffffff}}; // 100.100.100.200
	cleanup_fd int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	for (size_t i = 0; i < ARRAY_SIZE(shut); i++) {
		struct sockaddr_in dst = {.sin_family = AF_INET,
					  .sin_addr = {htonl(shut[i].net)}};
		struct sockaddr_in mask = {.sin_family = AF_INET,
					   .sin_addr = {htonl(shut[i].mask)}};
		struct rtentry rt = {.rt_flags = RTF_UP | RTF_REJECT};

		memcpy(&rt.rt_dst, &dst, sizeof(dst));
		memcpy(&rt.rt_genmask, &mask, sizeof(mask));
		if (s < 0 || ioctl(s, SIOCADDRT, &rt))
			return err_sys(e, "shutting metadata addresses to the "
					  "builder");
	}
	return 0;
}

static void slirp_child(pid_t builder, int host, int ready)
{
	char netns[64], fd[16];
	char *const argv[] = {"slirp4netns",
			      "--configure",
			      "--mtu=65520",
			      "--disable-host-loopback",
			      "--enable-sandbox",
			      "--enable-seccomp",
			      "--ready-fd",
			      fd,
			      "--netns-type=path",
			      netns,
			      "tap0",
			      NULL};
	char *const envp[] = {"PATH=/usr/bin:/bin", "LC_ALL=C", NULL};
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	sigset_t none;

	snprintf(netns, sizeof(netns), "/proc/%d/ns/net", (int)builder);
	snprintf(fd, sizeof(fd), "%d", ready);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	mk_die_with(builder); // died before that: the path is another's
	if (setns(host, CLONE_NEWNET) || dup2(null, 0) < 0 ||
	    dup2(null, 1) < 0 || dup2(null, 2) < 0 || fcntl(ready, F_SETFD, 0))
		_exit(126);
	execve("/usr/bin/slirp4netns", argv, envp);
	_exit(127);
}

int mr_net(const struct mr_opts *o, pid_t *helper, struct err *e)
{
	cleanup_fd int host = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	cleanup_fd int r = -1;
	pid_t builder = getpid();
	char byte;
	int p[2], rc;

	if (host < 0 || unshare(CLONE_NEWNET))
		return err_sys(e, "making the builder's network (it must run "
				  "as root)");
	rc = raise_lo(e);
	if (rc || !o->network)
		return rc;
	rc = refuse_metadata(e);
	if (rc)
		return rc;
	if (pipe2(p, O_CLOEXEC))
		return err_sys(e, "pipe");
	r = p[0];
	*helper = fork();
	if (*helper == 0)
		slirp_child(builder, host, p[1]);
	close(p[1]);
	if (*helper < 0)
		return err_sys(e, "fork");
	if (util_read_all(r, &byte, 1))
		return err_set(e, -ENOENT,
			       "a network for the build takes slirp4netns, "
			       "which %s: install it, or build without",
			       access("/usr/bin/slirp4netns", X_OK)
				   ? "is not installed"
				   : "did not start");
	return 0;
}
