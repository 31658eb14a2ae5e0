#!/usr/bin/python3
"""How thaw-mkdisk and thaw-mkroot contain what they unpack, seen from outside
while it happens; both alike. TAP on stdout; needs root.

usage: test_contain.py FOLDER-OF-THE-PROGRAMS
"""
import ctypes
import fcntl
import os
import re
import signal
import subprocess
import sys
import tempfile

import thawd_rig as rig
from thawd_rig import PATIENCE, check, remove_tree, until

BIN = os.path.abspath(sys.argv[1])
TOP = tempfile.mkdtemp(prefix="thaw-contain-test-")
os.chmod(TOP, 0o755)
PAGE = os.sysconf("SC_PAGE_SIZE")
PEER = 65534
with open(f"{BIN}/thaw-mkdisk", "rb") as f:
    SANITIZED = b"__asan_init" in f.read()  # takes any address
WRITE = "1 0x1 "  # the system call write(1, ...), as /proc has it
KINDS = ("pid", "mnt", "ipc", "uts", "net")
# Where they differ on purpose: what each says before the unpacking says something,
# its tree, the options of /work, PID 1's capabilities and no_new_privs (what builds
# may have set-id programs).
PROGRAMS = {
    "thaw-mkdisk": ("", "/work/root", {"nosuid", "nodev", "noexec"},
                    "000000008004011f", "1"),
    "thaw-mkroot": ("stage fetch\nstage unpack\n", "/work/context",
                    {"nosuid", "nodev"}, "00000000882405ff", "0"),
}


def read(pid, name):
    try:
        with open(f"/proc/{pid}/{name}") as f:
            return f.read()
    except OSError:
        return ""


def stat(pid):
    return read(pid, "stat").rpartition(")")[2].split()


def alive(pid):
    return (stat(pid) or "X")[0] not in "ZX"


def children(pid):
    return [int(d) for d in os.listdir("/proc")
            if d.isdigit() and stat(d)[1:2] == [str(pid)] and alive(d)]


def below(pid):
    return [p for c in children(pid) for p in (c, *below(c))]


def status(pid, field):
    m = re.search(rf"^{field}:\s*(.*)$", read(pid, "status"), re.M)
    return m and m.group(1)


def namespace(pid, kind):
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def own_pid(pid):
    """Its number in its own namespace."""
    return (status(pid, "NSpid") or "?").split()[-1]


def limit(pid, name):
    """Soft and hard."""
    m = re.search(rf"^Max {name}\s+(\w+) +(\w+)", read(pid, "limits"), re.M)
    return m and m.groups()


def mounts(pid):
    """The options of what is mounted, by place."""
    return {f[4]: set(f[5].split(","))
            for f in map(str.split, read(pid, "mountinfo").splitlines())}


# thawd's part: starts the program, which finds a descriptor and core files on, and
# lives until it is killed.
THAWD = """
import os, resource, subprocess, sys
resource.setrlimit(resource.RLIMIT_CORE, (4096, 4096))
subprocess.Popen(sys.argv[2:] + [str(os.getpid())], stdout=int(sys.argv[1]),
                 stdin=subprocess.DEVNULL, close_fds=False)
sys.stdin.read()
"""


class Run:
    """A program that stands still where the unpacking first says something: its
    output is a pipe with no room for that."""

    def __init__(self, program, *source):
        said = PROGRAMS[program][0]
        self.work = tempfile.mkdtemp(dir=TOP, prefix="work-")
        self.out, w = os.pipe()
        fcntl.fcntl(w, fcntl.F_SETPIPE_SZ, PAGE)
        os.write(w, b"." * (PAGE - len(said)))
        self.thawd = subprocess.Popen(
            [sys.executable, "-c", THAWD, str(w), f"{BIN}/{program}", *source,
             "--work", self.work, "--uid", str(PEER), "--gid", str(PEER),
             "--parent"], stdin=subprocess.PIPE, pass_fds=[w])
        os.close(w)
        self.outer = until(lambda: children(self.thawd.pid))[0]

    def unpacking(self):
        def stands():
            return [p for p in below(self.outer)
                    if own_pid(p) not in ("1", str(p)) and
                    read(p, "syscall").startswith(WRITE)]
        self.child = until(stands)[0]
        self.first = int(stat(self.child)[1])
        self.tar = next(p for p in children(self.outer) if p != self.first)
        self.all = (self.outer, self.first, self.tar, self.child)
        return self

    def kill(self, pid):
        """What is left when `pid` is killed."""
        pids = [self.outer, *below(self.outer)]
        os.kill(pid, signal.SIGKILL)
        until(lambda: not any(map(alive, pids)))
        left = [(p, read(p, "cmdline")) for p in pids if alive(p)]
        for p in pids:  # for the other tests' sake
            if alive(p):
                os.kill(p, signal.SIGKILL)
        self.thawd.kill()
        self.thawd.wait()
        self.thawd.stdin.close()
        os.close(self.out)
        until(lambda: not any(map(alive, pids)))
        self.removed = remove_tree(self.work)
        return left


def source():
    path = os.path.join(TOP, "source")
    os.mkdir(path)
    for i in range(100):  # more than the pipe from tar holds
        with open(f"{path}/f{i}", "wb") as f:
            f.write(bytes([i]) * 40000)
    with open(f"{path}/Dockerfile", "w") as f:
        f.write("FROM scratch\n")
    return path


