// Flags, their defaults, and where thawd finds its other programs.
#include "config.h"
#include "arn.h"
#include "img.h"

#include <errno.h>
#include <getopt.h>
#include <grp.h>
#include <stdio.h>
#include <string.h>

const char eng_usage[] =
    "usage: thawd [flags]\n"
    "  --state DIR            images, microVMs, registry (/var/lib/thaw)\n"
    "  --socket PATH          API socket (/run/thaw/thaw.sock)\n"
    "  --socket-group GROUP   members may use the socket too (mode 0660)\n"
    "  --endpoint ADDR:PORT   serve microVMs' endpoints there; a port alone "
    "is\n"
    "                         one of 127.0.0.1 (they are not served)\n"
    "  --endpoint-domain NAME microVMs are UUID.NAME there (localhost)\n"
    "  --endpoint-cert FILE   its certificate chain, PEM (self-made, see\n"
    "                         endpointCa in GET /thaw/v1/host)\n"
    "  --endpoint-key FILE    and the key, PEM\n"
    "  --endpoint-plain       HTTP without TLS too; on loopback only\n"
    "  --listen ADDR:PORT     serve AWS's operations on TCP too, signed "
    "requests\n"
    "                         only; PORT alone is of 127.0.0.1 (off)\n"
    "  --keys FILE            keys that sign them, as ~/.aws/credentials\n"
    "                         (STATE/keys, made with one key if absent)\n"
    "  --region REGION        region in ARNs (us-east-1), and the only one "
    "that\n"
    "                         signatures may be for (any)\n"
    "  --memory-budget SIZE   guest memory promised at most, as 8G (no limit)\n"
    "  --template-budget SIZE memory for images' pages (half of the host's)\n"
    "  --kernel PATH          guest kernel, a vmlinux or bzImage\n"
    "  --initrd PATH          initramfs with thaw-agent for it\n"
    "  --shells N             prepared virtual machines kept ready (2)\n"
    "  --blanks N             prepared cells for machines of any size (2)\n"
    "  --max-cells N          microVMs and shells at most (4096)\n"
    "  --uid-base N           cells run as user ids from N on (2000000)\n"
    "  --jobs N               worker threads (2)\n"
    "  --bases DIR            base images for FROM (STATE/bases)\n"
    "  --s3-endpoint URL      where s3:// artifacts are (Amazon's)\n"
    "  --s3-region REGION     and their region (us-east-1)\n"
    "  --s3-credentials FILE  as ~/.aws/credentials, readable by root alone\n"
    "  --libexec DIR          where thaw-cell, thaw-mkdisk and the like are\n"
    "  --unserved-egress=accept  take runs with INTERNET_EGRESS, which "
    "nothing\n"
    "                         serves (by default they are refused)\n"
    "  --role ARN=FILE        microVMs with this executionRoleArn get FILE's\n"
    "                         credentials, as a credential process prints "
    "them\n"
    "                         (repeat for more)\n"
    "  --time-scale N         for tests: idle policies' and maximum durations\n"
    "                         pass N times as fast (1)\n"
    "  --log-level LEVEL      error, warn, info or debug (info)\n"
    "  --doctor [--json]      check this host and exit 0 or 1\n"
    "  --openapi              print the contract as OpenAPI 3.1\n"
    "  --version, --help\n";

enum {
	OPT_STATE = 256,
	OPT_SOCKET,
	OPT_GROUP,
	OPT_ENDPOINT,
	OPT_ENDPOINT_DOMAIN,
	OPT_ENDPOINT_CERT,
	OPT_ENDPOINT_KEY,
	OPT_ENDPOINT_PLAIN,
	OPT_LISTEN,
	OPT_KEYS,
	OPT_REGION,
	OPT_BUDGET,
	OPT_TEMPLATES,
	OPT_KERNEL,
	OPT_INITRD,
	OPT_SHELLS,
	OPT_BLANKS,
	OPT_MAX_CELLS,
	OPT_UID_BASE,
	OPT_JOBS,
	OPT_LIBEXEC,
	OPT_BASES,
	OPT_S3_ENDPOINT,
	OPT_S3_REGION,
	OPT_S3_CREDENTIALS,
	OPT_EGRESS,
	OPT_ROLE,
	OPT_TIME_SCALE,
	OPT_LOG_LEVEL,
	OPT_DOCTOR,
	OPT_JSON,
	OPT_OPENAPI,
	OPT_VERSION,
	OPT_HELP,
};

