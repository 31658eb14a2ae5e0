// The plain devices behind their ports and windows (vmm/bus.c, serial.c, ioapic.c,
// doorbell.c, console.c, and the exits in vcpu.c): accesses of any width at any address,
// also outside of all devices, interrupts, console output that nobody reads, and moves
// to another machine in between.
#include "machine.h"

#include <string.h>
#include <sys/socket.h>

#include "fake_kvm.h"

enum { OPS_MAX = 400, IO_MAX = 512 };

enum {
	S_OUT,
	S_IN,
	S_STRING,
	S_SERIAL_IRQ,
	S_LOOP,
	S_CONSOLE_FULL,
	S_MSI,
	S_MASKED,
	S_MAIL,
	S_GENID,
	S_ENDED,
	S_EVENTS_FULL,
	S_ACROSS,
	S_MOVED,
};
struct fuzz_state fuzz_states[] = {
    [S_OUT] = {"output", 0},
    [S_IN] = {"input", 0},
    [S_STRING] = {"input or output of a string", 0},
    [S_SERIAL_IRQ] = {"the serial port's interrupt", 0},
    [S_LOOP] = {"a byte in loop-back", 0},
    [S_CONSOLE_FULL] = {"a full console", 0},
    [S_MSI] = {"a message to an APIC", 0},
    [S_MASKED] = {"an edge on a masked pin", 0},
    [S_MAIL] = {"a byte from the mailbox", 0},
    [S_GENID] = {"the generation id in use", 0},
    [S_ENDED] = {"an end", 0},
    [S_EVENTS_FULL] = {"more events than are kept", 0},
    [S_ACROSS] = {"an access across a device's end", 0},
    [S_MOVED] = {"a move", 0},
    {0},
};
const size_t fuzz_around = 60;

static void seen(int s)
{
	fuzz_states[s].seen++;
}

struct guest {
	struct machine m;
	struct fuzz_in *in;
	uint8_t io[IO_MAX * 4];
};

static uint8_t next(struct guest *g)
{
	return in_u8(g->in);
}

// --- ports ------------------------------------------------------------------

static uint16_t port(struct guest *g)
{
	static const uint16_t base[] = {
	    VMM_PORT_SERIAL,	   VMM_DOORBELL_PORT, VMM_PORT_SLEEP,
	    VMM_PORT_RESET,	   VMM_PORT_GENID,    VMM_PORT_KBD,
	    VMM_DOORBELL_PORT + 4,
	};
	uint8_t v = next(g);

	if (v >= 0xf8)
		return in_u16(g->in);
	return (uint16_t)(base[(v >> 4) % ARRAY_SIZE(base)] + v % 16 - 2);
}

static void pio(struct guest *g, bool out)
{
	uint8_t how = next(g);
	uint16_t at = port(g);
	unsigned size = 1u << (how % 4 % 3);
	unsigned count = how & 0x40 ? 1u << (how >> 2 & 7) : 1;
	uint32_t used = g->m.vm->doorbell.used;

	// Waiting is not for us: one thread is all of the machine.
	if (!out && g->m.vm->gate == GATE_OPEN &&
	    (at != VMM_DOORBELL_PORT + 4 || used < count))
		g->m.vm->gate = GATE_PAUSED;
	for (unsigned i = 0; out && i < MIN(size * count, 8u); i++)
		g->io[i] = next(g);
	if (out && (how & 0x80))
		memset(g->io, next(g), size * count);
	machine_pio(&g->m, out, at, g->io, size, count);
	if (g->m.vm->gate == GATE_PAUSED)
		g->m.vm->gate = GATE_OPEN;
	seen(out ? S_OUT : S_IN);
	if (count > 1)
		seen(S_STRING);
	if (g->m.vm->doorbell.used < used)
		seen(S_MAIL);
	if (at < VMM_PORT_SERIAL + 8 && at + size > VMM_PORT_SERIAL + 8)
		seen(S_ACROSS);
}

// --- windows ----------------------------------------------------------------

static uint64_t address(struct guest *g)
{
	static const uint64_t base[] = {
	    VMM_IOAPIC_BASE,  VMM_IOAPIC_BASE + 0x1000,
	    VIRTIO_MMIO_BASE, VIRTIO_MMIO_BASE + VIO_NUM * VIRTIO_MMIO_STRIDE,
	    VMM_LAPIC_BASE,   VMM_LOW_MAX,
	    UINT64_MAX,	      VIRTIO_MMIO_BASE + VIRTIO_MMIO_STRIDE,
	};
	uint8_t v = next(g);

	if (v == 0xff)
		return in_odd(g->in);
	return base[v & 7] + (uint64_t)(int8_t)next(g);
}

