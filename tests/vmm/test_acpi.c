// The ACPI tables: checksums, lengths, links, contents; and what iasl thinks.
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "vmm_internal.h"

static uint8_t buf[VMM_ACPI_MAX];
static int len;

static void build(unsigned vcpus, bool disk)
{
	struct acpi_config cfg = {.vcpus = vcpus, .vio = {disk, true, true}};

	memset(buf, 0, sizeof(buf));
	len = acpi_build(buf, &cfg);
	cr_assert_gt(len, 0);
}

static uint8_t sum(const uint8_t *p, size_t n)
{
	uint8_t s = 0;

	while (n--)
		s = (uint8_t)(s + *p++);
	return s;
}

static uint32_t get32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, 4);
	return v;
}

static uint64_t get64(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, 8);
	return v;
}

// A table by its guest-physical address, with everything all tables share.
static const uint8_t *table(uint64_t gpa, const char *sig)
{
	const uint8_t *t = buf + (gpa - VMM_ACPI_BASE);
	uint32_t n;

	cr_assert(gpa >= VMM_ACPI_BASE && gpa < VMM_ACPI_BASE + (unsigned)len,
		  "%s at %#llx", sig, (unsigned long long)gpa);
	n = get32(t + 4);
	cr_assert_arr_eq(t, sig, 4);
	cr_assert_leq(gpa - VMM_ACPI_BASE + n, (unsigned)len);
	cr_assert_eq(sum(t, n), 0, "%s: checksum", sig);
	cr_assert_eq(gpa % 16, 0);
	return t;
}

static const uint8_t *xsdt_entry(unsigned i)
{
	const uint8_t *x = table(get64(buf + 24), "XSDT");
	const char *sig[] = {"FACP", "APIC"};

	cr_assert_eq(get32(x + 4), 36 + 2 * 8);
	return table(get64(x + 36 + 8 * i), sig[i]);
}

Test(acpi, rsdp)
{
	build(1, true);
	cr_assert_arr_eq(buf, "RSD PTR ", 8);
	cr_assert_eq(buf[15], 2);
	cr_assert_eq(sum(buf, 20), 0);
	cr_assert_eq(sum(buf, 36), 0);
	cr_assert_eq(get32(buf + 20), 36);
}

Test(acpi, fadt_is_hardware_reduced)
{
	const uint8_t *f, *dsdt;

	build(2, true);
	f = xsdt_entry(0);
	cr_assert_eq(get32(f + 4), 276);
	cr_assert_eq(f[8], 6);
	cr_assert(get32(f + 112) & 1u << 20);
	cr_assert(get32(f + 112) & 1u << 10);
	// Reset, sleep control and sleep status registers: bytes in I/O space.
	cr_assert_arr_eq(f + 116, "\1\10\0\1", 4);
	cr_assert_eq(get64(f + 120), VMM_PORT_RESET);
	cr_assert_eq(f[128], VMM_RESET_VALUE);
	cr_assert_eq(get64(f + 248), VMM_PORT_SLEEP);
	cr_assert_eq(get64(f + 260), VMM_PORT_SLEEP + 1);
	// No 8042, no CMOS clock, no VGA.
	cr_assert_eq(f[109], 0x34);
	dsdt = table(get64(f + 140), "DSDT");
	cr_assert_eq(get32(f + 40), get64(f + 140));
	cr_assert_geq(dsdt[8], 2); // 64-bit integers
}

Test(acpi, madt_lists_every_cpu)
{
	for (unsigned n = 1; n <= VMM_MAX_VCPUS; n++) {
		const uint8_t *m, *p, *end;
		unsigned cpus = 0, ioapics = 0;

		build(n, false);
		m = xsdt_entry(1);
		cr_assert_eq(get32(m + 36), VMM_LAPIC_BASE);
		cr_assert_eq(get32(m + 40), 0);
		end = m + get32(m + 4);
		for (p = m + 44; p < end; p += p[1]) {
			cr_assert_geq(p[1], 2);
			if (p[0] == 0) {
				cr_assert_eq(p[3], cpus);
				cr_assert_eq(get32(p + 4), 1);
				cpus++;
			} else if (p[0] == 1) {
				cr_assert_eq(get32(p + 4), VMM_IOAPIC_BASE);
				cr_assert_eq(get32(p + 8), 0);
				ioapics++;
			}
		}
		cr_assert_eq(p, end);
		cr_assert_eq(cpus, n);
		cr_assert_eq(ioapics, 1);
	}
}

static unsigned count(const uint8_t *p, size_t n, const char *what)
{
	size_t w = strlen(what);
	unsigned hits = 0;

	for (size_t i = 0; i + w <= n; i++)
		hits += memcmp(p + i, what, w) == 0;
	return hits;
}

Test(acpi, dsdt_devices)
{
	for (int disk = 0; disk <= 1; disk++) {
		const uint8_t *d;
		uint32_t n;

		build(1, disk);
		d = table(get64(xsdt_entry(0) + 140), "DSDT");
		n = get32(d + 4);
		cr_assert_eq(count(d, n, "LNRO0005"), disk ? 3 : 2);
		cr_assert_eq(count(d, n, "\x41\xd0\x05\x01"), 1); // PNP0501
		cr_assert_eq(count(d, n, "VM_Gen_Counter"), 2);
		cr_assert_eq(count(d, n, "ACPI0013"), 1);
	}
}

// iasl reads the DSDT back: our encoding against somebody else's parser.
Test(acpi, iasl_agrees)
{
	char dir[] = "/tmp/acpi-XXXXXX", cmd[256], path[64], text[16384];
	static const char *const want[] = {
	    "Device (COM1)",
	    "EisaId (\"PNP0501\")",
	    "IO (Decode16,",
	    "Memory32Fixed (ReadWrite,",
	    "0xD0002000,",
	    "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive",
	    "OperationRegion (VGRG, SystemIO, 0x00000604, 0x04)",
	    "Method (ADDR, 0, Serialized)",
	    "Method (_EVT, 1, Serialized)",
	    "Notify (VGEN, 0x80)",
	    "Name (\\_S5, Package (0x02)",
	};
	const uint8_t *d;
	FILE *f;
	size_t n;

	if (system("command -v iasl >/dev/null") != 0)
		cr_skip_test("no iasl");
	build(2, true);
	d = table(get64(xsdt_entry(0) + 140), "DSDT");
	cr_assert_not_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/dsdt.dat", dir);
	f = fopen(path, "w");
	cr_assert_not_null(f);
	fwrite(d, get32(d + 4), 1, f);
	fclose(f);
	snprintf(cmd, sizeof(cmd), "cd %s && iasl -d dsdt.dat >log 2>&1", dir);
	cr_assert_eq(system(cmd), 0);
	snprintf(path, sizeof(path), "%s/dsdt.dsl", dir);
	f = fopen(path, "r");
	cr_assert_not_null(f);
	n = fread(text, 1, sizeof(text) - 1, f);
	text[n] = '\0';
	fclose(f);
	for (unsigned i = 0; i < ARRAY_SIZE(want); i++)
		cr_expect_not_null(strstr(text, want[i]), "%s", want[i]);
	// And it compiles again, without an error but for the hardware id that
	// Linux's VMGENID driver looks for, which is not of ACPI's form.
	snprintf(cmd, sizeof(cmd),
		 "cd %s && sed -i s/VMGENCTR/THAW0001/ dsdt.dsl && "
		 "iasl dsdt.dsl >log 2>&1",
		 dir);
	cr_expect_eq(system(cmd), 0);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	cr_assert_eq(system(cmd), 0);
}
