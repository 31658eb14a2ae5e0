// Opens the ring of a directory and prints the kid: what test_token_key.py
// kills and starves.
#include "auth.h"

#include <stdio.h>

int main(int argc, char **argv)
{
	struct token_ring r;
	struct err e = ERR_INIT;

	if (argc != 2 || token_ring_open(&r, argv[1], &e)) {
		fprintf(stderr, "%s\n", e.msg);
		return 1;
	}
	printf("%s\n", r.key[0].kid);
	token_ring_wipe(&r);
	if (!fflush(stdout))
		return 0;
	fprintf(stderr, "%s: the kid could not be printed\n", argv[1]);
	return 1;
}
