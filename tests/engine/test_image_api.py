#!/usr/bin/python3
"""Images of Dockerfiles through thawd's API: AWS's calls and thaw's own, with real
builds and fake guests. TAP on stdout; needs root and buildah.

usage: test_image_api.py thawd-fake LIBEXEC
"""
import http.server
import json
import os
import re
import shutil
import sys
import threading
import time
import urllib.parse
import zipfile

import image_bases
import thawd_rig as rig
from thawd_rig import AWS, OWN, PATIENCE, check, contains, equal, until

IMAGES = AWS + "/microvm-images"
LONG = 50000000 + os.getpid()  # seconds that no other run sleeps
MANAGED = "arn:aws:lambda:us-east-1:aws:microvm-image:"
ROLE = "arn:aws:iam::000000000000:role/build"
GOOD = ("FROM debian:bookworm\nENV A=1 B=2\nWORKDIR /srv\nEXPOSE 5000\n"
        "USER 1234\nCMD [\"python3\", \"app.py\"]\n")
EGRESS = ("arn:aws:lambda:us-east-1:aws:network-connector:"
          "aws-network-connector:")


class Store(http.server.BaseHTTPRequestHandler):
    """An S3 that asks for no signature; signed ones are test_image.py's. It gives
    nothing of what is held before that is let go."""
    objects, held = {}, {}

    def do_GET(self):
        if self.path in self.held:
            self.held[self.path].wait(PATIENCE)
        body = self.objects.get(self.path)
        code = 200 if body else 404
        body = body or b"<Error><Code>NoSuchKey</Code></Error>"
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def folder(t, name, dockerfile, **files):
    path = os.path.join(t.dir, name)
    os.mkdir(path, 0o755)
    for k, v in {"Dockerfile": dockerfile, **files}.items():
        if v is not None:
            with open(os.path.join(path, k), "w") as f:
                f.write(v)
    return path


def zipped(t, dockerfile):
    path = os.path.join(t.dir, "app.zip")
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("Dockerfile", dockerfile)
    with open(path, "rb") as f:
        return f.read()


def members(name, path, **more):
    return {"name": name, "baseImageArn": MANAGED + "al2023-1",
            "buildRoleArn": ROLE, "codeArtifact": {
                "uri": path if "://" in path else "file://" + path}, **more}


def create(t, name, path, **more):
    return t.post(IMAGES, members(name, path, **more))


def update(t, name, path, **more):
    m = members(name, path, **more)
    del m["name"]
    return t.request("PUT", f"{IMAGES}/{name}", m)


def settle(t, name):
    until(lambda: t.get(f"{IMAGES}/{name}").json["state"] not in
          ("CREATING", "UPDATING"), 5 * PATIENCE)
    return t.get(f"{IMAGES}/{name}").json


def version(t, name, v="1.0"):
    return t.get(f"{IMAGES}/{name}/versions/{v}").json


def build(t, name, v="1.0"):
    base = f"{IMAGES}/{name}/versions/{v}/builds"
    items = t.get(base).json["items"]
    one = t.get(f"{base}/{items[0]['buildId']}").json
    equal((len(items), items[0]), (1, {k: w for k, w in one.items()
                                       if k != "snapshotBuild"}),
          f"{name} {v}: one build, the same in the list and alone")
    return one


def log(t, name, v="1.0", query=""):
    return t.get(f"{OWN}/images/{name}/versions/{v}/log{query}")


def errors(a, status, kind, part, name):
    check(a.status == status and a.type == kind and part in a.message,
          f"{name}: {status} {kind}", f"got {a!r}, want {part!r}")


def left(t, grace=PATIENCE):
    """What is left of builds once the last of them has had time to end."""
    end = time.monotonic() + grace
    while True:
        out = os.listdir(os.path.join(t.state, "tmp"))
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as f:
                    line = f.read().replace(b"\0", b" ").decode("utf-8", "?")
                with open(f"/proc/{pid}/mountinfo") as f:
                    mounts = f.read()
            except OSError:
                continue
            if str(LONG) in line or "mkroot" in line and t.state in line:
                out.append(f"process {line}")
            if t.state + "/tmp/" in mounts:
                out.append(f"mounts of {line}")
        if not out or time.monotonic() > end:
            return out
        time.sleep(0.1)


