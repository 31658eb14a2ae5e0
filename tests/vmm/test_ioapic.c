// The IOAPIC and the serial port, without KVM.
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "vmm_internal.h"

static struct ioapic a;
static unsigned nmsi;
static uint64_t last_addr;
static uint32_t last_data;

static void on_msi(void *ctx, uint64_t addr, uint32_t data)
{
	(void)ctx;
	nmsi++;
	last_addr = addr;
	last_data = data;
}

static void setup(void)
{
	ioapic_init(&a, -1);
	a.msi_hook = on_msi;
	nmsi = 0;
}

static uint32_t rd(uint32_t index)
{
	uint32_t v = 0xdeadbeef;

	ioapic_write(&a, 0, &index, 4);
	ioapic_read(&a, 0x10, &v, 4);
	return v;
}

static void wr(uint32_t index, uint32_t v)
{
	ioapic_write(&a, 0, &index, 4);
	ioapic_write(&a, 0x10, &v, 4);
}

TestSuite(ioapic, .init = setup);

Test(ioapic, registers_after_reset)
{
	cr_assert_eq(rd(1), 0x00170011); // 24 entries, version 0x11
	for (unsigned i = 0; i < 24; i++) {
		cr_assert_eq(rd(0x10 + 2 * i), 0x10000); // masked
		cr_assert_eq(rd(0x11 + 2 * i), 0);
	}
	cr_assert_eq(rd(0x40), 0);
	cr_assert_eq(rd(0xff), 0);
	wr(0, 0xffffffff);
	cr_assert_eq(rd(0), 0x0f000000);
	cr_assert_eq(rd(2), 0x0f000000);
}

Test(ioapic, read_only_bits)
{
	wr(0x10, 0xffffffff);
	wr(0x11, 0xffffffff);
	// Delivery status (12) and remote IRR (14) are not the guest's.
	cr_assert_eq(rd(0x10), 0x1afff);
	cr_assert_eq(rd(0x11), 0xff000000);
}

Test(ioapic, an_edge_is_one_message)
{
	wr(0x10 + 2 * 5, 0x31);
	wr(0x11 + 2 * 5, 2u << 24);
	ioapic_edge(&a, 5);
	cr_assert_eq(nmsi, 1);
	cr_assert_eq(last_addr, 0xfee02000);
	cr_assert_eq(last_data, 0x31);
	wr(0x10 + 2 * 5, 0x931); // logical, lowest priority
	ioapic_edge(&a, 5);
	cr_assert_eq(last_addr, 0xfee02004);
	cr_assert_eq(last_data, 0x131);
	wr(0x10 + 2 * 5, 0x8031); // "level": delivered as an edge
	ioapic_edge(&a, 5);
	cr_assert_eq(nmsi, 3);
	cr_assert_eq(last_data, 0x31);
	ioapic_edge(&a, 24);
	ioapic_edge(&a, ~0u);
	cr_assert_eq(nmsi, 3);
}

Test(ioapic, a_masked_edge_waits)
{
	ioapic_edge(&a, 7);
	ioapic_edge(&a, 7);
	cr_assert_eq(nmsi, 0);
	wr(0x11 + 2 * 7, 0);
	cr_assert_eq(nmsi, 0);
	wr(0x10 + 2 * 7, 0x40);
	cr_assert_eq(nmsi, 1, "unmasking delivers, once");
	wr(0x10 + 2 * 7, 0x10040);
	wr(0x10 + 2 * 7, 0x40);
	cr_assert_eq(nmsi, 1);
}

Test(ioapic, extint_is_dropped)
{
	wr(0x10, 0x731);
	ioapic_edge(&a, 0);
	cr_assert_eq(nmsi, 0);
}

Test(ioapic, odd_widths_and_offsets)
{
	uint64_t v = ~0ull;
	uint8_t b = 0x10;

	ioapic_write(&a, 0, &b, 1);    // a byte selects
	ioapic_write(&a, 0x10, &b, 1); // but does not write
	cr_assert_eq(rd(0x10), 0x10000);
	ioapic_read(&a, 0x10, &v, 8);
	cr_assert_eq(v, 0x10000);
	v = ~0ull;
	ioapic_read(&a, 0x44, &v, 4);
	cr_assert_eq(v, 0xffffffff00000000ull);
	ioapic_write(&a, 0x44, &v, 8);
	cr_assert_eq(rd(0x10), 0x10000);
}

