#!/usr/bin/python3
"""What a Dockerfile's RUN steps reach without and with INTERNET_EGRESS: real builds
through CreateMicrovmImage, on a machine with a network that is all the test's own.
TAP on stdout; needs root, buildah and slirp4netns.

usage: test_image_egress.py thawd-fake LIBEXEC

    outside ─────────────────── v1 ══ v0 ─── the host ─── a build's network
    198.51.100.1: HTTP, DNS         198.51.100.2          10.0.2.0/24 (slirp4netns)
    metadata: HTTP                  127.0.0.1, 127.0.0.53: HTTP, UDP, DNS

Host and outside are network namespaces; nothing leaves them. thawd runs in the
host's, with a /etc/resolv.conf of the test's.
"""
import http.client
import http.server
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time

import image_bases
import thawd_rig as rig
from test_image_api import EGRESS, build, create, folder, log, settle
from thawd_rig import PATIENCE, check, contains, equal, until

OUT, HOST = "198.51.100.1", "198.51.100.2"
# Where clouds have metadata: everybody, AWS (credentials of tasks), Azure, Alibaba.
META = ("169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200")
STUB = "127.0.0.53"  # where a host's own resolver listens, systemd's for one
LOCAL = ("127.0.0.1", STUB)
INTERNET = EGRESS + "INTERNET_EGRESS"
PORT, UDP = 8080, 8081
NAME = "thing.thaw.test"
GATEWAY, RESOLVER = "10.0.2.2", "10.0.2.3"  # what slirp4netns has inside

# In a RUN step: tries each "WHAT HOST PORT", and says what answered. Those that
# may answer have time for it.
PROBE = """
import socket, time
for line in open("/tries"):
    what, host, port = line.split()
    to = host.encode(), int(port)  # bytes: the small Python has no IDNA
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if what[:3] == "udp"
                      else socket.SOCK_STREAM)
    s.settimeout(60 if what in ("out", "name", "host", "bound-out") else 4)
    try:
        if what.startswith("bound"):  # asks routes less
            s.setsockopt(socket.SOL_SOCKET, 25, b"tap0")
        s.connect(to)
        s.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n" + what.encode())
        got = "" if what[:3] == "udp" else s.makefile().read().split()[-1]
    except OSError:
        got = "nothing"
    print("PROBE", what, got, flush=True)
print("PROBE resolv", " ".join(open("/etc/resolv.conf").read().split()),
      flush=True)
time.sleep(3)  # image_bases.HEARD
"""


# --- the two machines -----------------------------------------------------------

class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"page-of-{self.server.server_address[0]}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def serve_http(address, port):
    s = http.server.ThreadingHTTPServer((address, port), Page)
    threading.Thread(target=s.serve_forever, daemon=True).start()


def serve_udp(address, port, handler):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind((address, port))

    def loop():
        while True:
            data, peer = s.recvfrom(2048)
            out = handler(data)
            if out:
                s.sendto(out, peer)
    threading.Thread(target=loop, daemon=True).start()


def dns(ask):
    """A resolver (RFC 1035) that knows one name's address, and no other name."""
    labels, at = [], 12
    while ask[at]:
        labels.append(ask[at + 1:at + 1 + ask[at]].decode("latin1").lower())
        at += ask[at] + 1
    known = ".".join(labels) == NAME
    answers = known and ask[at + 1:at + 3] == b"\0\x01"
    record = b"\xc0\x0c\0\x01\0\x01\0\0\0\x01\0\x04" + socket.inet_aton(OUT)
    return (ask[:2] + (b"\x81\x80" if known else b"\x81\x83") + b"\0\x01" +
            bytes([0, answers]) + bytes(4) + ask[12:at + 5] + record * answers)


def outside():
    """The other machine: a process in its namespace, until its input ends."""
    print("here", flush=True)
    sys.stdin.readline()  # v1 is there
    for args in (["link", "set", "lo", "up"], ["link", "set", "v1", "up"],
                 ["addr", "add", OUT + "/24", "dev", "v1"],
                 *(["addr", "add", m + "/32", "dev", "v1"] for m in META)):
        subprocess.run(["ip", *args], check=True)
    serve_http(OUT, PORT)
    for m in META:
        serve_http(m, 80)
    serve_udp(OUT, 53, dns)
    print("ready", flush=True)
    sys.stdin.read()


