"""The index without its write-behind: raw rows, for verify and repair of a volume at rest.

Opening writes nothing and decodes nothing, so that an index whose records are damaged can be
looked at; it changes only by `amend` and `next_generation`.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from mpifs.core import records
from mpifs.core.errors import DamageError, MpifsError
from mpifs.core.records import Counters
from mpifs.core.superblock import Superblock
from mpifs.datafile import DATA_NAME
from mpifs.index.amendment import Amendment
from mpifs.index.volume import lock_folder, read_superblock
from mpifs.kv import Environment, ReadTransaction, WriteTransaction
from mpifs.pagefile import PageFile


class RawIndex:
    """An index at rest, opened by this process alone.  Used by one thread at a time."""

    def __init__(self, environment: Environment, geometry: Superblock, folder_lock: int) -> None:
        self._env = environment
        self.geometry = geometry
        self._folder_lock = folder_lock

    @classmethod
    def open(cls, folder: str) -> RawIndex:
        """Takes the folder's lock and opens the environment.

        Raises FormatError (superblock or data file cannot be used), InUseError, DamageError.
        """
        geometry = read_superblock(folder)
        lock = lock_folder(folder)
        try:
            environment = Environment(folder, records.DATABASES)
        except BaseException:
            os.close(lock)
            raise
        return cls(environment, geometry, lock)

    def snapshot(self) -> ReadTransaction:
        """What is on disk, for a `with` block."""
        return self._env.read()

    def amend(self, amendment: Amendment) -> bool:
        """One durable transaction; False (nothing done) if an expected row is another one now.

        Deltas are added to the counters unless their record is damaged or missing: whoever
        repairs that counts anew.  Raises FullError, DamageError.
        """
        self._env.preallocate_ahead(estimate_bytes(amendment))
        with self._env.write() as transaction:
            if not is_as_expected(transaction, amendment):
                return False
            write_rows(transaction, amendment)
            add_to_counters(transaction, amendment)
            return True

    def next_generation(self) -> int:
        """A generation never handed out before, durably: one commit each.

        Raises DamageError if the limit is damaged or missing, FullError."""
        key = records.KEY_GENERATION_LIMIT
        with self._env.write() as transaction:
            value = transaction.get(records.META, key)
            if value is None:
                raise DamageError(f"index: {key.decode()} is missing; run mpifs fsck --repair")
            number = records.decode_number(key, value)
            transaction.put(records.META, key, records.encode_number(key, number + 1))
            return number

    @property
    def opened_generation(self) -> int:
        """The limit of generations as it stands on disk now, 0 if it cannot be read."""
        with self._env.read() as transaction:
            value = transaction.get(records.META, records.KEY_GENERATION_LIMIT)
            try:
                return records.decode_number(records.KEY_GENERATION_LIMIT, value or b"")
            except DamageError:
                return 0

    def last_transaction(self) -> int:
        """Number of the last commit on disk: it is another one when anything has changed."""
        return self._env.last_transaction()

    def copy_to(self, write: Callable[[memoryview | bytes], None]) -> int:
        """Passes a compacted copy of what is on disk to `write`; see kv.Environment.copy_to."""
        return self._env.copy_to(write)

    def close(self) -> None:
        """Closes it and gives up the lock.  May be repeated."""
        if self._folder_lock >= 0:
            self._env.close()
            os.close(self._folder_lock)
            self._folder_lock = -1


def inspect(folder: str) -> list[str]:
    """Sentences on what is wrong with an index's files: superblock, data file.  [] if nothing.

    Does not need the index to be openable, and changes nothing.
    """
    found = []
    try:
        read_superblock(folder)
    except MpifsError as error:
        found.append(str(error))
    except OSError as error:
        found.append(f"{folder}: the superblock cannot be read ({error.strerror})")
    path = os.path.join(folder, DATA_NAME)
    try:
        with PageFile(path) as pages:
            found.extend(f"{path}: {problem}" for problem in pages.problems(records.DATABASES))
    except MpifsError as error:
        found.append(str(error))
    except OSError as error:
        found.append(f"{path} cannot be read ({error.strerror})")
    return found


def estimate_bytes(amendment: Amendment) -> int:
    """About how much the environment may grow: pages copied on their way to each row."""
    values = sum(len(value) for value in amendment.rows.values() if value is not None)
    return values + (len(amendment.rows) + 4) * 16 * 1024


def is_as_expected(transaction: ReadTransaction, amendment: Amendment) -> bool:
    """Whether every row that the amendment was computed from is still the same."""
    for (database, key), wanted in amendment.expected.items():
        found = transaction.get(database, key)
        if (found is None) is not (wanted is None):
            return False
        if found is not None and bytes(found) != wanted:
            return False
    return True


def write_rows(transaction: WriteTransaction, amendment: Amendment) -> None:
    """Writes and deletes the amendment's rows, in the order of the keys."""
    for (database, key), value in sorted(amendment.rows.items()):
        if value is None:
            transaction.delete(database, key)
        else:
            transaction.put(database, key, value)


def add(counters: Counters, amendment: Amendment) -> Counters:
    """The counters with the deltas of an amendment; none below 0."""
    return Counters(
        max(0, counters.files + amendment.files),
        max(0, counters.directories + amendment.directories),
        max(0, counters.payload_bytes + amendment.payload_bytes),
        max(0, counters.orphans + amendment.orphans),
    )


def add_to_counters(transaction: WriteTransaction, amendment: Amendment) -> None:
    """Adds the deltas to the counters on disk, unless these are damaged or missing."""
    value = transaction.get(records.META, records.KEY_COUNTERS)
    if value is None:
        return
    try:
        counters = records.decode_counters(value)
    except DamageError:
        return
    changed = add(counters, amendment)
    if changed != counters:
        transaction.put(records.META, records.KEY_COUNTERS, records.encode_counters(changed))
