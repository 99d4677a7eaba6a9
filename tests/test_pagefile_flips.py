"""PageFile on real LMDB files: whole ones have no problems, no byte makes it fail or lose much."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from mpifs.kv import Environment
from mpifs.pagefile import PageFile

SEED = random.randrange(10**6)
NAMES = ("small", "large")


def fill(folder: str, seed: int) -> dict[str, dict[bytes, bytes]]:
    """Rows of both databases after inserts, overwrites and deletes in several commits."""
    rng = random.Random(seed)
    rows: dict[str, dict[bytes, bytes]] = {name: {} for name in NAMES}
    environment = Environment(folder, NAMES, create=True)
    for _ in range(6):
        with environment.write() as transaction:
            for number in rng.sample(range(2000), 400):
                key = number.to_bytes(8, "big")
                if key in rows["small"] and rng.random() < 0.4:
                    del rows["small"][key]
                    transaction.delete("small", key)
                else:
                    rows["small"][key] = rng.randbytes(rng.randrange(0, 200))
                    transaction.put("small", key, rows["small"][key])
            for number in rng.sample(range(40), 8):
                key = number.to_bytes(8, "big")
                rows["large"][key] = rng.randbytes(rng.choice([3000, 5000, 40_000]))
                transaction.put("large", key, rows["large"][key])
    environment.close()
    return rows


def read(path: str) -> dict[str, dict[bytes, bytes]]:
    with PageFile(path) as pages:
        return {
            name: {bytes(key): bytes(value) for key, value in pages.rows(name)} for name in NAMES
        }


def test_a_whole_file_has_no_problems_and_all_rows(tmp_path: Path) -> None:
    folder = str(tmp_path / "e")
    rows = fill(folder, 1)
    with PageFile(folder) as pages:
        assert list(pages.problems(NAMES)) == []
        assert sorted(pages.databases()) == sorted(NAMES)
    assert read(folder) == rows
    with PageFile(folder) as pages:
        assert dict(pages.rows("small")) == rows["small"]
        assert pages.lost_ranges("small") == []


@pytest.mark.timeout(120)
def test_flipped_bytes_never_make_it_fail_and_cost_little(tmp_path: Path) -> None:
    folder = str(tmp_path / "e")
    rows = fill(folder, 2)
    path = os.path.join(folder, "data.mdb")
    whole = Path(path).read_bytes()
    rng = random.Random(SEED)
    print("seed", SEED)
    for _ in range(250):
        at, by = rng.randrange(len(whole)), rng.randrange(1, 256)
        harmed = bytearray(whole)
        harmed[at] ^= by
        Path(path).write_bytes(harmed)
        with PageFile(path) as pages:
            sentences = list(pages.problems(NAMES))
        assert all(isinstance(sentence, str) and sentence for sentence in sentences)
        found = read(path)
        for name in NAMES:
            missing = {k for k, v in rows[name].items() if found[name].get(k) != v}
            assert len(missing) <= 120, f"byte {at} ^ {by}: {len(missing)} rows of {name} are gone"
            if len(missing) > 1:
                assert sentences, f"byte {at} ^ {by} loses {len(missing)} rows and is not told"


@pytest.mark.parametrize("length", [0, 1, 100, 4096, 5000, 8192, 12_288, 100_000])
def test_cut_files_are_told(tmp_path: Path, length: int) -> None:
    folder = str(tmp_path / "e")
    fill(folder, 3)
    path = os.path.join(folder, "data.mdb")
    os.truncate(path, length)
    with PageFile(path) as pages:
        assert list(pages.problems(NAMES))
    read(path)
