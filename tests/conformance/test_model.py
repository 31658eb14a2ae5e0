#!/usr/bin/python3
"""Compares the table of engine/shape with botocore's model of the service, member
by member, and lets it judge good and bad values made from each constraint of
the model.

usage: test_model.py shape_tool [FOLDER of another botocore]
"""
import json
import random
import re
import subprocess
import sys

from model import SAMPLES, find_model, use, variants

TOOL = sys.argv[1]
failed = count = 0


def check(ok, what, detail=""):
    global failed, count
    count += 1
    if not ok:
        failed += 1
        print(f"# failed: {what}: {detail}")


path, model, pages = find_model(*sys.argv[2:])
print("#", path)
shapes = model["shapes"]
use(model)
table = json.loads(subprocess.check_output([TOOL, "table"]))


def compare(ours, name, at):
    theirs = shapes[name]
    kind = theirs["type"]
    if "enum" in theirs:
        kind = "enum"
    if theirs.get("union"):
        kind = "union"
    check(ours["type"] == kind, f"{at}: type", f"{ours['type']} {kind}")
    for key in ("min", "max", "pattern"):
        check(ours[key] == theirs.get(key), f"{at}: {key}",
              f"{ours[key]!r}, the model has {theirs.get(key)!r}")
    check(ours["sensitive"] == theirs.get("sensitive", False),
          f"{at}: sensitive")
    check(ours["enum"] == theirs.get("enum", []), f"{at}: values",
          f"{ours['enum']} {theirs.get('enum')}")
    if kind == "list":
        compare(ours["of"], theirs["member"]["shape"], at + "[]")
    elif kind == "map":
        compare(ours["key"], theirs["key"]["shape"], at + "{key}")
        compare(ours["of"], theirs["value"]["shape"], at + "{value}")
    elif kind in ("structure", "union"):
        compare_members(ours, theirs, at)


def compare_members(ours, theirs, at):
    mine = {k: m for k, m in ours["members"].items() if not m["own"]}
    check(set(mine) == set(theirs["members"]), f"{at}: members",
          sorted(set(mine) ^ set(theirs["members"])))
    for k, m in ours["members"].items():
        if m["own"]:
            check(k not in theirs["members"], f"{at}.{k}: still our own")
            check(not m["required"], f"{at}.{k}: ours are optional")
    for k, ref in theirs["members"].items():
        if k not in mine:
            continue
        m, here = mine[k], f"{at}.{k}"
        check(m["required"] == (k in theirs.get("required", [])),
              f"{here}: required", m["required"])
        check(m["place"] == ref.get("location", "body"), f"{here}: place",
              m["place"])
        check(m["wire"] == ref.get("locationName", k), f"{here}: wire name",
              m["wire"])
        check(m["token"] == ref.get("idempotencyToken", False),
              f"{here}: idempotency token")
        compare(m["shape"], ref["shape"], here)


def compare_operations():
    check(set(table) == set(model["operations"]), "the operations",
          sorted(set(table) ^ set(model["operations"])))
    for name, op in model["operations"].items():
        ours = table.get(name)
        if not ours:
            continue
        http = op["http"]
        check(ours["method"] == http["method"], f"{name}: method")
        check(ours["path"] == http["requestUri"], f"{name}: path")
        check(ours["status"] == http["responseCode"], f"{name}: status")
        for flag in ("idempotent", "readonly"):
            check(ours[flag] == op.get(flag, False), f"{name}: {flag}")
        check(ours["paged"] == (name in pages), f"{name}: paged")
        compare(ours["in"], op["input"]["shape"], name)
        check((ours["out"] is None) == ("output" not in op),
              f"{name}: has an answer")
        if "output" in op and ours["out"]:
            compare(ours["out"], op["output"]["shape"], name + "()")
        errors = {e["shape"] for e in op["errors"]}
        check(set(ours["errors"]) == errors, f"{name}: errors",
              sorted(set(ours["errors"]) ^ errors))
        for e in errors & set(ours["errors"]):
            mine = ours["errors"][e]
            check(mine["status"] == shapes[e]["error"]["httpStatusCode"],
                  f"{name}: {e}: status")
            compare(mine["shape"], e, f"{name}!{e}")


# --- values ------------------------------------------------------------------

def judge():
    cases = [(name, *v) for name, op in model["operations"].items()
             for v in variants(op["input"]["shape"])]
    lines = "".join(json.dumps([c[0], c[1]]) + "\n" for c in cases)
    out = subprocess.run([TOOL, "check"], input=lines, text=True,
                         capture_output=True, check=True).stdout.splitlines()
    check(len(out) == len(cases), "every value is judged", len(out))
    good_ones = 0
    for (name, value, ok, what), said in zip(cases, out):
        check((said == "ok") == ok, f"{name}: {what}",
              f"{json.dumps(value)[:300]}: {said}")
        member = re.search(r"\.(\w+):", what) or re.search(
            r"(?:no|null for) (\w+)", what)
        if said != "ok" and member and what not in ("no object", "no map"):
            check(member.group(1) in said, f"{name}: {what}: is named", said)
        good_ones += ok
    print(f"# {len(cases)} values judged, {good_ones} of them good")
    check(good_ones > 100 and len(cases) - good_ones > 300, "enough of both")


def patterns():
    """Random texts near each pattern: our matcher agrees with Python's."""
    rng = random.Random(4)
    alphabet = "arn:aws-lmbd/0129_ Zz.*#+=@$()\t\n\u00e9\u6f22"
    todo = []
    for name, s in shapes.items():
        p = s.get("pattern")
        if not p or "\\p" in p:
            continue
        for _ in range(300):
            t = list(SAMPLES.get(name, "a0-_"))
            for _ in range(rng.randrange(4)):
                i = rng.randrange(len(t) + 1)
                t[i:i + rng.randrange(2)] = rng.choice(alphabet)
            todo.append((p, "".join(t)))
    lines = "".join(json.dumps(x) + "\n" for x in todo)
    out = subprocess.run([TOOL, "match"], input=lines, text=True,
                         capture_output=True, check=True).stdout.split()
    hits = 0
    for (p, t), said in zip(todo, out):
        want = re.fullmatch(p, t, re.A | re.S) is not None
        hits += want
        check((said == "1") == want, f"{p} on {t!r}", said)
    check(len(out) == len(todo) and 0 < hits < len(todo), "both verdicts")


compare_operations()
judge()
patterns()
print(f"1..1\n{'not ok' if failed else 'ok'} 1 - {count} checks, {failed} failed")
sys.exit(1 if failed else 0)
