# SPDX-License-Identifier: AGPL-3.0-or-later
"""Copying chunks within a repository: out of packs that will be deleted (G8 of docs/locking.md), and for safety.

Records are opened, which checks them, and sealed into new packs as they are: nothing is decompressed. Full copies go
first and are durable before any delta (rule 4.9.3). What cannot be copied as it is is read by any other copy and stored
full; only what nobody can read keeps the packs that hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from everywhen.formats.errors import Corrupt, FormatError
from everywhen.formats.ids import ChunkName, PackId, pack_object
from everywhen.formats.pack import FRAME_SIZE, PackIndex
from everywhen.repository.chunk import Encoded
from everywhen.repository.errors import Damaged
from everywhen.repository.gc.marks import Marks
from everywhen.repository.gc.records import is_decodable
from everywhen.repository.ingest import ChunkSink
from everywhen.repository.near import near
from everywhen.repository.packs import OpenPack
from everywhen.repository.repository import Repository
from everywhen.repository.twins import twin_of
from everywhen.storage.base import ObjectNotFound


class Vanished(Exception):
    """A pack was deleted under us, by a collector that took over or was taken over: the marks are out of date."""


@dataclass(slots=True)
class Rescued:
    """Bytes copied, and packs that hold something needed that cannot be read (they must not be deleted)."""

    bytes_copied: int = 0
    damaged: dict[PackId, str] = field(default_factory=dict)


def rescue(
    repository: Repository,
    marks: Marks,
    packs: list[PackId],
    twinned: set[PackId],
    session: str,
    note: Callable[[str, int, int | None], None],
) -> Rescued:
    """Copy the live rows of `packs` to new packs, durable on return. Raises Vanished, StorageError."""
    result = Rescued()
    for deltas in (False, True):
        sink = ChunkSink(repository.writing(), session)
        try:
            for done, pack in enumerate(packs):
                note("copying what is still needed", done, len(packs))
                result.bytes_copied += _empty(repository, sink, marks, pack, result, deltas=deltas, twinned=pack in twinned)
            sink.finish()
        finally:
            sink.close()
    return result


def _empty(
    repository: Repository, sink: ChunkSink, marks: Marks, pack: PackId, result: Rescued, *, deltas: bool, twinned: bool
) -> int:
    """Hand the live full copies (or deltas) of one pack to the sink; gives their bytes."""
    copied = 0
    try:
        for name, chunk, prints in _chunks(repository, marks, pack, deltas=deltas):
            try:
                chunk = chunk or _from_elsewhere(repository, name)
            except Damaged as error:
                for copy in repository.index.all_copies(name):
                    result.damaged[copy.pack] = f"{pack_object(copy.pack)}: {error}"
                continue
            sink.put_copy(chunk, twinned=twinned, fingerprints=prints)
            copied += len(chunk.payload)
    except FormatError as error:
        result.damaged[pack] = f"{pack_object(pack)}: {error}"
    except ObjectNotFound as error:
        raise Vanished(pack_object(pack)) from error
    return copied


def _from_elsewhere(repository: Repository, name: ChunkName) -> Encoded:
    """The chunk by any copy of it, full. Raises Damaged."""
    return repository.codec.encode_full(name, repository.fetcher.read(name))


def second_copies(repository: Repository, marks: Marks, twinned: set[PackId], session: str) -> int:
    """Give chunks on which many others depend a copy in a pack that has a twin (design 4.9.6); bytes written, durable.

    From the next run on that copy is the one that is kept; the first becomes waste.
    """
    sink = ChunkSink(repository.writing(), session)
    written = 0
    try:
        for row in np.unique(marks.popular.names, axis=0):
            name = ChunkName(row.tobytes())
            copies = repository.index.all_copies(name)
            if any(copy.pack in twinned and is_decodable(repository, repository.index, copy) for copy in copies):
                continue
            try:
                chunk = _from_elsewhere(repository, name)
            except Damaged:
                continue  # for verify to report
            sink.put_copy(chunk, twinned=True, fingerprints=[])
            written += 2 * len(chunk.payload)
        sink.finish()
    finally:
        sink.close()
    return written


def _chunks(
    repository: Repository, marks: Marks, pack: PackId, *, deltas: bool
) -> Iterator[tuple[ChunkName, Encoded | None, list[int]]]:
    """The live full copies (or deltas) of a pack, None where one is damaged, with their fingerprints.

    Raises FormatError, ObjectNotFound.
    """
    index, opened, name = _open(repository, pack)
    rows = marks.live_rows(pack)
    if len(index) != marks.rows(pack):
        # One of them was pieced together by a scan of a damaged pack: then the same row is not the same chunk.
        raise Corrupt("the pack's index is not the one that was marked by; everywhen verify --repair")
    rows = rows[(index.base_counts[rows] > 0) == deltas]
    offsets = index.offsets.astype(np.int64)
    ends = offsets + index.lengths + FRAME_SIZE
    prints_end = np.cumsum(index.fingerprint_counts, dtype=np.int64)
    for part in near(list(zip(offsets[rows].tolist(), ends[rows].tolist(), rows.tolist(), strict=True))):
        start, end = part[0][0], part[-1][1]
        data = memoryview(repository.store.get_range(name, start, end - start))
        for offset, _, row in part:
            chunk = _copied(opened, index, data[offset - start :], row)
            last = int(prints_end[row])
            prints = index.fingerprints[last - int(index.fingerprint_counts[row]) : last]
            yield ChunkName(index.names[row].tobytes()), chunk, [int(value) for value in prints]


def _copied(opened: OpenPack, index: PackIndex, data: memoryview, row: int) -> Encoded | None:
    try:
        record = opened.open_record(data)
    except FormatError:
        return None
    if record.name != index.names[row].tobytes():
        return None
    return Encoded(ChunkName(record.name), record.form, record.raw_length, record.bases, bytes(record.payload))


def _open(repository: Repository, pack: PackId) -> tuple[PackIndex, OpenPack, str]:
    name = pack_object(pack)
    try:
        opened, index = repository.packs.index(pack, repository.store.size(name))
    except (ObjectNotFound, FormatError):
        name = twin_of(name)
        try:
            opened, index = repository.packs.index(pack, repository.store.size(name), twin=True)
        except ObjectNotFound:
            name = pack_object(pack)
            opened, index, _ = repository.packs.rebuild_index(pack)
    return index, opened, name
