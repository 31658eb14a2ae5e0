#!/usr/bin/python3
"""All operations of the contract through AWS's own clients, over TCP with signed
requests: answers against the model's shapes, typed errors, pages, client tokens
across a restart, tags, tokens. The microVMs are fakes (thawd-fake), the images are
built. What needs a guest is tests/guest/test_conformance.py's.

usage: test_contract.py PATH-OF-thawd-fake LIBEXEC [-k WORD]
"""
import json
import os
import re
import sys
import time

import clients
import live
from clients import ARN, CONNECTOR, OPS
from live import BASE, ROLE, good, image_arn, refused, rig

LIVE = live.Live(sys.argv[1], "--memory-budget", "16G", libexec=sys.argv[2])
t = LIVE.thawd
FILES = LIVE.files
CODE = FILES.zip("app", {"Dockerfile": "FROM scratch\nCOPY app /app\n"
                         "EXPOSE 8080\nCMD [\"/app\"]\n", "app": "x"})
BROKEN = FILES.zip("broken", {"Dockerfile": "FROM scratch\nCOPY none /x\n"
                              "CMD [\"/x\"]\n"})
ALL = {"baseImageArn": BASE, "buildRoleArn": ROLE, "codeArtifact": {"uri": CODE},
       "resources": [{"minimumMemoryInMiB": 512}]}
both = []  # the clients, over TCP


def wait_image(c, name, *states):
    end = time.monotonic() + 5 * rig.PATIENCE
    while True:
        r = c.call("GetMicrovmImage", imageIdentifier=name)
        if not r.ok or r["state"] in states or time.monotonic() > end:
            return r
        time.sleep(0.1)


def wait_vm(c, ident, state):
    end = time.monotonic() + rig.PATIENCE
    while True:
        r = c.call("GetMicrovm", microvmIdentifier=ident)
        if not r.ok or r["state"] in (state, "TERMINATED") or \
                time.monotonic() > end:
            return r
        time.sleep(0.05)


def make(c, name, **more):
    r = c.call("CreateMicrovmImage", name=name, **{**ALL, **more})
    if r.ok:
        r.built = wait_image(c, r["imageArn"], "CREATED", "CREATE_FAILED")
    return r


def named(c):
    """A name of this client's own."""
    return "img-" + c.name.lower()


# --- images ---------------------------------------------------------------------

FULL = {
    "description": "an image with everything",
    "environmentVariables": {"GREETING": "hello world", "EMPTY": ""},
    "logging": {"cloudWatch": {"logGroup": "/aws/lambda-microvms/x",
                               "logStream": "one"}},
    "additionalOsCapabilities": ["ALL"],
    "cpuConfigurations": [{"architecture": "X86_64"}],
    "hooks": {"port": 9000,
              "microvmHooks": {"run": "DISABLED", "runTimeoutInSeconds": 5}},
    "tags": {"team": "blue", "empty": ""},
}


def images(c):
    name, arn = named(c), image_arn(named(c))
    r = good(c.call("CreateMicrovmImage", name=name, clientToken="c" + name,
                    **ALL, **FULL), "CreateMicrovmImage", c.name)
    rig.equal((r["name"], r["imageArn"], r["imageVersion"]),
              (name, arn, "1.0"), f"{c.name}: its name, ARN and version")
    rig.check(r["state"] in ("CREATING", "CREATED"), f"{c.name}: CREATING", r)
    for k, v in {**FULL, **ALL}.items():
        rig.equal(r.get(k), v, f"{c.name}: {k} is echoed")
    g = good(wait_image(c, arn, "CREATED", "CREATE_FAILED"), "GetMicrovmImage",
             c.name)
    if g.get("state") != "CREATED":
        rig.diag(repr(c.call("ListMicrovmImageBuilds", imageIdentifier=arn,
                             imageVersion="1.0")))
    rig.equal((g["state"], g.get("latestActiveImageVersion"), g.get("tags")),
              ("CREATED", "1.0", FULL["tags"]), f"{c.name}: it is built")
    v = good(c.call("GetMicrovmImageVersion", imageIdentifier=arn,
                    imageVersion="1.0"), "GetMicrovmImageVersion", c.name)
    rig.equal((v["state"], v["status"]), ("SUCCESSFUL", "ACTIVE"),
              f"{c.name}: its version")
    for k in ("description", "hooks", "environmentVariables", "resources",
              "logging", "codeArtifact", "buildRoleArn"):
        rig.equal(v.get(k), {**FULL, **ALL}[k], f"{c.name}: {k} is kept")
    b = good(c.call("ListMicrovmImageBuilds", imageIdentifier=arn,
                    imageVersion="1.0"), "ListMicrovmImageBuilds", c.name)
    rig.equal([x["buildState"] for x in b["items"]], ["SUCCESSFUL"],
              f"{c.name}: one build")
    one = good(c.call("GetMicrovmImageBuild", imageIdentifier=arn,
                      imageVersion="1.0", buildId=b["items"][0]["buildId"]),
               "GetMicrovmImageBuild", c.name)
    rig.equal(one["architecture"], "X86_64", f"{c.name}: of this host's kind")
    rig.check(one.get("snapshotBuild"), f"{c.name}: with its sizes", one)
    for q, n in (({"architecture": "X86_64"}, 1), ({"architecture": "ARM_64"}, 0),
                 ({"chipset": "GRAVITON"}, 0),
                 ({"chipset": one["chipset"], "chipsetGeneration":
                   one["chipsetGeneration"]}, 1)):
        rig.equal(len(c.call("ListMicrovmImageBuilds", imageIdentifier=arn,
                             imageVersion="1.0", **q)["items"]), n,
                  f"{c.name}: builds of {q}")
    refused(c.call("CreateMicrovmImage", name=name, **ALL), 400,
            "ValidationException", name, f"{c.name}: a name that is taken")


