#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "ag_spec.h"
#include "util.h"
#include "wire.h"

static uint8_t buf[262144];

static void put_str(struct wire_writer *w, const char *s)
{
	wire_put_u32(w, (uint32_t)strlen(s));
	wire_put_bytes(w, s, strlen(s));
}

static void put_list(struct wire_writer *w, const char *const *l, uint32_t n)
{
	wire_put_u32(w, n);
	for (uint32_t i = 0; i < n; i++)
		put_str(w, l[i]);
}

static struct wire_writer app_with(uint32_t flags)
{
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	wire_put_u32(&w, flags);
	put_list(&w, (const char *[]){"/bin/app", "-x", ""}, 3);
	put_list(&w, (const char *[]){"A=1", "B="}, 2);
	put_str(&w, "www-data");
	put_str(&w, "/srv");
	put_str(&w, "host1");
	return w;
}

static struct wire_writer app(void)
{
	return app_with(0);
}

static struct wire_writer exec(uint32_t flags)
{
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	wire_put_u32(&w, flags);
	wire_put_u16(&w, 24);
	wire_put_u16(&w, 80);
	put_list(&w, (const char *[]){"ls"}, 1);
	put_list(&w, NULL, 0);
	put_str(&w, "");
	put_str(&w, "");
	return w;
}

Test(spec, app_decodes)
{
	struct wire_writer w = app();
	struct ag_spec s;
	const char *why;

	cr_assert_eq(ag_spec_app(&s, buf, w.len, &why), 0, "%s", why);
	cr_assert_str_eq(s.argv[0], "/bin/app");
	cr_assert_str_eq(s.argv[1], "-x");
	cr_assert_str_eq(s.argv[2], "");
	cr_assert_null(s.argv[3]);
	cr_assert_str_eq(s.env[0], "A=1");
	cr_assert_str_eq(s.env[1], "B=");
	cr_assert_null(s.env[2]);
	cr_assert_str_eq(s.user, "www-data");
	cr_assert_str_eq(s.cwd, "/srv");
	cr_assert_str_eq(s.hostname, "host1");
	cr_assert_not(s.all_caps);
	ag_spec_fini(&s);
	w = app_with(AGENT_START_ALL_CAPS);
	cr_assert_eq(ag_spec_app(&s, buf, w.len, &why), 0, "%s", why);
	cr_assert(s.all_caps && !s.pty);
	ag_spec_fini(&s);
	w = app_with(2);
	cr_assert_eq(ag_spec_app(&s, buf, w.len, &why), -EPROTO);
	cr_assert_str_eq(why, "unknown flags");
}

Test(spec, exec_decodes)
{
	struct wire_writer w = exec(AGENT_EXEC_PTY);
	struct ag_spec s;
	const char *why;

	cr_assert_eq(ag_spec_exec(&s, buf, w.len, &why), 0, "%s", why);
	cr_assert(s.pty);
	cr_assert_eq(s.rows, 24);
	cr_assert_eq(s.cols, 80);
	cr_assert_str_eq(s.argv[0], "ls");
	cr_assert_null(s.env[0]);
	cr_assert_str_eq(s.user, "");
	cr_assert_str_eq(s.hostname, "");
	ag_spec_fini(&s);
	w = exec(2);
	cr_assert_eq(ag_spec_exec(&s, buf, w.len, &why), -EPROTO);
	cr_assert_str_eq(why, "unknown flags");
}

// Every prefix, and every byte set to every of a few values: no crash (the
// sanitizers watch), and nothing is accepted with a wrong length.
Test(spec, truncated_and_flipped)
{
	static const uint8_t values[] = {0, 1, 0x7f, 0x80, 0xff};
	struct ag_spec s;
	const char *why;
	size_t len = app().len;

	for (size_t n = 0; n < len; n++) {
		uint8_t *copy = malloc(n ? n : 1);

		memcpy(copy, buf, n);
		cr_expect_eq(ag_spec_app(&s, copy, n, &why), -EPROTO);
		cr_expect_not_null(why);
		cr_expect_null(s.block);
		free(copy);
	}
	buf[len] = 0;
	cr_expect_eq(ag_spec_app(&s, buf, len + 1, &why), -EPROTO);
	for (size_t at = 0; at < len; at++) {
		for (size_t v = 0; v < ARRAY_SIZE(values); v++) {
			uint8_t *copy = malloc(len);

			memcpy(copy, buf, len);
			copy[at] = values[v];
			if (ag_spec_app(&s, copy, len, &why) == 0) {
				cr_expect_not_null(s.argv[0]);
				ag_spec_fini(&s);
			}
			free(copy);
		}
	}
}

static void refused(const char *const *argv, uint32_t na,
		    const char *const *env, uint32_t ne, const char *host,
		    const char *want)
{
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	struct ag_spec s;
	const char *why;

	wire_put_u32(&w, 0);
	put_list(&w, argv, na);
	put_list(&w, env, ne);
	put_str(&w, "");
	put_str(&w, "");
	put_str(&w, host);
	cr_assert_not(w.bad);
	cr_expect_eq(ag_spec_app(&s, buf, w.len, &why), -EPROTO);
	cr_expect_str_eq(why, want);
}

