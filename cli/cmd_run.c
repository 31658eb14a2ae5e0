// thaw run, wait.
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

enum {
	PAYLOAD_MAX = 4096,
	WAIT_DEFAULT_S = 300,
	SUSPENDED_DEFAULT_S = 28800, // the longest that a microVM may live
};

static int set_labels(struct cli *c, json_t *body)
{
	json_t *labels = json_object();
	const char *v, *eq;

	for (size_t i = 0; (v = cli_value_at(c, "label", i)); i++) {
		char *key;

		eq = strchr(v, '=');
		if (!eq || eq == v) {
			json_decref(labels);
			return cli_usage(c, "--label '%s' is not K=V", v);
		}
		key = strndup(v, (size_t)(eq - v));
		if (!key ||
		    json_object_set_new(labels, key, json_string(eq + 1))) {
			free(key);
			json_decref(labels);
			return cli_usage(c, "--label '%s' is not UTF-8", v);
		}
		free(key);
	}
	if (json_object_size(labels))
		json_object_set(body, "labels", labels);
	json_decref(labels);
	return 0;
}

static int set_payload(struct cli *c, json_t *body)
{
	const char *v = cli_value(c, "payload");
	char buf[PAYLOAD_MAX + 1];
	size_t n;
	FILE *f;

	if (!v)
		return 0;
	if (v[0] == '@') {
		f = fopen(v + 1, "re");
		if (!f)
			return cli_fail(CLI_FAILED, "cannot read %s: %s", v + 1,
					strerror(errno));
		n = fread(buf, 1, sizeof(buf), f);
		fclose(f);
	} else {
		n = MIN(strlen(v), sizeof(buf));
		memcpy(buf, v, n);
	}
	if (n > PAYLOAD_MAX)
		return cli_usage(c, "the payload is longer than %d bytes",
				 PAYLOAD_MAX);
	if (json_object_set_new(body, "runHookPayload", json_stringn(buf, n)))
		return cli_usage(c, "the payload is not UTF-8 text");
	return 0;
}

// AWS's idle policy has three members, and wants all of them.
static int set_idle(struct cli *c, json_t *body)
{
	uint64_t idle = 0, suspended = SUSPENDED_DEFAULT_S;
	int code = cli_number(c, "idle", SUSPENDED_DEFAULT_S, &idle);

	code =
	    code ? code
		 : cli_number(c, "suspended", SUSPENDED_DEFAULT_S, &suspended);
	if (code)
		return code;
	if (!cli_flag(c, "idle"))
		return cli_flag(c, "suspended") || cli_flag(c, "no-auto-resume")
			   ? cli_usage(c, "--suspended and --no-auto-resume "
					  "belong to --idle SECONDS")
			   : 0;
	json_object_set_new(
	    body, "idlePolicy",
	    json_pack("{s:I,s:I,s:b}", "maxIdleDurationSeconds",
		      (json_int_t)idle, "suspendedDurationSeconds",
		      (json_int_t)suspended, "autoResumeEnabled",
		      !cli_flag(c, "no-auto-resume")));
	return 0;
}

static int set_ingress(struct cli *c, json_t *body)
{
	static const char *const kinds[][2] = {{"http", "HTTP_INGRESS"},
					       {"shell", "SHELL_INGRESS"},
					       {"all", "ALL_INGRESS"}};
	json_t *list = json_array();
	const char *v;

	for (size_t i = 0; (v = cli_value_at(c, "ingress", i)); i++) {
		size_t k = 0;

		while (k < ARRAY_SIZE(kinds) && strcasecmp(v, kinds[k][0]) != 0)
			k++;
		if (k == ARRAY_SIZE(kinds)) {
			json_decref(list);
			return cli_usage(c,
					 "--ingress '%s' is none of http, "
					 "shell, all",
					 v);
		}
		json_array_append_new(
		    list, json_sprintf("arn:aws:lambda:us-east-1:aws:network-"
				       "connector:aws-network-connector:%s",
				       kinds[k][1]));
	}
	if (json_array_size(list))
		json_object_set(body, "ingressNetworkConnectors", list);
	json_decref(list);
	return 0;
}

