#!/usr/bin/python3
"""Pools, with a live thawd, thaw-pool, real cells and the ring-3 guest.

usage: test_live_pool.py BIN-DIRECTORY [--claims N] [--kills N] [-k WORD]
"""
import glob
import http.client
import os
import random
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

BIN = os.path.abspath(sys.argv[1])
ELF = BIN + "/ring3.elf"
MIB = 64


def option(name, default):
    return int(sys.argv[sys.argv.index(name) + 1]) if name in sys.argv \
        else default


class Pool:
    """One thaw-pool."""

    def __init__(self, t):
        self.t = t
        self.log_path = os.path.join(t.dir, "pool.log")
        self.start()

    def start(self):
        with open(self.log_path, "ab") as log:
            self.proc = subprocess.Popen(
                [BIN + "/thaw-pool", "--socket", self.t.sock],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def stop(self, sig=signal.SIGTERM):
        self.proc.send_signal(sig)
        return self.proc.wait(PATIENCE)

    def log(self):
        with open(self.log_path, errors="replace") as f:
            return f.read()


def fresh(*flags):
    t = Thawd(BIN + "/thawd", *flags, libexec=BIN).start()
    build(t, "img")
    return t


def build(t, name):
    got = t.build(name=name, kernel=ELF, memoryMiB=MIB, readyTimeoutSeconds=PATIENCE)
    if "image" not in got:
        raise RuntimeError(f"the build failed: {got}\n{t.log()[-1500:]}")
    return got["image"]["version"]


def pool_set(t, n, image="img"):
    return t.request("PUT", f"{OWN}/pools/{image}", {"size": n})


def pool_of(t, image="img"):
    return t.get(f"{OWN}/pools/{image}").json


def filled(t, n, image="img"):
    until(lambda: pool_of(t, image)["parked"] == n)
    return pool_of(t, image)["parked"]


def counts_written(t):
    """Whether a pool's counts as they are now are in the registry's files, which
    thawd has locked."""
    p = pool_of(t)
    doc = '"hits":%d,"misses":%d,"wasted":%d' % (p["hits"], p["misses"],
                                                 p["wasted"])
    for path in glob.glob(t.state + "/registry.db*"):
        with open(path, "rb") as f:
            if doc.encode() in f.read():
                return True
    return False


def parked(t):
    return t.get(AWS + "/microvms?state=PARKED").json["items"]


def end_all(t):
    for vm in t.get(AWS + "/microvms?state=RUNNING").json["items"]:
        t.end(vm["microvmId"])


def cpu_ns(pid):
    total = 0
    for path in glob.glob(f"/proc/{pid}/task/*/schedstat"):
        with open(path) as f:
            total += int(f.read().split()[0])
    return total


def cpu_in_a_second(pids):
    """Nanoseconds. On a busy host a thread that goes to sleep may be taken off
    the processor just before it does, and counts the rest of that way later:
    what is not asleep yet gets some seconds more. What wakes ever again counts in
    each of them."""
    for _ in range(10):
        before = sum(cpu_ns(p) for p in pids)
        time.sleep(1)
        used = sum(cpu_ns(p) for p in pids) - before
        if not used:
            break
    return used


def test_fill_and_claim(t, pool):
    a = t.run("img", parked=True)
    equal(a.status, 409, "without a pool nothing is parked")
    equal(pool_set(t, 3).status, 200, "a pool is set")
    equal(filled(t, 3), 3, "thaw-pool fills it")
    items = parked(t)
    equal([v["state"] for v in items], ["PARKED"] * 3, "asked for, they show")
    equal(t.get(AWS + "/microvms").json["items"], [],
          "a plain list does not have them")
    one = t.get(f"{OWN}/microvms/{items[0]['microvmId']}").json
    equal(one["state"], "PARKED", "inspect says PARKED")
    a = t.run("img", parked=True)
    check(a.status == 409 and "full" in a.message, "no more than its size", a)
    for verb in ("suspend", "resume"):
        equal(t.op(items[0]["microvmId"], verb).status, 409,
              f"a parked one cannot be {verb}ed")
    pids = [v["thaw"]["pid"] for v in items]
    used = cpu_in_a_second(pids)
    equal((len(set(pids)), used), (3, 0), "parked, they use no CPU at all")
    got = []
    for i in range(3):
        a = t.run("img", name=f"n{i}", labels={"k": "v"}, clientToken=f"c{i}",
                  maximumDurationInSeconds=600,
                  runHookPayload=f"echo claim {i}\ncount 1\n")
        vm = a.json
        got.append(vm["microvmId"])
        check(a.status == 200 and vm["thaw"]["pooled"] is True
              and vm["state"] == "RUNNING", f"claim {i}", a)
        equal((vm["thaw"]["name"], vm["thaw"]["labels"],
               vm["maximumDurationInSeconds"], vm["thaw"]["reason"]),
              (f"n{i}", {"k": "v"}, 600, "claimed"), f"claim {i}: its members")
        log = t.wait_log(vm["microvmId"], "COUNT")
        check(f"claim {i}" in log and "COUNT 1" in log,
              f"claim {i}: its payload, and a memory of its own", log)
        equal(t.run("img", name=f"n{i}", labels={"k": "v"},
                    clientToken=f"c{i}", maximumDurationInSeconds=600,
                    runHookPayload=f"echo claim {i}\ncount 1\n").json[
                        "microvmId"], vm["microvmId"],
              f"claim {i}: its token names it")
    equal(len(set(got)), 3, "three claims, three microVMs")
    equal({v["microvmId"] for v in items} & set(got) != set(), True,
          "they are those that waited")
    equal(filled(t, 3), 3, "and three wait again")
    p = pool_of(t)
    equal((p["hits"], p["misses"], p["wasted"]), (3, 0, 0), "hits are counted")
    equal(len(t.get(AWS + "/microvms").json["items"]), 3,
          "claimed ones are in plain lists")
    t.mail(got[1], "count 1\n")
    contains(t.wait_log(got[1], "COUNT 2"), "COUNT 2",
             "a claimed one takes mail like any other")
    vm = got[0]
    equal(t.op(vm, "suspend", "?wait=SUSPENDED").status, 200, "one suspends")
    equal(t.op(vm, "resume").status, 200, "and resumes")
    t.mail(vm, "count 1\n")
    contains(t.wait_log(vm, "COUNT 2"), "COUNT 2", "with its memory")
    t.end(vm)
    a = t.run("img", cold=True)
    equal(a.json["thaw"]["pooled"], False, "a cold run boots")
    equal(pool_of(t)["parked"], 3, "and takes none")
    end_all(t)


def test_shrink(t, pool):
    pool_set(t, 3)
    equal(filled(t, 3), 3, "three wait")
    wasted = pool_of(t)["wasted"]
    equal(pool_set(t, 1).json["parked"], 1, "a smaller size gives up at once")
    equal(pool_of(t)["wasted"], wasted + 2, "which is waste")
    def shrunk(query):
        return [v for v in t.get(AWS + "/microvms" + query).json["items"]
                if v["thaw"]["reason"] == "pool-shrunk"]
    until(lambda: len(shrunk("?state=PARKED&state=TERMINATED")) == 2)
    equal([v["state"] for v in shrunk("?state=PARKED&state=TERMINATED")],
          ["TERMINATED"] * 2, "and on record")
    equal(shrunk(""), [], "but in no plain list")
    equal(t.delete(OWN + "/pools/img").status, 200, "a pool is removed")
    equal(parked(t), [], "and its microVMs with it")
    equal(t.get(OWN + "/pools/img").status, 404, "it is gone")
    equal(t.run("img", name="plain").json["thaw"]["pooled"], False,
          "without a pool a run thaws")
    t.end("plain")


def test_fall_through(t, pool):
    until(lambda: "following" in pool.log())
    equal(pool.stop(), 0, "SIGTERM ends thaw-pool")
    pool_set(t, 1)
    a = t.run("img", name="miss")
    equal((a.status, a.json["thaw"]["pooled"]), (200, False),
          "an empty pool falls through to a plain run")
    equal(pool_of(t)["misses"], 1, "a miss is counted")
    t.end("miss")
    equal(t.run("img", parked=True).json["state"], "PARKED",
          "anybody may park by hand")
    pool.start()
    pool_set(t, 2)
    equal(filled(t, 2), 2, "thaw-pool goes on with what is there")
    equal(pool.stop(), 0, "SIGTERM again")
    equal(pool_of(t)["parked"], 2, "what is parked stays")
    equal(t.run("img", name="hit").json["thaw"]["pooled"], True,
          "and is claimed without it")
    t.end("hit")
    pool.start()
    for v in parked(t):
        cells = t.get(f"{OWN}/microvms/{v['microvmId']}").json
        equal(cells["state"], "PARKED", "parked")
    equal(filled(t, 2), 2, "full again")


def test_dead_cell(t, pool):
    pool_set(t, 2)
    equal(filled(t, 2), 2, "two wait")
    pool.stop()
    for v in parked(t):
        os.kill(v["thaw"]["pid"], signal.SIGKILL)
    a = t.run("img", runHookPayload="count 1\n")
    # Its death may not be known yet: then it is told afterwards.
    state = until(lambda: t.vm(a.json["microvmId"]).json["state"])
    check(a.status == 200, "a run when every parked cell died just now", a)
    diag(f"it was {'claimed' if a.json['thaw']['pooled'] else 'thawed'}, "
         f"then {state}")
    equal(until(lambda: pool_of(t)["parked"] == 0), True, "none is left")
    a = t.run("img", runHookPayload="count 1\n")
    equal((a.status, a.json["thaw"]["pooled"]), (200, False),
          "the next one thaws")
    contains(t.wait_log(a.json["microvmId"], "COUNT"), "COUNT 1", "and works")
    pool.start()
    equal(filled(t, 2), 2, "and they are replaced")
    end_all(t)


def test_versions(t, pool):
    pool_set(t, 2)
    equal(filled(t, 2), 2, "two of version 1 wait")
    old = {v["microvmId"] for v in parked(t)}
    equal(build(t, "img"), "2.0", "version 2 is built")
    check(not any(v["imageVersion"] == "1.0" for v in parked(t)),
          "those of version 1 are gone with it", parked(t))
    until(lambda: len(parked(t)) == 2)
    equal({v["imageVersion"] for v in parked(t)}, {"2.0"}, "two of 2 wait")
    check(not old & {v["microvmId"] for v in parked(t)}, "which are new")
    a = t.run("img", name="two")
    equal((a.json["imageVersion"], a.json["thaw"]["pooled"]), ("2.0", True),
          "a run claims version 2")
    a = t.run("img", name="one", imageVersion="1.0")
    equal((a.json["imageVersion"], a.json["thaw"]["pooled"]), ("1.0", False),
          "a run of version 1 thaws it")
    t.end("one")
    t.end("two")
    t.request("PATCH", AWS + "/microvm-images/img/versions/2.0",
              {"status": "INACTIVE"})
    until(lambda: [v["imageVersion"] for v in parked(t)] == ["1.0"] * 2)
    equal([v["imageVersion"] for v in parked(t)], ["1.0"] * 2,
          "inactive: those of version 1 wait again")
    a = t.delete(AWS + "/microvm-images/img/versions/2.0")
    equal(a.status, 200, "an inactive version is deleted")


def test_delete_image(t, pool):
    build(t, "other")
    pool_set(t, 2, "other")
    equal(filled(t, 2, "other"), 2, "another image's pool")
    a = t.delete(AWS + "/microvm-images/other")
    equal((a.status, (a.json or {}).get("state")), (200, "DELETED"),
          "an image is deleted under its parked microVMs")
    equal([p["image"] for p in t.get(OWN + "/pools").json["items"]], ["img"],
          "its pool goes with it")
    check(not any(v["imageArn"].endswith(":other") for v in parked(t)),
          "none is left")
    t.restart()
    equal([p["image"] for p in t.get(OWN + "/pools").json["items"]], ["img"],
          "also for the next thawd")


def test_restart(t, pool):
    pool_set(t, 2)
    equal(filled(t, 2), 2, "two wait")
    before = pool_of(t)
    mine = t.run("img", name="kept", labels={"k": "v"}, clientToken="keep",
                 maximumDurationInSeconds=77).json
    equal((mine["thaw"]["pooled"], filled(t, 2)), (True, 2),
          "one is claimed, two wait")
    ids = [v["microvmId"] for v in parked(t)]
    until(lambda: counts_written(t))
    t.kill9()
    t.start()
    v = t.vm(mine["microvmId"]).json
    equal((v["thaw"]["name"], v["thaw"]["labels"], v["thaw"]["pooled"],
           v["maximumDurationInSeconds"], v["state"]),
          ("kept", {"k": "v"}, True, 77, "TERMINATED"),
          "kill -9 of thawd: what was claimed is its claimant's on record")
    equal(t.run("img", name="kept", labels={"k": "v"}, clientToken="keep",
                maximumDurationInSeconds=77).json["microvmId"],
          mine["microvmId"], "and its token still names it")
    for i in ids:
        v = t.vm(i).json
        equal((v["state"], v["thaw"]["reason"]), ("TERMINATED", "thawd-killed"),
              "kill -9 of thawd: a parked one is ended and recorded")
    equal(filled(t, 2), 2, "and thaw-pool fills the pool again")
    p = pool_of(t)
    equal((p["size"], p["hits"], p["wasted"]),
          (2, before["hits"] + 1, before["wasted"] + 2), "size and counts are kept")
    contains(pool.log(), "trying again", "it said so")


def test_memory(_t, _pool):
    t = fresh("--memory-budget", "320M")
    pool = Pool(t)
    try:
        build(t, "big")
        pool_set(t, 4)
        equal(filled(t, 4), 4, "four wait, with room for five")
        equal(t.run("big", name="b0").status, 200, "the fifth is a plain run")
        equal(t.run("big", name="b1").status, 200, "the sixth takes a place")
        until(lambda: pool_of(t)["parked"] == 3)
        equal(pool_of(t)["parked"], 3, "of a parked one")
        a = t.post(OWN + "/images", {"name": "big", "kernel": ELF,
                                     "memoryMiB": MIB})
        check('"image"' in a.text, "a build takes one, too", a)
        pool.stop()
        for i in range(2, 5):
            equal(t.run("big", name=f"b{i}").status, 200, f"plain run {i}")
        equal(t.run("big").status, 402, "without parked ones it is 402")
        equal(pool_of(t)["parked"], 0, "none is parked")
        equal(t.run("img", parked=True).status, 402,
              "and none can be: nobody is displaced")
        pool.start()
        time.sleep(0.5)
        for i in range(5):
            t.end(f"b{i}")
        equal(filled(t, 4), 4, "room is made: they are parked again")
        committed = t.host()["memory"]["committedMiB"]
        equal(committed, 4 * MIB, "parked ones count in the budget")
    finally:
        pool.stop()
        t.remove()


class Claimer:
    """A client that claims and ends, one after the other, as a process that may
    be killed at any moment. It writes down each token before it asks and each
    answer after it; the next one under its name takes an unanswered token up."""

    def __init__(self, t, name):
        self.t = t
        self.log_path = os.path.join(t.dir, f"claimer-{name}")
        self.start()

    def start(self, mode="go-on"):
        self.proc = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), BIN, "--claimer",
             self.t.sock, self.log_path, mode], stdin=subprocess.DEVNULL)

    def finish(self):
        """Only asks again for what it was not told."""
        self.start("finish")
        return self.proc.wait(PATIENCE)

    def kill9(self):
        self.proc.kill()
        self.proc.wait()

    def lines(self):
        try:
            with open(self.log_path) as f:
                # A last line without its end was never written: killed in it.
                return [x.split() for x in f if x.endswith("\n")]
        except FileNotFoundError:
            return []

    def claims(self):
        return sum(x[0] == "got" and x[3] == "True" for x in self.lines())


