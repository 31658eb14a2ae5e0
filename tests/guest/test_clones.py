#!/usr/bin/python3
# timeout: 900
"""What the copies of a Flask image cost the host, each after one request. TAP.

A copy's cost is what all copies' common memory (the image's templates, its saved
state) grew by for its sake, the memory that is its process's alone, and the
kernel's for it. Each is counted where it is held:
system-wide figures would give a copy what thawd makes ready ahead of need for
the next ones. They serve in the end, to see that nothing was forgotten.
"""
import os
import subprocess
import sys
import time

import lifecycle_rig as lr
from lifecycle_rig import rig

ROOT = os.path.join(lr.HERE, "..", "..")
CLONES = 16
OWN = "thaw-overlay"  # the one kind of memfd that copies do not share
KERNEL = ("SUnreclaim", "VmallocUsed", "SecPageTables", "Percpu")
site = lr.Site()


def meminfo():
    with open("/proc/meminfo") as f:
        rows = dict(line.split(":") for line in f)
    return {k: int(v.split()[0]) for k, v in rows.items()}


def memfds(pid):
    """KiB of the memfds that a process has open, each once: shared, own."""
    out = {}, {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{fd}"
        try:
            name = os.readlink(path)
            if name.startswith("/memfd:"):
                st = os.stat(path)
                out[OWN in name][st.st_ino] = st.st_blocks // 2
        except FileNotFoundError:  # closed meanwhile
            pass
    return [sum(sizes.values()) for sizes in out]


def shared_kib():
    """What templates and saved states hold. Thawd has all of them open."""
    return memfds(site.thawd.main_pid())[0]


def private_kib(pid):
    """A process's own share of memory: of memfds what it has copied, and all of
    its overlay's; of other mappings its part; its page tables."""
    total = memfds(pid)[1]
    with open(f"/proc/{pid}/smaps") as f:
        for line in f:
            word = line.split()[0]
            if not word.endswith(":"):
                counted = "Anonymous:" if "/memfd:" in line else "Pss:"
            elif word == counted:
                total += int(line.split()[1])
    with open(f"/proc/{pid}/status") as f:
        return total + sum(int(line.split()[1]) for line in f
                           if line.startswith("VmPTE:"))


def cells():
    """Processes of thaw-cell: copies, and what is ready for the next ones."""
    out = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/comm") as f:
                if f.read().strip() == "thaw-cell":
                    out.append(int(pid))
        except OSError:
            pass
    return out


def settled(read):
    """`read()` once it stands still: what was ended, or is made ready or
    filled in the background, is done."""
    last, same = read(), 0
    for _ in range(120):
        time.sleep(0.5)
        now = read()
        same = same + 1 if now == last else 0
        if same == 3:
            return now
        last = now
    rig.diag(f"did not settle: {last}")
    return last


def on_disk_kib():
    """What thawd's files take of memory, because this test keeps them on a tmpfs:
    elsewhere that is disk."""
    kind = subprocess.run(["stat", "-f", "-c", "%T", lr.WORK], check=True,
                          stdout=subprocess.PIPE).stdout.split()
    v = os.statvfs(lr.WORK)
    return (v.f_blocks - v.f_bfree) * v.f_frsize // 1024 \
        if kind == [b"tmpfs"] else 0


class Totals:
    """The whole machine, with nothing going on."""

    def __init__(self):
        settled(lambda: (len(cells()), shared_kib()))
        os.sync()
        with open("/proc/sys/vm/drop_caches", "w") as f:
            f.write("2")
        time.sleep(1)
        m = meminfo()
        self.cells = cells()
        self.shared = shared_kib()
        self.private = sum(map(private_kib, self.cells))
        self.kernel = sum(m.get(k, 0) for k in KERNEL)
        # But for files, and for caches that the kernel gives up when asked.
        # What memfds hold is Shmem, so it counts.
        self.used = (m["MemTotal"] - m["MemFree"] - m["Buffers"] -
                     m["SReclaimable"] - (m["Cached"] - m["Shmem"]) -
                     on_disk_kib())


def run_copy():
    """One more copy, after its request: by how much what is shared grew, and its
    private memory, in KiB."""
    before = shared_kib()
    vm = site.run("flask")
    site.get(vm, "/")
    p, _ = site.forwards.pop(vm)
    p.kill()
    p.wait()
    after = settled(shared_kib)
    return after - before, private_kib(site.pid(vm))


def test_clones():
    site.start()
    with open(os.path.join(ROOT, "examples", "counter", "app.py")) as f:
        app = f.read().encode()
    site.build("flask", lr.rootfs_with(app), "--env", f"PORT={lr.PORT}",
               memory="192M")
    # The templates of the image are empty again, nothing of it is ready.
    site.thawd.restart()
    time.sleep(5)
    start = Totals()
    copies = [run_copy() for _ in range(CLONES)]
    end = Totals()
    more = len(end.cells) - len(start.cells)
    kernel = (end.kernel - start.kernel) / more
    costs = [round(t + p + kernel) for t, p in copies]
    first, rest = costs[0], sorted(costs[1:])
    rig.diag(f"the first of {CLONES} copies costs {first} KiB (shared, private: "
             f"{copies[0]}), the others {rest[0]} to {rest[-1]}, median "
             f"{rest[len(rest) // 2]} KiB "
             f"({100 * rest[len(rest) // 2] / first:.1f} %); of each, "
             f"{kernel:.0f} KiB are the kernel's")
    rig.check(rest[-1] <= 0.25 * first,
              "each further copy adds at most 25 % of the first",
              (costs, copies))
    rig.check(min(p for _, p in copies) > 1024 and kernel > 64,
              "each kind of memory is seen", (copies, kernel))
    rig.check(len(set(site.out("ps", "-q").split())) == CLONES and
              more >= CLONES, "all are alive", more)
    # The system-wide figure is the sum of the parts, those ready included.
    parts = (end.shared - start.shared + end.private - start.private +
             end.kernel - start.kernel)
    used = end.used - start.used
    rig.diag(f"in all {used} KiB more are used on this machine, {parts} of them "
             f"counted in the copies and in {more - CLONES} cells more")
    rig.check(used - parts <= 0.1 * used,
              "nothing else grew with them", (used, parts))


status = rig.main([test_clones])
site.close()
sys.exit(status)
