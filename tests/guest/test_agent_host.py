#!/usr/bin/python3
"""thaw-agent on this host, over a Unix socket, in name spaces of its own (TAP).

Usage: test_agent_host.py [AGENT] [--clock] [NAME...]

Without AGENT it is thaw-agent of $THAW_BIN. Needs root and a writable cgroup v2.
--clock also tests that a thaw sets the machine's clock: only where the clock is
nobody else's (in kvmbox, where it is on by itself).
"""
import datetime
import hashlib
import http.client
import logging
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import agent_client as ac
from agent_client import Agent, AgentError, LogReader, Stream
from botocore.utils import InstanceMetadataFetcher, InstanceMetadataRegionFetcher

TESTS = []


def test(fn):
    TESTS.append(fn)
    return fn


def eventually(what, seconds=300):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def refused(code, fn, *args, **kw):
    try:
        fn(*args, **kw)
    except AgentError as e:
        assert e.code == code, f"{e}, not {code}"
        return e.text
    raise AssertionError("it was not refused")


# --- the stage ------------------------------------------------------------------

PASSWD = """root:x:0:0:root:/root:/bin/bash
thawtest:x:4242:4243::/tmp:/bin/sh
"""
GROUP = """root:x:0:
thawtest:x:4243:
alpha:x:4301:other,thawtest
beta:x:4302:thawtestnot
gamma:x:4303:thawtest
"""


class Stage:
    def __init__(self, binary, clock, name="a"):
        self.binary, self.clock, self.name = binary, clock, name
        self.dir = tempfile.mkdtemp(prefix="thaw-agent-test.")
        os.chmod(self.dir, 0o755)
        self.path = self.dir + "/sock"
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        if name == "a":
            self.cover_files()
        base = "/sys/fs/cgroup"
        if not os.path.exists(base + "/cgroup.controllers"):
            base += "/unified"
        self.cgroup = f"{base}/thaw-agent-test-{os.getpid()}{name}"
        self.log = open(self.dir + "/stderr", "wb")
        args = [binary, "--listen-unix", self.path, "--cgroup", self.cgroup]
        if name == "a":
            args.append("--imds")
        if not clock:
            args.append("--keep-clock")
        self.proc = subprocess.Popen(args, stderr=self.log)
        self.agent = Agent(self.connect)
        eventually(self.listens)

    def cover_files(self):
        for name, text in (("passwd", PASSWD), ("group", GROUP),
                           ("machine-id", "0" * 32 + "\n")):
            with open(f"{self.dir}/{name}", "w") as f:
                f.write(text)
            if not os.path.exists(f"/etc/{name}"):
                open(f"/etc/{name}", "w").close()
            subprocess.run(["mount", "--bind", f"{self.dir}/{name}",
                            f"/etc/{name}"], check=True)

    def connect(self):
        s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        s.settimeout(ac.TIMEOUT)
        s.connect(self.path)
        return s

    def listens(self):
        # Its socket exists a moment before it listens.
        try:
            self.connect().close()
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    def pids(self):
        with open(self.cgroup + "/cgroup.procs") as f:
            return [int(x) for x in f.read().split()]

    def tell(self, command):
        """Has the application's shell run a command."""
        with open(self.dir + "/fifo", "w") as f:
            f.write(command + "\n")

    def end(self):
        if self.proc.poll() is None:
            self.proc.kill()
            self.proc.wait()
        try:
            with open(self.cgroup + "/cgroup.kill", "w") as f:
                f.write("1")
            eventually(lambda: not self.pids())
            os.rmdir(self.cgroup)
        except OSError as e:
            print("#", e)
        if self.name == "a":
            subprocess.run(["umount", "-l", "/etc/passwd", "/etc/group",
                            "/etc/machine-id"], check=True)
        shutil.rmtree(self.dir)


class Echo:
    """A TCP server that answers what it gets, after the end of its input."""

    def __init__(self, family=socket.AF_INET, at_once=False):
        self.s = socket.socket(family, socket.SOCK_STREAM)
        if family == socket.AF_INET6:
            self.s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self.s.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        self.s.listen(300)
        self.port = self.s.getsockname()[1]
        self.at_once = at_once
        self.ended = 0
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                c, _ = self.s.accept()
            except OSError:
                return
            threading.Thread(target=self.one, args=(c,), daemon=True).start()

    def one(self, c):
        data = b""
        while True:
            part = c.recv(65536)
            if not part:
                break
            if self.at_once:
                c.sendall(part)
            else:
                data += part
        try:
            c.sendall(data)
        except OSError:
            pass
        c.close()
        self.ended += 1

    def close(self):
        self.s.close()


def read_all(sock):
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)


# --- before the application -----------------------------------------------------


@test
def probe_before_start(t):
    p = t.agent.probe()
    assert p["running"] == 0 and p["exit"] == 0xFFFFFFFF, p
    assert p["uptime_ms"] > 0


