// The split ring alone, in plain memory between guard pages.
#include <criterion/criterion.h>
#include <errno.h>
#include <linux/virtio_ring.h>
#include <string.h>
#include <sys/mman.h>

#include "virt_driver.h"

enum { MEM = 1 << 20, NUM = 8, DESC = 0x1000, AVAIL = 0x2000, USED = 0x3000 };

struct ring {
	struct rig r;
	struct virtq q;
	uint16_t idx;
};

static void ring_init_at(struct ring *t, uint64_t mem, bool indirect,
			 bool event_idx)
{
	memset(t, 0, sizeof(*t));
	rig_init(&t->r, mem);
	t->q.geom = (struct virtq_geom){NUM, true, DESC, AVAIL, USED};
	cr_assert_eq(virtq_latch(&t->q, &t->r.mem, indirect, event_idx), 0);
}

static void ring_init(struct ring *t)
{
	ring_init_at(t, MEM, true, false);
}

static void desc_at(struct ring *t, uint64_t table, unsigned i, uint64_t gpa,
		    uint32_t len, uint16_t flags, uint16_t next)
{
	struct vring_desc d = {gpa, len, flags, next};

	cr_assert_eq(gm_write(&t->r.mem, table + 16ull * i, &d, 16), 0);
}

static void avail(struct ring *t, uint16_t head)
{
	gm_write(&t->r.mem, AVAIL + 4 + 2u * (t->idx % NUM), &head, 2);
	t->idx++;
	gm_write(&t->r.mem, AVAIL + 2, &t->idx, 2);
}

static int pop(struct ring *t, struct virtq_chain *c)
{
	static struct iovec iov[VIRTQ_MAX_SEGS];

	return virtq_pop(&t->q, c, iov, VIRTQ_MAX_SEGS);
}

// A chain of one descriptor; what pop says of it.
static int pop_one(uint64_t mem, uint64_t gpa, uint32_t len)
{
	struct virtq_chain c;
	struct ring t;
	int rc;

	ring_init_at(&t, mem, true, false);
	desc_at(&t, DESC, 0, gpa, len, 0, 0);
	avail(&t, 0);
	rc = pop(&t, &c);
	if (rc < 0) {
		cr_assert(t.q.broken);
		cr_assert_eq(pop(&t, &c), 0, "a broken queue yields nothing");
	}
	rig_fini(&t.r);
	return rc;
}

Test(virtq, takes_a_chain_and_gives_it_back)
{
	struct iovec iov[VIRTQ_MAX_SEGS];
	struct virtq_chain c;
	struct ring t;
	uint32_t e[2];
	uint16_t idx;

	ring_init(&t);
	cr_assert_eq(pop(&t, &c), 0);
	desc_at(&t, DESC, 3, 0x8000, 16, VRING_DESC_F_NEXT, 5);
	desc_at(&t, DESC, 5, 0x9000, 0, VRING_DESC_F_NEXT, 1);
	desc_at(&t, DESC, 1, 0xa000, 32, VRING_DESC_F_WRITE, 0);
	avail(&t, 3);
	cr_assert_eq(virtq_pop(&t.q, &c, iov, VIRTQ_MAX_SEGS), 1);
	cr_assert_eq(c.head, 3);
	cr_assert_eq(c.out_n, 1);
	cr_assert_eq(c.in_n, 1);
	cr_assert_eq(c.out_len, 16);
	cr_assert_eq(c.in_len, 32);
	cr_assert_eq(iov[0].iov_base, (void *)(t.r.mem.base + 0x8000));
	cr_assert_eq(iov[1].iov_base, (void *)(t.r.mem.base + 0xa000));
	cr_assert_eq(pop(&t, &c), 0);
	virtq_unpop(&t.q, 1);
	cr_assert_eq(pop(&t, &c), 1, "an unpopped chain comes again");
	virtq_push(&t.q, c.head, 7);
	gm_read(&t.r.mem, USED + 2, &idx, 2);
	gm_read(&t.r.mem, USED + 4, e, 8);
	cr_assert_eq(idx, 1);
	cr_assert_eq(e[0], 3);
	cr_assert_eq(e[1], 7);
	rig_fini(&t.r);
}