def begun(t, name, v="1.0"):
    """Waits until its RUN step sleeps."""
    ok = until(lambda: f"sleep {LONG}" in log(t, name, v).text, 5 * PATIENCE)
    time.sleep(0.3)
    return ok


def sleeper(t, name):
    return folder(t, name, f"FROM debian:bookworm\nRUN sleep {LONG}\nCMD x\n")


# --- a good one --------------------------------------------------------------------

def test_create(t):
    path = folder(t, "good", GOOD)
    Store.objects["/apps/good.zip"] = zipped(t, GOOD)
    go = Store.held["/apps/good.zip"] = threading.Event()
    more = {"description": "The first.", "environmentVariables":
            {"B": "three", "C": "4"}, "tags": {"team": "blue"},
            "logging": {"cloudWatch": {"logGroup": "/g"}},
            "resources": [{"minimumMemoryInMiB": 1024}],
            "cpuConfigurations": [{"architecture": "X86_64"}],
            "additionalOsCapabilities": ["ALL"], "baseImageVersion": "1"}
    a = create(t, "good", "s3://apps/good.zip", **more)
    equal(a.status, 201, "created")
    j = a.json
    equal({k: j.get(k) for k in more}, {**more, "baseImageVersion": "1.0"},
          "its members come back")
    equal((j["state"], j["imageVersion"], j["name"]), ("CREATING", "1.0",
                                                       "good"),
          "it is being created")
    v = version(t, "good")
    equal((v["state"], v["status"]), ("IN_PROGRESS", "INACTIVE"),
          "its version is in progress")
    errors(update(t, "good", path), 409, "ConflictException",
           "being built already", "an update meanwhile")
    errors(t.delete(f"{IMAGES}/good"), 409, "ConflictException",
           "being built", "a deletion meanwhile")
    errors(t.run("good"), 404, "ResourceNotFoundException",
           "No active version", "a run meanwhile")
    equal(build(t, "good")["buildState"], "IN_PROGRESS", "the build goes on")
    go.set()
    g = settle(t, "good")
    equal((g["state"], g.get("latestActiveImageVersion"),
           g.get("latestFailedImageVersion"), g["tags"]),
          ("CREATED", "1.0", None, {"team": "blue"}), "it is created")
    v = version(t, "good")
    equal((v["state"], v["status"], v["description"], v["tags"]),
          ("SUCCESSFUL", "ACTIVE", "The first.", {"team": "blue"}),
          "its version is done")
    b = build(t, "good")
    check(b["buildState"] == "SUCCESSFUL" and "stateReason" not in b and
          b["architecture"] == "X86_64" and b["chipset"] in ("AMD", "INTEL"),
          "so is its build", b)
    check(sorted(b["snapshotBuild"]) == [
        "codeInstallSizeInBytes", "diskSnapshotSizeInBytes",
        "memorySnapshotSizeInBytes"] and
        b["snapshotBuild"]["codeInstallSizeInBytes"] > 100 << 20,
        "with three sizes", b)
    s = t.get(OWN + "/images/good").json["versions"][0]
    equal({k: s["spec"][k] for k in ("entrypoint", "user", "workingDirectory",
                                     "ports", "memoryMiB", "diskMiB")},
          {"entrypoint": ["python3", "app.py"], "user": "1234",
           "workingDirectory": "/srv", "ports": [5000], "memoryMiB": 4096,
           "diskMiB": 8192}, "the Dockerfile's words, the peak, the disk")
    env = s["spec"]["env"]
    check({"A=1", "B=three", "C=4"} <= set(env) and "B=2" not in env,
          "the environment: the request's wins", env)
    text = log(t, "good").text
    contains(text, "STEP 1/6: FROM debian:bookworm", "the log has the steps")
    contains(text, "port 5000 accepts: ready", "and how it got ready")
    equal(log(t, "good", query="?tail=1").text, "thaw: done: 1.0\n",
          "its last line")
    i = t.run("good").json
    equal((i["imageVersion"], i["state"]), ("1.0", "RUNNING"), "it runs")
    equal(i["thaw"]["logging"], {"cloudWatch": {
        "logGroup": "/g", "logStream": i["microvmId"]}},
          "and logs to its image's group")
    t.end(i["microvmId"])
    i = t.run("good", logging={"disabled": {}}).json
    equal(i["thaw"]["logging"], {"disabled": {}}, "unless it says otherwise")
    t.end(i["microvmId"])
    check(not left(t), "nothing else is left", left(t))


