"""One run: makes the places, goes through the phases in turn and again, clears everything away.

Interleaved: a repeat is all limits and then, phase by phase, all places, each time beginning with
another one; so what else goes on on the machine meets all of them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import signal
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import IO

from mpifs import __version__
from mpifs.bench import places as bench_places
from mpifs.bench.limits import Limits
from mpifs.bench.phases import DISK, FUSE, LIMIT_TITLES, Phase, needed_limits
from mpifs.bench.places import Place, check_folder, check_room, folder_in, volume_around
from mpifs.bench.plan import Plan
from mpifs.bench.processes import Drivers, Mark, MpiWorld, NullMount
from mpifs.bench.report import Document, figure, ratio_rows, round_get, row
from mpifs.bench.stage import Stage, rest
from mpifs.core.checksum import name_of
from mpifs.core.errors import InUseError, PosixError
from mpifs.core.limits import BENCH_BUSY_S, UNMOUNT_RETRY_S
from mpifs.core.types import ChecksumKind
from mpifs.fuse.options import MountOptions
from mpifs.job import assemble_mount, stop
from mpifs.job import config as job_config
from mpifs.job.folder import VolumeFolder, is_volume
from mpifs.job.make import Geometry
from mpifs.job.mounts import mount_at, mounts_of
from mpifs.job.options import parse_options
from mpifs.job.signals import SIGNALS, term_as_interrupt

Tell = Callable[[str, int, int], None]
"""Called with what comes next, its number and how many there are."""

_PAUSES = 5  # first requests after idle: one after the long rest, the others after short ones.
_ARCHIVE_FILES = 1500
_ARCHIVE_FILES_QUICK = 60


def measure(
    names: Sequence[str],
    plan: Plan,
    phases: tuple[Phase, ...],
    options: list[str],
    scratch: str,
    tell: Tell,
) -> Document:
    """Measures volumes, mounts and folders side by side; the document of the run.

    `options` are those of `mpifs mount` for a volume that is not mounted; `scratch` is a folder on
    the disk whose limits count, "" for that of the first volume.  Nothing is left behind, whatever
    happens.  Raises OSError with a sentence, KeyboardInterrupt.
    """
    stack = ExitStack()
    with term_as_interrupt():
        try:
            return _Run(stack, plan, phases, tell).run(names, options, scratch)
        finally:
            with _undisturbed():
                stack.close()


class _Run:
    """What belongs to one run.  `stack` undoes everything, the last thing first."""

    def __init__(self, stack: ExitStack, plan: Plan, phases: tuple[Phase, ...], tell: Tell) -> None:
        self._stack = stack
        self._plan = plan
        self._phases = phases
        self._tell = tell
        self._mark = stack.enter_context(Mark())
        self._log: IO[bytes] = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        self._limit_values: dict[str, list[float]] = {}
        self._values: dict[str, dict[str, list[float]]] = {phase.name: {} for phase in phases}
        self._options: list[str] = []
        self._mpi = ""
        self._library = ""

    def run(self, names: Sequence[str], options: list[str], scratch: str) -> Document:
        """Makes the places, measures, and sums up."""
        began = time.time()
        load = os.getloadavg()[0]
        scratch = self._stack.enter_context(folder_in(_scratch_in(names, scratch)))
        self._tell("preparing", 0, 0)
        targets = [self._target(name, options, scratch) for name in names]
        places = [*targets, *self._limit_places(scratch)]
        for place in places:
            if place.name != FUSE:
                check_room(place.folder, self._plan.room)
        drivers = Drivers(self._mark, self._log)
        self._stack.callback(drivers.close)
        has_volume = any(place.volume is not None for place in targets)
        wanted = needed_limits(self._phases) if has_volume else ()
        limits = Limits(self._plan, drivers, self._world(wanted), scratch)
        archive = _make_archive(scratch, self._plan)
        stages = [Stage(place, drivers, self._plan, archive) for place in places]
        self._measure(stages, limits, wanted)
        self._rest(stages)
        return self._document(targets, began, load)

    # Places

    def _target(self, name: str, options: list[str], scratch: str) -> Place:
        base, volume = os.path.abspath(name), None
        if is_volume(base):
            volume = VolumeFolder(os.path.realpath(base))
            base = self._mountpoint_of(volume, options, scratch)
        else:
            base = check_folder(name, f"make a volume with: mpifs mkfs {name}")
            volume = volume_around(base)
            if options and volume is not None:
                raise InUseError(f"{name} is mounted already: -o has no effect on it")
        folder = self._stack.enter_context(folder_in(base))
        label = os.path.abspath(name) if name in LIMIT_TITLES else name
        place = Place(label, folder, volume=volume)
        if volume is not None:
            self._learn(place, volume)
        return place

    def _mountpoint_of(self, volume: VolumeFolder, options: list[str], scratch: str) -> str:
        """Where a volume is mounted; if it is not, that is done for the run."""
        there = mounts_of(volume.path)
        if there:
            if options:
                raise InUseError(f"{volume.path} is mounted already: -o has no effect on it")
            return there[-1].mountpoint
        mountpoint = tempfile.mkdtemp(prefix="mnt-", dir=scratch)
        request = assemble_mount.MountRequest(
            volume.path, mountpoint, options, [], "", "auto", Geometry()
        )
        self._stack.callback(_unmount, mountpoint)
        assemble_mount.mount(request, foreground=False)
        return mountpoint

    def _learn(self, place: Place, volume: VolumeFolder) -> None:
        """The limits are those of the first volume's geometry and options."""
        facts = bench_places.know_processes(place)
        if self._options or self._mpi:
            return
        config = job_config.read(volume)
        self._options = [word for word in config.options if MountOptions.knows(word)]
        self._mpi = config.mpi or "auto"
        kinds = {name_of(kind): kind for kind in ChecksumKind}
        self._plan = replace(
            self._plan,
            workers=int(str(facts["workers"])),
            chunk=int(str(facts["chunk_size"])),
            checksum=kinds[str(facts["checksum"])],
            is_relaxed=parse_options(config.options, volume.path).is_relaxed,
        )

    def _limit_places(self, scratch: str) -> list[Place]:
        mountpoint = os.path.join(scratch, "null")
        os.mkdir(mountpoint)
        mount = NullMount(self._mark, self._log, mountpoint, self._options)
        self._stack.callback(mount.close)
        inside = os.path.join(mountpoint, "work")
        os.mkdir(inside)
        disk = os.path.join(scratch, "disk")
        os.mkdir(disk)
        return [
            Place(FUSE, inside, keeps_data=False, master=mount.pid),
            Place(DISK, disk),
        ]

    def _world(self, wanted: Sequence[str]) -> MpiWorld | None:
        if not any(name.startswith("mpi_") for name in wanted):
            return None
        world = MpiWorld(self._mark, self._log, self._plan.workers, self._mpi)
        self._stack.callback(world.close)
        self._library = f"{world.launcher.kind} {world.launcher.version}"
        return world

    # Measuring

    def _measure(self, stages: list[Stage], limits: Limits, wanted: Sequence[str]) -> None:
        timed = [phase for phase in self._phases if phase.run is not None]
        total = self._plan.repeats * (len(wanted) + len(timed) * len(stages))
        done = 0
        for repeat in range(self._plan.repeats):
            for name in wanted:
                self._tell(f"{LIMIT_TITLES[name]} ({repeat + 1})", done, total)
                self._limit_values.setdefault(name, []).append(limits.measure(name))
                done += 1
            for number, phase in enumerate(timed):
                first = (repeat + number) % len(stages)
                for stage in stages[first:] + stages[:first]:
                    place = stage.place
                    where = LIMIT_TITLES.get(place.name, place.name)
                    self._tell(f"{phase.title}: {where} ({repeat + 1})", done, total)
                    self._note(phase, place, phase.run(stage) if phase.run else None)
                    done += 1

    def _note(self, phase: Phase, place: Place, value: float | None) -> None:
        if value is not None:
            self._values[phase.name].setdefault(place.name, []).append(value)

    def _rest(self, stages: list[Stage]) -> None:
        """What is measured once, at the end."""
        by_name = {phase.name: phase for phase in self._phases if phase.run is None}
        for stage in stages:
            for name, value in zip(
                ("memory_master", "memory_worker"), stage.place.memory_mib(), strict=True
            ):
                if name in by_name:
                    self._note(by_name[name], stage.place, value)
        if "idle_cpu" not in by_name and "first_request" not in by_name:
            return
        pauses = [self._plan.idle_s] + [min(2.0, self._plan.idle_s / 4)] * (_PAUSES - 1)
        for number, pause_s in enumerate(pauses):
            self._tell(f"idle for {pause_s:g} s", number, len(pauses))
            shares = rest(stages, pause_s, is_first=number == 0)
            for stage, share in zip(stages, shares, strict=True):
                if number == 0 and "idle_cpu" in by_name:
                    self._note(by_name["idle_cpu"], stage.place, share)
                if "first_request" in by_name:
                    self._note(by_name["first_request"], stage.place, stage.first_request())
            if "first_request" not in by_name:
                return

    # Result

    def _document(self, targets: list[Place], began: float, load: float) -> Document:
        limits = dict(self._limit_values)
        for trip, name in (("mpi_round", "round_get"), ("mpi_round_chunk", "round_get_chunk")):
            if trip in limits and "lmdb_rate" in limits:
                limits[name] = round_get(limits[trip], limits["lmdb_rate"])
        names = {place.name: place.volume is not None for place in targets}
        rows = [row(phase, names, self._values[phase.name], limits) for phase in self._phases]
        plan = self._plan
        return {
            "version": 1,
            "mpifs": __version__,
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
            "seconds": round(time.time() - began, 1),
            "machine": {
                "processors": os.cpu_count(),
                "kernel": platform.release(),
                "python": platform.python_version(),
                "mpi": self._library,
                "load_before": round(load, 2),
                "load_after": round(os.getloadavg()[0], 2),
            },
            "settings": {
                "size": plan.size,
                "files": plan.files,
                "repeats": plan.repeats,
                "idle_seconds": plan.idle_s,
                "workers": plan.workers,
                "chunk_size": plan.chunk,
                "checksum": name_of(plan.checksum),
                "mount_options": self._options,
            },
            "targets": [
                {"name": place.name, "volume": place.volume.path if place.volume else None}
                for place in targets
            ],
            "phases": rows,
            "ratios": ratio_rows(rows, limits),
            "limits": {name: figure(found) for name, found in limits.items()},
        }


