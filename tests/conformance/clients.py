"""AWS's own clients against a live thawd, two behind one face: botocore in this
process, the SDK for JavaScript in another (sdk.mjs). Neither is changed; only
where to and with which key is said to them.

A call gives a Result, whether it went well or not; what the client would not even
send has no status.
"""
import datetime
import json
import os
import socket
import subprocess
import sys
import threading
import urllib.parse

import model
from model import HERE, ROOT

sys.path.insert(0, os.path.join(HERE, "..", "engine"))
FOLDER = model.clients_folder()
# Ahead of the system's, which is too old to know the service.
sys.path.insert(0, os.path.join(FOLDER, "python"))

import botocore.config  # noqa: E402
import botocore.exceptions  # noqa: E402
import botocore.session  # noqa: E402
from botocore import xform_name  # noqa: E402

from thawd_rig import PATIENCE  # noqa: E402

SERVICE = model.SERVICE
MODEL = model.find_model()[1]
model.use(MODEL)
OPS = MODEL["operations"]
REGION = "us-east-1"
ARN = "arn:aws:lambda:" + REGION + ":"
CONNECTOR = ARN + "aws:network-connector:aws-network-connector:"


class Result:
    """One call: out is the answer (times as seconds), or code the error's name."""

    def __init__(self, status, out=None, code="", message="", fields=None,
                 typed=False, attempts=0):
        self.status, self.out, self.code = status, out, code
        self.message, self.fields, self.typed = message, fields or {}, typed
        self.attempts = attempts

    @property
    def ok(self):
        return not self.code

    def __getitem__(self, key):
        if not self.ok:
            raise RuntimeError(f"no {key}: {self!r}")
        return self.out[key]

    def get(self, key):
        return (self.out or {}).get(key)

    def __repr__(self):
        if self.ok:
            return f"{self.status} {json.dumps(self.out)[:300]}"
        return f"{self.status} {self.code}: {self.message[:300]} {self.fields}"


def seconds(v):
    """The same with times as numbers."""
    if isinstance(v, datetime.datetime):
        return v.timestamp()
    if isinstance(v, dict):
        if list(v) == ["$time"]:
            return v["$time"]
        return {k: seconds(x) for k, x in v.items()}
    if isinstance(v, list):
        return [seconds(x) for x in v]
    return v


class Boto:
    """botocore. With validate=False it sends what its own checks would refuse, so
    that the server's are asked."""
    name = "botocore"

    def __init__(self, url, key=("AKIDUNSIGNED00000000", "x" * 40),
                 region=REGION, validate=True, retries=0, token=None):
        session = botocore.session.Session()
        session.set_credentials(*key, token)
        self.client = session.create_client(
            SERVICE, region_name=region, endpoint_url=url,
            config=botocore.config.Config(
                retries={"max_attempts": retries}, read_timeout=900,
                parameter_validation=validate))

    def call(self, op, **given):
        try:
            out = getattr(self.client, xform_name(op))(**given)
        except botocore.exceptions.ClientError as e:
            kind = getattr(self.client.exceptions, e.response["Error"]["Code"],
                           None)
            about = e.response["ResponseMetadata"]
            fields = {k: v for k, v in e.response.items()
                      if k not in ("Error", "ResponseMetadata", "message")}
            return Result(about["HTTPStatusCode"],
                          code=e.response["Error"]["Code"],
                          message=e.response["Error"].get("Message", ""),
                          fields=fields, attempts=about["RetryAttempts"] + 1,
                          typed=kind is not None and isinstance(e, kind))
        except Exception as e:  # its own refusal
            return Result(None, code=type(e).__name__, message=str(e))
        about = out.pop("ResponseMetadata")
        return Result(about["HTTPStatusCode"], seconds(out))

    def pages(self, op, size, **given):
        try:
            pages = list(self.client.get_paginator(xform_name(op)).paginate(
                PaginationConfig={"PageSize": size}, **given))
        except Exception as e:
            return Result(None, code=type(e).__name__, message=str(e))
        return Result(200, {"items": seconds([i for p in pages
                                              for i in p["items"]]),
                            "pages": len(pages)})

    def again(self):
        """thawd was away: urllib3 sees by itself which connections have ended."""

    def close(self):
        self.client.close()


