// Patterns of the contract, matched in linear time.
//
// A pattern is compiled once into a small program (Thompson's construction) and
// all its threads advance together, one character of the text at a time; a
// thread is in a state at most once. So the time is text x program and the
// memory is two sets of states: there is nothing that a hostile text could make
// grow. Known: literals, '.', classes with ranges and negation, \s \d \p{L}
// \p{Z} \p{N}, escaped characters, groups, '|', '*', '+', '?', {n}. '.' and
// negated classes match every character, \s the six of ASCII. A pattern always
// means the whole text. Patterns are the table's own: one that this does not
// know is a bug of the program and ends it (test_shape.c compiles them all).
#include "shape_internal.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PROGRAM_MAX = 600, RANGES_MAX = 16, CACHE_MAX = 64, DEPTH_MAX = 8 };

struct class
{
	struct shape_range range[RANGES_MAX];
	unsigned n;
	bool negated, letters, separators, numbers;
};

enum opcode { OP_CLASS, OP_SPLIT, OP_JUMP, OP_MATCH };

struct inst {
	enum opcode op;
	unsigned x, y;	     // where to go on
	struct class *class; // the pattern's
};

struct program {
	const char *pattern;
	struct inst *inst;
	unsigned n;
};

struct compiler {
	const char *pattern, *at;
	struct inst inst[PROGRAM_MAX];
	unsigned n, depth;
};

static void fail(const struct compiler *c, const char *why)
{
	fprintf(stderr, "the pattern \"%s\": %s at \"%s\"\n", c->pattern, why,
		c->at);
	abort();
}

static unsigned emit(struct compiler *c, enum opcode op, unsigned x, unsigned y)
{
	if (c->n == PROGRAM_MAX)
		fail(c, "too long");
	c->inst[c->n] = (struct inst){op, x, y, NULL};
	return c->n++;
}

// --- classes -----------------------------------------------------------------

static void add_range(struct compiler *c, struct class *k, uint32_t lo,
		      uint32_t hi)
{
	if (k->n == RANGES_MAX || lo > hi)
		fail(c, "a bad range");
	k->range[k->n++] = (struct shape_range){lo, hi};
}

static void add_category(struct compiler *c, struct class *k)
{
	if (c->at[0] != '{' || !c->at[1] || c->at[2] != '}')
		fail(c, "an unknown category");
	switch (c->at[1]) {
	case 'L':
		k->letters = true;
		break;
	case 'Z':
		k->separators = true;
		break;
	case 'N':
		k->numbers = true;
		break;
	default:
		fail(c, "an unknown category");
	}
	c->at += 3;
}

// What follows a backslash: a set (true), or one character in *one.
static bool escape(struct compiler *c, struct class *k, uint32_t *one)
{
	uint32_t ch = shape_next_char(&c->at);

	switch (ch) {
	case 's':
		add_range(c, k, '\t', '\r');
		add_range(c, k, ' ', ' ');
		return true;
	case 'd':
		add_range(c, k, '0', '9');
		return true;
	case 'p':
		add_category(c, k);
		return true;
	default:
		if (!ch || (ch >= 'a' && ch <= 'z'))
			fail(c, "an unknown escape");
		*one = ch;
		return false;
	}
}

static void bracket(struct compiler *c, struct class *k)
{
	k->negated = *c->at == '^';
	c->at += k->negated;
	while (*c->at != ']') {
		uint32_t lo = shape_next_char(&c->at), hi;

		if (!lo)
			fail(c, "an open class");
		if (lo == '\\' && escape(c, k, &lo))
			continue;
		hi = lo;
		// A hyphen after a range is itself: "a-z-_".
		if (c->at[0] == '-' && c->at[1] != ']') {
			c->at++;
			hi = shape_next_char(&c->at);
			if (hi == '\\' && escape(c, k, &hi))
				fail(c, "a range to a set");
		}
		add_range(c, k, lo, hi);
	}
	c->at++;
}

