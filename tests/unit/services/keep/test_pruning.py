# SPDX-License-Identifier: AGPL-3.0-or-later
"""I-11 in a real repository: what prune drops, what it leaves alone, and how it is taken back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from everywhen.repository.gc.gc import collect
from everywhen.repository.ledger import Hold, Ledger
from everywhen.repository.reading import opened_points
from everywhen.services.ages import DAY, HOUR, MINUTE
from everywhen.services.failures import NotFound, WrongUsage
from everywhen.services.keep import holding
from everywhen.services.keep.policies import set_delay, set_policy
from everywhen.services.keep.pruning import VmPlan, drop, plan_prune, undo
from everywhen.services.keep.retention import Policy, parse_terms
from everywhen.services.times import zone_named
from tests.keep_samples import START, World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def hourly(world: World, vm: str, count: int) -> list[str]:
    """`count` points, one an hour, the last one now."""
    points = []
    for number in range(count):
        points.append(world.backup(vm, [bytes([number + 1])]))
        world.now += HOUR
    world.now -= HOUR
    return points


def policy(line: str) -> Policy:
    return Policy(parse_terms(line), zone_named("UTC"))


def plans(world: World) -> list[VmPlan]:
    catalog = world.catalog()
    return plan_prune(world.repository, catalog, world.policies(), catalog.vms)


def going(world: World) -> list[str]:
    return sorted(moment.id for plan in plans(world) for moment in plan.dropped)


def test_prune_drops_what_the_policy_lets_go_and_nothing_is_deleted(world: World) -> None:
    points = hourly(world, "web1", 12)
    set_policy(world.repository, world.catalog().vm("web1"), policy("last 8"))
    assert going(world) == sorted(points[:4])
    assert [brake.code for brake in plans(world)[0].brakes] == []
    made = drop(world.repository, going(world), "prune by policy")
    assert (made.dropped_ns, made.effective_ns, made.by) == (world.now, world.now + 72 * HOUR, "ann@kvm1")
    assert [point.point for point in world.catalog().points] == points[4:]
    assert going(world) == []
    for point in points:
        world.store.size(f"points/{point}")


def test_undo_takes_back_all_or_what_is_named_until_it_is_too_late(world: World) -> None:
    points, others = hourly(world, "web1", 3), hourly(world, "web2", 2)
    drop(world.repository, [*points[:2], others[0]], "test")
    catalog = world.catalog()
    assert undo(world.repository, catalog, [], dry_run=True) == (sorted([*points[:2], others[0]]), [])
    assert len(world.catalog().points) == 2
    assert undo(world.repository, catalog, [points[0][:8]]) == ([points[0]], [])
    assert undo(world.repository, world.catalog(), ["web2"]) == ([others[0]], [])
    with pytest.raises(NotFound, match="No moments of web2 can be taken back"):
        undo(world.repository, world.catalog(), ["web2"])
    world.now += 72 * HOUR
    with pytest.raises(NotFound, match="cannot be taken back any more"):
        undo(world.repository, world.catalog(), [points[1]])
    assert undo(world.repository, world.catalog(), []) == ([], [])
    assert points[1] not in {point.point for point in world.catalog().points}


def test_what_gc_deleted_is_reported_as_lost(world: World) -> None:
    points = hourly(world, "web1", 3)
    made = drop(world.repository, [points[0]], "test")
    catalog = world.catalog()
    world.now += 73 * HOUR
    collect(world.repository, wait=False, dry_run=False, note=lambda *_: None, pause=lambda _: None)
    world.now -= 73 * HOUR
    assert undo(world.repository, replace(catalog, drops=[made]), []) == ([], [points[0]])


def test_held_moments_never_go_and_a_hold_made_at_the_same_time_wins(world: World) -> None:
    points = hourly(world, "web1", 6)
    set_policy(world.repository, world.catalog().vm("web1"), policy("last 1"))
    holding.hold(world.repository, world.catalog().points[0], "audit 2026", world.now + DAY)
    assert going(world) == sorted(points[1:5])
    # A hold that prune did not see when it planned:
    Ledger(world.repository.documents).put_hold(Hold("late", points[1], "court", 0, "bob@kvm2"))
    made = drop(world.repository, sorted(points[1:5]), "prune by policy")
    assert made.points == sorted(points[2:5])
    assert {point.point for point in world.catalog().points} == {points[0], points[1], points[5]}
    # A drop that hold did not see:
    catalog = world.catalog()
    drop(world.repository, [points[1]], "test")
    Ledger(world.repository.documents).release(Hold("late", points[1], "court", 0, ""))
    drop(world.repository, [points[1]], "twice, by another computer")
    holding.hold(world.repository, catalog.points[1], "again", 0)
    assert points[1] in {point.point for point in world.catalog().points}


def test_a_hold_ends_by_the_clock(world: World) -> None:
    points = hourly(world, "web1", 3)
    set_policy(world.repository, world.catalog().vm("web1"), policy("last 1"))
    holding.hold(world.repository, world.catalog().points[0], "audit", world.now + HOUR)
    assert going(world) == [points[1]]
    world.now += HOUR
    assert going(world) == sorted(points[:2])


def test_what_somebody_has_open_stays(world: World) -> None:
    points = hourly(world, "web1", 5)
    set_policy(world.repository, world.catalog().vm("web1"), policy("last 4"))
    with opened_points(world.repository, "restore web1", [world.catalog().points[0]]):
        [plan] = plans(world)
        assert plan.dropped == []
        assert [moment.id for moment in plan.open] == [points[0]]
    assert going(world) == [points[0]]


def test_a_third_and_a_wrong_clock_ask(world: World) -> None:
    hourly(world, "web1", 9)
    set_policy(world.repository, world.catalog().vm("web1"), policy("last 5"))
    assert [brake.code for brake in plans(world)[0].brakes] == ["third"]
    set_policy(world.repository, world.catalog().vm("web1"), policy("last 6"))
    assert plans(world)[0].brakes == []
    world.now += DAY + MINUTE
    assert [brake.code for brake in plans(world)[0].brakes] == ["clock"]


def test_a_raised_delay_protects_what_was_dropped_before(world: World) -> None:
    points = hourly(world, "web1", 3)
    made = drop(world.repository, [points[0]], "a thief")
    world.now += HOUR
    assert [longer.drop for longer in set_delay(world.repository, 30 * DAY)] == [made.drop]
    [now] = world.catalog().drops
    assert now.effective_ns == made.dropped_ns + 30 * DAY
    world.now += 29 * DAY
    assert undo(world.repository, world.catalog(), []) == ([points[0]], [])


def test_a_lowered_delay_waits_for_the_old_one(world: World) -> None:
    points = hourly(world, "web1", 4)
    assert set_delay(world.repository, 0) == []
    assert drop(world.repository, points[:1], "a thief").effective_ns == world.now + 72 * HOUR
    world.now += 72 * HOUR
    assert drop(world.repository, points[1:2], "later").effective_ns == world.now


def test_release_says_what_it_will_mean(world: World) -> None:
    points = hourly(world, "web1", 3)
    vm = world.catalog().vm("web1")
    set_policy(world.repository, vm, policy("last 1"))
    for number, reason in ((0, "audit"), (0, "court"), (2, "mine")):
        holding.hold(world.repository, world.catalog().points[number], reason, 0)
    catalog, policies = world.catalog(), world.policies()
    first, last = catalog.points[0], catalog.points[2]
    with pytest.raises(WrongUsage, match="is held for 2 reasons") as refused:
        holding.holds_on(catalog, first, None, world.now)
    assert '--reason "court"' in refused.value.do
    [audit] = holding.holds_on(catalog, first, "audit", world.now)
    assert holding.kept_without(catalog, policies, vm, first, [audit], world.now) == ("held",)
    mine = holding.holds_on(catalog, last, None, world.now)
    assert holding.kept_without(catalog, policies, vm, last, mine, world.now) == ("last",)
    holding.release(world.repository, [audit])
    [court] = holding.holds_on(world.catalog(), first, None, world.now)
    assert holding.kept_without(world.catalog(), policies, vm, first, [court], world.now) == ()
    with pytest.raises(NotFound, match="is not held"):
        holding.holds_on(world.catalog(), catalog.points[1], None, world.now)
    assert points[0] == first.point


@pytest.mark.parametrize(("text", "end"), [("30d", START + 30 * DAY), ("2h", START + 2 * HOUR)])
def test_until_a_span(text: str, end: int) -> None:
    assert holding.parse_until(text, now_ns=START, zone=zone_named("UTC")) == end


def test_until_a_date_is_the_end_of_that_day_and_never_in_the_past() -> None:
    zone = zone_named("Europe/Berlin")
    end = holding.parse_until("2026-12-31", now_ns=START, zone=zone)
    assert end == holding.parse_until("2026-12-31T23:59:59.999999999+01:00", now_ns=START, zone=zone)
    with pytest.raises(WrongUsage, match="is over already"):
        holding.parse_until("2026-11-17", now_ns=START, zone=zone)
