# shellcheck shell=bash
# Shared by the scripts of this directory; source it, do not run it.
#
# Everything that is fetched or made lives in one cache directory, so that
# a second run of anything is quick and `rm -rf` of it is always safe.

# shellcheck disable=SC2034 # used by the scripts that source this
THAW_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
THAW_ME=$(basename "$0")
# Where depmod and others are, which a Debian user's path lacks.
PATH=$PATH:/usr/sbin:/sbin

say()
{
	printf '%s: %s\n' "$THAW_ME" "$*" >&2
}

die()
{
	say "$*"
	exit 1
}

# Prints the cache directory's path and makes it.
thaw_cache()
{
	local dir=${THAW_CACHE:-${XDG_CACHE_HOME:-${HOME:-/var}/.cache}/thaw}

	mkdir -p "$dir" 2>/dev/null || die "the cache cannot be made at $dir:" \
		"name another folder by THAW_CACHE=DIR"
	(cd "$dir" && pwd -P)
}

# need COMMAND PACKAGE: fails with the remedy when COMMAND is not installed.
need()
{
	command -v "$1" >/dev/null ||
		die "$1 is not installed (Debian package $2): run scripts/setup"
}

# The value of --help: the comment block at the head of the running script.
usage()
{
	sed -n '2,/^[^#]/{/^#/!d;s/^# \{0,1\}//;p}' "$0"
}

# apt-get without root's sandbox user, which cannot write to a user's cache.
apt_download()
{
	apt-get -qq -o APT::Sandbox::User="$(id -un)" download "$1"
}

# kernel_unpack FLAVOUR: makes CACHE/kernel-FLAVOUR/current a link to the
# unpacked package that Debian's linux-image-FLAVOUR depends on, with vmlinux
# extracted and modules.dep made, and prints its path. It holds:
#   vmlinuz, vmlinux, config, release (kernel release), lib/modules/RELEASE
# Nothing is installed into the host. apt checks the archive's signatures.
# With a cache that is already filled nothing is fetched; THAW_KERNEL_REFRESH=1
# asks the archive for a newer one.
kernel_unpack()
{
	local flavour=$1 base dir real lock

	base=$(thaw_cache)/kernel-$flavour
	mkdir -p "$base"
	exec {lock}>"$base/lock"
	flock "$lock"
	dir=$base/current
	if [[ ! -e $dir/complete || -n ${THAW_KERNEL_REFRESH:-} ]]; then
		need apt-get apt
		need depmod kmod
		need lz4 lz4
		need xz xz-utils
		kernel_fetch "$flavour" "$base" >&2
	fi
	real=$(readlink -f "$dir")
	exec {lock}>&-
	printf '%s\n' "$real"
}

kernel_fetch()
{
	local flavour=$1 base=$2 pkg tmp rel

	pkg=$(apt-cache depends --important "linux-image-$flavour" 2>/dev/null |
		sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
	[[ -n $pkg ]] ||
		die "apt knows no linux-image-$flavour: run scripts/setup" \
			"(or apt-get update as root)"
	rel=${pkg#linux-image-}
	if [[ -e $base/$rel/complete ]]; then
		ln -sfn "$rel" "$base/current"
		return
	fi
	say "fetching Debian's $pkg"
	tmp=$(mktemp -d "$base/unpack.XXXXXX")
	(cd "$tmp" && apt_download "$pkg") || {
		rm -rf "$tmp"
		die "could not download $pkg from Debian's archive: check the" \
			"network, or run apt-get update as root"
	}
	dpkg-deb -x "$tmp"/linux-image-*.deb "$tmp/root"
	mkdir "$tmp/out"
	mv "$tmp/root/boot/vmlinuz-$rel" "$tmp/out/vmlinuz"
	mv "$tmp/root/boot/config-$rel" "$tmp/out/config"
	mv "$tmp/root/lib" "$tmp/out/lib"
	depmod -b "$tmp/out" "$rel"
	kernel_extract "$tmp/out/vmlinuz" "$tmp/out/vmlinux"
	printf '%s\n' "$rel" >"$tmp/out/release"
	(cd "$tmp" && basename linux-image-*.deb) >"$tmp/out/package"
	touch "$tmp/out/complete"
	chmod 755 "$tmp/out"
	rm -rf "${base:?}/$rel"
	mv "$tmp/out" "$base/$rel"
	ln -sfn "$rel" "$base/current"
	rm -rf "$tmp"
}

# le32 FILE OFFSET: the little-endian 32-bit number there.
le32()
{
	od -An -tu4 -j "$2" -N 4 --endian=little "$1" | tr -d ' '
}

# kernel_extract BZIMAGE OUT: the ELF image that a bzImage carries compressed.
# The setup header says where it is (payload_offset and payload_length, see
# Documentation/x86/boot.rst); its last 4 bytes are the uncompressed size.
kernel_extract()
{
	local image=$1 out=$2 sects start length magic

	sects=$(od -An -tu1 -j $((0x1f1)) -N 1 "$image" | tr -d ' ')
	start=$(((sects + 1) * 512 + $(le32 "$image" $((0x248)))))
	length=$(le32 "$image" $((0x24c)))
	magic=$(od -An -tx1 -j "$start" -N 4 "$image" | tr -d ' ')
	case $magic in
	02214c18) set -- lz4 -dc ;;
	fd377a58) set -- xz -dc --single-stream ;;
	28b52ffd) set -- zstd -dc ;;
	1f8b*) set -- gzip -dc ;;
	*) die "$image: unknown compression of the kernel (starts with $magic)" ;;
	esac
	{ tail -c +$((start + 1)) "$image" || true; } |
		{ head -c $((length - 4)) && cat >/dev/null; } |
		"$@" >"$out"
	[[ $(head -c 4 "$out" | od -An -tx1 | tr -d ' ') == 7f454c46 ]] ||
		die "$image: what it carries is not an ELF image"
}

