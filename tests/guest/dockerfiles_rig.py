"""Builds Dockerfiles of dockerfiles.py by thawd, each then answers in a real guest."""
import json
import os
import time

import lifecycle_rig as lr
from lifecycle_rig import rig
import image_bases  # of tests/engine, which lifecycle_rig knows


def site():
    """A thawd whose Dockerfiles find the tests' base images."""
    return lr.Site("--bases", image_bases.store())


def folder(name, files):
    top = os.path.join(lr.WORK, "context-" + name)
    for path, text in files.items():
        path = os.path.join(top, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as f:
            f.write(text)
    return top


def ask(t, vm, port, path, timeout=rig.PATIENCE):
    """GET of a port in the guest: the whole answer."""
    s = t.upgrade(f"{rig.OWN}/microvms/{vm}/forward?port={port}",
                  "thaw-forward")
    s.settimeout(timeout)
    s.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost:{port}\r\n\r\n".encode())
    got = b""
    while part := s.recv(65536):
        got += part
    s.close()
    return got.decode(errors="replace")


def build(t, spec, timeout=900):
    """Builds an image: the status, what thawd said, and the seconds that each
    stage took, as text."""
    c = rig.Conn(t.sock, timeout)
    c.request("POST", rig.OWN + "/images", json.dumps(spec))
    r = c.getresponse()
    lines, stages, stage, since = [], [], "start", time.time()
    for line in r:
        lines.append(line.decode(errors="replace").strip())
        now = "end"
        if lines[-1].startswith('{"progress"'):
            now = json.loads(lines[-1])["progress"]["stage"]
        elif lines[-1].startswith('{"log"'):
            continue
        if now != stage:
            stages.append(f"{stage} {time.time() - since:.1f}")
            stage, since = now, time.time()
    c.close()
    return r.status, lines, ", ".join(stages)


def builds_and_answers(site, name, case, memory):
    dockerfile, files, port, path, parts = case
    t, begin = site.thawd, time.time()
    context = folder(name, {"Dockerfile": dockerfile, **files})
    status, lines, stages = build(
        t, {"name": name, "context": context, "memoryMiB": memory})
    if not rig.check(status == 200 and '"image"' in lines[-1],
                     f"{name}: it builds", "\n".join(lines[-15:])):
        return
    built = time.time()
    vm = t.run(name).json["microvmId"]
    g = t.vm(vm, "?wait=RUNNING").json
    rig.equal(g["state"], "RUNNING", f"{name}: it runs")
    got = ask(t, vm, port, path)
    rig.check(" 200 " in got.split("\n")[0] and all(p in got for p in parts),
              f"{name}: a guest answers at its port {port}",
              f"want {parts}, got\n{got}\n{t.logs(vm)[-500:]}")
    t.end(vm)
    rig.diag(f"{name}: built in {built - begin:.0f} s, "
             f"answered in {time.time() - built:.0f} s; {stages}")