def claimer_main(sock, log_path, mode):
    t = Thawd("none")
    os.rmdir(t.dir)
    t.sock = sock
    old = []
    if os.path.exists(log_path):
        with open(log_path) as f:
            old = f.read().split("\n")
    asked = [x.split()[1] for x in old if x.startswith("ask ")]
    answered = {x.split()[1] for x in old[:-1] if x.startswith(("got ", "no "))}
    log = open(log_path, "a", buffering=1)
    if old and old[-1]:
        log.write("\n")
    token = asked[-1] if asked and asked[-1] not in answered \
        and len(asked[-1]) == 36 else None
    while token or mode == "go-on":
        if not token:
            token = str(uuid.uuid4())
            log.write(f"ask {token}\n")
        try:
            a = t.run("img", clientToken=token)
        except (OSError, http.client.HTTPException):
            time.sleep(0.02)  # thawd is down, or died while it answered
            continue
        if a.status == 200:
            pooled = a.json["thaw"]["pooled"]
            log.write(f"got {token} {a.json['microvmId']} {pooled}\n")
            try:
                t.end(a.json["microvmId"])
            except (OSError, http.client.HTTPException):
                pass  # it ended with thawd
            if not pooled:
                time.sleep(0.2)  # lets the pool be filled
        else:  # 500: thawd stops, it did not start
            log.write(f"no {token} {a.status}\n")
        token = None