Test(ioapic, save_and_load)
{
	uint8_t buf[512], again[512];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	struct wire_writer w2 = wire_writer_of(again, sizeof(again));
	struct wire_reader r;
	struct err e = ERR_INIT;

	wr(0x10 + 2 * 3, 0x1a33);
	wr(0x11 + 2 * 3, 0x05000000);
	wr(0, 0x02000000);
	ioapic_edge(&a, 4);
	ioapic_save(&a, &w);
	r = wire_reader_of(buf, w.len);
	cr_assert_eq(ioapic_check(&r, &e), 0, "%s", e.msg);
	ioapic_init(&a, -1);
	a.msi_hook = on_msi;
	r = wire_reader_of(buf, w.len);
	ioapic_load(&a, &r);
	ioapic_save(&a, &w2);
	cr_assert_eq(w.len, w2.len);
	cr_assert_arr_eq(buf, again, w.len);
	wr(0x10 + 2 * 4, 0x44); // the edge that waited was saved, too
	cr_assert_eq(nmsi, 1);
	for (size_t cut = 0; cut < w.len; cut++) {
		r = wire_reader_of(buf, cut);
		cr_assert_eq(ioapic_check(&r, &e), -EBADMSG);
	}
	buf[12] = 23; // pins
	r = wire_reader_of(buf, w.len);
	cr_assert_eq(ioapic_check(&r, &e), -EBADMSG);
}

// --- serial port ------------------------------------------------------------

static struct serial s;
static struct console con;
static int pipefd[2];

static void serial_setup(void)
{
	setup();
	cr_assert_eq(pipe(pipefd), 0);
	console_init(&con, pipefd[1], eventfd(0, 0), -1);
	serial_init(&s, &con, &a);
	wr(0x10 + 2 * VMM_GSI_SERIAL, 0x50);
}

TestSuite(serial, .init = serial_setup);

Test(serial, linux_detection)
{
	// 8250_port.c autoconfig(): IER, loop-back, FIFO, scratch.
	serial_write(&s, 1, 0);
	cr_assert_eq(serial_read(&s, 1) & 0xf, 0);
	serial_write(&s, 1, 0xf);
	cr_assert_eq(serial_read(&s, 1) & 0xf, 0xf);
	serial_write(&s, 1, 0);
	serial_write(&s, 4, 0x1a);
	cr_assert_eq(serial_read(&s, 6) & 0xf0, 0x90);
	serial_write(&s, 4, 0);
	cr_assert_eq(serial_read(&s, 6) & 0xf0, 0xb0);
	serial_write(&s, 2, 1);
	cr_assert_eq(serial_read(&s, 2) >> 6, 3);
	serial_write(&s, 7, 0x5a);
	cr_assert_eq(serial_read(&s, 7), 0x5a);
}

Test(serial, bytes_come_out)
{
	char out[3] = "";

	cr_assert_eq(serial_read(&s, 5), 0x60);
	serial_write(&s, 0, 'h');
	serial_write(&s, 0, 'i');
	cr_assert_not(console_flush(&con));
	cr_assert_eq(read(pipefd[0], out, 2), 2);
	cr_assert_str_eq(out, "hi");
	// With DLAB the data register is the divisor's.
	serial_write(&s, 3, 0x83);
	serial_write(&s, 0, 'x');
	cr_assert_eq(serial_read(&s, 0), 'x');
	cr_assert_eq(con.used, 0);
}

Test(serial, transmitter_interrupts)
{
	serial_write(&s, 1, 2);
	cr_assert_eq(nmsi, 1, "enabling with an empty transmitter");
	cr_assert_eq(serial_read(&s, 2) & 0xf, 2);
	cr_assert_eq(serial_read(&s, 2) & 0xf, 1, "shown once");
	serial_write(&s, 0, 'a');
	cr_assert_eq(nmsi, 2);
	serial_write(&s, 0, 'b'); // not acknowledged: the edge comes again
	cr_assert_eq(nmsi, 3);
	cr_assert_eq(serial_read(&s, 2) & 0xf, 2);
	serial_write(&s, 1, 0);
	serial_write(&s, 0, 'c');
	cr_assert_eq(nmsi, 3);
}

