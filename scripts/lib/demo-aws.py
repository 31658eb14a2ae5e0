#!/usr/bin/python3
"""What scripts/demo --aws does as a client of AWS Lambda MicroVMs: AWS's SDK for
Python (botocore, unmodified) towards thawd's API, and HTTPS and a WebSocket towards
the microVMs' endpoint. scripts/lib/demo-aws-run.sh starts thawd and this.

Environment: what `thaw env` printed (AWS_*, THAW_ENDPOINT_CA); DEMO_EXAMPLES,
the folder with hello-flask and hooks-flask; DEMO_WORK, where the zips go;
DEMO_START, milliseconds since 1970 at which it all began.
"""
import asyncio
import http.client
import json
import os
import socket
import ssl
import sys
import time
import zipfile

import botocore
import botocore.config
import botocore.session
import websockets

REGION = os.environ["AWS_REGION"]
BASE_IMAGE = f"arn:aws:lambda:{REGION}:aws:microvm-image:al2023-1"
BUILD_ROLE = "arn:aws:iam::000000000000:role/MicrovmBuildRole"
CONNECTOR = (f"arn:aws:lambda:{REGION}:aws:network-connector:"
             "aws-network-connector:")
LIMIT_S = 600  # of anything that is waited for
START_MS = int(os.environ["DEMO_START"])


def step(text):
    print(f"[{time.time() - START_MS / 1000:6.1f} s] {text}", flush=True)


def fail(text):
    sys.exit(f"aws-demo: FAILED: {text}")


def expect(ok, text):
    if not ok:
        fail(text)


def connect():
    """The SDK's client. What points it here is in the environment alone, but for
    releases from before AWS_ENDPOINT_URL_* (Debian 12's)."""
    old = tuple(map(int, botocore.__version__.split(".")[:2])) < (1, 31)
    url = os.environ["AWS_ENDPOINT_URL_LAMBDA_MICROVMS"] if old else None
    return botocore.session.get_session().create_client(
        "lambda-microvms", endpoint_url=url,
        config=botocore.config.Config(read_timeout=300,
                                      retries={"max_attempts": 1}))


# --- the endpoint ------------------------------------------------------------


class Connection(http.client.HTTPSConnection):
    """https://NAME.localhost is this machine, whatever its resolver says."""

    def connect(self):
        raw = socket.create_connection(("127.0.0.1", self.port), self.timeout)
        self.sock = trust().wrap_socket(raw, server_hostname=self.host)


def trust():
    return ssl.create_default_context(cafile=os.environ["THAW_ENDPOINT_CA"])


def split(endpoint):
    host, _, port = endpoint.partition(":")
    return host, int(port or 443)


def get(vm, token, port=None):
    """One request to https://ENDPOINT/: status and body."""
    headers = {"X-aws-proxy-auth": token}
    if port:
        headers["X-aws-proxy-port"] = str(port)
    c = Connection(*split(vm["endpoint"]), timeout=LIMIT_S)
    try:
        c.request("GET", "/", headers=headers)
        answer = c.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    finally:
        c.close()


def page(vm, token, port=None):
    status, body = get(vm, token, port)
    expect(status == 200, f"GET https://{vm['endpoint']}/: {status} {body}")
    return body


async def shell_session(vm, token, script):
    """Types the script into the microVM's shell; what it showed, and the code
    and reason that the WebSocket was closed with."""
    host, port = split(vm["endpoint"])
    shown = b""
    async with websockets.connect(
            f"wss://{host}:{port}/shell", ssl=trust(), host="127.0.0.1",
            port=port, server_hostname=host, open_timeout=LIMIT_S,
            close_timeout=10, subprotocols=[
                "lambda-microvms", "lambda-microvms.authentication." + token]
    ) as ws:
        hello = json.loads(await asyncio.wait_for(ws.recv(), LIMIT_S))
        expect(hello["type"] == "session_init", f"the shell began with {hello}")
        await ws.send(script.encode())
        try:
            while True:
                more = await asyncio.wait_for(ws.recv(), LIMIT_S)
                shown += more if isinstance(more, bytes) else b""
        except websockets.ConnectionClosed:
            pass
    return shown.decode(errors="replace"), ws.close_code, ws.close_reason