def await_claims(clients, n, timeout):
    """Until the clients have n claims; how many they have."""
    until(lambda: sum(c.claims() for c in clients) >= n, timeout)
    return sum(c.claims() for c in clients)


def check_claims(t, clients, kills):
    lines = [x for c in clients for x in c.lines()]
    got = [(x[1], x[2]) for x in lines if x[0] == "got"]
    bad = [x for x in lines if x[0] == "no" and x[2] != "500"]
    claims = sum(x[0] == "got" and x[3] == "True" for x in lines)
    equal(bad, [], "no claim is refused")
    by_vm, by_token = {}, {}
    for token, vm in got:
        by_vm.setdefault(vm, set()).add(token)
        by_token.setdefault(token, set()).add(vm)
    equal(([v for v in by_vm.values() if len(v) > 1],
           [v for v in by_token.values() if len(v) > 1]), ([], []),
          f"{claims} claims, {len(by_token)} runs: no microVM has two tokens "
          f"and no token two microVMs; {kills} kill -9 of each: thawd, "
          "thaw-pool, a client")
    again = random.Random(1).sample(sorted(by_token), min(100, len(by_token)))
    names = [(tok, t.run("img", clientToken=tok)) for tok in again]
    wrong = [(tok, a) for tok, a in names
             if a.status == 200 and a.json["microvmId"] not in by_token[tok]
             or a.status not in (200, 409)]
    equal(wrong, [], "a token, used again, names its microVM or is refused")
    # What no client knows of came from a token that was asked, or from none.
    known = {vm["microvmId"] for vm in t.get(AWS + "/microvms?state=RUNNING")
             .json["items"]}
    equal(known - set(by_vm), set(), "nothing runs that nobody was told of")


