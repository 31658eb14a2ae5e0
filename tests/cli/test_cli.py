#!/usr/bin/python3
"""The command line against a fake thawd (fake_thawd.py). TAP on stdout.

usage: test_cli.py PATH-OF-thaw
"""
import json
import os
import pty
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from fake_thawd import (FakeThawd, Frames, UPGRADE, answer, chunked, error,
                        frame)

PATIENCE = 120  # seconds for whatever is waited for
THAW = os.path.abspath(sys.argv[1])
TOP = tempfile.mkdtemp(prefix="thaw-cli-test-")
SOCK = os.path.join(TOP, "s")
FAKE = FakeThawd(SOCK)
count = failed = 0
ID = "microvm-0123abcd-1111-2222-3333-444455556666"
ARN = "arn:aws:lambda:us-east-1:000000000000:microvm-image:"
OK, ERROR, STDIN, STDOUT, STDERR, RESIZE, SIGNAL, EXIT = range(32, 40)


def check(ok, name, detail=""):
    global count, failed
    count += 1
    failed += not ok
    print(f"{'ok' if ok else 'not ok'} {count} - {name}")
    if not ok:
        for line in str(detail).splitlines()[:20]:
            print(f"#   {line}")
    sys.stdout.flush()


def thaw(*args, stdin="", env=None, socket_path=SOCK):
    FAKE.seen.clear()
    e = dict(os.environ, THAW_SOCKET=socket_path, LC_ALL="C.UTF-8")
    e.update(env or {})
    return subprocess.run([THAW, *args], input=stdin, capture_output=True,
                          text=True, timeout=PATIENCE, env=e)


def until(true):
    """Asks until the answer is true; the last one."""
    end = time.monotonic() + PATIENCE
    while True:
        got = true()
        if got or time.monotonic() > end:
            return got
        time.sleep(0.02)


def serve(table):
    """{"METHOD /path": answer bytes or callable}"""
    def handle(r, conn):
        a = table.get(f"{r.method} {r.path}")
        if a is None:
            return error(404, "ResourceNotFoundException",
                         f"no {r.method} {r.path}")
        return a(r, conn) if callable(a) else a
    FAKE.handle = handle


def vm(state="RUNNING", **more):
    v = {"microvmId": ID, "state": state, "imageArn": ARN + "demo",
         "imageVersion": "1.0", "startedAt": time.time() - 190,
         "thaw": {"name": "web", "labels": {"tier": "a", "b": "2"}}}
    v.update(more)
    return v


VM = f"/2025-09-09/microvms/{ID}"
VMS = "/2025-09-09/microvms"


def exit_codes():
    serve({})
    r = thaw("suspend", "nope")
    check(r.returncode == 3 and "no POST" in r.stderr and r.stdout == "",
          "404 is exit code 3, said on stderr", r)
    for status, kind, code in ((409, "ConflictException", 4),
                               (402, "ServiceQuotaExceededException", 5),
                               (429, "ThrottlingException", 5),
                               (400, "ValidationException", 1),
                               (500, "InternalServerException", 1)):
        serve({f"POST {VMS}": error(status, kind, "because", "Retry-After: 5\r\n")})
        r = thaw("run", "demo")
        check(r.returncode == code and r.stderr == "thaw: run: because "
              "(try again in 5 s)\n", f"{status} is exit code {code}", r)
    r = thaw("ps", socket_path=TOP + "/none")
    check(r.returncode == 125 and "cannot reach thawd" in r.stderr
          and "--socket" in r.stderr, "no thawd is exit code 125", r)
    for args in (["nonsense"], ["ps", "--nonsense"], ["run"], [],
                 ["wait", ID, "ASLEEP"], ["ps", "extra"],
                 ["build", "x", "--rootfs", "/r"],
                 ["build", "x", "--rootfs", "/r", "--kernel", "/k"],
                 ["build", "x", "--rootfs", "/r", "--entrypoint", "a 'b"],
                 ["build", "x", "--rootfs", "/r", "--memory", "lots",
                  "--entrypoint", "a"],
                 ["run", "x", "--label", "nolabel"],
                 ["run", "x", "--count", "2", "--name", "n"],
                 ["ps", "--filter", "colour=red"], ["forward", ID, "80"],
                 ["forward", ID, "8080:0"], ["exec", ID], ["--nonsense"],
                 ["exec", "-t", ID, "ls"],
                 ["build", "x"], ["build", "x", "a", "b"],
                 ["build", "x", "a", "--", "sh"],
                 ["build", "x", "a", "--entrypoint", "sh"],
                 ["build", "x", "--kernel", "/k", "--network"],
                 ["build", "x", "a", "--hook", "boot"],
                 ["build", "x", "a", "--hook", "ready=0"],
                 ["build", "x", "a", "--hook", "ready", "--hook", "run=61"],
                 ["build", "x", "a", "--hook", "run"],
                 ["build", "x", "a", "--hooks-port", "9000"],
                 ["run", "x", "--suspended", "5"],
                 ["run", "x", "--max-duration", "0"],
                 ["run", "x:1.0", "--version", "2.0"],
                 ["run", "x", "--no-auto-resume"],
                 ["run", "x", "--ingress", "ftp"],
                 ["call"], ["call", ID, "nopath"], ["call", ID, "/a b"],
                 ["call", ID, "/", "-H", "no header"],
                 ["call", ID, "/", "-H", "A: b\r\nC: d"],
                 ["call", ID, "/", "-H", "Content-Length: 5"],
                 ["call", ID, "/", "-X", "GET /x"],
                 ["call", ID, "/", "-p", "65536"],
                 ["token", ID, "-p", "0"], ["token", ID, "-p", "9-8"],
                 ["token", ID, "-p", "8-65536"], ["token", ID, "-p", "8-x"],
                 ["token", ID, "--minutes", "0"],
                 ["token", ID, "--minutes", "61"],
                 ["token", ID, "--shell", "--all-ports"],
                 ["token", ID, "-p", "1", "--all-ports"],
                 ["tag", "x", "novalue"], ["tag", "x", "=v"], ["untag", "x"],
                 ["top", "--sort", "colour"], ["top", "-i", "0"],
                 ["env", "--shell", "tcsh"], ["shell", ID, "--json"]):
        r = thaw(*args)
        check(r.returncode == 2 and r.stderr and not FAKE.seen,
              f"usage: {' '.join(args)!a}", r)


def pools():
    item = {"image": "demo", "imageVersion": "2.0", "size": 4, "parked": 3,
            "hits": 30, "misses": 10, "wasted": 2}
    serve({"GET /thaw/v1/pools": answer({"items": [item, dict(
               item, image="new", hits=0, misses=0)]}),
           "PUT /thaw/v1/pools/demo": lambda r, c: answer(
               dict(item, size=r.json["size"])),
           "DELETE /thaw/v1/pools/demo": answer({})})
    r = thaw("pool", "ls")
    lines = [x.split() for x in r.stdout.splitlines()]
    check(r.returncode == 0 and lines ==
          [["IMAGE", "VERSION", "SIZE", "PARKED", "HITS", "MISSES", "RATE",
            "WASTED"], ["demo", "2.0", "4", "3", "30", "10", "75.0%", "2"],
           ["new", "2.0", "4", "3", "0", "0", "-", "2"]],
          "pool ls prints a table", r)
    r = thaw("pool", "ls", "--json")
    check(json.loads(r.stdout)[0] == item, "pool ls --json", r)
    r = thaw("pool", "set", "demo", "9")
    check(r.returncode == 0 and r.stdout == "" and FAKE.seen[0].json ==
          {"size": 9}, "pool set", r)
    r = thaw("--json", "pool", "set", "demo", "0")
    check(json.loads(r.stdout)["size"] == 0, "pool set --json", r)
    r = thaw("pool", "rm", "demo", "nope")
    check(r.returncode == 3 and r.stdout == "demo\n" and
          "nope" in r.stderr, "pool rm", r)
    for args in (["pool"], ["pool", "get"], ["pool", "set", "demo"],
                 ["pool", "set", "demo", "-1"], ["pool", "set", "demo", "x"],
                 ["pool", "set", "demo", "3x"], ["pool", "ls", "demo"],
                 ["pool", "rm"]):
        r = thaw(*args)
        check(r.returncode == 2 and not FAKE.seen, f"usage: {' '.join(args)}",
              r)
    for shell in ("bash", "fish"):
        r = thaw("completion", shell)
        check("set ls rm" in r.stdout, f"completion of pool: {shell}", r)


