// The table for programs in other languages.
//
//	shape_tool table      all operations, their shapes written out
//	shape_tool check      each line of stdin ["Operation", {"members"}]: a
//	                      line "ok", or the sentence of the refusal
//	shape_tool match      each line ["pattern", "text"]: 1 or 0
#include "shape.h"

#include <stdio.h>
#include <string.h>

static json_t *resolved(const struct shape *s);

static void put_words(json_t *j, const char *key, const char *const *w)
{
	json_t *list = json_array();

	for (; w && *w; w++)
		json_array_append_new(list, json_string(*w));
	json_object_set_new(j, key, list);
}

static json_t *members(const struct shape *s)
{
	static const char *const places[] = {"body", "uri", "querystring",
					     "header"};
	json_t *all = json_object();

	for (unsigned i = 0; i < s->n; i++) {
		const struct shape_member *m = &s->members[i];

		json_object_set_new(
		    all, m->name,
		    json_pack("{s:o,s:b,s:b,s:b,s:s,s:s}", "shape",
			      resolved(m->shape), "required",
			      !!(m->flags & SHAPE_REQUIRED), "token",
			      !!(m->flags & SHAPE_IDEMPOTENCY), "own",
			      !!(m->flags & SHAPE_OWN), "place",
			      places[m->place], "wire",
			      m->wire ? m->wire : m->name));
	}
	return all;
}

static json_t *resolved(const struct shape *s)
{
	static const char *const kinds[] = {
	    "structure", "union", "list",    "map",	  "string", "enum",
	    "integer",	 "long",  "boolean", "timestamp", "any"};
	json_t *j;

	if (!s)
		return json_null();
	j = json_pack("{s:s,s:s?,s:b}", "type", kinds[s->kind], "pattern",
		      s->pattern, "sensitive", s->secret);
	json_object_set_new(j, "min",
			    s->min == SHAPE_NO_MIN ? json_null()
						   : json_integer(s->min));
	json_object_set_new(j, "max",
			    s->max == SHAPE_NO_MAX ? json_null()
						   : json_integer(s->max));
	put_words(j, "enum", s->values);
	json_object_set_new(j, "key", resolved(s->key));
	json_object_set_new(j, "of", resolved(s->of));
	json_object_set_new(j, "members", members(s));
	return j;
}

static json_t *operation(const struct shape_op *op)
{
	json_t *errors = json_object();

	for (size_t i = 0; i < SHAPE_ERRORS_MAX && op->errors[i]; i++)
		json_object_set_new(errors, op->errors[i]->name,
				    json_pack("{s:i,s:o}", "status",
					      op->errors[i]->status, "shape",
					      resolved(op->errors[i]->shape)));
	return json_pack("{s:s,s:s,s:i,s:o,s:o,s:o,s:b,s:b,s:b}", "method",
			 op->method, "path", op->path, "status", op->status,
			 "in", resolved(op->in), "out", resolved(op->out),
			 "errors", errors, "idempotent", op->idempotent,
			 "readonly", op->readonly, "paged", op->paged);
}

static void table(void)
{
	json_t *all = json_object();

	for (size_t i = 0; i < shape_nops; i++)
		json_object_set_new(all, shape_ops[i].name,
				    operation(&shape_ops[i]));
	json_dumpf(all, stdout, 0);
	json_decref(all);
}

static void answer(bool check, json_t *line)
{
	const char *a = json_string_value(json_array_get(line, 0));
	json_t *b = json_array_get(line, 1);
	const struct shape_op *op = check && a ? shape_op(a) : NULL;
	struct err e = ERR_INIT;

	if (!check)
		puts(shape_match(a, json_string_value(b)) ? "1" : "0");
	else if (!op)
		puts("no such operation");
	else
		puts(shape_check(op->in, b, &e) ? e.msg : "ok");
}

int main(int argc, char **argv)
{
	static char buf[1 << 20];
	bool check = argc == 2 && !strcmp(argv[1], "check");

	if (argc != 2)
		return 2;
	if (!strcmp(argv[1], "table")) {
		table();
		return 0;
	}
	while (fgets(buf, sizeof(buf), stdin)) {
		json_t *line = json_loads(buf, 0, NULL);

		if (!line)
			return 1;
		answer(check, line);
		json_decref(line);
	}
	return 0;
}
