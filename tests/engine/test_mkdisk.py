#!/usr/bin/python3
"""thaw-mkdisk on good and hostile sources. TAP on stdout; needs root. Its walls are
test_contain.py's.

usage: test_mkdisk.py PATH-OF-thaw-mkdisk
"""
import gzip
import io
import lzma
import os
import re
import stat
import subprocess
import sys
import tarfile
import tempfile
import time

import thawd_rig as rig
from thawd_rig import check, remove_tree

MKDISK = os.path.abspath(sys.argv[1])
TOP = tempfile.mkdtemp(prefix="thaw-mkdisk-test-")
os.chmod(TOP, 0o755)


class Run:
    """One run of thaw-mkdisk in a work directory of its own."""

    def __init__(self, source, *args, keep=True):
        self.work = tempfile.mkdtemp(dir=TOP, prefix="work-")
        os.chmod(self.work, 0o700)
        p = subprocess.run(
            [MKDISK, "--source", source, "--work", self.work, *args],
            capture_output=True, text=True, timeout=600)
        self.rc, self.out, self.err = p.returncode, p.stdout, p.stderr
        self.last = p.stdout.splitlines()[-1] if p.stdout else ""
        self.image = os.path.join(self.work, "disk.img")
        if not keep:
            remove_tree(self.work)

    def refused(self, pattern):
        return (self.rc == 1 and self.last.startswith("error -")
                and re.search(pattern, self.last) is not None)

    def debugfs(self, command):
        p = subprocess.run(["/usr/sbin/debugfs", "-R", command, self.image],
                           capture_output=True, text=True)
        return p.stdout + p.stderr

    def fsck(self):
        p = subprocess.run(["/usr/sbin/e2fsck", "-fn", self.image],
                           capture_output=True, text=True)
        return p.returncode, p.stdout + p.stderr


def member(name, kind=tarfile.REGTYPE, data=b"", **more):
    m = tarfile.TarInfo(name)
    m.type = kind
    m.size = len(data)
    m.mtime = 1600000000
    for k, v in more.items():
        setattr(m, k, v)
    return m, data


def tar(members, path=None, fmt=tarfile.PAX_FORMAT):
    path = path or os.path.join(TOP, f"t{rig.count}-{len(os.listdir(TOP))}.tar")
    with tarfile.open(path, "w", format=fmt) as t:
        for m, data in members:
            t.addfile(m, io.BytesIO(data))
    return path


GOOD = [
    member("./", tarfile.DIRTYPE, mode=0o755),
    member("./etc", tarfile.DIRTYPE, mode=0o755),
    member("./etc/passwd", data=b"root:x:0:0\n", mode=0o644),
    member("./etc/shadow", data=b"secret\n", mode=0o640, gid=42),
    member("./bin/su", data=b"\x7fELF" + bytes(9000), mode=0o4755),
    member("./bin/tool", tarfile.LNKTYPE, linkname="./bin/su"),
    member("./bin/sh", tarfile.SYMTYPE, linkname="/etc/passwd"),
    member("./home/a", data=b"mine", mode=0o600, uid=1000, gid=1001),
    member("./gr\u00fc\u00df", data=b"utf8", mode=0o644),
    member("./run/pipe", tarfile.FIFOTYPE, mode=0o600),
    member("./dev/sda", tarfile.BLKTYPE, mode=0o666, devmajor=8, devminor=0),
    member("./dev/kvm", tarfile.CHRTYPE, mode=0o666, devmajor=10, devminor=232),
]


