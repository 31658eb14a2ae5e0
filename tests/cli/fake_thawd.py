"""A FAKE thawd: canned answers on a Unix socket, to test how the command line
shows answers and what it makes of hostile ones. It holds no microVMs and proves
nothing about thawd; test_live_*.sh do that.
"""
import json
import os
import socket
import struct
import threading
from urllib.parse import parse_qs, urlsplit, unquote


class Request:
    def __init__(self, conn):
        data = b""
        while b"\r\n\r\n" not in data:
            more = conn.recv(65536)
            if not more:
                raise EOFError
            data += more
        head, self.early = data.split(b"\r\n\r\n", 1)
        lines = head.decode().split("\r\n")
        self.method, self.target, _ = lines[0].split(" ")
        self.headers = {k.lower(): v.strip() for k, v in
                        (line.split(":", 1) for line in lines[1:])}
        length = int(self.headers.get("content-length", 0))
        while len(self.early) < length:
            self.early += conn.recv(65536)
        self.body, self.early = self.early[:length], self.early[length:]
        url = urlsplit(self.target)
        self.path = unquote(url.path)
        self.query = {k: v[0] for k, v in parse_qs(url.query).items()}
        self.json = json.loads(self.body) if self.body else None


def answer(body, status=200, headers=""):
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    return (f"HTTP/1.1 {status} X\r\n{headers}"
            f"Content-Length: {len(body)}\r\n\r\n").encode() + body


def error(status, kind, message, headers=""):
    return answer({"message": message}, status,
                  f"x-amzn-ErrorType: {kind}\r\n{headers}")


def chunked(parts, end=b"0\r\n\r\n"):
    out = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    for p in parts:
        out += b"%x\r\n%s\r\n" % (len(p), p)
    return out + end


def frame(kind, data=b""):
    return struct.pack("<BBHI", kind, 0, 0, len(data)) + data


class Frames:
    """The client's frames of an exec, one by one."""

    def __init__(self, conn, early=b""):
        self.conn, self.data = conn, early

    def next(self):
        while True:
            if len(self.data) >= 8:
                kind, _, _, n = struct.unpack("<BBHI", self.data[:8])
                if len(self.data) >= 8 + n:
                    body = self.data[8:8 + n]
                    self.data = self.data[8 + n:]
                    return kind, body
            more = self.conn.recv(65536)
            if not more:
                return None, b""
            self.data += more


UPGRADE = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n"


class FakeThawd:
    """`handle(request, conn)` returns the answer's bytes, or None when it has
    answered by itself. Requests are kept in `seen`."""

    def __init__(self, path):
        self.path = path
        self.seen = []
        self.handle = lambda r, c: error(404, "ResourceNotFoundException", "no")
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.bind(path)
        self.sock.listen(64)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            conn, _ = self.sock.accept()
            threading.Thread(target=self.serve, args=(conn,),
                             daemon=True).start()

    def serve(self, conn):
        with conn:
            try:
                r = Request(conn)
                self.seen.append(r)
                out = self.handle(r, conn)
                if out:
                    conn.sendall(out)
            except (EOFError, OSError):
                pass
