// Unpacking a hostile archive.
//
// Three walls: names are checked here, libarchive checks every path component
// as it goes (SECURE_*), and the process is chrooted into the tree, so that
// what passes both still ends inside. The mount is nodev, nosuid and noexec,
// which also keeps the C library from loading a module that the archive
// brought.
//
// Limits: entries, bytes written, bytes read from the decompressor, the length
// and depth of names, memory (a compressor's window), the size of one file.
#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <linux/capability.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "mkdisk.h"

enum {
	NAME_MAX_BYTES = 4000,
	NAME_MAX_DEPTH = 256,
	XATTRS_MAX = 64,
	MEMORY_MAX_MIB = 1024,
};

struct job {
	const struct mk_opts *o;
	const struct mk_source *src;
	struct mk_shared *sh;
	struct archive *in, *out;
	uint64_t cap;	     // bytes that may be written
	uint64_t told;	     // when progress was last shown
	unsigned complaints; // attributes that could not be set
};

static int not_a_tar(const struct mk_opts *o, struct archive *a, struct err *e)
{
	return err_set(e, -EBADMSG,
		       "'%s' is not a readable %star archive (plain, gzip, "
		       "bzip2, xz or zstd): %s",
		       o->source, o->context ? "zip or " : "",
		       archive_error_string(a));
}

static struct archive *open_in(const struct mk_opts *o,
			       const struct mk_source *src, struct err *e)
{
	struct archive *a = archive_read_new();

	if (!a)
		return NULL;
	archive_read_support_format_tar(a);
	if (o->context)
		archive_read_support_format_zip(a);
	archive_read_support_filter_gzip(a);
	archive_read_support_filter_bzip2(a);
	archive_read_support_filter_xz(a);
	archive_read_support_filter_zstd(a);
	if (archive_read_open_fd(a, src->fd, (size_t)256 * 1024) == ARCHIVE_OK)
		return a;
	not_a_tar(o, a, e);
	archive_read_free(a);
	return NULL;
}

static struct archive *open_out(const struct mk_opts *o)
{
	const int own = ARCHIVE_EXTRACT_OWNER | ARCHIVE_EXTRACT_PERM |
			ARCHIVE_EXTRACT_ACL | ARCHIVE_EXTRACT_XATTR;
	struct archive *a = archive_write_disk_new();

	// Not EXTRACT_UNLINK: it would replace a link that leads through a name
	// by a directory, and make another tree than the archive says.
	if (a)
		archive_write_disk_set_options(
		    a, (o->context ? 0 : own) | ARCHIVE_EXTRACT_TIME |
			   ARCHIVE_EXTRACT_SECURE_SYMLINKS |
			   ARCHIVE_EXTRACT_SECURE_NODOTDOT |
			   ARCHIVE_EXTRACT_SECURE_NOABSOLUTEPATHS);
	return a;
}

// "./usr/bin" to "usr/bin"; NULL when the name may not be unpacked.
static const char *clean_name(const char *name, struct err *e)
{
	const char *p = name, *part;
	unsigned depth = 0;

	if (!name || strlen(name) > NAME_MAX_BYTES) {
		err_set(e, -EINVAL,
			"the archive has a name that is empty, longer than %d "
			"bytes, or not UTF-8",
			NAME_MAX_BYTES);
		return NULL;
	}
	if (*p == '/') {
		err_set(e, -EINVAL,
			"the archive has an absolute name, '%.100s': make it "
			"with relative names (tar -C DIR -c .)",
			name);
		return NULL;
	}
	while (p[0] == '.' && p[1] == '/') {
		p += 2;
		p += strspn(p, "/");
	}
	for (part = p; *part; part += strspn(part, "/")) {
		size_t n = strcspn(part, "/");

		if (n == 2 && !memcmp(part, "..", 2)) {
			err_set(e, -EINVAL,
				"the archive has a name with '..' in it, "
				"'%.100s': refused",
				name);
			return NULL;
		}
		if (++depth > NAME_MAX_DEPTH) {
			err_set(e, -EINVAL,
				"the archive nests directories deeper than %d",
				NAME_MAX_DEPTH);
			return NULL;
		}
		part += n;
	}
	return *p ? p : ".";
}

// Of extended attributes, file capabilities and the users' own are kept; the
// labels of this host's security modules mean nothing in the guest.
static void keep_xattrs(struct archive_entry *en)
{
	struct {
		char name[256];
		void *value;
		size_t len;
	} kept[XATTRS_MAX];
	size_t n = 0, len;
	const void *value;
	const char *name;

	archive_entry_xattr_reset(en);
	while (n < XATTRS_MAX && archive_entry_xattr_next(en, &name, &value,
							  &len) == ARCHIVE_OK) {
		if (!name || strlen(name) >= sizeof(kept[n].name) ||
		    (strcmp(name, "security.capability") != 0 &&
		     strncmp(name, "user.", 5) != 0))
			continue;
		kept[n].value = malloc(len ? len : 1);
		if (!kept[n].value)
			break;
		memcpy(kept[n].value, value, len);
		memcpy(kept[n].name, name, strlen(name) + 1);
		kept[n++].len = len;
	}
	archive_entry_xattr_clear(en);
	for (size_t i = 0; i < n; i++) {
		archive_entry_xattr_add_entry(en, kept[i].name, kept[i].value,
					      kept[i].len);
		free(kept[i].value);
	}
}

