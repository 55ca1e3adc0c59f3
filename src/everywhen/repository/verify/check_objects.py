# SPDX-License-Identifier: AGPL-3.0-or-later
"""Checks of small objects: superblock, key slots, documents, and the twins of all of them (rules 4.9.5 and 4.9.6).

An object whose two copies differ may be one that is being written right now. So a suspicion becomes a finding only when
it is looked at again at the end (`Suspicions.settle`): a writer puts the second copy right after the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from everywhen.formats.errors import FormatError
from everywhen.formats.fields import Json, parse_json
from everywhen.formats.keyslot import KeySlot, slot_name
from everywhen.formats.superblock import SUPERBLOCK_NAME, Superblock
from everywhen.repository import condemned, damage
from everywhen.repository.condemned import Condemnation
from everywhen.repository.damage import damaged_copies
from everywhen.repository.documents import Documents
from everywhen.repository.ledger import Drop, Hold, Undone, Vm, in_force
from everywhen.repository.repository import Repository
from everywhen.repository.twins import TWINS, twin_of
from everywhen.repository.verify import giving_up
from everywhen.repository.verify.findings import Finding, Remedy
from everywhen.storage.base import ObjectNotFound, ObjectReader

T = TypeVar("T")
Decode = Callable[[bytes], T]


@dataclass(slots=True)
class Pair:
    """The two copies of an object; `value` is that of the first good one, None when there is none."""

    name: str
    first: bytes | None
    twin: bytes | None
    value: Any = None
    finding: Finding | None = None


def read_pair(store: ObjectReader, name: str, decode: Decode[Any], invariant: str) -> Pair:
    """Both copies of `name`, judged. Two that are gone are no finding: the object was deleted."""
    pair = Pair(name, _get(store, name), _get(store, twin_of(name)))
    first, why_first = _decoded(pair.first, decode)
    twin, why_twin = _decoded(pair.twin, decode)
    pair.value = twin if first is None else first
    if first is None and twin is None:
        if pair.first is not None or pair.twin is not None:
            remedy = Remedy.GIVE_UP if giving_up.meaning(name) else Remedy.NONE
            pair.finding = Finding(invariant, name, f"{why_first}; its twin: {why_twin}", remedy=remedy)
    elif first is None:
        pair.finding = Finding(invariant, name, why_first, spare=twin_of(name), remedy=Remedy.COPY)
    elif twin is None:
        pair.finding = Finding(invariant, twin_of(name), why_twin, spare=name, remedy=Remedy.COPY)
    elif pair.first != pair.twin:
        why = "differs from the object that it should be equal to"
        pair.finding = Finding(invariant, twin_of(name), why, spare=name, remedy=Remedy.COPY)
    return pair


@dataclass(slots=True)
class Suspicions:
    """Pairs that did not look right when they were read first."""

    store: ObjectReader
    checks: list[tuple[str, Decode[Any], str]] = field(default_factory=list)

    def look(self, name: str, decode: Decode[T], invariant: str) -> T | None:
        """The object's value, by its first good copy; None when there is none."""
        pair = read_pair(self.store, name, decode, invariant)
        if pair.finding is not None:
            self.checks.append((name, decode, invariant))
        value: T | None = pair.value
        return value

    def settle(self) -> Iterator[Finding]:
        """What is still not right."""
        for check in self.checks:
            finding = read_pair(self.store, *check).finding
            if finding is not None:
                yield finding


def check_superblock(suspicions: Suspicions) -> None:
    """The superblock and its twin."""
    suspicions.look(SUPERBLOCK_NAME, Superblock.decode, "I-9")


def check_key_slots(repository: Repository, suspicions: Suspicions) -> None:
    """Every key slot has two equal, readable copies."""
    for slot in sorted(names_of_pairs(repository.store, "keys/")):
        suspicions.look(slot_name(slot), partial(KeySlot.decode, slot), "I-9")


def check_vms(repository: Repository, suspicions: Suspicions) -> dict[str, Vm]:
    """All VMs that can be read, by id."""
    return {vm.vm: vm for vm in _each(repository, suspicions, "vms/", Vm.from_json)}


def check_decisions(repository: Repository, suspicions: Suspicions) -> tuple[list[Drop], list[Hold]]:
    """Drops, without what was taken back, and holds (I-10: what cannot be derived is kept where the data is)."""
    drops = _each(repository, suspicions, "drops/", Drop.from_json)
    undone = _each(repository, suspicions, "undone/", Undone.from_json)
    return in_force(drops, undone), _each(repository, suspicions, "holds/", Hold.from_json)


def check_settings(repository: Repository, suspicions: Suspicions) -> None:
    """Whatever is below `settings/` can be read; what it means is its owners' matter."""
    _each(repository, suspicions, "settings/", lambda _, value: value)


def check_condemned(repository: Repository, suspicions: Suspicions) -> None:
    """`condemned/` can be read: who writes or deletes has to, and else stops."""
    _each(repository, suspicions, condemned.PREFIX, Condemnation.from_json)


def check_damage(repository: Repository) -> list[Finding]:
    """`damage/` can be read: everybody who opens the repository has to."""
    try:
        damaged_copies(repository.documents)
    except FormatError:
        unreadable = _unreadable(repository.documents, damage.PREFIX)
        return [Finding("I-9", damage.PREFIX + word, str(why), remedy=Remedy.DELETE) for word, why in unreadable]
    return []


def names_of_pairs(store: ObjectReader, prefix: str) -> set[str]:
    """Names below `prefix`, without it, of objects of which at least one copy is there."""
    first = {found.name.removeprefix(prefix) for found in store.list(prefix)}
    return first | {found.name.removeprefix(TWINS + prefix) for found in store.list(TWINS + prefix)}


def open_document(documents: Documents, name: str, decode: Callable[[Json], T]) -> Decode[T]:
    """A decoder of the document stored under `name`."""
    return lambda data: decode(parse_json(name, documents.open(name, data)))


def _each(repository: Repository, suspicions: Suspicions, prefix: str, decode: Callable[[str, Json], T]) -> list[T]:
    found = []
    for word in sorted(names_of_pairs(repository.store, prefix)):
        name = prefix + word
        value = suspicions.look(name, open_document(repository.documents, name, partial(decode, word)), "I-10")
        if value is not None:
            found.append(value)
    return found


def _unreadable(documents: Documents, prefix: str) -> Iterator[tuple[str, FormatError]]:
    for word in documents.names(prefix):
        try:
            documents.get(prefix + word)
        except ObjectNotFound:
            continue
        except FormatError as error:
            yield word, error


def _get(store: ObjectReader, name: str) -> bytes | None:
    try:
        return store.get(name)
    except ObjectNotFound:
        return None


def _decoded(data: bytes | None, decode: Decode[T]) -> tuple[T | None, str]:
    if data is None:
        return None, "missing"
    try:
        return decode(data), ""
    except FormatError as error:
        return None, str(error)
