#!/usr/bin/python3
# timeout: 1500
"""The endpoint with real Linux guests: what passes through it, across suspends
too, and the shell. TAP.

With THAW_TRANSFER_MIB=N in the environment it is only one upload and one download
of N MiB, to see speed and memory of long ones (run.sh --limit SECONDS gives the
time for them)."""
import io
import json
import os
import socket
import struct
import sys
import tarfile
import threading
import time
import zlib

import lifecycle_rig as lr
from lifecycle_rig import rig

from endpoint_rig import (BINARY, CLOSE, CONNECTOR, Endpoint, Refused,  # noqa
                          TEXT, token)

MIB = 1 << 20
ALONE = "THAW_TRANSFER_MIB" in os.environ
BIG = int(os.environ.get("THAW_TRANSFER_MIB", "64")) * MIB
BLOCK = bytes(range(256)) * 256

site = lr.Site("--endpoint", "0", "--endpoint-plain")
t = site.thawd
vm = {}


def packages(tar):
    """Adds Debian's python3-h2, which is Python alone, and the server made of it
    to the root's /opt."""
    import h2
    import hpack
    import h2_server
    import hyperframe
    with tarfile.open(tar, "a") as out:
        for m in (h2, hpack, hyperframe):
            out.add(os.path.dirname(m.__file__), "./opt/" + m.__name__,
                    filter=lambda i: None if "__pycache__" in i.name else i)
        out.add(h2_server.__file__, "./opt/h2_server.py")
    return tar


def suspend():
    a = t.op(vm["id"], "suspend", "?wait=SUSPENDED")
    got = t.vm(vm["id"]).json["state"]
    if got != "SUSPENDED":
        raise RuntimeError(f"it does not suspend: {got} {a!r}")


def call(path, port, **kw):
    return e.call(vm["name"], vm["token"], path, port, **kw)


def test_build():
    global e
    site.start()
    e = Endpoint(t)
    with open(os.path.join(lr.HERE, "endpoint_app.py"), "rb") as f:
        tar = packages(lr.rootfs_with(f.read()))
    site.build("web", tar, "--vcpus", "1")
    a = t.run("web", query="?wait=RUNNING",
              ingressNetworkConnectors=[CONNECTOR + "HTTP_INGRESS",
                                        CONNECTOR + "SHELL_INGRESS"],
              idlePolicy={"maxIdleDurationSeconds": 3600,
                          "suspendedDurationSeconds": 3600,
                          "autoResumeEnabled": True})
    rig.equal(a.json.get("state"), "RUNNING", "it runs")
    i = a.json["microvmId"]
    vm.update(id=i, name=a.json["endpoint"],
              token=token(t, i, minutes=60),
              shell=token(t, i, minutes=60, shell=True))


def test_flask():
    rig.equal(call("/", 5000)[0::2], (200, b"Hello, World!"), "Flask answers")
    rig.equal(call("/", 5001)[0], 502, "nobody listens there: 502")
    rig.equal([call("/count", 5000)[2] for _ in (1, 2)], [b"1", b"2"],
              "it counts")
    suspend()
    rig.equal(call("/count", 5000)[2], b"3",
              "the first request to a suspended microVM is answered by it")
    rig.equal(t.vm(vm["id"]).json["state"], "RUNNING", "which runs again")
    seen = json.loads(call("/x?y=z", 9090)[2])
    rig.equal((seen["target"], seen["fields"]["host"]),
              ("/x?y=z", "localhost:9090"), "what the guest sees")
    rig.check(not [k for k in seen["fields"] if "aws" in k],
              "and nothing that is the endpoint's", seen)


def test_websocket():
    for after in ("", ", resumed for it"):
        if after:
            suspend()
        w = e.websocket(vm["name"], vm["token"], "/ws", 9090)
        for data in (b"hello", b"x" * 60000):
            w.send(BINARY, data)
            rig.equal(w.recv(), (BINARY, data),
                      f"a WebSocket, {len(data)} bytes{after}")
        if after:
            w.send(CLOSE, b"\x03\xe8")
            rig.equal(w.end()[1], 1000, "its close")
            continue
        suspend()  # with it open
        try:
            got = w.s.recv(1)
        except OSError:
            got = b""
        rig.equal(got, b"", "a suspend ends an open WebSocket")


def events():
    """What comes; the guest says each only when the one before was seen here."""
    c = e.connect(vm["name"])
    c.sendall(f"GET /events HTTP/1.1\r\nHost: {vm['name']}\r\nX-aws-proxy-auth: "
              f"{vm['token']}\r\nX-aws-proxy-port: 9090\r\n"
              f"Connection: close\r\n\r\n".encode())
    got, seen = b"", 0
    while True:
        data = c.recv(65536)
        if not data:
            return got, seen
        got += data
        while b"data: %d\n\n" % seen in got:
            call("/seen", 9090)
            seen += 1


