#!/bin/bash
# The demo of AWS's contract, from thawd's start to its end: thawd with its API and
# its endpoint on the loopback interface, and demo-aws.py as its client. scripts/demo
# --aws prepares what it needs and runs it as root, on this host or in kvmbox.
# Environment: THAW_BIN, THAW_KERNEL, THAW_INITRD; DEMO_BASES, the base images'
# store, or a tar of it; DEMO_PYTHONPATH, a folder with botocore, or
# nothing for the system's; DEMO_MODE (host or kvmbox).
set -euo pipefail
# shellcheck source=scripts/lib/demo-thawd.sh
source "$(dirname "$0")/demo-thawd.sh"

LIB=$(cd "$(dirname "$0")" && pwd -P)
API_PORT=${DEMO_API_PORT:-8480}
ENDPOINT_PORT=${DEMO_ENDPOINT_PORT:-8443}

# The SDK, and what points it here: the environment that thaw env prints.
prepare_client()
{
	local vars

	if [[ -n ${DEMO_PYTHONPATH:-} ]]; then
		export PYTHONPATH=$DEMO_PYTHONPATH
	else
		"$LIB/aws-model" "$LIB/../../docs/openapi.json" "$state/model"
		export AWS_DATA_PATH=$state/model
	fi
	vars=$(thaw env) || die "thaw env failed"
	eval "$vars"
	# No profile of this user's comes in between.
	export AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null
	export AWS_EC2_METADATA_DISABLED=true
	unset AWS_PROFILE
	export DEMO_START=$demo_start DEMO_WORK=$scratch
	export DEMO_EXAMPLES=$LIB/../../examples
}

# Sets scratch, a folder for the artifacts, which the API reads with the rights of
# nobody, and bases.
prepare_files()
{
	scratch=$(mktemp -d "${DEMO_STATE:-/var/lib}/thaw-demo.XXXXXX")
	chmod 755 "$scratch"
	bases=$DEMO_BASES
	[[ ! -d $bases ]] || return 0
	bases=$scratch/bases
	mkdir -m 700 "$bases"
	tar --extract --xattrs --xattrs-include=security.capability \
		--same-owner --same-permissions --file "$DEMO_BASES" \
		--directory "$bases"
	step "unpacked the base image"
}

main()
{
	export LC_ALL=C.UTF-8
	DEMO_NAME=aws-demo
	demo_start=$(now_ms)
	trap cleanup EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP
	prepare_files
	start_thawd --listen "127.0.0.1:$API_PORT" \
		--endpoint "127.0.0.1:$ENDPOINT_PORT" --bases "$bases"
	step "thawd runs ($DEMO_MODE): its API at 127.0.0.1:$API_PORT," \
		"microVMs at https://*.localhost:$ENDPOINT_PORT/"
	prepare_client
	/usr/bin/python3 "$LIB/demo-aws.py"
}

main "$@"
