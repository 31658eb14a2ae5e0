// Execution roles: what a file may say, and when it is read again.
#include "roles.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define ARN "arn:aws:iam::123456789012:role/"
#define KEY "\"AccessKeyId\": \"ASIA0123456789ABCDEF\""
#define SECRET "\"SecretAccessKey\": \"s/+=\""
#define GOOD "\"Version\": 1, " KEY ", " SECRET

static struct eng_creds c;

static int parse(const char *text, struct err *e)
{
	static const struct eng_creds none;
	int rc = eng_creds_parse(&c, text, strlen(text), "FILE", e);

	if (rc) {
		cr_expect_eq(memcmp(&c, &none, sizeof(c)), 0, "%s", text);
		cr_expect_null(strstr(e->msg, "s3cret"), "%s", e->msg);
		cr_expect_not_null(strstr(e->msg, "FILE"), "%s", e->msg);
	}
	return rc;
}

Test(creds, what_a_credential_process_prints)
{
	struct err e = ERR_INIT;

	cr_assert_eq(parse("{" GOOD ", \"SessionToken\": \"tok==\", "
			   "\"Expiration\": \"2026-11-28T12:00:00+00:00\", "
			   "\"AccountId\": \"1\"}\n",
			   &e),
		     0, "%s", e.msg);
	cr_expect_str_eq(c.key, "ASIA0123456789ABCDEF");
	cr_expect_str_eq(c.secret, "s/+=");
	cr_expect_str_eq(c.token, "tok==");
	cr_expect_eq(c.expires_s, 1795867200);
	cr_assert_eq(parse("{" GOOD "}", &e), 0, "%s", e.msg);
	cr_expect_str_eq(c.token, "");
	cr_expect_eq(c.expires_s, 0);
}

Test(creds, times)
{
	static const struct {
		const char *text;
		uint64_t want; // 0: refused
	} t[] = {
	    {"2026-11-28T12:00:00Z", 1795867200},
	    {"2026-11-28T12:00:00.123456Z", 1795867200},
	    {"2026-11-28T14:30:00+02:30", 1795867200},
	    {"2026-11-28T11:00:00-01:00", 1795867200},
	    {"2026-11-28T12:00:00", 0},
	    {"2026-11-28", 0},
	    {"2026-13-28T12:00:00Z", 0},
	    {"2026-11-28T12:00:00.Z", 0},
	    {"2026-11-28T12:00:00Zz", 0},
	    {"2026-11-28T12:00:00+1:00", 0},
	    {"2026-11-28T12:00:00+01:000", 0},
	    {"2026-11-28T12:00:00+25:00", 0},
	    {"1960-01-01T00:00:00Z", 0},
	    {"soon", 0},
	    {"", 0},
	};

	for (size_t i = 0; i < ARRAY_SIZE(t); i++) {
		struct err e = ERR_INIT;
		char text[300];

		snprintf(text, sizeof(text),
			 "{" GOOD ", \"Expiration\": \"%s\"}", t[i].text);
		cr_expect_eq(parse(text, &e), t[i].want ? 0 : -EINVAL, "%s",
			     t[i].text);
		cr_expect_eq(c.expires_s, t[i].want, "%s", t[i].text);
	}
}