def test_images(_):
    for c in both:
        images(c)


def versions(c):
    arn = image_arn(named(c))
    u = good(c.call("UpdateMicrovmImage", imageIdentifier=arn,
                    description="second", **ALL), "UpdateMicrovmImage", c.name)
    rig.equal((u["imageVersion"], u.get("description")), ("2.0", "second"),
              f"{c.name}: a new version")
    rig.check(u.get("environmentVariables") in (None, {}),
              f"{c.name}: PUT keeps nothing of the last one", u)
    g = wait_image(c, arn, "UPDATED", "UPDATE_FAILED")
    rig.equal((g["state"], g.get("latestActiveImageVersion")),
              ("UPDATED", "2.0"), f"{c.name}: it is built")
    rig.equal(g.get("tags"), FULL["tags"], f"{c.name}: tags stay")
    p = c.pages("ListMicrovmImageVersions", 1, imageIdentifier=arn)
    rig.equal(sorted(i["imageVersion"] for i in p["items"]), ["1.0", "2.0"],
              f"{c.name}: both, by pages")
    one = dict(imageIdentifier=arn, imageVersion="2.0")
    r = good(c.call("UpdateMicrovmImageVersion", status="INACTIVE", **one),
             "UpdateMicrovmImageVersion", c.name)
    rig.equal(r["status"], "INACTIVE", f"{c.name}: INACTIVE")
    refused(c.call("RunMicrovm", **one), 404, "ResourceNotFoundException",
            "No active version found for MicroVM image " + arn,
            f"{c.name}: a run that names it")
    r = c.call("RunMicrovm", imageIdentifier=arn)
    rig.equal(r.get("imageVersion"), "1.0",
              f"{c.name}: an unpinned run takes the newest ACTIVE one")
    refused(c.call("DeleteMicrovmImageVersion", imageIdentifier=arn,
                   imageVersion="1.0"), 409, "ConflictException", "",
            f"{c.name}: a version with a microVM")
    refused(c.call("DeleteMicrovmImage", imageIdentifier=arn), 409,
            "ConflictException", "", f"{c.name}: an image with one")
    good(c.call("TerminateMicrovm", microvmIdentifier=r["microvmId"]),
         "TerminateMicrovm", c.name)
    c.call("UpdateMicrovmImageVersion", status="INACTIVE", imageIdentifier=arn,
           imageVersion="1.0")
    refused(c.call("RunMicrovm", imageIdentifier=arn), 404,
            "ResourceNotFoundException", "No active version found",
            f"{c.name}: none is ACTIVE")
    r = good(c.call("DeleteMicrovmImageVersion", **one),
             "DeleteMicrovmImageVersion", c.name)
    rig.check(r["state"] in ("DELETING", "DELETED"), f"{c.name}: deleted", r)
    refused(c.call("GetMicrovmImageVersion", **one), 404,
            "ResourceNotFoundException", "2.0", f"{c.name}: it is gone")
    refused(c.call("DeleteMicrovmImageVersion", imageIdentifier=arn,
                   imageVersion="1.0"), 409, "ConflictException", "last",
            f"{c.name}: the last version")
    r = good(c.call("UpdateMicrovmImageVersion", status="ACTIVE",
                    imageIdentifier=arn, imageVersion="1.0"),
             "UpdateMicrovmImageVersion", c.name)


def test_versions(_):
    for c in both:
        versions(c)


