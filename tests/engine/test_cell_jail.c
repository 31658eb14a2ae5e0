// What a cell that has been taken over can do: nothing, and not for long.
#include <criterion/criterion.h>
#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "cell_rig.h"
#include "cells_priv.h"
#include "hook_final.h"

TestSuite(cell_jail, .timeout = 300);

static struct rig rig;
static struct rig_vm vm;
static struct pgc_id img;

static void open_with_image(void)
{
	char store[] = "/tmp/thaw-jail-XXXXXX", cmd[128];
	struct rig_opts real = {.store = store};
	struct rig_opts hook = {.store = store, .cell = "cell_hook"};

	cr_assert(mkdtemp(store));
	rig_open(&rig, &real);
	rig_image(&rig, &img, 64, 1, "fill 7 16M 1M");
	rig_close(&rig);
	rig_open(&rig, &hook);
	snprintf(cmd, sizeof(cmd), "ln -s %s %s/kept", store, rig.dir);
	cr_assert_eq(system(cmd), 0);
}

static void close_all(void)
{
	char cmd[128];

	snprintf(cmd, sizeof(cmd), "rm -rf $(readlink %s/kept)", rig.dir);
	cr_assert_eq(system(cmd), 0);
	rig_close(&rig);
}

// How many messages are a flood goes by time: so that a slow host's cell floods,
// too, it passes a thousand times as slowly while one does (CMakeLists.txt wraps the
// clock).
static uint64_t slow_since;

uint64_t __real_util_now_ns(void);
uint64_t __wrap_util_now_ns(void);
uint64_t __wrap_util_now_ns(void)
{
	uint64_t now = __real_util_now_ns();

	return slow_since ? slow_since + (now - slow_since) / 1000 : now;
}

static void run_hook(const char *mail)
{
	struct eng_thaw_req req = {
	    .base = img, .mailbox = mail, .mailbox_len = strlen(mail)};

	slow_since = strcmp(mail, "flood") ? 0 : __real_util_now_ns();
	rig_thaw_req(&rig, &vm, &req);
	cr_assert(rig_until(&rig, rig_is_gone, &vm, RIG_MS), "%s lives", mail);
}

static int listen_at(const char *name, bool abstract)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	size_t n = strlen(name);

	memcpy(a.sun_path + abstract, name, n);
	cr_assert_eq(bind(fd, (struct sockaddr *)&a,
			  (socklen_t)(offsetof(struct sockaddr_un, sun_path) +
				      abstract + n + !abstract)),
		     0);
	cr_assert_eq(listen(fd, 8), 0);
	return fd;
}

Test(cell_jail, nothing_can_be_reached)
{
	char mail[400], sock[100], abstract[64], store[128];
	int a, b;

	open_with_image();
	snprintf(sock, sizeof(sock), "%s/sock", rig.dir);
	snprintf(abstract, sizeof(abstract), "thaw-test-%d", getpid());
	snprintf(store, sizeof(store), "%s/kept", rig.dir);
	a = listen_at(sock, false);
	b = listen_at(abstract, true);
	snprintf(mail, sizeof(mail), "jail %s %s %s %d", store, sock, abstract,
		 getpid());
	run_hook(mail);
	cr_assert_eq(vm.why, ENG_END_START);
	cr_assert_str_eq(vm.detail, "jailed");
	close(a);
	close(b);
	close_all();
}

static ino_t ns_of(pid_t pid, const char *what)
{
	char path[64];
	struct stat sb;

	snprintf(path, sizeof(path), "/proc/%d/ns/%s", pid, what);
	cr_assert_eq(stat(path, &sb), 0, "%s", path);
	return sb.st_ino;
}

// The filter of system calls would hide it if cells were in the host's.
Test(cell_jail, no_namespace_is_the_hosts)
{
	static const char *const ns[] = {"mnt", "net", "ipc", "uts", "pid"};
	static struct rig_vm other;
	pid_t a, b;

	rig_open(&rig, NULL);
	rig_image(&rig, &img, 64, 1, "");
	rig_thaw(&rig, &vm, &img, NULL);
	rig_thaw(&rig, &other, &img, NULL);
	a = eng_cell_pid(vm.cell);
	b = eng_cell_pid(other.cell);
	for (size_t i = 0; i < ARRAY_SIZE(ns); i++)
		cr_assert_neq(ns_of(a, ns[i]), ns_of(getpid(), ns[i]), "%s",
			      ns[i]);
	cr_assert_neq(ns_of(a, "pid"), ns_of(b, "pid"));
	rig_kill(&vm);
	rig_kill(&other);
	rig_close(&rig);
}