Test(spec, rules)
{
	const char *ok[] = {"true"}, *empty[] = {""};
	const char *bad[] = {"NAME"}, *bad2[] = {"=V"};
	char host[67];

	memset(host, 'h', 66);
	host[66] = '\0';
	refused(ok, 0, NULL, 0, "", "the command is empty");
	refused(empty, 1, NULL, 0, "", "the command is empty");
	refused(ok, 1, bad, 1, "", "an environment entry is not NAME=VALUE");
	refused(ok, 1, bad2, 1, "", "an environment entry is not NAME=VALUE");
	refused(ok, 1, NULL, 0, host, "the host name is too long");
}

Test(spec, list_limits)
{
	static const char *many[AG_ARGV_MAX + 1];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	struct ag_spec s;
	const char *why;

	for (size_t i = 0; i < ARRAY_SIZE(many); i++)
		many[i] = "x";
	refused(many, ARRAY_SIZE(many), NULL, 0, "", "a list is too long");
	wire_put_u32(&w, 0);
	put_list(&w, many, AG_ARGV_MAX);
	put_list(&w, NULL, 0);
	put_str(&w, "");
	put_str(&w, "");
	put_str(&w, "");
	cr_assert_eq(ag_spec_app(&s, buf, w.len, &why), 0, "%s", why);
	cr_assert_null(s.argv[AG_ARGV_MAX]);
	cr_assert_str_eq(s.argv[AG_ARGV_MAX - 1], "x");
	ag_spec_fini(&s);
}

Test(spec, nul_inside)
{
	struct wire_writer w = app();
	struct ag_spec s;
	const char *why;

	buf[4 + 4 + 4 + 2] = 0; // in "/bin/app"
	cr_assert_eq(ag_spec_app(&s, buf, w.len, &why), -EPROTO);
	cr_assert_str_eq(why, "a string holds a NUL");
}

static size_t thaw(uint64_t wall, const void *host, uint32_t n)
{
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));

	for (int i = 0; i < 64; i++)
		wire_put_u8(&w, (uint8_t)(i + 1));
	wire_put_u64(&w, wall);
	for (int i = 0; i < 16; i++)
		wire_put_u8(&w, (uint8_t)(0xf0 + i));
	wire_put_u32(&w, n);
	wire_put_bytes(&w, host, n);
	return w.len;
}

Test(thaw, decodes)
{
	struct ag_thaw t;
	const char *why;
	size_t len = thaw(1700000000123456789u, "clone-1", 7);

	cr_assert_eq(ag_thaw_parse(&t, buf, len, &why), 0, "%s", why);
	cr_assert_eq(t.entropy[0], 1);
	cr_assert_eq(t.entropy[63], 64);
	cr_assert_eq(t.wall_ns, 1700000000123456789u);
	cr_assert_eq(t.machine_id[0], 0xf0);
	cr_assert_eq(t.machine_id[15], 0xff);
	cr_assert_str_eq(t.hostname, "clone-1");
}

Test(thaw, hostile)
{
	char host[65];
	struct ag_thaw t;
	const char *why;
	size_t len;

	memset(host, 'h', sizeof(host));
	len = thaw(1, host, 64);
	cr_expect_eq(ag_thaw_parse(&t, buf, len, &why), 0);
	cr_expect_eq(strlen(t.hostname), 64);
	for (size_t n = 0; n < len; n++)
		cr_expect_eq(ag_thaw_parse(&t, buf, n, &why), -EPROTO);
	cr_expect_eq(ag_thaw_parse(&t, buf, len + 1, &why), -EPROTO);
	cr_expect_eq(ag_thaw_parse(&t, buf, thaw(1, host, 65), &why), -EPROTO);
	cr_expect_eq(ag_thaw_parse(&t, buf, thaw(1, "a\0b", 3), &why), -EPROTO);
	len = thaw((uint64_t)INT64_MAX + 1, "", 0);
	cr_expect_eq(ag_thaw_parse(&t, buf, len, &why), -EPROTO);
	cr_expect_str_eq(why, "the time is out of range");
}

Test(env, merge_and_get)
{
	char *base[] = {"A=1", "B=2", "AB=3", NULL};
	char *over[] = {"B=9", "C=4", NULL};
	char **env = ag_env_merge(base, over, 2);

	cr_assert_str_eq(ag_env_get(env, "A"), "1");
	cr_assert_str_eq(ag_env_get(env, "B"), "9");
	cr_assert_str_eq(ag_env_get(env, "C"), "4");
	cr_assert_str_eq(ag_env_get(env, "AB"), "3");
	cr_assert_null(ag_env_get(env, "D"));
	// Four entries and the spare slots.
	cr_assert_not_null(env[3]);
	cr_assert_null(env[4]);
	cr_assert_null(env[5]);
	cr_assert_null(env[6]);
	free(env);
	env = ag_env_merge(NULL, NULL, 0);
	cr_assert_null(env[0]);
	cr_assert_null(ag_env_get(NULL, "A"));
	free(env);
}
