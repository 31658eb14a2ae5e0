// What leaves a build: /work/rootfs.tar and /work/config.json.
//
// The configuration, in one object: "argv" (ENTRYPOINT and CMD), "env"
// ("KEY=VALUE"), "user", "cwd", "ports" (TCP numbers, those that the Dockerfile
// names first, in its order), "volumes" (absolute paths).
#include "mkroot.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum {
	INSPECT_MAX = 16 * 1024 * 1024,
	CONFIG_MAX = 256 * 1024, // img.c reads no more
	ACCOUNTS_MAX = 4 * 1024 * 1024,
};

struct text { // what a program wrote
	char *p;
	size_t n, cap;
};

static void collect(void *ctx, const char *p, size_t n)
{
	struct text *t = ctx;
	char *grown;

	if (t->n + n + 2 > t->cap) {
		if (t->cap >= INSPECT_MAX)
			return;
		grown = realloc(t->p, MAX(2 * t->cap, (size_t)64 * 1024));
		if (!grown)
			return;
		t->p = grown;
		t->cap = MAX(2 * t->cap, (size_t)64 * 1024);
	}
	memcpy(t->p + t->n, p, n);
	t->n += n;
	// Lines longer than MR_LINE come in pieces: only a short one ended.
	if (n < MR_LINE)
		t->p[t->n++] = '\n';
	t->p[t->n] = '\0';
}

static int ask(char *const argv[], struct text *t, uint64_t deadline_ns,
	       struct err *e)
{
	struct mr_run r = {.argv = argv,
			   .line = collect,
			   .ctx = t,
			   .deadline_ns = deadline_ns,
			   .reserve = MR_RESERVE / 4};
	int rc = mr_run(&r, e);

	if (rc)
		return rc;
	if (r.disk_full)
		return err_set(e, -ENOSPC, "the disk is full");
	if (r.timed_out)
		return err_set(e, -ETIMEDOUT, "the build took too long");
	if (WIFSIGNALED(r.status) && WTERMSIG(r.status) == SIGXFSZ)
		return err_set(e, -ENOSPC,
			       "the root file system is larger than is "
			       "allowed");
	if (!WIFEXITED(r.status) || WEXITSTATUS(r.status))
		return err_set(e, -EIO, "%s %s failed: %.200s", argv[0],
			       argv[1], t->p ? t->p : "");
	return t->p ? 0 : err_set(e, -EIO, "%s said nothing", argv[0]);
}

// --- configuration ---------------------------------------------------------

static json_t *strings(json_t *config, const char *name)
{
	json_t *list = json_object_get(config, name), *v;
	size_t i;

	if (!json_is_array(list))
		return json_array();
	json_array_foreach(list, i,
			   v) if (!json_is_string(v)) return json_array();
	return json_incref(list);
}

// buildah runs the shell form of ENTRYPOINT and CMD by /bin/sh whatever SHELL
// says; a Dockerfile means the SHELL before it.
static json_t *command(const struct dockerfile *d, json_t *config,
		       const char *name, const char *word)
{
	const struct dockerfile_instr *in = dockerfile_last(d, word),
				      *set = dockerfile_last(d, "SHELL");
	json_t *list = strings(config, name), *shell, *out;
	const char *first = json_string_value(json_array_get(list, 0)),
		   *second = json_string_value(json_array_get(list, 1));

	if (!in || (set && set->line > in->line) ||
	    json_array_size(list) != 3 || !first || strcmp(first, "/bin/sh") ||
	    !second || strcmp(second, "-c") || *in->args == '[')
		return list;
	shell = strings(config, "Shell");
	if (!json_array_size(shell)) {
		json_decref(shell);
		return list;
	}
	out = json_copy(shell);
	json_array_append(out, json_array_get(list, 2));
	json_decref(shell);
	json_decref(list);
	return out;
}

static json_t *argv_of(const struct dockerfile *d, json_t *config)
{
	json_t *argv = command(d, config, "Entrypoint", "ENTRYPOINT");
	json_t *all = json_copy(argv);
	json_t *cmd = command(d, config, "Cmd", "CMD");

	json_array_extend(all, cmd);
	json_decref(argv);
	json_decref(cmd);
	return all;
}

static json_t *ports_of(const struct dockerfile *d, json_t *config)
{
	json_t *map = json_object_get(config, "ExposedPorts"), *out;
	uint16_t first[DOCKERFILE_PORTS_MAX];
	size_t n = dockerfile_ports(d, first);
	bool *seen = calloc(65536, sizeof(*seen));
	const char *key;
	char name[16], *end;
	json_t *v;

	out = json_array();
	for (size_t i = 0; seen && i < n; i++) {
		snprintf(name, sizeof(name), "%u/tcp", first[i]);
		if (!json_object_get(map, name) || seen[first[i]])
			continue;
		json_array_append_new(out, json_integer(first[i]));
		seen[first[i]] = true;
	}
	json_object_foreach(map, key, v)
	{
		unsigned long port = strtoul(key, &end, 10);

		if (!seen || !port || port > 65535 || seen[port] ||
		    strcmp(end, "/tcp") != 0 || json_array_size(out) >= 1000)
			continue;
		json_array_append_new(out, json_integer((json_int_t)port));
		seen[port] = true;
	}
	free(seen);
	return out;
}

