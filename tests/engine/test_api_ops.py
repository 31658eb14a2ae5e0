#!/usr/bin/python3
"""Every operation of the contract against thawd with FAKE cells: each constraint
of the table (engine/shape) broken once, by the operation's own error; and tags,
which have no file of their own.

usage: test_api_ops.py PATH-OF-thawd-fake LIBEXEC shape_tool [-k WORD]
"""
import json
import subprocess
import sys
import urllib.parse

from thawd_rig import AWS, OWN, Thawd, check, contains, equal, main

BIN, LIBEXEC, TOOL = sys.argv[1], sys.argv[2], sys.argv[3]
TABLE = json.loads(subprocess.check_output([TOOL, "table"]))
PREFIX = "arn:aws:lambda:us-east-1:000000000000:microvm-image:"
ROLE = "arn:aws:iam::123456789012:role/x"
# Requests that pass every check and then name what there is not.
NOSUCH = {
    "imageIdentifier": "nosuch", "microvmIdentifier": "nosuch",
    "imageVersion": "9.9", "buildId": "nosuch", "status": "ACTIVE",
    "name": "nosuch", "baseImageArn": "arn:nosuch", "buildRoleArn": ROLE,
    "codeArtifact": {"uri": "file:///nosuch.zip"},
    "expirationInMinutes": 5, "allowedPorts": [{"port": 80}],
    "Resource": PREFIX + "nosuch", "Tags": {"a": "b"}, "TagKeys": ["a"],
}


def request(t, op, members):
    """Sends the members to where the table has them."""
    o = TABLE[op]
    path, query, body = o["path"], [], {}
    for k, v in members.items():
        m = o["in"]["members"].get(k, {"place": "body", "wire": k})
        if m["place"] == "uri":
            path = path.replace("{%s}" % k,
                                urllib.parse.quote(str(v), safe=""))
        elif m["place"] == "querystring":
            query += [(m["wire"], x) for x in
                      (v if isinstance(v, list) else [v])]
        else:
            body[m["wire"]] = v
    if query:
        path += "?" + urllib.parse.urlencode(query,
                                             quote_via=urllib.parse.quote)
    return t.request(o["method"], path, body if body else None)


def base(op):
    return {k: NOSUCH[k] for k, m in TABLE[op]["in"]["members"].items()
            if m["required"]}


def sample(s):
    """A good value of a shape; None: this test knows none."""
    kind = s["type"]
    if kind == "enum":
        return s["enum"][0]
    if kind in ("integer", "long"):
        return s["min"] if s["min"] is not None else 1
    if kind == "boolean":
        return True
    if kind == "list":
        return [sample(s["of"])] * max(1, s["min"] or 0)
    if kind == "map":
        return {sample(s["key"]): sample(s["of"])}
    if kind == "union":
        k = sorted(s["members"])[0]
        return {k: sample(s["members"][k]["shape"])}
    if kind == "structure":
        return {k: sample(m["shape"]) for k, m in s["members"].items()
                if m["required"]}
    p = s["pattern"] or ""
    if "role/" in p:
        return ROLE
    if "microvm-image" in p:
        return PREFIX + "nosuch"
    return "a" * max(1, s["min"] or 0)


