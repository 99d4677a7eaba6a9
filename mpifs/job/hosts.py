"""Which host each worker runs on, from --hostfile or --host.

A hosts file has one host a line, `#` starts a comment; `slots=N`, `host:N` (both as Open MPI and
MPICH write it) give a host N workers.  Workers are numbered in the file's order.
"""

from __future__ import annotations

import re

from mpifs.core.errors import PosixError
from mpifs.core.limits import STORES_MAX

_SLOTS = re.compile(r"(?:slots|max_slots|max-slots)=([0-9]+)\Z")
_EINVAL = 22


def parse_hosts(text: str, place: str) -> list[str]:
    """One entry per worker.  Raises PosixError naming `place` and the line that is wrong."""
    hosts: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        name, count = _split(words[0], f"{place} line {number}")
        for word in words[1:]:
            match = _SLOTS.match(word)
            if match is None:
                raise _wrong(f"{place} line {number}", word)
            if word.startswith("slots"):
                count = int(match[1])
        hosts += [name] * _bounded(count, f"{place} line {number}")
    if not hosts:
        raise PosixError(_EINVAL, f"{place} names no host; write one host a line")
    return hosts


def parse_host_list(text: str) -> list[str]:
    """`a,b:2,c` → a, b, b, c."""
    hosts: list[str] = []
    for word in text.split(","):
        name, count = _split(word.strip(), "--host")
        hosts += [name] * _bounded(count, "--host")
    return hosts


def _bounded(count: int, place: str) -> int:
    if not 1 <= count <= STORES_MAX:
        raise PosixError(_EINVAL, f"{place}: {count} workers on one host; give 1 to {STORES_MAX}")
    return count


def _split(word: str, place: str) -> tuple[str, int]:
    name, colon, count = word.rpartition(":")
    if not colon or not count.isdigit() or ":" in name:  # an IPv6 address has several colons.
        name, count = word, "1"
    if not name or name.startswith("-"):
        raise _wrong(place, word)
    return name, int(count)


def _wrong(place: str, word: str) -> PosixError:
    return PosixError(_EINVAL, f"{place}: {word!r} is not understood; write: host slots=N")


def spread(hosts: list[str], workers: int) -> list[str]:
    """Host of each of `workers` workers: the list as it is, or repeated in turn when it is short.

    Raises PosixError when there are more slots than workers and not each host would get one.
    """
    if len(hosts) > workers and len(dict.fromkeys(hosts)) > workers:
        raise PosixError(
            _EINVAL,
            f"{len(dict.fromkeys(hosts))} hosts for {workers} workers; "
            f"give -w {len(hosts)} or fewer hosts",
        )
    return [hosts[number % len(hosts)] for number in range(workers)]


def keepers(hosts: list[str]) -> list[str]:
    """Hosts that get one more rank, which serves nothing: those with one worker alone.

    Open MPI starts no new rank on another host where none of the job's is left (ompi#13427), so
    without it the only worker of a host could not be replaced.
    """
    return [host for host in dict.fromkeys(hosts) if hosts.count(host) == 1]
