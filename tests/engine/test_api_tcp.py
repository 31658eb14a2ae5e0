#!/usr/bin/python3
"""thawd --listen with fake cells: signed requests over TCP, and all others.

usage: test_api_tcp.py PATH-OF-thawd-fake LIBEXEC [-k WORD]
"""
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time

try:
    import botocore  # noqa: F401
except ImportError:
    print("1..0 # skipped: botocore is not installed (python3-botocore)")
    sys.exit(77)

from tcp_client import Client, answers, free_file, keys_of, wire
from thawd_rig import (AWS, OWN, PATIENCE, Thawd, check, contains, equal, main,
                       until)

BIN, LIBEXEC = sys.argv[1], sys.argv[2]
VMS = AWS + "/microvms"


def refused(a, kind, part, name):
    check(a.status == 403 and a.type == kind and part in a.message,
          f"{name}: 403 {kind}", f"got {a!r}, want \"{part}\"")


def test_keys_file(t):
    path = t.host()["keysFile"]
    equal(path, t.state + "/keys", "without --keys: STATE/keys")
    st = os.stat(path)
    equal(stat.S_IMODE(st.st_mode), 0o600, "its mode")
    ident, secret = keys_of(path)
    check(re.fullmatch(r"THAW[A-Z2-7]{16}", ident), "a key id like AWS's",
          ident)
    check(re.fullmatch(r"[A-Za-z0-9+/]{40}", secret), "a secret like AWS's")
    contains(t.log(), "listening on " + t.host()["listen"], "the log says so")
    check(secret not in t.log(), "the secret is not in the log")
    equal(t.host()["region"], "us-east-1", "the region by default")


def test_calls(t):
    c = Client(t)
    a = c.call("POST", VMS, {"imageIdentifier": "img", "name": "over-tcp"})
    equal(a.status, 200, "RunMicrovm, signed")
    ident = a.json["microvmId"]
    check(a.headers["x-amzn-RequestId"], "with a request id")
    check(a.headers["Date"].endswith("GMT"), "with a date: SDKs set their "
          "clocks by it", a.headers["Date"])
    equal(c.call("GET", f"{VMS}/{ident}").json["state"], "RUNNING",
          "GetMicrovm")
    arn = a.json["imageArn"].replace(":", "%3A")
    equal(c.call("GET", f"{AWS}/microvm-images/{arn}").json["name"], "img",
          "an image by its encoded ARN")
    got = c.call("GET", VMS + "?imageIdentifier=" + arn + "&maxResults=1")
    equal([i["microvmId"] for i in got.json["items"]], [ident],
          "ListMicrovms with a query")
    a = c.call("GET", VMS + "/no%20such")
    equal((a.status, a.type), (404, "ResourceNotFoundException"),
          "what there is not")
    equal(c.call("DELETE", f"{VMS}/{ident}").json, {}, "TerminateMicrovm")
    equal(c.call("GET", OWN + "/host").status, 404,
          "thaw's own calls are of the socket")
    equal(c.call("POST", OWN + "/images", {}).status, 404, "builds too")
    equal(c.call("GET", "/").status, 404, "no such path")
    equal(c.call("PUT", VMS, {}).status, 405, "no such method")
    equal(c.call("OPTIONS", VMS).status, 405, "nor this one anywhere")


def test_whole_names(t):
    c = Client(t)
    for name, a in (
            ("GetMicrovmImage", c.call("GET", f"{AWS}/microvm-images/im")),
            ("RunMicrovm", c.call("POST", VMS, {"imageIdentifier": "im"})),
            ("ListMicrovms", c.call("GET", VMS + "?imageIdentifier=im"))):
        check(a.status == 404 and "whole name" in a.message,
              f"{name}: AWS's clients mean the whole name", a)


def curl(c, *args):
    r = subprocess.run(
        ["curl", "-sS", "-i", "--max-time", str(PATIENCE), "--aws-sigv4",
         "aws:amz:us-east-1:lambda", "-u", ":".join(c.key), *args],
        capture_output=True, text=True)
    return r.stdout + r.stderr


def test_curl(t):
    c = Client(t)
    url = f"http://{c.host}:{c.port}{AWS}"
    contains(curl(c, url + "/microvms"), '"items":[', "curl lists")
    got = curl(c, url + "/microvms", "-H", "Content-Type: application/json",
               "-d", '{"imageIdentifier": "img", "name": "by-curl"}')
    contains(got, '"microvmId"', "curl runs")
    contains(curl(c, "-X", "DELETE", url + "/microvms/by-curl"), "200 OK",
             "curl terminates")
    # curl asks first when a body has more than 1 MiB.
    got = curl(c, url + "/microvms", "-H", "Expect: 100-continue", "-H",
               "Content-Type: application/json", "-d",
               '{"imageIdentifier": "nosuch"}')
    contains(got, "100 Continue", "a client that asks first may go on")
    contains(got, "404", "and gets its answer")
    c.key = (c.key[0], "x" * 40)
    contains(curl(c, url + "/microvms"), "InvalidSignatureException",
             "curl with another secret")


