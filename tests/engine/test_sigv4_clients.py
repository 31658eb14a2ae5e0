#!/usr/bin/env python3
"""SigV4 against clients that are installed here: botocore (every operation of
lambda-microvms, or of lambda with an older botocore) and curl sign requests, of
which all are accepted, and none with a byte changed, another secret or 15
minutes and a second later. Then a second implementation of the signer, by the
letter of AWS's description, for forms that no client sends but that are right.

  test_sigv4_clients.py SIGV4_TOOL"""

import copy
import hashlib
import hmac
import json
import os
import random
import subprocess
import sys
import time
import urllib.parse

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import sigv4_clients as clients  # noqa: E402

failures = count = 0
NOW = int(time.time())  # for what is signed here, and for who verifies it


def check(ok, what):
    global failures, count
    if not ok:
        failures += 1
    count += 1
    print("%s - %s" % ("ok" if ok else "not ok", what))


def verdicts(cases):
    """[(name of the error or ok, sentence)] from the verifier."""
    text = "\n".join(json.dumps(c) for c in cases)
    out = subprocess.run([sys.argv[1]], input=text, stdout=subprocess.PIPE,
                         check=True, text=True).stdout
    got = [line.split("\t", 1) for line in out.rstrip("\n").split("\n")]
    assert len(got) == len(cases), (len(got), len(cases))
    return got


def changed(rnd, text):
    """One character another; of a header's value not the blanks around it."""
    at = rnd.randrange(len(text))
    to = chr(rnd.randrange(0x21, 0x7f))
    while to == text[at]:
        to = chr(rnd.randrange(0x21, 0x7f))
    return text[:at] + to + text[at + 1:]


def mutants(rnd, case):
    """The request with one thing altered that the signature covers."""
    signed = next(v for k, v in case["headers"] if k.lower() == "authorization")
    signed = signed.split("SignedHeaders=")[1].split(",")[0].split(";")
    for part in ("method", "path", "query", "body", "secret"):
        if case[part]:
            m = copy.deepcopy(case)
            m[part] = changed(rnd, m[part])
            yield part, m
    for i, (name, _) in enumerate(case["headers"]):
        if name.lower() in signed + ["authorization"]:
            for _ in range(4):
                m = copy.deepcopy(case)
                m["headers"][i][1] = changed(rnd, m["headers"][i][1])
                yield name, m
    m = copy.deepcopy(case)
    m["now"] += 903
    yield "now", m


def test_client(name, cases, rnd):
    for case, (got, why) in zip(cases, verdicts(cases)):
        if got != "ok":
            print("# %s: %s: %s" % (case["name"], got, why))
    good = sum(got == "ok" for got, _ in verdicts(cases))
    check(good == len(cases), "%s: %d of %d requests accepted" %
          (name, good, len(cases)))
    altered = [m for c in cases for m in mutants(rnd, c)]
    got = verdicts([m for _, m in altered])
    bad = [(part, m["name"]) for (part, m), (v, _) in zip(altered, got)
           if v == "ok"]
    check(not bad, "%s: %d of %d altered requests refused %s" %
          (name, len(got) - len(bad), len(got), bad[:3]))
    late = [v for (part, _), (v, _) in zip(altered, got) if part == "now"]
    check(set(late) == {"RequestExpired"}, "%s: late ones are expired" % name)


# --- the signer once more ---------------------------------------------------


def sign(method, path, query, headers, body, stamp, names):
    """The Authorization header; `headers` as (name, value)."""
    def enc(s, safe=""):
        return urllib.parse.quote(s, safe="-._~" + safe)

    def mac(key, text):
        return hmac.new(key, text.encode(), hashlib.sha256).digest()

    pairs = sorted((enc(k), enc(v)) for k, v in query)
    value = {k.lower(): " ".join(v.split()) for k, v in headers}
    canon = "\n".join(
        [method, enc(path, "/"), "&".join("%s=%s" % p for p in pairs)] +
        ["%s:%s" % (n, value[n]) for n in names] +
        ["", ";".join(names), hashlib.sha256(body.encode()).hexdigest()])
    scope = "%s/%s/lambda/aws4_request" % (stamp[:8], clients.REGION)
    text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope,
                      hashlib.sha256(canon.encode()).hexdigest()])
    key = mac(("AWS4" + clients.SECRET).encode(), stamp[:8])
    for part in (clients.REGION, "lambda", "aws4_request"):
        key = mac(key, part)
    return "AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%s" % (
        clients.ID, scope, ";".join(names), mac(key, text).hex())