Test(serial, loop_back_receives)
{
	serial_write(&s, 4, 0x10);
	serial_write(&s, 1, 1);
	serial_write(&s, 0, 'z');
	cr_assert_eq(nmsi, 1);
	cr_assert_eq(serial_read(&s, 5) & 1, 1);
	cr_assert_eq(serial_read(&s, 2) & 0xf, 4);
	cr_assert_eq(serial_read(&s, 0), 'z');
	cr_assert_eq(serial_read(&s, 5) & 1, 0);
	cr_assert_eq(con.used, 0);
}

Test(serial, save_check_load)
{
	uint8_t buf[12], again[12];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	struct wire_writer w2 = wire_writer_of(again, sizeof(again));
	struct wire_reader r;
	struct err e = ERR_INIT;

	serial_write(&s, 1, 3);
	serial_write(&s, 2, 0xc1);
	serial_write(&s, 4, 0x0b);
	serial_write(&s, 7, 0x77);
	serial_save(&s, &w);
	cr_assert_eq(w.len, sizeof(buf));
	cr_assert_not(w.bad);
	r = wire_reader_of(buf, w.len);
	cr_assert_eq(serial_check(&r, &e), 0, "%s", e.msg);
	serial_init(&s, &con, &a);
	r = wire_reader_of(buf, w.len);
	serial_load(&s, &r);
	serial_save(&s, &w2);
	cr_assert_arr_eq(buf, again, sizeof(buf));
	for (unsigned i = 0; i < 12; i++) {
		uint8_t was = buf[i];

		buf[i] = 0xff;
		r = wire_reader_of(buf, w.len);
		// LCR, SCR, the divisor and the received byte may be anything.
		cr_assert_eq(serial_check(&r, &e),
			     i == 2 || (i >= 4 && i <= 7) ? 0 : -EBADMSG,
			     "byte %u", i);
		buf[i] = was;
	}
}

Test(console, full_ring_drops_and_counts)
{
	struct console c;
	static uint8_t big[CONSOLE_RING + 100];

	cr_assert_eq(pipe(pipefd), 0);
	console_init(&c, pipefd[1], eventfd(0, 0), -1);
	console_put(&c, big, sizeof(big));
	cr_assert_eq(c.used, CONSOLE_RING);
	cr_assert_eq(c.dropped, 100);
	console_fini(&c);
}

// A line is one wake, however it is written; a part of one follows the timer.
Test(console, wakes_for_lines)
{
	struct console c;
	eventfd_t n;
	char buf[16];
	int wake = eventfd(0, EFD_NONBLOCK);
	int late = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
	struct pollfd p = {late, POLLIN, 0};

	cr_assert_eq(pipe(pipefd), 0);
	console_init(&c, pipefd[1], wake, late);
	for (const char *s = "ab\ncd\ne"; *s; s++) {
		console_put(&c, (const uint8_t *)s, 1);
		cr_assert_eq(eventfd_read(wake, &n) == 0,
			     s[0] == '\n' && s[1] == 'c', "at %s", s);
	}
	cr_assert_not(console_flush(&c));
	cr_assert_eq(read(pipefd[0], buf, sizeof(buf)), 7);
	cr_assert_eq(memcmp(buf, "ab\ncd\ne", 7), 0);
	if (poll(&p, 1, 0) == 1) // of the first byte
		console_timed(&c);
	console_put(&c, (const uint8_t *)"prompt", 6);
	cr_assert_neq(eventfd_read(wake, &n), 0);
	cr_assert_eq(poll(&p, 1, 60000), 1);
	console_timed(&c);
	cr_assert_not(console_flush(&c));
	cr_assert_eq(read(pipefd[0], buf, sizeof(buf)), 6);
	console_put(&c, (const uint8_t *)"\n", 1);
	cr_assert_eq(eventfd_read(wake, &n), 0);
	console_fini(&c);
}
