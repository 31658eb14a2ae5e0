#!/usr/bin/env bash
# The layering check must go red for each kind of forbidden arrow.
set -euo pipefail
check=$(cd "$(dirname "$0")/.." && pwd)/scripts/check-layering.sh
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
n=0
expect_red() {
	rm -rf "${tmp:?}"/*
	mkdir -p "$tmp"/{base,vmm,pagecache,engine,guest,cli}
	printf '%s\n' "$2" >"$tmp/$1"
	if "$check" "$tmp" >/dev/null; then
		echo "not caught: $2 in $1"
		exit 1
	fi
	n=$((n + 1))
}
expect_red vmm/a.c '#include <event2/event.h>'
expect_red vmm/a.c '#include "pagecache.h"'
expect_red pagecache/a.c '#include <linux/kvm.h>'
expect_red pagecache/a.h '#  include "vmm.h"'
expect_red engine/a.c '#include <linux/kvm.h>'
expect_red engine/a.c '#include <liburing.h>'
expect_red engine/vm.c '#include <event2/event.h>'
expect_red base/a.c '#include "vmm.h"'
expect_red guest/a.c '#include "loop.h"'
expect_red cli/a.c '#include "cells.h"'
rm -rf "${tmp:?}"/*
mkdir -p "$tmp"/{base,vmm,pagecache,engine,guest,cli}
echo '#include <event2/event.h>' >"$tmp/engine/loop.c"
"$check" "$tmp" >/dev/null
echo "layering check caught $n kinds"
