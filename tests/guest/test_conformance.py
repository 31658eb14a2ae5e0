#!/usr/bin/python3
# timeout: 1500
"""The life of a microVM through AWS's own clients, with real guests: an image from
a zip, run, token, an HTTPS call at the endpoint, suspend, a call that resumes it,
shell, terminate; tags and the rest on the way. TAP."""
import asyncio
import http.client
import json
import os
import socket
import ssl
import sys
import time

import lifecycle_rig as lr
from lifecycle_rig import rig
import image_bases  # noqa: E402  of tests/engine, which lifecycle_rig knows

sys.path.insert(0, os.path.join(lr.HERE, "..", "conformance"))
import clients  # noqa: E402
import live  # noqa: E402
from clients import CONNECTOR  # noqa: E402
from live import BASE, ROLE, good, image_arn, refused  # noqa: E402

PORTS = rig.free_port(), rig.free_port()
site = lr.Site("--bases", image_bases.store(), "--listen", f"127.0.0.1:{PORTS[0]}",
               "--endpoint", f"127.0.0.1:{PORTS[1]}")
t = site.thawd
files = live.Files()
both = []
NAME, ARN = "conf", image_arn("conf")
APP, HOOKS = 8080, 9000
vms = {}

# An application and its hooks, an answer each: what it was told it tells.
HANDLER = r"""#!/bin/sh
read -r method path version
cr=$(printf '\r')
length=0
while read -r h; do
	h=${h%"$cr"}
	[ -n "$h" ] || break
	case $h in
	[Cc]ontent-[Ll]ength:*) length=${h#*:} ;;
	*[Pp]roxy-*) echo "stripped? $h" >>/tmp/calls ;;
	esac
done
body=$(head -c $((length)))
case $path in
/aws/lambda-microvms/runtime/v1/*) echo "${path##*/} $body" >>/tmp/calls ;;
esac
case $path in
/calls) out=$(cat /tmp/calls) ;;
/set/*) echo "${path#/set/}" >/tmp/state && out=set ;;
/state) out=$(cat /tmp/state) ;;
*) out="Hello, World! $GREETING" ;;
esac
printf 'HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s' \
	${#out} "$out"
"""
CODE = files.zip("conf", {
    "Dockerfile": "FROM localhost/busybox:1\nCOPY handler /app/handler\n"
    "RUN chmod 755 /app/handler\nEXPOSE 8080\n"
    "CMD nc -ll -p 9000 -e /app/handler & exec nc -ll -p 8080 -e /app/handler\n",
    "handler": HANDLER})
SPEC = {
    "baseImageArn": BASE, "buildRoleArn": ROLE, "codeArtifact": {"uri": CODE},
    "environmentVariables": {"GREETING": "from a guest"},
    "resources": [{"minimumMemoryInMiB": 512}],
    "hooks": {"port": HOOKS, "microvmHooks": {
        k: v for h in ("run", "resume", "suspend", "terminate")
        for k, v in ((h, "ENABLED"), (h + "TimeoutInSeconds", 60))},
        "microvmImageHooks": {"ready": "ENABLED", "readyTimeoutInSeconds": 600,
                              "validate": "ENABLED",
                              "validateTimeoutInSeconds": 600}},
    "tags": {"team": "blue"},
}


def begin():
    site.start()
    key = clients.key_of(os.path.join(t.state, "keys"))
    url = f"http://127.0.0.1:{PORTS[0]}"
    both.extend([clients.Boto(url, key=key), clients.Js(url, key=key)])


def wait(c, op, states, seconds, **given):
    end = time.time() + seconds
    while True:
        r = c.call(op, **given)
        if not r.ok or r["state"] in states or time.time() > end:
            return r
        time.sleep(0.5)


def wait_vm(c, ident, state, seconds=rig.PATIENCE):
    return wait(c, "GetMicrovm", (state, "TERMINATED"), seconds,
                microvmIdentifier=ident)


class Https(http.client.HTTPSConnection):
    """To a microVM's host name, which this machine's resolver need not know."""

    def connect(self):
        s = socket.create_connection(("127.0.0.1", PORTS[1]), self.timeout)
        self.sock = self._context.wrap_socket(s, server_hostname=self.host)


