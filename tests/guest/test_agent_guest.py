#!/usr/bin/python3
"""thaw-agent as PID 1 of real guests on the vmm room alone (TAP).

Usage: test_agent_guest.py [BIN_DIR [NAME...]]     (or by tests/guest/run.sh)

One guest with Debian's stock kernel and a small disk is booted, talked to,
frozen and saved; two clones are loaded from the one saved state.
"""
# timeout: 600
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import agent_client as ac
from agent_client import Agent, AgentError, LogReader

BOOT_SECONDS = 400

APP = r"""#!/bin/sh
echo "app: $(id -u) $(id -G) $(pwd) $MODE"
echo "begun" > /srv/file
trap 'echo terminated; exit 42' TERM
n=0
while :; do
	n=$((n+1))
	echo "R $n $(dd if=/dev/urandom bs=16 count=1 2>/dev/null | od -An -tx1 | tr -d ' ') $(date +%s)"
	echo $n > /srv/count
	sleep 0.1
done
"""


def run(*args):
    subprocess.run(args, check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.PIPE)


def make_disk(work):
    root = work + "/root"
    for d in ("bin", "etc", "srv", "www", "var/lib/dbus", "tmp"):
        os.makedirs(f"{root}/{d}")
    shutil.copy("/bin/busybox", root + "/bin/busybox")
    for name in subprocess.check_output([root + "/bin/busybox", "--list"],
                                        text=True).split():
        if name != "busybox":
            os.symlink("busybox", f"{root}/bin/{name}")
    files = {
        "etc/passwd": "root:x:0:0::/root:/bin/sh\nweb:x:500:501::/srv:/bin/sh\n",
        "etc/group": "root:x:0:\nweb:x:501:\nextra:x:502:web\n",
        "etc/machine-id": "0" * 32 + "\n",
        "var/lib/dbus/machine-id": "0" * 32 + "\n",
        "www/index.html": "hello from the guest\n",
        "srv/app.sh": APP,
    }
    for path, text in files.items():
        with open(f"{root}/{path}", "w") as f:
            f.write(text)
    os.chmod(root + "/srv/app.sh", 0o755)
    os.chown(root + "/srv", 500, 501)
    with open(work + "/disk", "wb") as f:
        f.truncate(64 << 20)
    run("/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-d", root, work + "/disk")
    shutil.rmtree(root)


class Box:
    def __init__(self, t, name, *args):
        self.path = f"{t.work}/{name}.sock"
        self.log = f"{t.work}/{name}.log"
        with open(self.log, "wb") as log:
            self.proc = subprocess.Popen(
                [t.bin + "/vsock-box", "--vsock", self.path, *args],
                stdin=subprocess.PIPE, stdout=log, stderr=log)
        self.agent = Agent(self.connect)
        t.boxes.append(self)

    def connect(self):
        s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        s.settimeout(ac.TIMEOUT)
        s.connect(self.path)
        return s

    def wait_agent(self, seconds):
        end = time.monotonic() + seconds
        while True:
            assert self.proc.poll() is None, f"the guest ended: {self.text()}"
            try:
                return self.agent.probe()
            except (OSError, EOFError):
                assert time.monotonic() < end, f"no agent: {self.text()}"
                time.sleep(0.3)

    def text(self):
        with open(self.log, errors="replace") as f:
            return f.read()

    def sh(self, script, **kw):
        rc, out, err = self.agent.run(["sh", "-c", script], **kw)
        assert rc == 0, (rc, out, err)
        return out.decode()

    def save(self, folder):
        self.proc.stdin.write(f"save {folder}\n".encode())
        self.proc.stdin.flush()
        end = time.monotonic() + 300
        while "\nsaved\n" not in "\n" + self.text():
            assert time.monotonic() < end and self.proc.poll() is None, self.text()
            time.sleep(0.05)

    def end(self):
        if self.proc.poll() is None:
            self.proc.kill()
        self.proc.wait()


TESTS = []


def eventually(what):
    end = time.monotonic() + 300
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def test(fn):
    TESTS.append(fn)
    return fn


