// Firecracker, a process for each restore, by its API. Two backends of guest memory:
//
// firecracker-file  a private mapping of the memory file
// firecracker-uffd  userfaultfd, with a handler of ours (uffd_handler.c) that copies
//                   page by page on demand, as the handler in Firecracker's own
//                   examples does; it is started before the clock is
//
// The guest's COM1 is Firecracker's standard input and output. What is said to it
// before it runs waits in the emulated UART's queue (64 bytes), so the clock does not
// wait for us.
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "vmmproc.h"

struct firecracker {
	struct peer_spec spec;
	bool uffd;
	struct vmmproc proc, handler;
	struct vmmproc_files files;
	int api; // or -1
	char sock[200], memory[200], vmstate[200], uffd_sock[200];
};

static void end(struct firecracker *f, double *cpu_ms)
{
	vmmproc_end(&f->proc, cpu_ms);
	vmmproc_end(&f->handler, cpu_ms);
	fd_close(&f->api);
	unlink(f->sock);
	unlink(f->uffd_sock);
}

static int launch(struct firecracker *f, struct err *e)
{
	char log[256];
	char *argv[] = {(char *)(uintptr_t)f->spec.binary,
			"--api-sock",
			f->sock,
			"--no-seccomp",
			"--level",
			"Error",
			"--log-path",
			"/dev/stderr",
			NULL};
	int to[2] = {-1, -1}, from[2] = {-1, -1}, rc;

	rc = vmmproc_path(log, sizeof(log), &f->spec, "log");
	if (rc)
		return err_wrap(e, rc, "%s", f->spec.dir);
	if (pipe2(to, O_CLOEXEC) < 0 || pipe2(from, O_CLOEXEC) < 0)
		return err_sys(e, "cannot make pipes");
	rc = vmmproc_start(&f->proc, log, argv, (int[]){to[0], from[1]}, 2, e);
	close(to[0]);
	close(from[1]);
	f->proc.to = to[1];
	f->proc.from = from[0];
	return rc;
}

static int put(struct firecracker *f, struct err *e, const char *path,
	       const char *fmt, ...) __attribute__((format(printf, 4, 5)));
static int put(struct firecracker *f, struct err *e, const char *path,
	       const char *fmt, ...)
{
	char body[1024];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(body, sizeof(body), fmt, ap);
	va_end(ap);
	if (n < 0 || n >= (int)sizeof(body))
		return err_set(e, -E2BIG, "a request is too long");
	return vmmproc_api(f->api, strcmp(path, "/vm") ? "PUT" : "PATCH", path,
			   body, e);
}

static int boot(struct firecracker *f, struct err *e)
{
	char cmdline[256];
	int rc = vmmproc_cmdline(cmdline, sizeof(cmdline), &f->spec, true);

	if (rc)
		return err_wrap(e, rc, "the command line");
	rc = put(f, e, "/boot-source",
		 "{\"kernel_image_path\":\"%s\",\"boot_args\":\"%s\"}",
		 f->spec.elf, cmdline);
	if (!rc)
		rc = put(f, e, "/machine-config",
			 "{\"vcpu_count\":1,\"mem_size_mib\":%u}",
			 f->spec.mem_mib);
	if (!rc)
		rc = put(f, e, "/actions",
			 "{\"action_type\":\"InstanceStart\"}");
	return rc ? rc : vmmproc_await(&f->proc, "READY", e);
}

static int boot_and_save(struct firecracker *f, struct err *e)
{
	int rc = launch(f, e);

	if (!rc)
		rc = vmmproc_connect(&f->proc, f->sock, &f->api, e);
	if (!rc)
		rc = boot(f, e);
	vmmproc_note(&f->files, &f->proc, &f->spec, (const char *[]){NULL});
	if (!rc)
		rc = put(f, e, "/vm", "{\"state\":\"Paused\"}");
	if (!rc)
		rc = put(f, e, "/snapshot/create",
			 "{\"snapshot_type\":\"Full\",\"snapshot_path\":"
			 "\"%s\",\"mem_file_path\":\"%s\"}",
			 f->vmstate, f->memory);
	rc = vmmproc_explain(&f->proc, rc, e);
	end(f, NULL);
	return rc ? rc : vmmproc_sync(&f->spec, e);
}

