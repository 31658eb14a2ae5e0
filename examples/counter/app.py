"""A counter that lives in memory: what scripts/demo freezes and thaws.

GET /        counts, and says what tells one copy from another
POST /file   writes the request's body to a file
GET /file    reads it back
"""

import os
import time
import uuid

from flask import Flask, Response, jsonify, request

FILE = os.environ.get("COUNTER_FILE", "/var/tmp/counter.txt")

app = Flask(__name__)
count = 0


@app.get("/")
def index():
    global count
    count += 1
    return jsonify(
        count=count, uuid=str(uuid.uuid4()), time=time.time(), pid=os.getpid()
    )


@app.post("/file")
def write_file():
    with open(FILE, "wb") as out:
        out.write(request.get_data())
        out.flush()
        os.fsync(out.fileno())
    return jsonify(bytes=os.path.getsize(FILE))


@app.get("/file")
def read_file():
    try:
        with open(FILE, "rb") as file:
            return Response(file.read(), mimetype="application/octet-stream")
    except FileNotFoundError:
        return jsonify(error="no file was written"), 404


if __name__ == "__main__":
    app.run(host="0.0.0.0", port=int(os.environ.get("PORT", "8080")))
