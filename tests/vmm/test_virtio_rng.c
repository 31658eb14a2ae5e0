#include <criterion/criterion.h>
#include <string.h>
#include <sys/resource.h>

#include "virt_driver.h"

enum { CAP = 64 * 1024 };
#define FEATURES (VIO_F_VERSION_1 | VIO_F_INDIRECT | VIO_F_EVENT_IDX)

Test(virtio_rng, fills_scattered_buffers_with_noise)
{
	struct drv d = {0};
	struct seg s[3];
	struct rig r;
	uint8_t zero[64] = {0};
	uint16_t head;
	uint32_t len;

	rig_init(&r, 16 << 20);
	cr_assert(drv_init(&d, &r, vio_rng_create(&r.host), FEATURES, 64));
	s[0] = (struct seg){drv_alloc(&d, 64), 64, false}; // ignored
	s[1] = (struct seg){drv_alloc(&d, 64), 64, true};
	s[2] = (struct seg){drv_alloc(&d, 128), 128, true};
	drv_add(&d, 0, s, 3);
	drv_kick(&d, 0);
	cr_assert(drv_used(&d, 0, &head, &len));
	cr_assert_eq(len, 192);
	cr_assert_eq(memcmp(drv_ptr(&d, s[0].gpa, 64), zero, 64), 0);
	cr_assert_neq(memcmp(drv_ptr(&d, s[1].gpa, 64), zero, 64), 0);
	cr_assert_neq(memcmp(drv_ptr(&d, s[2].gpa, 64),
			     drv_ptr(&d, s[2].gpa + 64, 64), 64),
		      0);
	drv_add(&d, 0, s, 1); // nothing writable
	drv_kick(&d, 0);
	cr_assert(drv_used(&d, 0, &head, &len));
	cr_assert_eq(len, 0);
	vio_destroy(d.dev);
	rig_fini(&r);
}

// Firecracker #5762: a chain that names the same memory many times made the
// device allocate what the guest never gave.
Test(virtio_rng, firecracker_5762_requests_are_capped)
{
	struct drv d = {0};
	struct seg s[VIRTQ_MAX_SEGS];
	struct rusage before, after;
	struct rig r;
	uint16_t head;
	uint32_t len;
	unsigned served = 0;

	rig_init(&r, 1ull << 30);
	cr_assert(drv_init(&d, &r, vio_rng_create(&r.host), FEATURES, 64));
	getrusage(RUSAGE_SELF, &before);
	for (unsigned i = 0; i < VIRTQ_MAX_SEGS; i++)
		s[i] = (struct seg){0x200000, 512 << 20, true};
	for (unsigned i = 0; i < 40; i++)
		cr_assert_geq(drv_add_indirect(&d, 0, s, VIRTQ_MAX_SEGS), 0);
	drv_kick(&d, 0);
	while (drv_used(&d, 0, &head, &len)) {
		cr_assert_eq(len, CAP);
		served++;
	}
	cr_assert_eq(served, 40, "%u served", served);
	getrusage(RUSAGE_SELF, &after);
	cr_assert_lt(after.ru_maxrss - before.ru_maxrss, 4096, "KiB");
	vio_destroy(d.dev);
	rig_fini(&r);
}