def failed_build(c):
    name = "bad-" + c.name.lower()
    r = make(c, name, codeArtifact={"uri": BROKEN})
    rig.equal(r.built.get("state"), "CREATE_FAILED", f"{c.name}: a build fails")
    rig.equal((r.built.get("latestFailedImageVersion"),
               r.built.get("latestActiveImageVersion")), ("1.0", None),
              f"{c.name}: the image names the version")
    v = c.call("GetMicrovmImageVersion", imageIdentifier=name,
               imageVersion="1.0")
    rig.equal((v["state"], v.get("stateReason")), ("FAILED", None),
              f"{c.name}: its version FAILED, without a reason")
    b = c.call("ListMicrovmImageBuilds", imageIdentifier=name,
               imageVersion="1.0")["items"][0]
    rig.equal(b["buildState"], "FAILED", f"{c.name}: and its build")
    rig.check("CONTAINER_BUILD_FAILED" in b.get("stateReason", "") and
              "line 2" in b.get("stateReason", ""),
              f"{c.name}: with AWS's code, and the line", b)
    refused(c.call("RunMicrovm", imageIdentifier=image_arn(name)), 404,
            "ResourceNotFoundException", "No active version",
            f"{c.name}: it does not run")
    u = c.call("UpdateMicrovmImage", imageIdentifier=name, **ALL)
    g = wait_image(c, name, "UPDATED", "UPDATE_FAILED")
    rig.equal((u.get("imageVersion"), g["state"]), ("2.0", "UPDATED"),
              f"{c.name}: an update repairs it")
    d = good(c.call("DeleteMicrovmImage", imageIdentifier=name),
             "DeleteMicrovmImage", c.name)
    rig.check(d["state"] in ("DELETING", "DELETED"), f"{c.name}: deleted", d)
    refused(wait_image(c, name), 404, "ResourceNotFoundException", name,
            f"{c.name}: it is gone")


def test_failed_build(_):
    for c in both:
        failed_build(c)


BAD_ARTIFACTS = [
    ("file:///nonexistent/x.zip", "S3_NO_SUCH_KEY"),
    ("file://" + t.dir + "/secret.zip", "S3_ACCESS_DENIED"),
    (FILES.zip("empty", {"x": "y"}), "ARCHIVE_DOCKERFILE_NOT_FOUND"),
]


def test_artifacts(_):
    with open(t.dir + "/secret.zip", "w") as f:
        f.write("root's")
    for i, (uri, reason) in enumerate(BAD_ARTIFACTS):
        r = make(both[i % 2], f"artifact-{i}", codeArtifact={"uri": uri})
        b = both[0].call("ListMicrovmImageBuilds", imageIdentifier=f"artifact-{i}",
                         imageVersion="1.0")
        rig.check(r.ok and reason in b["items"][0].get("stateReason", ""),
                  f"{reason} of a caller who is nobody", b)
    for c in both:
        refused(c.call("CreateMicrovmImage", name="http",
                       **{**ALL, "codeArtifact": {"uri": "http://x/y.zip"}}),
                400, "ValidationException", "s3://",
                f"{c.name}: an artifact elsewhere")


def test_managed(_):
    for c in both:
        m = good(c.call("ListManagedMicrovmImages"), "ListManagedMicrovmImages",
                 c.name)
        arns = [i["imageArn"] for i in m["items"]]
        rig.check(BASE in arns or any("debian" in a for a in arns),
                  f"{c.name}: the local default is there", arns)
        for arn in arns:
            v = good(c.call("ListManagedMicrovmImageVersions",
                            imageIdentifier=arn),
                     "ListManagedMicrovmImageVersions", c.name)
            rig.check(v["items"], f"{c.name}: {arn} has versions", v)
        rig.check(c.call("ListManagedMicrovmImageVersions",
                         imageIdentifier=BASE).ok,
                  f"{c.name}: AWS's name for it is known")
        refused(c.call("ListManagedMicrovmImageVersions",
                       imageIdentifier=ARN + "aws:microvm-image:windows"),
                404, "ResourceNotFoundException", "windows",
                f"{c.name}: none of that name")
        refused(c.call("CreateMicrovmImage", name="base", **{
            **ALL, "baseImageArn": ARN + "aws:microvm-image:windows"}), 404,
            "ResourceNotFoundException", "windows", f"{c.name}: nor to build on")
        refused(c.call("CreateMicrovmImage", name="base", baseImageVersion="99",
                       **ALL), 400, "ValidationException", "99",
                f"{c.name}: nor a version of it")
        refused(c.call("GetMicrovmImage", imageIdentifier="base"), 404,
                "ResourceNotFoundException", "base",
                f"{c.name}: nothing was created")


# --- microVMs -------------------------------------------------------------------

