# SPDX-License-Identifier: AGPL-3.0-or-later
"""Copies that are killed again and again, and go on: whatever the guest writes, whatever is lost, the point is the guest's.

The guest is `tests/copied_guests.py`; between two runs nobody captures, and only QEMU's bitmaps remember what is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everywhen.block.device import BLOCK_SIZE
from everywhen.capture.nodes import DiskNode
from everywhen.formats.fields import Json
from everywhen.formats.point import RecoveryPoint
from everywhen.repository import intake
from everywhen.repository.ledger import Vm
from everywhen.repository.repository import Repository
from everywhen.repository.writer import write_point
from everywhen.services.protect import sealing, unfinished_copy
from everywhen.services.protect.closing_gap import CopyProgress, GapCloser
from everywhen.services.protect.local_recipient import LocalConsumption, LocalMaking
from everywhen.services.protect.sealing import Origin, Sealer
from everywhen.services.protect.unfinished_copy import UnfinishedCopies
from tests.copied_guests import (
    NAMES,
    SIZE,
    STREAM,
    Consumed,
    Exported,
    Guest,
    Repositories,
    Write,
    contents,
    explained,
    lay,
    point_before,
    steps,
    writes,
)
from tests.deaf import Deaf
from tests.laboratory import World
from tests.long_forms import SOAK
from tests.records import mark

EXAMPLES = 2000 if SOAK else 40

Event: TypeAlias = Literal["", "restarted", "unprotected", "forgotten", "one replaced", "packs deleted"]


class _Killed(BaseException):
    """The run ends here, without a word."""


@dataclass
class Run:
    """One that is killed when it has looked so often; what is written, and what happens, before the next one begins."""

    looks: int
    written: list[Write]
    event: Event


runs = st.lists(
    st.builds(
        Run,
        st.integers(0, 24),
        st.lists(writes, max_size=4),
        st.sampled_from(("", "", "", "", "restarted", "unprotected", "forgotten", "one replaced", "packs deleted")),
    ),
    min_size=1,
    max_size=4,
)


class Nodes:
    """A guest's bitmaps by a monitor, and its disks to be read: a Monitor and a Reader, as far as they are asked."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.monitor = self
        self.looked_at: list[int] = []

    def execute(self, name: str, arguments: Json) -> Any:
        if name == "query-named-block-nodes":
            return [
                {
                    "node-name": f"node{disk}",
                    "drv": "raw",
                    "image": {"virtual-size": SIZE},
                    "dirty-bitmaps": [
                        {"name": name, "recording": True, "granularity": BLOCK_SIZE, "count": len(blocks) * BLOCK_SIZE}
                        for name, blocks in bitmaps.items()
                    ],
                }
                for disk, bitmaps in enumerate(self.guest.bitmaps)
            ]
        assert name == "transaction"
        for action in arguments["actions"]:
            bitmaps = self.guest.bitmaps[int(action["data"]["node"][-1])]
            match action["type"]:
                case "block-dirty-bitmap-add":
                    assert action["data"]["name"] not in bitmaps
                    bitmaps[action["data"]["name"]] = set()
                case "block-dirty-bitmap-remove":
                    del bitmaps[action["data"]["name"]]
        return {}

    @contextmanager
    def all_of(self, node: DiskNode) -> Iterator[Exported]:
        yield Exported(self.guest, int(node.node[-1]))

    @contextmanager
    def changed(self, node: DiskNode, since: Any) -> Iterator[tuple[Exported, list[tuple[int, int]]]]:
        disk = int(node.node[-1])
        blocks = sorted(self.guest.bitmaps[disk][since.name])
        yield Exported(self.guest, disk), [(one * BLOCK_SIZE, min((one + 1) * BLOCK_SIZE, SIZE)) for one in blocks]


class Closer(GapCloser):
    """Marks the journal of a guest that is none of QEMU's."""

    guest: Guest

    def _complete(self, tap: Any) -> None:
        self.guest.records.append(mark(tap.number, "complete"))


