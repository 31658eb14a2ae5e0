// The doctor: every thing of the host that thaw stands on, tried out.
#include "doctor.h"

#include "vmm.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <sys/vfs.h>

#define CGROUP2_MAGIC 0x63677270
#define GIB (1ull << 30)

struct exam {
	const struct eng_config *cfg;
	json_t *checks;
	bool failed, stock;
};

enum verdict { OK, WARN, FAIL };

static void verdict(struct exam *x, const char *name, enum verdict v,
		    const char *remedy, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
static void verdict(struct exam *x, const char *name, enum verdict v,
		    const char *remedy, const char *fmt, ...)
{
	static const char *const names[] = {"ok", "warn", "fail"};
	char detail[400];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(detail, sizeof(detail), fmt, ap);
	va_end(ap);
	x->failed |= v == FAIL;
	json_array_append_new(x->checks,
			      json_pack("{s:s,s:s,s:s,s:s}", "name", name,
					"status", names[v], "detail", detail,
					"remedy", v == OK ? "" : remedy));
}

static void check_kernel(struct exam *x)
{
	struct utsname u;
	int major = 0, minor = 0;

	uname(&u);
	sscanf(u.release, "%d.%d", &major, &minor);
	if (major > 6 || (major == 6 && minor >= 1))
		verdict(x, "kernel", OK, "", "Linux %s", u.release);
	else
		verdict(x, "kernel", FAIL, "run Linux 6.1 or newer",
			"Linux %s is too old", u.release);
}

static void check_user(struct exam *x)
{
	if (geteuid() == 0)
		verdict(x, "user", OK, "", "runs as root");
	else
		verdict(x, "user", FAIL,
			"run thawd as root: it gives each cell a user id of "
			"its own",
			"runs as user %u", (unsigned)geteuid());
}

static void check_kvm(struct exam *x)
{
	cleanup_fd int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	struct vmm_host_report rep;

	if (fd < 0) {
		verdict(x, "kvm", FAIL,
			"load kvm_intel or kvm_amd, turn virtualization on in "
			"the firmware, or use scripts/kvmbox",
			"/dev/kvm: %s", strerror(errno));
		return;
	}
	vmm_host_probe(fd, &rep);
	x->stock = rep.kvm && rep.stock_kernel;
	if (!rep.kvm) {
		verdict(x, "kvm", FAIL, "use a kernel with KVM API version 12",
			"/dev/kvm does not answer as KVM");
		return;
	}
	verdict(x, "kvm", OK, "", "%s%s%s", rep.flavour,
		rep.split_irqchip ? ", split irqchip" : "",
		rep.xsave2 ? ", xsave2" : "");
	if (rep.stock_kernel)
		verdict(x, "stock-kernel", OK, "",
			"guest ring 0 runs at %.0f million instructions a "
			"second",
			rep.ring0_mips);
	else if (!rep.tsc_runs)
		verdict(x, "stock-kernel", FAIL,
			"modprobe -r kvm_amd kvm; modprobe kvm_amd (kvm_intel "
			"likewise), or use scripts/kvmbox",
			"%s", rep.why);
	else
		verdict(x, "stock-kernel", WARN,
			"run stock kernels in scripts/kvmbox; ring-3 test "
			"guests work here",
			"this KVM cannot run a stock kernel: %s", rep.why);
}

static void check_uffd(struct exam *x)
{
	cleanup_fd int dev =
	    open("/dev/userfaultfd", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	cleanup_fd int fd = -1;
	struct uffdio_api api = {.api = UFFD_API};
	uint64_t need = UFFD_FEATURE_MISSING_SHMEM;

	if (dev < 0) {
		verdict(x, "userfaultfd", FAIL,
			"needs Linux 6.1 with CONFIG_USERFAULTFD, and root",
			"/dev/userfaultfd: %s", strerror(errno));
		return;
	}
	fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) ||
	    (api.features & need) != need)
		verdict(x, "userfaultfd", FAIL,
			"needs Linux 6.1 with CONFIG_USERFAULTFD",
			"missing faults of shared memory are not offered");
	else
		verdict(x, "userfaultfd", OK, "", "/dev/userfaultfd works");
}

static void check_uring(struct exam *x)
{
	uint8_t params[120] = {0}; // struct io_uring_params
	long fd = syscall(SYS_io_uring_setup, 1, params);

	if (fd >= 0) {
		close((int)fd);
		verdict(x, "io_uring", OK, "", "io_uring works");
		return;
	}
	verdict(x, "io_uring", WARN,
		"sysctl kernel.io_uring_disabled=0 makes cold thaws faster",
		"io_uring is refused (%s); plain reads are used",
		strerror(errno));
}

static void check_memfd(struct exam *x)
{
	cleanup_fd int fd =
	    memfd_create("doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0 || ftruncate(fd, 4096) ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		verdict(x, "memfd", FAIL,
			"use a kernel with CONFIG_MEMFD_CREATE",
			"sealed memfds: %s", strerror(errno));
	else
		verdict(x, "memfd", OK, "", "sealed memfds work");
}

struct scan_arg { // struct pm_scan_arg of <linux/fs.h>, Linux 6.7
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask;
	uint64_t return_mask;
};

static void check_pagemap(struct exam *x)
{
	cleanup_fd int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	struct scan_arg arg = {.size = sizeof(arg)};

	if (fd < 0)
		verdict(x, "pagemap", FAIL, "mount /proc, run as root",
			"/proc/self/pagemap: %s", strerror(errno));
	else if (ioctl(fd, _IOWR('f', 16, struct scan_arg), &arg) < 0)
		verdict(x, "pagemap", WARN,
			"Linux 6.7 and newer scan faster (PAGEMAP_SCAN)",
			"PAGEMAP_SCAN is missing; suspend reads the whole "
			"page map");
	else
		verdict(x, "pagemap", OK, "", "PAGEMAP_SCAN works");
}