static int set_image(struct cli *c, json_t *body)
{
	char *version, *image = cli_image_version(c->argv[0], &version);
	const char *asked = cli_value(c, "version");
	int code = 0;

	if (version && asked)
		code = cli_usage(c,
				 "'%s' names a version already: leave "
				 "--version out",
				 c->argv[0]);
	if (!asked)
		asked = version;
	json_object_set_new(body, "imageIdentifier", json_string(image));
	if (asked)
		json_object_set_new(body, "imageVersion", json_string(asked));
	free(image);
	return code;
}

static int make_request(struct cli *c, json_t *body, uint64_t *count)
{
	uint64_t max_s = 0;
	const char *v;
	int rc;

	rc = set_image(c, body);
	if (rc)
		return rc;
	if ((v = cli_value(c, "name")))
		json_object_set_new(body, "name", json_string(v));
	if ((v = cli_value(c, "role")))
		json_object_set_new(body, "executionRoleArn", json_string(v));
	if ((v = cli_value(c, "client-token")))
		json_object_set_new(body, "clientToken", json_string(v));
	if (cli_flag(c, "cold"))
		json_object_set_new(body, "cold", json_true());
	rc = set_labels(c, body);
	rc = rc ? rc : set_payload(c, body);
	rc = rc ? rc : set_idle(c, body);
	rc = rc ? rc : set_ingress(c, body);
	rc = rc ? rc : cli_number(c, "max-duration", 28800, &max_s);
	rc = rc ? rc : cli_number(c, "count", 10000, count);
	if (rc)
		return rc;
	if (cli_flag(c, "max-duration") && !max_s)
		return cli_usage(c,
				 "--max-duration 0: a microVM lives for 1 to "
				 "28800 seconds");
	if (max_s)
		json_object_set_new(body, "maximumDurationInSeconds",
				    json_integer((json_int_t)max_s));
	if (*count > 1 &&
	    (cli_value(c, "name") || cli_value(c, "client-token")))
		return cli_usage(c,
				 "--name and --client-token are for one "
				 "microVM, not for --count %llu",
				 (unsigned long long)*count);
	return 0;
}

static int run_one(struct cli *c, const json_t *body, uint64_t timeout_s)
{
	json_t *vm, *now = NULL;
	const char *id;
	int code = cli_call(c, "run", "POST", CLI_AWS "/microvms", body, &vm);

	if (code)
		return code;
	id = cli_str(vm, "microvmId");
	if (!c->json) {
		cli_put(stdout, id);
		putchar('\n');
		fflush(stdout); // it exists: say so even if waiting fails
	}
	if (cli_flag(c, "wait"))
		code = cli_wait(c, id, "RUNNING", timeout_s, &now);
	if (c->json)
		cli_print_json(now ? now : vm, false);
	json_decref(now);
	json_decref(vm);
	return code;
}

int cmd_run(struct cli *c)
{
	uint64_t count = 1, timeout_s = WAIT_DEFAULT_S;
	json_t *body = json_object();
	int code = make_request(c, body, &count);

	if (!code)
		code = cli_number(c, "timeout", 1u << 30, &timeout_s);
	for (uint64_t i = 0; !code && i < count; i++)
		code = run_one(c, body, timeout_s);
	json_decref(body);
	return code;
}

int cmd_wait(struct cli *c)
{
	static const char *const states[] = {"PENDING",	    "RUNNING",
					     "SUSPENDING",  "SUSPENDED",
					     "TERMINATING", "TERMINATED"};
	uint64_t timeout_s = WAIT_DEFAULT_S;
	json_t *vm = NULL;
	size_t i = 0;
	int code = cli_number(c, "timeout", 1u << 30, &timeout_s);

	if (code)
		return code;
	while (i < ARRAY_SIZE(states) && strcasecmp(c->argv[1], states[i]) != 0)
		i++;
	if (i == ARRAY_SIZE(states))
		return cli_usage(c,
				 "'%s' is no state: RUNNING, SUSPENDED or "
				 "TERMINATED",
				 c->argv[1]);
	code = cli_wait(c, c->argv[0], states[i], timeout_s, &vm);
	if (!code && c->json)
		cli_print_json(vm, false);
	json_decref(vm);
	return code;
}
