#!/usr/bin/python3
# timeout: 900
"""A pool of real Linux guests: parked copies of a Debian, claimed later, and what
must hold in each from then on. TAP."""
import os
import subprocess
import sys
import time

import lifecycle_rig as lr
from lifecycle_rig import rig

GOOD = "GOOD 25165824 12582912"
WAIT_S = 15  # parked; a clock that stood still shows it
site = lr.Site()


def pool():
    return site.thawd.get(rig.OWN + "/pools/pattern").json


def parked(n):
    rig.until(lambda: pool()["parked"] == n)
    return pool()["parked"]


def waiting():
    return site.thawd.get(rig.AWS + "/microvms?state=PARKED").json["items"]


def cpu_ns(pid):
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/schedstat") as f:
            total += int(f.read().split()[0])
    return total


def facts(vm):
    """What no two microVMs may share."""
    return (site.get(vm, "/random"),
            site.sh(vm, "cat /etc/machine-id"),
            site.sh(vm, "cat /proc/sys/kernel/random/boot_id"),
            site.sh(vm, "head -c 32 /dev/urandom | od -An -tx1"))


def test_parked():
    site.start()
    site.build("pattern", lr.rootfs_with(lr.pattern_app()))
    site.filler = subprocess.Popen(
        [os.path.join(lr.BIN, "thaw-pool"), "--socket", site.thawd.sock],
        stdin=subprocess.DEVNULL)
    site.out("pool", "set", "pattern", "2")
    rig.equal(parked(2), 2, "thaw-pool parks two guests with an agent")
    site.out("pool", "set", "pattern", "2")
    site.filler.terminate()
    rig.equal(site.filler.wait(rig.PATIENCE), 0, "thaw-pool ends; they wait on")
    pids = [v["thaw"]["pid"] for v in waiting()]
    for _ in range(3):  # what is not asleep yet gets more time
        before = sum(cpu_ns(p) for p in pids)
        time.sleep(WAIT_S)
        used = sum(cpu_ns(p) for p in pids) - before
        if not used:
            break
    rig.equal(used, 0, f"and use no processor time in {WAIT_S} s")


def test_claims():
    ids = {v["microvmId"] for v in waiting()}
    for name in ("p1", "p2"):
        vm = site.run("pattern", "--name", name, "--label", "of=" + name)
        now = site.inspect(name)
        rig.equal((now["thaw"]["pooled"], now["state"],
                   now["thaw"]["labels"]), (True, "RUNNING", {"of": name}),
                  f"{name} is claimed")
        rig.check(vm in ids, "and is one of those that waited", (vm, ids))
        ids.discard(vm)
        site.clock_is_right(name, f"{name}: its clock is right")
        rig.equal(site.sh(name, "hostname"), name,
                  f"{name}: its host name is the claim's")
        rig.equal(site.get(name, "/check"), GOOD,
                  f"{name}: every byte of memory and disk is right")
        rig.equal(site.get(name, "/count"), "1", f"{name}: it counts from 1")
    rig.equal((pool()["hits"], pool()["parked"]), (2, 0), "two hits")


def test_identity():
    site.run("pattern", "--name", "plain")
    rig.equal(site.inspect("plain")["thaw"]["pooled"], False,
              "with an empty pool a run thaws")
    seen = [facts(vm) for vm in ("p1", "p2", "plain")]
    for i, what in enumerate(["getrandom of the application", "machine-id",
                              "boot_id", "/dev/urandom"]):
        values = [s[i] for s in seen]
        rig.check(len(set(values)) == 3 and all(values),
                  f"{what} differs between two claims and a thaw", values)


def test_goes_on():
    site.get("p1", "/say?claimed")
    rig.until(lambda: "said claimed" in site.out("logs", "p1"))
    rig.contains(site.out("logs", "p1"), "said claimed",
                 "what a claimed one prints is in its log")
    rig.equal(site.get("p1", "/dirty?7"), "DIRTIED", "it rewrites memory")
    rig.equal(site.get("p2", "/check"), GOOD, "the other sees none of it")
    site.out("suspend", "p1")
    rig.equal(site.state("p1"), "SUSPENDED", "it is suspended")
    site.out("resume", "p1")
    rig.equal((site.get("p1", "/check"), site.get("p1", "/count")),
              (GOOD, "2"), "and resumed, with its memory")


def tell_logs():
    for name in ("p1", "p2"):
        r = site.thaw("logs", name, ok=False)
        for line in r.stdout.decode(errors="replace").splitlines()[-15:]:
            rig.diag(f"{name}: {line}")


status = rig.main([test_parked, test_claims, test_identity, test_goes_on])
if status:
    tell_logs()
if getattr(site, "filler", None) and site.filler.poll() is None:
    site.filler.kill()
site.close()
sys.exit(status)
