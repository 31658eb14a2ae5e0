// thawd: the trusted loop. Reads like a list of what there is, in the order in
// which it is made; the end takes it down in the opposite one.
#include "api.h"
#include "arn.h"
#include "doctor.h"
#include "endpoint.h"
#include "events.h"
#include "img.h"
#include "keeper.h"
#include "roles.h"
#include "shape.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/utsname.h>

#define STOP_MS 10000
#define STOP_POLL_MS 20
#define NOBODY 65534 // whose rights callers over TCP have

struct thawd {
	struct eng_config cfg;
	int keeper, signals, kvm_fd, uffd_fd;
	struct eng_loop *loop;
	struct eng_jobs *jobs;
	struct pgc_store *store;
	struct eng_reg *reg;
	bool fresh;
	struct eng_cells *cells;
	struct eng_roles *roles;
	struct eng_vms *vms;
	struct eng_images *images;
	struct eng_events *events;
	struct eng_endpoint *endpoint;
	struct http_server *http;
	struct api_auth *auth;
	struct http_tcp *tcp;
	struct eng_watch *signal_watch;
	struct eng_timer *stop_timer;
	uint64_t stop_by_ns;
	struct api api;
};

// --- the steps --------------------------------------------------------------

static int start_log(struct thawd *d, struct err *e)
{
	struct utsname u;

	(void)e;
	log_init("thawd", d->cfg.log_level);
	uname(&u);
	log_info("thawd %s, Linux %s, libevent %s, SQLite %s, jansson %s",
		 THAW_VERSION, u.release, http_library_version(),
		 sqlite3_libversion(), jansson_version_str());
	return 0;
}

// A microVM costs a dozen descriptors.
static int raise_limits(struct thawd *d, struct err *e)
{
	struct rlimit rl;

	(void)d;
	(void)e;
	signal(SIGPIPE, SIG_IGN);
	if (!getrlimit(RLIMIT_NOFILE, &rl) && rl.rlim_cur < rl.rlim_max) {
		rl.rlim_cur = rl.rlim_max;
		setrlimit(RLIMIT_NOFILE, &rl);
	}
	return 0;
}

static int make_dir(const char *path, mode_t mode, struct err *e)
{
	struct stat st;

	if (!mkdir(path, mode) ||
	    (errno == EEXIST && !stat(path, &st) && S_ISDIR(st.st_mode)))
		return 0;
	if (errno == EEXIST)
		errno = ENOTDIR;
	return err_sys(e, "make the directory %s", path);
}

static int make_parents(const char *path, struct err *e)
{
	cleanup_free char *copy = strdup(path);
	int rc = 0;

	for (char *p = copy ? strchr(copy + 1, '/') : NULL; p && !rc;
	     p = strchr(p + 1, '/')) {
		*p = '\0';
		rc = make_dir(copy, 0755, e);
		*p = '/';
	}
	return rc;
}

static int make_dirs(struct thawd *d, struct err *e)
{
	int rc = make_parents(d->cfg.state_dir, e);

	if (!rc)
		rc = make_dir(d->cfg.state_dir, 0700, e);
	if (!rc)
		rc = make_dir(d->cfg.store_dir, 0700, e);
	if (!rc)
		rc = make_dir(d->cfg.log_dir, 0700, e);
	if (!rc)
		rc = make_dir(d->cfg.tmp_dir, 0700, e);
	return rc ? rc : make_parents(d->cfg.socket_path, e);
}

// Forks: what follows runs in the child. Before there is any thread.
static int start_keeper(struct thawd *d, struct err *e)
{
	return eng_keeper_start(&d->keeper, e);
}

// Blocked before threads begin, so that they inherit it.
static int block_signals(struct thawd *d, struct err *e)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	d->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return d->signals < 0 ? err_sys(e, "make a signalfd") : 0;
}

static int make_loop(struct thawd *d, struct err *e)
{
	return eng_loop_create(&d->loop, e);
}