def good_archives():
    path = tar(GOOD)
    r = Run(path)
    check(r.rc == 0 and r.last.startswith("result "), "a good tar makes an image",
          r.out + r.err)
    rc, text = r.fsck()
    check(rc == 0, "e2fsck finds the image clean", text)
    check("User:  1000   Group:  1001" in r.debugfs("stat /home/a"),
          "owners are kept", r.debugfs("stat /home/a"))
    check(re.search(r"Mode:\s+04755", r.debugfs("stat /bin/su")) is not None,
          "set-user-ID bits are kept", r.debugfs("stat /bin/su"))
    check(re.search(r"Mode:\s+0640", r.debugfs("stat /etc/shadow")) is not None,
          "modes are kept")
    check("Links: 2" in r.debugfs("stat /bin/tool"), "hard links stay links")
    check('Fast link dest: "/etc/passwd"' in r.debugfs("stat /bin/sh"),
          "symbolic links stay, absolute ones too")
    check("utf8" in r.debugfs("cat /gr\u00fc\u00df"), "UTF-8 names are kept",
          r.debugfs("ls -p /"))
    check("FIFO" in r.debugfs("stat /run/pipe"), "FIFOs are kept")
    check("not found" in r.debugfs("stat /dev/sda")
          and "not found" in r.debugfs("stat /dev/kvm")
          and "note 2 device nodes" in r.out,
          "device nodes are left out, and said so", r.out)
    check("mtime: 0x5f5e1000" in r.debugfs("stat /etc/passwd")
          and "ctime: 0x5f5e1000" in r.debugfs("stat /etc/passwd"),
          "times are the files' own", r.debugfs("stat /etc/passwd"))
    first = open(r.image, "rb").read()
    time.sleep(1.1)
    check(open(Run(path).image, "rb").read() == first,
          "the same tar gives the same bytes, at another time")
    raw = open(path, "rb").read()
    for ext, pack in (("gz", gzip.compress), ("xz", lzma.compress)):
        packed = f"{path}.{ext}"
        with open(packed, "wb") as f:
            f.write(pack(raw))
        r = Run(packed)
        check(r.rc == 0 and open(r.image, "rb").read() == first,
              f".tar.{ext} gives the same image", r.out)
    subprocess.run(["zstd", "-q", path, "-o", path + ".zst"], check=True)
    r = Run(path + ".zst")
    check(r.rc == 0 and open(r.image, "rb").read() == first,
          ".tar.zst gives the same image", r.out)
    r = Run(tar(GOOD, fmt=tarfile.GNU_FORMAT))
    check("utf8" in r.debugfs("cat /gr\u00fc\u00df"), "GNU tars work too", r.out)


def attributes():
    cap = bytes.fromhex("0100000200200000000000000000000000000000")
    m, data = member("bin/ping", data=b"x", mode=0o755)
    text = cap.decode("latin-1")
    m.pax_headers = {"SCHILY.xattr.security.capability": text,
                     "SCHILY.xattr.user.note": "hello",
                     "SCHILY.xattr.security.selinux": "evil_t",
                     "SCHILY.xattr.trusted.overlay.opaque": "y"}
    r = Run(tar([(m, data)]))
    out = r.debugfs("ea_list /bin/ping")
    check("security.capability (20)" in out and "user.note" in out,
          "file capabilities and user attributes are kept", out + r.out)
    check("selinux" not in out and "trusted" not in out,
          "other attributes are dropped", out)


def directories():
    src = os.path.join(TOP, "tree")
    os.makedirs(src + "/sub")
    with open(src + "/sub/f", "wb") as f:
        f.write(b"data")
    os.chown(src + "/sub/f", 33, 44)
    os.chmod(src + "/sub/f", 0o400)
    os.link(src + "/sub/f", src + "/again")
    with open(src + "/holes", "wb") as f:
        f.truncate(40 << 20)
        f.seek(20 << 20)
        f.write(b"middle")
    r = Run(src)
    check(r.rc == 0, "a directory makes an image", r.out + r.err)
    out = r.debugfs("stat /sub/f")
    check("User:    33   Group:    44" in out and "Links: 2" in out
          and re.search(r"Mode:\s+0400", out) is not None,
          "owner, mode and links of a directory's files", out)
    check(re.search(r"Size: 41943040", r.debugfs("stat /holes")) is not None
          and os.path.getsize(r.image) < 40 << 20,
          "sparse files stay sparse", r.debugfs("stat /holes") + r.last)
    out = subprocess.run(["/usr/sbin/debugfs", "-R", "dump /holes /dev/stdout",
                          r.image], capture_output=True).stdout
    check(out == open(src + "/holes", "rb").read(), "and keep their contents")
    return src


