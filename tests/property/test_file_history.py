# SPDX-License-Identifier: AGPL-3.0-or-later
"""The history of a file against what is seen when every single moment is opened: a file system that the kernel writes to, each
of its writes a moment.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from everywhen.block.patched import Patches
from everywhen.formats.point import RecoveryPoint, Tree
from everywhen.formats.segment import Group
from everywhen.guest.walking import Found, walk
from everywhen.repository.block_differences import BlockDifferences
from everywhen.repository.ledger import Vm
from everywhen.repository.repository import Repository
from everywhen.repository.writer import write_point
from everywhen.services.history.line import At, Line
from everywhen.services.history.opening import OpenedHistory
from everywhen.services.history.presences import Presence, Presences
from everywhen.services.history.sight import TurningFiles
from everywhen.services.history.traces import Traces
from everywhen.services.history.versions import History, last_write
from everywhen.services.protect.sealing import Origin, SealedDisk, Sealer
from everywhen.services.replay import Replay
from everywhen.services.view.blocks import Blocks
from everywhen.services.view.moments import FAILURES
from everywhen.storage.memory import MemoryStore
from tests.guest_images import empty, need, run
from tests.laboratory import World
from tests.long_forms import SOAK
from tests.power_cuts import mounted_beside, recording
from tests.recorded_disk import FLUSH, recorded
from tests.records import Made, group, mark, put_segment, write

BLOCK = 65536
MAKING = {
    "ext4": (("mkfs.ext4", "-q", "-J", "size=1", "-O", "^resize_inode"), 16),
    "xfs": (("mkfs.xfs", "-q"), 300),
    "btrfs": (("mkfs.btrfs", "-q", "--mixed"), 64),
}
"""How they are made, and of how many MiB."""
STREAM = "cd" * 16
ORIGIN = Origin("f" * 32, 1, STREAM, {})
STEPS = 60 if SOAK else 24


def use(folder: Path, chance: random.Random) -> None:
    """One change, of the file itself more often than of what lies beside it; on the disk afterwards."""
    file, beside = folder / "folder" / "file", folder / "folder" / f"beside {chance.randrange(4)}"
    match chance.choice(("write", "write", "append", "replace", "remove", "beside", "beside", "gone", "touch", "move")):
        case "write":
            file.write_bytes(chance.randbytes(chance.choice((0, 5, 5000, 90_000))))
        case "append":
            with file.open("ab") as opened:
                opened.write(b"more")
        case "replace":
            beside.write_bytes(chance.randbytes(300))
            beside.rename(file)
        case "remove":
            file.unlink(missing_ok=True)
        case "beside":
            beside.write_bytes(chance.randbytes(6000))
        case "gone":
            beside.unlink(missing_ok=True)
        case "touch":
            file.touch()
        case "move":
            if file.exists():
                file.rename(beside)
    os.sync()


def written(folder: Path, seed: int, kind: str) -> tuple[bytes, list[tuple[int, bytes]]]:
    """The image before, and the kernel's writes to it."""
    need("fusermount3")
    if os.geteuid() or not os.path.exists("/dev/fuse"):
        pytest.skip("only root may mount")
    image, chance = folder / "disk.img", random.Random(seed)
    make, size = MAKING[kind]
    need(make[0])
    run(*make, empty(image, size << 20))
    before = image.read_bytes()
    with recording(image, folder) as disk, mounted_beside(disk, folder, "") as top:
        (top / "folder").mkdir()
        for _ in range(STEPS):
            use(top, chance)
    return before, [(offset, data) for offset, data in recorded(folder / "record") if offset != FLUSH]


def journalled(
    repository: Repository, before: bytes, writes: list[tuple[int, bytes]], chance: random.Random
) -> list[RecoveryPoint]:
    """Points at some of the writes, all of which are in the journal; the last ones after the newest point."""
    seed: list[Made] = [mark(0, "tap opened")]
    size = len(before)
    blocks = ((at, before[at : at + BLOCK]) for at in range(0, size, BLOCK))
    seed += [write(0, at, data) for at, data in blocks if any(data)]
    first = group(0, *seed, mark(0, "complete"))
    groups, number = [first], len(first)
    for at in range(0, len(writes), 9):
        some = writes[at : at + 9]
        groups.append(group(number, *(write(0, offset, data) for offset, data in some)))
        number += len(groups[-1])
    put_segment(repository, STREAM, 0, *groups)
    with write_point(repository, "test", first_copy=True) as writer:
        sealer = Sealer(
            repository, writer, [SealedDisk("vda", size, Tree(size, None))], Replay([Patches()], 0, following=False)
        )
        sealer.feed(first)
        points = [sealer.commit(None, ORIGIN, 0)]
    waiting: list[Group] = []
    for one in groups[1:]:
        waiting.append(one)
        if chance.random() < 0.35:
            points.append(sealed(repository, points[-1], waiting))
            waiting = []
    return points


