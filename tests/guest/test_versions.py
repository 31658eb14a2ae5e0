#!/usr/bin/python3
# timeout: 900
"""What a Python and numpy image takes in the store, and what further versions
of its application add. Ten versions would take too long here: three are made, and
the dearest addition stands for the other nine. TAP."""
import json
import os
import subprocess
import sys
import time

import lifecycle_rig as lr
from lifecycle_rig import rig

ROOT = os.path.join(lr.HERE, "..", "..")
VERSIONS = 3
site = lr.Site()
store = os.path.join(site.thawd.state, "store")
sizes = []


def app(n):
    with open(os.path.join(ROOT, "examples", "dot", "app.py")) as f:
        text = f.read()
    assert text.count('VERSION = "1"') == 1
    return text.replace('VERSION = "1"', f'VERSION = "{n}"').encode()


def store_bytes(worksets=True):
    """All of it: packs, index, maps; and working sets, which hold second copies,
    of the newest version and of those in use."""
    sums = [0, 0]
    for d, _, files in os.walk(store):
        for f in files:
            sums[f.endswith(".ws")] += os.path.getsize(os.path.join(d, f))
    rig.diag(f"{sums[True] / 2**20:.1f} MiB of it are working sets")
    return sums[False] + sums[True] if worksets else sums[False]


def settled():
    """Once old working sets are gone, which a worker removes."""
    rig.until(lambda: len({f.split(".")[0] for _, _, files in os.walk(store)
                           for f in files if f.endswith(".ws")}) <= 1)
    time.sleep(3)
    return store_bytes()


def sizes_of(version):
    return [v for i in json.loads(site.out("images", "--json"))
            if i["name"] == "dot" for v in i["versions"]
            if v["version"] == version][0]["sizes"]


def test_versions():
    site.start()
    for n in range(1, VERSIONS + 1):
        before = store_bytes()
        site.build("dot", lr.rootfs_with(app(n)), "--env", f"PORT={lr.PORT}")
        sizes.append(settled() - before)
        rig.diag(f"version {n}: {sizes[-1] / 2**20:.1f} MiB, "
                 f"{100 * sizes[-1] / sizes[0]:.1f} % of the first, "
                 f"{sizes_of(f'{n}.0')}")
    more = max(sizes[1:])
    rig.check(more <= 0.15 * sizes[0],
              "a second version adds at most 15 % of the first", sizes)
    rig.check(sizes[0] + 9 * more <= 2.5 * sizes[0],
              "ten versions cost at most 2.5 times one", sizes)


def test_answers():
    for n in (1, VERSIONS):
        vm = site.run("dot", "--version", f"{n}.0")
        j = json.loads(site.get(vm, "/"))
        rig.equal((j["version"], j["n"]), (str(n), 256),
                  f"version {n} multiplies")
        rig.equal(json.loads(site.get(vm, "/?7"))["trace"], 49.0,
                  f"version {n} multiplies what it is told")
        site.out("rm", "-f", vm)


def test_counted():
    site.thawd.stop()
    r = subprocess.run([os.path.join(lr.BIN, "store-size"), store],
                       stdout=subprocess.PIPE, check=True)
    c = json.loads(r.stdout)
    size = store_bytes(worksets=False)
    rig.diag(f"{VERSIONS} versions: {c['nonzeroBytes'] >> 20} MiB not zero, "
             f"{size >> 20} MiB stored, "
             f"{size / c['uniqueLz4Bytes']:.3f} x lz4 of unique pages")
    rig.check(size <= 1.10 * c["uniqueLz4Bytes"],
              "what is stored once is at most 1.10 x the lz4 size of its unique "
              "pages", c)


os.environ["THAW_ROOTFS"] = os.environ["THAW_ROOTFS_NUMPY"]
status = rig.main([test_versions, test_answers, test_counted])
site.close()
sys.exit(status)
