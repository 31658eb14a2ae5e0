// Dockerfiles: what is taken reads the same once it is plain (which is what
// buildah gets), and lines, stages and steps are in order.
#include "dockerfile.h"

#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void check(const struct dockerfile *d, size_t len)
{
	uint16_t ports[DOCKERFILE_PORTS_MAX];
	unsigned line = 0;

	if (!d->n || !d->stages || dockerfile_ports(d, ports) > d->n * len)
		abort();
	for (size_t i = 0; i < d->n; i++) {
		const struct dockerfile_instr *in = &d->instr[i];

		if (in->line <= line || in->stage > d->stages || !*in->args ||
		    strchr(in->text, '\n') ||
		    (in->stage &&
		     dockerfile_step(d, in->stage, in->step) != in))
			abort();
		line = in->line;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct dockerfile d, again;
	struct err e = ERR_INIT;
	unsigned line;
	char *plain;

	if (dockerfile_parse(&d, (const char *)data, n, &line, &e)) {
		if (!e.msg[0] || d.instr || line > n + 1)
			abort();
		return 0;
	}
	check(&d, n);
	plain = dockerfile_plain(&d);
	if (!plain ||
	    dockerfile_parse(&again, plain, strlen(plain), &line, &e) ||
	    again.n != d.n || again.stages != d.stages)
		abort();
	for (size_t i = 0; i < d.n; i++)
		if (strcmp(d.instr[i].word, again.instr[i].word) != 0 ||
		    d.instr[i].stage != again.instr[i].stage ||
		    again.instr[i].line != i + 2)
			abort();
	dockerfile_free(&again);
	dockerfile_free(&d);
	free(plain);
	return 0;
}
