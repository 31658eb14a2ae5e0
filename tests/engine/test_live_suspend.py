#!/usr/bin/python3
"""Suspends of a live thawd: what is told about them, and that nothing which was
acknowledged is lost, whenever thawd or a cell is killed.

usage: test_live_suspend.py PATH-OF-thawd LIBEXEC PATH-OF-ring3.elf [-k WORD]
"""
import http.client
import os
import re
import signal
import sys
import threading
import time

from thawd_rig import PATIENCE, Thawd, check, diag, equal, main, until

BIN, LIBEXEC, ELF = sys.argv[1], sys.argv[2], sys.argv[3]
MIB = 64


def fresh(*flags):
    t = Thawd(BIN, *flags, libexec=LIBEXEC).start()
    got = t.build(name="img", kernel=ELF, memoryMiB=MIB, readyTimeoutSeconds=PATIENCE)
    if "image" not in got:
        raise RuntimeError(f"the build failed: {got}\n{t.log()[-1500:]}")
    return t


def ask(t, ident, command, pattern):
    """Sends a command to the guest and waits for its answer in the log."""
    before = len(t.logs(ident))
    t.mail(ident, command + "\n")
    until(lambda: re.search(rf"(?:{pattern}).*\n", t.logs(ident)[before:]))
    return t.logs(ident)[before:].strip()


def test_timings(t):
    vm = t.run("img").json["microvmId"]
    for n in range(1, 4):
        ask(t, vm, f"fill {n} 16M 24M", "FILLED")
        begin = time.monotonic()
        equal(t.op(vm, "suspend", "?wait=SUSPENDED").status, 200,
              f"suspend {n}")
        took = (time.monotonic() - begin) * 1e6
        got = t.vm(vm).json
        s = got["thaw"]["timings"]["suspend"]
        equal(got["state"], "SUSPENDED", "and is SUSPENDED")
        check(0 < s["parked"] <= s["capture"] <= s["total"] <= took,
              "parked <= capture <= total <= what a client sees", (s, took))
        check(s["parked"] < s["capture"],
              "it is parked shorter than hashing and publishing take", s)
        check(24 * 256 <= s["dirtyMemoryPages"] <= 24 * 256 + 64,
              "what was written, and nothing else, is saved", s)
        t.restart()
        equal(t.vm(vm).json["thaw"]["timings"]["suspend"], s,
              "told of a suspended one after a restart, too")
        equal(t.op(vm, "resume").status, 200, f"resume {n}")
        equal(ask(t, vm, f"check {n} 16M 24M", "GOOD|BAD"), "GOOD 6144",
              f"memory is as it was {n}")
    # Nothing more was written: its own pages of before are its own still.
    t.op(vm, "suspend", "?wait=SUSPENDED")
    s = t.vm(vm).json["thaw"]["timings"]["suspend"]
    check(s["dirtyMemoryPages"] <= 24 * 256 + 64, "and no page more", s)
    t.end(vm)


