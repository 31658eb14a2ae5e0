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


def test_relay_outlives_its_client():
    """What a client said last goes out to a guest that takes its time."""
    left, size = threading.Event(), 200000

    def handler(s, guest):
        read_head(s)
        s.sendall(b"HTTP/1.1 101 Yes\r\nConnection: upgrade\r\n"
                  b"Upgrade: websocket\r\n\r\n")
        s.shutdown(socket.SHUT_WR)
        left.wait(5 * PATIENCE)
        guest.seen.append(len(read_all(s)))
    with Front(sndbuf=4096) as f, Guest(handler) as g:
        g.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with f.connect() as s:
            s.sendall(req(g, extra=HANDSHAKE))
            check(read_all(s).startswith(b"HTTP/1.1 101"), "101, and no more")
            s.sendall(b"x" * size)
        settle(f, conns=0, waiting=0, exchanges=1)
        left.set()
        until(lambda: g.seen)
        equal(g.seen, [size], "all of it comes")
        settle(f, exchanges=0, waiting=0)


# --- places ----------------------------------------------------------------------


def settle(f, **want):
    """Waits until the front counts this."""
    def counts():
        stats = f.stats()
        return {k: stats[k] for k in want}
    until(lambda: counts() == want)
    equal(counts(), want, "the front's counts")


def idle(f, guest, host):
    """A connection that has shown its token and waits."""
    s = f.connect()
    s.sendall(req(guest, host=host))
    equal(response(s)[0], 200, "admitted")
    return s


def idle_h2(f, guest, host):
    c = H2(f.connect())
    equal(c.answer(c.request(guest, host=host))["body"], b"ok",
          "admitted by HTTP/2")
    return c.s


def ended(s):
    """Has the endpoint closed it? HTTP/2 says something first."""
    s.setblocking(False)
    try:
        while s.recv(65536):
            pass
        return True
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    finally:
        s.settimeout(PATIENCE)


def which_ended(conns):
    return [i for i, s in enumerate(conns) if ended(s)]


def end_all(f, conns):
    for s in conns:
        s.close()
    settle(f, conns=0, strangers=0, waiting=0, exchanges=0)


def test_one_token_takes_all_places():
    """Whoever fills the endpoint with one microVM's token loses to others."""
    for connect in idle, idle_h2:
        with Front(max_conns=8) as f, Guest(answering(OK)) as g:
            other = [connect(f, g, "vm2") for _ in range(2)]
            greedy = [connect(f, g, "vm1") for _ in range(6)]
            settle(f, conns=8, waiting=8, strangers=0)
            for n in range(1, 4):
                other.append(connect(f, g, f"vm{n + 2}"))
                until(lambda: len(which_ended(greedy)) >= n)
                equal(which_ended(greedy), list(range(n)),
                      "the microVM with most places loses its oldest")
                equal(which_ended(other), [], "and no other does")
                settle(f, conns=8, waiting=8)
            end_all(f, greedy + other)


def test_a_request_renews_its_place():
    with Front(max_conns=4) as f, Guest(answering(OK)) as g:
        conns = [idle(f, g, "vm1") for _ in range(4)]
        conns[0].sendall(req(g))
        equal(response(conns[0])[0], 200, "the oldest asks again")
        conns[1].sendall(req(g)[:20])  # half a head
        conns[2].sendall(req(g, token="bad"))
        equal(response(conns[2])[0], 403, "the third asks in vain")
        for n in range(1, 4):
            conns.append(idle(f, g, f"vm{n + 1}"))
            until(lambda: len(which_ended(conns)) >= n)
            equal(which_ended(conns), [1, 2, 3][:n],
                  "who was admitted longest ago goes first")
        end_all(f, conns)


