#!/usr/bin/python3
"""thawd's endpoint, its tokens and its shell, with FAKE cells: port N of a fake
guest is port N of this host (fake_bridge.c).

usage: test_endpoint.py PATH-OF-thawd-fake LIBEXEC PATH-OF-front-rig [-k WORD]
"""
import base64
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time

BIN, LIBEXEC = sys.argv[1:3]
sys.argv[1:4] = [sys.argv[3]]  # as test_front.py, whose guests these are, wants

from endpoint_rig import (BINARY, CLOSE, CONNECTOR, PING, PONG, TEXT, Endpoint,
                          Refused, WebSocket, token)
from test_front import Guest, OK, answering, echo, read_request, unreachable
from thawd_rig import (AWS, OWN, PATIENCE, Thawd, check, contains, equal,
                       give_hooks, let_go, main, until)

POLICY = {"maxIdleDurationSeconds": 60, "suspendedDurationSeconds": 600,
          "autoResumeEnabled": True}


def make(*flags):
    t = Thawd(BIN, "--endpoint", "0", "--endpoint-plain", "--kernel",
              "/proc/self/exe", "--initrd", "/proc/self/exe", *flags,
              libexec=LIBEXEC)
    t.env["FAKE_BRIDGE"] = "1"
    # thaw-mkdisk inherits it: the leak checker cannot work in its jail.
    t.env["ASAN_OPTIONS"] = os.environ.get("ASAN_OPTIONS", "") + \
        ":detect_leaks=0"
    t.start()
    root = os.path.join(t.dir, "root")
    os.makedirs(root + "/bin", exist_ok=True)
    with open(root + "/bin/x", "w") as f:
        f.write("x")
    got = t.build(name="app", rootfs=root, entrypoint=["/bin/x"],
                  memoryMiB=64, readyPort=8080)
    if "image" not in got:
        raise RuntimeError(f"the fake build failed: {got}")
    return t


def refused(a, status, kind, part, name):
    check(not isinstance(a, str) and a.status == status and a.type == kind and
          part in a.message, f"{name}: {status} {kind}", repr(a))


def run(t, **kw):
    vm = t.run("app", **kw)
    if vm.status != 200:
        raise RuntimeError(repr(vm))
    return vm.json


# --- what the host says --------------------------------------------------------

def test_host(t):
    h = t.host()
    check(h["endpoint"].startswith("127.0.0.1:"), "the endpoint's address",
          h["endpoint"])
    equal((h["endpointDomain"], h["endpointPlain"]), ("localhost", True),
          "domain and plain")
    check(os.path.isfile(h["endpointCa"]), "the authority's certificate",
          h["endpointCa"])
    vm = run(t)
    name, port = vm["endpoint"].split(":")
    equal(port, h["endpoint"].rsplit(":", 1)[1],
          "a microVM's endpoint has the port")
    equal(name.split(".", 1)[1], "localhost", "and the domain")
    equal(t.vm(vm["microvmId"]).json["endpoint"], vm["endpoint"],
          "Get says the same")
    t.end(vm["microvmId"])


def test_certificate(_):
    """Everybody on the machine may read whom to trust; nobody the key."""
    other = Thawd(BIN, "--endpoint", "0", libexec=LIBEXEC)
    os.chmod(other.dir, 0o755)
    old = os.umask(0o077)
    try:
        other.start()
        ca = other.host()["endpointCa"]
        key = os.path.join(other.state, "endpoint", "localhost.ca.key")
        modes = [oct(os.stat(p).st_mode & 0o7777) for p in (ca, key)]
        equal((ca, modes), (other.sock + ".ca.pem", ["0o644", "0o600"]),
              "the certificate is beside the socket, whatever the umask")
        for path, want in ((ca, 0), (key, 1), (key[:-3] + "pem", 1)):
            if os.geteuid():
                break  # cannot be somebody else
            p = subprocess.run(["cat", path], user=65534, group=65534,
                               extra_groups=[], capture_output=True)
            equal(p.returncode, want, f"{os.path.basename(path)} is "
                  f"{'not ' if want else ''}for other users")
        with open(ca) as f, open(key[:-3] + "pem") as g:
            equal(f.read(), g.read(), "it is the authority's")
        os.unlink(ca)
        other.restart()
        check(os.path.isfile(ca), "it is there again after a restart")
    finally:
        os.umask(old)
        other.remove()


