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
#   THAW_CLIENTS   AWS's clients (scripts/lib/test-clients)
#   THAW_BASES     base images of Dockerfiles (scripts/lib/test-bases)
#   THAW_WORK      an empty folder of its own, removed afterwards
#
# and has 600 s, or what a line "# timeout: SECONDS" in its head says. One whose
# "# Usage:" line names BUILD_DIR gets the folder above THAW_BIN as its argument.
# At the limit the test is red, and its output ends with the stacks of what hangs.
# After one that cannot be ended, the run ends too: no other test could be trusted.
# Output goes to RESULTS/test_NAME.out, the exit code to RESULTS/test_NAME.code,
# and a line for each test to standard output.
#
#   --limit SECONDS  each test has at least so long
#   --list     print the names of the tests and end
#   --shared   several of these run with the same RESULTS, in boxes of their own:
#              take only tests that no other one has taken; RESULTS/box-$THAW_BOX
#              names the one that is running (for scripts/lib/guest-boxes)
#   --close    run nothing: the tests that have no result are red, and say so
#   --tests DIR  the tests' folder (default: this one)
set -euo pipefail

HERE=$(cd "$(dirname "$0")" && pwd -P)

die()
{
	echo "run.sh: $*" >&2
	exit 2
}

at_least=0

# The seconds that a test says it may take.
says_limit()
{
	local limit

	limit=$(sed -n '1,40s/^# timeout: \([0-9]*\).*/\1/p' "$HERE/$1" | head -n 1)
	echo "${limit:-600}"
}

# The seconds a test has.
limit_of()
{
	local limit

	limit=$(says_limit "$1")
	echo $((limit > at_least ? limit : at_least))
}

# Those that may take longest come first, for the sake of --shared.
list_tests()
{
	local file

	for file in "$HERE"/test_*.sh "$HERE"/test_*.py; do
		[[ -x $file ]] || continue
		file=$(basename "$file")
		printf '%s %s\n' "$(says_limit "$file")" "$file"
	done | sort -k1,1nr -k2 | cut -d' ' -f2
}

# quickly SECONDS COMMAND…: runs it, but never waits longer, nor for one that
# cannot be killed. 124 if it did not end.
quickly()
{
	local secs=$1 pid

	shift
	"$@" &
	pid=$!
	if ended "$pid" "$secs"; then
		wait "$pid"
		return
	fi
	kill -KILL "$pid" 2>/dev/null || true
	return 124
}

# ended PID SECONDS: waits at most so long until the child is dead.
ended()
{
	local end=$((SECONDS + $2)) state

	while state=$(state_of "$1") && [[ $state != Z ]]; do
		((SECONDS < end)) || return 1
		sleep 0.2
	done
}