# --- images ------------------------------------------------------------------


def make_zip(example):
    """The example's files as an artifact: a zip with a Dockerfile at its root."""
    out = os.path.join(os.environ["DEMO_WORK"], example + ".zip")
    folder = os.path.join(os.environ["DEMO_EXAMPLES"], example)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        for name in ("Dockerfile", "app.py"):
            z.write(os.path.join(folder, name), name)
    os.chmod(out, 0o644)  # the API reads it with nobody's rights
    return out


def create_image(aws, name, example, **more):
    began = time.time()
    made = aws.create_microvm_image(
        name=name, baseImageArn=BASE_IMAGE, buildRoleArn=BUILD_ROLE,
        codeArtifact={"uri": "file://" + make_zip(example)},
        resources=[{"minimumMemoryInMiB": 512}], **more)
    arn = made["imageArn"]
    step(f"CreateMicrovmImage {name}, of a zip of examples/{example}: "
         f"{made['state']}")
    told = 0
    while True:
        image = aws.get_microvm_image(imageIdentifier=arn)
        if image["state"] not in ("CREATING", "PENDING"):
            break
        waited = time.time() - began
        expect(waited < LIMIT_S, f"{name} is still {image['state']}")
        if waited > told + 30:
            told += 30
            step(f"  {image['state']} for {told} s")
        time.sleep(1)
    expect(image["state"] == "CREATED", f"{name} is {image['state']}: "
           + why_not(aws, arn, made["imageVersion"]))
    step(f"  {image['state']} in {time.time() - began:.0f} s, version "
         f"{image['latestActiveImageVersion']}")
    return arn


def why_not(aws, arn, version):
    builds = aws.list_microvm_image_builds(imageIdentifier=arn,
                                           imageVersion=version)["items"]
    if not builds:
        return "no build of it is known"
    return aws.get_microvm_image_build(
        imageIdentifier=arn, imageVersion=version,
        buildId=builds[0]["buildId"]).get("stateReason", "no reason is told")


# --- microVMs ----------------------------------------------------------------


def wait_state(aws, vm, state):
    end = time.time() + LIMIT_S
    while True:
        now = aws.get_microvm(microvmIdentifier=vm["microvmId"])
        if now["state"] == state:
            return now
        expect(now["state"] != "TERMINATED", "the microVM ended: "
               + now.get("stateReason", ""))
        expect(time.time() < end, f"it is {now['state']}, not {state}")
        time.sleep(0.1)


def token_for(aws, vm, port):
    answer = aws.create_microvm_auth_token(
        microvmIdentifier=vm["microvmId"], expirationInMinutes=30,
        allowedPorts=[{"port": port}])
    return answer["authToken"]["X-aws-proxy-auth"]


def announcement(aws):
    """The application of the announcement: no hooks, its own port."""
    arn = create_image(aws, "hello-flask", "hello-flask")
    vm = aws.run_microvm(imageIdentifier=arn)
    step(f"RunMicrovm: {vm['microvmId']} at https://{vm['endpoint']}/")
    vm = wait_state(aws, vm, "RUNNING")
    token = token_for(aws, vm, 5000)
    body = page(vm, token, 5000)
    expect(body == "Hello, World!", f"it answered {body!r}")
    step(f"GET / with X-aws-proxy-port: 5000: {body}")
    status, _ = get(vm, token, 5001)
    expect(status == 403, f"the token opened another port: {status}")
    status, _ = get(vm, token[:-4] + "AAAA", 5000)
    expect(status == 403, f"an altered token was taken: {status}")
    step("  another port and an altered token: 403")
    aws.terminate_microvm(microvmIdentifier=vm["microvmId"])
    wait_ended(aws, vm)
    aws.delete_microvm_image(imageIdentifier=arn)
    step("TerminateMicrovm, DeleteMicrovmImage")


def wait_ended(aws, vm):
    end = time.time() + LIMIT_S
    while aws.get_microvm(microvmIdentifier=vm["microvmId"])["state"] != \
            "TERMINATED":
        expect(time.time() < end, "it does not terminate")
        time.sleep(0.1)