def test_events():
    for after in ("", ", of one resumed for it"):
        if after:
            suspend()
        got, seen = events()
        rig.check(got.count(b"data: ") == 5 and b"data: 4" in got,
                  "server-sent events" + after, got)
        rig.equal(seen, 5, "come one by one" + after)


def thawd_kib():
    """Memory of thawd's own."""
    with open(f"/proc/{t.main_pid()}/status") as f:
        return next(int(line.split()[1]) for line in f
                    if line.startswith("RssAnon:"))


def cell_kib(pid):
    """Memory of a cell's own: not what its guest has written."""
    return (lr.smaps_kib(pid, "Anonymous:") -
            lr.guest_kib(pid, lr.MEMORY, "Anonymous:"))


class Memory(threading.Thread):
    """The most that each of some readings, by name, was meanwhile; KiB."""

    def __init__(self, **reads):
        super().__init__(daemon=True)
        self.on, self.reads = True, reads
        self.first = {k: read() for k, read in reads.items()}
        self.most = dict(self.first)

    def run(self):
        while self.on:
            for k, read in self.reads.items():
                self.most[k] = max(self.most[k], read())
            time.sleep(0.2)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc):
        self.on = False
        self.join()


def pattern(n):
    for i in range(0, n, len(BLOCK)):
        yield struct.pack(">Q", i) + BLOCK[8:]


def crc_of(blocks):
    crc = 0
    for b in blocks:
        crc = zlib.crc32(b, crc)
    return crc


def upload(n):
    c = e.connect(vm["name"], timeout=rig.PATIENCE)
    c.sendall(f"POST /upload HTTP/1.1\r\nHost: {vm['name']}\r\n"
              f"X-aws-proxy-auth: {vm['token']}\r\nX-aws-proxy-port: 9090\r\n"
              f"Content-Length: {n}\r\nConnection: close\r\n\r\n".encode())
    for b in pattern(n):
        c.sendall(b)
    got = b""
    while True:
        data = c.recv(65536)
        if not data:
            break
        got += data
    return json.loads(got.split(b"\r\n\r\n", 1)[1])


def download(n):
    c = e.connect(vm["name"], timeout=rig.PATIENCE)
    c.sendall(f"GET /download?{n} HTTP/1.1\r\nHost: {vm['name']}\r\n"
              f"X-aws-proxy-auth: {vm['token']}\r\nX-aws-proxy-port: 9090\r\n"
              "Connection: close\r\n\r\n".encode())
    head = b""
    while b"\r\n\r\n" not in head:
        head += c.recv(65536)
    data = head.split(b"\r\n\r\n", 1)[1] or c.recv(65536)
    got, crc = 0, 0
    while data:
        got, crc = got + len(data), zlib.crc32(data, crc)
        data = c.recv(65536)
    return {"n": got, "crc": crc}


def transfer(what, move, want, held=False):
    """One upload or download, and what it costs in memory. A cell is watched only
    where it is there all the time."""
    after = ", held until it was resumed" if held else ""
    vm["token"] = token(t, vm["id"], minutes=60)
    reads = {"thawd": thawd_kib}
    if held:
        suspend()
    else:
        cell = t.vm(vm["id"]).json["thaw"]["pid"]
        reads["its cell"] = lambda: cell_kib(cell)
    with Memory(**reads) as m:
        t0 = time.time()
        got = move(BIG)
        took = time.time() - t0
    rig.equal(got, {"n": BIG, "crc": want},
              f"{what} of {BIG // MIB} MiB{after}")
    for k in reads:
        rig.check(m.most[k] - m.first[k] < 16 * 1024,
                  f"{k} had {m.first[k]} KiB before, {m.most[k]} at most")
    rig.diag(f"{what}{after}: {BIG / took / 1e6:.2f} MB/s")


def test_transfers():
    want = crc_of(pattern(BIG))
    call("/", 9090)
    transfer("upload", upload, want)
    transfer("download", download, want)
    if not ALONE:
        transfer("upload", upload, want, held=True)
        transfer("download", download, want, held=True)