RUN = {
    "idlePolicy": {"maxIdleDurationSeconds": 60, "suspendedDurationSeconds": 9,
                   "autoResumeEnabled": True},
    "ingressNetworkConnectors": [CONNECTOR + "HTTP_INGRESS",
                                 CONNECTOR + "SHELL_INGRESS"],
    "executionRoleArn": ROLE,
    "maximumDurationInSeconds": 1234,
}


def microvms(c):
    arn = image_arn(named(c))
    r = good(c.call("RunMicrovm", imageIdentifier=arn, imageVersion="1.0",
                    runHookPayload="é" * 2048,
                    logging={"disabled": {}}, **RUN), "RunMicrovm", c.name)
    for k, v in RUN.items():
        rig.equal(r.get(k), v, f"{c.name}: {k} is echoed")
    rig.check(re.fullmatch("microvm-[0-9a-f-]{36}", r["microvmId"]) and
              r["imageArn"] == arn and r["imageVersion"] == "1.0" and
              "runHookPayload" not in r.out and "tags" not in r.out,
              f"{c.name}: its id and image, and no payload", r)
    rig.check("/" not in r["endpoint"] and
              r["endpoint"].split(".")[0] not in r["microvmId"],
              f"{c.name}: its endpoint is a bare host name", r["endpoint"])
    i = r["microvmId"]
    g = good(wait_vm(c, i, "RUNNING"), "GetMicrovm", c.name)
    rig.equal(g["state"], "RUNNING", f"{c.name}: RUNNING")
    rig.equal(g.get("idlePolicy"), RUN["idlePolicy"], f"{c.name}: its policy")
    m = good(c.call("ListMicrovms", imageIdentifier=arn, imageVersion="1.0"),
             "ListMicrovms", c.name)
    rig.check(i in [x["microvmId"] for x in m["items"]], f"{c.name}: listed", m)
    refused(c.call("ResumeMicrovm", microvmIdentifier=i), 409,
            "ConflictException", "RUNNING", f"{c.name}: resume a RUNNING one")
    good(c.call("SuspendMicrovm", microvmIdentifier=i), "SuspendMicrovm", c.name)
    g = wait_vm(c, i, "SUSPENDED")
    rig.equal((g["state"], g.get("idlePolicy")), ("SUSPENDED",
                                                  RUN["idlePolicy"]),
              f"{c.name}: SUSPENDED, with its policy")
    r = refused(c.call("SuspendMicrovm", microvmIdentifier=i), 409,
                "ConflictException", "SUSPENDED", f"{c.name}: suspend it again")
    rig.equal(r.fields.get("resourceId"), i, f"{c.name}: names the resource")
    good(c.call("ResumeMicrovm", microvmIdentifier=i), "ResumeMicrovm", c.name)
    rig.equal(wait_vm(c, i, "RUNNING")["state"], "RUNNING", f"{c.name}: resumed")
    for n in ("first", "again"):
        good(c.call("TerminateMicrovm", microvmIdentifier=i),
             "TerminateMicrovm", f"{c.name}: {n}")
    g = good(wait_vm(c, i, "TERMINATED"), "GetMicrovm", c.name)
    rig.check(g["state"] == "TERMINATED" and g.get("terminatedAt"),
              f"{c.name}: TERMINATED, and since when", g)
    for op in ("SuspendMicrovm", "ResumeMicrovm"):
        refused(c.call(op, microvmIdentifier=i), 409, "ConflictException",
                "TERMINATED", f"{c.name}: {op} of an ended one")


def test_microvms(_):
    for c in both:
        microvms(c)


BAD_RUNS = [
    ({"runHookPayload": "x" * 4097}, 400, "ValidationException",
     "runHookPayload"),
    ({"runHookPayload": "é" * 2049}, 400, "ValidationException",
     "runHookPayload"),
    ({"egressNetworkConnectors": [CONNECTOR + "INTERNET_EGRESS"]}, 400,
     "ValidationException", "egress"),
    ({"ingressNetworkConnectors": [CONNECTOR + "NO_SUCH"]}, 400,
     "ValidationException", "connector"),
    ({"imageVersion": "9.0"}, 404, "ResourceNotFoundException", "9.0"),
    ({"imageIdentifier": image_arn("nobody")}, 404, "ResourceNotFoundException",
     "nobody"),
]


def test_bad_runs(_):
    for c in both:
        for more, status, code, part in BAD_RUNS:
            refused(c.call("RunMicrovm", **{
                "imageIdentifier": image_arn(named(c)), **more}), status, code,
                part, f"{c.name}: run with {json.dumps(more)[:50]}")


# --- errors ---------------------------------------------------------------------

