// The syntax of a head's lines: names, fields, the request's and the status line.
// They are cut up in place, in the head's own text.
#include "head_internal.h"

#include <string.h>

// --- characters ----------------------------------------------------------------

bool head_token_char(unsigned char c)
{
	return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
	       (c >= 'A' && c <= 'Z') ||
	       (c && strchr("!#$%&'*+-.^_`|~", c) != NULL);
}

size_t head_token_len(const char *p)
{
	size_t n = 0;

	while (head_token_char((unsigned char)p[n]))
		n++;
	return n;
}

char head_lower(char c)
{
	return c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
}

bool head_name_like(const char *name, const char *other, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		char a = head_lower(name[i] == '_' ? '-' : name[i]);

		if (!name[i] || a != other[i])
			return false;
	}
	return true;
}

// --- lines -----------------------------------------------------------------------

char *head_line(char **at)
{
	char *line = *at, *end = strchr(line, '\r');

	if (!end || end == line)
		return NULL;
	*end = '\0';
	*at = end + 2;
	return line;
}

static int parse_field(struct head *h, char *line, const char **why)
{
	size_t n = head_token_len(line);
	char *value, *end;

	if (line[0] == ' ' || line[0] == '\t') {
		*why = "a folded header line";
		return 400;
	}
	if (!n || line[n] != ':') {
		*why = "a header line without a proper name before its colon";
		return 400;
	}
	if (h->n == HEAD_FIELDS) {
		*why = "too many header fields";
		return 431;
	}
	line[n] = '\0';
	value = line + n + 1;
	value += strspn(value, " \t");
	end = value + strlen(value);
	while (end > value && (end[-1] == ' ' || end[-1] == '\t'))
		*--end = '\0';
	h->f[h->n++] = (struct head_field){.name = line, .value = value};
	return 0;
}

int head_fields(struct head *h, char *at, const char **why)
{
	char *line;
	int rc = 0;

	while (!rc && (line = head_line(&at)))
		rc = parse_field(h, line, why);
	return rc;
}

int head_request_line(struct head *h, char *line, const char **why)
{
	size_t n = head_token_len(line);
	char *target = line + n + 1, *version;

	*why = "a malformed request line";
	if (!n || n > 32 || line[n] != ' ')
		return 400;
	version = strchr(target, ' ');
	if (!version || version == target)
		return 400;
	line[n] = '\0';
	*version++ = '\0';
	for (const char *p = target; *p; p++) {
		if (*p <= 0x20 || *p >= 0x7f || *p == '#')
			return 400;
	}
	h->method = line;
	h->target = target;
	if (strcmp(version, "HTTP/1.1") == 0) {
		h->minor = 1;
	} else if (strcmp(version, "HTTP/1.0") != 0) {
		*why = "a version of HTTP that is not spoken here";
		return strncmp(version, "HTTP/", 5) == 0 ? 505 : 400;
	}
	if (strcmp(line, "CONNECT") == 0) {
		*why = "CONNECT is not served";
		return 501;
	}
	return 0;
}

int head_status_line(struct head *h, char *line, const char **why)
{
	const char *d = line + 9;

	*why = "a malformed status line";
	if (strncmp(line, "HTTP/1.", 7) != 0 ||
	    (line[7] != '0' && line[7] != '1') || line[8] != ' ')
		return 502;
	h->minor = line[7] == '1';
	for (int i = 0; i < 3; i++) {
		if (d[i] < '0' || d[i] > '9')
			return 502;
		h->status = h->status * 10 + (d[i] - '0');
	}
	if (h->status < 100 || h->status > 599 || (d[3] && d[3] != ' '))
		return 502;
	h->reason = d[3] ? d + 4 : "";
	return 0;
}
