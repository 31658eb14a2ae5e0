#!/usr/bin/python3
# timeout: 1200
"""A Python server, a Node server and one in C that another stage compiles: their
Dockerfiles build, and they answer in real guests. TAP."""
import sys

import dockerfiles
import dockerfiles_rig as dr
from lifecycle_rig import rig

# MiB that each guest has.
MEMORY = {"python": 112, "node": 256, "c": 96}

site = dr.site()


def test_large(_=None):
    site.start()
    for name, case in dockerfiles.LARGE.items():
        dr.builds_and_answers(site, name, case, MEMORY[name])


status = rig.main([test_large])
site.close()
sys.exit(status)
