// QEMU's microvm machine, restored by an incoming migration from a file, in two ways:
//
// qemu         guest memory is a file that is not in the migration's stream
//              (x-ignore-shared): saved through a shared mapping of it, restored
//              over a private one ("templating"). The way QEMU is fastest.
// qemu-stream  guest memory is in the stream and is read whole before the
//              guest runs.
//
// The stream comes by a descriptor of the file itself (`fd:5`), which saves QEMU the
// shell and the cat of `exec:cat FILE`. COM1 and QMP are socket pairs that
// QEMU inherits, so that nobody waits for a socket to appear.
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "vmmproc.h"

struct qemu {
	struct peer_spec spec;
	bool template; // memory in a file of its own
	struct vmmproc proc;
	struct vmmproc_files files;
	int qmp;	 // our end, or -1
	char text[4096]; // of QMP, read and not yet taken
	size_t len;
	char memory[256], stream[256], log[256];
};

// Next message of QMP; NULL with `e` set at its end or after a minute.
static json_t *qmp_next(struct qemu *q, struct err *e)
{
	char *end;

	while (!(end = memchr(q->text, '\n', q->len))) {
		struct pollfd pf = {.fd = q->qmp, .events = POLLIN};
		ssize_t n;

		if (q->len == sizeof(q->text) ||
		    poll(&pf, 1, VMMPROC_WAIT_MS) == 0) {
			err_set(e, -ETIMEDOUT, "QMP is silent");
			return NULL;
		}
		n = read(q->qmp, q->text + q->len, sizeof(q->text) - q->len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			err_set(e, -EIO, "QEMU ended");
			return NULL;
		}
		q->len += (size_t)n;
	}
	json_t *j = json_loadb(q->text, (size_t)(end - q->text) + 1, 0, NULL);
	q->len -= (size_t)(end + 1 - q->text);
	memmove(q->text, end + 1, q->len);
	if (!j)
		err_set(e, -EIO, "QMP does not speak JSON");
	return j;
}

// Waits for an event, or, if `event` is NULL, for the answer to a command, which
// goes to *answer unless that is NULL.
static int qmp_wait(struct qemu *q, const char *event, json_t **answer,
		    struct err *e)
{
	for (;;) {
		json_t *j = qmp_next(q, e);
		const char *name;
		bool done;

		if (!j)
			return e ? e->code : -EIO;
		name = json_string_value(json_object_get(j, "event"));
		if (json_object_get(j, "error")) {
			int rc =
			    err_set(e, -EIO, "QMP: %s",
				    json_string_value(json_object_get(
					json_object_get(j, "error"), "desc")));

			json_decref(j);
			return rc;
		}
		done = event ? name && strcmp(name, event) == 0
			     : json_object_get(j, "return") != NULL;
		if (done && answer)
			*answer = json_incref(json_object_get(j, "return"));
		json_decref(j);
		if (done)
			return 0;
	}
}

static int qmp_send(struct qemu *q, const char *text, struct err *e)
{
	int rc = util_write_all(q->qmp, text, strlen(text));

	if (rc == -EPIPE)
		return err_set(e, -EIO, "QEMU ended");
	return rc ? err_wrap(e, rc, "cannot write to QMP") : 0;
}

static int qmp(struct qemu *q, const char *text, json_t **answer, struct err *e)
{
	int rc = qmp_send(q, text, e);

	return rc ? rc : qmp_wait(q, NULL, answer, e);
}

static void end(struct qemu *q, double *cpu_ms)
{
	vmmproc_end(&q->proc, cpu_ms);
	fd_close(&q->qmp);
	q->len = 0;
}

