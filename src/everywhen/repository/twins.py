# SPDX-License-Identifier: AGPL-3.0-or-later
"""Twins: a byte-identical second copy of a small, precious object, below `twins/` (design 4.9.6, docs/architecture.md).

Written right after the first and deleted right before it: whoever is interrupted in between leaves an object without
its twin, which `verify` reports and repairs, never half a deletion that a repair would turn back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from everywhen.formats.errors import FormatError
from everywhen.storage.base import Buffer, ObjectNotFound, ObjectReader, ObjectStore

TWINS = "twins/"

Value = TypeVar("Value")


def twin_of(name: str) -> str:
    """Name of the twin of the object `name`."""
    return TWINS + name


def put_twice(store: ObjectStore, name: str, parts: Sequence[Buffer], *, if_absent: bool = False) -> None:
    """Both copies, durable on return. Raises AlreadyExists (`if_absent`) before anything was written."""
    store.put(name, parts, if_absent=if_absent)
    store.put(twin_of(name), parts)


def delete_twice(store: ObjectStore, name: str) -> None:
    """Both copies; no error when there are none."""
    store.delete(twin_of(name))
    store.delete(name)


def get_either(store: ObjectReader, name: str, decode: Callable[[bytes], Value]) -> Value:
    """The value of the first copy that is there and that `decode` accepts.

    Raises ObjectNotFound when there is neither; else what `decode` said of the first object, or of the twin when the
    first one is missing.
    """
    try:
        return decode(store.get(name))
    except (ObjectNotFound, FormatError) as first:
        try:
            return decode(store.get(twin_of(name)))
        except (ObjectNotFound, FormatError) as second:
            if isinstance(first, ObjectNotFound):
                raise second from first
            raise first from second