def test_flags(t):
    for flags, part in (
            (["--endpoint", "nonsense"], "is not IP:PORT"),
            (["--endpoint", "0.0.0.0:0", "--endpoint-plain"], "loopback"),
            (["--endpoint-plain"], "need --endpoint"),
            (["--endpoint", "0", "--endpoint-cert", "/x"], "go together"),
            (["--endpoint", "0", "--endpoint-cert", "/x", "--endpoint-key",
              "/x"], "/x"),
            (["--endpoint-domain", "a..b"], "DNS name"),
            (["--endpoint-domain", "A"], "DNS name")):
        other = Thawd(BIN, *flags, libexec=LIBEXEC)
        try:
            check(other.start(expect_failure=True) != 0, f"{flags} is refused")
            contains(other.log(), part, f"{flags}: why")
        finally:
            other.remove()
    other = Thawd(BIN, "--endpoint-domain", "vm.example", libexec=LIBEXEC)
    try:
        other.start()
        h = other.host()
        equal((h["endpoint"], h["endpointDomain"], h["endpointCa"]),
              (None, "vm.example", None), "no endpoint unless asked for")
        other.build(name="img", kernel="/proc/self/exe", memoryMiB=64)
        vm = other.run("img").json
        check(vm["endpoint"].endswith(".vm.example"), "no port without one",
              vm["endpoint"])
        check(isinstance(token(other, vm["microvmId"]), str),
              "tokens are made all the same")
    finally:
        other.remove()


# --- tokens --------------------------------------------------------------------

def test_token_api(t):
    vm = run(t, ingressNetworkConnectors=[CONNECTOR + "HTTP_INGRESS",
                                          CONNECTOR + "SHELL_INGRESS"])
    i = vm["microvmId"]
    V, path = "ValidationException", f"{AWS}/microvms/{i}/auth-token"
    a = t.post(path, {"expirationInMinutes": 60, "allowedPorts": [
        {"port": 1}, {"range": {"startPort": 5, "endPort": 5}},
        {"allPorts": {}}]})
    equal((a.status, list(a.json), list(a.json["authToken"])),
          (200, ["authToken"], ["X-aws-proxy-auth"]), "the answer's shape")
    jwe = a.json["authToken"]["X-aws-proxy-auth"].split(".")
    head = json.loads(base64.urlsafe_b64decode(jwe[0] + "=="))
    equal((len(jwe), head["alg"], head["enc"]), (5, "dir", "A256GCM"),
          "a compact JWE")
    check(i not in str(jwe), "nobody reads in it")
    for body, part in (
            ({}, "expirationInMinutes"),
            ({"expirationInMinutes": 0}, "expirationInMinutes"),
            ({"expirationInMinutes": 61}, "between 1 and 60"),
            ({"expirationInMinutes": 2 ** 33}, "expirationInMinutes"),
            ({"allowedPorts": None}, "allowedPorts"),
            ({"allowedPorts": []}, "allowedPorts"),
            ({"allowedPorts": [{}]}, "allowedPorts"),
            ({"allowedPorts": [{"port": 0}]}, "port"),
            ({"allowedPorts": [{"port": 65536}]}, "port"),
            ({"allowedPorts": [{"port": 1, "allPorts": {}}]}, "allowedPorts"),
            ({"allowedPorts": [{"range": {"startPort": 1}}]}, "endPort"),
            ({"allowedPorts": [{"range": {"startPort": 9, "endPort": 8}}]},
             "startPort"),
            ({"allowedPorts": [{"port": 1}] * 1025}, "1024")):
        full = {"expirationInMinutes": 1, "allowedPorts": [{"port": 1}]}
        full.update(body)
        if not body:
            full = {}
        refused(t.post(path, full), 400, V, part, f"token with {str(body)[:60]}")
    check(isinstance(token(t, i, [{"port": 1}] * 1024), str),
          "1024 sets of ports are one token")
    refused(token(t, "microvm-none"), 404, "ResourceNotFoundException",
            "does not exist", "a token for none")
    refused(t.post(f"{AWS}/microvms/{i}/shell-auth-token",
                   {"expirationInMinutes": 61}), 400, V, "between 1 and 60",
            "a shell's of 61 minutes")
    t.op(i, "suspend", "?wait=SUSPENDED")
    check(isinstance(token(t, i), str), "a suspended one has tokens")
    t.end(i)
    for shell in (False, True):
        refused(token(t, i, shell=shell), 409, "ConflictException",
                "TERMINATED", f"a token for one that has ended, shell {shell}")


