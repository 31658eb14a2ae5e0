#!/usr/bin/python3
"""Builds of Dockerfiles through img.h. TAP on stdout; needs root and buildah.

usage: test_image.py img_tool thaw-mkroot [PART]...
Parts: good broken archives contained killed s3 disk. Base images are made once,
in the cache directory, by scripts/base-image.
"""
import datetime
import http.server
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile

import image_bases
from image_bases import BASE, DEVEL, HEARD
from thawd_rig import PATIENCE, free_port, remove_tree, until

TOOL, MKROOT = (os.path.abspath(p) for p in sys.argv[1:3])
PARTS = sys.argv[3:]
TOP = tempfile.mkdtemp(prefix="thaw-image-test-")
os.chmod(TOP, 0o755)
STATE = os.path.join(TOP, "state")
os.mkdir(STATE, 0o700)
LONG = 40000000 + os.getpid()  # seconds that no other run sleeps
count = failed = 0


def check(ok, name, detail=""):
    global count, failed
    count += 1
    if not ok:
        failed += 1
    print(f"{'ok' if ok else 'not ok'} {count} - {name}")
    if not ok and detail:
        for line in str(detail).splitlines()[-30:]:
            print(f"#   {line}")
    sys.stdout.flush()


class Build:
    """One build, to its end; result() is img_tool's object."""

    def __init__(self, uri, *args, bases=True, tmp=STATE):
        more = ["--bases", BASES] if bases else []
        self.log = tempfile.TemporaryFile()
        self.p = subprocess.Popen(
            [TOOL, "--mkroot", MKROOT, "--tmp", tmp, *more, *args, uri],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log)

    def result(self):
        line = self.p.stdout.readline()
        self.r = json.loads(line) if line else {
            "ok": False, "reason": "", "line": -1, "why": "no answer"}
        return self.r

    def text(self):
        self.log.seek(0)
        return self.log.read().decode("utf-8", "replace")

    def wait_for(self, pattern):
        until(lambda: self.p.poll() is not None or
              re.search(pattern, self.text()), 5 * PATIENCE)
        return re.search(pattern, self.text()) is not None

    def close(self):
        self.p.stdin.close()
        rc = self.p.wait(timeout=PATIENCE)
        self.p.stdout.close()
        return rc

    def __enter__(self):
        return self

    def __exit__(self, failed, *_):
        if failed:
            self.p.kill()
        self.close()
        bad = re.search(r"(?s)(ERROR: \w+Sanitizer|runtime error:).*",
                        self.text())
        if bad:
            check(False, "no sanitizer complains", bad[0])
        self.log.close()


def folder(files, name=None):
    path = tempfile.mkdtemp(dir=TOP, prefix="app-")
    os.chmod(path, 0o755)
    for k, v in files.items():
        p = os.path.join(path, k)
        os.makedirs(os.path.dirname(p), exist_ok=True)
        with open(p, "wb") as f:
            f.write(v.encode() if isinstance(v, str) else v)
    return path


