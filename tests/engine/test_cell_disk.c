// Disks: templates, own blocks, overlays, and what cannot be read; through the
// cell's backend and thawd's side of it.
#include <criterion/criterion.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "cell_rig.h"
#include "hook_disk.h"

enum { BLOCKS = 4096 };

TestSuite(cell_disk, .timeout = 300);

static struct rig rig;
static struct rig_vm vm;
static struct pgc_id disk, img, own;
static char store[64];

static void make_disk(void)
{
	uint64_t npages[PGC_NUM_STREAMS] = {[PGC_DISK] = BLOCKS};
	uint8_t page[4096];
	struct pgc_builder *b;
	struct err e = ERR_INIT;

	util_random(&disk, sizeof(disk));
	cr_assert_eq(pgc_builder_begin(rig.store, &disk, NULL, npages, &b, &e),
		     0, "%s", e.msg);
	for (uint32_t k = 0; k < BLOCKS; k++) {
		hook_disk_block(page, k, hook_disk_kind(k, false));
		cr_assert_eq(pgc_builder_put(b, PGC_DISK, k, page, 1, &e), 0,
			     "%s", e.msg);
	}
	cr_assert_eq(pgc_builder_commit(b, &e), 0, "%s", e.msg);
}

// A suspended microVM that wrote blocks, with its image's CPU state.
static void make_own(void)
{
	struct pgc_snap *sn;
	uint64_t npages[PGC_NUM_STREAMS];
	uint8_t page[4096];
	struct pgc_builder *b;
	struct err e = ERR_INIT;
	const void *state;
	size_t len;

	cr_assert_eq(pgc_snap_open(rig.store, &img, &sn, &e), 0, "%s", e.msg);
	npages[PGC_MEM] = pgc_snap_pages(sn, PGC_MEM);
	npages[PGC_DISK] = pgc_snap_pages(sn, PGC_DISK);
	cr_assert_eq(npages[PGC_DISK], (uint64_t)BLOCKS);
	util_random(&own, sizeof(own));
	cr_assert_eq(pgc_builder_begin(rig.store, &own, &img, npages, &b, &e),
		     0, "%s", e.msg);
	for (uint32_t k = 0; k < BLOCKS; k++) {
		if (hook_disk_kind(k, true) == hook_disk_kind(k, false))
			continue;
		hook_disk_block(page, k, hook_disk_kind(k, true));
		cr_assert_eq(pgc_builder_put(b, PGC_DISK, k, page, 1, &e), 0,
			     "%s", e.msg);
	}
	state = pgc_snap_blob(sn, "state", &len);
	cr_assert(state);
	cr_assert_eq(pgc_builder_blob(b, "state", state, len, &e), 0);
	cr_assert_eq(pgc_builder_commit(b, &e), 0, "%s", e.msg);
	pgc_snap_unref(sn);
}

// The store with a disk, an image that was booted with it, and a suspended one.
static void make_all(void)
{
	struct rig_opts o = {.store = store};
	struct eng_boot_req req = {.mem_mib = 64,
				   .vcpus = 1,
				   .cmdline = "fill 7 16M 1M",
				   .has_disk = true};
	char elf[320];

	strcpy(store, "/tmp/thaw-disk-XXXXXX");
	cr_assert(mkdtemp(store));
	rig_open(&rig, &o);
	make_disk();
	snprintf(elf, sizeof(elf), "%s/ring3.elf", rig.bin);
	req.kernel_path = elf;
	req.disk = disk;
	rig_boot_req(&rig, &vm, &req);
	cr_assert(rig_until(&rig, rig_is_ready, &vm, RIG_MS));
	cr_assert(!vm.gone, "%s", vm.detail);
	cr_assert_eq(rig_capture(&vm, &img, true, false), 0, "%s",
		     vm.capture_why);
	make_own();
}

static void run_hook(const char *mail, bool with_own, const char *expect)
{
	struct eng_thaw_req req = {.base = img,
				   .has_own = with_own,
				   .own = own,
				   .mailbox = mail,
				   .mailbox_len = strlen(mail)};

	rig_thaw_req(&rig, &vm, &req);
	cr_assert(rig_until(&rig, rig_is_gone, &vm, RIG_MS));
	cr_assert_str_eq(vm.detail, expect);
}

static void drop_store(void)
{
	char cmd[128];

	snprintf(cmd, sizeof(cmd), "rm -rf %s", store);
	cr_assert_eq(system(cmd), 0);
}

Test(cell_disk, reads_and_writes_against_a_model)
{
	struct rig_opts o = {.store = store, .cell = "cell_hook"};

	make_all();
	rig_close(&rig);
	rig_open(&rig, &o);
	run_hook("disk base", false, "disk ok, no errors");
	run_hook("disk own", true, "disk ok, no errors");
	run_hook("disk base", false, "disk ok, no errors"); // warm
	rig_close(&rig);
	drop_store();
}

static void corrupt_packs(void)
{
	char path[400];
	struct dirent *d;
	DIR *dp;

	snprintf(path, sizeof(path), "%s/packs", store);
	dp = opendir(path);
	cr_assert(dp);
	while ((d = readdir(dp))) {
		struct stat sb;
		int fd;

		if (d->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/packs/%s", store, d->d_name);
		fd = open(path, O_RDWR);
		cr_assert(fd >= 0 && fstat(fd, &sb) == 0);
		for (off_t at = sb.st_size / 2; at < sb.st_size; at += 300000) {
			uint8_t x;

			cr_assert_eq(pread(fd, &x, 1, at), 1);
			x ^= 1;
			cr_assert_eq(pwrite(fd, &x, 1, at), 1);
		}
		close(fd);
	}
	closedir(dp);
}

Test(cell_disk, corrupt_blocks_are_errors_never_bytes)
{
	struct rig_opts o = {.store = store, .cell = "cell_hook"};

	make_all();
	rig_close(&rig);
	corrupt_packs();
	rig_open(&rig, &o);
	run_hook("disk bad", false, "disk ok, some errors");
	rig_close(&rig);
	drop_store();
}

// Blocks that a resumed microVM never touched stay its own at the next suspend,
// and go into an image made of it.
Test(cell_disk, unloaded_own_blocks_survive)
{
	struct pgc_id later[2];

	make_all();
	for (int image = 0; image < 2; image++) {
		struct pgc_snap *sn;
		struct err e = ERR_INIT;
		uint8_t have[4096], want[4096];

		rig_thaw(&rig, &vm, &img, &own);
		cr_assert(!vm.gone, "%s", vm.detail);
		cr_assert_eq(rig_capture(&vm, &later[image], image, false), 0,
			     "%s", vm.capture_why);
		cr_assert_eq(vm.st.dirty_disk_pages, 0u);
		cr_assert_eq(pgc_snap_open(rig.store, &later[image], &sn, &e),
			     0, "%s", e.msg);
		for (uint32_t k = 0; k < BLOCKS; k++) {
			hook_disk_block(want, k, hook_disk_kind(k, true));
			cr_assert_eq(
			    pgc_snap_read(sn, PGC_DISK, k, have, 1, &e), 0,
			    "%s", e.msg);
			cr_assert_eq(memcmp(have, want, 4096), 0, "block %u",
				     k);
		}
		pgc_snap_unref(sn);
	}
	rig_close(&rig);
	drop_store();
}
