// The doorbell (vmm.h): how a guest without an agent says "capture me", takes
// input and prints. The mailbox is the one device that makes a vCPU wait; it
// waits on vm->cond, which every change of the gate wakes.
#include <errno.h>
#include <string.h>

#include "vmm_internal.h"

static void ring_ready(struct vmm *vm)
{
	vm_event(vm, VMM_EV_READY, 0, "the guest is ready");
}

void doorbell_out(struct vmm *vm, uint32_t off, const void *data, unsigned len)
{
	uint32_t v = 0;

	if (off == 4 && len == 1) {
		console_put(&vm->console, data, 1);
		return;
	}
	if (off != 0 || len != 4)
		return;
	memcpy(&v, data, sizeof(v));
	switch (v) {
	case VMM_DOORBELL_READY:
		ring_ready(vm);
		break;
	case VMM_DOORBELL_POWEROFF:
		vm_event(vm, VMM_EV_POWEROFF, 0, "the guest powered off");
		break;
	default:
		vm_event(vm, VMM_EV_DOORBELL, v, "doorbell %u", v);
	}
}

// Rings and waits for the pause in one instruction. However soon the pause comes
// after the event, the instruction is done when the vCPU parks (vcpu.c): no copy
// begins between the ring and the wait, where nothing would end the wait for it.
static void ring_and_wait(struct vmm *vm)
{
	ring_ready(vm);
	pthread_mutex_lock(&vm->lock);
	while (vm->gate == GATE_OPEN)
		pthread_cond_wait(&vm->cond, &vm->lock);
	pthread_mutex_unlock(&vm->lock);
}

void doorbell_in(struct vmm *vm, uint32_t off, void *data, unsigned len)
{
	struct doorbell *d = &vm->doorbell;
	uint32_t v = ~0u;

	if ((off != 0 && off != 4) || len != 4)
		return;
	if (off == 0) {
		ring_and_wait(vm);
		memcpy(data, &v, sizeof(v));
		return;
	}
	pthread_mutex_lock(&vm->lock);
	while (d->used == 0 && vm->gate == GATE_OPEN)
		pthread_cond_wait(&vm->cond, &vm->lock);
	// During a pause the guest is told to ask again, also when there are
	// bytes: they stay in the mailbox and in the saved state.
	if (vm->gate == GATE_OPEN) {
		v = d->mailbox[d->head];
		d->head = (d->head + 1) % MAILBOX_MAX;
		d->used--;
	}
	pthread_mutex_unlock(&vm->lock);
	memcpy(data, &v, sizeof(v));
}

int doorbell_put(struct vmm *vm, const void *p, size_t len)
{
	struct doorbell *d = &vm->doorbell;
	const uint8_t *b = p;
	int rc = 0;

	pthread_mutex_lock(&vm->lock);
	if (!d->mailbox)
		d->mailbox = malloc(MAILBOX_MAX);
	if (!d->mailbox) {
		rc = -ENOMEM;
	} else if (len > MAILBOX_MAX - d->used) {
		rc = -ENOSPC;
	} else {
		for (size_t i = 0; i < len; i++)
			d->mailbox[(d->head + d->used++) % MAILBOX_MAX] = b[i];
		pthread_cond_broadcast(&vm->cond);
	}
	pthread_mutex_unlock(&vm->lock);
	return rc;
}

// --- state ------------------------------------------------------------------

void doorbell_save(struct vmm *vm, struct wire_writer *w)
{
	struct doorbell *d = &vm->doorbell;

	pthread_mutex_lock(&vm->lock);
	wire_put_u32(w, d->used);
	for (uint32_t i = 0; i < d->used; i++)
		wire_put_u8(w, d->mailbox[(d->head + i) % MAILBOX_MAX]);
	pthread_mutex_unlock(&vm->lock);
}

int doorbell_check(struct wire_reader *r, struct err *e)
{
	uint32_t n = wire_get_u32(r);

	if (r->bad || n > MAILBOX_MAX || wire_left(r) != n)
		return err_set(e, -EBADMSG, "the mailbox's length is invalid");
	return 0;
}

int doorbell_load(struct vmm *vm, struct wire_reader *r)
{
	uint32_t n = wire_get_u32(r);

	return n ? doorbell_put(vm, wire_borrow(r, n), n) : 0;
}
