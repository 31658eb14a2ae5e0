#!/usr/bin/python3
"""The endpoint's proxy in front of fake microVMs (front_rig.c).

usage: test_front.py PATH-OF-front-rig [-k WORD]
"""
import asyncio
import contextlib
import http.client
import json
import os
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import threading
import time
import warnings

from thawd_rig import PATIENCE, check, contains, diag, equal, main, until

RIG = sys.argv[1] if sys.argv[1:] else None  # None: imported
MIB = 1 << 20
warnings.simplefilter("ignore", DeprecationWarning)  # old TLS, on purpose


class Front:
    """A front-rig with these flags: Front(head_ms=500)."""

    def __init__(self, **flags):
        flags.setdefault("plain", "yes")
        args = [RIG]
        for k, v in flags.items():
            args += ["--" + k.replace("_", "-"), str(v)]
        self.err = tempfile.TemporaryFile()
        # Else what is freed would count as memory in a sanitizer's build.
        env = dict(os.environ, ASAN_OPTIONS="quarantine_size_mb=1:"
                   "thread_local_quarantine_size_kb=64")
        self.proc = subprocess.Popen(args, stdin=subprocess.PIPE, env=env,
                                     stdout=subprocess.PIPE, stderr=self.err)
        line = self.proc.stdout.readline()
        if not line:
            self.err.seek(0)
            raise RuntimeError(self.err.read().decode())
        self.hello = json.loads(line)
        self.port = self.hello["port"]

    def cmd(self, line):
        self.proc.stdin.write(line.encode() + b"\n")
        self.proc.stdin.flush()
        return json.loads(self.proc.stdout.readline())

    def stats(self):
        return self.cmd("stats")

    def settled(self, *what):
        """Waits until nothing of this (or of all) is open; the last stats."""
        until(lambda: not any(self.stats()[k] for k in what or (
            "conns", "exchanges", "openings")))
        return self.stats()

    def rss(self, what="VmRSS"):
        for line in open(f"/proc/{self.proc.pid}/status"):
            if line.startswith(what + ":"):
                return int(line.split()[1]) * 1024

    def connect(self, timeout=PATIENCE):
        s = socket.create_connection(("127.0.0.1", self.port), timeout)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return s

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        try:
            self.proc.stdin.write(b"end\n")
            self.proc.stdin.flush()
        except OSError:
            pass
        try:
            rc = self.proc.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.proc.kill()
            rc = "it did not end"
        self.err.seek(0)
        text = self.err.read().decode(errors="replace")
        if rc != 0 or text:
            check(False, "the rig ends in order", f"{rc}\n{text}")
        self.proc.stdin.close()
        self.proc.stdout.close()


class Guest:
    """An application: handler(sock, guest) for each connection."""

    def __init__(self, handler):
        self.handler, self.conns, self.errors = handler, 0, []
        self.served, self.seen = 0, []
        self.sock = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self.sock.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                s, _ = self.sock.accept()
            except OSError:
                return
            self.conns += 1
            threading.Thread(target=self.serve, args=(s,), daemon=True).start()

    def serve(self, s):
        try:
            with s:
                s.settimeout(PATIENCE)
                self.handler(s, self)
        except OSError as e:
            self.errors.append(e)
        self.served += 1  # good enough: one after the other where it matters

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


def read_head(s):
    """A head's bytes and what came behind it."""
    data = b""
    while b"\r\n\r\n" not in data:
        got = s.recv(65536)
        if not got:
            return data, b""
        data += got
    head, rest = data.split(b"\r\n\r\n", 1)
    return head + b"\r\n\r\n", rest


def fields(head):
    out = {}
    for line in head.decode("latin1").split("\r\n")[1:]:
        if line:
            k, v = line.split(":", 1)
            out.setdefault(k.lower(), []).append(v.strip())
    return out


def read_more(s):
    got = s.recv(65536)
    if not got:
        raise ConnectionError("end of file in a request")
    return got


def read_request(s):
    """A whole request: head, body."""
    head, rest = read_head(s)
    f = fields(head)
    if "content-length" in f:
        n = int(f["content-length"][0])
        while len(rest) < n:
            rest += read_more(s)
        return head, rest
    if "transfer-encoding" in f:
        body = b""
        while True:
            while b"\r\n" not in rest:
                rest += read_more(s)
            size, rest = rest.split(b"\r\n", 1)
            n = int(size, 16)
            while len(rest) < n + 2:
                rest += read_more(s)
            body, rest = body + rest[:n], rest[n + 2:]
            if n == 0:
                return head, body
    return head, b""


@contextlib.contextmanager
def unreachable():
    """A port of this host where nobody listens, and nobody will meanwhile."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        yield s.getsockname()[1]


def answering(answer):
    """A handler that records the request and answers with these bytes."""
    def handler(s, guest):
        head, body = read_request(s)
        guest.seen.append((head, body))
        s.sendall(answer(head, body) if callable(answer) else answer)
    return handler


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def echo(head, body):
    text = head + body
    return b"HTTP/1.1 200 Fine\r\nX-Guest: 1\r\nContent-Length: %d\r\n\r\n%s" \
        % (len(text), text)


def req(guest, path="/", method="GET", extra="", token="good", host="vm1",
        version="1.1"):
    port = guest if isinstance(guest, int) else guest.port
    auth = f"X-aws-proxy-auth: {token}\r\n" if token else ""
    return (f"{method} {path} HTTP/{version}\r\nHost: {host}.localhost\r\n"
            f"X-aws-proxy-port: {port}\r\n{auth}{extra}\r\n").encode()


def read_all(s):
    out = b""
    try:
        while True:
            got = s.recv(65536)
            if not got:
                return out
            out += got
    except ConnectionResetError:
        return out + b"<reset>"
    except socket.timeout:
        return out + b"<timeout>"


def response(s, method="GET"):
    """One answer off the connection: (status, fields, body)."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):  # not a byte behind it
        got = s.recv(1)
        if not got:
            raise EOFError(f"end of file in a head: {head!r}")
        head += got
    status, f = int(head.split()[1]), fields(head)
    body = b""
    if method == "HEAD" or status < 200 or status in (204, 304):
        pass
    elif "transfer-encoding" in f:
        while True:
            size = b""
            while not size.endswith(b"\r\n"):
                got = s.recv(1)
                if not got:
                    raise EOFError("end of file in a chunked body")
                size += got
            n = int(size, 16)
            if n == 0:
                line = b"?"
                while line != b"\r\n":  # trailers
                    line = b""
                    while not line.endswith(b"\r\n"):
                        line += take(s, 1)
                break
            body += take(s, n + 2)[:n]
    elif "content-length" in f:
        body = take(s, int(f["content-length"][0]))
    else:
        body = read_all(s)
    return status, f, body


def take(s, n):
    out = b""
    while len(out) < n:
        got = s.recv(min(65536, n - len(out)))
        if not got:
            raise EOFError(f"end of file, {n - len(out)} bytes too early")
        out += got
    return out


def ask(front, data, method="GET"):
    with front.connect() as s:
        s.sendall(data)
        return response(s, method)


# --- what the two sides see -------------------------------------------------------

