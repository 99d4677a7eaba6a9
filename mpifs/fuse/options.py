"""Options of the mount itself: the words of `-o` that FUSE and the kernel are to know."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from mpifs.core.errors import FormatError

THREADS_DEFAULT = 8
THREADS_MAX = 64
CACHE_TIMEOUT_S = 60.0
"""The kernel may keep names (also that there is none) and attributes: all changes come through it,
or it is told (notifier.py)."""

_PASSED_ON = frozenset(
    [
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "exec",
        "noexec",
        "sync",
        "async",
        "dirsync",
        "noatime",
        "nodiratime",
        "atime",
    ]
)
"""Flags that libfuse turns into mount(2) flags."""

_WITHOUT_EFFECT = frozenset(
    [
        "rw",
        "defaults",
        "default_permissions",
        "relatime",
        "auto",
        "noauto",
        "nofail",
        "user",
        "nouser",
        "_netdev",
        "big_writes",
        "nonempty",
    ]
)
"""Words that fstab and habit bring along: already so, or somebody else's business."""

_SWITCHES = {
    "ro": "read_only",
    "allow_other": "allow_other",
    "writeback": "writeback",
    "lowlatency": "low_latency",
}
_TEXTS = {"fsname": "fsname", "subtype": "subtype"}
_SECONDS = {"attr_timeout": "attr_timeout_s", "entry_timeout": "entry_timeout_s"}
_NUMBERS = {"fuse": ("library", 2, 3), "threads": ("threads", 1, THREADS_MAX)}


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What the kernel and libfuse are told.  `default_permissions` always holds.

    `library` is 2 or 3, or 0 for 3 where it is found, else 2.  `flags` go to mount(2) as they are.
    """

    read_only: bool = False
    allow_other: bool = False
    writeback: bool = False
    low_latency: bool = False
    fsname: str = "mpifs"
    subtype: str = "mpifs"
    attr_timeout_s: float = CACHE_TIMEOUT_S
    entry_timeout_s: float = CACHE_TIMEOUT_S
    library: int = 0
    threads: int = THREADS_DEFAULT
    flags: tuple[str, ...] = ()

    @classmethod
    def parse(cls, words: str | Iterable[str]) -> MountOptions:
        """Options from `a,b=c` or from single words.  Raises FormatError with a sentence."""
        options = cls()
        listed = words.split(",") if isinstance(words, str) else list(words)
        for word in (word.strip() for word in listed):
            if word:
                options = options._with(word)
        return options

    @staticmethod
    def knows(word: str) -> bool:
        """Whether a word is an option of the mount (else it is perhaps one of the volume)."""
        key, _, _ = word.partition("=")
        tables = (_PASSED_ON, _WITHOUT_EFFECT, _SWITCHES, _TEXTS, _SECONDS, _NUMBERS)
        return any(key in table for table in tables) or key.startswith(("x-", "comment"))

    def _but(self, changes: dict[str, Any]) -> MountOptions:
        return replace(self, **changes)

    def _with(self, word: str) -> MountOptions:
        key, has_value, value = word.partition("=")
        if not self.knows(word):
            raise FormatError(f"unknown mount option '{word}'; see `mpifs mount --help`")
        if key in _TEXTS or key in _SECONDS or key in _NUMBERS:
            if not value:
                raise FormatError(f"mount option '{key}' needs a value, as in {key}=…")
            return self._with_value(key, value)
        if has_value and not key.startswith(("x-", "comment")):
            raise FormatError(f"mount option '{key}' takes no value")
        if key in _SWITCHES:
            return self._but({_SWITCHES[key]: True})
        if key == "rw":
            return replace(self, read_only=False)
        if key in _PASSED_ON:
            return replace(self, flags=(*self.flags, key))
        return self

    def _with_value(self, key: str, value: str) -> MountOptions:
        if key in _TEXTS:
            if not value.isprintable() or "," in value or "\\" in value:
                raise FormatError(
                    f"mount option '{key}' must be printable, without commas or backslashes"
                )
            return self._but({_TEXTS[key]: value})
        if key in _SECONDS:
            try:
                seconds = float(value)
            except ValueError:
                seconds = -1.0
            if not 0 <= seconds <= 3600:
                raise FormatError(f"mount option '{key}' wants seconds from 0 to 3600, not {value}")
            return self._but({_SECONDS[key]: seconds})
        field, least, most = _NUMBERS[key]
        number = int(value) if value.isascii() and value.isdigit() else -1
        if not least <= number <= most:
            raise FormatError(f"mount option '{key}' wants a number from {least} to {most}")
        return self._but({field: number})

    @property
    def noatime(self) -> bool:
        """Whether reading must leave the access time alone (FUSE leaves that to mpifs)."""
        return "noatime" in self.flags

    def kernel_words(self, as_root: bool) -> list[str]:
        """The words for libfuse's mount; root's mounts honour set-id bits and devices."""
        words = [f"fsname={self.fsname}", f"subtype={self.subtype}", "default_permissions"]
        if self.allow_other:
            words.append("allow_other")
        if self.read_only:
            words.append("ro")
        flags = list(self.flags)
        if as_root:
            flags = ["suid", "dev", *flags]
        return words + flags
