# SPDX-License-Identifier: AGPL-3.0-or-later
"""I-11: by a clock that nothing in the repository confirms, dropped moments are not deleted unasked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from everywhen.repository.gc.roots import SLACK
from everywhen.services.ages import DAY, HOUR
from everywhen.services.keep.deleting import before_deleting
from everywhen.services.keep.pruning import drop
from tests.keep_samples import World, noise


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def asks(world: World) -> bool:
    return before_deleting(world.repository) is not None


def test_gc_asks_when_nothing_is_of_the_day_that_the_clock_says(world: World) -> None:
    given_up = world.backup("web1", [noise()])
    drop(world.repository, [given_up], "test")
    dropped = world.now
    world.now += 72 * HOUR
    assert not asks(world), "they come back until a little later: nothing would go"
    world.now += SLACK
    brake = before_deleting(world.repository)
    assert brake is not None
    assert brake.words.endswith(
        "3 d after the nearest moment in this repository, and 1 dropped moments would go for good. Is the clock right?"
    )
    world.backup("web2", [noise()])
    assert not asks(world), "a VM that was given up stops nobody: another one's moment confirms the clock"
    written = world.now
    world.now = written + DAY
    assert not asks(world)
    world.now = written + DAY + 1
    assert asks(world)
    # A clock that ran ahead once neither stops everybody nor speaks for a clock that does not.
    ahead = world.now = dropped + 400 * DAY
    world.backup("web3", [noise()])
    world.now = written + DAY
    assert not asks(world)
    world.now = written + 30 * DAY
    assert asks(world)
    world.now = ahead - DAY - 1
    assert asks(world)


def test_a_drop_confirms_the_clock_as_well(world: World) -> None:
    points = [world.backup("web1", [noise()]) for _ in range(3)]
    drop(world.repository, points[:1], "test")
    world.now += 80 * HOUR
    assert asks(world)
    drop(world.repository, points[1:2], "test")
    assert not asks(world)