@test
def boots_with_its_disk_as_the_root(t):
    t.box = Box(t, "source", "--kernel", t.kernel, "--initrd", t.initrd, "--disk",
                t.work + "/disk", "--cmdline", "console=ttyS0 quiet")
    t.box.wait_agent(BOOT_SECONDS)
    mounts = dict(line.split()[1:3] for line in
                  t.box.sh("cat /proc/mounts").splitlines())
    want = {"/": "ext4", "/proc": "proc", "/sys": "sysfs", "/dev": "devtmpfs",
            "/dev/pts": "devpts", "/dev/shm": "tmpfs", "/run": "tmpfs",
            "/sys/fs/cgroup": "cgroup2"}
    assert {k: mounts.get(k) for k in want} == want, mounts
    assert "/tmp" not in mounts
    assert "the root is /dev/vda" in t.box.text()


@test
def is_pid_1_and_reaps(t):
    assert t.box.sh("cat /proc/1/comm") == "init\n"
    t.box.sh("for i in 1 2 3 4 5 6 7 8; do (sleep 0.2 &) ; done")
    eventually(lambda: t.box.sh("cat /proc/[0-9]*/stat 2>/dev/null | "
                                "grep -cE 'sleep|\\) Z ' || true") == "0\n")


@test
def sane_defaults(t):
    out = t.box.sh("echo $PATH $HOME; umask; ulimit -n; hostname; cat /etc/hosts; "
                   "ls -l /dev/fd /dev/stdout; cat /proc/self/oom_score_adj")
    for want in ("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /root\n",
                 "0022\n65536\nthaw\n", "127.0.0.1\tlocalhost\n",
                 "/dev/fd -> /proc/self/fd", "\n0\n"):
        assert want in out, out


@test
def start_and_log(t):
    t.box.agent.start(["/srv/app.sh"], env=["MODE=real"], user="web", cwd="/srv",
                      hostname="source")
    log = LogReader(t.box.agent)
    log.until(1, b"R 3 ")
    assert b"app: 500 501 502 /srv real\n" in log.got[1], log.got
    log.close()
    assert t.box.sh("hostname") == "source\n"
    cg = t.box.sh("cat /proc/self/cgroup")
    assert cg == "0::/app\n", cg
    p = t.box.agent.probe()
    assert p["running"] == 1 and p["cpu_us"] > 0, p


@test
def exec_and_tty(t):
    rc, out, err = t.box.agent.run(
        ["sh", "-c", "cat; echo e >&2; exit 3"], stdin=b"x" * 1000000, user="root")
    assert (rc, len(out), err) == (3, 1000000, b"e\n"), (rc, len(out), err)
    with t.box.agent.open(ac.EXEC, ac.exec_spec(
            ["sh", "-c", "stty size; tty; exit 4"], pty=True, rows=7, cols=99)) as s:
        text = b""
        while (got := s.recv())[0] == ac.STDOUT:
            text += got[1]
    assert text == b"7 99\r\n/dev/pts/0\r\n", text
    assert got == (ac.EXIT, b"\4\0\0\0"), got


def get(agent, port):
    s = agent.forward(port)
    s.sendall(b"GET / HTTP/1.0\r\n\r\n")
    text = b""
    while part := s.recv(65536):
        text += part
    s.close()
    return text


@test
def forwards_over_lo(t):
    t.box.sh("httpd -p 127.0.0.1:8080 -h /www", user="root")
    eventually(lambda: t.box.agent.probe(8080)["listening"])
    assert get(t.box.agent, 8080).endswith(b"hello from the guest\n")
    assert t.box.agent.probe(8081)["listening"] == 0
    try:
        t.box.agent.forward(8081)
        raise AssertionError("a forward to nobody")
    except AgentError as e:
        assert e.code == 111, e


def count(box):
    # The application truncates it before it writes.
    while not (text := box.sh("cat /srv/count", user="root")):
        pass
    return int(text)


@test
def failed_capture_goes_on(t):
    before = count(t.box)
    t.box.agent.freeze(sync=True)
    t.box.agent.unfreeze()
    eventually(lambda: count(t.box) >= before + 3)


def marked_pages(path, mark):
    """How many pages of a file begin with the mark."""
    n = 0
    with open(path, "rb") as f:
        while part := f.read(1 << 20):
            n += sum(part.startswith(mark, at) for at in range(0, len(part), 4096))
    return n


