"""The guest's application in test_endpoint.py.

5000   Flask: / says hello, /count counts
9091   HTTP/2 with prior knowledge: every request gets its body back (16 KiB of it
       at most); a gRPC call (unary, any method) its message
9090   HTTP/1.1 by hand, and the last to listen: /upload tells length and CRC of
       what came, /download?N sends N bytes, /events are five server-sent ones,
       each after /seen of the one before, /ws is a WebSocket that says what it is
       told
"""
import base64
import hashlib
import json
import socket
import struct
import sys
import threading
import time
import zlib

sys.path.insert(0, "/opt")  # h2_server, h2 and what it needs
BLOCK = bytes(range(256)) * 256
seen = threading.Semaphore(0)


def listen(port, handler):
    server = socket.create_server(("0.0.0.0", port), backlog=64)

    def serve(s):
        try:
            with s:
                handler(s)
        except OSError:
            pass

    def accept():
        while True:
            s, _ = server.accept()
            threading.Thread(target=serve, args=(s,), daemon=True).start()
    threading.Thread(target=accept, daemon=True).start()


# --- Flask -----------------------------------------------------------------------

def flask_app():
    from flask import Flask
    app, counted = Flask("app"), [0]

    @app.route("/")
    def hello():
        return "Hello, World!"

    @app.route("/count")
    def count():
        counted[0] += 1
        return str(counted[0])
    app.run(host="0.0.0.0", port=5000, threaded=True)


# --- HTTP/1.1 by hand -------------------------------------------------------------

def read_head(f):
    line, fields = f.readline().decode().split(), {}
    while True:
        one = f.readline().decode().strip()
        if not one:
            return line, fields
        k, v = one.split(":", 1)
        fields[k.lower()] = v.strip()


def chunks(f, fields):
    if "content-length" in fields:
        left = int(fields["content-length"])
        while left:
            data = f.read(min(left, 65536))
            left -= len(data)
            yield data
        return
    while fields.get("transfer-encoding"):
        n = int(f.readline(), 16)
        data = f.read(n + 2)[:n]
        if not n:
            return
        yield data


def answer(s, body, kind="application/json"):
    s.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n"
              b"\r\n%s" % (kind.encode(), len(body), body))


def websocket(s, f, fields):
    key = fields["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key.encode()).digest())
    s.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
              b"Connection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n" % accept)
    while True:
        a, b = f.read(2)
        n = b & 127
        if n == 126:
            n, = struct.unpack(">H", f.read(2))
        mask, data = f.read(4), f.read(n)
        data = bytes(c ^ mask[i % 4] for i, c in enumerate(data))
        head = bytes([a, n]) if n < 126 else bytes([a, 126]) + \
            struct.pack(">H", n)
        s.sendall(head + data)
        if a & 15 == 8:
            return


def http1(s):
    f = s.makefile("rb", 65536)
    (_, target, _), fields = read_head(f)
    path, _, query = target.partition("?")
    if path == "/ws":
        websocket(s, f, fields)
    elif path == "/events":
        s.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        for i in range(5):
            s.sendall(b"data: %d\n\n" % i)
            seen.acquire()
    elif path == "/seen":
        seen.release()
        answer(s, b"")
    elif path == "/upload":
        n = crc = 0
        for data in chunks(f, fields):
            n += len(data)
            crc = zlib.crc32(data, crc)
        answer(s, json.dumps({"n": n, "crc": crc}).encode())
    elif path == "/download":
        n = int(query)
        s.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % n)
        for i in range(0, n, len(BLOCK)):
            s.sendall(struct.pack(">Q", i) + BLOCK[8:])
    else:
        answer(s, json.dumps({"target": target, "fields": fields}).encode())


# --- HTTP/2 ------------------------------------------------------------------------

def http2_answer(c, n, head, body):
    kind = head.get("content-type", "text/plain")
    c.send_headers(n, [(":status", "200"), ("content-type", kind),
                       ("x-spoken", "h2")])
    c.send_data(n, body[:16384])  # a frame
    c.send_headers(n, [("grpc-status", "0"), ("a-trailer", "x")], True)


def http2(s):
    import h2_server
    h2_server.serve(s, http2_answer)


threading.Thread(target=flask_app, daemon=True).start()
listen(9091, http2)
for port in (5000, 9091):
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            time.sleep(0.1)
import h2_server  # noqa: E402,F401 - not first at the first request
listen(9090, http1)
threading.Event().wait()