def test_kill_thawd(t):
    """kill -9 at moments all over a suspend, however long one takes here."""
    keep = t.run("img", name="keep").json["microvmId"]
    whole = 60.0
    for _ in range(3):  # the shortest: one may have had to wait for processors
        t.op(keep, "resume")
        ask(t, keep, "fill 5 16M 24M", "FILLED")
        begin = time.monotonic()
        t.op(keep, "suspend", "?wait=SUSPENDED")
        whole = min(whole, time.monotonic() - begin)
    acknowledged = lost = 0
    for n in range(16):
        vm = t.run("img").json["microvmId"]
        ask(t, vm, f"fill {n + 20} 16M 24M", "FILLED")
        said = []

        def suspend():
            try:
                a = t.op(vm, "suspend", "?wait=SUSPENDED")
                said.append((a.status, (a.json or {}).get("state")))
            except (OSError, http.client.HTTPException, ValueError):
                pass
        th = threading.Thread(target=suspend)
        th.start()
        time.sleep(max(0, n - 2) * max(whole, 0.04) / 7)
        t.kill9()
        th.join()
        t.start()
        got = t.vm(vm).json
        if said and said[0][0] == 200 and got["state"] != "SUSPENDED":
            check(False, f"acknowledged and lost {n}", (said, got))
        if got["state"] == "SUSPENDED":
            acknowledged += 1
            equal(t.op(vm, "resume").status, 200, f"resume {n}")
            equal(ask(t, vm, f"check {n + 20} 16M 24M", "GOOD|BAD"),
                  "GOOD 6144", f"and whole {n}")
            t.end(vm)
        else:
            lost += 1
            # The host has become slower than it was for the first one.
            if n >= 8 and not acknowledged:
                whole *= 1.5
            equal((got["state"], got["thaw"]["reason"]),
                  ("TERMINATED", "thawd-killed"),
                  f"not suspended yet: ended, with its reason {n}")
    diag(f"killed in {lost} suspends, after {acknowledged}")
    check(lost >= 2 and acknowledged >= 1, "before and after were met",
          (lost, acknowledged))
    equal(t.op("keep", "resume").status, 200, "an older one resumes")
    equal(ask(t, "keep", "check 5 16M 24M", "GOOD|BAD"), "GOOD 6144",
          "with its memory")
    t.end("keep")


def test_kill_cell(t):
    """A cell that dies in its suspend: SUSPENDED and whole, or TERMINATED."""
    after = 0
    for n in range(12):
        a = t.run("img").json
        vm = a["microvmId"]
        ask(t, vm, f"fill {n + 50} 16M 24M", "FILLED")
        t.op(vm, "suspend")
        time.sleep(n * 0.002)
        try:
            os.kill(a["thaw"]["pid"], signal.SIGKILL)
        except ProcessLookupError:
            pass
        until(lambda: t.vm(vm).json["state"] in ("SUSPENDED", "TERMINATED"))
        s = t.vm(vm).json["state"]
        check(s in ("SUSPENDED", "TERMINATED"), f"it ends {n}", s)
        if s == "SUSPENDED":
            after += 1
            equal(t.op(vm, "resume").status, 200, f"resume {n}")
            equal(ask(t, vm, f"check {n + 50} 16M 24M", "GOOD|BAD"),
                  "GOOD 6144", f"whole {n}")
        t.end(vm)
    diag(f"{after} of 12 were suspended")


def test_many(t):
    """Eight at once, then all resumed: each has its own memory."""
    ids = [t.run("img").json["microvmId"] for _ in range(8)]
    for i, vm in enumerate(ids):
        ask(t, vm, f"fill {i + 70} 16M 12M", "FILLED")
    th = [threading.Thread(target=t.op, args=(vm, "suspend",
                                              "?wait=SUSPENDED"))
          for vm in ids]
    for x in th:
        x.start()
    for x in th:
        x.join()
    got = [t.vm(vm).json for vm in ids]
    equal([g["state"] for g in got], ["SUSPENDED"] * 8, "eight suspends")
    diag("parked us: " + " ".join(
        str(g["thaw"]["timings"]["suspend"]["parked"]) for g in got))
    for i, vm in enumerate(ids):
        t.op(vm, "resume")
        equal(ask(t, vm, f"check {i + 70} 16M 12M", "GOOD|BAD"), "GOOD 3072",
              f"and its own memory {i}")
        t.end(vm)


def test_nothing_left(t):
    until(lambda: t.stats()["store"]["snapshots"] == 1)
    equal(t.stats()["store"]["snapshots"], 1, "the store holds the image and nothing else")
    t.stop()
    t.start()
    equal(t.stats()["store"]["snapshots"], 1, "and so it stays")


ORDER = [v for k, v in list(globals().items()) if k.startswith("test_")]

if __name__ == "__main__":
    if not os.access("/dev/kvm", os.R_OK | os.W_OK) or os.geteuid():
        print("1..0 # SKIP needs /dev/kvm and root")
        sys.exit(77)
    rig = fresh()
    try:
        code = main(ORDER, rig)
    finally:
        rig.remove()
    sys.exit(code)
