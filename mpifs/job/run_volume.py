"""The volume of `mpifs run`: the one that is there, or one that is made, perhaps to be removed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator

from mpifs.core.errors import FormatError, StartError
from mpifs.job import launch, run_scratch
from mpifs.job.config import JobConfig
from mpifs.job.folder import VolumeFolder, is_volume
from mpifs.job.make import Geometry, made_on_first_use, make_volume

_MARK = "scratch"  # in the run folder of a volume that was made to be removed.


@contextlib.contextmanager
def volume_for(
    path: str, geometry: Geometry, *, scratch: bool
) -> Iterator[tuple[VolumeFolder, str]]:
    """The volume at `path`, made if there is none, and what is to be removed with the job.  One
    that was made goes again when the block fails before the volume was served.

    Raises FormatError when a `scratch` volume cannot be made because the folder holds another.
    """
    if not scratch:
        with made_on_first_use(path, geometry) as folder:
            yield folder, ""
        return
    place = VolumeFolder(os.path.realpath(path))
    mark = os.path.join(place.run, _MARK)
    if is_volume(path):
        _clear_forgotten(place, path, mark)
    removal = run_scratch.CONTENTS if os.path.isdir(path) else run_scratch.ALL
    config = JobConfig(job="", volume=place.path, mountpoint="", workers=0, removal=removal)
    try:
        os.makedirs(place.run, mode=0o700, exist_ok=True)
        with open(mark, "w", encoding="ascii"):
            pass
        yield make_volume(path, geometry), removal
    except FormatError:
        raise
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
    removal = run_scratch.CONTENTS
    run_scratch.remove(JobConfig("", folder.path, "", 0, removal=removal))


def _keep_log(folder: VolumeFolder) -> str:
    """Puts the log of a start that failed where it survives its volume; the path, or ""."""
    with contextlib.suppress(OSError):
        if os.path.getsize(folder.log):
            descriptor, path = tempfile.mkstemp(prefix="mpifs-run-", suffix=".log")
            os.close(descriptor)
            shutil.copyfile(folder.log, path)
            return path
    return ""
