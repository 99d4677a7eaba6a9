"""Places with files: a folder of this machine, and a volume over the control socket.

The volume is one process with loopback transport: for logic tests.  test_file_commands.py has the
real thing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpifs.job.control import ControlClient, ControlServer
from mpifs.job.files import FileService
from mpifs.job.files_local import LocalFiles
from mpifs.job.files_protocol import Files
from mpifs.job.files_remote import RemoteFiles
from tests.job.file_content import CHUNK
from tests.job.namespaces import Hosts, may_make
from tests.vfs.loopback import LoopbackVolume


@pytest.fixture
def client(tmp_path: Path) -> Iterator[ControlClient]:
    """A client of the file service over a real Vfs."""
    volume = LoopbackVolume(tmp_path / "volume", workers=3, chunk_size=CHUNK)
    server = ControlServer(str(tmp_path / "run" / "control.sock"))
    FileService(volume.open()).register(server)
    server.start()
    with ControlClient(server.path) as connected:
        yield connected
    server.close()
    volume.close()


@pytest.fixture(params=["local", "remote"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    """Both kinds of Files; paths begin with /."""
    if request.param == "local":
        (tmp_path / "local").mkdir()
        return LocalFiles(os.fsencode(tmp_path / "local"))
    return RemoteFiles(request.getfixturevalue("client"))


@pytest.fixture
def remote(client: ControlClient) -> RemoteFiles:
    """Files of the volume."""
    return RemoteFiles(client)


@pytest.fixture
def local(tmp_path: Path) -> LocalFiles:
    """Files of a folder of this machine."""
    (tmp_path / "local").mkdir(exist_ok=True)
    return LocalFiles(os.fsencode(tmp_path / "local"))


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Three hosts; what cannot be made where namespaces are allowed is an error."""
    if not may_make():
        pytest.skip("network namespaces need root and iproute2: three hosts cannot be made here")
    made = Hosts()
    try:
        made.make()
        yield made
    finally:
        made.remove()