def test_plain_requests():
    with Front() as f, Guest(answering(echo)) as g:
        status, h, body = ask(f, req(g, "/a?b=c", extra="X-aws-proxy-x: 1\r\n"
                                     "X_Aws_Proxy_Y: 1\r\nA: b\r\n"
                                     "Connection: keep-alive, X-Hop\r\n"
                                     "X-Hop: 1\r\nCookie: c=d\r\n"))
        equal(status, 200, "a GET is answered")
        equal(h["x-guest"], ["1"], "the guest's fields come back")
        equal(body, b"GET /a?b=c HTTP/1.1\r\nHost: localhost:%d\r\nA: b\r\n"
              b"Cookie: c=d\r\nConnection: close\r\n\r\n" % g.port,
              "the guest sees what is meant for it and nothing else")
        data = bytes(range(256)) * 300
        status, _, body = ask(f, req(
            g, method="POST", extra=f"Content-Length: {len(data)}\r\n") + data)
        check(body.endswith(b"\r\n\r\n" + data), "a body of known length")
        chunked = b"".join(b"%x;e=x\r\n%s\r\n" % (len(p), p) for p in
                           (data[:1], data[1:700], data[700:])) + \
            b"0\r\nTr: x\r\n\r\n"
        status, _, body = ask(f, req(g, method="PUT", extra=
                                     "Transfer-Encoding: chunked\r\n")
                              + chunked)
        equal(status, 200, "a chunked request is answered")
        equal(g.seen[-1][1], data, "a chunked body is the same body")
        contains(g.seen[-1][0].decode(), "Transfer-Encoding: chunked\r\n",
                 "and chunked on")
        check(b"Tr:" not in g.seen[-1][0] + g.seen[-1][1],
              "without extensions or trailers")
        s = f.settled()
        equal((s["conns"], s["exchanges"], s["openings"]), (0, 0, 0),
              "nothing stays open")
        check(s["traffic"] >= 3, "traffic was told of")


def test_answers():
    def answer(head, body):
        kind = head.split()[1].decode()
        return {
            "/204": b"HTTP/1.1 204 None\r\nContent-Length: 5\r\n\r\n",
            "/304": b"HTTP/1.1 304 Same\r\nContent-Length: 5\r\n\r\n",
            "/head": b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n",
            "/close": b"HTTP/1.0 200 OK\r\n\r\nup to the end",
            "/chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
                        b"\r\n5;x\r\nhello\r\n1\r\n!\r\n0\r\nTr: y\r\n\r\n",
            "/early": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
                      b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
            "/hop": b"HTTP/1.1 200 OK\r\nConnection: X-A\r\nX-A: 1\r\n"
                    b"Keep-Alive: 3\r\nX-B: 2\r\nContent-Length: 0\r\n\r\n",
            "/zero": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        }[kind]
    with Front() as f, Guest(answering(answer)) as g, f.connect() as s:
        s.sendall(req(g, "/204"))
        status, h, body = response(s)
        equal((status, h.get("content-length")), (204, None),
              "204 has no length")
        s.sendall(req(g, "/304"))
        equal(response(s)[1].get("content-length"), ["5"],
              "304 keeps its length, and the connection is in order")
        s.sendall(req(g, "/head", "HEAD"))
        equal(response(s, "HEAD")[1].get("content-length"), ["9999"],
              "HEAD keeps its length, and has no body")
        s.sendall(req(g, "/zero"))
        equal(response(s)[2], b"", "an empty body")
        s.sendall(req(g, "/close"))
        status, h, body = response(s)
        equal((h.get("transfer-encoding"), body),
              (["chunked"], b"up to the end"),
              "a body up to the end comes chunked, the connection stays")
        s.sendall(req(g, "/hop"))
        h = response(s)[1]
        equal((h.get("x-a"), h.get("x-b"), h.get("keep-alive")),
              (None, ["2"], None), "fields of one hop end there")
        s.sendall(req(g, "/early"))
        first = response(s)
        equal((first[0], first[1].get("link")), (103, ["x"]),
              "an interim answer passes")
        equal(response(s)[2], b"ok", "100 of the guest does not; then the rest")
        s.sendall(req(g, "/chunked", extra="TE: trailers\r\n"
                      "Connection: TE\r\n"))
        head, rest = read_head(s)
        while not rest.endswith(b"\r\n\r\n"):
            rest += s.recv(1000)
        check(rest.endswith(b"0\r\nTr: y\r\n\r\n") and b"hello" in rest,
              "trailers reach a client that wants them", rest)
        s.sendall(req(g, "/chunked", version="1.0"))
        status, h, body = response(s)
        equal((h.get("transfer-encoding"), body), (None, b"hello!"),
              "HTTP/1.0 gets plain bytes up to the end")


def test_statuses():
    with Front(open_ms=1500) as f, unreachable() as nobody, \
            Guest(answering(OK)) as g, Guest(lambda s, g: read_head(s)) as dumb:
        for what, data, want, text in (
                ("no token", req(g, token=None), 401, "token"),
                ("a bad token", req(g, token="bad"), 403, "not valid"),
                ("a shell's token", req(g, token="shell"), 403, "not valid"),
                ("a token for another port", req(g, token="port-1"), 403,
                 "Access to port denied"),
                ("a token for the port", req(g, token=f"port-{g.port}"), 200,
                 "ok"),
                ("an unknown host", req(g, host="other"), 404, "no microVM"),
                ("an ended microVM", req(g, host="gone1"), 404, "no more"),
                ("nobody listens", req(nobody), 502, "nothing listens"),
                ("an application that closes", req(dumb), 502, "closed"),
                ("a busy microVM", req(g, host="busy1"), 503, "not ready"),
                ("too many of an account", req(g, host="quota1"), 429,
                 "too many"),
                ("a resume that failed", req(g, host="late1"), 504, "in time"),
                ("a resume without end", req(g, host="never1"), 504,
                 "in time"),
                ("no port", req(0), 400, "port"),
                ("HTTP/2.0 in plain", req(g, version="2.0"), 505, "version")):
            status, h, body = ask(f, data)
            equal(status, want, what + ": the status")
            contains(body.decode(), text, what + ": the body says it")
        s = f.settled()
        equal(s["openings"], 0, "what was held is cancelled")
        check(s["cancelled"] >= 1, "by the front")
    with Front(max_per_vm=1) as f, Guest(answering(OK)) as g:
        with f.connect() as a:
            a.sendall(req(g, host="never2"))
            until(lambda: f.stats()["openings"] == 1)
            status, h, body = ask(f, req(g, host="never2"))
            equal((status, h.get("retry-after")), (429, ["1"]),
                  "more than max_per_vm get 429")
        s = f.settled()
        equal((s["openings"], s["cancelled"]), (0, 1),
              "what is held for one who left is cancelled")