static json_t *volumes_of(json_t *config)
{
	json_t *out = json_array(), *v;
	const char *key;

	json_object_foreach(json_object_get(config, "Volumes"), key, v)
	{
		if (key[0] == '/' && json_array_size(out) < 1000)
			json_array_append_new(out, json_string(key));
	}
	return out;
}

static const char *text_of(json_t *config, const char *name)
{
	const char *s = json_string_value(json_object_get(config, name));

	return s ? s : "";
}

// The built image's configuration in the form above; NULL and an error.
static json_t *config_of(const struct dockerfile *d, struct mr_shared *sh,
			 uint64_t deadline_ns, struct err *e)
{
	char *const argv[] = {"/usr/bin/buildah", "inspect", "--type", "image",
			      MR_IMAGE,		  NULL};
	struct text t = {0};
	json_error_t bad;
	json_t *all = NULL, *config, *out = NULL;
	const struct dockerfile_instr *from = dockerfile_step(d, 0, 1);

	if (!ask(argv, &t, deadline_ns, e)) {
		all = json_loadb(t.p, t.n, 0, &bad);
		config =
		    json_object_get(json_object_get(all, "Docker"), "config");
		if (!json_is_object(config))
			err_set(e, -EIO,
				"buildah's description of the image cannot be "
				"read: %s",
				all ? "no configuration in it" : bad.text);
		else
			out = json_pack(
			    "{s:o,s:o,s:s,s:s,s:o,s:o}", "argv",
			    argv_of(d, config), "env", strings(config, "Env"),
			    "user", text_of(config, "User"), "cwd",
			    text_of(config, "WorkingDir"), "ports",
			    ports_of(d, config), "volumes", volumes_of(config));
	}
	json_decref(all);
	free(t.p);
	if (out && !json_array_size(json_object_get(out, "argv"))) {
		json_decref(out);
		mr_fail(sh, IMG_CONTAINER_BUILD_FAILED, from->line, e, -EINVAL,
			"Dockerfile line %u: %.100s: the image has neither "
			"ENTRYPOINT nor CMD, so there is nothing to start",
			from->line, from->text);
		return NULL;
	}
	return out;
}

// --- the tree --------------------------------------------------------------

struct tree {
	const char *root; // where it is mounted
	const json_t *config;
	const struct dockerfile *d;
	struct mr_shared *sh;
};

static void make_path(const char *path)
{
	char part[4096];

	if (strlen(path) >= sizeof(part))
		return;
	for (const char *p = path; *p; p++) {
		if (p == path || (*p != '/' && p[1]))
			continue;
		snprintf(part, sizeof(part), "%.*s",
			 (int)(p - path + (*p != '/')), path);
		(void)mkdir(part, 0755); // what is there already may be
	}
}

