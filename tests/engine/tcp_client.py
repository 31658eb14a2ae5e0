"""Requests over TCP, signed by botocore: for tests of thawd --listen."""
import datetime
import http.client
import json
import os
import socket

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from thawd_rig import PATIENCE, Answer, said_back, whole_answers


def keys_of(path):
    """(id, secret) of the first profile."""
    got = {}
    with open(path) as f:
        for line in f:
            k, _, v = line.partition("=")
            got.setdefault(k.strip(), v.strip())
    return got["aws_access_key_id"], got["aws_secret_access_key"]


class At(SigV4Auth):
    """Signs as if it were another time."""

    def __init__(self, *args, seconds=0):
        super().__init__(*args)
        self.seconds = seconds

    def add_auth(self, request):
        now = datetime.datetime.now(datetime.timezone.utc) + \
            datetime.timedelta(seconds=self.seconds)
        request.context["timestamp"] = now.strftime("%Y%m%dT%H%M%SZ")
        self._modify_request_before_signing(request)
        text = self.canonical_request(request)
        text = self.string_to_sign(request, text)
        self._inject_signature_to_request(request,
                                          self.signature(text, request))


class Client:
    def __init__(self, t, key=None, region="us-east-1", service="lambda"):
        host = t.host()
        self.host, port = host["listen"].rsplit(":", 1)
        self.port = int(port)
        self.key = key or keys_of(host["keysFile"])
        self.region, self.service = region, service

    def sign(self, method, path, body=b"", seconds=0, headers=None,
             token=None):
        """The headers that go with a request; path is encoded already."""
        url = f"http://{self.host}:{self.port}{path}"
        r = AWSRequest(method, url, data=body, headers=headers or {})
        cred = Credentials(*self.key, token)
        # Newer and older botocore keep the clock in different places: a
        # subclass is only needed where the time is another than now.
        auth = At(cred, self.service, self.region, seconds=seconds) \
            if seconds else SigV4Auth(cred, self.service, self.region)
        auth.add_auth(r)
        return {k: v for k, v in r.headers.items()}

    def send(self, method, path, body=b"", headers=None,
             timeout=2 * PATIENCE):
        c = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            c.putrequest(method, path, skip_accept_encoding=True,
                         skip_host="Host" in (headers or {}))
            for k, v in (headers or {}).items():
                c.putheader(k, v)
            if body or method in ("POST", "PUT", "PATCH"):
                c.putheader("Content-Length", str(len(body)))
            c.endheaders(body or None)
            r = c.getresponse()
            return Answer(r.status, r.headers,
                          r.read().decode(errors="replace"))
        finally:
            c.close()

    def call(self, method, path, body=None, **kw):
        """Signed and sent."""
        data = b"" if body is None else json.dumps(body).encode()
        extra = {"Content-Type": "application/json"} if data else None
        return self.send(method, path, data,
                         self.sign(method, path, data, headers=extra, **kw))

    def connect(self, timeout=PATIENCE):
        return socket.create_connection((self.host, self.port), timeout)

    def raw(self, data, n=1):
        """Sends bytes as they are; what comes back (said_back)."""
        return said_back(self.connect(), data, n)


def wire(c, method, path, headers, body=b"", more=()):
    """A request's bytes."""
    lines = [f"{method} {path} HTTP/1.1"]
    if "Host" not in headers:
        lines.append(f"Host: {c.host}:{c.port}")
    lines += [f"{k}: {v}" for k, v in headers.items()] + list(more)
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def answers(s, n):
    """Receives until n answers are whole."""
    got = b""
    while whole_answers(got) < n:
        b = s.recv(65536)
        if not b:
            break
        got += b
    return got


def free_file(path, text, mode=0o600):
    with open(path, "w") as f:
        f.write(text)
    os.chmod(path, mode)
