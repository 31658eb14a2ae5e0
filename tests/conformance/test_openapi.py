#!/usr/bin/python3
"""docs/openapi.json is what the program says, and hangs together.

usage: test_openapi.py thawd docs/openapi.json
"""
import json
import re
import subprocess
import sys

thawd, path = sys.argv[1:3]
failed = count = 0


def check(ok, what, detail=""):
    global failed, count
    count += 1
    if not ok:
        failed += 1
        print(f"# failed: {what}: {detail}")


text = subprocess.check_output([thawd, "--openapi"], text=True)
with open(path) as f:
    committed = f.read()
check(text == committed, "docs/openapi.json is current",
      "write it anew: thawd --openapi > docs/openapi.json")
doc = json.loads(text)
check(doc["openapi"].startswith("3.1."), "OpenAPI 3.1")
used, names = set(), []


def walk(v):
    if isinstance(v, list):
        for x in v:
            walk(x)
    if not isinstance(v, dict):
        return
    if "$ref" in v:
        kind, name = re.fullmatch(r"#/components/(\w+)/(\w+)",
                                  v["$ref"]).groups()
        check(name in doc["components"][kind], f"{name} is defined")
        used.add(name)
    if v.get("type") == "string" and "pattern" in v and \
            "\\p" not in v["pattern"]:
        re.compile(v["pattern"])
    if "required" in v and "properties" in v:
        check(set(v["required"]) <= set(v["properties"]),
              "what is required is declared", v)
    for x in v.values():
        walk(x)


walk(doc)
check(used == set(doc["components"]["schemas"]), "every schema is used",
      used ^ set(doc["components"]["schemas"]))
for p, methods in doc["paths"].items():
    for method, op in methods.items():
        names.append(op["operationId"])
        labels = {x["name"] for x in op["parameters"] if x["in"] == "path"}
        check(labels == set(re.findall(r"\{(\w+)\}", p)),
              f"{op['operationId']}: its labels are declared", labels)
        check(all(x["required"] for x in op["parameters"]
                  if x["in"] == "path"), "labels are required")
        check(any(s.startswith("2") for s in op["responses"]) and
              {"400", "403", "429", "500"} <= set(op["responses"]),
              f"{op['operationId']}: answers", sorted(op["responses"]))
check(len(names) == len(set(names)) == 24, "24 operations", len(names))
print(f"1..1\n{'not ok' if failed else 'ok'} 1 - {count} checks")
sys.exit(1 if failed else 0)
