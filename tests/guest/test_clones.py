#!/usr/bin/python3
# timeout: 900
"""What the copies of a Flask image cost the host, each after one request. TAP."""
import os
import subprocess
import sys
import time

import lifecycle_rig as lr
from lifecycle_rig import rig

ROOT = os.path.join(lr.HERE, "..", "..")
CLONES = 16
site = lr.Site()
now = {}  # the parts of the last reading


def on_disk_kib():
    """What thawd's files take of memory, because this test keeps them on a tmpfs:
    elsewhere that is disk. Files that are open and have no name count too, as when a
    working set was written anew."""
    kind = subprocess.run(["stat", "-f", "-c", "%T", lr.WORK], check=True,
                          stdout=subprocess.PIPE).stdout.split()
    v = os.statvfs(lr.WORK)
    return (v.f_blocks - v.f_bfree) * v.f_frsize // 1024 \
        if kind == [b"tmpfs"] else 0


def used_kib():
    """Memory in use, but for files and for caches that the kernel gives up when
    asked. What templates hold is Shmem, so it counts; so do the kernel's own
    structures."""
    m = now
    m["files"] = on_disk_kib()
    with open("/proc/meminfo") as f:
        for line in f:
            name, value = line.split(":")
            m[name] = int(value.split()[0])
    return (m["MemTotal"] - m["MemFree"] - m["Buffers"] - m["SReclaimable"] -
            (m["Cached"] - m["Shmem"]) - m["files"])


def settled():
    """`used_kib()` once it changes little: what was ended or made ready a moment
    ago is done."""
    last = used_kib()
    for _ in range(40):
        time.sleep(0.5)
        used = used_kib()
        if abs(used - last) < 256:
            return used
        last = used
    return last


PARTS = ("Shmem", "files", "AnonPages", "PageTables", "SUnreclaim", "KernelStack")


def parts():
    return [now[k] for k in PARTS]


def test_clones():
    site.start()
    with open(os.path.join(ROOT, "examples", "counter", "app.py")) as f:
        app = f.read().encode()
    site.build("flask", lr.rootfs_with(app), "--env", f"PORT={lr.PORT}",
               memory="192M")
    # What is ready ahead of need is there before and after; the image's
    # template is not.
    site.thawd.restart()
    time.sleep(5)
    at, of = [settled()], [parts()]
    for n in range(CLONES):
        vm = site.run("flask")
        site.get(vm, "/")
        p, _ = site.forwards.pop(vm)
        p.kill()
        p.wait()
        at.append(settled())
        of.append(parts())
    costs = [b - a for a, b in zip(at, at[1:])]
    first, rest = costs[0], sorted(costs[1:])
    rig.diag(f"the first of {CLONES} copies costs {first} KiB, the others "
             f"{rest[0]} to {rest[-1]}, median {rest[len(rest) // 2]} KiB "
             f"({100 * rest[len(rest) // 2] / first:.1f} %)")
    for n in (0, costs.index(rest[-1], 1)):
        rig.diag(f"copy {n + 1}, KiB: " + ", ".join(
            f"{k} {b - a}" for k, a, b in zip(PARTS, of[n], of[n + 1])))
    rig.check(rest[-1] <= 0.25 * first,
              "each further copy adds at most 25 % of the first", costs)
    rig.check(len(set(site.out("ps", "-q").split())) == CLONES, "all are alive")


status = rig.main([test_clones])
site.close()
sys.exit(status)