def test_filters(t):
    b = build(t, "good")
    base = f"{IMAGES}/good/versions/1.0/builds"
    for key, hit, miss in (("architecture", "X86_64", "ARM_64"),
                           ("chipset", b["chipset"], "GRAVITON"),
                           ("chipsetGeneration", b["chipsetGeneration"], "4")):
        equal([len(t.get(f"{base}?{key}={x}").json["items"])
               for x in (hit, miss)], [1, 0], f"builds by {key}")
    errors(t.get(base + "/nope"), 404, "ResourceNotFoundException", "no build",
           "a build that is not there")


def test_update(t):
    path = folder(t, "second", "FROM debian:bookworm\nCMD two\n")
    a = update(t, "good", path, description="", logging={"disabled": {}})
    equal((a.status, a.json["state"], a.json["imageVersion"],
           a.json.get("resources"), "tags" in a.json),
          (200, "UPDATING", "2.0", None, False),
          "an update is another version, from its own members alone")
    g = settle(t, "good")
    equal((g["state"], g["latestActiveImageVersion"]), ("UPDATED", "2.0"),
          "it is updated")
    s = t.get(OWN + "/images/good").json["versions"][1]["spec"]
    equal((s["memoryMiB"], s["readyPort"], s["ports"]), (8192, 8080, []),
          "2 GiB are the default, and port 8080")
    p = folder(t, "third", "FROM debian:bookworm\n\nRUN false\nCMD x\n")
    update(t, "good", p)
    g = settle(t, "good")
    equal((g["state"], g["latestActiveImageVersion"],
           g["latestFailedImageVersion"]), ("UPDATE_FAILED", "2.0", "3.0"),
          "one that fails changes nothing but that")
    i = t.run("good").json
    equal(i["imageVersion"], "2.0", "the newest good one runs")
    equal(i["thaw"]["logging"], {"disabled": {}},
          "and keeps no log, as its version says")
    errors(t.run("good", imageVersion="3.0"), 404, "ResourceNotFoundException",
           "No active version", "a failed one does not")
    errors(t.request("PATCH", f"{IMAGES}/good/versions/3.0",
                     {"status": "ACTIVE"}), 409, "ConflictException",
           "FAILED", "nor can it be made ACTIVE")
    for i in t.get(AWS + "/microvms").json["items"]:
        t.end(i["microvmId"])
    had = logs_of_builds(t)
    equal(t.delete(f"{IMAGES}/good/versions/3.0").json["state"], "DELETED",
          "it can be deleted")
    equal(len(logs_of_builds(t)), len(had) - 1, "with its log")
    equal(settle(t, "good")["state"], "UPDATED", "which leaves the others")
    t.delete(f"{IMAGES}/good/versions/2.0")
    errors(t.delete(f"{IMAGES}/good/versions/1.0"), 409, "ConflictException",
           "last one", "the last version stays")


# --- what is refused at once -------------------------------------------------------