def bad(s, place):
    """(value, a part of the sentence) for each constraint of a shape."""
    kind, text = s["type"], place != "body"
    lo, hi = s["min"], s["max"]
    if not text and kind != "any":
        yield ([] if kind in ("structure", "union", "map") else {}), "must be"
    if kind == "string":
        if hi is not None and hi < 9000:
            fill = sample(s)
            yield fill + "a" * (hi + 1 - len(fill)), f"{hi}"
        if lo and not (text and place == "uri"):
            yield "", f"{lo}"
        if s["pattern"] and not s["pattern"].startswith("(["):
            yield "a: b" + "c" * (lo or 0), "regular expression"
    elif kind == "enum":
        yield "NEITHER", "enum value set"
    elif kind in ("integer", "long"):
        if lo is not None:
            yield lo - 1, f"{lo}"
        if hi is not None:
            yield hi + 1, f"{hi}"
        yield ("x" if text else 1.5), "an integer"
        yield 2 ** 40, ""
    elif kind == "list":
        if hi is not None:
            yield [sample(s["of"])] * (hi + 1), f"{hi}"
        if lo:
            yield [], f"{lo}"
        for v, part in bad(s["of"], place):
            yield [v], part
    elif kind == "map":
        if hi is not None:
            yield {f"k{i}": sample(s["of"]) for i in range(hi + 1)}, f"{hi}"
        yield {"": sample(s["of"])}, "Key"
        for v, part in bad(s["of"], place):
            yield {sample(s["key"]): v}, part
    elif kind in ("structure", "union"):
        yield from bad_members(s)


def bad_members(s):
    whole = sample(s)
    yield dict(whole, nosuch=1), ("unknown" if s["members"] else "empty")
    if s["type"] == "union":
        yield {}, "exactly one"
        if len(s["members"]) > 1:
            yield {k: sample(m["shape"])
                   for k, m in s["members"].items()}, "exactly one"
        whole = {}
    for k, m in s["members"].items():
        if m["required"]:
            yield {x: v for x, v in whole.items() if x != k}, "not be null"
        for v, part in bad(m["shape"], "body"):
            yield dict(whole, **{k: v}), part


def refused(a, op, part, name):
    kind = "InvalidParameterValueException" if "Tag" in op or "tag" in op else \
        "ValidationException"
    return check(a.status == 400 and a.type == kind and part in a.message,
                 name, f"got {a!r}, want {kind} with {part!r}")


def test_reach(t):
    """Every operation has a handler, and says what there is not."""
    for op in TABLE:
        a = request(t, op, base(op))
        check(a.status in (200, 400, 404), f"{op} is served", a)
        if a.status == 404:
            equal(a.type, "ResourceNotFoundException", f"{op}: its error")
            check(a.json.get("resourceId"), f"{op}: and which", a)
    equal(len(TABLE), 24, "the operations are all there")


def test_constraints(t):
    for op, o in TABLE.items():
        for k, m in o["in"]["members"].items():
            if m["shape"]["type"] == "any":
                continue
            for v, part in bad(m["shape"], m["place"]):
                if v == [] and m["place"] == "querystring":
                    continue  # as good as absent
                a = request(t, op, dict(base(op), **{k: v}))
                if not refused(a, op, part,
                               f"{op}.{k} = {json.dumps(v)[:60]}"):
                    continue
                if "empty" not in part:
                    contains(a.message, k, f"{op}.{k} is named")


def test_missing_and_unknown(t):
    for op, o in TABLE.items():
        for k, m in o["in"]["members"].items():
            if not m["required"] or m["place"] == "uri":
                continue
            some = base(op)
            del some[k]
            refused(request(t, op, some), op, k, f"{op} without {k}")
            if m["place"] == "body":
                some[k] = None
                refused(request(t, op, some), op, k, f"{op} with {k} null")
        refused(request(t, op, dict(base(op), nosuch=1)), op, "nosuch",
                f"{op} with an unknown member")
        path = o["path"]
        for k in NOSUCH:
            path = path.replace("{%s}" % k,
                                urllib.parse.quote(str(NOSUCH[k]), safe=""))
        a = t.request(o["method"], path + "?nosuch=1")
        refused(a, op, "nosuch", f"{op} with an unknown parameter")
        a = t.request(o["method"], path, b'{"a":1,"a":1}')
        refused(a, op, "JSON", f"{op} with a member twice")
        a = t.request(o["method"], path, b"[]")
        refused(a, op, "JSON object", f"{op} with a list for a body")


