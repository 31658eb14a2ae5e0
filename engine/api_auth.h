// Who may call over TCP: whoever signs with a key of the keys file.
#ifndef THAW_ENG_API_AUTH_H
#define THAW_ENG_API_AUTH_H

#include "http.h"

struct api_auth;

// `path` NULL: STATE/keys, made with one key where there is none. `region` NULL:
// signatures for any region are taken. Both are copied.
int api_auth_create(struct api_auth **out, const char *path,
		    const char *state_dir, const char *region, struct err *e);
void api_auth_destroy(struct api_auth *au);
// Reads the file again. What was good stays so when it cannot be read.
void api_auth_reload(struct api_auth *au);
const char *api_auth_path(const struct api_auth *au);
// Is the request signed by one of the keys? Answers it where not.
bool api_auth_admit(struct api_auth *au, struct http_req *r,
		    const struct http_wire *w);

#endif
