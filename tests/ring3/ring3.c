// The ring-3 test guest: a command interpreter on the doorbell's mailbox.
//
// It exists because this project is also built where ring 0 of a guest is
// emulated and slow: everything here runs at CPL 3 (start.S). The kernel command line
// holds commands, separated by ';', that run before it rings READY; then it
// takes one command a line from the mailbox, for ever. README.md lists them.
// Under other VMMs, with which thaw is compared, COM1 takes the doorbell's place.
#include <stddef.h>
#include <stdint.h>

#define DOORBELL 0x7460
enum { DOORBELL_READY = 1, DOORBELL_POWEROFF = 2 };

#define COM1 0x3f8 // 16550: data; +5 is the line status
enum { LSR_DATA = 1, LSR_EMPTY = 32 };

// Linux x86 boot protocol, "zero page".
enum {
	BP_E820_ENTRIES = 0x1e8,
	BP_CMDLINE_PTR = 0x228,
	BP_E820_TABLE = 0x2d0,
};

// Xen's PVH boot ABI (xen/include/public/arch-x86/hvm/start_info.h).
enum {
	PVH_CMDLINE = 24,
	PVH_MEMMAP = 40,
	PVH_MEMMAP_ENTRIES = 48,
	PVH_ENTRY_BYTES = 24,
};

enum { PAGE = 4096, WORDS = PAGE / 8 };

// Program, page tables and boot parameters live below; commands work above.
#define ARENA (16ull << 20)

static uint64_t counter;
static uint64_t low_end = ARENA; // end of RAM that starts at 0 (e820)
static int serial;		 // talks through COM1, not the doorbell

static void out32(uint16_t port, uint32_t v)
{
	__asm__ volatile("outl %0, %1" : : "a"(v), "Nd"(port));
}

static void out8(uint16_t port, uint8_t v)
{
	__asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port));
}

static uint32_t in32(uint16_t port)
{
	uint32_t v;

	__asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port));
	return v;
}

static uint8_t in8(uint16_t port)
{
	uint8_t v;

	__asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
	return v;
}

// Cycles; what came before has been done when it is read.
static uint64_t cycles(void)
{
	uint32_t lo, hi;

	__asm__ volatile("lfence; rdtsc" : "=a"(lo), "=d"(hi) : : "memory");
	return (uint64_t)hi << 32 | lo;
}

static void put_byte(uint8_t c)
{
	if (!serial) {
		out8(DOORBELL + 4, c);
		return;
	}
	while (!(in8(COM1 + 5) & LSR_EMPTY))
		;
	out8(COM1, c);
}

// The next byte of a command, or more than 255: ask again.
static uint32_t get_byte(void)
{
	if (!serial)
		return in32(DOORBELL + 4);
	return in8(COM1 + 5) & LSR_DATA ? in8(COM1) : ~0u;
}

static void put(const char *s)
{
	while (*s)
		put_byte((uint8_t)*s++);
}

static void ring_ready(void)
{
	if (serial)
		put("READY\n");
	else
		out32(DOORBELL, DOORBELL_READY);
}

static void put_u64(uint64_t v)
{
	char b[21];
	int i = 20;

	b[i] = 0;
	do {
		b[--i] = (char)('0' + v % 10);
		v /= 10;
	} while (v);
	put(b + i);
}

static void put_hex(uint64_t v)
{
	char b[17];

	for (int i = 0; i < 16; i++)
		b[i] = "0123456789abcdef"[(v >> (60 - 4 * i)) & 15];
	b[16] = 0;
	put(b);
}

// --- parsing -------------------------------------------------------------------

static const char *word(const char **p)
{
	const char *w;

	while (**p == ' ')
		(*p)++;
	w = *p;
	while (**p && **p != ' ')
		(*p)++;
	return w;
}

static int word_is(const char *w, const char *s)
{
	while (*s && *w == *s)
		w++, s++;
	return !*s && (*w == 0 || *w == ' ');
}

