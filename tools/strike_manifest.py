#!/usr/bin/env python3
"""What a writer in a mount was promised, and whether it is there after a crash.

A manifest lies on another disk: one JSON line per event, written (O_APPEND) before the operation
when something may be from now on, and after it when something has been promised.  A file is its
name and a stream of bytes made from a seed; any prefix of a stream is known by its length.

    may     the name may show this from now on: the first `low` to `high` bytes of stream `seed`
            (seed null: there is no such name)
    fsynced what was last said of the name has been made durable
    closed  the file was closed, renamed or removed so; durable after the commit interval
    error   an operation failed; the writer ends

As a program it is the writer: strike_manifest.py DESCRIPTOR MANIFEST STREAMS.json PREFIX SEED,
with a descriptor of the folder that it writes in.
"""

from __future__ import annotations

import functools
import json
import os
import random
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

STREAM_BYTES = 600_000
SIZES = (0, 1, 700, 5_000, 65_536, 70_000, 131_072, 200_000, STREAM_BYTES)
NAMES_MAX = 16


class Content(NamedTuple):
    """What a name shows: `low` to `high` bytes of a stream; seed None = there is no such name."""

    seed: int | None
    low: int = 0
    high: int = 0


NOTHING = Content(None)


@functools.lru_cache(maxsize=128)
def stream(seed: int) -> bytes:
    """The bytes of a stream."""
    return random.Random(seed).randbytes(STREAM_BYTES)


