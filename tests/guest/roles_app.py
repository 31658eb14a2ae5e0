"""The guest's application in test_roles.py: it asks the metadata service, and has
port 80 for itself.

GET /meta?PATH   the service's answer to PATH with a token: status and text
GET /v1?PATH     without one
GET /at-build    what it said while the image was built
GET /port80      who answers on port 80 of 127.0.0.1 and of 169.254.169.254
GET /init?HEX    how often these bytes are in the memory of process 1

Answers are in hex, as it is process 1 that forwards them: what it has of them in its
buffers is not what is looked for.
"""
import http.client
import http.server
import threading

CREDENTIALS = "/latest/meta-data/iam/security-credentials/execution_role"


def ask(method, path, headers, host="169.254.169.254"):
    c = http.client.HTTPConnection(host, 80, timeout=300)
    c.request(method, path, headers=headers)
    r = c.getresponse()
    return r.status, r.read().decode()


def meta(path):
    token = ask("PUT", "/latest/api/token",
                {"X-aws-ec2-metadata-token-ttl-seconds": "60"})[1]
    return "%d %s" % ask("GET", path, {"X-aws-ec2-metadata-token": token})


def in_init(text):
    n = 0
    with open("/proc/1/maps") as maps, open("/proc/1/mem", "rb", 0) as mem:
        for line in maps:
            if " rw" not in line or "[v" in line:
                continue
            first, last = (int(x, 16) for x in line.split()[0].split("-"))
            mem.seek(first)
            n += mem.read(last - first).count(bytes.fromhex(text))
    return n


class App(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path, _, query = self.path.partition("?")
        if path == "/meta":
            text = meta(query)
        elif path == "/v1":
            text = "%d %s" % ask("GET", query, {})
        elif path == "/at-build":
            text = at_build
        elif path == "/port80":
            text = "%d %d" % (ask("GET", "/", {}, "127.0.0.1")[0],
                              ask("GET", "/", {})[0])
        else:
            text = str(in_init(query))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode().hex().encode())

    def log_message(self, *_):
        pass


class Teapot(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(418)
        self.end_headers()

    def log_message(self, *_):
        pass


port80 = http.server.ThreadingHTTPServer(("0.0.0.0", 80), Teapot)
threading.Thread(target=port80.serve_forever, daemon=True).start()
at_build = meta(CREDENTIALS)
http.server.ThreadingHTTPServer(("0.0.0.0", 9090), App).serve_forever()