// "123", "16K", "16M", "1G"; an absent word gives `def`.
static uint64_t num(const char **p, uint64_t def)
{
	const char *w = word(p);
	uint64_t v = 0;

	if (*w < '0' || *w > '9')
		return def;
	while (*w >= '0' && *w <= '9')
		v = v * 10 + (uint64_t)(*w++ - '0');
	if (*w == 'K')
		v <<= 10;
	if (*w == 'M')
		v <<= 20;
	if (*w == 'G')
		v <<= 30;
	return v;
}

// --- memory --------------------------------------------------------------------

static uint64_t mix(uint64_t x)
{
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdull;
	x ^= x >> 33;
	x *= 0xc4ceb9fe1a85ec53ull;
	return x ^ x >> 33;
}

// What word `i` of the page at `addr` holds under `seed`. Half of each page is
// one repeated word, so that pages compress about as real ones do.
static uint64_t pattern(uint64_t seed, uint64_t addr, uint64_t i)
{
	uint64_t base = mix(seed ^ mix(addr));

	return i < WORDS / 2 ? base : mix(base + i);
}

struct range {
	uint64_t start, end;
};

static int range_of(const char **args, struct range *r)
{
	r->start = num(args, ARENA) & ~(uint64_t)(PAGE - 1);
	r->end =
	    r->start + (num(args, low_end - r->start) & ~(uint64_t)(PAGE - 1));
	if (r->start < ARENA || r->end > low_end || r->end < r->start) {
		put("ERR range\n");
		return 0;
	}
	return 1;
}

static void cmd_fill(const char *args)
{
	uint64_t seed = num(&args, 1);
	struct range r;

	if (!range_of(&args, &r))
		return;
	for (uint64_t a = r.start; a < r.end; a += PAGE) {
		volatile uint64_t *w = (volatile uint64_t *)a;

		for (uint64_t i = 0; i < WORDS; i++)
			w[i] = pattern(seed, a, i);
	}
	put("FILLED ");
	put_u64((r.end - r.start) / PAGE);
	put("\n");
}

static void cmd_check(const char *args)
{
	uint64_t seed = num(&args, 1), bad = 0, first = 0;
	struct range r;

	if (!range_of(&args, &r))
		return;
	for (uint64_t a = r.start; a < r.end; a += PAGE) {
		const volatile uint64_t *w = (const volatile uint64_t *)a;
		uint64_t wrong = 0;

		for (uint64_t i = 0; i < WORDS; i++)
			wrong |= w[i] ^ pattern(seed, a, i);
		if (wrong && !bad++)
			first = a;
	}
	put(bad ? "BAD " : "GOOD ");
	put_u64(bad ? bad : (r.end - r.start) / PAGE);
	if (bad) {
		put(" first ");
		put_hex(first);
	}
	put("\n");
}

static void cmd_zero(const char *args)
{
	struct range r;

	if (!range_of(&args, &r))
		return;
	for (uint64_t a = r.start; a < r.end; a += 8)
		*(volatile uint64_t *)a = 0;
	put("ZEROED\n");
}

static void cmd_iszero(const char *args)
{
	struct range r;
	uint64_t bits = 0;

	if (!range_of(&args, &r))
		return;
	for (uint64_t a = r.start; a < r.end; a += 8)
		bits |= *(const volatile uint64_t *)a;
	put(bits ? "NONZERO\n" : "ZERO\n");
}

// The place of page `i` of `n` in a random order that visits each once: a
// bijection of the numbers below the next power of two, walked until it falls below n.
static uint64_t shuffled(uint64_t i, uint64_t n)
{
	unsigned bits = 1;
	uint64_t mask;

	while (1ull << bits < n)
		bits++;
	mask = (1ull << bits) - 1;
	do {
		for (int round = 0; round < 3; round++) {
			i = (i * 0x9e3779b97f4a7c15ull + 0x7f4a7c15) & mask;
			i ^= i >> ((bits + 1) / 2);
		}
	} while (i >= n);
	return i;
}