def zipped(files, **kw):
    path = tempfile.mktemp(dir=TOP, suffix=".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for k, v in files.items():
            info = zipfile.ZipInfo(k, (2026, 1, 2, 3, 4, 6))
            info.external_attr = 0o100644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            z.writestr(info, v)
    return path


def member(name, kind=tarfile.REGTYPE, data=b"", **more):
    m = tarfile.TarInfo(name)
    m.type = kind
    m.size = len(data)
    m.mode = 0o644
    for k, v in more.items():
        setattr(m, k, v)
    return m, data


def tarred(members, suffix=".tar", mode="w"):
    path = tempfile.mktemp(dir=TOP, suffix=suffix)
    with tarfile.open(path, mode, format=tarfile.PAX_FORMAT) as t:
        for m, data in members:
            t.addfile(m, io.BytesIO(data))
    return path


def uri(path):
    return "file://" + path


def left(tmp=STATE):
    """What is left of a build: files, processes, mounts."""
    out = [f"file {n}" for n in os.listdir(tmp)]
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                line = f.read().replace(b"\0", b" ").decode("utf-8", "replace")
            with open(f"/proc/{pid}/mountinfo") as f:
                mounts = f.read()
        except OSError:
            continue
        # img_tool itself may still be ending
        if TOP + "/" in line and "test_image.py" not in line and \
                not line.startswith(TOOL):
            out.append(f"process {pid} {line}")
        elif str(LONG) in line and "sleep" in line:
            out.append(f"process {pid} {line}")
        if tmp + "/" in mounts:
            out.append(f"mounts of {pid} {line}")
    return out


# --- good ------------------------------------------------------------------

APP = "from flask import Flask\napp = Flask(__name__)\n"
SERVER = r"""
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
int main(int argc, char **argv)
{
	static const char text[] = "HTTP/1.0 200 OK\r\n\r\nfrom C\n";
	struct sockaddr_in a = {.sin_family = AF_INET};
	int s = socket(AF_INET, SOCK_STREAM, 0), one = 1;
	a.sin_port = htons(argc > 1 ? atoi(argv[1]) : 7000);
	a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(s, (void *)&a, sizeof(a)) || listen(s, 5))
		return 1;
	int c = accept(s, 0, 0);
	write(c, text, strlen(text));
	close(c);
	return 0;
}
"""


class Tree:
    """A root file system, read from its tar."""

    def __init__(self, path):
        self.t = tarfile.open(path)
        self.m = {}
        for m in self.t:
            self.m[m.name.removeprefix("./")] = m

    def __contains__(self, name):
        return name in self.m

    def read(self, name):
        return self.t.extractfile(self.m[name]).read()

    def owner(self, name):
        return self.m[name].uid, self.m[name].gid, self.m[name].mode


def good(name, source, expect, look=None, args=(), log=None, scratch=False):
    with Build(source, *args) as b:
        r = b.result()
        if not r["ok"]:
            check(False, name, f"{r}\n{b.text()}")
            return
        wrong = {k: r[k] for k, v in expect.items() if r[k] != v}
        check(not wrong, f"{name}: configuration", f"{wrong}\n{r}")
        if log:
            check(re.search(log, b.text()), f"{name}: the log says so",
                  b.text())
        tree = Tree(r["rootfs"])
        check((scratch or "usr/bin/env" in tree) and
              "run/.containerenv" not in tree,
              f"{name}: the base's files are there")
        check({"dev", "etc", "proc", "run", "sys", "tmp"} <= tree.m.keys() and
              tree.owner("tmp")[2] == 0o1777 and
              tree.owner(".")[2] == 0o755,
              f"{name}: what a guest needs is there")
        if look:
            look(tree, r)
        tree.t.close()
        st = os.stat(r["rootfs"])
        check(st.st_mode & 0o777 == 0o600 and st.st_uid == 0,
              f"{name}: only root reads it")
        kept = os.listdir(os.path.dirname(r["rootfs"]))
        check(sorted(kept) == ["config.json", "rootfs.tar"],
              f"{name}: nothing else is kept", kept)


def part_good():
    def flask(tree, _):
        check(tree.read("app/app.py") == APP.encode(), "python: the app is in")

    good("python, exec form, zip", uri(zipped({
        "Dockerfile": f"FROM {BASE}\nWORKDIR /app\nCOPY app.py .\n"
                      "EXPOSE 5000\nENV FLASK_APP=app\n"
                      'CMD ["python3", "-m", "flask", "run"]\n',
        "app.py": APP})),
        {"argv": ["python3", "-m", "flask", "run"], "cwd": "/app",
         "user": "", "ports": [5000]}, flask)

    def stages(tree, _):
        check("app/out" in tree and "build/out" not in tree,
              "multi-stage: only what was copied comes along")

    good("multi-stage, short names, tar", uri(tarred([member(
        "./Dockerfile",
        data=b"ARG TAG=bookworm\nFROM debian:$TAG AS a\n"
             b"RUN mkdir /build && echo hi >/build/out\n"
             b"FROM debian:bookworm AS unused\nRUN false\n"
             b"FROM debian:${TAG}\nCOPY --from=a /build/out /app/out\n"
             b'ENTRYPOINT ["/bin/cat"]\nCMD ["/app/out"]\n')])),
        {"argv": ["/bin/cat", "/app/out"], "ports": []}, stages)

    def arg(tree, r):
        check(tree.read("who") == b"given default\n", "ARG: --build-arg wins")
        check("B=two words" in r["env"], "ENV: expanded, with blanks",
              r["env"])

    good("ARG and ENV", uri(folder({
        "Dockerfile": f"FROM {BASE}\nARG A=unset\nARG C=default\n"
                      'ENV B="two words"\nRUN echo $A $C >/who\nCMD who\n'})),
        {"argv": ["/bin/sh", "-c", "who"]}, arg, args=["--arg", "A=given"])

    def owner(tree, _):
        check(tree.owner("srv/app/mine")[:2] == (1234, 1234),
              "USER: a RUN step runs as it", tree.owner("srv/app/mine"))
        check(tree.owner("srv/app/data")[:2] == (1234, 1234),
              "COPY --chown")

    good("non-root USER", uri(folder({
        "Dockerfile": f"FROM {BASE}\n"
                      "RUN useradd -u 1234 -m worker && mkdir -p /srv/app && "
                      "chown worker:worker /srv/app\nUSER worker\n"
                      f"WORKDIR /srv/app\nRUN touch mine && id -u && {HEARD}\n"
                      "COPY --chown=worker:worker data .\n"
                      'CMD ["sleep", "1"]\n', "data": "x"})),
        {"user": "worker", "cwd": "/srv/app"}, owner, log=r"(?m)^1234$")
    good("numeric USER and group", uri(folder({
        "Dockerfile": f"FROM {BASE}\nUSER 4000:33\nCMD id\n"})),
        {"user": "4000:33"})
    good("shell-form ENTRYPOINT resets CMD", uri(folder({
        "Dockerfile": f'FROM {BASE} AS x\nCMD ["never"]\nFROM x\n'
                      "ENTRYPOINT exec env\n"})),
        {"argv": ["/bin/sh", "-c", "exec env"]})
    good("SHELL, HEALTHCHECK, STOPSIGNAL, LABEL", uri(folder({
        "Dockerfile": "# syntax=docker/dockerfile:1\n# escape=`\n"
                      f"FROM {BASE}\n"
                      'SHELL ["/bin/bash", "-c"]\n'
                      "RUN [[ -n yes ]] && `\n    # a comment\n\n"
                      "    echo bash >/shell\n"
                      "HEALTHCHECK --interval=5s CMD curl localhost\n"
                      "STOPSIGNAL SIGINT\nLABEL a=b\nCMD run me\n"})),
        {"argv": ["/bin/bash", "-c", "run me"]},
        lambda t, _: check(t.read("shell") == b"bash\n", "SHELL is used"),
        log=r"Dockerfile line 9: HEALTHCHECK is ignored")

    def volumes(tree, r):
        check("data" in tree and "var/lib/thing/x" in tree,
              "VOLUME: the directories exist")
        check(sorted(r["volumes"]) == ["/data", "/var/lib/thing/x"],
              "VOLUME: they are told", r["volumes"])

    good("VOLUME, WORKDIR chain, EXPOSE order", uri(folder({
        "Dockerfile": f"FROM {BASE}\nVOLUME /data\n"
                      'VOLUME ["/var/lib/thing/x"]\nWORKDIR /a\nWORKDIR b\n'
                      "ARG P=81\nEXPOSE 9000/tcp 53/udp 5000\nEXPOSE $P\n"
                      "CMD pwd\n"})),
        {"cwd": "/a/b", "ports": [9000, 5000, 81]}, volumes)

    def served(tree, _):
        path = os.path.join(TOP, "server")
        with open(path, "wb") as f:
            f.write(tree.read("server"))
        os.chmod(path, 0o755)
        port = free_port()
        p = subprocess.Popen([path, str(port)])

        def asked():
            try:
                with socket.create_connection(("127.0.0.1", port),
                                              PATIENCE) as s:
                    answer = b""
                    while part := s.recv(999):
                        answer += part
                    return answer
            except ConnectionRefusedError:
                return None
        answer = until(asked) or b""
        p.wait(timeout=PATIENCE)
        check(answer.endswith(b"from C\n"), "the C server answers", answer)
        check("usr/bin/gcc" not in tree, "the compiler stays behind")

    good("C server from a build stage", uri(folder({
        "Dockerfile": f"FROM {DEVEL} AS build\nCOPY server.c /src/\n"
                      "RUN gcc -static -O1 -o /server /src/server.c\n"
                      "FROM scratch\nCOPY --from=build /server /server\n"
                      'EXPOSE 7000\nENTRYPOINT ["/server"]\n',
        "server.c": SERVER})),
        {"argv": ["/server"], "ports": [7000]}, served, scratch=True)
    good("a registry's name that is mapped here, .dockerignore, tar.gz",
         uri(tarred([
             member("Dockerfile", data=b"FROM public.ecr.aws/lambda/microvms:"
                    b"al2023-minimal\nCOPY . /app/\nCMD x\n"),
             member(".dockerignore", data=b"secret*\n"),
             member("secret.txt", data=b"no"), member("tool", data=b"#!/bin/sh",
                                                      mode=0o4755),
             member("lib/link", tarfile.SYMTYPE, linkname="../tool"),
             member("abs", tarfile.SYMTYPE, linkname="/usr/bin/python3")],
             ".tar.gz", "w:gz")),
         {"argv": ["/bin/sh", "-c", "x"]},
         lambda t, _: check(
             "app/secret.txt" not in t and
             t.owner("app/tool") == (0, 0, 0o755) and
             t.m["app/abs"].linkname == "/usr/bin/python3",
             "ignored files stay out, set-id bits go, links stay",
             [n for n in t.m if n.startswith("app")]))
    good("background processes of a step do not stay", uri(folder({
        "Dockerfile": f"FROM {BASE}\nRUN sleep {LONG} & echo begun\n"
                      "CMD x\n"})), {"argv": ["/bin/sh", "-c", "x"]})
    check(not left(), "nothing is left when all are released", left())


# --- broken ----------------------------------------------------------------

def broken(name, source, reason, line, why, args=(), **kw):
    with Build(source, *args, **kw) as b:
        r = b.result()
        text = b.text()
    ok = (not r["ok"] and r["reason"] == reason and r["line"] == line and
          re.search(why, r["why"]) is not None)
    if line:
        ok = ok and f"Dockerfile line {line}: " in r["why"]
    check(ok, name, f"{r}\n{text}")
    return r


def part_broken():
    def dockerfile(name, text, line, why, args=(), **files):
        return broken(name, uri(folder({"Dockerfile": text, **files})),
                      "CONTAINER_BUILD_FAILED", line, why, args)

    r = dockerfile("a step that fails names its line and its last words",
                   f"FROM {BASE}\n# about\nRUN true\n\nRUN echo one && \\\n"
                   f"  echo two && {HEARD}; \\\n  exit 37\n", 5,
                   r"exit status 37; its last output: one \| two")
    check("echo two" in r["tail"], "the log's last lines come along", r)
    dockerfile("a program that is not there",
               f"FROM {BASE}\nRUN npm install || {{ {HEARD}; exit 127; }}\n", 2,
               "exit status 127.*npm: not found")
    dockerfile("an unknown instruction", f"FROM {BASE}\n\n\nINSTALL x\n", 4,
               "unknown instruction INSTALL")
    dockerfile("a file that is not there", f"FROM {BASE}\nCOPY nope /x\n", 2,
               "nope.*no such file")
    dockerfile("a base image that is not there",
               "FROM registry.example/x:1\nRUN true\n", 1,
               "image not known.*no network.*scripts/base-image")
    dockerfile("no FROM", "# nothing\nRUN true\n", 2,
               "first instruction must be FROM")
    dockerfile("a stage that is not there",
               f"FROM {BASE} AS a\nRUN true\nFROM {BASE}\n"
               "COPY --from=other /x /y\n", 4, "no stage or image")
    dockerfile("a path out of the context",
               f"FROM {BASE}\nCOPY ../../etc/passwd /x\n", 2, "escaping")
    dockerfile("an unknown user", f"FROM {BASE}\nCMD x\nUSER ghost\n", 3,
               "no such user")
    dockerfile("an unknown group", f"FROM {BASE}\nUSER root:ghosts\nCMD x\n",
               2, "no such group")
    dockerfile("nothing to start", f"FROM {BASE}\nRUN true\n", 1,
               "neither ENTRYPOINT nor CMD")
    dockerfile("a port that is none", f"FROM {BASE}\nEXPOSE 80 http\n", 2,
               "EXPOSE takes ports.*not http")
    dockerfile("a heredoc", f"FROM {BASE}\nRUN <<EOF\ntrue\nEOF\n", 2,
               "heredocs")
    dockerfile("an empty value", f"FROM {BASE}\nWORKDIR\n", 2,
               "argument is missing after WORKDIR")
    dockerfile("an ARG that names no base", "FROM $NOTHING\nRUN true\n", 1, "")
    dockerfile("a flag that buildah has not",
               f"FROM {BASE}\nCOPY --link Dockerfile /x\n", 2, "COPY only")
    dockerfile("the network", f"FROM {BASE}\nRUN python3 -c \"import socket; "
               f"socket.create_connection(('1.1.1.1', 53))\" || {{ {HEARD}; exit 1; "
               "}\n", 2,
               "Network is unreachable")
    dockerfile("a program that kills itself", f"FROM {BASE}\nRUN kill -9 $$\n",
               2, "exit status 1")
    r = dockerfile("texts that are no UTF-8",
                   f"FROM {BASE}\nRUN printf '\\377\\033[1mx\\n'; {HEARD}; exit 3\n",
                   2,
                   r"last output: .*x")
    check("\x1b" not in r["why"] + r["tail"], "control characters are gone")
    dockerfile("time", f"FROM {BASE}\nRUN sleep {LONG}\n", 2,
               "took longer than 20 s", ["--timeout", "20"])
    broken("an empty Dockerfile", uri(folder({"Dockerfile": "\n"})),
           "CONTAINER_BUILD_FAILED", 0, "empty")
    broken("a binary Dockerfile", uri(folder({"Dockerfile": b"FROM x\n\0"})),
           "CONTAINER_BUILD_FAILED", 2, "not text")
    broken("no bases at all", uri(folder({"Dockerfile": f"FROM {BASE}\n"})),
           "CONTAINER_BUILD_FAILED", 1, "image not known", bases=False)
    broken("an http URI", "http://x/y.zip", "", 0, "s3://BUCKET/KEY or file")
    check(not left(), "nothing is left of any", left())


# --- archives --------------------------------------------------------------

def part_archives():
    docker = member("Dockerfile", data=f"FROM {BASE}\nCMD x\n".encode())
    outside = os.path.join(TOP, "outside")

    def bad(name, path, why, reason="ARCHIVE_INVALID", args=()):
        broken(f"archive: {name}", uri(path), reason, 0, why, args)
        check(not os.path.exists(outside), f"archive: {name}: nothing outside")

    for kind, pack in (("tar", lambda n: tarred([docker, member(n)])),
                       ("zip", lambda n: zipped({"Dockerfile": "FROM x\n",
                                                 n: "x"}))):
        bad(f"{kind}: ..", pack("../outside"), r"'\.\.' in it")
        bad(f"{kind}: .. within", pack("a/../../../outside"), r"'\.\.' in it")
        bad(f"{kind}: absolute", pack(outside), "absolute name")
    bad("through a link", tarred([
        docker, member("d", tarfile.SYMTYPE, linkname=TOP),
        member("d/outside", data=b"x")]), "cannot unpack 'd/outside'")
    bad("a link that climbs", tarred([
        docker, member("a/b", tarfile.SYMTYPE, linkname="x/../../../etc")]),
        "leads out of it, 'a/b'")
    bad("a hard link that climbs", tarred([
        docker, member("p", tarfile.LNKTYPE, linkname="../../etc/passwd")]),
        "hard link 'p'")
    bad("a hard link to the host", tarred([
        docker, member("p", tarfile.LNKTYPE, linkname="/etc/passwd")]),
        "hard link 'p'")
    bad("a hard link through a link", tarred([
        docker, member("e", tarfile.SYMTYPE, linkname="/etc"),
        member("p", tarfile.LNKTYPE, linkname="e/passwd")]), "'p'")
    bad("no archive", folder({"x": "y" * 9999}) + "/x", "not a readable zip")
    bad("an empty file", folder({"x": ""}) + "/x", "")
    whole = zipped({"Dockerfile": "FROM x\n", "big": os.urandom(300000)})
    with open(whole, "r+b") as f:
        f.truncate(200000)
    bad("a zip that was cut", whole, "")
    whole = tarred([docker, member("big", data=os.urandom(300000))], ".tar.gz",
                   "w:gz")
    with open(whole, "r+b") as f:
        f.truncate(200000)
    bad("a tar.gz that was cut", whole, "damaged|not a readable")
    flipped = zipped({"Dockerfile": "FROM x\n", "big": os.urandom(30000)})
    with open(flipped, "r+b") as f:
        f.seek(5000)
        f.write(b"\xff" * 9)
    bad("a zip with flipped bytes", flipped, "damaged")
    limit = ["--max-bytes", str(64 << 20)]
    bomb = zipped({"Dockerfile": "FROM x\n", "zeros": bytes(1 << 28)})
    bad("a zip that unpacks to too much", bomb, "more than 64 MiB",
        "DISK_STORAGE_FULL", limit)
    bomb = tarred([docker] + [member(f"z{i}", data=bytes(8 << 20))
                              for i in range(20)], ".tar.xz", "w:xz")
    bad("a tar.xz that unpacks to too much", bomb, "more than 64 MiB",
        "DISK_STORAGE_FULL", limit)
    bad("a nesting of directories", tarred([docker, member("d/" * 300 + "x")]),
        "deeper than 256")
    bad("no Dockerfile", tarred([member("app/Dockerfile", data=b"FROM x")]),
        "no file 'Dockerfile' at its root", "ARCHIVE_DOCKERFILE_NOT_FOUND")
    for what, m in (
            ("a link", member("Dockerfile", tarfile.SYMTYPE,
                              linkname="/etc/passwd")),
            ("a directory", member("Dockerfile", tarfile.DIRTYPE)),
            ("a FIFO", member("Dockerfile", tarfile.FIFOTYPE)),
            ("a device", member("Dockerfile", tarfile.CHRTYPE, devmajor=1,
                                devminor=3))):
        bad(f"its Dockerfile is {what}", tarred([m, member("x")]),
            "no file 'Dockerfile'", "ARCHIVE_DOCKERFILE_NOT_FOUND")
    with tempfile.TemporaryDirectory(dir=TOP) as work:
        many = tarred([member(f"f{i}") for i in range(200)])
        p = subprocess.run([MKROOT, "--source", many, "--work", work,
                            "--max-entries", "100"], capture_output=True,
                           text=True)
        check(p.returncode == 1 and "more than 100 files" in p.stdout,
              "archive: too many files", p.stdout)
    secret = folder({"Dockerfile": f"FROM {BASE}\nCMD x\n", "k": "x"})
    os.chmod(os.path.join(secret, "k"), 0o600)
    broken("a folder that its caller may not read", uri(secret),
           "S3_ACCESS_DENIED", 0, "uid 65534", ["--uid", "65534"])
    broken("a file that is not there", uri(TOP + "/nope.zip"),
           "S3_NO_SUCH_KEY", 0, "nope.zip")
    check(not left(), "nothing is left of any", left())


# --- containment -----------------------------------------------------------

PROBE = r"""
import ctypes, glob, os, socket, stat, sys

def tried(name, f):
    try:
        r = f()
        print("PROBE", name, "DONE", r)
    except BaseException as e:
        print("PROBE", name, "refused", type(e).__name__, e)

libc = ctypes.CDLL(None, use_errno=True)
def c(rc):
    if rc:
        raise OSError(ctypes.get_errno(), "errno")

def inet():
    socket.create_connection(("127.0.0.1", int(sys.argv[1])), 2)
def abstract():
    socket.socket(socket.AF_UNIX).connect("\0" + sys.argv[2])
def escape():
    os.makedirs("/tmp/x", exist_ok=True)
    fd = os.open("/", os.O_RDONLY)
    os.chroot("/tmp/x")
    os.fchdir(fd)
    for _ in range(100):
        os.chdir("..")
    os.chroot(".")
    names = sorted(os.listdir("/"))
    seen = os.path.exists(sys.argv[3])
    wrote = False
    try:
        open("/bases/mine", "w"); wrote = True
    except OSError:
        pass
    return f"host={seen} bases={wrote} {names}"

tried("kill", lambda: os.kill(int(sys.argv[4]), 9))
tried("inet", inet)
tried("abstract", abstract)
tried("mount", lambda: c(libc.mount(b"none", b"/mnt", b"tmpfs", 0, None)))
tried("mknod", lambda: os.mknod("/tmp/vda", 0o600 | stat.S_IFBLK,
                                os.makedev(254, 0)))
tried("init_root", lambda: os.listdir("/proc/1/root"))
tried("init_mem", lambda: open("/proc/1/mem", "r+b"))
tried("core", lambda: open("/proc/sys/kernel/core_pattern", "w").write("x"))
tried("sysrq", lambda: open("/proc/sysrq-trigger", "w").write("x"))
tried("sys", lambda: open("/sys/kernel/uevent_helper", "w").write("x"))
tried("hostname", lambda: socket.sethostname("evil"))
tried("setns", lambda: c(libc.unshare(0x20000)))
tried("module", lambda: c(libc.syscall(175, b"", 0, b"")))
print("PROBE dev", " ".join(sorted(os.listdir("/dev"))))
print("PROBE seccomp", open("/proc/self/status").read().split("Seccomp:")[1]
      .split()[0])
print("PROBE pids", len(glob.glob("/proc/[0-9]*")))
tried("escape", escape)
sys.stdout.flush()
import time
time.sleep(3)  # image_bases.HEARD
"""


def part_contained():
    victim = subprocess.Popen(["sleep", "600"])
    listener = socket.create_server(("127.0.0.1", 0))
    quiet = socket.socket(socket.AF_UNIX)
    name = f"thaw-test-{os.getpid()}"
    quiet.bind("\0" + name)
    quiet.listen()
    marker = os.path.join(TOP, "marker")
    with open(marker, "w"):
        pass
    path = folder({"Dockerfile": f"FROM {BASE}\nCOPY probe.py /\n"
                   f"RUN python3 /probe.py {listener.getsockname()[1]} {name} "
                   f"{marker} {victim.pid}\nCMD x\n", "probe.py": PROBE})
    with Build(uri(path)) as b:
        r = b.result()
        text = b.text()
    check(r["ok"], "the probe builds", f"{r}\n{text}")
    got = dict(re.findall(r"(?m)^PROBE (\w+) (.*)$", text))
    for what in ("kill", "inet", "abstract", "mount", "mknod", "init_root",
                 "init_mem", "core", "sysrq", "sys", "hostname", "setns",
                 "module"):
        check(got.get(what, "").startswith("refused"),
              f"a RUN step's {what} is refused", got.get(what))
    check(victim.poll() is None, "a host process lives on")
    victim.kill()
    victim.wait()
    check(got.get("dev") == "fd full null ptmx pts random shm stderr stdin "
          "stdout tty urandom zero", "/dev is a small one", got.get("dev"))
    check(got.get("seccomp") == "2", "a seccomp filter is on",
          got.get("seccomp"))
    check(int(got.get("pids", 99)) < 12, "it sees only its own processes",
          got.get("pids"))
    escape = got.get("escape", "")
    check("host=False" in escape and "bases=False" in escape,
          "who leaves the chroot is in a cell without the host", escape)
    quiet.close()
    check(not left(), "nothing is left", left())
    listener.close()


# --- killed ----------------------------------------------------------------

def gone(files=False):
    """Waits until no process or mount is left; the rest of left()."""
    def rest():
        return [x for x in left() if files or not x.startswith("file")]
    until(lambda: not rest())
    return rest()


def part_killed():
    slow = uri(folder({"Dockerfile": f"FROM {BASE}\nRUN dd if=/dev/zero "
                       "of=/big bs=1M count=50 && echo it has begun && "
                       f"sleep {LONG}\nCMD x\n"}))
    with Build(slow, "--cancel-at", "it has begun") as b:
        r = b.result()
        rest = left()
    check(not r["ok"] and r["rc"] == -125 and r["why"] == "cancelled" and
          r["reason"] == "", "a cancelled build says so", r)
    check(not rest, "when it says so, nothing is left", rest)
    with Build(slow, "--cancel-at", "unpack") as b:
        b.wait_for("it has begun")
        b.p.kill()
    rest = gone()
    check(not rest, "kill -9 of the daemon: no process, no mount is left", rest)
    check(len(left()) == 1, "its folder is left", left())
    subprocess.run([TOOL, "--tmp", STATE, "--sweep"], check=True)
    check(not left(), "the next start takes it away", left())
    for n in range(12):  # at any moment
        with Build(slow) as b:
            time.sleep(0.03 + 0.05 * n)
            b.p.kill()
        rest = gone()
        if rest:
            break
    check(not rest, "the same at 12 other moments", rest)
    subprocess.run([TOOL, "--tmp", STATE, "--sweep"], check=True)
    check(not left(), "and the next start", left())
    with Build(slow) as b:
        b.wait_for("it has begun")
        pids = [int(x.split()[1]) for x in left()
                if x.startswith("process") and MKROOT + " " in x and
                TOOL not in x]
        os.kill(min(pids), signal.SIGKILL)
        r = b.result()
    check(not r["ok"] and r["reason"] == "INTERNAL_PLATFORM_ERROR",
          "kill -9 of the builder is an error", r)
    check(not gone(files=True), "and leaves nothing", left())
    deep = uri(folder({
        "Dockerfile": f"FROM {BASE}\nCOPY deep.py /\nRUN python3 /deep.py\n"
                      f"RUN echo it has begun && sleep {LONG}\nCMD x\n",
        "deep.py": "import os\nfor i in range(5000):\n os.mkdir('dir')\n"
                   " os.chdir('dir')\nopen('end', 'w')\n"}))
    with Build(deep, "--cancel-at", "it has begun") as b:
        r = b.result()
    check(r["why"] == "cancelled" and not left(),
          "a tree 5,000 directories deep is removed", f"{r} {left()}")


# --- S3 --------------------------------------------------------------------

KEYS = {"AKIDEXAMPLE000000": "secret/with+signs0123456789012345678901"}


class S3(http.server.BaseHTTPRequestHandler):
    """Path-style S3, as much as a GET needs; signatures by botocore."""
    objects, seen, fail_first, cut = {}, [], 0, False

    def log_message(self, *_):
        pass

    def refuse(self, status, code, message="so it is"):
        body = (f"<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>"
                f"{message}</Message></Error>").encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def signed(self):
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials
        head = self.headers.get("Authorization", "")
        m = re.match(r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d+)/([^/]+)/s3/"
                     r"aws4_request, ?SignedHeaders=([^,]+), ?Signature=(\w+)",
                     head)
        if not m or m[1] not in KEYS:
            return False
        signed = m[4].split(";")
        request = AWSRequest(
            "GET", f"http://{self.headers['Host']}{self.path}",
            headers={h: self.headers[h] for h in signed if h != "host"})
        request.context["timestamp"] = self.headers["X-Amz-Date"]
        request.headers["Host"] = self.headers["Host"]
        auth = S3SigV4Auth(Credentials(m[1], KEYS[m[1]]), "s3", m[3])
        canonical = auth.canonical_request(request)
        text = auth.string_to_sign(request, canonical)
        return auth.signature(text, request) == m[5]

    def do_GET(self):
        cls = type(self)
        cls.seen.append((self.path, dict(self.headers)))
        if cls.fail_first:
            cls.fail_first -= 1
            return self.refuse(503, "SlowDown")
        bucket, _, key = self.path.lstrip("/").partition("/")
        if bucket == "elsewhere":
            return self.refuse(301, "PermanentRedirect")
        if bucket == "wrongregion":
            return self.refuse(400, "AuthorizationHeaderMalformed")
        if bucket == "frozen":
            return self.refuse(403, "InvalidObjectState")
        if bucket == "open":
            pass
        elif "Authorization" not in self.headers:
            return self.refuse(403, "AccessDenied")
        elif not self.signed():
            return self.refuse(403, "SignatureDoesNotMatch")
        elif bucket != "apps":
            return self.refuse(404, "NoSuchBucket")
        if key not in cls.objects:
            return self.refuse(404, "NoSuchKey")
        body = cls.objects[key]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:len(body) // 2] if cls.cut else body)