def lists():
    serve({f"GET {VMS}": lambda r, c: answer(
        {"items": [vm()], "nextToken": "a=&b"} if "nextToken" not in r.query
        else {"items": [vm("TERMINATED", microvmId="microvm-ffff0000-x"),
                        vm("SUSPENDED", microvmId="microvm-eeee0000-x",
                           imageArn=ARN + "other",
                           thaw={"name": "", "labels": {}})]})})
    r = thaw("ps")
    lines = r.stdout.splitlines()
    check(r.returncode == 0 and len(lines) == 3
          and lines[0].split() == ["ID", "NAME", "IMAGE", "STATE", "CREATED",
                                   "LABELS"], "ps prints a table", r)
    check(re.fullmatch(r"microvm-0123abcd  web   demo   RUNNING    3 minutes "
                       r"ago  tier=a,b=2", lines[1]) is not None,
          "with name, image, state, age and labels", lines)
    check(FAKE.seen[1].query.get("nextToken") == "a=&b",
          "further pages are fetched with the token encoded",
          [x.target for x in FAKE.seen])
    check("microvm-ffff" not in r.stdout, "terminated ones are left out", r)
    check("microvm-ffff" in thaw("ps", "-a").stdout, "-a shows them")
    r = thaw("ps", "--no-header")
    check([x.split() for x in r.stdout.splitlines()]
          == [x.split() for x in lines[1:]], "--no-header", r)
    check(thaw("ps", "-q").stdout.splitlines() == [ID, "microvm-eeee0000-x"],
          "-q prints whole ids only")
    check(ID in thaw("ps", "--no-trunc").stdout, "--no-trunc")
    r = thaw("ps", "--json", "-a")
    check([v["state"] for v in json.loads(r.stdout)]
          == ["RUNNING", "TERMINATED", "SUSPENDED"], "--json is one array", r)
    r = thaw("ps", "-f", "label=a=b&c", "--filter", "state=suspended", "-q")
    check(r.stdout == "microvm-eeee0000-x\n"
          and FAKE.seen[0].query["label"] == "a=b&c", "filters", r)
    check(thaw("--json", "ps").stdout.startswith("["), "--json before the verb")
    image = {"name": "demo", "updatedAt": time.time() - 86400 * 3,
             "microvms": 2, "versions": [
                 {"version": "1.0", "state": "FAILED", "memoryMiB": 1,
                  "vcpus": 1, "sizes": {}},
                 {"version": "2.0", "state": "SUCCESSFUL", "memoryMiB": 512,
                  "vcpus": 2, "sizes": {"storedBytes": 52 << 20,
                                        "memoryNonZeroBytes": 100 << 20,
                                        "diskNonZeroBytes": 50 << 20}}]}
    serve({"GET /thaw/v1/images": answer({"items": [image]})})
    r = thaw("images", "--no-header")
    check(r.stdout.split() == "demo 2.0 SUCCESSFUL 3 days ago 512 MiB 2 150 MiB"
          " 52 MiB 2".split() and FAKE.seen[0].query == {},
          "images shows the newest version", r)
    check(thaw("images", "-q").stdout == "demo\n", "images -q")
    serve({f"GET {VMS}": answer({"items": [vm(
        thaw={"name": "a\x1b[31m\nb", "labels": {}})]})})
    r = thaw("ps")
    check("\x1b" not in r.stdout and len(r.stdout.splitlines()) == 2,
          "control characters of names are made harmless", repr(r.stdout))


def run_and_wait():
    polls = []

    def get(r, conn):
        polls.append(r.query)
        return answer(vm("RUNNING" if len(polls) > 1 else "PENDING"))
    serve({f"POST {VMS}": answer(vm("PENDING")), f"GET {VM}": get})
    r = thaw("run", "demo", "--name", "web", "-l", "k=v=w", "-l", "x=",
             "--payload", "hello", "--cold", "--wait", "--max-duration", "60")
    check(r.returncode == 0 and r.stdout == ID + "\n", "run prints the id", r)
    check(FAKE.seen[0].json == {
        "imageIdentifier": "demo", "name": "web", "cold": True,
        "labels": {"k": "v=w", "x": ""}, "runHookPayload": "hello",
        "maximumDurationInSeconds": 60}, "run's request", FAKE.seen[0].json)
    for args in (["demo:1.0"], ["demo", "--version", "1.0"]):
        thaw("run", *args)
        check(FAKE.seen[0].json == {"imageIdentifier": "demo",
                                    "imageVersion": "1.0"},
              f"run {' '.join(args)}", FAKE.seen[0].json)
    polls.clear()
    thaw("run", "demo", "--wait")
    check(len(polls) == 2 and polls[0]["wait"] == "RUNNING",
          "--wait asks until it is there", polls)
    with open(TOP + "/payload", "w") as f:
        f.write("from file")
    thaw("run", "demo", "--payload", "@" + TOP + "/payload")
    check(FAKE.seen[0].json["runHookPayload"] == "from file", "--payload @FILE")
    r = thaw("run", "demo", "--payload", "x" * 4097)
    check(r.returncode == 2 and "4096" in r.stderr, "a payload too long", r)
    r = thaw("run", "demo", "-n", "3")
    check(r.stdout == (ID + "\n") * 3, "--count", r)
    serve({f"GET {VM}": answer(vm("TERMINATED", stateReason="it crashed"))})
    r = thaw("wait", ID, "running")
    check(r.returncode == 4 and "it crashed" in r.stderr,
          "waiting for what cannot come is a conflict", r)
    serve({f"GET {VM}": answer(vm("SUSPENDED"))})
    r = thaw("wait", ID, "RUNNING", "--timeout", "0")
    check(r.returncode == 1 and "still SUSPENDED" in r.stderr,
          "a timeout is a failure", r)


def changes():
    state = ["RUNNING"]

    def change(to):
        def f(r, conn):
            state[0] = to
            return answer({})
        return f
    serve({f"POST {VM}/suspend": change("SUSPENDED"),
           f"POST {VM}/resume": change("RUNNING"),
           f"DELETE {VM}": change("TERMINATED"),
           f"GET {VM}": lambda r, c: answer(vm(state[0]))})
    r = thaw("suspend", ID)
    check(r.returncode == 0 and r.stdout == ID + "\n"
          and FAKE.seen[0].query["wait"] == "SUSPENDED", "suspend", r)
    r = thaw("resume", ID, "--json")
    check(json.loads(r.stdout)["state"] == "RUNNING", "resume --json", r)
    r = thaw("rm", ID)
    check((r.returncode, r.stderr) == (
        4, f"thaw: {ID}: it is RUNNING, and its state would be lost; 'thaw rm "
        f"-f {ID}' removes it\n") and state[0] == "RUNNING",
          "rm spares a running one, and says how", r)
    state[0] = "SUSPENDED"
    r = thaw("rm", ID)
    check((r.returncode, r.stdout, state[0]) == (0, ID + "\n", "TERMINATED"),
          "but not a suspended one", r)
    state[0] = "RUNNING"
    r = thaw("rm", "-f", ID, "unknown", ID)
    check(r.returncode == 0 and state[0] == "TERMINATED"
          and r.stdout == (ID + "\n") * 2, "rm -f of several", r)
    r = thaw("suspend", "unknown", ID)
    check(r.returncode == 3 and r.stdout == ID + "\n",
          "one failure of several is the exit code; the rest is done", r)
    r = thaw("resume", "a/b?c#d e")
    check(FAKE.seen[0].target.startswith(
        "/2025-09-09/microvms/a%2Fb%3Fc%23d%20e/resume"),
          "names are percent-encoded", FAKE.seen[0].target)
    serve({"GET /thaw/v1/microvms/web": answer({"a": {"b": 1}})})
    r = thaw("inspect", "web")
    check(json.loads(r.stdout) == {"a": {"b": 1}} and "\n" in r.stdout.strip(),
          "inspect pretty-prints", r)
    check(thaw("inspect", "gone").returncode == 3, "inspect of nothing")
    serve({"DELETE /2025-09-09/microvm-images/demo": answer({"state": "DELETED"})})
    check(thaw("rmi", "demo").stdout == "demo\n", "rmi")
    check(thaw("rmi", "-f", "other").returncode == 0, "rmi -f of nothing")
    serve({"DELETE /2025-09-09/microvm-images/demo/versions/1.0":
           answer({"state": "DELETED"})})
    check(thaw("rmi", "demo:1.0").stdout == "demo:1.0\n", "rmi of a version")
    check(thaw("rmi", "-f", "demo:2.0").returncode == 0,
          "rmi -f of none")
    serve({"GET /2025-09-09/microvm-images/web": answer(
        {"name": "webshop", "imageArn": "arn:aws:lambda:us-east-1:0:"
         "microvm-image:webshop"})})
    check(thaw("rmi", "-f", "web").returncode == 0 and len(FAKE.seen) == 1,
          "rmi -f of what another one's name begins with", FAKE.seen)