// What *w was. In one instruction, so that its first fault is a write's.
static uint64_t add_one(volatile uint64_t *w)
{
	uint64_t one = 1;

	__asm__ volatile("xaddq %0, %1" : "+r"(one), "+m"(*w));
	return one;
}

// Page `i` of a set that lies scattered over `blocks` blocks of so many pages: of
// each block a run of 4 pages somewhere in it, the blocks in a random order.
enum { SCATTERED_BLOCK = 32, SPARSE_BLOCK = 80, RUN_PAGES = 4 };
static uint64_t scattered(uint64_t i, uint64_t blocks, uint64_t block_pages)
{
	uint64_t block = shuffled(i / RUN_PAGES, blocks);
	uint64_t at = mix(block) % (block_pages - RUN_PAGES + 1);

	return block * block_pages + at + i % RUN_PAGES;
}

// touch read|write seq|rand|scattered|sparse START LEN: one word a page; prints the
// sum, and how many cycles of the TSC it took. A write adds one to the word.
// Scattered: an eighth of the pages; sparse: a twentieth.
static void cmd_touch(const char *args)
{
	int write = word_is(word(&args), "write");
	const char *order = word(&args);
	int rnd = word_is(order, "rand");
	uint64_t block = word_is(order, "scattered") ? SCATTERED_BLOCK
			 : word_is(order, "sparse")  ? SPARSE_BLOCK
						     : 0;
	uint64_t n, blocks = 0, began, sum = 0;
	struct range r;

	if (!range_of(&args, &r))
		return;
	n = (r.end - r.start) / PAGE;
	if (block) {
		blocks = n / block;
		n = blocks * RUN_PAGES;
	}
	began = cycles();
	for (uint64_t i = 0; i < n; i++) {
		uint64_t at = rnd     ? shuffled(i, n)
			      : block ? scattered(i, blocks, block)
				      : i;
		volatile uint64_t *w =
		    (volatile uint64_t *)(r.start + at * PAGE);

		sum += write ? add_one(w) : *w;
	}
	began = cycles() - began;
	put("SUM ");
	put_hex(sum);
	put(" CYCLES ");
	put_u64(began);
	put("\n");
}

static void cmd_poke(const char *args)
{
	uint64_t a = num(&args, 0) & ~7ull, v = num(&args, 0);

	if (a < ARENA || a + 8 > low_end) {
		put("ERR range\n");
		return;
	}
	*(volatile uint64_t *)a = v;
	put("POKED\n");
}

static void cmd_peek(const char *args)
{
	uint64_t a = num(&args, 0) & ~7ull;

	if (a < ARENA || a + 8 > low_end) {
		put("ERR range\n");
		return;
	}
	put("VALUE ");
	put_u64(*(volatile uint64_t *)a);
	put("\n");
}

// Counts in ring 3 without an exit, so that a pause has to interrupt it.
static void cmd_spin(const char *args)
{
	uint64_t n = num(&args, 1000000);
	uint64_t c = 0;

	for (uint64_t i = 0; i < n; i++) {
		c = c * 6364136223846793005ull + 1442695040888963407ull;
		__asm__ volatile("" : "+r"(c));
	}
	put("SPUN ");
	put_hex(c);
	put("\n");
}

static void cmd_help(const char *args);

static void cmd_echo(const char *args)
{
	while (*args == ' ')
		args++;
	put(args);
	put("\n");
}

static void cmd_count(const char *args)
{
	counter += num(&args, 1);
	put("COUNT ");
	put_u64(counter);
	put("\n");
}

static void cmd_ready(const char *args)
{
	(void)args;
	ring_ready();
}

// What follows in the same command line is what every copy begins with. To ring and
// to wait for the pause is one instruction: with two, who was captured between them
// waited in every copy, for a pause that does not come.
static void cmd_freeze(const char *args)
{
	(void)args;
	if (serial)
		ring_ready();
	else
		in32(DOORBELL);
}

static void cmd_serial(const char *args)
{
	(void)args;
	serial = 1;
}

