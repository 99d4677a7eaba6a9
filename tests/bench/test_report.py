"""From values to the document, the page and the choice of phases: no processes."""

from __future__ import annotations

import re

import pytest

from mpifs.bench import report
from mpifs.bench.content import PERIOD_BYTES, piece
from mpifs.bench.page import page_of
from mpifs.bench.phases import LIMIT_TITLES, PHASES, RATIOS, chosen, needed_limits
from mpifs.bench.plan import Plan
from mpifs.bench.stage import rate_of
from mpifs.bench.workloads import Spell, places_of
from mpifs.core.errors import FormatError
from mpifs.core.limits import MIB

BY_NAME = {phase.name: phase for phase in PHASES}


def test_a_figure_is_the_median_with_its_extremes():
    found = report.figure([3.0, 1.0, 2.0])
    assert (found["median"], found["low"], found["high"]) == (2.0, 1.0, 3.0)
    assert report.spread_of(found) == 0.5


def test_the_rate_of_several_runs_from_the_first_beginning_to_the_last_end():
    assert rate_of([Spell(10.0, 11.0, 100), Spell(10.5, 12.0, 100)]) == 100.0


def test_the_share_is_of_the_lowest_limit():
    values = {"vol": [60.0, 80.0, 70.0], "fuse": [200.0], "disk": [50.0]}
    found = report.row(
        BY_NAME["write_close"],
        {"vol": True},
        values,
        {"mpi_put": [900.0], "lmdb_put": [90.0, 100.0, 500.0]},
    )
    assert found["lowest"] == "lmdb_put"
    assert found["shares"] == {"vol": 0.7}
    assert set(found["limits"]) == {"fuse", "mpi_put", "lmdb_put"}
    assert set(found["beside"]) == {"disk"}, "shown, but no limit of a write that is only closed"


def test_where_less_is_better_the_limit_is_the_floor():
    found = report.row(BY_NAME["first_request"], {"vol": True}, {"vol": [4.0], "fuse": [1.0]}, {})
    assert found["shares"] == {"vol": 0.25}


def test_another_file_system_stands_beside_without_a_share():
    values = {"vol": [50.0], "/mnt/other": [500.0], "fuse": [100.0]}
    found = report.row(BY_NAME["stat"], {"vol": True, "/mnt/other": False}, values, {})
    assert found["shares"] == {"vol": 0.5}
    assert set(found["targets"]) == {"vol", "/mnt/other"}


def test_a_phase_that_a_place_cannot_tell_is_left_out():
    found = report.row(BY_NAME["random_write_cost"], {"dir": False}, {}, {})
    assert found["targets"] == {}
    assert found["lowest"] is None


def test_quotients_of_all_places():
    rows = [
        report.row(BY_NAME[name], {"vol": True}, {"vol": [mine], "fuse": [100.0]}, {})
        for name, mine in (("write_close", 80.0), ("write_hard", 60.0))
    ]
    (found,) = report.ratio_rows(rows, {})
    assert found["targets"] == {"vol": 0.75}
    assert found["beside"] == {"fuse": 1.0}


def test_quotients_by_a_limit():
    """It is that of all places."""
    places = {"vol": [20.0], "other": [5.0], "fuse": [40.0]}
    rows = [report.row(BY_NAME["random_read"], {"vol": True, "other": False}, places, {})]
    (found,) = report.ratio_rows(rows, {"round_get_chunk": [8.0, 10.0, 80.0]})
    assert found["name"] == "random_chunk_ratio"
    assert found["targets"] == {"vol": 2.0, "other": 0.5}
    assert found["beside"] == {"fuse": 4.0}


def test_a_round_trip_and_a_get_take_the_time_of_both():
    assert report.round_get([10_000.0], [10_000.0]) == [pytest.approx(5000.0)]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("stat", ["stat"]),
        ("readers", ["readers_1", "readers_4", "readers_8"]),
        ("unlink, create_1", ["create_1", "unlink"]),
        ("", [phase.name for phase in PHASES]),
    ],
)
def test_phases_are_chosen_by_name_or_beginning(words: str, names: list[str]):
    assert [phase.name for phase in chosen(words)] == names


def test_an_unknown_phase_is_named_with_those_there_are():
    with pytest.raises(FormatError, match="no phase 'reed'; there are write_close"):
        chosen("stat,reed")


def test_only_limits_that_somebody_needs_are_measured():
    assert needed_limits(chosen("stat")) == ()
    rounds = ("mpi_round", "mpi_round_chunk")
    assert needed_limits(chosen("random_read")) == (*rounds, "lmdb_put", "lmdb_rate")
    assert needed_limits(chosen("read_cold")) == ("mpi_get", "lmdb_put", "lmdb_warm", "hash")
    assert needed_limits(chosen("read_disk")) == ("mpi_get", "lmdb_put", "lmdb_get", "hash")


def test_names_are_consistent():
    assert len(BY_NAME) == len(PHASES)
    assert {name for phase in PHASES for name in phase.limits} <= set(LIMIT_TITLES)
    assert {above for _, _, above, _ in RATIOS} <= set(BY_NAME)
    assert {below for _, _, _, below in RATIOS} <= set(BY_NAME) | set(LIMIT_TITLES)


@pytest.mark.parametrize(
    "wrong", [{"size": MIB}, {"files": 1}, {"repeats": 0}, {"idle_s": float("nan")}]
)
def test_a_plan_that_cannot_be(wrong: dict[str, float]):
    with pytest.raises(FormatError, match="--"):
        Plan(**wrong).check()  # type: ignore[arg-type]


def test_no_two_chunks_of_a_file_are_equal():
    pieces = [bytes(piece(1, chunk * MIB, 64)) for chunk in range(64)]
    assert len(set(pieces)) == len(pieces)
    assert piece(1, PERIOD_BYTES - 10, 20) == bytes(piece(1, PERIOD_BYTES - 10, 10)) + bytes(
        piece(1, 0, 10)
    )
    assert piece(1, 0, 64) != piece(2, 0, 64)


def test_random_places_are_different_while_there_are_enough():
    offsets = places_of(MIB, 4096, 256, 5)
    assert sorted(offsets) == list(range(0, MIB, 4096))
    assert len(places_of(8192, 4096, 10, 5)) == 10


def test_the_page_is_alone_and_escapes_names():
    rows = [
        report.row(phase, {"<b>": True}, {"<b>": [5.0, 6.0], "fuse": [9.0]}, {"hash": [1e6]})
        for phase in PHASES
    ]
    document = {
        "began": "now",
        "seconds": 1.0,
        "machine": dict.fromkeys(
            ("processors", "kernel", "python", "mpi", "load_before", "load_after"), 1
        ),
        "settings": {"size": MIB, "files": 8, "repeats": 2, "workers": 4, "chunk_size": MIB}
        | {"checksum": "xxh3-128"},
        "targets": [{"name": "<b>", "volume": "/v"}],
        "phases": rows,
        "ratios": report.ratio_rows(rows, {}),
    }
    page = page_of(document)
    assert "<b>" not in page
    assert not re.search(r"(src|href|url)\s*[=(]|https?://(?!www\.w3\.org)", page)
    assert page.count("<svg") == len(PHASES)
