// Requests to thawd, and what their failures mean to a script: the exit code.
#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static const struct {
	const char *type;
	int status;
	int code;
} error_codes[] = {
    {"ResourceNotFoundException", 404, CLI_NOT_FOUND},
    {"ConflictException", 409, CLI_CONFLICT},
    {"ServiceQuotaExceededException", 402, CLI_QUOTA},
    {"ThrottlingException", 429, CLI_QUOTA},
    // A build's stream has begun with 200: its error is an errno's name.
    {"ENOSPC", 507, CLI_QUOTA},
    {"EDQUOT", 0, CLI_QUOTA},
    {"EFBIG", 0, CLI_QUOTA},
    {"DISK_STORAGE_FULL", 0, CLI_QUOTA}, // reasons of a Dockerfile's build
    {"S3_NO_SUCH_KEY", 0, CLI_NOT_FOUND},
    {"S3_NO_SUCH_BUCKET", 0, CLI_NOT_FOUND},
    {"ARCHIVE_DOCKERFILE_NOT_FOUND", 0, CLI_NOT_FOUND},
    {"ENOENT", 0, CLI_NOT_FOUND},
    {"EBUSY", 0, CLI_CONFLICT},
};

int cli_exit_of(const char *type, int status)
{
	for (size_t i = 0; i < ARRAY_SIZE(error_codes); i++)
		if ((type && !strcmp(type, error_codes[i].type)) ||
		    (status && status == error_codes[i].status))
			return error_codes[i].code;
	return CLI_FAILED;
}

int cli_say_error(const char *what, const json_t *error)
{
	const char *text = cli_str(error, "message");

	fprintf(stderr, "thaw: %s: ", what);
	cli_put(stderr, *text ? text : "thawd gave no reason");
	fputc('\n', stderr);
	return cli_exit_of(cli_str(error, "type"), 0);
}

char *cli_path(const char *fmt, ...)
{
	char *out = NULL, *enc;
	size_t len = 0;
	FILE *f = open_memstream(&out, &len);
	va_list ap;

	if (!f)
		abort();
	va_start(ap, fmt);
	for (const char *p = fmt; *p; p++) {
		if (*p != '%') {
			fputc(*p, f);
		} else if (*++p == 's') {
			enc = httpc_encode(va_arg(ap, const char *));
			if (!enc)
				abort();
			fputs(enc, f);
			free(enc);
		} else { // %u
			fprintf(f, "%u", va_arg(ap, unsigned));
		}
	}
	va_end(ap);
	fclose(f);
	return out;
}

static json_t *parse_body(struct httpc *h, struct err *e)
{
	json_error_t je;
	json_t *j = NULL;
	char *text;
	size_t len;
	int rc = httpc_body_all(h, &text, &len, e);

	if (rc)
		return NULL;
	if (len == 0)
		j = json_object();
	else
		j = json_loadb(text, len, 0, &je);
	free(text);
	if (!j)
		err_set(e, -EBADMSG, "thawd's answer is not JSON (%s)",
			len ? je.text : "out of memory");
	return j;
}

static int say_status(struct httpc *h, const char *what)
{
	struct err e = ERR_INIT;
	json_t *j = parse_body(h, &e);
	const char *text = j ? cli_str(j, "message") : "";

	fprintf(stderr, "thaw: %s: ", what);
	if (*text)
		cli_put(stderr, text);
	else
		fprintf(stderr, "thawd answered with status %d", h->status);
	if (h->retry_after)
		fprintf(stderr, " (try again in %u s)", h->retry_after);
	fputc('\n', stderr);
	json_decref(j);
	return cli_exit_of(h->error_type, h->status);
}

static int send_request(struct cli *c, struct httpc *h, const char *method,
			const char *path, const char *upgrade,
			const json_t *body, struct err *e)
{
	char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
	int rc = httpc_open(h, c->socket, e);

	if (rc) {
		free(text);
		return CLI_UNREACHABLE;
	}
	rc = httpc_send(h, method, path, upgrade, "application/json", text,
			text ? strlen(text) : 0, e);
	free(text);
	if (!rc)
		rc = httpc_head(h, e);
	return rc ? CLI_FAILED : 0;
}