def _unmount(mountpoint: str) -> None:
    """Ends a mount of the run's own.  Raises PosixError(EBUSY) if a stranger stays in it."""
    deadline = time.monotonic() + BENCH_BUSY_S
    while (mount := mount_at(mountpoint)) is not None and mount.is_ours:
        try:
            stop.unmount(mountpoint)
        except PosixError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(UNMOUNT_RETRY_S)


def _scratch_in(names: Sequence[str], scratch: str) -> str:
    """The folder in which the limits get theirs: on the disk of the first volume's stores."""
    if scratch:
        return check_folder(scratch)
    for name in names:
        path = os.path.abspath(name)
        around = volume_around(path) if os.path.isdir(path) else None
        store = os.path.realpath(path) if is_volume(path) else around.path if around else ""
        for folder in (os.path.dirname(store), store) if store else ():
            if os.access(folder, os.W_OK) and os.stat(folder).st_dev == _disk_of(store):
                return folder
    return tempfile.gettempdir()


def _disk_of(store: str) -> int:
    """Number of the file system on which a volume's first chunk store lies."""
    worker = VolumeFolder(store).store(1)
    return os.stat(worker if os.path.isdir(worker) else store).st_dev


def _make_archive(scratch: str, plan: Plan) -> tuple[str, int]:
    """A tar of Python's own sources, and how many files it has."""
    most = _ARCHIVE_FILES_QUICK if plan.is_quick else _ARCHIVE_FILES
    path, count = os.path.join(scratch, "tree.tar"), 0
    library = sysconfig.get_paths()["stdlib"]
    with tarfile.open(path, "w") as archive:
        for folder, folders, files in os.walk(library):
            skipped = {"site-packages", "dist-packages", "__pycache__"}
            folders[:] = sorted(set(folders) - skipped)
            for name in sorted(files)[: most - count]:
                full = os.path.join(folder, name)
                archive.add(full, os.path.relpath(full, library), recursive=False)
                count += 1
    return path, count


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C does not stop the clearing away, which is bounded itself."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        for number in signal.sigpending().intersection(SIGNALS):
            signal.sigtimedwait({number}, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
