#!/usr/bin/python3
# timeout: 1200
"""Dockerfiles of a small base image build, and answer in real guests: several
stages, ARG, USER, ENTRYPOINT and CMD in their forms, WORKDIR, SHELL, HEALTHCHECK,
VOLUME, a user who is not in any file. TAP."""
import sys

import dockerfiles
import dockerfiles_rig as dr
from lifecycle_rig import rig

site = dr.site()


def test_small(_=None):
    site.start()
    for name, case in dockerfiles.SMALL.items():
        dr.builds_and_answers(site, name, case, 96)


status = rig.main([test_small])
site.close()
sys.exit(status)
