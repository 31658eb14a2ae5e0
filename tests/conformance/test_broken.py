#!/usr/bin/python3
"""Dockerfiles that must not build (tests/guest/dockerfiles.py), through AWS's own
clients: each fails with AWS's code, and a message that names the line. They are
built on this host; the microVMs would be fakes (thawd-fake).

usage: test_broken.py PATH-OF-thawd-fake LIBEXEC [-k WORD]
"""
import os
import sys
import time

import clients
import image_bases
import live
from live import BASE, ROLE, rig

sys.path.insert(0, os.path.join(clients.HERE, "..", "guest"))
import dockerfiles  # noqa: E402

LIVE = live.Live(sys.argv[1], "--bases", image_bases.make(image_bases.BUSYBOX),
                 libexec=sys.argv[2])


def build(c, name, uri):
    """The only build of a new image, once it ended, and the image."""
    r = c.call("CreateMicrovmImage", name=name, baseImageArn=BASE,
               buildRoleArn=ROLE, codeArtifact={"uri": uri})
    if not r.ok:
        return r, r
    end = time.monotonic() + 5 * rig.PATIENCE
    while time.monotonic() < end:
        g = c.call("GetMicrovmImage", imageIdentifier=name)
        if g.get("state") != "CREATING":
            break
        time.sleep(0.1)
    b = c.call("ListMicrovmImageBuilds", imageIdentifier=name,
               imageVersion="1.0")
    return c.call("GetMicrovmImageBuild", imageIdentifier=name,
                  imageVersion="1.0", buildId=b["items"][0]["buildId"]), g


def test_broken(_):
    both = LIVE.tcp()
    for i, (what, (text, line, part)) in enumerate(dockerfiles.BROKEN.items()):
        c, name = both[i % 2], f"broken-{i}"
        b, g = build(c, name, LIVE.files.zip(name, {
            "Dockerfile": text, "app": "x"}))
        rig.equal((b.get("buildState"), g.get("state")),
                  ("FAILED", "CREATE_FAILED"), f"{what}: the build fails")
        why = b.get("stateReason") or ""
        rig.check("CONTAINER_BUILD_FAILED" in why and
                  f"Dockerfile line {line}: " in why and part in why,
                  f"{what}: line {line} is named", b)
        rig.check(b.get("snapshotBuild") in (None, {}),
                  f"{what}: without sizes", b)
    left = [n for n in os.listdir(os.path.join(LIVE.thawd.state, "tmp"))
            if n.startswith("img-")]
    rig.equal(left, [], "nothing is left of them")


live.main(LIVE, [test_broken])
