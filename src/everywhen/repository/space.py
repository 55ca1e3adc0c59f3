# SPDX-License-Identifier: AGPL-3.0-or-later
"""Full is a state (design 4.9.7): a reserve inside the repository, and thresholds below which nothing new is begun.

The reserve is one preallocated object. Whoever writes the small objects by which people decide (drops, holds, policies, key
slots), and gc, give it up when there is no room left for them; gc makes it again when there is room. Object stores have no
such notion: there nothing is reserved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

from everywhen.repository.errors import LowOnSpace
from everywhen.storage.base import ObjectStore, OutOfSpace

RESERVE = "reserve/room"
_WANTED = "reserve/wanted"
"""An empty object: this repository has a reserve, even while gc is using it."""

SMALLEST_RESERVE = 256 << 20
_RESERVED_SHARE = 0.02
_FIRST_COPY_SHARE = 0.05

T = TypeVar("T")


@runtime_checkable
class Preallocating(Protocol):
    """A store that can set room aside without writing it."""

    def preallocate(self, name: str, size: int) -> None:
        """Make an object of `size` bytes whose room is really taken. Raises OutOfSpace."""


def reserve_size(store: ObjectStore) -> int:
    """2 % of the medium, at least 256 MiB; 0 where there is no such notion."""
    space = store.space()
    if space is None or not isinstance(store, Preallocating):
        return 0
    return max(SMALLEST_RESERVE, int(space.total * _RESERVED_SHARE))


def want_reserve(store: ObjectStore) -> bool:
    """Have a reserve from now on, and make it; False when there is no room for it."""
    if reserve_size(store):
        store.put(_WANTED, [])
    return make_reserve(store)


def make_reserve(store: ObjectStore) -> bool:
    """Set the reserve aside if one is wanted and it is not there; False when there is no room for it."""
    there = {found.name for found in store.list("reserve/")}
    size = reserve_size(store)
    space = store.space()
    if _WANTED not in there or RESERVE in there or space is None or not isinstance(store, Preallocating):
        return True
    if space.free < size:
        return False
    try:
        store.preallocate(RESERVE, size)
    except OutOfSpace:
        store.delete(RESERVE)
        return False
    return True


def has_reserve(store: ObjectStore) -> bool:
    """Whether the reserve is there."""
    return any(found.name == RESERVE for found in store.list("reserve/"))


def release_reserve(store: ObjectStore) -> None:
    """Give the reserve up, so that cleaning has room to work."""
    store.delete(RESERVE)


def with_reserve(store: ObjectStore, work: Callable[[], T]) -> T:
    """Do `work`, which writes little; where there is no room, once more at the expense of the reserve.

    The first try may have done part of it: `work` must bear being repeated. Raises OutOfSpace when that is not enough.
    """
    try:
        return work()
    except OutOfSpace:
        release_reserve(store)
        return work()


def demand_room(store: ObjectStore, *, first_copy: bool) -> None:
    """Raises LowOnSpace when the medium is too full for a new point (2 % free), or for a first copy (5 % free)."""
    space = store.space()
    if space is None:
        return
    share = _FIRST_COPY_SHARE if first_copy else _RESERVED_SHARE
    there = {found.name for found in store.list("reserve/")}
    # What cleaning was given is for cleaning: else a backup would take it, and the next cleaning have none.
    lent = reserve_size(store) if _WANTED in there and RESERVE not in there else 0
    free = max(0, space.free - lent)
    if free < space.total * share:
        kind = "a first copy" if first_copy else "a new recovery point"
        raise LowOnSpace(
            f"{store.url} has {free / 1e9:.1f} of {space.total / 1e9:.1f} GB free, too little for {kind} "
            f"({share:.0%} must be free). Nothing stored is lost."
        )
