#!/usr/bin/env bash
# The layering check must go red for each kind of forbidden arrow.
set -euo pipefail
check=$(cd "$(dirname "$0")/.." && pwd)/scripts/check-layering.sh
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
n=0
expect_red() {
	rm -rf "${tmp:?}"/*
	mkdir -p "$tmp"/{base,vmm,pagecache,engine/{auth,front,shape,image/mkroot,image/fetch},guest,cli}
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
expect_red vmm/a.c '#include <openssl/evp.h>'
expect_red engine/vm.c '#include <openssl/evp.h>'
expect_red engine/front/a.c '#include "auth_internal.h"'
expect_red engine/front/a.c '#include "vm.h"'
expect_red engine/front/head_bytes.c '#include <event2/buffer.h>'
expect_red engine/endpoint.c '#include "h2_fields.h"'
expect_red engine/api.c '#include "front_internal.h"'
expect_red engine/image/img.c '#include "vm.h"'
expect_red engine/image/mkroot/a.c '#include "loop.h"'
expect_red engine/image/img.c '#include <curl/curl.h>'
expect_red engine/image/dockerfile.c '#include <jansson.h>'
expect_red engine/api.c '#include "img_internal.h"'
expect_red engine/auth/a.c '#include "http.h"'
expect_red engine/auth/a.c '#include <event2/event.h>'
expect_red engine/shape/a.c '#include "http.h"'
expect_red engine/shape/a.c '#include <event2/event.h>'
expect_red engine/api.c '#include "shape_internal.h"'
rm -rf "${tmp:?}"/*
mkdir -p "$tmp"/{base,vmm,pagecache,engine/{auth,front,shape,image/mkroot,image/fetch},guest,cli}
echo '#include <event2/event.h>' >"$tmp/engine/loop.c"
echo '#include <openssl/ssl.h>' >"$tmp/engine/front/tls.c"
echo '#include "auth_internal.h"' >"$tmp/engine/auth/token.c"
echo '#include <curl/curl.h>' >"$tmp/engine/image/fetch/fetch.c"
echo '#include "mkdisk.h"' >"$tmp/engine/image/mkroot/a.c"
"$check" "$tmp" >/dev/null
echo "layering check caught $n kinds"
