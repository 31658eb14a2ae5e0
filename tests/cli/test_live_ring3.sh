#!/bin/bash
# The command line against a real thawd, with microVMs of the ring-3 test guest
# (they run at full speed on every KVM). TAP on stdout; root, /dev/kvm.
# usage: test_live_ring3.sh BIN-DIRECTORY
set -u
BIN=${1:?usage: test_live_ring3.sh BIN-DIRECTORY}
if [[ $(id -u) != 0 || ! -e /dev/kvm ]]; then
	echo "1..0 # SKIP needs root and /dev/kvm"
	exit 77
fi
work=$(mktemp -d /tmp/thaw-live-XXXXXX)
export THAW_SOCKET=$work/sock
log=$work/log
n=0
bad=0
daemon=

thaw()
{
	"$BIN/thaw" "$@"
}

ok() # STATUS TEXT
{
	n=$((n + 1))
	if [[ $1 == 0 ]]; then
		echo "ok $n - $2"
	else
		echo "not ok $n - $2"
		bad=1
		[[ ! -s $log ]] || tail -n 10 "$log" | sed 's/^/# /'
	fi
}

is() # GOT WANTED TEXT
{
	[[ $1 == "$2" ]]
	ok $? "$3"
	[[ $1 == "$2" ]] || printf '%s\n' "$1" | sed 's/^/# got: /'
}

# await COMMAND…: until it succeeds, however slow the machine; its status.
await()
{
	local end=$((SECONDS + 120))

	until "$@"; do
		((SECONDS < end)) || return 1
		sleep 0.1
	done
}

answers()
{
	thaw ps >/dev/null 2>&1
}

logs_have() # VM TEXT
{
	thaw logs "$1" >"$log" 2>&1
	grep -q "$2" "$log"
}

start()
{
	"$BIN/thawd" --state "$work/state" --socket "$THAW_SOCKET" \
		>>"$work/thawd.out" 2>&1 &
	daemon=$!
	await answers
}

finish()
{
	[[ -z $daemon ]] || kill "$daemon"
	wait
	rm -rf "$work"
	echo "1..$n"
	exit $bad
}
trap finish EXIT

thaw ps >"$log" 2>&1
is $? 125 "without thawd: exit code 125"
thaw doctor >"$log" 2>&1
grep -q kvm "$log"
ok $? "doctor works without thawd"
start
ok $? "thawd answers"
thaw doctor --json >"$log" 2>&1
jq -e '.checks | length > 5' "$log" >/dev/null
ok $? "doctor asks it"
is "$(thaw version | wc -l)" 2 "version shows both programs"

# --- images ------------------------------------------------------------------------

thaw build ring --kernel "$BIN/ring3.elf" --memory 64 --cmdline "fill 7; count 3" \
	-v >"$log" 2>&1
ok $? "build of a kernel without an agent"
grep -q "COUNT 3" "$log"
ok $? "build -v shows the guest's output"
(cd "$BIN" && thaw build ring --kernel ring3.elf --memory 64 --json) >"$log" 2>&1
is "$(tail -n 1 "$log" | jq -r .version)" 2.0 "a second version, by a relative path"
is "$(thaw images --no-header | awk '{print $1, $2}')" "ring 2.0" "images"
thaw build bad --kernel /no/such/kernel --memory 64 >"$log" 2>&1
[[ $? == 1 || $? == 3 ]]
ok $? "a kernel that is not there fails the build"
thaw build 'bad name' --kernel "$BIN/ring3.elf" >"$log" 2>&1
is $? 1 "a bad name is refused"
thaw build bad --kernel "$BIN/ring3.elf" --memory 64 --cmdline "crash" \
	>"$log" 2>&1
is $? 1 "a guest that crashes fails the build"
is "$(thaw images -q)" ring "and leaves no image"
printf 'not a kernel' >"$work/text"
thaw build bad --kernel "$work/text" --memory 64 >"$log" 2>&1
is $? 1 "what is no kernel fails the build"

