// The ext4 image: mke2fs with every choice spelled out, so that the same files
// give the same bytes on every host, whatever its mke2fs.conf says.
//
// No journal and no checksums: a snapshot is the unit that is consistent, and
// the store verifies every page. Nothing is initialised lazily, so no kernel
// thread writes behind the guest's back.
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "mkdisk.h"

#define FS_UUID "7468617a-7700-4000-8000-000000000001"
#define FS_TIME 1704067200u // 2024-01-01, of the file system itself
#define FS_FEATURES                                                   \
	"none,dir_index,ext_attr,extent,filetype,flex_bg,large_file," \
	"huge_file,dir_nlink,extra_isize,sparse_super"

static const char fs_extended[] =
    "hash_seed=" FS_UUID ",lazy_itable_init=0,root_owner=0:0";

enum {
	BLOCK = 4096,
	INODE = 256,
	PER_INODE = 32768, // bytes of disk for one spare inode
};

struct plan {
	uint64_t bytes, inodes;
};

static void make_plan(const struct mk_opts *o, const struct mk_shared *sh,
		      struct plan *p)
{
	uint64_t need = sh->bytes + sh->entries * INODE;

	p->bytes = o->disk_bytes;
	if (!p->bytes) // half as much again, and room to start with
		p->bytes = need + need / 2 + (32u << 20);
	p->bytes = ALIGN_UP(p->bytes, (uint64_t)1 << 20);
	p->inodes = sh->entries + sh->entries / 4 + p->bytes / PER_INODE + 64;
	if (p->inodes > UINT32_MAX / 2)
		p->inodes = UINT32_MAX / 2;
}

struct mkfs {
	const char *tree, *image;
	struct plan plan;
	int err_fd;
};

static int mkfs_child(void *ctx, struct err *e)
{
	static const int caps[] = {CAP_DAC_READ_SEARCH, -1};
	const struct mkfs *m = ctx;
	char inodes[24], blocks[24], fake_time[48];
	const char *const argv[] = {
	    "mke2fs",	 "-q", "-F",	"-t",	  "ext4",      "-b",
	    "4096",	 "-I", "256",	"-m",	  "0",	       "-N",
	    inodes,	 "-U", FS_UUID, "-E",	  fs_extended, "-O",
	    FS_FEATURES, "-d", m->tree, m->image, blocks,      NULL};
	const char *const envp[] = {"PATH=/usr/sbin:/sbin:/usr/bin:/bin",
				    "LC_ALL=C", fake_time,
				    "MKE2FS_CONFIG=/none", NULL};
	int null;

	snprintf(fake_time, sizeof(fake_time), "E2FSPROGS_FAKE_TIME=%u",
		 FS_TIME);
	snprintf(inodes, sizeof(inodes), "%llu",
		 (unsigned long long)m->plan.inodes);
	snprintf(blocks, sizeof(blocks), "%llu",
		 (unsigned long long)(m->plan.bytes / BLOCK));
	// No /dev in here: an empty file does for input and output.
	null = memfd_create("null", MFD_CLOEXEC);
	if (null < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0 ||
	    dup2(m->err_fd, 2) < 0)
		return err_sys(e, "descriptors for mke2fs");
	if (mk_jail_caps(caps, e))
		return e->code;
	signal(SIGPIPE, SIG_DFL);
	execve("/usr/sbin/mke2fs", (char *const *)argv, (char *const *)envp);
	execve("/sbin/mke2fs", (char *const *)argv, (char *const *)envp);
	return err_sys(e, "mke2fs cannot be started (package e2fsprogs)");
}

static int explain(const struct mk_opts *o, const struct mkfs *m,
		   const struct mk_shared *sh, struct err *e)
{
	char text[1000] = "", *last;
	ssize_t n = pread(m->err_fd, text, sizeof(text) - 1, 0);

	// The reason is the last line; before it are complaints about /dev.
	while (n > 0 && text[n - 1] == '\n')
		n--;
	text[n > 0 ? n : 0] = '\0';
	last = strrchr(text, '\n');
	last = last ? last + 1 : text;
	if (strstr(text, "allocate") || strstr(text, "No free space") ||
	    strstr(text, "No space") || strstr(text, "too small") ||
	    strstr(text, "inodes"))
		return err_set(
		    e, -ENOSPC,
		    "a disk of %llu MiB is too small for %llu MiB in %llu "
		    "files: %s",
		    (unsigned long long)(m->plan.bytes >> 20),
		    (unsigned long long)(sh->bytes >> 20),
		    (unsigned long long)sh->entries,
		    o->disk_bytes ? "give a larger --disk"
				  : "give one with --disk");
	return err_set(e, -EIO, "mke2fs failed: %s",
		       last[0] ? last : "it gave no reason");
}

