#!/bin/bash
# Usage: bench/guest/run.sh GUEST_BENCH_OPTION…
#
# guest_bench.py with a work folder on a disk, here and now (scripts/bench --guest
# decides where that is). In kvmbox, whose file systems are all memory, the disk is an
# ext4 in a file that is allocated as a whole, mounted by loop: its page cache can be
# dropped, and reading it costs what copying memory does.
set -euo pipefail

HERE=$(cd "$(dirname "$0")" && pwd -P)

# shellcheck disable=SC2317 # called by a trap
cleanup()
{
	[[ -z ${mounted:-} ]] || umount -l "$work" 2>/dev/null || true
	rm -rf "$work"
}

main()
{
	work=$(mktemp -d "${THAW_BENCH_WORK:-/var/tmp}/thaw-bench-guest.XXXXXX")
	trap cleanup EXIT
	if [[ -n ${KVMBOX:-} ]]; then
		modprobe -a loop ext4
		fallocate -l 2200M /run/thaw-bench.img
		mkfs.ext4 -q -F -E lazy_itable_init=0,nodiscard /run/thaw-bench.img
		mount -o loop,nodiscard /run/thaw-bench.img "$work"
		mounted=1
	fi
	PYTHONDONTWRITEBYTECODE=1 "$HERE/guest_bench.py" --work "$work" "$@"
}

main "$@"
