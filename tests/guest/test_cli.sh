#!/bin/bash
# timeout: 900
# A real Linux guest through the command line alone: built from a directory with
# busybox, copied, entered, connected to, suspended; and builds that fail. TAP.
# Its environment: see run.sh.
set -u
: "${THAW_BIN:?}" "${THAW_KERNEL:?}" "${THAW_INITRD:?}" "${THAW_WORK:?}"
export THAW_SOCKET=$THAW_WORK/thaw.sock
state=$THAW_WORK/state
root=$THAW_WORK/rootfs
log=$THAW_WORK/log
n=0
bad=0

thaw()
{
	"$THAW_BIN/thaw" "$@"
}

ok() # STATUS TEXT [FILE]
{
	n=$((n + 1))
	if [[ $1 == 0 ]]; then
		echo "ok $n - $2"
		return
	fi
	echo "not ok $n - $2"
	bad=1
	[[ ! -s ${3-} ]] || tail -n 20 "$3" | tr -d '\r' | sed 's/^/# /'
}

is() # GOT WANTED TEXT
{
	[[ $1 == "$2" ]]
	ok $? "$3"
	[[ $1 == "$2" ]] || printf '%s\n' "$1" | sed 's/^/# got: /'
}

# await COMMAND…: until it succeeds, however slow the machine; its status.
await()
{
	local end=$((SECONDS + 300))

	until "$@"; do
		((SECONDS < end)) || return 1
		sleep 0.1
	done
}

finish()
{
	[[ -z ${daemon-} ]] || kill "$daemon" 2>/dev/null
	[[ -z ${fwd-} ]] || kill "$fwd" 2>/dev/null
	wait
	echo "1..$n"
	exit $bad
}

make_root()
{
	mkdir -p "$root"/{bin,etc,www,tmp,proc,sys,dev,run,home}
	cp /bin/busybox "$root/bin/busybox"
	for i in sh httpd cat echo sleep stty id env pwd hostname date kill tty; do
		ln -s busybox "$root/bin/$i"
	done
	echo 'root:x:0:0::/:/bin/sh
www:x:33:33::/www:/bin/sh' >"$root/etc/passwd"
	echo "hello from the disk" >"$root/www/index.html"
	cat >"$root/bin/app" <<'EOS'
#!/bin/sh
echo "app is starting as $(id -u) in $(pwd) with $GREETING"
exec httpd -f -vv -p 8080 -h /www
EOS
	chmod 755 "$root/bin/app"
}

start_daemon()
{
	"$THAW_BIN/thawd" --state "$state" --socket "$THAW_SOCKET" \
		--kernel "$THAW_KERNEL" --initrd "$THAW_INITRD" \
		>"$THAW_WORK/thawd.out" 2>&1 &
	daemon=$!
	await answers
}

answers()
{
	thaw ps >/dev/null 2>&1
}

# thawd leaves nothing of a build that has ended but the logs of those that made
# an image (of LOGS, one image each).
clean() # LOGS
{
	await is_clean "$1" && return 0
	find "$state" -name 'build-*' | sed 's/^/# left: /'
	return 1
}

is_clean() # LOGS
{
	[[ -z $(find "$state" -name 'build-*' ! -path '*/logs/*') &&
		$(find "$state/logs" -name 'build-*.log' | wc -l) == "$1" ]]
}

trap finish EXIT
make_root
start_daemon
ok $? "thawd starts" "$THAW_WORK/thawd.out"

# --- a build -----------------------------------------------------------------------

thaw build demo --rootfs "$root" --memory 128 --port 8080 -e GREETING=hi \
	--user www --workdir /www -v --entrypoint "/bin/app" >"$log" 2>&1
ok $? "build makes an image of a directory" "$log"
grep -q "app is starting as 33 in /www with hi" "$log"
ok $? "the application has its user, directory and environment" "$log"
is "$(thaw images --no-header | awk '{print $1, $2, $3}')" "demo 1.0 SUCCESSFUL" \
	"images lists it"
clean 1
ok $? "the build's work directory is gone"

# --- copies ------------------------------------------------------------------------

thaw run demo --name a --label n=1 --wait >"$log" 2>&1
ok $? "run thaws a copy" "$log"
thaw run demo --name b --wait >"$log" 2>&1
ok $? "and another one" "$log"
is "$(thaw ps -q --filter label=n=1 | wc -l)" 1 "ps filters by label"
is "$(thaw exec a cat /www/index.html)" "hello from the disk" "exec reads the disk"
thaw exec a sh -c 'exit 42'
is $? 42 "exec passes the exit code"
thaw exec a sh -c 'kill -9 $$'
is $? 137 "and 128+n for a signal"
thaw exec a /no/such/program 2>"$log"
is $? 127 "and 127 for a program that is not there"
is "$(echo some input | thaw exec -i a cat)" "some input" "exec -i passes input"
head -c 1000000 /dev/urandom >"$THAW_WORK/noise"
thaw exec -i a cat <"$THAW_WORK/noise" | cmp - "$THAW_WORK/noise"
ok $? "a megabyte goes through and back unchanged"
is "$(thaw exec -e X=1 -u www -w /www a sh -c 'echo $X $(id -u) $(pwd)')" \
	"1 33 /www" "exec -e -u -w"