NOT_FOUND = {
    "CreateMicrovmAuthToken": {"expirationInMinutes": 5,
                               "allowedPorts": [{"allPorts": {}}]},
    "CreateMicrovmShellAuthToken": {"expirationInMinutes": 5},
    "UpdateMicrovmImage": ALL,
    "UpdateMicrovmImageVersion": {"status": "ACTIVE"},
    "TagResource": {"Tags": {"a": "b"}},
    "UntagResource": {"TagKeys": ["a"]},
    "RunMicrovm": {"imageIdentifier": image_arn("nobody")},
    "ListMicrovms": {"imageIdentifier": image_arn("nobody")},
}
LABELS = {"imageIdentifier": image_arn("nobody"), "imageVersion": "1.0",
          "buildId": "1", "microvmIdentifier":
          "microvm-00000000-0000-0000-0000-000000000000",
          "Resource": image_arn("nobody")}


def nowhere(op):
    """An operation's least input, about what is not there."""
    shape = clients.model.SHAPES[OPS[op]["input"]["shape"]]
    given = {k: LABELS[k] for k, m in shape["members"].items()
             if m.get("location") == "uri"}
    return {**given, **NOT_FOUND.get(op, {})}


def declares(op, code):
    return code in [e["shape"] for e in OPS[op]["errors"]]


def test_not_found(_):
    for c in both:
        for op in OPS:
            if not declares(op, "ResourceNotFoundException") or \
                    op == "CreateMicrovmImage":
                continue
            given = nowhere(op)
            if op == "ListManagedMicrovmImageVersions":
                given["imageIdentifier"] = ARN + "aws:microvm-image:nobody"
            r = refused(c.call(op, **given), 404, "ResourceNotFoundException",
                        "", f"{c.name}: {op} of none")
            rig.check(r.message, f"{c.name}: {op}: with its message", r)


def test_denied(_):
    """The socket is open to anybody, and the caller is not one of us."""
    os.chmod(t.dir, 0o755)
    os.chmod(t.sock, 0o666)
    relay = clients.Relay(t.sock, uid=65534)
    anybody = [clients.Boto(relay.url), clients.Js(relay.url)]
    for c in anybody:
        for op in OPS:
            given = nowhere(op) if op != "CreateMicrovmImage" else {
                "name": "denied", **ALL}
            refused(c.call(op, **given), 403, "AccessDeniedException", "",
                    f"{c.name}: {op} of a stranger")
        c.close()
    relay.close()
    os.chmod(t.sock, 0o600)


def test_quota_and_throttling(_):
    """What does not fit into --memory-budget."""
    arn = image_arn(named(both[0]))
    ids, r = [], None
    for _n in range(70):
        r = both[0].call("RunMicrovm", imageIdentifier=arn)
        if not r.ok:
            break
        ids.append(r["microvmId"])
    refused(r, 402, "ServiceQuotaExceededException", "", "botocore: one too many")
    rig.check(r.fields.get("serviceCode") and r.fields.get("quotaCode"),
              "botocore: with its codes", r)
    r = refused(both[1].call("RunMicrovm", imageIdentifier=arn), 402,
                "ServiceQuotaExceededException", "", "JavaScript: one too many")
    rig.check(r.fields.get("serviceCode") and r.fields.get("quotaCode"),
              "JavaScript: with its codes", r)
    for c in both:
        refused(c.call("CreateMicrovmImage", name="nofit", **{
            **ALL, "resources": [{"minimumMemoryInMiB": 8192}]}), 402,
            "ServiceQuotaExceededException", "", f"{c.name}: a build")
        refused(c.call("UpdateMicrovmImage", imageIdentifier=arn, **{
            **ALL, "resources": [{"minimumMemoryInMiB": 8192}]}), 402,
            "ServiceQuotaExceededException", "", f"{c.name}: an update")
    good(both[0].call("SuspendMicrovm", microvmIdentifier=ids[0]),
         "SuspendMicrovm", "one makes room")
    wait_vm(both[0], ids[0], "SUSPENDED")
    extra = both[0].call("RunMicrovm", imageIdentifier=arn)
    rig.check(extra.ok, "and another one takes it", extra)
    for c in both:
        r = refused(c.call("ResumeMicrovm", microvmIdentifier=ids[0]), 429,
                    "ThrottlingException", "", f"{c.name}: a resume")
        rig.check(int(r.fields.get("retryAfterSeconds", 0)) > 0,
                  f"{c.name}: and when to try again", r)
    for i in ids + [extra.get("microvmId")]:
        both[0].call("TerminateMicrovm", microvmIdentifier=i)