def hooks():
    life = {}
    for name in ("run", "resume", "suspend", "terminate"):
        life[name] = "ENABLED"
        life[name + "TimeoutInSeconds"] = 30
    return {"port": 9000, "microvmHooks": life, "microvmImageHooks": {
        "ready": "ENABLED", "readyTimeoutInSeconds": 300,
        "validate": "ENABLED", "validateTimeoutInSeconds": 300}}


def first_answer(aws, arn):
    """From the run to the application's first answer: microVM, token, ms."""
    began = time.time()
    vm = aws.run_microvm(
        imageIdentifier=arn, runHookPayload=json.dumps({"session": "blue"}),
        idlePolicy={"maxIdleDurationSeconds": 900, "autoResumeEnabled": True,
                    "suspendedDurationSeconds": 3600},
        ingressNetworkConnectors=[CONNECTOR + "HTTP_INGRESS",
                                  CONNECTOR + "SHELL_INGRESS"])
    vm = wait_state(aws, vm, "RUNNING")
    token = token_for(aws, vm, 8080)
    told = json.loads(page(vm, token))
    ms = round((time.time() - began) * 1000)
    expect(told["session"] == "blue" and told["count"] == 1
           and told["microvm"] == vm["microvmId"] and told["log"] == ["run"],
           f"the first page says {told}")
    step(f"RunMicrovm, token, GET /: first answer after {ms} ms; its run hook "
         "was told the session and the id")
    return vm, token, ms


def auto_resume(aws, vm, token):
    aws.suspend_microvm(microvmIdentifier=vm["microvmId"])
    wait_state(aws, vm, "SUSPENDED")
    step("SuspendMicrovm: SUSPENDED, no process and no memory are left of it")
    began = time.time()
    told = json.loads(page(vm, token))
    ms = round((time.time() - began) * 1000)
    expect(told["count"] == 2 and told["session"] == "blue"
           and told["log"] == ["run", "suspend", "resume"],
           f"after the resume it says {told}")
    state = aws.get_microvm(microvmIdentifier=vm["microvmId"])["state"]
    expect(state == "RUNNING", f"it answers and is {state}")
    step(f"GET / of the suspended one: it was resumed and answered after {ms} "
         "ms, count 2, hooks called")
    return ms


def open_shell(aws, vm):
    answer = aws.create_microvm_shell_auth_token(
        microvmIdentifier=vm["microvmId"], expirationInMinutes=5)
    shown, code, why = asyncio.run(shell_session(
        vm, answer["authToken"]["X-aws-proxy-auth"],
        "cat /var/tmp/state.json; echo; echo answer-$((6 * 7)); exit\n"))
    expect("answer-42" in shown and '"session": "blue"' in shown,
           f"the shell showed {shown!r}")
    expect(code == 1000, f"the shell was closed with {code} {why}")
    step("shell at wss://…/shell: it reads the file that the suspend hook wrote")


def walk_through(aws):
    arn = create_image(aws, "hooks-flask", "hooks-flask", hooks=hooks())
    vm, token, first_ms = first_answer(aws, arn)
    resume_ms = auto_resume(aws, vm, token)
    open_shell(aws, vm)
    aws.terminate_microvm(microvmIdentifier=vm["microvmId"])
    wait_ended(aws, vm)
    status, _ = get(vm, token)
    expect(status in (403, 404), f"its endpoint still answers {status}")
    aws.delete_microvm_image(imageIdentifier=arn)
    step("TerminateMicrovm: its endpoint is gone too; DeleteMicrovmImage")
    return first_ms, resume_ms


def main():
    aws = connect()
    step(f"botocore {botocore.__version__} towards "
         f"{os.environ['AWS_ENDPOINT_URL_LAMBDA_MICROVMS']}")
    announcement(aws)
    first_ms, resume_ms = walk_through(aws)
    expect(not aws.list_microvm_images()["items"], "an image was left")
    print(f"aws-demo: ok first_answer_ms={first_ms} "
          f"auto_resume_ms={resume_ms}", flush=True)


main()