def test_token_connectors(t):
    V = "ValidationException"
    for names, app, part in (
            ([], True, "Shell access requires SHELL_INGRESS network connector "
             "to be configured on the MicroVM."),
            (["HTTP_INGRESS"], True, "Shell access requires SHELL_INGRESS"),
            (["ALL_INGRESS"], True, "Shell access requires SHELL_INGRESS"),
            (["SHELL_INGRESS"], False, None),
            (["ALL_INGRESS", "SHELL_INGRESS"], True,
             "ALL_INGRESS cannot be combined with other ingress network "
             "connectors; use HTTP_INGRESS and/or SHELL_INGRESS instead")):
        kw = {"ingressNetworkConnectors": [CONNECTOR + n for n in names]} \
            if names else {}
        i = run(t, **kw)["microvmId"]
        got = token(t, i, shell=True)
        if part:
            refused(got, 400, V, part, f"shell with {names}")
        else:
            check(isinstance(got, str), f"shell with {names}", got)
        got = token(t, i)
        if app:
            check(isinstance(got, str), f"application with {names}", got)
        else:
            refused(got, 400, V, "HTTP_INGRESS", f"application with {names}")
        t.end(i)


def test_scopes(t):
    e = Endpoint(t)
    one, two = run(t), run(t)
    n1, n2 = one["endpoint"], two["endpoint"]
    with Guest(answering(OK)) as g, Guest(answering(OK)) as g2:
        p = g.port
        tok = token(t, one["microvmId"], [{"port": p}])
        equal(e.call(n1, tok, port=p)[0::2], (200, b"ok"), "the right token")
        equal(e.call(n1, tok, port=p, tls=False)[0], 200, "and without TLS")
        equal(e.call(n1.upper().replace("LOCALHOST", "localhost"), tok,
                     port=p)[0], 200, "host names have no case")
        status, _, body = e.call(n1, tok, port=g2.port)
        equal((status, json.loads(body)["message"]),
              (403, "Access to port denied"), "another port")
        equal(e.call(n2, tok, port=p)[0], 403, "another microVM's")
        equal(e.call(n1, None, port=p)[0], 401, "none")
        equal(e.call(n1, "x", port=p)[0], 403, "no token at all")
        equal(e.call("x" + n1[1:], tok, port=p)[0], 404, "no such microVM")
        equal(e.call(one["microvmId"] + ".localhost", tok, port=p)[0], 404,
              "the id is no host name")
        wide = token(t, one["microvmId"],
                     [{"range": {"startPort": p - 1, "endPort": p}}])
        equal(e.call(n1, wide, port=p)[0], 200, "a range, to its end")
        every = token(t, one["microvmId"])
        equal(e.call(n1, every, port=g2.port)[0], 200, "allPorts")
        flips = random.Random(1).sample(range(len(tok)), 60)
        got = set()
        for at in flips:
            bad = tok[:at] + ("A" if tok[at] != "A" else "B") + tok[at + 1:]
            got.add(e.call(n1, bad, port=p, tls=False)[0])
        check(got <= {403, 400}, "no altered token is good", got)
        seen = g.seen[0][0].decode()
        check("x-aws" not in seen.lower() and tok not in seen,
              "the guest sees no token", seen)
    for vm in (one, two):
        t.end(vm["microvmId"])


# --- requests --------------------------------------------------------------------

