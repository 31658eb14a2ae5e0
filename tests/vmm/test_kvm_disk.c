// Pauses and the disk: a pause waits for requests in flight, serves the
// caller's descriptors while it waits, and gives up in time. The guest spins in
// ring 3; the test itself plays its block driver.
#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "vmm_guest.h"

enum { RING = 0x400000, AVAIL = 0x401000, USED = 0x402000, DATA = 0x403000 };

static struct guest g;
static struct vmm_disk_req *held; // submitted, not completed
static unsigned submits;
static int done_fd;

static void hold(void *ctx, struct vmm_disk_req *r)
{
	(void)ctx;
	submits++;
	held = r;
}

static const struct vmm_disk_ops ops = {hold, hold};

static void complete(void *ctx, uint32_t events)
{
	struct vmm_disk_req *r = held;
	eventfd_t n;

	(void)ctx, (void)events;
	eventfd_read(done_fd, &n);
	held = NULL;
	if (r) {
		memset(r->iov[0].iov_base, 0x5a, r->iov[0].iov_len);
		vmm_disk_done(g.vm, r, 0);
	}
}

static void reg(uint32_t off, uint32_t v)
{
	cr_assert(bus_mmio(g.vm, true, VIRTIO_MMIO_BASE + off, &v, 4));
}

static uint32_t get(uint32_t off)
{
	uint32_t v = 0;

	cr_assert(bus_mmio(g.vm, false, VIRTIO_MMIO_BASE + off, &v, 4));
	return v;
}

static void *at(uint64_t gpa)
{
	return gm_ptr(&g.vm->mem, gpa, 8);
}

static void driver_start(void)
{
	cr_assert_eq(get(0x00), 0x74726976);
	cr_assert_eq(get(0x08), 2);
	reg(0x70, 0);
	reg(0x70, 1);
	reg(0x70, 3);
	reg(0x24, 1);
	reg(0x20, 1); // VERSION_1
	reg(0x70, 0xb);
	cr_assert_eq(get(0x70), 0xb);
	reg(0x30, 0);
	reg(0x38, 8);
	reg(0x80, RING);
	reg(0x84, 0);
	reg(0x90, AVAIL);
	reg(0x94, 0);
	reg(0xa0, USED);
	reg(0xa4, 0);
	reg(0x44, 1);
	reg(0x70, 0xf);
	cr_assert_eq(get(0x70), 0xf);
}

// Reads sector 0 into DATA + 0x1000.
static void driver_read(uint16_t n)
{
	struct {
		uint64_t addr;
		uint32_t len;
		uint16_t flags, next;
	} d[3] = {{DATA, 16, 1, 1},
		  {DATA + 0x1000, 4096, 3, 2},
		  {DATA + 0x100, 1, 2, 0}};
	uint16_t *avail = at(AVAIL);

	memset(at(DATA), 0, 16);
	memset(at(DATA + 0x100), 0xff, 1);
	memcpy(at(RING), d, sizeof(d));
	avail[2 + (n & 7)] = 0;
	__atomic_store_n(&avail[1], (uint16_t)(n + 1), __ATOMIC_SEQ_CST);
	reg(0x50, 0);
}

static void setup(void)
{
	struct err e = ERR_INIT;

	if (!have_kvm())
		cr_skip_test("no /dev/kvm");
	g = guest_shell(64ull << 20, 1);
	cr_assert_eq(vmm_attach_disk(g.vm, 1 << 20, &ops, NULL, &e), 0, "%s",
		     e.msg);
	cr_assert_eq(vmm_attach_disk(g.vm, 1 << 20, &ops, NULL, &e), -EBUSY);
	guest_boot(&g);
	guest_go(&g);
	cr_assert(guest_wait(&g, VMM_EV_READY, NULL));
	done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	cr_assert_eq(vmm_watch(g.vm, done_fd, POLLIN, complete, NULL), 0);
	driver_start();
}

TestSuite(kvm_disk, .init = setup, .timeout = 300);

