#!/usr/bin/python3
"""Signatures over TCP by AWS's own clients: which keys, regions and clocks are
taken, what else the port serves, and how each refusal reaches its caller. No guest
runs (thawd-fake).

usage: test_signed.py PATH-OF-thawd-fake LIBEXEC [-k WORD]
"""
import datetime
import http.client
import json
import os
import socket
import sys

import clients  # first: it is what brings PyPI's botocore
import live
from clients import OPS
from live import rig

import botocore.auth
import botocore.awsrequest
import botocore.credentials
import botocore.session

LIVE = live.Live(sys.argv[1], libexec=sys.argv[2])
t = LIVE.thawd
SECOND = ("AKIDSECONDKEY0000001", "second/Secret+0123456789abcdefghijklmnop")


def ask(c):
    return c.call("ListMicrovmImages")


def denied(r, code, name):
    rig.check(r.status == 403 and r.code == code, f"{name}: {code}", r)


def test_keys_file(_):
    path = os.path.join(t.state, "keys")
    rig.equal(os.stat(path).st_mode & 0o7777, 0o600, "only its owner reads it")
    rig.check(len(LIVE.key[1]) >= 40, "its secret is a long one")
    os.environ["AWS_SHARED_CREDENTIALS_FILE"] = path
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    c = botocore.session.Session().create_client(
        clients.SERVICE, region_name="us-east-1", endpoint_url=LIVE.url)
    rig.equal(c.list_microvms()["items"], [],
              "it serves botocore as a credentials file")
    os.environ["AWS_ENDPOINT_URL_LAMBDA_MICROVMS"] = LIVE.url
    c = botocore.session.Session().create_client(
        clients.SERVICE, region_name="us-east-1")
    rig.equal(c.list_microvms()["items"], [],
              "the address by its environment variable alone")
    del os.environ["AWS_SHARED_CREDENTIALS_FILE"]
    del os.environ["AWS_ENDPOINT_URL_LAMBDA_MICROVMS"]


def test_keys(_):
    for c in LIVE.tcp():
        rig.check(ask(c).ok, f"{c.name}: the key of the file", ask(c))
    wrong = (LIVE.key[0], LIVE.key[1][:-1] + "!")
    for c in LIVE.tcp(key=wrong):
        for op in OPS:
            shape = clients.model.SHAPES[OPS[op]["input"]["shape"]]
            given = {k: "x" * 20 for k, m in shape["members"].items()
                     if m.get("location") == "uri"}
            if c.name == "botocore" and shape.get("required") and \
                    set(shape["required"]) - set(given):
                continue  # would not be sent
            denied(c.call(op, **given), "InvalidSignatureException",
                   f"{c.name}: {op} with a wrong secret")
    for c in LIVE.tcp(key=("AKIDNOBODYSKEY000001", LIVE.key[1])):
        denied(ask(c), "UnrecognizedClientException", f"{c.name}: nobody's key")
    for c in LIVE.tcp(token="sessiontoken"):
        denied(ask(c), "UnrecognizedClientException",
               f"{c.name}: a session token")


def test_regions(_):
    for region in ("eu-west-1", "ap-southeast-2"):
        for c in LIVE.tcp(region=region):
            r = ask(c)
            rig.check(r.ok, f"{c.name}: signed for {region}", r)


def test_clock(_):
    """A request that is too old, or not yet; and a client that learns of it."""
    # Of the 15 minutes some are left, and 17 are none too few: a slow machine
    # takes a while.
    for minutes in (13, -13):
        c = LIVE.js(offset=minutes * 60000)
        rig.check(ask(c).ok, f"JavaScript: {minutes} minutes off", ask(c))
    for minutes in (17, -17, 60 * 24):
        denied(ask(LIVE.js(offset=minutes * 60000)), "RequestExpired",
               f"JavaScript: {minutes} minutes off")


def raw(headers, body=b"", method="GET", path="/2025-09-09/microvms",
        query=""):
    c = http.client.HTTPConnection("127.0.0.1", LIVE.port, timeout=rig.PATIENCE)
    try:
        c.request(method, path + query, body, headers)
        r = c.getresponse()
        text = r.read().decode(errors="replace")
        return r.status, (r.headers.get("x-amzn-ErrorType") or "").split(":")[0], text
    finally:
        c.close()


