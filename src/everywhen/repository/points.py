# SPDX-License-Identifier: AGPL-3.0-or-later
"""Recovery points: committing, listing and reading them. Points never change, so each is read once and kept in a cache."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from blake3 import blake3

from everywhen.formats.errors import FormatError
from everywhen.formats.fields import parse_json
from everywhen.formats.ids import PointId, is_point_id
from everywhen.formats.point import RecoveryPoint, Tombstone, decode_point
from everywhen.repository.documents import Documents
from everywhen.repository.errors import Damaged, Fenced, NoSuchPoint
from everywhen.storage.base import AlreadyExists, ObjectNotFound

PREFIX = "points/"
_PARALLEL_READS = 8


class PointCache:
    """The canonical JSON of points seen before, in an SQLite file that may be deleted at any time (I-7).

    By id and stamp, which is what a listing says of the object: a tombstone may have taken the place of a point.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._database = self._open(path)

    @staticmethod
    def _open(path: Path) -> sqlite3.Connection:
        for attempt in range(2):
            database = sqlite3.connect(path, timeout=30, check_same_thread=False, isolation_level=None)
            try:
                # It is a cache: speed before durability; what is torn is thrown away.
                database.execute("PRAGMA synchronous = OFF")
                database.execute(
                    "CREATE TABLE IF NOT EXISTS seen (id TEXT PRIMARY KEY, stamp TEXT, plain BLOB NOT NULL) WITHOUT ROWID"
                )
                database.execute("SELECT count(*) FROM seen").fetchone()
                return database
            except sqlite3.DatabaseError:
                database.close()
                if attempt:
                    raise
                path.unlink(missing_ok=True)
        raise AssertionError("unreachable")

    def all(self) -> dict[str, tuple[str, bytes]]:
        """(stamp, JSON) by id. One question for all: 10,000 single ones take half a second."""
        with self._lock:
            return {point: (stamp, plain) for point, stamp, plain in self._database.execute("SELECT * FROM seen")}

    def put(self, point: str, stamp: str, plain: bytes) -> None:
        """Remember a point's JSON."""
        with self._lock:
            self._database.execute("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", (point, stamp, plain))

    def keep_only(self, points: set[str]) -> None:
        """Forget points that are no longer in the repository."""
        with self._lock:
            gone = [row for row in self._database.execute("SELECT id FROM seen") if row[0] not in points]
            self._database.executemany("DELETE FROM seen WHERE id = ?", gone)

    def close(self) -> None:
        """Close the file."""
        self._database.close()