def part_s3():
    try:
        import botocore  # noqa: F401
    except ImportError:
        print("# no botocore: S3 is not tested")
        return
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), S3)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    with open(zipped({"Dockerfile": f"FROM {BASE}\nCMD x\n"}), "rb") as f:
        S3.objects["app.zip"] = body = f.read()
    S3.objects["a%20b%2Bc/%C3%BC~%28x%29.zip"] = body
    S3.objects["big.zip"] = bytes(3 << 20)
    creds = os.path.join(TOP, "credentials")

    def write_creds(secret, mode=0o600, token=""):
        with open(creds, "w") as f:
            f.write("# mine\n[other]\naws_access_key_id = AKIDOTHER0000000\n"
                    "aws_secret_access_key = x\n\n[default]\n"
                    "aws_access_key_id = AKIDEXAMPLE000000\n"
                    f"aws_secret_access_key={secret}\n{token}")
        os.chmod(creds, mode)

    write_creds(KEYS["AKIDEXAMPLE000000"])
    args = ["--endpoint", endpoint, "--credentials", creds, "--region",
            "eu-central-1"]

    def fine(name, what, *more):
        with Build(what, *args, *more) as b:
            r = b.result()
            check(r["ok"], name, f"{r}\n{b.text()}")

    fine("s3: a signed GET", "s3://apps/app.zip")
    fine("s3: a key with blanks, plus, umlauts", "s3://apps/a b+c/ü~(x).zip")
    write_creds(KEYS["AKIDEXAMPLE000000"], token="aws_session_token = T+/=x\n")
    S3.seen.clear()
    fine("s3: a session token", "s3://apps/app.zip")
    head = {k.lower(): v for k, v in S3.seen[0][1].items()}
    check(head.get("x-amz-security-token") == "T+/=x" and
          "x-amz-security-token" in head.get("authorization", ""),
          "s3: the token is sent and signed", head)
    write_creds(KEYS["AKIDEXAMPLE000000"])
    S3.fail_first = 2
    fine("s3: a store that is busy is asked again", "s3://apps/app.zip")

    def bad(name, what, reason, why, more=(), use=None):
        broken(f"s3: {name}", what, reason, 0, why, [*(use or args), *more])

    bad("no such key", "s3://apps/nope.zip", "S3_NO_SUCH_KEY", "404 NoSuchKey")
    bad("no such bucket", "s3://apples/x", "S3_NO_SUCH_BUCKET", "NoSuchBucket")
    bad("another region", "s3://elsewhere/x", "S3_CROSS_REGION_ACCESS_DENIED",
        "301 PermanentRedirect")
    bad("another region, by the signature", "s3://wrongregion/x",
        "S3_CROSS_REGION_ACCESS_DENIED", "AuthorizationHeaderMalformed")
    bad("an archived object", "s3://frozen/x", "S3_INVALID_OBJECT",
        "InvalidObjectState")
    bad("an object that is too big", "s3://apps/big.zip", "S3_INVALID_OBJECT",
        "larger than the 1 MiB", ["--max-bytes", str(1 << 20)])
    bad("an object that is no archive", "s3://apps/big.zip",
        "ARCHIVE_INVALID", "")
    bad("no credentials", "s3://apps/app.zip", "S3_ACCESS_DENIED",
        "AccessDenied", use=["--endpoint", endpoint])
    with Build("s3://open/app.zip", "--endpoint", endpoint) as b:
        check(b.result()["ok"], "s3: an unsigned GET of an open bucket", b.r)
    write_creds("wrong" * 8)
    bad("a wrong secret", "s3://apps/app.zip", "S3_ACCESS_DENIED",
        "SignatureDoesNotMatch")
    write_creds(KEYS["AKIDEXAMPLE000000"], 0o644)
    bad("credentials that others read", "s3://apps/app.zip",
        "S3_ACCESS_DENIED", "chmod 600")
    write_creds(KEYS["AKIDEXAMPLE000000"])
    S3.cut = True
    bad("an object that ends early", "s3://apps/app.zip",
        "INTERNAL_PLATFORM_ERROR", "tried 3 times")
    S3.cut = False
    server.shutdown()
    server.server_close()
    bad("nobody answers", "s3://apps/app.zip", "INTERNAL_PLATFORM_ERROR",
        "[Cc]onnect.*tried 3 times")
    for what in ("s3://x/y", "s3://apps", "s3://Apps/x", "s3://apps/"):
        broken(f"s3: {what} is no URI", what, "", 0, "bucket|BUCKET/KEY", args)
    check(not left(), "nothing is left of any", left())


