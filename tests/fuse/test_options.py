"""Parsing of -o words."""

from __future__ import annotations

import pytest

from mpifs.core.errors import FormatError
from mpifs.fuse.options import MountOptions


def test_defaults() -> None:
    options = MountOptions.parse("")
    assert options == MountOptions.parse(["rw", "defaults", "default_permissions", "relatime"])
    assert (options.threads, options.library, options.writeback) == (8, 0, False)
    assert options.kernel_words(as_root=False) == [
        "fsname=mpifs",
        "subtype=mpifs",
        "default_permissions",
    ]
    assert options.kernel_words(as_root=True)[-2:] == ["suid", "dev"]


def test_values_and_order() -> None:
    options = MountOptions.parse("ro,fuse=2,threads=3,attr_timeout=0.5,fsname=v w,nosuid,writeback")
    assert (options.read_only, options.library, options.threads) == (True, 2, 3)
    assert (options.attr_timeout_s, options.fsname, options.writeback) == (0.5, "v w", True)
    words = options.kernel_words(as_root=True)
    assert words.index("suid") < words.index("nosuid")
    assert not MountOptions.parse("ro,rw").read_only
    assert MountOptions.parse("noatime").noatime


@pytest.mark.parametrize(
    "word", ["bogus", "fuse=4", "threads=x", "threads=", "attr_timeout=-1", "attr_timeout=nan",
             "ro=1", "fsname", "commit=1", "FUSE=2", "threads=٣"],
)  # fmt: skip
def test_refusals_are_sentences(word: str) -> None:
    with pytest.raises(FormatError, match=r"mount option '[\w=.]+'"):
        MountOptions.parse(word)


def test_knows_only_its_own() -> None:
    assert MountOptions.knows("ro")
    assert MountOptions.knows("fuse=3")
    assert MountOptions.knows("x-systemd.automount")
    assert not MountOptions.knows("commit=0.1")


def test_commas_cannot_smuggle_options() -> None:
    with pytest.raises(FormatError):
        MountOptions.parse(["fsname=a,allow_other"])
