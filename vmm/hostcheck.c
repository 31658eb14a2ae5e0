// Can this processor be what a saved guest believes it to be? Compares feature
// bits of CPUID, and names those that are missing.
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "vmm_internal.h"

enum reg { EAX, EBX, ECX, EDX };

// The words of CPUID in which a set bit is a promise. `dynamic` bits follow the
// guest's control registers and are not compared.
static const struct {
	uint32_t fn, index;
	enum reg reg;
	uint32_t dynamic;
} words[] = {
    {1, 0, ECX, 1u << 27},
    {1, 0, EDX, 1u << 9},
    {6, 0, EAX, 0},
    {7, 0, EBX, 0},
    {7, 0, ECX, 1u << 4},
    {7, 0, EDX, 0},
    {7, 1, EAX, 0},
    {7, 1, EBX, 0},
    {7, 1, EDX, 0},
    {7, 2, EDX, 0},
    {0xd, 0, EAX, 0},
    {0xd, 0, EDX, 0},
    {0xd, 1, EAX, 0},
    {0xd, 1, ECX, 0},
    {0x40000001, 0, EAX, 0},
    {0x80000001, 0, ECX, 0},
    {0x80000001, 0, EDX, 1u << 9},
    {0x80000007, 0, EDX, 0},
    {0x80000008, 0, EBX, 0},
    {0x80000021, 0, EAX, 0},
};

static const struct {
	uint32_t fn, index;
	enum reg reg;
	unsigned bit;
	const char *name;
} names[] = {
    {1, 0, ECX, 0, "sse3"},
    {1, 0, ECX, 1, "pclmulqdq"},
    {1, 0, ECX, 9, "ssse3"},
    {1, 0, ECX, 12, "fma"},
    {1, 0, ECX, 13, "cx16"},
    {1, 0, ECX, 17, "pcid"},
    {1, 0, ECX, 19, "sse4_1"},
    {1, 0, ECX, 20, "sse4_2"},
    {1, 0, ECX, 21, "x2apic"},
    {1, 0, ECX, 22, "movbe"},
    {1, 0, ECX, 23, "popcnt"},
    {1, 0, ECX, 24, "tsc_deadline_timer"},
    {1, 0, ECX, 25, "aes"},
    {1, 0, ECX, 26, "xsave"},
    {1, 0, ECX, 28, "avx"},
    {1, 0, ECX, 29, "f16c"},
    {1, 0, ECX, 30, "rdrand"},
    {7, 0, EBX, 0, "fsgsbase"},
    {7, 0, EBX, 3, "bmi1"},
    {7, 0, EBX, 5, "avx2"},
    {7, 0, EBX, 7, "smep"},
    {7, 0, EBX, 8, "bmi2"},
    {7, 0, EBX, 9, "erms"},
    {7, 0, EBX, 10, "invpcid"},
    {7, 0, EBX, 16, "avx512f"},
    {7, 0, EBX, 17, "avx512dq"},
    {7, 0, EBX, 18, "rdseed"},
    {7, 0, EBX, 19, "adx"},
    {7, 0, EBX, 20, "smap"},
    {7, 0, EBX, 21, "avx512ifma"},
    {7, 0, EBX, 23, "clflushopt"},
    {7, 0, EBX, 24, "clwb"},
    {7, 0, EBX, 28, "avx512cd"},
    {7, 0, EBX, 29, "sha_ni"},
    {7, 0, EBX, 30, "avx512bw"},
    {7, 0, EBX, 31, "avx512vl"},
    {7, 0, ECX, 1, "avx512vbmi"},
    {7, 0, ECX, 2, "umip"},
    {7, 0, ECX, 3, "pku"},
    {7, 0, ECX, 6, "avx512_vbmi2"},
    {7, 0, ECX, 8, "gfni"},
    {7, 0, ECX, 9, "vaes"},
    {7, 0, ECX, 10, "vpclmulqdq"},
    {7, 0, ECX, 11, "avx512_vnni"},
    {7, 0, ECX, 12, "avx512_bitalg"},
    {7, 0, ECX, 14, "avx512_vpopcntdq"},
    {7, 0, ECX, 16, "la57"},
    {7, 0, ECX, 22, "rdpid"},
    {7, 0, EDX, 4, "fsrm"},
    {7, 0, EDX, 10, "md_clear"},
    {7, 0, EDX, 22, "amx_bf16"},
    {7, 0, EDX, 23, "avx512_fp16"},
    {7, 0, EDX, 24, "amx_tile"},
    {7, 0, EDX, 25, "amx_int8"},
    {7, 0, EDX, 26, "spec_ctrl"},
    {7, 0, EDX, 27, "stibp"},
    {7, 0, EDX, 29, "arch_capabilities"},
    {7, 0, EDX, 31, "ssbd"},
    {7, 1, EAX, 4, "avx_vnni"},
    {7, 1, EAX, 5, "avx512_bf16"},
    {0xd, 1, EAX, 0, "xsaveopt"},
    {0xd, 1, EAX, 1, "xsavec"},
    {0xd, 1, EAX, 3, "xsaves"},
    {0x80000001, 0, ECX, 5, "lzcnt"},
    {0x80000001, 0, ECX, 6, "sse4a"},
    {0x80000001, 0, ECX, 11, "xop"},
    {0x80000001, 0, ECX, 16, "fma4"},
    {0x80000001, 0, EDX, 20, "nx"},
    {0x80000001, 0, EDX, 26, "1gb_pages"},
    {0x80000001, 0, EDX, 27, "rdtscp"},
    {0x80000001, 0, EDX, 29, "long_mode"},
    {0x80000008, 0, EBX, 0, "clzero"},
    {0x80000008, 0, EBX, 12, "ibpb"},
    {0x40000001, 0, EAX, 3, "kvmclock"},
};

