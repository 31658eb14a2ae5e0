"""A live thawd for the conformance tests, with the clients that talk to it: over
TCP with signed requests, and over its Unix socket."""
import os
import shutil
import sys
import tempfile
import zipfile

import clients
from clients import Boto, Js, Relay

import thawd_rig as rig

ROLE = "arn:aws:iam::123456789012:role/thaw"
BASE = clients.ARN + "aws:microvm-image:al2023-1"
KERNEL = "/proc/self/exe"  # any file: the fake does not boot it
GUEST = ["--kernel", KERNEL, "--initrd", KERNEL]


class Live:
    """thawd with --listen. `tcp` are both clients over TCP, `unix` both over the
    socket."""

    def __init__(self, binary, *flags, libexec=None):
        self.port = rig.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.thawd = rig.Thawd(binary, "--listen", f"127.0.0.1:{self.port}",
                               *GUEST, *flags, libexec=libexec)
        self.open = []
        self.files = Files()
        self.relay = None

    def start(self):
        self.thawd.start()
        self.key = clients.key_of(os.path.join(self.thawd.state, "keys"))
        return self

    def begin(self):
        """What a test file does once thawd runs."""

    def kept(self, client):
        self.open.append(client)
        return client

    def boto(self, **kw):
        kw.setdefault("key", self.key)
        return self.kept(Boto(self.url, **kw))

    def js(self, **kw):
        kw.setdefault("key", self.key)
        return self.kept(Js(self.url, **kw))

    def tcp(self, **kw):
        return [self.boto(**kw), self.js(**kw)]

    def unix(self):
        if not self.relay:
            self.relay = Relay(self.thawd.sock)
        return [self.kept(Boto(self.relay.url)),
                self.kept(Js("http://thaw", socket_path=self.thawd.sock))]

    def close(self):
        if self.relay:  # first, for it holds copies of the others' pipes
            self.relay.close()
        for c in self.open:
            c.close()
        if rig.failed:
            for line in self.thawd.log().splitlines()[-20:]:
                rig.diag("thawd: " + line)
        self.files.close()
        self.thawd.remove()


def image_arn(name):
    return f"{clients.ARN}000000000000:microvm-image:{name}"


def good(r, op, name):
    """The answer is a good one of this operation; it."""
    wrong = clients.wrong_answer(op, r)
    rig.check(not wrong, f"{name}: {op}", "\n".join(wrong + [repr(r)]))
    return r


def refused(r, status, code, part, name):
    """The client throws this error, as its own type, with this text."""
    rig.check(r.status == status and r.code == code and r.typed and
              part in r.message, f"{name}: {code}",
              f'got {r!r} typed={r.typed}, want {status} {code} "{part}"')
    return r


class Files:
    """Artifacts that thawd may read for a caller over TCP, who is nobody."""

    def __init__(self):
        # Not under a folder that only root may enter.
        self.top = tempfile.mkdtemp(prefix="thaw-conf-", dir="/var/tmp")
        os.chmod(self.top, 0o755)

    def zip(self, name, files):
        path = os.path.join(self.top, name + ".zip")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
            for k, v in files.items():
                z.writestr(k, v)
        os.chmod(path, 0o644)
        return "file://" + path

    def close(self):
        shutil.rmtree(self.top, ignore_errors=True)


def main(live, tests):
    try:
        live.start()
        live.begin()
        status = rig.main(tests, live)
    finally:
        live.close()
    sys.exit(status)
