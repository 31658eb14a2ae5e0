// The adapters of peers that are on every machine: QEMU and zeroboot's way. Each
// saves the ring-3 guest and restores it. Firecracker and Cloud Hypervisor have
// their turn when THAW_FIRECRACKER and THAW_CLOUD_HYPERVISOR name them.
#include <criterion/criterion.h>
#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "../../bench/peers/vmmproc.h"

static char dir[] = "/var/tmp/thaw-peers.XXXXXX";

// 8 MiB filled; the nonce lies beyond them.
static struct peer_spec spec = {
    .bin_dir = BIN_DIR,
    .elf = BIN_DIR "/ring3.elf",
    .cmdline = "fill 7 16M 8M",
    .dir = dir,
    .mem_mib = 64,
    .nonce_at = 32 << 20,
    .nonce = 0xfedcba9876543210,
};

static int remove_one(const char *path, const struct stat *st, int type,
		      struct FTW *ftw)
{
	(void)st, (void)type, (void)ftw;
	return remove(path);
}

static void setup(void)
{
	if (!mkdtemp(dir))
		cr_assert_fail("mkdtemp: %s", strerror(errno));
}

static void teardown(void)
{
	nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static const struct peer *peer_named(const char *name)
{
	for (int i = 0; peers[i]; i++) {
		if (strcmp(peers[i]->name, name) == 0)
			return peers[i];
	}
	cr_assert_fail("no peer is named %s", name);
	abort();
}

static void expect_order(const struct peer_times *t)
{
	cr_expect(t->t0 > 0 && t->t2 > t->t0 && t->t5 >= t->t2,
		  "t0 %llu t2 %llu t5 %llu", (unsigned long long)t->t0,
		  (unsigned long long)t->t2, (unsigned long long)t->t5);
	cr_expect(t->t1 == 0 || (t->t1 > t->t0 && t->t1 < t->t5));
}

// Each restore begins with what was saved: what the one before wrote is gone.
static void restores(const char *name)
{
	const struct peer *p = peer_named(name);
	struct peer_sample s;
	struct err e = ERR_INIT;
	void *state = NULL;
	int rc;

	if (access("/dev/kvm", R_OK | W_OK))
		cr_skip_test("no /dev/kvm here");
	rc = p->prepare(&state, &spec, &e);
	cr_assert(rc == 0, "%s: %s", name, e.msg);
	for (int i = 0; i < 2; i++) {
		rc = p->restore(state, "check 7 16M 8M", &s, &e);
		cr_assert(rc == 0, "%s: %s", name, e.msg);
		cr_expect_str_eq(s.answer, "GOOD 2048");
		expect_order(&s.t);
		rc = p->restore(state, "zero 16M 8M", &s, &e);
		cr_assert(rc == 0, "%s: %s", name, e.msg);
		cr_expect_str_eq(s.answer, "ZEROED");
	}
	rc = p->restore(state, NULL, &s, &e);
	cr_assert(rc == 0, "%s: %s", name, e.msg);
	cr_expect(s.t.t2 > s.t.t0);
	cr_expect(s.t.t5 == 0);
	// A guest without its nonce is not the one that was saved.
	rc = p->restore(state, "zero 32M 4K", &s, &e);
	cr_expect(rc == -EIO);
	cr_expect(strstr(e.msg, "is not the one that was saved") != NULL, "%s",
		  e.msg);
	p->finish(state);
}

TestSuite(peers, .init = setup, .fini = teardown, .timeout = 300);

Test(peers, zeroboot)
{
	restores("zeroboot");
}

Test(peers, qemu)
{
	restores("qemu");
}

Test(peers, qemu_stream)
{
	restores("qemu-stream");
}

static void restores_if_given(const char *name, const char *variable)
{
	const char *binary = getenv(variable);
	struct err e = ERR_INIT;
	void *state = NULL;
	int rc;

	if (binary) {
		spec.binary = binary;
		restores(name);
		return;
	}
	// Without a program there is a sentence.
	rc = peer_named(name)->prepare(&state, &spec, &e);
	cr_expect(rc == 1);
	cr_expect(strstr(e.msg, "was given (--") != NULL, "%s", e.msg);
	peer_named(name)->finish(state);
}

Test(peers, firecracker_file)
{
	restores_if_given("firecracker-file", "THAW_FIRECRACKER");
}

Test(peers, firecracker_uffd)
{
	restores_if_given("firecracker-uffd", "THAW_FIRECRACKER");
}

Test(peers, cloud_hypervisor)
{
	restores_if_given("cloud-hypervisor", "THAW_CLOUD_HYPERVISOR");
}

Test(peers, cloud_hypervisor_ondemand)
{
	restores_if_given("cloud-hypervisor-ondemand", "THAW_CLOUD_HYPERVISOR");
}

// One that has ended is written to: that is an error like any other.
Test(peers, ended_before_it_was_told)
{
	char *argv[] = {"/bin/true", NULL};
	char log[64];
	struct vmmproc p;
	struct err e = ERR_INIT;
	siginfo_t si;
	int pair[2];

	snprintf(log, sizeof(log), "%s/log", dir);
	cr_assert(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair));
	cr_assert(
	    !vmmproc_start(&p, log, argv, (int[]){pair[1], pair[1]}, 2, &e),
	    "%s", e.msg);
	p.to = p.from = pair[0];
	close(pair[1]);
	cr_assert(!waitid(P_PID, (id_t)p.pid, &si, WEXITED | WNOWAIT));
	cr_expect(vmmproc_say(&p, "count 1", &e) == -EIO);
	cr_expect(strstr(e.msg, "closed its guest's COM1") != NULL, "%s",
		  e.msg);
	cr_expect(vmmproc_api(p.to, "PUT", "/x", NULL, &e) == -EIO);
	cr_expect(strstr(e.msg, "closed its API") != NULL, "%s", e.msg);
	vmmproc_end(&p, NULL);
}

// A program that is not there, or that is no VMM, is named in one sentence.
Test(peers, wrong_program)
{
	const struct peer *p = peer_named("qemu");
	struct err e = ERR_INIT;
	void *state = NULL;
	int rc;

	spec.binary = "/nonexistent/qemu";
	rc = p->prepare(&state, &spec, &e);
	cr_expect(rc == 1);
	cr_expect(strstr(e.msg, "/nonexistent/qemu") != NULL, "%s", e.msg);
	p->finish(state);
	state = NULL;
	spec.binary = "/bin/false";
	rc = p->prepare(&state, &spec, &e);
	cr_expect(rc < 0);
	cr_expect(strstr(e.msg, "QEMU ended") != NULL, "%s", e.msg);
	p->finish(state);
	// One that was given and cannot is left out with the reason.
	state = NULL;
	p = peer_named("firecracker-file");
	rc = p->prepare(&state, &spec, &e);
	cr_expect(rc == 1);
	cr_expect(strstr(e.msg, "cannot run and save the guest on this host: "
				"it ended at once") != NULL,
		  "%s", e.msg);
	p->finish(state);
}
