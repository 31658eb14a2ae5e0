// The contract's table at work: for each operation a request that is good, and
// ones that break each kind of constraint it has; routes, answers, pages and
// patterns. tests/conformance compares the table itself with AWS's model.
#include "shape.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define P "/2025-09-09"
#define ARN "arn:aws:lambda:us-east-1:123456789012:microvm-image:x"
#define ROLE "arn:aws:iam::123456789012:role/x"
#define MADE                                              \
	"\"baseImageArn\":\"b\",\"buildRoleArn\":\"" ROLE \
	"\",\"codeArtifact\":{\"uri\":\"file:///a\"}"

// A request as it comes over the wire, taken apart.
struct wire {
	char text[16384];
	const char *seg[12];
	struct shape_kv query[24];
	struct shape_request r;
};

static void take_apart(struct wire *w, const char *target, const char *body)
{
	char *q, *save, *p;

	memset(w, 0, sizeof(*w));
	snprintf(w->text, sizeof(w->text), "%s", target);
	q = strchr(w->text, '?');
	if (q)
		*q++ = '\0';
	for (p = w->text + 1; p; w->r.nseg++)
		w->seg[w->r.nseg] = strsep(&p, "/");
	for (p = q ? strtok_r(q, "&", &save) : NULL; p;
	     p = strtok_r(NULL, "&", &save)) {
		struct shape_kv *kv = &w->query[w->r.nquery++];

		kv->k = strsep(&p, "=");
		kv->v = p ? p : "";
	}
	w->r.seg = w->seg;
	w->r.query = w->query;
	w->r.body = body;
	w->r.body_len = strlen(body);
}

static json_t *call(const char *op, const char *method, const char *target,
		    const char *body, struct err *e)
{
	const struct shape_op *found = NULL;
	struct wire w;

	*e = (struct err)ERR_INIT;
	take_apart(&w, target, body);
	cr_assert_eq(shape_route(method, w.seg, w.r.nseg, &found), 0, "%s %s",
		     method, target);
	cr_assert_str_eq(found->name, op);
	return shape_read(found, &w.r, e);
}

struct request {
	const char *op, *method, *target, *body;
	const char *refused; // part of the sentence; NULL: it is good
};