@test
def hostile_openings_are_refused(t):
    bad = [
        struct.pack("<BBHI", 99, 0, 0, 0),            # unknown type
        struct.pack("<BBHI", ac.PROBE, 1, 0, 2),      # reserved byte
        struct.pack("<BBHI", ac.PROBE, 0, 1, 2),      # reserved word
        struct.pack("<BBHI", ac.PROBE, 0, 0, 3),      # wrong length
        struct.pack("<BBHI", ac.EXEC, 0, 0, 262145),  # too long
        struct.pack("<BBHI", ac.EXEC, 0, 0, 0xFFFFFFFF),
        struct.pack("<BBHI", ac.OK, 0, 0, 0),         # the agent's own
        ac.frame(ac.STDIN, b"x"),                     # no opening
        ac.frame(ac.THAW, b"\0" * 91),                # one byte short
        ac.frame(ac.FREEZE, b"\4\0\0\0"),             # unknown flag
    ]
    for b in bad:
        with Stream(t.connect()) as s:
            s.sock.sendall(b)
            refused(71, s.answer, ac.OK)
            assert s.at_end(), b
    assert t.agent.probe()["running"] == 0


@test
def hostile_specs_are_refused(t):
    good = ac.exec_spec(["true"])
    bad = [
        good[:-1], good + b"\0",
        ac.exec_spec([]), ac.exec_spec([""]), ac.exec_spec(["a\0b"]),
        ac.exec_spec(["true"], env=["NOVALUE"]),
        ac.exec_spec(["true"], env=["=x"]),
        struct.pack("<IHHI", 0, 0, 0, 0xFFFFFFFF),
        struct.pack("<IHHII", 0, 0, 0, 1, 0xFFFFFFFF),
        b"\2\0\0\0" + good[4:],
        ac.exec_spec(["x"] * 5000),
    ]
    for b in bad:
        refused(71, t.agent.ask, ac.EXEC, b, ac.EXIT)


@test
def half_an_opening_disturbs_nobody(t):
    with Stream(t.connect()) as s:
        s.sock.sendall(ac.frame(ac.EXEC, ac.exec_spec(["true"]))[:20])
        assert t.agent.run(["true"])[0] == 0
    assert t.agent.probe()["running"] == 0


@test
def an_application_that_is_not_there(t):
    text = refused(2, t.agent.start, ["/nonexistent/app"])
    assert "/nonexistent/app" in text, text
    refused(2, t.agent.start, ["/bin/true"], cwd="/nonexistent")
    refused(2, t.agent.start, ["/bin/true"], user="nobodysuch")
    refused(13, t.agent.start, ["/etc/passwd"])
    assert t.agent.probe()["exit"] == 0xFFFFFFFF


# --- exec -----------------------------------------------------------------------


@test
def exec_exit_codes(t):
    for code in (0, 3, 255):
        assert t.agent.run(["sh", "-c", f"exit {code}"])[0] == code
    for sig in ("TERM", "KILL", "SEGV"):
        got = t.agent.run(["sh", "-c", f"kill -{sig} $$"])[0]
        assert got == 128 + getattr(signal, "SIG" + sig), got


@test
def exec_keeps_stdout_and_stderr_apart(t):
    rc, out, err = t.agent.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (rc, out, err) == (3, b"out\n", b"err\n")


@test
def exec_that_fails_says_why(t):
    text = refused(2, t.agent.run, ["nosuchprogram"])
    assert "nosuchprogram" in text
    refused(2, t.agent.run, ["true"], cwd="/nonexistent")
    refused(2, t.agent.run, ["true"], user="nobodysuch")
    refused(22, t.agent.run, ["true"], user="root:")


@test
def exec_moves_16_mib_each_way(t):
    data = os.urandom(1 << 20) * 16
    rc, out, _ = t.agent.run(["cat"], stdin=data)
    assert rc == 0 and len(out) == len(data), len(out)
    assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()


@test
def exec_big_output_with_a_slow_reader(t):
    with t.agent.open(ac.EXEC, ac.exec_spec(
            ["sh", "-c", "yes 0123456789 | head -c 16777216"])) as s:
        s.send(ac.STDIN)
        time.sleep(0.5)  # everything fills up
        n, h = 0, hashlib.sha256()
        while True:
            kind, p = s.recv()
            if kind == ac.EXIT:
                break
            if kind == ac.STDOUT:
                n += len(p)
                h.update(p)
    assert n == 16777216, n
    want = (b"0123456789\n" * 1525202)[:n]
    assert h.digest() == hashlib.sha256(want).digest()


@test
def exec_program_that_reads_no_input(t):
    rc, out, _ = t.agent.run(["sh", "-c", "exec <&-; echo no"],
                             stdin=b"x" * 3000000)
    assert (rc, out) == (0, b"no\n")


@test
def exec_ends_though_a_child_holds_its_output(t):
    # Longer than anything here waits.
    rc, out, _ = t.agent.run(["sh", "-c", "sleep 10000 & echo hi"])
    assert (rc, out) == (0, b"hi\n")