class Manifest:
    """The writer's side."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def say(self, event: str, name: str, **more: Any) -> None:
        """One line, whole."""
        line = {"t": time.monotonic(), "event": event, "name": name, **more}
        os.write(self._fd, json.dumps(line).encode() + b"\n")

    def may(self, name: str, content: Content) -> None:
        """From now on the name may show this."""
        self.say("may", name, **content._asdict())


class Writer:
    """Random operations in one folder, through a descriptor of it: a dead mount stays dead for it
    also when it has been taken away."""

    def __init__(self, folder: int, manifest: str, files: dict[str, Content], prefix: str) -> None:
        self._folder = folder
        self._manifest = Manifest(manifest)
        self._files = files
        self._prefix = prefix
        self._count = 0
        self._rng = random.Random()

    def run(self, seed: int) -> None:
        """Until an operation fails, or stdin is closed."""
        self._rng = random.Random(seed)
        os.set_blocking(0, False)
        name = ""
        try:
            while not self._is_over():
                name = self._rng.choice(sorted(self._files)) if self._files else ""
                self._step(name)
        except OSError as error:
            self._manifest.say("error", name, errno=error.errno, text=str(error))
            raise SystemExit(3) from None

    @staticmethod
    def _is_over() -> bool:
        try:
            return os.read(0, 1) == b""
        except BlockingIOError:
            return False

    def _step(self, name: str) -> None:
        rng = self._rng
        if not name or (len(self._files) < NAMES_MAX and rng.random() < 0.4):
            self._write(self._fresh())
            return
        action = rng.choice((self._write, self._replace, self._replace, self._append, self._delete))
        action(name)

    def _fresh(self) -> str:
        self._count += 1
        return f"{self._prefix}{self._rng.randrange(10**9)}-{self._count}"

    def _write(self, name: str) -> None:
        """A new file, or an old one emptied and written anew."""
        seed, size = self._rng.randrange(1 << 48), self._rng.choice(SIZES)
        self._fill(name, seed, 0, size, os.O_CREAT | os.O_TRUNC)

    def _append(self, name: str) -> None:
        old = self._files[name]
        size = self._rng.choice([size for size in SIZES if size >= old.high])
        assert old.seed is not None
        self._fill(name, old.seed, old.high, size, os.O_APPEND)

    def _fill(self, name: str, seed: int, start: int, end: int, flags: int) -> None:
        rng, tell = self._rng, self._manifest
        tell.may(name, Content(seed, start, end))
        file = os.open(name, os.O_WRONLY | flags, 0o600, dir_fd=self._folder)
        data, at, is_synced = stream(seed), start, rng.random() < 0.5
        while at < end:
            at += os.write(file, data[at : min(end, at + rng.choice((4096, 65_536, 1 << 20)))])
            if rng.random() < 0.05:
                tell.may(name, Content(seed, at, end))
                os.fsync(file)
                tell.say("fsynced", name)
        self._files[name] = Content(seed, end, end)
        tell.may(name, self._files[name])
        if is_synced:
            os.fsync(file)
            tell.say("fsynced", name)
        os.close(file)
        tell.say("closed", name)

    def _replace(self, name: str) -> None:
        """As editors do: a new file is written beside and renamed over the old one."""
        fresh = self._fresh()
        self._write(fresh)
        content = self._files.pop(fresh)
        self._manifest.may(name, content)
        self._manifest.may(fresh, NOTHING)
        os.rename(fresh, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        self._files[name] = content
        self._manifest.say("closed", name)
        self._manifest.say("closed", fresh)

    def _delete(self, name: str) -> None:
        self._manifest.may(name, NOTHING)
        os.unlink(name, dir_fd=self._folder)
        del self._files[name]
        self._manifest.say("closed", name)


@dataclass
class Promise:
    """One name: what it may show, in order, and the first of it that is still allowed."""

    contents: list[Content]
    first: int = 0
    closed: list[tuple[float, int]] = field(default_factory=list)


class Promises:
    """The checker's side: what must be there after a strike.

    `files` is what was there, durably, before the writer began.
    """

    def __init__(self, files: dict[str, Content]) -> None:
        self._names = {name: Promise([content]) for name, content in files.items()}
        self.last_s = 0.0
        """When the volume was last known to be alive: the time of the last promise."""
        self.errors: list[dict[str, Any]] = []
        self.lag_s = 0.0
        """The longest time between a close and a strike that undid it."""
        self.count = 0

    def read(self, lines: Iterable[bytes]) -> None:
        """Takes a manifest; a last line that was cut off is left out."""
        for line in lines:
            if not line.endswith(b"\n"):
                return
            said = json.loads(line)
            promise = self._names.setdefault(said["name"], Promise([NOTHING]))
            event = said["event"]
            if event == "may":
                promise.contents.append(Content(said["seed"], said["low"], said["high"]))
                continue
            if event == "error":
                self.errors.append(said)
                continue
            self.count += 1
            self.last_s = max(self.last_s, said["t"])
            last = len(promise.contents) - 1
            if event == "fsynced":
                promise.first = last
            else:
                promise.closed.append((said["t"], last))

    def compare(
        self, there: dict[str, bytes], struck_s: float, interval_s: float
    ) -> tuple[list[str], dict[str, Content]]:
        """(what is wrong, what is there now) in a volume that died at `struck_s`, when what was
        closed `interval_s` before must be durable."""
        wrong, now = [], {}
        for name in sorted(there.keys() - self._names.keys()):
            wrong.append(f"{name}: nobody has written it")
        for name, promise in self._names.items():
            found = there.get(name)
            shown = next((c for c in reversed(promise.contents) if _matches(c, found)), None)
            places = [n for n, c in enumerate(promise.contents) if _matches(c, found)]
            undone = [t for t, place in promise.closed if not places or places[-1] < place]
            before = [struck_s - t for t in undone if t <= struck_s]
            self.lag_s = max(self.lag_s, *before, 0.0)
            if not places:
                size = "nothing" if found is None else f"{len(found)} bytes"
                wrong.append(f"{name}: {size} that it never was; {_tail(promise)}")
            elif places[-1] < promise.first:
                wrong.append(f"{name}: fsynced and not there: state {places}; {_tail(promise)}")
            elif any(age > interval_s for age in before):
                wrong.append(f"{name}: closed {max(before):.2f} s before and not there: {places}")
            if found is not None and shown is not None:
                now[name] = Content(shown.seed, len(found), len(found))
        return wrong, now


def _matches(content: Content, found: bytes | None) -> bool:
    if found is None or content.seed is None:
        return found is None and content.seed is None
    return content.low <= len(found) <= content.high and stream(content.seed)[: len(found)] == found


def _tail(promise: Promise) -> str:
    return f"promised from {promise.first} of {promise.contents[-6:]}, closed {promise.closed[-3:]}"


def main() -> None:
    """The writer's process."""
    folder, manifest, streams, prefix, seed = sys.argv[1:]
    with open(streams, encoding="utf-8") as file:
        files = {name: Content(*content) for name, content in json.load(file).items()}
    mine = {name: content for name, content in files.items() if name.startswith(prefix)}
    Writer(int(folder), manifest, mine, prefix).run(int(seed))


if __name__ == "__main__":
    main()