int cli_open(struct cli *c, struct httpc *h, const char *what,
	     const char *method, const char *path, const char *upgrade,
	     const json_t *body)
{
	struct err e = ERR_INIT;
	int code = send_request(c, h, method, path, upgrade, body, &e);

	if (code == CLI_UNREACHABLE)
		return cli_fail(code, "%s", e.msg);
	if (code)
		code = cli_fail(code, "%s: %s", what, e.msg);
	else if (h->status >= 300)
		code = say_status(h, what);
	else if (upgrade && h->status != 101)
		code = cli_fail(CLI_FAILED,
				"%s: thawd does not speak this version's %s",
				what, upgrade);
	if (code)
		httpc_close(h);
	return code;
}

int cli_call(struct cli *c, const char *what, const char *method,
	     const char *path, const json_t *body, json_t **out)
{
	struct err e = ERR_INIT;
	struct httpc h;
	json_t *j;
	int code = cli_open(c, &h, what, method, path, NULL, body);

	if (code)
		return code;
	j = parse_body(&h, &e);
	httpc_close(&h);
	if (!j)
		return cli_fail(CLI_FAILED, "%s: %s", what, e.msg);
	if (out)
		*out = j;
	else
		json_decref(j);
	return 0;
}

int cli_delete(struct cli *c, const char *what, const char *path)
{
	json_t *j = NULL;
	int code = cli_call(c, what, "DELETE", path, NULL, &j);

	if (code)
		return code;
	if (c->json)
		cli_print_json(j, false);
	else
		puts(what);
	json_decref(j);
	return 0;
}

int cli_quiet(struct cli *c, const char *method, const char *path,
	      const json_t *body, json_t **out)
{
	struct err e = ERR_INIT;
	struct httpc h;
	int code = send_request(c, &h, method, path, NULL, body, &e);

	if (!code && h.status >= 300)
		code = cli_exit_of(h.error_type, h.status);
	if (!code) {
		*out = parse_body(&h, &e);
		code = *out ? 0 : CLI_FAILED;
	}
	httpc_close(&h);
	return code;
}

int cli_try(struct cli *c, const char *path, json_t **out)
{
	return cli_quiet(c, "GET", path, NULL, out);
}

int cli_list(struct cli *c, const char *what, const char *path, json_t **out)
{
	json_t *all = json_array(), *page = NULL;
	const char *sep = strchr(path, '?') ? "&" : "?";
	char *token = NULL, *enc, *full;
	int code;

	do {
		enc = token ? httpc_encode(token) : NULL;
		if (asprintf(&full, "%s%smaxResults=50%s%s", path, sep,
			     enc ? "&nextToken=" : "", enc ? enc : "") < 0)
			abort();
		code = cli_call(c, what, "GET", full, NULL, &page);
		free(full);
		free(enc);
		free(token);
		token = NULL;
		if (code)
			break;
		json_array_extend(all, json_object_get(page, "items"));
		if (*cli_str(page, "nextToken"))
			token = strdup(cli_str(page, "nextToken"));
		json_decref(page);
	} while (token);
	if (code)
		json_decref(all);
	else
		*out = all;
	return code;
}

int cli_wait(struct cli *c, const char *id, const char *state,
	     uint64_t timeout_s, json_t **out)
{
	uint64_t end = util_now_ns() + timeout_s * 1000000000u, now;
	const char *at, *reason;
	json_t *j = NULL;
	unsigned left;
	char *path;
	int code;

	for (;;) {
		now = util_now_ns();
		left = now < end ? (unsigned)((end - now) / 1000000000u) : 0;
		path = cli_path(CLI_AWS "/microvms/%s?wait=%s&timeout=%u", id,
				state, MIN(left, 60u));
		code = cli_call(c, id, "GET", path, NULL, &j);
		free(path);
		if (code)
			return code;
		at = cli_str(j, "state");
		if (!strcmp(at, state))
			break;
		reason = cli_str(j, "stateReason");
		if (!strcmp(at, "TERMINATED")) {
			code = cli_fail(CLI_CONFLICT,
					"%s: it is TERMINATED and will not be "
					"%s%s%s",
					id, state, *reason ? ": " : "", reason);
			break;
		}
		if (util_now_ns() >= end) {
			code = cli_fail(CLI_FAILED,
					"%s: still %s after %llu s; see 'thaw "
					"inspect %s' and 'thaw logs %s'",
					id, at, (unsigned long long)timeout_s,
					id, id);
			break;
		}
		json_decref(j);
		usleep(20000); // the server may answer at once
	}
	if (code || !out)
		json_decref(j);
	else
		*out = j;
	return code;
}
