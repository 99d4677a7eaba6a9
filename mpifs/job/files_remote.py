"""Files of a volume that is not mounted, asked from rank 0 over its control socket.

The other end is files.FileService.  Names of the calls and their arguments are written there.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

from mpifs.core.checksum import Buffer
from mpifs.core.errors import ProtocolError
from mpifs.core.limits import PIECE_BYTES
from mpifs.job.control import ControlClient
from mpifs.job.files_protocol import Attributes, OpenFile, Wanted, is_copied_xattr


def _attributes(row: list[int]) -> Attributes:
    """Attributes from the twelve numbers of a types.Stat as the service sends them."""
    ino, mode, nlink, uid, gid, rdev, size, blocks, _, atime_ns, mtime_ns, ctime_ns = row
    return Attributes(
        0, ino, mode, nlink, uid, gid, rdev, size, blocks, atime_ns, mtime_ns, ctime_ns
    )


def remote_layout(client: ControlClient, path: bytes) -> dict[str, Any]:
    """The layout of a file of a volume, page by page, in the shape of Files.layout."""
    found = client.call("files.layout", path=path, first=0)
    chunks = found["chunks"]
    following = found.pop("following")
    while following is not None:
        page = client.call("files.layout", path=path, first=following)
        chunks += page["chunks"]
        following = page["following"]
    return found


class RemoteOpenFile:
    """An OpenFile by a handle of rank 0, which closes it when the connection ends."""

    def __init__(self, client: ControlClient, handle: int) -> None:
        self._client = client
        self._handle = handle

    def _call(self, name: str, **args: int) -> dict[str, Any]:
        return self._client.call(name, handle=self._handle, **args)

    def attributes(self) -> Attributes:
        """See OpenFile."""
        return _attributes(self._call("files.stat_open")["stat"])

    def read_into(self, into: memoryview, offset: int) -> int:
        """See OpenFile."""
        into = into[:PIECE_BYTES]
        args = {"handle": self._handle, "offset": offset, "size": len(into)}
        return self._client.call_data("files.read", args, into=into)[1]

    def write(self, data: Buffer, offset: int) -> None:
        """See OpenFile."""
        left = memoryview(data)
        while left:
            piece = left[:PIECE_BYTES]
            args = {"handle": self._handle, "offset": offset}
            count = self._client.call_data("files.write", args, piece)[0]["count"]
            if not 0 < count <= len(piece):
                raise ProtocolError(f"a write of {len(piece)} bytes was answered with {count}")
            left, offset = left[count:], offset + count

    def seek(self, offset: int, whence: int) -> int:
        """See OpenFile."""
        return int(self._call("files.seek", offset=offset, whence=whence)["offset"])

    def truncate(self, size: int) -> None:
        """See OpenFile."""
        self._call("files.truncate", size=size)

    def close(self) -> None:
        """See OpenFile."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            self._client.call("files.close", handle=handle)


class RemoteFiles:
    """Files of the volume behind `client`; paths begin with / at the volume's root."""

    def __init__(self, client: ControlClient) -> None:
        self._client = client

    def stat(self, path: bytes, *, follow: bool = False) -> Attributes:
        """See Files."""
        return _attributes(self._client.call("files.stat", path=path, follow=follow)["stat"])

    def scan(self, path: bytes) -> Iterator[tuple[bytes, Attributes]]:
        """See Files."""
        handle = self._client.call("files.open_folder", path=path)["handle"]
        try:
            following = 0
            while following is not None:
                page = self._client.call("files.list", handle=handle, offset=following)
                for name, row in page["entries"]:
                    yield name, _attributes(row)
                following = page["following"]
        finally:
            self._client.call("files.close", handle=handle)

    def open(self, path: bytes, *, follow: bool = False) -> OpenFile:
        """See Files."""
        answer = self._client.call("files.open", path=path, follow=follow)
        return RemoteOpenFile(self._client, answer["handle"])

    def create(self, path: bytes, mode: int) -> OpenFile:
        """See Files."""
        answer = self._client.call("files.create", path=path, mode=mode)
        return RemoteOpenFile(self._client, answer["handle"])

    def mkdir(self, path: bytes, mode: int) -> None:
        """See Files."""
        self._client.call("files.mkdir", path=path, mode=mode)

    def mknod(self, path: bytes, mode: int, rdev: int) -> None:
        """See Files."""
        self._client.call("files.mknod", path=path, mode=mode, rdev=rdev)

    def symlink(self, target: bytes, path: bytes) -> None:
        """See Files."""
        self._client.call("files.symlink", path=path, target=target)

    def readlink(self, path: bytes) -> bytes:
        """See Files."""
        target = self._client.call("files.readlink", path=path)["target"]
        assert isinstance(target, bytes)
        return target

    def link(self, existing: bytes, path: bytes) -> None:
        """See Files."""
        self._client.call("files.link", path=existing, new=path)

    def rename(self, old: bytes, new: bytes) -> None:
        """See Files."""
        self._client.call("files.rename", path=old, new=new)

    def unlink(self, path: bytes) -> None:
        """See Files."""
        self._client.call("files.unlink", path=path)

    def rmdir(self, path: bytes) -> None:
        """See Files."""
        self._client.call("files.rmdir", path=path)

    def set_attributes(self, path: bytes, wanted: Wanted) -> None:
        """See Files."""
        self._client.call(
            "files.set_attributes",
            path=path,
            mode=wanted.mode,
            owner=wanted.owner,
            times_ns=wanted.times_ns,
        )

    def xattrs(self, path: bytes) -> dict[bytes, bytes]:
        """See Files."""
        names = self._client.call("files.list_xattrs", path=path)["names"]
        found = {}
        for name in filter(is_copied_xattr, names):
            try:
                answer = self._client.call("files.get_xattr", path=path, name=name)
            except OSError as error:
                if error.errno != errno.ENODATA:  # taken away meanwhile.
                    raise
            else:
                found[name] = answer["value"]
        return found

    def set_xattr(self, path: bytes, name: bytes, value: bytes) -> None:
        """See Files."""
        self._client.call_data("files.set_xattr", {"path": path, "name": name, "value": value})

    def layout(self, path: bytes) -> dict[str, Any]:
        """See Files."""
        return remote_layout(self._client, path)

    def sync(self) -> None:
        """See Files."""
        self._client.call("files.sync")