// The table of descriptors has its size before there are threads: growing it later
// waits for a grace period of RCU, 8 to 20 ms, whenever a power of two is passed.
static void grow_descriptor_table(void)
{
	struct rlimit rl;
	int fd, last = 65535;

	if (!getrlimit(RLIMIT_NOFILE, &rl) && rl.rlim_cur <= (rlim_t)last)
		last = (int)rl.rlim_cur - 1;
	fd = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, last);
	if (fd >= 0)
		close(fd);
}

static int make_jobs(struct thawd *d, struct err *e)
{
	grow_descriptor_table();
	return eng_jobs_create(&d->jobs, d->loop, d->cfg.jobs, e);
}

static int open_store(struct thawd *d, struct err *e)
{
	return pgc_store_open(&d->store, d->cfg.store_dir, NULL, e);
}

// What the builds of a killed thawd left. The store's lock is ours: nobody else
// works in here.
static int clean_tmp(struct thawd *d, struct err *e)
{
	if (eng_build_sweep(d->cfg.tmp_dir, e) || img_sweep(d->cfg.tmp_dir, e))
		log_warn("%s", e->msg); // costs space, nothing else
	return 0;
}

static int open_registry(struct thawd *d, struct err *e)
{
	return eng_reg_open(&d->reg, d->loop, d->cfg.registry_path, &d->fresh,
			    e);
}

static int open_device(const char *path, int flags)
{
	int fd = open(path, O_RDWR | O_CLOEXEC | flags);

	if (fd < 0)
		log_warn("%s: %s; no microVM can run here (thawd --doctor)",
			 path, strerror(errno));
	return fd;
}

static int make_cells(struct thawd *d, struct err *e)
{
	struct eng_cells_config c = {
	    .struct_size = sizeof(c),
	    .cell_path = d->cfg.cell_path,
	    .keeper_fd = d->keeper,
	    .uid_base = d->cfg.uid_base,
	    .shells = d->cfg.shells,
	    .blanks = d->cfg.blanks,
	    .max_cells = d->cfg.max_cells,
	    .template_budget = d->cfg.template_budget,
	};

	c.kvm_fd = d->kvm_fd = open_device("/dev/kvm", 0);
	c.uffd_fd = d->uffd_fd = open_device("/dev/userfaultfd", O_NONBLOCK);
	return eng_cells_create(&d->cells, d->loop, d->jobs, d->store, &c, e);
}

// Before anything runs: a file that cannot be used is better known now.
static int read_roles(struct thawd *d, struct err *e)
{
	return d->cfg.nroles
		   ? eng_roles_create(&d->roles, d->cfg.roles, d->cfg.nroles, e)
		   : 0;
}

static int make_vms(struct thawd *d, struct err *e)
{
	struct eng_vms_env env = {
	    .loop = d->loop,
	    .jobs = d->jobs,
	    .cells = d->cells,
	    .store = d->store,
	    .reg = d->reg,
	    .kernel_path = d->cfg.kernel_path,
	    .initrd_path = d->cfg.initrd_path,
	    .log_dir = d->cfg.log_dir,
	    .roles = d->roles,
	    .region = eng_arn_region(),
	    .memory_budget = d->cfg.memory_budget,
	    .time_scale = d->cfg.time_scale,
	};
	int rc = eng_vms_create(&d->vms, &env, e);

	return rc ? rc : eng_vms_recover(d->vms, d->fresh, e);
}

// Shells for the image that was built or run last are made before they are
// asked for.
static void want_shells(struct thawd *d)
{
	struct reg_image *const *ims;
	const struct reg_image *newest = NULL;
	const struct reg_version *v;
	size_t n;

	ims = eng_reg_images(d->reg, &n);
	for (size_t i = 0; i < n; i++) {
		if (!newest || ims[i]->updated_ms > newest->updated_ms)
			newest = ims[i];
	}
	v = newest ? eng_image_latest(newest) : NULL;
	if (v)
		eng_cells_want(d->cells, v->mem_mib, v->vcpus);
}