def signed(method="GET", path="/2025-09-09/microvms", body=b"", at=None,
           service="lambda", region="us-east-1", key=None):
    """Headers as botocore's signer makes them, at a time of one's own."""
    creds = botocore.credentials.Credentials(*(key or LIVE.key))
    request = botocore.awsrequest.AWSRequest(method, LIVE.url + path, data=body)
    signer = botocore.auth.SigV4Auth(creds, service, region)
    if at is None:
        signer.add_auth(request)
        return dict(request.headers.items())
    real = botocore.auth.get_current_datetime
    botocore.auth.get_current_datetime = lambda *_, **__: at
    try:
        signer.add_auth(request)
    finally:
        botocore.auth.get_current_datetime = real
    return dict(request.headers.items())


def test_raw(_):
    rig.equal(raw({})[:2], (403, "MissingAuthenticationTokenException"),
              "no signature at all")
    rig.equal(raw(signed())[0], 200, "one of botocore's signer")
    rig.equal(raw(signed(service="s3"))[:2],
              (403, "InvalidSignatureException"), "another service's")
    h = signed()
    rig.equal(raw(h)[0], 200, "used")
    rig.equal(raw(h)[0], 200, "the same again, within its time")
    rig.equal(raw(h, query="?maxResults=1")[:2],
              (403, "InvalidSignatureException"), "for another query")
    rig.equal(raw(h, path="/2025-09-09/microvm-images")[:2],
              (403, "InvalidSignatureException"), "for another path")
    rig.equal(raw(h, method="DELETE", path="/2025-09-09/microvms/x")[:2],
              (403, "InvalidSignatureException"), "for another method")
    body = json.dumps({"imageIdentifier": "nobody"}).encode()
    h = signed("POST", body=body)
    rig.equal(raw(h, body, "POST")[0], 404, "a body that is signed")
    rig.equal(raw(h, body.replace(b"nobody", b"nobodx"), "POST")[:2],
              (403, "InvalidSignatureException"), "another body")
    now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
    for minutes, status in ((13, 200), (-13, 200), (17, 403), (-16, 403),
                            (-60 * 24 * 365, 403)):
        got = raw(signed(at=now + datetime.timedelta(minutes=minutes)))
        rig.equal(got[0], status, f"signed {minutes} minutes from now")


def test_only_the_contract(_):
    """What is thaw's own stays on the Unix socket, signed or not."""
    for path in ("/thaw/v1/version", "/thaw/v1/host", "/thaw/v1/images",
                 "/thaw/v1/microvms", "/thaw/v1/events", "/"):
        status, kind, text = raw(signed(path=path), path=path)
        rig.check(status in (403, 404) and '"socket' not in text,
                  f"{path} over TCP: {status}", (kind, text))
        rig.check(raw({}, path=path)[0] in (403, 404), f"{path} unsigned")


def test_port(_):
    rig.equal(t.host().get("listen"), f"127.0.0.1:{LIVE.port}",
              "GET host tells the port")
    rig.equal(t.host().get("keysFile"), os.path.join(t.state, "keys"),
              "and the keys file")
    for junk in (b"GARBAGE\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00",
                 b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", LIVE.port),
                                      rig.PATIENCE) as s:
            s.sendall(junk)
            s.shutdown(socket.SHUT_WR)
            got = s.recv(4096)
        rig.check(not got or b" 40" in got[:16], f"{junk[:20]!r}", got)
    rig.check(ask(LIVE.boto()).ok, "it serves on")


def test_more_keys(_):
    """A second key in the file counts from the next start."""
    with open(os.path.join(t.state, "keys"), "a") as f:
        f.write("\n[second]\naws_access_key_id = %s\n"
                "aws_secret_access_key = %s\n" % SECOND)
    t.restart()
    for c in LIVE.tcp(key=SECOND):
        rig.check(ask(c).ok, f"{c.name}: a second key", ask(c))
    for c in LIVE.tcp(key=(SECOND[0], LIVE.key[1])):
        denied(ask(c), "InvalidSignatureException",
               f"{c.name}: one's id, the other's secret")


live.main(LIVE, [test_keys_file, test_keys, test_regions, test_clock, test_raw,
                 test_only_the_contract, test_port, test_more_keys])
