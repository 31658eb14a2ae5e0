#!/usr/bin/python3
"""Clients and guests that would hold the endpoint's memory or places for ever.

usage: test_front_hostile.py PATH-OF-front-rig [-k WORD]
"""
import socket
import struct
import sys
import threading
import time

from test_front import (H2, HANDSHAKE, MIB, OK, Front, Guest, answering,
                        read_all, read_head, read_request, req, response)
from thawd_rig import PATIENCE, check, equal, main, until

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS = 0, 1, 4


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + \
        struct.pack(">I", stream) + payload


def pour(s, pieces, most, wait=2):
    """Sends until nobody takes more for a while, or so much; how much."""
    sent = 0
    s.settimeout(wait)
    try:
        for p in pieces:
            at = 0
            while at < len(p):
                n = s.send(p[at:])
                at, sent = at + n, sent + n
            if sent > most:
                break
    except (socket.timeout, ConnectionError):
        pass
    return sent


def test_refusals_that_nobody_reads():
    """Requests behind each other, each refused, from a client without a token
    that reads no answer."""
    one = b"GET / HTTP/1.1\r\nHost: vm1.localhost\r\n\r\n"
    with Front() as f:
        before = f.rss()
        with f.connect() as s:
            sent = pour(s, iter(lambda: one * 2000, None), 40 * MIB)
            grown = f.rss() - before
            check(grown < 4 * MIB, "unread answers are held at their client",
                  (grown // 1024, sent))
            s.settimeout(PATIENCE)
            s.shutdown(socket.SHUT_WR)
            equal(read_all(s).count(b"HTTP/1.1 401"), sent // len(one),
                  "each has its answer once it is read")


def test_resets_that_nobody_reads():
    """Malformed streams of HTTP/2, each answered by a reset."""
    def streams():
        yield PREFACE + frame(SETTINGS, 0, 0)
        n = 1
        while True:
            some = b""
            for _ in range(2000):
                some += frame(HEADERS, 5, n, b"\x82")  # :method and no more
                n += 2
            yield some
    with Front() as f:
        before = f.rss()
        with f.connect() as s:
            sent = pour(s, streams(), 20 * MIB)
            grown = f.rss() - before
            check(grown < 8 * MIB, "unread resets are held at their client",
                  (grown // 1024, sent))
        equal(f.settled()["conns"], 0, "nothing stays open")


def test_guest_breaks_http2():
    """What no stream can be blamed for ends the exchange at once."""
    def handler(s, guest):
        s.sendall(frame(SETTINGS, 0, 0) + frame(DATA, 0, 0, b"x"))
        while s.recv(65536):
            pass
    with Front() as f, Guest(handler) as g, f.connect() as s:
        s.sendall(req(g, extra="X-aws-proxy-force-h2: true\r\n"))
        equal(response(s)[0], 502, "a connection error of the application")
        equal(f.settled("exchanges")["exchanges"], 0, "nothing stays open")


def test_h2_idle():
    """A connection is idle from its last answer on, not from its last request."""
    def handler(s, guest):
        read_request(s)
        time.sleep(9)
        s.sendall(OK)
    with Front(idle_ms=10000) as f, Guest(handler) as g, f.connect() as s:
        c = H2(s)
        equal(c.answer(c.request(g))["body"], b"ok", "a slow answer")
        time.sleep(2)
        equal(c.answer(c.request(g))["body"], b"ok",
              "and another on the same connection")
        t0 = time.monotonic()
        while not c.ended:
            c.pump()
        check(time.monotonic() - t0 > 5, "which is closed when it has been idle",
              time.monotonic() - t0)


def test_h2_stalls():
    """A stream whose client gives it no window, on a connection that is alive."""
    def answer(head, body):
        return OK if b"/ok" in head else \
            b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * MIB
    with Front(stall_ms=6000) as f, Guest(answering(answer)) as g, \
            f.connect() as s:
        c = H2(s)
        n, end = c.request(g, "/big"), time.monotonic() + PATIENCE
        s.settimeout(0.2)
        while not c.got[n]["done"] and time.monotonic() < end:
            c.c.ping(b"12345678")
            c.flush()
            try:
                c.pump(hold=True)
            except socket.timeout:
                pass
            time.sleep(0.05)
        check(c.got[n]["reset"] is not None, "it is reset", c.got[n]["done"])
        s.settimeout(PATIENCE)
        equal(c.answer(c.request(g, "/ok"))["body"], b"ok",
              "the connection goes on")
        # One that takes its time, but takes, is served to the end.
        n, end = c.request(g, "/big"), time.monotonic() + 9
        while not c.got[n]["done"]:
            c.pump(hold=True)
            held = 65535 - c.c.remote_flow_control_window(n)
            if held > 0:
                c.c.acknowledge_received_data(held, n)
                c.flush()
                if time.monotonic() < end:
                    time.sleep(0.6)
        equal((len(c.got[n]["body"]), c.got[n]["reset"]), (MIB, None),
              "a slow reader is no stalled one")


def test_relay_half_closed():
    """The client has said its last, and the guest says nothing and stays."""
    left = threading.Event()

    def handler(s, guest):
        read_head(s)
        s.sendall(b"HTTP/1.1 101 Yes\r\nConnection: upgrade\r\n"
                  b"Upgrade: websocket\r\n\r\n")
        guest.seen.append(s.recv(1000))
        left.wait(5 * PATIENCE)
    with Front(half_closed_ms=500) as f, Guest(handler) as g:
        with f.connect() as s:
            s.sendall(req(g, extra=HANDSHAKE))
            check(read_head(s)[0].startswith(b"HTTP/1.1 101"), "101")
            s.shutdown(socket.SHUT_WR)
            check(b"timeout" not in read_all(s),
                  "a relay ends some time after one side did")
        until(lambda: g.seen)
        left.set()
        equal(g.seen, [b""], "the guest was told")
        equal(f.settled()["exchanges"], 0, "nothing stays open")


if __name__ == "__main__":
    sys.exit(main([v for k, v in list(globals().items())
                   if k.startswith("test_")]))
