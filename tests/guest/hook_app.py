"""The guest's application in test_aws_life.py: it answers lifecycle hooks on its
only port, and tells of them.

GET /calls      what it was asked, in JSON: [[hook, body], ...]
GET /refuse?H   hook H gets 503 from now on; without H, none does
A run hook whose payload is "fail" gets 400.
"""
import http.server
import json

calls = []
refused = ""


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status, text):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self):
        global refused
        path, _, query = self.path.partition("?")
        if path == "/refuse":
            refused = query
        self.answer(200, json.dumps(calls))

    def do_POST(self):
        hook = self.path.rsplit("/", 1)[1]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        calls.append([hook, body])
        print("hook", hook, "from", self.client_address[0], flush=True)
        if body.get("runHookPayload") == "fail":
            self.answer(400, "")
        else:
            self.answer(503 if hook == refused else 200, "")

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("0.0.0.0", 9090), Handler).serve_forever()
