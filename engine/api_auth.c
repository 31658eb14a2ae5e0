// See api_auth.h; what a good signature is says auth/ (docs/AUTH.md).
#include "api_auth.h"
#include "auth.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

struct api_auth {
	char *path, *region;
	struct auth_keys keys;
	uint64_t logged_s; // when a refusal was last said
	unsigned refused;  // since
};

// --- the keys ------------------------------------------------------------------

// n characters of 64 kinds (the first 32 of them: capitals and digits).
static void draw(char *out, size_t n, unsigned kinds)
{
	static const char set[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
				  "abcdefghijklmnopqrstuvwxyz0189+/";
	uint8_t b[64];

	util_random(b, n);
	for (size_t i = 0; i < n; i++)
		out[i] = set[b[i] % kinds];
	out[n] = '\0';
	explicit_bzero(b, sizeof(b));
}

static int make_keys(const char *path, struct err *e)
{
	cleanup_fd int fd =
	    open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	char id[17], secret[41], text[256];
	int n, rc = 0;

	if (fd < 0)
		return errno == EEXIST ? 0 : err_sys(e, "make %s", path);
	draw(id, 16, 32);
	draw(secret, 40, 64);
	n = snprintf(text, sizeof(text),
		     "# Made by thawd: whoever has it may do everything.\n"
		     "[default]\naws_access_key_id = THAW%s\n"
		     "aws_secret_access_key = %s\n",
		     id, secret);
	if (write(fd, text, (size_t)n) != n || fsync(fd)) {
		rc = err_sys(e, "write %s", path);
		unlink(path);
	}
	explicit_bzero(secret, sizeof(secret));
	explicit_bzero(text, sizeof(text));
	return rc;
}

static char *path_in(const char *dir)
{
	char *out;

	if (asprintf(&out, "%s/keys", dir) < 0)
		abort();
	return out;
}

int api_auth_create(struct api_auth **out, const char *path,
		    const char *state_dir, const char *region, struct err *e)
{
	struct api_auth *au = calloc(1, sizeof(*au));
	int rc;

	if (!au)
		return err_set(e, -ENOMEM, "read the keys");
	au->path = path ? strdup(path) : path_in(state_dir);
	au->region = region ? strdup(region) : NULL;
	if (!au->path || (region && !au->region))
		abort();
	rc = path ? 0 : make_keys(au->path, e);
	if (!rc)
		rc = auth_keys_load(&au->keys, au->path, e);
	if (rc) {
		api_auth_destroy(au);
		return rc;
	}
	*out = au;
	return 0;
}

void api_auth_destroy(struct api_auth *au)
{
	if (!au)
		return;
	auth_keys_free(&au->keys);
	free(au->path);
	free(au->region);
	free(au);
}

void api_auth_reload(struct api_auth *au)
{
	struct auth_keys fresh = {0};
	struct err e = ERR_INIT;

	if (auth_keys_load(&fresh, au->path, &e)) {
		log_err("the keys stay as they were: %s", e.msg);
		return;
	}
	auth_keys_free(&au->keys);
	au->keys = fresh;
	log_info("%s: %zu keys", au->path, fresh.n);
}

const char *api_auth_path(const struct api_auth *au)
{
	return au->path;
}

// --- requests ------------------------------------------------------------------

// At most one line a second: anybody may knock.
static void note(struct api_auth *au, const char *type, const char *why)
{
	uint64_t now = util_now_ns() / 1000000000u;

	if (now == au->logged_s) {
		au->refused++;
		return;
	}
	if (au->refused)
		log_warn("%u more requests over TCP were refused", au->refused);
	au->logged_s = now;
	au->refused = 0;
	log_warn("refused over TCP: %s: %s", type, why);
}

bool api_auth_admit(struct api_auth *au, struct http_req *r,
		    const struct http_wire *w)
{
	struct sigv4_header h[HTTP_MAX_FIELDS];
	struct sigv4_request rq = {
	    .method = w->method,
	    .path = w->path,
	    .query = w->query,
	    .headers = h,
	    .nheaders = w->nfields,
	    .body = r->body,
	    .body_len = r->body_len,
	};
	struct sigv4_policy policy = {.keys = &au->keys, .region = au->region};
	struct err e = ERR_INIT;
	enum sigv4_verdict v;

	for (size_t i = 0; i < w->nfields; i++)
		h[i] = (struct sigv4_header){w->fields[i].name,
					     w->fields[i].value};
	v = sigv4_verify(&rq, &policy, (uint64_t)time(NULL), NULL, &e);
	if (v == SIGV4_OK)
		return true;
	note(au, sigv4_error_type(v), e.msg);
	http_error(r, SIGV4_HTTP_STATUS, sigv4_error_type(v), 0, NULL, e.msg);
	return false;
}