def tls():
    return ssl.create_default_context(cafile=t.host()["endpointCa"])


def get(endpoint, token, path="/", port=None, timeout=300):
    """(status, body) of https://ENDPOINT/PATH."""
    host, at = endpoint.rsplit(":", 1)
    rig.check(int(at) == PORTS[1], "the endpoint's name has its port") \
        if int(at) != PORTS[1] else None
    c = Https(host, int(at), timeout=timeout, context=tls())
    headers = {"X-aws-proxy-auth": token} if token else {}
    if port:
        headers["X-aws-proxy-port"] = str(port)
    try:
        c.request("GET", path, headers=headers)
        r = c.getresponse()
        return r.status, r.read().decode(errors="replace")
    finally:
        c.close()


def token_for(c, ident, *ports, op="CreateMicrovmAuthToken"):
    more = {"allowedPorts": [{"port": p} for p in ports]} if ports else {}
    r = good(c.call(op, microvmIdentifier=ident, expirationInMinutes=30, **more),
             op, c.name)
    return (r.get("authToken") or {}).get("X-aws-proxy-auth", "")


# --- the image ------------------------------------------------------------------

def test_image():
    c, other = both
    r = good(c.call("CreateMicrovmImage", name=NAME, clientToken="one", **SPEC),
             "CreateMicrovmImage", c.name)
    rig.equal((r.get("imageArn"), r.get("imageVersion")), (ARN, "1.0"), "its ARN")
    refused(other.call("RunMicrovm", imageIdentifier=ARN), 404,
            "ResourceNotFoundException", "No active version",
            "it does not run before it is built")
    begin_at = time.time()
    g = wait(other, "GetMicrovmImage", ("CREATED", "CREATE_FAILED"), 900,
             imageIdentifier=ARN)
    rig.equal(g.get("state"), "CREATED", "it is built, started and frozen")
    rig.diag(f"built in {time.time() - begin_at:.0f} s")
    b = other.call("ListMicrovmImageBuilds", imageIdentifier=ARN,
                   imageVersion="1.0")["items"][0]
    d = good(other.call("GetMicrovmImageBuild", imageIdentifier=ARN,
                        imageVersion="1.0", buildId=b["buildId"]),
             "GetMicrovmImageBuild", other.name)
    rig.check(d["buildState"] == "SUCCESSFUL" and
              d["snapshotBuild"].get("memorySnapshotSizeInBytes", 0) > 1 << 20,
              "its snapshot has a size", d)
    v = good(other.call("GetMicrovmImageVersion", imageIdentifier=ARN,
                        imageVersion="1.0"), "GetMicrovmImageVersion", other.name)
    rig.equal((v["state"], v["status"], v.get("hooks")),
              ("SUCCESSFUL", "ACTIVE", SPEC["hooks"]), "its version")


# --- two microVMs, one each --------------------------------------------------------

def test_run():
    for c in both:
        r = good(c.call("RunMicrovm", imageIdentifier=ARN,
                        clientToken="r" + c.name, runHookPayload=c.name,
                        ingressNetworkConnectors=[
                            CONNECTOR + "HTTP_INGRESS",
                            CONNECTOR + "SHELL_INGRESS"],
                        idlePolicy={"maxIdleDurationSeconds": 3600,
                                    "suspendedDurationSeconds": 3600,
                                    "autoResumeEnabled": True}),
                 "RunMicrovm", c.name)
        g = good(wait_vm(c, r["microvmId"], "RUNNING"), "GetMicrovm", c.name)
        rig.equal(g["state"], "RUNNING", f"{c.name}: RUNNING")
        again = c.call("RunMicrovm", imageIdentifier=ARN,
                       clientToken="r" + c.name, runHookPayload=c.name,
                       ingressNetworkConnectors=[
                           CONNECTOR + "HTTP_INGRESS",
                           CONNECTOR + "SHELL_INGRESS"],
                       idlePolicy={"maxIdleDurationSeconds": 3600,
                                   "suspendedDurationSeconds": 3600,
                                   "autoResumeEnabled": True})
        rig.equal(again.get("microvmId"), r["microvmId"],
                  f"{c.name}: once for its client token")
        vms[c.name] = {"id": r["microvmId"], "endpoint": r["endpoint"]}


