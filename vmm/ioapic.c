// The IOAPIC of a split irqchip: KVM has the local APICs, we have this.
//
// Intel 82093AA: a select register, a window, 24 redirection entries. Every
// line of this machine is edge-triggered, so an interrupt is one message, made
// from the line's entry and handed to KVM as an MSI at that moment
// (KVM_SIGNAL_MSI). That needs no GSI routing table and no irqfd: nothing is
// registered with KVM, neither at a restore nor when the guest rewrites an
// entry, and an interrupt costs one system call, as an irqfd's write would.
//
// A level-triggered entry is treated as an edge: no device here holds a line,
// so there is never an end of interrupt to wait for.
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "vmm_internal.h"

enum {
	REG_SELECT = 0x00,
	REG_WINDOW = 0x10,
	IDX_ID = 0,
	IDX_VERSION = 1,
	IDX_ARB = 2,
	IDX_REDIR = 0x10,
	VERSION = 0x11,
};

// Redirection entry.
#define RE_VECTOR 0xffull
#define RE_DELIVERY(e) ((uint32_t)((e) >> 8 & 7))
#define RE_LOGICAL (1ull << 11)
#define RE_MASKED (1ull << 16)
#define RE_DEST(e) ((uint32_t)((e) >> 56))
#define RE_WRITABLE_LOW 0x1afffu // not delivery status, not remote IRR
#define RE_WRITABLE_HIGH 0xff000000u
#define RE_WRITABLE ((uint64_t)RE_WRITABLE_HIGH << 32 | RE_WRITABLE_LOW)
enum { DELIVERY_EXTINT = 7 };

void ioapic_init(struct ioapic *a, int vm_fd)
{
	*a = (struct ioapic){.vm_fd = vm_fd};
	pthread_mutex_init(&a->lock, NULL);
	for (unsigned i = 0; i < VMM_IOAPIC_PINS; i++)
		a->redir[i] = RE_MASKED;
}

static void send(struct ioapic *a, uint64_t re)
{
	struct kvm_msi msi = {
	    .address_lo = (uint32_t)VMM_LAPIC_BASE | RE_DEST(re) << 12 |
			  (re & RE_LOGICAL ? 1u << 2 : 0),
	    .data = (uint32_t)(re & RE_VECTOR) | RE_DELIVERY(re) << 8,
	};

	if (RE_DELIVERY(re) == DELIVERY_EXTINT)
		return; // there is no 8259
	if (a->msi_hook)
		a->msi_hook(a->msi_ctx, msi.address_lo, msi.data);
	else
		// No such destination: the interrupt is lost, as on hardware.
		ioctl(a->vm_fd, KVM_SIGNAL_MSI, &msi);
}

static void deliver_locked(struct ioapic *a, unsigned pin)
{
	uint64_t re = a->redir[pin];

	if (re & RE_MASKED || !(a->irr & 1u << pin))
		return;
	a->irr &= ~(1u << pin);
	send(a, re);
}

void ioapic_edge(struct ioapic *a, unsigned pin)
{
	if (pin >= VMM_IOAPIC_PINS)
		return;
	pthread_mutex_lock(&a->lock);
	a->irr |= 1u << pin;
	deliver_locked(a, pin);
	pthread_mutex_unlock(&a->lock);
}

static uint32_t window_read(const struct ioapic *a)
{
	uint32_t i = a->select;

	switch (i) {
	case IDX_ID:
	case IDX_ARB:
		return a->id;
	case IDX_VERSION:
		return VERSION | (VMM_IOAPIC_PINS - 1) << 16;
	}
	if (i < IDX_REDIR || i >= IDX_REDIR + 2 * VMM_IOAPIC_PINS)
		return 0;
	i -= IDX_REDIR;
	return (uint32_t)(a->redir[i / 2] >> (i & 1 ? 32 : 0));
}

static void window_write(struct ioapic *a, uint32_t v)
{
	uint32_t i = a->select;
	uint64_t *re;

	if (i == IDX_ID)
		a->id = v & 0x0f000000;
	if (i < IDX_REDIR || i >= IDX_REDIR + 2 * VMM_IOAPIC_PINS)
		return;
	i -= IDX_REDIR;
	re = &a->redir[i / 2];
	if (i & 1)
		*re = (*re & 0xffffffffu) | (uint64_t)(v & RE_WRITABLE_HIGH)
						<< 32;
	else
		*re = (*re & ~0xffffffffull) | (v & RE_WRITABLE_LOW);
	deliver_locked(a, i / 2); // unmasked with an edge waiting?
}

void ioapic_read(struct ioapic *a, uint64_t off, void *data, unsigned len)
{
	uint32_t v = 0;

	pthread_mutex_lock(&a->lock);
	if (off == REG_SELECT)
		v = a->select;
	else if (off == REG_WINDOW)
		v = window_read(a);
	pthread_mutex_unlock(&a->lock);
	memset(data, 0, len);
	memcpy(data, &v, MIN(len, (unsigned)sizeof(v)));
}

void ioapic_write(struct ioapic *a, uint64_t off, const void *data,
		  unsigned len)
{
	uint32_t v = 0;

	memcpy(&v, data, MIN(len, (unsigned)sizeof(v)));
	pthread_mutex_lock(&a->lock);
	if (off == REG_SELECT)
		a->select = v & 0xff;
	else if (off == REG_WINDOW && len >= 4)
		window_write(a, v);
	pthread_mutex_unlock(&a->lock);
}

// --- state ------------------------------------------------------------------

void ioapic_save(struct ioapic *a, struct wire_writer *w)
{
	pthread_mutex_lock(&a->lock);
	wire_put_u32(w, a->id);
	wire_put_u32(w, a->select);
	wire_put_u32(w, a->irr);
	wire_put_u32(w, VMM_IOAPIC_PINS);
	for (unsigned i = 0; i < VMM_IOAPIC_PINS; i++)
		wire_put_u64(w, a->redir[i]);
	pthread_mutex_unlock(&a->lock);
}

int ioapic_check(struct wire_reader *r, struct err *e)
{
	uint32_t id = wire_get_u32(r), select = wire_get_u32(r);
	uint32_t irr = wire_get_u32(r), pins = wire_get_u32(r);
	bool bad = id & ~0x0f000000u || select > 0xff ||
		   irr >> VMM_IOAPIC_PINS || pins != VMM_IOAPIC_PINS;

	for (unsigned i = 0; i < VMM_IOAPIC_PINS; i++)
		if (wire_get_u64(r) & ~RE_WRITABLE)
			bad = true;
	if (bad || r->bad || wire_left(r))
		return err_set(e, -EBADMSG,
			       "the IOAPIC's registers are invalid");
	return 0;
}

void ioapic_load(struct ioapic *a, struct wire_reader *r)
{
	pthread_mutex_lock(&a->lock);
	a->id = wire_get_u32(r);
	a->select = wire_get_u32(r);
	a->irr = wire_get_u32(r);
	wire_get_u32(r);
	for (unsigned i = 0; i < VMM_IOAPIC_PINS; i++)
		a->redir[i] = wire_get_u64(r);
	pthread_mutex_unlock(&a->lock);
}
