#!/usr/bin/env bash
# Checks the arrows between the rooms (docs/ARCHITECTURE.md): which headers each
# room may include. Prints each violation and ends with 1 if there is one.
#   check-layering.sh [ROOT]
set -euo pipefail
root=${1:-$(cd "$(dirname "$0")/.." && pwd)}
bad=0

# forbid ROOM REGEX WHY: no #include in ROOM may match REGEX.
forbid() {
	local room=$1 regex=$2 why=$3 hits
	[ -d "$root/$room" ] || return 0
	hits=$(grep -rnE "^[[:space:]]*#[[:space:]]*include[[:space:]]*[<\"]($regex)" \
		"$root/$room" --include='*.c' --include='*.h' || true)
	if [ -n "$hits" ]; then
		printf '%s\n    %s: %s\n' "$hits" "$room" "$why"
		bad=1
	fi
}

event='event2/|event\.h'
kvm='linux/kvm'
store='lz4|xxhash|liburing|linux/io_uring'

forbid base "$event|$kvm|$store|vmm\\.h|pagecache\\.h|jansson|sqlite3" \
	'the bottom room knows nobody'
forbid vmm "$event|$store|pagecache\\.h|jansson|sqlite3|loop\\.h|cells\\.h" \
	'vmm knows KVM and virtio, and base; no loop, no page store'
forbid pagecache "$event|$kvm|vmm\\.h|jansson|sqlite3|loop\\.h|cells\\.h" \
	'pagecache knows lz4, xxhash, io_uring and base; no KVM, no loop'
forbid engine "$kvm|$store|vmm_internal\\.h|pgc_.*\\.h|guestmem\\.h|virtio\\.h" \
	'engine sees only the public headers of vmm and pagecache'
forbid guest "$event|$kvm|$store|vmm\\.h|pagecache\\.h|jansson|sqlite3|loop\\.h" \
	'the agent stands alone'
forbid cli "$event|$kvm|$store|vmm\\.h|pagecache\\.h|sqlite3|loop\\.h|cells\\.h" \
	'cli is a client of the Unix socket'

# Inside engine, only these may know libevent: the loop and the HTTP side.
hits=$(grep -rlE "#[[:space:]]*include[[:space:]]*[<\"]($event)" "$root/engine" \
	--include='*.c' --include='*.h' |
	grep -vE '/(loop|http[a-z_]*|stream|relay|main)\.[ch]$' || true)
if [ -n "$hits" ]; then
	printf '%s\n    engine: libevent belongs to loop.c and http*.c\n' "$hits"
	bad=1
fi

[ "$bad" = 0 ] && echo "layering: ok"
exit "$bad"
