#!/usr/bin/python3
# timeout: 900
"""What the copies of a Flask image cost the host, each after one request. TAP.

A copy's cost is what all copies' common memory (the image's templates, its saved
state) grew by for its sake, the memory that is its process's alone, and its share
of what thawd's own memory and the kernel's grew by. Each is counted where it is
held: system-wide figures would give a copy what thawd makes ready ahead of need
for the next ones. They serve in the end, to see that nothing was forgotten.

Thawd's own memory grows in steps, when a thread of its pool works for the first
time: which copy is started then is chance. So the first copy, for which the image
is opened, has what it grew by until that one had answered, and the others share
what came later, in equal parts.

All copies stay alive, and what runs in them from time to time (the disk's journal,
the kernel's housekeeping) needs new pages of the templates, too. So while one is
started others may be who a template grows for: the first has had 17 faults in the
second's time, which had 7. A fault brings a cluster of 64 KiB at most, and thawd
counts each copy's: a copy pays for all that its own may have brought, whenever,
and for all that nobody else's can have. What the first one needs after its request
is not added to its cost, which the others' are compared with.
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
MEMORY = 192 << 20
CLUSTER = 64  # KiB: what a fault brings
KERNEL = ("SUnreclaim", "VmallocUsed", "SecPageTables", "Percpu")
site = lr.Site()


def meminfo():
    with open("/proc/meminfo") as f:
        rows = dict(line.split(":") for line in f)
    return {k: int(v.split()[0]) for k, v in rows.items()}


def memfds(pid):
    """KiB of the memfds that a process has open, each once: (those of guests'
    memory, other shared ones), own."""
    out = {}, {}, {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{fd}"
        try:
            name = os.readlink(path)
            if name.startswith("/memfd:"):
                st = os.stat(path)
                kind = 2 if OWN in name else int(st.st_size != MEMORY)
                out[kind][st.st_ino] = st.st_blocks // 2
        except FileNotFoundError:  # closed meanwhile
            pass
    memory, rest, own = (sum(sizes.values()) for sizes in out)
    return (memory, rest), own


def shared_kib():
    """What templates and saved states hold. Thawd has all of them open."""
    return sum(memfds(site.thawd.main_pid())[0])


def shared_parts():
    """The same, in two: the templates of guests' memory, and the rest."""
    return memfds(site.thawd.main_pid())[0]


def own_kib(pid):
    """What a process has of anonymous memory, and its page tables."""
    total = 0
    with open(f"/proc/{pid}/smaps") as f:
        for line in f:
            if line.startswith("Anonymous:"):
                total += int(line.split()[1])
    return total + page_tables_kib(pid)


def page_tables_kib(pid):
    with open(f"/proc/{pid}/status") as f:
        return sum(int(line.split()[1]) for line in f
                   if line.startswith("VmPTE:"))


def private_kib(pid):
    """A process's own share of memory: of memfds what it has copied, and all of
    its overlay's; of other mappings its part; its page tables."""
    total = memfds(pid)[1] + page_tables_kib(pid)
    with open(f"/proc/{pid}/smaps") as f:
        for line in f:
            word = line.split()[0]
            if not word.endswith(":"):
                counted = "Anonymous:" if "/memfd:" in line else "Pss:"
            elif word == counted:
                total += int(line.split()[1])
    return total


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
        if same == 6:
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
        self.engine = own_kib(site.thawd.main_pid())
        self.private = sum(map(private_kib, self.cells))
        self.kernel = sum(m.get(k, 0) for k in KERNEL)
        # But for files, and for caches that the kernel gives up when asked.
        # What memfds hold is Shmem, so it counts.
        self.used = (m["MemTotal"] - m["MemFree"] - m["Buffers"] -
                     m["SReclaimable"] - (m["Cached"] - m["Shmem"]) -
                     on_disk_kib())


class Copy:
    """One more copy, after its request."""

    def __init__(self, older):
        for c in older:
            c.new_faults()
        shared = shared_parts()
        self.vm, self.faults = site.run("flask"), 0
        site.get(self.vm, "/")
        p, _ = site.forwards.pop(self.vm)
        p.kill()
        p.wait()
        memory, self.shared = (
            b - a for a, b in zip(shared, settled(shared_parts)))
        self.private = private_kib(site.pid(self.vm))
        self.later = 0
        own = self.new_faults() * CLUSTER
        others = 0
        for c in older:
            its = min(memory, c.new_faults() * CLUSTER)
            c.later += its
            others += its
        self.shared += memory if not older else \
            max(min(memory, own), memory - others)

    def new_faults(self):
        """Those since it was asked last."""
        last = self.faults
        self.faults = site.inspect(self.vm)["thaw"]["usage"]["faults"]
        return self.faults - last

    def kib(self):
        return self.shared + self.private

    def __repr__(self):
        return f"({self.shared} {self.private} {self.later})"


def test_clones():
    site.start()
    with open(os.path.join(ROOT, "examples", "counter", "app.py")) as f:
        app = f.read().encode()
    site.build("flask", lr.rootfs_with(app), "--env", f"PORT={lr.PORT}",
               memory=f"{MEMORY >> 20}M")
    # The templates of the image are empty again, nothing of it is ready.
    site.thawd.restart()
    time.sleep(5)
    start = Totals()
    copies = [Copy([])]
    opened = own_kib(site.thawd.main_pid())
    while len(copies) < CLONES:
        copies.append(Copy(copies))
    end = Totals()
    more = len(end.cells) - len(start.cells)
    kernel = (end.kernel - start.kernel) / more
    engine = opened - start.engine, (end.engine - opened) / (CLONES - 1)
    first = round(copies[0].kib() + engine[0] + kernel)
    costs = [round(c.kib() + c.later + engine[1] + kernel) for c in copies[1:]]
    rest = sorted(costs)
    rig.diag(f"the first of {CLONES} copies costs {first} KiB, {engine[0]} of them "
             f"thawd's (shared, private, shared later: {copies[0]}), the others "
             f"{rest[0]} to {rest[-1]}, median {rest[len(rest) // 2]} KiB "
             f"({100 * rest[len(rest) // 2] / first:.1f} %), at most "
             f"{100 * rest[-1] / first:.1f} %; of each, {engine[1]:.0f} KiB are "
             f"thawd's and {kernel:.0f} KiB the kernel's")
    rig.check(rest[-1] <= 0.25 * first,
              "each further copy adds at most 25 % of the first",
              (first, engine, costs, copies))
    rig.check(min(c.private for c in copies) > 1024 and kernel > 64 and
              engine[0] > 1024 and copies[0].faults > 16,
              "each kind of memory is seen", (copies, engine, kernel))
    rig.check(len(set(site.out("ps", "-q").split())) == CLONES and
              more >= CLONES, "all are alive", more)
    # The system-wide figure is the sum of the parts, those ready included.
    parts = (end.shared - start.shared + end.engine - start.engine +
             end.private - start.private + end.kernel - start.kernel)
    used = end.used - start.used
    rig.diag(f"in all {used} KiB more are used on this machine, {parts} of them "
             f"counted in the copies and in {more - CLONES} cells more")
    rig.check(used - parts <= 0.1 * used,
              "nothing else grew with them", (used, parts))


status = rig.main([test_clones])
site.close()
sys.exit(status)
