# SPDX-License-Identifier: AGPL-3.0-or-later
"""What was written to a VM in some time, and what was stored for it: sums of its minutes (`repository/minutes.py`).

Write amplification is bytes stored for each byte that the guest wrote, in two figures, because what is sealed hears of a byte
once for each point and the journal as often as it was written:

- *journal*: bytes of the journal for bytes written;
- *sealed*: bytes of packs, second copies included, for bytes that were written between two points, each counted once (a guest
  that writes the same again changes nothing and counts all the same: whether bytes differ is known by blocks of 64 KiB only).

What is written as zeroes (by trim or write-zeroes) is left out below the line: it costs next to nothing, and would make the
figures look better than they are. So is a stream's first point, which holds what was copied beside the journal.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from everywhen.repository.ledger import Vm
from everywhen.repository.minutes import PER_DAY, PointRow, Row, kept_minutes, median_of
from everywhen.repository.repository import Repository
from everywhen.services.ages import DAY, MINUTE


@dataclass(frozen=True, slots=True)
class Activity:
    """What was written to a VM within some time, as far as it was captured, and how long nothing was.

    `size` bytes in `writes` writes; `blocks`: different ones of each minute; `data`: bytes of those writes whose journal was
    measured, without zeroes, and `compressed` what they took there, compressed. `median_ns` and `worst_ns`: how long the sink
    took to answer, 0 where that was not measured.
    """

    writes: int
    size: int
    blocks: int
    gap_ns: int
    data: int = 0
    compressed: int = 0
    median_ns: int = 0
    worst_ns: int = 0


def activity(repository: Repository, vm: Vm, from_ns: int, to_ns: int) -> Activity:
    """Of whole minutes (hours or days where that is all that is left). Raises StorageError."""
    found, gaps = list[Row](), set[tuple[int, int]]()
    for number, day in kept_minutes(repository.documents, vm.vm, from_ns // DAY):
        for rows in day.disks.values():
            found += [row for minute, row in rows.items() if from_ns <= (number * PER_DAY + minute) * MINUTE <= to_ns]
        gaps.update(day.gaps)
    missing = sum(max(0, min(end, to_ns) - max(begin, from_ns)) for begin, end in gaps)
    measured = [row for row in found if row.journal]
    return Activity(
        writes=sum(row.writes for row in found),
        size=sum(row.size for row in found),
        blocks=sum(row.blocks for row in found),
        gap_ns=missing,
        data=sum(row.data for row in measured),
        compressed=sum(row.compressed for row in measured),
        median_ns=median_of(found),
        worst_ns=max((row.worst for row in found), default=0),
    )


@dataclass(frozen=True, slots=True)
class Amplification:
    """Bytes: `written`, and `journal` stored for it; `different`, and `sealed` in `points` points for that."""

    written: int = 0
    journal: int = 0
    different: int = 0
    sealed: int = 0
    points: int = 0

    @property
    def of_journal(self) -> float | None:
        """Bytes of the journal for a byte written; None where none was."""
        return self.journal / self.written if self.written else None

    @property
    def of_sealed(self) -> float | None:
        """Bytes sealed for a byte of a different place that was written; None where none was."""
        return self.sealed / self.different if self.different else None


def together(parts: Iterable[Amplification]) -> Amplification:
    """Of several VMs."""
    rows = [(one.written, one.journal, one.different, one.sealed, one.points) for one in parts]
    return Amplification(*map(sum, zip(*rows, strict=True)))


def amplification(repository: Repository, vm: Vm, since_ns: int) -> Amplification:
    """Of all whole days since then. Minutes that an older program wrote down do not count. Raises StorageError."""
    rows, points = list[Row](), list[PointRow]()
    for _, day in kept_minutes(repository.documents, vm.vm, since_ns // DAY):
        rows += [row for of_disk in day.disks.values() for row in of_disk.values() if row.journal]
        points += day.points.values()
    return Amplification(
        written=sum(row.data for row in rows),
        journal=sum(row.journal for row in rows),
        different=sum(row.different for row in points),
        sealed=sum(row.sealed for row in points),
        points=sum(row.points for row in points),
    )
