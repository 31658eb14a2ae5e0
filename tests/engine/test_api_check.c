// The checks of request bodies: each constraint from both sides.
#include "api_check.h"
#include "shape.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

static int one(enum check_kind kind, long lo, long hi, const char *json,
	       struct err *e)
{
	struct check_field f = {"m", kind, false, lo, hi};
	char text[8192];
	json_t *o;
	int rc;

	*e = (struct err)ERR_INIT;
	snprintf(text, sizeof(text), "{\"m\":%s}", json);
	o = json_loads(text, 0, NULL);
	cr_assert_not_null(o, "%s", text);
	rc = check_object(o, "", &f, 1, e);
	json_decref(o);
	return rc;
}

Test(api_check, kinds)
{
	static const struct {
		enum check_kind kind;
		long lo, hi;
		const char *good, *bad;
	} cases[] = {
	    {CHECK_STRING, 1, 3, "\"abc\"", "\"abcd\""},
	    {CHECK_STRING, 1, 3, "\"\u00e9\u00e9\u00e9\"", "\"\""},
	    {CHECK_STRING, 1, 3, "\"a\"", "1"},
	    {CHECK_BYTES, 0, 4, "\"\u00e9\u00e9\"", "\"\u00e9\u00e9x\""},
	    {CHECK_NAME, 1, 64, "\"a-Z_9\"", "\"a.b\""},
	    {CHECK_NAME, 1, 64, "\"a\"", "\"a/b\""},
	    {CHECK_PATH, 1, 9, "\"/a\"", "\"a\""},
	    {CHECK_INT, 1, 16, "16", "17"},
	    {CHECK_INT, 1, 16, "1", "0"},
	    {CHECK_INT, 1, 16, "1", "1.0"},
	    {CHECK_INT, 1, 16, "1", "true"},
	    {CHECK_BOOL, 0, 0, "false", "0"},
	    {CHECK_STRINGS, 1, 2, "[\"a\",\"b\"]", "[\"a\",\"b\",\"c\"]"},
	    {CHECK_STRINGS, 1, 2, "[\"\"]", "[]"},
	    {CHECK_STRINGS, 1, 2, "[\"a\"]", "[1]"},
	    {CHECK_ENV, 0, 2, "[\"A=\"]", "[\"A\"]"},
	    {CHECK_ENV, 0, 2, "[\"A=b=c\"]", "[\"=b\"]"},
	};
	struct err e;

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		cr_expect_eq(one(cases[i].kind, cases[i].lo, cases[i].hi,
				 cases[i].good, &e),
			     0, "%s: %s", cases[i].good, e.msg);
		cr_expect_eq(one(cases[i].kind, cases[i].lo, cases[i].hi,
				 cases[i].bad, &e),
			     -EINVAL, "%s was let through", cases[i].bad);
		cr_expect_not_null(strstr(e.msg, "m"), "the member is named");
	}
}

Test(api_check, required_unknown_null)
{
	static const struct check_field f[] = {{"a", CHECK_INT, true, 0, 9},
					       {"b", CHECK_INT, false, 0, 9}};
	struct err e = ERR_INIT;
	json_t *o = json_pack("{s:i,s:n}", "a", 1, "b");

	cr_expect_eq(check_object(o, "", f, 2, &e), 0, "%s", e.msg);
	cr_expect_null(json_object_get(o, "b"), "null is as good as absent");
	json_object_del(o, "a");
	cr_expect_eq(check_object(o, "", f, 2, &e), -EINVAL);
	cr_expect_not_null(strstr(e.msg, "'a'"));
	json_object_set_new(o, "a", json_null());
	cr_expect_eq(check_object(o, "", f, 2, &e), -EINVAL, "null for a");
	json_object_set_new(o, "a", json_integer(1));
	json_object_set_new(o, "c", json_integer(1));
	cr_expect_eq(check_object(o, "p.", f, 2, &e), -EINVAL);
	cr_expect_not_null(strstr(e.msg, "'p.c'"), "%s", e.msg);
	json_decref(o);
}

Test(api_check, numbers)
{
	static const char *const bad[] = {
	    "", "-1", "+1", " 1", "1 ", "x", "9999999999999999", "0x1"};
	long n;

	cr_expect_eq(check_number("50", 1, 50, &n), 0);
	cr_expect_eq(n, 50);
	cr_expect_eq(check_number("51", 1, 50, &n), -EINVAL);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		cr_expect_eq(check_number(bad[i], 0, 100000, &n), -EINVAL,
			     "\"%s\"", bad[i]);
}

Test(api_check, bodies)
{
	struct err e = ERR_INIT;
	json_t *o = shape_body("", 0, &e);

	cr_expect(json_is_object(o), "no body is an empty object");
	json_decref(o);
	o = shape_body("{\"a\":1}", 7, &e);
	cr_expect_eq(json_integer_value(json_object_get(o, "a")), 1);
	json_decref(o);
	cr_expect_null(shape_body("{\"a\":1,\"a\":1}", 13, &e), "duplicates");
	cr_expect_null(shape_body("[]", 2, &e), "a list");
	cr_expect_null(shape_body("{}x", 3, &e), "trailing bytes");
	cr_expect_null(shape_body("{\"a\":\"\xff\"}", 9, &e), "not UTF-8");
	cr_expect_eq(e.code, -EINVAL);
}
