"""A rig for tests of a live thawd over its Unix socket. Python's library only.

Tests are functions named test_*, called in the order in which they are written;
the output is TAP. `check` and its relatives count; an exception fails its test.

Nothing here judges a duration: machines differ, and stop for seconds. What is
waited for has PATIENCE.
"""
import errno
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.parse

PATIENCE = 300 if os.environ.get("KVMBOX") else 120  # seconds
AWS = "/2025-09-09"
OWN = "/thaw/v1"


def until(true, seconds=PATIENCE):
    """Asks until the answer is true; the last one."""
    end = time.monotonic() + seconds
    while True:
        got = true()
        if got or time.monotonic() > end:
            return got
        time.sleep(0.02)


def remove_tree(path):
    """Removes a builder's folder; whether it did. Where a wall is broken, the host's
    /usr may be mounted in there, and be writable: then all is left as it is."""
    with open("/proc/self/mountinfo") as f:
        inside = [m for m in (line.split()[4] for line in f)
                  if m.startswith(os.path.realpath(path) + "/")]
    if inside:
        print(f"# not removed, for it has mounts: {inside}")
        return False
    shutil.rmtree(path)
    return True


given_ports = set()


def free_port():
    """A port of this host for a listener that must know it before. It is none of
    those that connections get by themselves, of whoever."""
    with open("/proc/sys/net/ipv4/ip_local_port_range") as f:
        low, high = (int(x) for x in f.read().split())
    while True:
        port = random.randrange(10000, 65536)
        try:
            if not low <= port <= high and port not in given_ports:
                socket.create_server(("127.0.0.1", port)).close()
                given_ports.add(port)
                return port
        except OSError:
            pass


def patient(query):
    """A query whose wait is as long as ours, if it says nothing else."""
    return query + f"&timeout={PATIENCE}" if "wait=" in query and \
        "timeout=" not in query else query


def let_go(fifo):
    """Opens a FIFO that the other side opens for reading, once it does."""
    def opened():
        try:
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
            return True
        except OSError as e:
            if e.errno != errno.ENXIO:
                raise
            return False
    if not until(opened):
        raise RuntimeError(f"nobody opens {fifo}")


class Conn(http.client.HTTPConnection):
    # Longer than what is asked for with ?timeout=, which thawd ends.
    def __init__(self, path, timeout=2 * PATIENCE):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Answer:
    def __init__(self, status, headers, text):
        self.status, self.headers, self.text = status, headers, text
        try:
            self.json = json.loads(text) if text else None
        except ValueError:
            self.json = None

    @property
    def type(self):
        return self.headers.get("x-amzn-ErrorType")

    @property
    def message(self):
        return (self.json or {}).get("message", "")

    def __repr__(self):
        return f"{self.status} {self.type} {self.text[:300]}"


def whole_answers(data):
    """How many answers with a Content-Length are whole in these bytes."""
    n = 0
    while b"\r\n\r\n" in data:
        head, data = data.split(b"\r\n\r\n", 1)
        length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.I)
        size = int(length.group(1)) if length else 0
        # Without a length, only the end tells.
        if head.startswith(b"HTTP/1.1 1") or (length and len(data) >= size):
            n += not head.startswith(b"HTTP/1.1 1")
            data = data[size:]
        else:
            break
    return n


def said_back(s, data, n=1):
    """What comes back for these bytes until the end, or, behind n whole answers,
    until nothing more comes; closes."""
    got = b""
    with s:
        s.settimeout(PATIENCE)
        try:
            s.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it was answered before it was whole
        try:
            while True:
                if whole_answers(got) >= n:
                    s.settimeout(0.5)
                b = s.recv(65536)
                if not b:
                    break
                got += b
        except (socket.timeout, ConnectionResetError):
            pass
    return got


