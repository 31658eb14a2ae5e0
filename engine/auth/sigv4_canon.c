// The canonical request: what signer and verifier both hash, in AWS's words
//
//   METHOD \n path \n query \n headers \n signed names \n digest of the body
//
// with path and query encoded, query and headers sorted. AWS's rules allow
// several spellings of one request ("/a/./b" and "/a/b", "%3a" and "%3A", "+"
// and "%20"), so a verifier that normalises would take a request that somebody
// altered on the way, and its router might read it in another way than it was
// signed. Here each canonical request has one spelling, up to the order of the
// query and white space at the ends of headers: the others are refused. No AWS
// SDK sends them.
#include "auth_internal.h"

#include <ctype.h>
#include <errno.h>
#include <openssl/evp.h>
#include <string.h>
#include <strings.h>

static bool unreserved(unsigned char c)
{
	return (c < 0x80 && isalnum(c)) || c == '-' || c == '.' || c == '_' ||
	       c == '~';
}

static bool visible(unsigned char c)
{
	return c > 0x20 && c < 0x7f;
}

static size_t escape(char *dst, unsigned char c)
{
	static const char digits[] = "0123456789ABCDEF";

	dst[0] = '%';
	dst[1] = digits[c >> 4];
	dst[2] = digits[c & 15];
	return 3;
}

static int refuse(struct err *e, const char *why)
{
	return err_set(e, -EINVAL, "the signature is not checked: %s", why);
}

// --- the path ---------------------------------------------------------------

// A segment that RFC 3986's normalisation would take away.
static bool vanishing(const char *p, size_t n, bool last)
{
	return (!n && !last) || (n == 1 && p[0] == '.') ||
	       (n == 2 && p[0] == '.' && p[1] == '.');
}

static int check_path(const char *path, struct err *e)
{
	if (!path || path[0] != '/')
		return refuse(e, "the path does not begin with /");
	if (strlen(path) > SIGV4_TARGET_MAX)
		return refuse(e, "the path is longer than 16 KiB");
	for (const char *p = path; *p; p++) {
		if (!visible((unsigned char)*p) || *p == '?' || *p == '#')
			return refuse(e, "the path has bytes that must be "
					 "percent-encoded");
	}
	for (const char *p = path + 1;;) {
		size_t n = strcspn(p, "/");

		if (vanishing(p, n, !p[n]))
			return refuse(e, "the path has an empty segment, \".\" "
					 "or \"..\"");
		if (!p[n])
			return 0;
		p += n + 1;
	}
}

// The path as received is encoded once more: AWS's rule for every service but
// S3.
static void put_path(EVP_MD_CTX *md, const char *path)
{
	char hex[3];

	for (const char *p = path; *p; p++) {
		if (unreserved((unsigned char)*p) || *p == '/')
			EVP_DigestUpdate(md, p, 1);
		else
			EVP_DigestUpdate(md, hex,
					 escape(hex, (unsigned char)*p));
	}
}

// --- the query --------------------------------------------------------------

struct param {
	struct part k, v;
};

// The byte that two digits of hex stand for, upper case only; -1.
static int hex_byte(const char *p, size_t n)
{
	static const char digits[] = "0123456789ABCDEF";
	const char *hi, *lo;

	if (n < 2 || !p[0] || !p[1])
		return -1;
	hi = strchr(digits, p[0]);
	lo = strchr(digits, p[1]);
	return hi && lo ? (int)((hi - digits) << 4 | (lo - digits)) : -1;
}

// Encodes what is not encoded yet, and takes no second spelling.
static int encode_part(char **dst, const char *src, size_t n, struct part *out,
		       struct err *e)
{
	char *d = *dst;

	out->p = d;
	for (size_t i = 0; i < n; i++) {
		unsigned char c = (unsigned char)src[i];

		if (c == '%') {
			int v = hex_byte(src + i + 1, n - i - 1);

			if (v < 0 || unreserved((unsigned char)v))
				return refuse(e,
					      "the query has a %-escape that "
					      "is broken, in lower case, or "
					      "not needed");
			memcpy(d, src + i, 3);
			d += 3;
			i += 2;
		} else if (unreserved(c)) {
			*d++ = (char)c;
		} else if (c == '+' || !visible(c)) {
			return refuse(e, "the query has a + or a byte that "
					 "must be percent-encoded");
		} else {
			d += escape(d, c);
		}
	}
	out->n = (size_t)(d - out->p);
	*dst = d;
	return 0;
}

static int by_bytes(struct part a, struct part b)
{
	int d = memcmp(a.p, b.p, MIN(a.n, b.n));

	return d ? d : (a.n > b.n) - (a.n < b.n);
}

static int by_param(const void *pa, const void *pb)
{
	const struct param *a = pa, *b = pb;
	int d = by_bytes(a->k, b->k);

	return d ? d : by_bytes(a->v, b->v);
}

static int split_query(struct param *params, size_t *n, char *dst,
		       const char *query, struct err *e)
{
	const char *p = query;

	for (*n = 0;; p++) {
		size_t len = strcspn(p, "&");
		const char *eq = memchr(p, '=', len);
		struct param *out;
		int rc;

		if (*n == SIGV4_PARAMS_MAX)
			return refuse(e, "the query has more than 256 "
					 "parameters");
		if (!eq || eq == p)
			return refuse(e, "a parameter of the query is not "
					 "NAME=VALUE");
		out = &params[(*n)++];
		rc = encode_part(&dst, p, (size_t)(eq - p), &out->k, e);
		if (!rc)
			rc =
			    encode_part(&dst, eq + 1,
					len - 1 - (size_t)(eq - p), &out->v, e);
		if (rc)
			return rc;
		p += len;
		if (!*p)
			return 0;
	}
}