# The letter of a process's state. Of /proc/PID only files are read that take no
# lock of the process's memory: whoever hangs may hold it.
state_of()
{
	local stat

	read -r stat 2>/dev/null <"/proc/$1/stat" || return 1
	stat=${stat##*) }
	echo "${stat%% *}"
}

# shellcheck disable=SC2317 # called through quickly
# Every thread that the kernel does not let go of, and those of our own
# programs: what each waits for, with its stack where we may see that.
tell_stacks()
{
	local task name

	echo "# what is stuck, and what our own programs do:"
	for task in /proc/[0-9]*/task/[0-9]*; do
		name=$(cat "$task/comm" 2>/dev/null) || continue
		[[ $name == thaw* || $name == vcpu* || $name == python3 ||
			$(state_of "${task#/proc/}") == [DT] ]] || continue
		echo "# ${task#/proc/} $name:" \
			"$(state_of "${task#/proc/}" || true)" \
			"$(cat "$task/wchan" 2>/dev/null || true)"
		sed 's/^/#   /' "$task/stack" 2>/dev/null || true
	done
	[[ -n ${KVMBOX:-} ]] || return 0
	echo w >/proc/sysrq-trigger
	echo l >/proc/sysrq-trigger
	dmesg | tail -n 200 | sed 's/^/# kernel: /'
}

# Whatever a test left behind under its folder ends with it: thawd and its
# cells have the folder's path on their command line or as their state.
reap()
{
	local pid pids

	# Reading a command line takes the lock.
	pids=$(timeout --signal=KILL 120 pgrep -f -- "$THAW_WORK") || true
	for pid in $pids; do
		[[ $pid == "$$" ]] || kill -KILL "$pid" 2>/dev/null || true
	done
	for pid in $pids; do
		ended "$pid" 120 || {
			echo "# process $pid cannot be killed"
			return 1
		}
	done
}

# supervise PID SECONDS OUT: the exit code of the test; 124 if its time was up,
# 137 if it cannot even be killed.
supervise()
{
	local pid=$1 out=$3 code=0

	if ended "$pid" "$2"; then
		wait "$pid" || code=$?
		return "$code"
	fi
	{
		echo "not ok - timed out after $2 s"
		quickly 60 tell_stacks
	} >>"$out" 2>&1 || true
	kill -TERM -- "-$pid" 2>/dev/null || true
	ended "$pid" 10 || kill -KILL -- "-$pid" 2>/dev/null || true
	ended "$pid" 120 || return 137
	wait "$pid" || true
	return 124
}

run_test()
{
	local file=$1 name code=0 start=$SECONDS args=() out

	name=${file%.*}
	out=$results/$name.out
	! grep -q '^# Usage:.*BUILD_DIR' "$HERE/$file" || args=("$(dirname "$bin")")
	THAW_WORK=$(mktemp -d "$workroot/$name.XXXXXX")
	export THAW_WORK
	rm -f "$results/$name.code"
	set -m # a process group of its own
	(cd "$THAW_WORK" && exec "$HERE/$file" "${args[@]}") \
		>"$out" 2>&1 </dev/null &
	set +m
	test_pid=$!
	supervise "$test_pid" "$(limit_of "$file")" "$out" || code=$?
	test_pid=''
	if ((code == 137)) || ! reap >>"$out" || ! quickly 300 rm -rf "$THAW_WORK"
	then
		echo "not ok - it left what cannot be ended" >>"$out"
		wedged=1
		((code)) || code=125
	fi
	echo "$code" >"$results/$name.code"
	if ((code == 0)); then
		echo "# $name: ok, $((SECONDS - start)) s"
	else
		echo "# $name: FAILED ($code), $((SECONDS - start)) s"
		grep -E -A5 '^not ok' "$out" | head -n 40 || true
		grep -E '^# [0-9]+/task/[0-9]+ .*: D ' "$out" || true
		tail -n 15 "$out" | sed 's/^/#   /'
		failed=1
	fi
}

# What has no result is red.
close_tests()
{
	local file out

	for file; do
		out=$results/${file%.*}.out
		[[ ! -e ${out%.out}.code ]] || continue
		failed=1
		if [[ -e $out ]]; then
			echo "not ok - its machine ended before it" >>"$out"
		else
			echo "not ok - never run: no machine was left" >"$out"
		fi
		echo "# ${file%.*}: FAILED, $(tail -n 1 "$out" | cut -c10-)"
	done
}

main()
{
	local tests=() file close=

	bin='' boot='' results='' shared='' failed=0 wedged='' test_pid=''
	while (($#)); do
		case $1 in
		--bin) bin=${2:?} && shift ;;
		--boot) boot=${2:?} && shift ;;
		--results) results=${2:?} && shift ;;
		--limit)
			[[ ${2:-} =~ ^[0-9]{1,6}$ ]] ||
				die "--limit is a number of seconds, like 3600"
			at_least=$((10#$2)) && shift
			;;
		--shared) shared=$results/box-${THAW_BOX:-1} ;;
		--close) close=1 ;;
		--tests) HERE=$(cd "${2:?}" && pwd -P) && shift ;;
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
	[[ -d $results ]] || die "no folder for the results (--results)"
	((${#tests[@]})) || mapfile -t tests < <(list_tests)
	((${#tests[@]})) || die "there are no tests in $HERE"
	if [[ -n $close ]]; then
		close_tests "${tests[@]}"
		exit "$failed"
	fi
	[[ -x $bin/thawd ]] || die "no thawd in ${bin:-(--bin is missing)}"
	export THAW_BIN=$bin THAW_KERNEL=$boot/vmlinux THAW_INITRD=$boot/initramfs
	export PYTHONDONTWRITEBYTECODE=1
	# A tmpfs: state on the overlay of the box would lack what file systems
	# of real hosts have (O_TMPFILE).
	workroot=${THAW_TESTS_WORK:-/run/thaw-tests}
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP
	trap '[[ -z $test_pid ]] || kill -KILL -- "-$test_pid"' EXIT
	mkdir -p "$workroot"
	for file in "${tests[@]}"; do
		[[ -x $HERE/$file ]] || die "no test $HERE/$file"
		[[ -z $shared ]] || mkdir "$results/$file.taken" 2>/dev/null ||
			continue
		[[ -z $shared ]] || echo "$file" >"$shared"
		run_test "$file"
		[[ -z $shared ]] || rm "$shared"
		[[ -z $wedged ]] || {
			echo "# this machine is not fit for more tests"
			exit 1
		}
	done
	exit "$failed"
}

main "$@"