// The index wraps at 65536 and the ring at its size.
Test(virtq, survives_70000_rounds)
{
	struct virtq_chain c;
	struct ring t;

	ring_init(&t);
	for (unsigned i = 0; i < NUM; i++)
		desc_at(&t, DESC, i, 0x8000, i + 1, 0, 0);
	for (unsigned i = 0; i < 70000; i++) {
		avail(&t, (uint16_t)(i % NUM));
		cr_assert_eq(pop(&t, &c), 1);
		cr_assert_eq(c.head, i % NUM);
		cr_assert_eq(c.out_len, i % NUM + 1);
		virtq_push(&t.q, c.head, 0);
		cr_assert_eq(pop(&t, &c), 0);
	}
	rig_fini(&t.r);
}

// CVE-2019-18960 (Firecracker vsock): addr + len must be judged together.
Test(virtq, cve_2019_18960_descriptor_at_the_end_of_memory)
{
	cr_assert_eq(pop_one(MEM, MEM - 16, 16), 1, "ends exactly at the end");
	cr_assert_eq(pop_one(MEM, MEM - 16, 17), -EPROTO);
	cr_assert_eq(pop_one(MEM, MEM - 1, UINT32_MAX), -EPROTO);
	cr_assert_eq(pop_one(MEM, MEM, 1), -EPROTO);
	cr_assert_eq(pop_one(MEM, MEM + 4096, 16), -EPROTO);
}

Test(virtq, cve_2019_18960_address_overflow)
{
	cr_assert_eq(pop_one(MEM, UINT64_MAX, 1), -EPROTO);
	cr_assert_eq(pop_one(MEM, UINT64_MAX - 15, 16), -EPROTO);
	cr_assert_eq(pop_one(MEM, UINT64_MAX - 8, 4096), -EPROTO);
	cr_assert_eq(pop_one(MEM, 0, UINT32_MAX), -EPROTO);
}

Test(virtq, cve_2019_18960_descriptor_across_the_mmio_gap)
{
	uint64_t mem = 4ull << 30; // 3 GiB low, 1 GiB at 4 GiB

	cr_assert_eq(pop_one(mem, VMM_LOW_MAX - 512, 512), 1);
	cr_assert_eq(pop_one(mem, VMM_LOW_MAX - 512, 513), -EPROTO);
	cr_assert_eq(pop_one(mem, VMM_LOW_MAX, 1), -EPROTO);
	cr_assert_eq(pop_one(mem, 0xd0000000, 512), -EPROTO, "a device window");
	cr_assert_eq(pop_one(mem, (4ull << 30) - 512, 1024), -EPROTO);
	cr_assert_eq(pop_one(mem, 4ull << 30, 512), 1);
	cr_assert_eq(pop_one(mem, 5ull << 30, 1), -EPROTO);
	cr_assert_eq(pop_one(mem, (5ull << 30) - 1, 1), 1);
	cr_assert_eq(pop_one(mem, VMM_LOW_MAX - 4096, 0x40002000), -EPROTO,
		     "both ends are in memory, the middle is not");
}

// Firecracker's self-DoS fix: more available than the ring has.
Test(virtq, more_available_than_the_queue_breaks_it)
{
	struct virtq_chain c;
	struct ring t;
	uint16_t idx = NUM + 1;

	ring_init(&t);
	desc_at(&t, DESC, 0, 0x8000, 16, 0, 0);
	gm_write(&t.r.mem, AVAIL + 2, &idx, 2);
	cr_assert_eq(pop(&t, &c), -EPROTO);
	rig_fini(&t.r);
	ring_init(&t);
	desc_at(&t, DESC, 0, 0x8000, 16, 0, 0);
	idx = NUM;
	gm_write(&t.r.mem, AVAIL + 2, &idx, 2);
	cr_assert_eq(pop(&t, &c), 1, "a full ring is fine");
	idx = 0; // backwards is as bad
	gm_write(&t.r.mem, AVAIL + 2, &idx, 2);
	cr_assert_eq(pop(&t, &c), -EPROTO);
	rig_fini(&t.r);
}

