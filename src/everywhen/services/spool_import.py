# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a capture that ended left in its spool, brought into the repository: the journal, and a point of its last moment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from everywhen.capture.spool_reader import read_file_header, spool_files
from everywhen.formats.point import RecoveryPoint
from everywhen.repository.repository import Repository
from everywhen.repository.writer import write_point
from everywhen.services.sealing import Origin, Sealer
from everywhen.services.spooling import Spool


def import_spool(repository: Repository, newest: RecoveryPoint, spool: Spool, begin: int) -> RecoveryPoint | None:
    """Bring in what follows `newest`, the newest point of the spool's stream; the point that was made, if there was need.

    `begin`: sequence number of the stream's first moment. The spool is empty afterwards.
    Raises SpoolDamaged, StorageError, Damaged.
    """
    position = newest.journal
    if position is None:
        return None
    spool.ship(begin, None)
    point = None
    if any(True for _ in spool.groups(position.sequence)):
        with write_point(repository, "what a spool still held", first_copy=False) as writer:
            sealer = Sealer.after(repository, writer, newest, position)
            for group in spool.groups(position.sequence):
                sealer.feed(group)
            if sealer.replay.writes:
                stream = (position.stream, newest.files, position.began_ns, position.gap)
                origin = Origin(newest.vm, newest.epoch, *stream)
                point = sealer.commit(newest, origin, 0)
    spool.remove()
    return point


def import_left(repository: Repository, folder: Path, points: Sequence[RecoveryPoint]) -> RecoveryPoint | None:
    """Bring in what other runs left in a spool's folder, by all `points` of the VM; the newest point that was made.

    What belongs to none of them has no moments, and is removed. Raises SpoolDamaged, StorageError, Damaged.
    """
    made = None
    files = spool_files(folder)
    for epoch in sorted({file.epoch for file in files}):
        headers = (read_file_header(file) for file in files if file.epoch == epoch)
        stream = next((header.stream.hex() for header in headers if header), "")
        spool = Spool(repository, folder, epoch, stream)
        mine = [point for point in points if point.journal and point.journal.stream == stream]
        if mine:
            begin = min(point.journal.sequence for point in mine if point.journal)
            made = import_spool(repository, max(mine, key=lambda point: point.number), spool, begin) or made
        spool.remove()
    return made
