// TLS of the endpoint: 1.2 or newer, h2 and http/1.1 by ALPN.
//
// With a given certificate that one is shown. Else the endpoint has an authority
// of its own, made once and kept in tls_dir (DOMAIN.ca.pem, and DOMAIN.ca.key with
// mode 0600), that may sign for names in the domain only; a client trusts that
// one file, or its copy where others may read it. Certificates are made for each host name when it is asked for (SNI),
// since OpenSSL and Node.js accept no wildcard right under a top-level name, and
// the domain is localhost by default. A client without SNI gets one for the
// domain and *.domain.
#include "front_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include <event2/bufferevent_ssl.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

enum {
	CA_DAYS = 3650,
	LEAF_DAYS = 397, // more is refused by some clients
	LEAF_CACHE = 64,
	LEAF_KEEP_S = 30 * 86400,
};

struct leaf {
	char name[256];
	X509 *cert;
	uint64_t made_ns;
};

struct front_tls {
	SSL_CTX *ctx;
	char *domain, *ca_path;
	X509 *ca;
	EVP_PKEY *ca_key, *leaf_key;
	struct leaf cache[LEAF_CACHE];
	unsigned turn; // the entry that is replaced next
};

// OpenSSL's reason behind a sentence of ours.
static int ssl_err(struct err *e, int rc, const char *what)
{
	char text[160];

	ERR_error_string_n(ERR_get_error(), text, sizeof(text));
	ERR_clear_error();
	return err_set(e, rc, "%s: %s", what, text);
}

// --- making certificates -------------------------------------------------------------

static bool extend(X509 *x, X509 *issuer, int nid, const char *value)
{
	X509V3_CTX v3;
	X509_EXTENSION *ext;
	bool good;

	X509V3_set_ctx(&v3, issuer, x, NULL, NULL, 0);
	ext = X509V3_EXT_conf_nid(NULL, &v3, nid, value);
	good = ext && X509_add_ext(x, ext, -1);
	X509_EXTENSION_free(ext);
	return good;
}

static bool fill(X509 *x, EVP_PKEY *key, const char *cn, int days)
{
	unsigned char serial[16];
	BIGNUM *bn;
	X509_NAME *name = X509_get_subject_name(x);
	bool good;

	util_random(serial, sizeof(serial));
	serial[0] &= 0x7f;
	bn = BN_bin2bn(serial, sizeof(serial), NULL);
	good = bn && BN_to_ASN1_INTEGER(bn, X509_get_serialNumber(x));
	BN_free(bn);
	return good && X509_set_version(x, 2) &&
	       X509_gmtime_adj(X509_getm_notBefore(x), -86400) &&
	       X509_time_adj_ex(X509_getm_notAfter(x), days, 0, NULL) &&
	       X509_set_pubkey(x, key) &&
	       X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC,
					  (const unsigned char *)cn, -1, -1, 0);
}

static X509 *make_ca(EVP_PKEY *key, const char *domain)
{
	X509 *x = X509_new();
	char cn[64], names[300];

	snprintf(cn, sizeof(cn), "thaw endpoint %.40s", domain);
	snprintf(names, sizeof(names), "critical,permitted;DNS:%s", domain);
	if (x && fill(x, key, cn, CA_DAYS) &&
	    X509_set_issuer_name(x, X509_get_subject_name(x)) &&
	    extend(x, x, NID_basic_constraints, "critical,CA:TRUE,pathlen:0") &&
	    extend(x, x, NID_key_usage, "critical,keyCertSign,cRLSign") &&
	    extend(x, x, NID_subject_key_identifier, "hash") &&
	    extend(x, x, NID_name_constraints, names) &&
	    X509_sign(x, key, EVP_sha256()))
		return x;
	X509_free(x);
	return NULL;
}