static void until_submitted(struct vmm *vm, unsigned want)
{
	uint64_t end = util_now_ns() + G_PATIENCE_MS * 1000000ull;

	while (submits < want && util_now_ns() < end) {
		vmm_dispatch(vm);
		usleep(1000);
	}
	cr_assert_eq(submits, want);
}

static void moves(void)
{
	uint64_t was = *guest_counter(&g, 0);

	cr_assert(guest_counts(&g, 0, was), "the guest stands still");
}

Test(kvm_disk, a_pause_waits_and_gives_up)
{
	struct err e = ERR_INIT;
	static uint8_t buf[VMM_STATE_MAX];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	struct vmm_state_info info;

	driver_read(0);
	until_submitted(g.vm, 1);
	cr_assert_eq(vmm_pause(g.vm, 50, &e), -ETIMEDOUT);
	cr_assert_neq(e.msg[0], 0);
	moves(); // a pause that failed leaves the VM running
	cr_assert_eq(vmm_state_save(g.vm, &w, &e), -EBUSY);
	// The completion arrives through the caller's descriptor, inside of
	// vmm_pause().
	eventfd_write(done_fd, 1);
	cr_assert_eq(vmm_pause(g.vm, G_PATIENCE_MS, &e), 0, "%s", e.msg);
	cr_assert_null(held);
	cr_assert_eq(*(uint8_t *)at(DATA + 0x100), 0);
	cr_assert_eq(*(uint8_t *)at(DATA + 0x1000), 0x5a);
	cr_assert_eq(((uint16_t *)at(USED))[1], 1);
	w = wire_writer_of(buf, sizeof(buf));
	cr_assert_eq(vmm_state_save(g.vm, &w, &e), 0, "%s", e.msg);
	cr_assert_eq(vmm_state_check(buf, w.len, &info, &e), 0, "%s", e.msg);
	cr_assert_eq(info.disk_bytes, 1 << 20);
	guest_end(&g);
}

// What is rung during a pause is neither taken then nor lost, in this VM and in
// its clone.
Test(kvm_disk, a_ring_during_a_pause_is_kept)
{
	struct err e = ERR_INIT;
	static uint8_t buf[VMM_STATE_MAX];
	struct wire_writer w = wire_writer_of(buf, sizeof(buf));
	struct guest c;

	cr_assert_eq(vmm_pause(g.vm, G_PATIENCE_MS, &e), 0, "%s", e.msg);
	driver_read(0);
	for (int i = 0; i < 20; i++) {
		vmm_dispatch(g.vm);
		usleep(500);
	}
	cr_assert_eq(submits, 0);
	cr_assert_eq(vmm_state_save(g.vm, &w, &e), 0, "%s", e.msg);
	cr_assert_eq(vmm_unpause(g.vm, &e), 0);
	until_submitted(g.vm, 1);
	c = guest_shell(64ull << 20, 1);
	cr_assert_eq(vmm_attach_disk(c.vm, 1 << 20, &ops, NULL, &e), 0);
	memcpy(vmm_mem_base(c.vm), vmm_mem_base(g.vm), 8 << 20);
	cr_assert_eq(vmm_state_load(c.vm, buf, w.len, &e), 0, "%s", e.msg);
	cr_assert_eq(submits, 1);
	guest_go(&c);
	until_submitted(c.vm, 2); // the clone's device looks at its queue
	guest_end(&c);
	guest_end(&g);
}

// A busy queue gets its ioeventfd, and is served as before.
Test(kvm_disk, a_busy_queue)
{
	for (uint16_t i = 0; i < 300; i++) {
		driver_read(i);
		until_submitted(g.vm, i + 1u);
		complete(NULL, 0);
		cr_assert_eq(((uint16_t *)at(USED))[1], i + 1);
	}
	cr_assert(g.vm->ioeventfd[VIO_BLK][0]);
	cr_assert_not(g.vm->ioeventfd[VIO_RNG][0]);
	moves();
	guest_end(&g);
}