static const struct request requests[] = {
    {"RunMicrovm", "POST", P "/microvms",
     "{\"imageIdentifier\":\"i\",\"idlePolicy\":{\"maxIdleDurationSeconds\":60,"
     "\"suspendedDurationSeconds\":0,\"autoResumeEnabled\":true},\"logging\":"
     "{\"cloudWatch\":{\"logGroup\":\"/a.b#c\"}},\"imageVersion\":\"1.0\","
     "\"executionRoleArn\":\"" ROLE "\",\"runHookPayload\":\"\","
     "\"ingressNetworkConnectors\":[],\"clientToken\":\"t\","
     "\"maximumDurationInSeconds\":28800}",
     NULL},
    {"RunMicrovm", "POST", P "/microvms", "", "'imageIdentifier'"},
    {"RunMicrovm", "POST", P "/microvms", "{\"imageIdentifier\":\"\"}",
     "between 1 and 256 characters, it has 0"},
    {"RunMicrovm", "POST", P "/microvms",
     "{\"imageIdentifier\":\"i\",\"imageVersion\":\"1 0\"}", "'imageVersion'"},
    {"RunMicrovm", "POST", P "/microvms",
     "{\"imageIdentifier\":\"i\",\"executionRoleArn\":"
     "\"arn:aws:iam::12345678901:role/xyz\"}",
     "'executionRoleArn'"},
    {"RunMicrovm", "POST", P "/microvms",
     "{\"imageIdentifier\":\"i\",\"maximumDurationInSeconds\":28801}",
     "between 1 and 28800"},
    {"RunMicrovm", "POST", P "/microvms",
     "{\"imageIdentifier\":\"i\",\"ingressNetworkConnectors\":[\"\"]}",
     "'ingressNetworkConnectors[0]'"},
    {"RunMicrovm", "POST", P "/microvms",
     "{\"imageIdentifier\":\"i\",\"logging\":{}}", "exactly one"},
    {"RunMicrovm", "POST", P "/microvms",
     "{\"imageIdentifier\":\"i\",\"logging\":{\"disabled\":{\"x\":1}}}",
     "'logging.disabled' failed to satisfy constraint: Member must be an "
     "empty object"},
    {"RunMicrovm", "POST", P "/microvms",
     "{\"imageIdentifier\":\"i\",\"idlePolicy\":{}}",
     "'idlePolicy.maxIdleDurationSeconds'"},
    {"RunMicrovm", "POST", P "/microvms",
     "{\"imageIdentifier\":\"i\",\"cold\":1}", "true or false"},
    {"RunMicrovm", "POST", P "/microvms",
     "{\"imageIdentifier\":\"i\",\"lables\":{}}", "'lables'"},
    {"RunMicrovm", "POST", P "/microvms?wait=GONE",
     "{\"imageIdentifier\":\"i\"}", "'wait'"},
    {"RunMicrovm", "POST", P "/microvms",
     "{\"imageIdentifier\":\"i\","
     "\"wait\":\"RUNNING\"}",
     "'wait'"},
    {"RunMicrovm", "POST", P "/microvms", "[]", "JSON object"},
    {"GetMicrovm", "GET", P "/microvms/m?wait=RUNNING&timeout=5", "", NULL},
    {"GetMicrovm", "GET", P "/microvms/m?timeout=3601", "", "0 and 3600"},
    {"GetMicrovm", "GET", P "/microvms/m?timeout=1x", "", "an integer"},
    {"GetMicrovm", "GET", P "/microvms/m?timeout=1&timeout=2", "", "once"},
    {"GetMicrovm", "GET", P "/microvms/m?nosuch=1", "", "nosuch"},
    {"ListMicrovms", "GET",
     P "/microvms?maxResults=50&imageIdentifier=i&label=a=b&label=c=d", "",
     NULL},
    {"ListMicrovms", "GET", P "/microvms?maxResults=0", "", "'maxResults'"},
    {"ListMicrovms", "GET", P "/microvms?maxResults=51", "", "1 and 50"},
    {"ListMicrovms", "GET", P "/microvms?imageIdentifier=", "",
     "'imageIdentifier'"},
    {"ListMicrovms", "GET", P "/microvms?label=a", "", "'label[0]'"},
    {"SuspendMicrovm", "POST", P "/microvms/m/suspend", "{}", NULL},
    {"SuspendMicrovm", "POST", P "/microvms/m/suspend",
     "{\"microvmIdentifier\":\"x\"}", "'microvmIdentifier'"},
    {"ResumeMicrovm", "POST", P "/microvms/m/resume", "", NULL},
    {"ResumeMicrovm", "POST", P "/microvms/m/resume", "{\"a\":1}", "'a'"},
    {"TerminateMicrovm", "DELETE", P "/microvms/m", "", NULL},
    {"TerminateMicrovm", "DELETE", P "/microvms/m?timeout=-1", "", "0 and"},
    {"CreateMicrovmAuthToken", "POST", P "/microvms/m/auth-token",
     "{\"expirationInMinutes\":1,\"allowedPorts\":[{\"port\":1},"
     "{\"range\":{\"startPort\":1,\"endPort\":65535}},{\"allPorts\":{}}]}",
     NULL},
    {"CreateMicrovmAuthToken", "POST", P "/microvms/m/auth-token",
     "{\"expirationInMinutes\":0,\"allowedPorts\":[{\"port\":1}]}",
     "at least 1"},
    {"CreateMicrovmAuthToken", "POST", P "/microvms/m/auth-token",
     "{\"expirationInMinutes\":1,\"allowedPorts\":[]}", "'allowedPorts'"},
    {"CreateMicrovmAuthToken", "POST", P "/microvms/m/auth-token",
     "{\"expirationInMinutes\":1,\"allowedPorts\":[{\"port\":1},"
     "{\"range\":{\"startPort\":1,\"endPort\":65536}}]}",
     "'allowedPorts[1].range.endPort'"},
    {"CreateMicrovmAuthToken", "POST", P "/microvms/m/auth-token",
     "{\"expirationInMinutes\":1,\"allowedPorts\":[{\"port\":1,"
     "\"allPorts\":{}}]}",
     "exactly one"},
    {"CreateMicrovmShellAuthToken", "POST", P "/microvms/m/shell-auth-token",
     "{\"expirationInMinutes\":60}", NULL},
    {"CreateMicrovmShellAuthToken", "POST", P "/microvms/m/shell-auth-token",
     "{\"expirationInMinutes\":2147483648}", "32 bits"},
    {"CreateMicrovmImage", "POST", P "/microvm-images",
     "{" MADE ",\"name\":\"n-_9\",\"tags\":{\"k\u00e9 1\":\"\"},\"hooks\":"
     "{\"port\":9000,\"microvmHooks\":{\"run\":\"ENABLED\","
     "\"runTimeoutInSeconds\":60}},\"environmentVariables\":{\"A\":\"\"},"
     "\"resources\":[{\"minimumMemoryInMiB\":2048}],\"cpuConfigurations\":"
     "[{\"architecture\":\"X86_64\"}],\"additionalOsCapabilities\":[\"ALL\"]}",
     NULL},
    {"CreateMicrovmImage", "POST", P "/microvm-images", "{" MADE "}", "'name'"},
    {"CreateMicrovmImage", "POST", P "/microvm-images",
     "{" MADE ",\"name\":\"a.b\"}", "'name'"},
    {"CreateMicrovmImage", "POST", P "/microvm-images",
     "{" MADE ",\"name\":\"n\",\"tags\":{\"a#\":\"\"}}", "'tags'"},
    {"CreateMicrovmImage", "POST", P "/microvm-images",
     "{" MADE ",\"name\":\"n\",\"tags\":{\"a\":\"\\u0007\"}}", "'tags.a'"},
    {"CreateMicrovmImage", "POST", P "/microvm-images",
     "{" MADE ",\"name\":\"n\",\"hooks\":{\"microvmHooks\":{\"run\":\"on\"}}}",
     "[DISABLED, ENABLED]"},
    {"CreateMicrovmImage", "POST", P "/microvm-images",
     "{" MADE ",\"name\":\"n\",\"environmentVariables\":{\"A B\":\"\"}}",
     "'environmentVariables'"},
    {"CreateMicrovmImage", "POST", P "/microvm-images",
     "{" MADE ",\"name\":\"n\",\"resources\":[{\"minimumMemoryInMiB\":1},"
     "{\"minimumMemoryInMiB\":1}]}",
     "between 0 and 1 entries"},
    {"CreateMicrovmImage", "POST", P "/microvm-images",
     "{" MADE ",\"name\":\"n\",\"cpuConfigurations\":"
     "[{\"architecture\":\"x86\"}]}",
     "'cpuConfigurations[0].architecture'"},
    {"UpdateMicrovmImage", "PUT", P "/microvm-images/i", "{" MADE "}", NULL},
    {"UpdateMicrovmImage", "PUT", P "/microvm-images/i",
     "{" MADE ",\"name\":\"n\"}", "'name'"},
    {"UpdateMicrovmImage", "PUT", P "/microvm-images/i", "{}",
     "'baseImageArn'"},
    {"GetMicrovmImage", "GET", P "/microvm-images/i", "", NULL},
    {"GetMicrovmImage", "GET", P "/microvm-images/i?maxResults=1", "",
     "maxResults"},
    {"DeleteMicrovmImage", "DELETE", P "/microvm-images/i", "", NULL},
    {"DeleteMicrovmImage", "DELETE", P "/microvm-images/i", "{\"x\":1}", "'x'"},
    {"ListMicrovmImages", "GET", P "/microvm-images?nameFilter=a", "", NULL},
    {"ListMicrovmImages", "GET", P "/microvm-images?nameFilter=a b", "",
     "'nameFilter'"},
    {"GetMicrovmImageVersion", "GET", P "/microvm-images/i/versions/1.0", "",
     NULL},
    {"GetMicrovmImageVersion", "GET", P "/microvm-images/i/versions/1 0", "",
     "'imageVersion'"},
    {"UpdateMicrovmImageVersion", "PATCH", P "/microvm-images/i/versions/1.0",
     "{\"status\":\"INACTIVE\"}", NULL},
    {"UpdateMicrovmImageVersion", "PATCH", P "/microvm-images/i/versions/1.0",
     "{\"status\":\"OFF\"}", "[ACTIVE, INACTIVE]"},
    {"DeleteMicrovmImageVersion", "DELETE", P "/microvm-images/i/versions/1.0",
     "", NULL},
    {"DeleteMicrovmImageVersion", "DELETE", P "/microvm-images/i/versions/1\t0",
     "", "'imageVersion'"},
    {"ListMicrovmImageVersions", "GET",
     P "/microvm-images/i/versions?maxResults=1", "", NULL},
    {"ListMicrovmImageVersions", "GET",
     P "/microvm-images/i/versions?maxResults=", "", "'maxResults'"},
    {"ListMicrovmImageBuilds", "GET",
     P "/microvm-images/i/versions/1/builds?architecture=X86_64&chipset=AMD",
     "", NULL},
    {"ListMicrovmImageBuilds", "GET",
     P "/microvm-images/i/versions/1/builds?chipset=INTEL4", "", "'chipset'"},
    {"GetMicrovmImageBuild", "GET", P "/microvm-images/i/versions/1/builds/b",
     "", NULL},
    {"GetMicrovmImageBuild", "GET", P "/microvm-images/i/versions/1/builds/ ",
     "", "'buildId'"},
    {"ListManagedMicrovmImages", "GET", P "/managed-microvm-images", "", NULL},
    {"ListManagedMicrovmImages", "GET",
     P "/managed-microvm-images?maxResults=99", "", "'maxResults'"},
    {"ListManagedMicrovmImageVersions", "GET",
     P "/managed-microvm-images/i/versions", "", NULL},
    {"ListManagedMicrovmImageVersions", "GET",
     P "/managed-microvm-images/i/versions?maxResults=0", "", "'maxResults'"},
    {"ListTags", "GET", "/2017-03-31/tags/" ARN, "", NULL},
    {"ListTags", "GET",
     "/2017-03-31/tags/arn:aws:lambda:us-east-1:123456789012:microvm:x", "",
     "'Resource'"},
    {"TagResource", "POST", "/2017-03-31/tags/" ARN, "{\"Tags\":{\"a\":\"b\"}}",
     NULL},
    {"TagResource", "POST", "/2017-03-31/tags/" ARN, "{}", "'Tags'"},
    {"TagResource", "POST", "/2017-03-31/tags/" ARN, "{\"Tags\":{\"\":\"b\"}}",
     "'Tags'"},
    {"UntagResource", "DELETE", "/2017-03-31/tags/" ARN "?tagKeys=a&tagKeys=b",
     "", NULL},
    {"UntagResource", "DELETE", "/2017-03-31/tags/" ARN, "", "'TagKeys'"},
    {"UntagResource", "DELETE", "/2017-03-31/tags/" ARN "?tagKeys=a!", "",
     "'TagKeys[0]'"},
};

