"""thaw-bench from end to end, once and small: the names and the shape of what it
reports, never a time. Usage: test_bench_smoke.py THAW-BENCH"""
import json
import os
import shutil
import subprocess
import sys
import tempfile

FIXED = ["restore.fresh", "restore.shell", "touch.warm.read",
         "touch.warm.write", "cold.workingset", "suspend.parked",
         "clones.memory", "restores.rate", "store.size", "pool.claim",
         "peer.zeroboot.warm", "peer.zeroboot.cold",
         "cold.workingset.24m.sparse", "peer.zeroboot.cold.sparse"]
WITHOUT_FLOOR = ["clones.memory", "restores.rate"]
# What a sample costs beside its time, and when it is where.
COSTS = {
    "restore.fresh": ["cpu_ms", "faults", "faults_minor", "faults_major",
                      "bytes_read", "t1_ms", "t2_ms"],
    "touch.warm.read": ["cpu_ms", "faults", "fault_pages", "bytes_read"],
    "cold.workingset": ["cpu_ms", "faults", "fault_pages", "bytes_read",
                        "t1_ms", "t5_ms"],
    "suspend.parked": ["cpu_ms", "bytes_read"],
    "restores.rate": ["cpu_ms"],
    "pool.claim": ["cpu_ms"],
    "peer.zeroboot.warm": ["cpu_ms", "t2_ms"],
    "peer.zeroboot.cold": ["cpu_ms", "t5_ms"],
}
HOST = ["kernel", "hz", "kvm", "nested", "cgroup", "nx_huge_pages"]
PLOTS = ["restore", "workingset", "peers-cold", "touch", "density", "store"]

count = failed = 0


def check(ok, name, detail=""):
    global count, failed
    count += 1
    failed += not ok
    print(f"{'ok' if ok else 'not ok'} {count} - {name}", flush=True)
    if not ok:
        print("# " + str(detail)[:2000].replace("\n", "\n# "))


def check_result(r):
    name = r["name"]
    numbers = [r.get(k) for k in ("n", "p50", "p99", "max")]
    check(all(isinstance(v, (int, float)) for v in numbers),
          f"{name} has its numbers", r)
    check(r["n"] >= 1 and isinstance(r["unit"], str), f"{name} has samples", r)
    check(r["p50"] <= r["p99"] <= r["max"], f"{name} is in order", r)
    check({"floor_p50", "ratio"} <= r.keys(), f"{name} has floor and ratio", r)
    if name.startswith("peer."):
        check(r["ratio"] and r["thaw_p50"] > 0, f"{name} is beside thaw's", r)
    elif name.split(".1")[0] not in WITHOUT_FLOOR:
        check(r["floor_p50"] and abs(r["ratio"] - r["p50"] / r["floor_p50"])
              < 0.01 * r["ratio"] + 0.002, f"{name} is over its floor", r)


def main():
    bench = sys.argv[1]
    if not os.access("/dev/kvm", os.W_OK) or os.geteuid() != 0:
        print("1..0 # SKIP needs root and /dev/kvm")
        return 77
    out = tempfile.mkdtemp(prefix="bench-smoke-")
    path = os.path.join(out, "b.json")
    p = subprocess.run(
        [bench, "--quick", "--runs", "1", "--peers", "zeroboot,firecracker-file",
         "--json",
         path, "--report", os.path.join(out, "report")],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=3000)
    check(p.returncode == 0, "it ends with 0", p.stderr + p.stdout)
    with open(path) as f:
        got = json.load(f)
    names = [r["name"] for r in got["results"]]
    check(len(names) == len(set(names)), "no name comes twice", names)
    for name in FIXED:
        check(name in names, f"{name} is there", names)
        check(name in p.stdout, f"{name} is in the table", p.stdout)
    for r in got["results"]:
        check_result(r)
        missing = set(COSTS.get(r["name"], [])) - r.keys()
        check(not missing, f"{r['name']} tells what it costs", missing)
    left = {x["name"]: x["reason"] for x in got["left_out"]}
    check("no Firecracker was given" in left.get("peer.firecracker-file", ""), "a peer left out is told", left)
    for key in HOST:
        check(key in got["host"], f"the host's {key} is told", got["host"])
    with open(os.path.join(out, "report", "report.md")) as f:
        page = f.read()
    check("peer.firecracker-file: " in page,
          "and so it is in the report", page)
    again = os.path.join(out, "again.json")
    q = subprocess.run([bench, "--from", path, "--json", again],
                       capture_output=True, text=True)
    with open(again) as f:
        check(q.returncode == 0 and json.load(f) == got,
              "--from gives the same again, and measures nothing", q.stderr)
    for plot in PLOTS:
        check(f"({plot}.svg)" in page and
              os.path.exists(os.path.join(out, "report", plot + ".svg")),
              f"the report has {plot}.svg", page)
    bad = subprocess.run([bench, "nonsense"], capture_output=True, text=True)
    check(bad.returncode == 2 and "nonsense" in bad.stderr,
          "an unknown measurement is refused by name", bad.stderr)
    shutil.rmtree(out)
    print(f"1..{count}")
    return 1 if failed else 0


sys.exit(main())