def test_call():
    for c in both:
        vm = vms[c.name]
        vm["token"] = token_for(c, vm["id"], APP)
        rig.equal(get(vm["endpoint"], vm["token"]),
                  (200, "Hello, World! from a guest"),
                  f"{c.name}: HTTPS at the endpoint")
        rig.equal(get(vm["endpoint"], vm["token"], f"/set/{c.name}"),
                  (200, "set"), f"{c.name}: it keeps something")
        status, told = get(vm["endpoint"], vm["token"], "/calls")
        told = told.splitlines()
        rig.equal([line.split(" ")[0] for line in told], ["ready", "run"],
                  f"{c.name}: the hooks it was called by, and no proxy headers")
        rig.equal(json.loads(told[-1].split(" ", 1)[1]),
                  {"microvmId": vm["id"], "runHookPayload": c.name},
                  f"{c.name}: what the run hook was told")


def test_scopes():
    a, b = (vms[c.name] for c in both)
    for vm, other, c in ((a, b, both[0]), (b, a, both[1])):
        rig.equal(get(vm["endpoint"], None)[0], 401, f"{c.name}: no token")
        rig.equal(get(vm["endpoint"], other["token"])[0], 403,
                  f"{c.name}: the other microVM's token")
        status, text = get(vm["endpoint"], vm["token"], port=HOOKS)
        rig.check(status == 403 and "Access to port denied" in text,
                  f"{c.name}: another port", (status, text))
        both_ports = token_for(c, vm["id"], APP, HOOKS)
        rig.equal(get(vm["endpoint"], both_ports, port=HOOKS)[0], 200,
                  f"{c.name}: a token for two ports")
        all_ports = good(c.call("CreateMicrovmAuthToken", expirationInMinutes=30,
                                microvmIdentifier=vm["id"],
                                allowedPorts=[{"allPorts": {}}]),
                         "CreateMicrovmAuthToken", c.name)["authToken"]
        rig.equal(get(vm["endpoint"], all_ports["X-aws-proxy-auth"],
                      port=HOOKS)[0], 200, f"{c.name}: a token for all")
        rig.equal(get(vm["endpoint"], all_ports["X-aws-proxy-auth"],
                      port=4444)[0], 502, f"{c.name}: where nothing listens")
        t0 = vm["token"]
        flipped = t0[:-3] + ("A" if t0[-3] != "A" else "B") + t0[-2:]
        rig.equal(get(vm["endpoint"], flipped)[0], 403,
                  f"{c.name}: an altered token")
        shell = token_for(c, vm["id"], op="CreateMicrovmShellAuthToken")
        rig.equal(get(vm["endpoint"], shell)[0], 403,
                  f"{c.name}: a shell's token for the application")


# --- suspended, and back ----------------------------------------------------------

def test_suspend():
    for c in both:
        vm = vms[c.name]
        good(c.call("SuspendMicrovm", microvmIdentifier=vm["id"]),
             "SuspendMicrovm", c.name)
        rig.equal(wait_vm(c, vm["id"], "SUSPENDED").get("state"), "SUSPENDED",
                  f"{c.name}: SUSPENDED")


def test_auto_resume():
    c = both[0]
    vm = vms[c.name]
    rig.equal(get(vm["endpoint"], vm["token"], "/state"), (200, c.name),
              "a call resumes it, and is answered out of its memory")
    rig.equal(wait_vm(c, vm["id"], "RUNNING").get("state"), "RUNNING",
              "it is RUNNING")
    told = get(vm["endpoint"], vm["token"], "/calls")[1].splitlines()
    rig.equal([line.split(" ")[0] for line in told],
              ["ready", "run", "suspend", "resume"], "with all its hooks")


def test_resume():
    c = both[1]
    vm = vms[c.name]
    good(c.call("ResumeMicrovm", microvmIdentifier=vm["id"]), "ResumeMicrovm",
         c.name)
    rig.equal(wait_vm(c, vm["id"], "RUNNING").get("state"), "RUNNING",
              f"{c.name}: RUNNING")
    rig.equal(get(vm["endpoint"], vm["token"], "/state"), (200, c.name),
              f"{c.name}: with what it kept")


# --- a shell ----------------------------------------------------------------------