def test_page_tokens(t):
    for i in range(3):
        t.build(name=f"page{i}", kernel="/proc/self/exe", memoryMiB=64)
    path = AWS + "/microvm-images?maxResults=1"
    token = t.get(path).json["nextToken"]
    second = t.get(f"{path}&nextToken={token}").json
    equal(len(second["items"]), 1, "another page")
    t.restart()
    equal(t.get(f"{path}&nextToken={token}").json["items"], second["items"],
          "a token outlives thawd")
    equal(t.get(f"{AWS}/microvm-images?maxResults=2&nextToken={token}")
          .json["items"][:1], second["items"], "and goes with any maxResults")
    for name, other in (
            ("another filter", f"{path}&nameFilter=p&nextToken={token}"),
            ("another list", f"{AWS}/microvms?nextToken={token}"),
            ("an altered one", f"{path}&nextToken={token[:-2]}"
             f"{'A' if token[-2] != 'A' else 'B'}{token[-1]}"),
            ("a shorter one", f"{path}&nextToken={token[:-1]}"),
            ("none at all", f"{path}&nextToken=")):
        a = t.get(other)
        check(a.status == 400 and "nextToken" in a.message,
              f"{name}: 400", a)


def by_pages(t, path, delete):
    """Names, or versions, page by page, each deleted when it is seen."""
    seen, token = [], ""
    while True:
        a = t.get(f"{path}?maxResults=2" + token).json
        for item in a["items"]:
            seen.append(item.get("name") or item["imageVersion"])
            if delete(seen[-1]):
                t.delete(f"{path}/{seen[-1]}")
        if "nextToken" not in a:
            return seen
        token = "&nextToken=" + a["nextToken"]


def test_deleting_by_pages(t):
    for _ in range(6):
        t.build(name="many", kernel="/proc/self/exe", memoryMiB=64)
    path = AWS + "/microvm-images"
    equal(by_pages(t, path + "/many/versions", lambda v: v != "6.0"),
          [f"{n}.0" for n in range(1, 7)],
          "who deletes versions page by page meets each")
    equal(t.get(path + "/many/versions").json["items"][0]["imageVersion"],
          "6.0", "and they are gone")
    names = [f"del{i}" for i in range(6)]
    for name in names:
        t.build(name=name, kernel="/proc/self/exe", memoryMiB=64)
    seen = by_pages(t, path, lambda name: name in names)
    equal(sorted(x for x in seen if x in names), names,
          "who deletes images page by page meets each")
    equal(len(seen), len(set(seen)), "and each once")


# --- names ---------------------------------------------------------------------

def test_whole_names(t):
    path = AWS + "/microvm-images/"
    for _ in range(2):
        t.build(name="webshop", kernel="/proc/self/exe", memoryMiB=64)
    equal(t.get(path + "web").json["name"], "webshop",
          "a beginning of a name is enough to look")
    some = base("UpdateMicrovmImage")
    some.pop("imageIdentifier", None)
    for name, a in (
            ("to delete", t.delete(path + "web")),
            ("to delete a version", t.delete(path + "web/versions/1.0")),
            ("to change a version", t.request(
                "PATCH", path + "web/versions/1.0", {"status": "INACTIVE"})),
            ("to make another version", t.request("PUT", path + "web", some))):
        check(a.status == 404 and a.type == "ResourceNotFoundException" and
              "webshop" in a.message and "whole name" in a.message,
              f"but not {name}", a)
    equal([(v["version"], v["status"])
           for v in t.get(OWN + "/images/webshop").json["versions"]],
          [("1.0", "ACTIVE"), ("2.0", "ACTIVE")], "all is as it was")
    equal(t.delete(path + "webshop").status, 200, "by the whole name it goes")


# --- tags ----------------------------------------------------------------------

def tags_path(arn):
    return "/2017-03-31/tags/" + urllib.parse.quote(arn, safe="")


