#!/usr/bin/python3
"""Makes tests/golden/state/bad from a good state: each file has one thing wrong
and, unless its name says otherwise, right checksums.

    golden_state.py GOOD_STATE BAD_DIR

Run it once for each version of the format; the files are kept for ever.
"""
import os
import struct
import sys


def crc32c(data, crc=0):
    crc ^= 0xFFFFFFFF
    for b in data:
        crc ^= b
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


class State:
    def __init__(self, data):
        self.b = bytearray(data)

    def n(self):
        return struct.unpack_from("<I", self.b, 20)[0]

    def entry(self, tag, index=0):
        for i in range(self.n()):
            at = 64 + 32 * i
            t, _, _, x = struct.unpack_from("<4sHHI", self.b, at)
            if t == tag and x == index:
                return at
        raise KeyError(tag)

    def section(self, tag, index=0):
        return struct.unpack_from("<QQ", self.b, self.entry(tag, index) + 16)

    def seal(self):
        for i in range(self.n()):
            at = 64 + 32 * i
            off, n = struct.unpack_from("<QQ", self.b, at + 16)
            if off + n <= len(self.b):
                c = crc32c(self.b[off:off + n])
                struct.pack_into("<I", self.b, at + 12, c)
        c = crc32c(self.b[:60] + self.b[64:64 + 32 * self.n()])
        # The checksum's own field is left out, so the parts are joined.
        struct.pack_into("<I", self.b, 60, c)

    def put(self, fmt, at, *v):
        struct.pack_into(fmt, self.b, at, *v)


def variants(good):
    def edit(name, fn, seal=True):
        s = State(good)
        fn(s)
        if seal:
            s.seal()
        return name, bytes(s.b)

    yield "empty", b""
    yield "cut-in-header", good[:40]
    yield "cut-in-table", good[:100]
    yield "cut-by-one", good[:-1]
    yield "one-byte-more", good + b"\0"
    yield edit("bad-magic", lambda s: s.put("<B", 0, 0x88))
    yield edit("text-mode-damage", lambda s: s.put("<2s", 4, b"\n\n"))
    yield edit("header-checksum", lambda s: s.put("<I", 60, 0), seal=False)
    yield edit("section-checksum",
               lambda s: s.put("<B", s.section(b"CLOK")[0], 0xEE), seal=False)
    yield edit("notsup-compat-2", lambda s: s.put("<II", 8, 2, 2))
    yield edit("notsup-section-version",
               lambda s: s.put("<H", s.entry(b"IOAP") + 4, 2))
    yield edit("notsup-unknown-section",
               lambda s: s.put("<4s", s.entry(b"BELL"), b"WHAT"))
    yield edit("unknown-section-flag",
               lambda s: s.put("<H", s.entry(b"BELL") + 6, 2))
    yield edit("header-flags", lambda s: s.put("<I", 44, 1))
    yield edit("reserved-not-zero", lambda s: s.put("<Q", 48, 1))
    yield edit("memory-of-32-mib", lambda s: s.put("<Q", 32, 32 << 20))
    yield edit("memory-not-whole-mib",
               lambda s: s.put("<Q", 32, (64 << 20) + 4096))
    yield edit("no-vcpus", lambda s: s.put("<I", 40, 0))
    yield edit("vcpu-missing", lambda s: s.put("<I", 40, 3))
    yield edit("vcpu-index", lambda s: s.put("<I", s.entry(b"VCPU") + 8, 9))
    yield edit("section-twice",
               lambda s: s.put("<4s", s.entry(b"SERL"), b"IOAP"))
    yield edit("overlapping-sections",
               lambda s: s.put("<Q", s.entry(b"CLOK") + 16,
                               s.section(b"HOST")[0]))
    yield edit("section-past-the-end",
               lambda s: s.put("<Q", s.entry(b"BELL") + 24, 1 << 40))
    yield edit("padding-not-zero",
               lambda s: s.put("<B", sum(s.section(b"CLOK")), 1))
    yield edit("cpuid-count",
               lambda s: s.put("<I", s.section(b"HOST")[0], 4000))
    yield edit("tsc-of-1-khz",
               lambda s: s.put("<I", s.section(b"CLOK")[0] + 8, 1))
    yield edit("ioapic-pins",
               lambda s: s.put("<I", s.section(b"IOAP")[0] + 12, 240))
    yield edit("ioapic-remote-irr",
               lambda s: s.put("<Q", s.section(b"IOAP")[0] + 16, 1 << 14))
    yield edit("serial-bool",
               lambda s: s.put("<B", s.section(b"SERL")[0] + 8, 2))
    yield edit("mailbox-longer-than-its-section",
               lambda s: s.put("<I", s.section(b"BELL")[0], 65536))
    yield edit("vcpu-item-kind",
               lambda s: s.put("<I", s.section(b"VCPU")[0], 2))
    yield edit("vcpu-item-length",
               lambda s: s.put("<I", s.section(b"VCPU")[0] + 4, 0xFFFFFFF0))
    yield edit("vcpu-mp-state",
               lambda s: s.put("<I", s.section(b"VCPU")[0] + 8, 77))


def main():
    good = open(sys.argv[1], "rb").read()
    os.makedirs(sys.argv[2], exist_ok=True)
    for name, data in variants(good):
        with open(os.path.join(sys.argv[2], name), "wb") as f:
            f.write(data)


main()
