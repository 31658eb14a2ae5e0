// Samples, the host's facts, and the report in both of its forms.
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>

#include "bench.h"

void samples_add(struct samples *s, double v)
{
	if (s->n == s->cap) {
		s->cap = s->cap ? 2 * s->cap : 256;
		s->v = realloc(s->v, s->cap * sizeof(*s->v));
		if (!s->v)
			abort();
	}
	s->v[s->n++] = v;
}

void samples_free(struct samples *s)
{
	free(s->v);
	*s = (struct samples){0};
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

double samples_percentile(struct samples *s, double p)
{
	size_t rank;

	if (!s->n)
		return 0;
	qsort(s->v, s->n, sizeof(*s->v), by_value);
	rank = (size_t)((p / 100.0) * (double)s->n + 0.999999);
	if (rank < 1)
		rank = 1;
	return s->v[MIN(rank, s->n) - 1];
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

void report_table(FILE *out, const struct result *r, size_t n)
{
	fprintf(out, "%-20s %6s %10s %10s %10s  %-4s %10s %7s\n", "name", "n",
		"p50", "p99", "max", "unit", "floor p50", "ratio");
	for (size_t i = 0; i < n; i++) {
		double p50 = samples_percentile(r[i].samples, 50);
		double fl = r[i].floor ? samples_percentile(r[i].floor, 50) : 0;

		fprintf(out, "%-20s %6zu %10.1f %10.1f %10.1f  %-4s ",
			r[i].name, r[i].samples->n, p50,
			samples_percentile(r[i].samples, 99),
			samples_percentile(r[i].samples, 100), r[i].unit);
		if (fl > 0)
			fprintf(out, "%10.1f %7.2f\n", fl, p50 / fl);
		else
			fprintf(out, "%10s %7s\n", "-", "-");
	}
}

static double rounded(double v)
{
	return (double)(long long)(v * 1000 + 0.5) / 1000;
}

json_t *report_json(const struct result *r, size_t n)
{
	json_t *list = json_array();

	for (size_t i = 0; i < n; i++) {
		double p50 = samples_percentile(r[i].samples, 50);
		double fl = r[i].floor ? samples_percentile(r[i].floor, 50) : 0;
		json_t *o = json_pack(
		    "{s:s, s:i, s:s, s:f, s:f, s:f}", "name", r[i].name, "n",
		    (int)r[i].samples->n, "unit", r[i].unit, "p50",
		    rounded(p50), "p99",
		    rounded(samples_percentile(r[i].samples, 99)), "max",
		    rounded(samples_percentile(r[i].samples, 100)));

		json_object_set_new(o, "floor_p50",
				    fl > 0 ? json_real(rounded(fl))
					   : json_null());
		json_object_set_new(o, "ratio",
				    fl > 0 ? json_real(rounded(p50 / fl))
					   : json_null());
		json_array_append_new(list, o);
	}
	return json_pack("{s:o, s:o}", "host", host_facts(), "results", list);
}
