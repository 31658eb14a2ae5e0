#!/usr/bin/python3
# timeout: 600
"""Many thaws of images just built, while their working sets are being learned:
each clone answers several requests, and its memory is as it should be. TAP."""
import sys
import threading
import time

import lifecycle_rig as lr
from lifecycle_rig import rig

ROUNDS, EACH = 1, 6
site = lr.Site()
bad = []


def clone(image, n):
    try:
        vm = site.run(image)
        for _ in range(2):
            site.get(vm, "/count")
            time.sleep(0.2)
        site.get(vm, "/dirty?%d" % n)
        text = site.get(vm, "/check")
        if not text.startswith("GOOD"):
            bad.append((image, n, text))
        site.out("rm", "-f", vm)
    except Exception as e:
        bad.append((image, n, str(e)[-600:]))


def test_thaws():
    site.start()
    for r in range(ROUNDS):
        site.build(f"im{r}", lr.rootfs_with(lr.pattern_app() + b"\n# %d\n" % r))
        for n in range(0, EACH, 2):
            ts = [threading.Thread(target=clone, args=(f"im{r}", n + k))
                  for k in range(2)]
            [t.start() for t in ts]
            [t.join() for t in ts]
        rig.diag(f"round {r}: {len(bad)} bad")
    rig.equal(bad, [], "every clone answered")
    ends = [v for v in site.out("ps", "-a").splitlines() if "rash" in v or "ault" in v]
    rig.equal(ends, [], "none ended by itself")


status = rig.main([test_thaws])
site.close()
sys.exit(status)