def test_bad_answers():
    for what, answer in (
            ("both lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"
             b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            ("no HTTP", b"SSH-2.0-x\r\n\r\n"),
            ("bare LF", b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok"),
            ("101 unasked", b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\n"
             b"Upgrade: websocket\r\n\r\n"),
            ("1xx without end", b"HTTP/1.1 103 X\r\n\r\n" * 40),
            ("a huge head", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70000),
            ("an injected line", b"HTTP/1.1 200 OK\r\nX: a\rB: c\r\n\r\n")):
        with Front() as f, Guest(answering(answer)) as g, f.connect() as s:
            s.sendall(req(g))
            got = read_some_final(s)
            equal(got, 502, what + " in an answer is 502")
    for what, answer in (
            ("a short body", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"),
            ("no last chunk", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked"
             b"\r\n\r\n1\r\nx\r\n"),
            ("a bad chunk", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked"
             b"\r\n\r\n1\r\nx\r\nzz\r\n")):
        with Front() as f, Guest(answering(answer)) as g, f.connect() as s:
            s.sendall(req(g) + req(g, "/2"))
            got = read_all(s)
            check(b"\r\n0\r\n\r\n" not in got and got.count(b"HTTP/1.1") == 1,
                  what + " is seen as cut by the client", got)


def read_some_final(s):
    while True:
        status = response(s)[0]
        if status >= 200:
            return status


# --- order, keep-alive, interim ----------------------------------------------------

def test_pipelining():
    def handler(s, guest):
        head, body = read_request(s)
        n = int(head.split()[1][1:])
        time.sleep(0.2 if n == 0 else 0)
        text = b"answer %d %s" % (n, body)
        s.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s"
                  % (len(text), text))
    with Front() as f, Guest(handler) as g, f.connect() as s:
        data = b"".join(
            req(g, f"/{i}", "POST", "Content-Length: 3\r\n") + b"b%02d" % i
            for i in range(50))
        s.sendall(data)
        got = [response(s)[2] for _ in range(50)]
        equal(got, [b"answer %d b%02d" % (i, i) for i in range(50)],
              "50 pipelined requests are answered in order")
        for i in range(3):  # a byte at a time
            for b in req(g, f"/{i}", "POST", "Content-Length: 1\r\n") + b"x":
                s.sendall(bytes([b]))
            equal(response(s)[2], b"answer %d x" % i, "a byte at a time")
        s.sendall(req(g, "/1", extra="Connection: close\r\n") + req(g, "/2"))
        equal(read_all(s).count(b"HTTP/1.1"), 1,
              "Connection: close ends it after its answer")


def test_expect():
    def handler(s, guest):
        head, rest = read_head(s)
        guest.seen.append(head)
        if b"/no" in head:
            s.sendall(b"HTTP/1.1 413 Large\r\nContent-Length: 0\r\n\r\n")
            return
        while len(rest) < 5:
            rest += s.recv(10)
        s.sendall(OK)
    with Front(delay=200) as f, Guest(handler) as g, f.connect() as s:
        expect = "Content-Length: 5\r\nExpect: 100-continue\r\n"
        t0 = time.monotonic()
        s.sendall(req(g, "/", "POST", expect, host="slow1"))
        equal(response(s)[0], 100, "100 when the microVM is there")
        check(time.monotonic() - t0 > 0.18, "not before")
        s.sendall(b"hello")
        equal(response(s)[2], b"ok", "then the answer")
        check(b"xpect" not in g.seen[0], "the guest is not asked again")
        s.sendall(req(g, "/no", "POST", expect))
        equal([response(s)[0], response(s)[0]], [100, 413],
              "an early refusal comes through")
        equal(read_all(s), b"", "and the connection ends, its body unread")
    with Front() as f, Guest(answering(OK)) as g, f.connect() as s:
        s.sendall(req(g, "/", "POST", "Content-Length: 5\r\n"
                      "Expect: 100-continue\r\n", token="bad"))
        equal(response(s)[0], 403, "without a right there is no 100")


def test_sse():
    seen = threading.Semaphore(0)

    def handler(s, guest):
        read_head(s)
        s.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                  b"Transfer-Encoding: chunked\r\n\r\n")
        for i in range(10):
            ev = b"data: %d\n\n" % i
            s.sendall(b"%x\r\n%s\r\n" % (len(ev), ev))
            guest.seen.append(seen.acquire(timeout=PATIENCE))
        s.sendall(b"0\r\n\r\n")
    with Front() as f, Guest(handler) as g:
        c = http.client.HTTPConnection("127.0.0.1", f.port, timeout=PATIENCE)
        c.request("GET", "/", headers={"Host": "vm1.localhost",
                                       "X-aws-proxy-auth": "good",
                                       "X-aws-proxy-port": str(g.port)})
        r = c.getresponse()
        for i in range(10):
            equal(r.readline(), b"data: %d\n" % i, "an event")
            r.readline()
            seen.release()
        equal((r.read(), g.seen), (b"", [True] * 10),
              "each before the next is sent")
        c.close()


# --- large bodies, flat memory --------------------------------------------------------

def flat(front, what, before, mib):
    after = front.rss("VmHWM")
    diag(f"{what}: RSS {before // 1024} KiB, at most {after // 1024} KiB")
    check(after - before < mib * MIB, what + f": memory grows by < {mib} MiB")


def test_upload():
    total = 64 * MIB

    def handler(s, guest):
        head, rest = read_head(s)
        n, slow = len(rest), b"/slow" in head
        while n < total:
            got = s.recv(MIB)
            if not got:
                break
            n += len(got)
            if slow and n < 4 * MIB:
                time.sleep(0.01)
        guest.seen.append(n)
        s.sendall(OK)
    block = bytes(range(256)) * 4096
    with Front() as f, Guest(handler) as g:
        ask(f, req(g, token="bad"))
        before = f.rss()
        for path in ("/", "/slow"):
            with f.connect() as s:
                s.sendall(req(g, path, "POST", f"Content-Length: {total}\r\n"))
                for _ in range(total // len(block)):
                    s.sendall(block)
                equal(response(s)[2], b"ok", f"64 MiB go up ({path})")
        equal(g.seen, [total, total], "all of it")
        flat(f, "upload", before, 12)
        # To an application that answers at once and reads nothing.
    with Front() as f, Guest(lambda s, g: (s.sendall(
            b"HTTP/1.1 413 Large\r\nContent-Length: 3\r\n\r\nno\n"),
            time.sleep(0.3))) as g, f.connect() as s:
        s.sendall(req(g, "/", "POST", f"Content-Length: {total}\r\n"))
        sent = 0
        try:
            while sent < total:
                sent += s.send(block)
        except OSError:
            pass
        status = response(s)[0]
        equal(status, 413, "an early answer reaches a client that uploads")


def test_download():
    total = 64 * MIB
    block = bytes(range(256)) * 4096

    def handler(s, guest):
        head, _ = read_head(s)
        s.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(total // len(block)):
            s.sendall(block)
        guest.seen.append(time.time())
    with Front() as f, Guest(handler) as g:
        before = f.rss()
        with f.connect() as s:
            s.sendall(req(g, version="1.0"))
            time.sleep(0.7)  # nobody reads
            check(not g.seen, "a guest is held up by a client that does not "
                  "read")
            n = len(read_head(s)[1])
            while True:
                got = s.recv(MIB)
                if not got:
                    break
                n += len(got)
            equal(n, total, "64 MiB come down")
        flat(f, "download", before, 12)


# --- WebSocket and other upgrades ------------------------------------------------------

HANDSHAKE = ("Upgrade: websocket\r\nConnection: Upgrade\r\n"
             "Sec-WebSocket-Version: 13\r\n"
             "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n")


def test_websocket():
    import websockets

    async def run():
        seen = []

        async def app(ws):
            seen.append(ws.request_headers)
            async for m in ws:
                await ws.send(m)
        patient = {"close_timeout": PATIENCE, "ping_interval": None}
        async with websockets.serve(app, "127.0.0.1", 0, **patient,
                                    max_size=8 * MIB) as plain, \
                websockets.serve(app, "127.0.0.1", 0, **patient,
                                 subprotocols=["chat"]) as chat:
            port = plain.sockets[0].getsockname()[1]
            chat_port = chat.sockets[0].getsockname()[1]
            uri = f"ws://vm1.localhost:{f.port}/x"
            at = {"host": "127.0.0.1", "port": f.port,
                  "open_timeout": PATIENCE, **patient}
            own = ["lambda-microvms", "lambda-microvms.authentication.good"]
            async with websockets.connect(
                    uri, **at, max_size=8 * MIB, subprotocols=own + [
                        f"lambda-microvms.port.{port}"]) as ws:
                equal(ws.subprotocol, "lambda-microvms",
                      "the guest chose none: lambda-microvms is answered")
                for m in ("text", b"\x00\xff", b"x" * 3 * MIB, ""):
                    await ws.send(m)
                    equal(await ws.recv(), m, f"{len(m)} bytes come back")
            equal(seen[-1].get("sec-websocket-protocol"), None,
                  "the guest sees none of ours")
            async with websockets.connect(
                    uri, **at, subprotocols=own + [
                        f"lambda-microvms.port.{chat_port}", "chat", "x"]) as ws:
                equal(ws.subprotocol, "chat", "the guest's choice passes")
            equal(seen[-1]["sec-websocket-protocol"], "chat, x",
                  "the guest sees the application's own")
            headers = {"X-aws-proxy-auth": "good",
                       "X-aws-proxy-port": str(port)}
            async with websockets.connect(uri, **at,
                                          extra_headers=headers) as ws:
                equal(ws.subprotocol, None, "no sub-protocol without asking")
                await ws.send("a")
                equal(await ws.recv(), "a", "tokens in headers do as well")
            try:
                await websockets.connect(uri, **at, subprotocols=[
                    "lambda-microvms", "lambda-microvms.authentication.bad"])
                check(False, "a bad token is refused")
            except websockets.InvalidStatusCode as e:
                equal(e.status_code, 403, "a bad token is refused")
    with Front() as f:
        asyncio.run(run())
        s = f.settled()
        equal((s["conns"], s["exchanges"]), (0, 0), "nothing stays open")


def test_relay():
    """After 101: bytes at once, ends of file one by one, refusals."""
    def handler(s, guest):
        head, rest = read_head(s)
        guest.seen.append(head)
        if b"/no" in head:
            s.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno")
            return
        s.sendall(b"HTTP/1.1 101 Yes\r\nConnection: upgrade\r\n"
                  b"Upgrade: WebSocket\r\nX-W: 1\r\n\r\nhello")
        data = rest
        while True:
            got = s.recv(1000)
            if not got:
                break
            data += got
        s.sendall(b"got " + data)
    with Front() as f, Guest(handler) as g:
        with f.connect() as s:
            s.sendall(req(g, extra=HANDSHAKE) + b"early")
            head, rest = read_head(s)
            check(head.startswith(b"HTTP/1.1 101 Yes\r\nX-W: 1\r\n") and
                  b"Upgrade: WebSocket" in head, "101 passes", head)
            s.sendall(b" late")
            s.shutdown(socket.SHUT_WR)
            equal(rest + read_all(s), b"hellogot early late",
                  "half-closed: the rest still comes")
        with f.connect() as s:
            s.sendall(req(g, "/no", extra=HANDSHAKE) + req(g, "/smuggled"))
            equal(response(s)[2], b"no", "a refused upgrade is an answer")
            equal(read_all(s), b"", "and the end")
        with f.connect() as s:
            s.sendall(req(g, extra="Upgrade: h2c\r\nHTTP2-Settings: AA\r\n"
                          "Connection: Upgrade, HTTP2-Settings\r\n"))
            equal(response(s)[0], 502, "h2c is not asked for (the guest "
                  "changes protocols unasked)")
            check(b"h2c" not in g.seen[-1] and b"ettings" not in g.seen[-1],
                  "nor heard of")
        equal(len(g.seen), 3, "nothing was smuggled")
        equal(f.settled()["exchanges"], 0, "nothing stays open")


def test_shell():
    """A shell's token opens it; the stream is the engine's."""
    def handler(s, guest):
        s.sendall(b"\x81\x02hi")
        guest.seen.append(s.recv(100))
    with Guest(handler) as shell, Guest(answering(OK)) as g, \
            Front(shell_port=shell.port) as f:
        with f.connect() as s:
            s.sendall(req(g, "/shell", extra=HANDSHAKE +
                          "Sec-WebSocket-Protocol: lambda-microvms, "
                          "lambda-microvms.authentication.shell\r\n",
                          token=None))
            head, rest = read_head(s)
            check(b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head and
                  b"Sec-WebSocket-Protocol: lambda-microvms\r\n" in head,
                  "the handshake is answered here", head)
            while len(rest) < 4:
                rest += s.recv(10)
            equal(rest, b"\x81\x02hi", "then it is the shell's stream")
            s.sendall(b"\x82\x00")
            read_all(s)
        equal(shell.seen, [b"\x82\x00"], "both ways")
        with f.connect() as s:
            s.sendall(req(g, "/shell", extra=HANDSHAKE, token="good"))
            equal(response(s)[2], b"ok",
                  "an application's token reaches the application's /shell")
        equal(ask(f, req(g, "/shell", token="shell"))[0], 403,
              "a shell's token opens nothing else")
        equal(ask(f, req(g, "/shell", token="shell", extra=HANDSHAKE.replace(
            "13", "12")))[0], 400, "a handshake of another version is refused")


# --- suspended microVMs, ends, limits -----------------------------------------------------

def test_held():
    with Front(delay=400) as f, Guest(answering(echo)) as g:
        t0 = time.monotonic()
        with f.connect() as s:
            s.sendall(req(g, "/", "POST", "Content-Length: 3\r\n",
                          host="slow1") + b"abc")
            check(response(s)[2].endswith(b"abc"),
                  "a request that came while its microVM slept is delivered")
        took = time.monotonic() - t0
        check(took > 0.35, "when it is awake", took)
    with Front(half_closed_ms=200, delay=20000) as f, \
            Guest(answering(OK)) as g:
        s = f.connect()
        s.sendall(req(g, host="never1"))
        until(lambda: f.stats()["openings"])
        equal(f.stats()["openings"], 1, "held")
        s.close()
        equal(f.settled()["openings"], 0,
              "a client that left is not waited for")
        s = f.connect()
        s.sendall(req(g, host="slow1"))
        s.shutdown(socket.SHUT_WR)
        # 20 s of opening are more than 200 ms after the end of file.
        equal(read_all(s), b"", "nor one that half-closed, for long")
        s.close()
    with Front() as f, Guest(answering(OK)) as g, f.connect() as s:
        s.sendall(req(g))
        s.shutdown(socket.SHUT_WR)
        contains(read_all(s).decode(), "\r\n\r\nok",
                 "but a quick answer reaches it")


def test_vm_gone():
    def handler(s, guest):
        read_head(s)
        s.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                  b"1\r\nx\r\n")
        guest.seen.append(s.recv(1))
    with Front() as f, Guest(handler) as g:
        a, b, c = f.connect(), f.connect(), f.connect()
        a.sendall(req(g, host="vm1"))
        read_head(a)
        b.sendall(req(g, host="vm2"))
        read_head(b)
        c.sendall(req(g, host="never1"))
        until(lambda: f.stats()["openings"] == 1)
        f.cmd("kill vm1")
        f.cmd("kill never1")
        check(b"0\r\n\r\n" not in read_all(a), "what was open to it is cut")
        equal(response(c)[0], 404, "what waited for it gets 404")
        b.settimeout(0.2)
        contains(read_all(b).decode(), "<timeout>", "others go on")
        until(lambda: f.stats()["exchanges"] == 1)
        equal(f.stats()["exchanges"], 1, "and only they")
        for s in (a, b, c):
            s.close()


def test_client_gone():
    done = threading.Event()

    def handler(s, guest):
        read_head(s)
        s.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                s.sendall(b"5\r\nhello\r\n")
                time.sleep(0.01)
        except OSError:
            done.set()
    with Front() as f, Guest(handler) as g:
        s = f.connect()
        s.sendall(req(g))
        read_head(s)
        s.close()
        check(done.wait(PATIENCE), "the guest hears that its client has gone")
        equal(f.settled()["exchanges"], 0, "nothing stays")


def test_slow_loris():
    with Front(head_ms=2000, body_ms=1500, idle_ms=1500, max_strangers=200) \
            as f, Guest(answering(OK)) as g:
        idle = [f.connect() for _ in range(60)]
        for i, s in enumerate(idle):
            s.sendall((b"", b"GET / HT", b"GET / HTTP/1.1\r\nX: y\r\n")[i % 3])
        drip = f.connect()
        drip.settimeout(0.1)
        got = b""
        try:
            for b in req(g) * 3:  # a byte each 100 ms never makes a head
                drip.sendall(bytes([b]))
                try:
                    got = drip.recv(1000)
                    break
                except socket.timeout:
                    pass
        except OSError:
            got = b"HTTP/1.1 408"
        check(b"408" in got, "a dripping head is ended by its deadline", got)
        answers = [read_all(s) for s in idle]
        check(not any(b"<timeout>" in a for a in answers),
              "so are those that say nothing")
        check(all(a.startswith(b"HTTP/1.1 408") for a in answers[1::3]),
              "with 408 where there was a head", answers[1])
        with f.connect() as s:
            s.sendall(req(g, "/", "POST", "Content-Length: 9\r\n") + b"x")
            equal(response(s)[0], 408, "a body that stops gets 408")
        with f.connect() as s:
            s.sendall(req(g))
            response(s)
            equal(read_all(s), b"", "an idle connection is closed")
        for s in idle + [drip]:
            s.close()


def test_strangers():
    with Front(max_strangers=50, head_ms=PATIENCE * 1000) as f, \
            Guest(answering(OK)) as g:
        known = f.connect()
        known.sendall(req(g))
        response(known)
        crowd = [f.connect() for _ in range(1000)]
        for _ in range(20):
            equal(ask(f, req(g))[0], 200, "served among 1000 that say nothing")
        s = f.stats()
        check(s["strangers"] <= 50, "there are no more than allowed",
              s["strangers"])
        equal(read_all(crowd[0]).replace(b"<reset>", b""), b"",
              "the oldest made room")
        known.sendall(req(g))
        equal(response(known)[0], 200, "who has shown a token stays")
        for c in crowd + [known]:
            c.close()
    with Front(max_conns=3) as f, Guest(answering(OK)) as g:
        held = [f.connect() for _ in range(3)]
        time.sleep(0.1)
        with f.connect() as s:
            equal(read_all(s).replace(b"<reset>", b""), b"",
                  "beyond max_conns nobody is let in")
        for s in held:
            s.close()


def test_stalls():
    def handler(s, guest):
        head, _ = read_head(s)
        if b"/big" in head:
            s.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n")
            try:
                for _ in range(1000):
                    s.sendall(b"x" * 65536)
            except OSError:
                pass
        guest.seen.append(s.recv(1))
    with Front(stall_ms=500, answer_ms=500) as f, Guest(handler) as g:
        t0 = time.monotonic()
        equal(ask(f, req(g))[0], 504, "a silent guest is 504")
        check(time.monotonic() - t0 > 0.4, "not before its time")
        with f.connect() as s:
            s.sendall(req(g, "/big"))
            equal(f.settled()["conns"], 0, "a client that reads nothing is "
                  "given up")


# --- request smuggling: the two-request oracle ---------------------------------------------

HIDDEN = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
CL = b"Content-Length: "
TE = b"Transfer-Encoding: "


def vectors(port):
    """Bytes of one connection, each with something hidden behind or within."""
    def post(extra, body, version=b"1.1", target=b"/"):
        return (b"POST " + target + b" HTTP/" + version +
                b"\r\nHost: vm1.localhost\r\nX-aws-proxy-auth: good\r\n"
                b"X-aws-proxy-port: %d\r\n" % port + extra + b"\r\n" + body)
    n = b"%d" % len(HIDDEN)
    chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)
    tails = {
        b"4\r\nabcd\r\n0\r\n\r\n": (
            CL + b"4\r\n" + TE + b"chunked\r\n",
            TE + b"chunked\r\n" + CL + b"4\r\n",
            CL + b"4\r\n" + TE + b" chunked\r\n",
            CL + b"4\r\n" + TE + b"\tchunked\r\n",
            CL + b"4\r\n" + TE + b"xchunked\r\n",
            CL + b"4\r\n" + TE + b"chunked\r\n" + TE + b"identity\r\n",
            CL + b"4\r\n" + TE + b"identity, chunked\r\n",
            CL + b"4\r\nTransfer-Encoding : chunked\r\n",
            CL + b"4\r\nTransfer_Encoding: chunked\r\n",
            CL + b"4\r\n Transfer-Encoding: chunked\r\n",
            CL + b"4\r\nX: y\n" + TE + b"chunked\r\n",
            CL + b"4\r\nX: y\r" + TE + b"chunked\r\n",
            CL + b"4\r\n" + TE + b"\x0bchunked\r\n",
            CL + b"4\r\n" + TE + b"chunked\x00\r\n",
            CL + b"4\r\n" + TE + b"\r\n chunked\r\n",
            CL + b"4\r\n" + TE + b"'chunked'\r\n",
            CL + b"4\r\n" + TE + b"CHUNKED\r\n",
            CL + b"4\r\nTransfer-Encoding\x00: chunked\r\n",
            CL + b"4\r\n\xefTransfer-Encoding: chunked\r\n",
            TE + b"chunked, chunked\r\n", TE + b"gzip\r\n",
            CL + b"4\r\nConnection: Content-Length\r\n",
            TE + b"chunked\r\nConnection: Transfer-Encoding\r\n"),
        HIDDEN: (
            CL + b"0\r\n" + CL + n + b"\r\n",
            CL + n + b"\r\n" + CL + b"0\r\n",
            CL + b"0, " + n + b"\r\n", CL + b"+" + n + b"\r\n",
            CL + b"-1\r\n", CL + b"0x10\r\n", CL + b"0" + n + b" \r\n",
            CL + b"1e1\r\n", CL + b" 0\x0b\r\n",
            CL + b"18446744073709551616\r\n", b"Content_Length: 0\r\n" + CL
            + n + b"\r\n", b"Content-Length : " + n + b"\r\n",
            b"X: y\r\n " + CL + n + b"\r\n", b"X: y\n" + CL + n + b"\r\n",
            b"Content-Length\x00: " + n + b"\r\n", CL + n + b"\r\n", b"",
            b"Upgrade: websocket\r\nConnection: Upgrade\r\n" + CL + n
            + b"\r\n", b"Expect: x\r\n" + CL + n + b"\r\n",
            b"Host: vm2.localhost\r\n" + CL + n + b"\r\n"),
        chunk: (TE + b"chunked\r\n", TE + b"Chunked\r\n"),
    }
    for body, extras in tails.items():
        for extra in extras:
            yield post(extra, body + HIDDEN)
    for bad in (b"+1\r\na\r\n", b"0x1\r\na\r\n", b"1 \r\na\r\n", b"1\na\n",
                b"1\r\na\n", b"1;\na\r\n", b"-1\r\na\r\n", b"1\r\naa\r\n",
                b"1\r\na\r\r\n", b"fffffffffffffffff\r\na\r\n",
                b"1;" + b"x" * 9000 + b"\r\na\r\n", b"\r\n1\r\na\r\n"):
        yield post(TE + b"chunked\r\n", bad + b"0\r\n\r\n" + HIDDEN)
    yield post(TE + b"chunked\r\n", b"0\r\n" + CL + b"5\r\n\r\n" + HIDDEN)
    yield post(TE + b"chunked\r\n", b"0\r\nX: y\nZ: w\r\n\r\n" + HIDDEN)
    yield post(TE + b"chunked\r\n", b"0\n\n" + HIDDEN)
    yield post(TE + b"chunked\r\n", chunk + HIDDEN, b"1.0")
    yield post(CL + n + b"\r\n", HIDDEN + HIDDEN, b"1.0")
    yield post(b"", HIDDEN, target=b"http://vm2.localhost/")
    yield post(b"", HIDDEN, target=b"/ HTTP/1.1\r\nX: y")
    yield post(b"", HIDDEN, target=b"/\tx")
    yield post(b"X: " + b"y" * 66000 + b"\r\n", HIDDEN)
    yield b"\r\n" + post(b"", HIDDEN)
    yield post(b"", HIDDEN).replace(b"\r\n", b"\n")


def readings(data):
    """How many requests lenient readers see in these bytes, each its way."""
    for te_first in (True, False):
        for lf in (True, False):
            yield len(list(requests_in(data, te_first, lf)))


def requests_in(data, te_first, lf):
    if lf:  # reads LF as CRLF
        data = data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    while data.strip():
        head, _, data = data.partition(b"\r\n\r\n")
        yield head
        low = head.lower().replace(b"_", b"-").replace(b" :", b":")
        te = b"transfer-encoding:" in low and b"chunked" in low
        length = low.rpartition(b"content-length:")[2].split(b"\r\n")[0] \
            if b"content-length:" in low else b""
        if te and (te_first or not length):
            while True:
                size, _, data = data.partition(b"\r\n")
                n = int(size.split(b";")[0] or b"0", 16)
                data = data[n + 2:]
                if n == 0:
                    break
        elif length:
            data = data[int(length):]


def test_smuggling():
    """Whatever a client sends, the guest sees one whole request on a stream,
    however it reads, and only requests that the proxy counted."""
    def whole(data):
        head, end, body = data.partition(b"\r\n\r\n")
        f = fields(head) if end else {}
        return end and (
            len(body) >= int(f["content-length"][0]) if "content-length" in f
            else "transfer-encoding" not in f or body.endswith(b"0\r\n\r\n"))

    def handler(s, guest):
        data = b""
        try:
            while True:
                if whole(data):
                    s.settimeout(0.06)  # is there more?
                got = s.recv(65536)
                if not got:
                    break
                data += got
        except (socket.timeout, ConnectionResetError):
            pass
        if data:  # else its body was refused before anything went out
            guest.seen.append(data)
        s.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    count = passed = 0
    with Front() as f, Guest(handler) as g:
        for v in vectors(g.port):
            count += 1
            g.seen.clear()
            before = f.stats()["requests"]
            with f.connect() as s:
                s.sendall(v)
                s.shutdown(socket.SHUT_WR)
                got = read_all(s)
            f.settled()
            until(lambda: g.served == g.conns)
            proxied = f.stats()["requests"] - before
            passed += bool(g.seen)
            ways = [n for data in g.seen for n in readings(data)]
            if not (len(g.seen) <= proxied and set(ways) <= {1} and
                    all(d.startswith(b"POST / HTTP/1.1\r\nHost: localhost:")
                        for d in g.seen)):
                check(False, f"vector {count}: one reading", f"{v[:400]!r}\n"
                      f"answer {got!r}\nthe guest saw {g.seen!r}\n"
                      f"readings {ways}, the proxy {proxied}")
    check(count >= 60 and passed >= 5, f"of {count} vectors none is read in "
          f"two ways ({passed} were whole and passed on)", (count, passed))


# --- TLS --------------------------------------------------------------------------------------

def tls_get(port, g, ctx, host="vm1.localhost"):
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as raw, \
            ctx.wrap_socket(raw, server_hostname=host) as s:
        s.sendall(req(g, extra="Connection: close\r\n"))
        return s.version(), s.selected_alpn_protocol(), response(s)


def test_tls():
    with tempfile.TemporaryDirectory() as d, Guest(answering(OK)) as g:
        d += "/tls"
        with Front(plain="no", tls_dir=d) as f:
            ca = f.hello["ca"]
            mode = stat.S_IMODE(os.stat(ca.replace(".pem", ".key")).st_mode)
            equal(mode, 0o600, "the authority's key is its owner's alone")
            equal(stat.S_IMODE(os.stat(d).st_mode), 0o700, "the folder too")
            ctx = ssl.create_default_context(cafile=ca)
            ctx.set_alpn_protocols(["http/1.1"])
            version, alpn, got = tls_get(f.port, g, ctx)
            equal((version, alpn, got[2]), ("TLSv1.3", "http/1.1", b"ok"),
                  "a verified request by TLS 1.3")
            equal(tls_get(f.port, g, ctx)[2][0], 200, "and another")
            old = ssl.create_default_context(cafile=ca)
            old.maximum_version = ssl.TLSVersion.TLSv1_2
            equal(tls_get(f.port, g, old)[0], "TLSv1.2", "TLS 1.2 as well")
            old.minimum_version = ssl.TLSVersion.TLSv1
            old.maximum_version = ssl.TLSVersion.TLSv1_1
            old.set_ciphers("ALL:@SECLEVEL=0")
            try:
                tls_get(f.port, g, old)
                check(False, "TLS 1.1 is refused")
            except (ssl.SSLError, OSError):
                check(True, "TLS 1.1 is refused")
            try:
                tls_get(f.port, g, ctx, "vm1.example.com")
                check(False, "no certificate for other domains")
            except ssl.SSLCertVerificationError:
                check(True, "no certificate for other domains")
            with f.connect() as s:
                s.sendall(req(g))
                check(b"200" not in read_all(s), "plain HTTP is not served")
        before = open(ca, "rb").read()
        with Front(plain="yes", tls_dir=d) as f:
            equal(open(f.hello["ca"], "rb").read(), before,
                  "the authority outlives a restart")
            equal(tls_get(f.port, g, ctx)[2][0], 200, "its clients too")
            equal(ask(f, req(g))[0], 200,
                  "plain HTTP on the same port when asked for")
            block = b"x" * MIB
            with socket.create_connection(("127.0.0.1", f.port), PATIENCE) as raw, \
                    ctx.wrap_socket(raw, server_hostname="vm1.localhost") as s:
                s.sendall(req(g, "/", "POST", f"Content-Length: {8 * MIB}\r\n"))
                for _ in range(8):
                    s.sendall(block)
                equal(response(s)[2], b"ok", "8 MiB go up by TLS")
        os.chmod(ca.replace(".pem", ".key"), 0o644)
        try:
            with Front(plain="no", tls_dir=d):
                check(False, "a key that others can read is refused")
        except RuntimeError as e:
            contains(str(e), "readable by others",
                     "a key that others can read is refused")
        # A given certificate.
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
             "ec_paramgen_curve:P-256", "-nodes", "-keyout", d + "/k",
             "-out", d + "/c", "-subj", "/CN=x", "-days", "2", "-addext",
             "subjectAltName=DNS:*.vm.test"], check=True,
            stderr=subprocess.DEVNULL)
        with Front(plain="no", cert=d + "/c", key=d + "/k",
                   domain="vm.test") as f:
            given = ssl.create_default_context(cafile=d + "/c")
            with socket.create_connection(("127.0.0.1", f.port)) as raw, \
                    given.wrap_socket(raw, server_hostname="vm1.vm.test") as s:
                s.sendall(req(g).replace(b".localhost", b".vm.test"))
                equal(response(s)[2], b"ok", "a given certificate")
            equal(f.hello["ca"], "", "has no authority of ours")
        try:
            with Front(plain="yes", listen="0.0.0.0:0"):
                check(False, "plain HTTP is for loopback only")
        except RuntimeError as e:
            contains(str(e), "without TLS", "plain HTTP is for loopback only")