def walls(program, path):
    _, tree, work, caps, nnp = PROGRAMS[program]
    r = Run(program, "--source", path).unpacking()
    for kind in KINDS:
        mine = namespace("self", kind)
        check(mine not in (namespace(r.first, kind), namespace(r.child, kind)),
              f"{program}: has a {kind} namespace of its own")
    check(own_pid(r.first) == "1", f"{program}: ends with its PID 1",
          own_pid(r.first))
    got = {f: status(r.child, f) for f in ("CapInh", "CapPrm", "CapEff",
                                           "CapBnd", "CapAmb")}
    five = "000000008000001b"
    check(got == {"CapInh": "0" * 16, "CapPrm": five, "CapEff": five,
                  "CapBnd": five, "CapAmb": "0" * 16},
          f"{program}: unpacks with five capabilities, and a way to no other",
          got)
    check(status(r.child, "NoNewPrivs") == "1",
          f"{program}: what unpacks can gain no rights")
    got = [status(r.first, f) for f in ("CapEff", "CapBnd", "NoNewPrivs")]
    check(got == [caps, caps, nnp], f"{program}: PID 1 has only what it needs",
          got)
    check(os.readlink(f"/proc/{r.child}/root") == tree,
          f"{program}: what unpacks is in the tree that it makes",
          os.readlink(f"/proc/{r.child}/root"))
    m = mounts(r.first)
    check({"ro", "nosuid", "nodev"} <= m["/"] & m["/usr"],
          f"{program}: its root and the programs are read-only", m)
    check(m["/work"] & {"nosuid", "nodev", "noexec"} == work and
          "noexec" in m.get("/work/context", m["/work"]),
          f"{program}: nothing of the archive can be started", m)
    adj = {p: read(p, "oom_score_adj").strip() for p in r.all}
    check(set(adj.values()) == {"800"},
          f"{program}: goes before a microVM where memory is short", adj)
    core = [limit(p, "core file size") for p in r.all]
    check(core == 4 * [("0", "0")], f"{program}: leaves no core files", core)
    check(limit(r.child, "file size")[1].isdigit() and
          (SANITIZED or limit(r.child, "address space") == 2 * (str(1 << 30),)),
          f"{program}: what unpacks has its limits", read(r.child, "limits"))
    pipe = f"pipe:[{os.fstat(r.out).st_ino}]"
    fds = [fd for p in r.all for fd in os.listdir(f"/proc/{p}/fd")
           if os.readlink(f"/proc/{p}/fd/{fd}") == pipe]
    check(fds == 3 * ["1"], f"{program}: has nothing of thawd's open", fds)
    left = r.kill(r.outer)
    check(not left, f"{program}: all of it dies with it", left)
    check(r.removed,
          f"{program}: nothing is left mounted in the work directory")


def death(program, path):
    r = Run(program, "--source", path).unpacking()
    check(status(r.tar, "Uid").split() == [str(PEER)] * 4,
          f"{program}: tar reads as the peer", status(r.tar, "Uid"))
    left = r.kill(r.thawd.pid)
    check(not left, f"{program}: all of it dies with thawd", left)


def opening(program, path):
    """The source's opening waits, as on a file system of the peer's it may."""
    libc = ctypes.CDLL(None)
    asked = libc.fanotify_init(4 | 2, os.O_RDONLY)  # FAN_CLASS_CONTENT, NONBLOCK
    if asked < 0 or libc.fanotify_mark(  # FAN_MARK_ADD, FAN_OPEN_PERM
            asked, 1, ctypes.c_uint64(0x10000), -100, path.encode()):
        print("# no fanotify here: an opening that waits is not tested")
        return
    r = Run(program, "--source", path)

    def asks():
        try:
            return os.read(asked, 24)
        except BlockingIOError:
            return b""
    os.close(int.from_bytes(until(asks)[16:20], "little"))
    check(status(r.outer, "Uid").split() == ["0", str(PEER), "0", str(PEER)],
          f"{program}: opens the source as the peer", status(r.outer, "Uid"))
    left = r.kill(r.thawd.pid)
    os.close(asked)
    check(not left, f"{program}: dies with thawd while it opens", left)


def gives_up(program, path):
    work = tempfile.mkdtemp(dir=TOP)
    p = subprocess.run([f"{BIN}/{program}", "--source", path, "--work", work,
                        "--max-entries", "10"], capture_output=True, text=True,
                       timeout=PATIENCE)
    check(p.returncode == 1 and "more than 10 files" in p.stdout,
          f"{program}: a tar with more to say does not hold up its end",
          p.stdout + p.stderr)


def fetch():
    """There the source's opening has not come."""
    path = os.path.join(TOP, "fetch")
    with open(path, "w") as f:
        f.write("#!/bin/sh\nexec sleep 1000\n")
    os.chmod(path, 0o755)
    r = Run("thaw-mkroot", "--url", "s3://x/y", "--fetch", path)
    until(lambda: any(read(p, "comm") == "sleep\n" for p in below(r.outer)))
    left = r.kill(r.thawd.pid)
    check(not left, "thaw-mkroot: it and what fetches die with thawd", left)


if os.geteuid() != 0:
    print("1..0 # SKIP needs root")
    sys.exit(77)
try:
    where = source()
    for each in PROGRAMS:
        walls(each, where)
        death(each, where)
        opening(each, where + "/Dockerfile")
        gives_up(each, where)
    fetch()
finally:
    remove_tree(TOP)
print(f"1..{rig.count}")
print(f"# {rig.count - rig.failed} passed, {rig.failed} failed")
sys.exit(1 if rig.failed else 0)