def peer_rights(src):
    r = Run(src, "--uid", "65534", "--gid", "65534")
    check(r.refused("Permission denied"),
          "a peer's unreadable file fails the build", r.out)
    os.chmod(src + "/sub/f", 0o444)
    r = Run(src, "--uid", "65534", "--gid", "65534")
    check(r.rc == 0, "a peer's readable directory works", r.out)
    secret = tar(GOOD)
    os.chmod(secret, 0o600)
    r = Run(secret, "--uid", "65534", "--gid", "65534")
    check(r.refused(r"error -13 .*uid 65534.*Permission denied"),
          "a tar that the peer may not read", r.out)
    os.chmod(TOP, 0o700)
    os.chmod(secret, 0o644)
    r = Run(secret, "--uid", "65534", "--gid", "65534")
    os.chmod(TOP, 0o755)
    check(r.refused("Permission denied"),
          "a tar in a directory that the peer may not search", r.out)


def hostile_names():
    canary = os.path.join(TOP, "canary")
    cases = [
        ("a name that climbs", [member("../canary", data=b"x")], r"with '\.\.' in it"),
        ("a climb in the middle", [member("a/../../canary", data=b"x")],
         r"with '\.\.' in it"),
        ("an absolute name", [member("/" + canary.lstrip("/"), data=b"x")],
         "absolute"),
        ("a hard link that climbs",
         [member("l", tarfile.LNKTYPE, linkname="../../../etc/passwd")],
         r"with '\.\.' in it"),
        ("an absolute hard link",
         [member("l", tarfile.LNKTYPE, linkname="/etc/passwd")], "absolute"),
        ("a write through a symbolic link",
         [member("out", tarfile.SYMTYPE, linkname=TOP),
          member("out/canary", data=b"x")], "symlink"),
        ("a write through a relative symbolic link",
         [member("out", tarfile.SYMTYPE, linkname="../../../../../../../" + TOP),
          member("out/canary", data=b"x")], "symlink"),
        ("a hard link through a symbolic link",
         [member("etc", tarfile.SYMTYPE, linkname="/etc"),
          member("l", tarfile.LNKTYPE, linkname="etc/hostname")], ""),
        ("a name of 5,000 bytes", [member("a/" * 2500, data=b"x")],
         "longer than|deeper"),
        ("300 nested directories", [member("a/" * 300 + "f", data=b"x")],
         "deeper"),
        ("an empty archive", [], "no files|not a readable"),
    ]
    for name, members, pattern in cases:
        r = Run(tar(members))
        check(r.refused(pattern), f"refused: {name}", r.out + r.err)
        check(not os.path.exists(canary) and not os.path.islink(canary),
              f"nothing outside was written: {name}")
    # A link that is replaced by a file must not be followed.
    r = Run(tar([member("f", tarfile.SYMTYPE, linkname=canary),
                 member("f", data=b"inside")]))
    check(r.rc == 0 and "inside" in r.debugfs("cat /f")
          and not os.path.exists(canary),
          "a file replaces the link of its name", r.out)
    # Control characters in names must not break the protocol's lines.
    r = Run(tar([member("x\nresult 1 1 1\n/../y", data=b"")]))
    check(r.refused(r"with '\.\.' in it") and "\nresult" not in r.out,
          "a name with line breaks stays one line", r.out)


def bombs():
    zeros = os.path.join(TOP, "bomb.tar.gz")
    with gzip.open(zeros, "wb", compresslevel=1) as f:
        m = tarfile.TarInfo("zeros")
        m.size = 300 << 20
        f.write(m.tobuf())
        for _ in range(300):
            f.write(bytes(1 << 20))
    r = Run(zeros, "--max-bytes", str(50 << 20))
    check(r.refused("error -27 .*unpacks to more than 50 MiB"),
          "a compressed bomb is refused by its header", r.out)
    # The header lies: small files, but endless ones.
    r = Run(tar([member(f"f{i}", data=bytes(2 << 20)) for i in range(40)]),
            "--max-bytes", str(50 << 20))
    check(r.refused("unpacks to more than 50 MiB"),
          "many files that add up are refused", r.out)
    r = Run(tar([member(f"f{i}") for i in range(500)]), "--max-entries", "400")
    check(r.refused("more than 400 files"), "too many files are refused", r.out)
    big, _ = member("huge")
    big.size = 8 << 60
    path = os.path.join(TOP, "huge.tar")
    with open(path, "wb") as f:
        f.write(big.tobuf(tarfile.GNU_FORMAT))
    r = Run(path)
    check(r.refused("unpacks to more|not a readable|damaged"),
          "a file of 8 EiB is refused", r.out)
    for dev in ("/dev/zero", "/proc/self/mem"):
        r = Run(dev)
        check(r.refused("neither a directory nor a tar|not a readable"),
              f"{dev} is no source", r.out)
    fifo = os.path.join(TOP, "fifo")
    os.mkfifo(fifo)
    r = Run(fifo)
    check(r.refused("neither a directory nor a tar"), "a FIFO is no source",
          r.out)


