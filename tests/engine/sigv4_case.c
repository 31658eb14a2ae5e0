#include "sigv4_case.h"

#include <stdio.h>
#include <string.h>

static const char *text(json_t *o, const char *k)
{
	const char *s = json_string_value(json_object_get(o, k));

	if (!s) {
		fprintf(stderr, "a case has no \"%s\"\n", k);
		exit(2);
	}
	return s;
}

void sigv4_case_of(struct sigv4_case *c, json_t *json)
{
	json_t *list = json_object_get(json, "headers"), *pair;
	size_t i;

	memset(c, 0, sizeof(*c));
	c->json = json;
	c->name = text(json, "name");
	c->expect = text(json, "expect");
	c->because = json_string_value(json_object_get(json, "because")) ?: "";
	c->req.method = text(json, "method");
	c->req.path = text(json, "path");
	c->req.query = text(json, "query");
	c->req.body = text(json, "body");
	c->req.body_len = json_string_length(json_object_get(json, "body"));
	c->req.headers = c->headers;
	json_array_foreach(list, i, pair)
	{
		if (c->req.nheaders == ARRAY_SIZE(c->headers))
			abort();
		c->headers[c->req.nheaders].name =
		    json_string_value(json_array_get(pair, 0));
		c->headers[c->req.nheaders++].value =
		    json_string_value(json_array_get(pair, 1));
	}
	snprintf(c->key.id, sizeof(c->key.id), "%s", text(json, "id"));
	snprintf(c->key.secret, sizeof(c->key.secret), "%s",
		 text(json, "secret"));
	c->keys = (struct auth_keys){&c->key, 1};
	c->policy.keys = &c->keys;
	c->policy.service = text(json, "service");
	c->policy.region = json_string_value(json_object_get(json, "region"));
	c->policy.ignore_session_token =
	    json_is_true(json_object_get(json, "ignoreSessionToken"));
	c->now = (uint64_t)json_integer_value(json_object_get(json, "now"));
}

void sigv4_case_free(struct sigv4_case *c)
{
	json_decref(c->json);
}
