#!/usr/bin/python3
# timeout: 1500
"""From a zip with a Dockerfile to an answering microVM, through AWS's calls, with
a real guest. TAP.

FROM finds its base images in THAW_BASES, else in the cache (what the tests of
engine/image made there); they are read where they lie, also from within kvmbox.
"""
import json
import os
import sys
import time
import zipfile

import lifecycle_rig as lr
from lifecycle_rig import rig
import image_bases  # noqa: E402, beside the rig

BASES = image_bases.store()
if not os.path.isdir(os.path.join(BASES, "overlay-images")):
    print(f"Bail out! no base images in {BASES}: scripts/base-image --store "
          "makes them")
    sys.exit(1)
site = lr.Site("--bases", BASES)
t = site.thawd
IMAGES = rig.AWS + "/microvm-images"
APP = r'''
import http.server, os, time
began, asked, path = time.monotonic(), 0, "/aws/lambda-microvms/runtime/v1/"

class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status, text):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self):
        self.answer(200, f"{os.environ['GREETING']} from {os.getcwd()} "
                         f"{open('/app/mark').read().strip()} asked {asked}")

    def do_POST(self):
        global asked
        self.rfile.read(int(self.headers["Content-Length"]))
        asked += 1
        print("asked", self.path, flush=True)
        hook = self.path.removeprefix(path)
        # Not ready at first, and so asked again.
        self.answer(503 if hook == "ready" and asked < 3 else
                    200 if hook in ("ready", "validate") else 404, "")

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("0.0.0.0", 9090), Handler).serve_forever()
'''
DOCKERFILE = """FROM localhost/debian:bookworm
WORKDIR /app
ENV GREETING=nobody OTHER=kept
COPY app.py .
RUN echo built >/app/mark
EXPOSE 9090
CMD ["python3", "/app/app.py"]
"""
REFUSED = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
for call in (lambda: libc.sethostname(b"x", 1),
             lambda: libc.mount(b"/usr", b"/mnt", None, 4096, None)):
    print(errno.errorcode[ctypes.get_errno()] if call() else "done", end=" ")
"""
HOOKS = {"port": lr.PORT, "microvmImageHooks": {
    "ready": "ENABLED", "readyTimeoutInSeconds": 900,
    "validate": "ENABLED", "validateTimeoutInSeconds": 900}}


def zipped(name, files):
    path = os.path.join(lr.WORK, name)
    with zipfile.ZipFile(path, "w") as z:
        for k, v in files.items():
            z.writestr(k, v)
    os.chmod(path, 0o644)
    return path


def create(name, path, **more):
    return t.post(IMAGES, {
        "name": name, "baseImageArn":
            "arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1",
        "buildRoleArn": "arn:aws:iam::000000000000:role/build",
        "codeArtifact": {"uri": "file://" + path},
        **more})


def settle(name, seconds=1200):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        g = t.get(f"{IMAGES}/{name}").json
        if g["state"] not in ("CREATING", "UPDATING"):
            break
        time.sleep(1)
    return g["state"]


def build_of(name, version="1.0"):
    base = f"{IMAGES}/{name}/versions/{version}/builds"
    one = t.get(base).json["items"][0]["buildId"]
    return t.get(f"{base}/{one}").json


def log_of(name, version="1.0"):
    return t.get(f"{rig.OWN}/images/{name}/versions/{version}/log").text


def test_build():
    began = time.time()
    site.start()
    a = create("app", zipped("app.zip", {"Dockerfile": DOCKERFILE,
                                         "app.py": APP}),
               hooks=HOOKS, environmentVariables={"GREETING": "hello"})
    rig.equal((a.status, a.json["state"], a.json["imageVersion"]),
              (201, "CREATING", "1.0"), "an image is being created")
    v = t.get(f"{IMAGES}/app/versions/1.0").json
    rig.equal(v["state"], "IN_PROGRESS", "its version is in progress")
    state = settle("app")
    log = log_of("app")
    if not rig.equal(state, "CREATED", "it is created"):
        rig.diag(log[-3000:])
    rig.diag(f"built in {time.time() - began:.0f} s")
    rig.contains(log, "the ready hook said so", "its ready hook was asked")
    rig.check(log.count("/ready") >= 3, "again after 503", log[-1500:])
    rig.contains(log, "validate hook on port 9090", "and a copy's validate")
    b = build_of("app")
    rig.equal(b["buildState"], "SUCCESSFUL", "the build")
    sizes = b["snapshotBuild"]
    rig.check(sizes["memorySnapshotSizeInBytes"] > 1 << 24 and
              sizes["codeInstallSizeInBytes"] > 1 << 24 and
              sizes["diskSnapshotSizeInBytes"] > 0, "has sizes", sizes)
    rig.diag(json.dumps(sizes))
    rig.diag(json.dumps(t.get(rig.OWN + "/images/app").json["versions"][0]
                        ["sizes"]))


def test_run():
    i = site.run("app", "--name", "one")
    rig.equal(t.vm("one").json["state"], "RUNNING", "a microVM of it runs")
    # validate was asked of a copy: it left no trace in the image
    rig.equal(site.get("one", "/"), "hello from /app built asked 3",
              "and answers, with the request's environment and the Dockerfile's "
              "directory")
    out = site.sh("one", "grep MemTotal /proc/meminfo; df -m / | tail -1")
    mib = int(out.split()[1]) // 1024
    disk = int(out.splitlines()[1].split()[1])
    rig.check(7600 < mib <= 8192, "it sees the peak, 4 x 2 GiB", out)
    rig.check(7000 < disk <= 8192, "and 8 GiB of disk", out)
    rig.equal(site.sh("one", "echo $OTHER"), "kept", "ENV of the Dockerfile")
    rig.equal(site.sh("one", "grep CapEff /proc/self/status; for p in "
                      "/proc/[0-9]*; do grep -q ^python3 $p/cmdline && "
                      "grep CapEff $p/status; done; true"),
              "\n".join(["CapEff:\t00000000a80425fb"] * 2),
              "without additionalOsCapabilities it has a container's")
    rig.equal(site.out("exec", "one", "python3", "-c", REFUSED), "EPERM EPERM",
              "no host name is set and nothing is mounted")
    t.end(i)


def test_broken():
    a = create("bad", zipped("bad.zip", {
        "Dockerfile": "FROM localhost/debian:bookworm\nWORKDIR /app\n\n"
                      "RUN echo before; no-such-program\nCMD x\n"}))
    rig.equal(a.status, 201, "a broken one is accepted")
    rig.equal(settle("bad"), "CREATE_FAILED", "and fails")
    b = build_of("bad")
    rig.equal(b["buildState"], "FAILED", "its build")
    rig.contains(b["stateReason"], "CONTAINER_BUILD_FAILED: Dockerfile line 4: "
                 "RUN echo before; no-such-program", "says why and where")
    rig.check("snapshotBuild" not in b, "and has no sizes", b)
    v = t.get(f"{IMAGES}/bad/versions/1.0").json
    rig.check(v["state"] == "FAILED" and "stateReason" not in v,
              "its version has no reason, as with AWS", v)


status = rig.main([test_build, test_run, test_broken])
site.close()
sys.exit(status)
