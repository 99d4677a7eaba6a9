"""The volume of `mpifs run`: the one that is there, or one that is made, perhaps to be removed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator

from mpifs.core.errors import FormatError, InUseError, StartError
from mpifs.job import launch, processes, run_scratch
from mpifs.job.config import JobConfig
from mpifs.job.folder import VolumeFolder, is_volume
from mpifs.job.make import Geometry, check_place, made_on_first_use, make_volume
from mpifs.job.processes import Process

_MARK = "scratch"  # in the run folder of a volume that was made to be removed.


@contextlib.contextmanager
def volume_for(
    path: str, geometry: Geometry, *, scratch: bool
) -> Iterator[tuple[VolumeFolder, str]]:
    """The volume at `path`, made if there is none, and what is to be removed with the job.  One
    that was made goes again when the block fails before the volume was served.

    Raises FormatError when a `scratch` volume cannot be made because the folder holds another, or
    anything else; nothing is changed then.
    """
    if not scratch:
        with made_on_first_use(path, geometry) as folder:
            yield folder, ""
        return
    place = VolumeFolder(os.path.realpath(path))
    mark = os.path.join(place.run, _MARK)
    if is_volume(path):
        _clear_forgotten(place, path, mark)
    geometry.check()
    check_place(place, path)
    removal = run_scratch.CONTENTS if os.path.isdir(path) else run_scratch.ALL
    config = JobConfig(job="", volume=place.path, mountpoint="", workers=0, removal=removal)
    try:
        os.makedirs(place.run, mode=0o700, exist_ok=True)
        with open(mark, "w", encoding="ascii") as file:
            maker = list(processes.this_process())
            json.dump({"boot": processes.boot_id(), "maker": maker, "removal": removal}, file)
        yield make_volume(path, geometry), removal
    except BaseException as error:
        log = _keep_log(place) if isinstance(error, StartError) else ""
        run_scratch.remove(config)
        if log:
            raise StartError(str(error).replace(place.log, log)) from None
        raise


def _clear_forgotten(folder: VolumeFolder, said: str, mark: str) -> None:
    """Removes a scratch volume whose job was cut off together with the machine."""
    with launch.hold(folder):
        if not os.path.exists(mark):
            raise FormatError(
                f"{said} holds a volume already, and --scratch removes only what it has made; "
                "choose another folder, or leave --scratch out"
            )
        maker = _maker_of(mark)
        if maker is not None and maker.is_alive:
            raise InUseError(f"{said} is in use by process {maker.pid}, which has just made it")
    run_scratch.remove(JobConfig("", folder.path, "", 0, removal=run_scratch.CONTENTS))


def clear_unserved(folder: VolumeFolder, maker: Process) -> None:
    """Removes the scratch volume that `maker` has made, if it was killed before it served it.

    Requires: it has ended.
    """
    mark = os.path.join(folder.run, _MARK)
    if _maker_of(mark) != maker:
        return
    with open(mark, "rb") as file:
        removal = str(json.load(file).get("removal", ""))
    with launch.hold(folder):  # it clears what there was of a job.
        pass
    run_scratch.remove(JobConfig("", folder.path, "", 0, removal=removal))


def _maker_of(mark: str) -> Process | None:
    """The process that made a scratch volume, unless the machine was booted since."""
    with contextlib.suppress(OSError, ValueError, AttributeError), open(mark, "rb") as file:
        noted = json.load(file)
        if noted.get("boot") == processes.boot_id():
            return processes.from_json(noted.get("maker"))
    return None


def _keep_log(folder: VolumeFolder) -> str:
    """Puts the log of a start that failed where it survives its volume; the path, or ""."""
    with contextlib.suppress(OSError):
        if os.path.getsize(folder.log):
            descriptor, path = tempfile.mkstemp(prefix="mpifs-run-", suffix=".log")
            os.close(descriptor)
            shutil.copyfile(folder.log, path)
            return path
    return ""
