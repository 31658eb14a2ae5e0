#!/bin/sh
# shellcheck shell=dash disable=SC2086 # $run and $cats are lists of words
# Runs as PID 1 of scripts/kvmbox's VM, first from its initramfs (stage 1:
# modules, the host's root file system under an overlay), then, as "stage2",
# from the new root (run the command, report its exit code, power off). The
# interpreter is busybox, so that nothing depends on the host's libraries
# before they are mounted.

die()
{
	echo "kvmbox: $*" >/dev/console
	[ -c /dev/vport0p3 ] && echo "fail $*" >/dev/vport0p3
	sync
	poweroff -f
	sleep 60
}

load() # LIST
{
	while read -r mod; do
		insmod "/$mod" || echo "kvmbox: cannot load $mod"
	done <"$1"
}

# The kernel's first idea of its TSC's frequency comes from emulated timers, which a
# busy host delays; it corrects it after two seconds. KVM keeps the one that it finds
# when it is loaded, and gives a guest whose frequency was corrected by more than
# 250 ppm a TSC that stands still: its timers never fire.
await_clock()
{
	clock=/new/sys/devices/system/clocksource/clocksource0/current_clocksource
	n=0
	while [ "$(cat $clock)" = tsc-early ] && [ $n -lt 600 ]; do
		usleep 50000
		n=$((n + 1))
	done
}

stage1()
{
	export PATH=/bin
	/bin/busybox --install -s /bin
	mount -t proc proc /proc
	mount -t sysfs sys /sys
	mount -t devtmpfs dev /dev
	load /modules.load
	run=$(sed 's/.*kvmbox\.run=\([^ ]*\).*/\1/' /proc/cmdline)

	opt=trans=virtio,version=9p2000.L,msize=524288
	mkdir -p /host /rw /new
	mount -t 9p -o "ro,cache=loose,$opt" host /host || die "no host root"
	mount -t tmpfs -o size=80%,mode=755 rw /rw
	mkdir /rw/upper /rw/work
	mount -t overlay -o \
		lowerdir=/host,upperdir=/rw/upper,workdir=/rw/work,xino=off \
		root /new || die "no overlay"

	mount --move /proc /new/proc
	mount --move /sys /new/sys
	mount --move /dev /new/dev
	mkdir -p /new/dev/pts /new/dev/shm /new/dev/mqueue
	mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /new/dev/pts
	mount -t tmpfs -o mode=1777 shm /new/dev/shm
	mount -t mqueue mqueue /new/dev/mqueue
	ln -sf pts/ptmx /new/dev/ptmx
	ln -s /proc/self/fd /new/dev/fd
	ln -s fd/0 /new/dev/stdin
	ln -s fd/1 /new/dev/stdout
	ln -s fd/2 /new/dev/stderr
	mount -t cgroup2 cgroup2 /new/sys/fs/cgroup
	mount -t tmpfs -o mode=755 run /new/run
	mkdir -p /new/run/lock /new/run/kvmbox
	chmod 1777 /new/run/lock

	# The modules of the box's own kernel, for modprobe.
	mods=$(cat "/host$run/modules")
	mkdir -p "/new/lib/modules/$(uname -r)"
	mount --bind "/host$mods" "/new/lib/modules/$(uname -r)"

	share=$(cat "/host$run/share")
	mkdir -p "/new$share"
	mount -t 9p -o "rw,cache=mmap,$opt" share "/new$share" ||
		die "no share"

	cp /bin/busybox /init /new/run/kvmbox/
	for f in "/host$run"/*; do
		[ ! -f "$f" ] || cp "$f" /new/run/kvmbox/
	done
	ifconfig lo 127.0.0.1 netmask 255.0.0.0 up
	hostname kvmbox
	grep -qw kvmbox /new/etc/hosts 2>/dev/null ||
		echo 127.0.1.1 kvmbox >>/new/etc/hosts
	await_clock
	load /kvm.load
	exec switch_root /new /run/kvmbox/busybox sh /run/kvmbox/init stage2
}

# The host's pulses (scripts/kvmbox says what for) interrupt one processor. This
# hands them on to all: waking a task that belongs to one interrupts that.
pulse()
{
	fifos=
	n=0
	cpus=$($bb nproc)
	while [ "$cpus" -gt 1 ] && [ $n -lt "$cpus" ]; do
		$bb mkfifo $box/pulse$n
		$bb taskset -c $n $bb cat <>$box/pulse$n >/dev/null &
		fifos="$fifos $box/pulse$n"
		n=$((n + 1))
	done
	# shellcheck disable=SC2086 # a list of words
	$bb tee $fifos </dev/vport0p6 >/dev/null
}

stage2()
{
	box=/run/kvmbox
	bb=$box/busybox
	share=$($bb cat $box/share)
	# A shell without job control starts its background commands with
	# these two ignored, which nothing below it could undo.
	run="/usr/bin/env --default-signal=INT,QUIT /bin/bash $box/cmd"
	$bb mkfifo $box/out $box/err
	if [ -e $box/tty ]; then
		# shellcheck disable=SC2046 # two words are meant
		$bb stty $($bb cat $box/tty) <>/dev/hvc0
		$bb setsid -c $run <>/dev/hvc0 >/dev/hvc0 2>&1 &
	else
		in=/dev/null
		[ -e $box/stdin ] && in=$box/stdin
		$bb cat <$box/out >/dev/vport0p1 &
		cats=$!
		if [ -e $box/joined ]; then
			$bb setsid $run <$in >$box/out 2>&1 &
		else
			$bb cat <$box/err >/dev/vport0p2 &
			cats="$cats $!"
			$bb setsid $run <$in >$box/out 2>$box/err &
		fi
	fi
	cmd=$!
	echo started >/dev/vport0p3
	# Signs of life: without them the host ends the box.
	while echo alive; do
		$bb sleep 10
	done >/dev/vport0p5 &
	pulse &
	wait $cmd
	code=$?
	# What the command left running may hold its output open.
	$bb kill -TERM -$cmd 2>/dev/null && $bb usleep 100000
	$bb kill -KILL -$cmd 2>/dev/null
	for pid in $cats; do
		n=0
		while $bb kill -0 "$pid" 2>/dev/null && [ $n -lt 20 ]; do
			$bb usleep 50000
			n=$((n + 1))
		done
	done
	# What the kernel does not let go of may hold this up: not for ever.
	{ $bb umount "$share" || $bb sync; } &
	n=0
	while $bb kill -0 $! 2>/dev/null && [ $n -lt 600 ]; do
		$bb usleep 50000
		n=$((n + 1))
	done
	echo "exit $code" >/dev/vport0p3
	$bb poweroff -f
	$bb sleep 60
}

if [ "${1:-}" = stage2 ]; then
	stage2
else
	stage1
fi
