// The ACPI tables: how a kernel without any firmware finds this machine.
//
// Hardware-reduced ACPI (ACPI 6.4 section 3.11.1): no PM timer, no fixed
// events, no 8259, no PIT; power-off by the sleep control register, reset by
// the reset register. RSDP -> XSDT -> FADT (-> DSDT), MADT. The virtio-mmio
// devices are LNRO0005, which Linux's virtio_mmio driver binds to.
//
// VMGENID: kernels that have the driver ask ADDR for the page of the generation
// id. The method first writes a port, so that we learn that somebody watches
// the id: only then does a restore write a new one (it costs a page fault) and
// raise the event device's interrupt, whose _EVT notifies the driver. Kernels
// before 6.10 compare hardware ids with "VMGENCTR", later ones with the
// compatible id.
#include <errno.h>
#include <string.h>

#include "aml.h"
#include "vmm_internal.h"

enum { HEADER = 36, RSDP_LEN = 36, FADT_LEN = 276 };

static uint8_t sum(const uint8_t *p, size_t n)
{
	uint8_t s = 0;

	while (n--)
		s = (uint8_t)(s + *p++);
	return s;
}

static size_t table_open(struct wire_writer *w, const char *sig, uint8_t rev)
{
	size_t at;

	while (w->len % 16)
		wire_put_u8(w, 0);
	at = w->len;
	wire_put_bytes(w, sig, 4);
	wire_put_u32(w, 0); // length
	wire_put_u8(w, rev);
	wire_put_u8(w, 0); // checksum
	wire_put_bytes(w, "THAW  ", 6);
	wire_put_bytes(w, "THAWVM  ", 8);
	wire_put_u32(w, 1);
	wire_put_bytes(w, "THAW", 4);
	wire_put_u32(w, 1);
	return at;
}

static void table_close(struct wire_writer *w, size_t at)
{
	if (w->bad)
		return;
	wire_patch_u32(w, at + 4, (uint32_t)(w->len - at));
	w->buf[at + 9] = 0;
	w->buf[at + 9] = (uint8_t)-sum(w->buf + at, w->len - at);
}

static void put_zeros(struct wire_writer *w, size_t n)
{
	while (n--)
		wire_put_u8(w, 0);
}

// --- DSDT -------------------------------------------------------------------

static void dsdt_uart(struct wire_writer *w)
{
	struct aml_crs crs;
	size_t d = aml_device(w, "COM1");

	aml_name(w, "_HID");
	aml_eisaid(w, "PNP0501");
	aml_name(w, "_UID");
	aml_int(w, 0);
	aml_crs_init(&crs);
	aml_crs_io(&crs, VMM_PORT_SERIAL, 8);
	aml_crs_irq(&crs, VMM_GSI_SERIAL);
	aml_crs_put(w, &crs);
	aml_close(w, d);
}

static void dsdt_virtio(struct wire_writer *w, unsigned i)
{
	char name[5] = {'V', 'I', 'O', (char)('0' + i), 0};
	struct aml_crs crs;
	size_t d = aml_device(w, name);

	aml_name(w, "_HID");
	aml_string(w, "LNRO0005");
	aml_name(w, "_UID");
	aml_int(w, i);
	aml_name(w, "_CCA");
	aml_int(w, 1);
	aml_crs_init(&crs);
	aml_crs_mem32(&crs,
		      (uint32_t)(VIRTIO_MMIO_BASE + i * VIRTIO_MMIO_STRIDE),
		      (uint32_t)VIRTIO_MMIO_STRIDE);
	aml_crs_irq(&crs, VIRTIO_MMIO_GSI + i);
	aml_crs_put(w, &crs);
	aml_close(w, d);
}

static void dsdt_genid(struct wire_writer *w)
{
	struct aml_crs crs;
	size_t d = aml_device(w, "VGEN"), m, p;

	aml_name(w, "_HID");
	aml_string(w, "VMGENCTR");
	aml_name(w, "_CID");
	aml_string(w, "VM_Gen_Counter");
	aml_name(w, "_DDN");
	aml_string(w, "VM_Gen_Counter");
	aml_io_field(w, "VGRG", "VGPT", VMM_PORT_GENID);
	m = aml_method(w, "ADDR", 0x08); // no arguments, serialized
	aml_store_one(w, "VGPT");
	aml_return(w);
	p = aml_package(w, 2);
	aml_int(w, VMM_GENID_GPA);
	aml_int(w, 0);
	aml_close(w, p);
	aml_close(w, m);
	aml_close(w, d);

	d = aml_device(w, "GED_"); // 5.6.9
	aml_name(w, "_HID");
	aml_string(w, "ACPI0013");
	aml_name(w, "_UID");
	aml_int(w, 0);
	aml_crs_init(&crs);
	aml_crs_irq(&crs, VMM_GSI_GED);
	aml_crs_put(w, &crs);
	m = aml_method(w, "_EVT", 0x09); // one argument, serialized
	aml_notify(w, "VGEN", 0x80);
	aml_close(w, m);
	aml_close(w, d);
}