def made(name, expect="ok", method="GET", path="/2025-09-09/microvms", query=(),
         wire=None, headers=(), body="", at=None, names=None, date=None):
    """A case signed here. `wire`: the query as sent, where not encoded as usual;
    `date`: a (name, value) in place of X-Amz-Date."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(NOW if at is None else at))
    headers = [("Host", "h:1"), date or ("X-Amz-Date", stamp)] + list(headers)
    names = names or sorted(k.lower() for k, _ in headers)
    auth = sign(method, path, query, headers, body, stamp, names)
    if wire is None:
        wire = urllib.parse.urlencode(query, quote_via=urllib.parse.quote)
    return {"name": name, "expect": expect, "method": method, "path": path,
            "query": wire, "headers": [list(h) for h in headers] +
            [["Authorization", auth]], "body": body, "now": NOW,
            "id": clients.ID, "secret": clients.SECRET, "service": "lambda",
            "region": clients.REGION}


def odd_forms():
    now = NOW
    utc = time.gmtime(now)
    http_date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", utc)
    iso = time.strftime("%Y%m%dT%H%M%SZ", utc)
    many = [("h-%03d" % i, "v") for i in range(62)]
    cases = [
        made("plain"),
        made("a body", method="POST", body="{}"),
        made("a Date of HTTP", date=("Date", http_date), at=now),
        made("a Date of ISO", date=("Date", iso), at=now),
        made("both dates", headers=[("Date", "Thu, 01 Jan 1970 00:00:00 GMT")]),
        made("a query out of order", query=[("b", "2"), ("a", "1")],
             wire="b=2&a=1"),
        made("a name that begins another", query=[("a", "1"), ("a-", "0")],
             wire="a-=0&a=1"),
        made("one name, two values", query=[("k", "b"), ("k", "a")],
             wire="k=b&k=a"),
        made("reserved bytes sent raw", query=[("k", "a:b/c,d=e")],
             wire="k=a:b/c,d=e"),
        made("an empty value", query=[("k", "")], wire="k="),
        made("a raw : in the path", path="/2025-09-09/microvms/a:b"),
        made("an escape in the path", path="/2025-09-09/microvms/a%2Fb%zz"),
        made("a slash at the end", path="/2025-09-09/microvms/"),
        made("runs of blanks", headers=[("X-Amz-Meta", "  a   b  c ")]),
        made("an empty header", headers=[("X-Empty", "")]),
        made("64 signed headers", headers=many),
        made("65 signed headers", "IncompleteSignatureException",
             headers=many + [("h-063", "v")]),
        made("a tab in a header", "InvalidSignatureException",
             headers=[("X-Meta", "a\tb")]),
        made("899 s ago", at=now - 898),
        made("17 minutes ago", "RequestExpired", at=now - 1020),
        made("in 17 minutes", "RequestExpired", at=now + 1020),
        made("a dot segment", "InvalidSignatureException", path="/a/../b"),
        made("a + for a blank", "InvalidSignatureException",
             query=[("k", "a b")], wire="k=a+b"),
        made("escapes in lower case", "InvalidSignatureException",
             query=[("k", ":")], wire="k=%3a"),
        made("an unsigned X-Amz-", "IncompleteSignatureException",
             headers=[("X-Amz-Target", "t")], names=["host", "x-amz-date"]),
    ]
    for case, (got, why) in zip(cases, verdicts(cases)):
        check(got == case["expect"], "%s: %s %s" % (case["name"], got, why))


def main():
    rnd = random.Random(4)
    try:
        import botocore  # noqa: F401
    except ImportError:
        print("1..0 # skipped: botocore is not installed (python3-botocore)")
        return 77
    for name, client, least in (("botocore", clients.by_botocore, 20),
                                ("curl", clients.by_curl, 5)):
        capture = clients.Capture()
        client(capture)
        check(len(capture.cases) >= least, "%s sent %d requests" %
              (name, len(capture.cases)))
        test_client(name, capture.cases, rnd)
    odd_forms()
    print("1..%d" % count)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