def test_refused(t):
    path = os.path.join(t.dir, "good")
    hook = {"port": 9000, "microvmHooks": {"run": "ENABLED"}}
    for more, status, kind, part in (
            ({"name": "good"}, 400, "ValidationException", "exists already"),
            ({"baseImageVersion": "7"}, 400, "ValidationException",
             "no version 7"),
            ({"baseImageArn": MANAGED + "nope"}, 404,
             "ResourceNotFoundException", "no managed image 'nope'"),
            ({"baseImageArn": "nonsense"}, 400, "ValidationException",
             "not the ARN of a managed image"),
            ({"resources": [{"minimumMemoryInMiB": 777}]}, 400,
             "ValidationException", "512, 1024, 2048, 4096 or 8192"),
            ({"cpuConfigurations": [{"architecture": "ARM_64"}]}, 400,
             "ValidationException", "X86_64 alone"),
            ({"kmsKeyIdentifier": "alias/mine"}, 400, "ValidationException",
             "kmsKeyIdentifier"),
            ({"environmentVariables": {"A=B": "c"}}, 400,
             "ValidationException", '"A=B"'),
            ({"hooks": hook}, 400, "ValidationException",
             'needs the image hook "ready"'),
            ({"egressNetworkConnectors": [EGRESS + "MY_VPC"]}, 400,
             "ValidationException", "egressNetworkConnectors"),
            ({"codeArtifact": {"uri": "https://example.com/x.zip"}}, 400,
             "ValidationException", "s3://BUCKET/KEY or file:///PATH"),
            ({"codeArtifact": {"uri": "s3://Bad_Bucket/x"}}, 400,
             "ValidationException", "no name of a bucket")):
        a = t.post(IMAGES, {**members("never", path), **more})
        errors(a, status, kind, part, f"create with {list(more)[0]}")
    errors(update(t, "nope", path), 404, "ResourceNotFoundException",
           "does not exist", "an update of nothing")
    equal([i["name"] for i in t.get(IMAGES).json["items"]], ["good"],
          "nothing was made")


def test_managed(t):
    items = t.get(AWS + "/managed-microvm-images").json["items"]
    equal([i["imageArn"] for i in items],
          [MANAGED + "debian-12", MANAGED + "al2023-1"], "managed images")
    one = t.get(AWS + "/managed-microvm-images?maxResults=1").json
    two = t.get(AWS + "/managed-microvm-images?maxResults=1&nextToken=" +
                urllib.parse.quote(one["nextToken"])).json
    equal(one["items"] + two["items"], items, "in pages")
    arn = urllib.parse.quote(MANAGED + "al2023-1", safe="")
    v = t.get(f"{AWS}/managed-microvm-images/{arn}/versions").json["items"]
    equal([(i["imageVersion"], i["status"]) for i in v], [("1", "AVAILABLE")],
          "and their versions")
    errors(t.get(AWS + "/managed-microvm-images/nope/versions"), 404,
           "ResourceNotFoundException", "does not exist", "of none")


# --- failures ----------------------------------------------------------------------

