// The pure parts of the images' room: URIs, managed images, configurations,
// reasons, texts.
#include "img_internal.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

static void is_path(const char *uri, const char *path)
{
	struct img_s3 s3 = {0};
	struct img_source s;
	struct err e = ERR_INIT;

	cr_assert(img_uri_parse(uri, &s3, &s, &e) == 0, "%s: %s", uri, e.msg);
	cr_expect(s.url == NULL);
	cr_expect_str_eq(s.path, path);
	img_source_free(&s);
}

static void is_url(const char *uri, struct img_s3 s3, const char *url)
{
	struct img_source s;
	struct err e = ERR_INIT;

	cr_assert(img_uri_parse(uri, &s3, &s, &e) == 0, "%s: %s", uri, e.msg);
	cr_expect(s.path == NULL);
	cr_expect_str_eq(s.url, url);
	img_source_free(&s);
}

static void is_none(const char *uri, struct img_s3 s3)
{
	struct img_source s;
	struct err e = ERR_INIT;

	cr_expect(img_uri_parse(uri, &s3, &s, &e) == -EINVAL, "%s", uri);
	cr_expect(e.msg[0] && !s.path && !s.url);
}

Test(img, uris)
{
	struct img_s3 local = {.endpoint = "http://127.0.0.1:9000"};
	struct img_s3 slash = {.endpoint = "https://s3.example/",
			       .region = "eu-west-3"};
	struct img_s3 none = {0};

	is_path("file:///srv/app.zip", "/srv/app.zip");
	is_path("FILE://localhost/srv/a%20b%2Fc", "/srv/a b/c");
	is_url("s3://apps/a b/+\xc3\xbc~.zip", local,
	       "http://127.0.0.1:9000/apps/a%20b/%2B%C3%BC~.zip");
	is_url("s3://apps/x?y#z%41", slash,
	       "https://s3.example/apps/x%3Fy%23z%2541");
	is_url("s3://a-b.c/../k", none,
	       "https://a-b.c.s3.us-east-1.amazonaws.com/../k");
	is_none("", none);
	is_none("/srv/app", none);
	is_none("https://x/y", none);
	is_none("file://host/x", none);
	is_none("file://x", none);
	is_none("file:///a%0", none);
	is_none("file:///a%00b", none);
	is_none("file:///a%zz", none);
	is_none("s3://", local);
	is_none("s3://ab/x", local);
	is_none("s3://Apps/x", local);
	is_none("s3://-app/x", local);
	is_none("s3://apps", local);
	is_none("s3://apps/", local);
	is_none("s3://a@b/x", local);
	is_none("s3://apps/x", (struct img_s3){.endpoint = "ftp://x"});
	is_none("s3://apps/x", (struct img_s3){.endpoint = "http://"});
	is_none("s3://apps/x", (struct img_s3){.endpoint = "http://x/path"});
	is_none("s3://apps/x", (struct img_s3){.endpoint = "http://u@x"});
	is_none("s3://apps/x", (struct img_s3){.region = "us:east"});
}

Test(img, long_keys)
{
	struct img_s3 local = {.endpoint = "http://h"};
	struct img_source s;
	struct err e = ERR_INIT;
	char uri[1100] = "s3://apps/";

	memset(uri + 10, ' ', 1024);
	cr_assert(img_uri_parse(uri, &local, &s, &e) == 0);
	cr_expect(strlen(s.url) == strlen("http://h/apps/") + 3 * 1024);
	img_source_free(&s);
	uri[10 + 1024] = 'x';
	cr_expect(img_uri_parse(uri, &local, &s, &e) == -EINVAL);
}

Test(img, managed)
{
	const char *name = NULL;
	struct err e = ERR_INIT;

	cr_expect(!img_managed_find(
	    "arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1", &name, &e));
	cr_expect_str_eq(name, "al2023-1");
	cr_expect(!img_managed_find(
	    "arn:aws-cn:lambda:cn-north-1:aws:microvm-image:debian-12", &name,
	    &e));
	cr_expect(
	    img_managed_find("arn:aws:lambda:us-east-1:aws:microvm-image:al2",
			     &name, &e) == -ENOENT);
	cr_expect(strstr(e.msg, "al2") != NULL);
	static const char *const bad[] = {
	    "",
	    "al2023-1",
	    "arn:aws:lambda::aws:microvm-image:al2023-1",
	    "arn:aws:lambda:us-east-1:123456789012:microvm-image:al2023-1",
	    "arn:aws:lambda:us-east-1:aws:microvm-image/al2023-1",
	    "arn:aws:s3:us-east-1:aws:microvm-image:al2023-1"};
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		cr_expect(img_managed_find(bad[i], &name, &e) == -EINVAL, "%s",
			  bad[i]);
}