def test_the_busy_keep_their_places():
    """An answer that is awaited, a body that comes, a WebSocket, a stream."""
    left = threading.Event()

    def handler(s, guest):
        head, rest = read_head(s)
        if b"pgrade: websocket" in head:
            s.sendall(b"HTTP/1.1 101 Yes\r\nConnection: upgrade\r\n"
                      b"Upgrade: websocket\r\n\r\n")
            s.sendall(s.recv(100))
            return
        while b"content-length" in head.lower() and len(rest) < 2:
            rest += s.recv(100)
        left.wait(5 * PATIENCE)
        s.sendall(OK)
    with Front(max_conns=5) as f, Guest(handler) as g, \
            Guest(answering(OK)) as quick:
        asks, posts, ws = [f.connect() for _ in range(3)]
        asks.sendall(req(g))
        posts.sendall(req(g, method="POST", extra="Content-Length: 2\r\n")
                      + b"1")
        ws.sendall(req(g, extra=HANDSHAKE))
        check(read_head(ws)[0].startswith(b"HTTP/1.1 101"), "101")
        # One stream goes on, another one of the same connection has ended.
        c = H2(f.connect())
        n = c.request(g)
        equal(c.answer(c.request(quick))["body"], b"ok", "beside a busy one")
        busy = [asks, posts, ws, c.s]
        settle(f, conns=4, exchanges=4, waiting=0, strangers=0)
        lone = idle(f, quick, "vm2")
        for _ in range(5):
            last, lone = lone, idle(f, quick, "vm2")
            until(lambda: ended(last))
            last.close()
            equal(which_ended(busy), [], "who waits makes room, not the busy")
        lone.sendall(req(g, host="vm2"))
        settle(f, conns=5, exchanges=5, waiting=0)
        with f.connect() as s:
            equal(read_all(s), b"", "all are busy: the newcomer is closed")
        equal(which_ended(busy + [lone]), [], "and it alone")
        left.set()
        posts.sendall(b"2")
        ws.sendall(b"hello")
        for s in asks, posts, lone:
            equal(response(s)[2], b"ok", "they have their answers")
        equal(c.answer(n)["body"], b"ok", "by HTTP/2 too")
        equal(ws.recv(100), b"hello", "and the WebSocket its bytes")
        end_all(f, busy + [lone])


def test_unread_answers_hold_no_place():
    big = b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 16 * MIB

    def answer(head, body):
        return big if b"/big" in head else OK
    with Front(max_conns=2) as f, Guest(answering(answer)) as g:
        deaf = [idle(f, g, "vm1") for _ in range(2)]
        for s in deaf:
            pour(s, iter(lambda: req(g, token=None) * 2000, None), 40 * MIB)
        settle(f, conns=2, waiting=2, exchanges=0)
        end_all(f, [idle(f, g, "vm2")] + deaf)
        deaf = [f.connect() for _ in range(2)]
        for s in deaf:
            s.sendall(req(g, "/big"))
            s.recv(1)
        settle(f, conns=2, waiting=0, exchanges=2)
        with f.connect() as s:
            equal(read_all(s), b"", "an answer that has not ended holds one")
        end_all(f, deaf)


def test_places_of_a_microvm_that_is_gone():
    """They are strangers' places again, and no more than those."""
    with Front(max_conns=12, max_strangers=4) as f, \
            Guest(answering(OK)) as g:
        for _ in range(20):
            conns = [idle(f, g, "vm1") for _ in range(5)]
            conns += [idle_h2(f, g, "vm1") for _ in range(5)]
            held = f.connect()
            held.sendall(req(g, host="never1"))
            other = idle(f, g, "vm2")
            settle(f, conns=12, waiting=11, exchanges=1)
            f.cmd("kill never1")
            equal(response(held)[0], 404, "told that its microVM is no more")
            f.cmd("kill vm1")
            settle(f, conns=12, waiting=1, strangers=11)
            # They may ask again, for another one.
            conns[0].sendall(req(g, host="vm2"))
            equal(response(conns[0])[0], 200, "a stranger that has a token")
            settle(f, conns=12, waiting=2, strangers=10)
            conns.append(idle(f, g, "vm3"))
            settle(f, conns=6, waiting=3, strangers=3)
            equal(which_ended([conns[0], other, conns[-1]]), [],
                  "the newcomer's room is the strangers'")
            end_all(f, conns + [other, held])


if __name__ == "__main__":
    sys.exit(main([v for k, v in list(globals().items())
                   if k.startswith("test_")]))