is "$(thaw exec a sh -c 'echo out; echo err >&2' 2>/dev/null)" "out" \
	"standard output and error are apart"
script -qec "'$THAW_BIN/thaw' exec -it a sh -c 'stty size; tty; exit 5'" \
	"$THAW_WORK/typescript" </dev/null >"$log" 2>&1
is $? 5 "exec -it passes the exit code"
grep -q '^/dev/pts/' "$log"
ok $? "exec -it has a terminal" "$log"
thaw exec -u root a sh -c 'echo only in a >/home/file'
thaw exec b cat /home/file >/dev/null 2>&1
is $? 1 "what one copy writes the other does not have"
one=$(thaw exec a hostname)
two=$(thaw exec b hostname)
[[ -n $one && -n $two && $one != "$two" ]]
ok $? "they are two machines: $one, $two"

"$THAW_BIN/thaw" forward a 0:8080 >"$THAW_WORK/fwd" 2>&1 &
fwd=$!
await test -s "$THAW_WORK/fwd"
addr=$(cut -d' ' -f1 "$THAW_WORK/fwd")
is "$(busybox wget -qO- "http://$addr/")" "hello from the disk" \
	"forward reaches the application"
for i in 1 2 3 4 5; do busybox wget -qO- "http://$addr/" & done >"$log"
wait $(jobs -p | grep -vxE "$daemon|$fwd")
is "$(grep -c hello "$log")" 5 "five at once"
kill -TERM "$fwd"
wait "$fwd"
is $? 0 "forward ends cleanly"
fwd=
logs_have() # VM TEXT
{
	thaw logs "$1" >"$log"
	grep -q "$2" "$log"
}
await logs_have a "response:200"
ok $? "logs have what the application printed" "$log"

is "$(thaw call a /)" "hello from the disk" \
	"call asks the port that the image was frozen on"
thaw call a /none >"$THAW_WORK/body" 2>"$log"
is $? 1 "call of a page that is not there is exit code 1"
grep -q "answered 404" "$log"
ok $? "and says what the application answered" "$log"
thaw call a / --port 81 2>"$log"
is $? 1 "call of a port on which nothing listens"
grep -q "in it listen: 8080 (" "$log"
ok $? "lists those on which something does" "$log"
is "$(echo 'cat index.html; exit 4' | thaw shell -w /www a; echo $?)" \
	$'hello from the disk\n4' "shell reads a script, and passes its exit code"
is "$(thaw top --json | jq -r '[.[] | select(.thaw.usage.privateBytes > 0 and
	.thaw.cpuPercent >= 0)] | length')" 2 "top has both with their figures"

# --- suspend and resume ------------------------------------------------------------

thaw suspend a >"$log" 2>&1
ok $? "suspend" "$log"
thaw resume a >"$log" 2>&1
ok $? "resume" "$log"
is "$(thaw exec a cat /home/file)" "only in a" "its file is still there"
thaw suspend a >"$log" 2>&1
is "$(thaw exec a cat /home/file)" "only in a" "exec resumes a suspended one"
thaw resume a 2>"$log"
is $? 4 "which runs then: resume ends with 4"
thaw rm -f a b >"$log" 2>&1
ok $? "rm -f" "$log"
is "$(thaw ps -q && echo "that is all")" "that is all" "nothing runs any more"

# --- builds that fail --------------------------------------------------------------

thaw build bad --rootfs "$root" --memory 128 --port 8080 -- \
	/bin/sh -c 'echo no config; exit 7' >"$log" 2>&1
is $? 1 "an application that ends fails the build"
grep -q "ended with code 7 before it was ready.*no config" "$log"
ok $? "with its code and its last words" "$log"
thaw build bad --rootfs "$root" --memory 128 --port 81 --ready-timeout 3 \
	--entrypoint /bin/app >"$log" 2>&1
is $? 1 "a port that nobody opens fails the build"
grep -q "nothing listened on port 81 within 3 s" "$log"
ok $? "and says so" "$log"
thaw build bad --rootfs "$root" --memory 128 --entrypoint /bin/nothing \
	>"$log" 2>&1
is $? 3 "a program that is not there fails the build: exit code 3"
thaw build bad --rootfs "$root" --disk 1 --entrypoint /bin/app >"$log" 2>&1
is $? 5 "a disk too small is exit code 5"
timeout 8 "$THAW_BIN/thaw" build bad --rootfs "$root" --memory 128 \
	--port 81 --entrypoint /bin/app >"$log" 2>&1
is $? 124 "a build is under way"
clean 1
ok $? "a build whose client goes away is cancelled, and leaves nothing"
is "$(thaw images -q)" "demo" "none of them left an image"
thaw build quiet --rootfs "$root" --memory 128 -- /bin/sleep 100000 >"$log" 2>&1
ok $? "without a port it is ready once it is quiet" "$log"
thaw rmi demo quiet >"$log" 2>&1
ok $? "rmi" "$log"
clean 0
ok $? "and nothing of their builds is left"