Test(virtq, refuses_bad_chains)
{
	static const struct {
		const char *what;
		struct vring_desc d[3];
	} bad[] = {
	    {"next outside", {{0x8000, 16, VRING_DESC_F_NEXT, NUM}}},
	    {"next far outside", {{0x8000, 16, VRING_DESC_F_NEXT, 65535}}},
	    {"loop on itself", {{0x8000, 16, VRING_DESC_F_NEXT, 0}}},
	    {"loop of two",
	     {{0x8000, 16, VRING_DESC_F_NEXT, 1},
	      {0x8000, 16, VRING_DESC_F_NEXT, 0}}},
	    {"readable after writable",
	     {{0x8000, 16, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 1},
	      {0x8000, 16, 0, 0}}},
	    {"indirect with next",
	     {{0x8000, 16, VRING_DESC_F_INDIRECT | VRING_DESC_F_NEXT, 1},
	      {0x8000, 16, 0, 0}}},
	    {"empty indirect", {{0x8000, 0, VRING_DESC_F_INDIRECT, 0}}},
	    {"odd indirect", {{0x8000, 24, VRING_DESC_F_INDIRECT, 0}}},
	    {"indirect outside", {{MEM - 8, 16, VRING_DESC_F_INDIRECT, 0}}},
	    {"huge indirect", {{0, 0xfffffff0, VRING_DESC_F_INDIRECT, 0}}},
	    {"second one outside",
	     {{0x8000, 16, VRING_DESC_F_NEXT, 1}, {MEM, 16, 0, 0}}},
	};
	struct virtq_chain c;
	struct ring t;
	int rc;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		ring_init(&t);
		gm_write(&t.r.mem, DESC, bad[i].d, sizeof(bad[i].d));
		avail(&t, 0);
		rc = pop(&t, &c);
		cr_assert_eq(rc, -EPROTO, "%s: %d", bad[i].what, rc);
		rig_fini(&t.r);
	}
	ring_init(&t);
	avail(&t, NUM);
	cr_assert_eq(pop(&t, &c), -EPROTO, "a head outside");
	rig_fini(&t.r);
}

Test(virtq, indirect_tables)
{
	struct iovec iov[VIRTQ_MAX_SEGS];
	struct virtq_chain c;
	struct ring t;

	ring_init(&t);
	desc_at(&t, 0x8000, 0, 0x9000, 4, VRING_DESC_F_NEXT, 2);
	desc_at(&t, 0x8000, 2, 0xa000, 8,
		VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 1);
	desc_at(&t, 0x8000, 1, 0xb000, 16, VRING_DESC_F_WRITE, 0);
	// A direct descriptor may come before (2.7.5.3.2).
	desc_at(&t, DESC, 0, 0xc000, 1, VRING_DESC_F_NEXT, 1);
	desc_at(&t, DESC, 1, 0x8000, 48, VRING_DESC_F_INDIRECT, 0);
	avail(&t, 0);
	cr_assert_eq(virtq_pop(&t.q, &c, iov, VIRTQ_MAX_SEGS), 1);
	cr_assert_eq(c.out_n, 2);
	cr_assert_eq(c.in_n, 2);
	cr_assert_eq(c.in_len, 24);
	cr_assert_eq(iov[3].iov_base, (void *)(t.r.mem.base + 0xb000));
	// A table in a table.
	desc_at(&t, 0x8000, 2, 0xa000, 16, VRING_DESC_F_INDIRECT, 0);
	avail(&t, 0);
	cr_assert_eq(pop(&t, &c), -EPROTO);
	rig_fini(&t.r);

	ring_init(&t); // next outside of the table, inside of memory
	desc_at(&t, 0x8000, 0, 0x9000, 4, VRING_DESC_F_NEXT, 2);
	desc_at(&t, 0x8000, 2, 0x9000, 4, 0, 0);
	desc_at(&t, DESC, 0, 0x8000, 32, VRING_DESC_F_INDIRECT, 0);
	avail(&t, 0);
	cr_assert_eq(pop(&t, &c), -EPROTO);
	rig_fini(&t.r);

	ring_init_at(&t, MEM, false, false); // not negotiated
	desc_at(&t, 0x8000, 0, 0x9000, 4, 0, 0);
	desc_at(&t, DESC, 0, 0x8000, 16, VRING_DESC_F_INDIRECT, 0);
	avail(&t, 0);
	cr_assert_eq(pop(&t, &c), -EPROTO);
	rig_fini(&t.r);
}