static int put_query(EVP_MD_CTX *md, const char *query, struct err *e)
{
	cleanup_free char *text = NULL;
	cleanup_free struct param *params = NULL;
	size_t n, len = query ? strlen(query) : 0;
	int rc;

	if (!len)
		return 0;
	if (len > SIGV4_TARGET_MAX)
		return refuse(e, "the query is longer than 16 KiB");
	text = malloc(3 * len);
	params = calloc(SIGV4_PARAMS_MAX, sizeof(*params));
	if (!text || !params)
		return err_set(e, -ENOMEM, "no memory to check a signature");
	rc = split_query(params, &n, text, query, e);
	if (rc)
		return rc;
	qsort(params, n, sizeof(*params), by_param);
	for (size_t i = 0; i < n; i++) {
		if (i)
			EVP_DigestUpdate(md, "&", 1);
		EVP_DigestUpdate(md, params[i].k.p, params[i].k.n);
		EVP_DigestUpdate(md, "=", 1);
		EVP_DigestUpdate(md, params[i].v.p, params[i].v.n);
	}
	return 0;
}

// --- headers ----------------------------------------------------------------

const char *sigv4_header(const struct sigv4_request *r, const char *name,
			 size_t len, size_t *count)
{
	const char *value = NULL;

	*count = 0;
	for (size_t i = 0; i < r->nheaders; i++) {
		const struct sigv4_header *h = &r->headers[i];

		if (strlen(h->name) != len || strncasecmp(h->name, name, len))
			continue;
		value = h->value;
		++*count;
	}
	return *count == 1 ? value : NULL;
}

// Trimmed, and runs of spaces made one.
static int put_value(EVP_MD_CTX *md, const char *v, struct err *e)
{
	bool space = false;
	size_t n;

	v += strspn(v, " ");
	for (n = strlen(v); n && v[n - 1] == ' '; n--)
		;
	for (size_t i = 0; i < n; i++) {
		unsigned char c = (unsigned char)v[i];

		if (c < 0x20 || c == 0x7f)
			return refuse(e, "a signed header has control "
					 "characters");
		if (c != ' ')
			EVP_DigestUpdate(md, v + i, 1);
		else if (!space)
			EVP_DigestUpdate(md, " ", 1);
		space = c == ' ';
	}
	return 0;
}

static int put_headers(EVP_MD_CTX *md, const struct sigv4_request *r,
		       const struct sigv4_names *names, struct err *e)
{
	int rc = 0;

	for (size_t i = 0; i < names->n && !rc; i++) {
		const char *name = names->name[i].p;
		size_t count, len = names->name[i].len;
		const char *v = sigv4_header(r, name, len, &count);

		if (!v)
			return err_set(e, -EINVAL,
				       "the signed header %.*s is there %zu "
				       "times, not once",
				       (int)MIN(len, 64u), name, count);
		EVP_DigestUpdate(md, name, len);
		EVP_DigestUpdate(md, ":", 1);
		rc = put_value(md, v, e);
		EVP_DigestUpdate(md, "\n", 1);
	}
	EVP_DigestUpdate(md, "\n", 1);
	for (size_t i = 0; i < names->n && !rc; i++) {
		if (i)
			EVP_DigestUpdate(md, ";", 1);
		EVP_DigestUpdate(md, names->name[i].p, names->name[i].len);
	}
	return rc;
}

static int check_method(const char *m, struct err *e)
{
	size_t n = m ? strspn(m, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") : 0;

	return !n || m[n] || n > 16 ? refuse(e, "the method is unknown") : 0;
}

int sigv4_canon_digest(const struct sigv4_request *r,
		       const struct sigv4_names *names,
		       const char body_hex[static 64], uint8_t out[static 32],
		       struct err *e)
{
	EVP_MD_CTX *md = NULL;
	int rc = check_method(r->method, e);

	if (!rc)
		rc = check_path(r->path, e);
	if (rc)
		return rc;
	md = EVP_MD_CTX_new();
	if (!md || !EVP_DigestInit_ex(md, EVP_sha256(), NULL))
		rc = err_set(e, -ENOMEM, "no memory to check a signature");
	if (!rc) {
		EVP_DigestUpdate(md, r->method, strlen(r->method));
		EVP_DigestUpdate(md, "\n", 1);
		put_path(md, r->path);
		EVP_DigestUpdate(md, "\n", 1);
		rc = put_query(md, r->query, e);
		EVP_DigestUpdate(md, "\n", 1);
	}
	if (!rc)
		rc = put_headers(md, r, names, e);
	if (!rc) {
		EVP_DigestUpdate(md, "\n", 1);
		EVP_DigestUpdate(md, body_hex, 64);
		if (!EVP_DigestFinal_ex(md, out, NULL))
			rc = err_set(e, -EIO, "OpenSSL's SHA-256 failed");
	}
	EVP_MD_CTX_free(md);
	return rc;
}