Test(shape, each_operation_takes_good_and_refuses_bad)
{
	for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
		const struct request *q = &requests[i];
		struct err e;
		json_t *in = call(q->op, q->method, q->target, q->body, &e);

		if (!q->refused) {
			cr_expect_not_null(in, "%s: %s", q->op, e.msg);
		} else {
			cr_expect_null(in, "%s %s", q->target, q->body);
			cr_expect_eq(e.code, -EINVAL);
			cr_expect_not_null(strstr(e.msg, q->refused),
					   "%s: %s, not %s", q->op, e.msg,
					   q->refused);
		}
		json_decref(in);
	}
}

Test(shape, every_operation_has_both)
{
	for (size_t k = 0; k < shape_nops; k++) {
		unsigned good = 0, bad = 0;

		for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
			if (strcmp(requests[i].op, shape_ops[k].name))
				continue;
			*(requests[i].refused ? &bad : &good) += 1;
		}
		cr_expect(good && bad, "%s", shape_ops[k].name);
	}
	cr_expect_eq(shape_nops, 24);
}

Test(shape, members_from_everywhere)
{
	struct err e;
	json_t *in =
	    call("UntagResource", "DELETE",
		 "/2017-03-31/tags/" ARN "?tagKeys=a&tagKeys=b", "", &e);
	json_t *want =
	    json_pack("{s:s,s:[s,s]}", "Resource", ARN, "TagKeys", "a", "b");

	cr_expect(json_equal(in, want));
	json_decref(in);
	json_decref(want);
	in = call("RunMicrovm", "POST", P "/microvms?wait=RUNNING&timeout=7",
		  "{\"imageIdentifier\":\"i\",\"logging\":null}", &e);
	want = json_pack("{s:s,s:s,s:i}", "imageIdentifier", "i", "wait",
			 "RUNNING", "timeout", 7);
	cr_expect(json_equal(in, want), "null is as good as absent");
	json_decref(in);
	json_decref(want);
}

