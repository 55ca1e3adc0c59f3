# SPDX-License-Identifier: AGPL-3.0-or-later
"""The cache of points (I-7): whatever its file holds, and whether or not it can be written, a listing is the repository's."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from everywhen.formats.point import RecoveryPoint
from everywhen.repository.point_cache import PointCache
from everywhen.repository.points import RecoveryPoints
from everywhen.storage.memory import MemoryStore
from tests.laboratory import SparseDisk, World, block

PAGE = 4096
SEEN = {f"p-{number:012x}": (f"600 {number}", b'{"size":300000,"number":%d}' % number * 60) for number in range(1, 9)}


def filled(path: Path) -> bytes:
    cache = PointCache(path)
    for point, (stamp, plain) in SEEN.items():
        cache.put(point, stamp, plain)
    assert cache.all() == SEEN
    cache.close()
    return path.read_bytes()


def test_no_flipped_bit_and_no_zeroed_page_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "points.sqlite"
    good = filled(path)
    damaged = [good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :] for at in range(0, len(good), 61)]
    damaged += [good[:at] + bytes(PAGE) + good[at + PAGE :] for at in range(0, len(good), PAGE)]
    damaged += [good[:cut] for cut in range(0, len(good), PAGE // 2)]
    damaged.append(b"nonsense" * 1024)
    for number, content in enumerate(damaged):
        path.write_bytes(content)
        for _ in range(3):  # thrown away, begun anew, seen again
            cache = PointCache(path)
            known = cache.all()
            assert known.items() <= SEEN.items()
            for point in SEEN.keys() - known.keys():
                cache.put(point, *SEEN[point])
            cache.keep_only(set(SEEN))
            cache.close()
        assert known == SEEN, number


@pytest.fixture
def points(tmp_path: Path) -> Iterator[tuple[Path, RecoveryPoints, list[RecoveryPoint]]]:
    """The file of a cache that knows all points, the points as seen through it, and what they are."""
    world = World(tmp_path)
    store = MemoryStore()
    with world.open(store, world.create(store, encrypted=True), cache="cache") as repository:
        parent: RecoveryPoint | None = None
        for number in range(4):
            parent = world.back_up(repository, {"vda": SparseDisk(300000, {1: block(number)})}, parent=parent)
            world.clock.advance(60)
        true = repository.points.list()[0]
        yield repository.cache / "points.sqlite", repository.points, true


def seen_anew(path: Path, points: RecoveryPoints) -> tuple[list[RecoveryPoint], list[str]]:
    """As the next process sees them."""
    again = RecoveryPoints(points._documents, PointCache(path), points._naming_key)
    found, _, unreadable = again.list()
    again.close()
    return found, unreadable


@pytest.mark.parametrize("what", ["size", "time_ns", "root", "page", "rewritten"])
def test_a_damaged_cache_changes_no_point(what: str, points: tuple[Path, RecoveryPoints, list[RecoveryPoint]]) -> None:
    path, in_use, true = points
    in_use.close()
    good = path.read_bytes()
    assert good.count(b'"size":300000') == len(true) == 4
    digit = {"size": b'"size":', "time_ns": b'"time_ns":', "root": b'"root":"'}.get(what)
    if what == "page":
        bad = good[:-PAGE] + bytes(PAGE)
    elif digit is None:
        database = sqlite3.connect(path)  # right by its checksum, and no point: read again, not called damage
        database.close()
        cache = PointCache(path)
        for point, (stamp, plain) in cache.all().items():
            cache.put(point, stamp, plain[:-1])
        cache.close()
        bad = path.read_bytes()
    else:
        parts = good.split(digit)
        bad = digit.join([parts[0], *(bytes([part[0] ^ 4]) + part[1:] for part in parts[1:])])
    assert bad != good
    path.write_bytes(bad)
    for _ in range(2):
        assert seen_anew(path, in_use) == (true, [])
    assert seen_anew(path, in_use) == (true, [])
    assert len(PointCache(path).all()) == 4


def test_earlier_programs_caches_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "points.sqlite"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE seen (id TEXT PRIMARY KEY, stamp TEXT, plain BLOB NOT NULL) WITHOUT ROWID")
    database.execute("INSERT INTO seen VALUES ('p-000000000001', '600 1', x'00')")
    database.commit()
    database.close()
    filled(path)
    assert b"seen" not in path.read_bytes()[:PAGE]


def test_without_a_way_to_the_file_or_room_in_it_nothing_is_remembered(tmp_path: Path) -> None:
    nowhere = PointCache(tmp_path / "absent" / "points.sqlite")
    nowhere.put("p-000000000001", "600 1", b"{}")
    nowhere.keep_only(set())
    assert nowhere.all() == {}
    nowhere.close()
    path = tmp_path / "points.sqlite"
    size = len(filled(path))
    full = PointCache(path)
    assert full._database is not None
    full._database.execute(f"PRAGMA max_page_count = {size // PAGE}")  # SQLITE_FULL, as on a full disk
    for number in range(20):
        full.put(f"p-{number:012x}", "601 1", os.urandom(PAGE))
    assert set(full.all()) < {*SEEN, *(f"p-{number:012x}" for number in range(20))}
    assert {"p-000000000008"} <= set(full.all())
    full.close()
    assert path.stat().st_size == size
