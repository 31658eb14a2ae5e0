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

forbid base 'openssl/' 'the bottom room knows nobody'
forbid vmm 'openssl/' 'no cryptography here'
forbid pagecache 'openssl/' 'no cryptography here'
forbid guest 'openssl/' 'the agent stands alone'
forbid cli 'openssl/' 'cli is a client of the Unix socket'
forbid engine/auth "$event|jansson|sqlite3|vmm\\.h|pagecache\\.h|loop\\.h|http[a-z_]*\\.h|registry[a-z_]*\\.h|vm\\.h|cells\\.h" \
	'auth knows base and libcrypto; it is told what a request says'

# shape is a table and what reads it.
hits=$(grep -rnE '#[[:space:]]*include[[:space:]]*"' "$root/engine/shape" \
	--include='*.c' --include='*.h' 2>/dev/null |
	grep -vE '"(shape|shape_internal|table|base)\.h"' || true)
hits+=$(grep -rnE "include[[:space:]]*<($event|openssl/|sqlite3|sys/socket)" \
	"$root/engine/shape" --include='*.c' --include='*.h' 2>/dev/null || true)
hits+=$(grep -rnE '#[[:space:]]*include[[:space:]]*"(shape_internal|table)\.h' \
	"$root/engine" --include='*.c' --include='*.h' 2>/dev/null |
	grep -v "^$root/engine/shape/" || true)
if [ -n "$hits" ]; then
	printf '%s\n    engine: shape knows base and jansson, and is seen by shape.h\n' "$hits"
	bad=1
fi

# Inside engine, only auth (and front, for TLS) may know OpenSSL, and only auth
# its own inside.
hits=$(grep -rnE "#[[:space:]]*include[[:space:]]*[<\"](openssl/|auth_internal\.h)" \
	"$root/engine" --include='*.c' --include='*.h' |
	grep -vE "^$root/engine/(auth/|front/[^:]*:[0-9]+:.*openssl/)" || true)
if [ -n "$hits" ]; then
	printf '%s\n    engine: OpenSSL belongs to auth and front, auth_internal.h to auth\n' "$hits"
	bad=1
fi

# Inside engine, only these may know libevent: the loop and the HTTP side.
hits=$(grep -rlE "#[[:space:]]*include[[:space:]]*[<\"]($event)" "$root/engine" \
	--include='*.c' --include='*.h' |
	grep -vE '/(loop|http[a-z_]*|stream|relay|main)\.[ch]$|/front/' || true)
if [ -n "$hits" ]; then
	printf '%s\n    engine: libevent belongs to loop.c, http*.c and front\n' "$hits"
	bad=1
fi

# front knows the loop, and of the rest of the engine nothing; its parser knows
# no sockets. Of front, the others see front.h.
own='(front|front_internal|conn_internal|h2_[a-z]+|head|head_internal|route|loop|base)\.h'
hits=$(grep -rnE '#[[:space:]]*include[[:space:]]*"' "$root/engine/front" \
	--include='*.c' --include='*.h' 2>/dev/null | grep -vE "\"$own\"" || true)
hits+=$(grep -nE "include[[:space:]]*[<\"]($event|front_internal|sys/socket)" \
	"$root"/engine/front/{head*,body,route}.[ch] 2>/dev/null || true)
hits+=$(grep -rnE '#[[:space:]]*include[[:space:]]*"(front_internal|conn_internal|h2_[a-z]+|head|head_internal|route)\.h' \
	"$root/engine" --include='*.c' --include='*.h' 2>/dev/null |
	grep -vE "^$root/engine/(front/|http_tcp_internal\.h:[0-9]+:.*\"head\.h\")" || true)
if [ -n "$hits" ]; then
	printf '%s\n    engine: front sees loop.h and itself, and is seen by front.h (head.h: http_tcp_internal.h too)\n' "$hits"
	bad=1
fi

# image: its library knows the loop, the jobs, programs with lines and jansson;
# the Dockerfile's parser nobody; thaw-mkroot shares mkdisk's walls and knows no loop; libcurl is
# thaw-fetch's. Of image, the others see img.h.
own='(img|img_reason|img_internal|dockerfile|loop|jobs|child|base)\.h'
hits=$(grep -nE '#[[:space:]]*include[[:space:]]*"' \
	"$root"/engine/image/*.[ch] 2>/dev/null | grep -vE "\"$own\"" || true)
own='(mkroot|mkdisk|dockerfile|img_reason|base)\.h'
hits+=$(grep -rnE '#[[:space:]]*include[[:space:]]*"' \
	"$root"/engine/image/{mkroot,fetch} --include='*.[ch]' 2>/dev/null |
	grep -vE "\"$own\"" || true)
hits+=$(grep -nE 'include[[:space:]]*[<"](jansson|loop|sys/socket)' \
	"$root"/engine/image/dockerfile.[ch] 2>/dev/null || true)
hits+=$(grep -rnE '#[[:space:]]*include[[:space:]]*<curl/' "$root" \
	--include='*.c' --include='*.h' --exclude-dir=build 2>/dev/null |
	grep -v "^$root/engine/image/fetch/" || true)
hits+=$(grep -rnE '#[[:space:]]*include[[:space:]]*"(img_internal|dockerfile|mkroot)\.h' \
	"$root/engine" --include='*.c' --include='*.h' 2>/dev/null |
	grep -v "^$root/engine/image/" || true)
if [ -n "$hits" ]; then
	printf '%s\n    engine: image sees loop.h, jobs.h, child.h and itself, and is seen by img.h\n' "$hits"
	bad=1
fi

[ "$bad" = 0 ] && echo "layering: ok"
exit "$bad"
