// A request's head and body as text, to the verifier of SigV4:
//
//   METHOD TARGET\n NAME: VALUE\n ... \n\n BODY
//
// The clock is when the corpus was signed. What is accepted (of the corpus some
// is) must not be a day later, nor with another body.
#include "auth.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static struct auth_key key = {
    "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "fuzz"};

#define NOW 1440938160 // 2015-08-30T12:36:00Z

// Cuts the text at the next `c` and gives what was before.
static char *cut(char **p, char c)
{
	char *s = *p, *end = strchr(s, c);

	*p = end ? end + 1 : s + strlen(s);
	if (end)
		*end = '\0';
	return s;
}

static void judge(struct sigv4_request *r)
{
	struct auth_keys keys = {&key, 1};
	struct sigv4_policy p = {&keys, "service", "us-east-1", true};
	const struct auth_key *who = NULL;
	struct err e = ERR_INIT;
	enum sigv4_verdict v = sigv4_verify(r, &p, NOW, &who, &e);

	if ((v == SIGV4_OK) != (who == &key) ||
	    (v == SIGV4_OK) != (e.msg[0] == '\0') ||
	    (v == SIGV4_OK) != (sigv4_error_type(v) == NULL))
		abort();
	if (v)
		return;
	// Accepted: so a day later it is not, and with another body neither.
	if (sigv4_verify(r, &p, NOW + 86400, NULL, NULL) != SIGV4_EXPIRED)
		abort();
	r->body = "another";
	r->body_len = 7;
	if (sigv4_verify(r, &p, NOW, NULL, NULL) != SIGV4_MISMATCH)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct sigv4_header headers[SIGV4_HEADERS_MAX + 8];
	struct sigv4_request r = {.headers = headers};
	char *text = malloc(n + 1), *p = text, *target;

	memcpy(text, data, n);
	text[n] = '\0';
	r.method = cut(&p, ' ');
	target = cut(&p, '\n');
	r.path = cut(&target, '?');
	r.query = target;
	while (*p && *p != '\n' && r.nheaders < ARRAY_SIZE(headers)) {
		char *line = cut(&p, '\n');
		char *name = cut(&line, ':');

		headers[r.nheaders++] = (struct sigv4_header){name, line};
	}
	if (*p == '\n')
		p++;
	r.body = p;
	r.body_len = strlen(p);
	judge(&r);
	free(text);
	return 0;
}