static int make_images(struct thawd *d, struct err *e)
{
	struct eng_images_env env = {
	    .build = {.loop = d->loop,
		      .jobs = d->jobs,
		      .cells = d->cells,
		      .store = d->store,
		      .kernel_path = d->cfg.kernel_path,
		      .initrd_path = d->cfg.initrd_path,
		      .mkdisk_path = d->cfg.mkdisk_path,
		      .tmp_dir = d->cfg.tmp_dir},
	    .img = {.loop = d->loop,
		    .jobs = d->jobs,
		    .mkroot_path = d->cfg.mkroot_path,
		    .tmp_dir = d->cfg.tmp_dir,
		    .base_store = d->cfg.bases_dir},
	    .s3 = {.endpoint = d->cfg.s3_endpoint,
		   .region = d->cfg.s3_region,
		   .credentials = d->cfg.s3_credentials},
	    .log_dir = d->cfg.log_dir,
	    .vms = d->vms,
	    .reg = d->reg,
	};
	int rc = eng_images_create(&d->images, &env, e);

	if (!rc)
		want_shells(d);
	return rc;
}

static int make_events(struct thawd *d, struct err *e)
{
	struct reg_txn *t = eng_reg_begin(d->reg);

	eng_reg_event(t, json_pack("{s:s,s:s}", "type", "thawd.started",
				   "version", THAW_VERSION));
	eng_reg_commit(t);
	return eng_events_create(&d->events, d->loop, d->reg, e);
}

static void vm_ended(void *ctx, struct reg_vm *vm)
{
	struct thawd *d = ctx;

	eng_endpoint_vm_gone(d->endpoint, vm);
}

static int make_endpoint(struct thawd *d, struct err *e)
{
	eng_vms_on_end(d->vms, vm_ended, d);
	return eng_endpoint_create(&d->endpoint, d->loop, d->vms, &d->cfg, e);
}

static int listen_http(struct thawd *d, struct err *e)
{
	struct http_config hc = {
	    .path = d->cfg.socket_path,
	    .has_group = d->cfg.has_group,
	    .group = d->cfg.group,
	    .handle = api_handle,
	    .ctx = &d->api,
	};
	int rc;

	d->api = (struct api){
	    .loop = d->loop,
	    .jobs = d->jobs,
	    .cells = d->cells,
	    .store = d->store,
	    .reg = d->reg,
	    .vms = d->vms,
	    .images = d->images,
	    .events = d->events,
	    .endpoint = d->endpoint,
	    .roles = d->roles,
	    .cfg = &d->cfg,
	    .started_ns = util_now_ns(),
	};
	rc = api_page_key(&d->api, d->cfg.state_dir, e);
	return rc ? rc : http_server_create(&d->http, d->loop, &hc, e);
}

static bool admit(void *ctx, struct http_req *r, const struct http_wire *w)
{
	struct thawd *d = ctx;

	return api_auth_admit(d->auth, r, w);
}

static void handle_remote(void *ctx, struct http_req *r)
{
	struct thawd *d = ctx;

	api_handle(&d->api, r);
}

static int listen_tcp(struct thawd *d, struct err *e)
{
	struct http_tcp_config tc = {
	    .listen = d->cfg.listen,
	    .uid = NOBODY,
	    .gid = NOBODY,
	    .admit = admit,
	    .handle = handle_remote,
	    .ctx = d,
	};
	int rc;

	if (!d->cfg.listen)
		return 0;
	rc = api_auth_create(&d->auth, d->cfg.keys_path, d->cfg.state_dir,
			     d->cfg.region, e);
	if (!rc)
		rc = http_tcp_create(&d->tcp, d->loop, &tc, e);
	if (rc)
		return rc;
	d->api.auth = d->auth;
	d->api.tcp = d->tcp;
	log_info("listening on %s, for requests signed with %s",
		 http_tcp_address(d->tcp), api_auth_path(d->auth));
	return 0;
}

// --- the end ----------------------------------------------------------------

static void stop_poll(void *ctx)
{
	struct thawd *d = ctx;
	bool busy = eng_vms_busy(d->vms) || eng_images_busy(d->images) ||
		    eng_reg_durable(d->reg) < eng_reg_queued(d->reg);

	if (busy && util_now_ns() < d->stop_by_ns)
		eng_timer_set(d->stop_timer, STOP_POLL_MS);
	else
		eng_loop_stop(d->loop);
}