def test_internal(_):
    """A suspend that goes wrong: the fake does as its mailbox says."""
    got = t.build(name="kernel", kernel=live.KERNEL, memoryMiB=64)
    rig.check("image" in got, "an image of a kernel alone", got)
    for c in both:
        r = c.call("RunMicrovm", imageIdentifier=image_arn("kernel"),
                   runHookPayload="nostart")
        refused(r, 500, "InternalServerException", "", f"{c.name}: a run")
        i = c.call("RunMicrovm", imageIdentifier=image_arn("kernel"))[
            "microvmId"]
        t.mail(i, "crash\n")
        g = wait_vm(c, i, "TERMINATED")
        rig.check(g["state"] == "TERMINATED" and g.get("stateReason"),
                  f"{c.name}: one that dies says why", g)


# --- pages ----------------------------------------------------------------------

def test_pages(_):
    arn = image_arn("kernel")
    ids = [both[0].call("RunMicrovm", imageIdentifier=arn)["microvmId"]
           for _n in range(23)]
    for c in both:
        for size, pages in ((50, 1), (10, 3), (1, 23)):
            p = c.pages("ListMicrovms", size, imageIdentifier=arn)
            live_ones = [x["microvmId"] for x in p["items"]
                         if x["state"] != "TERMINATED"]
            rig.equal(live_ones, ids, f"{c.name}: all, by pages of {size}")
            rig.check(p["pages"] >= pages, f"{c.name}: in {pages} pages", p)
        for op, given in (("ListMicrovmImages", {}),
                          ("ListManagedMicrovmImages", {}),
                          ("ListManagedMicrovmImageVersions",
                           {"imageIdentifier": BASE}),
                          ("ListMicrovmImageVersions",
                           {"imageIdentifier": arn}),
                          ("ListMicrovmImageBuilds",
                           {"imageIdentifier": arn, "imageVersion": "1.0"}),
                          ("ListMicrovms", {})):
            whole = c.call(op, **given)["items"] if op != "ListMicrovms" else \
                c.pages(op, 50)["items"]
            p = c.pages(op, 1, **given)
            rig.equal(p.get("items"), whole, f"{c.name}: {op} one by one")
            for token in ("x", "AAAA", "e30=", "a" * 3000):
                refused(c.call(op, nextToken=token, **given), 400,
                        "ValidationException", "", f"{c.name}: {op} with a token "
                        f"of nobody's, {token[:5]}")
        first = c.call("ListMicrovms", maxResults=1)
        rig.check(first.get("nextToken"), f"{c.name}: there is more", first)
        refused(c.call("ListMicrovmImages", nextToken=first.get("nextToken")),
                400, "ValidationException", "",
                f"{c.name}: the token of another list")
        got = c.call("ListMicrovmImages", nameFilter="kern")
        rig.equal([i["name"] for i in got["items"]], ["kernel"],
                  f"{c.name}: nameFilter is a part of the name")
        p = c.pages("ListMicrovmImages", 1, nameFilter="kern")
        rig.equal([i["name"] for i in p["items"]], ["kernel"],
                  f"{c.name}: also by pages, some of them empty")
    for i in ids:
        both[0].call("TerminateMicrovm", microvmIdentifier=i)


# --- client tokens ---------------------------------------------------------------

def test_client_tokens(_):
    arn = image_arn("kernel")
    runs, made = [], []
    for c in both:
        given = dict(imageIdentifier=arn, clientToken="t-" + c.name,
                     maximumDurationInSeconds=100)
        a = c.call("RunMicrovm", **given)
        b = c.call("RunMicrovm", **given)
        rig.equal(b.get("microvmId"), a["microvmId"], f"{c.name}: one run")
        refused(c.call("RunMicrovm", **{**given,
                                        "maximumDurationInSeconds": 101}), 409,
                "ConflictException", "", f"{c.name}: the token, and other "
                "parameters")
        runs.append((c, given, a["microvmId"]))
        given = dict(name="tok-" + c.name.lower(), clientToken="i-" + c.name,
                     **ALL)
        x = c.call("CreateMicrovmImage", **given)
        y = c.call("CreateMicrovmImage", **given)
        rig.equal((y.get("imageArn"), y.get("imageVersion")),
                  (x["imageArn"], "1.0"), f"{c.name}: one image")
        refused(c.call("CreateMicrovmImage", **{**given, "description": "x"}),
                409, "ConflictException", "", f"{c.name}: and others")
        wait_image(c, given["name"], "CREATED", "CREATE_FAILED")
        up = dict(imageIdentifier=x["imageArn"], clientToken="u-" + c.name, **ALL)
        n = c.call("UpdateMicrovmImage", **up)
        wait_image(c, given["name"], "UPDATED", "UPDATE_FAILED")
        m = c.call("UpdateMicrovmImage", **up)
        rig.equal((n.get("imageVersion"), m.get("imageVersion")),
                  ("2.0", "2.0"), f"{c.name}: one update")
        made.append((c, given, up, x["imageArn"]))
    t.restart()
    for c in both:
        c.again()
    for c, given, ident in runs:
        r = c.call("RunMicrovm", **given)
        rig.equal(r.get("microvmId"), ident, f"{c.name}: after a restart")
        refused(c.call("RunMicrovm", **{**given, "runHookPayload": "x"}), 409,
                "ConflictException", "", f"{c.name}: and other parameters")
        c.call("TerminateMicrovm", microvmIdentifier=ident)
        r = c.call("RunMicrovm", **given)
        rig.equal(r.get("microvmId"), ident, f"{c.name}: after its end")
    for c, given, up, arn in made:
        rig.equal(c.call("CreateMicrovmImage", **given).get("imageArn"), arn,
                  f"{c.name}: the image, after a restart")
        rig.equal(c.call("UpdateMicrovmImage", **up).get("imageVersion"), "2.0",
                  f"{c.name}: the update, after a restart")
        v = c.pages("ListMicrovmImageVersions", 50, imageIdentifier=arn)
        rig.equal(len(v["items"]), 2, f"{c.name}: two versions, no more")