@test
def exec_signals(t):
    with t.agent.open(ac.EXEC, ac.exec_spec(
            ["sh", "-c", "trap 'echo usr; exit 9' USR1; echo up; "
             "while :; do sleep 0.05; done"])) as s:
        assert s.answer(ac.STDOUT) == b"up\n"
        for bad in (0, 65, 1000, 0xFFFFFFFF):
            s.send(ac.SIGNAL, struct.pack("<I", bad))
        s.send(ac.SIGNAL, struct.pack("<I", signal.SIGUSR1))
        # The signal also ended `sleep`, of which the shell may tell.
        out = b""
        while (got := s.recv())[0] in (ac.STDOUT, ac.STDERR):
            if got[0] == ac.STDOUT:
                out += got[1]
        assert out == b"usr\n" and got == (ac.EXIT, struct.pack("<I", 9)), got


@test
def exec_process_group_dies_with_the_stream(t):
    s = t.agent.open(ac.EXEC, ac.exec_spec(
        ["sh", "-c", "trap '' TERM HUP; sleep 1000 & echo $$ $!; wait"]))
    pids = [int(x) for x in s.answer(ac.STDOUT).split()]
    assert len(pids) == 2 and all(p in t.pids() for p in pids)
    s.close()
    eventually(lambda: not any(os.path.exists(f"/proc/{p}") for p in pids))


@test
def exec_bad_frames_end_the_stream(t):
    for bad in (ac.frame(ac.FREEZE, b"\0\0\0\0"), struct.pack("<BBHI", 0, 0, 0, 0),
                ac.frame(ac.RESIZE, b"\0")):
        with t.agent.open(ac.EXEC, ac.exec_spec(["sleep", "1000"])) as s:
            s.sock.sendall(bad)
            assert s.at_end()


@test
def exec_users(t):
    ids = ["sh", "-c", "echo $(id -u) $(id -g) $(id -G) $HOME; "
           "echo again >/dev/stdout"]
    for user, want in (("", "0 0 0 /root"), ("thawtest", "4242 4243 4243 4301 4303 /tmp"),
                       ("4242", "4242 4243 4243 4301 4303 /tmp"),
                       ("4242:77", "4242 77 77 /tmp"),
                       ("thawtest:beta", "4242 4302 4302 /tmp"),
                       ("999:998", "999 998 998 /")):
        rc, out, err = t.agent.run(ids, user=user)
        assert (rc, out) == (0, want.encode() + b"\nagain\n"), (user, out, err)


@test
def exec_environment_and_folder(t):
    rc, out, _ = t.agent.run(["sh", "-c", 'echo "$A|$PATH|$HOME|$(pwd)"'],
                             env=["A=one two", "HOME=/x"], cwd="/usr")
    want = "one two|/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert out.decode() == want + "|/x|/usr\n", out


@test
def exec_leaks_no_descriptors_or_signals(t):
    with t.agent.open(ac.EXEC, ac.exec_spec(["sleep", "100"])), \
            t.agent.open(ac.LOG):
        _, out, _ = t.agent.run(["sh", "-c", "ls -l /proc/$$/fd; "
                                 "grep -E 'Sig(Blk|Ign)' /proc/self/status"])
    text = out.decode()
    assert text.count("->") == 3, text
    assert text.count("0000000000000000") == 2, text


# --- terminals --------------------------------------------------------------------


class Tty:
    def __init__(self, t, argv, **kw):
        self.s = t.agent.open(ac.EXEC, ac.exec_spec(argv, pty=True, **kw))
        self.out = b""

    def until(self, text):
        while text not in self.out:
            self.out += self.s.answer(ac.STDOUT)

    def end(self):
        while True:
            kind, p = self.s.recv()
            if kind == ac.EXIT:
                self.s.close()
                return struct.unpack("<I", p)[0]
            assert kind == ac.STDOUT, kind
            self.out += p


@test
def tty_size_and_resize(t):
    tty = Tty(t, ["bash", "-c", "trap 'stty size; exit 5' WINCH; stty size; tty; "
                  "echo $TERM; while :; do sleep 0.05; done"], rows=33, cols=101)
    tty.until(b"xterm\r\n")
    assert tty.out.startswith(b"33 101\r\n/dev/pts/"), tty.out
    tty.s.send(ac.RESIZE, struct.pack("<HH", 40, 120))
    tty.until(b"40 120\r\n")
    assert tty.end() == 5


# The shell has job control: what it runs is a process group of its own, in the
# foreground, and alone gets the interrupt. (A plain `sleep` would be a race with
# the shell that is about to start it.)
JOB = ("set -m; sh -c 'trap \"exit 7\" INT; echo up; while :; do sleep 0.02; done'; "
       "echo code $?; exit 9")


@test
def tty_interrupts_the_foreground(t):
    for send in (lambda s: s.send(ac.STDIN, b"\x03"),
                 lambda s: s.send(ac.SIGNAL, struct.pack("<I", signal.SIGINT))):
        tty = Tty(t, ["bash", "-c", JOB])
        tty.until(b"up\r\n")
        send(tty.s)
        assert tty.end() == 9 and b"code 7\r\n" in tty.out, tty.out


@test
def tty_input_and_its_end(t):
    tty = Tty(t, ["cat"])
    tty.s.send(ac.STDIN, b"line\n")
    tty.until(b"line\r\nline\r\n")  # the echo, and cat
    tty.s.send(ac.STDIN)
    assert tty.end() == 0


