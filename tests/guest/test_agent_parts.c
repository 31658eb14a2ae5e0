// The agent's readers of guest files (users, lines, TCP tables), its ring, and how
// much memory it takes to zero it.
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ag_compact.h"
#include "ag_lines.h"
#include "ag_probe.h"
#include "ag_ring.h"
#include "ag_users.h"
#include "util.h"

static const char *file_of(const void *text, size_t len, int which)
{
	static char path[2][64];

	snprintf(path[which], sizeof(path[which]), "/tmp/thaw-parts.%d.%d",
		 getpid(), which);
	unlink(path[which]);
	FILE *f = fopen(path[which], "w");

	cr_assert_not_null(f);
	fwrite(text, 1, len, f);
	fclose(f);
	return path[which];
}

// --- lines -------------------------------------------------------------------

Test(lines, all_shapes)
{
	static const char text[] = "one\n\nthree\nlast without newline";
	const char *path = file_of(text, sizeof(text) - 1, 0);
	static struct ag_lines l;

	cr_assert_eq(ag_lines_open(&l, path), 0);
	cr_assert_str_eq(ag_lines_next(&l), "one");
	cr_assert_str_eq(ag_lines_next(&l), "");
	cr_assert_str_eq(ag_lines_next(&l), "three");
	cr_assert_str_eq(ag_lines_next(&l), "last without newline");
	cr_assert_null(ag_lines_next(&l));
	cr_assert_null(ag_lines_next(&l));
	ag_lines_close(&l);
	unlink(path);
}

Test(lines, too_long_ones_are_skipped)
{
	static struct ag_lines l;
	size_t sizes[] = {sizeof(l.buf) - 2, sizeof(l.buf) - 1, sizeof(l.buf),
			  sizeof(l.buf) * 3 + 5};

	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		char *text = malloc(sizes[i] + 20);
		const char *path, *line;

		memcpy(text, "a\n", 2);
		memset(text + 2, 'x', sizes[i]);
		memcpy(text + 2 + sizes[i], "\nb\n", 3);
		path = file_of(text, sizes[i] + 5, 0);
		cr_assert_eq(ag_lines_open(&l, path), 0);
		cr_assert_str_eq(ag_lines_next(&l), "a");
		line = ag_lines_next(&l);
		if (i == 0) {
			cr_assert_eq(strlen(line), sizes[i]);
			line = ag_lines_next(&l);
		}
		cr_assert_str_eq(line, "b", "length %zu", sizes[i]);
		cr_assert_null(ag_lines_next(&l));
		ag_lines_close(&l);
		free(text);
		unlink(path);
	}
}

Test(lines, a_fifo_holds_nobody, .timeout = 300)
{
	static struct ag_lines l;
	char path[64];

	snprintf(path, sizeof(path), "/tmp/thaw-fifo.%d", getpid());
	unlink(path); // of a test that had this number before
	cr_assert_eq(mkfifo(path, 0600), 0);
	cr_assert_eq(ag_lines_open(&l, path), -EINVAL);
	unlink(path);
	cr_assert_eq(ag_lines_open(&l, path), -ENOENT);
	cr_assert_eq(ag_lines_open(&l, "/tmp"), -EINVAL);
}

// --- users -------------------------------------------------------------------

static const char passwd[] = "root:x:0:0:root:/root:/bin/sh\n"
			     "broken\n"
			     "nouid:x:abc:1::/x:/bin/sh\n"
			     "huge:x:4294967295:1::/x:/bin/sh\n"
			     "alice:x:1000:1001:A:/home/alice:/bin/sh\n"
			     "nohome:x:1002:1002::relative:/bin/sh\n"
			     "77:x:5:5::/five:/bin/sh\n";
static const char group[] = "root:x:0:\n"
			    "alice:x:1001:\n"
			    "sudo:x:27:bob,alice\n"
			    "prefix:x:28:alicex,xalice\n"
			    "dup:x:1001:alice\n"
			    "bad:x:zz:alice\n"
			    "video:x:44:alice\n";

