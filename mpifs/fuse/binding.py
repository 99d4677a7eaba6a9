"""The only file that imports the FUSE bindings: mfusepy for libfuse 3, fusepy for libfuse 2.

The bindings find and load the library and know its structures.  Their `FUSE` classes are left
aside: both lose data through holes in their wrappers (rename flags, UTIME_NOW and UTIME_OMIT,
names that are not UTF-8, file handles of ftruncate; PITFALLS section 1), copy every buffer, and
mount through `fuse_main_real`, which daemonises, changes the directory and takes the signals.
mpifs fills the table of callbacks itself and drives the session from its own threads.

Every callback gets pointers as plain addresses, which costs half of what ctypes pointers cost, and
paths as bytes or None.  A process uses one binding; `load` says which one.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from ctypes.util import find_library
from typing import Any, Final

from mpifs.core.errors import StartError
from mpifs.fuse.request import Buffer
from mpifs.fuse.session import Session

_INT, _UINT, _SIZE, _OFF = ctypes.c_int, ctypes.c_uint, ctypes.c_size_t, ctypes.c_longlong
_PATH, _PTR, _DEV = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_ulonglong

_BOTH: Final[dict[str, tuple[Any, ...]]] = {
    "readlink": (_INT, _PATH, _PTR, _SIZE),
    "mknod": (_INT, _PATH, _UINT, _DEV),
    "mkdir": (_INT, _PATH, _UINT),
    "unlink": (_INT, _PATH),
    "rmdir": (_INT, _PATH),
    "symlink": (_INT, _PATH, _PATH),
    "link": (_INT, _PATH, _PATH),
    "open": (_INT, _PATH, _PTR),
    "read": (_INT, _PATH, _PTR, _SIZE, _OFF, _PTR),
    "write": (_INT, _PATH, _PTR, _SIZE, _OFF, _PTR),
    "statfs": (_INT, _PATH, _PTR),
    "flush": (_INT, _PATH, _PTR),
    "release": (_INT, _PATH, _PTR),
    "fsync": (_INT, _PATH, _INT, _PTR),
    "setxattr": (_INT, _PATH, _PATH, _PTR, _SIZE, _INT),
    "getxattr": (_INT, _PATH, _PATH, _PTR, _SIZE),
    "listxattr": (_INT, _PATH, _PTR, _SIZE),
    "removexattr": (_INT, _PATH, _PATH),
    "opendir": (_INT, _PATH, _PTR),
    "releasedir": (_INT, _PATH, _PTR),
    "fsyncdir": (_INT, _PATH, _INT, _PTR),
    "create": (_INT, _PATH, _UINT, _PTR),
    "ioctl": (_INT, _PATH, _UINT, _PTR, _PTR, _UINT, _PTR),
    "fallocate": (_INT, _PATH, _INT, _OFF, _OFF, _PTR),
}
_PROTOTYPES: Final[dict[int, dict[str, tuple[Any, ...]]]] = {
    2: _BOTH
    | {
        "getattr": (_INT, _PATH, _PTR),
        "fgetattr": (_INT, _PATH, _PTR, _PTR),
        "rename": (_INT, _PATH, _PATH),
        "chmod": (_INT, _PATH, _UINT),
        "chown": (_INT, _PATH, _UINT, _UINT),
        "truncate": (_INT, _PATH, _OFF),
        "ftruncate": (_INT, _PATH, _OFF, _PTR),
        "utimens": (_INT, _PATH, _PTR),
        "readdir": (_INT, _PATH, _PTR, _PTR, _OFF, _PTR),
        "init": (_PTR, _PTR),
    },
    3: _BOTH
    | {
        "getattr": (_INT, _PATH, _PTR, _PTR),
        "rename": (_INT, _PATH, _PATH, _UINT),
        "chmod": (_INT, _PATH, _UINT, _PTR),
        "chown": (_INT, _PATH, _UINT, _UINT, _PTR),
        "truncate": (_INT, _PATH, _OFF, _PTR),
        "utimens": (_INT, _PATH, _PTR, _PTR),
        "readdir": (_INT, _PATH, _PTR, _PTR, _OFF, _PTR, _INT),
        "init": (_PTR, _PTR, _PTR),
        "lseek": (_OFF, _PATH, _OFF, _INT, _PTR),
        "copy_file_range": (
            ctypes.c_ssize_t, _PATH, _PTR, _OFF, _PATH, _PTR, _OFF, _SIZE, _INT,
        ),
    },
}  # fmt: skip

_FILLER = {
    2: ctypes.CFUNCTYPE(_INT, _PTR, _PATH, _PTR, _OFF),
    3: ctypes.CFUNCTYPE(_INT, _PTR, _PATH, _PTR, _OFF, _INT),
}

# Of libfuse 3's fuse_conn_info.want.
CAP_SPLICE = (1 << 7) | (1 << 8) | (1 << 9)
CAP_AUTO_INVAL_DATA = 1 << 12
CAP_WRITEBACK = 1 << 16
CAP_HANDLE_KILLPRIV = 1 << 20

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
        self.file_info: Any = module.fuse_file_info
        self.fh_offset = int(module.fuse_file_info.fh.offset)
        self.stat: Any = module.c_stat
        self.statvfs: Any = module.c_statvfs
        self.filler = _FILLER[major]
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
        buf = ctypes.POINTER(Buffer)
        self._new = self._versioned("fuse_new", "FUSE_3.1" if self.major == 3 else "FUSE_2.6")
        self._new.restype = ptr
        lib.fuse_get_session.restype = ptr
        lib.fuse_get_session.argtypes = [ptr]
        lib.fuse_destroy.argtypes = [ptr]
        lib.fuse_session_exit.argtypes = [ptr]
        lib.fuse_session_exited.argtypes = [ptr]
        lib.fuse_session_loop.argtypes = [ptr]
        lib.fuse_opt_free_args.argtypes = [args]
        off = ctypes.c_longlong
        lib.fuse_lowlevel_notify_inval_inode.argtypes = [ptr, ctypes.c_uint64, off, off]
        if self.major == 3:
            self._new.argtypes = [args, ptr, ctypes.c_size_t, ptr]
            lib.fuse_mount.argtypes = [ptr, ctypes.c_char_p]
            lib.fuse_unmount.argtypes = [ptr]
            lib.fuse_invalidate_path.argtypes = [ptr, ctypes.c_char_p]
            lib.fuse_session_fd.argtypes = [ptr]
            lib.fuse_session_receive_buf.argtypes = [ptr, buf]
            lib.fuse_session_process_buf.argtypes = [ptr, buf]
        else:
            self._new.argtypes = [ptr, args, ptr, ctypes.c_size_t, ptr]
            lib.fuse_mount.restype = ptr
            lib.fuse_mount.argtypes = [ctypes.c_char_p, args]
            lib.fuse_unmount.argtypes = [ctypes.c_char_p, ptr]
            lib.fuse_chan_bufsize.restype = ctypes.c_size_t
            lib.fuse_chan_bufsize.argtypes = [ptr]
            lib.fuse_chan_fd.argtypes = [ptr]
            lib.fuse_session_receive_buf.argtypes = [ptr, buf, ctypes.POINTER(ptr)]
            lib.fuse_session_process_buf.argtypes = [ptr, buf, ptr]

    def _table(self, callbacks: Mapping[str, Callable[..., int]]) -> tuple[Any, list[Any]]:
        """struct fuse_operations with these callbacks, and what must stay alive with it."""
        structure: Any = self.module.fuse_operations
        if self.major == 2:
            # fusepy's structure ends at ioctl, libfuse 2.9's goes on.
            extra = ["poll", "write_buf", "read_buf", "flock", "fallocate"]
            fields = tuple((name, ctypes.c_void_p) for name in extra)
            structure = type("fuse_operations_29", (structure,), {"_fields_": fields})
        table = structure()
        kept: list[Any] = [table]
        for name, prototype in _PROTOTYPES[self.major].items():
            call = callbacks.get(name)
            if call is None:
                continue
            function = ctypes.CFUNCTYPE(*prototype)(call)
            kept.append(function)
            place = ctypes.c_void_p.from_buffer(table, getattr(structure, name).offset)
            place.value = ctypes.cast(function, ctypes.c_void_p).value
        if self.major == 2:
            table.flag_nullpath_ok = 1
            table.flag_nopath = 1
            table.flag_utime_omit_ok = 1
        return table, kept

    def mount(
        self,
        mountpoint: bytes,
        words: Sequence[str],
        callbacks: Mapping[str, Callable[..., int]],
    ) -> Session:
        """Mounts and returns the session, whose requests nobody answers yet.  Raises StartError."""
        escaped = (word.replace("\\", "\\\\").replace(",", "\\,") for word in words)
        argv = [b"mpifs", b"-o", os.fsencode(",".join(escaped))]
        table, kept = self._table(callbacks)
        args = _Args(len(argv), (ctypes.c_char_p * (len(argv) + 1))(*argv, None), 0)
        size = ctypes.sizeof(table)
        address = ctypes.addressof(table)
        lib = self.library
        channel: int | None = None
        if self.major == 3:
            handle = self._new(ctypes.byref(args), address, size, None)
            mounted = bool(handle) and lib.fuse_mount(handle, mountpoint) == 0
        else:
            channel = lib.fuse_mount(mountpoint, ctypes.byref(args))
            handle = (
                self._new(channel, ctypes.byref(args), address, size, None) if channel else None
            )
            mounted = bool(handle)
        if args.allocated:
            lib.fuse_opt_free_args(ctypes.byref(args))
        if not mounted:
            if handle and self.major == 3:
                lib.fuse_destroy(handle)
            elif channel:
                lib.fuse_unmount(mountpoint, channel)
            raise StartError(
                f"libfuse {self.version} could not mount on {os.fsdecode(mountpoint)}: its own "
                "message is in the log; is /dev/fuse usable and the folder yours?"
            )
        return Session(self.library, self.major, handle, channel, mountpoint, kept)


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