def test_requests(t):
    e = Endpoint(t)
    vm = run(t)
    tok = token(t, vm["microvmId"])
    with Guest(answering(echo)) as g:
        body = os.urandom(300000)
        status, f, got = e.call(vm["endpoint"], tok, "/p?q=1", g.port, "POST",
                                body)
        check(status == 200 and got.endswith(body), "a body there and back")
        contains(got[:2000].decode("latin1"), f"Host: localhost:{g.port}",
                 "the guest's own host name")
    with unreachable() as port:
        status, _, got = e.call(vm["endpoint"], tok, port=port)
    equal((status, "cannot be reached" in got.decode()), (502, True),
          "nobody listens: 502")
    equal(e.call(vm["endpoint"], tok, headers={"X-aws-proxy-port": "x"})[0],
          400, "a port that is none")
    t.end(vm["microvmId"])


def held(t):
    """Requests that wait for their microVM."""
    return t.stats()["endpoint"]["held"]


class Silent(Guest):
    """Reads nothing and says nothing, until the test is over."""

    def __init__(self):
        self.over = threading.Event()
        super().__init__(lambda s, g: self.over.wait(5 * PATIENCE))

    def __exit__(self, *exc):
        self.over.set()
        super().__exit__(*exc)


def test_held(t):
    e = Endpoint(t)
    vm = run(t, idlePolicy=POLICY)
    i, name = vm["microvmId"], vm["endpoint"]
    tok = token(t, i)
    gate = os.path.join(t.dir, "gate")
    os.mkfifo(gate)
    with Guest(answering(echo)) as g:
        t.op(i, "suspend", "?wait=SUSPENDED")
        equal(t.vm(i).json["state"], "SUSPENDED", "it is suspended")
        status, _, body = e.call(name, tok, "/", g.port, "POST", b"first")
        check(status == 200 and body.endswith(b"first"),
              "the first request is answered by the resumed one", status)
        equal(t.vm(i).json["state"], "RUNNING", "it runs again")
        # Asked while it is being suspended: after that, resumed.
        t.post(f"{OWN}/microvms/{i}/exec",
               {"command": ["cat"], "stdin": f"held {gate}\n"})
        t.op(i, "suspend")
        equal(t.vm(i).json["state"], "SUSPENDING", "it is being suspended")
        got = []
        asks = threading.Thread(target=lambda: got.append(
            e.call(name, tok, "/", g.port)[0]))
        asks.start()
        until(lambda: held(t))
        equal((held(t), got), (1, []), "a request waits for the suspend")
        let_go(gate)
        asks.join()
        equal(got, [200], "and is answered when that is over")
        equal(t.vm(i).json["thaw"]["resumes"], 2, "resumed twice")
        # Many at once are one resume.
        t.op(i, "suspend", "?wait=SUSPENDED")
        got = []
        many = [threading.Thread(target=lambda: got.append(
            e.call(name, tok, "/", g.port)[0])) for _ in range(20)]
        for m in many:
            m.start()
        for m in many:
            m.join()
        equal(got, [200] * 20, "twenty at once are answered")
        equal(t.vm(i).json["thaw"]["resumes"], 3, "by one resume")
        t.end(i)
        never = dict(POLICY, autoResumeEnabled=False)
        vm = run(t, idlePolicy=never)
        i = vm["microvmId"]
        tok = token(t, i)
        t.op(i, "suspend", "?wait=SUSPENDED")
        status, f, body = e.call(vm["endpoint"], tok, "/", g.port)
        equal((status, t.vm(i).json["state"]), (503, "SUSPENDED"),
              "autoResumeEnabled false: 503")
        t.end(i)


def test_gone(t):
    e = Endpoint(t)
    was = t.stats()["endpoint"]
    with Silent() as silent, Guest(answering(OK)) as g:
        vm = run(t)
        i, name = vm["microvmId"], vm["endpoint"]
        tok = token(t, i)
        got = []
        w = threading.Thread(target=lambda: got.append(
            e.call(name, tok, "/", silent.port)[0]))
        w.start()
        until(lambda: silent.conns)

        def now():  # those of the test before this may be closing yet
            s = t.stats()["endpoint"]
            return (s["connections"], s["open"], s["held"],
                    s["requests"] - was["requests"])
        until(lambda: now() == (1, 1, 0, 1))
        equal(now(), (1, 1, 0, 1), "the endpoint's statistics")
        t.end(i)
        w.join(PATIENCE)
        check(got and got[0] in (404, 502), "what is open to it ends with it",
              got)
        equal(e.call(name, tok, "/", g.port)[0], 404,
              "its token is dead with it")
        equal(g.conns, 0, "and nothing came through")


