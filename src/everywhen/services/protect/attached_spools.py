# SPDX-License-Identifier: AGPL-3.0-or-later
"""The spools of a host that died, on its disk, which is attached to another one: what they hold beyond the repository.

Nothing there is changed, locked for long or removed, whatever becomes of it: it is the only copy until it is in the
repository, the disk may be failing, and the host may start again, which brings in the same once more and finds it there.
What is brought in are the same segments and a point as `spool_import.py` makes for a run of the same host; but where a later
capture has made points, too: who asks for the last seconds of a dead host knows that it was restored elsewhere since.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from everywhen.block.patched import Patches
from everywhen.capture.spool_reader import SpoolDamaged, SpoolFile, read_file_header, spool_files
from everywhen.formats.point import JournalPosition, RecoveryPoint
from everywhen.formats.segment import SegmentHeader
from everywhen.repository.ledger import Vm
from everywhen.repository.repository import Repository
from everywhen.services.catalog import Catalog
from everywhen.services.journal_reach import reached_ns
from everywhen.services.protect.spool_import import Imported, SpoolInUse, bring_in, nobody_writes
from everywhen.services.protect.spooling import Spool
from everywhen.services.replay import Replay


@dataclass(frozen=True, slots=True)
class AttachedSpool:
    """What one capture of a VM left in a folder.

    `newest`: the newest point of its stream; `begin`: the number of the stream's first moment; `size`: bytes of its files;
    `writes`: those that are in no point, `lost`: of them, those that are not in the repository at all; `known_ns`: the newest
    moment of the stream that is; `until_ns`: the newest one of the spool; `damage`: why what follows that cannot be used, ''.
    """

    vm: Vm
    newest: RecoveryPoint
    begin: int
    spool: Spool
    folder: Path
    size: int
    writes: int
    lost: int
    known_ns: int
    until_ns: int
    damage: str


@dataclass(frozen=True, slots=True)
class Unusable:
    """A spool of which nothing can be brought in, and why: a sentence."""

    folder: Path
    why: str


def spool_folders(folder: Path) -> list[Path]:
    """The folders with files of a spool in a host's state folder, a VM's folder in it, or a spool's own. Raises OSError."""
    if spool_files(folder):
        return [folder]
    below = [path for path in folder.iterdir() if path.is_dir()]
    spools = [path for path in below if path.name == "spool"] + [path / "spool" for path in below]
    return sorted(path for path in spools if path.is_dir() and spool_files(path))


@contextmanager
def surveyed(repository: Repository, catalog: Catalog, folder: Path) -> Iterator[tuple[list[AttachedSpool], list[Unusable]]]:
    """What a spool's folder holds, while nobody writes to it. Raises StorageError, Damaged, OSError."""
    try:
        with nobody_writes(folder):
            found: list[AttachedSpool] = []
            unusable: list[Unusable] = []
            for epoch in sorted({file.epoch for file in spool_files(folder)}):
                one = _of_epoch(repository, catalog, folder, epoch)
                found.append(one) if isinstance(one, AttachedSpool) else unusable.append(Unusable(folder, one))
            yield found, unusable
    except SpoolInUse:
        yield [], [Unusable(folder, f"A capture on this host writes to {folder}: it brings that in by itself.")]


def bring_in_attached(repository: Repository, found: AttachedSpool, alive: Callable[[], None]) -> Imported | None:
    """Make it durable in the repository. Raises StorageError, Damaged, LowOnSpace, SpoolDamaged, OSError."""
    return bring_in(repository, found.newest, found.spool, found.begin, alive, beside=True)


def _of_epoch(repository: Repository, catalog: Catalog, folder: Path, epoch: int) -> AttachedSpool | str:
    """What one capture left, or a sentence why nothing can be made of it."""
    files = [file for file in spool_files(folder) if file.epoch == epoch]
    header = _header(files)
    if isinstance(header, str):
        return header
    if header.repository != repository.id:
        return (
            f"{folder} holds what was captured for another repository ({header.repository.hex()[:8]}; this one is "
            f"{repository.id.hex()[:8]}): say --repo with that one."
        )
    stream = header.stream.hex()
    points = _points_of(catalog, stream)
    if not points:
        return f"{folder}: {_without_point(catalog, len(files))}"
    # Of two that show the same, the later one is what the next one's number follows.
    newest, position = max(points, key=lambda one: (one[1].sequence, one[0].number))
    whole = Spool(repository, folder, epoch, stream)
    damage = whole.damage()
    spool = Spool(repository, folder, epoch, stream, damage[0]) if damage else whole
    first = next(spool.groups(position.sequence), None)
    if first is not None and first.sequence > position.sequence:
        missing = first.sequence - position.sequence
        return (
            f"{folder}: its writes follow a moment that the repository does not have any more: {missing:,} records after "
            f"recovery point {newest.point} are missing. Nothing can be made of the others."
        )
    known = max(newest.time_ns, reached_ns(repository, newest, exactly=True) or 0)
    writes, lost, until = _counted(spool, position, known)
    vm = next(vm for vm in catalog.vms if vm.vm == newest.vm)
    begin = min(one.sequence for _, one in points)
    reason = damage[1] if damage else ""
    size = sum(file.path.stat().st_size for file in files)
    return AttachedSpool(vm, newest, begin, spool, folder, size, writes, lost, known, until or newest.time_ns, reason)


def _points_of(catalog: Catalog, stream: str) -> list[tuple[RecoveryPoint, JournalPosition]]:
    """The points of a stream, dropped ones too (they come back for 72 h), and where in it they were made."""
    points = [*catalog.points, *catalog.dropped_points]
    return [(point, point.journal) for point in points if point.journal is not None and point.journal.stream == stream]


def _header(files: Sequence[SpoolFile]) -> SegmentHeader | str:
    """What any of these says of the stream; else why none does."""
    why = "its header was cut off"
    for file in files:
        try:
            if (header := read_file_header(file)) is not None:
                return header
        except (SpoolDamaged, OSError) as error:
            why = str(error)
    return f"{files[0].path}: nothing says which capture it is of ({why})."


def _without_point(catalog: Catalog, files: int) -> str:
    what = f"{files} {'file' if files == 1 else 'files'} of a capture of which the repository has no recovery point"
    if catalog.unreadable_points:
        lost = len(catalog.unreadable_points)
        return f"{what}, but {lost} cannot be read: repair it first (everywhen verify --repair), then try again."
    return f"{what}: its first copy was not complete, or its points were deleted. Nothing can be made of its writes."


def _counted(spool: Spool, position: JournalPosition, known_ns: int) -> tuple[int, int, int]:
    """Writes in no point; of them, those later than `known_ns`; and the newest moment's time (ns; 0: there is none)."""
    replay = Replay([Patches() for _ in position.disks], position.sequence, following=True)
    known = 0
    for group in spool.groups(position.sequence):
        before = replay.writes
        replay.feed(group, until_ns=known_ns)
        known += replay.writes - before
        replay.feed(group)
        for patches in replay.patches:
            patches.clear()  # only counted: what they hold is not wanted
        if replay.ended:
            break
    return replay.writes, replay.writes - known, replay.time_ns
