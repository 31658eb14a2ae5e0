"""Clients of a microVM's endpoint, for tests: requests with a token, and a
WebSocket spoken by hand. Python's library only."""
import base64
import http.client
import json
import os
import socket
import ssl
import struct
import urllib.parse

from thawd_rig import AWS, PATIENCE

CONNECTOR = ("arn:aws:lambda:us-east-1:aws:network-connector:"
             "aws-network-connector:")
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def token(t, vm, ports=None, minutes=60, shell=False):
    """A token through the API; the answer itself when it is refused."""
    body = {"expirationInMinutes": minutes}
    if not shell:
        body["allowedPorts"] = [{"allPorts": {}}] if ports is None else ports
    path = "shell-auth-token" if shell else "auth-token"
    a = t.post(f"{AWS}/microvms/{urllib.parse.quote(vm, safe='')}/{path}", body)
    return a.json["authToken"]["X-aws-proxy-auth"] if a.status == 200 else a


class Endpoint:
    """thawd's endpoint, as GET /thaw/v1/host says it."""

    def __init__(self, t):
        h = t.host()
        self.host, port = h["endpoint"].rsplit(":", 1)
        self.port = int(port)
        self.ctx = ssl.create_default_context(cafile=h["endpointCa"])
        self.plain = h["endpointPlain"]

    def connect(self, name, tls=True, timeout=PATIENCE, alpn=None):
        """A connection for a microVM's endpoint (as Get says it)."""
        s = socket.create_connection((self.host, self.port), timeout)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not tls:
            return s
        ctx = self.ctx
        if alpn:
            ctx = ssl.create_default_context(cadata=None)
            ctx.load_verify_locations(cadata=ssl_pem(self.ctx))
            ctx.set_alpn_protocols(alpn)
        return ctx.wrap_socket(s, server_hostname=name.split(":")[0])

    def call(self, name, tok, path="/", port=None, method="GET", body=None,
             headers=None, tls=True, timeout=PATIENCE):
        """One request: (status, headers, body)."""
        c = http.client.HTTPConnection(name, timeout=timeout)
        c.sock = self.connect(name, tls, timeout)
        h = dict(headers or {})
        if tok:
            h["X-aws-proxy-auth"] = tok
        if port:
            h["X-aws-proxy-port"] = str(port)
        try:
            c.request(method, path, body, h)
            r = c.getresponse()
            return r.status, r.headers, r.read()
        finally:
            c.close()

    def websocket(self, name, tok, path="/", port=None, protocols=(),
                  tls=True, timeout=PATIENCE):
        offers = ["lambda-microvms"]
        if tok:
            offers.append("lambda-microvms.authentication." + tok)
        if port:
            offers.append(f"lambda-microvms.port.{port}")
        return WebSocket(self.connect(name, tls, timeout), name, path,
                         offers + list(protocols))


def ssl_pem(ctx):
    return "".join(ssl.DER_cert_to_PEM_cert(c)
                   for c in ctx.get_ca_certs(binary_form=True))


class Refused(Exception):
    def __init__(self, status, body):
        super().__init__(f"{status} {body[:300]!r}")
        self.status, self.body = status, body


class WebSocket:
    """The client's side of RFC 6455, frame by frame."""

    def __init__(self, sock, host, path, offers):
        self.s, self.rest = sock, b""
        key = base64.b64encode(os.urandom(16)).decode()
        sock.sendall((
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {key}\r\n"
            f"Sec-WebSocket-Protocol: {', '.join(offers)}\r\n\r\n").encode())
        head = b""
        while b"\r\n\r\n" not in head:
            got = sock.recv(65536)
            if not got:
                raise EOFError(f"end of file in the handshake: {head!r}")
            head += got
        head, self.rest = head.split(b"\r\n\r\n", 1)
        lines = head.decode("latin1").split("\r\n")
        self.status = int(lines[0].split()[1])
        self.fields = {k.lower(): v.strip() for k, _, v in
                       (line.partition(":") for line in lines[1:])}
        if self.status != 101:
            n = int(self.fields.get("content-length", 0))
            while len(self.rest) < n:
                got = sock.recv(65536)
                if not got:
                    raise EOFError(f"end of file in an answer: {head!r}")
                self.rest += got
            sock.close()
            raise Refused(self.status, self.rest)

    def take(self, n):
        while len(self.rest) < n:
            got = self.s.recv(65536)
            if not got:
                raise EOFError("end of file in a frame")
            self.rest += got
        out, self.rest = self.rest[:n], self.rest[n:]
        return out

    def recv(self):
        """One frame: (opcode, payload); the server's never have a mask."""
        a, b = self.take(2)
        n = b & 127
        if n == 126:
            n, = struct.unpack(">H", self.take(2))
        elif n == 127:
            n, = struct.unpack(">Q", self.take(8))
        if b & 128 or not a & 128:
            raise ValueError(f"a frame {a:02x} {b:02x}")
        return a & 15, self.take(n)

    def send(self, op, data=b"", fin=True, mask=None):
        mask = os.urandom(4) if mask is None else mask
        n = len(data)
        head = bytes([(128 if fin else 0) | op])
        head += bytes([128 | n]) if n < 126 else \
            bytes([128 | 126]) + struct.pack(">H", n) if n < 65536 else \
            bytes([128 | 127]) + struct.pack(">Q", n)
        key = int.from_bytes(mask * (n // 4 + 1), "big")
        pad = len(mask * (n // 4 + 1)) - n
        body = (int.from_bytes(data + bytes(pad), "big") ^ key).to_bytes(
            n + pad, "big")[:n]
        self.s.sendall(head + mask + body)

    def say(self, obj):
        self.send(TEXT, json.dumps(obj).encode())

    def until(self, text, seconds=PATIENCE):
        """Binary output until it has the text; all of it."""
        self.s.settimeout(seconds)
        got = b""
        while text not in got:
            op, data = self.recv()
            if op != BINARY:
                raise ValueError(f"frame {op} {data!r} after {got[-300:]!r}")
            got += data
        return got

    def end(self, seconds=PATIENCE):
        """Everything until the close: (texts, code, reason)."""
        self.s.settimeout(seconds)
        texts = []
        while True:
            op, data = self.recv()
            if op == TEXT:
                texts.append(json.loads(data))
            elif op == CLOSE:
                return (texts, int.from_bytes(data[:2], "big"),
                        data[2:].decode())

    def close(self):
        self.s.close()