// Descriptors of the child: 3 is QMP, 4 is COM1, 5 is the stream.
static int launch(struct qemu *q, bool restore, int stream, struct err *e)
{
	char cmdline[256], mem[16], object[400], machine[160];
	char *argv[64];
	int pair[2][2] = {{-1, -1}, {-1, -1}}, n = 0, rc;
	cleanup_fd int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	rc = vmmproc_cmdline(cmdline, sizeof(cmdline), &q->spec, true);
	if (rc)
		return err_wrap(e, rc, "the command line is too long");
	snprintf(mem, sizeof(mem), "%uM", q->spec.mem_mib);
	snprintf(object, sizeof(object),
		 "memory-backend-file,id=ram,size=%uM,mem-path=%s,share=%s",
		 q->spec.mem_mib, q->memory, restore ? "off" : "on");
	snprintf(machine, sizeof(machine),
		 "microvm,accel=kvm,acpi=off,pic=off,pit=off,rtc=off,"
		 "isa-serial=on,auto-kernel-cmdline=off%s",
		 q->template ? ",memory-backend=ram" : "");
	if (null < 0 ||
	    socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair[0]) < 0 ||
	    socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair[1]) < 0)
		return err_sys(e, "cannot make QEMU's sockets");
#define ARG(a) (argv[n++] = (char *)(uintptr_t)(a))
	ARG(q->spec.binary ? q->spec.binary : "qemu-system-x86_64");
	// `host` would have QEMU set MSRs that KVM-PVM lacks, and abort.
	ARG("-M"), ARG(machine), ARG("-cpu"), ARG("qemu64,-pni");
	ARG("-m"), ARG(mem), ARG("-smp"), ARG("1");
	if (q->template)
		ARG("-object"), ARG(object);
	ARG("-nodefaults"), ARG("-no-user-config"), ARG("-no-reboot");
	ARG("-display"), ARG("none");
	ARG("-kernel"), ARG(q->spec.elf), ARG("-append"), ARG(cmdline);
	ARG("-chardev"), ARG("socket,id=qmp,fd=3");
	ARG("-mon"), ARG("chardev=qmp,mode=control");
	ARG("-chardev"), ARG("socket,id=com1,fd=4");
	ARG("-serial"), ARG("chardev:com1");
	if (restore)
		ARG("-incoming"), ARG("defer");
#undef ARG
	argv[n] = NULL;
	{
		int fds[] = {null, null, pair[0][1], pair[1][1], stream};

		rc = vmmproc_start(&q->proc, q->log, argv, fds, restore ? 5 : 4,
				   e);
	}
	q->qmp = pair[0][0];
	q->proc.to = q->proc.from = pair[1][0];
	close(pair[0][1]);
	close(pair[1][1]);
	return rc;
}

// The handshake, and what of memory is not in the stream.
static int negotiate(struct qemu *q, struct err *e)
{
	int rc = qmp(q, "{\"execute\":\"qmp_capabilities\"}", NULL, e);

	if (rc || !q->template)
		return rc;
	return qmp(q,
		   "{\"execute\":\"migrate-set-capabilities\",\"arguments\":"
		   "{\"capabilities\":[{\"capability\":\"x-ignore-shared\","
		   "\"state\":true}]}}",
		   NULL, e);
}

// The guest runs until the migration stops it: a stopped one would be restored
// stopped.
static int save(struct qemu *q, struct err *e)
{
	char text[512];
	int rc;

	snprintf(text, sizeof(text),
		 "{\"execute\":\"migrate\",\"arguments\":"
		 "{\"uri\":\"exec:cat > '%s'\"}}",
		 q->stream);
	rc = qmp(q, text, NULL, e);
	for (int i = 0; !rc; i++) {
		json_t *j = NULL;
		char status[32];

		rc = qmp(q, "{\"execute\":\"query-migrate\"}", &j, e);
		snprintf(status, sizeof(status), "%s",
			 json_string_value(json_object_get(j, "status")));
		json_decref(j);
		if (rc || strcmp(status, "completed") == 0)
			break;
		if (strcmp(status, "failed") == 0 || i > 6000)
			rc = err_set(e, -EIO, "QEMU's migration to a file: %s",
				     status);
		usleep(10000);
	}
	return rc;
}

