"""The base images that tests of builds share: made once, in the cache, by
scripts/lib/test-bases."""
import os
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
BASE = "localhost/debian:bookworm"
DEVEL = "localhost/devel:bookworm"
BUSYBOX = "localhost/busybox:1"
PYTHON = "localhost/python:2"
NODE = "localhost/node:2"
TCC = "localhost/tcc:2"
# At the end of a step whose last output matters: buildah 1.28 does not wait for
# it, and on a loaded machine it may be lost when the step ends at once.
HEARD = "sleep 3"


def store():
    """Where they are: THAW_BASES, else in the cache."""
    cache = os.environ.get("THAW_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"),
        "thaw")
    return os.environ.get("THAW_BASES") or os.path.join(cache, "test-bases")


class Missing(Exception):
    pass


def make(*names):
    """The store, once these are in it; Missing if they cannot be made."""
    p = subprocess.run([os.path.join(ROOT, "scripts", "lib", "test-bases"),
                        *names], capture_output=True, text=True)
    if p.returncode:
        raise Missing(p.stderr.strip()[-300:])
    return p.stdout.strip()
