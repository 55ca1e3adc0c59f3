# SPDX-License-Identifier: AGPL-3.0-or-later
"""Epochs: the captures of a VM in their order. Each claims a number of its own, `epochs/<vm>/<16 hex digits>`, put if absent.

Two captures of one VM are two branches of its history, never one (design 4.10.5). Every recovery point has the epoch of its
capture, and the points decide: the capture with the highest epoch of which there is a point is the VM's (docs/locking.md,
"Captures"). A claim gives each a number that no other has, and says cheaply, by a listing of a name or two, that there may be
another one by now.

Fields: `holder` (`host`, `boot`, `pid`, `user`, `pids`) and `since_ns`, for people who read that another one captures the VM.
The number is in the name: a claim that cannot be read still counts. One that is lost costs little: the next number lies above
those of the points, too, and a capture of every write looks at the points themselves before it makes one. So there is no
twin, and `verify` has nothing to say about it.

A name is not sealed, and whoever can write to the store can put any: a number of 2^62 and more is refused, not counted on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from everywhen.formats.errors import FormatError
from everywhen.formats.fields import mapping, whole
from everywhen.formats.point import RecoveryPoint
from everywhen.repository.alone import alone
from everywhen.repository.documents import Documents
from everywhen.repository.errors import ForeignClaim
from everywhen.repository.presence import Holder
from everywhen.repository.repository import Repository
from everywhen.storage.base import AlreadyExists, ObjectNotFound

PREFIX = "epochs/"
_NUMBER = re.compile(r"[0-9a-f]{16}")
"""What has another name is no claim: somebody else put it there."""
LIMIT = 1 << 62
"""Numbers below it fit into points (less than 2^63) and into the names of spools (16 digits); with one each second of all
time nobody comes here."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Who claimed an epoch, and when (ns since 1970)."""

    epoch: int
    holder: Holder
    since_ns: int


def claimed(documents: Documents, vm: str) -> list[int]:
    """The numbers that are claimed, ascending. Raises StorageError."""
    return sorted(int(name, 16) for name in documents.names(f"{PREFIX}{vm}/") if _NUMBER.fullmatch(name))


def claim(repository: Repository, vm: str, *, above: int) -> int:
    """The next number, above `above`, all that are claimed and those of all the VM's points; nobody else gets it.

    Raises ForeignClaim, Busy (`alone`), StorageError.
    """
    with alone(repository, "capture"):
        return _claim(repository, vm, above)


def _claim(repository: Repository, vm: str, above: int) -> int:
    holder, now = repository.surroundings.holder, repository.surroundings.clock()
    value = {"kind": "epoch", "holder": holder.to_json(), "since_ns": now}
    taken = claimed(repository.documents, vm)
    if taken and taken[-1] >= LIMIT:
        raise ForeignClaim(
            f"the object {_name(vm, taken[-1])} has a number to which no capture can have come: something else put it there. "
            "Nothing of the repository's is harmed. Remove that object from it, and capture goes on"
        )
    # Dropped ones and those of other branches, too: all decide who came later.
    number = max([above, *taken, *(point.epoch for point in repository.points.list()[0] if point.vm == vm)])
    while True:
        number += 1
        try:
            repository.documents.put(_name(vm, number), value, if_absent=True)
        except AlreadyExists:
            continue  # somebody claimed it since we looked
        return number


def leave(repository: Repository, vm: str, number: int, *, stood: bool) -> None:
    """A capture has ended: where it `stood`, there are points with its number, and nobody needs lower claims any more; where
    there are none, nobody needs its own. Raises StorageError, with nothing deleted that counts."""
    # It may not know of its point: the store took it, and its twin, or the answer, was lost.
    stood = stood or any(point.vm == vm and point.epoch == number for point in repository.points.list()[0])
    for other in claimed(repository.documents, vm):
        if other < number if stood else other == number:
            repository.documents.delete(_name(vm, other))


def latest_claim(documents: Documents, vm: str) -> Claim | None:
    """The highest one; of an unknown host where it cannot be read. Raises StorageError."""
    for number in reversed(claimed(documents, vm)):
        try:
            value = documents.get(_name(vm, number))
            return Claim(number, Holder.from_json(mapping(value, "holder")), whole(value, "since_ns"))
        except ObjectNotFound:
            continue  # its capture ended just now, before it had a point
        except FormatError:
            return Claim(number, Holder("", "", 0, ""), 0)
    return None


def later_point(repository: Repository, vm: str, epoch: int, stream: str) -> RecoveryPoint | None:
    """A point of the VM that a capture made which is not the one of `epoch` and `stream`, and came after it; None where there
    is none. Raises StorageError."""
    points, _, _ = repository.points.list()
    return next((point for point in reversed(points) if point.vm == vm and _is_later(point, epoch, stream)), None)


def _is_later(point: RecoveryPoint, epoch: int, stream: str) -> bool:
    """Two of the same epoch there are only where a claim was lost before its capture had a point: then neither goes on."""
    return point.journal is not None and point.journal.stream != stream and point.epoch >= epoch


def _name(vm: str, number: int) -> str:
    return f"{PREFIX}{vm}/{number:016x}"
