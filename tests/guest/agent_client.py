"""A small client of docs/AGENT_PROTOCOL.md, for the tests.

`Agent(connect)` speaks to one agent; `connect()` gives a new connected stream
socket each time (a Unix socket of a test agent, or what stands for the guest's
vsock port).
"""
import errno
import select
import socket
import struct
import time

(START, FREEZE, THAW, UNFREEZE, EXEC, CONNECT, LOG, PROBE, POWEROFF, RENEW,
 ROLE) = range(1, 12)
OK, ERROR, STDIN, STDOUT, STDERR, RESIZE, SIGNAL, EXIT, LOGDATA, PROBED = range(32, 42)
TIMEOUT = 300


class AgentError(Exception):
    def __init__(self, code, text):
        super().__init__(f"{errno.errorcode.get(code, code)}: {text}")
        self.code, self.text = code, text


def frame(kind, payload=b""):
    return struct.pack("<BBHI", kind, 0, 0, len(payload)) + payload


def string(s):
    b = s.encode() if isinstance(s, str) else s
    return struct.pack("<I", len(b)) + b


def strings(items):
    return struct.pack("<I", len(items)) + b"".join(string(i) for i in items)


def app_spec(argv, env=(), user="", cwd="", hostname="", all_caps=True):
    return (struct.pack("<I", int(all_caps)) + strings(argv)
            + strings(env) + string(user) + string(cwd) + string(hostname))


def exec_spec(argv, env=(), user="", cwd="", pty=False, rows=24, cols=80):
    return (struct.pack("<IHH", int(pty), rows, cols) + strings(argv)
            + strings(env) + string(user) + string(cwd))


class Stream:
    def __init__(self, sock):
        self.sock = sock
        sock.settimeout(TIMEOUT)

    def send(self, kind, payload=b""):
        self.sock.sendall(frame(kind, payload))

    def exactly(self, n):
        data = b""
        while len(data) < n:
            part = self.sock.recv(n - len(data))
            if not part:
                raise EOFError(f"stream ended after {len(data)} of {n} bytes")
            data += part
        return data

    def recv(self):
        kind, r1, r2, length = struct.unpack("<BBHI", self.exactly(8))
        assert r1 == 0 and r2 == 0 and length <= 262144, "a bad head"
        return kind, self.exactly(length)

    def answer(self, want):
        kind, payload = self.recv()
        if kind == ERROR:
            raise AgentError(struct.unpack_from("<I", payload)[0],
                             payload[4:].decode())
        assert kind == want, f"frame type {kind}, not {want}"
        return payload

    def at_end(self):
        """True when the agent closed its side (waits for it)."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Agent:
    def __init__(self, connect):
        self.connect = connect

    def open(self, kind, payload=b""):
        s = Stream(self.connect())
        s.send(kind, payload)
        return s

    def ask(self, kind, payload=b"", want=OK):
        with self.open(kind, payload) as s:
            answer = s.answer(want)
            assert s.at_end(), "bytes after the answer"
            return answer

    def start(self, argv, **kw):
        self.ask(START, app_spec(argv, **kw))

    def freeze(self, sync=False, compact=False):
        self.ask(FREEZE, struct.pack("<I", int(sync) | int(compact) << 1))

    def unfreeze(self):
        self.ask(UNFREEZE)

    def thaw(self, entropy=None, wall_ns=None, machine_id=b"\x11" * 16, hostname=""):
        entropy = entropy or open("/dev/urandom", "rb").read(64)
        wall_ns = time.time_ns() if wall_ns is None else wall_ns
        self.ask(THAW, entropy + struct.pack("<Q", wall_ns) + machine_id
                 + string(hostname))

    def role(self, vm="microvm-1", region="us-east-1", key="", secret="", token="",
             expires=0):
        self.ask(ROLE, b"".join(string(x) for x in (vm, region, key, secret, token))
                 + struct.pack("<Q", expires))

    def poweroff(self, timeout_ms):
        self.ask(POWEROFF, struct.pack("<I", timeout_ms))

    def probe(self, port=0):
        p = self.ask(PROBE, struct.pack("<H", port), PROBED)
        return dict(zip(("listening", "running", "exit", "cpu_us", "uptime_ms"),
                        struct.unpack("<BBIQQ", p)))

    def forward(self, port):
        """A raw socket to a TCP port of the guest."""
        s = self.open(CONNECT, struct.pack("<H", port))
        s.answer(OK)
        return s.sock

    def run(self, argv, stdin=b"", **kw):
        """Runs to the end: (exit code, stdout, stderr)."""
        with self.open(EXEC, exec_spec(argv, **kw)) as s:
            out = {STDOUT: [], STDERR: []}
            queue = b"".join(frame(STDIN, stdin[i:i + 100000])
                             for i in range(0, len(stdin), 100000)) + frame(STDIN)
            ended = set()
            while True:
                r, w, _ = select.select([s.sock], [s.sock] if queue else [], [],
                                        TIMEOUT)
                assert r or w, "nothing happens"
                if w:
                    try:
                        n = s.sock.send(queue[:65536], socket.MSG_DONTWAIT)
                        queue = queue[n:]
                    except BlockingIOError:
                        pass
                    except (BrokenPipeError, ConnectionResetError):
                        queue = b""  # it ended before it read its input
                if not r:
                    continue
                kind, payload = s.recv()
                if kind == ERROR:
                    raise AgentError(struct.unpack_from("<I", payload)[0],
                                     payload[4:].decode())
                if kind == EXIT:
                    assert ended >= {STDOUT}, "EXIT before the end of stdout"
                    return (struct.unpack("<I", payload)[0],
                            b"".join(out[STDOUT]), b"".join(out[STDERR]))
                assert kind in out and kind not in ended, f"frame type {kind}"
                if payload:
                    out[kind].append(payload)
                else:
                    ended.add(kind)


class LogReader:
    """Collects the LOG stream as {stream: bytes}."""

    def __init__(self, agent):
        self.s = agent.open(LOG)
        self.got = {1: b"", 2: b"", 3: b""}

    def step(self):
        kind, payload = self.s.recv()
        assert kind == LOGDATA and payload[0] in self.got, f"frame type {kind}"
        self.got[payload[0]] += payload[1:]
        return payload

    def until(self, stream, text, seconds=TIMEOUT):
        end = time.monotonic() + seconds
        while text not in self.got[stream]:
            left = end - time.monotonic()
            assert left > 0, f"no {text!r} in {self.got[stream][-200:]!r}"
            self.s.sock.settimeout(left)
            self.step()
        return self.got[stream]

    def close(self):
        self.s.close()
