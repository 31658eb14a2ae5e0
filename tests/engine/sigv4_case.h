// One request as JSON, as tests/golden/sigv4 has them: a line each,
//   {"from", "name", "method", "path", "query", "headers": [[name, value]...],
//    "body", "now", "id", "secret", "service", "region", "expect", "because"}
// "region" may be null. Whoever includes this links jansson.
#ifndef THAW_TEST_SIGV4_CASE_H
#define THAW_TEST_SIGV4_CASE_H

#include "auth.h"

#include <jansson.h>

struct sigv4_case {
	json_t *json; // what the rest points into
	const char *name, *expect, *because;
	struct sigv4_header headers[SIGV4_HEADERS_MAX];
	struct sigv4_request req;
	struct auth_key key;
	struct auth_keys keys;
	struct sigv4_policy policy;
	uint64_t now;
};

// Takes the object over. Ends the program when it is not one of ours.
void sigv4_case_of(struct sigv4_case *c, json_t *json);
void sigv4_case_free(struct sigv4_case *c);

#endif