@test
def tty_output_is_complete(t):
    for _ in range(5):
        tty = Tty(t, ["sh", "-c", "seq 1 20000; exit 4"])
        assert tty.end() == 4
        want = "".join(f"{i}\r\n" for i in range(1, 20001)).encode()
        assert tty.out == want, (len(tty.out), len(want))


@test
def tty_as_another_user(t):
    tty = Tty(t, ["sh", "-c", "echo hi >/dev/tty; echo ho >$(tty)"], user="thawtest")
    assert tty.end() == 0 and tty.out == b"hi\r\nho\r\n", tty.out


@test
def tty_session_dies_with_the_stream(t):
    tty = Tty(t, ["sh", "-c", "trap '' HUP; echo $$; sleep 1000"])
    tty.until(b"\r\n")
    pid = int(tty.out.split()[0])
    tty.s.close()
    eventually(lambda: not os.path.exists(f"/proc/{pid}"))


# --- the application ----------------------------------------------------------------


@test
def start_runs_it_as_its_spec_says(t):
    os.mkfifo(t.dir + "/fifo")
    os.chmod(t.dir + "/fifo", 0o666)
    t.agent.start(
        ["bash", "-c", f"echo ids $(id -u) $(id -G) $(pwd) $APP $HOSTNAME; "
         f"echo err >&2; while :; do . {t.dir}/fifo; done"],
        env=["APP=yes"], user="thawtest", cwd="/tmp", hostname="first")
    assert socket.gethostname() == "first"
    log = LogReader(t.agent)
    log.until(1, b"ids 4242 4243 4301 4303 /tmp yes first\n")
    log.until(2, b"err\n")
    log.close()
    p = t.agent.probe()
    assert p["running"] == 1 and p["exit"] == 0, p
    assert len(t.pids()) >= 1
    refused(114, t.agent.start, ["true"])


@test
def exec_inherits_from_the_application(t):
    _, out, _ = t.agent.run(["sh", "-c", "echo $(id -u) $(pwd) $APP"])
    assert out == b"4242 /tmp yes\n", out
    _, out, _ = t.agent.run(["sh", "-c", "echo $(id -u) $(pwd) $APP"],
                            user="root", cwd="/", env=["APP=no"])
    assert out == b"0 / no\n", out


@test
def log_newest_reader_wins(t):
    first, second = LogReader(t.agent), None
    t.tell("echo to-first")
    first.until(1, b"to-first\n")
    second = LogReader(t.agent)
    assert first.s.at_end()
    t.tell("echo to-second")
    second.until(1, b"to-second\n")
    assert b"to-first" not in second.got[1]
    first.close()
    second.close()


@test
def log_keeps_the_last_output_without_a_reader(t):
    t.tell("seq 1 100000; echo done > " + t.dir + "/flag; chmod 666 "
           + t.dir + "/flag")
    # Nobody reads, and it is not held up.
    os.chmod(t.dir, 0o777)
    t.tell("touch " + t.dir + "/after")
    eventually(lambda: os.path.exists(t.dir + "/after"))
    log = LogReader(t.agent)
    log.until(1, b"\n100000\n")
    total = len("".join(f"{i}\n" for i in range(1, 100001)))
    text = log.got[3].decode()
    assert "were dropped" in text, text
    dropped = int(text.split("thaw-agent: ")[1].split()[0])
    assert dropped + len(log.got[1]) == total, (dropped, len(log.got[1]), total)
    assert len(log.got[1]) > 40000
    lines = log.got[1].split(b"\n")[1:-1]
    last = int(lines[-1])
    assert [int(x) for x in lines] == list(range(last - len(lines) + 1, last + 1))
    log.close()


@test
def log_loses_nothing_to_a_reader_that_reads(t):
    log = LogReader(t.agent)
    t.tell("echo begin; seq 1 300000; echo end")
    n = 0
    while b"\nend\n" not in log.got[1][-100:]:
        log.step()
        n += 1
        if n % 200 == 0:
            time.sleep(0.05)  # slower than the writer, never stalled
    body = log.got[1].split(b"begin\n")[1].split(b"end\n")[0]
    assert body == b"".join(b"%d\n" % i for i in range(1, 300001)), len(body)
    assert b"dropped" not in log.got[3]
    log.close()


@test
def log_reader_that_stalls_does_not_stop_the_application(t):
    log = LogReader(t.agent)
    t.tell(f"rm -f {t.dir}/past; seq 1 300000; touch {t.dir}/past")
    eventually(lambda: os.path.exists(t.dir + "/past"))
    log.until(1, b"\n300000\n")
    assert b"were dropped" in log.got[3]
    log.close()


@test
def log_speaking_reader_is_cut(t):
    with t.agent.open(ac.LOG) as s:
        s.send(ac.STDIN, b"x")
        try:
            while s.recv():
                pass
        except (EOFError, ConnectionResetError):
            pass


# --- forwarding -----------------------------------------------------------------------


@test
def forward_half_close_and_4_mib(t):
    e = Echo()
    assert t.agent.probe(e.port)["listening"] == 1
    data = os.urandom(1 << 22)
    s = t.agent.forward(e.port)
    s.sendall(data)
    s.shutdown(socket.SHUT_WR)  # the answer comes after this
    assert read_all(s) == data
    s.close()
    e.close()


