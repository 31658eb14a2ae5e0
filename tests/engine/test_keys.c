// The keys file: what is read, and each thing that is wrong with its line.
#include "auth.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define ID1 "AKIAIOSFODNN7EXAMPLE"
#define ID2 "AKIAI44QH8DHBEXAMPLE"
#define S1 "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
#define S2 "je7MtGbClwBF/2Zp9Utk/h3yCo8nvbEXAMPLEKEY"
#define ONE \
	"[default]\naws_access_key_id=" ID1 "\naws_secret_access_key=" S1 "\n"

static int parse(const char *text, struct auth_keys *k, struct err *e)
{
	*e = (struct err)ERR_INIT;
	return auth_keys_parse(k, text, strlen(text), "the-file", e);
}

Test(keys, read)
{
	static const char text[] =
	    "# made by hand\n"
	    "\n"
	    "[default]\n"
	    "aws_access_key_id = " ID1 "\n"
	    "aws_secret_access_key = " S1 "  \n"
	    "; another\r\n"
	    "[build-bot]\r\n"
	    "AWS_SECRET_ACCESS_KEY=" S2 "\r\n"
	    "\t\n"
	    "aws_access_key_id  =  " ID2; // no newline at the end
	struct auth_keys k;
	struct err e;
	const struct auth_key *one;

	cr_assert_eq(parse(text, &k, &e), 0, "%s", e.msg);
	cr_assert_eq(k.n, 2);
	one = auth_keys_find(&k, ID1 "xyz", strlen(ID1));
	cr_assert_str_eq(one->secret, S1);
	cr_assert_str_eq(one->name, "default");
	one = auth_keys_find(&k, ID2, strlen(ID2));
	cr_assert_str_eq(one->secret, S2);
	cr_assert_str_eq(one->name, "build-bot");
	cr_assert_null(auth_keys_find(&k, ID2, strlen(ID2) - 1));
	cr_assert_null(auth_keys_find(&k, "", 0));
	auth_keys_free(&k);
	cr_assert_eq(k.n, 0);
	cr_assert_null(k.key);
	cr_assert_null(auth_keys_find(&k, ID1, strlen(ID1)));
}

Test(keys, mistakes_name_their_line)
{
	static const struct {
		const char *text;
		unsigned line; // 0: of the file
		const char *because;
	} cases[] = {
	    {"", 0, "no profile"},
	    {"# nothing\n\n", 0, "no profile"},
	    {"[a]\n", 1, "no aws_access_key_id"},
	    {"\n[a]\naws_access_key_id=" ID1 "\n\n", 2,
	     "no aws_secret_access_key"},
	    {"[a]\naws_secret_access_key=" S1 "\n[b]\n", 1,
	     "no aws_access_key_id"},
	    {"aws_access_key_id=" ID1 "\n", 1, "before the first"},
	    {"[]\n", 1, "[NAME]"},
	    {"[a\n", 1, "[NAME]"},
	    {"[a] # b\n", 1, "[NAME]"},
	    {"[a\"b]\n", 1, "profile's name"},
	    {"[aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	     "a"
	     "]\n",
	     1, "profile's name"},
	    {ONE "[default]\n", 4, "[default] is there twice"},
	    {ONE "[b]\naws_access_key_id=" ID1 "\n", 5, "another profile"},
	    {ONE "aws_access_key_id=" ID2 "\n", 4, "two aws_access_key_id"},
	    {ONE "aws_secret_access_key=" S2 "\n", 4,
	     "two aws_secret_access_key"},
	    {ONE "aws_session_token = abc\n", 4, "\"aws_session_token\""},
	    {ONE "region = eu-central-1\n", 4, "\"region\" is not a setting"},
	    {ONE "aws_access_key_i = x\n", 4, "not a setting"},
	    {ONE "= x\n", 4, "\"\" is not a setting"},
	    {ONE "\x1b[2J = x\n", 4, "control"},
	    {ONE "nonsense\n", 4, "no NAME = VALUE"},
	    {ONE " region = x\n", 4, "begins with a blank"},
	    {ONE "\tregion = x\n", 4, "begins with a blank"},
	    {"[a]\naws_access_key_id=AKIASHORT\n", 2, "16 to 128"},
	    {"[a]\naws_access_key_id=\n", 2, "16 to 128"},
	    {"[a]\naws_access_key_id=" ID1 "-" ID2 "\n", 2, "letters"},
	    {"[a]\naws_access_key_id=" ID1 "/" ID2 "\n", 2, "letters"},
	    {"[a]\naws_access_key_id=" ID1 ID1 ID1 ID1 ID1 ID1 ID1 "\n", 2,
	     "16 to 128"},
	    {"[a]\naws_secret_access_key=tooshort\n", 2,
	     "32 to 128 characters, this one has 8"},
	    {"[a]\naws_secret_access_key=" S1 S1 S1 S1 "\n", 2, "32 to 128"},
	    {"[a]\naws_secret_access_key=" S1 " # mine\n", 2, "blanks"},
	    {"[a]\naws_secret_access_key=" S1 "\xc3\xa9\n", 2, "ASCII"},
	    {"\xef\xbb\xbf[a]\n", 1, "no [PROFILE]"},
	};
	char want[64];

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct auth_keys k;
		struct err e;

		cr_assert_eq(parse(cases[i].text, &k, &e), -EINVAL, "%s",
			     cases[i].text);
		cr_assert_null(k.key);
		cr_assert_eq(k.n, 0);
		snprintf(want, sizeof(want),
			 "the-file, line %u:", cases[i].line);
		if (cases[i].line)
			cr_assert_not_null(strstr(e.msg, want), "%s: %s",
					   cases[i].text, e.msg);
		cr_assert_not_null(strstr(e.msg, cases[i].because), "%s: %s",
				   cases[i].text, e.msg);
		cr_assert_null(strstr(e.msg, "wJalr"), "a secret in a log");
		cr_assert_null(strstr(e.msg, "tooshort"), "a secret in a log");
	}
	{
		static const char nul[] =
		    "[a]\naws_access_key_id=AKIAIOSF\0DNN7";
		struct auth_keys k;
		struct err e;

		cr_assert_eq(auth_keys_parse(&k, nul, sizeof(nul) - 1, "f", &e),
			     -EINVAL);
		cr_assert_not_null(strstr(e.msg, "line 2: control"), "%s",
				   e.msg);
	}
}

