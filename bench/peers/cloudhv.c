// Cloud Hypervisor, a process for each restore, which its command line asks for. Two
// modes:
//
// cloud-hypervisor           memory is copied whole before the guest runs
// cloud-hypervisor-ondemand  userfaultfd, served by Cloud Hypervisor itself
//
// The guest's COM1 is a pseudo terminal, which is Cloud Hypervisor's standard input
// and output: it takes input from nothing else that it inherits.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <termios.h>

#include "vmmproc.h"

struct cloudhv {
	struct peer_spec spec;
	bool ondemand;
	struct vmmproc proc;
	struct vmmproc_files files;
	int tty, api; // or -1; tty is the child's end
	char sock[200], saved[200], log[200];
};

static void end(struct cloudhv *c, double *cpu_ms)
{
	vmmproc_end(&c->proc, cpu_ms);
	fd_close(&c->api);
	fd_close(&c->tty);
	unlink(c->sock);
}

// A raw pseudo terminal: our end in proc, the other in tty.
static int open_tty(struct cloudhv *c, int *ours, struct err *e)
{
	struct termios t;
	char name[64];

	*ours = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (*ours < 0 || grantpt(*ours) < 0 || unlockpt(*ours) < 0 ||
	    ptsname_r(*ours, name, sizeof(name)) != 0)
		return err_sys(e, "cannot make a pseudo terminal");
	c->tty = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (c->tty < 0 || tcgetattr(c->tty, &t) < 0)
		return err_sys(e, "cannot open %s", name);
	cfmakeraw(&t);
	if (tcsetattr(c->tty, TCSANOW, &t) < 0)
		return err_sys(e, "cannot set up %s", name);
	return 0;
}

static int launch(struct cloudhv *c, char *const argv[], struct err *e)
{
	int ours = -1, rc = open_tty(c, &ours, e);

	if (!rc)
		rc = vmmproc_start(&c->proc, c->log, argv,
				   (int[]){c->tty, c->tty}, 2, e);
	c->proc.to = c->proc.from = ours;
	return rc;
}

static int boot(struct cloudhv *c, struct err *e)
{
	char cmdline[256], mem[32];
	char *argv[] = {(char *)(uintptr_t)c->spec.binary, "--api-socket",
			c->sock, "--kernel", (char *)(uintptr_t)c->spec.elf,
			"--cmdline", cmdline, "--memory", mem, "--cpus",
			// KVM-PVM offers nested state and then has none.
			"boot=1,nested=off", "--serial", "tty", "--console",
			"off", "--seccomp", "false", NULL};
	int rc = vmmproc_cmdline(cmdline, sizeof(cmdline), &c->spec, true);

	if (rc)
		return err_wrap(e, rc, "the command line");
	snprintf(mem, sizeof(mem), "size=%uM", c->spec.mem_mib);
	rc = launch(c, argv, e);
	return rc ? rc : vmmproc_await(&c->proc, "READY", e);
}

static int boot_and_save(struct cloudhv *c, struct err *e)
{
	char body[400];
	int rc = boot(c, e);

	vmmproc_note(&c->files, &c->proc, &c->spec,
		     (const char *[]){c->spec.elf, NULL});
	if (!rc)
		rc = vmmproc_connect(&c->proc, c->sock, &c->api, e);
	if (!rc)
		rc = vmmproc_api(c->api, "PUT", "/api/v1/vm.pause", NULL, e);
	if (!rc && mkdir(c->saved, 0700) < 0)
		rc = err_sys(e, "cannot make %s", c->saved);
	snprintf(body, sizeof(body), "{\"destination_url\":\"file://%s\"}",
		 c->saved);
	if (!rc)
		rc = vmmproc_api(c->api, "PUT", "/api/v1/vm.snapshot", body, e);
	rc = vmmproc_explain(&c->proc, rc, e);
	end(c, NULL);
	return rc ? rc : vmmproc_sync(&c->spec, e);
}

static int prepare(struct cloudhv **out, bool ondemand,
		   const struct peer_spec *spec, struct err *e)
{
	struct cloudhv *c;
	int rc;

	if (!spec->binary) {
		err_set(e, 1,
			"no Cloud Hypervisor was given "
			"(--cloud-hypervisor PATH)");
		return 1;
	}
	rc = vmmproc_have(spec->binary, "cloud-hypervisor", e);
	if (rc)
		return rc;
	c = calloc(1, sizeof(*c));
	if (!c)
		return err_set(e, -ENOMEM, "no memory");
	*out = c;
	c->spec = *spec;
	c->ondemand = ondemand;
	c->tty = c->api = c->proc.to = c->proc.from = -1;
	if (vmmproc_path(c->sock, 100, spec, "api.sock") ||
	    vmmproc_path(c->saved, sizeof(c->saved), spec, "saved") ||
	    vmmproc_path(c->log, sizeof(c->log), spec, "log"))
		return err_set(e, -ENAMETOOLONG, "%s is too long", spec->dir);
	return boot_and_save(c, e) ? vmmproc_not_here(e) : 0;
}

static int prepare_copy(void **state, const struct peer_spec *spec,
			struct err *e)
{
	return prepare((struct cloudhv **)state, false, spec, e);
}

static int prepare_ondemand(void **state, const struct peer_spec *spec,
			    struct err *e)
{
	return prepare((struct cloudhv **)state, true, spec, e);
}

static int restore(void *state, const char *command, struct peer_sample *out,
		   struct err *e)
{
	struct cloudhv *c = state;
	char from[400];
	char *argv[] = {(char *)(uintptr_t)c->spec.binary,
			"--restore",
			from,
			"--seccomp",
			"false",
			NULL};
	int rc;

	snprintf(from, sizeof(from),
		 "source_url=file://%s,resume=true,memory_restore_mode=%s",
		 c->saved, c->ondemand ? "ondemand" : "copy");
	vmmproc_warm(&c->files);
	*out = (struct peer_sample){.t.t0 = util_now_ns()};
	rc = launch(c, argv, e);
	// What is said now waits in the terminal until COM1 is there.
	if (!rc)
		rc = vmmproc_say_first(&c->proc, &c->spec, command, e);
	if (!rc)
		rc = vmmproc_measure(&c->proc, &c->spec, command, out, e);
	rc = vmmproc_explain(&c->proc, rc, e);
	end(c, &out->cpu_ms);
	return rc;
}

static void finish(void *state)
{
	struct cloudhv *c = state;

	if (!c)
		return;
	end(c, NULL);
	free(c);
}

extern const struct peer peer_cloud_hypervisor, peer_cloud_hypervisor_ondemand;

const struct peer peer_cloud_hypervisor = {
    .name = "cloud-hypervisor",
    .what = "Cloud Hypervisor, memory copied whole before the guest runs",
    .option = "cloud-hypervisor",
    .prepare = prepare_copy,
    .restore = restore,
    .finish = finish,
};
const struct peer peer_cloud_hypervisor_ondemand = {
    .name = "cloud-hypervisor-ondemand",
    .what = "Cloud Hypervisor, userfaultfd on demand",
    .option = "cloud-hypervisor",
    .prepare = prepare_ondemand,
    .restore = restore,
    .finish = finish,
};