static int resolve(const char *spec, struct ag_user *u)
{
	const char *p = file_of(passwd, sizeof(passwd) - 1, 0);
	const char *g = file_of(group, sizeof(group) - 1, 1);
	int rc = ag_user_resolve(p, g, spec, u);

	unlink(p);
	unlink(g);
	return rc;
}

static void is(const char *spec, uid_t uid, gid_t gid, const gid_t *groups,
	       size_t n, const char *home)
{
	struct ag_user u;

	cr_assert_eq(resolve(spec, &u), 0, "%s", spec);
	cr_expect_eq(u.uid, uid, "%s: %u", spec, u.uid);
	cr_expect_eq(u.gid, gid, "%s: %u", spec, u.gid);
	cr_assert_eq(u.ngroups, n, "%s: %zu groups", spec, u.ngroups);
	for (size_t i = 0; i < n; i++)
		cr_expect_eq(u.groups[i], groups[i], "%s: %u", spec,
			     u.groups[i]);
	cr_expect_str_eq(u.home, home);
}

Test(users, names_numbers_and_groups)
{
	const gid_t alice[] = {1001, 27, 44};

	is("", 0, 0, (gid_t[]){0}, 1, "/root");
	is("root", 0, 0, (gid_t[]){0}, 1, "/root");
	is("alice", 1000, 1001, alice, 3, "/home/alice");
	is("1000", 1000, 1001, alice, 3, "/home/alice");
	is("alice:video", 1000, 44, (gid_t[]){44}, 1, "/home/alice");
	is("alice:5000", 1000, 5000, (gid_t[]){5000}, 1, "/home/alice");
	is("12345", 12345, 0, (gid_t[]){0}, 1, "/");
	is("12345:6", 12345, 6, (gid_t[]){6}, 1, "/");
	is("nohome", 1002, 1002, (gid_t[]){1002}, 1, "/");
	// A number is a uid, even where an account has such a name.
	is("77", 77, 0, (gid_t[]){0}, 1, "/");
}

Test(users, refused)
{
	struct ag_user u;
	char lengthy[400];

	memset(lengthy, 'a', sizeof(lengthy) - 1);
	lengthy[sizeof(lengthy) - 1] = '\0';
	cr_expect_eq(resolve("nobodysuch", &u), -ENOENT);
	cr_expect_eq(resolve("nouid", &u), -ENOENT);
	cr_expect_eq(resolve("huge", &u), -ENOENT);
	cr_expect_eq(resolve("4294967295", &u), -ENOENT);
	cr_expect_eq(resolve("-1", &u), -ENOENT);
	cr_expect_eq(resolve("alice:nosuch", &u), -ENOENT);
	cr_expect_eq(resolve("alice:", &u), -EINVAL);
	cr_expect_eq(resolve(":27", &u), -EINVAL);
	cr_expect_eq(resolve(lengthy, &u), -EINVAL);
}

Test(users, without_any_file)
{
	struct ag_user u;

	cr_assert_eq(ag_user_resolve("/nonexistent", "/nonexistent", "", &u),
		     0);
	cr_assert_eq(u.uid, 0);
	cr_assert_eq(ag_user_resolve("/nonexistent", "/nonexistent", "bob", &u),
		     -ENOENT);
}

// --- the TCP tables ---------------------------------------------------------