def test_refusals(t):
    c = Client(t)
    body = b'{"imageIdentifier":"img"}'
    before = t.get(VMS).json
    good = c.sign("POST", VMS, body)
    a = c.send("POST", VMS, body)
    refused(a, "MissingAuthenticationTokenException", "", "unsigned")
    a = c.send("POST", VMS, body.replace(b"img", b"gmi"), good)
    refused(a, "InvalidSignatureException", "", "another body")
    a = c.send("POST", VMS + "/x/suspend", body, good)
    refused(a, "InvalidSignatureException", "", "another path")
    a = c.send("POST", VMS + "?wait=RUNNING", body, good)
    refused(a, "InvalidSignatureException", "", "another query")
    a = c.send("PUT", VMS, body, good)
    refused(a, "InvalidSignatureException", "", "another method")
    a = c.send("POST", VMS, body, dict(good, Host="elsewhere:1"))
    refused(a, "InvalidSignatureException", "", "another host")
    a = c.send("POST", VMS, body, dict(good, **{"X-Amz-New": "1"}))
    refused(a, "IncompleteSignatureException", "not signed",
            "a header that matters, unsigned")
    equal(t.get(VMS).json, before, "none of them ran anything")
    other = Client(t, key=(c.key[0], "0" * 40))
    refused(other.call("GET", VMS), "InvalidSignatureException", "",
            "another secret")
    other = Client(t, key=("AKIDNOBODYHASTHIS1", c.key[1]))
    refused(other.call("GET", VMS), "UnrecognizedClientException", "",
            "another key")
    other = Client(t, service="execute-api")
    refused(other.call("GET", VMS), "InvalidSignatureException", "lambda",
            "for another service")
    refused(c.call("GET", VMS, token="session"),
            "UnrecognizedClientException", "session", "a session token")
    h = c.sign("GET", VMS, headers={
        "X-Amz-Content-SHA256": "UNSIGNED-PAYLOAD"})
    check(c.send("GET", VMS, headers=h).status == 403, "an unsigned payload")
    a = c.send("GET", VMS + "?X-Amz-Signature=0", headers={})
    check(a.status == 403, "a presigned URL", a)
    equal(Client(t, region="eu-west-3").call("GET", VMS).status, 200,
          "any region, without --region")


def test_time(t):
    c = Client(t)
    # Some time passes until thawd reads it.
    for ago, ok in ((-900 + PATIENCE, True), (890, True), (-960, False),
                    (960 + PATIENCE, False)):
        a = c.call("GET", VMS, seconds=ago)
        if ok:
            equal(a.status, 200, f"signed {ago} s from now: taken")
        else:
            refused(a, "RequestExpired", "at most 900", f"signed {ago} s from now")


def test_connections(t):
    c = Client(t)
    body = b'{"imageIdentifier":"nosuch"}'
    h = c.sign("POST", VMS, body)
    one = wire(c, "POST", VMS, h, body, [f"Content-Length: {len(body)}"])
    s = c.connect()
    for i in range(3):
        s.sendall(one)
        got = answers(s, 1)
        check(got.startswith(b"HTTP/1.1 404"), f"request {i} on one connection",
              got)
    s.sendall(one + one)
    equal(answers(s, 2).count(b"HTTP/1.1 404"), 2,
          "two at once are answered one after the other")
    for i in range(len(one)):
        s.sendall(one[i:i + 1])
    check(answers(s, 1).startswith(b"HTTP/1.1 404"), "one byte at a time")
    s.close()
    chunks = b"7\r\n" + body[:7] + b"\r\n%x\r\n" % (len(body) - 7) + \
        body[7:] + b"\r\n0\r\n\r\n"
    got = c.raw(wire(c, "POST", VMS, h, chunks,
                     ["Transfer-Encoding: chunked"]))
    check(got.startswith(b"HTTP/1.1 404"), "a body in chunks", got)
    got = c.raw(wire(c, "POST", VMS, h, body,
                     [f"Content-Length: {len(body)}", "Connection: close"]))
    check(b"Connection: close" in got and got.endswith(b"}"),
          "closed when asked to", got)


