# SPDX-License-Identifier: AGPL-3.0-or-later
"""Making one recovery point: the writer's steps W1 to W6 of docs/locking.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from everywhen.block.device import BlockDevice, Extent
from everywhen.formats.errors import FormatError
from everywhen.formats.ids import PointId, new_point_id
from everywhen.formats.point import ParentLink, RecoveryPoint, Tree
from everywhen.repository.alone import Turn, alone
from everywhen.repository.blockmap import names_needed
from everywhen.repository.errors import Damaged
from everywhen.repository.ingest import ChunkSink
from everywhen.repository.intake import Intake, Ranges, take_disk
from everywhen.repository.repository import Repository
from everywhen.repository.space import demand_room


class PointWriter:
    """One recovery point being made. Made by `write_point`."""

    def __init__(self, repository: Repository, point: PointId, turn: Turn) -> None:
        self._repository = repository
        self._turn = turn
        self.point = point
        self._sink = ChunkSink(repository.writing(), point)
        # Read after the session began and after what is condemned was: gc keeps these until the session ends.
        points, _, _ = repository.points.list()
        self._own: set[Tree] = set()
        self._kept = {tree for kept in points if kept.point not in repository.condemned_points for tree in kept.trees()}

    def take(
        self,
        device: BlockDevice,
        base: Tree | None,
        changed: Ranges | None,
        progress: Callable[[int], None],
        enough: Callable[[], bool] = lambda: False,
    ) -> Intake:
        """Store a disk. `base`: the tree it had in the parent; `changed`: blocks to look at, None for all.

        A base that is no longer `usable` is passed over, and every block looked at. `enough`: whether to leave the rest for
        another time, asked after each batch. Raises DeviceError, StorageError, Damaged.
        """
        base = base if self.usable(base) else None
        if base in self._own:
            self._sink.flush()  # what is built upon must be readable
        base_map = self._repository.block_map(base) if base else None
        intake = take_disk(self._sink, device, base_map, changed, progress, enough)
        self._own.add(intake.tree)  # a disk may be taken in by parts, each over the one before
        return intake

    def usable(self, base: Tree | None) -> bool:
        """Whether blocks may be taken over unseen: a point that gc is not about to delete has this tree, or we stored it; or
        there is nothing in it."""
        return base is not None and (base.root is None or base in self._kept or base in self._own)

    def take_up(self, tree: Tree) -> bool:
        """Whether all of a tree that no point has is there, such as a session that was abandoned has left: from then on it is
        `usable`. Each name is looked up as that of a block that was read would be (docs/locking.md). Raises StorageError."""
        try:
            for names in names_needed(self._repository.fetcher.read_many, tree, set()):
                if not self._repository.index.decodable(names[names.any(axis=1)]).all():
                    return False
        except (Damaged, FormatError):
            return False
        self._kept.add(tree)
        return True

    def take_file(self, content: bytes) -> Tree:
        """Store a configuration file."""
        return take_disk(self._sink, _Bytes(content), None, None, lambda _: None).tree

    def flush(self) -> int:
        """Make durable what was taken so far; gives the bytes of packs that it takes, second copies included.

        Raises StorageError.
        """
        self._sink.flush()
        return self._sink.bytes_put

    def commit(self, point: RecoveryPoint) -> None:
        """Make everything durable, then the point: the commit. Raises Fenced, StorageError."""
        self._sink.finish()
        self._turn.demand(self._repository.points, self.point)
        self._repository.points.commit(point)

    def close(self) -> None:
        """Stop all threads."""
        self._sink.close()


@contextmanager
def write_point(repository: Repository, what: str, *, first_copy: bool) -> Iterator[PointWriter]:
    """A session: begun (W1), index fresh (W2, W3), ended (W6) when the body ends.

    A body that raises leaves its session behind: gc fences it in its time and keeps for a day what it stored, so that
    the next try stores none of it again. Raises LowOnSpace, Busy (`alone`), Damaged.
    """
    demand_room(repository.store, first_copy=first_copy)
    repository.unlocked.superblock.require("write")
    point = new_point_id(repository.surroundings.randomness)
    with alone(repository, what) as turn:
        session = repository.attend(f"sessions/{point}", what, [point])
        session.begin(if_absent=True)
        try:
            repository.refresh()
            _demand_known(repository)
            writer = PointWriter(repository, point, turn)
            try:
                yield writer
            finally:
                writer.close()
        except BaseException:
            session.abandon()
            raise
        session.end()


def _demand_known(repository: Repository) -> None:
    """Nothing is built upon what may be about to be deleted, or is damaged. Raises Damaged."""
    for why in repository.unreadable_condemned:
        raise Damaged(f"{why}. What gc is about to delete is not known, so nothing was done")
    for why in repository.unreadable_notes:
        raise Damaged(
            f"{why}. Which copies are damaged is not known, so nothing was done (everywhen verify --repair removes it)"
        )


def parent_link(repository: Repository, parent: RecoveryPoint | None) -> ParentLink | None:
    """The link to a parent, or None for a VM's first point."""
    return ParentLink(parent.point, repository.points.digest(parent)) if parent else None


class _Bytes:
    """A small file as a device."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size = len(content)

    def read(self, offset: int, length: int) -> bytes:
        return self._content[offset : offset + length]

    def extents(self) -> Iterator[Extent]:
        yield Extent(0, self.size, zero=False)

    def close(self) -> None:
        """Nothing is held."""
