"""The pictures of `mpifs layout`, drawn from known layouts, and on a real mount."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mpifs.cli import layout_picture
from mpifs.cli.layout_picture import Entry, file_picture, folder_picture
from tests.job.lifecycle import mpifs, volume

MIB = 1 << 20


def _layout(count: int, holes: tuple[int, ...] = ()) -> dict[str, Any]:
    """Round-robin over three workers, two copies each."""
    chunks = [
        {"index": n, "length": MIB, "workers": [n % 3 + 1, (n + 1) % 3 + 1]}
        for n in range(count)
        if n not in holes
    ]
    return {"size": count * MIB, "chunk_size": MIB, "replicas": 2, "chunks": chunks}


@pytest.fixture(autouse=True)
def _marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Width and marks that do not depend on where pytest writes to."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(layout_picture, "_SHADES", layout_picture._PLAIN_SHADES)


def test_a_column_for_each_chunk() -> None:
    """Each copy is a mark in its worker's row; a hole is in none, nor is a worker without any."""
    lines = file_picture(_layout(6, holes=(2,)), [1, 2, 3, 4])
    assert [line.split()[2] for line in lines] == ["#..#.#", "##.##.", ".#..##", "......"]
    assert lines[0].split()[3:] == ["3", "chunks", "3.0", "MiB"]
    assert file_picture({**_layout(0)}, [1]) == []


@pytest.mark.parametrize("count", [200, 100_000])
def test_a_large_file_fits_the_terminal(count: int) -> None:
    """Columns stand for several chunks; every row is as long, every chunk is counted."""
    lines = file_picture(_layout(count), [1, 2, 3])
    assert "each column is" in lines[0]
    assert max(map(len, lines)) <= 80
    assert len({len(line.split()[2]) for line in lines[1:]}) == 1
    assert "." not in lines[1].split()[2]
    assert sum(int(line.split()[3]) for line in lines[1:]) == 2 * count


def test_a_sparse_giant_is_drawn_at_once() -> None:
    """Of 8 EiB with one chunk."""
    found = {"size": 2**63 - 1, "chunk_size": 4096, "replicas": 1}
    found["chunks"] = [{"index": 2**50, "length": 4096, "workers": [2]}]
    lines = file_picture(found, [1, 2])
    assert lines[1].split()[2].strip(".") == ""
    assert lines[2].split()[2].count("-") == 1


def test_folder() -> None:
    """A bar for each worker by bytes, a row for each entry, the largest first."""
    big, small = Entry(b"big/"), Entry(b"small\x1b\xff")
    big.add(_layout(3))
    small.add({"size": 10, "chunks": [{"length": 10, "workers": [2]}]})
    lines = folder_picture([small, big], [1, 2, 3])
    bars = [line[12:44].count("#") for line in lines[:3]]
    assert bars == [32, 32, 32]
    assert lines[4].split() == ["1", "2", "3", "bytes", "files"]
    assert lines[5].split()[:4] == ["big/", "#", "#", "#"]
    assert lines[6].split()[1:4] == [".", "#", "."]
    assert "\x1b" not in lines[6]


def test_on_a_mount() -> None:
    """Folders sum up what is below them; a file's picture and its table agree."""
    with volume() as made:
        made.mount("-w", "3", "--chunk-size", "64KiB")
        inner = made.mountpoint / "folder" / "inner"
        inner.mkdir(parents=True)
        made.put("folder/inner/file", b"x" * 300_000)
        made.put("folder/other", b"y" * 65_536)
        (inner / "again").hardlink_to(inner / "file")
        folder, file = str(made.mountpoint / "folder"), str(inner / "file")
        (document,) = json.loads(mpifs("layout", "--json", folder).stdout)
        rows = {entry["name"]: entry for entry in document["entries"]}
        assert set(rows) == {"inner/", "other"}
        assert (rows["inner/"]["files"], rows["inner/"]["bytes"]) == (1, 300_000)
        assert sum(one["bytes"] for one in rows["inner/"]["workers"].values()) == 300_000
        shown = mpifs("layout", folder)
        assert shown.returncode == 0, shown.stderr
        assert "2 files, 365536 bytes" in shown.stdout
        (whole,) = json.loads(mpifs("layout", "--json", file).stdout)
        drawn = mpifs("layout", "--picture", file).stdout.splitlines()
        for number in (1, 2, 3):
            here = [number in chunk["workers"] for chunk in whole["chunks"]]
            row = next(line for line in drawn if line.startswith(f"worker {number} "))
            assert [mark != "·" for mark in row.split()[2]] == here
        assert "checksum" in mpifs("layout", "--table", file).stdout
        assert mpifs("umount", str(made.mountpoint)).returncode == 0