// wild: *.name too.
static X509 *make_leaf(struct front_tls *t, const char *name, bool wild)
{
	X509 *x = X509_new();
	char cn[64], san[600];

	snprintf(cn, sizeof(cn), "%.63s", name);
	snprintf(san, sizeof(san), wild ? "DNS:%s,DNS:*.%s" : "DNS:%s", name,
		 name);
	if (x && fill(x, t->leaf_key, cn, LEAF_DAYS) &&
	    X509_set_issuer_name(x, X509_get_subject_name(t->ca)) &&
	    extend(x, t->ca, NID_basic_constraints, "critical,CA:FALSE") &&
	    extend(x, t->ca, NID_key_usage, "critical,digitalSignature") &&
	    extend(x, t->ca, NID_ext_key_usage, "serverAuth") &&
	    extend(x, t->ca, NID_subject_key_identifier, "hash") &&
	    extend(x, t->ca, NID_authority_key_identifier, "keyid:always") &&
	    extend(x, t->ca, NID_subject_alt_name, san) &&
	    X509_sign(x, t->ca_key, EVP_sha256()))
		return x;
	X509_free(x);
	return NULL;
}

// --- the authority on disk -----------------------------------------------------------

static int read_ca(struct front_tls *t, const char *key_path, struct err *e)
{
	FILE *f = fopen(t->ca_path, "re");
	struct stat st;

	if (!f)
		return errno == ENOENT ? -ENOENT
				       : err_sys(e, "open %s", t->ca_path);
	t->ca = PEM_read_X509(f, NULL, NULL, NULL);
	fclose(f);
	f = fopen(key_path, "re");
	if (!f)
		return err_sys(e, "open %s", key_path);
	if (!fstat(fileno(f), &st) && S_ISREG(st.st_mode) &&
	    !(st.st_mode & 077) && st.st_uid == geteuid())
		t->ca_key = PEM_read_PrivateKey(f, NULL, NULL, NULL);
	fclose(f);
	if (!t->ca || !t->ca_key ||
	    X509_check_private_key(t->ca, t->ca_key) != 1)
		return ssl_err(e, -EBADMSG,
			       "the endpoint's authority in the TLS folder is "
			       "damaged, or its key is readable by others; "
			       "remove both files (DOMAIN.ca.*) to have a new "
			       "one made");
	if (X509_cmp_current_time(X509_get0_notAfter(t->ca)) <= 0)
		return -ENOENT; // over: a new one
	return 0;
}

// Writes DIR/NAME atomically with the mode given.
static int write_pem(const char *path, mode_t mode, X509 *cert, EVP_PKEY *key,
		     struct err *e)
{
	char tmp[4096 + 8];
	cleanup_fd int fd = -1;
	FILE *f;
	bool good;

	snprintf(tmp, sizeof(tmp), "%s.tmp", path);
	unlink(tmp);
	fd = open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW,
		  mode);
	f = fd < 0 ? NULL : fdopen(fd, "w");
	if (!f || fchmod(fd, mode)) // whatever the umask is
		return err_sys(e, "make %s", tmp);
	fd_steal(&fd);
	good = cert ? PEM_write_X509(f, cert)
		    : PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL);
	good = !fflush(f) && good && !fsync(fileno(f));
	good = !fclose(f) && good;
	if (!good || rename(tmp, path))
		return err_sys(e, "write %s", path);
	return 0;
}

static int open_ca(struct front_tls *t, const char *dir, struct err *e)
{
	char key_path[4096];
	int rc;

	if (mkdir(dir, 0700) && errno != EEXIST)
		return err_sys(e, "make the directory %s", dir);
	if (asprintf(&t->ca_path, "%s/%s.ca.pem", dir, t->domain) < 0) {
		t->ca_path = NULL;
		return err_set(e, -ENOMEM, "no memory for TLS");
	}
	if (snprintf(key_path, sizeof(key_path), "%s/%s.ca.key", dir,
		     t->domain) >= (int)sizeof(key_path))
		return err_set(e, -ENAMETOOLONG, "the path %s is too long",
			       dir);
	rc = read_ca(t, key_path, e);
	if (rc != -ENOENT)
		return rc;
	X509_free(t->ca);
	EVP_PKEY_free(t->ca_key);
	t->ca_key = EVP_EC_gen("P-256");
	t->ca = t->ca_key ? make_ca(t->ca_key, t->domain) : NULL;
	if (!t->ca)
		return ssl_err(e, -EIO, "make the endpoint's authority");
	// The certificate last: without it there is no authority.
	rc = write_pem(key_path, 0600, NULL, t->ca_key, e);
	return rc ? rc : write_pem(t->ca_path, 0644, t->ca, NULL, e);
}