# --- HTTP/2 and gRPC ---------------------------------------------------------------------------

class H2:
    """A client in HTTP/2 (python3-h2) on a connected socket."""

    def __init__(self, sock):
        import h2.config
        import h2.connection
        self.s = sock
        self.c = h2.connection.H2Connection(h2.config.H2Configuration(
            client_side=True, header_encoding="latin1",
            validate_outbound_headers=False,
            normalize_outbound_headers=False))
        self.c.initiate_connection()
        self.c.increment_flow_control_window(64 * MIB)
        self.got, self.ended = {}, False
        self.flush()

    def flush(self):
        self.s.sendall(self.c.data_to_send())

    def request(self, guest, path="/", method="GET", extra=(), token="good",
                host="vm1", end=True):
        n = self.c.get_next_available_stream_id()
        port = guest if isinstance(guest, int) else guest.port
        fields = [(":method", method), (":path", path), (":scheme", "https"),
                  (":authority", f"{host}.localhost"),
                  ("x-aws-proxy-port", str(port))]
        if token:
            fields.append(("x-aws-proxy-auth", token))
        self.c.send_headers(n, fields + list(extra), end_stream=end)
        self.got[n] = {"body": b"", "trailers": None, "reset": None,
                       "head": None, "interim": [], "done": False}
        self.flush()
        return n

    def pump(self, hold=False):
        """Reads once; what came goes to self.got."""
        import h2.events as e
        data = self.s.recv(65536)
        if not data:
            self.ended = True
            return
        for ev in self.c.receive_data(data):
            st = self.got.get(getattr(ev, "stream_id", None))
            if isinstance(ev, e.ConnectionTerminated):
                self.ended = True
            elif st is None:
                continue
            elif isinstance(ev, e.ResponseReceived):
                st["head"] = dict(ev.headers)
            elif isinstance(ev, e.InformationalResponseReceived):
                st["interim"].append(dict(ev.headers)[":status"])
            elif isinstance(ev, e.DataReceived):
                st["body"] += ev.data
                if not hold and ev.flow_controlled_length:
                    self.c.acknowledge_received_data(
                        ev.flow_controlled_length, ev.stream_id)
            elif isinstance(ev, e.TrailersReceived):
                st["trailers"] = dict(ev.headers)
            elif isinstance(ev, e.StreamEnded):
                st["done"] = True
            elif isinstance(ev, e.StreamReset):
                st["reset"], st["done"] = ev.error_code, True
        self.flush()

    def send(self, n, data, end=False):
        at = 0
        while at < len(data):
            room = min(self.c.local_flow_control_window(n),
                       self.c.max_outbound_frame_size, len(data) - at)
            if not room:
                self.pump()
                continue
            self.c.send_data(n, data[at:at + room])
            at += room
            self.flush()
        if end:
            self.c.end_stream(n)
            self.flush()

    def answer(self, n):
        while not (self.got[n]["done"] or self.ended):
            self.pump()
        return self.got[n]


