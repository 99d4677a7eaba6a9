"""Phases and rounds of a run, with checks made up for it; the stores as folders and files."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest

from mpifs.core.errors import DamageError, FullError
from mpifs.core.messages import FileProblem, FolderReport, InspectReply
from mpifs.core.superblock import Role, Superblock
from mpifs.core.types import ChecksumKind, StoreEntry, StoreId, StoreState
from mpifs.repair import run as run_module
from mpifs.repair.check_stores import check_stores
from mpifs.repair.findings import (
    DAMAGE,
    ERROR,
    LOST,
    CancelledError,
    Finding,
    Progress,
)
from mpifs.repair.stores import StoreAccess
from mpifs.repair.volume import VolumeView


class Faults:
    """Faults by name; some come to light only once others are repaired."""

    def __init__(self, **later: list[str]) -> None:
        self.there = {name for name in later if not name.startswith("_")}
        self.later = later
        self.calls = 0

    def check(self) -> Iterator[Finding]:
        self.calls += 1
        for name in sorted(self.there):
            remedy = None if name.startswith("x") else lambda name=name: self.mend(name)
            yield Finding(name, ERROR, name, remedy=remedy)

    def mend(self, name: str) -> bool:
        if name.startswith("full"):
            raise FullError("full")
        if name.startswith("no"):
            return False
        self.there.remove(name)
        self.there |= set(self.later[name])
        for each in self.later[name]:
            self.later.setdefault(each, [])
        return True


def do_run(
    monkeypatch: pytest.MonkeyPatch,
    index: Faults,
    chunks: Faults,
    *,
    repair: bool,
    progress: Progress | None = None,
    is_live: bool = False,
) -> list[Finding]:
    monkeypatch.setattr(run_module, "check_chunks", lambda *_, **__: chunks.check())
    found: list[Finding] = []
    run_module.run(
        cast(VolumeView, SimpleNamespace(is_live=is_live)),
        cast(StoreAccess, None),
        [lambda view, progress: index.check()],
        lambda: iter(()),
        data=True,
        repair=repair,
        adopt=False,
        progress=progress or Progress(),
        report=found.append,
    )
    return found


def rows(found: list[Finding]) -> list[tuple[str, bool]]:
    return [(finding.check, finding.repaired) for finding in found]


def test_a_check_runs_once_and_repairs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    index, chunks = Faults(a=["b"], x=[]), Faults(c=[])
    found = do_run(monkeypatch, index, chunks, repair=False)
    assert rows(found) == [("a", False), ("x", False), ("c", False)]
    assert (index.calls, chunks.calls) == (1, 1)
    assert index.there == {"a", "x"}


def test_rounds_go_on_until_nothing_is_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    index = Faults(a=["b"], b2=[], x=[], no=[], full=[])
    found = do_run(monkeypatch, index, Faults(), repair=True)
    repaired = [name for name, is_repaired in rows(found) if is_repaired]
    assert repaired == ["a", "b2", "b"]
    left = [finding for finding in found if not finding.repaired]
    assert sorted(finding.check for finding in left) == ["full", "no", "x"]
    assert index.calls == 3
    assert any("not repaired: full" in finding.detail for finding in left)


def test_what_has_changed_while_mounted_is_looked_at_once_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index = Faults(no=[])
    assert rows(do_run(monkeypatch, index, Faults(), repair=True, is_live=True)) == [("no", False)]
    assert index.calls == 2


def test_what_a_later_round_repairs_is_not_told_as_left(monkeypatch: pytest.MonkeyPatch) -> None:
    index = Faults(a=[])

    def check() -> Iterator[Finding]:
        index.calls += 1
        if index.calls == 1:
            yield Finding("late", DAMAGE, "late")
        if index.calls == 2:
            yield Finding("late", DAMAGE, "late", remedy=lambda: True)
        if index.calls == 1:
            yield Finding("a", ERROR, "a", remedy=lambda: True)

    monkeypatch.setattr(index, "check", check)
    assert rows(do_run(monkeypatch, index, Faults(), repair=True)) == [("a", True), ("late", True)]


def test_repaired_chunks_have_the_index_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    index, chunks = Faults(x=[]), Faults(c=[], x2=[])
    found = do_run(monkeypatch, index, chunks, repair=True)
    assert rows(found) == [("x", False), ("c", True), ("x2", False)]
    assert (index.calls, chunks.calls) == (2, 2)


def test_a_repair_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    index = Faults(a=["a"])
    found = do_run(monkeypatch, index, Faults(), repair=True)
    assert len(found) == 1
    assert index.calls == run_module.ROUNDS_MAX


def test_a_cancelled_run_stops_at_its_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Progress(is_cancelled=True)
    with pytest.raises(CancelledError):
        do_run(monkeypatch, Faults(a=[]), Faults(), repair=True, progress=progress)


VOLUME, OTHER = b"v" * 16, b"o" * 16
GEOMETRY = Superblock(Role.INDEX, VOLUME, VOLUME, 0, 1 << 20, 1, ChecksumKind.XXH3_128, 0)
ENTRIES = [StoreEntry(StoreId(n), bytes([n]) * 16, StoreState.ACTIVE) for n in (1, 2)]


def folder(store: int, name: str = "", **other: object) -> FolderReport:
    fields: dict[str, object] = {
        "name": name or f"worker-{store}",
        "state": "ok",
        "store": store,
        "volume_uuid": VOLUME,
        "store_uuid": bytes([store]) * 16,
    }
    return FolderReport(**{**fields, **other})  # type: ignore[arg-type]  # fields by name


def of_stores(
    *folders: FolderReport, problems: dict[int, object] | None = None
) -> list[tuple[str, int | None]]:
    hosts = [SimpleNamespace(host="here", folders=folders)]
    inspected = cast("dict[int, InspectReply | DamageError]", problems or {})
    found = list(check_stores(GEOMETRY, ENTRIES, hosts, inspected))
    assert all(finding.severity != LOST for finding in found)
    return [(finding.check, finding.worker) for finding in found]


def test_stores_in_their_places_are_no_finding() -> None:
    assert of_stores(folder(1), folder(2), problems={1: InspectReply([], 0)}) == []


@pytest.mark.parametrize(
    ("second", "check"),
    [
        ([], "check_store_is_there"),
        ([folder(2, state="empty", store_uuid=b"", volume_uuid=b"")], "check_store_is_not_empty"),
        ([folder(2, state="damaged", store_uuid=b"", volume_uuid=b"")], "check_store_superblock"),
        ([folder(2, state="bare", store_uuid=b"", volume_uuid=b"")], "check_store_superblock"),
        ([folder(2, volume_uuid=OTHER)], "check_store_volume"),
        ([folder(2, name="worker-2.moving")], "check_store_is_not_exchanged"),
        ([folder(7, name="worker-2")], "check_store_is_not_exchanged"),
    ],
)
def test_one_wrong_store_is_one_finding(second: list[FolderReport], check: str) -> None:
    problem = InspectReply([FileProblem("superblock", "missing")], 1)
    assert of_stores(folder(1), *second, problems={2: problem}) == [(check, 2)]


def test_exchanged_stores_are_two_findings() -> None:
    swapped = folder(1, name="worker-2"), folder(2, name="worker-1")
    check = "check_store_is_not_exchanged"
    assert of_stores(*swapped) == [(check, 1), (check, 2)]


def test_a_fresh_store_need_not_be_there() -> None:
    entries = [StoreEntry(StoreId(1), b"1" * 16, StoreState.FRESH)]
    assert list(check_stores(GEOMETRY, entries, [], {})) == []


def test_damaged_files_are_one_finding_each() -> None:
    problems = [FileProblem("small/data.mdb", f"page {n}") for n in range(9)]
    problems.append(FileProblem("large/data.mdb", "is cut"))
    reply = InspectReply(problems, 10)
    hosts = [SimpleNamespace(host="here", folders=[folder(1), folder(2)])]
    found = list(check_stores(GEOMETRY, ENTRIES, hosts, {1: reply, 2: DamageError("no answer")}))
    assert [finding.worker for finding in found] == [1, 1, 2]
    assert "page 0; page 1; page 2; and 6 more" in found[0].detail
    assert "no answer" in found[2].detail