Test(creds, anything_else_is_refused)
{
	static const char *const bad[] = {
	    "",
	    "s3cret",
	    "[]",
	    "null",
	    "{}",
	    "{" GOOD,
	    "{" GOOD "} s3cret",
	    "{" KEY ", " SECRET "}",
	    "{\"Version\": 2, " KEY ", " SECRET "}",
	    "{\"Version\": \"1\", " KEY ", " SECRET "}",
	    "{\"Version\": 1, " KEY "}",
	    "{\"Version\": 1, " SECRET "}",
	    "{" GOOD ", " KEY "}",
	    "{\"Version\": 1, \"AccessKeyId\": \"short\", " SECRET "}",
	    "{\"Version\": 1, " KEY ", \"SecretAccessKey\": \"\"}",
	    "{\"Version\": 1, " KEY ", \"SecretAccessKey\": \"s3cret \"}",
	    "{\"Version\": 1, " KEY ", \"SecretAccessKey\": \"s3cret\\\"\"}",
	    "{\"Version\": 1, " KEY ", \"SecretAccessKey\": \"s3cret\\\\\"}",
	    "{\"Version\": 1, " KEY ", \"SecretAccessKey\": 7}",
	    "{" GOOD ", \"SessionToken\": \"s3cret\\n\"}",
	    "{" GOOD ", \"SessionToken\": 7}",
	    "{" GOOD ", \"Expiration\": 7}",
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct err e = ERR_INIT;

		cr_expect_eq(parse(bad[i], &e), -EINVAL, "%s", bad[i]);
	}
}

static char dir[64];
static struct eng_roles *roles;

static const char *path_of(const char *name)
{
	static char path[2][128];
	static int which;

	which = !which;
	snprintf(path[which], sizeof(path[0]), "%s/%s", dir, name);
	return path[which];
}

static void put(const char *name, const char *text, mode_t mode)
{
	FILE *f = fopen(path_of(name), "w");

	cr_assert_not_null(f);
	fputs(text, f);
	fchmod(fileno(f), mode);
	fclose(f);
}

static int create(const char *const *maps, size_t n, struct err *e)
{
	int rc = eng_roles_create(&roles, maps, n, e);

	cr_expect_eq(!roles, rc != 0);
	return rc;
}

static int create_one(const char *arn, const char *file, struct err *e)
{
	char map[400];

	snprintf(map, sizeof(map), "%s=%s", arn, file);
	return create((const char *const[]){map}, 1, e);
}

static void setup(void)
{
	log_init("test", LOG_LVL_ERR);
	strcpy(dir, "/tmp/thaw-roles-XXXXXX");
	cr_assert_not_null(mkdtemp(dir));
	put("a", "{" GOOD "}", 0600);
}

static void teardown(void)
{
	char cmd[96];

	eng_roles_destroy(roles);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	cr_assert_eq(system(cmd), 0);
}

TestSuite(roles, .init = setup, .fini = teardown);

Test(roles, the_file_is_nobody_elses)
{
	struct err e = ERR_INIT;

	cr_assert_eq(create_one(ARN "x", path_of("a"), &e), 0, "%s", e.msg);
	eng_roles_destroy(roles);
	cr_assert_eq(chmod(path_of("a"), 0640), 0);
	cr_expect_eq(create_one(ARN "x", path_of("a"), &e), -EACCES);
	cr_expect_not_null(strstr(e.msg, "0640"), "%s", e.msg);
	cr_expect_eq(create_one(ARN "x", path_of("none"), &e), -ENOENT);
	cr_expect_eq(create_one(ARN "x", dir, &e), -EINVAL);
	put("big", "", 0600);
	cr_assert_eq(truncate(path_of("big"), ROLE_FILE_MAX + 1), 0);
	cr_expect_eq(create_one(ARN "x", path_of("big"), &e), -EINVAL);
	put("bad", "{}", 0600);
	cr_expect_eq(create_one(ARN "x", path_of("bad"), &e), -EINVAL);
	if (geteuid() == 0) {
		cr_assert_eq(chmod(path_of("a"), 0600), 0);
		cr_assert_eq(chown(path_of("a"), 4242, 0), 0);
		cr_expect_eq(create_one(ARN "x", path_of("a"), &e), -EACCES);
	}
}