static size_t put_dsdt(struct wire_writer *w, const struct acpi_config *cfg)
{
	size_t at = table_open(w, "DSDT", 2), s, p;

	s = aml_scope(w, "\\_SB_");
	dsdt_uart(w);
	for (unsigned i = 0; i < VIO_NUM; i++)
		if (cfg->vio[i])
			dsdt_virtio(w, i);
	dsdt_genid(w);
	aml_close(w, s);
	aml_name(w, "\\_S5_");
	p = aml_package(w, 2);
	aml_int(w, VMM_SLP_TYP_S5);
	aml_int(w, VMM_SLP_TYP_S5);
	aml_close(w, p);
	table_close(w, at);
	return at;
}

// --- the tables with fixed layouts ------------------------------------------

// Generic address structure (5.2.3.2): one byte in I/O space.
static void put_gas(struct wire_writer *w, uint64_t port)
{
	wire_put_u8(w, 1); // system I/O
	wire_put_u8(w, 8); // bits
	wire_put_u8(w, 0);
	wire_put_u8(w, 1); // byte access
	wire_put_u64(w, port);
}

// 5.2.9. Everything that hardware-reduced ACPI ignores is zero.
static size_t put_fadt(struct wire_writer *w, uint64_t dsdt)
{
	size_t at = table_open(w, "FACP", 6);

	put_zeros(w, 4);			      // 36 FACS
	wire_put_u32(w, (uint32_t)dsdt);	      // 40
	put_zeros(w, 109 - 44);			      // 44
	wire_put_u16(w, 1u << 2 | 1u << 4 | 1u << 5); // 109: no VGA, no ASPM,
						      // no CMOS clock
	put_zeros(w, 1);			      // 111
	// 112: WBINVD, no power or sleep button, reset register,
	// hardware-reduced
	wire_put_u32(w, 1u << 0 | 1u << 4 | 1u << 5 | 1u << 10 | 1u << 20);
	put_gas(w, VMM_PORT_RESET);	      // 116
	wire_put_u8(w, VMM_RESET_VALUE);      // 128
	put_zeros(w, 2);		      // 129
	wire_put_u8(w, 0);		      // 131 minor version
	put_zeros(w, 8);		      // 132 X_FACS
	wire_put_u64(w, dsdt);		      // 140
	put_zeros(w, 244 - 148);	      // 148
	put_gas(w, VMM_PORT_SLEEP);	      // 244
	put_gas(w, VMM_PORT_SLEEP + 1);	      // 256
	wire_put_bytes(w, "THAW\0\0\0\0", 8); // 268 hypervisor vendor
	table_close(w, at);
	return at;
}

// 5.2.12. The ids are below 255, so the entries are those of local APICs, also
// for x2APIC mode.
static size_t put_madt(struct wire_writer *w, unsigned vcpus)
{
	size_t at = table_open(w, "APIC", 5);

	wire_put_u32(w, (uint32_t)VMM_LAPIC_BASE);
	wire_put_u32(w, 0); // no 8259s
	for (unsigned i = 0; i < vcpus; i++) {
		wire_put_u8(w, 0);
		wire_put_u8(w, 8);
		wire_put_u8(w, (uint8_t)i);
		wire_put_u8(w, (uint8_t)i);
		wire_put_u32(w, 1); // enabled
	}
	wire_put_u8(w, 1); // IOAPIC
	wire_put_u8(w, 12);
	wire_put_u8(w, 0);
	wire_put_u8(w, 0);
	wire_put_u32(w, (uint32_t)VMM_IOAPIC_BASE);
	wire_put_u32(w, 0); // first GSI
	table_close(w, at);
	return at;
}

static void put_rsdp(struct wire_writer *w)
{
	wire_put_bytes(w, "RSD PTR ", 8);
	wire_put_u8(w, 0); // checksum of the first 20 bytes
	wire_put_bytes(w, "THAW  ", 6);
	wire_put_u8(w, 2);
	wire_put_u32(w, 0); // no RSDT
	wire_put_u32(w, RSDP_LEN);
	wire_put_u64(w, 0); // XSDT: patched
	wire_put_u32(w, 0); // checksum of everything
}

int acpi_build(uint8_t *buf, const struct acpi_config *cfg)
{
	struct wire_writer w = wire_writer_of(buf, VMM_ACPI_MAX);
	size_t dsdt, fadt, madt, xsdt;

	put_rsdp(&w);
	dsdt = put_dsdt(&w, cfg);
	fadt = put_fadt(&w, VMM_ACPI_BASE + dsdt);
	madt = put_madt(&w, cfg->vcpus);
	xsdt = table_open(&w, "XSDT", 1);
	wire_put_u64(&w, VMM_ACPI_BASE + fadt);
	wire_put_u64(&w, VMM_ACPI_BASE + madt);
	table_close(&w, xsdt);
	if (w.bad)
		return -E2BIG;
	wire_patch_u32(&w, 24, (uint32_t)(VMM_ACPI_BASE + xsdt));
	buf[8] = (uint8_t)-sum(buf, 20);
	buf[32] = (uint8_t)-sum(buf, RSDP_LEN);
	return (int)w.len;
}
