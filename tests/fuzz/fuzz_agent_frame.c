// What a host sends an agent: frames (guest/ag_frame.c), and the payloads of those
// that open a conversation (ag_spec.c, ag_meta.c). The first byte says in what pieces
// the rest comes. Beside not crashing: whatever the pieces were, the frames are the
// same; what is accepted is what its rules say; a role that is refused changes
// nothing.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "ag_frame.h"
#include "ag_meta.h"
#include "ag_spec.h"
#include "util.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void check_spec(const struct ag_spec *s)
{
	size_t argc = 0, envs = 0;

	while (s->argv[argc])
		argc++;
	while (s->env[envs])
		envs++;
	if (!argc || argc > AG_ARGV_MAX || envs > AG_ENV_MAX || !s->user ||
	    !s->cwd || !s->hostname)
		abort();
	for (size_t i = 0; i < envs; i++) {
		if (!strchr(s->env[i], '='))
			abort();
	}
}

static void check_thaw(const uint8_t *p, size_t n)
{
	struct ag_thaw t;
	const char *why = NULL;
	int rc = ag_thaw_parse(&t, p, n, &why);

	if (rc ? !why : !memchr(t.hostname, '\0', sizeof(t.hostname)))
		abort();
}

static void check_text(const char *s, size_t max)
{
	if (strlen(s) > max)
		abort();
	for (; *s; s++) {
		if (*s <= ' ' || *s > '~' || *s == '"' || *s == '\\')
			abort(); // it would need an escape in JSON
	}
}

static void check_role(const uint8_t *p, size_t n)
{
	static struct ag_meta m;
	struct ag_role before = m.role;
	const char *why = NULL;

	if (ag_meta_role(&m, p, n, 1795867200, &why)) {
		if (!why || memcmp(&before, &m.role, sizeof(before)) != 0)
			abort();
		return;
	}
	check_text(m.role.vm, AG_ROLE_NAME_MAX);
	check_text(m.role.region, AG_ROLE_NAME_MAX);
	check_text(m.role.key, AG_ROLE_KEY_MAX);
	check_text(m.role.secret, AG_ROLE_SECRET_MAX);
	check_text(m.role.token, AG_ROLE_TOKEN_MAX);
	if (!m.role.vm[0] || !m.role.key[0] != !m.role.secret[0])
		abort();
}

static void payload(unsigned type, const uint8_t *p, size_t n)
{
	struct ag_spec s = {.block = NULL};
	const char *why = NULL;
	int rc;

	if (type == AGENT_THAW || type == AGENT_RENEW)
		check_thaw(p, n);
	if (type == AGENT_ROLE)
		check_role(p, n);
	if (type != AGENT_START && type != AGENT_EXEC)
		return;
	rc = type == AGENT_START ? ag_spec_app(&s, p, n, &why)
				 : ag_spec_exec(&s, p, n, &why);
	if (rc && !why)
		abort();
	if (!rc)
		check_spec(&s);
	ag_spec_fini(&s);
}

// How many frames came; `at` is where they ended.
static unsigned read_all(const uint8_t *data, size_t n, size_t step, bool judge,
			 size_t *at)
{
	struct ag_reader r = {.got = 0};
	unsigned frames = 0;
	size_t want;
	int rc = 0;

	for (*at = 0; *at < n && rc >= 0;) {
		void *to = ag_reader_next(&r, &want);
		size_t some = MIN(MIN(want, step), n - *at);

		if (!want || want > AGENT_FRAME_MAX)
			abort();
		memcpy(to, data + *at, some);
		*at += some;
		rc = ag_reader_add(&r, some);
		if (rc <= 0)
			continue;
		frames++;
		if (judge)
			payload(r.type, r.payload, r.len);
		ag_reader_reset(&r);
	}
	ag_reader_reset(&r);
	return frames;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	size_t a, b;

	if (!n)
		return 0;
	if (read_all(data + 1, n - 1, n, true, &a) !=
		read_all(data + 1, n - 1, 1 + data[0] % 16u, false, &b) ||
	    a != b)
		abort();
	return 0;
}
