"""What is agreed with the kernel at INIT beyond what the library knows.

HANDLE_KILLPRIV_V2 (Linux 5.12; libfuse 3.14 does not know it): the file system takes set-id bits
off a file that somebody without CAP_FSETID writes or truncates.  Then the kernel remembers of an
inode that it has no `security.capability`, instead of asking before each write.
Numbers: include/uapi/linux/fuse.h, struct fuse_init_in and fuse_init_out.
"""

from __future__ import annotations

import struct

HANDLE_KILLPRIV_V2 = 1 << 28
_MAJOR = 7
_IN_FLAGS_AT = 40 + 12  # behind fuse_in_header: major, minor, max_readahead, flags
_OUT_FLAGS_AT = 16 + 12  # behind fuse_out_header: the same
_FLAGS = struct.Struct("=I")
_ANSWER = struct.Struct("=IiQI")
"""fuse_out_header, and the major version behind it."""


def agreed(asked: bytes, answer: bytes) -> bytes:
    """The answer to INIT with HANDLE_KILLPRIV_V2 if the kernel offers it; else as it was."""
    if len(asked) < _IN_FLAGS_AT + _FLAGS.size or len(answer) < _OUT_FLAGS_AT + _FLAGS.size:
        return answer
    _, error, _, major = _ANSWER.unpack_from(answer)
    (offered,) = _FLAGS.unpack_from(asked, _IN_FLAGS_AT)
    if error or major != _MAJOR or not offered & HANDLE_KILLPRIV_V2:
        return answer
    whole = bytearray(answer)
    (flags,) = _FLAGS.unpack_from(whole, _OUT_FLAGS_AT)
    _FLAGS.pack_into(whole, _OUT_FLAGS_AT, flags | HANDLE_KILLPRIV_V2)
    return bytes(whole)
