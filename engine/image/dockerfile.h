// Reading a Dockerfile: which instruction stands on which line. Pure. It finds
// what is wrong before anything runs, and turns buildah's "[2/3] STEP 4/7" into
// a line. It expands nothing and runs nothing: buildah does.
//
// Known: Dockerfile reference 1.4 without heredocs, which the buildah that
// Debian 12 has does not know either: they are refused with their line.
#ifndef THAW_DOCKERFILE_H
#define THAW_DOCKERFILE_H

#include "base.h"

enum {
	DOCKERFILE_MAX = 1024 * 1024, // bytes
	DOCKERFILE_INSTRS_MAX = 2000,
	DOCKERFILE_PORTS_MAX = 64,
};

struct dockerfile_instr {
	unsigned line;	  // of its first word, from 1
	unsigned stage;	  // from 1; 0: an ARG before the first FROM
	unsigned step;	  // in its stage, from 1, which is FROM's
	char word[16];	  // in capitals: "RUN"
	const char *text; // all of it on one line, as written
	const char *args; // the part of `text` after the word
};

struct dockerfile {
	struct dockerfile_instr *instr;
	size_t n;
	unsigned stages;
	char escape; // '\\' or '`'
	char *mem;   // what the texts point into
};

// -EINVAL: the sentence begins with "Dockerfile line N: " and `*bad_line` is N
// (0 where no line is to blame: "the Dockerfile is empty"). On error `out` holds
// nothing.
int dockerfile_parse(struct dockerfile *out, const char *text, size_t len,
		     unsigned *bad_line, struct err *e);
void dockerfile_free(struct dockerfile *d);

// The same Dockerfile, an instruction a line and without comments, for a reader
// that joins lines in other ways. Allocated; NULL: out of memory.
char *dockerfile_plain(const struct dockerfile *d);

// NULL: there is none. `stage` 0: the last one.
const struct dockerfile_instr *dockerfile_step(const struct dockerfile *d,
					       unsigned stage, unsigned step);
// The last instruction `word` of the last stage; NULL: none.
const struct dockerfile_instr *dockerfile_last(const struct dockerfile *d,
					       const char *word);
// TCP ports that the last stage EXPOSEs in plain numbers, in the order of the
// file, each once.
size_t dockerfile_ports(const struct dockerfile *d,
			uint16_t out[DOCKERFILE_PORTS_MAX]);

#endif