class Thawd:
    """One state directory and the thawd that serves it, restartable."""

    def __init__(self, binary, *flags, libexec=None):
        self.binary = os.path.abspath(binary)
        self.flags = list(flags)
        if libexec:
            self.flags += ["--libexec", os.path.abspath(libexec)]
        self.dir = tempfile.mkdtemp(prefix="thawd-test-")
        self.state = os.path.join(self.dir, "state")
        self.sock = os.path.join(self.dir, "s")
        self.log_path = os.path.join(self.dir, "log")
        self.proc = None
        self.env = dict(os.environ)

    def start(self, expect_failure=False, timeout=PATIENCE):
        log = open(self.log_path, "ab")
        self.proc = subprocess.Popen(
            [self.binary, "--state", self.state, "--socket", self.sock,
             *self.flags],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env)
        log.close()
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self.proc.poll() is not None:
                if expect_failure:
                    return self.proc.returncode
                raise RuntimeError("thawd ended: " + self.log()[-800:])
            try:
                self.get(OWN + "/version")
                if expect_failure:
                    raise RuntimeError("thawd started and should not")
                return self
            except (OSError, http.client.HTTPException):
                time.sleep(0.01)
        raise RuntimeError("thawd does not answer: " + self.log()[-800:])

    def log(self):
        with open(self.log_path, errors="replace") as f:
            return f.read()

    def main_pid(self):
        """thawd's own process id: the keeper is its parent."""
        with open(f"/proc/{self.proc.pid}/task/{self.proc.pid}/children") as f:
            kids = f.read().split()
        return int(kids[0])

    def sanitized(self):
        with open(f"/proc/{self.main_pid()}/maps") as f:
            return "libasan" in f.read()

    def kill9(self):
        """SIGKILL to thawd itself; its keeper cleans up and ends."""
        os.kill(self.main_pid(), signal.SIGKILL)
        self.proc.wait(PATIENCE)

    def stop(self):
        if self.proc and self.proc.poll() is None:
            self.proc.terminate()
            try:
                self.proc.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.proc.kill()
                self.proc.wait()
                raise
        return self.proc.returncode if self.proc else None

    def restart(self):
        self.stop()
        return self.start()

    def remove(self):
        try:
            self.stop()
        finally:
            shutil.rmtree(self.dir, ignore_errors=True)

    # --- requests ---

    def request(self, method, path, body=None, headers=None,
                timeout=2 * PATIENCE):
        c = Conn(self.sock, timeout)
        try:
            if body is not None and not isinstance(body, (bytes, str)):
                body = json.dumps(body)
            if isinstance(body, str):
                body = body.encode()
            c.request(method, path, body, headers or {})
            r = c.getresponse()
            return Answer(r.status, r.headers,
                          r.read().decode(errors="replace"))
        finally:
            c.close()

    def get(self, path, **kw):
        return self.request("GET", path, **kw)

    def post(self, path, body=None, **kw):
        return self.request("POST", path, body, **kw)

    def delete(self, path, **kw):
        return self.request("DELETE", path, **kw)

    def raw(self, data, n=1):
        """Sends bytes as they are; what comes back (said_back)."""
        s = socket.socket(socket.AF_UNIX)
        s.connect(self.sock)
        return said_back(s, data, n)

    def upgrade(self, path, protocol, body=b""):
        """The socket after 101, or the answer's bytes as an exception."""
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(PATIENCE)
        s.connect(self.sock)
        if isinstance(body, dict):
            body = json.dumps(body).encode()
        s.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nUpgrade: {protocol}\r\n"
                  f"Connection: Upgrade\r\nContent-Length: {len(body)}\r\n\r\n"
                  .encode() + body)
        head = b""
        while b"\r\n\r\n" not in head:
            b = s.recv(1)
            if not b:
                break
            head += b
        if not head.startswith(b"HTTP/1.1 101"):
            raise RuntimeError(head.decode(errors="replace"))
        return s

    def lines(self, path, timeout=2 * PATIENCE):
        """Yields the JSON lines of a stream."""
        c = Conn(self.sock, timeout)
        c.request("GET", path)
        r = c.getresponse()
        if r.status != 200:
            raise RuntimeError(f"{r.status} {r.read()}")
        try:
            for line in r:
                if line.strip():
                    yield json.loads(line)
        finally:
            c.close()

    # --- shorthands ---

    def build(self, **spec):
        """Builds an image; the last line, with "image" or "error"."""
        a = self.post(OWN + "/images", spec, timeout=5 * PATIENCE)
        if a.status != 200:
            return {"error": a.json, "status": a.status}
        return json.loads(a.text.strip().splitlines()[-1])

    def run(self, image, query="", **kw):
        kw["imageIdentifier"] = image
        return self.post(AWS + "/microvms" + patient(query), kw)

    def vm(self, ident, query=""):
        return self.get(f"{AWS}/microvms/{urllib.parse.quote(ident, safe='')}"
                        f"{patient(query)}")

    def op(self, ident, verb, query=""):
        return self.post(f"{AWS}/microvms/{ident}/{verb}{patient(query)}")

    def end(self, ident):
        return self.delete(f"{AWS}/microvms/{ident}")

    def mail(self, ident, text):
        return self.post(f"{OWN}/microvms/{ident}/mailbox", text.encode())

    def logs(self, ident, query=""):
        return self.get(f"{OWN}/microvms/{ident}/logs{query}").text

    def wait_log(self, ident, text, timeout=PATIENCE):
        """The log once a whole line of it has the text: a guest prints byte by
        byte, and what is read between two of them ends anywhere."""
        got = ""

        def said():
            nonlocal got
            got = self.logs(ident)
            return text in got[:got.rfind("\n") + 1]
        until(said, timeout)
        return got

    def stats(self):
        return self.get(OWN + "/stats").json

    def host(self):
        return self.get(OWN + "/host").json

    def events(self, since=0):
        return list(self.lines(f"{OWN}/events?since={since}"))

    def images(self):
        return self.get(OWN + "/images").json["items"]