@test
def freed_memory_is_not_captured(t):
    mark, pages = b"gone-00000000000", 4096

    def cached():
        return int(re.search(r"\nCached: +(\d+)", t.box.sh("cat /proc/meminfo"))[1])

    size = t.box.sh("cd /dev/shm; yes gone-00000000000 | head -c 4352 | tr -d '\\n' "
                    ">a; for i in 1 2 3 4 5 6 7 8 9 10 11 12; do "
                    "cat a a >b; mv b a; done; wc -c <a; rm a", user="root")
    assert int(size) == pages * 4096, size
    t.box.agent.freeze()
    t.box.save(t.work + "/spilled")
    t.box.agent.unfreeze()
    left = marked_pages(t.work + "/spilled/mem", mark)
    assert left > pages // 2, f"only {left} pages: this test sees nothing"
    shutil.rmtree(t.work + "/spilled")
    t.box.sh("cat /bin/busybox /www/index.html >/dev/null")
    min_free = t.box.sh("cat /proc/sys/vm/min_free_kbytes")
    kept = cached()
    t.box.agent.freeze(compact=True)
    t.box.save(t.work + "/compact")
    t.box.agent.unfreeze()
    left = marked_pages(t.work + "/compact/mem", mark)
    shutil.rmtree(t.work + "/compact")
    print(f"# {left} of {pages} freed pages are left in a compacted guest")
    assert left < pages // 20, f"{left} of {pages} freed pages were captured"
    assert t.box.sh("cat /proc/sys/vm/min_free_kbytes") == min_free
    assert cached() > kept * 0.9, (cached(), kept)


@test
def frozen_and_saved(t):
    # With lines that nobody read, and a file that no disk has seen yet.
    t.box.sh("echo fresh > /srv/late", user="root")
    # A thaw here makes the generator's key a fresh one: by itself the kernel
    # renews it when it is a minute old (less, soon after boot), which would hide
    # a thaw that does not.
    t.box.agent.thaw(machine_id=b"\0" * 16)
    t.box.agent.freeze(sync=False)
    t.box.save(t.work + "/snap")
    shutil.copyfile(t.work + "/disk", t.work + "/disk.a")
    shutil.copyfile(t.work + "/disk", t.work + "/disk.b")
    t.box.agent.unfreeze()
    assert t.box.sh("cat /srv/late") == "fresh\n"


def drawn(log):
    return {m[1]: (int(m[0]), int(m[2])) for m in re.findall(
        r"R (\d+) ([0-9a-f]{32}) (\d+)\n", log.got[1].decode())}


@test
def two_clones_draw_different_numbers(t):
    t.clones, t.before, t.facts = [], {}, []
    for name in "ab":
        box = Box(t, "clone-" + name, "--load", t.work + "/snap", "--disk",
                  t.work + "/disk." + name)
        box.wait_agent(BOOT_SECONDS)  # it listens as before the capture
        t.clones.append(box)
    logs = []
    for i, box in enumerate(t.clones):
        # What the application said between the last reader and the freeze is
        # in both; it is read first, while it is still frozen.
        log = LogReader(box.agent)
        log.s.sock.settimeout(15)
        try:
            while True:
                log.step()
        except TimeoutError:
            pass
        t.before[i] = drawn(log)
        log.got[1] = b""
        log.close()
    assert t.before[0] == t.before[1] and t.before[0], "not one snapshot?"
    first = []
    for i, box in enumerate(t.clones):
        box.agent.thaw(machine_id=bytes([i + 1]) * 16, hostname=f"clone-{i}")
        first.append(box.sh("dd if=/dev/urandom bs=4096 count=1 2>/dev/null | "
                            "od -An -v -tx1 | tr -d ' \\n'"))
    blocks = [{f[i:i + 32] for i in range(0, len(f), 32)} for f in first]
    assert len(blocks[0]) == len(blocks[1]) == 256
    assert not blocks[0] & blocks[1], "equal blocks in two clones"
    for box in t.clones:
        log = LogReader(box.agent)
        while len(drawn(log)) < 8:
            log.step()
        logs.append(log)
    a, b = drawn(logs[0]), drawn(logs[1])
    last = max(n for n, _ in t.before[0].values())
    for d in (a, b):
        assert min(n for n, _ in d.values()) == last + 1, "a line is missing"
    # The first one may have been drawn before the freeze, and written after.
    a, b = ({x for x in d if d[x][0] > last + 1} for d in (a, b))
    assert len(a) >= 7 and len(b) >= 7 and not a & b, "equal random bytes"
    t.facts.append(f"{len(a)} and {len(b)} draws after the thaw, none equal")
    for log in logs:
        log.close()


