# shellcheck shell=bash
# What the demos share: a thawd of their own, from its start to its end. Source it;
# then set DEMO_NAME (for messages), demo_start (now_ms) and forwards (an array of
# processes to end), and trap cleanup EXIT.

DEMO_NAME=demo
demo_start=0
forwards=()
scratch='' # a folder to remove at the end

now_ms()
{
	local t=${EPOCHREALTIME/[.,]/}

	echo "${t%???}"
}

die()
{
	echo "$DEMO_NAME: FAILED: $*" >&2
	exit 1
}

# step TEXT: a line with the time since the start.
step()
{
	local t=$(($(now_ms) - demo_start))

	printf '[%4d.%01d s] %s\n' $((t / 1000)) $((t % 1000 / 100)) "$*"
}

debug()
{
	[[ -z ${DEMO_DEBUG:-} ]] || step "   $*"
}

thaw()
{
	"$THAW_BIN/thaw" "$@"
}

# start_thawd [ARGUMENT…]: with these besides; sets state, thawd and watchdog.
# shellcheck disable=SC2120 # one demo has no more to say
start_thawd()
{
	local n

	state=$(mktemp -d "${DEMO_STATE:-/var/lib}/thaw-demo.XXXXXX")
	export THAW_SOCKET=$state/thaw.sock
	"$THAW_BIN/thawd" --state "$state/state" --socket "$THAW_SOCKET" \
		--kernel "$THAW_KERNEL" --initrd "$THAW_INITRD" "$@" \
		>"$state/thawd.log" 2>&1 &
	thawd=$!
	# Without it every client of it fails, which ends a demo that hangs.
	(
		trap 'kill "$!" 2>/dev/null' EXIT
		sleep "${DEMO_LIMIT:-2400}" &
		wait "$!" && echo "$DEMO_NAME: this takes too long" >&2 &&
			kill -KILL "$thawd"
	) </dev/null &
	watchdog=$!
	for ((n = 0; n < 300; n++)); do
		! thaw ps -q >/dev/null 2>&1 || return 0
		kill -0 "$thawd" 2>/dev/null || break
		sleep 0.1
	done
	cat "$state/thawd.log" >&2
	die "thawd did not start"
}

# shellcheck disable=SC2317 # called by a trap
stop_thawd()
{
	local n

	kill -TERM "$thawd" 2>/dev/null || true
	for ((n = 0; n < 200; n++)); do
		kill -0 "$thawd" 2>/dev/null || return 0
		sleep 0.1
	done
	echo "$DEMO_NAME: thawd does not end by itself; killing it" >&2
	kill -KILL "$thawd" 2>/dev/null || true
}

# shellcheck disable=SC2317 # called by a trap
cleanup()
{
	local code=$? pid

	trap - EXIT INT TERM HUP
	for pid in "${forwards[@]}"; do
		kill "$pid" 2>/dev/null || true
	done
	if [[ -n ${thawd:-} ]]; then
		((code == 0)) || {
			echo "$DEMO_NAME: the end of thawd's log:" >&2
			tail -n 30 "$state/thawd.log" >&2
		}
		stop_thawd
	fi
	[[ -z ${watchdog:-} ]] || kill "$watchdog" 2>/dev/null || true
	[[ -z ${state:-} ]] || rm -rf "$state"
	[[ -z $scratch ]] || rm -rf "$scratch"
	exit "$code"
}