static int copy_ca(struct front_tls *t, const char *to, struct err *e)
{
	int rc = write_pem(to, 0644, t->ca, NULL, e);

	if (rc)
		return rc;
	free(t->ca_path);
	t->ca_path = realpath(to, NULL); // said to clients in other folders
	return t->ca_path ? 0 : err_sys(e, "resolve the path %s", to);
}

// --- handshakes ------------------------------------------------------------------------

static bool in_domain(const struct front_tls *t, const char *name)
{
	size_t n = strlen(name), d = strlen(t->domain);

	if (n > 250 || n <= d ||
	    strspn(name, "abcdefghijklmnopqrstuvwxyz"
			 "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
			 "0123456789.-") != n)
		return false;
	return name[n - d - 1] == '.' &&
	       strcasecmp(name + n - d, t->domain) == 0;
}

static X509 *leaf_for(struct front_tls *t, const char *name)
{
	uint64_t now = util_now_ns();
	struct leaf *l;

	for (unsigned i = 0; i < LEAF_CACHE; i++) {
		l = &t->cache[i];
		if (l->cert && strcasecmp(l->name, name) == 0 &&
		    now - l->made_ns < LEAF_KEEP_S * 1000000000ull)
			return l->cert;
	}
	l = &t->cache[t->turn++ % LEAF_CACHE];
	X509_free(l->cert);
	l->cert = make_leaf(t, name, false);
	l->made_ns = now;
	snprintf(l->name, sizeof(l->name), "%s", name);
	return l->cert;
}

static int on_name(SSL *ssl, int *alert, void *arg)
{
	struct front_tls *t = arg;
	const char *name = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name);
	X509 *cert;

	(void)alert;
	if (!name || !t->ca || !in_domain(t, name))
		return SSL_TLSEXT_ERR_NOACK;
	cert = leaf_for(t, name);
	if (cert && SSL_use_certificate(ssl, cert) == 1 &&
	    SSL_use_PrivateKey(ssl, t->leaf_key) == 1)
		return SSL_TLSEXT_ERR_OK;
	ERR_clear_error();
	return SSL_TLSEXT_ERR_NOACK;
}

static int on_alpn(SSL *ssl, const unsigned char **out, unsigned char *len,
		   const unsigned char *in, unsigned n, void *arg)
{
	static const unsigned char ours[] = "\x02h2\x08http/1.1";
	unsigned char *chosen;

	(void)ssl;
	(void)arg;
	if (SSL_select_next_proto(&chosen, len, ours, sizeof(ours) - 1, in,
				  n) != OPENSSL_NPN_NEGOTIATED)
		return SSL_TLSEXT_ERR_ALERT_FATAL;
	*out = chosen;
	return SSL_TLSEXT_ERR_OK;
}

// --- life --------------------------------------------------------------------------------

static int given(struct front_tls *t, const struct front_config *cfg,
		 struct err *e)
{
	char what[300];

	snprintf(what, sizeof(what),
		 "use the certificate %.100s with key %.100s", cfg->cert,
		 cfg->key ? cfg->key : "(none given)");
	if (!cfg->key ||
	    SSL_CTX_use_certificate_chain_file(t->ctx, cfg->cert) != 1 ||
	    SSL_CTX_use_PrivateKey_file(t->ctx, cfg->key, SSL_FILETYPE_PEM) !=
		1 ||
	    SSL_CTX_check_private_key(t->ctx) != 1)
		return ssl_err(e, -EINVAL, what);
	return 0;
}

static int self_made(struct front_tls *t, const struct front_config *cfg,
		     struct err *e)
{
	X509 *leaf = NULL;
	int rc = open_ca(t, cfg->tls_dir, e);

