"""The only file that imports the FUSE bindings: mfusepy for libfuse 3, fusepy for libfuse 2.

The bindings find and load the library.  It mounts, with the set-uid helper `fusermount` where the
user is not root, and unmounts; requests are served past it (dispatch.py).  Its high-level interface
knows files by path: two hard links are two kernel inodes, a file that is removed while open gets a
hidden name, and the bindings' classes lose data through holes in their wrappers (PITFALLS 1).
A process uses one binding; `load` says which one.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from ctypes.util import find_library
from typing import Any, Final

from mpifs.core.errors import StartError
from mpifs.fuse.session import Session

_NAMES: Final = {
    2: ("fuse", ("libfuse.so.2",), "fuse"),
    3: ("fuse3", ("libfuse3.so.3", "libfuse3.so.4"), "mfusepy"),
}


class _Args(ctypes.Structure):
    _fields_ = (
        ("argc", ctypes.c_int),
        ("argv", ctypes.POINTER(ctypes.c_char_p)),
        ("allocated", ctypes.c_int),
    )


def find(major: int) -> str | None:
    """Name or path of libfuse `major` here; find_library fails where ldconfig is missing."""
    short, files, _ = _NAMES[major]
    found = find_library(short)
    if found and not any(found.endswith(name) for name in files):
        found = None  # libfuse.so may be anything.
    for name in (found, *files):
        if name is None:
            continue
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return name
    return None


class Binding:
    """One loaded libfuse with the structures of its Python binding."""

    def __init__(self, major: int, module: Any) -> None:
        self.major = major
        self.module = module
        self.library: Any = module._libfuse
        version = int(self.library.fuse_version())
        self.version = (
            f"{version // 10}.{version % 10}"
            if version < 100
            else (f"{version // 100}.{version % 100}")
        )
        if int(self.version.partition(".")[0]) != major:
            raise StartError(
                f"{module.__name__} loaded libfuse {self.version}, not {major}: "
                "unset FUSE_LIBRARY_PATH"
            )
        self._declare()

    @property
    def name(self) -> str:
        """`mfusepy` or `fusepy`."""
        return "mfusepy" if self.major == 3 else "fusepy"

    def _versioned(self, name: str, version: str) -> Any:
        """A function at one version of the library's interface.

        dlsym gives libfuse 2's `fuse_new` of version 2.2, whose arguments are others.
        """
        find = getattr(ctypes.CDLL(None), "dlvsym", None)  # musl has none, nor versions.
        if find is not None:
            find.restype = ctypes.c_void_p
            find.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p]
            address = find(self.library._handle, name.encode(), version.encode())
            if address:
                return ctypes.CFUNCTYPE(ctypes.c_void_p)(address)
        return getattr(self.library, name)

    def _declare(self) -> None:
        lib, ptr, args = self.library, ctypes.c_void_p, ctypes.POINTER(_Args)
        lib.fuse_opt_free_args.argtypes = [args]
        if self.major == 3:
            self._new = self._versioned("fuse_new", "FUSE_3.1")
            self._new.restype = ptr
            self._new.argtypes = [args, ptr, ctypes.c_size_t, ptr]
            lib.fuse_get_session.restype = ptr
            lib.fuse_get_session.argtypes = [ptr]
            lib.fuse_session_fd.argtypes = [ptr]
            lib.fuse_mount.argtypes = [ptr, ctypes.c_char_p]
            lib.fuse_unmount.argtypes = [ptr]
            lib.fuse_destroy.argtypes = [ptr]
        else:
            lib.fuse_mount.restype = ptr
            lib.fuse_mount.argtypes = [ctypes.c_char_p, args]
            lib.fuse_unmount.argtypes = [ctypes.c_char_p, ptr]
            lib.fuse_chan_fd.argtypes = [ptr]

    def mount(self, mountpoint: bytes, words: Sequence[str]) -> Session:
        """Mounts and returns the session, whose requests nobody answers yet.  Raises StartError."""
        escaped = (word.replace("\\", "\\\\").replace(",", "\\,") for word in words)
        argv = [b"mpifs", b"-o", os.fsencode(",".join(escaped))]
        args = _Args(len(argv), (ctypes.c_char_p * (len(argv) + 1))(*argv, None), 0)
        lib = self.library
        if self.major == 3:
            table: Any = self.module.fuse_operations()  # no callbacks: nothing asks for any
            size = ctypes.sizeof(table)
            handle = self._new(ctypes.byref(args), ctypes.addressof(table), size, None)
            is_mounted = bool(handle) and lib.fuse_mount(handle, mountpoint) == 0
        else:
            handle = lib.fuse_mount(mountpoint, ctypes.byref(args))
            is_mounted = bool(handle)
        if args.allocated:
            lib.fuse_opt_free_args(ctypes.byref(args))
        if not is_mounted:
            if handle:
                lib.fuse_destroy(handle)
            raise StartError(
                f"libfuse {self.version} could not mount on {os.fsdecode(mountpoint)}: its own "
                "message is in the log; mpifs doctor says what is missing here"
            )
        if self.major == 3:
            device = lib.fuse_session_fd(lib.fuse_get_session(handle))
        else:
            device = lib.fuse_chan_fd(handle)

        def unmount() -> None:
            if self.major == 3:
                lib.fuse_unmount(handle)
                lib.fuse_destroy(handle)
            else:
                lib.fuse_unmount(mountpoint, handle)

        return Session(int(device), unmount)


_loaded: Binding | None = None


def load(major: int = 0) -> Binding:
    """Loads libfuse `major` (0: 3 where it is found, else 2) through its binding.

    Raises StartError with a sentence.  The first call in a process decides.
    """
    global _loaded  # noqa: PLW0603  a process has one libfuse
    if _loaded is not None:
        if major not in (0, _loaded.major):
            raise StartError(f"this process already uses libfuse {_loaded.major}")
        return _loaded
    for candidate in (major,) if major else (3, 2):
        path = find(candidate)
        if path is None:
            continue
        # The binding reads it at import; a full name wins over everything it would look for.
        before = os.environ.get("FUSE_LIBRARY_PATH")
        os.environ["FUSE_LIBRARY_PATH"] = path
        os.environ["FUSE_LIBRARY_NAME"] = _NAMES[candidate][0]
        try:
            module = _import(candidate)
        finally:
            if before is None:
                del os.environ["FUSE_LIBRARY_PATH"]
            else:
                os.environ["FUSE_LIBRARY_PATH"] = before
        _loaded = Binding(candidate, module)
        return _loaded
    wanted = f"libfuse {major}" if major else "libfuse 3 or 2"
    raise StartError(f"{wanted} was not found; install it (Debian: apt install fuse3)")


def _import(major: int) -> Any:
    try:
        if major == 3:
            import mfusepy as module
        else:
            import fuse as module
    except ImportError as error:
        raise StartError(
            f"{'mfusepy' if major == 3 else 'fusepy'} could not be loaded ({error}); "
            "pip install mpifs installs it"
        ) from error
    return module