Test(roles, arns)
{
	static const char *const bad[] = {"",
					  "role",
					  "arn:aws:iam::12345678901:role/x",
					  "arn:aws:iam::123456789012:user/x",
					  ARN "a b",
					  ARN "x\n"};
	struct err e = ERR_INIT;
	uint32_t version = 0;
	char one[200], two[200];

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		cr_expect_eq(create_one(bad[i], path_of("a"), &e), -EINVAL,
			     "%s", bad[i]);
	cr_expect_eq(create((const char *const[]){ARN "x"}, 1, &e), -EINVAL);
	cr_expect_eq(create((const char *const[]){ARN "x="}, 1, &e), -EINVAL);
	snprintf(one, sizeof(one), ARN "p/a=b=%s", path_of("a"));
	snprintf(two, sizeof(two), ARN "p/a=c=%s", path_of("a"));
	cr_assert_eq(create((const char *const[]){one, two}, 2, &e), 0, "%s",
		     e.msg);
	cr_expect_not_null(eng_roles_get(roles, ARN "p/a=b", &version));
	cr_expect_neq(version, 0);
	cr_expect_not_null(eng_roles_get(roles, ARN "p/a=c", &version));
	cr_expect_null(eng_roles_get(roles, ARN "p/a", &version));
	cr_expect_str_eq(eng_roles_arn(roles, 0), ARN "p/a=b");
	cr_expect_str_eq(eng_roles_arn(roles, 1), ARN "p/a=c");
	cr_expect_null(eng_roles_arn(roles, 2));
	cr_expect_null(eng_roles_arn(NULL, 0));
	eng_roles_destroy(roles);
	cr_expect_eq(create((const char *const[]){one, two, one}, 3, &e),
		     -EINVAL);
	cr_expect_not_null(strstr(e.msg, "twice"), "%s", e.msg);
	cr_expect_null(eng_roles_get(NULL, ARN "x", &version));
}

Test(roles, are_read_again_when_they_change)
{
	struct err e = ERR_INIT;
	uint32_t first, now;

	cr_assert_eq(create_one(ARN "x", path_of("a"), &e), 0, "%s", e.msg);
	eng_roles_get(roles, ARN "x", &first);
	cr_expect_not(eng_roles_refresh(roles));
	put("b", "{\"Version\": 1, " KEY ", \"SecretAccessKey\": \"other\"}",
	    0600);
	cr_assert_eq(rename(path_of("b"), path_of("a")), 0);
	cr_expect(eng_roles_refresh(roles), "by a rename");
	cr_expect_str_eq(eng_roles_get(roles, ARN "x", &now)->secret, "other");
	cr_expect_neq(now, first);
	cr_expect_not(eng_roles_refresh(roles));
	put("a", "{" GOOD "}", 0600);
	cr_expect(eng_roles_refresh(roles), "in place");
	cr_expect_str_eq(eng_roles_get(roles, ARN "x", &now)->secret, "s/+=");
	put("a", "{ " GOOD "}", 0600);
	first = now;
	cr_expect_not(eng_roles_refresh(roles), "the same, in other words");
	eng_roles_get(roles, ARN "x", &now);
	cr_expect_eq(now, first);
}

Test(roles, what_was_read_stays_when_a_file_breaks)
{
	struct err e = ERR_INIT;
	uint32_t version;

	log_init("test", LOG_LVL_ERR);
	cr_assert_eq(create_one(ARN "x", path_of("a"), &e), 0, "%s", e.msg);
	put("a", "{" GOOD, 0600);
	cr_expect_not(eng_roles_refresh(roles), "half a file");
	cr_expect_str_eq(eng_roles_get(roles, ARN "x", &version)->secret,
			 "s/+=");
	put("a", "{\"Version\": 1, " KEY ", \"SecretAccessKey\": \"n\"}", 0644);
	cr_expect_not(eng_roles_refresh(roles), "others may read it");
	cr_assert_eq(unlink(path_of("a")), 0);
	cr_expect_not(eng_roles_refresh(roles), "it is gone");
	cr_expect_str_eq(eng_roles_get(roles, ARN "x", &version)->secret,
			 "s/+=");
	put("a", "{\"Version\": 1, " KEY ", \"SecretAccessKey\": \"n\"}", 0600);
	cr_expect(eng_roles_refresh(roles), "it is back");
	cr_expect_str_eq(eng_roles_get(roles, ARN "x", &version)->secret, "n");
}