def builds():
    done = {"name": "demo", "version": "1.0", "sizes": {
        "storedBytes": 5 << 20, "memoryNonZeroBytes": 20 << 20,
        "totalMs": 2500}}
    lines = [{"progress": {"stage": "disk", "percent": 5, "text": "reading"}},
             {"log": "hello from \x1b[1mguest\n"},
             {"progress": {"stage": "boot", "percent": -1, "text": "booting"}},
             {"image": done}]
    text = b"".join(json.dumps(x).encode() + b"\n" for x in lines)
    serve({"POST /thaw/v1/images": chunked([text[:7], text[7:90], text[90:]])})
    r = thaw("build", "demo", "--rootfs", "rel/dir", "-p", "8080", "-m", "1G",
             "--disk", "300", "-c", "2", "-e", "A=b c", "-e", "HOME", "-u", "www",
             "-w", "/srv", "--entrypoint", "python3 -m 'my app' \"x\\\"y\" a\\ b",
             env={"HOME": "/h"})
    check(r.returncode == 0 and r.stdout
          == "demo 1.0: 20 MiB of pages, 5.0 MiB stored, built in 2.5 s\n",
          "build prints what it made", r)
    check(r.stderr == "disk: reading (5%)\nboot: booting\n",
          "progress is plain lines without a terminal", r.stderr)
    check(FAKE.seen[0].json == {
        "name": "demo", "rootfs": os.getcwd() + "/rel/dir", "readyPort": 8080,
        "memoryMiB": 1024, "diskMiB": 300, "vcpus": 2, "env": ["A=b c",
        "HOME=/h"], "user": "www", "workingDirectory": "/srv",
        "readyTimeoutSeconds": 300, "entrypoint":
        ["python3", "-m", "my app", 'x"y', "a b"]},
          "build's request", FAKE.seen[0].json)
    r = thaw("build", "demo", "--rootfs", "/r", "-v", "--", "sh", "-c",
             "a 'b' $c", "--json")
    check(FAKE.seen[0].json["entrypoint"] == ["sh", "-c", "a 'b' $c", "--json"]
          and not r.stdout.startswith("{"),
          "words after -- are taken as they are", FAKE.seen[0].json)
    check("hello from [1mguest" in r.stderr,
          "-v shows the guest's output, without escapes", r.stderr)
    r = thaw("build", "demo", "--rootfs", "/r", "extra", "--", "sh")
    check(r.returncode == 2, "words before -- are a mistake", r)
    r = thaw("build", "k", "--kernel", "/k.elf", "--cmdline", "a b", "--json")
    check(json.loads(r.stdout) == done and FAKE.seen[0].json["cmdline"] == "a b"
          and "entrypoint" not in FAKE.seen[0].json, "build --kernel --json", r)
    for kind, code in (("ENOSPC", 5), ("EACCES", 1), ("EBUSY", 4)):
        serve({"POST /thaw/v1/images": chunked([json.dumps(
            {"error": {"type": kind, "message": "full"}}).encode() + b"\n"])})
        r = thaw("build", "demo", "--rootfs", "/r", "--entrypoint", "x")
        check(r.returncode == code and r.stderr == "thaw: build: full\n",
              f"a failed build: {kind} is exit code {code}", r)
    serve({"POST /thaw/v1/images": chunked([text[:90]], end=b"")})
    r = thaw("build", "demo", "--rootfs", "/r", "--entrypoint", "x")
    check(r.returncode == 1 and "ended within" in r.stderr,
          "thawd's death during a build is a failure", r)
    serve({"POST /thaw/v1/images": chunked([text[:text.index(b'{"image')]])})
    r = thaw("build", "demo", "--rootfs", "/r", "--entrypoint", "x")
    check(r.returncode == 1 and "went away" in r.stderr,
          "an answer without a result is a failure", r)


def dockerfile_builds():
    """thaw build NAME PATH: what is asked, and what is shown of it."""
    done = {"name": "web", "version": "2.0", "sizes": {"totalMs": 1000}}
    log = "STEP 1: FROM x\nSTEP 2: RUN make\x1b[1m\n" + "".join(
        f"line {i}\n" for i in range(20))
    head = [{"progress": {"stage": "fetch", "percent": 0, "text": ""}},
            {"progress": {"stage": "build", "percent": 5, "text": "unpacking"}},
            {"log": log[:7]}, {"log": log[7:] + "no end"}]

    def lines(*more):
        return chunked([json.dumps(x).encode() + b"\n"
                        for x in head + list(more)])
    serve({"POST /thaw/v1/images": lines({"image": done})})
    r = thaw("build", "web", "some/dir", "--build-arg", "V=1 2", "--build-arg",
             "HOME", "--build-arg", "UNSET_HERE", "--network", "-m", "2G", "-p",
             "5000", "-e", "A=b", "--hook", "ready=60", "--hook", "validate",
             "--hook", "run=20", "--hooks-port", "9100", env={"HOME": "/h"})
    check(r.returncode == 0 and FAKE.seen[0].json == {
        "name": "web", "context": os.getcwd() + "/some/dir", "memoryMiB": 2048,
        "buildArgs": ["V=1 2", "HOME=/h"], "network": True, "readyPort": 5000,
        "env": ["A=b"], "readyTimeoutSeconds": 300, "hooks": {
            "port": 9100, "microvmImageHooks": {
                "ready": "ENABLED", "readyTimeoutInSeconds": 60,
                "validate": "ENABLED"},
            "microvmHooks": {"run": "ENABLED", "runTimeoutInSeconds": 20}}},
          "build PATH's request", FAKE.seen[0].json)
    shown = r.stderr.splitlines()
    check(shown[:4] == ["fetch", "build: unpacking (5%)", "STEP 1: FROM x",
                        "STEP 2: RUN make[1m"] and shown[-1] == "no end",
          "the steps' output is shown line by line, in plain text", r.stderr)
    r = thaw("build", "web", "/a.zip", "-q")
    check(r.stderr == "" and r.stdout.startswith("web 2.0: ")
          and FAKE.seen[0].json["context"] == "/a.zip"
          and not {"network", "hooks", "buildArgs", "entrypoint"}
          & set(FAKE.seen[0].json), "build PATH --quiet", r)
    bad = {"type": "ValidationException", "reason": "CONTAINER_BUILD_FAILED",
           "line": 5, "message": "Dockerfile line 5: RUN make: exit status 2"}
    serve({"POST /thaw/v1/images": lines({"error": bad})})
    r = thaw("build", "web", "/a", "-q")
    shown = r.stderr.splitlines()
    check(r.returncode == 1 and shown[-1] == "thaw: build: "
          "CONTAINER_BUILD_FAILED: Dockerfile line 5: RUN make: exit status 2"
          and shown[-2] == "  no end" and shown[-3] == "  line 19"
          and len(shown) == 14, "a failed build: reason, line and log's end", r)
    r = thaw("build", "web", "/a")
    check(r.stderr.count("line 19") == 1,
          "what has gone by is not said again", r.stderr)
    serve({"POST /thaw/v1/images": lines({"error": dict(
        bad, message="RUN make: exit status 2")})})
    r = thaw("build", "web", "/a", "-q")
    check(r.stderr.splitlines()[-1] == "thaw: build: CONTAINER_BUILD_FAILED, "
          "Dockerfile line 5: RUN make: exit status 2",
          "the line is named when the message does not", r.stderr)
    check(json.loads(thaw("build", "web", "/a", "-q", "--json").stdout)["line"]
          == 5, "and --json has the error")
    for reason, code in (("DISK_STORAGE_FULL", 5), ("S3_NO_SUCH_KEY", 3),
                         ("ARCHIVE_DOCKERFILE_NOT_FOUND", 3),
                         ("ARCHIVE_INVALID", 1)):
        serve({"POST /thaw/v1/images": lines({"error": dict(
            bad, reason=reason)})})
        check(thaw("build", "web", "/a").returncode == code,
              f"{reason} is exit code {code}")
    serve({"POST /thaw/v1/images": lines({"error": {
        "type": "ENOENT", "reason": "S3_NO_SUCH_KEY",
        "message": "cannot read '/a': No such file or directory"}})})
    r = thaw("build", "web", "/a", "-q")
    check((r.returncode, r.stderr.splitlines()[-1]) == (
        3, "thaw: build: cannot read '/a': No such file or directory"),
          "a path is not S3's", r)


def build_on_terminal():
    """The bar is drawn on a terminal, and log lines stay above it."""
    done = {"name": "web", "version": "1.0", "sizes": {}}
    steps = [{"progress": {"stage": "build", "percent": 40, "text": "RUN"}},
             {"log": "compiling\n"},
             {"image": done}]
    serve({"POST /thaw/v1/images": chunked(
        [json.dumps(x).encode() + b"\n" for x in steps])})
    pid, fd = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "vt100"
        os.environ.pop("NO_COLOR", None)
        os.execv(THAW, [THAW, "--socket", SOCK, "build", "web", "/a"])
    out = drain(fd)
    os.waitpid(pid, 0)
    bar = "\r\x1b[Kbuild    [########............]  40% RUN"
    check(bar + "\r\x1b[Kcompiling\r\n" + bar in out,
          "the bar is drawn again below a line of the log", repr(out))
    check(out.index("web 1.0") > out.rindex("\r\x1b[K"),
          "and gone at the end", repr(out))


def drain(fd):
    out = b""
    try:
        while True:
            more = os.read(fd, 65536)
            if not more:
                break
            out += more
    except OSError:  # EIO: the other side is closed
        pass
    os.close(fd)
    return out.decode(errors="replace")