BAD_HEADS = [
    ("two lengths", ["Content-Length: 2", "Content-Length: 3"], b"{}", 400),
    ("a length and chunks",
     ["Content-Length: 2", "Transfer-Encoding: chunked"], b"{}", 400),
    ("another coding", ["Transfer-Encoding: gzip"], b"{}", 501),
    ("a folded line", ["X: a", " b"], b"", 400),
    ("a bare line feed", ["X: a\nY: b"], b"", 400),
    ("a length beyond 1 MiB", ["Content-Length: 1048577"], b"", 413),
    ("no chunk size", ["Transfer-Encoding: chunked"], b"zz\r\n", 400),
    ("a body of chunks beyond 1 MiB", ["Transfer-Encoding: chunked"],
     b"100001\r\n" + b"x" * 0x100001 + b"\r\n0\r\n\r\n", 413),
    ("too many fields", [f"X-{i}: y" for i in range(120)], b"", 431),
    ("another expectation", ["Expect: 200-ok", "Content-Length: 2"], b"{}",
     417),
]


def test_bad_requests(t):
    c = Client(t)
    for name, more, body, status in BAD_HEADS:
        got = c.raw(wire(c, "POST", VMS, {}, body, more))
        check(got.startswith(f"HTTP/1.1 {status} ".encode()) and
              b"Connection: close" in got, f"{name}: {status}, and the end",
              got[:300])
    got = c.raw(b"GET / HTTP/1.1\r\n\r\n")
    check(got.startswith(b"HTTP/1.1 400"), "without Host", got)
    got = c.raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    check(got.startswith(b"HTTP/1.1 400"), "a TLS client", got)
    big = b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    got = c.raw(big)
    check(re.match(rb"HTTP/1.1 4(14|31|00) ", got), "a head beyond 64 KiB",
          got[:100])
    equal(c.call("GET", VMS).status, 200, "good ones are served as before")


def ended(s):
    try:
        return s.recv(100) == b""
    except ConnectionResetError:  # with bytes of ours unread
        return True


def test_strangers(t):
    c = Client(t)
    known = c.connect()
    good = wire(c, "GET", VMS, c.sign("GET", VMS))
    known.sendall(good)
    answers(known, 1)
    socks = []
    for i in range(300):  # more than there may be
        s = c.connect()
        s.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        socks.append(s)
    time.sleep(0.2)
    known.sendall(good)
    check(answers(known, 1).startswith(b"HTTP/1.1 200"),
          "whoever has shown a good signature keeps its connection")
    equal(c.call("GET", VMS).status, 200,
          "and new ones get in beside 300 that say nothing")
    check(ended(socks[0]), "the oldest stranger is out")
    socks[-1].sendall(b"1\r\n\r\n")
    check(b"MissingAuthentication" in answers(socks[-1], 1),
          "the newest is still heard")
    for s in socks + [known]:
        s.close()
    check(t.stats()["loop"]["turnsOver10ms"] is not None, "it lives")


def test_strangers_that_do_not_leave(t):
    """Each was refused, and keeps its side open: it is thrown out for others."""
    c = Client(t)
    socks = []
    for i in range(256):
        s = c.connect()
        s.sendall(b"nonsense\r\n\r\n")
        socks.append(s)
    check(all(s.recv(12) == b"HTTP/1.1 400" for s in socks[-20:]),
          "256 strangers are refused")
    equal(c.call("GET", VMS).status, 200, "and take nobody's place")
    for s in socks:
        s.close()


def test_gone(t):
    """A client that leaves while its request is worked on."""
    c = Client(t)
    ident = c.call("POST", VMS, {"imageIdentifier": "img"}).json["microvmId"]
    path = f"{VMS}/{ident}?wait=SUSPENDED&timeout={PATIENCE}"
    for half in (False, True):
        s = c.connect()
        s.sendall(wire(c, "GET", path, c.sign("GET", path)))
        time.sleep(0.1)
        if half:
            s.shutdown(1)
            t.op(ident, "suspend", "?wait=SUSPENDED")
            got = answers(s, 1)
            check(b'"SUSPENDED"' in got, "a half-closed one is answered", got)
        s.close()
    equal(t.end(ident).status, 200, "thawd goes on")


def test_reload(t):
    c = Client(t)
    path = t.host()["keysFile"]
    with open(path) as f:
        before = f.read()
    free_file(path, "[broken\n")
    os.kill(t.main_pid(), signal.SIGHUP)
    wait_for(t, "the keys stay as they were")
    equal(c.call("GET", VMS).status, 200, "a broken file changes nothing")
    free_file(path, "[new]\naws_access_key_id = AKIDNEWNEWNEWNEW\n"
              f"aws_secret_access_key = {'n' * 40}\n")
    os.kill(t.main_pid(), signal.SIGHUP)
    wait_for(t, "1 keys")
    refused(c.call("GET", VMS), "UnrecognizedClientException", "",
            "the old key")
    new = Client(t, key=("AKIDNEWNEWNEWNEW", "n" * 40))
    equal(new.call("GET", VMS).status, 200, "the new one")
    free_file(path, before)
    os.kill(t.main_pid(), signal.SIGHUP)
    until(lambda: c.call("GET", VMS).status == 200)
    t.restart()
    equal(Client(t).call("GET", VMS).status, 200, "keys outlive a restart")