// An attribute that this file system cannot hold is no reason to fail.
static void complain(struct job *j, struct archive *a, const char *name)
{
	if (j->complaints++ < 5)
		mk_note("%.150s: %.200s", name, archive_error_string(a));
}

static int too_big(const struct job *j, struct err *e)
{
	if (j->o->disk_bytes && j->cap == j->o->disk_bytes)
		return err_set(e, -ENOSPC,
			       "the files need more than the disk of %llu MiB: "
			       "give a larger --disk",
			       (unsigned long long)(j->cap >> 20));
	return err_set(e, -EFBIG,
		       "the archive unpacks to more than %llu MiB, which is as "
		       "much as is allowed or fits beside an image of it",
		       (unsigned long long)(j->cap >> 20));
}

static void tell(struct job *j)
{
	uint64_t now = util_now_ns();
	int percent = -1;

	if (now - j->told < 300000000u)
		return;
	j->told = now;
	if (j->src->size)
		percent = (int)((uint64_t)archive_filter_bytes(j->in, -1) *
				100 / j->src->size);
	mk_progress(percent, "unpacked %llu MiB in %llu files",
		    (unsigned long long)(j->sh->bytes >> 20),
		    (unsigned long long)j->sh->entries);
}

static int copy_data(struct job *j, const char *name, struct err *e)
{
	const void *buf;
	la_int64_t off;
	size_t n;
	int rc;

	for (;;) {
		rc = archive_read_data_block(j->in, &buf, &n, &off);
		if (rc == ARCHIVE_EOF)
			return 0;
		// A warning: a zip's checksum, for one, is wrong.
		if (rc != ARCHIVE_OK && (rc != ARCHIVE_WARN || j->o->context))
			return err_set(e, -EBADMSG,
				       "the archive is damaged at '%.100s': %s",
				       name, archive_error_string(j->in));
		j->sh->bytes += ALIGN_UP((uint64_t)n, 4096u);
		if (j->sh->bytes > j->cap)
			return too_big(j, e);
		rc = (int)archive_write_data_block(j->out, buf, n, off);
		if (rc != ARCHIVE_OK && rc != ARCHIVE_WARN)
			return err_set(e, -EIO, "unpacking '%.100s': %s", name,
				       archive_error_string(j->out));
		tell(j);
	}
}

// A symbolic link of a build's context: one that climbs above the context's root
// serves nothing but to name what is not in it. An absolute one is a name in
// the image to be.
static int check_symlink(const char *name, const char *to, struct err *e)
{
	int depth = 0;
	size_t n;

	if (!to || !*to || strlen(to) > NAME_MAX_BYTES)
		return err_set(e, -EINVAL,
			       "the archive has a symbolic link to nothing, "
			       "'%.100s'",
			       name);
	if (*to == '/')
		return 0;
	for (const char *p = name; (p = strchr(p, '/')); p += strspn(p, "/"))
		depth++;
	for (; *to; to += n, to += strspn(to, "/")) {
		n = strcspn(to, "/");
		if (n == 2 && !memcmp(to, "..", 2)) {
			if (--depth < 0)
				return err_set(
				    e, -EINVAL,
				    "the archive has a symbolic link that "
				    "leads out of it, '%.100s': refused",
				    name);
		} else if (n != 1 || *to != '.') {
			depth++;
		}
	}
	return 0;
}

static int check_type(struct job *j, struct archive_entry *en, const char *name,
		      bool *skip, struct err *e)
{
	const char *link;

	*skip = false;
	if (archive_entry_hardlink(en)) {
		link = clean_name(archive_entry_hardlink(en), e);
		if (!link)
			return err_wrap(e, -EINVAL, "hard link '%.100s'", name);
		archive_entry_set_hardlink(en, link);
		return 0;
	}
	if (j->o->context && archive_entry_filetype(en) == AE_IFLNK)
		return check_symlink(name, archive_entry_symlink(en), e);
	switch (archive_entry_filetype(en)) {
	case AE_IFREG:
	case AE_IFDIR:
	case AE_IFLNK:
		return 0;
	case AE_IFIFO: // who reads a context would wait for a writer
		*skip = j->o->context;
		j->sh->devices += j->o->context;
		return 0;
	case AE_IFCHR:
	case AE_IFBLK:
	case AE_IFSOCK:
		j->sh->devices++;
		*skip = true;
		return 0;
	default:
		return err_set(e, -EINVAL,
			       "the archive has an entry of unknown type, "
			       "'%.100s'",
			       name);
	}
}

