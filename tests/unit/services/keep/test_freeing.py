# SPDX-License-Identifier: AGPL-3.0-or-later
"""What would come free, against what is known of the images, and against what gc really frees."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from everywhen.block.device import BLOCK_SIZE
from everywhen.repository.gc.gc import collect
from everywhen.services.ages import HOUR
from everywhen.services.keep.freeing import frees, needs
from everywhen.services.keep.making_room import proposals
from everywhen.services.keep.policies import set_default, set_policy
from everywhen.services.keep.pruning import drop, plan_prune
from everywhen.services.keep.retention import Policy, parse_terms
from everywhen.services.statistics import growth, statistics
from everywhen.services.times import zone_named
from tests.keep_samples import World, noise


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def freed(world: World, *choices: set[str]) -> list[int]:
    world.repository.refresh()
    return frees(world.repository, world.catalog().points, list(choices), lambda done, total: None)


def about(count: int, blocks: int) -> bool:
    """Whether `count` bytes are those of so many random blocks and the map nodes that name them."""
    return blocks * BLOCK_SIZE <= count <= blocks * BLOCK_SIZE + 4096


def test_only_what_nobody_else_needs_comes_free(world: World) -> None:
    a, b, c, d, e = (noise() for _ in range(5))
    first = world.backup("web1", [a, b, c])
    world.now += HOUR
    second = world.backup("web1", [a, d, c])
    other = world.backup("web2", [e, a])
    one, two, both, web2 = freed(world, {first}, {second}, {first, second}, {other})
    assert about(one, 1)
    assert about(two, 1)
    assert about(both, 4 - 1)  # b, c, d: a is in web2 too
    assert about(web2, 1)
    # What is held together by two points comes free only with both.
    assert both > one + two + BLOCK_SIZE


def test_the_base_of_a_delta_does_not_come_free(world: World) -> None:
    block = noise()
    first = world.backup("web1", [block])
    world.now += HOUR
    second = world.backup("web1", [b"new!" + block[4:]])
    old, new = freed(world, {first}, {second})
    assert old < 1000
    assert new < 1000


def test_the_estimate_is_what_gc_frees(world: World) -> None:
    chance = random.Random(7)
    blocks = [noise() for _ in range(24)]
    points = []
    for _ in range(8):
        for at in chance.sample(range(24), 6):
            blocks[at] = noise()
        points.append(world.backup("web1", blocks))
        world.now += HOUR
    going = set(points[:5])
    [estimate] = freed(world, going)
    before = sum(found.size for found in world.store.list("packs/"))
    drop(world.repository, sorted(going), "test")
    world.now += 73 * HOUR
    collect(world.repository, wait=False, dry_run=False, note=lambda *_: None, pause=lambda _: None)
    really = before - sum(found.size for found in world.store.list("packs/"))
    assert abs(really - estimate) <= 0.1 * estimate
    assert freed(world, set()) == [0]


def test_statistics_of_known_images(world: World) -> None:
    a, b, c, d = (noise() for _ in range(4))
    world.backup("web1", [a, b, bytes(BLOCK_SIZE)])
    world.now += 48 * HOUR
    world.backup("web1", [a, c, b])
    world.backup("web2", [a, d])
    world.repository.refresh()
    catalog = world.catalog()
    found = statistics(world.repository, catalog, [], lambda done, total: None)
    assert (found.points, found.chunks, found.missing) == (3, 4, 0)
    assert found.logical_bytes == (2 + 3 + 2) * BLOCK_SIZE
    assert found.unique_bytes == 4 * BLOCK_SIZE
    assert found.stored_bytes == sum(one.size for one in world.store.list())
    assert found.unique_bytes < found.stored_bytes < 1.2 * found.unique_bytes
    assert [vm.would_free_bytes for vm in found.vms] == [None, None]
    [web1] = statistics(world.repository, catalog, [catalog.vm("web1")], lambda done, total: None).vms
    assert (web1.points, web1.logical_bytes) == (2, 5 * BLOCK_SIZE)
    assert (web1.unique_bytes, web1.shared_bytes) == (3 * BLOCK_SIZE, BLOCK_SIZE)
    assert web1.would_free_bytes is not None
    assert about(web1.would_free_bytes, 2)
    assert web1.growth.days == 2
    assert web1.growth.changed == BLOCK_SIZE  # two blocks in two days


def test_growth_needs_a_day(world: World) -> None:
    world.backup("web1", [noise()])
    world.now += 23 * HOUR
    world.backup("web1", [noise()])
    assert growth(world.catalog().points).stored is None
    world.now += HOUR
    world.backup("web1", [noise()])
    found = growth(world.catalog().points)
    assert found.stored is not None
    assert about(found.stored, 2)
    assert growth([]).stored is None


def test_proposals_are_ranked_by_what_they_cost_and_their_commands_do_what_they_say(world: World) -> None:
    vm = "web1"
    for _ in range(12):
        world.backup(vm, [noise()])
        world.now += HOUR
    world.backup("old", [noise()])
    world.backup("old", [noise()])
    world.now += 40 * 24 * HOUR + HOUR
    world.backup(vm, [noise()])
    set_default(world.repository, Policy(parse_terms("last 10, yearly 5y"), zone_named("UTC")))
    set_policy(world.repository, world.catalog().vm("old"), Policy(parse_terms("last 9"), zone_named("UTC")))
    drop(world.repository, [world.catalog().points[0].point], "test")
    world.repository.refresh()
    catalog, policies = world.catalog(), world.policies()
    plans = plan_prune(world.repository, catalog, policies, catalog.vms)
    found = proposals(world.repository, catalog, policies, plans, lambda done, total: None)
    assert [one.moments for one in found] == sorted(one.moments for one in found)
    by_words = {one.words: one for one in found}
    assert about(by_words["wait for the moments that were dropped already"].frees, 1)
    assert about(by_words["drop what the policies let go"].frees, 2)
    half = by_words["the default policy: last 10 → last 5"]
    assert half.do == 'everywhen policy set --default "yearly 5y, last 5"'
    assert half.moments == 5
    assert about(half.frees, 5)
    silent = by_words["old, silent for 40 d: keep its newest moment only"]
    assert (silent.moments, about(silent.frees, 1)) == (1, True)
    assert silent.do == 'everywhen policy set old "last 1"'


def test_needs_of_nothing(world: World) -> None:
    whole, rest = needs(world.repository, [], [], lambda done, total: None)
    assert (whole.stored_bytes, whole.chunks, whole.missing, rest) == (0, 0, 0, [])
