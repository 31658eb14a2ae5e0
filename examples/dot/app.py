"""Linear algebra over HTTP: what a second image of scripts/rootfs is made of.

GET /        multiplies two matrices that were made before the freeze
GET /?N      multiplies N x N ones (at most 512) made for this request
"""

import http.server
import json
import os

import numpy as np

SIZE = 256
VERSION = "1"

rng = np.random.default_rng(7)
left = rng.standard_normal((SIZE, SIZE))
right = rng.standard_normal((SIZE, SIZE))


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        query = self.path.partition("?")[2]
        if query:
            n = max(1, min(int(query), 512))
            product = np.dot(np.ones((n, n)), np.ones((n, n)))
        else:
            product = np.dot(left, right)
        text = json.dumps(
            {
                "version": VERSION,
                "n": product.shape[0],
                "trace": round(float(np.trace(product)), 6),
            }
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format, *args):
        pass


if __name__ == "__main__":
    port = int(os.environ.get("PORT", "8080"))
    np.dot(left, right)  # the library's threads and buffers are there now
    http.server.ThreadingHTTPServer(("0.0.0.0", port), Handler).serve_forever()