enum { MIN_TEMPLATES = 16 << 20 };

static const struct option options[] = {
    {"state", required_argument, NULL, OPT_STATE},
    {"socket", required_argument, NULL, OPT_SOCKET},
    {"socket-group", required_argument, NULL, OPT_GROUP},
    {"endpoint", required_argument, NULL, OPT_ENDPOINT},
    {"endpoint-domain", required_argument, NULL, OPT_ENDPOINT_DOMAIN},
    {"endpoint-cert", required_argument, NULL, OPT_ENDPOINT_CERT},
    {"endpoint-key", required_argument, NULL, OPT_ENDPOINT_KEY},
    {"endpoint-plain", no_argument, NULL, OPT_ENDPOINT_PLAIN},
    {"listen", required_argument, NULL, OPT_LISTEN},
    {"keys", required_argument, NULL, OPT_KEYS},
    {"region", required_argument, NULL, OPT_REGION},
    {"memory-budget", required_argument, NULL, OPT_BUDGET},
    {"template-budget", required_argument, NULL, OPT_TEMPLATES},
    {"kernel", required_argument, NULL, OPT_KERNEL},
    {"initrd", required_argument, NULL, OPT_INITRD},
    {"shells", required_argument, NULL, OPT_SHELLS},
    {"blanks", required_argument, NULL, OPT_BLANKS},
    {"max-cells", required_argument, NULL, OPT_MAX_CELLS},
    {"uid-base", required_argument, NULL, OPT_UID_BASE},
    {"jobs", required_argument, NULL, OPT_JOBS},
    {"libexec", required_argument, NULL, OPT_LIBEXEC},
    {"bases", required_argument, NULL, OPT_BASES},
    {"s3-endpoint", required_argument, NULL, OPT_S3_ENDPOINT},
    {"s3-region", required_argument, NULL, OPT_S3_REGION},
    {"s3-credentials", required_argument, NULL, OPT_S3_CREDENTIALS},
    {"unserved-egress", required_argument, NULL, OPT_EGRESS},
    {"role", required_argument, NULL, OPT_ROLE},
    {"time-scale", required_argument, NULL, OPT_TIME_SCALE},
    {"log-level", required_argument, NULL, OPT_LOG_LEVEL},
    {"doctor", no_argument, NULL, OPT_DOCTOR},
    {"json", no_argument, NULL, OPT_JSON},
    {"openapi", no_argument, NULL, OPT_OPENAPI},
    {"version", no_argument, NULL, OPT_VERSION},
    {"help", no_argument, NULL, OPT_HELP},
    {0},
};

static void set_text(char **dst, const char *v)
{
	free(*dst);
	*dst = strdup(v);
	if (!*dst)
		abort();
}

static char *join(const char *dir, const char *name)
{
	char *out;

	if (asprintf(&out, "%s/%s", dir, name) < 0)
		abort();
	return out;
}

static void add_role(struct eng_config *c, const char *map)
{
	c->roles = reallocarray(c->roles, c->nroles + 1, sizeof(*c->roles));
	if (!c->roles)
		abort();
	c->roles[c->nroles++] = map; // argv's, which stays
}

static int number(const char *flag, const char *text, unsigned long lo,
		  unsigned long hi, unsigned long *out, struct err *e)
{
	char *end;

	errno = 0;
	*out = strtoul(text, &end, 10);
	if (text[0] < '0' || text[0] > '9' || *end || errno || *out < lo ||
	    *out > hi)
		return err_set(e, -EINVAL,
			       "--%s takes a number from %lu to %lu, not "
			       "\"%.40s\"",
			       flag, lo, hi, text);
	return 0;
}

static int set_group(struct eng_config *c, const char *text, struct err *e)
{
	struct group *g = getgrnam(text);
	unsigned long n;

	c->has_group = true;
	if (g) {
		c->group = g->gr_gid;
		return 0;
	}
	if (number("socket-group", text, 0, 0xfffffffeul, &n, NULL))
		return err_set(e, -EINVAL,
			       "there is no group named \"%.60s\"; make it or "
			       "name another with --socket-group",
			       text);
	c->group = (gid_t)n;
	return 0;
}

// A DNS name in lower case, short enough for a UUID and a port besides it.
static int set_domain(char **dst, const char *v, struct err *e)
{
	size_t n = strlen(v);
	bool good = n && n <= 200 && v[0] != '.' && v[n - 1] != '.' &&
		    !strstr(v, "..") &&
		    strspn(v, "abcdefghijklmnopqrstuvwxyz"
			      "0123456789-.") == n;

	if (!good)
		return err_set(e, -EINVAL,
			       "--endpoint-domain takes a DNS name in lower "
			       "case, such as localhost, not \"%.60s\"",
			       v);
	set_text(dst, v);
	return 0;
}