def run_options():
    serve({f"POST {VMS}": answer(vm())})
    arn = "arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:"
    thaw("run", "demo", "--idle", "60", "--no-auto-resume", "--suspended", "9",
         "--ingress", "shell", "--ingress", "HTTP", "--role", "arn:r")
    check(FAKE.seen[0].json == {
        "imageIdentifier": "demo", "executionRoleArn": "arn:r", "idlePolicy": {
            "maxIdleDurationSeconds": 60, "suspendedDurationSeconds": 9,
            "autoResumeEnabled": False}, "ingressNetworkConnectors": [
                arn + "SHELL_INGRESS", arn + "HTTP_INGRESS"]},
          "run's idle policy, ingress and role", FAKE.seen[0].json)
    thaw("run", "demo", "--idle", "90")
    check(FAKE.seen[0].json["idlePolicy"] == {
        "maxIdleDurationSeconds": 90, "suspendedDurationSeconds": 28800,
        "autoResumeEnabled": True}, "and its defaults", FAKE.seen[0].json)


IMAGE = {"name": "demo", "imageArn": ARN + "demo", "versions": [
    {"version": "1.0", "spec": {"ports": [5000, 9000], "readyPort": 7}},
    {"version": "2.0", "spec": {"readyPort": 7070}},
    {"version": "3.0", "spec": {}}]}