def test_no_claim_twice(t, pool):
    n, kills = option("--claims", 600), option("--kills", 4)
    size = 32
    pool_set(t, size)
    filled(t, size)
    clients = [Claimer(t, i) for i in range(8)]
    rnd = random.Random(7)
    began = time.time()
    try:
        for i in range(1, 3 * kills + 1):
            await_claims(clients, n * i // (3 * kills + 1),
                         3 * PATIENCE)
            if i % 3 == 0:
                pool.stop(signal.SIGKILL)
                time.sleep(rnd.random() / 20)
                pool.start()
            elif i % 3 == 1:
                c = rnd.choice(clients)
                c.kill9()
                c.start()
            else:
                t.kill9()
                t.start()
        check(await_claims(clients, n, 6 * PATIENCE) >= n, f"{n} claims in time",
              sum(c.claims() for c in clients))
    finally:
        diag(f"{sum(c.claims() for c in clients)} claims in "
             f"{time.time() - began:.0f} s")
        for c in clients:
            c.kill9()
    equal([c.finish() for c in clients], [0] * 8,
          "killed in the end, they learn what their last tokens name")
    check_claims(t, clients, kills)
    until(lambda: not end_all(t) and not t.get(
        AWS + "/microvms?state=RUNNING").json["items"])
    equal(filled(t, size), size, "the pool is full again")


