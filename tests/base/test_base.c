#include <criterion/criterion.h>
#include <errno.h>
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base.h"

// --- err -----------------------------------------------------------------------

Test(err, set_returns_its_code_and_formats)
{
	struct err e = ERR_INIT;

	cr_assert_eq(err_set(&e, -EINVAL, "%s is %d", "x", 3), -EINVAL);
	cr_assert_eq(e.code, -EINVAL);
	cr_assert_str_eq(e.msg, "x is 3");
}

Test(err, sys_takes_errno_before_anything_else)
{
	struct err e = ERR_INIT;

	errno = ENOENT;
	cr_assert_eq(err_sys(&e, "open %s", "a"), -ENOENT);
	cr_assert_str_eq(e.msg, "open a: No such file or directory");
}

Test(err, sys_without_errno_is_an_error_all_the_same)
{
	errno = 0;
	cr_assert_eq(err_sys(NULL, "x"), -EIO);
}

Test(err, wrap_puts_context_first)
{
	struct err e = ERR_INIT;

	err_set(&e, -EIO, "inner");
	cr_assert_eq(err_wrap(&e, -EIO, "outer %d", 1), -EIO);
	cr_assert_str_eq(e.msg, "outer 1: inner");
}

Test(err, wrap_without_a_sentence_uses_the_code)
{
	struct err e = ERR_INIT;

	err_wrap(&e, -ENOSPC, "write");
	cr_assert_str_eq(e.msg, "write: No space left on device");
}

Test(err, long_sentences_are_cut_not_overrun)
{
	struct err e = ERR_INIT;
	char big[2 * ERR_MSG_MAX];

	memset(big, 'x', sizeof(big) - 1);
	big[sizeof(big) - 1] = '\0';
	err_set(&e, -EIO, "%s", big);
	err_wrap(&e, -EIO, "%s", big);
	cr_assert_eq(strlen(e.msg), ERR_MSG_MAX - 1);
}

Test(err, names)
{
	cr_assert_str_eq(err_name(-ENOENT), "ENOENT");
	cr_assert_str_eq(err_name(999999), "EUNKNOWN");
}

// --- wire ----------------------------------------------------------------------

Test(wire, round_trip_is_little_endian)
{
	static const uint8_t want[] = {0x01, 0x03, 0x02, 0x07, 0x06,
				       0x05, 0x04, 0x0f, 0x0e, 0x0d,
				       0x0c, 0x0b, 0x0a, 0x09, 0x08};
	uint8_t buf[32];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	struct wire_reader r;

	wire_put_u8(&w, 1);
	wire_put_u16(&w, 0x0203);
	wire_put_u32(&w, 0x04050607);
	wire_put_u64(&w, 0x08090a0b0c0d0e0full);
	cr_assert(!w.bad);
	cr_assert_arr_eq(buf, want, sizeof(want));
	r = wire_reader_of(buf, w.len);
	cr_assert_eq(wire_get_u8(&r), 1);
	cr_assert_eq(wire_get_u16(&r), 0x0203);
	cr_assert_eq(wire_get_u32(&r), 0x04050607);
	cr_assert_eq(wire_get_u64(&r), 0x08090a0b0c0d0e0full);
	cr_assert(!r.bad && wire_left(&r) == 0);
}

Test(wire, reading_past_the_end_gives_zero_and_sticks)
{
	uint8_t b[3] = {0xff, 0xff, 0xff};
	struct wire_reader r = wire_reader_of(b, sizeof(b));

	cr_assert_eq(wire_get_u32(&r), 0);
	cr_assert(r.bad);
	cr_assert_eq(wire_get_u8(&r), 0); // though there is a byte left
	cr_assert_null(wire_borrow(&r, 1));
}

Test(wire, writing_past_the_end_counts_but_does_not_write)
{
	uint8_t b[4] = {0xaa, 0xaa, 0xaa, 0xaa};
	struct wire_writer w = wire_writer_of(b, 2);

	wire_put_u32(&w, 1);
	cr_assert(w.bad);
	cr_assert_eq(w.len, 4);
	cr_assert_eq(b[0], 0xaa);
	wire_put_u8(&w, 7); // stays bad: nothing lands at a wrong place
	cr_assert_eq(b[0], 0xaa);
	cr_assert_eq(b[2], 0xaa);
}

Test(wire, the_last_bytes_of_room_count)
{
	uint8_t b[12] = {0};
	struct wire_writer w = wire_writer_of(b, 8);

	wire_put_bytes(&w, "12345", 5);
	wire_put_bytes(&w, "6789", 4); // one byte too many
	cr_assert(w.bad);
	cr_assert_eq(b[5], 0);
	cr_assert_eq(b[8], 0);
	w = wire_writer_of(b, 8);
	wire_put_bytes(&w, "12345", 5);
	wire_put_bytes(&w, "678", 3);
	cr_assert(!w.bad);
	cr_assert_eq(b[7], '8');
}