async def shell_says(endpoint, token, line):
    import websockets
    host = endpoint.rsplit(":", 1)[0]
    async with websockets.connect(
            f"wss://{endpoint}/shell", ssl=tls(), host="127.0.0.1",
            port=PORTS[1], server_hostname=host, open_timeout=rig.PATIENCE,
            ping_interval=None, close_timeout=rig.PATIENCE,
            subprotocols=["lambda-microvms",
                          "lambda-microvms.authentication." + token]) as ws:
        first = json.loads(await asyncio.wait_for(ws.recv(), rig.PATIENCE))
        await ws.send('{"type":"resize","cols":120,"rows":40}')
        await ws.send(line.encode())
        got = b""
        try:
            while True:
                part = await asyncio.wait_for(ws.recv(), rig.PATIENCE)
                got += part if isinstance(part, bytes) else part.encode()
        except websockets.ConnectionClosed:
            pass
        return first, got.decode(errors="replace"), ws.close_code


def test_shell():
    for c in both:
        vm = vms[c.name]
        token = token_for(c, vm["id"], op="CreateMicrovmShellAuthToken")
        first, got, code = asyncio.run(shell_says(
            vm["endpoint"], token, "echo $((6*7)) $(id -u); exit\n"))
        rig.check(first.get("type") == "session_init" and
                  first.get("session_id"), f"{c.name}: a session", first)
        rig.contains(got, "42 0", f"{c.name}: a shell answers, as root")
        rig.equal(code, 1000, f"{c.name}: and ends well")


# --- the end ------------------------------------------------------------------------

def test_tags():
    for c in both:
        good(c.call("TagResource", Resource=ARN, Tags={c.name: "was here"}),
             "TagResource", c.name)
        rig.check(c.call("ListTags", Resource=ARN)["Tags"].items() >= {
            "team": "blue", c.name: "was here"}.items(), f"{c.name}: tagged")
        good(c.call("UntagResource", Resource=ARN, TagKeys=[c.name]),
             "UntagResource", c.name)
    rig.equal(both[0].call("ListTags", Resource=ARN).get("Tags"),
              {"team": "blue"}, "the first one is left")


def test_restart():
    """Tokens and microVMs that are suspended outlive thawd."""
    c = both[0]
    vm = vms[c.name]
    good(c.call("SuspendMicrovm", microvmIdentifier=vm["id"]),
         "SuspendMicrovm", c.name)
    wait_vm(c, vm["id"], "SUSPENDED")
    t.stop()
    t.start()
    for other in both:
        other.again()
    rig.equal(get(vm["endpoint"], vm["token"], "/state"), (200, c.name),
              "a restart later its token is good, and it has its memory")


def test_terminate():
    for c in both:
        vm = vms[c.name]
        good(c.call("TerminateMicrovm", microvmIdentifier=vm["id"]),
             "TerminateMicrovm", c.name)
        g = good(wait_vm(c, vm["id"], "TERMINATED"), "GetMicrovm", c.name)
        rig.check(g["state"] == "TERMINATED" and g.get("terminatedAt"),
                  f"{c.name}: TERMINATED", g)
        rig.check(get(vm["endpoint"], vm["token"])[0] in (403, 404),
                  f"{c.name}: its token is dead")
        r = c.call("CreateMicrovmAuthToken", microvmIdentifier=vm["id"],
                   expirationInMinutes=5, allowedPorts=[{"port": APP}])
        rig.check(r.status in (404, 409) and r.typed, f"{c.name}: no new one", r)


def test_delete():
    good(both[1].call("DeleteMicrovmImage", imageIdentifier=ARN),
         "DeleteMicrovmImage", both[1].name)
    refused(both[0].call("GetMicrovmImage", imageIdentifier=ARN), 404,
            "ResourceNotFoundException", "conf", "the image is gone")
    refused(both[1].call("RunMicrovm", imageIdentifier=ARN), 404,
            "ResourceNotFoundException", "", "and runs no more")


status = rig.main([begin, test_image, test_run, test_call, test_scopes,
                   test_suspend, test_auto_resume, test_resume, test_shell,
                   test_tags, test_restart, test_terminate, test_delete])
for c in both:
    c.close()
files.close()
site.close()
sys.exit(status)
