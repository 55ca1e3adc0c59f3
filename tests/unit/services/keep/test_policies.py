# SPDX-License-Identifier: AGPL-3.0-or-later
"""Policies as they stand in a repository: which one is in force, and that none is ever guessed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from everywhen.repository.ledger import Ledger
from everywhen.services.failures import Failed
from everywhen.services.keep.policies import BUILT_IN, read_policy, set_default, set_policy, write_policy
from everywhen.services.keep.pruning import plan_prune
from everywhen.services.keep.retention import DEFAULT, Policy, parse_terms
from everywhen.services.standing import state
from everywhen.services.times import zone_named
from tests.keep_samples import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.backup("web1", [b"a"])
    made.backup("web2", [b"b"])
    yield made
    made.close()


@pytest.mark.parametrize("by_calendar", [False, True])
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires"])
def test_a_policy_is_written_and_read(zone: str, by_calendar: bool) -> None:
    policy = Policy(parse_terms("all 3d, daily 2mo, last 3"), zone_named(zone), by_calendar)
    assert read_policy(write_policy(policy), whose="web1") == policy


def test_the_text_is_one_that_a_person_understands() -> None:
    policy = Policy(parse_terms("daily 2mo"), zone_named("Europe/Berlin"), by_calendar=True)
    assert write_policy(policy) == "daily 2mo; zone Europe/Berlin; by calendar"


@pytest.mark.parametrize("text", ["", "daily 9x; zone UTC", "daily 9d; zone Mars/Olympus", "daily 9d; zone UTC; by moonlight"])
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(Failed, match="policy of web1 cannot be understood") as refused:
        read_policy(text, whose="web1")
    assert refused.value.safe == "Nothing was dropped."


def test_own_then_default_then_built_in(world: World) -> None:
    web1, web2 = world.catalog().vms
    policies = world.policies()
    assert {policies.of(vm).origin for vm in (web1, web2)} == {"built in"}
    assert str(policies.default.policy) == DEFAULT
    line, other = Policy(parse_terms("daily 9d"), zone_named("UTC")), Policy(parse_terms("last 2"), zone_named("Asia/Tokyo"))
    set_policy(world.repository, web1, other)
    set_default(world.repository, line)
    policies = world.policies()
    assert (policies.of(web1).policy, policies.of(web1).origin) == (other, "own")
    assert (policies.of(web2).policy, policies.of(web2).origin) == (line, "default")
    set_policy(world.repository, web1, None)
    set_default(world.repository, None)
    policies = world.policies()
    assert [policies.of(vm).policy for vm in (web1, web2)] == [BUILT_IN, BUILT_IN]


def test_a_policy_that_cannot_be_understood_stops_prune_of_that_vm_only_and_can_be_replaced(world: World) -> None:
    web1, web2 = world.catalog().vms
    Ledger(world.repository.documents).put_vm(replace(web1, policy="hourly 3fortnights; zone UTC"))
    catalog, policies = world.catalog(), world.policies()
    assert policies.of(web2).policy == BUILT_IN
    with pytest.raises(Failed, match="policy of web1 cannot be understood"):
        plan_prune(world.repository, catalog, policies, catalog.vms)
    found = state(world.repository, catalog, policies, catalog.vms, {})
    assert [vm.policy is None for vm in found.vms] == [True, False]
    assert "cannot be understood" in found.vms[0].needs[0]
    assert policies.trying({web1.vm: BUILT_IN}).of(web1).origin == "tried"
    set_policy(world.repository, web1, BUILT_IN)
    assert world.policies().of(web1).policy == BUILT_IN


def test_setting_a_policy_keeps_what_changed_meanwhile(world: World) -> None:
    stale, _ = world.catalog().vms
    Ledger(world.repository.documents).put_vm(replace(stale, source="Web server 1"))
    set_policy(world.repository, stale, BUILT_IN)
    changed, _ = world.catalog().vms
    assert (changed.source, changed.policy) == ("Web server 1", write_policy(BUILT_IN))


def test_policies_outlive_the_cache(world: World, tmp_path: Path) -> None:
    set_default(world.repository, Policy(parse_terms("last 4"), zone_named("UTC")))
    # I-10: both copies are in the repository; one alone suffices.
    world.store.delete("settings/policy")
    assert str(world.policies().default.policy) == "last 4"
