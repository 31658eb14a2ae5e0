"""thaw-bench-store on the store of an image that thawd has just built, and what
guest_bench.py writes. Usage: test_bench_store.py THAW-BENCH-STORE"""
import json
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "engine"))
sys.path.insert(0, os.path.join(HERE, "..", "..", "bench", "guest"))
sys.dont_write_bytecode = True
import guest_bench  # noqa: E402
import thawd_rig as rig  # noqa: E402

TOOL = os.path.abspath(sys.argv[1])
BIN = os.path.dirname(TOOL)
thawd = rig.Thawd(os.path.join(BIN, "thawd"))
out = os.path.join(thawd.dir, "b.json")


def tool(*args):
    return subprocess.run([TOOL, *args], capture_output=True, text=True)


def bench(*args):
    return subprocess.run([os.path.join(BIN, "thaw-bench"), *args],
                          capture_output=True, text=True)


def test_measures():
    thawd.start()
    for _ in thawd.post("/thaw/v1/images", {
            "name": "ring3", "kernel": os.path.join(BIN, "ring3.elf"),
            "cmdline": "fill 1 16M 24M", "memoryMiB": 64}).text.splitlines():
        pass
    thawd.stop()
    p = tool("--json", out, "one=" + os.path.join(thawd.state, "store"))
    rig.equal((p.returncode, p.stderr), (0, ""), "it measures a store")
    with open(out) as f:
        r = {x["name"]: x for x in json.load(f)["results"]}
    rig.equal(sorted(r), ["guest.one.store." + k for k in
                          ("decode", "found", "lookup")], "three figures")
    d = r["guest.one.store.decode"]
    rig.check(24 * 256 <= d["pages"] <= 32 * 256, "all pages were read", d)
    rig.check(d["floor_p50"] and d["ratio"] > 1 and 1 < d["lz4_ratio"] < 100,
              "a decode is beside lz4 alone", d)
    rig.check(all(x["p50"] > 0 and x["unit"] == "ns/page" for x in r.values()),
              "each has a time", r)


def test_refuses():
    p = tool("one=/nonexistent/store")
    rig.check(p.returncode == 1 and "/nonexistent/store" in p.stderr,
              "a store that is not there is named", p.stderr)
    empty = os.path.join(thawd.dir, "empty")
    p = tool("one=" + empty)
    rig.check(p.returncode == 1 and "holds no image" in p.stderr,
              "an empty store is told", p.stderr)
    rig.equal(tool("nothing").returncode, 2, "a word without = is a mistake")
    rig.equal(tool().returncode, 2, "and so is nothing")


def test_guest_json():
    """What the driver of the real guests writes goes into a report."""
    os.environ["KVMBOX"] = "1"
    r = guest_bench.Results()
    del os.environ["KVMBOX"]
    for state, v in (("thaw.warm", [3., 1., 2.]), ("cold.pagecache", [40.])):
        r.add("guest.flask." + state, "ms", v, t3_ms=1.5, faults=3)
    r.ratios("flask")
    path = os.path.join(thawd.dir, "guest.json")
    r.save(path)
    p = bench("--from", path, "--from", out, "--report",
              os.path.join(thawd.dir, "report"))
    rig.equal((p.returncode, p.stderr), (0, ""), "thaw-bench takes it")
    warm = [x for x in p.stdout.splitlines() if "flask.thaw.warm" in x]
    rig.check(warm and "emulated" in warm[0], "it is called emulated", p.stdout)
    decode = [x for x in p.stdout.splitlines() if "store.decode" in x]
    rig.check(decode and "emulated" not in decode[0],
              "what was measured on the host is not", p.stdout)
    with open(os.path.join(thawd.dir, "report", "report.md")) as f:
        page = f.read()
    rig.check("ms, emulated | 2 | 3 | 3 |" in page, "and so in the page", page)
    rig.check("(guests.svg)" in page, "with a plot", page)
    with open(os.path.join(thawd.dir, "report", "bench.json")) as f:
        j = json.load(f)
    warm = [x for x in j["results"] if x["name"] == "guest.flask.thaw.warm"][0]
    rig.equal((warm["cold_boot_over_thaw"], warm["emulated"]), (20.0, True),
              "its members stay")
    rig.equal(j["host"]["emulated"], False, "the host is the real one")
    v = list(range(1, 102))
    rig.equal([guest_bench.percentile(v, p) for p in (0, 50, 99, 100)],
              [1, 51, 100, 101], "percentiles are by nearest rank")


if not os.access("/dev/kvm", os.W_OK) or os.geteuid() != 0:
    print("1..0 # SKIP needs root and /dev/kvm")
    sys.exit(77)
status = rig.main([test_measures, test_refuses, test_guest_json])
thawd.remove()
sys.exit(status)
