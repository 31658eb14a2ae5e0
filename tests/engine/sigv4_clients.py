#!/usr/bin/env python3
"""Requests signed by real clients, as they arrive: botocore, the AWS SDK for
JavaScript and curl send theirs to a server here, which keeps them as cases for
sigv4_tool (sigv4_case.h has the form).

  sigv4_clients.py --record FILE [--node DIR] [--botocore] [--curl]

writes the cases of tests/golden/sigv4; DIR is where npm has put
@aws-sdk/client-lambda-microvms. test_sigv4_clients.py uses the rest."""

import argparse
import http.server
import json
import os
import subprocess
import sys
import threading
import time

ID = "AKIDTHAWEXAMPLE00001"
SECRET = "thaw/EXAMPLE+secret/0123456789abcdefABCD"
REGION = "eu-central-1"
# What makes encoders disagree: reserved, unreserved, blanks, percent, UTF-8.
AWKWARD = "arn:aws:x/y z+~-._*'()!@$,;=&?#[]%2F\u00e9\u20ac"


class Capture:
    """An HTTP server on a loopback port that answers {} and keeps requests."""

    def __init__(self):
        self.cases = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def take(self):
                length = int(self.headers.get("content-length") or 0)
                # Not self.path, which some Pythons tidy.
                target = self.requestline.split(" ")[1]
                path, _, query = target.partition("?")
                outer.cases.append({
                    "method": self.command, "path": path, "query": query,
                    "headers": [[k, v.encode("latin-1").decode()]
                                for k, v in self.headers.items()],
                    "body": self.rfile.read(length).decode(),
                    "now": int(time.time()), "id": ID, "secret": SECRET,
                    "service": "lambda", "region": REGION, "expect": "ok"})
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = take

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = "http://127.0.0.1:%d" % self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def named(self, client, name):
        """Names the case that has come last."""
        self.cases[-1].update({"from": client, "name": name})


def sample(shape, depth=0):
    """A value that botocore's own checks take, with every member."""
    kind = shape.type_name
    if depth > 5:
        return {} if kind in ("structure", "map") else []
    if kind == "structure":
        members = list(shape.members.items())
        if getattr(shape, "is_tagged_union", False):
            members = members[:1]
        return {k: sample(s, depth + 1) for k, s in members}
    if kind == "list":
        one = sample(shape.member, depth + 1)
        return [one, "B"] if one == AWKWARD else [one]
    if kind == "map":
        return {"a key": sample(shape.value, depth + 1)}
    if kind in ("integer", "long"):
        return shape.metadata.get("min", 1)
    if kind in ("float", "double"):
        return 1.5
    if kind == "boolean":
        return True
    if kind == "timestamp":
        return 1700000000
    if kind == "blob":
        return "bytes"
    if shape.enum:
        return shape.enum[0]
    return AWKWARD + "x" * max(0, shape.metadata.get("min", 0) - len(AWKWARD))


def botocore_client(url, service):
    import botocore.config
    import botocore.session
    session = botocore.session.Session()
    return session.create_client(
        service, region_name=REGION, endpoint_url=url,
        aws_access_key_id=ID, aws_secret_access_key=SECRET,
        config=botocore.config.Config(retries={"max_attempts": 0}))


def have_microvms():
    import botocore.session
    return "lambda-microvms" in botocore.session.Session().get_available_services()


def by_botocore(capture):
    """Every operation of lambda-microvms, or of lambda where botocore is too
    old to know it: both are signed for as "lambda"."""
    import botocore
    service = "lambda-microvms" if have_microvms() else "lambda"
    client = botocore_client(capture.url, service)
    model = client.meta.service_model
    version = "botocore " + botocore.__version__
    for name in model.operation_names:
        op = model.operation_model(name)
        args = sample(op.input_shape) if op.input_shape else {}
        before = len(capture.cases)
        try:
            client._make_api_call(name, args)
        except Exception as e:  # our {} is no answer to some
            if len(capture.cases) == before:
                print("# not sent: %s: %s" % (name, str(e)[:100]))
                continue
        capture.named(version, name)


NODE = """
import {createRequire} from "node:module";
const m = createRequire(process.argv[1])("./");
const {url, region, id, secret, ops} = JSON.parse(process.argv[2]);
const c = new m.LambdaMicrovmsClient({endpoint: url, region, maxAttempts: 1,
  credentials: {accessKeyId: id, secretAccessKey: secret}});
for (const [name, input] of ops) {
  try { await c.send(new m[name + "Command"](input)); }
  catch (e) { if (e.code || !e.$metadata) console.error(name, e.message); }
  console.log(name);
}
"""


def by_node(capture, where):
    """Every operation, with botocore's model giving the inputs."""
    import botocore.session
    model = botocore.session.Session().get_service_model("lambda-microvms")
    package = os.path.join(os.path.abspath(where), "node_modules",
                           "@aws-sdk/client-lambda-microvms")
    with open(os.path.join(package, "package.json")) as f:
        version = "@aws-sdk/client-lambda-microvms " + json.load(f)["version"]
    ops = []
    for name in model.operation_names:
        shape = model.operation_model(name).input_shape
        ops.append((name, sample(shape) if shape else {}))
    before = len(capture.cases)
    names = subprocess.run(
        ["node", "--input-type=module", "-e", NODE,
         os.path.join(package, "package.json"), json.dumps({"url": capture.url, "region": REGION, "id": ID,
                     "secret": SECRET, "ops": ops})],
        stdout=subprocess.PIPE, check=True, text=True).stdout.split()
    got = capture.cases[before:]
    assert len(got) == len(names) == len(ops), (len(got), len(names), len(ops))
    for name, case in zip(names, got):
        case.update({"from": version, "name": name})


def by_curl(capture):
    version = subprocess.run(["curl", "--version"], stdout=subprocess.PIPE,
                             check=True, text=True).stdout.split()[1]
    base = ["curl", "-sS", "--aws-sigv4", "aws:amz:%s:lambda" % REGION,
            "--user", "%s:%s" % (ID, SECRET)]
    for name, args in (
            ("list", ["/2025-09-09/microvms"]),
            ("page", ["/2025-09-09/microvms?maxResults=5"]),
            ("suspend", ["-X", "POST", "/2025-09-09/microvms/m-1/suspend"]),
            ("terminate", ["-X", "DELETE", "/2025-09-09/microvms/m-1"]),
            ("run", ["-H", "Content-Type: application/json", "--data-binary",
                     '{"imageIdentifier":"a b"}', "/2025-09-09/microvms"])):
        subprocess.run(base + args[:-1] + [capture.url + args[-1]],
                       stdout=subprocess.DEVNULL, check=True)
        capture.named("curl " + version, name)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--record", required=True)
    ap.add_argument("--node")
    ap.add_argument("--botocore", action="store_true")
    ap.add_argument("--curl", action="store_true")
    args = ap.parse_args()
    capture = Capture()
    if args.botocore:
        by_botocore(capture)
    if args.node:
        by_node(capture, args.node)
    if args.curl:
        by_curl(capture)
    with open(args.record, "w") as f:
        for case in capture.cases:
            for h in case["headers"]:  # not signed; tells about the machine
                if h[0].lower() == "user-agent":
                    h[1] = "-"
            f.write(json.dumps(case) + "\n")
    print("%d requests" % len(capture.cases))


if __name__ == "__main__":
    sys.exit(main())
