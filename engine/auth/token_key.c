// The key of the tokens: 32 random bytes in DIR/token.key, made once and never
// replaced by this program. A kid is derived from the key, so that a token says
// which key made it and two keys are not taken for one.
//
// A new key is written to DIR/token.key.new (O_EXCL, 0600), synced, renamed
// where no key is, and read back as if it had been there. The directory is synced
// before any key is used. Whoever is killed in between leaves a file that the next
// replaces; no token can have been issued with it.
#include "auth.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define NAME "token.key"
#define NEW_NAME "token.key.new"

// The first bytes of SHA-256("thaw token key id" key), in hex.
static bool kid_of(const uint8_t bytes[TOKEN_KEY_BYTES],
		   char kid[TOKEN_KID_CHARS + 1])
{
	static const char label[] = "thaw token key id";
	uint8_t in[sizeof(label) - 1 + TOKEN_KEY_BYTES], md[32];
	bool ok;

	memcpy(in, label, sizeof(label) - 1);
	memcpy(in + sizeof(label) - 1, bytes, TOKEN_KEY_BYTES);
	ok = EVP_Digest(in, sizeof(in), md, NULL, EVP_sha256(), NULL);
	OPENSSL_cleanse(in, sizeof(in));
	util_hex(kid, md, TOKEN_KID_CHARS / 2);
	return ok;
}

int token_ring_add(struct token_ring *r, const uint8_t bytes[TOKEN_KEY_BYTES])
{
	struct token_key *k = &r->key[r->n];

	for (unsigned i = 0; i < r->n; i++) {
		if (!CRYPTO_memcmp(r->key[i].bytes, bytes, TOKEN_KEY_BYTES))
			return -EEXIST;
	}
	if (r->n == TOKEN_RING_MAX)
		return -ENOSPC;
	if (!kid_of(bytes, k->kid))
		return -EIO;
	memcpy(k->bytes, bytes, TOKEN_KEY_BYTES);
	r->n++;
	return 0;
}

void token_ring_wipe(struct token_ring *r)
{
	OPENSSL_cleanse(r, sizeof(*r));
}

static int check_file(int fd, const char *dir, struct err *e)
{
	struct stat st;

	if (fstat(fd, &st))
		return err_sys(e, "look at %s/" NAME, dir);
	if (!S_ISREG(st.st_mode) || st.st_size != TOKEN_KEY_BYTES)
		return err_set(e, -EINVAL,
			       "%s/" NAME " is not a file of %d bytes: restore "
			       "it, or remove it (which ends all tokens)",
			       dir, TOKEN_KEY_BYTES);
	if (st.st_uid != geteuid() || st.st_mode & 0077)
		return err_set(e, -EACCES,
			       "%s/" NAME " belongs to user %u and has mode "
			       "%04o, so others may use it: remove it (which "
			       "ends all tokens), or chown and chmod 0600 it",
			       dir, st.st_uid, st.st_mode & 07777);
	return 0;
}

// -ENOENT: there is none.
static int load(int dfd, const char *dir, struct token_ring *out, struct err *e)
{
	static const uint8_t zero[TOKEN_KEY_BYTES];
	cleanup_fd int fd =
	    openat(dfd, NAME, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	uint8_t bytes[TOKEN_KEY_BYTES];
	int rc;

	if (fd < 0)
		return err_sys(e, "open %s/" NAME, dir);
	rc = check_file(fd, dir, e);
	if (rc)
		return rc;
	rc = util_read_all(fd, bytes, sizeof(bytes));
	if (rc)
		return err_set(e, rc, "read %s/" NAME ": %s", dir,
			       strerror(-rc));
	if (!CRYPTO_memcmp(bytes, zero, sizeof(zero)))
		rc = err_set(e, -EINVAL,
			     "%s/" NAME " is all zero, which the file system "
			     "may leave after a crash: remove it",
			     dir);
	else if ((rc = token_ring_add(out, bytes)))
		err_set(e, rc, "OpenSSL's SHA-256 failed");
	OPENSSL_cleanse(bytes, sizeof(bytes));
	return rc;
}

static int write_new(int dfd, const char *dir, struct err *e)
{
	cleanup_fd int fd = -1;
	uint8_t bytes[TOKEN_KEY_BYTES];
	int rc;

	if (unlinkat(dfd, NEW_NAME, 0) && errno != ENOENT)
		return err_sys(e, "remove %s/" NEW_NAME, dir);
	fd = openat(dfd, NEW_NAME,
		    O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return err_sys(e, "make %s/" NEW_NAME, dir);
	util_random(bytes, sizeof(bytes));
	rc = util_write_all(fd, bytes, sizeof(bytes));
	OPENSSL_cleanse(bytes, sizeof(bytes));
	if (rc)
		return err_set(e, rc, "write %s/" NEW_NAME ": %s", dir,
			       strerror(-rc));
	return fsync(fd) ? err_sys(e, "sync %s/" NEW_NAME, dir) : 0;
}

static int make(int dfd, const char *dir, struct err *e)
{
	int rc = write_new(dfd, dir, e);

	if (!rc && renameat2(dfd, NEW_NAME, dfd, NAME, RENAME_NOREPLACE))
		rc = err_sys(e, "rename %s/" NEW_NAME " to " NAME, dir);
	if (rc)
		unlinkat(dfd, NEW_NAME, 0);
	return rc;
}

int token_ring_open(struct token_ring *out, const char *dir, struct err *e)
{
	cleanup_fd int dfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int rc;

	*out = (struct token_ring){0};
	if (dfd < 0)
		return err_sys(e, "open the directory %s", dir);
	rc = load(dfd, dir, out, e);
	if (rc == -ENOENT) {
		rc = make(dfd, dir, e);
		if (!rc)
			rc = load(dfd, dir, out, e);
	}
	// Also of a key that was there: whoever made it may have been killed
	// before this.
	if (!rc && fsync(dfd)) {
		rc = err_sys(e, "sync the directory %s", dir);
		token_ring_wipe(out);
	}
	return rc;
}