def test_h2():
    big = bytes(range(256)) * 16 * 1024  # 4 MiB

    def answer(head, body):
        if b"/big" in head:
            return b"HTTP/1.1 200 OK\r\n\r\n" + big
        if b"/cut" in head:
            return b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"
        if b"/head" in head:
            return b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"
        if b"/early" in head:
            return b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + OK
        if b"/trailers" in head:
            return (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                    b"1\r\nx\r\n0\r\nA-Trailer: y\r\n\r\n")
        if b"/sum" in head:
            return b"HTTP/1.1 200 OK\r\n\r\n%d" % len(body)
        return echo(head, body)
    with tempfile.TemporaryDirectory() as d, \
            Front(plain="yes", tls_dir=d + "/tls") as f, \
            Guest(answering(answer)) as g:
        ctx = ssl.create_default_context(cafile=f.hello["ca"])
        ctx.set_alpn_protocols(["h2", "http/1.1"])
        raw = socket.create_connection(("127.0.0.1", f.port), PATIENCE)
        s = ctx.wrap_socket(raw, server_hostname="vm1.localhost")
        equal(s.selected_alpn_protocol(), "h2", "h2 is chosen by ALPN")
        c = H2(s)
        a = c.answer(c.request(g, "/a?b", extra=(
            ("x-aws-proxy-other", "1"), ("cookie", "a=b"), ("cookie", "c=d"),
            ("te", "trailers"))))
        equal((a["head"][":status"], a["head"]["x-guest"]), ("200", "1"),
              "a request by HTTP/2")
        equal(a["body"], b"GET /a?b HTTP/1.1\r\nHost: localhost:%d\r\n"
              b"cookie: a=b; c=d\r\nTE: trailers\r\nConnection: close, TE"
              b"\r\n\r\n" % g.port, "is one in HTTP/1.1 for the guest")
        ids = [c.request(g, f"/{i}") for i in range(60)]
        check(all(c.answer(n)["body"].startswith(b"GET /%d " % i)
                  for i, n in enumerate(ids)), "60 at once")
        n = c.request(g, "/sum", "POST", end=False)
        c.send(n, big, end=True)
        equal(c.answer(n)["body"], b"%d" % len(big), "4 MiB go up")
        n = c.request(g, "/", "POST", (("content-length", "5"),), end=False)
        c.send(n, b"hello", end=True)
        check(b"Content-Length: 5\r\n" in c.answer(n)["body"] and
              c.answer(n)["body"].endswith(b"hello"), "of known length too")
        equal(c.answer(c.request(g, "/big"))["body"], big, "4 MiB come down")
        equal(c.answer(c.request(g, "/cut"))["reset"], 2,
              "an answer that is cut short is a reset stream")
        a = c.answer(c.request(g, "/head", "HEAD"))
        equal((a["head"]["content-length"], a["body"]), ("9", b""), "HEAD")
        a = c.answer(c.request(g, "/early"))
        equal((a["interim"], a["body"]), (["103"], b"ok"), "interim answers")
        a = c.answer(c.request(g, "/trailers"))
        equal(a["trailers"], {"a-trailer": "y"}, "trailers")
        for what, want, kw in (
                ("no token", "401", {"token": None}),
                ("a bad one", "403", {"token": "bad"}),
                ("another host", "404", {"host": "other"}),
                ("a busy microVM", "503", {"host": "busy1"}),
                ("two hosts", "400", {"extra": (("host", "vm2.localhost"),)}),
                ("a body to a bad token", "403",
                 {"token": "bad", "method": "POST", "end": False})):
            a = c.answer(c.request(g, **kw))
            equal((a["head"] or {}).get(":status") or a["reset"],
                  want, what + " by HTTP/2")
            contains(a["body"].decode(), "message", "with a body")
        equal(c.answer(c.request(g, "/a b"))["reset"], 1,
              "a malformed path is a reset stream")
        a = c.answer(c.request(g, extra=(("x", "a\r\nsmuggled: y"),)))
        check(a["reset"] is not None or a["head"][":status"] == "400" or
              b"smuggled: y" not in a["body"], "no line ends in values", a)
        s.close()
        with f.connect() as plain:
            c = H2(plain)
            equal(c.answer(c.request(g))["head"][":status"], "200",
                  "with prior knowledge on the plain port")
            # One stream whose client does not read does not hold up others.
            before = f.rss()
            n = [c.request(g, "/big") for _ in range(40)]
            time.sleep(0.5)
            check(f.rss() - before < 40 * MIB, "40 unread answers are held at "
                  "their guests", (f.rss() - before) // MIB)
            equal(len(c.answer(n[39])["body"]), len(big), "and come")
        s = f.settled()
        equal((s["conns"], s["exchanges"]), (0, 0), "nothing stays open")
    with Front(head_ms=400) as f, Guest(answering(OK)) as g:
        with f.connect() as s:
            c = H2(s)
            while not c.ended:
                c.pump()
            check(True, "HTTP/2 without a request is closed in time")
        with f.connect() as s:
            s.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100)
            check(b"200" not in read_all(s), "nonsense behind the preface")