@test
def forward_falls_back_to_ipv6(t):
    e = Echo(socket.AF_INET6)
    assert t.agent.probe(e.port)["listening"] == 1
    s = t.agent.forward(e.port)
    s.sendall(b"six")
    s.shutdown(socket.SHUT_WR)
    assert read_all(s) == b"six"
    s.close()
    e.close()


@test
def forward_to_nobody(t):
    e = Echo()
    e.close()
    time.sleep(0.1)
    # The accepting thread still holds it: make it let go.
    try:
        socket.create_connection(("127.0.0.1", e.port), 1).close()
    except OSError:
        pass
    eventually(lambda: t.agent.probe(e.port)["listening"] == 0)
    refused(111, t.agent.forward, e.port)


@test
def forward_what_was_sent_before_a_close_arrives(t):
    got = []
    srv = socket.create_server(("127.0.0.1", 0))
    s = t.agent.forward(srv.getsockname()[1])
    c, _ = srv.accept()
    c.sendall(b"nobody reads this")
    s.sendall(b"x" * 100000)
    s.close()
    got = read_all(c)
    assert got == b"x" * 100000, len(got)
    c.close()
    srv.close()


@test
def forward_ends_when_the_application_ends_it(t):
    srv = socket.create_server(("127.0.0.1", 0))
    s = t.agent.forward(srv.getsockname()[1])
    c, _ = srv.accept()
    c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    c.close()  # a reset
    assert s.recv(1) == b""
    s.close()
    srv.close()


@test
def streams_are_limited_and_control_goes_on(t):
    e = Echo(at_once=True)
    socks, busy = [], 0
    for _ in range(265):
        try:
            socks.append(t.agent.forward(e.port))
        except AgentError as err:
            assert err.code == 16, err
            busy += 1
    assert len(socks) >= 250 and busy >= 1, (len(socks), busy)
    refused(16, t.agent.run, ["true"])
    assert t.agent.probe()["running"] == 1
    for i, s in enumerate(socks):
        s.sendall(b"%d" % i)
    for i, s in enumerate(socks):
        assert s.recv(100) == b"%d" % i
        s.close()
    eventually(lambda: e.ended >= len(socks))
    e.close()
    assert t.agent.run(["true"])[0] == 0


# --- rest ---------------------------------------------------------------------------


def activity(pid):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    with open(f"/proc/{pid}/status") as f:
        sw = [int(x.split()[1]) for x in f if "ctxt_switches" in x]
    return int(fields[11]) + int(fields[12]), sum(sw)


@test
def idle_agent_uses_no_cpu(t):
    e = Echo()
    blocked = t.agent.open(ac.EXEC, ac.exec_spec(["yes"]))  # nobody reads it
    full = t.agent.open(ac.EXEC, ac.exec_spec(["sleep", "1000"]))
    full.sock.setblocking(False)
    try:
        while True:  # its stdin, and then the socket, fill up
            full.sock.send(ac.frame(ac.STDIN, b"x" * 200000))
    except BlockingIOError:
        pass
    half = t.agent.forward(e.port)
    srv = socket.create_server(("127.0.0.1", 0))
    closed = t.agent.forward(srv.getsockname()[1])
    c, _ = srv.accept()
    c.shutdown(socket.SHUT_WR)
    silent = t.agent.open(ac.EXEC, ac.exec_spec(
        ["sh", "-c", "exec >&- 2>&-; sleep 1000"]))
    log = LogReader(t.agent)
    time.sleep(1.5)
    for _ in range(10):  # what is not at rest yet gets more time
        before = activity(t.proc.pid)
        time.sleep(2)
        after = activity(t.proc.pid)
        idle = after[0] - before[0] <= 1 and after[1] - before[1] <= 4
        if idle:
            break
    assert idle, (before, after)
    for s in (blocked, full, half, closed, silent, log, c, srv, e):
        s.close()


# --- freeze and thaw --------------------------------------------------------------------


def counter(t):
    try:
        with open(t.dir + "/count") as f:
            return f.read()
    except OSError:
        return ""


@test
def freeze_stops_the_application_and_ends_streams(t):
    t.tell(f"i=0; (while :; do i=$((i+1)); echo $i >{t.dir}/count; sleep 0.02; "
           "done) & c=$!")
    eventually(lambda: counter(t))
    before = counter(t)
    eventually(lambda: counter(t) != before)
    e = Echo()
    others = [t.agent.open(ac.LOG), Stream(t.agent.forward(e.port)),
              t.agent.open(ac.EXEC, ac.exec_spec(["sleep", "1000"])),
              Stream(t.connect())]
    time.sleep(0.2)
    t.agent.freeze()
    for s in others:
        try:
            while s.recv():
                pass
        except (EOFError, ConnectionResetError):
            s.close()
    stopped = counter(t)
    time.sleep(0.3)
    assert counter(t) == stopped
    refused(16, t.agent.run, ["true"])
    refused(16, t.agent.forward, e.port)
    assert t.agent.probe()["running"] == 1
    t.agent.freeze(sync=True, compact=True)  # again: it is frozen
    refused(71, t.agent.ask, ac.FREEZE, b"\4\0\0\0")  # EPROTO: what is bit 2?
    t.agent.unfreeze()
    eventually(lambda: counter(t) != stopped)
    assert t.agent.run(["true"])[0] == 0
    e.close()