Test(cell_jail, final_filter_ends_who_calls_anything_else)
{
	const char *name;
	char mail[64];

	open_with_image();
	for (unsigned i = 0; (name = hook_final_name(i)); i++) {
		snprintf(mail, sizeof(mail), "final %s", name);
		run_hook(mail);
		cr_assert_eq(vm.why, ENG_END_CRASHED, "%s: %d, %s", name,
			     vm.why, vm.detail);
		cr_assert_str_eq(vm.detail,
				 "its process called what its filter refuses "
				 "(SIGSYS)");
	}
	close_all();
}

Test(cell_jail, final_filter_allows_what_a_cell_needs)
{
	open_with_image();
	run_hook("final needed");
	cr_assert_eq(vm.why, ENG_END_START, "%d, %s", vm.why, vm.detail);
	cr_assert_str_eq(vm.detail, "jailed");
	close_all();
}

// How many filters a process's threads have: all the same, or -1.
static int filters_of(pid_t pid)
{
	char path[300], line[128];
	struct dirent *d;
	int all = -2;
	DIR *dp;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	dp = opendir(path);
	cr_assert(dp, "%s", path);
	while ((d = readdir(dp))) {
		int n = -1;
		FILE *f;

		if (d->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/proc/%d/task/%s/status", pid,
			 d->d_name);
		f = fopen(path, "re");
		cr_assert(f, "%s", path);
		while (fgets(line, sizeof(line), f))
			sscanf(line, "Seccomp_filters: %d", &n);
		fclose(f);
		all = all == -2 || all == n ? n : -1;
	}
	closedir(dp);
	return all;
}

static bool prepared_one(void *pid)
{
	for (struct cell_proc *p = rig.cells->procs; p; p = p->next) {
		if (p->state == PROC_PREPARED && !p->dying) {
			*(pid_t *)pid = p->pid;
			return true;
		}
	}
	return false;
}

// All ways to a guest: booted, thawed in a shell, in a blank, in a prepared cell.
Test(cell_jail, every_thread_of_a_guest_has_the_final_filter)
{
	static struct rig_vm booted, shell, blank, prepared;
	struct rig_opts shells = {.shells = 1}, blanks = {.blanks = 1};
	int ours = filters_of(getpid());
	char store[] = "/tmp/thaw-jail-XXXXXX", cmd[128];
	pid_t pid;

	cr_assert(mkdtemp(store));
	shells.store = blanks.store = store;
	rig_open(&rig, &shells);
	rig_image(&rig, &img, 64, 3, "");
	eng_cells_want(rig.cells, 64, 3);
	rig_boot(&rig, &booted, 64, 3, "");
	cr_assert_eq(filters_of(eng_cell_pid(booted.cell)), ours + 2);
	rig_thaw(&rig, &shell, &img, NULL);
	cr_assert_eq(filters_of(eng_cell_pid(shell.cell)), ours + 2);
	// Before anybody asked for it.
	cr_assert(rig_until(&rig, prepared_one, &pid, RIG_MS));
	cr_assert_eq(filters_of(pid), ours + 2);
	rig_thaw(&rig, &prepared, &img, NULL);
	cr_assert_eq(eng_cell_pid(prepared.cell), pid);
	cr_assert_eq(filters_of(pid), ours + 2);
	rig_kill(&booted);
	rig_kill(&shell);
	rig_kill(&prepared);
	rig_close(&rig);

	rig_open(&rig, &blanks);
	for (int i = 0; i < 8; i++) {
		rig_thaw(&rig, &blank, &img, NULL);
		cr_assert_eq(filters_of(eng_cell_pid(blank.cell)), ours + 2);
		rig_kill(&blank);
	}
	rig_close(&rig);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", store);
	cr_assert_eq(system(cmd), 0);
}

Test(cell_jail, misbehaviour_ends_the_cell)
{
	static const struct {
		const char *mail;
		enum eng_end why;
		const char *text;
	} t[] = {
	    {"outside", ENG_END_FATAL, "fault outside of its memory"},
	    {"segv", ENG_END_CRASHED, "SIGSEGV"},
	    {"exit", ENG_END_CRASHED, "status 3"},
	    {"abi", ENG_END_CRASHED, "SIGSYS"},
	    {"x32", ENG_END_CRASHED, "SIGSYS"},
	    {"garbage", ENG_END_FATAL, "message that makes no sense"},
	    {"event", ENG_END_FATAL, "message that makes no sense"},
	    {"long", ENG_END_FATAL, "message too long"},
	    {"disk", ENG_END_FATAL, "disk request that may not be"},
	    {"flood", ENG_END_FATAL, "floods"},
	    {"last", ENG_END_FATAL, "last ?[31mwords?"},
	};

	open_with_image();
	for (size_t i = 0; i < ARRAY_SIZE(t); i++) {
		run_hook(t[i].mail);
		cr_assert_eq(vm.why, t[i].why, "%s: %d, %s", t[i].mail, vm.why,
			     vm.detail);
		cr_assert(strstr(vm.detail, t[i].text), "%s: %s", t[i].mail,
			  vm.detail);
	}
	close_all();
}