static void mmio(struct guest *g, bool write)
{
	uint8_t how = next(g);
	uint64_t v = in_odd(g->in);

	if (how & 0x80)
		v = (uint64_t)next(g) << 56 | next(g);
	machine_mmio(&g->m, write, address(g), &v, how % 9);
}

// The IOAPIC as it is meant: a register is selected and written.
static void redirect(struct guest *g)
{
	uint8_t index = next(g);
	uint16_t v = in_u16(g->in);

	machine_wr32(&g->m, VMM_IOAPIC_BASE, index);
	machine_wr32(&g->m, VMM_IOAPIC_BASE + 0x10,
		     index & 1 ? (uint32_t)v << 16 : v);
	machine_rd32(&g->m, VMM_IOAPIC_BASE + 0x10);
}

// --- the others -------------------------------------------------------------

static void other_exit(struct guest *g)
{
	static const uint32_t reasons[] = {
	    KVM_EXIT_HLT,	 KVM_EXIT_INTR,		KVM_EXIT_IOAPIC_EOI,
	    KVM_EXIT_SHUTDOWN,	 KVM_EXIT_SYSTEM_EVENT, KVM_EXIT_INTERNAL_ERROR,
	    KVM_EXIT_FAIL_ENTRY, KVM_EXIT_DEBUG,
	};
	struct kvm_run *run = g->m.vm->vcpu[0].run;
	uint8_t which = next(g);

	run->exit_reason = reasons[which % 8];
	run->system_event.type = which / 8 % 8;
	vcpu_handle_exit(&g->m.vm->vcpu[0]);
}

static void edge(struct guest *g)
{
	unsigned pin = next(g) % 32;

	ioapic_edge(&g->m.vm->ioapic, pin);
	if (pin < VMM_IOAPIC_PINS && g->m.vm->ioapic.irr & 1u << pin)
		seen(S_MASKED);
}

static void events(struct guest *g)
{
	struct vmm_event ev;

	if (g->m.vm->ev_used >= EVENT_RING - 1)
		seen(S_EVENTS_FULL);
	while (vmm_next_event(g->m.vm, &ev))
		fuzz_must(memchr(ev.text, 0, sizeof(ev.text)));
}

static void look(struct guest *g)
{
	struct vmm *vm = g->m.vm;

	if (vm->ioapic.irr & 1u << VMM_GSI_SERIAL || vm->serial.line)
		seen(S_SERIAL_IRQ);
	if (vm->serial.has_rx)
		seen(S_LOOP);
	if (vm->console.dropped)
		seen(S_CONSOLE_FULL);
	if (vm->genid_used)
		seen(S_GENID);
	if (vm->ended)
		seen(S_ENDED);
	if (fake_kvm_msis)
		seen(S_MSI);
	fuzz_must(vm->console.used <= CONSOLE_RING);
	fuzz_must(vm->doorbell.used <= MAILBOX_MAX);
	fuzz_must(vm->ev_used <= EVENT_RING);
}

static void move(struct guest *g, bool in_two_steps)
{
	if (!g->m.vm->ended)
		seen(S_MOVED);
	machine_move(&g->m, in_two_steps);
}

// --- the program ------------------------------------------------------------

static void step(struct guest *g, int reader)
{
	static uint8_t block[32768];
	uint8_t op = next(g);

	switch (op % 16) {
	default:
		pio(g, op & 0x10);
		break;
	case 6:
	case 7:
		mmio(g, op & 0x10);
		break;
	case 8:
	case 9:
		redirect(g);
		break;
	case 10:
		edge(g);
		break;
	case 11:
		vmm_mailbox_put(g->m.vm, block, 1ull << op / 16);
		break;
	case 12:
		machine_work(&g->m);
		if (op & 0x10)
			(void)!recv(reader, block, sizeof(block), 0);
		break;
	case 13:
		move(g, op & 0x10);
		break;
	case 14:
		events(g);
		break;
	case 15:
		if (op & 0x10)
			other_exit(g);
		else // a shout; what a port brings is one byte
			console_put(&g->m.vm->console, block, sizeof(block));
		break;
	}
	look(g);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	static struct guest g;
	struct fuzz_in in = {data, data + n};
	int sv[2];

	g = (struct guest){.in = &in};
	fake_kvm_msis = 0;
	fuzz_must(!socketpair(
	    AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, sv));
	machine_begin(&g.m, MACHINE_SMALL, in_u8(&in) & 1 ? MACHINE_DISK : 0,
		      sv[0]);
	for (unsigned i = 0; i < OPS_MAX && in_left(&in); i++)
		step(&g, sv[1]);
	events(&g);
	machine_end(&g.m);
	close(sv[0]);
	close(sv[1]);
	return 0;
}