Test(shape, lengths_count_characters_and_payloads_bytes)
{
	char body[9000], e2[2049 * 2 + 1] = "";
	struct err e;
	json_t *in;

	for (unsigned i = 0; i < 2048; i++)
		memcpy(e2 + 2 * i, "\u00e9", 2);
	e2[4096] = '\0';
	snprintf(body, sizeof(body),
		 "{\"imageIdentifier\":\"i\",\"runHookPayload\":\"%s\"}", e2);
	in = call("RunMicrovm", "POST", P "/microvms", body, &e);
	cr_expect_not_null(in, "%s", e.msg);
	json_decref(in);
	memcpy(e2 + 4096, "x", 2);
	snprintf(body, sizeof(body),
		 "{\"imageIdentifier\":\"i\",\"runHookPayload\":\"%s\"}", e2);
	cr_expect_null(call("RunMicrovm", "POST", P "/microvms", body, &e));
	cr_expect_null(strstr(e.msg, "\u00e9"), "a secret stays one");
	e2[512] = '\0'; // 256 characters
	snprintf(body, sizeof(body), "{\"imageIdentifier\":\"%s\"}", e2);
	in = call("RunMicrovm", "POST", P "/microvms", body, &e);
	cr_expect_not_null(in, "%s", e.msg);
	json_decref(in);
}

