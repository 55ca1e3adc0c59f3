# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is asked for when a VM is to be defined again, and what is found out about that before the first byte."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum

from everywhen.services.failures import Failed, Failure, WrongUsage


class As(StrEnum):
    """Which VM it is to be (docs/return.md)."""

    original = "original"
    new = "new"
    files = "files"


@dataclass(frozen=True, slots=True)
class Wishes:
    """`storage`: a pool or path by disk, '' for all others; `network`: a name, `none` or `as-before`, None for what is usual;
    `machine`: a type instead of the definition's; `overwrite`: of block devices that `storage` names."""

    kind: As = As.original
    name: str | None = None
    storage: Mapping[str, str] = field(default_factory=dict)
    network: str | None = None
    image_format: str | None = None
    machine: str | None = None
    start: bool = False
    overwrite: bool = False


class State(Enum):
    """How a check ended."""

    passed = "passed"
    warned = "warned"
    failed = "failed"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: in words; what to do about it, and which failure it is, where it failed."""

    what: str
    state: State = State.passed
    do: tuple[str, ...] = ()
    kind: type[Failure] = Failed


def failed(what: str, *do: str, kind: type[Failure] = Failed) -> Check:
    """Something stands in the way; `do`: ways out, the best first."""
    return Check(what, State.failed, do, kind)


def warned(what: str) -> Check:
    """Somebody should know."""
    return Check(what, State.warned)


def demand(checks: Iterable[Check], vm: str, safe: str) -> None:
    """Raises the Failure of all that failed: of one its own, of several one that has all of them with their ways out."""
    found: dict[str, Check] = {}
    for check in checks:
        if check.state is State.failed:
            found.setdefault(check.what, check)
    wrong = list(found.values())
    if len(wrong) == 1:
        raise wrong[0].kind(wrong[0].what, on=vm, safe=safe, do=wrong[0].do)
    if wrong:
        kinds = {check.kind for check in wrong}
        do = [
            line
            for number, check in enumerate(wrong, 1)
            for line in (f"{number}. {check.what}", *(f"   {way}" for way in check.do))
        ]
        kind = kinds.pop() if len(kinds) == 1 else Failed
        raise kind(f"{len(wrong)} things stand in the way of {vm}.", on=vm, safe=safe, do=do)


def parse_storage(words: Sequence[str], disks: Mapping[str, object]) -> dict[str, str]:
    """`DISK=WHERE`, or `WHERE` for all others. Raises WrongUsage."""
    found: dict[str, str] = {}
    for word in words:
        disk, equals, where = word.partition("=")
        if equals and os.sep not in disk and disk not in disks:
            raise WrongUsage(f'"{word}": there is no disk {disk} in this moment; it has {", ".join(sorted(disks))}.', on=word)
        name, place = (disk, where) if equals and disk in disks else ("", word)
        if not place or name in found:
            raise WrongUsage(f'"{word}" says nothing, or says it twice.', on=word)
        found[name] = place
    return found
