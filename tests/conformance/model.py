"""botocore's model of the service: its shapes, and values made from each of their
constraints, good ones and bad ones."""
import gzip
import json
import os
import re
import subprocess

SERVICE = "lambda-microvms"
HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))


def clients_folder():
    """Where scripts/lib/test-clients has put AWS's clients; it does so now, if it
    has not yet."""
    return os.environ.get("THAW_CLIENTS") or subprocess.check_output(
        [os.path.join(ROOT, "scripts", "lib", "test-clients")],
        text=True).strip()


def find_model(folder=None):
    """(path, model, pagination) of the botocore in a folder, by default the one
    that the tests' clients have."""
    base = os.path.join(folder or os.path.join(clients_folder(), "python"),
                        "botocore", "data", SERVICE)
    base = os.path.join(base, sorted(os.listdir(base))[-1])
    path = os.path.join(base, "service-2.json.gz")
    with gzip.open(path, "rt") as f:
        model = json.load(f)
    with open(base + "/paginators-1.json") as f:
        return path, model, json.load(f)["pagination"]


SHAPES = {}  # the model's; use() sets them


def use(model):
    SHAPES.update(model["shapes"])


SAMPLES = {  # of patterns that a run of one letter does not match
    "RoleArn": "arn:aws:iam::123456789012:role/x",
    "MicrovmImageArn": "arn:aws:lambda:us-east-1:0:microvm-image:x",
    "TaggableResource":
        "arn:aws:lambda:us-east-1:123456789012:microvm-image:x",
}


def text_of(name, n):
    sample = SAMPLES.get(name, "")
    return sample + "a" * max(0, n - len(sample))


def good(name):
    s = SHAPES[name]
    t = s["type"]
    if "enum" in s:
        return s["enum"][0]
    if t == "string":
        return text_of(name, max(1, s.get("min", 1)))
    if t in ("integer", "long"):
        return max(s.get("min", 1), 1)
    if t == "boolean":
        return True
    if t == "list":
        return [good(s["member"]["shape"])]
    if t == "map":
        return {good(s["key"]["shape"]): good(s["value"]["shape"])}
    if s.get("union"):
        k = next(iter(s["members"]))
        return {k: good(s["members"][k]["shape"])}
    return {k: good(m["shape"]) for k, m in s["members"].items()}


def string_variants(name, s):
    lo, hi = s.get("min"), s.get("max")
    if lo:
        yield "", False, "too short"
        yield text_of(name, lo), True, "shortest"
    if hi:
        yield text_of(name, hi), True, "longest"
        yield text_of(name, hi + 1), False, "too long"
    p = s.get("pattern")
    if p:
        for bad in ("\u0007", " " * max(1, lo or 1), "a:b*c d" * 4, "\n" * 30):
            ok = p.startswith("([\\p{L}") and bad.strip(" ") == "" or \
                "\\p" not in p and re.fullmatch(p, bad, re.A) is not None
            if "*" in bad and "\\p" in p:
                ok = False
            if ok and hi and len(bad) > hi:
                continue
            yield bad, ok, f"pattern {bad[:9]!r}"


def variants(name):
    """(value, is it good, what it is) of each constraint of a shape."""
    s = SHAPES[name]
    t = s["type"]
    if "enum" in s:
        for v in s["enum"]:
            yield v, True, v
        yield "NO_SUCH_VALUE", False, "not of the enum"
        yield s["enum"][0].lower(), False, "the wrong case"
    elif t == "string":
        yield from string_variants(name, s)
        yield 7, False, "a number"
    elif t in ("integer", "long"):
        if "min" in s:
            yield s["min"], True, "least"
            yield s["min"] - 1, False, "too small"
        if "max" in s:
            yield s["max"], True, "greatest"
            yield s["max"] + 1, False, "too great"
        yield 2**(63 if t == "long" else 31) - 1, "max" not in s, "widest"
        if t == "integer":
            yield 2**31, False, "too wide"
        yield 60.5, False, "a fraction"
        yield "60", False, "a text"
        yield True, False, "a boolean"
    elif t == "boolean":
        yield 1, False, "a number"
        yield False, True, "false"
    elif t == "list":
        one = good(s["member"]["shape"])
        for n, ok in ((s.get("min", 0), True), (s.get("min", 0) - 1, False),
                      (s.get("max", 3), True),
                      (s.get("max", 10**9) + 1, False)):
            if 0 <= n < 1000:
                yield [one] * n, ok, f"{n} entries"
        yield {}, False, "no list"
        for v, ok, what in variants(s["member"]["shape"]):
            yield [v], ok, "[]: " + what
    elif t == "map":
        key, value = good(s["key"]["shape"]), good(s["value"]["shape"])
        for n, ok in ((s.get("min", 0), True), (s.get("max", 3), True),
                      (s.get("max", 10**9) + 1, False)):
            if 0 <= n < 1000:
                yield {f"{key}{i}": value for i in range(n)}, ok, \
                    f"{n} entries"
        yield [], False, "no map"
        for v, ok, what in variants(s["key"]["shape"]):
            if isinstance(v, str):
                yield {v: value}, ok, "key: " + what
        for v, ok, what in variants(s["value"]["shape"]):
            yield {key: v}, ok, "value: " + what
    else:
        yield from struct_variants(name, s)


def struct_variants(name, s):
    yield [], False, "no object"
    yield {**good(name), "noSuchMember": 1}, False, "an unknown member"
    if s.get("union"):
        yield {}, False, "no member"
        yield {k: good(m["shape"]) for k, m in s["members"].items()}, \
            len(s["members"]) == 1, "all members"
        for k, m in s["members"].items():
            for v, ok, what in variants(m["shape"]):
                yield {k: v}, ok, f".{k}: {what}"
        return
    whole = good(name)
    for k in s.get("required", []):
        yield {x: v for x, v in whole.items() if x != k}, False, f"no {k}"
        yield {**whole, k: None}, False, f"null for {k}"
    for k, m in s["members"].items():
        if k not in s.get("required", []):
            yield {x: v for x, v in whole.items() if x != k}, True, f"no {k}"
        for v, ok, what in variants(m["shape"]):
            yield {**whole, k: v}, ok, f".{k}: {what}"
