#!/bin/bash
# Real Linux guests on the vmm room alone, by the vmm-boot tool. Prints TAP.
# Usage: scripts/kvmbox --memory 4G -- tests/guest/test_vmm.sh BUILD_DIR [CASE..]
# Needs a /dev/kvm that runs a stock kernel, and what scripts/guest-kernel made.
set -u
cd "$(dirname "$0")/../.." || exit 1
build=${1:?usage: test_vmm.sh BUILD_DIR [CASE..]}
shift
boot=$build/bin/vmm-boot
kernel=$(scripts/guest-kernel) || exit 1
full=${THAW_CACHE:-$HOME/.cache/thaw}/kernel-amd64/current
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
n=0
bad=0

ok() # CONDITION-STATUS TEXT [LOG]
{
	n=$((n + 1))
	if [[ $1 == 0 ]]; then
		echo "ok $n - $2"
	else
		echo "not ok $n - $2"
		bad=1
		[[ -z ${3-} ]] || tail -n 40 "$3" | sed 's/^/# /'
	fi
}

has() # FILE TEXT WHAT
{
	grep -aqF -- "$2" "$1"
	ok $? "$3" "$1"
}

hasnt() # FILE REGEX WHAT
{
	! grep -aEq -- "$2" "$1"
	ok $? "$3" "$1"
}

# The guest's whole user space: what to do comes on the kernel's command line.
make_initramfs()
{
	local r=$tmp/root

	mkdir -p "$r"/{bin,dev,proc,sys,tmp,modules}
	cp /bin/busybox "$r/bin/"
	cp "$kernel"/modules/*.ko "$r/modules/"
	sed 's#^#/modules/#' "$kernel/modules.load" >"$r/modules.load"
	cat >"$r/init" <<'EOF'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
while read -r m; do insmod "$m" 2>/dev/null; done </modules.load
mode=$(sed 's/.*mode=//; s/ .*//' /proc/cmdline)
up() { cut -d. -f1 /proc/uptime; }
cpus()
{
	for i in $(seq 0 $(($(nproc) - 1))); do
		taskset $((1 << i)) sh -c "sleep 0.1; echo cpu $i runs"
	done
}
echo "userland: cpus=$(nproc) clock=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource) mem=$(awk '/MemTotal/{print int($2/1024)}' /proc/meminfo)"
case $mode in
boot)
	cat /proc/interrupts
	echo "disk $(dd if=/dev/vda bs=64k count=16 2>/dev/null | md5sum)"
	echo "rng $(head -c 64 /dev/hwrng | wc -c)"
	[ -e /dev/vsock ] && echo "vsock there"
	dmesg | grep -E "TSC deadline|x2apic|LNRO|ttyS0 at"
	cpus
	;;
reset)
	reboot -f
	;;
panic)
	echo c >/proc/sysrq-trigger
	;;
snap)
	head -c 24M /dev/urandom >/tmp/blob
	sum=$(md5sum </tmp/blob)
	t0=$(up)
	w0=$(date +%s)
	echo "SAVE-ME"
	usleep 300000
	for i in 1 2 3; do sleep 1; echo "tick $i"; done
	echo "after: guest seconds $(($(up) - t0)) wall $(($(date +%s) - w0))"
	[ "$(md5sum </tmp/blob)" = "$sum" ] && echo "blob intact"
	cpus
	echo "disk $(dd if=/dev/vda bs=64k count=16 2>/dev/null | md5sum)"
	echo "rng $(head -c 64 /dev/hwrng | wc -c)"
	dmesg | grep -E "lockup|stall|hung|Oops"
	echo "all done"
	;;
disk)
	# A writer that is never quiet while the guest is captured.
	n=120
	(
		i=0
		while [ $i -lt $n ]; do
			i=$((i + 1))
			yes "block $i" | dd of=/dev/vda bs=4096 count=1 seek=$((300 + i)) iflag=fullblock conv=notrunc oflag=direct 2>/dev/null
			[ $i = 40 ] && echo "SAVE-ME"
			[ $((i % 20)) = 0 ] && echo "wrote $i"
		done
		echo written >/tmp/finished
	) &
	while [ ! -e /tmp/finished ]; do sleep 0.2; done
	dd if=/dev/vda of=/tmp/all bs=4096 skip=301 count=$n iflag=direct 2>/dev/null
	i=0
	while [ $i -lt $n ]; do
		i=$((i + 1))
		yes "block $i" | dd bs=4096 count=1 iflag=fullblock 2>/dev/null
	done >/tmp/want
	miss=$(cmp -l /tmp/all /tmp/want 2>/dev/null | wc -l)
	[ "$(wc -c </tmp/all)" = $((n * 4096)) ] || miss=all
	echo "bytes wrong: $miss."
	;;
genid)
	ls /sys/bus/acpi/drivers/vmgenid/ | sed 's/^/bound /'
	echo "SAVE-ME"
	sleep 2
	dmesg | grep -i "random:"
	grep -i ged /proc/interrupts
	;;
esac
sync
poweroff -f
EOF
	chmod +x "$r/init"
	(cd "$r" && find . | cpio -o -H newc --quiet) >"$tmp/initramfs"
}

# boot LOG IMAGE MODE ARGS...: runs vmm-boot; its exit code.
run()
{
	local log=$1 image=$2 mode=$3

	shift 3
	"$boot" --kernel "$image" --initrd "$tmp/initramfs" \
		--cmdline "console=ttyS0 loglevel=5 pci=off panic=-1 mode=$mode" \
		--disk "$tmp/disk" --timeout 250 "$@" >"$log" 2>&1
}

