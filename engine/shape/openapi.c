// docs/openapi.json: the table as an OpenAPI 3.1 document. Named shapes become
// components when they are structures, unions or enums; the rest stands where it
// is used. What AWS does not have is marked "x-thaw".
#include "shape_internal.h"

#include <stdio.h>
#include <string.h>

#define REF "#/components/schemas/"

static json_t *schema(const struct shape *s, json_t *components);

static json_t *texts(const char *const *values, json_t *into)
{
	for (; values && *values; values++)
		json_array_append_new(into, json_string(*values));
	return into;
}

static void limits(json_t *j, const struct shape *s, const char *lo,
		   const char *hi)
{
	if (s->min != SHAPE_NO_MIN)
		json_object_set_new(j, lo, json_integer(s->min));
	if (s->max != SHAPE_NO_MAX)
		json_object_set_new(j, hi, json_integer(s->max));
}

static json_t *string_schema(const struct shape *s)
{
	json_t *j = json_pack("{s:s}", "type", "string");

	limits(j, s, "minLength", "maxLength");
	if (s->pattern)
		json_object_set_new(j, "pattern",
				    json_sprintf("^(?:%s)$", s->pattern));
	if (s->secret)
		json_object_set_new(j, "format", json_string("password"));
	if (s->bytes)
		json_object_set_new(
		    j, "description",
		    json_string("maxLength counts UTF-8 bytes here"));
	return j;
}

static json_t *enum_schema(const struct shape *s)
{
	json_t *j = json_pack("{s:s,s:o}", "type", "string", "enum",
			      texts(s->own, texts(s->values, json_array())));

	if (s->own)
		json_object_set_new(j, "x-thaw", texts(s->own, json_array()));
	return j;
}

static json_t *list_schema(const struct shape *s, json_t *components)
{
	json_t *j = json_pack("{s:s,s:o}", "type", "array", "items",
			      schema(s->of, components));

	limits(j, s, "minItems", "maxItems");
	return j;
}

static json_t *map_schema(const struct shape *s, json_t *components)
{
	json_t *j =
	    json_pack("{s:s,s:o,s:o}", "type", "object", "propertyNames",
		      schema(s->key, components), "additionalProperties",
		      schema(s->of, components));

	limits(j, s, "minProperties", "maxProperties");
	return j;
}

static json_t *member_schema(const struct shape_member *m, json_t *components)
{
	json_t *j = schema(m->shape, components);

	if (m->flags & SHAPE_OWN)
		json_object_set_new(j, "x-thaw", json_true());
	if (m->flags & SHAPE_IDEMPOTENCY)
		json_object_set_new(j, "x-idempotency-token", json_true());
	return j;
}

// The members that travel in the body.
static json_t *struct_schema(const struct shape *s, json_t *components)
{
	json_t *props = json_object(), *required = json_array();
	json_t *j =
	    json_pack("{s:s,s:o}", "type", "object", "properties", props);

	for (unsigned i = 0; i < s->n; i++) {
		const struct shape_member *m = &s->members[i];

		if (m->place != SHAPE_BODY)
			continue;
		json_object_set_new(props, m->name,
				    member_schema(m, components));
		if (m->flags & SHAPE_REQUIRED)
			json_array_append_new(required, json_string(m->name));
	}
	if (s->kind == SHAPE_UNION) {
		json_object_set_new(j, "minProperties", json_integer(1));
		json_object_set_new(j, "maxProperties", json_integer(1));
	}
	if (json_array_size(required))
		json_object_set(j, "required", required);
	json_decref(required);
	json_object_set_new(j, "additionalProperties", json_false());
	return j;
}

static json_t *inline_schema(const struct shape *s, json_t *components)
{
	json_t *j;

	switch (s->kind) {
	case SHAPE_STRUCT:
	case SHAPE_UNION:
		return struct_schema(s, components);
	case SHAPE_LIST:
		return list_schema(s, components);
	case SHAPE_MAP:
		return map_schema(s, components);
	case SHAPE_STRING:
		return string_schema(s);
	case SHAPE_ENUM:
		return enum_schema(s);
	case SHAPE_INT:
	case SHAPE_LONG:
		j = json_pack("{s:s,s:s}", "type", "integer", "format",
			      s->kind == SHAPE_INT ? "int32" : "int64");
		limits(j, s, "minimum", "maximum");
		return j;
	case SHAPE_BOOL:
		return json_pack("{s:s}", "type", "boolean");
	case SHAPE_TIME:
		return json_pack("{s:s,s:s}", "type", "number", "description",
				 "seconds since 1970");
	case SHAPE_ANY:
		break;
	}
	return json_pack("{s:s}", "description", "see docs/API.md");
}