class Lab:
    """One guest, its repository, and the folder of its VM on this host."""

    def __init__(
        self, repository: Repository, guest: Guest, folder: Path, parent: RecoveryPoint | None, due: list[bool]
    ) -> None:
        self.repository = repository
        self.guest = guest
        self.folder = folder
        self.parent = parent
        self.due = iter(due)
        self.now = 0.0
        self.vm = Vm(repository.surroundings.randomness(16).hex(), "web1", "web1", "", "", 0)
        self.replaced = [0, 0]

    def monotonic(self) -> float:
        self.now += 1
        return self.now

    def run(self, looks: int | None) -> RecoveryPoint:
        """As `Capture` does it; killed after so many looks."""
        left = looks

        def look() -> None:
            nonlocal left
            if left is not None and left <= 0:
                raise _Killed
            left = None if left is None else left - 1

        nodes: Any = Nodes(self.guest)
        taps: Any = [SimpleNamespace(number=at, disk=DiskNode(f"vd{at}", f"node{at}", SIZE, False)) for at in range(2)]
        copies = UnfinishedCopies(self.folder, self.repository.surroundings.randomness)
        copies.begin(nodes, {name: tap.disk for name, tap in zip(NAMES, taps, strict=True)})
        look()
        self.guest.tapped()
        files: Any = SimpleNamespace(size=None, ship=None, drop=None, discard=None, remove=None)
        consumption = LocalConsumption(self.repository, self.vm, 2, STREAM, files, new=False)
        with consumption.first_point(self.parent, [(name, SIZE) for name in NAMES], copies.kept) as making:
            consumed: Any = Consumed(self.guest, making.sealer, self.due)
            wishes: Any = SimpleNamespace(wait=lambda _: None, ending=False)
            progress = CopyProgress([SIZE, SIZE], wishes, Deaf(), look)
            closer = Closer("", consumed, {}, copies, self.monotonic)
            closer.guest = self.guest
            for tap, name, disk in zip(taps, NAMES, making.disks, strict=True):
                closer.read(nodes, tap, name, disk, progress)
                look()
            self._feed(making.sealer)
            look()
            point = self._committed(making, self.parent)
        copies.forget()
        return point

    def further(self, point: RecoveryPoint) -> RecoveryPoint:
        """The next point, when all writes have been answered."""
        for _ in list(self.guest.under_way):
            self.guest.answer(0)
        assert point.journal is not None
        with write_point(self.repository, "test", first_copy=False) as writer:
            sealer = Sealer.after(self.repository, writer, point, point.journal)
            self._feed(sealer)
            return sealer.commit(point, Origin(self.vm.vm, 2, STREAM, {}), 0)

    def between(self, run: Run) -> None:
        """What happens while nobody captures."""
        for write in run.written[:2]:
            self.guest.write(write)
        match run.event:
            case "restarted":  # and written to in between
                self.guest.bitmaps = [{}, {}]
            case "unprotected":
                for bitmaps in self.guest.bitmaps:
                    bitmaps.clear()
            case "forgotten":
                (self.folder / "copy.json").unlink(missing_ok=True)
            case "one replaced":
                self.guest.bitmaps[0].clear()
                lay(self.guest.disks, (0, 100, SIZE - 100, 7))
            case "packs deleted" if self.parent is None:  # by a gc, a day later: those of data, and nodes are there still
                store = self.repository.store
                twins = {found.name for found in store.list("twins/packs/")}
                for name in [found.name for found in store.list("packs/") if f"twins/{found.name}" not in twins]:
                    store.delete(name)
        for write in run.written[2:]:
            self.guest.write(write) if run.event != "restarted" else lay(self.guest.disks, write)

    def _committed(self, making: LocalMaking, parent: RecoveryPoint | None) -> RecoveryPoint:
        assert making.sealer.replay.is_moment
        return making.sealer.commit(parent, Origin(self.vm.vm, 2, STREAM, {}), 0)

    def _feed(self, sealer: Sealer) -> None:
        if (group := self.guest.group(sealer.replay.sequence)) is not None:
            sealer.feed(group)


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repositories]:
    with closing(Repositories(World(tmp_path_factory.mktemp("copies")))) as made:
        yield made


@pytest.mark.timeout(1800 if SOAK else 120)
@settings(max_examples=EXAMPLES)
@given(
    filled=st.lists(writes, max_size=6),
    before=st.none() | st.lists(writes, max_size=4),
    script=steps,
    due=st.lists(st.booleans(), min_size=12, max_size=20),
    killed=runs,
    apart=st.sampled_from([0.0, 0.0, 3.0, 12.0]),
    memory=st.sampled_from([0, 100_000, 64 << 20]),
)
def test_every_byte_is_the_guests_however_often_it_was_killed(
    repositories: Repositories,
    tmp_path_factory: pytest.TempPathFactory,
    filled: list[Write],
    before: list[Write] | None,
    script: list[Write | int | None],
    due: list[bool],
    killed: list[Run],
    apart: float,
    memory: int,
) -> None:
    """`before`: what was written since a point of which no bitmap knows, else it is a first copy."""
    disks = [bytearray(SIZE), bytearray(SIZE)]
    for write in filled:
        lay(disks, write)
    repository = repositories.next()
    parent = None
    if before is not None:
        parent = point_before(repository, repository.surroundings.randomness(16).hex(), [bytes(disk) for disk in disks])
        for write in before:
            lay(disks, write)
    guest = Guest(disks, iter(script))
    lab = Lab(repository, guest, tmp_path_factory.mktemp("vm"), parent, due)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(intake, "_BATCH", 1)  # each block is a piece, if it is due
        patched.setattr(sealing, "_MEMORY", memory)
        patched.setattr(unfinished_copy, "_APART_S", apart)
        for run in killed:
            try:
                point = lab.run(run.looks)
            except _Killed:
                lab.between(run)
                continue
            break
        else:
            point = lab.run(None)
        for number, found in enumerate(contents(repository, point)):
            assert explained(guest, number, found), f"disk {number}"
        point = lab.further(point)
    assert contents(repository, point) == [bytes(disk) for disk in guest.disks]


def test_what_is_kept_and_not_there_any_more_is_read_again(
    repositories: Repositories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes of the kept tree are there, and chunks that they name are not."""
    monkeypatch.setattr(intake, "_BATCH", 1)
    monkeypatch.setattr(unfinished_copy, "_APART_S", 0.0)
    content = b"".join(bytes([200 + block]) * BLOCK_SIZE for block in range(6))[:SIZE]
    guest = Guest([bytearray(content), bytearray(SIZE)], iter(()))
    lab = Lab(repositories.next(), guest, tmp_path, None, [])
    with pytest.raises(_Killed):
        lab.run(4)
    kept = UnfinishedCopies(tmp_path, lab.repository.surroundings.randomness).of("vda")
    assert kept is not None
    assert kept.kept is not None
    assert kept.left[0][0] > 0
    lab.between(Run(0, [], "packs deleted"))
    assert contents(lab.repository, lab.run(None)) == [content, bytes(SIZE)]