def sealed(repository: Repository, before: RecoveryPoint, groups: list[Group]) -> RecoveryPoint:
    """The next point."""
    assert before.journal is not None
    with write_point(repository, "test", first_copy=False) as writer:
        sealer = Sealer.after(repository, writer, before, before.journal)
        for one in groups:
            sealer.feed(one)
        return sealer.commit(before, ORIGIN, 0)


def every_moment(line: Line, newest: At) -> Iterator[At]:
    """All of them, the oldest first; what a point shows as the point's own."""
    at = line.at_point(0)
    while at < newest:
        yield at
        at = line.after(at)
        records = line.records(at.index)
        if records and records.reaches and at.sequence == records.end:
            at = line.at_point(at.index + 1)
    yield newest


@pytest.mark.parametrize("kind", MAKING if SOAK else ["ext4"])
@pytest.mark.parametrize("seed", range(6) if SOAK else [2])
def test_history_is_what_is_seen_at_every_moment(tmp_path: Path, seed: int, kind: str) -> None:
    before, writes = written(tmp_path, seed, kind)
    world, store = World(tmp_path), MemoryStore()
    with world.open(store, world.create(store, encrypted=False)) as repository:
        points = journalled(repository, before, writes, random.Random(seed))
        blocks = Blocks(repository.fetcher)
        line = Line(repository, points, blocks)
        files = TurningFiles(FAILURES)
        try:
            traces = Traces(line, BlockDifferences(repository.fetcher.read_many), blocks, lambda _: None)
            names_are_found(OpenedHistory(Vm("f" * 32, "web1", "", "", "", 0), line, line.newest(), traces, files))
            found = History(line, traces, files, "vda", "/p0/folder/file")
            versions = list(found.versions(line.newest()))
            moments = list(every_moment(line, line.newest()))
            states = [(at, found.look(at).state) for at in moments]
        finally:
            files.close()
            blocks.close()
    expected = [(state, next(of)[0]) for state, of in itertools.groupby(states, key=lambda one: one[1])]
    told = [(one.sight.state, normal(line, one.first)) for one in reversed(versions)]
    assert len(versions) > 3
    if kind != "xfs":
        assert told == expected
        return
    # Of XFS, a log is laid over it from memory: what changed and was changed back between two points is not seen.
    assert [one for one in expected if one in told] == told
    shown = {at: state for at, state in states if at == line.at_point(at.index)}
    assert all(max((one for one in told if one[1] <= at), key=lambda one: one[1])[0] == state for at, state in shown.items())


def names_are_found(opened: OpenedHistory) -> None:
    """From which to which point each name was there, against a walk through each of them."""
    seeking = Presences(opened, ("vda", "/p0"), "*e*i*")  # `file`, `beside 1`
    looked, told = [seeking.last], dict[str, list[int]]()

    def begun(found: list[Presence]) -> None:
        """Told when they are found, before older points are looked at; who is told may look into any moment."""
        assert [one.path for one in found] == sorted(one.path for one in found)
        for one in found:
            assert one.last in (looked[-1], opened.newest.index)
            told.setdefault(one.path, []).append(one.last)
        opened.files.at(opened.line.disks(opened.line.at_point(0))).place("vda", "/p0")

    found = list(seeking.all(looked.append, begun))
    assert sorted((path, last) for path, all_of in told.items() for last in all_of) == sorted(
        (one.path, one.last) for one in found
    )
    assert not seeking.unreadable
    for number in range(seeking.last + 1):
        place = opened.files.at(opened.line.disks(seeking.moment(number))).place("vda", "/p0")
        paths = [f"/p0{one.path}" for one in walk(place.system, place.found) if isinstance(one, Found)]
        there = {path for path in paths if fnmatch(path.rpartition("/")[2], "*e*i*")}
        assert {one.path for one in found if one.first <= number <= one.last} == there
    for one in [one for one in found if one.last < seeking.last][:5]:
        history = History(opened.line, opened.traces, opened.files, "vda", one.path)
        last, gone = last_write(history, seeking.moment(one.last), seeking.moment(one.last + 1)) or (None, None)
        assert last is not None
        assert gone is not None
        assert (history.look(last).entry is None, history.look(gone).entry is None) == (False, True)
        assert normal(opened.line, opened.line.after(last)) == normal(opened.line, gone)


def normal(line: Line, at: At) -> At:
    """The last record before a point is that point."""
    records = line.records(at.index)
    return line.at_point(at.index + 1) if records and records.reaches and at.sequence == records.end else at
