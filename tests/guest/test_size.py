#!/usr/bin/python3
# timeout: 1200
"""What images, cells and thawd cost in space, with real Linux guests. TAP."""
import json
import os
import subprocess
import sys
import time

import lifecycle_rig as lr
from lifecycle_rig import rig

APP = b'''
import http.server
VERSION = "one"
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        text = VERSION.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def log_message(self, *a):
        pass
import flask
http.server.HTTPServer(("0.0.0.0", 9090), H).serve_forever()
'''
site = lr.Site()
store = os.path.join(site.thawd.state, "store")


def tree_bytes(path):
    """Sum of the files' lengths: packs, index and maps. Working sets hold
    second copies, which can be made again from the packs: they are told
    apart."""
    sums = [0, 0]
    for d, _, files in os.walk(path):
        for f in files:
            sums[f.endswith(".ws")] += os.path.getsize(os.path.join(d, f))
    rig.diag(f"beside it {sums[True] / 2**20:.1f} MiB of working sets")
    return sums[False]


def counted():
    """The store from the pages up; thawd has to be stopped."""
    r = subprocess.run([os.path.join(lr.BIN, "store-size"), store],
                       stdout=subprocess.PIPE, check=True)
    return json.loads(r.stdout)


def test_store():
    site.start()
    site.build("one", lr.rootfs_with(APP))
    site.thawd.stop()
    c = counted()
    size = tree_bytes(store)
    site.first = size
    rig.diag(f"raw {c['nonzeroBytes'] >> 20} MiB, stored {size >> 20} MiB "
             f"({100 * size // c['nonzeroBytes']} %), "
             f"{size / c['uniqueLz4Bytes']:.3f} x lz4 of unique pages")
    rig.check(size <= 1.10 * c["uniqueLz4Bytes"],
              "the store is at most 1.10 x the lz4 size of its unique pages",
              c)


def test_second_version():
    site.start()
    site.build("two", lr.rootfs_with(APP.replace(b'"one"', b'"two, changed"')))
    a, b = site.run("one"), site.run("two")
    rig.equal((site.get(a, "/"), site.get(b, "/")), ("one", "two, changed"),
              "both versions answer, each with its own")
    for vm in (a, b):
        site.out("rm", "-f", vm)
    site.thawd.stop()
    more = tree_bytes(store) - site.first
    rig.diag(f"the second image adds {more >> 20} MiB: "
             f"{100 * more / site.first:.1f} % of the first")
    rig.check(more <= 0.25 * site.first,
              "a second image of the same files adds at most 25 %", more)


# What the kernel holds for processes and VMs, system-wide. KernelStack is not
# among them: stacks are vmalloc'ed.
KERNEL = ("Slab", "VmallocUsed", "PageTables", "SecPageTables", "Percpu")
CELLS, REPEATS = 8, 3


def kernel_kib():
    with open("/proc/meminfo") as f:
        rows = dict(line.split(":") for line in f)
    return {k: int(rows[k].split()[0]) if k in rows else 0 for k in KERNEL}


def cells_alive():
    """Processes of thaw-cell: those with a guest, shells and blanks."""
    n = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/comm") as f:
                n += f.read().strip() == "thaw-cell"
        except OSError:
            pass
    return n


def settled():
    """The kernel's memory and the cells, once both stand still: what was
    freed late or cached (dentries, inodes) is gone, shells are refilled."""
    last = None
    for _ in range(60):
        os.sync()
        with open("/proc/sys/vm/drop_caches", "w") as f:
            f.write("2")
        time.sleep(1)
        now = kernel_kib(), cells_alive()
        if last and now[1] == last[1] and all(
                abs(now[0][k] - last[0][k]) < 128 for k in KERNEL):
            return now
        last = now
    rig.diag(f"memory did not settle: {last} {now}")
    return now


def cells_that_answered(n):
    vms = [site.run("one") for _ in range(n)]
    for vm in vms:
        site.get(vm, "/")
        p, _ = site.forwards.pop(vm)  # a client's process, not the cell's
        p.kill()
        p.wait()
    return vms


def end_all(vms):
    for vm in vms:
        site.out("rm", "-f", vm)
        site.wait_state(vm, "TERMINATED")


def one_repeat(before):
    """What each of some cells takes, in KiB, and the state after them."""
    vms = cells_that_answered(CELLS)
    with_cells = settled()
    pss = [lr.smaps_kib(pid) - lr.guest_kib(pid, lr.MEMORY)
           for pid in map(site.pid, vms)]
    end_all(vms)
    after = settled()
    cost = {k: (with_cells[0][k] - (before[0][k] + after[0][k]) / 2) / CELLS
            for k in KERNEL}
    cost["PSS"] = sum(pss) / len(pss)
    more = with_cells[1] - before[1], with_cells[1] - after[1]
    return sum(cost.values()), cost, more, after


def test_cell():
    site.start()
    first = cells_that_answered(1)  # fills the templates; shells are kept now
    state = settled()
    rig.diag(f"shells and blanks: {state[1] - 1} processes, counted in neither")
    seen = []
    for _ in range(REPEATS):
        total, cost, more, state = one_repeat(state)
        seen.append((total, cost, more))
        rig.diag(f"a cell beside its guest: {total:.0f} KiB = " + " + ".join(
            f"{k} {v:.0f}" for k, v in sorted(cost.items())))
    rig.equal([m for _, _, m in seen], [(CELLS, CELLS)] * REPEATS,
              "nothing but the cells came and went meanwhile")
    seen.sort(key=lambda s: s[0])
    total, cost, _ = seen[REPEATS // 2]
    rig.check(all(cost[k] > 0 for k in ("PSS", "Slab", "PageTables")),
              "each kind of memory is seen", cost)
    rig.check(total <= 5 * 1024,
              "a cell costs at most 5 MiB beside its guest", (total, cost))
    end_all(first)


def test_thawd():
    site.thawd.restart()
    time.sleep(2)
    rig.until(lambda: lr.smaps_kib(site.thawd.main_pid(), skip=("memfd:",)) <=
              32 * 1024)
    pss = lr.smaps_kib(site.thawd.main_pid(), skip=("memfd:",))
    rig.diag(f"thawd at rest: {pss} KiB PSS")
    rig.check(pss <= 32 * 1024, "thawd at rest takes at most 32 MiB", pss)


status = rig.main([test_store, test_second_version, test_cell, test_thawd])
site.close()
sys.exit(status)
