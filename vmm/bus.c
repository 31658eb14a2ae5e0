// Who answers at which address. A guest may touch any address at any time, with
// any width: unknown ones read as all ones and swallow writes.
#include <string.h>
#include <sys/eventfd.h>

#include "vmm_internal.h"

struct range {
	uint64_t base, len;
	void (*rd)(struct vmm *vm, uint64_t off, void *data, unsigned len);
	void (*wr)(struct vmm *vm, uint64_t off, const void *data,
		   unsigned len);
};

// --- ports ------------------------------------------------------------------

static void serial_rd(struct vmm *vm, uint64_t off, void *data, unsigned len)
{
	if (len == 1)
		*(uint8_t *)data = serial_read(&vm->serial, (unsigned)off);
}

static void serial_wr(struct vmm *vm, uint64_t off, const void *data,
		      unsigned len)
{
	if (len == 1)
		serial_write(&vm->serial, (unsigned)off,
			     *(const uint8_t *)data);
}

static void bell_rd(struct vmm *vm, uint64_t off, void *data, unsigned len)
{
	doorbell_in(vm, (uint32_t)off, data, len);
}

static void bell_wr(struct vmm *vm, uint64_t off, const void *data,
		    unsigned len)
{
	doorbell_out(vm, (uint32_t)off, data, len);
}

// ACPI 6.4, 4.8.3.7: sleep control is SLP_TYPx in bits 4:2 and SLP_EN, bit 5;
// sleep status reads as "no wake-up".
static void sleep_rd(struct vmm *vm, uint64_t off, void *data, unsigned len)
{
	(void)vm, (void)off;
	memset(data, 0, len);
}

static void sleep_wr(struct vmm *vm, uint64_t off, const void *data,
		     unsigned len)
{
	uint8_t v = *(const uint8_t *)data;

	(void)len;
	if (off == 0 && v == (VMM_SLP_TYP_S5 << 2 | 1u << 5))
		vm_event(vm, VMM_EV_POWEROFF, 0, "the guest powered off");
	else if (off == VMM_PORT_RESET - VMM_PORT_SLEEP && v == VMM_RESET_VALUE)
		vm_event(vm, VMM_EV_RESET, 0, "the guest asked for a reset");
}

static void genid_wr(struct vmm *vm, uint64_t off, const void *data,
		     unsigned len)
{
	(void)off, (void)data, (void)len;
	vm->genid_used = true;
}

// An 8042 without a keyboard: its status is "ready", and command 0xfe resets,
// which is how kernels that ignore the ACPI reset register reboot.
static void kbd_rd(struct vmm *vm, uint64_t off, void *data, unsigned len)
{
	(void)vm, (void)off;
	memset(data, 0, len);
}

static void kbd_wr(struct vmm *vm, uint64_t off, const void *data, unsigned len)
{
	(void)len;
	if (off == 4 && *(const uint8_t *)data == 0xfe)
		vm_event(vm, VMM_EV_RESET, 0, "the guest asked for a reset");
}

static const struct range ports[] = {
    {VMM_PORT_SERIAL, 8, serial_rd, serial_wr},
    {VMM_DOORBELL_PORT, 8, bell_rd, bell_wr},
    {VMM_PORT_SLEEP, 4, sleep_rd, sleep_wr},
    {VMM_PORT_GENID, 4, NULL, genid_wr},
    {VMM_PORT_KBD, 5, kbd_rd, kbd_wr},
};

// --- memory -----------------------------------------------------------------

static void ioapic_rd(struct vmm *vm, uint64_t off, void *data, unsigned len)
{
	ioapic_read(&vm->ioapic, off, data, len);
}

static void ioapic_wr(struct vmm *vm, uint64_t off, const void *data,
		      unsigned len)
{
	ioapic_write(&vm->ioapic, off, data, len);
}

static void vio_rd(struct vmm *vm, uint64_t off, void *data, unsigned len)
{
	struct vio_dev *d = vm->vio[off / VIRTIO_MMIO_STRIDE];

	if (d)
		vio_mmio_read(d, off % VIRTIO_MMIO_STRIDE, data, len);
}

#define VIRTIO_MMIO_QUEUE_NOTIFY 0x50 // virtio 1.2, 4.2.2

static void vio_wr(struct vmm *vm, uint64_t off, const void *data, unsigned len)
{
	unsigned index = (unsigned)(off / VIRTIO_MMIO_STRIDE);
	struct vio_dev *d = vm->vio[index];

	if (!d)
		return;
	off %= VIRTIO_MMIO_STRIDE;
	// A notification that is not (yet) an ioeventfd: what KVM would do.
	if (off == VIRTIO_MMIO_QUEUE_NOTIFY && len == 4) {
		uint32_t q;

		memcpy(&q, data, sizeof(q));
		if (q < VIO_MAX_QUEUES && vm->kick[index][q] >= 0)
			eventfd_write(vm->kick[index][q], 1);
		return;
	}
	vio_mmio_write(d, off, data, len);
}

static const struct range windows[] = {
    {VIRTIO_MMIO_BASE, VIO_NUM *VIRTIO_MMIO_STRIDE, vio_rd, vio_wr},
    {VMM_IOAPIC_BASE, 0x1000, ioapic_rd, ioapic_wr},
};

static bool access_range(struct vmm *vm, const struct range *r, size_t n,
			 bool write, uint64_t addr, void *data, unsigned len)
{
	for (size_t i = 0; i < n; i++, r++) {
		if (addr < r->base || addr - r->base >= r->len)
			continue;
		if (len > r->len - (addr - r->base))
			break;
		if (write && r->wr)
			r->wr(vm, addr - r->base, data, len);
		else if (!write && r->rd)
			r->rd(vm, addr - r->base, data, len);
		return true;
	}
	return false;
}

bool bus_pio(struct vmm *vm, bool out, uint16_t port, void *data, unsigned size)
{
	if (!out)
		memset(data, 0xff, size);
	return access_range(vm, ports, ARRAY_SIZE(ports), out, port, data,
			    size);
}

bool bus_mmio(struct vmm *vm, bool write, uint64_t gpa, void *data,
	      unsigned len)
{
	if (!write)
		memset(data, 0xff, len);
	return access_range(vm, windows, ARRAY_SIZE(windows), write, gpa, data,
			    len);
}
