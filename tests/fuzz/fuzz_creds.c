// A file of credentials (engine/roles.c). Beside not crashing: what is accepted has
// the sizes that the guest's agent takes and needs no escape in JSON; of what is
// refused nothing stays, and nothing is shown.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "roles.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void check_text(const char *s, size_t min, size_t max)
{
	size_t n = strlen(s);

	if (n < min || n > max)
		abort();
	for (; *s; s++) {
		if (*s <= ' ' || *s > '~' || *s == '"' || *s == '\\')
			abort();
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	static const struct eng_creds none;
	struct eng_creds c;
	struct err e = ERR_INIT;

	if (eng_creds_parse(&c, (const char *)data, n, "FILE", &e)) {
		if (memcmp(&c, &none, sizeof(c)) != 0 || !e.msg[0] ||
		    strstr(e.msg, "s3cr3t"))
			abort();
		return 0;
	}
	check_text(c.key, CREDS_KEY_MIN, CREDS_KEY_MAX);
	check_text(c.secret, 1, CREDS_SECRET_MAX);
	check_text(c.token, 0, CREDS_TOKEN_MAX);
	return 0;
}