def test_failures(t):
    def fails(name, path, code, part, sizes=False, **more):
        a = create(t, name, path, **more)
        equal(a.status, 201, f"{name} is accepted")
        g = settle(t, name)
        equal((g["state"], g["latestFailedImageVersion"]),
              ("CREATE_FAILED", "1.0"), f"{name} fails")
        b = build(t, name)
        check(b["buildState"] == "FAILED" and
              b["stateReason"].startswith(code) and
              re.search(part, b["stateReason"]), f"{name}: why",
              b.get("stateReason"))
        # what there was of it when it failed, as with AWS
        equal(sorted(b.get("snapshotBuild", {})),
              ["codeInstallSizeInBytes"] if sizes else [], f"{name}: sizes")
        v = version(t, name)
        equal((v["state"], v["status"], v.get("stateReason")),
              ("FAILED", "INACTIVE", None), f"{name}: its version is silent")

    fails("badstep", folder(
        t, "badstep", "FROM debian:bookworm\n\nRUN echo before; nonesuch || "
        f"{{ {image_bases.HEARD}; exit 127; }}\nCMD x\n"), "CONTAINER_BUILD_FAILED: Dockerfile line 3: RUN echo ",
        "exit status 127")
    fails("badfrom", folder(t, "badfrom", "FROM no.such/image:1\nCMD x\n"),
          "CONTAINER_BUILD_FAILED: Dockerfile line 1: FROM no.such/image:1",
          "scripts/base-image")
    fails("nofile", folder(t, "nodocker", None, other="x"),
          "ARCHIVE_DOCKERFILE_NOT_FOUND: ", "Dockerfile")
    fails("nopath", os.path.join(t.dir, "nonesuch"),
          "S3_NO_SUCH_KEY: cannot read '/", "nonesuch")
    fails("nokey", "s3://apps/nope.zip", "S3_NO_SUCH_KEY: ", "404")
    with open(os.path.join(t.dir, "x.zip"), "w") as f:
        f.write("no archive")
    fails("nozip", os.path.join(t.dir, "x.zip"), "ARCHIVE_INVALID: ", "")
    fails("quiet", os.path.join(t.dir, "badstep"), "CONTAINER_BUILD_FAILED",
          "", logging={"disabled": {}})
    # what the fake guest answers is no HTTP
    fails("hooked", folder(t, "hooked", GOOD), "Ready hook on port 9001: ",
          "not HTTP", sizes=True, hooks={"port": 9001, "microvmImageHooks": {
              "ready": "ENABLED"}})
    errors(log(t, "quiet"), 404, "ResourceNotFoundException", "no log was kept",
           "a disabled log")
    contains(log(t, "badstep").text, "nonesuch: not found",
             "others have the step's words")
    check(not left(t), "nothing is left of them", left(t))
    for name in ("badstep", "badfrom", "nofile", "nopath", "nokey", "nozip",
                 "quiet", "hooked"):
        t.delete(f"{IMAGES}/{name}")


def test_s3(t):
    Store.objects["/apps/a/app.zip"] = zipped(t, GOOD)
    create(t, "froms3", "s3://apps/a/app.zip")
    equal(settle(t, "froms3")["state"], "CREATED", "an artifact in S3")
    t.delete(f"{IMAGES}/froms3")


# --- tokens ------------------------------------------------------------------------

def test_tokens(t):
    path = os.path.join(t.dir, "second")
    a = create(t, "once", path, clientToken="token 1")
    equal(a.status, 201, "with a token")
    b = create(t, "once", path, clientToken="token 1")
    equal((b.status, b.json["imageVersion"], b.json["createdAt"]),
          (201, "1.0", a.json["createdAt"]), "again: the same")
    c = create(t, "other", path, clientToken="token 1")
    errors(c, 409, "ConflictException", "other parameters", "with other ones")
    settle(t, "once")
    t.restart()
    b = create(t, "once", path, clientToken="token 1")
    equal((b.status, b.json["state"]), (201, "CREATED"), "after a restart")
    u = update(t, "once", path, clientToken="token 1")
    errors(u, 409, "ConflictException", "other parameters",
           "an update is something else")
    u = update(t, "once", path, clientToken="token 2")
    settle(t, "once")
    v = update(t, "once", path, clientToken="token 2")
    equal((u.json["imageVersion"], v.json["imageVersion"], v.json["state"]),
          ("2.0", "2.0", "UPDATED"), "an update, again")
    t.delete(f"{IMAGES}/once")
    b = create(t, "once", path, clientToken="token 1")
    equal((b.status, b.json["state"], b.json["createdAt"]),
          (201, "CREATING", a.json["createdAt"]),
          "after a deletion it says what it said at first")
    equal(b.json, {**a.json, "updatedAt": b.json["updatedAt"]},
          "member by member")
    w = update(t, "once", path, clientToken="token 2")
    equal((w.status, w.json["imageVersion"], w.json["state"],
           w.json["imageArn"]), (200, "2.0", "UPDATING", u.json["imageArn"]),
          "so does the update")
    errors(update(t, "once", path + "x", clientToken="token 2"), 409,
           "ConflictException", "other parameters", "which conflicts, too")
    errors(update(t, "once", path, clientToken="token 9"), 404,
           "ResourceNotFoundException", "once", "one of a new token does not")
    equal(t.get(f"{IMAGES}/once").status, 404, "and makes nothing")
    create(t, "once", path, clientToken="token 3")
    settle(t, "once")
    b = create(t, "once", path, clientToken="token 1")
    equal((b.status, b.json["createdAt"]), (201, a.json["createdAt"]),
          "also when the name is there again")
    errors(create(t, "once", path + "x", clientToken="token 1"), 409,
           "ConflictException", "other parameters", "and conflicts")
    i = t.run("once", clientToken="token 1")
    equal(i.status, 200, "a run may have the same token")
    t.end(i.json["microvmId"])
    t.delete(f"{IMAGES}/once")