def test_h2():
    from test_front import H2
    label, _, domain = vm["name"].split(":")[0].partition(".")
    rig.equal(domain, "localhost", "the domain")
    for after in ("", ", resumed for it"):
        if after:
            suspend()
        s = e.connect(vm["name"], alpn=["h2", "http/1.1"])
        rig.equal(s.selected_alpn_protocol(), "h2", "HTTP/2 by ALPN" + after)
        h = H2(s)
        one = h.request(5000, "/", token=vm["token"], host=label)
        two = h.request(9091, "/echo", "POST", [("x-aws-proxy-force-h2",
                                                 "true")],
                        token=vm["token"], host=label, end=False)
        h.send(two, b"z" * 100000, end=True)
        a = h.answer(one)
        rig.equal((a["head"][":status"], a["body"]),
                  ("200", b"Hello, World!"), "Flask, in HTTP/2" + after)
        a = h.answer(two)
        rig.equal((a["head"].get("x-spoken"), len(a["body"]), a["trailers"]),
                  ("h2", 16384, {"grpc-status": "0", "a-trailer": "x"}),
                  "HTTP/2 to the guest, with trailers" + after)
        s.close()


def test_grpc():
    import grpc
    creds = grpc.ssl_channel_credentials(
        open(t.host()["endpointCa"], "rb").read())
    name = vm["name"].split(":")[0]
    md = (("x-aws-proxy-auth", vm["token"]), ("x-aws-proxy-port", "9091"))
    for after in ("", ", resumed for it"):
        if after:
            suspend()
        ch = grpc.secure_channel(f"127.0.0.1:{e.port}", creds, options=(
            ("grpc.ssl_target_name_override", name),
            ("grpc.default_authority", name)))
        got, done = ch.unary_unary("/test.Echo/Say").with_call(
            b"over gRPC", metadata=md, timeout=rig.PATIENCE)
        rig.equal((got, dict(done.trailing_metadata()).get("a-trailer")),
                  (b"over gRPC", "x"), "a gRPC call" + after)
        ch.close()


def test_shell():
    for after in ("", ", resumed for it"):
        if after:
            suspend()
        w = e.websocket(vm["name"], vm["shell"], "/shell")
        op, data = w.recv()
        rig.equal((op, json.loads(data)["type"]), (TEXT, "session_init"),
                  "a shell" + after)
        w.send(BINARY, b"echo $((6*7)) $TERM $(id -u) $(tty | head -c 8)\n")
        w.until(b"42 xterm 0 /dev/pts")
        rig.check(True, "root, on a terminal" + after)
        w.say({"type": "resize", "cols": 132, "rows": 50})
        w.say({"type": "gibberish"})
        w.send(BINARY, b"stty size\n")
        w.until(b"50 132")
        rig.check(True, "whose size changes" + after)
        w.send(BINARY, b"head -c 3000000 /dev/zero | tr '\\0' y; echo\n")
        got = w.until(b"y\r\n")
        rig.check(b"y" * 3000000 in got, "3 MB of output" + after, len(got))
        w.send(BINARY, b"sleep 1000\n")
        time.sleep(1)
        w.send(BINARY, b"\x03")
        w.send(BINARY, b"exit 7\n")
        texts, code, reason = end_of(w)
        rig.equal((texts, code, reason), (
            [{"type": "exit", "code": 7}], 1000, "shell exited"),
            "^C, and its exit code" + after)
        w.close()
    w = e.websocket(vm["name"], vm["shell"], "/shell")
    w.recv()
    w.send(BINARY, b"sleep 54321 & echo started\n")
    w.until(b"started\r\n")
    w.close()
    rig.until(lambda: "bash" not in ps())
    rig.check("bash" not in ps(), "a client that goes away ends its shell",
              ps())


def ps():
    a = t.post(f"{rig.OWN}/microvms/{vm['id']}/exec", {"command": [
        "/bin/sh", "-c", "cat /proc/[0-9]*/comm"]})
    return a.json["stdout"].split()


def end_of(w):
    """The close; output before it is skipped."""
    texts = []
    w.s.settimeout(rig.PATIENCE)
    while True:
        op, data = w.recv()
        if op == TEXT:
            texts.append(json.loads(data))
        elif op == CLOSE:
            return texts, int.from_bytes(data[:2], "big"), data[2:].decode()


def test_resumed_again_and_again():
    for _ in range(5):
        suspend()
        rig.equal(call("/", 5000)[0::2], (200, b"Hello, World!"),
                  "suspended once more, it answers once more")


def test_end():
    t.end(vm["id"])
    rig.equal(call("/", 5000)[0], 404, "the token is dead with the microVM")
    try:
        e.websocket(vm["name"], vm["shell"], "/shell")
        rig.check(False, "and the shell's")
    except Refused as r:
        rig.equal(r.status, 404, "and the shell's")


status = rig.main([test_build, test_transfers, test_end] if ALONE else
                  [v for k, v in list(globals().items())
                   if k.startswith("test_")])
site.close()
sys.exit(status)
