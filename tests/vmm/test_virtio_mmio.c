// The transport: registers, the status state machine, latching, resets,
// interrupts. The device behind it is the rng, the simplest one, unless a test
// needs requests that stay in flight (blk).
#include <criterion/criterion.h>
#include <linux/virtio_mmio.h>
#include <string.h>

#include "virt_driver.h"

enum { MEM = 16 << 20 };
#define FEATURES (VIO_F_VERSION_1 | VIO_F_INDIRECT | VIO_F_EVENT_IDX)

struct fix {
	struct rig r;
	struct drv d;
};

static void fix_init(struct fix *f)
{
	memset(f, 0, sizeof(*f));
	rig_init(&f->r, MEM);
	f->d.rig = &f->r;
	f->d.dev = vio_rng_create(&f->r.host);
	cr_assert_not_null(f->d.dev);
	f->d.nq = 1;
	f->d.heap = 0x100000;
}

static void fix_fini(struct fix *f)
{
	vio_destroy(f->d.dev);
	cr_assert_eq(f->r.nwatches, 0, "a destroyed device left a watch");
	rig_fini(&f->r);
}

// One request of the rng; the number of bytes it gave.
static uint32_t ask(struct fix *f, uint32_t want)
{
	struct seg s = {drv_alloc(&f->d, want), want, true};
	uint16_t head;
	uint32_t len;

	drv_add(&f->d, 0, &s, 1);
	drv_kick(&f->d, 0);
	return drv_used(&f->d, 0, &head, &len) ? len : 0;
}

