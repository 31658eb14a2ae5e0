#!/usr/bin/python3
"""A live thawd with real cells and the ring-3 guest, on this host's /dev/kvm.

usage: test_live_ring3.py PATH-OF-thawd LIBEXEC PATH-OF-ring3.elf [-k WORD]
"""
import glob
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid

import thawd_rig
from thawd_rig import (AWS, OWN, PATIENCE, Thawd, check, contains, diag, equal,
                       main, until)

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
    a = t.mail(ident, command + "\n")
    if a.status != 200:
        return str(a)
    until(lambda: re.search(rf"(?:{pattern}).*\n", t.logs(ident)[before:]))
    return t.logs(ident)[before:].strip()


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids):
    until(lambda: not any(alive(p) for p in pids))
    return [p for p in pids if alive(p)]


def test_clones(t):
    ids = [t.run("img", name=f"c{i}").json["microvmId"] for i in range(4)]
    for i, vm in enumerate(ids):
        equal(ask(t, vm, f"fill {i + 1} 16M 4M", "FILLED"), "FILLED 1024",
              f"clone {i} writes its pattern")
    for i, vm in enumerate(ids):
        equal(ask(t, vm, f"check {i + 1} 16M 4M", "GOOD|BAD"), "GOOD 1024",
              f"clone {i} reads its own and nobody else's")
    equal(ask(t, ids[0], "count 5", "COUNT"), "COUNT 5", "clone 0 counts")
    equal(ask(t, ids[1], "count 1", "COUNT"), "COUNT 1",
          "clone 1's count is its own")
    pids = [t.vm(vm).json["thaw"]["pid"] for vm in ids]
    equal(len(set(pids)), 4, "each has a process of its own")
    for vm in ids:
        t.end(vm)
    equal(gone(pids), [], "and none when they are terminated")


def test_suspend_resume(t):
    vm = t.run("img").json["microvmId"]
    ask(t, vm, "fill 7 16M 8M", "FILLED")
    for n in range(1, 6):
        equal(ask(t, vm, "count 1", "COUNT"), f"COUNT {n}", f"count {n}")
        pid = t.vm(vm).json["thaw"]["pid"]
        a = t.op(vm, "suspend", "?wait=SUSPENDED")
        equal(a.status, 200, f"suspend {n}")
        equal(gone([pid]), [], f"its process is gone {n}")
        if n == 3:
            t.restart()
            equal(t.vm(vm).json["state"], "SUSPENDED", "through a restart")
        equal(t.op(vm, "resume").status, 200, f"resume {n}")
        equal(ask(t, vm, "check 7 16M 8M", "GOOD|BAD"), "GOOD 2048",
              f"memory is as it was {n}")
    t.end(vm)


def test_cold(t):
    a = t.run("img", cold=True, query="?wait=RUNNING")
    vm = a.json["microvmId"]
    equal(a.json["state"], "RUNNING", "a cold run boots")
    equal(ask(t, vm, "count 2", "COUNT"), "COUNT 2", "and works")
    equal(t.op(vm, "suspend", "?wait=SUSPENDED").status, 200, "it suspends")
    equal(t.op(vm, "resume").status, 200, "it resumes")
    equal(ask(t, vm, "count 1", "COUNT"), "COUNT 3", "with its memory")
    equal(t.op(vm, "suspend", "?wait=SUSPENDED").status, 200, "again")
    equal(t.op(vm, "resume").status, 200, "and again")
    equal(ask(t, vm, "count 1", "COUNT"), "COUNT 4", "with its memory, too")
    t.end(vm)


def test_guest_ends(t):
    for word, code in (("off", "guest-poweroff"), ("crash", "guest-reset")):
        vm = t.run("img").json["microvmId"]
        t.mail(vm, word + "\n")
        g = t.vm(vm, "?wait=TERMINATED").json
        equal((g["state"], g["thaw"]["reason"]), ("TERMINATED", code), word)
        check(g.get("stateReason"), f"{word}: and a sentence", g)


def test_kill_cell(t):
    a = t.run("img", name="victim").json
    b = t.run("img", name="other").json
    ask(t, "other", "count 3", "COUNT")
    os.kill(a["thaw"]["pid"], signal.SIGKILL)
    g = t.vm(a["microvmId"], "?wait=TERMINATED").json
    equal((g["state"], g["thaw"]["reason"]), ("TERMINATED", "cell-crashed"),
          "kill -9 of a cell ends its microVM")
    check(g.get("stateReason"), "with a reason in inspect", g)
    equal(ask(t, "other", "count 1", "COUNT"), "COUNT 4",
          "and nobody else's")
    equal(t.vm("other").json["thaw"]["pid"], b["thaw"]["pid"],
          "which is the same process")
    t.end("other")