static json_t *schema(const struct shape *s, json_t *components)
{
	bool named = s->kind == SHAPE_STRUCT || s->kind == SHAPE_UNION ||
		     s->kind == SHAPE_ENUM;

	if (!named)
		return inline_schema(s, components);
	if (!json_object_get(components, s->name)) {
		// First its place, then what it is made of.
		json_object_set_new(components, s->name, json_object());
		json_object_set_new(components, s->name,
				    inline_schema(s, components));
	}
	return json_pack("{s:o}", "$ref", json_sprintf(REF "%s", s->name));
}

// --- operations --------------------------------------------------------------

static json_t *body_of(json_t *what)
{
	return json_pack("{s:{s:o}}", "application/json", "schema", what);
}

static json_t *parameters(const struct shape *s, json_t *components,
			  bool *has_body)
{
	static const char *const places[] = {NULL, "path", "query", "header"};
	json_t *list = json_array();

	*has_body = false;
	for (unsigned i = 0; i < s->n; i++) {
		const struct shape_member *m = &s->members[i];

		if (m->place == SHAPE_BODY) {
			*has_body = true;
			continue;
		}
		json_array_append_new(
		    list, json_pack("{s:s,s:s,s:b,s:o}", "name", shape_wire(m),
				    "in", places[m->place], "required",
				    (m->flags & SHAPE_REQUIRED) != 0, "schema",
				    member_schema(m, components)));
	}
	return list;
}

// Several errors may share a status; the header tells which it is.
static void put_error(json_t *responses, const struct shape_error *x,
		      json_t *components)
{
	char status[12];
	json_t *r, *any, *names;

	snprintf(status, sizeof(status), "%d", x->status);
	r = json_object_get(responses, status);
	if (!r) {
		r = json_pack("{s:s,s:{s:{s:b,s:{s:s,s:[]}}},s:o}",
			      "description", "refused or failed", "headers",
			      "x-amzn-ErrorType", "required", 1, "schema",
			      "type", "string", "enum", "content",
			      body_of(json_pack("{s:[]}", "anyOf")));
		json_object_set_new(responses, status, r);
	}
	names = json_object_get(
	    json_object_get(json_object_get(json_object_get(r, "headers"),
					    "x-amzn-ErrorType"),
			    "schema"),
	    "enum");
	any = json_object_get(
	    json_object_get(json_object_get(json_object_get(r, "content"),
					    "application/json"),
			    "schema"),
	    "anyOf");
	json_array_append_new(names, json_string(x->name));
	json_array_append_new(any, schema(x->shape, components));
}

static json_t *responses(const struct shape_op *op, json_t *components)
{
	json_t *all = json_object(), *ok;
	char status[12];

	snprintf(status, sizeof(status), "%d", op->status);
	ok = json_pack("{s:s}", "description", "done");
	if (op->out)
		json_object_set_new(ok, "content",
				    body_of(schema(op->out, components)));
	json_object_set_new(all, status, ok);
	for (size_t i = 0; i < SHAPE_ERRORS_MAX && op->errors[i]; i++)
		put_error(all, op->errors[i], components);
	return all;
}

static json_t *operation(const struct shape_op *op, json_t *components)
{
	bool has_body;
	json_t *params = parameters(op->in, components, &has_body);
	json_t *j = json_pack("{s:s,s:s,s:o}", "operationId", op->name,
			      "summary", op->summary, "parameters", params);

	if (op->idempotent || op->readonly)
		json_object_set_new(j, "x-idempotent", json_true());
	if (has_body)
		json_object_set_new(
		    j, "requestBody",
		    json_pack("{s:b,s:o}", "required", 1, "content",
			      body_of(schema(op->in, components))));
	json_object_set_new(j, "responses", responses(op, components));
	return j;
}

static void put_operation(json_t *paths, const struct shape_op *op,
			  json_t *components)
{
	json_t *path = json_object_get(paths, op->path);
	char method[8] = "";

	if (!path) {
		path = json_object();
		json_object_set_new(paths, op->path, path);
	}
	for (size_t i = 0; op->method[i] && i < sizeof(method) - 1; i++)
		method[i] = (char)(op->method[i] | 0x20);
	json_object_set_new(path, method, operation(op, components));
}

json_t *shape_openapi(void)
{
	json_t *paths = json_object(), *components = json_object();

	for (size_t i = 0; i < shape_nops; i++)
		put_operation(paths, &shape_ops[i], components);
	return json_pack(
	    "{s:s,s:{s:s,s:s,s:s},s:o,s:{s:o}}", "openapi", "3.1.0", "info",
	    "title", "thaw: the Lambda MicroVMs contract", "version",
	    "2025-09-09", "description",
	    "Written from engine/shape by thawd --openapi. Unknown members are "
	    "refused; null is as good as absent. Members and values marked "
	    "x-thaw are thaw's own.",
	    "paths", paths, "components", "schemas", components);
}