Test(virtio_mmio, identifies_itself)
{
	struct fix f;

	fix_init(&f);
	cr_assert_eq(drv_read(&f.d, VIRTIO_MMIO_MAGIC_VALUE), 0x74726976);
	cr_assert_eq(drv_read(&f.d, VIRTIO_MMIO_VERSION), 2);
	cr_assert_eq(drv_read(&f.d, VIRTIO_MMIO_DEVICE_ID), 4);
	cr_assert_eq(drv_read(&f.d, VIRTIO_MMIO_STATUS), 0);
	cr_assert_eq(drv_read(&f.d, VIRTIO_MMIO_QUEUE_NUM_MAX), 64);
	drv_write(&f.d, VIRTIO_MMIO_QUEUE_SEL, 1);
	cr_assert_eq(drv_read(&f.d, VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
	drv_write(&f.d, VIRTIO_MMIO_QUEUE_SEL, ~0u);
	cr_assert_eq(drv_read(&f.d, VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
	cr_assert_eq(drv_read(&f.d, VIRTIO_MMIO_SHM_LEN_LOW), ~0u);
	cr_assert_eq(drv_read(&f.d, VIRTIO_MMIO_CONFIG_GENERATION), 0);
	fix_fini(&f);
}

Test(virtio_mmio, works_from_end_to_end)
{
	struct fix f;

	fix_init(&f);
	cr_assert(drv_init(&f.d, &f.r, f.d.dev, FEATURES, 16));
	cr_assert_eq(f.r.status_up, 1);
	cr_assert_eq(ask(&f, 100), 100);
	cr_assert_eq(f.r.irqs, 1);
	cr_assert_eq(drv_read(&f.d, VIRTIO_MMIO_INTERRUPT_STATUS), 1);
	drv_write(&f.d, VIRTIO_MMIO_INTERRUPT_ACK, 1);
	cr_assert_eq(drv_read(&f.d, VIRTIO_MMIO_INTERRUPT_STATUS), 0);
	drv_write(&f.d, VIRTIO_MMIO_STATUS, 0);
	cr_assert_eq(f.r.status_down, 1);
	cr_assert_eq(drv_read(&f.d, VIRTIO_MMIO_STATUS), 0);
	cr_assert(drv_init(&f.d, &f.r, f.d.dev, FEATURES, 64), "again");
	cr_assert_eq(ask(&f, 5), 5);
	fix_fini(&f);
}

// The line is edge-triggered: a cause that comes before the acknowledgement of
// the last one still makes an edge.
Test(virtio_mmio, every_cause_raises_the_line)
{
	struct fix f;

	fix_init(&f);
	cr_assert(drv_init(&f.d, &f.r, f.d.dev, VIO_F_VERSION_1, 16));
	for (unsigned i = 1; i <= 5; i++) {
		ask(&f, 8);
		cr_assert_eq(f.r.irqs, i);
	}
	fix_fini(&f);
}

Test(virtio_mmio, version_1_is_required)
{
	struct fix f;

	fix_init(&f);
	cr_assert_not(drv_negotiate(&f.d, VIO_F_INDIRECT));
	cr_assert_eq(drv_read(&f.d, VIRTIO_MMIO_STATUS), 3);
	drv_write(&f.d, VIRTIO_MMIO_STATUS, 0xf);
	cr_assert_eq(drv_read(&f.d, VIRTIO_MMIO_STATUS), 3,
		     "no DRIVER_OK without FEATURES_OK");
	cr_assert_eq(f.r.status_up, 0);
	fix_fini(&f);
}

Test(virtio_mmio, features_that_were_not_offered_are_refused)
{
	struct fix f;

	fix_init(&f);
	drv_write(&f.d, VIRTIO_MMIO_STATUS, 3);
	drv_write(&f.d, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
	drv_write(&f.d, VIRTIO_MMIO_DRIVER_FEATURES, 1 | 1u << 31);
	drv_write(&f.d, VIRTIO_MMIO_STATUS, 0xb);
	cr_assert_eq(drv_read(&f.d, VIRTIO_MMIO_STATUS), 3);
	drv_write(&f.d, VIRTIO_MMIO_DRIVER_FEATURES, 1);
	drv_write(&f.d, VIRTIO_MMIO_STATUS, 0xb);
	cr_assert_eq(drv_read(&f.d, VIRTIO_MMIO_STATUS), 0xb);
	fix_fini(&f);
}

Test(virtio_mmio, status_bits_cannot_be_cleared_one_by_one)
{
	struct fix f;

	fix_init(&f);
	drv_negotiate(&f.d, FEATURES);
	drv_write(&f.d, VIRTIO_MMIO_STATUS, 1);
	cr_assert_eq(drv_read(&f.d, VIRTIO_MMIO_STATUS), 0xb);
	drv_write(&f.d, VIRTIO_MMIO_STATUS, 2); // DRIVER without ACK
	cr_assert_eq(drv_read(&f.d, VIRTIO_MMIO_STATUS), 0xb);
	drv_write(&f.d, VIRTIO_MMIO_STATUS, 4); // one bit forward, three back
	cr_assert_eq(drv_read(&f.d, VIRTIO_MMIO_STATUS), 0xb);
	drv_write(&f.d, VIRTIO_MMIO_STATUS, 0);
	drv_write(&f.d, VIRTIO_MMIO_STATUS, 2);
	cr_assert_eq(drv_read(&f.d, VIRTIO_MMIO_STATUS), 0);
	fix_fini(&f);
}

Test(virtio_mmio, queues_can_be_programmed_only_in_their_time)
{
	struct fix f;

	fix_init(&f);
	drv_write(&f.d, VIRTIO_MMIO_STATUS, 3);
	drv_queue_setup(&f.d, 0, 16);
	cr_assert_eq(drv_read(&f.d, VIRTIO_MMIO_QUEUE_READY), 0,
		     "before FEATURES_OK");
	cr_assert(drv_negotiate(&f.d, FEATURES));
	drv_queue_setup(&f.d, 0, 16);
	cr_assert_eq(drv_read(&f.d, VIRTIO_MMIO_QUEUE_READY), 1);
	cr_assert_eq(f.d.dev->vq[0].geom.num, 16);
	drv_write(&f.d, VIRTIO_MMIO_QUEUE_NUM, 32); // ready: frozen
	cr_assert_eq(f.d.dev->vq[0].geom.num, 16);
	drv_write(&f.d, VIRTIO_MMIO_QUEUE_READY, 0);
	drv_write(&f.d, VIRTIO_MMIO_QUEUE_NUM, 65); // more than the maximum
	cr_assert_eq(f.d.dev->vq[0].geom.num, 16);
	fix_fini(&f);
}

// CVE-2026-5747 (Firecracker virtio-pci): the queue size was rewritten after
// activation. Nothing that the driver writes after DRIVER_OK may move a ring.
Test(virtio_mmio, cve_2026_5747_geometry_is_latched_at_driver_ok)
{
	static const uint64_t regs[] = {
	    VIRTIO_MMIO_QUEUE_NUM,	  VIRTIO_MMIO_QUEUE_DESC_LOW,
	    VIRTIO_MMIO_QUEUE_DESC_HIGH,  VIRTIO_MMIO_QUEUE_AVAIL_LOW,
	    VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_USED_LOW,
	    VIRTIO_MMIO_QUEUE_USED_HIGH,  VIRTIO_MMIO_DRIVER_FEATURES,
	    VIRTIO_MMIO_QUEUE_READY,
	};
	struct virtq before;
	struct fix f;

	fix_init(&f);
	cr_assert(drv_init(&f.d, &f.r, f.d.dev, FEATURES, 16));
	before = f.d.dev->vq[0];
	for (size_t i = 0; i < ARRAY_SIZE(regs); i++) {
		drv_write(&f.d, VIRTIO_MMIO_QUEUE_SEL, 0);
		drv_write(&f.d, regs[i], 64);
		drv_write(&f.d, regs[i], 0xfffffff0);
		drv_write(&f.d, regs[i], 1);
	}
	cr_assert_eq(memcmp(&before, &f.d.dev->vq[0], sizeof(before)), 0);
	cr_assert_eq(f.d.dev->driver_features, FEATURES);
	cr_assert_eq(ask(&f, 64), 64);
	// Stopping a queue works, starting it again takes a reset.
	drv_write(&f.d, VIRTIO_MMIO_QUEUE_READY, 0);
	drv_write(&f.d, VIRTIO_MMIO_QUEUE_NUM, 64);
	drv_write(&f.d, VIRTIO_MMIO_QUEUE_READY, 1);
	cr_assert_eq(drv_read(&f.d, VIRTIO_MMIO_QUEUE_READY), 0);
	cr_assert_eq(ask(&f, 64), 0);
	cr_assert_not(drv_needs_reset(&f.d));
	fix_fini(&f);
}

Test(virtio_mmio, an_impossible_queue_needs_a_reset)
{
	struct fix f;

	fix_init(&f);
	cr_assert(drv_negotiate(&f.d, FEATURES));
	drv_queue_setup(&f.d, 0, 16);
	drv_write(&f.d, VIRTIO_MMIO_QUEUE_READY, 0);
	drv_write(&f.d, VIRTIO_MMIO_QUEUE_DESC_LOW, MEM - 16);
	drv_write(&f.d, VIRTIO_MMIO_QUEUE_READY, 1);
	drv_write(&f.d, VIRTIO_MMIO_STATUS, 0xf);
	cr_assert_eq(drv_read(&f.d, VIRTIO_MMIO_STATUS), 0x4f);
	cr_assert_eq(f.r.status_up, 0);
	cr_assert_eq(f.r.irqs, 1);
	cr_assert_eq(drv_read(&f.d, VIRTIO_MMIO_INTERRUPT_STATUS), 2);
	cr_assert_eq(ask(&f, 8), 0);
	cr_assert(drv_init(&f.d, &f.r, f.d.dev, FEATURES, 16));
	cr_assert_eq(ask(&f, 8), 8);
	fix_fini(&f);
}

Test(virtio_mmio, a_broken_ring_needs_a_reset_and_nothing_else)
{
	struct fix f;
	struct seg bad = {MEM, 16, true};

	fix_init(&f);
	cr_assert(drv_init(&f.d, &f.r, f.d.dev, FEATURES, 16));
	drv_add(&f.d, 0, &bad, 1);
	drv_kick(&f.d, 0);
	cr_assert_eq(drv_read(&f.d, VIRTIO_MMIO_STATUS), 0x4f);
	cr_assert_eq(drv_read(&f.d, VIRTIO_MMIO_INTERRUPT_STATUS), 2);
	cr_assert_eq(ask(&f, 8), 0);
	drv_write(&f.d, VIRTIO_MMIO_STATUS, 0xf);
	cr_assert_eq(drv_read(&f.d, VIRTIO_MMIO_STATUS), 0x4f,
		     "only a reset helps");
	cr_assert(drv_init(&f.d, &f.r, f.d.dev, FEATURES, 16));
	cr_assert_eq(ask(&f, 8), 8);
	fix_fini(&f);
}

// QEMU CVE-2011-2512: a notification of a queue that does not exist.
Test(virtio_mmio, cve_2011_2512_notify_index)
{
	static const uint32_t bad[] = {1, 2, 3, 31, 32, 64, 0x80000000, ~0u};
	struct fix f;

	fix_init(&f);
	cr_assert(drv_init(&f.d, &f.r, f.d.dev, FEATURES, 16));
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		drv_kick(&f.d, bad[i]);
		vio_notify(f.d.dev, bad[i]);
	}
	cr_assert_eq(ask(&f, 8), 8);
	fix_fini(&f);
}

Test(virtio_mmio, a_ring_filled_before_driver_ok_is_served)
{
	struct fix f;
	struct seg s;
	uint16_t head;
	uint32_t len;

	fix_init(&f);
	cr_assert(drv_negotiate(&f.d, FEATURES));
	drv_queue_setup(&f.d, 0, 16);
	s = (struct seg){drv_alloc(&f.d, 32), 32, true};
	drv_add(&f.d, 0, &s, 1);
	drv_kick(&f.d, 0);
	cr_assert_not(drv_used(&f.d, 0, &head, &len), "too early");
	drv_write(&f.d, VIRTIO_MMIO_STATUS, 0xf);
	rig_run(&f.r);
	cr_assert(drv_used(&f.d, 0, &head, &len));
	fix_fini(&f);
}

Test(virtio_mmio, quiesced_devices_hold_still)
{
	struct fix f;
	uint16_t head;
	uint32_t len;

	fix_init(&f);
	cr_assert(drv_init(&f.d, &f.r, f.d.dev, FEATURES, 16));
	cr_assert(vio_quiesce(f.d.dev));
	cr_assert_eq(ask(&f, 32), 0);
	vio_notify(f.d.dev, 0);
	rig_run(&f.r);
	cr_assert_not(drv_used(&f.d, 0, &head, &len));
	vio_resume(f.d.dev);
	rig_run(&f.r);
	cr_assert(drv_used(&f.d, 0, &head, &len), "resume looks by itself");
	fix_fini(&f);
}

// Accesses of every width and place, in every state: nothing but the register
// file may change, and the device stays usable.
Test(virtio_mmio, register_fuzz_in_every_state)
{
	uint64_t seed = 0x5eed0001;
	unsigned works = 0, live = 0;
	struct fix f;

	fix_init(&f);
	for (unsigned round = 0; round < 400; round++) {
		if (round % 4)
			drv_init(&f.d, &f.r, f.d.dev, FEATURES, 16);
		for (unsigned i = 0; i < 200; i++) {
			uint64_t off = rnd_below(&seed, 4)
					   ? rnd_below(&seed, 0x110) & ~3ull
					   : rnd_below(&seed, 0x1000);
			uint64_t v = rnd(&seed);
			unsigned len = 1u << rnd_below(&seed, 4);
			uint8_t data[8];

			if (rnd_below(&seed, 2))
				v &= 0xff;
			if (off == VIRTIO_MMIO_STATUS && rnd_below(&seed, 8))
				continue;
			memcpy(data, &v, 8);
			if (rnd_below(&seed, 2))
				vio_mmio_write(f.d.dev, off, data, len);
			else
				vio_mmio_read(f.d.dev, off, data, len);
			live += vio_running(f.d.dev);
		}
		rig_step(&f.r);
	}
	rig_run(&f.r);
	for (unsigned i = 0; i < 4; i++) {
		f.d.heap = 0x100000;
		cr_assert(drv_init(&f.d, &f.r, f.d.dev, FEATURES, 16));
		works += ask(&f, 64) == 64;
	}
	cr_assert_eq(works, 4);
	cr_assert_gt(live, 10000, "only %u accesses met a live device", live);
	fix_fini(&f);
}