# --- tags -----------------------------------------------------------------------

def test_tags(_):
    for c in both:
        arn = image_arn(named(c))
        had = good(c.call("ListTags", Resource=arn), "ListTags", c.name)
        rig.equal(had.get("Tags"), FULL["tags"], f"{c.name}: those of Create")
        more = {"a b": "c/d", "Ünïcode": "wörld", "team": "red", "e": ""}
        good(c.call("TagResource", Resource=arn, Tags=more), "TagResource",
             c.name)
        rig.equal(c.call("ListTags", Resource=arn).get("Tags"),
                  {**FULL["tags"], **more}, f"{c.name}: added and replaced")
        rig.equal(c.call("GetMicrovmImage", imageIdentifier=arn).get("tags"),
                  {**FULL["tags"], **more}, f"{c.name}: the image has them")
        good(c.call("UntagResource", Resource=arn,
                    TagKeys=["a b", "Ünïcode", "nosuch"]), "UntagResource",
             c.name)
        rig.equal(c.call("ListTags", Resource=arn).get("Tags"),
                  {"team": "red", "empty": "", "e": ""},
                  f"{c.name}: two are gone")
        r = c.call("TagResource", Resource=arn,
                   Tags={f"k{i}": "v" for i in range(60)})
        rig.check(r.code in ("InvalidParameterValueException",
                             "ServiceQuotaExceededException",
                             "ValidationException") and r.typed,
                  f"{c.name}: more than 50 tags", r)
        refused(c.call("ListTags", Resource=ARN + "123456789012:function:f"),
                404, "ResourceNotFoundException", "",
                f"{c.name}: of what is not an image")
        good(c.call("UntagResource", Resource=arn, TagKeys=["team", "empty",
                                                            "e"]),
             "UntagResource", c.name)
        rig.check(c.call("ListTags", Resource=arn).get("Tags") in ({}, None),
                  f"{c.name}: none are left")


# --- tokens ---------------------------------------------------------------------

def test_tokens(_):
    for c in both:
        arn = image_arn(named(c))
        i = c.call("RunMicrovm", imageIdentifier=arn, ingressNetworkConnectors=[
            CONNECTOR + "HTTP_INGRESS", CONNECTOR + "SHELL_INGRESS"])[
                "microvmId"]
        for ports in ([{"port": 8080}], [{"allPorts": {}}],
                      [{"range": {"startPort": 1, "endPort": 65535}}],
                      [{"port": 1}, {"range": {"startPort": 5, "endPort": 5}}]):
            r = good(c.call("CreateMicrovmAuthToken", microvmIdentifier=i,
                            expirationInMinutes=60, allowedPorts=ports),
                     "CreateMicrovmAuthToken", c.name)
            token = (r.get("authToken") or {}).get("X-aws-proxy-auth", "")
            rig.check(token.count(".") == 4 and ".." in token,
                      f"{c.name}: a compact JWE for {ports}", token)
        for m in (61, 2**31 - 1):
            refused(c.call("CreateMicrovmAuthToken", microvmIdentifier=i,
                           expirationInMinutes=m, allowedPorts=[{"port": 80}]),
                    400, "ValidationException", "expirationInMinutes",
                    f"{c.name}: {m} minutes")
        refused(c.call("CreateMicrovmAuthToken", microvmIdentifier=i,
                       expirationInMinutes=5, allowedPorts=[
                           {"range": {"startPort": 9, "endPort": 8}}]), 400,
                "ValidationException", "endPort", f"{c.name}: a range backwards")
        r = good(c.call("CreateMicrovmShellAuthToken", microvmIdentifier=i,
                        expirationInMinutes=5), "CreateMicrovmShellAuthToken",
                 c.name)
        refused(c.call("CreateMicrovmShellAuthToken", microvmIdentifier=i,
                       expirationInMinutes=61), 400, "ValidationException",
                "expirationInMinutes", f"{c.name}: a shell for 61 minutes")
        c.call("TerminateMicrovm", microvmIdentifier=i)
        wait_vm(c, i, "TERMINATED")
        for op in ("CreateMicrovmAuthToken", "CreateMicrovmShellAuthToken"):
            r = c.call(op, microvmIdentifier=i, **NOT_FOUND[op])
            rig.check(r.status in (404, 409) and declares(op, r.code) and
                      r.typed, f"{c.name}: {op} of an ended one", r)
        shells(c, arn)