def damaged():
    path = tar(GOOD)
    raw = open(path, "rb").read()
    cut = os.path.join(TOP, "cut.tar")
    with open(cut, "wb") as f:
        f.write(raw[:6000])
    check(Run(cut).refused("damaged|not a readable|truncated"),
          "a tar that is cut short is refused", Run(cut).out)
    with open(cut, "wb") as f:
        f.write(raw[:700] + b"\xff" * 512 + raw[1212:])
    check(Run(cut).refused("damaged|not a readable"),
          "a damaged header is refused", Run(cut).out)
    with open(cut, "wb") as f:
        f.write(os.urandom(100000))
    check(Run(cut).refused("not a readable tar"), "noise is refused")
    with open(cut, "wb") as f:
        f.write(gzip.compress(raw)[:-200])
    check(Run(cut).refused("damaged|not a readable"),
          "a gzip that is cut short is refused", Run(cut).out)
    r = Run("/nonexistent/root.tar")
    check(r.refused("error -2 .*No such file"), "a missing source", r.out)


def sizes():
    path = tar([member(f"f{i}", data=os.urandom(1 << 20)) for i in range(40)]
               + [member(f"g{i}", data=os.urandom(20000)) for i in range(40)])
    r = Run(path, "--disk-bytes", str(41 << 20))
    check(r.refused("error -28 .*disk of 41 MiB is too small.*--disk"),
          "a disk that is too small says what to do", r.out)
    r = Run(path, "--disk-bytes", str(20 << 20))
    check(r.refused("error -28 .*need more than the disk.*--disk"),
          "one smaller than the contents does too", r.out)
    r = Run(path, "--disk-bytes", str(200 << 20))
    check(r.rc == 0 and os.path.getsize(r.image) == 200 << 20,
          "--disk-bytes is the size of the disk", r.out)
    r = Run(path)
    check(r.rc == 0 and 60 << 20 <= os.path.getsize(r.image) <= 100 << 20,
          "without it: half as much again and some room", r.last)


def mounted():
    """A round trip through the kernel where loop devices exist."""
    r = Run(tar(GOOD))
    at = os.path.join(TOP, "mnt")
    os.mkdir(at)
    p = subprocess.run(["mount", "-o", "loop,ro", r.image, at],
                       capture_output=True, text=True)
    if p.returncode:
        print("# no loop device here: debugfs was the judge")
        return
    try:
        st = os.stat(at + "/bin/su")
        check(st.st_mode & stat.S_ISUID and st.st_nlink == 2
              and open(at + "/bin/su", "rb").read() == b"\x7fELF" + bytes(9000),
              "the kernel mounts it and reads the same")
    finally:
        subprocess.run(["umount", at], check=True)


def usage():
    p = subprocess.run([MKDISK, "--source", "x"], capture_output=True, text=True)
    check(p.returncode == 2 and "usage:" in p.stderr, "usage")


if os.geteuid() != 0:
    print("1..0 # SKIP needs root")
    sys.exit(77)
try:
    good_archives()
    attributes()
    peer_rights(directories())
    hostile_names()
    bombs()
    damaged()
    sizes()
    mounted()
    usage()
finally:
    remove_tree(TOP)
print(f"1..{rig.count}")
print(f"# {rig.count - rig.failed} passed, {rig.failed} failed")
sys.exit(1 if rig.failed else 0)
