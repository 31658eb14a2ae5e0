#!/usr/bin/python3
"""Every constraint of the model, broken once through AWS's own clients: the server
refuses each with the operation's error for it, and its message names the member.
What the constraint just allows is not refused for it. No guest runs (thawd-fake).

usage: test_constraints.py PATH-OF-thawd-fake LIBEXEC [-k WORD]

botocore's own checks are off (parameter_validation); the SDK for JavaScript has
none. What a client cannot express (a number for a text, an empty path label) is
tests/engine's and test_model.py's.
"""
import json
import sys

import live
import model
from clients import CONNECTOR, OPS, REGION
from live import BASE, ROLE, rig

LIVE = live.Live(sys.argv[1], libexec=sys.argv[2])
# By what a variant is called: those that both clients send as they are.
SENT = ("too short", "too long", "pattern", "not of the enum", "wrong case",
        "too small", "too great", "entries", "no member", "all members", "no ")
UNSENT = ("no list", "no map", "no object")
IMAGE = {"baseImageArn": BASE, "buildRoleArn": ROLE,
         "codeArtifact": {"uri": "file:///nonexistent.zip"}}
NOBODY = f"arn:aws:lambda:{REGION}:123456789012:microvm-image:nobody"
# Required members with values that lead nowhere: what is not refused is not found.
BASES = {
    "CreateMicrovmImage": {"name": "nobody", **IMAGE},
    "UpdateMicrovmImage": IMAGE,
    "CreateMicrovmAuthToken": {"expirationInMinutes": 5,
                               "allowedPorts": [{"port": 80}]},
    "CreateMicrovmShellAuthToken": {"expirationInMinutes": 5},
    "UpdateMicrovmImageVersion": {"status": "ACTIVE"},
    "TagResource": {"Tags": {"a": "b"}},
    "UntagResource": {"TagKeys": ["a"]},
}
LABELS = {"imageIdentifier": "nobody", "microvmIdentifier": "microvm-nobody",
          "imageVersion": "1.0", "buildId": "1", "Resource": NOBODY}
# Valid by the model, and refused for what they mean; the endpoint's limits and
# those of docs/API.md.
MEANING = {"ingressNetworkConnectors", "egressNetworkConnectors",
           "baseImageArn", "baseImageVersion", "imageVersion",
           "expirationInMinutes", "uri", "nextToken", "chipset",
           "chipsetGeneration", "architecture", "minimumMemoryInMiB", "hooks",
           "cpuConfigurations", "resources", "kmsKeyIdentifier"}


def base_of(op):
    shape = model.SHAPES[OPS[op]["input"]["shape"]]
    whole = dict(BASES.get(op, {}))
    for k, m in shape["members"].items():
        if m.get("location") == "uri":
            whole[k] = LABELS[k]
    if op == "RunMicrovm":
        whole["imageIdentifier"] = "nobody"
    return shape, whole


def cases(op):
    """(input, allowed, member, what) of each constraint of an operation."""
    shape, whole = base_of(op)
    for k in shape.get("required", []):
        if shape["members"][k].get("location") != "uri":
            yield {x: v for x, v in whole.items() if x != k}, False, k, f"no {k}"
    for k, m in shape["members"].items():
        place = m.get("location")
        for v, ok, what in model.variants(m["shape"]):
            last = what.rsplit(": ", 1)[-1]
            if not ok and (last in UNSENT or not any(s in last for s in SENT)):
                continue
            if place == "uri" and (v == "" or "\n" in v or "\a" in v):
                continue
            if place == "querystring" and (v == "" or v == []):
                continue  # neither client sends an empty one
            if place == "querystring" and "\\" in repr(v):
                continue  # refused as malformed, before anything is read
            yield {**whole, k: v}, ok, k, f".{k}: {what}"


def named(member, what, message):
    """The message has the member, or the one below it that is wrong."""
    inner = [p.split(":")[0] for p in what.split(".")[1:]]
    missing = [what.rsplit("no ", 1)[1]] if "no " in what else []
    return any(n and n in message for n in [member, *inner, *missing])


# Members that the SDK for JavaScript of our version does not know, and leaves out.
UNKNOWN = {"JavaScript": {"kmsKeyIdentifier"}}


def one_operation(client, op):
    wrong = "InvalidParameterValueException" if op in (
        "ListTags", "TagResource", "UntagResource") else "ValidationException"
    sent = 0
    for given, ok, member, what in cases(op):
        if ok and op == "CreateMicrovmImage":
            continue  # test_contract.py's: that one is not refused at all
        if member in UNKNOWN.get(client.name, ()):
            continue
        r = client.call(op, **given)
        if r.status is None:
            if ok:
                rig.check(False, f"{client.name}: {op} {what}: is sent", r)
            continue  # the client's own refusal
        sent += 1
        text = f"{client.name}: {op} {what}"
        if ok:
            inside = [p.split(":")[0] for p in what.split(".")[1:]]
            fine = r.status in (200, 404) or (
                r.status == 400 and MEANING & {member, *inside})
            rig.check(fine, f"{text}: is not refused", r)
        else:
            rig.check(r.status == 400 and r.code == wrong and r.typed and
                      named(member, what, r.message),
                      f"{text}: is refused and named",
                      f"{r!r}\nsent {json.dumps(given)[:200]}")
    return sent


def constraints_of(client):
    def test(_):
        sent = sum(one_operation(client(), op) for op in OPS)
        rig.check(sent >= 250, f"{client().name} sent {sent} of them")
    return test


made = {}


def client(which):
    if which not in made:
        made[which] = LIVE.boto(validate=False) if which == "boto" \
            else LIVE.js()
    return made[which]


def test_botocore(_):
    constraints_of(lambda: client("boto"))(_)


def test_javascript(_):
    constraints_of(lambda: client("js"))(_)


def test_nothing_was_made(_):
    rig.equal(LIVE.thawd.get("/thaw/v1/images").json["items"], [],
              "no image came of it")
    rig.equal(client("boto").call("ListMicrovms")["items"], [], "no microVM")
    rig.check(CONNECTOR.startswith("arn:"), "connectors are ARNs")


live.main(LIVE, [test_botocore, test_javascript, test_nothing_was_made])
