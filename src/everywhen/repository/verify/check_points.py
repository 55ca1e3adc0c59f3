# SPDX-License-Identifier: AGPL-3.0-or-later
"""Checks of recovery points: each can be read, twice; each VM's chain is whole and authentic (rule 4.9.6, I-4).

Read from the store, never from the cache of points: that would hide that both copies are gone.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from blake3 import blake3

from everywhen.formats.fields import parse_json
from everywhen.formats.ids import PointId, is_point_id
from everywhen.formats.point import RecoveryPoint, Tombstone, decode_point
from everywhen.repository.ledger import Drop
from everywhen.repository.points import PREFIX
from everywhen.repository.repository import Repository
from everywhen.repository.verify.check_objects import Decode, Suspicions, names_of_pairs
from everywhen.repository.verify.findings import Finding, Loss

_PARALLEL_READS = 8


@dataclass(slots=True)
class Standing:
    """Points as the store has them. `digests`: by which a successor names a point."""

    points: dict[str, RecoveryPoint] = field(default_factory=dict)
    digests: dict[str, bytes] = field(default_factory=dict)
    tombstones: set[str] = field(default_factory=set)
    unreadable: set[str] = field(default_factory=set)
    """Points of which neither copy can be read."""


def check_points(repository: Repository, suspicions: Suspicions) -> Standing:
    """Read every point from both of its copies."""
    names = sorted(name for name in names_of_pairs(repository.store, PREFIX) if is_point_id(name))
    standing = Standing()
    with ThreadPoolExecutor(_PARALLEL_READS) as pool:
        found = pool.map(lambda name: suspicions.look(PREFIX + name, _decoder(repository, name), "I-1"), names)
        for name, value in zip(names, found, strict=True):
            if value is None:
                standing.unreadable.add(name)
                continue
            point, digest = value
            if isinstance(point, Tombstone):
                standing.tombstones.add(name)
            else:
                standing.points[name] = point
                standing.digests[name] = digest
    return standing


def check_chains(standing: Standing, drops: list[Drop]) -> list[Finding]:
    """Every parent is there, or a prune dropped it; what is there is what its successor names, and comes before it."""
    dropped = {point for drop in drops for point in drop.points}
    explained = dropped | standing.unreadable
    found = []
    for name, point in standing.points.items():
        link = point.parent
        if link is None:
            continue
        parent = standing.points.get(link.point)
        if parent is not None:
            why = _disagreement(point, parent, standing.digests[link.point])
            if why:
                found.append(Finding("I-4", PREFIX + name, why))
        elif link.point not in explained:
            loss = Loss(point.vm, "moment", "", (), ((link.point, 0),))
            why = f"missing: {name} says that it came before it, and no prune dropped it"
            found.append(Finding("I-4", PREFIX + link.point, why, losses=[loss]))
    return found


def lost_point(name: str, standing: Standing) -> Loss:
    """What is known of a point that cannot be read, from the point that came after it."""
    for point in standing.points.values():
        if point.parent is not None and point.parent.point == name:
            return Loss(point.vm, "moment", "", (), ((name, 0),))
    return Loss("", "moment", "", (), ((name, 0),))


def _decoder(repository: Repository, name: str) -> Decode[tuple[RecoveryPoint | Tombstone, bytes]]:
    key = repository.unlocked.keyset.naming_key

    def decode(data: bytes) -> tuple[RecoveryPoint | Tombstone, bytes]:
        plain = repository.documents.open(PREFIX + name, data)
        return decode_point(parse_json(PointId(name), plain)), blake3(plain, key=key).digest()

    return decode


def _disagreement(point: RecoveryPoint, parent: RecoveryPoint, digest: bytes) -> str:
    if point.parent is not None and point.parent.digest != digest:
        return f"its parent {parent.point} is not the one that it was made after (digest)"
    if point.number <= parent.number or point.time_ns < parent.time_ns:
        return f"number {point.number} does not follow its parent {parent.point} (number {parent.number})"
    if point.epoch < parent.epoch:
        return f"epoch {point.epoch} does not follow that of its parent {parent.point} (epoch {parent.epoch})"
    return ""