def test_kill_cell_while_suspending(t):
    for n in range(5):
        a = t.run("img").json
        ask(t, a["microvmId"], "fill 3 16M 16M", "FILLED")
        t.op(a["microvmId"], "suspend")
        time.sleep(0.004 * n)
        try:
            os.kill(a["thaw"]["pid"], signal.SIGKILL)
        except ProcessLookupError:
            pass
        until(lambda: t.vm(a["microvmId"]).json["state"] in
              ("SUSPENDED", "TERMINATED"))
        s = t.vm(a["microvmId"]).json["state"]
        check(s in ("SUSPENDED", "TERMINATED"),
              f"a cell killed in its suspend {n}: SUSPENDED or TERMINATED", s)
        if s == "SUSPENDED":
            t.op(a["microvmId"], "resume")
            equal(ask(t, a["microvmId"], "check 3 16M 16M", "GOOD|BAD"),
                  "GOOD 4096", f"and whole {n}")
        t.end(a["microvmId"])


def test_kill_thawd(t):
    run = t.run("img").json
    sus = t.run("img", name="keep").json["microvmId"]
    ask(t, sus, "fill 9 16M 4M", "FILLED")
    t.op(sus, "suspend", "?wait=SUSPENDED")
    t.kill9()
    equal(gone([run["thaw"]["pid"]]), [], "no cell outlives thawd's keeper")
    t.start()
    equal([i["name"] for i in t.images()], ["img"], "the image is there")
    g = t.vm(run["microvmId"]).json
    equal((g["state"], g["thaw"]["reason"]), ("TERMINATED", "thawd-killed"),
          "the running one is ended and recorded")
    equal(t.op("keep", "resume").status, 200, "the suspended one resumes")
    equal(ask(t, "keep", "check 9 16M 4M", "GOOD|BAD"), "GOOD 1024",
          "with its memory")
    t.end("keep")
    vm = t.run("img").json["microvmId"]
    equal(ask(t, vm, "count 1", "COUNT"), "COUNT 1", "and the image runs")
    t.end(vm)


def test_64_runs_one_token(t):
    tok, got, lock = str(uuid.uuid4()), [], threading.Lock()
    barrier = threading.Barrier(64)

    def one():
        barrier.wait()
        a = t.run("img", clientToken=tok)
        with lock:
            got.append((a.status, (a.json or {}).get("microvmId")))
    th = [threading.Thread(target=one) for _ in range(64)]
    for x in th:
        x.start()
    for x in th:
        x.join()
    equal((len(got), len(set(got)), got[0][0]), (64, 1, 200),
          "64 simultaneous runs with one token: one microVM")
    equal(len(t.get(AWS + "/microvms?state=RUNNING").json["items"]), 1,
          "and one only")
    t.end(got[0][1])


def test_parallel(t):
    got, lock = [], threading.Lock()

    def one():
        a = t.run("img")
        with lock:
            got.append(a)
    th = [threading.Thread(target=one) for _ in range(24)]
    for x in th:
        x.start()
    for x in th:
        x.join()
    equal([a.status for a in got], [200] * 24, "24 runs at once")
    ids = {a.json["microvmId"] for a in got}
    equal(len(ids), 24, "24 microVMs")
    for vm in ids:
        t.mail(vm, "count 1\n")
    bad = [vm for vm in ids if "COUNT 1" not in t.wait_log(vm, "COUNT")]
    equal(bad, [], "all of them work")
    for vm in ids:
        t.end(vm)


def test_host(t):
    vm = t.run("img").json["microvmId"]
    h = t.host()
    equal(h["memory"]["committedMiB"], MIB, "host: committed memory")
    equal(h["vcpus"]["committed"], 1, "host: committed vCPUs")
    equal([x["image"] for x in h["templates"]], ["img"],
          "host: template by image")
    check(h["templates"][0]["residentBytes"] > 0, "host: its bytes", h)
    until(lambda: t.host()["shellsReady"])
    check(t.host()["shellsReady"] >= 1, "host: shells ready", t.host())
    t.end(t.run("img").json["microvmId"])  # has cells prepared from now on

    def prepared(h):
        return {(x["image"], x["version"]): x["preparedReady"]
                for x in h["templates"]}
    until(lambda: t.host()["preparedReady"])
    h = t.host()
    check(prepared(h).get(("img", "1.0"), 0) >= 1,
          "host: cells prepared for the image that is thawed", h)
    equal(h["preparedReady"], sum(prepared(h).values()),
          "host: their sum")
    ask(t, vm, "fill 1 16M 8M", "FILLED")
    u = t.get(f"{OWN}/microvms/{vm}").json["thaw"]["usage"]
    check(u["privateBytes"] >= 4 << 20, "inspect: private bytes", u)
    t.end(vm)