Test(virtq, chains_are_bounded)
{
	struct virtq_chain c;
	struct ring t;

	ring_init(&t);
	for (unsigned i = 0; i < VIRTQ_MAX_SEGS + 1; i++)
		desc_at(&t, 0x8000, i, 0x10000, 4,
			i + 1 < VIRTQ_MAX_SEGS ? VRING_DESC_F_NEXT : 0,
			(uint16_t)(i + 1));
	desc_at(&t, DESC, 0, 0x8000, 16 * (VIRTQ_MAX_SEGS + 1),
		VRING_DESC_F_INDIRECT, 0);
	avail(&t, 0);
	cr_assert_eq(pop(&t, &c), 1);
	cr_assert_eq(c.out_n, VIRTQ_MAX_SEGS);
	desc_at(&t, 0x8000, VIRTQ_MAX_SEGS - 1, 0x10000, 4, VRING_DESC_F_NEXT,
		VIRTQ_MAX_SEGS);
	avail(&t, 0);
	cr_assert_eq(pop(&t, &c), -EPROTO, "one more than the bound");
	rig_fini(&t.r);
	ring_init(&t); // a loop in the table ends, too
	desc_at(&t, 0x8000, 0, 0x10000, 0, VRING_DESC_F_NEXT, 1);
	desc_at(&t, 0x8000, 1, 0x10000, 0, VRING_DESC_F_NEXT, 0);
	desc_at(&t, DESC, 0, 0x8000, 16 * 4000, VRING_DESC_F_INDIRECT, 0);
	avail(&t, 0);
	cr_assert_eq(pop(&t, &c), -EPROTO);
	rig_fini(&t.r);
}

Test(virtq, geometry)
{
	static const struct {
		struct virtq_geom g;
		int rc;
	} cases[] = {
	    {{8, true, DESC, AVAIL, USED}, 0},
	    {{256, true, DESC, AVAIL, USED}, 0},
	    {{0, true, DESC, AVAIL, USED}, -EINVAL},
	    {{7, true, DESC, AVAIL, USED}, -EINVAL},
	    {{512, true, DESC, AVAIL, USED}, -EINVAL},
	    {{8, true, DESC + 8, AVAIL, USED}, -EINVAL},
	    {{8, true, DESC, AVAIL + 1, USED}, -EINVAL},
	    {{8, true, DESC, AVAIL, USED + 2}, -EINVAL},
	    {{8, true, MEM - 128, AVAIL, USED}, 0},
	    {{8, true, MEM - 112, AVAIL, USED}, -EINVAL},
	    {{8, true, DESC, MEM - 22, USED}, 0},
	    {{8, true, DESC, MEM - 20, USED}, -EINVAL},
	    {{8, true, DESC, AVAIL, MEM - 72}, 0},
	    {{8, true, DESC, AVAIL, MEM - 68}, -EINVAL},
	    {{8, true, ~15ull, AVAIL, USED}, -EINVAL},
	    {{8, true, DESC, ~1ull, USED}, -EINVAL},
	    {{8, true, DESC, AVAIL, 0xd0000000}, -EINVAL},
	};
	struct rig r;

	rig_init(&r, MEM);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct virtq q = {.geom = cases[i].g};

		cr_assert_eq(virtq_geom_check(&cases[i].g, MEM), cases[i].rc,
			     "case %zu", i);
		cr_assert_eq(virtq_latch(&q, &r.mem, true, true), cases[i].rc,
			     "latch, case %zu", i);
		cr_assert_eq(q.live, cases[i].rc == 0);
	}
	rig_fini(&r);
}

