#!/usr/bin/python3
"""Runs every command of docs/API.md and compares the answers with its samples.

Blocks marked "sh" run against a live thawd with the ring-3 guest, where this host
can; those marked "sh agent" (and all, where it cannot) against thawd with FAKE cells,
and "sh tcp" against one that listens on TCP too.
A block fails when a command does; the json block after it must be matched by
the last line of its output: same members, same kinds.

usage: test_api_doc.py API.md thawd thawd-fake LIBEXEC ring3.elf
"""
import json
import os
import re
import subprocess
import sys

from thawd_rig import Thawd, check, diag

DOC, BIN, FAKE, LIBEXEC, ELF = sys.argv[1:6]


def kind(v):
    return ("number" if isinstance(v, (int, float)) and
            not isinstance(v, bool) else type(v).__name__)


def differs(sample, got, at="$"):
    if isinstance(sample, dict):
        if not isinstance(got, dict):
            return f"{at} is no object"
        for k, v in sample.items():
            if k not in got:
                return f"{at}.{k} is missing"
            d = differs(v, got[k], f"{at}.{k}")
            if d:
                return d
        return None
    if isinstance(sample, list):
        if not isinstance(got, list) or (sample and not got):
            return f"{at} is no list, or empty"
        return differs(sample[0], got[0], at + "[0]") if sample else None
    if sample is None:
        return None
    return None if kind(sample) == kind(got) else \
        f"{at} is a {kind(got)}, not a {kind(sample)}"


def blocks(text):
    out = []
    for m in re.finditer(r"^```(sh|sh agent|sh tcp|json)\n(.*?)^```$", text,
                         re.M | re.S):
        out.append((m.group(1), m.group(2)))
    return out


def key_of(t):
    """What a signed request needs, as variables."""
    h = t.host()
    with open(h["keysFile"]) as f:
        pairs = dict(re.findall(r"aws_(\w+) = (\S+)", f.read()))
    return {"LISTEN": h["listen"], "ID": pairs["access_key_id"],
            "SECRET": pairs["secret_access_key"]}


def main():
    live = os.access("/dev/kvm", os.R_OK | os.W_OK) and os.geteuid() == 0
    fake = Thawd(FAKE, "--kernel", "/proc/self/exe", "--initrd",
                 "/proc/self/exe", libexec=LIBEXEC).start()
    real = Thawd(BIN, libexec=LIBEXEC).start() if live else fake
    tcp = Thawd(FAKE, "--listen", "0", libexec=LIBEXEC).start()
    root = os.path.join(fake.dir, "root")
    os.makedirs(root + "/bin")
    open(root + "/bin/server", "w").close()
    with open(DOC) as f:
        todo = blocks(f.read())
    prelude = todo[0][1]
    calls = set()
    try:
        for i, (lang, body) in enumerate(todo[1:], 1):
            if lang == "json":
                continue
            t = {"sh agent": fake, "sh tcp": tcp}.get(lang, real)
            env = dict(os.environ, S=t.sock, KERNEL=ELF, ROOTFS=root)
            if t is tcp:
                env.update(key_of(tcp))
            r = subprocess.run(["bash", "-euo", "pipefail", "-c",
                                prelude + body], env=env, text=True,
                               capture_output=True, timeout=600)
            first = body.strip().splitlines()[0][:70]
            ok = r.returncode == 0 and '{"error"' not in r.stdout
            check(ok, f"runs: {first}", f"{r.returncode} {r.stdout[-400:]} "
                  f"{r.stderr[-400:]}")
            calls |= {w for w in re.findall(r"# (\w+Microvm\w*)", body)}
            if ok and i + 1 < len(todo) and todo[i + 1][0] == "json":
                lines = re.sub(r"\}\{", "}\n{", r.stdout.strip()).splitlines()
                d = differs(json.loads(todo[i + 1][1]), json.loads(lines[-1]))
                check(d is None, f"answers as documented: {first}",
                      f"{d}\n{lines[-1]}")
    finally:
        real.remove()
        fake.remove()
        tcp.remove()
    diag(f"against {'a live thawd and ' if live else ''}fake cells")
    check(len(todo) > 30, "the document has its blocks", len(todo))
    # Every route of the program is in the document.
    engine = os.path.join(os.path.dirname(os.path.abspath(DOC)), "../engine")
    with open(engine + "/api.c") as f:
        text = f.read()
    table = text[text.index("routes[] = {"):text.index("static bool path_m")]
    names = set(re.findall(r"\bapi_\w+", table))
    check(len(names) >= 17, "the table of routes is read", sorted(names))
    with open(engine + "/api_ops.c") as f:
        served = re.findall(r'\{"(\w+)", api_\w+\}', f.read())
    check(len(served) >= 13, "the table of operations is read", served)
    with open(DOC) as f:
        doc = f.read()
    for word in re.findall(r'"([a-z-]+)"(?=[,}])', table):
        if word in ("thaw",):
            continue
        check(word in doc, f"documented: {word}")
    for op in served:
        check(op in doc, f"documented: {op}")
    for op in ("RunMicrovm", "GetMicrovm", "ListMicrovms", "SuspendMicrovm",
               "ResumeMicrovm", "TerminateMicrovm", "GetMicrovmImage",
               "ListMicrovmImages", "DeleteMicrovmImage",
               "GetMicrovmImageVersion", "ListMicrovmImageVersions",
               "UpdateMicrovmImageVersion", "DeleteMicrovmImageVersion",
               "CreateMicrovmAuthToken", "CreateMicrovmShellAuthToken"):
        check(op in calls, f"has a command: {op}", sorted(calls))
    import thawd_rig
    print(f"1..{thawd_rig.count}")
    return 1 if thawd_rig.failed else 0


sys.exit(main())
