# SPDX-License-Identifier: AGPL-3.0-or-later
"""Recovery points: committing, listing and reading them. Points never change, so each is read once and kept in a cache."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain

from blake3 import blake3

from everywhen.formats.errors import FormatError
from everywhen.formats.fields import parse_json
from everywhen.formats.ids import PointId, is_point_id
from everywhen.formats.point import RecoveryPoint, Tombstone, decode_point
from everywhen.repository.documents import Documents
from everywhen.repository.errors import Damaged, Fenced, NoSuchPoint
from everywhen.repository.point_cache import PointCache
from everywhen.storage.base import AlreadyExists, ObjectNotFound

PREFIX = "points/"
_PARALLEL_READS = 8


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
        known: dict[PointId, RecoveryPoint | Tombstone] = {}
        for point, stamp in stamps.items():
            if point not in same and stamp and cached.get(point, ("",))[0] == stamp:
                with suppress(Damaged):  # the cache may be wrong in ways that a checksum does not tell: ask the repository
                    known[point] = self._decoded(point, cached[point][1])
        new = [point for point in listed if point not in known and point not in same]
        points: list[RecoveryPoint] = []
        tombstones: list[Tombstone] = []
        unreadable: list[str] = []
        with ThreadPoolExecutor(_PARALLEL_READS) as pool:
            fresh = pool.map(lambda point: self._read_or_error(point, stamps[point]), new)
            for found in chain(same.values(), known.values(), fresh):
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
            found = self._decoded(point, plain)
        except ObjectNotFound:
            return None
        except Damaged as error:
            return error
        except FormatError as error:
            return Damaged(f"recovery point {point} cannot be read: {error}")
        if stamp:
            self._cache.put(point, stamp, plain)
        return found

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
