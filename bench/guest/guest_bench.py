#!/usr/bin/python3
"""Real guests, measured: a Flask application and Python with numpy, each thawed
with its template in memory, with the store's files in the page cache, and off the
disk; booted cold for comparison; suspended and resumed, on command and by a request
at its endpoint; its clones and its store weighed. scripts/bench --guest runs it as root, on this host or in kvmbox (where it
says of every figure that its times are emulated).

Usage: guest_bench.py --bin DIR --boot DIR --work DIR --json FILE [options]
                      IMAGE=ROOTFS.tar ...

IMAGE is flask or numpy. --work has to be on a disk: what it holds is dropped from the
page cache. --json gets what thaw-bench --json writes, for thaw-bench --from.

  --quick          fewer samples
  --parts LIST     of thaw, cold, suspend, endpoint, clones, store (default: all)
  --store-out DIR  leaves each image's store there, as DIR/IMAGE

Clock points: T0 right before the request; T1 and T2 (the guest's first exit) as
thawd tells them; T3 the agent has answered: it has a connection to the
application's port; T4 the application's answer has arrived.
"""
import argparse
import json
import os
import platform
import shutil
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "..", "..")
PARTS = ("thaw", "cold", "suspend", "endpoint", "clones", "store")
APPS = {"flask": ("counter", "192M"), "numpy": ("dot", "384M")}
lr = None  # tests/guest/lifecycle_rig.py, once its environment is set
er = None  # tests/engine/endpoint_rig.py


def ms(ns):
    return ns / 1e6


def now():
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def percentile(v, p):
    """Nearest rank, as thaw-bench has it."""
    v = sorted(v)
    return v[max(int(p / 100 * len(v) + 0.999999), 1) - 1]


def middle(v):
    return percentile(v, 50)


def threads_ns(pid):
    """Nanoseconds on a processor of all threads."""
    total = 0
    for t in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{t}/schedstat") as f:
            total += int(f.read().split()[0])
    return total


def faults(pid):
    with open(f"/proc/{pid}/stat") as f:
        v = f.read().rsplit(")", 1)[1].split()
    return int(v[7]), int(v[9])


def read_bytes(pid):
    with open(f"/proc/{pid}/io") as f:
        return int(f.read().split("read_bytes:")[1].split()[0])


def meminfo(name):
    with open("/proc/meminfo") as f:
        for line in f:
            if line.startswith(name + ":"):
                return int(line.split()[1])
    raise KeyError(name)


class Results:
    """What thaw-bench --json writes."""

    def __init__(self):
        self.emulated = bool(os.environ.get("KVMBOX"))
        self.kvm = next((m for m in ("kvm_pvm", "kvm_amd", "kvm_intel")
                         if os.path.isdir(f"/sys/module/{m}")), "unknown")
        self.list = []

    def add(self, name, unit, samples, **extra):
        r = {"name": name, "n": len(samples), "unit": unit,
             "p50": round(middle(samples), 3),
             "p99": round(percentile(samples, 99), 3),
             "max": round(max(samples), 3), "floor_p50": None, "ratio": None}
        if self.emulated:
            r["emulated"] = True
            r["measured_in"] = (f"kvmbox: Linux {platform.release()}, "
                                f"{self.kvm}, {os.cpu_count()} CPUs")
        r.update({k: round(v, 3) if isinstance(v, float) else v
                  for k, v in extra.items()})
        r["samples"] = [round(s, 3) for s in sorted(samples)]
        self.list.append(r)
        print(f"{name}: p50 {r['p50']} {unit}, n {r['n']}"
              + (" (emulated)" if self.emulated else ""), flush=True)

    def find(self, name):
        return next((r for r in self.list if r["name"] == name), None)

    def ratios(self, image):
        """A thaw beside a cold boot with as much in memory."""
        for state, boot in (("warm", "pagecache"), ("pagecache", "pagecache"),
                            ("dropped", "dropped")):
            thaw = self.find(f"guest.{image}.thaw.{state}")
            cold = self.find(f"guest.{image}.cold.{boot}")
            if thaw and cold:
                thaw["cold_boot_over_thaw"] = round(
                    cold["p50"] / thaw["p50"], 2)

    def save(self, path):
        host = {"kernel": platform.release(), "cpus": os.cpu_count(),
                "kvm": self.kvm, "emulated": self.emulated}
        with open(path, "w") as f:
            f.write('{"host": %s,\n"results": [\n %s],\n"left_out": []}\n' % (
                json.dumps(host), ",\n ".join(map(json.dumps, self.list))))


