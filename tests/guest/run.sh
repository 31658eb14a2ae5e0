#!/bin/bash
# Usage: tests/guest/run.sh --bin DIR --boot DIR --results DIR [NAME…]
#
# Runs the tests with real Linux guests, here and now: on a host whose KVM
# boots stock kernels, or inside scripts/kvmbox (scripts/test decides). Each
# test is an executable tests/guest/test_NAME.sh or .py that prints TAP. It
# finds in its environment
#
#   THAW_BIN       the folder of thawd, thaw and the rest
#   THAW_KERNEL    the guests' kernel, THAW_INITRD their initramfs
#   THAW_ROOTFS    a tar of a Debian root file system with Flask
#   THAW_ROOTFS_NUMPY  one with numpy (scripts/rootfs --packages python3-numpy)
#   THAW_WORK      an empty folder of its own, removed afterwards
#
# and has 600 s, or what a line "# timeout: SECONDS" in its head says. One whose
# "# Usage:" line names BUILD_DIR gets the folder above THAW_BIN as its argument.
# Output goes to RESULTS/test_NAME.out, the exit code to RESULTS/test_NAME.code,
# and a line for each test to standard output.
#
#   --list     print the names of the tests and end
#   --shared   several of these run with the same RESULTS, in boxes of their own:
#              take only tests that no other one has taken
set -euo pipefail

HERE=$(cd "$(dirname "$0")" && pwd -P)

die()
{
	echo "run.sh: $*" >&2
	exit 2
}

# The seconds a test has.
limit_of()
{
	local limit

	limit=$(sed -n '1,40s/^# timeout: \([0-9]*\).*/\1/p' "$HERE/$1" | head -n 1)
	echo "${limit:-600}"
}

# Those that may take longest come first, for the sake of --shared.
list_tests()
{
	local file

	for file in "$HERE"/test_*.sh "$HERE"/test_*.py; do
		[[ -x $file ]] || continue
		file=$(basename "$file")
		printf '%s %s\n' "$(limit_of "$file")" "$file"
	done | sort -k1,1nr -k2 | cut -d' ' -f2
}

# Whatever a test left behind under its folder ends with it: thawd and its
# cells have the folder's path on their command line or as their state.
reap()
{
	local pid

	for pid in $(pgrep -f -- "$THAW_WORK" || true); do
		[[ $pid == "$$" ]] || kill -KILL "$pid" 2>/dev/null || true
	done
}

run_test()
{
	local file=$1 name code=0 start=$SECONDS args=()

	name=${file%.*}
	! grep -q '^# Usage:.*BUILD_DIR' "$HERE/$file" || args=("$(dirname "$bin")")
	THAW_WORK=$(mktemp -d "$workroot/$name.XXXXXX")
	export THAW_WORK
	rm -f "$results/$name.code"
	(cd "$THAW_WORK" && exec timeout --kill-after=10 \
		"$(limit_of "$file")" "$HERE/$file" "${args[@]}") \
		>"$results/$name.out" 2>&1 </dev/null || code=$?
	((code != 124)) || echo "# timed out" >>"$results/$name.out"
	echo "$code" >"$results/$name.code"
	reap
	rm -rf "$THAW_WORK"
	if ((code == 0)); then
		echo "# $name: ok, $((SECONDS - start)) s"
	else
		echo "# $name: FAILED ($code), $((SECONDS - start)) s"
		grep -E -A5 '^not ok' "$results/$name.out" | head -n 40 || true
		tail -n 15 "$results/$name.out" | sed 's/^/#   /'
		failed=1
	fi
}

main()
{
	local tests=() file

	bin='' boot='' results='' shared='' failed=0
	while (($#)); do
		case $1 in
		--bin) bin=${2:?} && shift ;;
		--boot) boot=${2:?} && shift ;;
		--results) results=${2:?} && shift ;;
		--shared) shared=1 ;;
		--list)
			list_tests
			exit 0
			;;
		--help | -h)
			sed -n '2,/^[^#]/{/^#/!d;s/^# \{0,1\}//;p}' "$0"
			exit 0
			;;
		-*) die "unknown option $1 (see --help)" ;;
		*) tests+=("$1") ;;
		esac
		shift
	done
	[[ -x $bin/thawd ]] || die "no thawd in ${bin:-(--bin is missing)}"
	[[ -d $results ]] || die "no folder for the results (--results)"
	((${#tests[@]})) || mapfile -t tests < <(list_tests)
	((${#tests[@]})) || die "there are no tests in $HERE"
	export THAW_BIN=$bin THAW_KERNEL=$boot/vmlinux THAW_INITRD=$boot/initramfs
	export PYTHONDONTWRITEBYTECODE=1
	# A tmpfs: state on the overlay of the box would lack what file systems
	# of real hosts have (O_TMPFILE).
	workroot=/run/thaw-tests
	mkdir -p "$workroot"
	for file in "${tests[@]}"; do
		[[ -x $HERE/$file ]] || die "no test $HERE/$file"
		[[ -z $shared ]] || mkdir "$results/$file.taken" 2>/dev/null ||
			continue
		run_test "$file"
	done
	exit "$failed"
}

main "$@"
