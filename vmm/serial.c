// A 16550A, as much of it as Linux's 8250 driver asks for: detection (scratch,
// FIFO and loop-back tests), polled output, and output by interrupts. It has no
// input line: only loop-back receives. Transmission takes no time, so the
// transmitter is always empty, and its interrupt is due again after every byte.
//
// The interrupt line is edge-triggered: an edge is sent when the condition
// "some enabled interrupt is pending" becomes true. Registers: 16550A data
// sheet, chapter 8.
#include <errno.h>

#include "vmm_internal.h"

enum {
	R_DATA = 0,
	R_IER = 1,
	R_IIR = 2, // read; FCR when written
	R_LCR = 3,
	R_MCR = 4,
	R_LSR = 5,
	R_MSR = 6,
	R_SCR = 7,
	IER_RX = 1,
	IER_THRE = 2,
	IIR_NONE = 1,
	IIR_THRE = 2,
	IIR_RX = 4,
	IIR_FIFO = 0xc0,
	FCR_ENABLE = 1,
	LCR_DLAB = 0x80,
	MCR_LOOP = 0x10,
	LSR_DR = 1,
	LSR_THRE = 0x20,
	LSR_TEMT = 0x40,
	MSR_IDLE = 0xb0, // carrier, data set ready, clear to send
};

void serial_init(struct serial *s, struct console *out, struct ioapic *irq)
{
	*s = (struct serial){.dll = 1, .out = out, .irq = irq};
	pthread_mutex_init(&s->lock, NULL);
}

static bool pending(const struct serial *s)
{
	return (s->has_rx && s->ier & IER_RX) ||
	       (s->thre_pending && s->ier & IER_THRE);
}

static void update_line(struct serial *s)
{
	bool now = pending(s);

	if (now && !s->line)
		ioapic_edge(s->irq, VMM_GSI_SERIAL);
	s->line = now;
}

static uint8_t read_iir(struct serial *s)
{
	uint8_t fifo = s->fcr & FCR_ENABLE ? IIR_FIFO : 0;

	if (s->has_rx && s->ier & IER_RX)
		return fifo | IIR_RX;
	if (s->thre_pending && s->ier & IER_THRE) {
		s->thre_pending = false; // shown once
		return fifo | IIR_THRE;
	}
	return fifo | IIR_NONE;
}

// Loop-back wires RTS to CTS, DTR to DSR, OUT1 to RI and OUT2 to DCD.
static uint8_t read_msr(const struct serial *s)
{
	uint8_t m = s->mcr;

	if (!(m & MCR_LOOP))
		return MSR_IDLE;
	return (uint8_t)((m & 2) << 3 | (m & 1) << 5 | (m & 4) << 4 |
			 (m & 8) << 4);
}

static uint8_t read_locked(struct serial *s, unsigned reg)
{
	switch (reg) {
	case R_DATA:
		if (s->lcr & LCR_DLAB)
			return s->dll;
		if (!s->has_rx)
			return 0;
		s->has_rx = false;
		return s->rx;
	case R_IER:
		return s->lcr & LCR_DLAB ? s->dlm : s->ier;
	case R_IIR:
		return read_iir(s);
	case R_LCR:
		return s->lcr;
	case R_MCR:
		return s->mcr;
	case R_LSR:
		return LSR_THRE | LSR_TEMT | (s->has_rx ? LSR_DR : 0);
	case R_MSR:
		return read_msr(s);
	case R_SCR:
		return s->scr;
	}
	return 0xff;
}

static void write_data(struct serial *s, uint8_t v)
{
	if (s->lcr & LCR_DLAB) {
		s->dll = v;
		return;
	}
	if (s->mcr & MCR_LOOP) {
		s->rx = v;
		s->has_rx = true;
	} else {
		console_put(s->out, &v, 1);
	}
	// The byte left at once: the condition falls and rises.
	s->thre_pending = false;
	update_line(s);
	s->thre_pending = true;
}

static void write_locked(struct serial *s, unsigned reg, uint8_t v)
{
	switch (reg) {
	case R_DATA:
		write_data(s, v);
		break;
	case R_IER:
		if (s->lcr & LCR_DLAB) {
			s->dlm = v;
			break;
		}
		// Enabling it with an empty transmitter makes it due.
		if (v & IER_THRE && !(s->ier & IER_THRE))
			s->thre_pending = true;
		s->ier = v & 0x0f;
		break;
	case R_IIR:
		s->fcr = v & 0xc9;
		break;
	case R_LCR:
		s->lcr = v;
		break;
	case R_MCR:
		s->mcr = v & 0x1f;
		break;
	case R_SCR:
		s->scr = v;
		break;
	}
}

uint8_t serial_read(struct serial *s, unsigned reg)
{
	uint8_t v;

	pthread_mutex_lock(&s->lock);
	v = read_locked(s, reg);
	update_line(s);
	pthread_mutex_unlock(&s->lock);
	return v;
}

void serial_write(struct serial *s, unsigned reg, uint8_t v)
{
	pthread_mutex_lock(&s->lock);
	write_locked(s, reg, v);
	update_line(s);
	pthread_mutex_unlock(&s->lock);
}

// --- state ------------------------------------------------------------------

void serial_save(struct serial *s, struct wire_writer *w)
{
	const uint8_t v[] = {s->ier,	      s->fcr,	 s->lcr,  s->mcr,
			     s->scr,	      s->dll,	 s->dlm,  s->rx,
			     s->thre_pending, s->has_rx, s->line, 0};

	wire_put_bytes(w, v, sizeof(v));
}

int serial_check(struct wire_reader *r, struct err *e)
{
	uint8_t v[12];

	wire_get_bytes(r, v, sizeof(v));
	if (r->bad || wire_left(r) || v[0] & 0xf0 || v[1] & 0x36 ||
	    v[3] & 0xe0 || v[8] > 1 || v[9] > 1 || v[10] > 1 || v[11])
		return err_set(e, -EBADMSG,
			       "the serial port's registers are invalid");
	return 0;
}

void serial_load(struct serial *s, struct wire_reader *r)
{
	s->ier = wire_get_u8(r);
	s->fcr = wire_get_u8(r);
	s->lcr = wire_get_u8(r);
	s->mcr = wire_get_u8(r);
	s->scr = wire_get_u8(r);
	s->dll = wire_get_u8(r);
	s->dlm = wire_get_u8(r);
	s->rx = wire_get_u8(r);
	s->thre_pending = wire_get_u8(r);
	s->has_rx = wire_get_u8(r);
	s->line = wire_get_u8(r);
	wire_get_u8(r);
}
