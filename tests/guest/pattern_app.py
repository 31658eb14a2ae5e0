"""The guest's application in the lifecycle tests: memory and a file full of
bytes that can be recomputed, and checked to the last one.

GET /check        compares every byte of both; "GOOD memory file" or "BAD ..."
GET /dirty?SEED   rewrites the middle third of both with another seed
GET /count        counts
GET /random       32 bytes of getrandom, in hex
GET /say?TEXT     prints it
GET /cpus         how many CPUs the application sees
"""
import hashlib
import http.server
import os

MEMORY = 24 << 20
FILE = 12 << 20
PATH = "/var/tmp/pattern"
UNIT = 1 << 20


def unit(seed, where, i):
    return hashlib.shake_128(f"{seed} {where} {i}".encode()).digest(UNIT)


class World:
    def __init__(self):
        self.seeds_memory = [1] * (MEMORY // UNIT)
        self.seeds_file = [1] * (FILE // UNIT)
        self.memory = bytearray(MEMORY)
        self.count = 0
        with open(PATH, "wb") as f:
            for i, s in enumerate(self.seeds_file):
                f.write(unit(s, "file", i))
        for i, s in enumerate(self.seeds_memory):
            self.memory[i * UNIT:(i + 1) * UNIT] = unit(s, "memory", i)

    def check(self):
        bad = []
        for i, s in enumerate(self.seeds_memory):
            if self.memory[i * UNIT:(i + 1) * UNIT] != unit(s, "memory", i):
                bad.append(f"memory {i}")
        # From the disk, not from the page cache.
        os.sync()
        with open("/proc/sys/vm/drop_caches", "w") as f:
            f.write("1")
        with open(PATH, "rb") as f:
            for i, s in enumerate(self.seeds_file):
                if f.read(UNIT) != unit(s, "file", i):
                    bad.append(f"file {i}")
            if f.read(1):
                bad.append("file is longer")
        if bad:
            return "BAD " + ", ".join(bad)
        return f"GOOD {len(self.memory)} {FILE}"

    def dirty(self, seed):
        n = len(self.seeds_memory)
        for i in range(n // 3, 2 * n // 3):
            self.seeds_memory[i] = seed
            self.memory[i * UNIT:(i + 1) * UNIT] = unit(seed, "memory", i)
        n = len(self.seeds_file)
        with open(PATH, "r+b") as f:
            for i in range(n // 3, 2 * n // 3):
                self.seeds_file[i] = seed
                f.seek(i * UNIT)
                f.write(unit(seed, "file", i))
        return "DIRTIED"


world = World()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path, _, query = self.path.partition("?")
        if path == "/check":
            text = world.check()
        elif path == "/dirty":
            text = world.dirty(int(query))
        elif path == "/count":
            world.count += 1
            text = str(world.count)
        elif path == "/random":
            text = os.getrandom(32).hex()
        elif path == "/say":
            text = "said " + query
            print(text, flush=True)
        elif path == "/cpus":
            text = str(os.cpu_count())
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format, *args):
        pass


print("pattern: ready", flush=True)
http.server.HTTPServer(("0.0.0.0", int(os.environ.get("PORT", "9090"))),
                       Handler).serve_forever()