def give_hooks(t, key, hooks):
    """Writes an image version's hooks (NAME/VERSION) into the registry of a
    thawd that is stopped, as CreateMicrovmImage would have."""
    def fnv(*parts):
        h = 0xcbf29ce484222325
        for b in b"".join(p.encode() + b"\0" for p in parts):
            h = (h ^ b) * 0x100000001b3 % 2 ** 64
        return h - 2 ** 64 if h >= 2 ** 63 else h
    db = sqlite3.connect(os.path.join(t.state, "registry.db"))
    doc, old = db.execute("select doc, sum from versions where key = ?",
                          (key,)).fetchone()
    if fnv("versions", key, doc) != old:
        raise RuntimeError("the sum is not what docs/REGISTRY.md says")
    doc = json.dumps({**json.loads(doc), "aws": {"hooks": hooks}})
    db.execute("update versions set doc = ?, sum = ? where key = ?",
               (doc, fnv("versions", key, doc), key))
    db.commit()
    db.close()


count = 0
failed = 0


def check(ok, name, detail=""):
    global count, failed
    count += 1
    print(f"{'ok' if ok else 'not ok'} {count} - {name}", flush=True)
    if not ok:
        failed += 1
        for line in str(detail).splitlines()[:20]:
            print("#   " + line)
    return ok


def equal(got, want, name):
    return check(got == want, name, f"got  {got!r}\nwant {want!r}")


def contains(text, part, name):
    return check(part in (text or ""), name, f"no {part!r} in {text!r}")


def diag(text):
    print("# " + text, flush=True)


def main(tests, *args):
    """Runs the functions; the exit status. `-k WORD` picks some."""
    word = sys.argv[sys.argv.index("-k") + 1] if "-k" in sys.argv else ""
    for t in tests:
        if word not in t.__name__:
            continue
        try:
            t(*args)
        except Exception:  # one broken test does not hide the others
            check(False, t.__name__ + " ends without an exception",
                  traceback.format_exc())
    print(f"1..{count}")
    return 1 if failed else 0