def test_restart(t):
    """Suspended microVMs, their host names and tokens outlive thawd."""
    vm = run(t, idlePolicy=POLICY)
    i, name = vm["microvmId"].lower(), vm["endpoint"]
    tok = token(t, i)
    t.op(i, "suspend", "?wait=SUSPENDED")
    before = open(t.host()["endpointCa"]).read()
    t.restart()
    e = Endpoint(t)
    equal(open(t.host()["endpointCa"]).read(), before,
          "the authority is the same")
    now = t.vm(i).json["endpoint"]
    equal(now.split(":")[0], name.split(":")[0], "the host name too")
    with Guest(answering(OK)) as g:
        equal(e.call(now, tok, "/", g.port)[0], 200, "and the token is good")
    t.end(i)


def test_stop(t):
    """SIGTERM with requests in flight: an orderly end."""
    e = Endpoint(t)
    vm, other = run(t), run(t, idlePolicy=POLICY)
    t.op(other["microvmId"], "suspend", "?wait=SUSPENDED")
    with Silent() as silent:
        c = [e.connect(vm["endpoint"]) for _ in range(3)]
        tok = token(t, vm["microvmId"])
        c[0].sendall((f"GET / HTTP/1.1\r\nHost: {vm['endpoint']}\r\n"
                      f"X-aws-proxy-auth: {tok}\r\n"
                      f"X-aws-proxy-port: {silent.port}\r\n\r\n").encode())
        until(lambda: silent.conns)
        equal(t.stop(), 0, "thawd ends in order with requests open")
    t.start()
    equal(t.vm(other["microvmId"]).json["state"], "SUSPENDED",
          "a suspended one stays")
    t.end(other["microvmId"])


def drops(s, guest):
    s.recv(65536)
    s.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n")
    for _ in range(12):
        time.sleep(1)
        s.sendall(b"x")


def drinks(s, guest):
    while s.recv(65536):
        pass


def test_idle_on_the_socket(t):
    """So do the bytes of a forward, and of a command at work."""
    fast = make("--time-scale", "6")
    try:
        i = run(fast, idlePolicy=POLICY)["microvmId"]
        with Guest(drinks) as g:
            for name, path, protocol, body in (
                    ("a forward", f"forward?port={g.port}", "thaw-forward",
                     b""),
                    ("a shell", "exec", "thaw-exec", {"command": ["sh"]})):
                s = fast.upgrade(f"{OWN}/microvms/{i}/{path}", protocol, body)
                end = time.monotonic() + 12
                while time.monotonic() < end:
                    s.sendall(b"\0")
                    time.sleep(0.2)
                s.close()
                equal(fast.vm(i).json["thaw"]["suspends"], 0,
                      f"{name} with bytes keeps it running")
        a = fast.vm(i, "?wait=SUSPENDED").json
        equal(a["thaw"]["reason"], "idle", "at their end it is idle")
    finally:
        fast.remove()


def test_idle(t):
    """Traffic through the endpoint keeps a microVM from being idle."""
    # A minute is ten seconds: between two requests less must pass, whatever
    # the processor is busy with.
    fast = make("--time-scale", "6")
    try:
        e = Endpoint(fast)
        vm = run(fast, idlePolicy=POLICY)
        i, tok = vm["microvmId"], token(fast, vm["microvmId"])
        with Guest(answering(OK)) as g:
            end = time.monotonic() + 12
            while time.monotonic() < end:
                e.call(vm["endpoint"], tok, "/", g.port, tls=False)
                time.sleep(0.2)
            equal(fast.vm(i).json["state"], "RUNNING",
                  "requests keep it running")
            equal(fast.vm(i).json["thaw"]["suspends"], 0, "all the time")
            with Guest(drops) as slow:
                equal(e.call(vm["endpoint"], tok, "/", slow.port)[0::2],
                      (200, b"x" * 12), "so does an answer that takes long")
            equal(fast.vm(i).json["thaw"]["suspends"], 0, "until its end")
            a = fast.vm(i, "?wait=SUSPENDED").json
            equal((a["state"], a["thaw"]["reason"]), ("SUSPENDED", "idle"),
                  "without any it is suspended")
            equal(e.call(vm["endpoint"], tok, "/", g.port)[0], 200,
                  "and the next request resumes it")
    finally:
        fast.remove()