static int one_entry(struct job *j, struct archive_entry *en, struct err *e)
{
	const char *raw = archive_entry_pathname(en), *name;
	char copy[NAME_MAX_BYTES + 1];
	bool skip;
	int rc;

	name = clean_name(raw, e);
	if (!name)
		return -EINVAL;
	// The entry's own text is replaced below.
	name = memcpy(copy, name, strlen(name) + 1);
	if (++j->sh->entries > j->o->max_entries)
		return err_set(e, -EFBIG,
			       "the archive has more than %llu files",
			       (unsigned long long)j->o->max_entries);
	rc = check_type(j, en, name, &skip, e);
	if (rc || skip)
		return rc;
	if (archive_entry_filetype(en) == AE_IFREG &&
	    (uint64_t)archive_entry_size(en) > j->cap)
		return too_big(j, e);
	if (archive_entry_filetype(en) != AE_IFREG)
		j->sh->bytes += 4096;
	archive_entry_set_pathname(en, name);
	if (j->o->context)
		archive_entry_xattr_clear(en);
	else
		keep_xattrs(en);
	rc = archive_write_header(j->out, en);
	if (rc == ARCHIVE_WARN)
		complain(j, j->out, name);
	else if (rc != ARCHIVE_OK)
		return err_set(e, -EINVAL, "cannot unpack '%.100s': %s", name,
			       archive_error_string(j->out));
	rc = copy_data(j, name, e);
	if (rc)
		return rc;
	rc = archive_write_finish_entry(j->out);
	if (rc == ARCHIVE_WARN)
		complain(j, j->out, name);
	else if (rc != ARCHIVE_OK)
		return err_set(e, -EIO, "cannot unpack '%.100s': %s", name,
			       archive_error_string(j->out));
	tell(j);
	return 0;
}

static int all_entries(struct job *j, struct err *e)
{
	struct archive_entry *en;
	int rc;

	for (;;) {
		rc = archive_read_next_header(j->in, &en);
		if (rc == ARCHIVE_EOF)
			break;
		if (rc == ARCHIVE_WARN)
			complain(j, j->in,
				 archive_entry_pathname(en)
				     ? archive_entry_pathname(en)
				     : "?");
		else if (rc != ARCHIVE_OK)
			return not_a_tar(j->o, j->in, e);
		// What a skipped entry or padding inflates to counts too.
		if ((uint64_t)archive_filter_bytes(j->in, 0) >
		    j->cap + j->cap / 4 + (64u << 20))
			return too_big(j, e);
		rc = one_entry(j, en, e);
		if (rc)
			return rc;
	}
	if (j->sh->entries == 0)
		return err_set(e, -EINVAL, "'%s' has no files in it",
			       j->o->source);
	// Directories get their modes and times only now.
	if (archive_write_close(j->out) != ARCHIVE_OK)
		return err_set(e, -EIO, "finishing the tree: %s",
			       archive_error_string(j->out));
	return 0;
}

static int confine(struct job *j, struct err *e)
{
	static const int caps[] = {CAP_CHOWN,  CAP_DAC_OVERRIDE, CAP_FOWNER,
				   CAP_FSETID, CAP_SETFCAP,	 -1};
	struct statvfs fs;

	if (chroot(j->o->tree) || chdir("/"))
		return err_sys(e, "entering the tree");
	if (statvfs("/", &fs))
		return err_sys(e, "statvfs");
	// The tree and what is made of it lie side by side for a while.
	j->cap =
	    MIN(j->o->max_bytes, (uint64_t)fs.f_bavail * fs.f_frsize / 9 * 4);
	if (j->o->disk_bytes)
		j->cap = MIN(j->cap, j->o->disk_bytes);
	setrlimit(RLIMIT_FSIZE, &(struct rlimit){j->cap, j->cap});
#ifndef MK_ASAN
	setrlimit(RLIMIT_AS, &(struct rlimit){(rlim_t)MEMORY_MAX_MIB << 20,
					      (rlim_t)MEMORY_MAX_MIB << 20});
#endif
	return mk_jail_caps(caps, e);
}

int mk_extract(const struct mk_opts *o, const struct mk_source *src,
	       struct mk_shared *sh, struct err *e)
{
	struct job j = {.o = o, .src = src, .sh = sh};
	int rc = confine(&j, e);

	if (rc)
		return rc;
	j.in = open_in(o, src, e);
	if (!j.in)
		return e->code ? e->code : err_set(e, -ENOMEM, "out of memory");
	j.out = open_out(o);
	rc = j.out ? all_entries(&j, e) : err_set(e, -ENOMEM, "out of memory");
	if (j.complaints > 5)
		mk_note("%u more attributes could not be kept",
			j.complaints - 5);
	archive_write_free(j.out);
	archive_read_free(j.in);
	return rc;
}
