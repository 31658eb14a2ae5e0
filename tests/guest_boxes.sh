#!/bin/bash
# What becomes of the tests with real guests when the machine under them stops:
# that machine is replaced, and the test that it had in hand runs again, twice in
# all; a red test never does; each test ends with a result. Prints TAP.
set -u
ROOT=$(cd "$(dirname "$0")/.." && pwd -P)
dir=$(mktemp -d) || exit 1
trap 'rm -rf "${dir:?}"' EXIT
n=0 bad=0

ok() # CONDITION-STATUS TEXT
{
	n=$((n + 1))
	if [[ $1 == 0 ]]; then
		echo "ok $n - $2"
	else
		echo "not ok $n - $2"
		bad=1
		sed 's/^/# /' "$dir/log"
	fi
}

# has_run NAME TIMES
has_run()
{
	[[ $({ wc -l <"$dir/ran-$1"; } 2>/dev/null || echo 0) == "$2" ]]
	ok $? "$what: test_$1 ran $2 times"
}

# code NAME WANT: the result; none if WANT is empty.
code()
{
	[[ $(cat "$dir/results/test_$1.code" 2>/dev/null) == "$2" ]]
	ok $? "$what: test_$1 ended with ${2:-no code}"
}

says() # TEXT
{
	grep -qF -- "$1" "$dir/log"
	ok $? "$what: \"$1\""
}

# add NAME [LINE…]: a test of that name, and what it does before it is green.
add()
{
	{
		printf '#!/bin/bash\necho >>%q\n' "$dir/ran-$1"
		printf '%s\n' "${@:2}" 'echo "ok 1 - fine"' 'echo 1..1'
	} >"$dir/tests/test_$1.sh"
	chmod +x "$dir/tests/test_$1.sh"
}

# suite BOXES: runs all that was added; its output in $dir/log.
suite()
{
	local run=("$ROOT/tests/guest/run.sh" --tests "$dir/tests"
		--results "$dir/results")

	rm -rf "${dir:?}/results" "$dir"/ran-*
	mkdir "$dir/results"
	{
		"$ROOT/scripts/lib/guest-boxes" "$1" "$dir/results" \
			"$dir/box" "${run[@]}" --bin "$dir/bin" \
			--boot "$dir/boot" --shared
		"${run[@]}" --close
		"$ROOT/scripts/lib/count_tests.py" --tap "$dir/results"
	} >"$dir/log" 2>&1
	counted=$?
}

mkdir "$dir"/{bin,boot,tests}
printf '#!/bin/sh\n' >"$dir/bin/thawd"
# A machine whose emulator can be killed: the run script, and so the test in it.
cat >"$dir/box" <<'EOF'
#!/bin/bash
cd "$(dirname "$0")" || exit 125
THAW_TESTS_WORK=$PWD/work setsid "$@" &
echo $! >"pid-$THAW_BOX"
wait $!
code=$?
((code < 128)) || exit 123
exit $code
EOF
chmod +x "$dir/box" "$dir/bin/thawd"
# What a test does to stop its machine.
die="kill -KILL \$(cat $dir/pid-\$THAW_BOX); sleep 1; exit 1"
once="[[ \$(wc -l <$dir/ran-dies) != 1 ]] || { $die; }"

add before
add dies "$once"
add red 'echo "not ok 1 - red"; exit 1'
add zlast
for boxes in 1 2; do
	what="stops once, of $boxes"
	suite "$boxes"
	says "the emulated machine stopped in test_dies.sh; again in a new one"
	has_run dies 2
	code dies 0
	has_run red 1
	code red 1
	has_run before 1
	has_run zlast 1
	code zlast 0
	[[ $counted == 1 ]]
	ok $? "$what: the red one counts"
done

what="stops while red"
add dies 'echo "not ok 1 - already"' "$die"
rm "$dir/tests/test_red.sh"
suite 1
has_run dies 1
has_run zlast 1
says "red already, and not run again"
[[ $counted == 1 ]]
ok $? "$what: it is red"

what="stops always"
add dies "$die"
suite 1
has_run dies 3
code dies ""
says "not again, after two others"
has_run zlast 0
says "zlast: FAILED"
says "dies: FAILED"
[[ $counted == 1 && $(tail -n 1 "$dir/log") == "1 passed, "[2-9]* ]]
ok $? "$what: both count"

what="all green"
add dies
suite 2
has_run dies 1
[[ $counted == 0 ]]
ok $? "$what: nothing is red"
echo "1..$n"
exit $bad
