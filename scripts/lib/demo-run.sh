#!/bin/bash
# The demo itself, from thawd's start to its end; scripts/demo prepares what it
# needs and runs it as root, on this host or in kvmbox. Environment: THAW_BIN,
# THAW_KERNEL, THAW_INITRD, DEMO_TAR (the root file system with the application),
# DEMO_MODE (host or kvmbox), DEMO_KEEP (leave a copy running).
set -euo pipefail
# shellcheck source=scripts/lib/demo-thawd.sh
source "$(dirname "$0")/demo-thawd.sh"

COPIES=3
APP_PORT=8080
ENTRY=(/usr/bin/python3 /opt/counter/app.py)

# forward ID: opens a port of this host to the application; sets port.
forward()
{
	local line fd

	exec {fd}< <(exec "$THAW_BIN/thaw" forward "$1" "0:$APP_PORT" 2>>"$state/forward.log")
	forwards+=("$!")
	IFS= read -r -t 60 line <&"$fd" || die "thaw forward $1 gave no address:" \
		"$(tail -n 1 "$state/forward.log")"
	# "127.0.0.1:40123 -> copy1:8080"
	line=${line%% *}
	port=${line##*:}
	[[ $port =~ ^[0-9]+$ ]] || die "thaw forward: no port in '$line'"
}

# http METHOD PORT PATH [BODY]: one request without starting a program; sets
# body; fails when there is no answer or not a 200.
http()
{
	# Bash complains about every connection that a guest refuses.
	http_request "$@" 2>/dev/null
}

http_request()
{
	local fd line status='' payload=${4:-}

	exec {fd}<>"/dev/tcp/127.0.0.1/$2" || return 1
	{
		printf '%s %s HTTP/1.0\r\nHost: localhost\r\n' "$1" "$3"
		printf 'Content-Length: %d\r\n\r\n%s' "${#payload}" "$payload"
	} >&"$fd" || true
	IFS= read -r -t 30 status <&"$fd" || true
	while IFS= read -r -t 30 line <&"$fd" && [[ $line != $'\r' ]]; do
		:
	done
	IFS= read -r -d '' -t 30 body <&"$fd" || true
	exec {fd}>&-
	[[ $status == HTTP/1.?\ 200\ * ]]
}

# first_answer PORT: the application's first answer, into body; asked_ms and
# answered_ms are when.
first_answer()
{
	local deadline=$((SECONDS + 600))

	while :; do
		asked_ms=$(now_ms)
		! http GET "$1" / || break
		((SECONDS < deadline)) || die "no answer on port $1 in 600 s"
		# A moment without a program started: boots are not disturbed.
		IFS= read -r -t 0.02 <&"$never" || true
	done
	answered_ms=$(now_ms)
}

field()
{
	jq -er "$1" <<<"$body" || die "the answer has no $1: $body"
}

median()
{
	printf '%s\n' "$@" | sort -n | sed -n "$((($# + 1) / 2))p"
}

mib()
{
	awk -v b="$1" 'BEGIN { printf "%.1f", b / 1048576 }'
}

build_image()
{
	local t

	t=$(now_ms)
	thaw build counter --rootfs "$DEMO_TAR" --memory 512M --port "$APP_PORT" \
		-- "${ENTRY[@]}" >"$state/build.log" 2>&1 || {
		tail -n 40 "$state/build.log" >&2
		die "thaw build failed"
	}
	step "built the image 'counter' in $((($(now_ms) - t + 500) / 1000)) s:" \
		"booted, application started, frozen"
}

cold_boots()
{
	local n t id

	for ((n = 1; n <= COPIES; n++)); do
		t=$(now_ms)
		id=$(thaw run counter --cold --wait)
		forward "$id"
		first_answer "$port"
		cold+=($(($(now_ms) - t)))
		thaw rm -f "$id" >/dev/null
		step "for comparison, cold boot $n: first answer after" \
			"${cold[-1]} ms"
	done
}

thaw_copies()
{
	local n t id

	for ((n = 1; n <= COPIES; n++)); do
		t=$(now_ms)
		id=$(thaw run counter --name "copy$n" --wait)
		debug "run returned after $(($(now_ms) - t)) ms"
		forward "$id"
		debug "forwarded after $(($(now_ms) - t)) ms"
		first_answer "$port"
		thawed+=($(($(now_ms) - t)))
		ids+=("$id") ports+=("$port")
		check_answer "$n"
		step "thawed copy$n: first answer after ${thawed[-1]} ms:" \
			"count $count, uuid ${uuid:0:8}…, clock off by $off ms"
	done
	[[ $(printf '%s\n' "${uuids[@]}" | sort -u | wc -l) == "$COPIES" ]] ||
		die "two copies gave the same uuid4: ${uuids[*]}"
}

# The answer in body, of a fresh copy: counts from 1, right clock. The guest's
# time must lie between the request's and the answer's; off is by how much not.
check_answer()
{
	local there

	count=$(field .count)
	uuid=$(field .uuid)
	there=$(field '.time * 1000 | floor')
	off=0
	((there >= asked_ms)) || off=$((asked_ms - there))
	((there <= answered_ms)) || off=$((there - answered_ms))
	((count == 1)) || die "copy$1 counts $count at its first answer, not 1"
	((off <= 500)) || die "copy$1's clock is off by $off ms"
	uuids+=("$uuid")
}

independent_counts()
{
	local n

	http GET "${ports[0]}" / || die "copy1 does not answer"
	http GET "${ports[0]}" / || die "copy1 does not answer"
	count=$(field .count)
	((count == 3)) || die "copy1 counts $count, not 3"
	http GET "${ports[1]}" / || die "copy2 does not answer"
	count=$(field .count)
	((count == 2)) || die "copy2 counts $count, not 2: copies are not independent"
	step "the counts are independent: copy1 at 3, copy2 at 2"
}

# What copy1 holds in memory for itself: its private pages.
measure_sharing()
{
	local pid

	pid=$(thaw inspect --json "${ids[0]}" | jq -er .thaw.pid)
	own_kib=$(awk '/^Anonymous:/{print $2}' "/proc/$pid/smaps_rollup")
}

suspend_resume()
{
	local t pid n

	http POST "${ports[0]}" /file "written before the suspend" ||
		die "copy1 did not take the file"
	pid=$(thaw inspect --json "${ids[0]}" | jq -er .thaw.pid)
	[[ -d /proc/$pid ]] || die "copy1 has no process $pid"
	t=$(now_ms)
	thaw suspend "${ids[0]}" >/dev/null
	suspend_ms=$(($(now_ms) - t))
	for ((n = 0; n < 50; n++)); do
		[[ -d /proc/$pid ]] || break
		sleep 0.1
	done
	[[ ! -d /proc/$pid ]] || die "copy1 is suspended, but process $pid lives"
	step "suspended copy1 in $suspend_ms ms: its process and memory are gone"
	t=$(now_ms)
	thaw resume "${ids[0]}" >/dev/null
	first_answer "${ports[0]}"
	resume_ms=$(($(now_ms) - t))
	count=$(field .count)
	((count == 4)) || die "after the resume copy1 counts $count, not 4"
	http GET "${ports[0]}" /file || die "copy1 lost its file"
	[[ $body == "written before the suspend" ]] || die "copy1's file is '$body'"
	step "resumed copy1: first answer after $resume_ms ms, count 4, and its" \
		"file is there"
}

report()
{
	local sizes mem_raw note=''

	sizes=$(thaw images --json |
		jq -e '.[] | select(.name == "counter") | .versions[0].sizes')
	mem_raw=$(jq -er .memoryNonZeroBytes <<<"$sizes")
	raw=$((mem_raw + $(jq -er .diskNonZeroBytes <<<"$sizes")))
	stored=$(jq -er '.uniqueBytes + .mapBytes' <<<"$sizes")
	cold_ms=$(median "${cold[@]}")
	thaw_ms=$(median "${thawed[@]}")
	[[ $DEMO_MODE != kvmbox ]] || note=' (emulated: only ratios mean anything)'
	cat <<-END

		  what                                        $DEMO_MODE$note
		  ------------------------------------------------------------
		  cold boot to the first answer     $(printf %10d "$cold_ms") ms   median of $COPIES
		  thaw to the first answer          $(printf %10d "$thaw_ms") ms   median of $COPIES, $((cold_ms / (thaw_ms > 0 ? thaw_ms : 1))) times sooner
		  suspend                           $(printf %10d "$suspend_ms") ms
		  resume to the first answer        $(printf %10d "$resume_ms") ms
		  memory, not zero                  $(printf %10s "$(mib "$mem_raw")") MiB  of 512
		  memory and disk, not zero         $(printf %10s "$(mib "$raw")") MiB
		  stored                            $(printf %10s "$(mib "$stored")") MiB  $((stored * 100 / raw)) %
		  a copy's own memory               $(printf %10s "$(mib $((own_kib * 1024)))") MiB  the other $((100 - own_kib * 102400 / mem_raw)) % is shared

	END
}

finish()
{
	thaw rm -f "${ids[1]}" "${ids[2]}" >/dev/null
	if [[ -z $DEMO_KEEP ]]; then
		thaw rm -f "${ids[0]}" >/dev/null
		thaw rmi counter >/dev/null
		step "removed all"
	fi
	printf 'demo: ok cold_boot_ms=%d thaw_ms=%d suspend_ms=%d resume_ms=%d raw_mib=%s stored_mib=%s mode=%s\n' \
		"$cold_ms" "$thaw_ms" "$suspend_ms" "$resume_ms" \
		"$(mib "$raw")" "$(mib "$stored")" "$DEMO_MODE"
}

# thawd goes on; what to type next.
keep()
{
	cat <<-END

		copy1 is running. To try next:
		  export THAW_SOCKET=$THAW_SOCKET PATH=$THAW_BIN:\$PATH
		  curl http://127.0.0.1:${ports[0]}/
		  thaw exec -it copy1 /bin/bash
		  thaw run counter --name mine --wait
	END
	if [[ $DEMO_MODE == kvmbox ]]; then
		echo "This is a shell in the VM; everything ends with it."
		PATH=$THAW_BIN:$PATH bash --norc -i || true
	else
		echo "Ctrl-C (or the end of this script) ends all of it."
		wait "$thawd"
	fi
}

main()
{
	# Programs start sooner without a locale to load, also where emulated.
	export LC_ALL=C
	demo_start=$(now_ms)
	forwards=() cold=() thawed=() ids=() ports=() uuids=()
	trap cleanup EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP
	trap '' PIPE # a guest that is not up yet closes its connections
	# A descriptor on which nothing ever comes: a pause without a program.
	exec {never}<> <(:)
	# shellcheck disable=SC2119
	start_thawd
	step "thawd runs ($DEMO_MODE)"
	build_image
	thaw_copies
	independent_counts
	measure_sharing
	suspend_resume
	cold_boots
	report
	finish
	[[ -z $DEMO_KEEP ]] || keep
}

main "$@"