def test_h2_guest():
    """Towards a guest in HTTP/2, asked for by a client in HTTP/1.1."""
    import h2_server

    def answer(c, n, head, body):
        g.seen.append((head, body))
        if head[":path"] == "/reset":
            c.reset_stream(n, 2)
        elif head[":path"] == "/empty":
            c.send_headers(n, [(":status", "200")], True)
        else:
            c.send_headers(n, [(":status", "200"), ("x", "y")])
            c.send_data(n, b"%d" % len(body))
            c.send_headers(n, [("a-trailer", "z")], True)

    def handler(s, guest):
        h2_server.serve(s, answer)
    force = "X-aws-proxy-force-h2: true\r\n"
    with Front() as f, Guest(handler) as g, f.connect() as s:
        s.sendall(req(g, "/x", "POST", force + "Content-Length: 300000\r\nA: b"
                      "\r\nTE: trailers\r\n") + b"x" * 300000)
        status, h, body = response(s)
        equal((status, h["x"], body), (200, ["y"], b"300000"),
              "HTTP/1.1 to an application in HTTP/2")
        head = g.seen[0][0]
        equal((head[":path"], head[":authority"], head["a"], head["te"]),
              ("/x", f"localhost:{g.port}", "b", "trailers"), "its head")
        check(not [k for k in head if "aws" in k], "nothing of ours in it")
        s.sendall(req(g, "/empty", extra=force))
        equal(response(s)[2], b"", "an answer of fields only")
        s.sendall(req(g, "/reset", extra=force))
        equal(response(s)[0], 502, "a reset is 502")
        equal(f.settled("exchanges")["exchanges"], 0, "nothing stays open")
    with Front() as f, Guest(answering(OK)) as g:
        equal(ask(f, req(g, extra=force))[0], 502,
              "an application that does not speak HTTP/2 is 502")