Test(shape, routes)
{
	static const struct {
		const char *method, *target;
		int rc;
	} cases[] = {
	    {"GET", "/", -ENOENT},
	    {"GET", P, -ENOENT},
	    {"GET", P "/microvms/", -ENOENT},
	    {"GET", P "/microvms/m/", -ENOENT},
	    {"GET", P "/microvms/m/x/y", -ENOENT},
	    {"GET", "/2025-09-08/microvms", -ENOENT},
	    {"GET", P "/microvm", -ENOENT},
	    {"GET", P "/microvmsx", -ENOENT},
	    {"PUT", P "/microvms", -EOPNOTSUPP},
	    {"GET", P "/microvms/m/suspend", -EOPNOTSUPP},
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		const struct shape_op *op;
		struct wire w;

		take_apart(&w, cases[i].target, "");
		cr_expect_eq(shape_route(cases[i].method, w.seg, w.r.nseg, &op),
			     cases[i].rc, "%s %s", cases[i].method,
			     cases[i].target);
	}
}

Test(shape, answers)
{
	const struct shape_op *op = shape_op("ListTags");
	json_t *good = json_pack("{s:{s:s}}", "Tags", "a", "b");
	json_t *bad = json_pack("{s:{s:i}}", "Tags", "a", 1);
	json_t *msg = json_pack("{s:s}", "message", "m");
	struct err e = ERR_INIT;

	cr_expect_eq(shape_check_answer(op, 200, good, &e), 0, "%s", e.msg);
	cr_expect_eq(shape_check_answer(op, 201, good, &e), -EINVAL);
	cr_expect_eq(shape_check_answer(op, 200, bad, &e), -EINVAL);
	cr_expect_not_null(strstr(e.msg, "'Tags.a'"), "%s", e.msg);
	cr_expect_eq(shape_check_answer(op, 200, NULL, &e), -EINVAL);
	op = shape_op("TagResource");
	cr_expect_eq(shape_check_answer(op, 204, NULL, &e), 0);
	cr_expect_eq(shape_check_answer(op, 204, good, &e), -EINVAL);
	op = shape_op("GetMicrovm");
	cr_expect_eq(
	    shape_check_error(op, 404, "ResourceNotFoundException", msg, &e), 0,
	    "%s", e.msg);
	cr_expect_eq(
	    shape_check_error(op, 400, "ResourceNotFoundException", msg, &e),
	    -EINVAL);
	cr_expect_eq(shape_check_error(op, 409, "ConflictException", msg, &e),
		     -EINVAL, "it declares none");
	json_decref(good);
	json_decref(bad);
	json_decref(msg);
}

