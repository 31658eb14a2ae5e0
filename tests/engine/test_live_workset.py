#!/usr/bin/python3
"""Working sets and write sets, learned from real thaws of the ring-3 guest.

usage: test_live_workset.py PATH-OF-thawd LIBEXEC PATH-OF-ring3.elf [-k WORD]
"""
import os
import re
import sys

from thawd_rig import PATIENCE, Thawd, check, diag, equal, main, until

BIN, LIBEXEC, ELF = sys.argv[1], sys.argv[2], sys.argv[3]
PAGES = 8 * 256


def fresh():
    t = Thawd(BIN, libexec=LIBEXEC).start()
    got = t.build(name="img", kernel=ELF, memoryMiB=64,
                  cmdline="fill 5 16M 8M", readyTimeoutSeconds=PATIENCE)
    if "image" not in got:
        raise RuntimeError(f"the build failed: {got}\n{t.log()[-1500:]}")
    return t


def ask(t, vm, command, pattern):
    before = len(t.logs(vm))
    t.mail(vm, command + "\n")
    until(lambda: re.search(rf"(?:{pattern}).*\n", t.logs(vm)[before:]))
    return t.logs(vm)[before:].strip()


def learned(t, since):
    """KiB of the working set and of its write set, once it is written."""
    m = until(lambda: re.findall(
        r"working set: (\d+) KiB, (\d+) KiB of them written.*\n",
        t.log()[since:]))
    return tuple(int(x) for x in m[-1]) if m else (0, 0)


def private_kib(t, vm):
    """Anonymous memory of its process."""
    pid = t.vm(vm).json["thaw"]["pid"]
    with open(f"/proc/{pid}/status") as f:
        return int(re.search(r"RssAnon:\s+(\d+)", f.read()).group(1))


def test_learned_from_real_thaws(t):
    since = len(t.log())
    # At once: what is learned is what happens in the first ten seconds.
    vm = t.run("img", runHookPayload="touch write rand 16M 8M\n").json[
        "microvmId"]
    check("SUM" in t.wait_log(vm, "SUM"), "the first thaw writes its pages")
    t.end(vm)
    size, written = learned(t, since)
    check(size >= 8192 and 8192 <= written < 9000,
          "its end leaves a working set and a write set", (size, written))
    ws = [n for n in os.listdir(os.path.join(t.state, "store", "snaps"))
          if n.endswith(".mem.ws")]
    equal(len(ws), 1, "in one file")


def test_write_set_is_laid_with_the_right_bytes(t):
    for how in ("warm", "cold"):
        if how == "cold":
            t.restart()
        vm = t.run("img").json["microvmId"]
        until(lambda: private_kib(t, vm) >= 8192)
        check(private_kib(t, vm) >= 8192,
              f"{how}: the write set is private before anybody writes",
              private_kib(t, vm))
        equal(ask(t, vm, "check 5 16M 8M", "GOOD|BAD"), f"GOOD {PAGES}",
              f"{how}: every byte of it is right")
        equal(ask(t, vm, "fill 9 16M 8M", "FILLED"), f"FILLED {PAGES}",
              f"{how}: it is written")
        other = t.run("img").json["microvmId"]
        equal(ask(t, other, "check 5 16M 8M", "GOOD|BAD"), f"GOOD {PAGES}",
              f"{how}: another clone sees none of that")
        equal(ask(t, vm, "check 9 16M 8M", "GOOD|BAD"), f"GOOD {PAGES}",
              f"{how}: and it keeps what it wrote")
        equal(t.op(vm, "suspend", "?wait=SUSPENDED").status, 200,
              f"{how}: suspend")
        equal(t.op(vm, "resume").status, 200, f"{how}: resume")
        equal(ask(t, vm, "check 9 16M 8M", "GOOD|BAD"), f"GOOD {PAGES}",
              f"{how}: after it, too")
        t.end(vm)
        t.end(other)


