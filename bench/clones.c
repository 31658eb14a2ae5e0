// clones.memory: what each of many microVMs of one image takes from the host, the
// template that they share left out, process and kernel left in: the fall of
// MemAvailable, in steps of some clones. All of them have executed.
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "bench.h"

enum { MEM_MIB = 256, STEP = 16 };

// Kilobytes, host-wide unless it says otherwise.
struct memory {
	uint64_t available, slab, tables, vmalloc, percpu, stacks, shmem;
};

static struct memory memory_now(void)
{
	usleep(300000); // what the kernel does later has been done
	return (struct memory){
	    .available = host_meminfo("MemAvailable"),
	    .slab = host_meminfo("Slab"),
	    .tables = host_meminfo("PageTables"),
	    .vmalloc = host_meminfo("VmallocUsed"),
	    .percpu = host_meminfo("Percpu"),
	    .stacks = host_meminfo("KernelStack"),
	    .shmem = host_meminfo("Shmem"),
	};
}

struct fleet {
	struct daemon d;
	struct microvm *vms;
	size_t n;
	struct samples t2; // us, in order
};

static int add_clone(struct fleet *f, struct err *e)
{
	struct microvm *vm = &f->vms[f->n];
	char line[64];
	uint64_t when;
	int rc = daemon_settle(&f->d, e);

	if (!rc)
		rc = microvm_run(&f->d, "ring3", "count 7\n", vm, e);
	if (rc)
		return rc;
	f->n++;
	samples_add(&f->t2, (double)(vm->t2 - vm->t0) / 1000);
	return microvm_line(&f->d, vm, "COUNT", line, sizeof(line), &when, e);
}

// Whether all of them are still alive, each in a process of its own.
static int check_alive(const struct fleet *f, struct err *e)
{
	for (size_t i = 0; i < f->n; i++) {
		char path[32];

		snprintf(path, sizeof(path), "/proc/%d", (int)f->vms[i].pid);
		if (!f->vms[i].pid || access(path, F_OK))
			return err_set(e, -ESRCH,
				       "clone %zu of %zu is no longer alive", i,
				       f->n);
	}
	return 0;
}

static double middle(const struct samples *s, size_t from, size_t n)
{
	struct samples part = {0};
	double v;

	for (size_t i = from; i < MIN(from + n, s->n); i++)
		samples_add(&part, s->v[i]);
	v = samples_percentile(&part, 50);
	samples_free(&part);
	return v;
}

static double each(uint64_t now, uint64_t before, size_t n)
{
	return ((double)now - (double)before) / (double)n;
}

static void members(struct result *r, const struct fleet *f,
		    const struct memory *a, const struct memory *b, size_t n)
{
	double pss = 0;

	for (size_t i = f->n - MIN(f->n, (size_t)STEP); i < f->n; i++)
		pss += (double)host_pss_kb(f->vms[i].pid) / STEP;
	result_number(r, "clones", (double)f->n);
	result_number(r, "mean_kib", each(a->available, b->available, n));
	result_number(r, "pss_kib", pss);
	result_number(r, "slab_kib", each(b->slab, a->slab, n));
	result_number(r, "page_tables_kib", each(b->tables, a->tables, n));
	result_number(r, "vmalloc_kib", each(b->vmalloc, a->vmalloc, n));
	result_number(r, "percpu_kib", each(b->percpu, a->percpu, n));
	result_number(r, "kernel_stacks_kib", each(b->stacks, a->stacks, n));
	result_number(r, "shmem_kib", each(b->shmem, a->shmem, n));
	// A single one is noise: the middle of eight.
	result_number(r, "t2_first_us", middle(&f->t2, 1, 8));
	result_number(r, "t2_last_us", middle(&f->t2, f->t2.n - 8, 8));
	result_number(r, "t2_last_over_first",
		      middle(&f->t2, f->t2.n - 8, 8) / middle(&f->t2, 1, 8));
}

static int grow(struct fleet *f, struct result *r, size_t count, struct err *e)
{
	struct memory first, last, now;
	size_t base = f->n;
	int rc = 0;

	first = last = memory_now();
	while (f->n < count && !rc) {
		size_t before = f->n;

		while (f->n < MIN(before + STEP, count) && !rc)
			rc = add_clone(f, e);
		now = memory_now();
		samples_add(&r->samples,
			    each(last.available, now.available, f->n - before));
		last = now;
	}
	if (!rc)
		rc = check_alive(f, e);
	members(r, f, &first, &last, f->n - base);
	return rc;
}

static int fleet_start(struct fleet *f, const struct bench_options *o,
		       size_t count, struct err *e)
{
	int rc;

	f->vms = calloc(count, sizeof(*f->vms));
	if (!f->vms)
		return err_set(e, -ENOMEM, "no memory for %zu clones", count);
	rc = daemon_start(&f->d, o->bin_dir, 0, 2, 0, e);
	if (!rc)
		rc = daemon_build_ring3(&f->d, "ring3", "fill 1 16M 16M",
					MEM_MIB, e);
	if (!rc)
		rc = add_clone(f, e); // fills what all share
	return rc;
}

int bench_clones(const struct bench_options *o, struct report *rep,
		 struct err *e)
{
	size_t count = o->quick ? 32 : 256, many = o->quick ? 0 : 1000;
	struct fleet f = {0};
	struct result *r = report_add(rep, "KiB", "clones.memory");
	int rc = fleet_start(&f, o, MAX(count, many), e);

	if (!rc)
		rc = grow(&f, r, count, e);
	if (!rc && many) {
		r = report_add(rep, "KiB", "clones.memory.%zu", many);
		rc = grow(&f, r, many, e);
	}
	daemon_stop(&f.d);
	samples_free(&f.t2);
	free(f.vms);
	return rc;
}