def test_hooks(t):
    """No traffic before the run hook, or after a resume its hook, said 200."""
    log, status, go = [], ["200 OK"], threading.Event()

    def hook(s, guest):
        head, _ = read_request(s)
        name = head.decode().split(" ")[1].rsplit("/", 1)[1]
        go.wait(PATIENCE)
        log.append(name)
        s.sendall(f"HTTP/1.1 {status[0]}\r\nContent-Length: 0\r\n\r\n"
                  .encode())

    def app(head, body):
        log.append("request")
        return OK
    with Guest(hook) as h, Guest(answering(app)) as g:
        hooks = {k + s: v for k in ("run", "resume") for s, v in (
            ("", "ENABLED"), ("TimeoutInSeconds", 60))}
        t.stop()
        give_hooks(t, "app/1.0", {"port": h.port, "microvmHooks": hooks})
        t.start()
        e, got = Endpoint(t), []

        def asked():
            """Starts one, and asks it while it is PENDING."""
            go.clear()
            starting = threading.Thread(target=lambda: run(
                t, idlePolicy=POLICY))
            starting.start()
            items = until(lambda: t.get(
                AWS + "/microvms?state=PENDING").json["items"])
            vm = t.vm(items[0]["microvmId"]).json
            tok = token(t, vm["microvmId"])
            asks = threading.Thread(target=lambda: got.append(
                e.call(vm["endpoint"], tok, "/", g.port)[0]))
            asks.start()
            until(lambda: held(t))
            go.set()
            asks.join()
            starting.join()
            return vm["microvmId"], vm["endpoint"], tok
        i, name, tok = asked()
        equal((got, log), ([200], ["run", "request"]),
              "a request waits for the run hook")
        t.op(i, "suspend", "?wait=SUSPENDED")
        equal(e.call(name, tok, "/", g.port)[0], 200, "and for the resume's")
        equal(log[2:], ["resume", "request"], "in this order")
        status[0] = "503 No"
        t.op(i, "suspend", "?wait=SUSPENDED")
        equal(e.call(name, tok, "/", g.port)[0], 502,
              "a resume hook that fails: 502")
        t.end(i)
        asked()
        equal((got[1:], log[4:]), ([404], ["resume", "run"]),
              "a run hook that fails: no request comes through")
        t.stop()
        give_hooks(t, "app/1.0", {})
        t.start()


# --- the shell -----------------------------------------------------------------

def shell_vm(t, **kw):
    vm = run(t, ingressNetworkConnectors=[CONNECTOR + "SHELL_INGRESS",
                                          CONNECTOR + "HTTP_INGRESS"], **kw)
    return vm["microvmId"], vm["endpoint"], token(t, vm["microvmId"],
                                                  shell=True)


def opened(e, name, tok, **kw):
    """A shell's WebSocket behind its first messages."""
    w = e.websocket(name, tok, "/shell", **kw)
    op, data = w.recv()
    init = json.loads(data)
    if (op, init["type"]) != (TEXT, "session_init"):
        raise ValueError(data)
    w.session = init["session_id"]
    w.until(b"fake exec\n")
    return w