# --- ends --------------------------------------------------------------------------

def test_killed(t):
    create(t, "cut", sleeper(t, "cut"))
    check(begun(t, "cut"), "a build is at work", log(t, "cut").text)
    t.kill9()
    t.start()
    g = t.get(f"{IMAGES}/cut").json
    equal(g["state"], "CREATE_FAILED", "thawd was killed: it failed")
    b = build(t, "cut")
    equal((b["buildState"], b["stateReason"]), (
        "FAILED", "INTERNAL_PLATFORM_ERROR: thawd ended unexpectedly during "
        "the build"), "with a reason")
    check(not left(t), "and left nothing", left(t))
    contains(log(t, "cut").text, f"sleep {LONG}", "but its log")


def test_stopped(t):
    update(t, "cut", os.path.join(t.dir, "cut"))
    check(begun(t, "cut", "2.0"), "another is at work")
    t.stop()
    check(not left(t), "thawd was stopped: nothing is left", left(t, 0))
    t.start()
    contains(build(t, "cut", "2.0")["stateReason"], "thawd was stopped",
             "and it says so")


def test_cancelled(t):
    update(t, "cut", os.path.join(t.dir, "cut"))
    check(begun(t, "cut", "3.0"), "one more")
    one = f"{OWN}/images/cut/versions/3.0/cancel"
    lines = []
    reader = threading.Thread(target=lambda: lines.append(
        log(t, "cut", "3.0", "?follow=1").text))
    reader.start()
    equal(t.post(one).status, 202, "it is cancelled")
    equal(settle(t, "cut")["state"], "UPDATE_FAILED", "and failed")
    equal(build(t, "cut", "3.0")["stateReason"], "The build was cancelled.",
          "which it says")
    reader.join(PATIENCE)
    contains("".join(lines), "The build was cancelled",
             "who followed its log read so to its end")
    check(not left(t), "and left nothing", left(t))
    errors(t.post(one), 409, "ConflictException", "not being built",
           "there is nothing more to cancel")
    t.delete(f"{IMAGES}/cut")


# --- thaw's own build --------------------------------------------------------------

