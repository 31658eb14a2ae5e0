#!/usr/bin/env python3
"""The tokens' key while it is made: the process killed, and the call failing,
at each system call that changes the directory. Whatever happens, there is a
whole key or none, nothing is said to be done that is not, the next start works,
and a key that was there once stays.

  test_token_key.py TOKEN_KEY_TOOL"""

import os
import subprocess
import sys
import tempfile

CALLS = "openat,write,fsync,renameat2,unlinkat"
failures = 0


def check(ok, what):
    global failures
    if not ok:
        failures += 1
        print("not ok - " + what)


def run(where, inject=None):
    cmd = [sys.argv[1], where]
    if inject:
        cmd = ["strace", "-qq", "-f", "-o", "/dev/null", "-e",
               "trace=" + CALLS, "-e", "inject=" + inject] + cmd
    # A leak check has nothing to look at in a traced process.
    env = dict(os.environ, ASAN_OPTIONS="detect_leaks=0")
    return subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, env=env)


def disturbed(call, nth, how):
    """Whether the disturbance took place."""
    what = "%s of %s number %d" % (how, call, nth)
    with tempfile.TemporaryDirectory() as where:
        got = run(where, "%s:%s:when=%d" % (call, how, nth))
        key = os.path.join(where, "token.key")
        hit = got.returncode != 0
        if hit and how.startswith("error") and "openat" not in call:
            check(where in got.stderr, what + ": a sentence: " + got.stderr)
        if how.startswith("error") and call != "unlinkat":
            check("token.key.new" not in os.listdir(where),
                  what + ": it cleans up")
        if os.path.exists(key):
            check(os.stat(key).st_size == 32 and
                  os.stat(key).st_mode & 0o777 == 0o600, what + ": a whole key")
            before = open(key, "rb").read()
        else:
            check(hit, what + ": success without a key")
            before = None
        again = run(where)
        check(again.returncode == 0, what + ": the next: " + again.stderr)
        check(os.listdir(where) == ["token.key"], what + ": leftovers " +
              str(os.listdir(where)))
        if again.returncode:
            return hit
        after = open(key, "rb").read()
        check(before in (None, after), what + ": the key was replaced")
        check(hit or again.stdout == got.stdout, what + ": another kid")
        check(run(where).stdout == again.stdout, what + ": it does not stay")
        return hit


def main():
    probe = subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"],
                           stderr=subprocess.PIPE)
    if probe.returncode:
        print("1..0 # skipped: strace cannot trace here")
        return 77
    hits = {}
    for how in ("signal=KILL", "error=ENOSPC", "error=EIO"):
        for call in CALLS.split(","):
            for nth in range(1, 16):
                if disturbed(call, nth, how):
                    hits[how, call] = hits.get((how, call), 0) + 1
                elif call != "openat":
                    break
    for how in ("signal=KILL", "error=ENOSPC"):
        for call, least in (("openat", 3), ("write", 1), ("fsync", 2),
                            ("renameat2", 1), ("unlinkat", 1)):
            got = hits.get((how, call), 0)
            check(got >= least, "%s disturbed %s %d times" % (how, call, got))
    print("1..1\n%s 1 - %d disturbances, %d failed checks" %
          ("not ok" if failures else "ok", sum(hits.values()), failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