static bool in_table(const struct shape_range *r, size_t n, uint32_t ch)
{
	size_t lo = 0;

	while (n) { // the first range that does not end before ch
		size_t half = n / 2;

		if (r[lo + half].hi < ch) {
			lo += half + 1;
			n -= half + 1;
		} else {
			n = half;
		}
	}
	return r[lo].lo <= ch && ch <= r[lo].hi; // the last ends all tables
}

static bool in_class(const struct class *k, uint32_t ch)
{
	bool in = false;

	for (unsigned i = 0; !in && i < k->n; i++)
		in = ch >= k->range[i].lo && ch <= k->range[i].hi;
	if (!in && k->letters)
		in = in_table(shape_letters, shape_nletters, ch);
	if (!in && k->separators)
		in = in_table(shape_separators, shape_nseparators, ch);
	if (!in && k->numbers)
		in = in_table(shape_numbers, shape_nnumbers, ch);
	return in != k->negated;
}

// --- compiling -----------------------------------------------------------------

static void alternatives(struct compiler *c);

static void atom(struct compiler *c)
{
	struct class *k;
	uint32_t ch = shape_next_char(&c->at);

	if (ch == '(') {
		if (++c->depth > DEPTH_MAX)
			fail(c, "too deep");
		alternatives(c);
		if (*c->at++ != ')')
			fail(c, "an open group");
		c->depth--;
		return;
	}
	if (!ch || strchr("*+?{}])", (int)ch))
		fail(c, "a misplaced character");
	k = calloc(1, sizeof(*k));
	if (!k)
		abort();
	if (ch == '[')
		bracket(c, k);
	else if (ch == '.')
		k->negated = true;
	else if (ch != '\\' || !escape(c, k, &ch))
		add_range(c, k, ch, ch);
	c->inst[emit(c, OP_CLASS, 0, 0)].class = k;
}

// Makes room for one instruction at `from`; targets inside move along.
static void insert(struct compiler *c, unsigned from)
{
	emit(c, OP_JUMP, 0, 0);
	memmove(&c->inst[from + 1], &c->inst[from],
		(c->n - 1 - from) * sizeof(c->inst[0]));
	for (unsigned i = from + 1; i < c->n; i++) {
		if (c->inst[i].op == OP_SPLIT || c->inst[i].op == OP_JUMP) {
			c->inst[i].x += c->inst[i].x >= from;
			c->inst[i].y += c->inst[i].y >= from;
		}
	}
}

static void repeat_exactly(struct compiler *c, const char *start)
{
	char *end;
	long times = strtol(c->at, &end, 10);
	unsigned depth = c->depth;

	if (*end != '}' || times < 1 || times > 64)
		fail(c, "a bad repetition");
	while (--times) { // compiled again: targets are absolute
		c->at = start;
		atom(c);
	}
	c->depth = depth;
	c->at = end + 1;
}

static void repeated(struct compiler *c)
{
	const char *start = c->at;
	unsigned from = c->n;
	char what;

	atom(c);
	what = *c->at;
	switch (what) {
	case '*':
	case '?':
		c->at++;
		insert(c, from);
		if (what == '*')
			emit(c, OP_JUMP, from, 0);
		c->inst[from] = (struct inst){OP_SPLIT, from + 1, c->n, NULL};
		break;
	case '+':
		c->at++;
		emit(c, OP_SPLIT, from, c->n + 1);
		break;
	case '{':
		c->at++;
		repeat_exactly(c, start);
		break;
	default:
		break;
	}
}

static void alternatives(struct compiler *c)
{
	unsigned from = c->n, jumps[32], n = 0;

	for (;;) {
		while (*c->at && *c->at != '|' && *c->at != ')')
			repeated(c);
		if (*c->at != '|')
			break;
		c->at++;
		if (n == ARRAY_SIZE(jumps))
			fail(c, "too many alternatives");
		insert(c, from);
		jumps[n++] = emit(c, OP_JUMP, 0, 0);
		c->inst[from] = (struct inst){OP_SPLIT, from + 1, c->n, NULL};
		from = c->n;
	}
	for (unsigned i = 0; i < n; i++)
		c->inst[jumps[i]].x = c->n;
}