def test_grpc():
    """Real gRPC, client and server, all four kinds of calls."""
    from concurrent import futures

    import grpc

    class App(grpc.GenericRpcHandler):
        def service(self, details):
            def unary(m, ctx):
                ctx.set_trailing_metadata((("a-trailer", "x"),))
                md = dict(ctx.invocation_metadata())
                if m == b"fail":
                    ctx.abort(grpc.StatusCode.NOT_FOUND, "no such thing")
                return m + md.get("own", "").encode() +                     b"".join(k.encode() for k in md if "aws" in k)

            def stream_in(ms, ctx):
                return b"%d" % sum(len(m) for m in ms)

            def stream_out(m, ctx):
                for i in range(int(m)):
                    yield b"%d" % i * 1000

            def both(ms, ctx):
                for m in ms:
                    yield m
            return {
                "/t/unary": grpc.unary_unary_rpc_method_handler(unary),
                "/t/in": grpc.stream_unary_rpc_method_handler(stream_in),
                "/t/out": grpc.unary_stream_rpc_method_handler(stream_out),
                "/t/both": grpc.stream_stream_rpc_method_handler(both),
            }.get(details.method)
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((App(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with tempfile.TemporaryDirectory() as d,             Front(tls_dir=d + "/tls", delay=300) as f:
        creds = grpc.ssl_channel_credentials(open(f.hello["ca"], "rb").read())
        name = "slow1.localhost"
        ch = grpc.secure_channel(f"127.0.0.1:{f.port}", creds, options=(
            ("grpc.ssl_target_name_override", name),
            ("grpc.default_authority", name)))
        md = (("x-aws-proxy-auth", "good"), ("x-aws-proxy-port", str(port)))
        got, call = ch.unary_unary("/t/unary").with_call(
            b"hi ", metadata=md + (("own", "me"),), timeout=PATIENCE)
        equal(got, b"hi me", "a unary call, delivered after a resume")
        equal(dict(call.trailing_metadata()).get("a-trailer"), "x",
              "its trailers come")
        got = ch.stream_unary("/t/in")(
            iter([b"x" * 100000] * 50), metadata=md, timeout=PATIENCE)
        equal(got, b"5000000", "a stream of messages up")
        got = list(ch.unary_stream("/t/out")(b"500", metadata=md, timeout=PATIENCE))
        equal(got, [b"%d" % i * 1000 for i in range(500)], "and one down")

        def ping():
            for i in range(20):
                yield b"%d" % i
                check(back.get(timeout=PATIENCE) == b"%d" % i, "each has its echo"
                      ) if i == 19 else back.get(timeout=PATIENCE)
        import queue
        back = queue.Queue()
        n = 0
        for m in ch.stream_stream("/t/both")(ping(), metadata=md, timeout=PATIENCE):
            back.put(m)
            n += 1
        equal(n, 20, "a conversation both ways at once")
        for what, data, meta, code in (
                ("an application's error", b"fail", md, "NOT_FOUND"),
                ("a bad token", b"", (("x-aws-proxy-auth", "bad"),),
                 "PERMISSION_DENIED"),
                ("no token", b"", (), "UNAUTHENTICATED")):
            try:
                ch.unary_unary("/t/unary")(data, metadata=meta, timeout=PATIENCE)
                check(False, what)
            except grpc.RpcError as err:
                equal(err.code().name, code, what + " is a gRPC status")
        ch.close()
        equal(f.settled()["exchanges"], 0, "nothing stays open")
    server.stop(0)


if __name__ == "__main__":
    sys.exit(main([v for k, v in list(globals().items())
                   if k.startswith("test_")]))
