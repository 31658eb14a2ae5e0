"""An application that takes part in its microVM's life: pages on port 8080, and
the lifecycle hooks of AWS Lambda MicroVMs on port 9000.

Whatever is slow to get happens once, before the image is frozen; what must differ
from copy to copy comes with the run hook.
"""
import json
import threading
import time

from flask import Flask, jsonify, request
from werkzeug.serving import make_server

app = Flask("pages")
hooks = Flask("hooks")
HOOK = "/aws/lambda-microvms/runtime/v1/"

state = {"session": "", "microvm": "", "count": 0, "log": []}
table = {}


def load():
    """What stands for a model, a cache, a connection pool."""
    for i in range(50000):
        table[i] = i * i
    time.sleep(1)
    table["complete"] = True


@app.get("/")
def page():
    state["count"] += 1
    return jsonify(session=state["session"], microvm=state["microvm"],
                   count=state["count"], entries=len(table), log=state["log"])


@hooks.post(HOOK + "ready")
def ready():
    """503: ask again. 200: freeze the image now."""
    return "", 200 if "complete" in table else 503


@hooks.post(HOOK + "validate")
def validate():
    """Called in a copy that is thrown away: what it touches is loaded first in
    every later one."""
    answer = app.test_client().get("/")
    return "", 200 if answer.status_code == 200 else 500


@hooks.post(HOOK + "run")
def run():
    """Once in each copy, before its first request."""
    told = request.get_json(force=True)
    payload = json.loads(told.get("runHookPayload") or "{}")
    state["microvm"] = told["microvmId"]
    state["session"] = payload.get("session", "")
    state["log"].append("run")
    return "", 200


@hooks.post(HOOK + "suspend")
def suspend():
    """The place to write what must not be lost."""
    state["log"].append("suspend")
    with open("/var/tmp/state.json", "w", encoding="utf-8") as f:
        json.dump(state, f)
    return "", 200


@hooks.post(HOOK + "resume")
def resume():
    state["log"].append("resume")
    return "", 200


@hooks.post(HOOK + "terminate")
def terminate():
    print("terminate: session", state["session"], "over", flush=True)
    return "", 200


if __name__ == "__main__":
    threading.Thread(target=load).start()
    threading.Thread(target=make_server("0.0.0.0", 9000, hooks, threaded=True)
                     .serve_forever).start()
    make_server("0.0.0.0", 8080, app, threaded=True).serve_forever()