static struct program compile(const char *pattern)
{
	struct compiler *c = calloc(1, sizeof(*c));
	struct program p = {.pattern = strdup(pattern)};

	if (!c || !p.pattern)
		abort();
	c->pattern = c->at = pattern;
	alternatives(c);
	if (*c->at)
		fail(c, "a misplaced character");
	emit(c, OP_MATCH, 0, 0);
	p.n = c->n;
	p.inst = malloc(p.n * sizeof(*p.inst));
	if (!p.inst)
		abort();
	memcpy(p.inst, c->inst, p.n * sizeof(*p.inst));
	free(c);
	return p;
}

// Compiled at first use, and kept.
static const struct program *program_of(const char *pattern)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	static struct program cache[CACHE_MAX];
	static unsigned n;
	const struct program *found = NULL;

	pthread_mutex_lock(&lock);
	for (unsigned i = 0; i < n && !found; i++) {
		if (!strcmp(cache[i].pattern, pattern))
			found = &cache[i];
	}
	if (!found && n < CACHE_MAX) {
		cache[n] = compile(pattern);
		found = &cache[n++];
	}
	pthread_mutex_unlock(&lock);
	if (!found)
		abort(); // more patterns than the table has
	return found;
}

// --- matching -----------------------------------------------------------------

struct set {
	unsigned pc[PROGRAM_MAX], n;
	uint64_t has[(PROGRAM_MAX + 63) / 64];
};

// Puts a state and all that it reaches without a character.
static void put(const struct program *p, struct set *s, unsigned pc)
{
	unsigned todo[PROGRAM_MAX + 1], n = 0;

	todo[n++] = pc;
	while (n) {
		const struct inst *i;

		pc = todo[--n];
		if (s->has[pc / 64] & 1ull << pc % 64)
			continue;
		s->has[pc / 64] |= 1ull << pc % 64;
		s->pc[s->n++] = pc;
		i = &p->inst[pc];
		// Each state leaves at most one entry more than it takes.
		if (i->op == OP_SPLIT || i->op == OP_JUMP)
			todo[n++] = i->x;
		if (i->op == OP_SPLIT)
			todo[n++] = i->y;
	}
}

uint32_t shape_next_char(const char **s)
{
	const unsigned char *p = (const unsigned char *)*s;
	uint32_t ch = *p;
	unsigned more = ch >= 0xf0 ? 3 : ch >= 0xe0 ? 2 : ch >= 0xc0 ? 1 : 0;

	if (!ch)
		return 0;
	p++;
	if (more)
		ch &= 0x3fu >> more;
	for (; more && (*p & 0xc0) == 0x80; more--)
		ch = ch << 6 | (*p++ & 0x3f);
	*s = (const char *)p;
	return ch;
}

bool shape_match(const char *pattern, const char *text)
{
	const struct program *p = program_of(pattern);
	struct set sets[2], *now = &sets[0], *next = &sets[1], *swap;
	uint32_t ch;

	now->n = 0;
	memset(now->has, 0, sizeof(now->has));
	put(p, now, 0);
	while ((ch = shape_next_char(&text))) {
		next->n = 0;
		memset(next->has, 0, sizeof(next->has));
		for (unsigned i = 0; i < now->n; i++) {
			unsigned pc = now->pc[i];

			if (p->inst[pc].op == OP_CLASS &&
			    in_class(p->inst[pc].class, ch))
				put(p, next, pc + 1);
		}
		if (!next->n)
			return false;
		swap = now;
		now = next;
		next = swap;
	}
	return now->has[(p->n - 1) / 64] & 1ull << (p->n - 1) % 64;
}