	if (!rc && cfg->ca_copy)
		rc = copy_ca(t, cfg->ca_copy, e);
	if (rc)
		return rc;
	t->leaf_key = EVP_EC_gen("P-256");
	if (t->leaf_key)
		leaf = make_leaf(t, t->domain, true);
	if (!leaf || SSL_CTX_use_certificate(t->ctx, leaf) != 1 ||
	    SSL_CTX_use_PrivateKey(t->ctx, t->leaf_key) != 1)
		rc = ssl_err(e, -EIO, "make the endpoint's certificate");
	X509_free(leaf);
	return rc;
}

static bool domain_valid(const char *d)
{
	size_t n = strlen(d);

	return n && n <= 200 && *d != '.' && *d != '-' && d[n - 1] != '.' &&
	       !strstr(d, "..") &&
	       strspn(d, "abcdefghijklmnopqrstuvwxyz0123456789.-") == n;
}

int front_tls_create(struct front_tls **out, const struct front_config *cfg,
		     struct err *e)
{
	struct front_tls *t;
	int rc;

	*out = NULL;
	if (!domain_valid(cfg->domain))
		return err_set(e, -EINVAL,
			       "the endpoint's domain %s is not a host name in "
			       "lower case",
			       cfg->domain);
	t = calloc(1, sizeof(*t));
	if (!t)
		return err_set(e, -ENOMEM, "no memory for TLS");
	t->domain = strdup(cfg->domain);
	t->ctx = SSL_CTX_new(TLS_server_method());
	if (!t->domain || !t->ctx) {
		front_tls_destroy(t);
		return err_set(e, -ENOMEM, "no memory for TLS");
	}
	SSL_CTX_set_min_proto_version(t->ctx, TLS1_2_VERSION);
	SSL_CTX_set_options(t->ctx, SSL_OP_NO_RENEGOTIATION |
					SSL_OP_NO_COMPRESSION |
					SSL_OP_CIPHER_SERVER_PREFERENCE);
	SSL_CTX_set_mode(t->ctx, SSL_MODE_RELEASE_BUFFERS);
	SSL_CTX_set_alpn_select_cb(t->ctx, on_alpn, t);
	SSL_CTX_set_tlsext_servername_callback(t->ctx, on_name);
	SSL_CTX_set_tlsext_servername_arg(t->ctx, t);
	rc = cfg->cert ? given(t, cfg, e) : self_made(t, cfg, e);
	if (rc) {
		front_tls_destroy(t);
		return rc;
	}
	*out = t;
	return 0;
}

void front_tls_destroy(struct front_tls *t)
{
	if (!t)
		return;
	for (unsigned i = 0; i < LEAF_CACHE; i++)
		X509_free(t->cache[i].cert);
	SSL_CTX_free(t->ctx);
	X509_free(t->ca);
	EVP_PKEY_free(t->ca_key);
	EVP_PKEY_free(t->leaf_key);
	free(t->domain);
	free(t->ca_path);
	free(t);
}

const char *front_tls_ca_path(const struct front_tls *t)
{
	return t->ca_path;
}

struct bufferevent *front_tls_accept(struct front_tls *t,
				     struct event_base *base, int fd)
{
	SSL *ssl = SSL_new(t->ctx);
	struct bufferevent *bev;

	if (!ssl)
		return NULL;
	bev = bufferevent_openssl_socket_new(
	    base, fd, ssl, BUFFEREVENT_SSL_ACCEPTING, BEV_OPT_CLOSE_ON_FREE);
	if (!bev)
		SSL_free(ssl);
	else // HTTP says by itself whether a message is whole
		bufferevent_openssl_set_allow_dirty_shutdown(bev, 1);
	return bev;
}

bool front_tls_is_h2(struct bufferevent *bev)
{
	SSL *ssl = bufferevent_openssl_get_ssl(bev);
	const unsigned char *p = NULL;
	unsigned n = 0;

	if (ssl)
		SSL_get0_alpn_selected(ssl, &p, &n);
	return n == 2 && memcmp(p, "h2", 2) == 0;
}

void front_tls_bye(struct bufferevent *bev)
{
	SSL *ssl = bufferevent_openssl_get_ssl(bev);

	if (ssl) {
		SSL_shutdown(ssl);
		ERR_clear_error();
	}
}
