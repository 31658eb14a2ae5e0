#!/usr/bin/python3
"""Templates beyond their budget: what is given back comes again, and no guest of the
ring-3 kind sees a wrong byte.

usage: test_live_templates.py PATH-OF-thawd LIBEXEC PATH-OF-ring3.elf [-k WORD]
"""
import os
import re
import sys

from thawd_rig import OWN, PATIENCE, Thawd, check, diag, equal, main, until

BIN, LIBEXEC, ELF = sys.argv[1], sys.argv[2], sys.argv[3]
BUDGET = 16 << 20
AREA, PAGES = "16M 40M", 40 * 256
SLACK = 8 << 20  # what may be on its way in when it is looked at; all is 80


def fresh():
    t = Thawd(BIN, "--template-budget", "16M", libexec=LIBEXEC).start()
    for name, seed in (("one", 5), ("two", 6)):
        got = t.build(name=name, kernel=ELF, memoryMiB=64,
                      cmdline=f"fill {seed} {AREA}", readyTimeoutSeconds=PATIENCE)
        if "image" not in got:
            raise RuntimeError(f"the build failed: {got}\n{t.log()[-1500:]}")
    return t


def ask(t, vm, command, pattern):
    before = len(t.logs(vm))
    t.mail(vm, command + "\n")
    until(lambda: re.search(rf"(?:{pattern}).*\n", t.logs(vm)[before:]))
    return t.logs(vm)[before:].strip()


def stats(t):
    return t.get(OWN + "/stats").json["templates"]


def settled(t):
    """Template bytes once they are under the budget, or after a while."""
    until(lambda: stats(t)["residentBytes"] <= BUDGET)
    return stats(t)["residentBytes"]


def good(t, vm, seed, what):
    equal(ask(t, vm, f"check {seed} {AREA}", "GOOD|BAD"), f"GOOD {PAGES}", what)


def test_clones_of_more_than_the_budget(t):
    vms = [t.run("one").json["microvmId"] for _ in range(4)]
    most = 0
    for n in range(2):
        for k, vm in enumerate(vms):
            good(t, vm, 5, f"round {n}: clone {k} reads every byte")
            most = max(most, stats(t)["residentBytes"])
    check(most <= BUDGET + SLACK, "at no moment much more than the budget", most)
    s = stats(t)
    equal(s["budgetBytes"], BUDGET, "the budget is shown")
    check(s["evictedBytes"] > 8 * (40 << 20) // 2, "much was given back", s)
    equal(ask(t, vms[0], f"fill 9 {AREA}", "FILLED"), f"FILLED {PAGES}",
          "one writes all of it")
    for k in (1, 2, 3):
        good(t, vms[k], 5, f"clone {k} sees none of that")
    good(t, vms[0], 9, "what it wrote is its own, whatever is given back")
    check(settled(t) <= BUDGET, "under the budget", stats(t))
    equal(t.op(vms[0], "suspend", "?wait=SUSPENDED").status, 200,
          "suspend")
    equal(t.op(vms[1], "suspend", "?wait=SUSPENDED").status, 200,
          "suspend of one that wrote nothing")
    equal(t.op(vms[0], "resume").status, 200, "resume")
    equal(t.op(vms[1], "resume").status, 200, "resume")
    good(t, vms[0], 9, "and after a suspend")
    good(t, vms[1], 5, "and after a suspend without writes")
    for vm in vms:
        equal(t.vm(vm).json["state"], "RUNNING", "it runs")
        t.end(vm)


def test_two_images_at_once(t):
    vms = [(t.run(i).json["microvmId"], s)
           for i, s in (("one", 5), ("two", 6), ("one", 5), ("two", 6))]
    for n in range(2):
        for vm, seed in vms:
            t.mail(vm, f"check {seed} {AREA}\n")  # all of them at once
        until(lambda: all(len(re.findall(r"(?:GOOD|BAD).*\n", t.logs(vm))) > n
                          for vm, _ in vms))
        equal([t.logs(vm).count(f"GOOD {PAGES}") for vm, _ in vms], [n + 1] * 4,
              f"round {n}: every byte of both is right")
    check(settled(t) <= BUDGET, "under the budget", stats(t))
    for vm, _ in vms:
        t.end(vm)


def test_an_image_that_nobody_uses_goes_first(t):
    before = stats(t)
    a = t.run("one").json["microvmId"]
    good(t, a, 5, "one is used")
    t.end(a)
    b = t.run("two").json["microvmId"]
    good(t, b, 6, "then two")
    check(settled(t) <= BUDGET, "under the budget", stats(t))
    until(lambda: stats(t)["evictedImages"] > before["evictedImages"])
    check(stats(t)["evictedImages"] > before["evictedImages"],
          "an image went in whole", stats(t))
    names = [i["image"] for i in t.get(OWN + "/host").json["templates"]]
    equal(names, ["two"], "the one that nobody uses")
    a = t.run("one").json["microvmId"]
    good(t, a, 5, "and it comes again")
    good(t, b, 6, "the other stays right")
    t.end(a)
    t.end(b)


if __name__ == "__main__":
    if not os.access("/dev/kvm", os.R_OK | os.W_OK) or os.geteuid():
        diag("no /dev/kvm, or not root")
        sys.exit(77)
    rig = fresh()
    try:
        rc = main([test_clones_of_more_than_the_budget, test_two_images_at_once,
                   test_an_image_that_nobody_uses_goes_first], rig)
    finally:
        rig.remove()
    sys.exit(rc)
