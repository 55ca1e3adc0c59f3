# SPDX-License-Identifier: AGPL-3.0-or-later
"""A disk is copied by pieces while its guest writes and the journal is laid in between: docs/capture.md, "Copies".

The guest is `tests/copied_guests.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from everywhen.block.device import BLOCK_SIZE
from everywhen.block.patched import Patches
from everywhen.formats.point import RecoveryPoint, Tree
from everywhen.repository import intake
from everywhen.repository.repository import Repository
from everywhen.repository.writer import PointWriter, write_point
from everywhen.services.protect import sealing
from everywhen.services.protect.closing_gap import GapCloser
from everywhen.services.protect.local_recipient import LocalDisk
from everywhen.services.protect.sealing import Origin, SealedDisk, Sealer
from everywhen.services.protect.unfinished_copy import UnfinishedCopies
from everywhen.services.replay import Replay
from tests.copied_guests import (
    NAMES,
    SIZE,
    STREAM,
    Consumed,
    Exported,
    Guest,
    Repositories,
    Write,
    changed,
    contents,
    explained,
    lay,
    point_before,
    steps,
    writes,
)
from tests.laboratory import World
from tests.long_forms import SOAK
from tests.records import mark

EXAMPLES = 2000 if SOAK else 25


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repositories]:
    with closing(Repositories(World(tmp_path_factory.mktemp("copies")))) as made:
        yield made


def copied(
    repository: Repository, writer: PointWriter, guest: Guest, before: tuple[RecoveryPoint, list[bytes]] | None, due: list[bool]
) -> Sealer:
    """Both disks, one after the other, as `Capture` does it; what is left of the journal is fed."""
    trees = {name: disk.tree for name, disk in before[0].disks.items()} if before else {}
    disks = [SealedDisk(name, SIZE, trees.get(name) or Tree(SIZE, None)) for name in NAMES]
    sealer = Sealer(repository, writer, disks, Replay([Patches(), Patches()], 0, following=False))
    consumed: Any = Consumed(guest, sealer, iter(due))
    closer = GapCloser("", consumed, {}, UnfinishedCopies(Path("/nowhere"), repository.surroundings.randomness), lambda: 0.0)
    at_attach = [bytes(disk) for disk in guest.disks]
    for number, disk in enumerate(disks):
        ranges = changed(before[1][number], at_attach[number]) if before else None
        making = LocalDisk(writer, disk, trees.get(disk.name), "", goes_on=False)
        closer.copy(Exported(guest, number), ranges, making, SIZE, lambda _: None)
        guest.records.append(mark(number, "complete"))
    if (group := guest.group(sealer.replay.sequence)) is not None:
        sealer.feed(group)
    return sealer


@pytest.mark.timeout(1800 if SOAK else 120)
@settings(max_examples=EXAMPLES)
@example(  # a disk has grown, and another one's copy is interrupted before its turn
    filled=[(0, SIZE - 700, 700, 4), (1, SIZE - 700, 700, 3)],
    before=([], SIZE - BLOCK_SIZE),
    script=[(0, 0, 512, 1), 0] * 20,
    due=[True] * 12,
    memory=0,
)
@example(  # a hole is written to between two pieces
    filled=[(0, 0, 512, 1)], before=None, script=[None] * 8 + [(0, 3 * BLOCK_SIZE, 512, 2), 0] * 9, due=[True] * 12, memory=0
)
@given(
    filled=st.lists(writes, max_size=6),
    before=st.none() | st.tuples(st.lists(writes, max_size=4), st.sampled_from([SIZE, SIZE - BLOCK_SIZE, SIZE + BLOCK_SIZE])),
    script=steps,
    due=st.lists(st.booleans(), min_size=12, max_size=20),
    memory=st.sampled_from([0, 100_000, 64 << 20]),
)
def test_every_byte_is_the_guests(
    repositories: Repositories,
    filled: list[Write],
    before: tuple[list[Write], int] | None,
    script: list[Write | int | None],
    due: list[bool],
    memory: int,
) -> None:
    """`before`: what was written since a point (whose disks may have had another size), else it is a first copy."""
    repository = repositories.next()
    vm = repository.surroundings.randomness(16).hex()
    disks = [bytearray(SIZE), bytearray(SIZE)]
    for write in filled:
        lay(disks, write)
    known = None
    if before is not None:
        held = [bytes(disk[: before[1]]).ljust(before[1], b"\7") for disk in disks]
        known = point_before(repository, vm, held), held
        for write in before[0]:
            lay(disks, write)
    guest = Guest(disks, iter(script))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(intake, "_BATCH", 1)  # each block is a piece, if it is due
        patched.setattr(sealing, "_MEMORY", memory)
        with write_point(repository, "test", first_copy=before is None) as writer:
            sealer = copied(repository, writer, guest, known, due)
            assert sealer.replay.is_moment
            point = sealer.commit(known[0] if known else None, Origin(vm, 2, STREAM, {}), 0)
        for number, found in enumerate(contents(repository, point)):
            assert explained(guest, number, found), f"disk {number}"
        assert point.journal is not None
        for _ in list(guest.under_way):
            guest.answer(0)
        with write_point(repository, "test", first_copy=False) as writer:
            sealer = Sealer.after(repository, writer, point, point.journal)
            if (group := guest.group(sealer.replay.sequence)) is not None:
                sealer.feed(group)
            point = sealer.commit(point, Origin(vm, 2, STREAM, {}), 0)
    assert contents(repository, point) == [bytes(disk) for disk in guest.disks]
