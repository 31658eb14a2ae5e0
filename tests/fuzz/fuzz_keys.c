// Keys files: whatever is taken is complete, without two alike, and found again.
#include "auth.h"

#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct auth_keys k;
	struct err e = ERR_INIT;
	int rc = auth_keys_parse(&k, (const char *)data, n, "f", &e);

	if ((rc == 0) != (k.n > 0) || (rc == 0) != (e.msg[0] == '\0'))
		abort();
	for (size_t i = 0; i < k.n; i++) {
		const struct auth_key *key = &k.key[i];

		if (strlen(key->id) < AUTH_ID_MIN ||
		    strlen(key->secret) < AUTH_SECRET_MIN || !key->name[0] ||
		    auth_keys_find(&k, key->id, strlen(key->id)) != key)
			abort();
	}
	auth_keys_free(&k);
	return 0;
}