static int prepare(struct firecracker **out, bool uffd,
		   const struct peer_spec *spec, struct err *e)
{
	struct firecracker *f;
	int rc;

	if (!spec->binary) {
		err_set(e, 1, "no Firecracker was given (--firecracker PATH)");
		return 1;
	}
	rc = vmmproc_have(spec->binary, "firecracker", e);
	if (rc)
		return rc;
	f = calloc(1, sizeof(*f));
	if (!f)
		return err_set(e, -ENOMEM, "no memory");
	*out = f;
	f->spec = *spec;
	f->uffd = uffd;
	f->api = f->proc.to = f->proc.from = -1;
	f->handler.to = f->handler.from = -1;
	if (vmmproc_path(f->sock, 100, spec, "api.sock") ||
	    vmmproc_path(f->uffd_sock, 100, spec, "uffd.sock") ||
	    vmmproc_path(f->memory, sizeof(f->memory), spec, "memory") ||
	    vmmproc_path(f->vmstate, sizeof(f->vmstate), spec, "vmstate"))
		return err_set(e, -ENAMETOOLONG, "%s is too long", spec->dir);
	return boot_and_save(f, e) ? vmmproc_not_here(e) : 0;
}

static int prepare_file(void **state, const struct peer_spec *spec,
			struct err *e)
{
	return prepare((struct firecracker **)state, false, spec, e);
}

static int prepare_uffd(void **state, const struct peer_spec *spec,
			struct err *e)
{
	return prepare((struct firecracker **)state, true, spec, e);
}

// The handler listens before it is started: nobody has to wait for it.
static int start_handler(struct firecracker *f, struct err *e)
{
	char exe[512], log[256];
	char *argv[] = {exe, f->memory, NULL};
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	cleanup_fd int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	cleanup_fd int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(exe, sizeof(exe), "%s/thaw-bench-uffd", f->spec.bin_dir);
	snprintf(log, sizeof(log), "%s/log.uffd", f->spec.dir);
	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", f->uffd_sock);
	unlink(f->uffd_sock);
	if (null < 0 || s < 0 ||
	    bind(s, (struct sockaddr *)&sa, sizeof(sa)) < 0 || listen(s, 1) < 0)
		return err_sys(e, "cannot listen on %s", f->uffd_sock);
	return vmmproc_start(&f->handler, log, argv, (int[]){s, null}, 2, e);
}

static int load(struct firecracker *f, struct err *e)
{
	return put(f, e, "/snapshot/load",
		   "{\"snapshot_path\":\"%s\",\"mem_backend\":{"
		   "\"backend_type\":\"%s\",\"backend_path\":\"%s\"},"
		   "\"resume_vm\":true}",
		   f->vmstate, f->uffd ? "Uffd" : "File",
		   f->uffd ? f->uffd_sock : f->memory);
}

static int restore(void *state, const char *command, struct peer_sample *out,
		   struct err *e)
{
	struct firecracker *f = state;
	int rc = f->uffd ? start_handler(f, e) : 0;

	// The handler has started when the clock does.
	if (f->uffd)
		usleep(20000);
	vmmproc_warm(&f->files);
	*out = (struct peer_sample){.t.t0 = util_now_ns()};
	if (!rc)
		rc = launch(f, e);
	if (!rc)
		rc = vmmproc_say_first(&f->proc, &f->spec, command, e);
	if (!rc)
		rc = vmmproc_connect(&f->proc, f->sock, &f->api, e);
	if (!rc)
		rc = load(f, e);
	out->t.t1 = util_now_ns();
	if (!rc)
		rc = vmmproc_measure(&f->proc, &f->spec, command, out, e);
	rc = vmmproc_explain(&f->proc, rc, e);
	if (f->uffd)
		rc = vmmproc_explain(&f->handler, rc, e);
	end(f, &out->cpu_ms);
	return rc;
}

static void finish(void *state)
{
	struct firecracker *f = state;

	if (!f)
		return;
	end(f, NULL);
	free(f);
}

extern const struct peer peer_firecracker_file, peer_firecracker_uffd;

const struct peer peer_firecracker_file = {
    .name = "firecracker-file",
    .what = "Firecracker, private mapping of the memory file",
    .option = "firecracker",
    .prepare = prepare_file,
    .restore = restore,
    .finish = finish,
};
const struct peer peer_firecracker_uffd = {
    .name = "firecracker-uffd",
    .what = "Firecracker, userfaultfd, page by page on demand",
    .option = "firecracker",
    .prepare = prepare_uffd,
    .restore = restore,
    .finish = finish,
};