Test(probe, lines_of_the_tables)
{
	static const struct {
		const char *line;
		bool yes;
	} t[] = {
	    {"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000", true},
	    {"   1: 00000000:1F90 00000000:0000 0A 00000000:00000000", true},
	    {" 123: 00000000000000000000000000000000:1F90 "
	     "00000000000000000000000000000000:0000 0A 0",
	     true},
	    {"   0: 00000000000000000000000001000000:1F90 "
	     "00000000000000000000000000000000:0000 0A 0",
	     true},
	    {"   0: 0000000000000000FFFF00000100007F:1F90 "
	     "0000000000000000FFFF000000000000:0000 0A 0",
	     true},
	    {"   0: 0100007F:1F91 00000000:0000 0A 00000000:00000000", false},
	    {"   0: 0100007F:1F90 0100007F:C000 01 00000000:00000000", false},
	    {"   0: 0200A8C0:1F90 00000000:0000 0A 00000000:00000000", false},
	    {"  sl  local_address rem_address   st tx_queue rx_queue", false},
	    {"", false},
	    {"   0: 0100007F:1F90", false},
	};

	for (size_t i = 0; i < ARRAY_SIZE(t); i++)
		cr_expect_eq(ag_tcp_line_listens(t[i].line, 8080), t[i].yes,
			     "%s", t[i].line);
}

// --- the ring ---------------------------------------------------------------

static struct ag_ring ring;
static char rec[AG_RECORD_MAX];

static size_t take(unsigned *stream)
{
	size_t n = ag_ring_peek(&ring, stream, rec);

	ag_ring_consume(&ring);
	return n;
}

Test(ring, keeps_order_and_streams)
{
	unsigned s;

	cr_assert(ag_ring_empty(&ring));
	cr_assert_eq(ag_ring_peek(&ring, &s, rec), 0);
	ag_ring_put(&ring, AG_LOG_STDOUT, "one", 3);
	ag_ring_put(&ring, AG_LOG_STDERR, "two!", 4);
	cr_assert_eq(take(&s), 3);
	cr_assert(s == AG_LOG_STDOUT && memcmp(rec, "one", 3) == 0);
	cr_assert_eq(take(&s), 4);
	cr_assert(s == AG_LOG_STDERR && memcmp(rec, "two!", 4) == 0);
	cr_assert(ag_ring_empty(&ring));
}

Test(ring, peek_without_consume_gives_it_again)
{
	unsigned s;

	ag_ring_put(&ring, 1, "again", 5);
	cr_assert_eq(ag_ring_peek(&ring, &s, rec), 5);
	ag_ring_unpeek(&ring);
	cr_assert_eq(take(&s), 5);
	cr_assert_eq(memcmp(rec, "again", 5), 0);
	cr_assert(ag_ring_empty(&ring));
}

// A long stream of numbered bytes through a ring that overflows: what comes out
// is the end of what went in, and the note accounts for the rest.
Test(ring, drops_the_oldest_and_says_how_much)
{
	const size_t total = 3 * AG_RING_SIZE + 777;
	uint8_t *in = malloc(total), *out = malloc(total);
	size_t n = 0, k;
	unsigned long long lost = 0;
	unsigned s;

	for (size_t i = 0; i < total; i++)
		in[i] = (uint8_t)(i * 31 + (i >> 9));
	for (size_t at = 0; at < total; at += k) {
		k = MIN((size_t)(at % 977) + 1, total - at);
		ag_ring_put(&ring, 1, in + at, k);
	}
	k = ag_ring_peek(&ring, &s, rec);
	cr_assert_eq(s, AG_LOG_AGENT);
	rec[k] = '\0';
	cr_assert_eq(sscanf(rec, "thaw-agent: %llu bytes", &lost), 1);
	ag_ring_consume(&ring);
	while ((k = take(&s))) {
		cr_assert_eq(s, 1);
		memcpy(out + n, rec, k);
		n += k;
	}
	cr_assert_eq(n + lost, total);
	cr_assert_gt(n, AG_RING_SIZE - AG_RECORD_MAX - 4096);
	cr_assert_arr_eq(out, in + lost, n);
	free(in);
	free(out);
}