Test(shape, pages)
{
	static const uint8_t key[SHAPE_PAGE_KEY] = "0123456789abcde",
			     other[SHAPE_PAGE_KEY] = "0123456789abcdf";
	const struct shape_op *list = shape_op("ListMicrovms");
	json_t *in =
	    json_pack("{s:s,s:i}", "imageIdentifier", "i", "maxResults", 3);
	char token[SHAPE_PAGE_TEXT], bent[SHAPE_PAGE_TEXT];
	struct err e = ERR_INIT;
	uint64_t at = 7;

	cr_expect_eq(shape_page_read(key, list, in, &at, &e), 0);
	cr_expect_eq(at, 0, "without one from the beginning");
	shape_page_make(key, list, in, 0x0123456789abcdefu, token);
	json_object_set_new(in, "nextToken", json_string(token));
	json_object_set_new(in, "maxResults", json_integer(50));
	cr_expect_eq(shape_page_read(key, list, in, &at, &e), 0, "%s", e.msg);
	cr_expect_eq(at, 0x0123456789abcdefu);
	cr_expect_eq(shape_page_read(other, list, in, &at, &e), -EINVAL);
	cr_expect_eq(
	    shape_page_read(key, shape_op("ListMicrovmImages"), in, &at, &e),
	    -EINVAL, "another list's");
	for (size_t i = 0; token[i]; i++) {
		for (const char *c = "AZaz09-_= "; *c; c++) {
			memcpy(bent, token, sizeof(bent));
			bent[i] = *c;
			json_object_set_new(in, "nextToken", json_string(bent));
			cr_expect_eq(shape_page_read(key, list, in, &at, &e) !=
					 0,
				     *c != token[i], "%s", bent);
		}
	}
	json_object_set_new(in, "nextToken", json_string(token));
	json_object_set_new(in, "imageIdentifier", json_string("j"));
	cr_expect_eq(shape_page_read(key, list, in, &at, &e), -EINVAL,
		     "another query's");
	json_decref(in);
}

Test(shape, patterns)
{
	static const struct {
		const char *pattern, *good, *bad;
	} cases[] = {
	    {"a", "a", "aa"},
	    {"a?b|c+d*", "b", "a"},
	    {"a?b|c+d*", "ccdd", "abd"},
	    {"(a|b|c){3}x", "cabx", "cax"},
	    {"(a+)*b", "aaab", "aaa"},
	    {"((ab)?c)*", "abccabc", "abab"},
	    {"x(-(y|z))?w", "x-zw", "x-w"},
	    {"[^a-c]+", "xyz", "xbz"},
	    {"[a-z0-9-]+", "a-9", "a_9"},
	    {"\\d{2}", "42", "4a"},
	    {".+", "\u00e9\n", ""},
	    {"[\\p{L}\\p{Z}\\p{N}]*", "\u00e9 \u00b2\u6f22", "a\u0301"},
	    {"[\\p{L}]", "\U00020000", "\U000e0001"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		cr_expect(shape_match(cases[i].pattern, cases[i].good), "%s %s",
			  cases[i].pattern, cases[i].good);
		cr_expect_not(shape_match(cases[i].pattern, cases[i].bad),
			      "%s %s", cases[i].pattern, cases[i].bad);
	}
}

// A backtracking matcher would need 2^n steps for this.
Test(shape, patterns_are_linear, .timeout = 300)
{
	static char text[200001];

	memset(text, 'a', sizeof(text) - 1);
	cr_expect_not(shape_match("(a|a|aa)*(a*)*b", text));
}
