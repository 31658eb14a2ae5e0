#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ag_spec.h"
#include "util.h"
#include "wire.h"

// A block big enough for any decoding of `len` bytes: each string takes at
// least 4 bytes on the wire (its length) and needs its bytes, a NUL, and a
// pointer; then two list ends and three plain strings.
static size_t block_size(size_t len)
{
	return (len / 4 + 4) * sizeof(char *) + len + len / 4 + 8;
}

struct decoder {
	struct wire_reader r;
	char **ptrs; // next free pointer, from the block's start
	char *text;  // next free byte, behind all pointers
	const char *why;
};

static char *get_str(struct decoder *d)
{
	uint32_t n = wire_get_u32(&d->r);
	const void *p = wire_borrow(&d->r, n);
	char *s = d->text;

	if (!p) {
		d->why = "a string runs past the frame's end";
		d->r.bad = true;
		return NULL;
	}
	if (n && memchr(p, 0, n)) {
		d->why = "a string holds a NUL";
		d->r.bad = true;
		return NULL;
	}
	if (n)
		memcpy(s, p, n);
	s[n] = '\0';
	d->text += n + 1;
	return s;
}

static char **get_list(struct decoder *d, uint32_t max)
{
	uint32_t n = wire_get_u32(&d->r);
	char **list = d->ptrs;

	// Each entry takes four bytes at least: refuse before looping.
	if (d->r.bad || n > max || n > wire_left(&d->r) / 4) {
		d->why = "a list is too long";
		d->r.bad = true;
		return NULL;
	}
	for (uint32_t i = 0; i < n; i++) {
		list[i] = get_str(d);
		if (!list[i])
			return NULL;
	}
	list[n] = NULL;
	d->ptrs += n + 1;
	return list;
}

static const char *check(const struct ag_spec *s, const struct wire_reader *r)
{
	if (r->bad)
		return "the frame is too short";
	if (wire_left(r))
		return "bytes follow the last member";
	if (!s->argv[0] || !s->argv[0][0])
		return "the command is empty";
	for (char **e = s->env; *e; e++) {
		if (**e == '=' || !strchr(*e, '='))
			return "an environment entry is not NAME=VALUE";
	}
	if (strlen(s->hostname) > AG_HOSTNAME_MAX)
		return "the host name is too long";
	return NULL;
}

static int decode(struct ag_spec *s, const uint8_t *p, size_t len, bool exec,
		  const char **why)
{
	struct decoder d = {.r = wire_reader_of(p, len)};
	uint32_t known = exec ? AGENT_EXEC_PTY : AGENT_START_ALL_CAPS, flags;

	*s = (struct ag_spec){.hostname = NULL};
	*why = "no memory";
	s->block = malloc(block_size(len));
	if (!s->block)
		return -ENOMEM;
	d.ptrs = s->block;
	d.text = (char *)s->block + (len / 4 + 4) * sizeof(char *);
	flags = wire_get_u32(&d.r);
	if (exec) {
		s->rows = wire_get_u16(&d.r);
		s->cols = wire_get_u16(&d.r);
	}
	s->argv = get_list(&d, AG_ARGV_MAX);
	s->env = d.r.bad ? NULL : get_list(&d, AG_ENV_MAX);
	s->user = d.r.bad ? NULL : get_str(&d);
	s->cwd = d.r.bad ? NULL : get_str(&d);
	if (exec)
		s->hostname = d.text, *d.text = '\0';
	else
		s->hostname = d.r.bad ? NULL : get_str(&d);
	s->pty = exec && flags & AGENT_EXEC_PTY;
	s->all_caps = !exec && flags & AGENT_START_ALL_CAPS;
	*why = d.why;
	if (!d.why)
		*why = flags & ~known ? "unknown flags" : check(s, &d.r);
	if (*why) {
		ag_spec_fini(s);
		return -EPROTO;
	}
	return 0;
}

int ag_spec_app(struct ag_spec *s, const uint8_t *p, size_t len,
		const char **why)
{
	return decode(s, p, len, false, why);
}

int ag_spec_exec(struct ag_spec *s, const uint8_t *p, size_t len,
		 const char **why)
{
	return decode(s, p, len, true, why);
}

void ag_spec_fini(struct ag_spec *s)
{
	free(s->block);
	*s = (struct ag_spec){.hostname = NULL};
}

int ag_thaw_parse(struct ag_thaw *t, const uint8_t *p, size_t len,
		  const char **why)
{
	struct wire_reader r = wire_reader_of(p, len);
	uint32_t n;

	memset(t, 0, sizeof(*t));
	*why = "the frame's length is wrong";
	wire_get_bytes(&r, t->entropy, sizeof(t->entropy));
	t->wall_ns = wire_get_u64(&r);
	wire_get_bytes(&r, t->machine_id, sizeof(t->machine_id));
	n = wire_get_u32(&r);
	if (r.bad || n > AG_HOSTNAME_MAX || wire_left(&r) != n)
		return -EPROTO;
	wire_get_bytes(&r, t->hostname, n);
	if (strlen(t->hostname) != n) {
		*why = "the host name holds a NUL";
		return -EPROTO;
	}
	// The kernel refuses times beyond KTIME_SEC_MAX; so do we, in words.
	if (t->wall_ns > INT64_MAX) {
		*why = "the time is out of range";
		return -EPROTO;
	}
	*why = NULL;
	return 0;
}

static bool same_name(const char *a, const char *b)
{
	size_t n = strcspn(a, "=");

	return n == strcspn(b, "=") && memcmp(a, b, n) == 0;
}

static size_t count(char *const *list)
{
	size_t n = 0;

	while (list && list[n])
		n++;
	return n;
}

char **ag_env_merge(char *const *base, char *const *over, size_t extra)
{
	size_t nb = count(base), no = count(over), n = 0;
	char **env = calloc(nb + no + extra + 1, sizeof(*env));

	if (!env)
		return NULL;
	for (size_t i = 0; i < no; i++)
		env[n++] = over[i];
	for (size_t i = 0; i < nb; i++) {
		bool set = false;

		for (size_t j = 0; j < no && !set; j++)
			set = same_name(base[i], over[j]);
		if (!set)
			env[n++] = base[i];
	}
	return env;
}

const char *ag_env_get(char *const *env, const char *name)
{
	size_t n = strlen(name);

	for (; env && *env; env++) {
		if (strncmp(*env, name, n) == 0 && (*env)[n] == '=')
			return *env + n + 1;
	}
	return NULL;
}