def shells(c, arn):
    for connectors, part in (
            (["HTTP_INGRESS"], "Shell access requires SHELL_INGRESS network "
             "connector to be configured on the MicroVM."),
            ([], "Shell access requires SHELL_INGRESS"),
            (["ALL_INGRESS", "SHELL_INGRESS"], "ALL_INGRESS cannot be combined "
             "with other ingress network connectors; use HTTP_INGRESS and/or "
             "SHELL_INGRESS instead")):
        r = c.call("RunMicrovm", imageIdentifier=arn, ingressNetworkConnectors=[
            CONNECTOR + x for x in connectors])
        refused(c.call("CreateMicrovmShellAuthToken", expirationInMinutes=5,
                       microvmIdentifier=r["microvmId"]), 400,
                "ValidationException", part,
                f"{c.name}: a shell with {connectors}")
        c.call("TerminateMicrovm", microvmIdentifier=r["microvmId"])


# --- the socket -----------------------------------------------------------------

def test_socket(_):
    """The same over the Unix socket, where no key counts."""
    for c in LIVE.unix():
        name = "unix-" + c.name.lower()
        good(c.call("CreateMicrovmImage", name=name, **ALL),
             "CreateMicrovmImage", f"socket, {c.name}")
        rig.equal(wait_image(c, name, "CREATED", "CREATE_FAILED")["state"],
                  "CREATED", f"socket, {c.name}: it is built")
        r = good(c.call("RunMicrovm", imageIdentifier=image_arn(name)),
                 "RunMicrovm", f"socket, {c.name}")
        for op in ("GetMicrovm", "SuspendMicrovm", "TerminateMicrovm"):
            good(c.call(op, microvmIdentifier=r["microvmId"]), op,
                 f"socket, {c.name}")
        good(c.call("TagResource", Resource=image_arn(name), Tags={"a": "b"}),
             "TagResource", f"socket, {c.name}")
        rig.equal(c.call("ListTags", Resource=image_arn(name)).get("Tags"),
                  {"a": "b"}, f"socket, {c.name}: its tags")
        good(c.call("DeleteMicrovmImage", imageIdentifier=name),
             "DeleteMicrovmImage", f"socket, {c.name}")
        refused(c.call("GetMicrovmImage", imageIdentifier=name), 404,
                "ResourceNotFoundException", name, f"socket, {c.name}: gone")


def test_delete(_):
    for c in both:
        good(c.call("DeleteMicrovmImage", imageIdentifier=image_arn(named(c))),
             "DeleteMicrovmImage", c.name)
        r = c.call("ListMicrovms", imageIdentifier=image_arn(named(c)))
        rig.check(r.ok and r["items"],
                  f"{c.name}: its ended microVMs are still listed by it", r)
        refused(c.call("ListTags", Resource=image_arn(named(c))), 404,
                "ResourceNotFoundException", "", f"{c.name}: nor its tags")
        r = c.call("CreateMicrovmImage", name=named(c),
                   clientToken="c" + named(c), **ALL, **FULL)
        rig.check(not r.ok or r.get("imageArn") == image_arn(named(c)),
                  f"{c.name}: its token still means it", r)
        refused(c.call("GetMicrovmImage", imageIdentifier=named(c)), 404,
                "ResourceNotFoundException", "", f"{c.name}: and makes no other")


LIVE.begin = lambda: both.extend(LIVE.tcp())
live.main(LIVE, [test_images, test_versions, test_failed_build,
                 test_artifacts, test_managed, test_microvms, test_bad_runs,
                 test_not_found, test_denied, test_internal,
                 test_quota_and_throttling, test_pages, test_client_tokens,
                 test_tags, test_tokens, test_socket, test_delete])
