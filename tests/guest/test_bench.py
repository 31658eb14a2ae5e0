#!/usr/bin/python3
# timeout: 900
"""The instrument's part with real guests, once and small: the names and the shape of
what it reports, never a time. TAP."""
import json
import os
import subprocess
import sys

import lifecycle_rig as lr
from lifecycle_rig import rig

DRIVER = os.path.join(lr.HERE, "..", "..", "bench", "guest", "guest_bench.py")
out = os.path.join(lr.WORK, "guest.json")


def test_flask():
    work = os.path.join(lr.WORK, "bench")
    os.mkdir(work)
    p = subprocess.run(
        [DRIVER, "--bin", lr.BIN, "--boot",
         os.path.dirname(os.environ["THAW_KERNEL"]), "--work", work, "--json",
         out, "--quick", "--parts", "thaw,suspend",
         "flask=" + os.environ["THAW_ROOTFS"]],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True)
    rig.check(p.returncode == 0, "it ends with 0", p.stdout)
    with open(out) as f:
        j = json.load(f)
    r = {x["name"]: x for x in j["results"]}
    rig.equal(sorted(r), sorted("guest.flask." + k for k in (
        "build", "thaw.warm", "thaw.pagecache", "thaw.dropped", "suspend",
        "resume")), "its figures")
    inbox = bool(os.environ.get("KVMBOX"))
    rig.check(all(x.get("emulated", False) == inbox for x in r.values()),
              "each says whether its times are emulated", r)
    for name in ("warm", "pagecache", "dropped"):
        x = r["guest.flask.thaw." + name]
        rig.check(0 < x["t1_ms"] < x["t2_ms"] < x["t3_ms"] < x["t4_ms"],
                  f"{name}: the clock points are in order", x)
        rig.check(x["cpu_ms"] > 0 and x["faults_minor"] > 0,
                  f"{name}: it tells what it costs", x)
    rig.check(r["guest.flask.suspend"]["dirty_mib"] > 0.5,
              "a suspend has something to save", r["guest.flask.suspend"])


status = rig.main([test_flask])
sys.exit(status)