@test
def freeze_loses_no_output(t):
    log = LogReader(t.agent)
    t.tell("echo start; for i in $(seq 1 2000); do echo line $i; done; echo stop")
    log.until(1, b"line 10\n")
    t.agent.freeze()
    try:
        while True:
            log.step()
    except (EOFError, ConnectionResetError):
        log.close()
    t.agent.thaw()
    more = LogReader(t.agent)
    # A frame that was cut comes again, whole: the two parts fit together.
    more.until(1, b"stop\n")
    both = (log.got[1] + more.got[1]).split(b"start\n")[1]
    want = b"".join(b"line %d\n" % i for i in range(1, 2001)) + b"stop\n"
    assert both == want, (len(both), len(want))
    more.close()


@test
def thaw_gives_a_new_identity_first(t):
    t.agent.freeze()
    stopped = counter(t)
    refused(71, t.agent.ask, ac.THAW, b"\0" * 64 + struct.pack("<Q", 1 << 63)
            + b"\0" * 16 + ac.string("x"))
    refused(71, t.agent.ask, ac.THAW, b"\0" * 64 + struct.pack("<Q", 1)
            + b"\0" * 16 + ac.string("a\0b"))
    time.sleep(0.2)
    assert counter(t) == stopped, "a refused thaw let it run"
    t.agent.thaw(machine_id=bytes(range(16)), hostname="second")
    with open("/etc/machine-id") as f:
        assert f.read() == bytes(range(16)).hex() + "\n"
    assert socket.gethostname() == "second"
    eventually(lambda: counter(t) != stopped)
    t.agent.thaw(machine_id=b"\xff" * 16)  # not frozen, no name: both fine
    with open("/etc/machine-id") as f:
        assert f.read() == "ff" * 16 + "\n"
    assert socket.gethostname() == "second"
    t.tell("kill $c")


@test
def thaw_sets_the_clock(t):
    now = time.time_ns()
    t.agent.freeze()
    t.agent.thaw(wall_ns=now + 86400 * 10**9)
    moved = time.time_ns() - now > 86300 * 10**9
    assert moved == t.clock, (moved, t.clock)
    if t.clock:
        t.agent.thaw(wall_ns=now)
        assert abs(time.time_ns() - now) < 60 * 10**9


# --- the metadata service -------------------------------------------------------------

IMDS = ("169.254.169.254", 80)
CREDENTIALS = "/latest/meta-data/iam/security-credentials/"
SECRET = "wJalrXUtnFEMI/K7MDENG/b" + "PxRfiCYEXAMPLEKEY"


def meta(t, path, method="GET", **headers):
    c = http.client.HTTPConnection(*IMDS, timeout=ac.TIMEOUT)
    c.request(method, path, headers={k.replace("_", "-"): v
                                     for k, v in headers.items()})
    r = c.getresponse()
    body = r.read().decode()
    c.close()
    return r.status, body


def session(t):
    status, token = meta(t, "/latest/api/token", "PUT",
                         X_aws_ec2_metadata_token_ttl_seconds="600")
    assert status == 200, status
    return token


def lookup(t, path, token=None):
    return meta(t, path, X_aws_ec2_metadata_token=token or session(t))


def fetcher(kind=InstanceMetadataFetcher):
    return kind(timeout=ac.TIMEOUT, num_attempts=1)


