#!/usr/bin/python3
"""scripts/lib/aws-model: Debian's botocore, which does not know the service, speaks
it with the model that is made of docs/openapi.json. TAP on stdout.

A small server of our own answers; it holds no microVMs and proves nothing about
thawd.
"""
import http.server
import json
import os
import subprocess
import sys
import tempfile
import threading

import botocore.session
from botocore.exceptions import ParamValidationError

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
ARN = "arn:aws:lambda:us-east-1:000000000000:microvm-image:demo"
seen = []
count = failed = 0


def check(ok, name, detail=""):
    global count, failed
    count += 1
    failed += not ok
    print(f"{'ok' if ok else 'not ok'} {count} - {name}")
    if not ok:
        print(f"#   {detail}")


class Server(http.server.BaseHTTPRequestHandler):
    """Answers with what `reply` holds, and keeps what it was asked."""
    reply = (200, {}, None)

    def serve(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        seen.append((self.command, self.path, self.headers,
                     json.loads(body) if body else None))
        status, answer, kind = Server.reply
        text = json.dumps(answer).encode() if answer is not None else b""
        self.send_response(status)
        if kind:
            self.send_header("x-amzn-ErrorType", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_DELETE = do_PATCH = do_PUT = serve

    def log_message(self, *_):
        pass


def requests(aws):
    Server.reply = (200, {"microvmId": "microvm-1", "state": "RUNNING",
                          "startedAt": 1700000000.5, "thaw": {"x": 1}}, None)
    vm = aws.run_microvm(imageIdentifier=ARN, idlePolicy={
        "maxIdleDurationSeconds": 60, "suspendedDurationSeconds": 0,
        "autoResumeEnabled": True})
    method, path, headers, body = seen[-1]
    check((method, path) == ("POST", "/2025-09-09/microvms")
          and body["imageIdentifier"] == ARN and body["clientToken"]
          and body["idlePolicy"]["autoResumeEnabled"] is True,
          "a request has its members in the body, and a client token", seen[-1])
    check("/us-east-1/lambda/aws4_request" in headers["Authorization"],
          "and is signed for lambda", headers["Authorization"])
    check(vm["microvmId"] == "microvm-1" and vm["startedAt"].timestamp()
          == 1700000000.5 and "thaw" not in vm,
          "an answer has AWS's members, times as times", vm)
    Server.reply = (204, None, None)
    aws.untag_resource(Resource=ARN, tagKeys=["a b", "c"])
    check(seen[-1][0] == "DELETE" and seen[-1][1].startswith("/2017-03-31/tags/")
          and seen[-1][1].endswith("?tagKeys=a%20b&tagKeys=c"),
          "path and query are filled in", seen[-1][1])
    Server.reply = (200, {"authToken": {"X-aws-proxy-auth": "t"}}, None)
    got = aws.create_microvm_auth_token(
        microvmIdentifier="microvm-1", expirationInMinutes=5,
        allowedPorts=[{"range": {"startPort": 1, "endPort": 2}}])
    check(got["authToken"] == {"X-aws-proxy-auth": "t"} and seen[-1][3] == {
        "expirationInMinutes": 5, "allowedPorts": [
            {"range": {"startPort": 1, "endPort": 2}}]},
          "maps, unions and lists", seen[-1][3])


def errors(aws):
    Server.reply = (409, {"message": "it sleeps", "resourceId": "microvm-1",
                          "resourceType": "microvm"}, "ConflictException")
    try:
        aws.suspend_microvm(microvmIdentifier="microvm-1")
        check(False, "an error is thrown")
    except aws.exceptions.ConflictException as e:
        check(e.response["Error"]["Message"] == "it sleeps"
              and e.response["resourceId"] == "microvm-1",
              "an error is of its own type, with its members", e.response)
    sent = len(seen)
    for name, args in (("run_microvm", {}), ("get_microvm", {}),
                       ("create_microvm_auth_token", {
                           "microvmIdentifier": "m", "expirationInMinutes": 5,
                           "allowedPorts": [{"port": 1, "allPorts": {}}]}),
                       ("run_microvm", {"imageIdentifier": ARN,
                                        "labels": {"a": "b"}})):
        try:
            getattr(aws, name)(**args)
            check(False, f"{name}{args} is refused by the client")
        except ParamValidationError:
            check(len(seen) == sent, f"{name}{args} is refused by the client")


def main():
    with tempfile.TemporaryDirectory(prefix="thaw-model-") as top:
        subprocess.run([os.path.join(ROOT, "scripts/lib/aws-model"),
                        os.path.join(ROOT, "docs/openapi.json"), top],
                       check=True)
        os.environ.update(AWS_DATA_PATH=top, AWS_ACCESS_KEY_ID="AKID",
                          AWS_SECRET_ACCESS_KEY="secret",
                          AWS_CONFIG_FILE="/dev/null",
                          AWS_SHARED_CREDENTIALS_FILE="/dev/null")
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        session = botocore.session.get_session()
        names = session.get_service_model("lambda-microvms").operation_names
        check(len(names) == 24, "all 24 operations are there", names)
        aws = session.create_client(
            "lambda-microvms", region_name="us-east-1",
            endpoint_url=f"http://127.0.0.1:{server.server_port}")
        requests(aws)
        errors(aws)
        server.shutdown()
    print(f"1..{count}")
    sys.exit(1 if failed else 0)


main()
