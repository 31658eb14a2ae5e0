#!/usr/bin/python3
# timeout: 900
"""Execution roles with real Linux guests: the credentials of a file on the host at
the guest's IMDSv2 address, without any network. TAP."""
import json
import os
import sys

import lifecycle_rig as lr
from lifecycle_rig import rig

ROLE = "arn:aws:iam::123456789012:role/app"
OTHER = "arn:aws:iam::123456789012:role/nobody"
CREDENTIALS = "/latest/meta-data/iam/security-credentials/"
FILE = os.path.join(lr.WORK, "credentials")
FIRST, SECOND = "f1rst" + "SECRET" * 5, "sec0nd" + "SECRET" * 5


def give(key, secret, **more):
    with open(FILE + ".new", "w") as f:
        json.dump({"Version": 1, "AccessKeyId": key, "SecretAccessKey": secret,
                   **more}, f)
        os.fchmod(f.fileno(), 0o600)
    os.rename(FILE + ".new", FILE)


give("ASIAFIRST0123456", FIRST, SessionToken="s3ssion==",
     Expiration="2099-01-02T03:04:05Z")
site = lr.Site("--role", f"{ROLE}={FILE}")
t = site.thawd


def run(role=None):
    members = {"executionRoleArn": role} if role else {}
    i = t.run("roles", **members).json["microvmId"]
    t.vm(i, "?wait=RUNNING")
    return i


def get(i, path):
    return bytes.fromhex(site.get(i, path)).decode()


def in_init(i, text):
    return int(get(i, "/init?" + text.encode().hex()))


def credentials(i):
    status, text = get(i, "/meta?" + CREDENTIALS + "execution_role").split(" ", 1)
    return json.loads(text) if status == "200" else status


def test_build():
    site.start()
    with open(os.path.join(lr.HERE, "roles_app.py"), "rb") as f:
        site.build("roles", lr.rootfs_with(f.read()), "--vcpus", "1")


def test_mapped():
    i = site.a = run(ROLE)
    rig.equal(get(i, "/at-build"), "404 ",
              "an image's build has no credentials")
    rig.equal(get(i, "/meta?" + CREDENTIALS), "200 execution_role",
              "a run with a mapped role has its name")
    c = credentials(i)
    rig.equal([c[k] for k in ("Code", "Type", "AccessKeyId", "SecretAccessKey",
                              "Token", "Expiration")],
              ["Success", "AWS-HMAC", "ASIAFIRST0123456", FIRST, "s3ssion==",
               "2099-01-02T03:04:05Z"], "and its credentials")
    rig.equal(get(i, "/meta?/latest/meta-data/instance-id"), "200 " + i,
              "the microVM's id is its instance's")
    rig.equal(get(i, "/meta?/latest/meta-data/placement/region"),
              "200 us-east-1", "the region is told")
    rig.equal(get(i, "/v1?" + CREDENTIALS), "401 ", "IMDSv1 is refused")
    rig.equal(get(i, "/port80"), "418 401",
              "the application has port 80 all the same")
    rig.equal(in_init(i, FIRST) > 0, True,
              "the agent has them in its memory")


def test_unmapped():
    for role in (OTHER, None):
        i = run(role)
        rig.equal(credentials(i), "404", f"none for {role}")
        rig.equal(in_init(i, FIRST), 0,
                  "and none anywhere in its agent")
        t.end(i)


def test_renewal():
    give("ASIASECOND012345", SECOND)
    rig.until(lambda: credentials(site.a)["SecretAccessKey"] == SECOND)
    c = credentials(site.a)
    rig.equal((c["AccessKeyId"], c["SecretAccessKey"], c["Token"]),
              ("ASIASECOND012345", SECOND, ""),
              "a running microVM gets what its role's file has become")


def test_suspend():
    rig.equal(t.op(site.a, "suspend", "?wait=SUSPENDED").status, 200,
              "it is suspended")
    give("ASIATHIRD0123456", FIRST)
    rig.equal(t.op(site.a, "resume", "?wait=RUNNING").status, 200,
              "and resumed")
    rig.equal(credentials(site.a)["AccessKeyId"], "ASIATHIRD0123456",
              "with its role's credentials of now")
    rig.equal(in_init(site.a, SECOND), 0,
              "those of before the suspend were not in its snapshot")


def test_silence():
    said = t.log() + t.logs(site.a) + site.out("inspect", "--json", site.a)
    rig.equal([s for s in (FIRST, SECOND, "s3ssion") if s in said], [],
              "nothing of it is in logs or answers")


status = rig.main([test_build, test_mapped, test_unmapped, test_renewal,
                   test_suspend, test_silence])
if status:
    rig.diag(t.log()[-3000:])
site.close()
sys.exit(status)