@test
def clones_have_their_own_identity(t):
    seen = []
    for i, box in enumerate(t.clones):
        out = box.sh("cat /etc/machine-id /var/lib/dbus/machine-id; hostname; "
                     "cat /proc/sys/kernel/random/boot_id").split()
        assert out[:3] == [f"{i + 1:02x}" * 16] * 2 + [f"clone-{i}"], out
        assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-"
                            r"[89ab][0-9a-f]{3}-[0-9a-f]{12}", out[3]), out
        seen.append(out[3])
    source = t.box.sh("cat /proc/sys/kernel/random/boot_id").strip()
    assert len({source, *seen}) == 3, (source, seen)


@test
def clones_have_the_right_time(t):
    for box in t.clones:
        was = time.time()
        got = int(box.sh("date +%s"))
        assert was - 2 <= got <= time.time() + 2, (was, got)


@test
def clones_are_independent_and_whole(t):
    assert [b.sh("cat /srv/late /srv/file") for b in t.clones] == ["fresh\nbegun\n"] * 2
    t.clones[0].sh("echo a > /srv/mine", user="root")
    assert t.clones[1].sh("ls /srv/mine 2>&1 || true").startswith("ls:")
    for box in t.clones:
        before = count(box)
        eventually(lambda: count(box) > before)
        assert get(box.agent, 8080).endswith(b"hello from the guest\n")


@test
def powers_off_with_a_clean_disk(t):
    for box in (t.box, t.clones[0]):
        box.agent.poweroff(60000)
        assert box.proc.wait(timeout=300) == 0, box.text()
        assert "ended with exit code 42" in box.text(), box.text()
    for disk in ("disk", "disk.a"):
        run("/sbin/e2fsck", "-fn", f"{t.work}/{disk}")


@test
def without_a_disk_says_so(t):
    box = Box(t, "diskless", "--kernel", t.kernel, "--initrd", t.initrd,
              "--cmdline", "console=ttyS0 quiet")
    box.wait_agent(BOOT_SECONDS)
    try:
        box.agent.start(["/srv/app.sh"])
        raise AssertionError("it started")
    except AgentError as e:
        assert e.code == 2 and "there is no disk /dev/vda" in e.text, e
    assert "there is no disk /dev/vda" in box.text()


class Stage:
    def __init__(self):
        self.boxes = []
        self.bin = os.path.abspath(sys.argv[1] if len(sys.argv) > 1
                                   else os.environ["THAW_BIN"])
        self.work = os.environ.get("THAW_WORK") or tempfile.mkdtemp()
        cache = os.environ.get("THAW_CACHE", os.path.expanduser("~/.cache/thaw"))
        self.kernel = os.environ.get("THAW_KERNEL", cache + "/guest-kernel/vmlinux")
        self.initrd = self.work + "/initramfs"
        scripts = os.path.join(os.path.dirname(os.path.abspath(__file__)),
                               "../../scripts/guest-initramfs")
        if "THAW_INITRD" in os.environ:
            self.initrd = os.environ["THAW_INITRD"]
        else:
            run(scripts, "--agent", self.bin + "/thaw-agent", "--kernel-dir",
                os.path.dirname(self.kernel), "--out", self.initrd)
        make_disk(self.work)


def main():
    t = Stage()
    failed = 0
    print(f"1..{len(TESTS)}")
    try:
        for i, fn in enumerate(TESTS, 1):
            if sys.argv[2:] and fn.__name__ not in sys.argv[2:]:
                continue
            began = time.monotonic()
            try:
                fn(t)
                print(f"ok {i} - agent in a guest: {fn.__name__} "
                      f"# {time.monotonic() - began:.2f} s", flush=True)
            except Exception:
                failed += 1
                print(f"not ok {i} - agent in a guest: {fn.__name__}")
                for line in traceback.format_exc().splitlines():
                    print("#", line, flush=True)
    finally:
        for box in t.boxes:
            box.end()
            if failed:
                for line in [x for x in box.text().splitlines()
                             if "(yet)" not in x][-30:]:
                    print(f"# {os.path.basename(box.log)}: {line}")
    for fact in getattr(t, "facts", []):
        print("#", fact)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