def test_once_in_the_guest(t, pool):
    """What each guest was told: one payload, its claimant's."""
    pool_set(t, 8)
    filled(t, 8)
    got, lock, barrier = [], threading.Lock(), threading.Barrier(8)

    def one(k):
        barrier.wait()
        for i in range(6):
            a = t.run("img", runHookPayload=f"echo me-{k}-{i}\ncount 1\n")
            with lock:
                got.append((f"me-{k}-{i}", a.json["microvmId"]))
    th = [threading.Thread(target=one, args=(k,)) for k in range(8)]
    for x in th:
        x.start()
    for x in th:
        x.join()
    bad = []
    for word, vm in got:
        log = t.wait_log(vm, "COUNT")
        if re.findall(r"me-\d+-\d+", log) != [word] or "COUNT 1" not in log:
            bad.append((word, log))
        t.end(vm)
    equal(len({vm for _, vm in got}), 48, "48 claims, 48 microVMs")
    equal(bad, [], "and each guest heard its own claimant alone")


def test_cli(t, pool):
    def thaw(*args):
        return subprocess.run([BIN + "/thaw", "--socket", t.sock, *args],
                              capture_output=True, text=True, timeout=PATIENCE)
    equal(thaw("pool", "set", "img", "2").returncode, 0, "thaw pool set")
    equal(filled(t, 2), 2, "fills")
    row = thaw("pool", "ls", "--no-header").stdout.split()
    equal(row[:4], ["img", "1.0", "2", "2"], "thaw pool ls")
    equal(thaw("pool", "set", "nope", "2").returncode, 3, "no such image: 3")
    equal(thaw("pool", "rm", "img").returncode, 0, "thaw pool rm")
    equal(thaw("pool", "rm", "img").returncode, 3, "again: 3")
    equal(parked(t), [], "nothing is parked")


def test_nothing_left(t, pool):
    equal(t.get(AWS + "/microvms?state=RUNNING&state=PARKED&state=PENDING")
          .json["items"], [], "nothing runs or waits")
    equal(until(lambda: t.host()["memory"]["committedMiB"] == 0), True,
          "and no memory is promised")


ORDER = [v for k, v in list(globals().items()) if k.startswith("test_")]

if __name__ == "__main__":
    if "--claimer" in sys.argv:
        claimer_main(*sys.argv[3:])
        sys.exit(0)
    if not os.access("/dev/kvm", os.R_OK | os.W_OK) or os.geteuid():
        print("1..0 # SKIP needs /dev/kvm and root")
        sys.exit(77)
    rig = fresh()
    manager = Pool(rig)
    try:
        code = main(ORDER, rig, manager)
    finally:
        manager.proc.kill()
        rig.remove()
    sys.exit(code)