def test_a_damaged_working_set_costs_no_byte(t):
    snaps = os.path.join(t.state, "store", "snaps")
    path = [os.path.join(snaps, n) for n in os.listdir(snaps)
            if n.endswith(".mem.ws")][0]
    t.stop()
    with open(path, "r+b") as f:
        size = os.path.getsize(path)
        for at in range(size // 3, size - 4096, 10000):
            f.seek(at)
            f.write(b"\xff" * 64)
    t.start()
    vm = t.run("img").json["microvmId"]
    equal(ask(t, vm, "check 5 16M 8M", "GOOD|BAD"), f"GOOD {PAGES}",
          "every byte is right, from the packs")
    t.end(vm)


def worksets(t, want=None):
    """The files of the working sets, once `want` says yes."""
    snaps = os.path.join(t.state, "store", "snaps")

    def now():
        return {n for n in os.listdir(snaps) if n.endswith(".ws")}
    until(lambda: not want or want(now()))
    return now()


def templates(t):
    return [i["version"] for i in t.get("/thaw/v1/host").json["templates"]]


def version(t, seed):
    got = t.build(name="img", kernel=ELF, memoryMiB=64,
                  cmdline=f"fill {seed} 16M 8M", readyTimeoutSeconds=PATIENCE)
    check("image" in got, f"a version with seed {seed}", got)


def test_superseded_versions_lose_theirs(t):
    first = worksets(t)
    equal(len(first), 1, "one version, one working set")
    version(t, 6)
    second = worksets(t, lambda ws: len(ws) == 1 and ws != first)
    check(len(second) == 1 and second != first,
          "a second version's takes the place of the first's", second)
    until(lambda: "1.0" not in templates(t))
    check("1.0" not in templates(t), "its template goes, too", templates(t))
    vm = t.run("img", imageVersion="1.0").json["microvmId"]
    equal(ask(t, vm, "check 5 16M 8M", "GOOD|BAD"), f"GOOD {PAGES}",
          "the first version still thaws, every byte of it")
    equal(worksets(t, lambda ws: len(ws) == 2), first | second,
          "and its working set is learned anew")
    version(t, 7)
    third = worksets(t, lambda ws: len(ws) == 2 and not ws & second)
    check(len(third) == 2 and third > first,
          "it stays while a microVM is of that version, the second's goes", third)
    until(lambda: "2.0" not in templates(t))
    names = templates(t)
    check("2.0" not in names and "1.0" in names,
          "and so do their templates", names)
    t.end(vm)
    t.restart()
    check(len(worksets(t, lambda ws: len(ws) == 1)) == 1 and
          not worksets(t) & first, "at the next start it goes as well",
          worksets(t))
    for v, seed in (("1.0", 5), ("2.0", 6), ("3.0", 7)):
        vm = t.run("img", imageVersion=v).json["microvmId"]
        equal(ask(t, vm, f"check {seed} 16M 8M", "GOOD|BAD"), f"GOOD {PAGES}",
              f"every byte of {v} is right")
        t.end(vm)


def test_a_scattered_read_set_costs_its_own_pages(t):
    area, pages = "16M 64M", 8 << 20  # an eighth of them, by fours
    # On a busy host a recording may end too early: a guest that has no processor
    # for 100 ms is taken for one that needs nothing more. Then there are more.
    for _ in range(15):
        got = t.build(name="reads", kernel=ELF, memoryMiB=96, cmdline=f"fill 3 "
                      f"{area};freeze;touch read scattered {area}",
                      readyTimeoutSeconds=PATIENCE)
        if not check("image" in got, "an image whose copies read here and there",
                     got):
            return
        t.restart()
        vm = t.run("reads").json["microvmId"]
        check("SUM" in t.wait_log(vm, "SUM"), "a copy reads them, cold")
        had = t.stats()["templates"]["residentBytes"]
        if had < 1.5 * pages:
            break
        diag(f"its template has {had} bytes")
        t.end(vm)
    check(pages <= had < 1.5 * pages,
          "the template has hardly more than those", had)
    good = f"GOOD {64 * 256}"  # after the end of a line SUM, perhaps
    equal(ask(t, vm, f"check 3 {area}", "GOOD|BAD").splitlines()[-1], good,
          "every byte of them and around them is right")
    other = t.run("reads").json["microvmId"]
    equal(ask(t, other, f"check 3 {area}", "GOOD|BAD").splitlines()[-1], good,
          "and for another copy")
    t.end(vm)
    t.end(other)


if __name__ == "__main__":
    if not os.access("/dev/kvm", os.R_OK | os.W_OK) or os.geteuid():
        diag("no /dev/kvm, or not root")
        sys.exit(77)
    rig = fresh()
    try:
        rc = main([test_learned_from_real_thaws,
                   test_write_set_is_laid_with_the_right_bytes,
                   test_a_damaged_working_set_costs_no_byte,
                   test_superseded_versions_lose_theirs,
                   test_a_scattered_read_set_costs_its_own_pages], rig)
    finally:
        rig.remove()
    sys.exit(rc)