static void check_cgroup(struct exam *x)
{
	struct statfs fs;

	if (!statfs("/sys/fs/cgroup", &fs) && fs.f_type == CGROUP2_MAGIC)
		verdict(x, "cgroup", OK, "", "cgroup2 at /sys/fs/cgroup");
	else
		verdict(x, "cgroup", WARN,
			"boot with systemd.unified_cgroup_hierarchy=1",
			"/sys/fs/cgroup is not cgroup2; cells are not "
			"limited by it");
}

// The state directory, or what of it exists.
static void check_disk(struct exam *x)
{
	char path[4096];
	struct statvfs vs;
	uint64_t free_bytes;

	snprintf(path, sizeof(path), "%s", x->cfg->state_dir);
	while (statvfs(path, &vs)) {
		char *slash = strrchr(path, '/');

		if (!slash || slash == path) {
			strcpy(path, "/");
			if (statvfs(path, &vs))
				return;
			break;
		}
		*slash = '\0';
	}
	free_bytes = (uint64_t)vs.f_bavail * vs.f_frsize;
	verdict(x, "disk",
		free_bytes < GIB / 4   ? FAIL
		: free_bytes < GIB * 2 ? WARN
				       : OK,
		"make room, or choose another file system with --state",
		"%.1f GiB free for %s", (double)free_bytes / (double)GIB,
		x->cfg->state_dir);
}

static void check_memory(struct exam *x)
{
	unsigned long long kib = 0;
	FILE *f = fopen("/proc/meminfo", "re");
	char line[128];

	while (f && fgets(line, sizeof(line), f))
		sscanf(line, "MemAvailable: %llu kB", &kib);
	if (f)
		fclose(f);
	verdict(x, "memory", kib < 1024 * 1024 ? WARN : OK,
		"give the host more memory", "%.1f GiB available",
		(double)kib / 1024 / 1024);
}

static void check_program(struct exam *x, const char *name, const char *path)
{
	if (!access(path, X_OK))
		verdict(x, name, OK, "", "%s", path);
	else
		verdict(x, name, FAIL,
			"install it beside thawd or name its folder with "
			"--libexec",
			"%s: %s", path, strerror(errno));
}

static void check_guest(struct exam *x)
{
	const char *k = x->cfg->kernel_path, *i = x->cfg->initrd_path;

	if (!k || !i)
		verdict(x, "guest-kernel", WARN,
			"start thawd with --kernel and --initrd "
			"(scripts/guest-kernel, scripts/guest-initramfs)",
			"no guest kernel is configured: images of root file "
			"systems cannot be built");
	else if (access(k, R_OK) || access(i, R_OK))
		verdict(x, "guest-kernel", FAIL,
			"correct --kernel and --initrd", "%s and %s: %s", k, i,
			strerror(errno));
	else
		verdict(x, "guest-kernel", OK, "", "%s", k);
}

// What images of Dockerfiles take besides; all else works without.
static void check_dockerfiles(struct exam *x)
{
	static const char buildah[] = "/usr/bin/buildah";
	const char *mkroot = x->cfg->mkroot_path, *bases = x->cfg->bases_dir;

	if (access(buildah, X_OK))
		verdict(x, "dockerfiles", WARN, "apt install buildah",
			"%s: %s; no Dockerfile can be built", buildah,
			strerror(errno));
	else if (access(mkroot, X_OK))
		verdict(x, "dockerfiles", WARN,
			"install it beside thawd or name its folder with "
			"--libexec",
			"%s: %s; no Dockerfile can be built", mkroot,
			strerror(errno));
	else if (access(bases, F_OK))
		verdict(x, "dockerfiles", WARN,
			"scripts/base-image --store makes some",
			"no base images in %s: FROM needs a network", bases);
	else
		verdict(x, "dockerfiles", OK, "", "base images in %s", bases);
}

json_t *eng_doctor(const struct eng_config *cfg)
{
	struct exam x = {.cfg = cfg, .checks = json_array()};

	check_kernel(&x);
	check_user(&x);
	check_kvm(&x);
	check_uffd(&x);
	check_uring(&x);
	check_memfd(&x);
	check_pagemap(&x);
	check_cgroup(&x);
	check_disk(&x);
	check_memory(&x);
	check_program(&x, "thaw-cell", cfg->cell_path);
	check_program(&x, "thaw-mkdisk", cfg->mkdisk_path);
	check_guest(&x);
	check_dockerfiles(&x);
	return json_pack("{s:b,s:b,s:o}", "stock_kernel", x.stock, "ok",
			 !x.failed, "checks", x.checks);
}

int eng_doctor_main(const struct eng_config *cfg)
{
	json_t *rep = eng_doctor(cfg), *c;
	bool ok = json_is_true(json_object_get(rep, "ok"));
	size_t i;

	if (cfg->doctor_json) {
		json_dumpf(rep, stdout, JSON_INDENT(2));
		putchar('\n');
	} else {
		json_array_foreach(json_object_get(rep, "checks"), i, c)
		{
			const char *name, *status, *detail, *remedy;

			json_unpack(c, "{s:s,s:s,s:s,s:s}", "name", &name,
				    "status", &status, "detail", &detail,
				    "remedy", &remedy);
			printf("%-4s  %-13s %s\n", status, name, detail);
			if (remedy[0])
				printf("      %-13s -> %s\n", "", remedy);
		}
		printf("%s\n", ok ? "this host can run thaw"
				  : "this host cannot run thaw");
	}
	json_decref(rep);
	return ok ? 0 : 1;
}
