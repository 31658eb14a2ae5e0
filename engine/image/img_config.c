// The configuration of a built image, as thaw-mkroot writes it
// (mkroot_export.c).
#include <errno.h>
#include <jansson.h>
#include <string.h>

#include "img_internal.h"

enum { STRINGS_MAX = 4096, STRING_MAX = 128 * 1024, PORTS_MAX = 2000 };

void img_config_free(struct img_config *c)
{
	free((void *)c->argv);
	free((void *)c->env);
	free((void *)c->volumes);
	free(c->ports);
	json_decref(c->doc);
	memset(c, 0, sizeof(*c));
}

static const char *const *list_of(const json_t *doc, const char *name,
				  bool (*ok)(const char *))
{
	const json_t *list = json_object_get(doc, name), *v;
	size_t n = json_array_size(list), i;
	const char **out;

	if (!json_is_array(list) || n > STRINGS_MAX)
		return NULL;
	out = calloc(n + 1, sizeof(*out));
	json_array_foreach(list, i, v)
	{
		const char *s = json_string_value(v);

		if (!out || !s || strlen(s) > STRING_MAX || !ok(s)) {
			free(out);
			return NULL;
		}
		out[i] = s;
	}
	return out;
}

static bool any(const char *s)
{
	return s != NULL;
}

static bool variable(const char *s)
{
	return *s && *s != '=' && strchr(s, '=');
}

static bool absolute(const char *s)
{
	return *s == '/' && strlen(s) < 4096;
}

static int take_ports(const json_t *doc, struct img_config *c)
{
	const json_t *list = json_object_get(doc, "ports"), *v;
	size_t n = json_array_size(list), i;

	if (!json_is_array(list) || n > PORTS_MAX)
		return -EINVAL;
	c->ports = calloc(n + 1, sizeof(*c->ports));
	if (!c->ports)
		return -ENOMEM;
	json_array_foreach(list, i, v)
	{
		json_int_t port = json_integer_value(v);

		if (port < 1 || port > 65535)
			return -EINVAL;
		c->ports[c->nports++] = (uint16_t)port;
	}
	return 0;
}

int img_config_parse(const char *text, size_t len, struct img_config *c,
		     struct err *e)
{
	json_error_t bad;
	json_t *doc = NULL;

	memset(c, 0, sizeof(*c));
	if (len <= IMG_CONFIG_MAX)
		doc = json_loadb(text, len, JSON_REJECT_DUPLICATES, &bad);
	c->doc = doc;
	c->argv = list_of(doc, "argv", any);
	c->env = list_of(doc, "env", variable);
	c->volumes = list_of(doc, "volumes", absolute);
	c->user = json_string_value(json_object_get(doc, "user"));
	c->cwd = json_string_value(json_object_get(doc, "cwd"));
	if (take_ports(doc, c) || !c->argv || !c->argv[0] || !c->env ||
	    !c->volumes || !c->user || strlen(c->user) > 256 || !c->cwd ||
	    (*c->cwd && !absolute(c->cwd))) {
		img_config_free(c);
		return err_set(e, -EINVAL,
			       "the image's configuration is not one that can "
			       "be run: its entrypoint, environment, user, "
			       "working directory, ports or volumes are "
			       "malformed");
	}
	return 0;
}