def test_own(t):
    path = folder(t, "own #1%", "FROM debian:bookworm\nARG WHAT=nothing\n"
                  f"RUN echo what: $WHAT; {image_bases.HEARD}\nEXPOSE 7000\nENTRYPOINT [\"run\"]\n")
    spec = {"name": "own", "context": path, "buildArgs": ["WHAT=this"],
            "env": ["E=1"], "memoryMiB": 256, "readyPort": 7001}
    a = t.post(OWN + "/images", spec, timeout=5 * PATIENCE)
    rows = [json.loads(x) for x in a.text.splitlines()]
    last = rows[-1].get("image", rows[-1])
    equal((last.get("version"), last.get("state")), ("1.0", "SUCCESSFUL"),
          "a build of a folder")
    stages = [r["progress"]["stage"] for r in rows if "progress" in r]
    equal(list(dict.fromkeys(stages)), [
        "fetch", "unpack", "build", "export", "disk", "store", "boot", "ready",
        "freeze", "capture", "record"], "its stages")
    text = "".join(r["log"] for r in rows if "log" in r)
    contains(text, "what: this", "build arguments, and the log")
    contains(log(t, "own").text, "what: this", "which is kept")
    s = last["spec"]
    equal((s["entrypoint"], s["readyPort"], s["ports"], s["memoryMiB"]),
          (["run"], 7001, [7000], 256), "what it became")
    equal(version(t, "own")["codeArtifact"],
          {"uri": "file://" + urllib.parse.quote(path)},
          "AWS's shape of it")
    equal(build(t, "own")["buildState"], "SUCCESSFUL", "and its build")
    got = t.build(name="own2", context=os.path.join(t.dir, "gone"))
    equal((got["error"].get("reason"), "line" in got["error"]),
          ("S3_NO_SUCH_KEY", False), "one that is not there")
    p = folder(t, "ownbad", "FROM debian:bookworm\n\n\nRUN exit 9\nCMD x\n")
    got = t.build(name="own2", context=p)["error"]
    equal((got.get("reason"), got.get("line")), ("CONTAINER_BUILD_FAILED", 4),
          "one that fails")
    contains(got["message"], "Dockerfile line 4: RUN exit 9: exit status 9",
             "says where")
    equal(t.get(f"{IMAGES}/own2").status, 404, "and makes no image")
    for more, part in (({"kernel": "/k"}, "exactly one of context"),
                       ({"hooks": {"port": 70000}}, "port"),
                       ({"hooks": {"microvmHooks": {"run": "ENABLED"}}},
                        "ready"),
                       ({"buildArgs": ["x"]}, "NAME=VALUE"),
                       ({"context": "relative"}, "absolute")):
        errors(t.post(OWN + "/images", {**spec, **more}), 400,
               "ValidationException", part, f"own build with {more}")
    errors(t.post(OWN + "/images", {"name": "x", "rootfs": "/", "entrypoint":
                                    ["x"], "network": True}), 400,
           "ValidationException", "needs context", "network without one")
    t.delete(f"{IMAGES}/own")


def logs_of_builds(t):
    return {n for n in os.listdir(os.path.join(t.state, "logs"))
            if n.startswith("build-")}


def test_own_cancel(t):
    had = logs_of_builds(t)
    c = rig.Conn(t.sock)
    c.request("POST", OWN + "/images", json.dumps(
        {"name": "gone", "context": sleeper(t, "gone")}))
    r = c.getresponse()
    for line in r:
        if f"sleep {LONG}".encode() in line:
            break
    time.sleep(0.3)
    check(left(t, 0), "a build of ours is at work")
    r.close()
    c.close()
    check(not left(t), "its reader went: nothing is left", left(t))
    equal(t.get(f"{IMAGES}/gone").status, 404, "no image either")
    until(lambda: logs_of_builds(t) == had)
    equal(logs_of_builds(t), had, "and no log")


def test_restart_keeps(t):
    create(t, "kept", os.path.join(t.dir, "good"), description="kept",
           tags={"a": "b"})
    settle(t, "kept")
    was = (t.get(f"{IMAGES}/kept").json, version(t, "kept"), build(t, "kept"),
           log(t, "kept").text)
    t.restart()
    now = (t.get(f"{IMAGES}/kept").json, version(t, "kept"), build(t, "kept"),
           log(t, "kept").text)
    equal(now, was, "everything is the same after a restart")


def main():
    if os.geteuid() or not shutil.which("buildah"):
        print("1..0 # SKIP needs root and buildah")
        return 77
    try:
        bases = image_bases.make(image_bases.BASE)
    except image_bases.Missing as e:
        print(f"1..0 # SKIP no base images: {e}")
        return 77
    s3 = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Store)
    threading.Thread(target=s3.serve_forever, daemon=True).start()
    t = rig.Thawd(sys.argv[1], "--bases", bases, "--s3-endpoint",
                  f"http://127.0.0.1:{s3.server_port}", "--kernel", "/k",
                  "--initrd", "/i", libexec=sys.argv[2])
    os.chmod(t.dir, 0o755)
    tests = [f for n, f in globals().items() if n.startswith("test_")]
    try:
        t.start()
        return rig.main(tests, t)
    finally:
        if rig.failed:
            rig.diag(t.log()[-3000:])
        t.remove()


if __name__ == "__main__":
    sys.exit(main())
