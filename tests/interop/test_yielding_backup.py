# SPDX-License-Identifier: AGPL-3.0-or-later
"""A backup that yields keeps no virtual machine from starting, and makes no point of what one may have written to."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from everywhen.repository.repository import Repository
from everywhen.services.backup import BackupOrder, back_up
from everywhen.services.catalog import read_catalog
from everywhen.services.failures import Busy
from everywhen.storage.posix import PosixStore
from tests.hypervisor import Hypervisor
from tests.laboratory import World

SIZE = 4 << 20


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    world = World(tmp_path)
    store = PosixStore(str(tmp_path / "repository"))
    world.create(store, encrypted=False)
    with world.open(store) as opened:
        yield opened


@pytest.fixture
def off(tmp_path: Path) -> Iterator[Hypervisor]:
    """A virtual machine that is off, and whose disk is full."""
    with ExitStack() as ended:
        made = ended.enter_context(Hypervisor(tmp_path, [SIZE]))
        made.quit()
        made.images[0].write_bytes(random.Random(4).randbytes(SIZE))
        ended.pop_all()
        yield made
    if made.process.poll() is None:
        made.kill()


def backed_up(repository: Repository, image: Path, meanwhile: Callable[[], object]) -> None:
    """A backup that yields; `meanwhile` happens once, after something was read."""
    left = [meanwhile]

    def report(done: int, _total: int | None) -> None:
        if done and left:
            left.pop()()

    back_up(repository, read_catalog(repository), BackupOrder("web1", {"vda": str(image)}, image.parent, yields=True), report)


def test_one_that_starts_is_not_hindered(repository: Repository, off: Hypervisor) -> None:
    with pytest.raises(Busy, match="running virtual machine"):
        backed_up(repository, off.images[0], off.start)
    assert off.process.poll() is None
    assert read_catalog(repository).points == []


def test_one_that_was_there_and_is_gone(repository: Repository, off: Hypervisor) -> None:
    def visit() -> None:
        off.start()
        off.write(0, 0, 4096, 7)
        off.quit()

    with pytest.raises(Busy, match="changed while it was read"):
        backed_up(repository, off.images[0], visit)
    assert read_catalog(repository).points == []


def test_one_that_stays_off(repository: Repository, off: Hypervisor) -> None:
    backed_up(repository, off.images[0], lambda: None)
    (point,) = read_catalog(repository).points
    assert (point.reached, point.why) == ("crash", "")