Test(keys, at_most_a_thousand)
{
	char *text = malloc(AUTH_FILE_MAX), *p = text;
	struct auth_keys k;
	struct err e;

	for (unsigned i = 0; i < AUTH_KEYS_MAX; i++)
		p += sprintf(p,
			     "[p%u]\naws_access_key_id=AKIATHAW%012u\n"
			     "aws_secret_access_key=" S1 "\n",
			     i, i);
	cr_assert_eq(parse(text, &k, &e), 0, "%s", e.msg);
	cr_assert_eq(k.n, AUTH_KEYS_MAX);
	cr_assert_str_eq(auth_keys_find(&k, "AKIATHAW000000000999", 20)->name,
			 "p999");
	auth_keys_free(&k);
	strcpy(p, "[last]\n");
	cr_assert_eq(parse(text, &k, &e), -EINVAL);
	cr_assert_not_null(strstr(e.msg, "line 3001"), "%s", e.msg);
	free(text);
}

// --- the file ---------------------------------------------------------------

static char path[64];

static void make_file(void)
{
	int fd;

	strcpy(path, "/tmp/thaw-keys-XXXXXX");
	fd = mkstemp(path); // 0600
	cr_assert_eq(util_write_all(fd, ONE, strlen(ONE)), 0);
	close(fd);
}

static void remove_file(void)
{
	unlink(path);
}

TestSuite(keys_file, .init = make_file, .fini = remove_file);

static void refused(int want, const char *because)
{
	struct auth_keys k;
	struct err e = ERR_INIT;

	cr_assert_eq(auth_keys_load(&k, path, &e), want, "%s", e.msg);
	cr_assert_not_null(strstr(e.msg, because), "%s", e.msg);
	cr_assert_not_null(strstr(e.msg, path), "%s", e.msg);
	cr_assert_null(k.key);
}

Test(keys_file, only_its_owner_may_touch_it)
{
	static const mode_t bad[] = {0640, 0604, 0620, 0602, 0610, 0601, 0644};
	static const mode_t good[] = {0600, 0400, 0700};
	char because[16];
	struct auth_keys k;
	struct err e = ERR_INIT;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		cr_assert_eq(chmod(path, bad[i]), 0);
		snprintf(because, sizeof(because), "%04o", bad[i]);
		refused(-EACCES, because);
	}
	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		cr_assert_eq(chmod(path, good[i]), 0);
		cr_assert_eq(auth_keys_load(&k, path, &e), 0, "%s", e.msg);
		cr_assert_eq(k.n, 1);
		auth_keys_free(&k);
	}
	if (geteuid())
		return;
	cr_assert_eq(chown(path, 12345, 0), 0);
	refused(-EACCES, "user 12345");
}

Test(keys_file, must_be_a_file_of_bounded_size)
{
	cr_assert_eq(truncate(path, AUTH_FILE_MAX + 1), 0);
	refused(-EINVAL, "262145 bytes");
	cr_assert_eq(truncate(path, 0), 0);
	refused(-EINVAL, "no profile");
	cr_assert_eq(unlink(path), 0);
	refused(-ENOENT, "No such file");
	cr_assert_eq(mkfifo(path, 0600), 0);
	refused(-EINVAL, "not a regular file"); // and does not wait for it
	cr_assert_eq(unlink(path), 0);
	cr_assert_eq(mkdir(path, 0700), 0);
	refused(-EINVAL, "not a regular file");
	cr_assert_eq(rmdir(path), 0);
}
