// Freeze and thaw through real cells: what one clone writes, no other sees.
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <string.h>

#include "cell_rig.h"

TestSuite(cell_thaw, .timeout = 240);

static struct rig rig;

ParameterizedTestParameters(cell_thaw, clones)
{
	static unsigned vcpus[] = {1, 2, 4};

	return cr_make_param_array(unsigned, vcpus, ARRAY_SIZE(vcpus));
}

ParameterizedTest(unsigned *vcpus, cell_thaw, clones)
{
	static struct rig_vm vm[3];
	struct pgc_id img;

	if (!rig_usable())
		cr_skip_test("needs root, /dev/kvm and /dev/userfaultfd");
	rig_open(&rig, NULL);
	rig_image(&rig, &img, 64, *vcpus, "fill 7 16M 16M;fill 9 40M 1M");
	for (int i = 0; i < 3; i++) {
		rig_thaw(&rig, &vm[i], &img, NULL);
		cr_assert(!vm[i].gone, "%s", vm[i].detail);
		cr_assert_str_eq(rig_cmd(&vm[i], "check 7 16M 16M"),
				 "GOOD 4096");
		cr_assert_str_eq(rig_cmd(&vm[i], "check 9 40M 1M"), "GOOD 256");
		cr_assert_str_eq(rig_cmd(&vm[i], "iszero 41M 8M"), "ZERO");
	}
	// One writes over everything; the others, and a new one, see nothing.
	cr_assert_str_eq(rig_cmd(&vm[1], "fill 8 16M 32M"), "FILLED 8192");
	cr_assert_str_eq(rig_cmd(&vm[1], "check 8 16M 32M"), "GOOD 8192");
	cr_assert_str_eq(rig_cmd(&vm[0], "check 7 16M 16M"), "GOOD 4096");
	rig_kill(&vm[2]);
	rig_thaw(&rig, &vm[2], &img, NULL);
	cr_assert_str_eq(rig_cmd(&vm[2], "check 7 16M 16M"), "GOOD 4096");
	cr_assert_str_eq(rig_cmd(&vm[2], "iszero 41M 8M"), "ZERO");
	for (int i = 0; i < 3; i++) {
		rig_kill(&vm[i]);
		cr_assert_eq(vm[i].why, ENG_END_KILLED);
	}
	rig_close(&rig);
}