def wait_for(t, text):
    until(lambda: text in t.log())
    contains(t.log(), text, f"the log says: {text}")


def test_starts(t):
    def fails(part, *flags):
        x = Thawd(BIN, *flags, libexec=LIBEXEC)
        x.start(expect_failure=True)
        contains(x.log(), part, "thawd " + " ".join(flags)[-60:])
        x.remove()
    keys = t.dir + "/keys"
    free_file(keys, "[a]\naws_access_key_id = AKIDAKIDAKIDAKID\n"
              f"aws_secret_access_key = {'k' * 40}\n", 0o644)
    fails("0600", "--listen", "0", "--keys", keys)
    fails("No such file", "--listen", "0", "--keys", keys + "-no")
    fails("--listen", "--keys", keys)
    for bad in ("x", "1.2.3.4", "1.2.3:80", "[::1]", "::1", "70000", "",
                "example.com:80", ":80"):
        fails("--listen takes", "--listen", bad)
    fails("listen on", "--listen", t.host()["listen"])
    fails("--region takes", "--region", "nowhere")
    empty = t.dir + "/empty"
    free_file(empty, "# none\n")
    fails("no profile with a key", "--listen", "0", "--keys", empty)
    os.chmod(keys, 0o600)
    for listen in ("[::1]:0", "localhost:0", "0"):
        x = Thawd(BIN, "--listen", listen, "--keys", keys, "--region",
                  "eu-central-1", libexec=LIBEXEC).start()
        try:
            h = x.host()
            check(re.fullmatch(r"(\[::1\]|127\.0\.0\.1):[1-9]\d+",
                               h["listen"]), f"--listen {listen}", h)
            equal((h["keysFile"], h["region"]), (keys, "eu-central-1"),
                  "keys and region are as said")
            if "::1" in listen:
                continue
            refused(Client(x).call("GET", VMS), "InvalidSignatureException",
                    "eu-central-1", "another region's signature")
            c = Client(x, region="eu-central-1")
            equal(c.call("GET", VMS).status, 200, "this one's")
            x.build(name="img", kernel="/proc/self/exe", memoryMiB=64)
            a = c.call("POST", VMS, {"imageIdentifier": "img"})
            equal(a.json["imageArn"], "arn:aws:lambda:eu-central-1:"
                  "000000000000:microvm-image:img", "and in ARNs")
            equal(c.call("GET", f"{AWS}/microvm-images/" + a.json[
                "imageArn"].replace(":", "%3A")).status, 200,
                "which lead back")
        finally:
            x.remove()
    x = Thawd(BIN, libexec=LIBEXEC).start()
    equal((x.host()["listen"], x.host()["keysFile"]), (None, None),
          "off by default")
    check(not os.path.exists(x.state + "/keys"), "and no keys are made")
    x.remove()


class Slow(threading.Thread):
    """A client that says a byte now and then, of one thawd's own: it takes long."""

    def __init__(self):
        super().__init__(daemon=True)
        self.t = Thawd(BIN, "--listen", "0", libexec=LIBEXEC).start()
        self.lasted = None  # seconds, once thawd ended it
        self.start()

    def run(self):
        s = Client(self.t).connect()
        began = time.monotonic()
        try:
            s.sendall(b"GET / HTTP/1.1\r\nX: ")
            while True:
                s.sendall(b"y")
                s.settimeout(0.5)
                try:
                    if not s.recv(1):
                        break
                except TimeoutError:
                    pass
        except OSError:
            pass
        self.lasted = time.monotonic() - began


def test_slow(t):
    slow.join(30 + PATIENCE)
    check(slow.lasted and slow.lasted > 25,
          "a request has 30 s to come, however busily it drips", slow.lasted)
    equal(Client(slow.t).call("GET", VMS).status, 200, "others are served")


def run():
    t = Thawd(BIN, "--listen", "127.0.0.1:0", libexec=LIBEXEC).start()
    try:
        t.build(name="img", kernel="/proc/self/exe", memoryMiB=64)
        code = main([v for k, v in globals().items()
                     if k.startswith("test_")], t)
        print(t.log()[-1500:] if code else "", file=sys.stderr)
        return code
    finally:
        t.remove()
        slow.t.remove()


slow = Slow()
sys.exit(run())
