// What a sample costs beside its time.
#include "bench.h"

void cost_begin(struct cost *c, const struct daemon *d)
{
	if (!c->thawd)
		c->thawd = daemon_main_pid(d);
	c->cpu0 = host_cpu_ns(c->thawd);
	c->read0 = host_disk_read();
}

static double usage(const json_t *vm, const char *member)
{
	const json_t *u = json_object_get(json_object_get(vm, "thaw"), "usage");

	return (double)json_integer_value(json_object_get(u, member));
}

int cost_end(struct cost *c, const struct daemon *d, const struct microvm *vm,
	     struct err *e)
{
	// Before the inspection, which costs too.
	uint64_t cpu = host_cpu_ns(c->thawd) - c->cpu0 + host_cpu_ns(vm->pid);
	uint64_t disk = host_disk_read() - c->read0, minor, major;
	json_t *j = NULL;
	int rc;

	host_faults(vm->pid, &minor, &major);
	rc = microvm_inspect(d, vm, &j, e);
	if (rc)
		return rc;
	samples_add(&c->cpu_ms, (double)cpu / 1e6);
	samples_add(&c->read, (double)disk);
	samples_add(&c->minor, (double)minor);
	samples_add(&c->major, (double)major);
	samples_add(&c->faults, usage(j, "faults"));
	samples_add(&c->fault_pages, usage(j, "faultPages"));
	if (vm->t1 > vm->t0)
		samples_add(&c->t1_ms, (double)(vm->t1 - vm->t0) / 1e6);
	if (vm->t2 > vm->t0)
		samples_add(&c->t2_ms, (double)(vm->t2 - vm->t0) / 1e6);
	json_decref(j);
	return 0;
}

void cost_report(struct cost *c, struct result *r)
{
	struct {
		const char *name;
		struct samples *s;
	} all[] = {
	    {"cpu_ms", &c->cpu_ms},
	    {"faults", &c->faults},
	    {"fault_pages", &c->fault_pages},
	    {"faults_minor", &c->minor},
	    {"faults_major", &c->major},
	    {"bytes_read", &c->read},
	    {"t1_ms", &c->t1_ms},
	    {"t2_ms", &c->t2_ms},
	};

	for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
		if (all[i].s->n)
			result_number(r, all[i].name,
				      samples_percentile(all[i].s, 50));
		samples_free(all[i].s);
	}
}

void busy_begin(struct busy *b)
{
	b->cpu0 = host_busy_ns();
	b->read0 = host_disk_read();
}

void busy_end(struct busy *b, size_t samples)
{
	b->cpu += host_busy_ns() - b->cpu0;
	b->read += host_disk_read() - b->read0;
	b->n += samples;
}

void busy_report(const struct busy *b, struct result *r)
{
	if (!b->n)
		return;
	result_number(r, "cpu_ms", (double)b->cpu / 1e6 / (double)b->n);
	result_number(r, "bytes_read", (double)b->read / (double)b->n);
}
