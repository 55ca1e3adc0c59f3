# SPDX-License-Identifier: AGPL-3.0-or-later
"""Holds: what retention may not drop, with a reason and perhaps an end; and what ending one will mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import tzinfo

from everywhen.formats.ids import random_word
from everywhen.formats.point import RecoveryPoint
from everywhen.repository.ledger import Hold, Ledger, Vm
from everywhen.repository.repository import Repository
from everywhen.services.ages import parse_span
from everywhen.services.catalog import Catalog
from everywhen.services.failures import NotFound, WrongUsage
from everywhen.services.keep.policies import Policies, signature
from everywhen.services.keep.pruning import plan_vm, take_back
from everywhen.services.times import parse_time


def parse_until(text: str, *, now_ns: int, zone: tzinfo) -> int:
    """The end of a hold, in ns since 1970 UTC: a date (its last instant), a time, or a span from now (`30d`).

    Raises WrongUsage, also for what lies in the past.
    """
    plain = text.strip()
    if plain[-1:].isalpha() and plain[:1].isdigit() and "-" not in plain:
        return now_ns + parse_span(plain)
    end = parse_time(plain, now_ns=now_ns, zone=zone).latest_ns
    if end <= now_ns:
        raise WrongUsage(
            f"--until {text} is over already.", on=text, do=["Say a later date, as 2031-12-31, or a span, as 30d."]
        )
    return end


def hold(repository: Repository, point: RecoveryPoint, reason: str, until_ns: int) -> Hold:
    """Hold a moment, durable on return; `until_ns` 0: until it is released. A drop made meanwhile loses. Raises WrongUsage."""
    if not reason.strip():
        raise WrongUsage("A hold needs a reason: somebody will ask in three years.", do=['--reason "audit 2026"'])
    repository.unlocked.superblock.require("write")
    word = random_word(repository.surroundings.randomness, 16)
    made = Hold(word, point.point, reason.strip(), until_ns, signature(repository))
    # A drop that cannot be read keeps nobody from holding: while it is there, gc deletes nothing.
    ledger = Ledger(repository.documents, unreadable=[])
    ledger.put_hold(made)
    for drop in ledger.drops():
        if point.point in drop.points:
            take_back(repository, drop, {point.point})
    return made


def release(repository: Repository, holds: Sequence[Hold]) -> None:
    """End these holds."""
    repository.unlocked.superblock.require("write")
    ledger = Ledger(repository.documents)
    for one in holds:
        ledger.release(one)


def holds_on(catalog: Catalog, point: RecoveryPoint, reason: str | None, now_ns: int) -> list[Hold]:
    """The holds on a moment that are meant: the only one, or all with that reason. Raises NotFound, WrongUsage."""
    active = [one for one in catalog.active_holds(now_ns) if one.point == point.point]
    meant = [one for one in active if reason is None or one.reason == reason]
    if not meant:
        which = "" if reason is None else f' for "{reason}"'
        raise NotFound(f"{point.point} is not held{which}.", on=point.point, do=["everywhen hold (lists all holds)"])
    if len({one.reason for one in meant}) > 1:
        reasons = [f'--reason "{one.reason}"' for one in meant]
        raise WrongUsage(
            f"{point.point} is held for {len(meant)} reasons.",
            on=point.point,
            safe="Nothing was released.",
            do=["Say which of them:", *reasons],
        )
    return meant


def kept_without(
    catalog: Catalog, policies: Policies, vm: Vm, point: RecoveryPoint, gone: Sequence[Hold], now_ns: int
) -> tuple[str, ...]:
    """What still keeps a moment when these holds are gone, as terms of the policy; empty: the next prune drops it."""
    left = {one.hold for one in gone}
    after = replace(catalog, holds=[one for one in catalog.holds if one.hold not in left])
    plan = plan_vm(after, vm, policies.of(vm), (), now_ns).plan
    return next(decision.kept_as for decision in plan.decisions if decision.moment.id == point.point)
