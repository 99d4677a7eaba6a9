"""The status document of a volume, served or not."""

from __future__ import annotations

from mpifs.core.errors import InUseError, MpifsError
from mpifs.core.limits import STATUS_TIMEOUT_S
from mpifs.core.types import StoreEntry, StoreState
from mpifs.job import launch, report
from mpifs.job import state as job_state
from mpifs.job.control import ControlClient
from mpifs.job.folder import VolumeFolder
from mpifs.job.heal_memory import heal_at_rest
from mpifs.job.report import Document


def status_of(folder: VolumeFolder) -> Document:
    """Asks rank 0, or reads the volume at rest.

    Raises OSError: the volume cannot be read, or is starting or stopping just now.
    """
    state = job_state.read(folder)
    rank0 = job_state.process(state, "rank0")
    if rank0 is not None and state.get("state") == job_state.READY:
        with ControlClient(folder.socket, STATUS_TIMEOUT_S) as client:
            document = client.call("status")
        if state.get("restarts"):
            details = {"restarts": state["restarts"], "crash": state.get("crash", "")}
            document["details"] = {**document.get("details", {}), **details}
        return document
    if state.get("state") == job_state.RESTARTING and job_state.is_served(state):
        return _returning(folder, state)
    if job_state.is_served(state):
        raise InUseError(f"{folder.path} is {state.get('state')}; ask again in a moment")
    return _at_rest(folder, state)


def _returning(folder: VolumeFolder, state: job_state.State) -> Document:
    """A volume that has crashed and is just being restarted: nobody can be asked for figures."""
    from mpifs.index.volume import read_superblock

    roster = state.get("workers") or []
    unknown = {"pid": None, "chunks": None, "bytes": None, "free": None}
    rows = [{"id": w["id"], "state": "restarting", "host": w["host"], **unknown} for w in roster]
    keys = ("id", "state", "pid", "host", "chunks", "bytes", "free")
    return {
        "volume": report.geometry_part(read_superblock(folder.index), len(rows)),
        "mount": {"mountpoint": state.get("mountpoint"), "pid": None, "state": "restarting"},
        "workers": [{key: row[key] for key in keys} for row in rows],
        "files": None,
        "bytes": None,
        "details": {"reason": state.get("reason", "")},
    }


def _at_rest(folder: VolumeFolder, state: job_state.State) -> Document:
    """Reads index and stores.  A job that died is cleared first: its lock says nobody serves."""
    from mpifs.index.index import Index

    with launch.hold(folder):
        index = Index.open(folder.index, preallocate=False)
        try:
            counters = index.counters()
            volume = report.volume_part(index)
            entries = index.stores()
            rows = [_row(folder, entry, index.geometry.volume_uuid) for entry in entries]
        finally:
            index.close()
    hosts = {worker.get("id"): worker.get("host") for worker in state.get("workers") or []}
    for row in rows:
        row["host"] = hosts.get(row["id"])
    ending = state.get("state") if state.get("state") in job_state.ENDED else "crashed"
    is_crashed = bool(state) and ending != job_state.STOPPED
    return {
        "volume": volume,
        "mount": {
            "mountpoint": None,
            "pid": None,
            "state": "crashed" if is_crashed else "unmounted",
        },
        "workers": rows,
        "files": counters.files,
        "bytes": counters.payload_bytes,
        "heal": heal_at_rest(folder.index),
        "details": {"reason": state.get("reason", "") if is_crashed else ""},
    }


def _row(folder: VolumeFolder, entry: StoreEntry, volume: bytes) -> Document:
    """One worker of a volume at rest; figures are null where its store is not on this host."""
    from mpifs.store.folder import read_superblock

    number, own = entry.store, entry.uuid
    row: Document = {"id": number, "state": "stopped", "pid": None, "host": None}
    row |= {"chunks": None, "bytes": None, "free": None}
    path = folder.store(number)
    try:
        block = read_superblock(path)
        if block is None and entry.state is StoreState.FRESH:
            return row | {"chunks": 0, "bytes": 0}
        if block is None or block.volume_uuid != volume or block.own_uuid != own:
            return row | {"state": "absent"}
        from mpifs.store.chunks import ChunkStore

        store = ChunkStore.open(
            path,
            volume_uuid=volume,
            store_uuid=own,
            store=number,
            chunk_size=block.chunk_size,
            checksum=block.checksum,
            create=False,
        )
        try:
            stats = store.stats()
        finally:
            store.close()
    except MpifsError as error:
        return row | {"state": f"unusable: {error}"}
    return row | {"chunks": stats.chunks, "bytes": stats.bytes, "free": stats.free}
