#!/bin/bash
# A real Linux guest's virtio drivers against the vmm room: disk, vsock and rng
# under load, paused, saved and loaded in mid-traffic. Prints TAP.
# Usage: scripts/kvmbox --memory 4G -- tests/guest/test_virtio.sh BUILD_DIR [-v]
# Needs a /dev/kvm that runs a stock kernel, and what scripts/guest-kernel made.
set -eu
cd "$(dirname "$0")/../.."
build=${1:?usage: test_virtio.sh BUILD_DIR [-v]}
shift
kernel=$(scripts/guest-kernel)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
scripts/guest-initramfs --agent "$build/bin/virtio-init" --out "$tmp/initrd" \
	>/dev/null
"$build/bin/virtio-box" "$kernel/vmlinux" "$tmp/initrd" "$@"