class RecoveryPoints:
    """The points of one repository. Safe to use from several threads."""

    def __init__(self, documents: Documents, cache: PointCache, naming_key: bytes) -> None:
        self._documents = documents
        self._cache = cache
        self._naming_key = naming_key
        self._decoded_before: dict[PointId, tuple[str, RecoveryPoint | Tombstone]] = {}
        """By id and stamp, what the last `list` gave: a server lists again and again, and decodes each point once."""

    def close(self) -> None:
        """Close the cache."""
        self._cache.close()

    def commit(self, point: RecoveryPoint) -> None:
        """Make the point part of the repository: the one operation that does. Raises Fenced, StorageError."""
        try:
            self._documents.put(PREFIX + point.point, point.to_json(), if_absent=True)
        except AlreadyExists as error:
            raise Fenced(
                f"{point.point}: this backup was silent for too long and was declared dead; nothing was committed. "
                "What it stored is kept for a day: run it again, nothing of it is stored twice."
            ) from error

    def bury(self, tombstone: Tombstone, *, replace: bool = False) -> bool:
        """Put a tombstone under a point's name; False when a point stands there. `replace`: over a deleted point."""
        try:
            self._documents.put(PREFIX + tombstone.point, tombstone.to_json(), if_absent=not replace)
        except AlreadyExists:
            return isinstance(self._read(tombstone.point), Tombstone)
        return True

    def is_decided(self, point: PointId) -> bool:
        """Whether something stands under the point's name: the point or a tombstone."""
        try:
            return self._documents.store.size(PREFIX + point) >= 0
        except ObjectNotFound:
            return False

    def delete(self, point: PointId) -> None:
        """Remove a dropped point (gc only)."""
        self._documents.delete(PREFIX + point)

    def get(self, point: PointId) -> RecoveryPoint:
        """As the repository has it now, not the cache. Raises NoSuchPoint, Damaged."""
        found = self._read(point)
        if isinstance(found, Tombstone):
            raise NoSuchPoint(f"{point} was never finished ({found.why})")
        return found

    def list(self) -> tuple[list[RecoveryPoint], list[Tombstone], list[str]]:
        """All points (oldest first), all tombstones, and what could not be read, as sentences."""
        listed = {PointId(name): found for name, found in self._documents.listed(PREFIX).items() if is_point_id(name)}
        self._cache.keep_only(set(listed))
        stamps = {point: f"{found.size} {found.modified_ns}" if found else "" for point, found in listed.items()}
        before = self._decoded_before
        same = {point: before[point][1] for point, stamp in stamps.items() if stamp and before.get(point, ("",))[0] == stamp}
        cached = self._cache.all() if len(same) < len(listed) else {}
        known = {
            point: cached[point][1]
            for point, stamp in stamps.items()
            if point not in same and stamp and cached.get(point, ("",))[0] == stamp
        }
        new = [point for point in listed if point not in known and point not in same]
        points: list[RecoveryPoint] = []
        tombstones: list[Tombstone] = []
        unreadable: list[str] = []
        with ThreadPoolExecutor(_PARALLEL_READS) as pool:
            fresh = pool.map(lambda point: self._read_or_error(point, stamps[point]), new)
            decoded = (self._decoded_or_error(point, plain) for point, plain in known.items())
            for found in chain(same.values(), decoded, fresh):
                if isinstance(found, RecoveryPoint):
                    points.append(found)
                elif isinstance(found, Tombstone):
                    tombstones.append(found)
                elif isinstance(found, Damaged):
                    unreadable.append(str(found))
        points.sort(key=lambda point: (point.time_ns, point.number, point.point))
        both: tuple[RecoveryPoint | Tombstone, ...] = (*points, *tombstones)
        self._decoded_before = {found.point: (stamps[found.point], found) for found in both}
        return points, tombstones, unreadable

    def digest(self, point: RecoveryPoint) -> bytes:
        """The keyed hash by which a point's successor names it. Raises NoSuchPoint, FormatError."""
        try:
            plain = self._documents.get_plain(PREFIX + point.point)
        except ObjectNotFound as error:
            raise NoSuchPoint(f"{point.point} was deleted just now; nothing can follow it. Run it again.") from error
        return blake3(plain, key=self._naming_key).digest()

    def _read_or_error(self, point: PointId, stamp: str) -> RecoveryPoint | Tombstone | Damaged | None:
        """What stands under the point's name, remembered under `stamp`; None when it was deleted since it was listed."""
        try:
            plain = self._documents.get_plain(PREFIX + point)
        except ObjectNotFound:
            return None
        except FormatError as error:
            return Damaged(f"recovery point {point} cannot be read: {error}")
        if stamp:
            self._cache.put(point, stamp, plain)
        return self._decoded_or_error(point, plain)

    def _decoded_or_error(self, point: PointId, plain: bytes) -> RecoveryPoint | Tombstone | Damaged:
        try:
            return self._decoded(point, plain)
        except Damaged as error:
            return error

    def _read(self, point: PointId) -> RecoveryPoint | Tombstone:
        """Not from the cache. Raises NoSuchPoint, Damaged."""
        try:
            return self._decoded(point, self._documents.get_plain(PREFIX + point))
        except ObjectNotFound as error:
            raise NoSuchPoint(f"there is no recovery point {point}") from error
        except FormatError as error:
            raise Damaged(f"recovery point {point} cannot be read: {error}") from error

    @staticmethod
    def _decoded(point: PointId, plain: bytes) -> RecoveryPoint | Tombstone:
        try:
            found = decode_point(parse_json(point, plain))
        except FormatError as error:
            raise Damaged(f"recovery point {point} cannot be read: {error}") from error
        if found.point != point:
            raise Damaged(f"recovery point {point} cannot be read: {found.point} stands in its place")
        return found
