#!/usr/bin/python3
# timeout: 1500
"""The whole lifecycle with real Linux guests: build, thaw, exec, forward,
suspend, resume, terminate, and what must hold in each clone. TAP."""
import os
import sys

import lifecycle_rig as lr
from lifecycle_rig import rig

site = lr.Site()
GOOD = "GOOD 25165824 12582912"


def test_build():
    site.start()
    tar = lr.rootfs_with(lr.pattern_app())
    r = site.build("pattern", tar, "--env", "COLOUR=green", "--vcpus", "1")
    rig.check(b"1.0" in r.stdout + r.stderr, "an image is built from a tar",
              r.stdout)


def test_every_byte_after_a_thaw():
    a = site.run("pattern", "--name", "a")
    rig.equal(site.get(a, "/check"), GOOD,
              "every byte of memory and disk is right after a thaw")
    rig.equal(site.get(a, "/check"), GOOD, "and again from a warm template")
    b = site.run("pattern", "--name", "b")
    rig.equal(site.get(b, "/check"), GOOD, "and in a second clone")


def test_isolation():
    rig.equal(site.get("a", "/dirty?7"), "DIRTIED",
              "clone a rewrites memory and disk")
    rig.equal(site.get("b", "/check"), GOOD, "clone b sees none of it")
    c = site.run("pattern", "--name", "c")
    rig.equal(site.get(c, "/check"), GOOD, "nor does a new clone")
    rig.equal(site.get("a", "/check"), GOOD, "a has what it wrote")
    counts = [site.get("a", "/count"), site.get("a", "/count"),
              site.get("b", "/count"), site.get("c", "/count")]
    rig.equal(counts, ["1", "2", "1", "1"], "counts are independent")


def test_identity():
    seen = {}
    for vm in "abc":
        seen[vm] = (site.get(vm, "/random"),
                    site.sh(vm, "cat /etc/machine-id"),
                    site.sh(vm, "cat /proc/sys/kernel/random/boot_id"),
                    site.sh(vm, "head -c 32 /dev/urandom | od -An -tx1"))
    for i, what in enumerate(["getrandom of the application", "machine-id",
                              "boot_id", "/dev/urandom"]):
        values = [seen[vm][i] for vm in "abc"]
        rig.check(len(set(values)) == 3 and all(values),
                  f"{what} differs between clones", values)
    site.clock_is_right("c", "the guest's clock is right")


def test_exec():
    r = site.thaw("exec", "a", "/bin/sh", "-c", "echo out; echo err >&2; exit 3",
                  ok=False)
    rig.equal((r.stdout, r.stderr, r.returncode), (b"out\n", b"err\n", 3),
              "exec keeps stdout, stderr and the exit code apart")
    r = site.thaw("exec", "-i", "a", "/usr/bin/wc", "-c",
                  stdin=b"x" * 300000)
    rig.equal(r.stdout.strip(), b"300000", "exec passes standard input whole")
    rig.equal(site.out("exec", "-e", "N=5", "-u", "nobody", "-w", "/usr", "a",
                       "/bin/sh", "-c", 'echo "$COLOUR $N $(id -un) $(pwd)"'),
              "green 5 nobody /usr",
              "exec has the image's and its own environment, user and folder")
    rig.contains(site.on_terminal("exec", "-it", "a", "/usr/bin/tty"),
                 "/dev/pts/",
                 "exec -t has a terminal")
    r = site.thaw("exec", "a", "/bin/sh", "-c", "kill -9 $$", ok=False)
    rig.equal(r.returncode, 137, "a signal is 128+n")
    r = site.thaw("exec", "a", "/no/such/program", ok=False)
    rig.equal(r.returncode, 127, "no such program is 127")
    rig.equal(len(site.thaw("exec", "a", "/usr/bin/head", "-c", "8388608",
                            "/dev/zero").stdout), 8388608,
              "exec carries 8 MiB of output whole")


def test_logs():
    site.get("b", "/say?hello")
    rig.until(lambda: "said hello" in site.out("logs", "b"))
    rig.contains(site.out("logs", "b"), "said hello",
                 "what an application prints is in its clone's log")
    rig.check("said hello" not in site.out("logs", "a"), "and in no other")
    rig.contains(site.sh("b", "cat /proc/self/cgroup"), "app",
                 "an exec'd process is in the application's cgroup")


