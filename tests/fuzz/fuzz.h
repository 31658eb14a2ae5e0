// What the targets of devices and files share. Their inputs are small programs: each
// byte says what to do next and how, so that most inputs go deep, and the rare one
// breaks a rule. Past its end an input reads as zeroes.
#ifndef THAW_FUZZ_H
#define THAW_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

struct fuzz_in {
	const uint8_t *p, *end;
};

static inline bool in_left(const struct fuzz_in *in)
{
	return in->p < in->end;
}

static inline uint8_t in_u8(struct fuzz_in *in)
{
	return in->p < in->end ? *in->p++ : 0;
}

static inline uint16_t in_u16(struct fuzz_in *in)
{
	uint16_t low = in_u8(in);

	return (uint16_t)(low | in_u8(in) << 8);
}

// A number of any width, in two bytes: small, around a power of two, or far away.
static inline uint64_t in_odd(struct fuzz_in *in)
{
	uint8_t how = in_u8(in), v = in_u8(in);

	if (how < 64)
		return v;
	if (how < 192)
		return ((uint64_t)1 << (how & 63)) + (uint64_t)(int8_t)v;
	return (uint64_t)v << (how & 63);
}

// What a target's corpus has to reach. The target defines the array; an entry without
// a name ends it. replay.c runs the corpus and fails if one was not reached: a target
// that no longer gets there finds nothing.
struct fuzz_state {
	const char *name;
	unsigned long seen;
};
extern struct fuzz_state fuzz_states[] __attribute__((weak));
// How many inputs replay.c makes of each, at most.
extern const size_t fuzz_around __attribute__((weak));

// What must hold whatever the input.
#define fuzz_must(x)                                                  \
	do {                                                          \
		if (!(x)) {                                           \
			fprintf(stderr, "%s:%d: runtime error: %s\n", \
				__FILE__, __LINE__, #x);              \
			abort();                                      \
		}                                                     \
	} while (0)

#endif