def calls():
    got = {}

    def app(reply):
        def handle(r, conn):
            got["port"] = int(r.query["port"])
            conn.sendall(UPGRADE)
            data = r.early
            while b"\r\n\r\n" not in data:
                data += conn.recv(65536)
            head, body = data.split(b"\r\n\r\n", 1)
            want = re.search(rb"(?i)content-length: (\d+)", head)
            while want and len(body) < int(want.group(1)):
                body += conn.recv(65536)
            got["head"], got["body"] = head.decode().split("\r\n"), body
            return reply
        return handle

    def site(reply, version="1.0"):
        serve({f"GET {VM}": answer(vm(imageVersion=version)),
               "GET /thaw/v1/images/demo": answer(IMAGE),
               f"POST /thaw/v1/microvms/{ID}/forward": app(reply)})
    hello = (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nX-A: 1\r\nX-A: 2\r\n"
             b"\r\nhello\n")
    site(hello)
    r = thaw("call", ID, "/p?q=1")
    check(r.returncode == 0 and r.stdout == "hello\n" and got["port"] == 5000
          and got["head"][0] == "GET /p?q=1 HTTP/1.1"
          and "Host: localhost:5000" in got["head"]
          and not got["body"], "call asks the EXPOSEd port", (r, got))
    for version, port in (("2.0", 7070), ("3.0", 8080), ("9.0", 8080)):
        site(hello, version)
        thaw("call", ID)
        check(got["port"] == port and got["head"][0] == "GET / HTTP/1.1",
              f"and version {version} on {port}", got)
    r = thaw("call", ID, "/", "-p", "81", "-X", "PUT", "-d", '{"a": 1}', "-H",
             "X-Y: z", "-i")
    check(got["port"] == 81 and got["head"][0] == "PUT / HTTP/1.1"
          and got["body"] == b'{"a": 1}' and "X-Y: z" in got["head"]
          and "Content-Type: application/json" in got["head"]
          and "Content-Length: 8" in got["head"]
          and len(FAKE.seen) == 1, "port, method, data, header", got)
    check(r.stdout == "HTTP/1.1 200 OK\nContent-Length: 6\nX-A: 1\nX-A: 2\n\n"
          "hello\n", "--include", r)
    thaw("call", ID, "/", "-p", "81", "-d", "@-", "-H", "content-type: a/b",
         stdin="x" * 300000)
    check(got["head"][0].startswith("POST ") and got["body"] == b"x" * 300000
          and "content-type: a/b" in got["head"]
          and not any(h.startswith("Content-Type") for h in got["head"]),
          "data from the input; the caller's type", got["head"])
    r = thaw("call", ID, "/", "-p", "81", "--json")
    check(json.loads(r.stdout) == {"status": 200, "headers": {
        "content-length": "6", "x-a": "1, 2"}, "body": "hello\n"},
          "call --json", r)
    site(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n")
    r = thaw("call", ID, "/", "-I")
    check(r.returncode == 0 and got["head"][0].startswith("HEAD ")
          and "Content-Length: 99999" in r.stdout, "call --head", r)
    site(b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.0 404 Not Found\r\n\r\nno")
    r = thaw("call", ID, "/", "-i")
    check(r.returncode == 1 and r.stdout == "HTTP/1.0 404 Not Found\n\nno"
          and r.stderr == "thaw: call: the application answered 404 Not Found\n",
          "404 of the application is exit code 1", r)
    for reply, said in ((b"", "ended within"), (b"SSH-2.0\r\n", "malformed"),
                        (hello[:-3], "ended within")):
        site(reply)
        r = thaw("call", ID)
        check(r.returncode == 1 and "the application" in r.stderr
              and said in r.stderr and "thaw logs" in r.stderr,
              f"call of an application that says {reply[:12]}", r)
    site(hello)

    def silent(r, conn):
        conn.sendall(UPGRADE)
        while conn.recv(65536):  # until it has gone
            pass
    FAKE.handle = silent
    r = thaw("call", ID, "/", "-p", "1", "--timeout", "1")
    check(r.returncode == 1 and "too long" in r.stderr, "call --timeout", r)


def listeners():
    tcp = ("  sl  local_address rem_address   st tx_queue rx_queue\n"
           "   0: 00000000:1388 00000000:0000 0A 00000000:00000000 00:0\n"
           "   1: 0100007F:2328 00000000:0000 0A 00000000:00000000 00:0\n"
           "   2: 0100007F:0016 0100007F:2328 01 00000000:00000000 00:0\n"
           "   3: FEA9FEA9:7469 00000000:0000 0A 00000000:00000000 00:0\n"
           "  sl  local_address                         remote_address st\n"
           "   0: 00000000000000000000000000000000:1F90 "
           "00000000000000000000000000000000:0000 0A 00000000:0\n"
           "   1: 00000000000000000000000001000000:0050 "
           "00000000000000000000000000000000:0000 0A 00000000:0\n"
           "   x: garbage\n   0: ZZ:1 0 0A\n")

    def site(execed):
        serve({f"POST /thaw/v1/microvms/{ID}/forward": error(
            502, "InternalServerException", "port 4000: Connection refused"),
            f"POST /thaw/v1/microvms/{ID}/exec": execed})
    site(answer({"exitCode": 1, "stdout": tcp, "stderr": ""}))
    r = thaw("call", ID, "/", "-p", "4000")
    check(r.returncode == 1 and r.stderr.splitlines() == [
        "thaw: call to port 4000: port 4000: Connection refused",
        "thaw: in it listen: 80 (::1), 5000 (0.0.0.0), 8080 (::), "
        "9000 (127.0.0.1)"], "where nothing listens, what does is listed", r)
    check(FAKE.seen[1].json["command"][0] == "cat", "as the guest's kernel says")
    site(answer({"exitCode": 0, "stdout": tcp[:58], "stderr": ""}))
    check("nothing listens on any port" in
          thaw("call", ID, "/", "-p", "4000").stderr, "or that nothing does")
    for bad in (error(502, "InternalServerException", "no"),
                answer({"exitCode": 127, "stdout": "", "stderr": "no cat"})):
        site(bad)
        r = thaw("call", ID, "/", "-p", "4000")
        check(r.returncode == 1 and "could not be read" in r.stderr,
              "or that it cannot be told", r)


def tokens():
    def site(tail):
        serve({f"POST {VM}/{tail}": answer({"authToken": {
            "X-aws-proxy-auth": "abc.def"}}), f"GET {VM}": answer(vm()),
            "GET /thaw/v1/images/demo": answer(IMAGE)})
    site("auth-token")
    r = thaw("token", ID)
    check(r.returncode == 0 and r.stdout == "abc.def\n"
          and FAKE.seen[-1].json == {"expirationInMinutes": 60, "allowedPorts":
                                     [{"port": 5000}]},
          "token: for the EXPOSEd port, for an hour", FAKE.seen[-1].json)
    r = thaw("token", ID, "-p", "80", "--port", "9000-9002", "--minutes", "5",
             "--header")
    check(r.stdout == "X-aws-proxy-auth: abc.def\n" and FAKE.seen[0].json == {
        "expirationInMinutes": 5, "allowedPorts": [
            {"port": 80}, {"range": {"startPort": 9000, "endPort": 9002}}]},
          "token: ports and ranges, as a header", FAKE.seen[0].json)
    r = thaw("token", ID, "--all-ports", "--json")
    check(json.loads(r.stdout) == {"authToken": {"X-aws-proxy-auth": "abc.def"}}
          and FAKE.seen[0].json["allowedPorts"] == [{"allPorts": {}}],
          "token --all-ports --json", r)
    site("shell-auth-token")
    r = thaw("token", ID, "--shell")
    check(r.stdout == "abc.def\n" and FAKE.seen[0].json
          == {"expirationInMinutes": 60}, "token --shell", FAKE.seen[0].json)


def environments():
    keys = TOP + "/keys"
    with open(keys, "w") as f:
        f.write("# comment\n[first]\naws_access_key_id = AKIA1\n"
                "AWS_SECRET_ACCESS_KEY=se'cret/+=1\n; x\n\n[bot]\r\n"
                "aws_access_key_id = AKIA2\r\n"
                "aws_secret_access_key = s2\r\n")
    host = {"listen": "127.0.0.1:8480", "keysFile": keys, "region": "eu-west-3",
            "endpoint": "127.0.0.1:8443", "endpointCa": "/st/ca.pem"}

    def site(**more):
        serve({"GET /thaw/v1/host": answer({**host, **more})})
    site()
    r = thaw("env")
    probe = r.stdout + "env -0"
    p = subprocess.run(["sh", "-c", probe], capture_output=True,
                       env={"PATH": os.environ["PATH"], "AWS_SESSION_TOKEN": "x",
                            "AWS_PROFILE": "other"})
    got = dict(x.split(b"=", 1) for x in p.stdout.split(b"\0") if x)
    check(r.returncode == 0 and p.returncode == 0
          and got[b"AWS_ENDPOINT_URL_LAMBDA_MICROVMS"] == b"http://127.0.0.1:8480"
          and got[b"AWS_ACCESS_KEY_ID"] == b"AKIA1"
          and got[b"AWS_SECRET_ACCESS_KEY"] == b"se'cret/+=1"
          and got[b"AWS_REGION"] == got[b"AWS_DEFAULT_REGION"] == b"eu-west-3"
          and got[b"THAW_ENDPOINT_CA"] == b"/st/ca.pem"
          and b"AWS_SESSION_TOKEN" not in got and b"AWS_CA_BUNDLE" not in got,
          "env is taken by a shell", (r, got))
    check(b"AWS_PROFILE" not in got, "no profile is preferred to it", got)
    r = thaw("env", "--profile", "bot", "--json")
    check(json.loads(r.stdout)["AWS_ACCESS_KEY_ID"] == "AKIA2"
          and json.loads(r.stdout)["AWS_SECRET_ACCESS_KEY"] == "s2",
          "env --profile --json", r)
    r = thaw("env", "--profile", "nobody")
    check(r.returncode == 3 and "nobody" in r.stderr and r.stdout == "",
          "env of no such profile", r)
    r = thaw("env", "--shell", "fish")
    check("set -gx AWS_ACCESS_KEY_ID 'AKIA1'" in r.stdout
          and "export" not in r.stdout, "env for fish", r)
    for listen, url in (("0.0.0.0:1", "http://127.0.0.1:1"),
                        ("[::]:2", "http://[::1]:2"), ("[::1]:3", "http://[::1]:3")):
        site(listen=listen)
        r = thaw("env", "--json")
        check(json.loads(r.stdout)["AWS_ENDPOINT_URL_LAMBDA_MICROVMS"] == url,
              f"env: {listen} is called at {url}", r)
    site(listen=None)
    r = thaw("env")
    check(r.returncode == 4 and "--listen" in r.stderr and r.stdout == "",
          "env of a thawd that does not listen", r)
    site(keysFile=TOP + "/nokeys")
    r = thaw("env")
    check(r.returncode == 1 and "nokeys" in r.stderr and r.stdout == "",
          "env without the keys file", r)
    site(endpoint=None, endpointCa=None)
    r = thaw("env")
    check("--endpoint" in r.stdout and "THAW_ENDPOINT_CA" not in r.stdout,
          "env says that there is no endpoint", r)


def tags_and_builds():
    arn = ARN + "demo"
    tags = {"team": "blue", "k": "a=b"}

    def untag(r, conn):
        got.append(r.target)
        return answer(b"", 204)
    got = []
    serve({"GET /thaw/v1/images/demo": answer(IMAGE),
           f"GET /2017-03-31/tags/{arn}": answer({"Tags": tags}),
           f"POST /2017-03-31/tags/{arn}": answer(b"", 204),
           f"DELETE /2017-03-31/tags/{arn}": untag})
    check(thaw("tag", "demo").stdout == "team=blue\nk=a=b\n", "tag shows tags")
    check(json.loads(thaw("tag", "demo", "--json").stdout) == tags, "tag --json")
    r = thaw("tag", "demo", "a=1", "b=")
    check(r.returncode == 0 and r.stdout == "" and FAKE.seen[-1].json ==
          {"Tags": {"a": "1", "b": ""}} and "%3A" in FAKE.seen[-1].target,
          "tag", FAKE.seen[-1].json)
    r = thaw("untag", "demo", "a b", "c&d")
    check(r.returncode == 0 and got[0].endswith("?tagKeys=a%20b&tagKeys=c%26d"),
          "untag", got)
    check(thaw("tag", "nope").returncode == 3, "tag of nothing")
    base = "/2025-09-09/microvm-images/demo/versions"
    build = {"buildId": "b1", "buildState": "FAILED", "imageVersion": "2.0",
             "createdAt": time.time() - 61}
    serve({f"GET {base}": answer({"items": [{"imageVersion": "2.0"},
                                            {"imageVersion": "1.0"}]}),
           f"GET {base}/2.0/builds": answer({"items": [build]}),
           f"GET {base}/1.0/builds": answer({"items": [dict(
               build, imageVersion="1.0", buildId="b0")]}),
           f"GET {base}/2.0/builds/b1": answer(dict(
               build, stateReason="RUN make failed")),
           f"GET {base}/1.0/builds/b0": answer(dict(
               build, imageVersion="1.0", buildId="b0", buildState="SUCCESSFUL",
               snapshotBuild={"memorySnapshotSizeInBytes": 20 << 20}))})
    r = thaw("builds", "demo", "--no-header")
    check([x.split() for x in r.stdout.splitlines()] == [
        "2.0 FAILED 1 minute ago - b1 RUN make failed".split(),
        "1.0 SUCCESSFUL 1 minute ago 20 MiB b0".split()], "builds", r)
    check([b["buildId"] for b in json.loads(
        thaw("builds", "demo", "--json").stdout)] == ["b1", "b0"],
          "builds --json")
    check(thaw("builds", "nope").returncode == 3, "builds of nothing")
    log = "/thaw/v1/images/demo/versions/3.0/log"
    serve({"GET /thaw/v1/images/demo": answer(IMAGE), f"GET {log}":
           chunked([b"STEP 1\n", b"STEP 2\n"]),
           "GET /thaw/v1/images/demo/versions/1.0/log": answer(b"old\n")})
    r = thaw("logs", "--build", "demo", "-f")
    check(r.stdout == "STEP 1\nSTEP 2\n" and FAKE.seen[-1].query ==
          {"follow": "1"}, "logs --build of the newest version", r)
    check(thaw("logs", "demo:1.0", "--build").stdout == "old\n",
          "logs --build of a version")
    thaw("logs", "--build", "demo:1.0", "-n", "3")
    check(FAKE.seen[-1].query == {"follow": "0", "tail": "3"},
          "logs --build of the last lines", FAKE.seen[-1].query)
    check(thaw("logs", "--build", "nope").returncode == 3,
          "logs --build of nothing")


def shells():
    got = {}

    def handle(r, conn):
        got["json"] = r.json
        conn.sendall(UPGRADE)
        f, data = Frames(conn, r.early), b""
        while True:
            kind, more = f.next()
            if kind != STDIN or not more:
                break
            data += more
        got["input"] = data
        conn.sendall(frame(STDOUT, b"out\n") + frame(EXIT,
                                                     struct.pack("<I", 7)))
    serve({f"POST /thaw/v1/microvms/{ID}/exec": handle})
    r = thaw("shell", "-u", "www", "-w", "/srv", ID, stdin="ls\nexit 7\n")
    check(r.returncode == 7 and r.stdout == "out\n" and got["input"] ==
          b"ls\nexit 7\n" and got["json"]["tty"] is False
          and got["json"]["user"] == "www" and got["json"]["cwd"] == "/srv"
          and got["json"]["command"][:2] == ["/bin/sh", "-c"],
          "shell reads a script from its input", (r, got))
    p = subprocess.run(got["json"]["command"], input="echo $((6 * 7))\n",
                       capture_output=True, text=True)
    check(p.stdout == "42\n", "and its command is a shell", p)

    def on_tty(r, conn):
        got["tty"] = r.json["tty"]
        return UPGRADE + frame(STDOUT, b"# ") + frame(EXIT, struct.pack("<I", 3))
    serve({f"POST /thaw/v1/microvms/{ID}/exec": on_tty})
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(THAW, [THAW, "--socket", SOCK, "shell", ID])
    out = drain(fd)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    check(got["tty"] is True and code == 3 and "# " in out,
          "shell on a terminal has one in the guest", (got, code, out))


def tops():
    busy = subprocess.Popen(["sh", "-c", "while :; do :; done"])
    idle = os.getpid()
    second = "microvm-eeee0000-x"

    def usage(mib):
        return answer({"thaw": {"usage": {"privateBytes": mib << 20,
                                          "overlayBytes": 5 << 20}}})
    serve({f"GET {VMS}": lambda r, c: answer({"items": [
        vm(microvmId=second, thaw={"name": "a", "pid": idle, "memoryMiB": 64,
                                   "labels": {}}),
        vm(thaw={"name": "web", "pid": busy.pid, "memoryMiB": 512}),
        vm("SUSPENDED", microvmId="microvm-cccc0000-x", thaw={"name": "s"}),
        vm("TERMINATED", microvmId="microvm-dddd0000-x", thaw={"name": "t"})]}),
        f"GET /thaw/v1/microvms/{ID}": usage(3),
        f"GET /thaw/v1/microvms/{second}": usage(9),
        "GET /thaw/v1/host": answer({"memory": {"committedMiB": 77}})})
    try:
        r = thaw("top")
        rows = [x.split() for x in r.stdout.splitlines()]
        check(r.returncode == 0 and rows[0][:5] == ["ID", "NAME", "IMAGE",
              "STATE", "CPU"] and len(rows) == 4 and rows[1][0] ==
              "microvm-0123abcd" and float(rows[1][4].rstrip("%")) > 0
              and rows[1][5:11] == "3.0 MiB 512 MiB 5.0 MiB".split(),
              "top: the busiest first, one snapshot without a terminal", r)
        check(rows[3][3] == "SUSPENDED" and rows[3][4:6] == ["-", "-"],
              "top: a suspended one has no figures", rows)
        r = thaw("top", "--sort", "memory", "--no-header")
        check(r.stdout.startswith("microvm-eeee0000"), "top --sort memory", r)
        r = thaw("top", "--json", "--sort", "name")
        j = json.loads(r.stdout)
        check([v["thaw"]["name"] for v in j] == ["a", "s", "web"]
              and j[0]["thaw"]["usage"]["privateBytes"] == 9 << 20
              and j[2]["thaw"]["cpuPercent"] > 0, "top --json", r)
        pid, fd = pty.fork()
        if pid == 0:
            os.execv(THAW, [THAW, "--socket", SOCK, "top", "-i", "3000"])
        out = b""
        while b"started" not in out.lower() or b"name" not in out:
            out += os.read(fd, 65536)
        os.write(fd, b"m")
        while b"sorted by memory" not in out:
            out += os.read(fd, 65536)
        os.write(fd, b"q")
        out = out.decode() + drain(fd)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        check(code == 0 and out.count("\x1b[H\x1b[J") == 2
              and "77 MiB committed" in out, "top is drawn anew on a key", out)
        check(out.startswith("\x1b[?1049h") and "\x1b[?1049l" in out
              and out.rindex("\x1b[?25h") > out.rindex("\x1b[?25l"),
              "and leaves the terminal as it was", repr(out))
    finally:
        busy.kill()
        busy.wait()
    serve({})
    check(thaw("top").returncode == 3, "top without a list is a failure")



def hostile():
    """Whatever thawd sends, an error and not a wrong answer."""
    body = b'{"items":[]}'
    head = b"HTTP/1.1 200 OK\r\n"
    cases = [
        ("a chunk's size with a sign", chunked([], b"+5\r\nhello\r\n0\r\n\r\n")),
        ("a negative chunk", chunked([], b"-1\r\n\r\n")),
        ("a chunk of 2^64 bytes", chunked([], b"10000000000000000\r\nx\r\n")),
        ("a chunk's size of nothing", chunked([], b"\r\n\r\n")),
        ("a chunk longer than it says", chunked([], b"2\r\n{}x\r\n0\r\n\r\n")),
        ("a chunk without its end", chunked([body], b"")),
        ("a chunk cut short", chunked([], b"ff\r\n{}")),
        ("trailers without end", chunked([body], b"0\r\n" + b"a: b\r\n" * 9)),
        ("trailers for ever", chunked([body], b"0\r\n" + b"a: b\r\n" * 20000)),
        ("an endless chunk extension", chunked([], b"2;" + b"x" * 99999)),
        ("two lengths", head + b"Content-Length: 2\r\nContent-Length: 12\r\n\r\n"
         + body),
        ("a length and chunks", head + b"Content-Length: 12\r\n"
         b"Transfer-Encoding: chunked\r\n\r\n" + body),
        ("an unknown coding", head + b"Transfer-Encoding: xchunked\r\n\r\n"
         + body),
        ("a negative length", head + b"Content-Length: -1\r\n\r\n" + body),
        ("a length that is no number", head + b"Content-Length: 0x5\r\n\r\n"),
        ("a body cut short", head + b"Content-Length: 999\r\n\r\n" + body),
        ("a header without a colon", head + b"nonsense\r\n\r\n"),
        ("a blank before the colon", head + b"Content-Length : 2\r\n\r\n{}"),
        ("a bare line feed", b"HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\n{}"),
        ("a NUL in the head", head + b"A: b\0c\r\nContent-Length: 2\r\n\r\n{}"),
        ("a head without end", head + b"A: b\r\n" * 30000),
        ("a line without end", head + b"A: " + b"b" * 100000),
        ("another protocol", b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
        ("nothing at all", b""),
        ("JSON cut short", answer(b'{"items":[')),
        ("no JSON", answer(b"<html>")),
        ("duplicate garbage after JSON", answer(b"{}{}")),
        ("status 999999", b"HTTP/1.1 9999 OK\r\n\r\n"),
    ]
    for name, raw in cases:
        def handle(r, conn, raw=raw):
            conn.sendall(raw)
        FAKE.handle = handle
        r = thaw("images")
        check(r.returncode == 1 and r.stderr.startswith("thaw: images: ")
              and r.stdout == "", f"hostile: {name}", r)
    slow = answer({"items": [{"name": "x" * 300000, "versions": []}]})

    def handle(r, conn):
        for i in range(0, len(slow), 4099):
            conn.sendall(slow[i:i + 4099])
    FAKE.handle = handle
    check(len(thaw("images", "-q").stdout) == 300001, "a long answer in pieces")
    FAKE.handle = lambda r, c: chunked(
        [bytes([b]) for b in b'{"items":[{"name":"n","versions":[]}]}'])
    check(thaw("images", "-q").stdout == "n\n", "chunks of one byte")
    FAKE.handle = lambda r, c: (b"HTTP/1.1 100 Continue\r\n\r\n"
                                + answer({"items": []}))
    check(thaw("images", "-q").returncode == 0, "100 Continue is skipped")


def execs():
    got = {}

    def run(script):
        def handle(r, conn):
            got["request"] = r
            got["frames"] = []
            return script(r, conn)
        serve({f"POST /thaw/v1/microvms/{ID}/exec": handle})

    def simple(r, conn):
        conn.sendall(UPGRADE + frame(STDOUT, b"out") + frame(STDERR, b"err")
                     + frame(STDOUT) + frame(EXIT, struct.pack("<I", 42)))
    run(simple)
    r = thaw("exec", "-e", "A=1", "-u", "www", "-w", "/tmp", ID, "ls", "-l", "--",
             "x")
    check(r.returncode == 42 and r.stdout == "out" and r.stderr == "err",
          "exec passes output and the exit code", r)
    check(got["request"].json == {"command": ["ls", "-l", "--", "x"],
          "env": ["A=1"], "user": "www", "cwd": "/tmp", "tty": False}
          and got["request"].headers["upgrade"] == "thaw-exec",
          "exec's request", got["request"].json)
    thaw("exec", ID, "--", "ls", "--all")
    check(got["request"].json["command"] == ["ls", "--all"],
          "-- after the id is left out", got["request"].json)

    def split(r, conn):
        data = (frame(OK) + frame(STDOUT, b"x" * 200000)
                + frame(EXIT, struct.pack("<I", 130)))
        conn.sendall(UPGRADE + data[:3])
        for i in range(3, len(data), 3333):
            conn.sendall(data[i:i + 3333])
    run(split)
    r = thaw("exec", ID, "x")
    check(r.returncode == 130 and r.stdout == "x" * 200000,
          "frames in pieces, and 128+n", r.returncode)

    def echo(r, conn):
        conn.sendall(UPGRADE)
        f = Frames(conn, r.early)
        while True:
            kind, data = f.next()
            if kind != STDIN or not data:
                break
            conn.sendall(frame(STDOUT, data))
        conn.sendall(frame(EXIT, struct.pack("<I", 0 if kind == STDIN else 9)))
    run(echo)
    text = "".join(f"line {i}\n" for i in range(50000))
    r = thaw("exec", "-i", ID, "cat", stdin=text)
    check(r.returncode == 0 and r.stdout == text,
          "-i passes input whole, and its end", (r.returncode, len(r.stdout)))
    r = thaw("exec", ID, "cat", stdin="ignored")
    check(r.returncode == 0 and r.stdout == "", "without -i input is empty", r)
    for code, want, text in ((2, 127, "no such file"), (13, 126, "denied"),
                             (5, 1, "broken")):
        run(lambda r, c, code=code, text=text: UPGRADE + frame(
            ERROR, struct.pack("<I", code) + text.encode()))
        r = thaw("exec", ID, "x")
        check(r.returncode == want and text in r.stderr,
              f"errno {code} is exit code {want}", r)
    for name, data, said in (
            ("a reserved byte", struct.pack("<BBHI", 35, 1, 0, 0),
             "a malformed frame"),
            ("an unknown type", frame(99), "unknown type"),
            ("a frame of 4 GiB", struct.pack("<BBHI", 35, 0, 0, 0xffffffff),
             "a malformed frame"),
            ("an exit code of 256", frame(EXIT, struct.pack("<I", 256)),
             "malformed exit code"),
            ("a short exit", frame(EXIT, b"\0"), "malformed exit code"),
            ("a short error", frame(ERROR, b"\0"), "malformed error"),
            ("the end", b"", "went away"),
            ("half a frame", frame(STDOUT, b"xx")[:9], "went away")):
        run(lambda r, c, data=data: UPGRADE + data)
        r = thaw("exec", ID, "x")
        check(r.returncode == 1 and r.stderr.startswith("thaw: exec: ")
              and said in r.stderr, f"hostile guest: {name}", r)
    run(lambda r, c: answer({}))
    check(thaw("exec", ID, "x").returncode == 1, "no upgrade is a failure")
    serve({f"POST /thaw/v1/microvms/{ID}/exec": answer(
        {"exitCode": 7, "stdout": "a", "stderr": "b"})})
    r = thaw("exec", "--json", ID, "x")
    check(r.returncode == 7 and json.loads(r.stdout)["stdout"] == "a"
          and "upgrade" not in FAKE.seen[0].headers, "exec --json", r)


def exec_signals():
    frames = []

    def wait_signal(r, conn):
        conn.sendall(UPGRADE + frame(STDOUT, b"up\n"))
        f = Frames(conn, r.early)
        while True:
            kind, data = f.next()
            if kind is None:
                return
            frames.append((kind, data))
            if kind == SIGNAL:
                conn.sendall(frame(EXIT, struct.pack("<I", 130)))
    serve({f"POST /thaw/v1/microvms/{ID}/exec": wait_signal})
    p = subprocess.Popen([THAW, "--socket", SOCK, "exec", ID, "sleep"],
                         stdout=subprocess.PIPE)
    p.stdout.readline()
    p.send_signal(signal.SIGINT)
    check(p.wait(PATIENCE) == 130 and (SIGNAL, struct.pack("<I", 2)) in frames,
          "Ctrl-C goes to the command", frames)


def exec_tty():
    frames = []

    def handle(r, conn):
        frames.append(("request", r.json))
        conn.sendall(UPGRADE + frame(STDOUT, b"prompt"))
        f = Frames(conn, r.early)
        while True:
            kind, data = f.next()
            frames.append((kind, data))
            if kind is None or data.endswith(b"\x04"):
                break
        conn.sendall(frame(EXIT, struct.pack("<I", 3)))
    serve({f"POST /thaw/v1/microvms/{ID}/exec": handle})
    import fcntl
    import termios
    pid, fd = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "vt100"
        os.execv(THAW, [THAW, "--socket", SOCK, "exec", "-it", ID, "sh"])
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    out = b""
    while b"prompt" not in out:
        out += os.read(fd, 1000)
    raw = until(lambda: not termios.tcgetattr(fd)[3] & termios.ECHO)
    os.write(fd, b"\x03\x1a")
    until(lambda: any(k == STDIN and d for k, d in frames[1:]))
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 132, 0, 0))
    os.kill(pid, signal.SIGWINCH)
    until(lambda: (RESIZE, struct.pack("<HH", 50, 132)) in frames)
    os.write(fd, b"\x04")
    status = os.waitpid(pid, 0)[1]
    check(os.waitstatus_to_exitcode(status) == 3, "-it passes the exit code")
    check(frames[0][1]["tty"] is True and frames[0][1]["env"] == ["TERM=vt100"],
          "-t asks for a terminal of this kind", frames[0])
    check(raw and any(k == STDIN and b"\x03\x1a" in d
                             for k, d in frames[1:]),
          "the terminal is raw: Ctrl-C and Ctrl-Z are bytes", frames)
    check((RESIZE, struct.pack("<HH", 50, 132)) in frames,
          "a resize is passed on", frames)
    check(termios.tcgetattr(fd)[3] & termios.ECHO,
          "the terminal is put back")
    os.close(fd)


def forwards():
    def handle(r, conn):
        conn.sendall(UPGRADE + b"early ")
        data = r.early
        while True:
            more = conn.recv(65536)
            if not more:
                break
            data += more
        conn.sendall(b"got %d from port %s" % (len(data),
                                               r.query["port"].encode()))
    serve({f"GET {VM}": answer(vm()),
           f"POST /thaw/v1/microvms/{ID}/forward": handle})
    p = subprocess.Popen([THAW, "--socket", SOCK, "forward", ID, "0:8080"],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         text=True)
    line = p.stdout.readline()
    m = re.fullmatch(r"127\.0\.0\.1:(\d+) -> " + ID + r":8080\n", line)
    check(m is not None, "forward prints its address", line)
    port = int(m.group(1))
    conns = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    for i, s in enumerate(conns):
        s.sendall(b"x" * (i * 10000))
    for s in conns:
        s.shutdown(socket.SHUT_WR)
    good = 0
    for i, s in enumerate(conns):
        data = b""
        while True:
            more = s.recv(65536)
            if not more:
                break
            data += more
        good += data == b"early got %d from port 8080" % (i * 10000)
        s.close()
    check(good == 20, "20 connections at once, each half-closed", good)

    def used():
        with open(f"/proc/{p.pid}/stat") as f:
            return sum(int(x) for x in f.read().rsplit(")", 1)[1].split()[11:13])
    for _ in range(10):  # it comes to rest
        before = used()
        time.sleep(0.5)
        more = used() - before
        if more <= 2:
            break
    check(more <= 2, "at rest it uses no CPU", more)
    again = thaw("forward", ID, f"{port}:80")
    check(again.returncode == 1 and "cannot listen" in again.stderr,
          "a port that is taken", again)
    p.send_signal(signal.SIGINT)
    check(p.wait(PATIENCE) == 0, "Ctrl-C ends it cleanly")
    serve({f"GET {VM}": answer(vm("SUSPENDED"))})
    r = thaw("forward", ID, "0:80")
    check(r.returncode == 4, "forward to a suspended one is a conflict", r)


def streams():
    serve({f"GET /thaw/v1/microvms/{ID}/logs":
           chunked([b"one\n", b"\x1b[1mtwo\n", b"no end"])})
    r = thaw("logs", "-f", "--tail", "0", ID)
    check(r.stdout == "one\n\x1b[1mtwo\nno end" and
          FAKE.seen[0].query == {"follow": "1", "tail": "0"}, "logs", r)
    thaw("logs", ID)
    check(FAKE.seen[0].query == {"follow": "0"}, "logs without options",
          FAKE.seen[0].target)
    serve({f"GET /thaw/v1/microvms/{ID}/logs": chunked([b"one\n"], b"")})
    check(thaw("logs", ID).returncode == 1, "logs cut short is a failure")
    ev = {"cursor": "7", "time": 1700000000.5, "type": "microvm.state",
          "id": ID, "name": "web", "from": "RUNNING", "to": "TERMINATED",
          "reason": "cell-crashed", "detail": "signal 9"}
    serve({"GET /thaw/v1/events": chunked(
        [json.dumps(ev).encode() + b"\n\n", json.dumps(
            {"type": "image.deleted", "image": "demo", "time": 1}).encode()])})
    r = thaw("events", "--since", "6&", env={"TZ": "UTC"})
    check(r.stdout.splitlines()[0] == "2023-11-14 22:13:20  microvm-0123abcd "
          "web  microvm.state  RUNNING -> TERMINATED  cell-crashed: signal 9"
          and "demo" in r.stdout, "events for people", r)
    check(FAKE.seen[0].query == {"follow": "0", "since": "6&"}, "events --since",
          FAKE.seen[0].target)
    r = thaw("events", "--json", "-f")
    check(json.loads(r.stdout.splitlines()[0]) == ev, "events --json", r)


def log_groups():
    def logging(name, n, more):
        i = f"microvm-{n}123abcd-1111-2222-3333-444455556666"
        return i, vm(microvmId=i, thaw={"name": name, **more})

    (i, a), (j, b) = logging("web", 0, {}), logging("", 1, {})
    logs = [chunked([b"one\ntw", b"o\n\nno end"]), chunked([b"\x1b[1mred\n"])]

    def table(first, second):
        # Two pages of one microVM each.
        def page(r, conn):
            return answer({"items": [b]}) if "nextToken" in r.query else answer(
                {"items": [a], "nextToken": "n"})
        return {"GET /2025-09-09/microvms": page,
                f"GET /thaw/v1/microvms/{i}/logs": first,
                f"GET /thaw/v1/microvms/{j}/logs": second}

    serve(table(*logs))
    r = thaw("logs", "--group", "/a#b", "-n", "3")
    want = ("web" + " " * 13 + " | one\n" + "web" + " " * 13 + " | two\n" +
            "web" + " " * 13 + " | \n" + "web" + " " * 13 + " | no end\n" +
            "microvm-1123abcd | \x1b[1mred\n")
    check(r.returncode == 0 and r.stdout == want,
          "logs --group: whole lines, each after its name", r)
    check(FAKE.seen[0].query == {"logGroup": "/a#b", "maxResults": "50"} and
          [x.query for x in FAKE.seen[2:]] == [{"follow": "0", "tail": "3"}] * 2,
          "it asks for the group, and for the tail of each",
          [x.target for x in FAKE.seen])
    r = thaw("logs", "--group", "/a", "--stream", "s t", "--follow")
    check(r.returncode == 0 and sorted(r.stdout.splitlines()) ==
          sorted(want.splitlines()), "followed until all have ended", r)
    check(FAKE.seen[0].query["logStream"] == "s t" and
          [x.query for x in FAKE.seen if x.path.endswith("logs")] ==
          [{"follow": "1"}] * 2, "with --stream", [x.target for x in FAKE.seen])
    serve({"GET /2025-09-09/microvms": answer({"items": [a]}),
           f"GET /thaw/v1/microvms/{i}/logs": logs[0]})
    check(thaw("logs", "-g", "/a", "-s", "s").stdout == "one\ntwo\n\nno end",
          "the only one of a stream: its log as it is")
    check(thaw("logs", "-g", "/a").stdout.startswith("web | one\n"),
          "but of a group with its name")
    serve({"GET /2025-09-09/microvms": answer({"items": []})})
    r = thaw("logs", "--group", "/a", "--stream", "s")
    check((r.returncode, r.stdout, r.stderr) ==
          (3, "", "thaw: logs: no microVM logs to group /a, stream s\n"),
          "a group that nobody names", r)
    for bad in ((), ("--stream", "s"), ("--group", "/a", "web"),
                ("--group", "/a", "--build", "demo")):
        check(thaw("logs", *bad).returncode == 2, f"logs {bad}: usage")


def log_groups_followed():
    """Lines as they come, torn by nobody; one that is run meanwhile joins."""
    ids = [f"microvm-{n}123abcd-1111-2222-3333-444455556666" for n in range(3)]
    have = [vm(microvmId=i, thaw={"name": "abc"[n]})
            for n, i in enumerate(ids[:2])]
    conns = {}

    def log(r, conn):
        conn.sendall(chunked([], b""))
        conns[r.path] = conn
        while r.path in conns:
            time.sleep(0.01)

    def say(n, text, end=False):
        path = f"/thaw/v1/microvms/{ids[n]}/logs"
        until(lambda: path in conns)
        # The chunk's end apart from it: nobody else waits for it.
        for part in (b"%x\r\n%s" % (len(text), text), b"\r\n"):
            conns[path].sendall(part)
            time.sleep(0.1)
        if end:
            conns[path].sendall(b"0\r\n\r\n")
            conns.pop(path)

    serve({"GET /2025-09-09/microvms": lambda r, c: answer({"items": have}),
           **{f"GET /thaw/v1/microvms/{i}/logs": log for i in ids}})
    p = subprocess.Popen([THAW, "logs", "-f", "--group", "/g"], text=True,
                         stdout=subprocess.PIPE,
                         env=dict(os.environ, THAW_SOCKET=SOCK))
    late = threading.Timer(PATIENCE, p.kill)
    late.start()
    say(0, b"half a ")
    say(1, b"whole\n")
    check(p.stdout.readline() == "b | whole\n", "a line that is whole goes out")
    say(0, b"line\n")
    check(p.stdout.readline() == "a | half a line\n", "and the other when it is")
    have.append(vm(microvmId=ids[2], thaw={"name": "c"}))
    say(2, b"late\n", True)
    check(p.stdout.readline() == "c | late\n", "one that is run later joins")
    say(0, b"rest", True)
    check(p.stdout.readline() == "a | rest\n", "a rest at its end")
    say(1, b"\n", True)
    check(p.stdout.readline() == "b | \n", "an empty line")
    check((p.stdout.read(), p.wait(PATIENCE)) == ("", 0),
          "and the end when all have ended")
    late.cancel()


def host():
    serve({"GET /thaw/v1/host": answer({"memory": {"total": 5}, "list": [1]}),
           "GET /thaw/v1/stats": answer({"loop": {"longestNs": 7, "name": "x"}}),
           "GET /thaw/v1/version": answer({"version": "9.9"}),
           "GET /thaw/v1/doctor": answer({"ok": False, "checks": [
               {"name": "kvm", "ok": True, "detail": "fine"},
               {"name": "uffd", "ok": False, "detail": "none",
                "remedy": "modprobe"}]})})
    r = thaw("stats")
    check([x.split() for x in r.stdout.splitlines()] == [
        ["host.memory.total", "5"], ["host.list[0]", "1"],
        ["thawd.loop.longestNs", "7"], ["thawd.loop.name", "x"]], "stats", r)
    r = thaw("doctor")
    check(r.returncode == 1 and "FAIL" in r.stdout and "modprobe" in r.stdout,
          "doctor's failures are exit code 1", r)
    check("9.9" in thaw("version").stdout, "version asks thawd")
    r = thaw("version", socket_path=TOP + "/none")
    check(r.returncode == 0 and "not running" in r.stdout, "version alone", r)
    own = os.path.join(TOP, "bin")
    os.mkdir(own)
    shutil.copy(THAW, own + "/thaw")
    with open(own + "/thawd", "w") as f:
        f.write('#!/bin/sh\necho "asked: $*"\nexit 1\n')
    os.chmod(own + "/thawd", 0o755)
    p = subprocess.run([own + "/thaw", "--socket", TOP + "/none", "doctor",
                        "--json"], capture_output=True, text=True)
    check(p.stdout == "asked: --doctor --json\n" and p.returncode == 1,
          "doctor starts thawd --doctor when none runs", p)


def help_and_completion():
    r = thaw("help")
    verbs = re.findall(r"^  (\w+) ", r.stdout, re.M)
    check(r.returncode == 0 and len(verbs) == 28 and "__ids" not in r.stdout,
          "help lists the verbs", verbs)
    for v in verbs:
        r = thaw("help", v)
        check(r.returncode == 0 and f"usage: thaw {v} " in r.stdout
              and "--json" in r.stdout, f"help {v}", r)
    check(thaw("ps", "--help").stdout == thaw("help", "ps").stdout, "--help")
    check(thaw("help", "nonsense").returncode == 2, "help of nothing")
    serve({f"GET {VMS}": answer({"items": [
        vm(), vm("TERMINATED", microvmId="microvm-dead"),
        vm(microvmId="$(reboot)", thaw={"name": "`x`"})]}),
        "GET /2025-09-09/microvm-images": answer({"items": [{"name": "demo"}]})})
    check(thaw("__ids", "both").stdout.split() == [ID, "web", "demo"],
          "ids to complete; nothing that a shell would run")
    script = thaw("completion", "bash").stdout
    probe = script + f"""
PATH={os.path.dirname(THAW)}:$PATH
try() {{ COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _thaw; echo "${{COMPREPLY[*]}}"; }}
try thaw sus
try thaw suspend microvm-
try thaw --json run --na
try thaw completion z
try thaw help ev
cd /usr && try thaw build x bi
try thaw call microvm-
try thaw untag de
"""
    p = subprocess.run(["bash", "-c", probe], capture_output=True, text=True,
                       env=dict(os.environ, THAW_SOCKET=SOCK))
    check(p.stdout.splitlines() == ["suspend", ID, "--name", "zsh", "events",
                                  "bin", ID, "demo"],
          "bash completes verbs, ids, options", p)
    check("bashcompinit" in thaw("completion", "zsh").stdout, "zsh completion")
    r = thaw("completion", "fish")
    check("__fish_seen_subcommand_from exec' -l tty -s t" in r.stdout
          and r.stdout.replace("\\'", "").count("'") % 2 == 0, "fish completion", r.stdout[:300])
    check(thaw("completion", "tcsh").returncode == 2, "no other shells")
    page = thaw("__man").stdout
    check(all(f".SS \\fBthaw {v}\\fR" in page for v in verbs)
          and "__man" not in page, "the manual page has every verb", page[:300])
    check(set(re.findall(r"^[.'].{,2}", page, re.M)) ==
          {".TH", ".SH", ".SS", ".TP", ".PP", ".nf", ".fi"},
          "and no line of text that roff takes for a request", page[:300])
    check("\\fB\\-\\-max\\-duration\\fR \\fISECONDS" in page,
          "and every option", page[:300])
    with open("/dev/full", "w") as full:
        p = subprocess.run([THAW, "help"], stdout=full, stderr=subprocess.PIPE,
                           text=True)
    check(p.returncode == 1 and "writing the output" in p.stderr,
          "output that cannot be written is a failure", p)


try:
    exit_codes()
    pools()
    lists()
    run_and_wait()
    changes()
    builds()
    dockerfile_builds()
    build_on_terminal()
    run_options()
    calls()
    listeners()
    tokens()
    environments()
    tags_and_builds()
    shells()
    tops()
    hostile()
    execs()
    exec_signals()
    exec_tty()
    forwards()
    streams()
    log_groups()
    log_groups_followed()
    host()
    help_and_completion()
finally:
    shutil.rmtree(TOP, ignore_errors=True)
print(f"1..{count}")
print(f"# {count - failed} passed, {failed} failed")
sys.exit(1 if failed else 0)