case_boot() # what a first boot finds
{
	local log=$tmp/boot.log want

	want=$(head -c 1048576 "$tmp/disk" | md5sum)
	run "$log" "$kernel/vmlinux" boot --mem 192 --vcpus 1
	ok $? "boot: an ELF kernel boots and powers off" "$log"
	has "$log" "cpus=1 clock=kvm-clock" "boot: one CPU, kvmclock"
	has "$log" "disk $want" "boot: the disk's bytes are right"
	has "$log" "rng 64" "boot: the random generator gives bytes"
	has "$log" "vsock there" "boot: vsock exists"
	has "$log" "the guest's vsock is up" "boot: VSOCK_UP arrived"
	has "$log" "TSC deadline timer available" "boot: deadline timer"
	has "$log" "5-edge      virtio0" "boot: the disk's line is an edge"
	grep -aEq "4-edge +ttyS0" "$log"
	ok $? "boot: the console has its interrupt" "$log"
	hasnt "$log" "nobody cared|BUG|Oops" "boot: no complaints"
	run "$log" "$kernel/vmlinuz" boot --mem 192 --vcpus 2
	ok $? "boot: a bzImage boots and powers off" "$log"
	has "$log" "cpu 1 runs" "boot: two CPUs"
	run "$log" "$kernel/vmlinux" reset --mem 128 --vcpus 1
	[[ $? == 2 ]]
	ok $? "boot: a reboot is a reset event" "$log"
	run "$log" "$kernel/vmlinux" panic --mem 128 --vcpus 1
	[[ $? == 2 ]]
	ok $? "boot: a panic with panic=-1 is a reset event" "$log"
}

# snap VCPUS MEM: capture, end, load in a new process, twice.
snap()
{
	local log=$tmp/snap.log what="snapshot, $1 vCPUs, $2 MiB" want i
	local since away guest

	want=$(head -c 1048576 "$tmp/disk" | md5sum)
	rm -rf "$tmp/s"
	run "$log" "$kernel/vmlinux" snap --mem "$2" --vcpus "$1" \
		--save "$tmp/s" --save-at SAVE-ME
	ok $? "$what: captured" "$log"
	hasnt "$log" "tick" "$what: nothing ran after the capture"
	since=$SECONDS
	sleep 5
	for i in 1 2; do
		away=$((SECONDS - since))
		"$boot" --load "$tmp/s" --disk "$tmp/disk" --timeout 250 \
			>"$log" 2>&1
		ok $? "$what: clone $i goes on and powers off" "$log"
		has "$log" "tick 3" "$what: clone $i: timers run"
		has "$log" "blob intact" "$what: clone $i: memory is intact"
		has "$log" "disk $want" "$what: clone $i: the disk works"
		has "$log" "rng 64" "$what: clone $i: the generator works"
		has "$log" "cpu $(($1 - 1)) runs" "$what: clone $i: every CPU runs"
		hasnt "$log" "lockup|stall|hung|Oops" "$what: clone $i: calm"
	done
	# Three sleeps and what the emulated machine adds; not the time away on top of
	# it, which for the second clone includes the whole life of the first.
	guest=$(sed -n 's/.*guest seconds \([0-9]*\) .*/\1/p' "$log")
	[[ -n $guest ]] && ((guest < 3 + away))
	ok $? "$what: time away ($away s) does not count ($guest s)" "$log"
}

case_snap1() { snap 1 192; }
case_snap2() { snap 2 192; }
case_snap4() { snap 4 256; }
case_snapbig() { snap 1 3456; }

case_disk()
{
	local log=$tmp/disk.log

	rm -rf "$tmp/s"
	run "$log" "$kernel/vmlinux" disk --mem 128 --vcpus 2 \
		--save "$tmp/s" --save-at SAVE-ME
	ok $? "disk: captured while it writes" "$log"
	"$boot" --load "$tmp/s" --disk "$tmp/disk" --timeout 250 >"$log" 2>&1
	ok $? "disk: goes on" "$log"
	has "$log" "bytes wrong: 0." "disk: no write was lost"
}

case_genid()
{
	local log=$tmp/genid.log

	if ! grep -qs CONFIG_VMGENID=y "$full/config"; then
		n=$((n + 1))
		echo "ok $n - # SKIP no kernel with the vmgenid driver"
		return
	fi
	rm -rf "$tmp/s"
	run "$log" "$full/vmlinux" genid --mem 256 --vcpus 1 \
		--save "$tmp/s" --save-at SAVE-ME
	ok $? "genid: captured" "$log"
	has "$log" "bound VMGENCTR:00" "genid: the driver found its device"
	"$boot" --load "$tmp/s" --disk "$tmp/disk" --timeout 250 >"$log" 2>&1
	ok $? "genid: goes on" "$log"
	has "$log" "crng reseeded due to virtual machine fork" \
		"genid: the kernel reseeds itself after a restore"
}

# In kvmbox, whose processor's frequency is measured on a busy host.
case_clock()
{
	local log=$tmp/clock.log

	if [[ -n ${KVMBOX:-} ]]; then
		dmesg >"$log"
		sed -n '/clocksource tsc$/,$p' "$log" |
			grep -q 'Nested Paging enabled'
		ok $? "clock: kvmbox loads KVM when the TSC's frequency is known" \
			"$log"
	fi
	"$build/bin/thawd" --doctor >"$log" 2>&1
	has "$log" "stock-kernel" "clock: the doctor has a look at the guests"
	hasnt "$log" "stands still" "clock: their TSC runs"
}

make_initramfs
head -c 4M /dev/urandom >"$tmp/disk"
for c in "${@:-clock boot snap1 snap2 snap4 snapbig disk genid}"; do
	for one in $c; do
		"case_$one"
	done
done
echo "1..$n"
exit $bad