static int set_endpoint(struct eng_config *c, int opt, const char *v,
			struct err *e)
{
	if (opt == OPT_ENDPOINT_DOMAIN)
		return set_domain(&c->endpoint_domain, v, e);
	if (opt == OPT_ENDPOINT)
		set_text(&c->endpoint_listen, v);
	else if (opt == OPT_ENDPOINT_CERT)
		set_text(&c->endpoint_cert, v);
	else if (opt == OPT_ENDPOINT_KEY)
		set_text(&c->endpoint_key, v);
	else
		c->endpoint_plain = true;
	return 0;
}

static int check_endpoint(const struct eng_config *c, struct err *e)
{
	if (!c->endpoint_cert != !c->endpoint_key)
		return err_set(e, -EINVAL,
			       "--endpoint-cert and --endpoint-key go "
			       "together");
	if (!c->endpoint_listen && (c->endpoint_cert || c->endpoint_plain))
		return err_set(e, -EINVAL,
			       "--endpoint-cert, --endpoint-key and "
			       "--endpoint-plain need --endpoint ADDR:PORT");
	return 0;
}

static int set_number(struct eng_config *c, int opt, const char *v,
		      struct err *e)
{
	unsigned long n = 0;
	int rc;

	switch (opt) {
	case OPT_SHELLS:
		rc = number("shells", v, 0, 256, &n, e);
		c->shells = (unsigned)n;
		return rc;
	case OPT_BLANKS:
		rc = number("blanks", v, 0, 256, &n, e);
		c->blanks = (unsigned)n;
		return rc;
	case OPT_MAX_CELLS:
		rc = number("max-cells", v, 1, 65536, &n, e);
		c->max_cells = (unsigned)n;
		return rc;
	case OPT_TIME_SCALE:
		rc = number("time-scale", v, 1, 1000, &n, e);
		c->time_scale = (unsigned)n;
		return rc;
	case OPT_JOBS:
		rc = number("jobs", v, 1, 16, &n, e);
		c->jobs = (unsigned)n;
		return rc;
	default:
		rc = number("uid-base", v, 1000, 0x7fffffff, &n, e);
		c->uid_base = (uint32_t)n;
		return rc;
	}
}

static int set_option(struct eng_config *c, int opt, const char *v,
		      char **libexec, struct err *e)
{
	switch (opt) {
	case OPT_STATE:
		set_text(&c->state_dir, v);
		return 0;
	case OPT_SOCKET:
		set_text(&c->socket_path, v);
		return 0;
	case OPT_GROUP:
		return set_group(c, v, e);
	case OPT_ENDPOINT:
	case OPT_ENDPOINT_DOMAIN:
	case OPT_ENDPOINT_CERT:
	case OPT_ENDPOINT_KEY:
	case OPT_ENDPOINT_PLAIN:
		return set_endpoint(c, opt, v, e);
	case OPT_LISTEN:
		set_text(&c->listen, v);
		return 0;
	case OPT_KEYS:
		set_text(&c->keys_path, v);
		return 0;
	case OPT_REGION:
		set_text(&c->region, v);
		return eng_arn_set_region(v, e);
	case OPT_BUDGET:
		if (util_parse_size(v, &c->memory_budget))
			return err_set(e, -EINVAL,
				       "--memory-budget takes a size such as "
				       "8G, not \"%.40s\"",
				       v);
		return 0;
	case OPT_TEMPLATES:
		if (util_parse_size(v, &c->template_budget) ||
		    c->template_budget < MIN_TEMPLATES)
			return err_set(e, -EINVAL,
				       "--template-budget takes a size such "
				       "as 8G, at least 16M, not \"%.40s\"",
				       v);
		return 0;
	case OPT_KERNEL:
		set_text(&c->kernel_path, v);
		return 0;
	case OPT_INITRD:
		set_text(&c->initrd_path, v);
		return 0;
	case OPT_BASES:
		set_text(&c->bases_dir, v);
		return 0;
	case OPT_S3_ENDPOINT:
		set_text(&c->s3_endpoint, v);
		return img_s3_endpoint(v, e);
	case OPT_S3_REGION:
		set_text(&c->s3_region, v);
		return 0;
	case OPT_S3_CREDENTIALS:
		set_text(&c->s3_credentials, v);
		return 0;
	case OPT_LIBEXEC:
		set_text(libexec, v);
		return 0;
	case OPT_EGRESS:
		c->accept_egress = !strcmp(v, "accept");
		if (c->accept_egress || !strcmp(v, "refuse"))
			return 0;
		return err_set(e, -EINVAL,
			       "--unserved-egress is accept or refuse, not "
			       "\"%.40s\"",
			       v);
	case OPT_ROLE:
		add_role(c, v);
		return 0;
	case OPT_LOG_LEVEL:
		if (log_level_parse(v, &c->log_level))
			return err_set(e, -EINVAL,
				       "--log-level is error, warn, info or "
				       "debug, not \"%.40s\"",
				       v);
		return 0;
	case OPT_DOCTOR:
		c->doctor = true;
		return 0;
	case OPT_JSON:
		c->doctor_json = true;
		return 0;
	case OPT_OPENAPI:
		c->openapi = true;
		return 0;
	case OPT_VERSION:
		c->version = true;
		return 0;
	case OPT_HELP:
		c->help = true;
		return 0;
	default:
		return set_number(c, opt, v, e);
	}
}

