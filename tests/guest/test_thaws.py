#!/usr/bin/python3
# timeout: 900
"""Many thaws of images just built: while their working and write sets are being
learned, once they are, and after a restart, when they come from disk. Each clone
answers several requests, and every byte of its memory is as it should be. TAP."""
import json
import os
import re
import sys
import threading
import time

import lifecycle_rig as lr
from lifecycle_rig import rig

ROOT = os.path.join(lr.HERE, "..", "..")
AT_ONCE, PAIRS, DOTS = 2, 3, 6
site = lr.Site()
bad = []
traces = {"/?7": 49.0}


def pattern(image, n):
    """Checked before anything writes, and after."""
    vm = site.run(image)
    first = site.get(vm, "/check")
    site.get(vm, "/count")
    time.sleep(0.2)
    site.get(vm, "/dirty?%d" % n)
    second = site.get(vm, "/check")
    if not (first.startswith("GOOD") and second.startswith("GOOD")):
        bad.append((image, n, first, second))
    site.out("rm", "-f", vm)


def writes_at_once(image, n):
    """Only what happens in the ten seconds after a thaw is learned, and on a slow
    machine a check takes longer."""
    vm = site.run(image)
    site.get(vm, "/dirty?%d" % n)
    site.out("rm", "-f", vm)


def dot(image, n):
    vm = site.run(image)
    for path in ("/", "/?7", "/"):
        j = json.loads(site.get(vm, path))
        traces.setdefault(path, j["trace"])
        if j["trace"] != traces[path]:
            bad.append((image, n, j))
    site.out("rm", "-f", vm)


def clone(how, image, n):
    begun = time.time()
    try:
        how(image, n)
    except Exception as e:
        bad.append((image, n, f"after {time.time() - begun:.1f} s",
                    str(e)[-600:], site.thawd.log()[-1500:]))


def clones(how, image, count, what):
    for n in range(0, count, AT_ONCE):
        ts = [threading.Thread(target=clone, args=(how, image, n + k))
              for k in range(AT_ONCE)]
        [t.start() for t in ts]
        [t.join() for t in ts]
    rig.equal(bad, [], f"{image}: every byte of {count} clones is right {what}")


def learned():
    """KiB of the working set that was written last, and of its write set."""
    m = re.findall(r"working set: (\d+) KiB, (\d+) KiB of them written",
                   site.thawd.log())
    return tuple(int(x) for x in m[-1]) if m else (0, 0)


def laid_kib(image, more=0):
    """Private memory of a clone that nobody has asked anything, once it is more
    than this."""
    vm = site.run(image)
    pid = site.pid(vm)

    def private():
        with open(f"/proc/{pid}/status") as f:
            return int(re.search(r"RssAnon:\s+(\d+)", f.read()).group(1))
    time.sleep(2)
    rig.until(lambda: private() > more)
    kib = private()
    site.out("rm", "-f", vm)
    return kib


def thaws(how, image, count, first=None):
    before = laid_kib(image)
    if first:
        clones(first, image, AT_ONCE, "that write at once")
    clones(how, image, count, "while their sets are being learned")
    rig.until(lambda: learned()[1] > 1024)
    time.sleep(5)  # what is learned later is written after 2 s
    total, written = learned()
    rig.diag(f"{image}: working set {total} KiB, {written} KiB of it written")
    rig.check(written > 1024, f"{image}: a write set was learned", written)
    for what in ("once they are learned", "when they come from disk"):
        clones(how, image, count, what)
        least = before + (written - before) / 2
        private = laid_kib(image, least)
        rig.check(private > least,
                  f"{image}: the write set is laid ahead {what}",
                  (before, private, written))
        site.thawd.restart()


def test_pattern():
    site.start()
    site.build("pattern", lr.rootfs_with(lr.pattern_app()))
    thaws(pattern, "pattern", AT_ONCE * PAIRS, writes_at_once)


def test_numpy():
    os.environ["THAW_ROOTFS"] = os.environ["THAW_ROOTFS_NUMPY"]
    with open(os.path.join(ROOT, "examples", "dot", "app.py"), "rb") as f:
        app = f.read()
    site.build("dot", lr.rootfs_with(app), "--env", f"PORT={lr.PORT}")
    thaws(dot, "dot", DOTS)


def test_ends():
    ends = re.findall(r"-> TERMINATED \((.*)\)", site.thawd.log())
    rig.check(len(ends) > 30, "many ended", len(ends))
    rig.equal([v for v in ends if v not in ("requested", "thawd-stopped")], [],
              "none ended by itself")


status = rig.main([test_pattern, test_numpy, test_ends])
site.close()
sys.exit(status)