static int boot_and_save(struct qemu *q, struct err *e)
{
	const char *const also[] = {q->spec.elf, "/etc/ld.so.cache",
				    "/usr/share/qemu/qboot.rom",
				    "/usr/share/qemu/pvh.bin", NULL};
	int rc = launch(q, false, -1, e);

	if (!rc)
		rc = negotiate(q, e);
	if (!rc)
		rc = vmmproc_await(&q->proc, "READY", e);
	vmmproc_note(&q->files, &q->proc, &q->spec, also);
	if (!rc)
		rc = save(q, e);
	rc = vmmproc_explain(&q->proc, rc, e);
	end(q, NULL);
	return rc ? rc : vmmproc_sync(&q->spec, e);
}

static int prepare(struct qemu **out, bool template,
		   const struct peer_spec *spec, struct err *e)
{
	struct qemu *q;
	int rc = vmmproc_have(
	    spec->binary ? spec->binary : "qemu-system-x86_64", "qemu", e);

	if (rc)
		return rc;
	q = calloc(1, sizeof(*q));
	if (!q)
		return err_set(e, -ENOMEM, "no memory");
	*out = q;
	q->spec = *spec;
	q->template = template;
	q->qmp = -1;
	q->proc.to = q->proc.from = -1;
	if (vmmproc_path(q->memory, sizeof(q->memory), spec, "memory") ||
	    vmmproc_path(q->stream, sizeof(q->stream), spec, "stream") ||
	    vmmproc_path(q->log, sizeof(q->log), spec, "log"))
		return err_set(e, -ENAMETOOLONG, "%s is too long", spec->dir);
	return boot_and_save(q, e);
}

static int prepare_template(void **state, const struct peer_spec *spec,
			    struct err *e)
{
	return prepare((struct qemu **)state, true, spec, e);
}

static int prepare_stream(void **state, const struct peer_spec *spec,
			  struct err *e)
{
	return prepare((struct qemu **)state, false, spec, e);
}

static int restore(void *state, const char *command, struct peer_sample *out,
		   struct err *e)
{
	struct qemu *q = state;
	cleanup_fd int stream = -1;
	int rc;

	vmmproc_warm(&q->files);
	*out = (struct peer_sample){.t.t0 = util_now_ns()};
	stream = open(q->stream, O_RDONLY | O_CLOEXEC);
	if (stream < 0)
		return err_sys(e, "cannot open %s", q->stream);
	rc = launch(q, true, stream, e);
	if (!rc)
		rc = negotiate(q, e);
	if (!rc)
		rc = qmp_send(q,
			      "{\"execute\":\"migrate-incoming\","
			      "\"arguments\":{\"uri\":\"fd:5\"}}",
			      e);
	// Bytes for COM1 that come earlier are lost when its state is loaded.
	if (!rc)
		rc = qmp_wait(q, "RESUME", NULL, e);
	out->t.t1 = util_now_ns();
	if (!rc)
		rc = vmmproc_say_first(&q->proc, &q->spec, command, e);
	if (!rc)
		rc = vmmproc_measure(&q->proc, &q->spec, command, out, e);
	rc = vmmproc_explain(&q->proc, rc, e);
	end(q, &out->cpu_ms);
	return rc;
}

static void finish(void *state)
{
	struct qemu *q = state;

	if (!q)
		return;
	end(q, NULL);
	free(q);
}

extern const struct peer peer_qemu, peer_qemu_stream;

const struct peer peer_qemu = {
    .name = "qemu",
    .what = "QEMU microvm, private mapping of a memory file (x-ignore-shared)",
    .option = "qemu",
    .prepare = prepare_template,
    .restore = restore,
    .finish = finish,
};
const struct peer peer_qemu_stream = {
    .name = "qemu-stream",
    .what = "QEMU microvm, memory in the migration's stream",
    .option = "qemu",
    .prepare = prepare_stream,
    .restore = restore,
    .finish = finish,
};
