// Cases (sigv4_case.h) on standard input, one a line; on standard output, in the
// same order, AWS's name of what is wrong with each (or "ok") and the sentence.
#include "sigv4_case.h"

#include <stdio.h>

int main(void)
{
	json_error_t je;
	json_t *j;

	while ((j = json_loadf(stdin, JSON_DISABLE_EOF_CHECK, &je))) {
		struct sigv4_case c;
		struct err e = ERR_INIT;
		const char *type;

		sigv4_case_of(&c, j);
		type = sigv4_error_type(
		    sigv4_verify(&c.req, &c.policy, c.now, NULL, &e));
		printf("%s\t%s\n", type ? type : "ok", e.msg);
		sigv4_case_free(&c);
	}
	if (json_error_code(&je) != json_error_premature_end_of_input) {
		fprintf(stderr, "line %d: %s\n", je.line, je.text);
		return 1;
	}
	return fflush(stdout) ? 1 : 0;
}