Test(ring, a_peeked_record_that_is_dropped_is_not_counted)
{
	static uint8_t fill[AG_RING_SIZE];
	unsigned s;
	unsigned long long lost;
	size_t k;

	ag_ring_put(&ring, 1, "in flight", 9);
	ag_ring_put(&ring, 1, "next", 4);
	cr_assert_eq(ag_ring_peek(&ring, &s, rec), 9);
	ag_ring_put(&ring, 2, fill, sizeof(fill) - 200);
	cr_assert_eq(ring.dropped, 0, "they still fit");
	ag_ring_put(&ring, 2, fill, 4096);
	// Gone: the one in flight (not counted), "next", and one of the fill.
	ag_ring_consume(&ring);
	k = ag_ring_peek(&ring, &s, rec);
	rec[k] = '\0';
	cr_assert_eq(sscanf(rec, "thaw-agent: %llu bytes", &lost), 1);
	cr_assert_eq(lost, 4 + AG_RECORD_MAX);
	ag_ring_consume(&ring);
	cr_assert_eq(ag_ring_peek(&ring, &s, rec), AG_RECORD_MAX);
}

Test(ring, room_never_lies)
{
	static uint8_t fill[AG_RECORD_MAX];
	size_t room;

	cr_assert_eq(ag_ring_room(&ring), AG_RECORD_MAX);
	while ((room = ag_ring_room(&ring)) > 0) {
		ag_ring_put(&ring, 1, fill, room);
		cr_assert_eq(ring.dropped, 0);
	}
	ag_ring_put(&ring, 1, fill, 1);
	cr_assert_gt(ring.dropped, 0);
}

// --- what is zeroed before a freeze --------------------------------------------

// Takes of a guest with so much to spare until it is told that this is enough; what
// is taken is spare no more, but for what the kernel reclaims meanwhile. What was
// taken at once, at most, is in *largest.
static uint64_t take_all(uint64_t spare, unsigned cpus, uint64_t *largest)
{
	const uint64_t first = spare;
	uint64_t taken = 0, n;

	*largest = 0;
	for (unsigned i = 0; i < 100000; i++) {
		n = ag_compact_next(first, i < cpus, spare, taken);
		if (!n)
			return taken;
		cr_assert_eq(n % 4096, 0u);
		cr_assert_leq(n, spare - AG_COMPACT_KEEP,
			      "more is taken than may be");
		cr_assert_leq(n, (uint64_t)(i < cpus ? AG_COMPACT_CPU_STEP
						     : AG_COMPACT_STEP));
		taken += n;
		spare -= n;
		*largest = MAX(*largest, n);
	}
	cr_assert(false, "it never ends");
	return 0;
}

Test(compact, of_a_small_guest_all_but_what_is_kept)
{
	const uint64_t spare = 300ull << 20;
	uint64_t largest;

	cr_assert_eq(take_all(spare, 2, &largest), spare - AG_COMPACT_KEEP);
	cr_assert_eq(largest, (uint64_t)AG_COMPACT_STEP);
	cr_assert_eq(take_all(AG_COMPACT_MOST, 4, &largest),
		     (uint64_t)AG_COMPACT_MOST - AG_COMPACT_KEEP);
	cr_assert_eq(take_all(AG_COMPACT_KEEP + 4095, 1, &largest), 0u);
	cr_assert_eq(take_all(0, 1, &largest), 0u);
}

// Zeroing what a large guest never touched would cost the host all of it.
Test(compact, of_a_large_guest_512_mib_and_not_a_page_more)
{
	uint64_t largest;

	for (unsigned cpus = 0; cpus <= 16; cpus++) {
		cr_assert_eq(take_all(4ull << 30, cpus, &largest), 512u << 20,
			     "with %u CPUs", cpus);
		cr_assert_eq(take_all(31ull << 30, cpus, &largest), 512u << 20);
		cr_assert_eq(take_all((512ull << 20) + 4096, cpus, &largest),
			     (512ull << 20) + 4096 - AG_COMPACT_KEEP);
	}
	// What comes free while it takes is no reason to go on.
	cr_assert_eq(ag_compact_next(4ull << 30, false, 8ull << 30, 512u << 20),
		     0u);
	cr_assert_eq(
	    ag_compact_next(4ull << 30, false, 8ull << 30, (512u << 20) - 4096),
	    4096u);
}