def test_shell(t):
    e = Endpoint(t)
    i, name, tok = shell_vm(t)
    w, w2 = opened(e, name, tok), opened(e, name, tok, port=8022, tls=False)
    equal(w.fields.get("sec-websocket-protocol"), "lambda-microvms",
          "the sub-protocol that is answered")
    check(len(w.session) == 36 and w.session != w2.session,
          "each session has its id", w.session)
    w2.close()
    w.send(BINARY, b"ls \xff\0\r\n")
    equal(w.recv(), (BINARY, b"ls \xff\0\r\n"), "raw bytes both ways")
    w.say({"type": "resize", "cols": 120, "rows": 40})
    equal(w.recv(), (BINARY, b"size 40 120\r\n"), "a resize")
    for odd in ({"type": "resize", "cols": 0, "rows": 40},
                {"type": "resize", "cols": 1001, "rows": 40},
                {"type": "resize", "cols": "9", "rows": 40},
                {"type": "resize"}, {"type": 5}, {"type": "exit"}, [], 3,
                {"resize": 1}):
        w.say(odd)
    w.send(TEXT, b"not JSON")
    w.send(TEXT, b"")
    w.send(BINARY, b"")
    w.send(PONG, b"unasked")
    w.send(PING, b"are you there")
    equal(w.recv(), (PONG, b"are you there"),
          "unknown texts are ignored, and a ping is answered")
    w.send(BINARY, b"in ", fin=False)
    w.send(PING, b"amid")
    w.send(0, b"pieces", fin=True)
    got = []

    def said():
        return b"".join(d for op, d in got if op == BINARY)
    while (PONG, b"amid") not in got or len(said()) < 9:
        got.append(w.recv())
    equal(said(), b"in pieces", "a message in fragments, a ping between")
    big = os.urandom(200000)
    w.send(BINARY, b"." + big)
    got = b""
    while len(got) < len(big) + 1:
        got += w.recv()[1]
    check(got == b"." + big, "200 kB pasted, and back")
    w.send(BINARY, b"flood 60 ")
    check(w.until(b"x" * 60 * 1024) == b"x" * 60 * 1024, "a frame of 60 kB")
    w.send(BINARY, b"exit 37\n")
    equal(w.end(), ([{"type": "exit", "code": 37}], 1000, "shell exited"),
          "the exit code, and the close")
    w.send(CLOSE, b"\x03\xe8")
    equal(w.s.recv(1), b"", "and the end of file")
    t.end(i)


def test_shell_closed(t):
    """The client ends it."""
    e = Endpoint(t)
    i, name, tok = shell_vm(t)
    w = opened(e, name, tok)
    w.send(CLOSE, b"\x03\xe8bye")
    equal(w.end(), ([], 1000, ""), "a close is answered with its code")
    equal(w.s.recv(1), b"", "and with the end of file")
    w = opened(e, name, tok)
    w.send(CLOSE)
    equal(w.end()[1], 1000, "a close without a code")
    w = opened(e, name, tok)
    w.close()
    w = opened(e, name, tok)
    t0 = time.monotonic()
    w.send(BINARY, b"exit 0\n")
    w.end()
    equal(w.s.recv(1), b"", "whoever does not answer the close is cut off")
    check(time.monotonic() - t0 > 3, "not before five seconds",
          time.monotonic() - t0)
    t.end(i)