class Bench:
    """One image and a thawd of its own."""

    def __init__(self, results, image, args):
        self.r, self.image, self.args = results, image, args
        self.site = lr.Site("--endpoint", "0")
        self.thawd = self.site.thawd
        self.runs = 3 if args.quick else 7
        self.ready = 0  # cells, at the most so far

    def app(self, version=1):
        with open(os.path.join(ROOT, "examples", APPS[self.image][0],
                               "app.py")) as f:
            text = f.read()
        if 'VERSION = "1"' in text:
            text = text.replace('VERSION = "1"', f'VERSION = "{version}"')
        else:
            text += f'\nVERSION = "{version}"\n'
        return text.encode()

    def build(self, version=1):
        self.site.build(f"{self.image}{version}",
                        lr.rootfs_with(self.app(version)), "--env",
                        f"PORT={lr.PORT}", memory=APPS[self.image][1])

    # --- one thaw ---

    def answer(self, vm, deadline=600):
        """T3 and T4: the application's answer over a connection that the
        guest's agent made."""
        end = time.time() + deadline
        while True:
            try:
                s = self.thawd.upgrade(
                    f"/thaw/v1/microvms/{vm}/forward?port={lr.PORT}",
                    "thaw-forward")
                break
            except (RuntimeError, OSError):  # it boots
                if time.time() > end:
                    raise
                time.sleep(0.02)
        t3 = now()
        s.settimeout(deadline)
        s.sendall(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")
        got = b""
        while True:
            b = s.recv(65536)
            if not b:
                break
            got += b
        t4 = now()
        s.close()
        if b" 200 " not in got.split(b"\r\n")[0]:
            raise RuntimeError(f"{self.image} answered {got[:300]}")
        json.loads(got.split(b"\r\n\r\n", 1)[1])
        return t3, t4

    def once(self, cold=False):
        """A sample: clock points and costs, and the microVM."""
        main = self.thawd.main_pid()
        cpu, read = threads_ns(main), read_bytes(main)
        t0 = now()
        j = self.thawd.post("/2025-09-09/microvms", {
            "imageIdentifier": self.image + "1", "cold": cold}).json
        vm = j["microvmId"]
        t3, t4 = self.answer(vm)
        cpu, read = threads_ns(main) - cpu, read_bytes(main) - read
        j = self.thawd.get(f"/thaw/v1/microvms/{vm}").json["thaw"]
        pid, usage, run = j["pid"], j["usage"], j["timings"]["run"]
        minor, major = faults(pid)
        s = {"t3_ms": ms(t3 - t0), "t4_ms": ms(t4 - t0),
             "cpu_ms": ms(cpu + threads_ns(pid)), "faults": usage["faults"],
             "fault_pages": usage["faultPages"], "faults_minor": minor,
             "faults_major": major, "bytes_read": read + read_bytes(pid)}
        at = ms(run["t0Ns"] - t0) if "t0Ns" in run else 0
        for key, name in (("t1_ms", "loaded"), ("t2_ms", "firstExit")):
            if name in run:
                s[key] = at + run[name] / 1000
        return s, vm

    def end(self, vm):
        self.site.out("rm", "-f", vm)
        self.site.forwards.pop(vm, None)

    def settle(self):
        """Until as many cells are ready ahead of need as at the start; for 15 s
        at most, so that a shell that dies does not end the measuring."""
        for _ in range(30):
            h = self.thawd.get("/thaw/v1/host").json
            ready = h["shellsReady"] + h["blanksReady"]
            self.ready = max(self.ready, ready)
            if ready >= self.ready > 0:
                return
            time.sleep(0.5)

    def forget(self, state):
        if state == "warm":
            self.settle()
            return
        self.thawd.restart()
        self.settle()
        os.sync()
        if state == "dropped":
            with open("/proc/sys/vm/drop_caches", "w") as f:
                f.write("3")
            return
        for d, _, files in os.walk(self.thawd.state):
            for f in files:
                with open(os.path.join(d, f), "rb") as f:
                    while f.read(1 << 20):
                        pass

    def series(self, name, state, runs, cold=False):
        samples = []
        for _ in range(runs):
            self.forget(state)
            s, vm = self.once(cold)
            self.end(vm)
            samples.append(s)
        keys = [k for k in samples[0] if all(k in s for s in samples)]
        self.r.add(f"guest.{self.image}.{name}.{state}", "ms",
                   [s["t4_ms"] for s in samples],
                   **{k: float(middle([s[k] for s in samples]))
                      for k in keys})

    # --- the parts ---

    def thaw(self):
        for _ in range(3):  # the first ones teach the working set
            _, vm = self.once()
            self.end(vm)
        time.sleep(1)
        self.series("thaw", "warm", self.runs)
        self.series("thaw", "pagecache", max(self.runs // 2, 2))
        self.series("thaw", "dropped", max(self.runs // 2, 2))

    def cold(self):
        self.series("cold", "pagecache", 1 if self.args.quick else 2, True)
        self.series("cold", "dropped", 1 if self.args.quick else 2, True)

    def suspend(self):
        totals, resumes, parked, dirty = [], [], [], []
        for _ in range(self.runs):
            self.settle()
            _, vm = self.once()
            t0 = now()
            self.thawd.post(
                f"/2025-09-09/microvms/{vm}/suspend?wait=SUSPENDED&timeout=60")
            totals.append(ms(now() - t0))
            j = self.thawd.get(f"/thaw/v1/microvms/{vm}").json["thaw"]
            parked.append(j["timings"]["suspend"]["parked"] / 1000)
            dirty.append(j["timings"]["suspend"]["dirtyMemoryPages"] / 256)
            t0 = now()
            self.thawd.post(f"/2025-09-09/microvms/{vm}/resume")
            resumes.append(ms(self.answer(vm)[1] - t0))
            self.end(vm)
        name = f"guest.{self.image}"
        self.r.add(name + ".suspend", "ms", totals,
                   parked_ms=middle(parked), dirty_mib=middle(dirty))
        self.r.add(name + ".resume", "ms", resumes, t4_ms=middle(resumes))

    def first_byte(self, e, name, token):
        """Milliseconds from a request at the endpoint to its answer's first
        byte; the connection was there before."""
        s = e.connect(name, timeout=120)
        t0 = now()
        s.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\nX-aws-proxy-auth: {token}"
                  f"\r\nX-aws-proxy-port: {lr.PORT}\r\n\r\n".encode())
        status = s.recv(1)
        took = ms(now() - t0)
        while b"\r\n" not in status:
            status += s.recv(4096) or b"\r\n"
        s.close()
        if b" 200 " not in status.split(b"\r\n")[0]:
            raise RuntimeError(f"the endpoint answered {status[:300]}")
        return took

    def endpoint(self):
        """What a request to a suspended microVM waits for its first byte, beside
        the resume alone, in turns; and one request after each resume, as what a
        microVM did is what its next resume gets ready for."""
        e = er.Endpoint(self.thawd)
        j = self.thawd.run(
            self.image + "1", "?wait=RUNNING&timeout=120",
            ingressNetworkConnectors=[er.CONNECTOR + "HTTP_INGRESS"],
            idlePolicy={"maxIdleDurationSeconds": 3600,
                        "suspendedDurationSeconds": 3600,
                        "autoResumeEnabled": True}).json
        vm, firsts, resumes, running = j["microvmId"], [], [], []
        token = er.token(self.thawd, vm, minutes=60)
        for n in range(2 * self.runs):
            self.thawd.op(vm, "suspend", "?wait=SUSPENDED&timeout=100")
            self.settle()
            if n % 2:
                firsts.append(self.first_byte(e, j["endpoint"], token))
                continue
            t0 = now()
            self.thawd.op(vm, "resume", "?wait=RUNNING&timeout=100")
            resumes.append(ms(now() - t0))
            running.append(self.first_byte(e, j["endpoint"], token))
        self.end(vm)
        alone = middle(resumes)
        self.r.add(f"guest.{self.image}.endpoint", "ms", firsts,
                   floor_p50=alone, ratio=middle(firsts) / alone,
                   resumed_ms=middle(running))

    def clones(self):
        """The fall of MemAvailable, copy by copy, each after one request."""
        count = 8 if self.args.quick or self.r.emulated else 32
        self.thawd.restart()
        self.settle()
        time.sleep(2)
        at, vms = [meminfo("MemAvailable")], []
        for _ in range(count):
            _, vm = self.once()
            vms.append(vm)
            self.settle()
            time.sleep(1)
            at.append(meminfo("MemAvailable"))
        costs = [(a - b) / 1024 for a, b in zip(at, at[1:])]
        rest = sum(costs[1:]) / (count - 1)
        self.r.add(f"guest.{self.image}.clones", "MiB", costs[1:],
                   clones=count, first_mib=costs[0], mean_mib=rest,
                   share_of_first=rest / costs[0])
        for vm in vms:
            self.end(vm)

    def stored(self):
        s = self.thawd.get("/thaw/v1/stats").json["store"]
        return (s["packBytes"] + s["indexBytes"] + s["mapBytes"]) / 2**20

    def store(self, empty):
        first = self.stored() - empty
        image = self.thawd.get(f"/thaw/v1/images/{self.image}1").json
        sizes = image["versions"][0]["sizes"]
        nonzero = sizes["memoryNonZeroBytes"] + sizes["diskNonZeroBytes"]
        if self.args.store_out:
            self.thawd.stop()
            shutil.copytree(os.path.join(self.thawd.state, "store"),
                            os.path.join(self.args.store_out, self.image),
                            dirs_exist_ok=True)
            self.thawd.start(timeout=60)
        self.build(2)
        second = self.stored() - empty - first
        self.r.add(f"guest.{self.image}.store", "MiB", [first],
                   nonzero_mib=nonzero / 2**20,
                   memory_nonzero_mib=sizes["memoryNonZeroBytes"] / 2**20,
                   disk_nonzero_mib=sizes["diskNonZeroBytes"] / 2**20,
                   second_adds_mib=second, second_share=second / first)

    def run(self, rootfs):
        os.environ["THAW_ROOTFS"] = rootfs
        try:
            self.site.start()
            empty = self.stored()
            t0 = now()
            self.build()
            if "thaw" in self.args.parts:  # once, of a run made in pieces
                self.r.add(f"guest.{self.image}.build", "ms", [ms(now() - t0)])
            for part in PARTS:
                if part in self.args.parts:
                    args = (empty,) if part == "store" else ()
                    getattr(self, part)(*args)
            self.r.ratios(self.image)
        except BaseException:
            print(self.thawd.log()[-3000:], file=sys.stderr)
            raise
        finally:
            self.site.close()


def parse(argv):
    p = argparse.ArgumentParser(usage=__doc__.split("Usage: ")[1])
    for name in ("bin", "boot", "work", "json"):
        p.add_argument("--" + name, required=True)
    p.add_argument("--quick", action="store_true")
    p.add_argument("--parts", default=",".join(PARTS),
                   type=lambda s: s.split(","))
    p.add_argument("--store-out")
    p.add_argument("images", nargs="+")
    a = p.parse_args(argv)
    if not set(a.parts) <= set(PARTS):
        p.error(f"parts are {', '.join(PARTS)}")
    a.images = [i.partition("=")[::2] for i in a.images]
    for name, tar in a.images:
        if name not in APPS or not os.path.isfile(tar):
            p.error(f"{name}={tar}: flask or numpy, and a tar file")
    return a


def main(argv):
    global lr, er
    a = parse(argv)
    boot = os.path.join(a.work, "boot")  # dropped from the page cache too
    os.makedirs(boot, exist_ok=True)
    for f in ("vmlinux", "initramfs"):
        shutil.copyfile(os.path.join(a.boot, f), os.path.join(boot, f))
    os.environ.update(
        THAW_BIN=os.path.abspath(a.bin), THAW_WORK=os.path.abspath(a.work),
        THAW_KERNEL=os.path.join(boot, "vmlinux"),
        THAW_INITRD=os.path.join(boot, "initramfs"))
    sys.path.insert(0, os.path.join(ROOT, "tests", "guest"))
    import lifecycle_rig
    import endpoint_rig
    lr, er = lifecycle_rig, endpoint_rig
    results = Results()
    try:
        for image, tar in a.images:
            Bench(results, image, a).run(tar)
    finally:
        results.save(a.json)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
