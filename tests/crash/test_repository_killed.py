# SPDX-License-Identifier: AGPL-3.0-or-later
"""kill -9 in the middle of a backup, in a process of its own on a real file system, and what the next run makes of it.

The child kills itself before its n-th put of a pack, so the moment is determined. Also leftovers of a put that was torn.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from everywhen.formats.ids import PointId
from everywhen.repository.index.index import Copy
from everywhen.repository.keys import keys
from everywhen.repository.keys.keyslots import Cost, Mint
from everywhen.repository.presence import Holder
from everywhen.repository.repository import Repository, Surroundings
from everywhen.storage.memory import MemoryStore
from everywhen.storage.posix import TEMPORARY, PosixStore
from everywhen.storage.recording import Put, RecordingStore, leave_torn, replay
from tests.laboratory import SparseDisk, Truth, World, block, shrink_packs

ROOT = Path(__file__).parents[2]
DISK = SparseDisk(2 << 20, {number: block(number) for number in range(30)})

CHILD = """
import os, signal, sys
sys.path.insert(0, {root!r})
from pathlib import Path
import pytest
from everywhen.storage.faulty import FaultyStore
from everywhen.storage.posix import PosixStore
from tests.crash import test_repository_killed as parts

count = 0

def deadly(operation):
    global count
    if operation.kind == "put" and operation.name.startswith({prefix!r}):
        count += 1
        if count == {number}:
            os.kill(os.getpid(), signal.SIGKILL)

parts.shrink_packs(pytest.MonkeyPatch(), 8 << 10)
store = FaultyStore(PosixStore({store!r}))
store.before = deadly
world = parts.real_world(Path({folder!r}))
with parts.opened(world, store) as repository:
    world.back_up(repository, {{"vda": parts.DISK}})
"""


def real_world(folder: Path) -> World:
    world = World(folder)
    world.random.seed(os.urandom(16))
    return world


def opened(world: World, store: object) -> Repository:
    """As this process of this host, so that a dead one is known for dead."""
    unlocked = keys.unlock(store, keys.read_superblock(store), None)  # type: ignore[arg-type]
    holder = Holder("this-host.test", "this boot", os.getpid(), "tester", "this namespace")
    cache = world.folder / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    return Repository(store, unlocked, Surroundings(world.clock, world.random.randbytes, holder, cache))  # type: ignore[arg-type]


def stored(store: PosixStore) -> int:
    return sum(found.size for found in store.list("packs/"))


def copies(repository: Repository) -> list[Copy]:
    """All stored copies of the disk's blocks."""
    codec = repository.codec
    return [copy for content in DISK.blocks.values() for copy in repository.index.all_copies(codec.name(content))]


KILLS = [("packs/", 1), ("packs/", 3), ("twins/packs/", 1), ("points/", 1), ("twins/points/", 1)]


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL on Windows")
@pytest.mark.parametrize(("prefix", "number"), KILLS)
def test_a_killed_backup_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str, number: int) -> None:
    shrink_packs(monkeypatch, 8 << 10)
    world = real_world(tmp_path)
    store = PosixStore(str(tmp_path / "store"))
    keys.create(store, Mint(os.urandom, world.clock(), Cost(8, 1, 1)), passphrase=None)

    whole = PosixStore(str(tmp_path / "whole"))
    for found in store.list():
        whole.put(found.name, [store.get(found.name)])
    with opened(real_world(tmp_path / "other"), whole) as repository:
        full = world.back_up(repository, {"vda": DISK}).disks["vda"].bytes_stored

    script = CHILD.format(root=str(ROOT), store=str(tmp_path / "store"), folder=str(tmp_path), prefix=prefix, number=number)
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr
    (session,) = [found.name for found in store.list("sessions/")]
    dead = PointId(session.removeprefix("sessions/"))
    was_there = stored(store)
    committed = prefix == "twins/points/"
    if committed:
        world.truths[dead] = Truth({"vda": DISK.meaning()}, {})

    with opened(world, store) as repository:
        # gc before the next try: it fences the dead one at once, and keeps what it stored.
        world.clock.advance(60)
        collected = world.collect(repository)
        assert stored(store) == was_there
        assert collected.packs_deleted == 0
        assert store.size(f"points/{dead}") > 0
        assert bool(list(store.list("sessions/"))) == committed
        there = copies(repository)
        again = world.back_up(repository, {"vda": DISK})
        assert again.disks["vda"].bytes_stored + sum(copy.length for copy in there) == full
        assert len(copies(repository)) == len(DISK.blocks)
        assert (len(there) > 0) == ((prefix, number) != ("packs/", 1))
        world.audit(repository, {again.point} | ({dead} if committed else set()))
        world.clock.advance(25 * 3600)
        world.collect(repository)
        world.audit(repository, {again.point} | ({dead} if committed else set()))
    store.close()
    whole.close()


def test_torn_puts_leave_nothing_that_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_packs(monkeypatch)
    world = real_world(tmp_path)
    recorded = RecordingStore(MemoryStore())
    world.create(recorded, encrypted=False)
    with world.open(recorded) as repository:
        first = world.back_up(repository, {"vda": DISK})
        acknowledged = len(recorded.changes)
        disk = DISK.copy()
        disk.blocks |= {number: block(("new", number)) for number in range(4)}
        world.back_up(repository, {"vda": disk}, parent=first)
    for count in range(acknowledged, len(recorded.changes)):
        torn = recorded.changes[count]
        if not isinstance(torn, Put):
            continue
        root = tmp_path / f"store-{count}"
        store = PosixStore(str(root))
        replay(recorded.changes[:count], store)
        leave_torn(torn, str(root), length=len(torn.content) // 2)
        before = {found.name for found in store.list()}
        with world.open(store) as repository:
            world.audit(repository, {first.point})
            new = world.back_up(repository, {"vda": disk}, parent=first)
            world.clock.advance(2 * 24 * 3600)
            world.collect(repository)
            world.audit(repository, {first.point, new.point})
        assert not any(TEMPORARY in name for name in before)
        store.close()
