// JSON as text: what jansson reads back is what was put in.
#include "jtext.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

static json_t *parsed(struct jtext *t)
{
	cleanup_free char *text = jt_take(t);
	json_error_t e;
	json_t *j = json_loads(text, JSON_REJECT_DUPLICATES, &e);

	cr_assert_not_null(j, "%s: %s", text, e.text);
	return j;
}

// What a string member comes back as; the caller frees it.
static char *through(const char *in)
{
	struct jtext t = {0};
	json_t *j;
	char *out;

	jt_open(&t, NULL);
	jt_str(&t, "k", in);
	jt_close(&t);
	j = parsed(&t);
	out = strdup(json_string_value(json_object_get(j, "k")));
	json_decref(j);
	return out;
}

Test(jtext, shapes)
{
	struct jtext t = {0};
	cleanup_free char *text = NULL;

	jt_open(&t, NULL);
	jt_str(&t, "s", "x");
	jt_int(&t, "zero", 0);
	jt_int(&t, "min", INT64_MIN);
	jt_int(&t, "max", INT64_MAX);
	jt_bool(&t, "yes", true);
	jt_bool(&t, "no", false);
	jt_null(&t, "none");
	jt_hex(&t, "id", "\x00\xab\xff", 3);
	jt_seconds(&t, "at", 1234567890007);
	jt_open(&t, "o");
	jt_close(&t);
	jt_open_list(&t, "l");
	jt_int(&t, NULL, 1);
	jt_open(&t, NULL);
	jt_int(&t, "a", 2);
	jt_close(&t);
	jt_close_list(&t);
	jt_int(&t, "last", 3);
	jt_close(&t);
	text = jt_take(&t);
	cr_expect_str_eq(
	    text, "{\"s\":\"x\",\"zero\":0,\"min\":-9223372036854775808,"
		  "\"max\":9223372036854775807,\"yes\":true,\"no\":false,"
		  "\"none\":null,\"id\":\"00abff\",\"at\":1234567890.007,"
		  "\"o\":{},\"l\":[1,{\"a\":2}],\"last\":3}");
}

Test(jtext, strings_are_escaped)
{
	static const char *const same[] = {
	    "",
	    "plain",
	    "q\"b\\s/\b\f\n\r\t\x01\x1f\x7f",
	    "\xc3\xa4\xe2\x82\xac",
	    "\xf0\x9f\x98\x80",
	    "\xed\x9f\xbf\xee\x80\x80\xf4\x8f\xbf\xbf",
	};

	for (size_t i = 0; i < ARRAY_SIZE(same); i++) {
		cleanup_free char *out = through(same[i]);

		cr_expect_str_eq(out, same[i]);
	}
}

// jansson refuses a text with any of these: a row that could not be read again.
Test(jtext, bytes_that_are_no_utf8)
{
	static const struct {
		const char *in, *out;
	} bad[] = {
	    {"\xff", "?"},
	    {"a\x80z", "a?z"},
	    {"\xc0\xaf", "??"},
	    {"\xc3", "?"},
	    {"\xc3z", "?z"},
	    {"\xe0\x80\xaf", "???"},
	    {"\xed\xa0\x80", "???"},
	    {"\xf0\x80\x80\x80", "????"},
	    {"\xf4\x90\x80\x80", "????"},
	    {"\xf5\x80\x80\x80", "????"},
	    {"\xe2\x82", "??"},
	    {"\xf0\x9f\x98", "???"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		cleanup_free char *out = through(bad[i].in);

		cr_expect_str_eq(out, bad[i].out, "case %zu: %s", i, out);
	}
}

Test(jtext, values_of_jansson)
{
	json_t *v = json_pack("{s:i,s:[i,s,n,b],s:{s:f},s:{}}", "a\"b", 1, "l",
			      -2, "\xc3\xa4", true, "o", "r", 1.5, "e");
	struct jtext t = {0};
	json_t *back, *absent;

	jt_open(&t, NULL);
	jt_json(&t, "v", v);
	jt_json(&t, "absent", NULL);
	jt_bool(&t, "after", true);
	jt_close(&t);
	back = parsed(&t);
	cr_expect(json_equal(json_object_get(back, "v"), v));
	absent = json_object_get(back, "absent");
	cr_expect(json_is_object(absent) && json_object_size(absent) == 0);
	cr_expect(json_is_true(json_object_get(back, "after")));
	json_decref(back);
	json_decref(v);
}

// Longer than what is made room for at once.
Test(jtext, grows)
{
	struct jtext t = {0};
	json_t *j;

	jt_open_list(&t, NULL);
	for (int i = 0; i < 20000; i++)
		jt_int(&t, NULL, i);
	jt_close_list(&t);
	j = parsed(&t);
	cr_expect_eq(json_array_size(j), 20000);
	cr_expect_eq(json_integer_value(json_array_get(j, 19999)), 19999);
	json_decref(j);
}