@test
def imds_serves_botocore(t):
    logging.getLogger("botocore").setLevel(logging.CRITICAL)
    assert fetcher().retrieve_iam_role_credentials() == {}, "nobody gave any"
    at = datetime.datetime(2099, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
    t.agent.role(region="eu-south-2", key="ASIA0123456789ABCDEF", secret=SECRET,
                 token="session==", expires=int(at.timestamp()))
    assert fetcher().retrieve_iam_role_credentials() == {
        "role_name": "execution_role", "access_key": "ASIA0123456789ABCDEF",
        "secret_key": SECRET, "token": "session==",
        "expiry_time": "2099-01-02T03:04:05Z"}
    region = fetcher(InstanceMetadataRegionFetcher).retrieve_region()
    assert region == "eu-south-2", region


@test
def imds_leaves_port_80_to_the_application(t):
    with socket.create_server(("0.0.0.0", 80)) as s, \
            socket.create_server(("::", 443), family=socket.AF_INET6):
        assert meta(t, CREDENTIALS)[0] == 401
        s6 = socket.socket(socket.AF_INET6)  # as Java does
        s6.connect(("::ffff:169.254.169.254", 80))
        s6.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert s6.recv(12) == b"HTTP/1.1 401"
        s6.close()
        for addr in ("127.0.0.1", "127.0.0.2"):
            c = socket.create_connection((addr, 80), ac.TIMEOUT)
            s.settimeout(ac.TIMEOUT)
            s.accept()[0].close()
            c.close()
        s.settimeout(0.2)
        try:
            raise AssertionError(f"{s.accept()} came to the application")
        except TimeoutError:
            pass
    refused(111, t.agent.forward, 80)
    with open("/proc/net/fib_trie") as f:
        assert "169.254.0.0" not in f.read(), "one address, not a network"


@test
def imds_wants_a_token_and_no_proxy(t):
    assert meta(t, CREDENTIALS) == (401, "")
    assert meta(t, "/latest/api/token", "PUT")[0] == 400
    assert meta(t, "/latest/api/token", "PUT", X_Forwarded_For="10.0.0.1",
                X_aws_ec2_metadata_token_ttl_seconds="60")[0] == 403
    assert lookup(t, CREDENTIALS) == (200, "execution_role")
    assert lookup(t, "/latest/user-data")[0] == 404


@test
def imds_clients_hold_up_nobody(t):
    refused(71, t.agent.ask, ac.ROLE, b"\0" * 28)
    idle = []
    for _ in range(100):
        idle.append(socket.create_connection(IMDS))
        idle[-1].sendall(b"GET /")
    assert lookup(t, CREDENTIALS) == (200, "execution_role")
    assert t.agent.probe()["running"] == 1
    assert len(os.listdir(f"/proc/{t.proc.pid}/fd")) < 60
    eventually(lambda: idle[99].recv(1) == b"")  # five seconds, and it is over
    for s in idle:
        s.close()
    for bad in (b"GET /" + b"x" * 5000, b"\0" * 4096, b"\r\n\r\n"):
        s = socket.create_connection(IMDS, ac.TIMEOUT)
        s.sendall(bad)
        got = s.recv(100)
        assert re.match(rb"HTTP/1.1 4(31|00) ", got), got
        s.close()
    for i in range(300):  # the client leaves, at each point
        s = socket.create_connection(IMDS)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        s.sendall(b"GET / HTTP/1.1\r\n\r\n"[:i % 20])
        s.close()
    assert lookup(t, CREDENTIALS) == (200, "execution_role")


def in_memory(t, text):
    """How often the bytes are in the agent's memory."""
    n = 0
    with open(f"/proc/{t.proc.pid}/maps") as maps, \
            open(f"/proc/{t.proc.pid}/mem", "rb", 0) as mem:
        for line in maps:
            first, last = (int(x, 16) for x in line.split()[0].split("-"))
            # The sanitizers' shadow is terabytes of nothing.
            if "rw" not in line.split()[1] or last - first > 1 << 30:
                continue
            try:
                mem.seek(first)
                n += mem.read(last - first).count(text)
            except (OSError, ValueError):
                pass
    return n


@test
def imds_a_freeze_wipes_and_nobody_is_told_so(t):
    token = session(t)
    assert "Success" in lookup(t, CREDENTIALS + "execution_role", token)[1]
    assert in_memory(t, SECRET.encode()), "else nothing is shown by its absence"
    waits = http.client.HTTPConnection(*IMDS, timeout=ac.TIMEOUT)
    waits.connect()
    t.agent.freeze()
    assert in_memory(t, SECRET.encode()) == 0, "a snapshot would have it"
    waits.request("GET", CREDENTIALS, headers={"X-aws-ec2-metadata-token": token})
    later = socket.create_connection(IMDS, ac.TIMEOUT)
    later.sendall(f"GET {CREDENTIALS} HTTP/1.1\r\n"
                  f"X-aws-ec2-metadata-token: {token}\r\n\r\n".encode())
    time.sleep(0.3)
    later.setblocking(False)
    try:
        raise AssertionError(f"it was answered: {later.recv(100)}")
    except BlockingIOError:
        later.settimeout(ac.TIMEOUT)
    t.agent.role(key="ASIASECOND0123456789", secret="other")
    t.agent.thaw()
    assert waits.getresponse().read() == b"execution_role"
    assert later.recv(12) == b"HTTP/1.1 200"
    later.close()
    got = lookup(t, CREDENTIALS + "execution_role", token)
    assert '"SecretAccessKey" : "other"' in got[1], "the token is as good as before"


@test
def imds_tokens_are_not_a_clones(t):
    token = session(t)
    t.agent.freeze()
    t.agent.thaw(machine_id=b"\x77" * 16)
    assert lookup(t, CREDENTIALS, token)[0] == 401
    assert lookup(t, CREDENTIALS)[0] == 404, "nor are its credentials"


# --- the end ------------------------------------------------------------------------


@test
def exit_of_the_application_is_seen(t):
    log = LogReader(t.agent)
    t.tell("echo last words; exit 7")
    log.until(3, b"exit code 7\n")
    assert b"last words\n" in log.got[1]
    log.close()
    p = t.agent.probe()
    assert (p["running"], p["exit"]) == (0, 7), p
    assert t.agent.run(["echo", "still here"])[1] == b"still here\n"
    refused(114, t.agent.start, ["true"])


# Those of docs/AGENT_PROTOCOL.md, by their numbers.
CONTAINER_CAPS = sum(1 << c for c in (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31))


def caps(text):
    return {k: int(v, 16) for k, v in
            (x.split()[:2] for x in text.splitlines() if x.startswith("Cap"))}


@test
def capabilities_are_a_containers_unless_asked_for(t):
    with open("/proc/self/status") as f:
        ours = caps(f.read())["CapBnd:"]
    assert ours & ~CONTAINER_CAPS, "the test's own process has no more than those"
    other = Stage(t.binary, False, "d")
    try:
        other.agent.start(["sh", "-c", "cat /proc/self/status; echo up; "
                           "while :; do sleep 1; done"], all_caps=False)
        log = LogReader(other.agent)
        log.until(1, b"up\n")
        log.close()
        ran = [log.got[1].decode()]
        for user in ("", "root"):
            _, out, _ = other.agent.run(["cat", "/proc/self/status"], user=user)
            ran.append(out.decode())
        for text in ran:
            c = caps(text)
            assert c["CapBnd:"] == c["CapPrm:"] == c["CapEff:"] == \
                ours & CONTAINER_CAPS, c
            assert c["CapInh:"] == c["CapAmb:"] == 0, c
        _, out, _ = other.agent.run(["cat", "/proc/self/status"], user="thawtest")
        c = caps(out.decode())
        assert c["CapEff:"] == 0 and c["CapBnd:"] == ours & CONTAINER_CAPS, c
        rc, _, err = other.agent.run(["hostname", "other"])
        assert rc and (b"must be root" in err or b"not permitted" in err), err
        assert other.agent.run(["mount", "--bind", "/usr", "/mnt"])[0]
        assert other.agent.run(["chown", "4242", other.dir])[0] == 0
    finally:
        other.end()
    _, out, _ = t.agent.run(["cat", "/proc/self/status"], user="root")
    c = caps(out.decode())
    assert c["CapBnd:"] == c["CapEff:"] == ours, "with all, all"


@test
def poweroff_asks_the_application_first(t):
    other = Stage(t.binary, False, "b")
    try:
        other.agent.start(["sh", "-c", f"trap 'echo bye >{other.dir}/bye; exit 0' "
                           "TERM; echo up; while :; do sleep 0.05; done"])
        log = LogReader(other.agent)
        log.until(1, b"up\n")
        log.close()
        other.agent.poweroff(100000)
        assert other.proc.wait(timeout=ac.TIMEOUT) == 0
        assert os.path.exists(other.dir + "/bye"), "killed before it could end"
    finally:
        other.end()


@test
def poweroff_kills_one_that_does_not_end(t):
    other = Stage(t.binary, False, "c")
    try:
        other.agent.start(["sh", "-c", "trap '' TERM; echo up; "
                           "while :; do sleep 1; done"])
        log = LogReader(other.agent)
        log.until(1, b"up\n")  # from here it ignores TERM
        log.close()
        start = time.monotonic()
        other.agent.freeze()  # also a frozen one
        other.agent.poweroff(500)
        took = time.monotonic() - start
        assert took >= 0.5, took
        assert other.proc.wait(timeout=ac.TIMEOUT) == 0 and not other.pids()
    finally:
        other.end()


@test
def poweroff_kills_what_is_left(t):
    s = t.agent.open(ac.EXEC, ac.exec_spec(
        ["sh", "-c", "trap '' TERM; setsid sleep 1000 & echo up; wait"]))
    s.answer(ac.STDOUT)
    # It waits for nobody: that would be longer than its answer is waited for.
    t.agent.poweroff(2 * ac.TIMEOUT * 1000)
    assert t.proc.wait(timeout=ac.TIMEOUT) == 0
    assert not t.pids(), t.pids()
    s.close()


def main():
    args = sys.argv[1:]
    binary = os.path.abspath(args.pop(0) if args and args[0][:1] != "-"
                             else os.environ["THAW_BIN"] + "/thaw-agent")
    clock = "--clock" in args or "KVMBOX_SHARE" in os.environ
    if os.environ.get("THAW_TEST_NS") != "1":
        os.environ["THAW_TEST_NS"] = "1"
        os.execvp("unshare", ["unshare", "--mount", "--uts", "--net", sys.executable]
                  + sys.argv)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    t = Stage(binary, clock)
    only = [a for a in args if not a.startswith("-")]
    failed = 0
    print(f"1..{len(TESTS)}")
    try:
        for i, fn in enumerate(TESTS, 1):
            if only and fn.__name__ not in only:
                continue
            began = time.monotonic()
            try:
                if t.proc.poll() is not None:
                    raise AssertionError(f"the agent ended: {t.proc.returncode}")
                fn(t)
                print(f"ok {i} - agent: {fn.__name__} "
                      f"# {time.monotonic() - began:.2f} s", flush=True)
            except Exception:
                failed += 1
                print(f"not ok {i} - agent: {fn.__name__}")
                for line in traceback.format_exc().splitlines():
                    print("#", line, flush=True)
    finally:
        t.log.flush()
        with open(t.dir + "/stderr", errors="replace") as f:
            for line in f.read().splitlines():
                print("# agent's console:", line)
                if "Sanitizer" in line or "runtime error" in line:
                    failed += 1
        t.end()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
