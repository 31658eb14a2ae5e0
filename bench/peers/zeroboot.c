// The adapter of zeroboot's way: a program of our own (zeroboot_vm.c) that stays
// alive between restores, as zeroboot does. Its guest talks through the doorbell.
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "vmmproc.h"

struct zeroboot {
	struct peer_spec spec;
	struct vmmproc proc; // to and from are the program's own
};

static int launch(struct zeroboot *z, struct err *e)
{
	char exe[512], mem[16], cmdline[256], file[256], log[256];
	char *argv[] = {exe, (char *)(uintptr_t)z->spec.elf, mem, cmdline, file,
			NULL};
	int to[2] = {-1, -1}, from[2] = {-1, -1}, rc;

	snprintf(exe, sizeof(exe), "%s/thaw-bench-zeroboot", z->spec.bin_dir);
	snprintf(mem, sizeof(mem), "%uM", z->spec.mem_mib);
	if (vmmproc_cmdline(cmdline, sizeof(cmdline), &z->spec, false) ||
	    vmmproc_path(file, sizeof(file), &z->spec, "memory") ||
	    vmmproc_path(log, sizeof(log), &z->spec, "log"))
		return err_set(e, -E2BIG,
			       "a path or the command line is "
			       "too long");
	if (pipe2(to, O_CLOEXEC) < 0 || pipe2(from, O_CLOEXEC) < 0)
		return err_sys(e, "cannot make pipes");
	rc = vmmproc_start(&z->proc, log, argv, (int[]){to[0], from[1]}, 2, e);
	close(to[0]);
	close(from[1]);
	z->proc.to = to[1];
	z->proc.from = from[0];
	return rc;
}

static int prepare(void **state, const struct peer_spec *spec, struct err *e)
{
	struct zeroboot *z = calloc(1, sizeof(*z));
	int rc;

	if (!z)
		return err_set(e, -ENOMEM, "no memory");
	*state = z;
	z->spec = *spec;
	z->proc.to = z->proc.from = -1;
	rc = launch(z, e);
	if (!rc)
		rc = vmmproc_await(&z->proc, "ready", e);
	rc = vmmproc_explain(&z->proc, rc, e);
	return rc ? rc : vmmproc_sync(spec, e);
}

// "T1 T2 T5;ANSWER;PROOF"
static int take_answer(struct zeroboot *z, const char *line,
		       struct peer_sample *out, struct err *e)
{
	const char *a = strchr(line, ';');
	const char *b = a ? strchr(a + 1, ';') : NULL;

	if (!b || sscanf(line, "%" SCNu64 " %" SCNu64 " %" SCNu64, &out->t.t1,
			 &out->t.t2, &out->t.t5) != 3)
		return err_set(e, -EIO, "thaw-bench-zeroboot says \"%.80s\"",
			       line);
	snprintf(out->answer, sizeof(out->answer), "%.*s", (int)(b - a - 1),
		 a + 1);
	return vmmproc_check_nonce(b + 1, &z->spec, e);
}

static int restore(void *state, const char *command, struct peer_sample *out,
		   struct err *e)
{
	struct zeroboot *z = state;
	char line[400];
	int rc;

	snprintf(line, sizeof(line), "%s;peek %" PRIu64, command ? command : "",
		 z->spec.nonce_at);
	*out = (struct peer_sample){.t.t0 = util_now_ns()};
	rc = vmmproc_say(&z->proc, line, e);
	if (!rc)
		rc = vmmproc_hear(&z->proc, line, sizeof(line), NULL, NULL, e);
	if (rc)
		return vmmproc_explain(&z->proc, rc, e);
	return take_answer(z, line, out, e);
}

static void finish(void *state)
{
	struct zeroboot *z = state;

	if (!z)
		return;
	vmmproc_end(&z->proc, NULL);
	free(z);
}

extern const struct peer peer_zeroboot;

const struct peer peer_zeroboot = {
    .name = "zeroboot",
    .what = "zeroboot's way, in process: irqchip and PIT first, private "
	    "mapping of a raw file (a program of our own)",
    .prepare = prepare,
    .restore = restore,
    .finish = finish,
};