// Whether `file` (passwd or group) has an account of that name.
static bool has_account(const char *file, const char *name, size_t n)
{
	cleanup_fd int fd = open(file, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	cleanup_free char *text = malloc(ACCOUNTS_MAX + 1);
	struct stat st;
	ssize_t got;

	if (fd < 0 || !text || fstat(fd, &st) || !S_ISREG(st.st_mode))
		return false;
	got = read(fd, text, ACCOUNTS_MAX);
	text[MAX(got, (ssize_t)0)] = '\0';
	for (char *p = text; p && *p; p = strchr(p, '\n'), p += p != NULL)
		if (!strncmp(p, name, n) && p[n] == ':')
			return true;
	return false;
}

static bool numeric(const char *p, size_t n)
{
	return n && strspn(p, "0123456789") >= n;
}

// USER's name must be known to the tree: else the guest finds out, much later.
static int check_user(const struct tree *t, struct err *e)
{
	const char *user =
	    json_string_value(json_object_get(t->config, "user"));
	const struct dockerfile_instr *in = dockerfile_last(t->d, "USER");
	size_t n = strcspn(user, ":");
	const char *group = user[n] ? user + n + 1 : "";
	const char *who = NULL;

	if (*user && !numeric(user, n) && !has_account("/etc/passwd", user, n))
		who = "user";
	else if (*group && !numeric(group, strlen(group)) &&
		 !has_account("/etc/group", group, strlen(group)))
		who = "group";
	if (!who)
		return 0;
	if (!in) // the base image says so
		in = dockerfile_step(t->d, 0, 1);
	return mr_fail(
	    t->sh, IMG_CONTAINER_BUILD_FAILED, in->line, e, -EINVAL,
	    "Dockerfile line %u: %.60s: the image's user is '%.60s', "
	    "and it has no such %s in its /etc/passwd or /etc/group",
	    in->line, in->text, user, who);
}

// What every guest needs, and an image that is made from scratch lacks.
static const char *const guest_dirs[] = {"/dev", "/etc", "/proc", "/run",
					 "/sys"};

static int in_tree(void *ctx, struct err *e)
{
	static const int caps[] = {CAP_DAC_OVERRIDE, -1};
	const struct tree *t = ctx;
	const char *cwd = json_string_value(json_object_get(t->config, "cwd"));
	json_t *volumes = json_object_get(t->config, "volumes"), *v;
	struct stat st;
	size_t i;
	int rc;

	if (chroot(t->root) || chdir("/"))
		return err_sys(e, "entering the tree");
	rc = mk_jail_caps(caps, e);
	if (rc)
		return rc;
	rc = check_user(t, e);
	if (rc)
		return rc;
	// Where no layer says otherwise, the store's own mode shows through.
	if (stat("/", &st) == 0 && (st.st_mode & 07777) == 0555)
		(void)chmod("/", 0755);
	for (i = 0; i < ARRAY_SIZE(guest_dirs); i++)
		make_path(guest_dirs[i]);
	if (mkdir("/tmp", 0755) == 0)
		(void)chmod("/tmp", 01777);
	if (cwd[0] == '/')
		make_path(cwd);
	json_array_foreach(volumes, i, v) make_path(json_string_value(v));
	return 0;
}

static int pack(const char *root, uint64_t deadline_ns, uint64_t *bytes,
		struct err *e)
{
	char *const argv[] = {"/usr/bin/tar",
			      MK_TAR_WORDS,
			      "--exclude=./run/.containerenv",
			      "--file=/work/rootfs.tar",
			      "--directory",
			      (char *)root,
			      ".",
			      NULL};
	struct text said = {.p = calloc(1, 64), .cap = 64};
	struct stat st;
	int rc;

	if (!said.p)
		return err_set(e, -ENOMEM, "out of memory");
	umask(077);
	rc = ask(argv, &said, deadline_ns, e);
	umask(022);
	if (rc && (strstr(said.p, "No space left") ||
		   strstr(said.p, "File too large")))
		rc = err_set(e, -ENOSPC,
			     "the root file system is larger than is allowed, "
			     "or than what is free on the disk");
	free(said.p);
	if (rc)
		return rc;
	if (stat("/work/rootfs.tar", &st))
		return err_sys(e, "reading the root file system's size");
	*bytes = (uint64_t)st.st_size;
	return 0;
}

static int write_config(const json_t *config, struct err *e)
{
	cleanup_fd int fd = open("/work/config.json",
				 O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	cleanup_free char *text = json_dumps(config, JSON_COMPACT);

	if (!text || strlen(text) > CONFIG_MAX)
		return err_set(e, -E2BIG,
			       "the image's configuration (ENV, CMD and so on) "
			       "is larger than %d KiB",
			       CONFIG_MAX >> 10);
	if (fd < 0 || util_write_all(fd, text, strlen(text)))
		return err_sys(e, "writing the configuration");
	return 0;
}

// "localhost-working-container" and where it is mounted.
static int mount_image(char *root, size_t cap, uint64_t deadline_ns,
		       struct err *e)
{
	char *const from[] = {
	    "/usr/bin/buildah", "from", "--pull-never", "--name", "export",
	    MR_IMAGE,		NULL};
	char *const mount[] = {"/usr/bin/buildah", "mount", "export", NULL};
	struct text a = {0}, b = {0};
	int rc = ask(from, &a, deadline_ns, e);

	if (!rc)
		rc = ask(mount, &b, deadline_ns, e);
	if (!rc) {
		b.p[strcspn(b.p, "\n")] = '\0';
		if (strncmp(b.p, "/work/store/", 12) != 0 || strlen(b.p) >= cap)
			rc = err_set(e, -EIO,
				     "the image is not mounted: %.100s", b.p);
		else
			snprintf(root, cap, "%s", b.p);
	}
	free(a.p);
	free(b.p);
	return rc;
}

int mr_export(const struct mr_opts *o, const struct dockerfile *d,
	      struct mr_shared *sh, uint64_t deadline_ns, struct err *e)
{
	char root[512];
	struct tree t = {.root = root, .d = d, .sh = sh};
	json_t *config;
	int rc;

	(void)o;
	mr_stage("export");
	config = config_of(d, sh, deadline_ns, e);
	if (!config)
		return e->code;
	t.config = config;
	rc = write_config(config, e);
	if (!rc)
		rc = mount_image(root, sizeof(root), deadline_ns, e);
	if (!rc)
		rc = mk_child(&sh->mk, in_tree, &t, "the tree's check", e);
	if (!rc)
		rc = pack(root, deadline_ns, &sh->mk.image_size, e);
	if (rc == -ENOSPC)
		sh->reason = IMG_DISK_STORAGE_FULL;
	json_decref(config);
	return rc;
}