static void cmd_ring(const char *args)
{
	out32(DOORBELL, (uint32_t)num(&args, 0));
}

static void cmd_off(const char *args)
{
	(void)args;
	out32(DOORBELL, DOORBELL_POWEROFF);
}

// A fault without an IDT: what a crashing guest looks like.
static void cmd_crash(const char *args)
{
	(void)args;
	__asm__ volatile("ud2");
}

static void cmd_mem(const char *args)
{
	(void)args;
	put("MEM ");
	put_u64(low_end);
	put("\n");
}

static const struct command {
	const char *name;
	void (*run)(const char *args);
} commands[] = {
    {"fill", cmd_fill},	    {"check", cmd_check},   {"zero", cmd_zero},
    {"iszero", cmd_iszero}, {"touch", cmd_touch},   {"poke", cmd_poke},
    {"peek", cmd_peek},	    {"spin", cmd_spin},	    {"echo", cmd_echo},
    {"count", cmd_count},   {"ready", cmd_ready},   {"ring", cmd_ring},
    {"off", cmd_off},	    {"crash", cmd_crash},   {"mem", cmd_mem},
    {"help", cmd_help},	    {"serial", cmd_serial}, {"freeze", cmd_freeze},
};
enum { NUM_COMMANDS = sizeof(commands) / sizeof(commands[0]) };

static void cmd_help(const char *args)
{
	(void)args;
	for (int i = 0; i < NUM_COMMANDS; i++) {
		put(commands[i].name);
		put(i + 1 < NUM_COMMANDS ? " " : "\n");
	}
}

static void run(const char *line)
{
	const char *args = line, *name = word(&args);

	if (!*name)
		return;
	for (int i = 0; i < NUM_COMMANDS; i++) {
		if (word_is(name, commands[i].name)) {
			commands[i].run(args);
			return;
		}
	}
	put("ERR command\n");
}

// --- life ------------------------------------------------------------------------

static char line_buf[256];

static void run_cmdline(const char *p)
{
	while (*p) {
		unsigned n = 0;

		while (*p && *p != ';') {
			if (n < sizeof(line_buf) - 1)
				line_buf[n++] = *p;
			p++;
		}
		line_buf[n] = 0;
		run(line_buf);
		if (*p)
			p++;
	}
}

static void add_memory(uint64_t addr, uint64_t size, uint32_t type)
{
	if (type == 1 && addr <= ARENA && addr + size > low_end)
		low_end = (addr + size) & ~(uint64_t)(PAGE - 1);
}

// Both kinds of table hold address, size and type (1 is RAM) at 0, 8 and 16.
static void find_memory(const uint8_t *entry, unsigned n, unsigned bytes)
{
	for (; n; n--, entry += bytes)
		add_memory(*(const uint64_t *)entry,
			   *(const uint64_t *)(entry + 8),
			   *(const uint32_t *)(entry + 16));
}

// `pvh`: `info` is a PVH start info; else it is Linux's zero page.
void ring3_main(const uint8_t *info, int pvh);
void ring3_main(const uint8_t *info, int pvh)
{
	unsigned n = 0;

	if (pvh) {
		find_memory(
		    (const uint8_t *)*(const uint64_t *)(info + PVH_MEMMAP),
		    *(const uint32_t *)(info + PVH_MEMMAP_ENTRIES),
		    PVH_ENTRY_BYTES);
		run_cmdline(
		    (const char *)*(const uint64_t *)(info + PVH_CMDLINE));
	} else {
		find_memory(info + BP_E820_TABLE, info[BP_E820_ENTRIES], 20);
		run_cmdline((const char *)(uint64_t) *
			    (const uint32_t *)(info + BP_CMDLINE_PTR));
	}
	ring_ready();
	for (;;) {
		uint32_t c = get_byte();

		if (c > 255)
			continue;
		if (c != '\n' && c != '\r') {
			if (n < sizeof(line_buf) - 1)
				line_buf[n++] = (char)c;
			continue;
		}
		line_buf[n] = 0;
		n = 0;
		run(line_buf);
	}
}
