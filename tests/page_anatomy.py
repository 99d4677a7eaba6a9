"""What each byte of a whole LMDB file is for; and a process that reads files with LMDB for tests.

Written from the page layout alone and trusting the file, so it shares nothing with what it tests.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
from dataclasses import dataclass

PAGE = 4096
META, FREE_LIST, MAIN = "meta", "free list", "main"

# What a byte is for.
HEADER, PLACE, NODE, KEY, VALUE, POINTER, SLACK, GAP = (
    "header",
    "place",
    "node",
    "key",
    "value",
    "pointer",
    "slack",
    "gap",
)
LONG_HEADER, LONG_VALUE, UNUSED = "long header", "long value", "unused"
CONTENT = (KEY, VALUE, LONG_VALUE)
"""Bytes that LMDB hands out as they are."""
IDLE = (SLACK, GAP, UNUSED)
"""Bytes that LMDB never reads."""


@dataclass
class Page:
    """A page in use: its tree, what kind it is, and what each of its bytes is for."""

    number: int
    tree: str
    kind: str
    parts: list[str]
    count: int = 1  # pages of a long value


class Anatomy:
    """All pages in use of the newest snapshot of a whole file."""

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            self.data = file.read()
        self.pages: list[Page] = []
        slots = []
        for slot in (0, 1):
            at = slot * PAGE
            txn = struct.unpack_from("<Q", self.data, at + 16 + 24 + 96 + 8)[0]
            slots.append((txn, slot))
            parts = [HEADER] * 16 + [META] * 136 + [UNUSED] * (PAGE - 152)
            parts[0:8] = parts[8:10] = []  # replaced below
            parts = [UNUSED] * 10 + [HEADER] * 2 + [UNUSED] * 4 + parts[-(PAGE - 16) :]
            self.pages.append(Page(slot, META, META, parts))
        self.newest = max(slots)[1]
        at = self.newest * PAGE + 16 + 24
        free_root = struct.unpack_from("<Q", self.data, at + 40)[0]
        main_root = struct.unpack_from("<Q", self.data, at + 48 + 40)[0]
        self._walk(free_root, FREE_LIST)
        for name, value in self._walk(main_root, MAIN):
            self._walk(struct.unpack_from("<Q", value, 40)[0], name.decode())

    def _walk(self, root: int, tree: str) -> list[tuple[bytes, bytes]]:
        rows: list[tuple[bytes, bytes]] = []
        stack = [] if root == 2**64 - 1 else [root]
        while stack:
            number = stack.pop()
            page = self.data[number * PAGE : (number + 1) * PAGE]
            flags, lower, upper = struct.unpack_from("<HHH", page, 10)
            places = struct.unpack_from(f"<{(lower - 16) // 2}H", page, 16)
            parts = [HEADER] * 16 + [PLACE] * (lower - 16) + [GAP] * (upper - lower)
            parts[8:10] = [UNUSED] * 2
            parts += [SLACK] * (PAGE - upper)
            for index, at in enumerate(places):
                low, high, size = struct.unpack_from("<IHH", page, at)
                parts[at : at + 8] = [NODE] * 8
                end = at + 8 + size
                # LMDB never compares with the first key of a branch page.
                parts[at + 8 : end] = [UNUSED if flags == 1 and not index else KEY] * size
                if flags == 1:
                    stack.append(low | high << 32)
                elif high & 1:
                    parts[end : end + 8] = [POINTER] * 8
                    first = struct.unpack_from("<Q", page, end)[0]
                    self._long(first, low, tree)
                else:
                    parts[end : end + low] = [VALUE] * low
                    rows.append((page[at + 8 : end], page[end : end + low]))
            self.pages.append(Page(number, tree, "branch" if flags == 1 else "leaf", parts))
        return rows

    def _long(self, first: int, size: int, tree: str) -> None:
        count = struct.unpack_from("<I", self.data, first * PAGE + 12)[0]
        parts = [HEADER] * 8 + [UNUSED] * 2 + [LONG_HEADER] * 6 + [LONG_VALUE] * size
        parts += [SLACK] * (count * PAGE - len(parts))
        self.pages.append(Page(first, tree, "long", parts, count))


# Run in a process of its own, which forks for each file: LMDB may crash on it or loop.
_READER = r"""
import hashlib, json, lmdb, os, random, signal, sys

def digest(rows):
    sums = {}
    for key, value in rows:
        sums[bytes(key).hex()] = hashlib.md5(bytes(value)).hexdigest()
    return sums

def read(env, dbs):
    with env.begin() as txn:
        return {name: digest(txn.cursor(db)) for name, db in dbs.items()}

def work(folder, names, seed):
    env = lmdb.open(folder, max_dbs=9, map_size=1 << 32, sync=False, lock=False)
    dbs = {name: env.open_db(name.encode(), create=False) for name in names}
    before = read(env, dbs)
    if seed is None:
        return {"rows": before}
    rng = random.Random(seed)
    model = {name: dict(rows) for name, rows in before.items()}
    for _ in range(6):
        with env.begin(write=True) as txn:
            for _ in range(rng.choice((1, 20, 200))):
                name = rng.choice(names)
                rows = model[name]
                if rng.random() < 0.5 and rows:
                    key = rng.choice(sorted(rows))
                    txn.delete(bytes.fromhex(key), db=dbs[name])
                    del rows[key]
                else:
                    key = rng.randbytes(rng.choice((8, 16, 24)))
                    value = rng.randbytes(rng.choice((0, 8, 60, 1500, 5000, 30000)))
                    txn.put(key, value, db=dbs[name])
                    rows[key.hex()] = hashlib.md5(value).hexdigest()
    return {"rows": before, "changed_well": read(env, dbs) == model}

for line in sys.stdin:
    request = json.loads(line)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(20)
        os.close(reader)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.dup2(null, 1)
        try:
            result = work(request["folder"], request["names"], request["seed"])
        except Exception as error:
            result = {"error": repr(error)}
        with open(writer, "w") as pipe:
            pipe.write(json.dumps(result))
        os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if status or not text:
        text = json.dumps({"crash": status})
    print(text, flush=True)
"""


class LmdbReader:
    """Reads files with LMDB in another process and survives what it does there."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def read(self, folder: str, names: list[str], seed: int | None = None) -> dict[str, object]:
        """`rows` {database: {key: sum}} or `error` or `crash`.

        With a seed the file is changed at random, too; `changed_well`: LMDB then held what it
        should.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = json.dumps({"folder": folder, "names": names, "seed": seed})
        self._process.stdin.write(request.encode() + b"\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


def value_sum(value: bytes | memoryview) -> str:
    """As the reader sums values."""
    return hashlib.md5(bytes(value)).hexdigest()


def is_dead(status: int) -> str:
    """Name of the signal of a wait status, for messages."""
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else str(status)