Test(img, reasons)
{
	for (int r = IMG_NO_REASON + 1; r < IMG_NUM_REASONS; r++)
		cr_expect(img_reason_parse(img_reason_name(
			      (enum img_reason)r)) == (enum img_reason)r);
	cr_expect_str_eq(img_reason_name(IMG_S3_NO_SUCH_KEY), "S3_NO_SUCH_KEY");
	cr_expect_str_eq(img_reason_name((enum img_reason)99), "");
	cr_expect(img_reason_parse("") == IMG_NO_REASON);
	cr_expect(img_reason_parse("S3") == IMG_NO_REASON);
}

#define REST                                                               \
	",\"user\":\"\",\"cwd\":\"/app\",\"ports\":[80,8080],\"volumes\":" \
	"[\"/d\"]"
#define FINE "{\"argv\":[\"a\",\"\"],\"env\":[\"A=\",\"B=c=d\"]" REST "}"

static bool config_ok(const char *text, struct img_config *c)
{
	struct err e = ERR_INIT;
	int rc = img_config_parse(text, strlen(text), c, &e);

	cr_expect((rc == 0) == (e.msg[0] == '\0'));
	return rc == 0;
}

Test(img, configurations)
{
	struct img_config c;

	cr_assert(config_ok(FINE, &c));
	cr_expect_str_eq(c.argv[0], "a");
	cr_expect_str_eq(c.argv[1], "");
	cr_expect(c.argv[2] == NULL && c.env[2] == NULL && !c.volumes[1]);
	cr_expect(c.nports == 2 && c.ports[0] == 80 && c.ports[1] == 8080);
	cr_expect_str_eq(c.cwd, "/app");
	img_config_free(&c);
	img_config_free(&c);
	static const char *const bad[] = {
	    "",
	    "[]",
	    "{}",
	    FINE "x",
	    "{\"argv\":[],\"env\":[]" REST "}",
	    "{\"argv\":\"a\",\"env\":[]" REST "}",
	    "{\"argv\":[1],\"env\":[]" REST "}",
	    "{\"argv\":[\"a\\u0000b\"],\"env\":[]" REST "}",
	    "{\"argv\":[\"a\"],\"env\":[\"=x\"]" REST "}",
	    "{\"argv\":[\"a\"],\"env\":[\"x\"]" REST "}",
	    "{\"argv\":[\"a\"]" REST "}",
	    "{\"argv\":[\"a\"],\"env\":[],\"user\":\"\",\"cwd\":\"x\","
	    "\"ports\":"
	    "[],\"volumes\":[]}",
	    "{\"argv\":[\"a\"],\"env\":[],\"user\":\"\",\"cwd\":\"\",\"ports\":"
	    "[65536],\"volumes\":[]}",
	    "{\"argv\":[\"a\"],\"env\":[],\"user\":\"\",\"cwd\":\"\",\"ports\":"
	    "[],\"volumes\":[\"d\"]}"};
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		cr_expect(!config_ok(bad[i], &c), "%s", bad[i]);
}

static void mends(const char *from, const char *to)
{
	char text[64];

	snprintf(text, sizeof(text), "%s", from);
	img_text_mend(text);
	cr_expect_str_eq(text, to);
}

Test(img, texts)
{
	mends("plain\ttext\n", "plain\ttext\n");
	mends("\x1b[1m\x7f\r", "?[1m??");
	mends("gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x98\x80",
	      "gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x98\x80");
	mends("\xff\xc0\x80\xed\xa0\x80\xe2\x82", "????????");
	mends("\xf4\x90\x80\x80", "????");
	mends("\xc3", "?");
}