Test(wire, an_empty_writer_measures)
{
	struct wire_writer w = wire_writer_of(NULL, 0);

	wire_put_u64(&w, 1);
	wire_put_bytes(&w, "abc", 3);
	cr_assert_eq(w.len, 11);
}

Test(wire, patch_stays_inside_what_was_written)
{
	uint8_t b[8] = {0};
	struct wire_writer w = wire_writer_of(b, sizeof(b));

	wire_put_u32(&w, 0);
	wire_patch_u32(&w, 0, 0x01020304);
	cr_assert_eq(b[0], 4);
	cr_assert(!w.bad);
	wire_patch_u32(&w, 4, 1);
	cr_assert(w.bad);
	cr_assert_eq(b[4], 0);
}

Test(wire, huge_lengths_do_not_wrap)
{
	uint8_t b[4] = {0};
	struct wire_reader r = wire_reader_of(b, sizeof(b));

	cr_assert_null(wire_borrow(&r, SIZE_MAX));
	cr_assert(r.bad);
}

// --- util ----------------------------------------------------------------------

Test(util, sizes_parse)
{
	uint64_t v;

	cr_assert_eq(util_parse_size("0", &v), 0);
	cr_assert_eq(v, 0);
	cr_assert_eq(util_parse_size("512M", &v), 0);
	cr_assert_eq(v, 512ull << 20);
	cr_assert_eq(util_parse_size("4GiB", &v), 0);
	cr_assert_eq(v, 4ull << 30);
	cr_assert_eq(util_parse_size("1kb", &v), 0);
	cr_assert_eq(v, 1024);
}

Test(util, bad_sizes_are_refused)
{
	static const char *const bad[] = {"",
					  "M",
					  "-1",
					  "1X",
					  "1 M",
					  "1MM",
					  "1.5G",
					  "99999999999999999999",
					  "18446744073709551615K"};
	uint64_t v;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		cr_assert_eq(util_parse_size(bad[i], &v), -EINVAL, "%s",
			     bad[i]);
}

Test(util, hex_round_trip_and_refusals)
{
	uint8_t in[3] = {0x00, 0xab, 0xff}, out[3];
	char text[7];

	util_hex(text, in, sizeof(in));
	cr_assert_str_eq(text, "00abff");
	cr_assert_eq(util_unhex(out, 3, "00ABff"), 0);
	cr_assert_arr_eq(in, out, 3);
	cr_assert_eq(util_unhex(out, 3, "00abf"), -EINVAL);
	cr_assert_eq(util_unhex(out, 3, "00abfg"), -EINVAL);
	cr_assert_eq(util_unhex(out, 3, "00abff0"), -EINVAL);
}

Test(util, read_all_tells_the_end_of_the_stream)
{
	int s[2];
	char b[4];

	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, s), 0);
	cr_assert_eq(util_write_all(s[0], "abc", 3), 0);
	close(s[0]);
	cr_assert_eq(util_read_all(s[1], b, 4), -ENODATA);
	close(s[1]);
}

Test(util, cleanup_and_steal)
{
	int kept;

	{
		cleanup_fd int fd = open("/dev/null", O_RDONLY);
		cleanup_fd int gone = open("/dev/null", O_RDONLY);

		cr_assert(fd >= 0 && gone >= 0);
		kept = fd_steal(&fd);
		cr_assert_eq(fd, -1);
	}
	cr_assert_eq(fcntl(kept, F_GETFD), 0);
	fd_close(&kept);
	cr_assert_eq(kept, -1);
}

Test(util, random_is_not_constant)
{
	uint64_t a = 0, b = 0;

	util_random(&a, sizeof(a));
	util_random(&b, sizeof(b));
	cr_assert_neq(a, b);
}

// --- addr ----------------------------------------------------------------------

Test(addr, what_is_bound_reads_as_what_was_asked_for)
{
	static const char *const good[][2] = {
	    {"0", "127.0.0.1:"},
	    {"localhost:0", "127.0.0.1:"},
	    {"127.0.0.2:0", "127.0.0.2:"},
	    {"0.0.0.0:0", "0.0.0.0:"},
	};
	struct sockaddr_storage sa, again;

	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		cleanup_fd int fd = socket(AF_INET, SOCK_STREAM, 0);
		char text[ADDR_TEXT];
		int len = addr_parse(good[i][0], &sa);
		unsigned port;

		cr_assert_gt(len, 0);
		cr_assert_eq(bind(fd, (struct sockaddr *)&sa, (socklen_t)len),
			     0);
		cr_assert_eq(addr_is_loopback(&sa), good[i][1][0] == '1');
		port = addr_bound(fd, text);
		cr_assert_gt(port, 0);
		cr_assert(!strncmp(text, good[i][1], strlen(good[i][1])));
		cr_assert_eq(addr_parse(text, &again), len);
		cr_assert_eq(ntohs(((struct sockaddr_in *)&again)->sin_port),
			     port);
	}
	cr_assert_eq(addr_bound(-1, NULL), 0);
}