static void on_signal(void *ctx, unsigned what)
{
	struct thawd *d = ctx;
	struct signalfd_siginfo si;

	(void)what;
	if (read(d->signals, &si, sizeof(si)) != sizeof(si))
		return;
	if (si.ssi_signo == SIGHUP) {
		if (d->auth)
			api_auth_reload(d->auth);
		else
			log_info("SIGHUP: there is nothing to reload");
		return;
	}
	if (d->stop_by_ns) // a second one: at once
		eng_loop_stop(d->loop);
	if (d->stop_by_ns)
		return;
	log_info("stopping: running microVMs are ended, suspended ones stay");
	d->stop_by_ns = util_now_ns() + STOP_MS * 1000000ull;
	http_server_stop(d->http);
	eng_endpoint_stop(d->endpoint);
	http_tcp_stop(d->tcp);
	eng_images_stop(d->images);
	eng_vms_stop(d->vms);
	stop_poll(d);
}

static int watch_signals(struct thawd *d, struct err *e)
{
	d->signal_watch = eng_watch_create(d->loop, d->signals, ENG_READ,
					   on_signal, d, "signal");
	d->stop_timer = eng_timer_create(d->loop, stop_poll, d, "stop");
	if (!d->signal_watch || !d->stop_timer)
		return err_set(e, -ENOMEM, "watch for signals");
	return 0;
}

static void take_down(struct thawd *d)
{
	http_server_destroy(d->http);
	eng_endpoint_destroy(ptr_steal(d->endpoint));
	http_tcp_destroy(d->tcp);
	if (d->cells)
		eng_cells_destroy(d->cells);
	if (d->jobs)
		eng_jobs_destroy(d->jobs);
	eng_images_destroy(d->images);
	eng_vms_destroy(d->vms);
	eng_roles_destroy(d->roles);
	eng_events_destroy(d->events);
	eng_reg_close(d->reg);
	pgc_store_close(d->store);
	eng_timer_destroy(d->stop_timer);
	eng_watch_destroy(d->signal_watch);
	eng_loop_destroy(d->loop);
	fd_close(&d->kvm_fd);
	fd_close(&d->uffd_fd);
	fd_close(&d->signals);
	api_auth_destroy(d->auth);
	eng_config_free(&d->cfg);
}

// --- the list ---------------------------------------------------------------

typedef int step(struct thawd *d, struct err *e);
static step *const steps[] = {
    start_log,	   raise_limits, make_dirs,  start_keeper,  block_signals,
    make_loop,	   make_jobs,	 open_store, clean_tmp,	    open_registry,
    make_cells,	   read_roles,	 make_vms,   make_images,   make_events,
    make_endpoint, listen_http,	 listen_tcp, watch_signals,
};

static int run(struct thawd *d)
{
	struct err e = ERR_INIT;

	for (size_t i = 0; i < ARRAY_SIZE(steps); i++) {
		if (steps[i](d, &e)) {
			log_err("cannot start: %s", e.msg);
			return 1;
		}
	}
	log_info("listening on %s", d->cfg.socket_path);
	eng_loop_run(d->loop);
	log_info("stopped");
	return 0;
}

static int print_openapi(void)
{
	json_t *j = shape_openapi();
	int rc = json_dumpf(j, stdout, JSON_INDENT(1)) || putchar('\n') < 0 ||
		 fflush(stdout);

	json_decref(j);
	return rc ? 1 : 0;
}

int main(int argc, char **argv)
{
	static struct thawd d = {
	    .keeper = -1, .signals = -1, .kvm_fd = -1, .uffd_fd = -1};
	struct err e = ERR_INIT;
	int rc;

	if (eng_config_parse(&d.cfg, argc, argv, &e)) {
		fprintf(stderr, "thawd: %s\n", e.msg);
		return 2;
	}
	if (d.cfg.help) {
		fputs(eng_usage, stdout);
		return 0;
	}
	if (d.cfg.version) {
		printf("thawd %s\n", THAW_VERSION);
		return 0;
	}
	if (d.cfg.openapi)
		return print_openapi();
	if (d.cfg.doctor)
		return eng_doctor_main(&d.cfg);
	rc = run(&d);
	take_down(&d);
	return rc;
}