# --- the disk --------------------------------------------------------------

def part_disk():
    small = os.path.join(TOP, "small")
    os.mkdir(small, 0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700m,mode=700", "none",
                    small], check=True)
    try:
        # Slowly, so that the guard sees it before the file system is full.
        source = uri(folder({"Dockerfile": f"FROM {BASE}\n\nRUN for i in $(seq "
                             "60); do head -c 8M /dev/zero >>/big || exit 1; "
                             "sleep 0.5; done\nCMD x\n"}))
        broken("a build that fills the disk", source, "DISK_STORAGE_FULL", 3,
               "less than 512 MiB", tmp=small)
        check(not left(small), "and nothing is left of it", left(small))
    finally:
        subprocess.run(["umount", small], check=True)
    broken("a file larger than allowed",
           uri(folder({"Dockerfile": f"FROM {BASE}\nRUN head -c 300M /dev/zero "
                       ">/big\nCMD x\n"})), "CONTAINER_BUILD_FAILED", 2,
           "exit status", ["--max-bytes", str(256 << 20)])
    broken("a root file system larger than allowed",
           uri(folder({"Dockerfile": f"FROM {BASE}\nRUN for i in 1 2 3 4; do head "
                       "-c 60M /dev/urandom >/big$i; done\nCMD x\n"})),
           "DISK_STORAGE_FULL", 0, "larger than is allowed",
           ["--max-bytes", str(256 << 20)])
    check(not left(), "nothing is left of any", left())


def main():
    global BASES
    if os.geteuid() or not shutil.which("buildah"):
        print("1..0 # SKIP root and buildah are needed")
        sys.exit(77)
    try:
        BASES = image_bases.make(image_bases.BASE, image_bases.DEVEL)
    except image_bases.Missing as e:
        print(f"1..0 # SKIP no base images: {e}")
        sys.exit(77)
    try:
        for part in PARTS or ["good", "broken", "archives", "contained",
                              "killed", "s3", "disk"]:
            globals()[f"part_{part}"]()
    finally:
        remove_tree(TOP)
    print(f"1..{count}")
    sys.exit(1 if failed else 0)


main()
