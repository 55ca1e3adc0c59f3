# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a capture that ended left in its spool, brought into the repository: the journal, and a point of its last moment."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from everywhen.capture.spool_reader import read_file_header, spool_files
from everywhen.formats.point import RecoveryPoint
from everywhen.repository.epochs import later_point
from everywhen.repository.index.process_lock import try_lock
from everywhen.repository.repository import Repository
from everywhen.repository.writer import write_point
from everywhen.services.protect.sealing import Origin, Sealer
from everywhen.services.protect.spooling import Spool


@dataclass(frozen=True, slots=True)
class Imported:
    """What a spool held after a point: the one that was made of it (None: nothing was written), and how many writes.

    `ended_ns`: until then every write was taken, as the end of the taps says (0: it is not in the spool).
    """

    point: RecoveryPoint | None
    writes: int
    ended_ns: int


class ForeignSpool(Exception):
    """A spool holds what was captured for another repository. Nothing of it was touched."""


class SpoolInUse(Exception):
    """The sink of a run that was killed has not ended yet: what it holds would be brought in in part. Nothing was touched."""


def import_spool(
    repository: Repository, newest: RecoveryPoint, spool: Spool, begin: int, alive: Callable[[], None]
) -> Imported | None:
    """Bring in what follows `newest`, the newest point of the spool's stream; None if there was nothing.

    Where a later capture has made points, none is made: what followed then is another branch (design 4.10.5).
    `begin`: sequence number of the stream's first moment; `alive` is called again and again, as it may take hours. The spool is
    empty afterwards.
    Raises SpoolDamaged, StorageError, Damaged.
    """
    if newest.journal is None:
        return None
    made = bring_in(repository, newest, spool, begin, alive)
    spool.remove()
    return made


def bring_in(
    repository: Repository,
    newest: RecoveryPoint,
    spool: Spool,
    begin: int,
    alive: Callable[[], None],
    *,
    beside: bool = False,
) -> Imported | None:
    """As `import_spool`, and the spool stays as it is. `beside`: also where a later capture has made points. Then the point is
    in the history where it is older than that one's first moment, and lies beside it else (`repository/branches.py`)."""
    position = newest.journal
    if position is None:
        return None
    spool.ship(begin, None, alive)
    first = next(spool.groups(position.sequence), None)
    # What follows a point that was deleted, or cannot be read just now, cannot be laid over the one before it.
    follows = first is not None and first.sequence <= position.sequence
    if not follows or (not beside and later_point(repository, newest.vm, newest.epoch, position.stream) is not None):
        return None
    with write_point(repository, "what a spool still held", first_copy=False) as writer:
        sealer = Sealer.after(repository, writer, newest, position)
        sealer.alive = alive
        for group in spool.groups(position.sequence):
            sealer.feed(group)
        point = None
        if sealer.replay.writes:
            stream = (position.stream, newest.files, position.began_ns, position.gap, position.clock)
            point = sealer.commit(newest, Origin(newest.vm, newest.epoch, *stream), 0)
        return Imported(point, sealer.replay.writes, sealer.replay.ended_ns or 0)


def import_left(
    repository: Repository, folder: Path, points: Sequence[RecoveryPoint], alive: Callable[[], None], *, all_known: bool
) -> Imported | None:
    """Bring in what other runs left in a spool's folder, by the `points` of the VM, dropped ones too; what the newest one held.

    What follows none has no moments, and is removed; but only where `points` are for sure all there are
    (`all_known`): else it may follow one that cannot be read just now, and stays. `alive` as in `import_spool`.
    Raises ForeignSpool, SpoolInUse, SpoolDamaged, StorageError, Damaged.
    """
    with nobody_writes(folder):
        return _import_left(repository, folder, points, alive, all_known=all_known)


@contextmanager
def nobody_writes(folder: Path) -> Iterator[None]:
    """A sink has its spool's folder locked until it ends. Raises SpoolInUse."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not try_lock(descriptor):
            raise SpoolInUse(f"the sink of a run before this one still writes to {folder}; it ends when that is durable")
        yield
    finally:
        os.close(descriptor)


def _import_left(
    repository: Repository, folder: Path, points: Sequence[RecoveryPoint], alive: Callable[[], None], *, all_known: bool
) -> Imported | None:
    made = None
    files = spool_files(folder)
    for epoch in sorted({file.epoch for file in files}):
        header = next((found for file in files if file.epoch == epoch and (found := read_file_header(file))), None)
        if header is not None and header.repository != repository.id:
            raise ForeignSpool(
                f"{folder} holds what was captured for another repository ({header.repository.hex()[:8]}). Run this with that "
                "one, so that it gets there; or remove the folder, and what only it holds is lost"
            )
        spool = Spool(repository, folder, epoch, header.stream.hex() if header else "")
        mine = [point for point in points if header and point.journal and point.journal.stream == header.stream.hex()]
        if mine:
            begin = min(point.journal.sequence for point in mine if point.journal)
            made = import_spool(repository, max(mine, key=lambda point: point.number), spool, begin, alive) or made
        if mine or all_known or header is None:
            spool.remove()
    return made