def test_build_fails(t):
    cases = [
        ("no such file", dict(kernel="/nonexistent/kernel")),
        ("not a kernel", dict(kernel="/etc/hostname")),
        ("never ready", dict(kernel=ELF, cmdline="spin 100000000000",
                             readyTimeoutSeconds=1)),
        ("powers off", dict(kernel=ELF, cmdline="off")),
    ]
    for what, spec in cases:
        got = t.build(name="bad", memoryMiB=MIB, **spec)
        check("error" in got and (got["error"].get("message") or ""),
              f"a build that fails ({what}): one clear error", got)
        diag(f"{what}: {got.get('error', {}).get('message')}")
    equal([i["name"] for i in t.images()], ["img"], "and no image")
    until(lambda: not t.host()["memory"]["committedMiB"])
    equal(t.host()["memory"]["committedMiB"], 0, "nothing stays committed")


def test_corrupt_packs(_):
    t = fresh()
    try:
        t.stop()
        for path in glob.glob(t.state + "/store/**/*", recursive=True):
            if "pack" in path and os.path.isfile(path):
                with open(path, "r+b") as f:
                    b = bytearray(f.read())
                    for at in range(len(b) // 2, len(b), 97):
                        b[at] ^= 0x10
                    f.seek(0)
                    f.write(b)
        try:
            t.start()
        except RuntimeError as err:  # refused at the door is as good
            check("cannot start" in t.log(), "corrupt packs: refused", err)
            return
        a = t.run("img", runHookPayload="check 1\n")
        i = a.json.get("microvmId") or a.json.get("resourceId")
        if a.status == 404:
            check("active version" in a.message, "corrupt packs: no version")
            return
        g = t.vm(i, "?wait=TERMINATED").json
        diag(f"{a.status} {a.message} {g.get('stateReason')}")
        check(g["state"] == "TERMINATED" and g.get("stateReason"),
              "corrupt packs: ended with a reason, not with a wrong byte", g)
        equal(t.get(OWN + "/version").status, 200, "and thawd serves on")
    finally:
        t.remove()


def pss_kib(pid):
    with open(f"/proc/{pid}/smaps_rollup") as f:
        return int(re.search(r"^Pss:\s+(\d+)", f.read(), re.M).group(1))


def test_rest(_):
    t = fresh("--shells", "2")
    try:
        for n in range(9):
            got = t.build(name=f"img{n}", kernel=ELF, memoryMiB=MIB)
            check("image" in got, f"image {n + 2} of 10", got)
        t.restart()
        main, keeper = t.main_pid(), t.proc.pid
        time.sleep(1.5)
        until(lambda: pss_kib(main) + pss_kib(keeper) <= 32 * 1024)
        kib = pss_kib(main) + pss_kib(keeper)
        diag(f"thawd at rest, 10 images: {kib} KiB PSS "
             f"(thawd {pss_kib(main)}, keeper {pss_kib(keeper)})")
        check(kib <= 32 * 1024, "thawd at rest: at most 32 MiB PSS", kib)
    finally:
        t.remove()


def test_1000_changes(t):
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from test_api_fake import test_1000_changes as changes
    changes(t)


def test_stop(t):
    vm = t.run("img").json
    equal(t.stop(), 0, "SIGTERM with a running microVM")
    equal(gone([vm["thaw"]["pid"]]), [], "with its cell")
    t.start()
    equal(t.vm(vm["microvmId"]).json["thaw"]["reason"], "thawd-stopped",
          "and recorded")


def test_nothing_left(t):
    for vm in t.get(AWS + "/microvms?state=RUNNING&state=SUSPENDED").json[
            "items"]:
        t.end(vm["microvmId"])
    until(lambda: t.stats()["store"]["snapshots"] == 1)
    equal(t.stats()["store"]["snapshots"], 1, "the store holds the image and nothing else")
    s = t.stats()["loop"]
    diag(f"longest turn {s['longestTurnMs']:.2f} ms ({s['longestTurnName']}), "
         f"{s['turnsOver10ms']} of {s['turns']} over 10 ms")


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