class Js:
    """@aws-sdk/client-lambda-microvms. It checks next to nothing by itself."""
    name = "JavaScript"

    def __init__(self, url, key=("AKIDUNSIGNED00000000", "x" * 40),
                 region=REGION, socket_path=None, retries=0, offset=0,
                 token=None):
        options = {"endpoint": url, "region": region,
                   "maxAttempts": retries + 1, "systemClockOffset": offset,
                   "credentials": {"accessKeyId": key[0],
                                   "secretAccessKey": key[1]}}
        if token:
            options["credentials"]["sessionToken"] = token
        if socket_path:
            options["socketPath"] = socket_path
        self.p = subprocess.Popen(
            [os.path.join(FOLDER, "bin", "node"),
             os.path.join(HERE, "sdk.mjs"), FOLDER], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
            env={**os.environ, "NODE_NO_WARNINGS": "1"})
        self.options = options
        self.again()

    def again(self):
        """Without connections; Node may not know yet that thawd has ended some."""
        self.ask({"client": self.options})

    def ask(self, what):
        self.p.stdin.write(json.dumps(what) + "\n")
        self.p.stdin.flush()
        line = self.p.stdout.readline()
        if not line:
            raise RuntimeError("the SDK for JavaScript ended")
        r = json.loads(line)
        if "error" in r:
            return Result(r["status"], code=r["error"], message=r["message"],
                          fields=r["fields"], typed=r["typed"],
                          attempts=r["attempts"])
        return Result(r.get("status"), seconds(r.get("out")))

    def call(self, op, **given):
        return self.ask({"op": op, "input": given})

    def pages(self, op, size, **given):
        return self.ask({"pages": op, "input": given, "pageSize": size})

    def close(self):
        self.p.stdin.close()
        self.p.wait(PATIENCE)
        self.p.stdout.close()


class Relay:
    """A TCP port of this host that leads to a Unix socket, for clients that know
    only TCP; uid is who connects to the socket."""

    def __init__(self, path, uid=None):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = "http://127.0.0.1:%d" % self.listener.getsockname()[1]
        self.path = path
        self.pid = os.fork()
        if self.pid == 0:
            if uid is not None:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            try:
                self.serve()
            finally:
                os._exit(0)
        self.listener.close()

    def serve(self):
        while True:
            ours, _ = self.listener.accept()
            threading.Thread(target=self.join, args=(ours,),
                             daemon=True).start()

    def join(self, ours):
        theirs = socket.socket(socket.AF_UNIX)
        try:
            theirs.connect(self.path)
        except OSError:
            ours.close()
            return

        def copy(a, b):
            try:
                while data := a.recv(65536):
                    b.sendall(data)
                b.shutdown(socket.SHUT_WR)
            except OSError:
                pass
        t = threading.Thread(target=copy, args=(ours, theirs), daemon=True)
        t.start()
        copy(theirs, ours)
        t.join()
        ours.close()
        theirs.close()

    def close(self):
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)


# --- what an answer must be -----------------------------------------------------

# What thaw's answers have and the model has not (docs/API.md).
OWN_VALUES = {"MicrovmState": {"PARKED"}, "Architecture": {"X86_64"},
              "Chipset": {"INTEL", "AMD"}}


def wrong_in(value, shape, at="it"):
    """What an answer's value has that its shape in the model does not allow."""
    s = model.SHAPES[shape]
    t = s["type"]
    if "enum" in s:
        known = set(s["enum"]) | OWN_VALUES.get(shape, set())
        return [] if value in known else [f"{at}: {value!r} is not of {shape}"]
    if t == "string":
        return [] if isinstance(value, str) and \
            s.get("min", 0) <= len(value) <= s.get("max", len(value)) \
            else [f"{at}: {value!r} is no {shape}"]
    if t in ("integer", "long"):
        return [] if type(value) is int and s.get("min", value) <= value <= \
            s.get("max", value) else [f"{at}: {value!r} is no {shape}"]
    if t == "timestamp":
        return [] if isinstance(value, (int, float)) and \
            1.6e9 < value < 1e10 else [f"{at}: {value!r} is no time"]
    if t == "boolean":
        return [] if isinstance(value, bool) else [f"{at}: no boolean"]
    if t == "list":
        return [w for i, v in enumerate(value)
                for w in wrong_in(v, s["member"]["shape"], f"{at}[{i}]")]
    if t == "map":
        return [w for k, v in value.items()
                for w in wrong_in(v, s["value"]["shape"], f"{at}.{k}")]
    bad = [f"{at}: no {k}" for k in s.get("required", [])
           if value.get(k) is None]
    if s.get("union") and len(value) != 1:
        bad.append(f"{at}: {len(value)} members of a union")
    for k, m in s["members"].items():
        if value.get(k) is not None:
            bad += wrong_in(value[k], m["shape"], f"{at}.{k}")
    return bad


def wrong_answer(op, result):
    """Why a Result is not the good answer that the model promises; or []."""
    o = OPS[op]
    if not result.ok:
        return [repr(result)]
    bad = []
    if result.status != o["http"]["responseCode"]:
        bad.append(f"status {result.status}")
    if "output" in o:
        bad += wrong_in(result.out, o["output"]["shape"])
    return bad


def key_of(path, profile=None):
    """(id, secret) of a keys file, which has the format of AWS's."""
    keys, now = {}, None
    with open(path) as f:
        for line in f:
            line = line.strip()
            if line.startswith("["):
                now = line.strip("[]").strip()
                keys[now] = {}
            elif "=" in line and not line.startswith(("#", ";")):
                k, v = line.split("=", 1)
                keys[now][k.strip().lower()] = v.strip()
    k = keys[profile or next(iter(keys))]
    return k["aws_access_key_id"], k["aws_secret_access_key"]


def quoted(name):
    return urllib.parse.quote(name, safe="")
