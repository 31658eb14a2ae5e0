#!/bin/bash
# With what kvmbox ends when its emulator does this or that, told by one that only
# pretends (this needs no kernel and no VM). Prints TAP.
set -u
ROOT=$(cd "$(dirname "$0")/.." && pwd -P)
dir=$(mktemp -d) || exit 1
trap 'rm -rf "${dir:?}"' EXIT
n=0 bad=0

kernel=$dir/cache/kernel-amd64/current
mkdir -p "$dir"/{bin,share} "$kernel/lib/modules/6.1.0"
echo 6.1.0 >"$kernel/release"
touch "$kernel"/{complete,vmlinux}
# It finds the run's folder in its arguments and does as the command's word says.
# Descriptor 9 is the control channel.
cat >"$dir/bin/qemu-system-x86_64" <<'EOF'
#!/bin/bash
for a; do
	[[ $a != *id=alive,path=* ]] || run=${a#*path=}
done
run=${run%/alive}
echo alive >"$run/alive"
what=$(sed -n 's/^exec //p' "$run/cmd")
[[ $what == unborn ]] || echo started >&9
case $what in
fine) echo "exit 7" >&9 ;;
killed | unborn) kill -KILL $$ ;;
crashed) kill -SEGV $$ ;;
silent) exec sleep 600 ;;
panics) echo "[ 1.0] Kernel panic - not syncing: stack" >"$run/console" ;;
pulse)
	# Five a second are due; here ten, whenever.
	read -r -t 120 -n 10 got <"$run/pulse.in"
	echo "exit ${#got}" >&9
	;;
esac
EOF
chmod +x "$dir/bin/qemu-system-x86_64"

# ends CODE WORD TEXT [OPTION…]: kvmbox's exit code with such an emulator. For a
# sign of life there are $limit seconds.
limit=300
ends()
{
	local code

	PATH=$dir/bin:$PATH THAW_CACHE=$dir/cache KVMBOX_BEAT_LIMIT=$limit \
		TMPDIR=$dir "$ROOT/scripts/kvmbox" --share "$dir/share" \
		--memory 768M "${@:4}" -- "$2" >"$dir/log" 2>&1
	code=$?
	n=$((n + 1))
	if [[ $code == "$1" ]]; then
		echo "ok $n - $3"
	else
		echo "not ok $n - $3: $code, not $1"
		sed 's/^/# /' "$dir/log"
		bad=1
	fi
}

ends 7 fine "the command's own code"
limit=3 ends 123 silent "no sign of life: the machine stopped"
ends 123 killed "the emulator was killed: the machine stopped"
ends 123 crashed "the emulator crashed: the machine stopped"
ends 123 panics "its kernel panicked: the machine stopped"
ends 125 ended "the VM ended itself: a failure"
ends 125 unborn "it never began: a failure"
ends 124 silent "time is up, and that alone" --timeout 1
ends 10 pulse "pulses come, one after the other"
n=$((n + 1))
if compgen -G "$dir/kvmbox.*" >/dev/null; then
	echo "not ok $n - nothing is left behind"
	bad=1
else
	echo "ok $n - nothing is left behind"
fi
echo "1..$n"
exit $bad