// Beside our own executable, then in ../libexec/thaw.
static char *find_program(const char *name, const char *libexec)
{
	char self[4096], *slash, *path;
	ssize_t n;

	if (libexec)
		return join(libexec, name);
	n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	if (n <= 0)
		return strdup(name);
	self[n] = '\0';
	slash = strrchr(self, '/');
	*slash = '\0';
	path = join(self, name);
	if (!access(path, X_OK))
		return path;
	free(path);
	if (asprintf(&path, "%s/../libexec/thaw/%s", self, name) < 0)
		abort();
	return path;
}

int eng_config_parse(struct eng_config *c, int argc, char **argv, struct err *e)
{
	cleanup_free char *libexec = NULL;
	int opt, rc = 0;

	*c = (struct eng_config){
	    .shells = 2,
	    .time_scale = 1,
	    .blanks = 2,
	    .jobs = 2,
	    .max_cells = 4096,
	    .uid_base = 2000000,
	    .log_level = LOG_LVL_INFO,
	};
	set_text(&c->state_dir, "/var/lib/thaw");
	set_text(&c->socket_path, "/run/thaw/thaw.sock");
	set_text(&c->endpoint_domain, "localhost");
	optind = 1;
	opterr = 0;
	while (!rc &&
	       (opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (opt == '?')
			return err_set(e, -EINVAL,
				       "%s is unknown or lacks its value; see "
				       "thawd --help",
				       argv[optind - 1]);
		rc = set_option(c, opt, optarg, &libexec, e);
	}
	if (!rc && optind < argc)
		rc = err_set(e, -EINVAL,
			     "\"%.60s\" is not a flag; see thawd --help",
			     argv[optind]);
	if (!rc)
		rc = check_endpoint(c, e);
	if (!rc && c->keys_path && !c->listen)
		rc = err_set(e, -EINVAL,
			     "--keys are of --listen, which is not given");
	if (rc)
		return rc;
	c->store_dir = join(c->state_dir, "store");
	c->log_dir = join(c->state_dir, "logs");
	c->tmp_dir = join(c->state_dir, "tmp");
	c->registry_path = join(c->state_dir, "registry.db");
	c->cell_path = find_program("thaw-cell", libexec);
	c->mkdisk_path = find_program("thaw-mkdisk", libexec);
	c->mkroot_path = find_program("thaw-mkroot", libexec);
	if (!c->bases_dir)
		c->bases_dir = join(c->state_dir, "bases");
	return 0;
}

void eng_config_free(struct eng_config *c)
{
	free(c->state_dir);
	free(c->socket_path);
	free(c->listen);
	free(c->keys_path);
	free(c->region);
	free(c->roles);
	free(c->kernel_path);
	free(c->initrd_path);
	free(c->cell_path);
	free(c->endpoint_listen);
	free(c->endpoint_domain);
	free(c->endpoint_cert);
	free(c->endpoint_key);
	free(c->mkdisk_path);
	free(c->mkroot_path);
	free(c->bases_dir);
	free(c->s3_endpoint);
	free(c->s3_region);
	free(c->s3_credentials);
	free(c->store_dir);
	free(c->log_dir);
	free(c->tmp_dir);
	free(c->registry_path);
}