def test_suspend_resume():
    site.sh("a", "echo kept >/var/tmp/kept; mkdir -p /dev/shm; "
                 "echo fleeting >/dev/shm/kept")
    for cycle in range(1, 4):
        pid = site.pid("a")
        site.out("suspend", "a")
        rig.equal(site.state("a"), "SUSPENDED", f"cycle {cycle}: suspended")
        rig.check(lr.gone(pid), "its process is gone from the host")
        site.out("resume", "a")
        rig.equal(site.state("a"), "RUNNING", "resumed")
        rig.equal(site.get("a", "/check"), GOOD,
                  "every byte of memory and disk is right after it")
        rig.equal(site.get("a", "/count"), str(2 + cycle), "it counts on")
        rig.equal(site.get("a", f"/dirty?{10 + cycle}"), "DIRTIED",
                  "and it is written to again")
    rig.equal(site.sh("a", "cat /var/tmp/kept /dev/shm/kept"),
              "kept\nfleeting", "files on disk and in memory are still there")
    site.clock_is_right("a", "its clock is right after resumes")


def test_random_after_resume():
    site.out("suspend", "b")
    before = site.get("c", "/random")
    site.out("resume", "b")
    rig.check(site.get("b", "/random") != before, "randomness is fresh")


def test_ends():
    site.out("rm", "-f", "c")
    rig.equal(site.state("c"), "TERMINATED", "rm ends a microVM")
    d = site.run("pattern")
    site.thaw("exec", d, "/bin/sh", "-c", "echo o >/proc/sysrq-trigger",
              ok=False)
    rig.equal(site.wait_state(d, "TERMINATED"), "TERMINATED",
              "a guest that powers off is TERMINATED")
    rig.check(site.inspect(d)["thaw"]["reason"], "with a reason",
              site.inspect(d))


def test_events():
    seen = [(e.get("from"), e.get("to")) for e in site.thawd.events()
            if e.get("id") == site.inspect("a")["microvmId"]]
    rig.equal(seen[:4], [(None, "PENDING"), ("PENDING", "RUNNING"),
                         ("RUNNING", "SUSPENDING"),
                         ("SUSPENDING", "SUSPENDED")],
              "the events tell the life of a microVM in order")


def test_cold():
    e = site.run("pattern", "--cold", "--name", "cold")

    def answer():
        try:
            return site.get(e, "/check")
        except (OSError, RuntimeError, lr.http.client.HTTPException):
            return None
    rig.equal(rig.until(answer), GOOD, "a cold run boots the image's disk")


def more_vcpus(n):
    def test():
        tar = os.path.join(lr.WORK, "rootfs.tar")
        name = f"pattern{n}"
        site.build(name, tar, "--vcpus", str(n))
        vm = site.run(name)
        rig.equal(site.get(vm, "/cpus"), str(n), f"{n} vCPUs are seen")
        rig.equal(site.sh(vm, "for i in $(seq %d); do "
                              "taskset -c $((i - 1)) echo cpu; done" % n),
                  "\n".join(["cpu"] * n), f"each of {n} vCPUs runs")
        rig.equal(site.get(vm, "/check"), GOOD, f"{n} vCPUs: every byte")
        site.out("suspend", vm)
        site.out("resume", vm)
        rig.equal(site.get(vm, "/check"), GOOD,
                  f"{n} vCPUs: every byte after a resume")
        site.out("rm", "-f", vm)
    test.__name__ = f"test_{n}_vcpus"
    return test


def test_loop():
    s = site.thawd.stats()["loop"]
    rig.diag(f"longest turn {s['longestTurnMs']:.1f} ms "
             f"({s['longestTurnName']}), {s['turnsOver10ms']} over 10 ms")


status = rig.main([
    test_build, test_every_byte_after_a_thaw, test_isolation, test_identity,
    test_exec, test_logs, test_suspend_resume, test_random_after_resume,
    test_ends, test_events, test_cold, more_vcpus(2), more_vcpus(4),
    test_loop])
site.close()
sys.exit(status)