def test_tags(t):
    path = tags_path(PREFIX + "img")
    equal(t.get(path).json, {"Tags": {}}, "none at first")
    a = t.post(path, {"Tags": {"team": "blue", "Größe": "ja: +-@/=._", "e": ""}})
    equal((a.status, a.text), (204, ""), "TagResource answers 204 and nothing")
    want = {"team": "blue", "Größe": "ja: +-@/=._", "e": ""}
    equal(t.get(path).json["Tags"], want, "ListTags")
    t.post(path, {"Tags": {"team": "red", "new": "1"}})
    want.update(team="red", new="1")
    equal(t.get(path).json["Tags"], want, "one is changed, one is added")
    equal(t.get(f"{AWS}/microvm-images/img").json["tags"], want,
          "GetMicrovmImage has them")
    t.restart()
    equal(t.get(path).json["Tags"], want, "they outlive thawd")
    a = t.delete(path + "?tagKeys=new&tagKeys=e&tagKeys=nosuch")
    equal((a.status, a.text), (204, ""), "UntagResource answers 204")
    equal(sorted(t.get(path).json["Tags"]), ["Größe", "team"],
          "two are gone, and one that was not there")
    equal(t.post(path, {"Tags": {}}).status, 204, "no tags at all are fine")
    check(any(e["type"] == "image.tags" and e["image"] == "img"
              for e in t.events()), "an event says so")


def test_tag_limits(t):
    path = tags_path(PREFIX + "img")
    t.delete(path + "?tagKeys=team&tagKeys=Gr%C3%B6%C3%9Fe")
    equal(t.post(path, {"Tags": {f"k{i}": "v" for i in range(50)}}).status,
          204, "50 tags")
    a = t.post(path, {"Tags": {"k50": "v"}})
    refused(a, "TagResource", "at most 50", "and not one more")
    equal(a.json.get("Type"), "User", "the error says whose it is")
    equal(len(t.get(path).json["Tags"]), 50, "nothing was added")
    equal(t.post(path, {"Tags": {"k1": "w"}}).status, 204,
          "one that is there may change")
    a = t.delete(path + "?" + "&".join(f"tagKeys=k{i}" for i in range(50)))
    equal(a.status, 204, "50 are taken off at once")
    refused(t.post(path, {"Tags": {"aws:x": "y"}}), "TagResource", "AWS's own",
            "a reserved key")
    refused(t.post(path, {"Tags": {"a!": "y"}}), "TagResource",
            "regular expression", "a key with another character")
    for arn in (PREFIX + "im", PREFIX + "nosuch",
                PREFIX.replace("us-east-1", "eu-west-1") + "img",
                PREFIX.replace("000000000000", "000000000001") + "img",
                "arn:aws:lambda:us-east-1:000000000000:function:img"):
        for a in (t.get(tags_path(arn)),
                  t.post(tags_path(arn), {"Tags": {"a": "b"}}),
                  t.delete(tags_path(arn) + "?tagKeys=a")):
            check(a.status == 404 and a.type == "ResourceNotFoundException"
                  and a.json["resourceId"] == arn and a.json["Type"] == "User",
                  f"tags of {arn[-40:]}: 404", a)
    for arn in ("img", "arn:aws:lambda:us-east-1:000000000000:microvm:x"):
        refused(t.get(tags_path(arn)), "ListTags", "Resource",
                f"tags of {arn[-20:]}")
    a = t.post(AWS + "/microvm-images", dict(
        base("CreateMicrovmImage"), tags={f"k{i}": "v" for i in range(51)}))
    check(a.status == 400 and a.type == "ValidationException" and
          "at most 50" in a.message, "an image is not made with more", a)


def run():
    t = Thawd(BIN, libexec=LIBEXEC).start()
    try:
        t.build(name="img", kernel="/proc/self/exe", memoryMiB=64)
        return main([v for k, v in globals().items()
                     if k.startswith("test_")], t)
    finally:
        t.remove()


sys.exit(run())
