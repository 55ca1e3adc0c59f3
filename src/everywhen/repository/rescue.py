# SPDX-License-Identifier: AGPL-3.0-or-later
"""Copying chunks within a repository: out of packs that will be deleted (G8 of docs/locking.md), and for safety.

Records are opened, which checks them, and sealed into new packs as they are: nothing is decompressed. Full copies go
first and are durable before any delta (rule 4.9.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from everywhen.formats.errors import FormatError
from everywhen.formats.ids import ChunkName, PackId, pack_object
from everywhen.formats.pack import FRAME_SIZE, PackIndex
from everywhen.repository.chunk import Encoded
from everywhen.repository.errors import Damaged
from everywhen.repository.ingest import ChunkSink
from everywhen.repository.marks import Marks
from everywhen.repository.near import near
from everywhen.repository.packs import OpenPack
from everywhen.repository.repository import Repository
from everywhen.repository.twins import twin_of
from everywhen.storage.base import ObjectNotFound


@dataclass(slots=True)
class Rescued:
    """Bytes copied, and packs that hold something needed that cannot be read (they must not be deleted)."""

    bytes_copied: int = 0
    damaged: dict[PackId, str] = field(default_factory=dict)


def rescue(
    repository: Repository,
    marks: Marks,
    packs: set[PackId],
    twinned: set[PackId],
    session: str,
    note: Callable[[str, int, int | None], None],
) -> Rescued:
    """Copy the live rows of `packs` to new packs, durable on return. Raises StorageError."""
    result = Rescued()
    needed = [pack for pack in sorted(packs) if len(marks.live_rows(pack))]
    for deltas in (False, True):
        sink = ChunkSink(repository.writing(), session)
        try:
            for done, pack in enumerate(needed):
                note("copying what is still needed", done, len(needed))
                try:
                    for chunk, prints in _chunks(repository, marks, pack, deltas=deltas):
                        sink.put_copy(chunk, twinned=pack in twinned, fingerprints=prints)
                        result.bytes_copied += len(chunk.payload)
                except (FormatError, ObjectNotFound) as error:
                    result.damaged[pack] = f"{pack_object(pack)}: {error}"
            sink.finish()
        finally:
            sink.close()
    return result


def second_copies(repository: Repository, marks: Marks, twinned: set[PackId], session: str) -> int:
    """Give chunks on which many others depend a copy in a pack that has a twin (design 4.9.6); bytes written, durable.

    From the next run on that copy is the one that is kept; the first becomes waste.
    """
    sink = ChunkSink(repository.writing(), session)
    codec = repository.make_codec()
    written = 0
    try:
        for row in np.unique(marks.popular.names, axis=0):
            name = ChunkName(row.tobytes())
            if any(copy.pack in twinned for copy in repository.index.all_copies(name)):
                continue
            try:
                chunk = codec.encode_full(name, repository.fetcher.read(name))
            except Damaged:
                continue  # for verify to report
            sink.put_copy(chunk, twinned=True, fingerprints=[])
            written += 2 * len(chunk.payload)
        sink.finish()
    finally:
        sink.close()
    return written


def _chunks(repository: Repository, marks: Marks, pack: PackId, *, deltas: bool) -> Iterator[tuple[Encoded, list[int]]]:
    """The live full copies (or deltas) of a pack, with their fingerprints. Raises FormatError, ObjectNotFound."""
    index, opened, name = _open(repository, pack)
    rows = marks.live_rows(pack)
    rows = rows[(index.base_counts[rows] > 0) == deltas]
    offsets = index.offsets.astype(np.int64)
    ends = offsets + index.lengths + FRAME_SIZE
    prints_end = np.cumsum(index.fingerprint_counts, dtype=np.int64)
    for part in near(offsets[rows], ends[rows]):
        start = int(offsets[rows[part.start]])
        data = memoryview(repository.store.get_range(name, start, int(ends[rows[part.stop - 1]]) - start))
        for row in rows[part].tolist():
            record = opened.open_record(data[int(offsets[row]) - start :])
            chunk = Encoded(ChunkName(record.name), record.form, record.raw_length, record.bases, bytes(record.payload))
            last = int(prints_end[row])
            yield chunk, [int(value) for value in index.fingerprints[last - int(index.fingerprint_counts[row]) : last]]


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