def test_shell_malformed(t):
    e = Endpoint(t)
    i, name, tok = shell_vm(t)
    for data, code, what in (
            (b"\x82\x01x", 1002, "a frame without a mask"),
            (b"\xc2\x80\0\0\0\0", 1002, "a reserved bit"),
            (b"\x83\x80\0\0\0\0", 1002, "opcode 3"),
            (b"\x8b\x80\0\0\0\0", 1002, "opcode 11"),
            (b"\x80\x80\0\0\0\0", 1002, "a continuation of nothing"),
            (b"\x02\x80\0\0\0\0\x82\x80\0\0\0\0", 1002,
             "a message within another"),
            (b"\x09\x80\0\0\0\0", 1002, "a ping in fragments"),
            (b"\x89\xfe\0\x7e\0\0\0\0", 1002, "a ping of 126 bytes"),
            (b"\x82\xfe\0\x05\0\0\0\0hello", 1002, "a length too long"),
            (b"\x82\xff\0\0\0\0\0\0\xff\xff\0\0\0\0", 1002,
             "another"),
            (b"\x82\xff\x80\0\0\0\0\0\0\1\0\0\0\0", 1002,
             "a length with a sign"),
            (b"\x82\xff\0\0\0\0\1\0\0\1\0\0\0\0", 1009,
             "a message of 16 MiB and more"),
            (b"\x81\xfe\x10\x01\0\0\0\0", 1009, "a text of 4097 bytes"),
            (b"\x81\x82\0\0\0\0\xc3\x28", 1007, "a text not in UTF-8"),
            (b"\x88\x81\0\0\0\0\3", 1002, "a close of one byte"),
            (b"\x88\x82\0\0\0\0\3\xed", 1002, "a close with 1005"),
            (b"\x88\x82\0\0\0\0\0\0", 1002, "a close with 0")):
        w = opened(e, name, tok, tls=False)
        w.s.sendall(data)
        equal(w.end()[1], code, f"{what}: {code}")
        w.close()
    text = b"x" * 2000
    w = opened(e, name, tok, tls=False)
    for _ in range(3):
        try:
            w.send(TEXT if not _ else 0, text, fin=False)
        except OSError:
            pass
    equal(w.end()[1], 1009, "a text too long in pieces")
    w.close()
    w = opened(e, name, tok, tls=False)
    for b in b"\x82\x85\1\2\3\4" + bytes(
            c ^ (1 + n % 4) for n, c in enumerate(b"hello")):
        w.s.sendall(bytes([b]))
        time.sleep(0.01)
    equal(w.until(b"hello"), b"hello", "a frame byte by byte")
    w.close()
    t.end(i)


def test_shell_scopes(t):
    e = Endpoint(t)
    i, name, tok = shell_vm(t)

    def status(name, tok, path="/shell", **kw):
        try:
            e.websocket(name, tok, path, **kw).close()
            return 101
        except Refused as r:
            return r.status
    app, other = token(t, i), shell_vm(t)
    with Guest(answering(OK)) as g:
        equal(e.call(name, tok, port=g.port)[0], 403,
              "a shell's token is none for the application")
        equal(e.call(name, tok, "/shell")[0], 403, "nor for GET /shell")
        equal((status(name, tok, "/", port=g.port), g.conns), (403, 0),
              "nor for another WebSocket")
        status(name, app, port=g.port)
        check(g.seen and b"GET /shell" in g.seen[0][0],
              "with an application's, /shell is the application's", g.seen)
    equal(status(name, other[2]), 403, "another microVM's")
    equal(status(name, None), 401, "none")
    equal(status(name, tok), 101, "its own")
    t.end(i)
    equal(status(name, tok), 404, "dead with the microVM")
    t.end(other[0])


def test_shell_sleep(t):
    e = Endpoint(t)
    i, name, tok = shell_vm(t, idlePolicy=POLICY)
    w = opened(e, name, tok)
    t.op(i, "suspend", "?wait=SUSPENDED")
    texts, code, reason = w.end()
    equal((texts, code), ([], 1001), "a suspend ends the shell: " + reason)
    w.close()
    w = opened(e, name, tok)
    equal(t.vm(i).json["state"], "RUNNING", "a shell resumes the microVM")
    t.end(i)
    try:
        while w.s.recv(65536):
            pass
        check(True, "the microVM's end ends it")
    except OSError as x:
        check(not isinstance(x, socket.timeout), "the microVM's end ends it", x)


def test_shell_many(t):
    e = Endpoint(t)
    i, name, tok = shell_vm(t)
    all_ = [opened(e, name, tok, tls=False) for _ in range(256)]
    try:
        e.websocket(name, tok, "/shell", tls=False)
        check(False, "the 257th is refused")
    except Refused as r:
        equal(r.status, 429, "the 257th is refused")
    for w in all_:
        w.close()

    def room():
        try:
            opened(e, name, tok, tls=False).close()
            return True
        except Refused:
            return False
    check(until(room), "and there is room again when they are gone")
    t.end(i)


if __name__ == "__main__":
    t = make()
    try:
        rc = main([v for k, v in list(globals().items())
                   if k.startswith("test_")], t)
    finally:
        t.remove()
    sys.exit(rc)