int mk_ext4_make(const struct mk_opts *o, const char *tree, const char *image,
		 struct mk_shared *sh, struct err *e)
{
	struct mkfs m = {tree, image, {0, 0}, -1};
	cleanup_fd int err_fd = memfd_create("mke2fs-errors", MFD_CLOEXEC);
	cleanup_fd int fd = -1;
	struct stat st;
	int rc;

	make_plan(o, sh, &m.plan);
	m.err_fd = err_fd;
	mk_progress(-1, "making a file system of %llu MiB",
		    (unsigned long long)(m.plan.bytes >> 20));
	// Ours, not mke2fs's: it runs without the right to write elsewhere.
	fd = open(image, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return err_sys(e, "making the image file");
	rc = mk_child(sh, mkfs_child, &m, "mke2fs", e);
	if (rc)
		return sh->error.msg[0] ? rc : explain(o, &m, sh, e);
	if (fstat(fd, &st))
		return err_sys(e, "the image file");
	if (ftruncate(fd, (off_t)m.plan.bytes)) // mke2fs may leave it shorter
		return err_sys(e, "the image file");
	sh->image_size = m.plan.bytes;
	return mk_ext4_settle(fd, sh->started, e);
}

// --- settling inode times ------------------------------------------------
//
// mke2fs copies access and change times from the unpacked tree, so two builds
// of the same files differ in every inode. The image has no checksums, so the
// times can be set in place: all of them to the modification time. A directory
// that an archive only implies was made just now: it gets the file system's.
// Offsets: "ext4 Data Structures and Algorithms", kernel documentation.

static uint32_t le32(const uint8_t *p)
{
	struct wire_reader r = wire_reader_of(p, 4);

	return wire_get_u32(&r);
}

static uint16_t le16(const uint8_t *p)
{
	struct wire_reader r = wire_reader_of(p, 2);

	return wire_get_u16(&r);
}

static void settle_inode(uint8_t *ino, uint32_t since, uint32_t now)
{
	struct wire_writer w = wire_writer_of(ino + 0x10, 4);
	static const uint8_t none[4];
	uint32_t mtime = le32(ino + 0x10);

	if (le16(ino) == 0) // mode: free
		return;
	if (mtime >= since && mtime <= now)
		wire_put_u32(&w, FS_TIME);
	memcpy(ino + 0x08, ino + 0x10, 4); // access
	memcpy(ino + 0x0c, ino + 0x10, 4); // change
	if (le16(ino + 0x80) < 24)	   // extra size: no finer times
		return;
	if (mtime >= since && mtime <= now)
		memcpy(ino + 0x88, none, 4);
	memcpy(ino + 0x84, ino + 0x88, 4); // change, extra
	memcpy(ino + 0x8c, ino + 0x88, 4); // access, extra
	memcpy(ino + 0x90, ino + 0x10, 4); // creation
	memcpy(ino + 0x94, none, 4);
}

static int settle_table(int fd, uint64_t at, uint32_t inodes, uint32_t since,
			struct err *e)
{
	uint32_t now = (uint32_t)(util_wall_ns() / 1000000000u);
	uint8_t buf[BLOCK];
	uint64_t end = at + (uint64_t)inodes * INODE;

	for (; at < end; at += BLOCK) {
		if (util_pread_all(fd, buf, BLOCK, (off_t)at))
			return err_set(e, -EIO, "the new image is cut short");
		for (unsigned i = 0; i < BLOCK; i += INODE)
			settle_inode(buf + i, since, now);
		if (util_pwrite_all(fd, buf, BLOCK, (off_t)at))
			return err_sys(e, "writing the image");
	}
	return 0;
}

int mk_ext4_settle(int fd, uint32_t since, struct err *e)
{
	uint8_t sb[1024], desc[32];
	uint32_t blocks, per_group, inodes;
	uint64_t groups;
	struct stat st;
	int rc;

	if (fstat(fd, &st) || util_pread_all(fd, sb, sizeof(sb), 1024))
		return err_set(e, -EIO, "the new image cannot be read");
	blocks = le32(sb + 4);
	per_group = le32(sb + 0x20);
	inodes = le32(sb + 0x28);
	if (le16(sb + 0x38) != 0xef53 || le32(sb + 0x18) != 2 || !per_group ||
	    le16(sb + 0x58) != INODE ||
	    (uint64_t)blocks * BLOCK > (uint64_t)st.st_size ||
	    le32(sb + 0x64) & 0x410) // gdt_csum, metadata_csum
		return err_set(e, -EIO, "mke2fs made an unexpected layout");
	groups = ((uint64_t)blocks + per_group - 1) / per_group;
	for (uint64_t g = 0; g < groups; g++) {
		if (util_pread_all(fd, desc, sizeof(desc),
				   (off_t)(BLOCK + g * sizeof(desc))))
			return err_set(e, -EIO, "the new image is cut short");
		rc = settle_table(fd, (uint64_t)le32(desc + 8) * BLOCK, inodes,
				  since, e);
		if (rc)
			return rc;
	}
	return 0;
}