Test(addr, version_six_stands_in_brackets)
{
	struct sockaddr_storage sa;
	const struct sockaddr_in6 *six = (const void *)&sa;

	cr_assert_eq(addr_parse("[::1]:65535", &sa), (int)sizeof(*six));
	cr_assert_eq(ntohs(six->sin6_port), 65535);
	cr_assert(addr_is_loopback(&sa));
	cr_assert_eq(addr_parse("[2001:db8::1]:80", &sa), (int)sizeof(*six));
	cr_assert_not(addr_is_loopback(&sa));
}

Test(addr, everything_else_is_refused)
{
	static const char *const bad[] = {
	    "",
	    ":80",
	    "x",
	    "1.2.3.4",
	    "1.2.3:80",
	    "::1",
	    "[::1]",
	    "[::1]80",
	    "::1:80",
	    "[]:80",
	    "[::1:80",
	    "65536",
	    "1.2.3.4:",
	    "1.2.3.4: 80",
	    "1.2.3.4:+80",
	    "host:80",
	    "000080",
	    "[0000:0000:0000:0000:0000:0000:0000:0000:0000:0000:0000:0000]:80",
	};
	struct sockaddr_storage sa;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		cr_assert_eq(addr_parse(bad[i], &sa), -EINVAL, "%s", bad[i]);
}

// --- removal ---------------------------------------------------------------------

static char top[] = "/tmp/thaw-rmtree-XXXXXX";
static int top_fd = -1;

static void tree_set_up(void)
{
	cr_assert(mkdtemp(top));
	top_fd = open(top, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cr_assert_geq(top_fd, 0);
	cr_assert_eq(mkdirat(top_fd, "keep", 0755), 0);
	cr_assert_geq(openat(top_fd, "keep/it", O_CREAT | O_WRONLY, 0644), 0);
}

static void tree_tear_down(void)
{
	cr_assert_eq(unlinkat(top_fd, "keep/it", 0), 0, "it is gone");
	cr_assert_eq(unlinkat(top_fd, "keep", AT_REMOVEDIR), 0);
	cr_assert_eq(rmdir(top), 0, "something is left");
}

TestSuite(rmtree, .init = tree_set_up, .fini = tree_tear_down);

Test(rmtree, deeper_than_there_are_descriptors)
{
	struct rlimit few = {64, 64};
	struct err e = ERR_INIT;
	int at = dup(top_fd), next;

	for (int i = 0; i < 500; i++) {
		cr_assert_eq(mkdirat(at, "d", 0755), 0);
		cr_assert_eq(symlinkat("/", at, "link"), 0);
		next = openat(at, "d", O_RDONLY | O_DIRECTORY);
		close(at);
		at = next;
	}
	close(at);
	cr_assert_eq(symlinkat("keep", top_fd, "l"), 0);
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &few), 0);
	cr_assert_eq(util_rmtree(top_fd, "d", &e), 0, "%s", e.msg);
	cr_assert_eq(util_rmtree(top_fd, "l", &e), 0, "%s", e.msg);
	cr_assert_eq(util_rmtree(top_fd, "link", &e), 0, "%s", e.msg);
	cr_assert_eq(util_rmtree(top_fd, "none", &e), 0, "%s", e.msg);
}

Test(rmtree, what_is_mounted_is_left)
{
	struct err e = ERR_INIT;
	char from[64], to[64];

	cr_assert_eq(unshare(CLONE_NEWNS), 0, "this test needs root");
	cr_assert_eq(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), 0);
	close(top_fd); // it is of the namespace that was left
	top_fd = open(top, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	snprintf(from, sizeof(from), "%s/keep", top);
	snprintf(to, sizeof(to), "%s/t/in", top);
	cr_assert_eq(mkdirat(top_fd, "t", 0755), 0);
	cr_assert_eq(mkdirat(top_fd, "t/in", 0755), 0);
	cr_assert_eq(mount(from, to, NULL, MS_BIND, NULL), 0);
	cr_assert_eq(util_rmtree(top_fd, "t", &e), -EXDEV);
	cr_assert(strstr(e.msg, "mounted"), "%s", e.msg);
	cr_assert_eq(faccessat(top_fd, "keep/it", F_OK, 0), 0, "it is gone");
	cr_assert_eq(umount(to), 0);
	cr_assert_eq(util_rmtree(top_fd, "t", &e), 0, "%s", e.msg);
}

Test(rmtree, a_sweep_takes_what_begins_so)
{
	struct err e = ERR_INIT;

	cr_assert_eq(mkdirat(top_fd, "a-1", 0755), 0);
	cr_assert_eq(mkdirat(top_fd, "a-2", 0755), 0);
	cr_assert_eq(mkdirat(top_fd, "a-2/x", 0755), 0);
	cr_assert_eq(util_sweep(top, "a-", &e), 0, "%s", e.msg);
	cr_assert_eq(util_sweep("/nonexistent", "a-", &e), -ENOENT);
}
