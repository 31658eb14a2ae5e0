// Freeze and thaw through real cells: what one clone writes, no other sees.
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <stdio.h>
#include <string.h>

#include "cell_rig.h"

TestSuite(cell_thaw, .timeout = 300);

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

static bool says_after(void *arg)
{
	struct rig_vm *v = arg;

	return v->gone || strstr(v->text, "after\n"); // whole
}

// However soon it is captured once it rang: what follows is for copies to do, and
// every copy does it.
Test(cell_thaw, what_follows_freeze_is_what_copies_begin_with)
{
	static struct rig_vm vm;
	struct pgc_id img;

	rig_open(&rig, NULL);
	for (int i = 0; i < 8; i++) {
		rig_boot(&rig, &vm, 64, 1, "fill 7 16M 64K;freeze;echo after");
		cr_assert_eq(rig_capture(&vm, &img, true, false), 0, "%s",
			     vm.capture_why);
		cr_assert(!strstr(vm.text, "after"), "it went on by itself");
		for (int k = 0; k < 2; k++) {
			rig_thaw(&rig, &vm, &img, NULL);
			cr_assert(rig_until(&rig, says_after, &vm, RIG_MS),
				  "copy %d of image %d waits in its freeze", k,
				  i);
			cr_assert(!vm.gone, "%s", vm.detail);
			cr_assert_str_eq(rig_cmd(&vm, "check 7 16M 64K"),
					 "GOOD 16");
			rig_kill(&vm);
		}
	}
	rig_close(&rig);
}

// All asked for in one turn, without a shell, on a cold template.
Test(cell_thaw, many_at_once)
{
	enum { N = 40 };
	struct rig_opts o = {.max_cells = N + 1};
	struct rig_vm *many = calloc(N, sizeof(*many));
	struct eng_thaw_req req = {.t0 = 1};
	struct pgc_id img;

	rig_open(&rig, &o);
	rig_image(&rig, &img, 64, 1, "fill 7 16M 4M");
	req.base = img;
	for (int i = 0; i < N; i++)
		rig_launch(&rig, &many[i], &req);
	for (int i = 0; i < N; i++) {
		cr_assert(rig_until(&rig, rig_is_started, &many[i], RIG_MS));
		cr_assert(!many[i].gone, "%d: %s", i, many[i].detail);
	}
	for (int i = 0; i < N; i++) {
		cr_assert_str_eq(rig_cmd(&many[i], "fill %d 18M 64K", i),
				 "FILLED 16");
		cr_assert_str_eq(rig_cmd(&many[i], "check 7 16M 2M"),
				 "GOOD 512");
	}
	for (int i = 0; i < N; i++) {
		char want[64];

		snprintf(want, sizeof(want), "check %d 18M 64K", i);
		cr_assert_str_eq(rig_cmd(&many[i], "%s", want), "GOOD 16");
		eng_cell_kill(many[i].cell);
	}
	for (int i = 0; i < N; i++)
		cr_assert(rig_until(&rig, rig_is_gone, &many[i], RIG_MS));
	rig_close(&rig);
	free(many);
}

// More memory than fits below the 32-bit hole.
Test(cell_thaw, five_gigabytes)
{
	static struct rig_vm big;
	struct pgc_id img, own;

	rig_open(&rig, NULL);
	rig_image(&rig, &img, 5120, 2, "fill 7 16M 1M;fill 8 2900M 1M");
	rig_thaw(&rig, &big, &img, NULL);
	cr_assert(!big.gone, "%s", big.detail);
	cr_assert_str_eq(rig_cmd(&big, "check 8 2900M 1M"), "GOOD 256");
	cr_assert_str_eq(rig_cmd(&big, "fill 9 2000M 2M"), "FILLED 512");
	cr_assert_eq(rig_capture(&big, &own, false, false), 0, "%s",
		     big.capture_why);
	rig_thaw(&rig, &big, &img, &own);
	cr_assert_str_eq(rig_cmd(&big, "check 7 16M 1M"), "GOOD 256");
	cr_assert_str_eq(rig_cmd(&big, "check 9 2000M 2M"), "GOOD 512");
	cr_assert_str_eq(rig_cmd(&big, "iszero 1000M 8M"), "ZERO");
	rig_kill(&big);
	rig_close(&rig);
}
