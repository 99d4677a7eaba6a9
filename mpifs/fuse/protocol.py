"""The kernel's FUSE protocol: numbers and structures of include/uapi/linux/fuse.h, version 7.

A request is IN_HEADER (40 bytes: length, opcode, unique, nodeid, uid, gid, pid, padding) and what
its opcode says; names end with NUL.  An answer is `OUT_HEADER` and what the request wants.
Numbers are the machine's own byte order.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

MAJOR = 7
MINOR = 39
"""What is spoken; both sides then keep to the lower minor version."""
MINOR_MIN = 23
"""Linux 3.15: the long answer to INIT, rename flags."""

IN_HEADER_BEGIN = struct.Struct("=2IQ")
IN_HEADER_END = struct.Struct("=Q4I")
"""IN_HEADER is received in two parts, so that the data of a WRITE come to lie behind 64 bytes."""
OUT_HEADER = struct.Struct("=IiQ")
HEADER_BYTES = IN_HEADER_BEGIN.size + IN_HEADER_END.size
assert HEADER_BYTES == 40
BODY_AT = IN_HEADER_END.size
"""Where in `Request.view` the structure of the opcode begins."""
PAGE_BYTES = 4096


class Opcode(IntEnum):
    """What is asked."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    IOCTL = 39
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47


class Init(IntFlag):
    """Flags of INIT that mpifs takes where the kernel offers them."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    """OPEN truncates; else the kernel truncates after it, and a killed opener leaves half."""
    EXPORT_SUPPORT = 1 << 4
    """LOOKUP of `.` and `..`: open_by_handle_at(2), NFS."""
    BIG_WRITES = 1 << 5
    HAS_IOCTL_DIR = 1 << 11
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    HANDLE_KILLPRIV_V2 = 1 << 28
    """The file system takes set-id bits off a file that somebody without CAP_FSETID writes or
    truncates.  Then the kernel remembers of an inode that it has no `security.capability`,
    instead of asking before each write."""

    INIT_EXT = 1 << 30
    """There are flags from bit 32 on (7.36)."""
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    """A file that is written past the page cache may be mapped by others (7.39, Linux 6.6)."""


INIT_IN = struct.Struct("=5I")
"""major, minor, max_readahead, flags, flags from bit 32 on (if INIT_EXT); more may follow."""
INIT_IN_OLD_BYTES = 16
"""Before 7.36 the last one is not there."""
INIT_OUT = struct.Struct("=4I2H2I2H2I24x")
"""major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran,
max_pages, map_alignment, flags2, max_stack_depth."""
assert INIT_OUT.size == 64

ENTRY_OUT = struct.Struct("=4Q2I" + "3Q3q10I")
"""nodeid, generation, entry_valid, attr_valid, their nanoseconds; struct fuse_attr: ino, size,
blocks, atime, mtime, ctime, their nanoseconds, mode, nlink, uid, gid, rdev, blksize, flags."""
ATTR_OUT = struct.Struct("=QII" + "3Q3q10I")
assert (ENTRY_OUT.size, ATTR_OUT.size) == (128, 104)

SETATTR_IN = struct.Struct("=2I3Q3Q3I5I")
"""valid, padding, fh, size, lock_owner, atime, mtime, ctime, their nanoseconds, mode, unused, uid,
gid, unused.  The times are signed in truth."""
assert SETATTR_IN.size == 88


class Valid(IntFlag):
    """Which fields of SETATTR_IN count."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8
    CTIME = 1 << 10
    KILL_SUIDGID = 1 << 11


MKNOD_IN = struct.Struct("=4I")
"""mode, rdev, umask, padding; also CREATE: flags, mode, umask, open flags."""
MKDIR_IN = struct.Struct("=2I")
OPEN_IN = struct.Struct("=2I")
"""flags, open flags."""
OPEN_KILL_SUIDGID = 1
OPEN_OUT = struct.Struct("=Q2I")
"""fh, flags, padding."""
DIRECT_IO = 1 << 0
KEEP_CACHE = 1 << 1
NO_FLUSH = 1 << 5

FH = struct.Struct("=Q")
"""RELEASE, FLUSH and their like begin with it; LINK's source, RENAME's folder and LSEEK's answer
are such a number, too."""
NUMBER_BYTES = FH.size
FH_FLAGS = struct.Struct("=QI")
"""FSYNC, FSYNCDIR: fh, flags (1: the data alone)."""
RENAME2_IN = struct.Struct("=QI4x")
READ_IN = struct.Struct("=2Q2I")
"""fh, offset, size, flags: also of WRITE, whose data stand behind WRITE_IN_BYTES."""
READ_IN_BYTES = WRITE_IN_BYTES = 40
WRITE_KILL_SUIDGID = 1 << 2
WRITE_OUT = struct.Struct("=I4x")
SIZE = struct.Struct("=I4x")
"""GETXATTR, LISTXATTR: room for the answer, 0 to ask for its length; that answer."""
SETXATTR_IN = struct.Struct("=2I")
FALLOCATE_IN = struct.Struct("=3QI4x")
LSEEK_IN = struct.Struct("=2QI4x")
COPY_IN = struct.Struct("=7Q")
"""fh, offset, nodeid of the target, its fh, its offset, length, flags."""
IOCTL_IN = struct.Struct("=Q2IQ2I")
"""fh, flags, command, argument, bytes in and out."""
IOCTL_OUT = struct.Struct("=i3I")
STATFS_OUT = struct.Struct("=5Q4I24x")
assert STATFS_OUT.size == 80

FORGET_ONE = struct.Struct("=2Q")
"""nodeid, lookups: of BATCH_FORGET, behind a count and padding."""
FORGET_COUNT = struct.Struct("=I4x")

DIRENT = struct.Struct("=2Q2I")
"""ino, offset of the next, length of the name, type; the name; padding to 8 bytes."""
DIRENT_BYTES = DIRENT.size
DIRENT_PLUS_BYTES = ENTRY_OUT.size + DIRENT.size

NOTIFY_INVAL_INODE = 2
NOTIFY_INVAL_ENTRY = 3
INVAL_INODE_OUT = struct.Struct("=Q2q")
"""nodeid, offset, length (0: to the end)."""
INVAL_ENTRY_OUT = struct.Struct("=Q2I")
"""nodeid of the folder, length of the name, flags; the name and NUL."""
