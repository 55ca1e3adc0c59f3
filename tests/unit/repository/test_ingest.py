# SPDX-License-Identifier: AGPL-3.0-or-later
"""A pack that could not be stored is never forgotten: nothing that lacks it may be committed (I-1, I-2)."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from everywhen.repository import ingest
from everywhen.repository.keys.keys import Unlocked
from everywhen.storage.base import OutOfSpace
from everywhen.storage.faulty import Fault, FaultyStore
from everywhen.storage.memory import MemoryStore
from tests.interleaving import Inline
from tests.laboratory import SparseDisk, World, block, shrink_packs


class LateFuture(Future[Any]):
    """Not done when it is first asked, done (and failed) when it is asked again: what a race looks like from outside."""

    asked = False

    def done(self) -> bool:
        before, self.asked = self.asked, True
        return before and super().done()


class Late(Inline):
    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done = super().submit(work, *args, **kwargs)
        future = LateFuture()
        if error := done.exception():
            future.set_exception(error)
        else:
            future.set_result(done.result())
        return future


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("threads", ["real", "late"])
def test_no_point_without_all_its_packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: str, number: int) -> None:
    shrink_packs(monkeypatch, 8 << 10)
    if threads == "late":
        monkeypatch.setattr(ingest, "ThreadPoolExecutor", Late)
    world, inner = World(tmp_path), MemoryStore()
    unlocked: Unlocked = world.create(inner, encrypted=False)
    store = FaultyStore(inner)
    disk = SparseDisk(4 << 20, {each: block(each) for each in range(40)})
    with world.open(store, unlocked) as repository:
        store.add(Fault("put", number, "packs/", error=OutOfSpace))
        with pytest.raises(OutOfSpace):
            world.back_up(repository, {"vda": disk})
        points, _, _ = repository.points.list()
        assert not points
