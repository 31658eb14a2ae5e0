// What the kernel tells about memory, processors and disks, and the host's facts.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <x86intrin.h>

#include "bench.h"

static uint64_t named_kb(const char *path, const char *name)
{
	FILE *f = fopen(path, "re");
	unsigned long long v = 0;
	size_t len = strlen(name);
	char line[256];

	while (f && fgets(line, sizeof(line), f)) {
		if (strncmp(line, name, len) == 0 && line[len] == ':') {
			sscanf(line + len + 1, "%llu", &v);
			break;
		}
	}
	if (f)
		fclose(f);
	return v;
}

uint64_t host_meminfo(const char *name)
{
	return named_kb("/proc/meminfo", name);
}

uint64_t host_pss_kb(pid_t pid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", (int)pid);
	return named_kb(path, "Pss");
}

uint64_t host_cpu_ns(pid_t pid)
{
	char path[320];
	uint64_t sum = 0;
	struct dirent *de;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	dir = opendir(path);
	while (dir && (de = readdir(dir))) {
		unsigned long long ns = 0;
		FILE *f;

		snprintf(path, sizeof(path), "/proc/%d/task/%s/schedstat",
			 (int)pid, de->d_name);
		f = fopen(path, "re");
		if (f && fscanf(f, "%llu", &ns) == 1)
			sum += ns;
		if (f)
			fclose(f);
	}
	if (dir)
		closedir(dir);
	return sum;
}

void host_faults(pid_t pid, uint64_t *minor, uint64_t *major)
{
	unsigned long long lo = 0, hi = 0;
	char path[64], line[1024];
	FILE *f;

	*minor = *major = 0;
	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	f = fopen(path, "re");
	if (!f)
		return;
	if (fgets(line, sizeof(line), f)) {
		// The name in parentheses may hold anything.
		const char *p = strrchr(line, ')');

		if (p &&
		    sscanf(p + 1, " %*c %*d %*d %*d %*d %*d %*u %llu %*u %llu",
			   &lo, &hi) == 2) {
			*minor = lo;
			*major = hi;
		}
	}
	fclose(f);
}

uint64_t host_busy_ns(void)
{
	unsigned long long user = 0, nice = 0, sys = 0, irq = 0, soft = 0;
	FILE *f = fopen("/proc/stat", "re");

	if (f && fscanf(f, "cpu %llu %llu %llu %*u %*u %llu %llu", &user, &nice,
			&sys, &irq, &soft) != 5)
		user = nice = sys = irq = soft = 0;
	if (f)
		fclose(f);
	return (user + nice + sys + irq + soft) *
	       (1000000000ull / (uint64_t)sysconf(_SC_CLK_TCK));
}

// Whole disks only: partitions would count twice. A disk has a directory
// in /sys/block.
uint64_t host_disk_read(void)
{
	FILE *f = fopen("/proc/diskstats", "re");
	uint64_t sectors = 0;
	char line[256];

	while (f && fgets(line, sizeof(line), f)) {
		char name[64], path[96];
		unsigned long long n;

		if (sscanf(line, "%*u %*u %63s %*u %*u %llu", name, &n) != 2)
			continue;
		snprintf(path, sizeof(path), "/sys/block/%s/device", name);
		if (access(path, F_OK) == 0)
			sectors += n;
	}
	if (f)
		fclose(f);
	return sectors * 512;
}

int host_drop_caches(struct err *e)
{
	cleanup_fd int fd =
	    open("/proc/sys/vm/drop_caches", O_WRONLY | O_CLOEXEC);

	sync();
	if (fd < 0 || write(fd, "3", 1) != 1)
		return err_sys(e, "cannot drop the page cache");
	return 0;
}

double host_tsc_ghz(void)
{
	static double ghz;
	uint64_t t0, t1, c0, c1;

	if (ghz > 0)
		return ghz;
	t0 = util_now_ns();
	c0 = __rdtsc();
	usleep(100000);
	t1 = util_now_ns();
	c1 = __rdtsc();
	ghz = (double)(c1 - c0) / (double)(t1 - t0);
	return ghz;
}

// First line of a file, without its newline; "" when there is none.
static void read_line(const char *path, char *buf, size_t cap)
{
	FILE *f = fopen(path, "re");

	buf[0] = '\0';
	if (!f)
		return;
	if (fgets(buf, (int)cap, f))
		buf[strcspn(buf, "\n")] = '\0';
	fclose(f);
}

static const char *kvm_flavour(void)
{
	static const char *const names[] = {"kvm_pvm", "kvm_amd", "kvm_intel"};
	char path[64];

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		snprintf(path, sizeof(path), "/sys/module/%s", names[i]);
		if (access(path, F_OK) == 0)
			return names[i];
	}
	return "unknown";
}

static void cpu_model(char *buf, size_t cap)
{
	FILE *f = fopen("/proc/cpuinfo", "re");
	char line[256];

	snprintf(buf, cap, "unknown");
	while (f && fgets(line, sizeof(line), f)) {
		char *colon = strchr(line, ':');

		if (strncmp(line, "model name", 10) != 0 || !colon)
			continue;
		colon[strcspn(colon, "\n")] = '\0';
		snprintf(buf, cap, "%s", colon + 2);
		break;
	}
	if (f)
		fclose(f);
}

static bool under_hypervisor(void)
{
	FILE *f = fopen("/proc/cpuinfo", "re");
	char line[4096];
	bool found = false;

	while (f && !found && fgets(line, sizeof(line), f))
		found = strstr(line, " hypervisor") != NULL;
	if (f)
		fclose(f);
	return found;
}

json_t *host_facts(void)
{
	struct utsname un;
	struct timespec tick;
	char cpu[200], nx[32];

	uname(&un);
	cpu_model(cpu, sizeof(cpu));
	read_line("/sys/module/kvm/parameters/nx_huge_pages", nx, sizeof(nx));
	// The coarse clock ticks once a jiffy.
	clock_getres(CLOCK_MONOTONIC_COARSE, &tick);
	return json_pack(
	    "{s:s, s:s, s:i, s:i, s:s, s:b, s:s, s:s, s:b}", "kernel",
	    un.release, "cpu", cpu, "cpus", (int)sysconf(_SC_NPROCESSORS_ONLN),
	    "hz", (int)(1000000000 / (tick.tv_nsec ? tick.tv_nsec : 1)), "kvm",
	    kvm_flavour(), "nested", under_hypervisor(), "cgroup",
	    access("/sys/fs/cgroup/cgroup.controllers", F_OK) == 0 ? "v2"
								   : "v1",
	    "nx_huge_pages", nx, "emulated", getenv("KVMBOX") != NULL);
}

static const char *fact(const json_t *host, const char *key)
{
	const char *s = json_string_value(json_object_get(host, key));

	return s && *s ? s : "unknown";
}

void host_line(const json_t *host, char *buf, size_t cap)
{
	snprintf(buf, cap,
		 "Linux %s, HZ=%d, %s%s, %d CPUs (%s), cgroup %s, "
		 "nx_huge_pages=%s%s",
		 fact(host, "kernel"),
		 (int)json_integer_value(json_object_get(host, "hz")),
		 fact(host, "kvm"),
		 json_is_true(json_object_get(host, "nested")) ? ", nested"
							       : "",
		 (int)json_integer_value(json_object_get(host, "cpus")),
		 fact(host, "cpu"), fact(host, "cgroup"),
		 fact(host, "nx_huge_pages"),
		 json_is_true(json_object_get(host, "emulated"))
		     ? "; all times are emulated"
		     : "");
}