# module_paths KERNELDIR MODULE…: the modules' files in loading order, their
# dependencies first, each once, relative to KERNELDIR. A module that is built
# in or that this kernel lacks gives nothing.
module_paths()
{
	local dir=$1 rel name line

	shift
	rel=$(<"$dir/release")
	for name; do
		modprobe -d "$dir" -S "$rel" --show-depends "$name" 2>/dev/null |
			while read -r line; do
				[[ $line == insmod\ * ]] || continue
				line=${line#insmod }
				line=${line%% *}
				printf '%s\n' "${line#"$dir"/}"
			done || true
	done | awk '!seen[$0]++'
}

# as_root WHY COMMAND…: runs COMMAND as root; where that needs sudo, asks once
# and says why. Files that it makes in the clone are the caller's to chown.
as_root()
{
	local why=$1

	shift
	if ((EUID == 0)); then
		"$@"
		return
	fi
	command -v sudo >/dev/null || die "root is needed to $why, and there" \
		"is no sudo here: run this as root: $*"
	if ! sudo -n true 2>/dev/null; then
		say "root is needed to $why; sudo may ask for your password"
	fi
	sudo --preserve-env=PATH,THAW_CACHE,DEBIAN_FRONTEND "$@"
}

# The packages of Debian that thaw is built, tested and demonstrated with.
# Those of the first line are what building alone takes.
THAW_PACKAGES=(
	build-essential cmake ninja-build pkg-config git libevent-dev
	liburing-dev libxxhash-dev liblz4-dev libjansson-dev libsqlite3-dev
	libarchive-dev libcap-ng-dev libseccomp-dev libssl-dev libcriterion-dev
	libnghttp2-dev libcurl4-openssl-dev openssl python3-websockets
	python3-h2 python3-grpcio buildah slirp4netns
	clang clang-tidy clang-format libclang-rt-14-dev musl-tools shellcheck
	qemu-system-x86 busybox-static cpio kmod lz4 xz-utils zstd
	mmdebstrap e2fsprogs acpica-tools uidmap
	python3 python3-botocore python3-pip jq curl socat iproute2 procps util-linux gdb strace
	ca-certificates
)

# missing_packages: prints those that are not installed.
missing_packages()
{
	local pkg

	command -v dpkg-query >/dev/null || die "this is not a Debian system" \
		"(no dpkg): install what docs/HACKING.md lists by hand"
	for pkg in "${THAW_PACKAGES[@]}"; do
		[[ $(dpkg-query -Wf '${db:Status-Abbrev}' "$pkg" 2>/dev/null) == ii* ]] ||
			printf '%s\n' "$pkg"
	done
}

# enough_disk DIR MIB WHAT: fails with the remedy when DIR's file system has
# less free.
enough_disk()
{
	local free

	free=$(df -Pm "$1" | awk 'NR==2{print $4}')
	((free >= $2)) || die "$3 needs $2 MiB of disk at $1, and $free MiB" \
		"are free: make room there, or move the cache by THAW_CACHE=DIR"
}

# enough_memory MIB WHAT
enough_memory()
{
	local avail

	avail=$(($(awk '/^MemAvailable/{print $2}' /proc/meminfo) / 1024))
	((avail >= $1)) || die "$2 needs $1 MiB of memory, and $avail MiB are" \
		"available: stop something, or use a larger machine"
}

# The host's facts that everything depends on; says what stands in the way.
check_system()
{
	local id version major minor rest

	[[ $(uname -s) == Linux && $(uname -m) == x86_64 ]] ||
		die "thaw needs Linux on x86-64; this is $(uname -sm)"
	# shellcheck disable=SC1091 # the system's own
	id=$(. /etc/os-release && echo "${ID:-?}")
	# shellcheck disable=SC1091
	version=$(. /etc/os-release && echo "${VERSION_ID:-?}")
	[[ $id == debian && ${version%%.*} =~ ^[0-9]+$ && ${version%%.*} -ge 12 ]] ||
		say "warning: tried on Debian 12 only; this is $id $version"
	IFS=.- read -r major minor rest < <(uname -r)
	((major > 6 || (major == 6 && minor >= 1))) ||
		say "warning: the kernel is $(uname -r); thaw needs 6.1 or newer" \
			"(kvmbox works with any)"
}

# choose_mode BIN: sets mode, unless it is set, to host if this host's KVM boots
# stock kernels, else to kvmbox. Needs root for /dev/kvm.
choose_mode()
{
	local probe

	[[ -z $mode ]] || return 0
	mode=kvmbox
	[[ -e /dev/kvm && -e /dev/userfaultfd ]] || return 0
	probe=$(as_root "ask /dev/kvm what it can do" "$1/thawd" --doctor --json) ||
		true
	[[ $(jq -r .stock_kernel <<<"$probe" 2>/dev/null) != true ]] || mode=host
}
