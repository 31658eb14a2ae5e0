#!/bin/bash
# Which emulated machines scripts/demo takes, and how often: its own function with
# a kvmbox that only pretends. Prints TAP.
set -u
ROOT=$(cd "$(dirname "$0")/.." && pwd -P)
dir=$(mktemp -d) || exit 1
trap 'rm -rf "${dir:?}"' EXIT
n=0 bad=0

# Ends with the codes of the file `codes`, one a call, and notes its arguments.
cat >"$dir/kvmbox" <<'EOF2'
#!/bin/bash
dir=${0%/*}
echo "$*" >>"$dir/calls"
code=$(sed -n "$(wc -l <"$dir/calls")p" "$dir/codes")
exit "${code:-99}"
EOF2
chmod +x "$dir/kvmbox"
sed -n '/^in_box()/,/^}/p' "$ROOT/scripts/demo" >"$dir/in_box"

# ends CODE CALLS TEXT CODES…: what in_box ends with, and after how many machines.
ends()
{
	local code calls

	printf '%s\n' "${@:4}" >"$dir/codes"
	: >"$dir/calls"
	(
		set -e
		say() { :; }
		# shellcheck disable=SC2034 # read by in_box
		box=("$dir/kvmbox" --memory 4G) run=(the demo)
		# shellcheck source=/dev/null
		source "$dir/in_box"
		in_box
	)
	code=$?
	calls=$(grep -cx -- '--memory 4G --cpus 1 -- the demo' "$dir/calls")
	n=$((n + 1))
	if [[ $code == "$1" && $calls == "$2" ]]; then
		echo "ok $n - $3"
	else
		echo "not ok $n - $3: $code after $calls machines, not $1 after $2"
		sed 's/^/# /' "$dir/calls"
		bad=1
	fi
}

ends 0 1 "one machine of one processor" 0
ends 0 2 "a machine that stopped is replaced" 123 0
ends 123 2 "once only" 123 123 0
ends 1 1 "a demo that failed is not run again" 1 0
ends 1 2 "nor is it in the second machine" 123 1 0
echo "1..$n"
exit $bad
