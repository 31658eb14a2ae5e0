"""What the tests of the whole lifecycle with real Linux guests share: an image
of a Debian with tests/guest/pattern_app.py, and short hands for its clones.

From tests/guest/run.sh: THAW_BIN, THAW_KERNEL, THAW_INITRD, THAW_ROOTFS,
THAW_WORK.
"""
import http.client
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "engine"))
import thawd_rig as rig  # noqa: E402

BIN = os.environ["THAW_BIN"]
WORK = os.environ["THAW_WORK"]
PORT = 9090
MEMORY = 192 << 20  # of a guest: what takes time in a build grows with it


def rootfs_with(app, name="app.py"):
    """A copy of the root file system with the application in /opt."""
    out = os.path.join(WORK, "rootfs.tar")
    shutil.copyfile(os.environ["THAW_ROOTFS"], out)
    with tarfile.open(out, "a") as tar:
        info = tarfile.TarInfo("./opt/" + name)
        info.size = len(app)
        info.mode = 0o644
        tar.addfile(info, io.BytesIO(app))
    return out


def pattern_app():
    with open(os.path.join(HERE, "pattern_app.py"), "rb") as f:
        return f.read()


class Site:
    """A thawd with an image, driven by the command line."""

    def __init__(self, *flags):
        self.thawd = rig.Thawd(
            os.path.join(BIN, "thawd"), "--kernel", os.environ["THAW_KERNEL"],
            "--initrd", os.environ["THAW_INITRD"], *flags)
        # On the work folder, not /tmp: enough room, and removed with it.
        shutil.rmtree(self.thawd.dir)
        self.thawd.dir = os.path.join(WORK, "thawd")
        os.mkdir(self.thawd.dir)
        self.thawd.state = os.path.join(self.thawd.dir, "state")
        self.thawd.sock = os.path.join(self.thawd.dir, "s")
        self.thawd.log_path = os.path.join(self.thawd.dir, "log")
        self.forwards = {}

    def start(self):
        self.thawd.start()
        return self

    def thaw(self, *args, ok=True, stdin=None, timeout=600):
        """Runs the command line; its completed process."""
        r = subprocess.run(
            [os.path.join(BIN, "thaw"), "--socket", self.thawd.sock, *args],
            input=stdin, stdin=None if stdin is not None else
            subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            timeout=timeout)
        if ok and r.returncode:
            raise RuntimeError(f"thaw {' '.join(args)}: {r.returncode}\n" +
                               r.stderr.decode(errors="replace")[-2000:])
        return r

    def out(self, *args, **kw):
        return self.thaw(*args, **kw).stdout.decode(errors="replace").strip()

    def build(self, name, rootfs, *options, memory=f"{MEMORY >> 20}M"):
        return self.thaw("build", name, "--rootfs", rootfs, "--port", str(PORT),
                         "--memory", memory, *options, "--", "/usr/bin/python3",
                         "/opt/app.py", timeout=900)

    def on_terminal(self, *args):
        """The command line on a terminal of its own: what it showed."""
        ours, theirs = os.openpty()
        p = subprocess.Popen(
            [os.path.join(BIN, "thaw"), "--socket", self.thawd.sock, *args],
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
        os.close(theirs)
        shown = b""
        try:
            while True:
                b = os.read(ours, 4096)
                if not b:
                    break
                shown += b
        except OSError:  # EIO: the other side is closed
            pass
        os.close(ours)
        p.wait(rig.PATIENCE)
        return shown.decode(errors="replace")

    def run(self, image, *options):
        return self.out("run", image, "--wait", *options)

    def sh(self, vm, script, **kw):
        """A shell script in the guest; its standard output."""
        return self.out("exec", vm, "/bin/sh", "-c", script, **kw)

    def inspect(self, vm):
        j = json.loads(self.out("inspect", "--json", vm))
        return j[0] if isinstance(j, list) else j

    def state(self, vm):
        return self.inspect(vm)["state"]

    def pid(self, vm):
        return self.inspect(vm)["thaw"]["pid"]

    def get(self, vm, path, timeout=rig.PATIENCE):
        """GET of the application in the guest, over `thaw forward`."""
        c = http.client.HTTPConnection("127.0.0.1", self.forward(vm),
                                       timeout=timeout)
        try:
            c.request("GET", path)
            r = c.getresponse()
            body = r.read().decode(errors="replace")
            if r.status != 200:
                raise RuntimeError(f"GET {path}: {r.status} {body[:300]}")
            return body
        except http.client.HTTPException as e:
            raise RuntimeError(f"GET {path}: {e!r}; its log ends: " +
                               self.out("logs", vm)[-2000:]) from e
        finally:
            c.close()

    def forward(self, vm):
        """The local port that leads to the application."""
        if vm not in self.forwards:
            p = subprocess.Popen(
                [os.path.join(BIN, "thaw"), "--socket", self.thawd.sock,
                 "forward", vm, f"0:{PORT}"], stdout=subprocess.PIPE,
                stdin=subprocess.DEVNULL)
            line = p.stdout.readline().decode()
            # "127.0.0.1:PORT -> ID:GUEST"
            self.forwards[vm] = (p, int(line.split(" ")[0].rsplit(":")[1]))
        return self.forwards[vm][1]

    def wait_state(self, vm, state):
        rig.until(lambda: self.state(vm) == state)
        return self.state(vm)

    def clock_is_right(self, vm, name):
        """However long it takes to ask the guest for its time."""
        was = time.time()
        got = int(self.sh(vm, "date +%s"))
        rig.check(was - 3 <= got <= time.time() + 3, name,
                  f"{got}, asked from {was} to {time.time()}")

    def tell(self):
        """At a red end: what thawd had to say."""
        if rig.failed:
            for line in self.thawd.log().splitlines()[-40:]:
                rig.diag("thawd: " + line)
            if self.thawd.proc and self.thawd.proc.poll() is not None:
                rig.diag(f"thawd ended: {self.thawd.proc.returncode}")

    def close(self):
        self.tell()
        for p, _ in self.forwards.values():
            p.kill()
            p.wait()
        self.thawd.remove()


def gone(pid):
    """True once the process is gone."""
    def dead():
        try:
            with open(f"/proc/{pid}/stat") as f:
                return f.read().rsplit(")", 1)[1].split()[0] == "Z"
        except OSError:
            return True
    return rig.until(dead)


def smaps_kib(pid, field="Pss:", skip=()):
    """PSS of a process, or another field's sum, but for mappings whose name has a
    word of `skip`."""
    total = use = 0
    with open(f"/proc/{pid}/smaps") as f:
        for line in f:
            word = line.split()[0]
            if not word.endswith(":"):
                use = not any(s in line for s in skip)
            elif word == field and use:
                total += int(line.split()[1])
    return total


def guest_kib(pid, bytes_, field="Pss:"):
    """The same of the guest's memory: the mappings inside its slot."""
    spans = []
    with open(f"/proc/{pid}/smaps") as f:
        for line in f:
            word = line.split()[0]
            if not word.endswith(":"):
                lo, hi = (int(x, 16) for x in word.split("-"))
                spans.append([lo, hi, 0])
            elif word == field:
                spans[-1][2] = int(line.split()[1])
    # The slot is the one run of adjoining mappings of that length.
    best = 0
    for i in range(len(spans)):
        end, sum_ = spans[i][1], spans[i][2]
        j = i + 1
        while end - spans[i][0] < bytes_ and j < len(spans) and \
                spans[j][0] == end:
            end, sum_ = spans[j][1], sum_ + spans[j][2]
            j += 1
        if end - spans[i][0] == bytes_:
            best = max(best, sum_)
    return best
