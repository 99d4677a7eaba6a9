"""Notes are replaced whole, and on a full disk written over the old ones."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from mpifs.notefile import write_note

LONG, SHORT = {"words": "much " * 20, "number": 123456}, {"number": 7}


def test_a_note_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    for is_durable in (True, False):
        for content in (LONG, SHORT):
            write_note(str(path), content, is_durable=is_durable)
            assert json.loads(path.read_text()) == content
            assert os.listdir(tmp_path) == ["note.json"]
            assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    path = tmp_path / "note.json"
    write_note(str(path), LONG, is_durable=True)
    real = os.open

    def full(name: Any, flags: int, *words: Any, **more: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(number, os.strerror(number))
        return real(name, flags, *words, **more)

    monkeypatch.setattr(os, "open", full)
    if number == errno.EIO:
        with pytest.raises(OSError) as caught:
            write_note(str(path), SHORT, is_durable=True)
        assert caught.value.errno == number
        assert json.loads(path.read_text()) == LONG
        return
    for content in (SHORT, LONG):
        write_note(str(path), content, is_durable=True)
        assert json.loads(path.read_text()) == content
    path.unlink()
    with pytest.raises(FileNotFoundError):
        write_note(str(path), SHORT, is_durable=True)
