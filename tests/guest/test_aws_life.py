#!/usr/bin/python3
# timeout: 1500
"""Lifecycle hooks and the idle policy with real Linux guests. TAP.

The image is built from a root file system; that it has hooks is written into its
row of the registry, as CreateMicrovmImage would have."""
import json
import os
import sys

import lifecycle_rig as lr
from lifecycle_rig import rig

# As slow as real time: a minute without traffic must not be over while a busy
# machine asks what it asks.
site = lr.Site()
t = site.thawd
HOOKS = {"port": lr.PORT, "microvmHooks": {
    k: v for h in ("run", "resume", "suspend", "terminate")
    for k, v in ((h, "ENABLED"), (h + "TimeoutInSeconds", 60))}}


def run(**members):
    i = t.run("hooked", **members).json["microvmId"]
    until(i, "RUNNING")
    return i


def until(i, state):
    return t.vm(i, f"?wait={state}").json


def calls(i):
    return [c[0] for c in json.loads(site.get(i, "/calls"))]


def test_build():
    site.start()
    with open(os.path.join(lr.HERE, "hook_app.py"), "rb") as f:
        tar = lr.rootfs_with(f.read())
    site.build("hooked", tar, "--vcpus", "1")
    t.stop()
    rig.give_hooks(t, "hooked/1.0", HOOKS)
    t.start()


def test_run():
    i = run(name="a", runHookPayload="tenant \"7\"")
    rig.equal(t.vm(i).json["state"], "RUNNING", "it runs")
    rig.equal(json.loads(site.get("a", "/calls")),
              [["run", {"microvmId": i, "runHookPayload": "tenant \"7\""}]],
              "its application was told, once, before anybody reached it")
    rig.contains(t.wait_log(i, "hook run"), "from 127.0.0.1",
                 "from the guest's own address")


def test_run_refused():
    i = run(runHookPayload="fail")
    g = until(i, "TERMINATED")
    rig.equal((g["state"], g["stateReason"]), (
        "TERMINATED", "Run lifecycle hook returned HTTP status 400. Please "
        "check your hook endpoint and application logs for more details."),
        "a run that the application refuses ends")


def test_suspend_and_resume():
    site.get("a", "/refuse?suspend")
    a = t.op("a", "suspend", "?wait=SUSPENDED")
    rig.contains(a.message, "Suspend lifecycle hook returned HTTP status 503",
                 "a suspend can be refused")
    rig.equal(calls("a"), ["run", "suspend"], "and the guest goes on")
    site.get("a", "/refuse?resume")
    rig.equal(t.op("a", "suspend", "?wait=SUSPENDED").status, 200,
              "or not")
    a = t.op("a", "resume", "?wait=RUNNING")
    rig.contains(a.message, "Resume lifecycle hook returned HTTP status 503",
                 "a resume can be refused")
    rig.equal(t.vm("a").json["state"], "SUSPENDED", "and it stays suspended")


def test_idle():
    b = run(idlePolicy={"maxIdleDurationSeconds": 60,
                        "suspendedDurationSeconds": 3600,
                        "autoResumeEnabled": True})
    rig.equal(calls(b), ["run"], "another one")
    g = until(b, "SUSPENDED")
    rig.equal((g["state"], g["thaw"]["reason"]), ("SUSPENDED", "idle"),
              "an idle one is suspended")
    t.op(b, "resume", "?wait=RUNNING")
    rig.equal(calls(b), ["run", "suspend", "resume"], "with its hooks")
    t.end(b)
    g = until(b, "TERMINATED")
    rig.equal(g["state"], "TERMINATED", "it ends")
    rig.contains(t.logs(b), "hook terminate", "and was told so")


status = rig.main([test_build, test_run, test_run_refused,
                   test_suspend_and_resume, test_idle])
if status:
    rig.diag(t.log()[-3000:])
site.close()
sys.exit(status)