# --- microVMs ----------------------------------------------------------------------

id=$(thaw run ring --version 1.0 --name one -l tier=a --payload $'check 7\n' --wait)
[[ $id == microvm-* ]]
ok $? "run prints an id"
is "$(thaw ps -q)" "$id" "ps -q"
is "$(thaw ps --no-header | awk '{print $2, $3, $4, $NF}')" \
	"one ring RUNNING tier=a" "ps"
await logs_have one "GOOD 12288"
ok $? "every page of the copy is right, and logs show it"
is "$(thaw logs --tail 1 one | wc -l)" 1 "logs --tail"
is "$(thaw inspect one | jq -r .microvmId)" "$id" "inspect by name"
is "$(thaw inspect "${id:8:6}" | jq -r .state)" RUNNING "inspect by a prefix"
is "$(thaw inspect ring | jq -r '.versions | length')" 2 "inspect of an image"
thaw run ring --name one >"$log" 2>&1
is $? 4 "a name is used once: exit code 4"
thaw exec one ls >"$log" 2>&1
[[ $? != 0 ]] && grep -q agent "$log"
ok $? "exec says that this guest has no agent"
thaw wait one SUSPENDED --timeout 1 >"$log" 2>&1
is $? 1 "wait gives up"
(sleep 0.5; thaw suspend one) >/dev/null 2>&1 &
thaw wait one SUSPENDED >"$log" 2>&1
ok $? "wait sees a suspend that another asked for"
wait %2 2>/dev/null
is "$(thaw ps --no-header | awk '{print $4}')" SUSPENDED "and ps shows it"
thaw rm one two >"$log" 2>&1
is $? 3 "rm of two, one unknown: exit code 3"
is "$(thaw ps -q)" "" "the suspended one is removed"

ids=$(thaw run ring --count 4)
is "$(wc -w <<<"$ids")" 4 "run --count"
thaw rm $ids >"$log" 2>&1
is $? 4 "rm spares running ones: exit code 4"
thaw rmi ring >"$log" 2>&1
is $? 4 "an image in use stays: exit code 4"
set -- $ids
thaw suspend "$1" "$2" >"$log" 2>&1
ok $? "suspend of several"
is "$(thaw ps -q -f state=suspended | wc -l)" 2 "ps filters by state"
kill "$daemon"
wait "$daemon" 2>/dev/null
start
ok $? "thawd starts again"
is "$(thaw ps --no-header | awk '{print $3}' | sort -u)" SUSPENDED \
	"the suspended ones survive that"
thaw resume "$1" "$2" >"$log" 2>&1
ok $? "and resume"
thaw resume "$1" >"$log" 2>&1
rc=$?
[[ $rc == 0 || $rc == 4 ]]
ok $? "resume of a running one is said so, or nothing"
thaw events --json >"$log" 2>&1
jq -es '[.[] | select(.id == "'"$1"'") | .to] | index("RUNNING")' "$log" >/dev/null
ok $? "events have its history"
cursor=$(jq -rs '.[-1].cursor' "$log")
thaw rm -f "$1" "$2" >/dev/null
thaw events --since "$cursor" >"$log" 2>&1
[[ $(grep -c TERMINATED "$log") == 2 ]] && ! grep -q "PENDING" "$log"
ok $? "events --since goes on after a cursor"
"$BIN/thaw" events -f --since "$cursor" --json >"$work/follow" 2>&1 &
follower=$!
thaw run ring --name late >/dev/null
await grep -q late "$work/follow"
ok $? "events -f follows"
kill "$follower"
wait "$follower" 2>/dev/null
is "$(thaw stats | grep -c '^host.memory')" 5 "stats"
thaw rm -f late >"$log" 2>&1
thaw rmi ring >"$log" 2>&1
ok $? "rmi"
is "$(thaw images -q)$(thaw ps -q)" "" "nothing is left"