Test(virtq, interrupts_are_suppressed_by_flag)
{
	uint16_t off = VRING_AVAIL_F_NO_INTERRUPT, on = 0;
	struct ring t;

	ring_init(&t);
	cr_assert_not(virtq_should_signal(&t.q), "nothing was pushed");
	virtq_push(&t.q, 0, 0);
	cr_assert(virtq_should_signal(&t.q));
	cr_assert_not(virtq_should_signal(&t.q));
	gm_write(&t.r.mem, AVAIL, &off, 2);
	virtq_push(&t.q, 0, 0);
	cr_assert_not(virtq_should_signal(&t.q));
	gm_write(&t.r.mem, AVAIL, &on, 2);
	virtq_push(&t.q, 0, 0);
	cr_assert(virtq_should_signal(&t.q));
	rig_fini(&t.r);
}

Test(virtq, interrupts_follow_the_event_index)
{
	uint16_t event = 3;
	struct ring t;

	ring_init_at(&t, MEM, true, true);
	gm_write(&t.r.mem, AVAIL + 4 + 2 * NUM, &event, 2);
	for (int i = 0; i < 3; i++) {
		virtq_push(&t.q, 0, 0);
		cr_assert_not(virtq_should_signal(&t.q), "push %d", i);
	}
	virtq_push(&t.q, 0, 0);
	cr_assert(virtq_should_signal(&t.q), "entry 3 was asked for");
	virtq_push(&t.q, 0, 0);
	cr_assert_not(virtq_should_signal(&t.q));
	event = 6; // crossed by a batch
	gm_write(&t.r.mem, AVAIL + 4 + 2 * NUM, &event, 2);
	for (int i = 0; i < 4; i++)
		virtq_push(&t.q, 0, 0);
	cr_assert(virtq_should_signal(&t.q));
	rig_fini(&t.r);
}

Test(virtq, listening_sees_what_came_meanwhile)
{
	struct virtq_chain c;
	struct ring t;
	uint16_t v;

	ring_init(&t);
	desc_at(&t, DESC, 0, 0x8000, 4, 0, 0);
	virtq_quiet(&t.q);
	gm_read(&t.r.mem, USED, &v, 2);
	cr_assert_eq(v, VRING_USED_F_NO_NOTIFY);
	avail(&t, 0);
	cr_assert(virtq_listen(&t.q), "a chain came while quiet");
	gm_read(&t.r.mem, USED, &v, 2);
	cr_assert_eq(v, 0);
	cr_assert_eq(pop(&t, &c), 1);
	cr_assert_not(virtq_listen(&t.q));
	rig_fini(&t.r);
	ring_init_at(&t, MEM, true, true);
	desc_at(&t, DESC, 0, 0x8000, 4, 0, 0);
	avail(&t, 0);
	pop(&t, &c);
	cr_assert_not(virtq_listen(&t.q));
	gm_read(&t.r.mem, USED + 4 + 8 * NUM, &v, 2);
	cr_assert_eq(v, 1, "avail_event asks for the next one");
	rig_fini(&t.r);
}

Test(virtq, scattered_copies)
{
	char a[3] = "abc", b[1] = "d", c[4] = "efgh", out[16] = "";
	struct iovec iov[] = {{a, 3}, {b, 1}, {c, 4}}, part[3];

	cr_assert_eq(virtq_iov_read(iov, 3, 2, out, 4), 4);
	cr_assert_eq(memcmp(out, "cdef", 4), 0);
	cr_assert_eq(virtq_iov_read(iov, 3, 6, out, 16), 2);
	cr_assert_eq(virtq_iov_read(iov, 3, 9, out, 1), 0);
	cr_assert_eq(virtq_iov_write(iov, 3, 2, "XYZ", 3), 3);
	cr_assert_eq(a[2], 'X');
	cr_assert_eq(b[0], 'Y');
	cr_assert_eq(c[0], 'Z');
	cr_assert_eq(virtq_iov_slice(iov, 3, 3, 3, part), 2);
	cr_assert_eq(part[0].iov_base, (void *)b);
	cr_assert_eq(part[1].iov_len, 2);
	cr_assert_eq(virtq_iov_slice(iov, 3, 8, 1, part), 0);
}