static uint32_t get(const struct cpuid_table *t, uint32_t fn, uint32_t index,
		    enum reg reg)
{
	const struct kvm_cpuid_entry2 *c = cpuid_find(t, fn, index);

	if (!c)
		return 0;
	switch (reg) {
	case EAX:
		return c->eax;
	case EBX:
		return c->ebx;
	case ECX:
		return c->ecx;
	default:
		return c->edx;
	}
}

static void append_name(char *buf, size_t cap, unsigned w, unsigned bit)
{
	static const char *const regs[] = {"eax", "ebx", "ecx", "edx"};
	size_t n = strlen(buf);

	for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
		if (names[i].fn != words[w].fn ||
		    names[i].index != words[w].index ||
		    names[i].reg != words[w].reg || names[i].bit != bit)
			continue;
		snprintf(buf + n, cap - n, "%s%s", n ? ", " : "",
			 names[i].name);
		return;
	}
	snprintf(buf + n, cap - n, "%scpuid %#x.%u %s bit %u", n ? ", " : "",
		 words[w].fn, words[w].index, regs[words[w].reg], bit);
}

int hostcheck_compare(const struct cpuid_table *need,
		      const struct cpuid_table *have, struct err *e)
{
	char missing[256] = "";

	for (enum reg r = EBX; r <= EDX; r++)
		if (get(need, 0, 0, r) != get(have, 0, 0, r))
			return err_set(e, -ENODEV,
				       "the state was saved on a processor of "
				       "another vendor");
	for (unsigned w = 0; w < ARRAY_SIZE(words); w++) {
		uint32_t lack =
		    get(need, words[w].fn, words[w].index, words[w].reg) &
		    ~get(have, words[w].fn, words[w].index, words[w].reg) &
		    ~words[w].dynamic;

		for (unsigned bit = 0; bit < 32; bit++)
			if (lack & 1u << bit)
				append_name(missing, sizeof(missing), w, bit);
	}
	if (missing[0])
		return err_set(e, -ENODEV,
			       "this host lacks processor features that the "
			       "guest was saved with: %s",
			       missing);
	return 0;
}