class Outside:
    def __enter__(self):
        self.p = subprocess.Popen(
            ["unshare", "--net", sys.executable, __file__, "--outside"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.p.stdout.readline()
        for args in (["link", "set", "lo", "up"],
                     ["link", "add", "v0", "type", "veth", "peer", "name", "v1",
                      "netns", str(self.p.pid)],
                     ["addr", "add", HOST + "/24", "dev", "v0"],
                     ["link", "set", "v0", "up"],
                     ["route", "add", "default", "via", OUT]):
            subprocess.run(["ip", *args], check=True)
        self.p.stdin.write("\n")
        self.p.stdin.flush()
        if self.p.stdout.readline() != "ready\n":
            raise RuntimeError("the outside does not come up")
        return self

    def __exit__(self, *_):
        self.p.stdin.close()
        self.p.wait(PATIENCE)


def resolver(address):
    """Makes this the host's one, of which slirp4netns asks names."""
    with open(RESOLV, "w") as f:
        f.write(f"nameserver {address}\n")


# --- the tests ---------------------------------------------------------------------

heard = []  # datagrams at the host's loopback


def fetch(host, port):
    try:
        c = http.client.HTTPConnection(host, port, timeout=PATIENCE)
        c.request("GET", "/")
        return c.getresponse().read().decode()
    except OSError:
        return "nothing"


TRIES = [("out", OUT, PORT), ("name", NAME, PORT), ("host", HOST, PORT),
         *((f"meta-{m}", m, 80) for m in META),
         ("bound-out", OUT, PORT), ("bound-meta", META[0], 80)]
# Ways to the host's loopback: its own names, and slirp4netns's for it.
LOOP = [(f"loop-{h}", h, PORT) for h in
        (*LOCAL, "0.0.0.0", "255.255.255.255", GATEWAY, RESOLVER)] + \
    [(f"udp-{h}", h, UDP) for h in (*LOCAL, GATEWAY, RESOLVER)]


def start(t, name, path, egress):
    more = {"egressNetworkConnectors": [INTERNET]} if egress else {}
    equal(create(t, name, path, **more).status, 201, f"{name} is being built")
    return settle(t, name)["state"]


def probe(t, name, egress):
    """Builds an image of that name; what its RUN step reached."""
    path = folder(
        t, name, f"FROM {image_bases.PYTHON}\nCOPY probe.py tries /\n"
        "RUN python3 /probe.py\nCMD [\"x\"]\n", **{
            "probe.py": PROBE,
            "tries": "".join(f"{a} {b} {c}\n" for a, b, c in TRIES + LOOP)})
    equal(start(t, name, path, egress), "CREATED", f"{name} is built")
    text = log(t, name).text
    got = dict(re.findall(r"(?m)PROBE (\S+) ?(.*?)\s*$", text))
    if not check(set(got) >= {w for w, _, _ in TRIES + LOOP},
                 f"{name}: every address was tried", text[-2000:]):
        return {}
    return got


def loopback_is_shut(got, name):
    equal({k: v for k, v in got.items() if k.startswith("loop-")},
          {w: "nothing" for w, _, _ in LOOP if w.startswith("loop-")},
          f"{name}: the host's loopback is not reached")
    equal(heard, [], f"{name}: nor by datagrams")


def test_host(t):
    """What follows shows nothing unless all of it answers the host."""
    equal([fetch(*x[1:]) for x in TRIES[:-2]],
          [f"page-of-{x}" for x in (OUT, OUT, HOST, *META)],
          "the host itself reaches all of it, names too")
    equal([fetch(x, PORT) for x in LOCAL], [f"page-of-{x}" for x in LOCAL],
          "and its loopback")
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.sendto(b"x", (LOCAL[0], UDP))
    until(lambda: heard)
    equal(heard, [b"x"], "and datagrams are heard there")
    heard.clear()


def test_without(t):
    got = probe(t, "without", False)
    equal({w: got.get(w) for w, _, _ in TRIES},
          {w: "nothing" for w, _, _ in TRIES},
          "without egress nothing is reached")
    loopback_is_shut(got, "without")


def with_egress(t, name):
    got = probe(t, name, True)
    equal({w: got.get(w) for w, _, _ in TRIES},
          {"out": f"page-of-{OUT}", "name": f"page-of-{OUT}",
           "host": f"page-of-{HOST}",
           **{f"meta-{m}": "nothing" for m in META},
           "bound-out": f"page-of-{OUT}", "bound-meta": "nothing"},
          f"{name}: a RUN step reaches what is outside, by names too, and this "
          "host by its own address, but no cloud's metadata")
    equal(got.get("resolv"), f"nameserver {RESOLVER}",
          f"{name}: slirp4netns is asked for names")
    loopback_is_shut(got, name)


def test_egress(t):
    with_egress(t, "egress")


def test_egress_local_resolver(t):
    """The host asks a resolver on its own loopback: that one serves names, and
    is no way to anything else there."""
    resolver(STUB)
    with_egress(t, "local-resolver")
    resolver(OUT)


def test_add(t):
    """buildah fetches what ADD names itself, from the same place."""
    def add(name, url, egress):
        return start(t, name, folder(
            t, name, f"FROM {image_bases.PYTHON}\nADD {url} /page\n"
            f"RUN cat /page; {image_bases.HEARD}\nCMD [\"x\"]\n"), egress)

    url = f"http://{NAME}:{PORT}/page"
    equal(add("add", url, True), "CREATED", "ADD of what is outside")
    contains(log(t, "add").text, f"page-of-{OUT}", "brings it")
    for name, url, egress in (("add-without", url, False),
                              ("add-meta", f"http://{META[0]}/page", True),
                              ("add-gateway", f"http://{GATEWAY}:{PORT}/page",
                               True)):
        equal(add(name, url, egress), "CREATE_FAILED",
              f"{name}: and of other things not")
        contains(build(t, name).get("stateReason"), "Dockerfile line 2: ADD",
                 f"{name}: for they cannot be fetched")


def helpers(seconds=PATIENCE):
    """The slirp4netns of this machine, once none is left or the time is up."""
    here, end = os.readlink("/proc/self/ns/net"), time.monotonic() + seconds
    while True:
        out = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/comm") as f:
                    if f.read() == "slirp4netns\n" and \
                            os.readlink(f"/proc/{pid}/ns/net") == here:
                        out.append(pid)
            except OSError:
                pass
        if not out or time.monotonic() > end:
            return out
        time.sleep(0.1)


def test_nothing_left(t):
    equal(helpers(), [], "no build's slirp4netns is left")
    path = folder(t, "killed", f"FROM {image_bases.PYTHON}\nRUN echo it has "
                  "\\\nbegun; sleep 600\nCMD x\n")
    create(t, "killed", path, egressNetworkConnectors=[INTERNET])
    until(lambda: "it has begun" in log(t, "killed").text)
    equal(len(helpers(0)), 1, "a build that runs has one")
    t.kill9()
    equal(helpers(), [], "which dies with thawd")
    t.start()


def test_no_slirp(t):
    """A machine without it: such a build says so."""
    path = folder(t, "no-slirp",
                  f"FROM {image_bases.PYTHON}\nCMD [\"x\"]\n")
    subprocess.run(["mount", "--bind", "/dev/null", "/usr/bin/slirp4netns"],
                   check=True)
    start(t, "no-slirp", path, True)
    subprocess.run(["umount", "/usr/bin/slirp4netns"], check=True)
    contains(build(t, "no-slirp").get("stateReason"), "takes slirp4netns, which "
             "is not installed: install it", "without slirp4netns a build with "
             "egress fails, and says what to do")


# --- the run ------------------------------------------------------------------------

def inside(bases):
    global RESOLV
    with Outside():
        serve_http(HOST, PORT)
        for a in LOCAL:
            serve_http(a, PORT)
            serve_udp(a, UDP, lambda data: heard.append(data))
        serve_udp(STUB, 53, dns)
        t = rig.Thawd(sys.argv[1], "--bases", bases, "--kernel", "/k",
                      "--initrd", "/i", libexec=sys.argv[2])
        os.chmod(t.dir, 0o755)
        RESOLV = os.path.join(t.dir, "resolv.conf")
        resolver(OUT)
        subprocess.run(["mount", "--bind", RESOLV, "/etc/resolv.conf"],
                       check=True)
        tests = [f for n, f in globals().items() if n.startswith("test_")]
        try:
            t.start()
            return rig.main(tests, t)
        finally:
            if rig.failed:
                rig.diag(t.log()[-3000:])
            subprocess.run(["umount", "/etc/resolv.conf"], check=True)
            t.remove()


def main():
    if "--outside" in sys.argv:
        return outside()
    if os.environ.get("THAW_EGRESS_BASES"):
        return inside(os.environ["THAW_EGRESS_BASES"])
    need = ("buildah", "slirp4netns", "ip", "unshare")
    if os.geteuid() or not all(map(shutil.which, need)):
        print(f"1..0 # SKIP needs root and {', '.join(need)}")
        return 77
    try:
        os.environ["THAW_EGRESS_BASES"] = image_bases.make(image_bases.PYTHON)
    except image_bases.Missing as e:
        print(f"1..0 # SKIP no base images: {e}")
        return 77
    os.execvp("unshare", ["unshare", "--net", "--mount", "--propagation",
                          "private", sys.executable, *sys.argv])


if __name__ == "__main__":
    sys.exit(main())
