# SPDX-License-Identifier: AGPL-3.0-or-later
"""The storage contract: named, immutable-by-habit objects of bytes.

A store MUST:

- make an object durable before `put` returns (file fsynced, then its folder; an object store's answer awaited) [I-1],
- show an object whole or not at all, never a part of it, whatever is interrupted,
- with `if_absent=True` let exactly one of several concurrent writers of a name win; the others get `AlreadyExists`,
- list what was put before the listing began, and not list what was deleted before it began (strong consistency).

A store that cannot do the last two says so in `traits`; a repository on it then allows one writer only.

Names are relative, `/`-separated, `[a-z0-9._-]` per component, at most 200 characters; no component begins with `.`:
those are a store's own (temporary files) and never listed. No object's name is the folder of another's. What is wrong
with a name, a prefix or a range is a fault of the program and raises ValueError.

StorageError          what happened is told by the message; may have no better class
├── ObjectNotFound
├── AlreadyExists
├── OutOfSpace
├── ReadOnly          the medium cannot be written
├── AccessDenied
├── NotAnObject       a folder, link or device lies where the object should be
└── Unavailable       may work when tried again: network, timeout, throttling, a drive that was taken out

After `AlreadyExists`, `OutOfSpace`, `ReadOnly`, `AccessDenied` and `NotAnObject`, `put` and `delete` have changed
nothing. After `Unavailable` and after a plain `StorageError` the change may or may not have been made (the answer may be
what was lost), but never by half, and it is not known to be durable.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview

_COMPONENT = re.compile(r"[a-z0-9_-][a-z0-9._-]*")
MAX_NAME = 200


class StorageError(Exception):
    """Something a store could not do. `name` is the object it was about, or ''."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}" if name else message)
        self.name = name


class ObjectNotFound(StorageError):
    """There is no object of that name."""


class AlreadyExists(StorageError):
    """`put(if_absent=True)` found an object of that name."""


class OutOfSpace(StorageError):
    """The medium, or a quota on it, is full. What was there before is unharmed."""


class ReadOnly(StorageError):
    """The medium can be read, not written."""


class AccessDenied(StorageError):
    """The operating system or the service refused this user."""


class NotAnObject(StorageError):
    """A folder, a link or a device lies where the object should be: someone else's; not followed, not replaced."""


class Unavailable(StorageError):
    """A failure that may pass: network, timeout, throttling, a drive that was taken out."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One line of a listing: `size` in bytes, `modified_ns` in nanoseconds since 1970 (UTC) by the store's clock."""

    name: str
    size: int
    modified_ns: int


@dataclass(frozen=True, slots=True)
class Space:
    """Room on the medium in bytes; `free` is what this user may still write."""

    total: int
    free: int


@dataclass(frozen=True, slots=True)
class Traits:
    """What a store can promise beyond the minimum."""

    put_if_absent: bool
    consistent_list: bool
    remote: bool


class ObjectReader(Protocol):
    """Reading side of a store. All methods may be called from several threads at once."""

    @property
    def url(self) -> str:
        """How the user names this store; never contains a secret."""

    @property
    def traits(self) -> Traits: ...

    def get(self, name: str) -> bytes:
        """The whole object. Raises ObjectNotFound."""

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """Bytes `offset` to `offset + length` of the object; fewer, or none, only where it ends. Raises ObjectNotFound."""

    def size(self, name: str) -> int:
        """Size of the object in bytes. Raises ObjectNotFound."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects whose name begins with `prefix` ('' or whole components, as 'packs/'), each once, in no order.

        What is put or deleted while the listing runs may or may not be in it.
        """

    def space(self) -> Space | None:
        """Room left, or None where the medium has no such notion (object stores)."""


class ObjectStore(ObjectReader, Protocol):
    """A store that can be written."""

    def put(self, name: str, parts: Sequence[Buffer], *, if_absent: bool = False) -> None:
        """Store the concatenation of `parts` under `name`, durable on return.

        Replaces an existing object whole, or, with `if_absent`, raises AlreadyExists and changes nothing.
        """

    def delete(self, name: str) -> None:
        """Remove the object, durable on return; no error when there is none."""


def check_name(name: str) -> str:
    """`name` itself, when it is one that every store can hold; else ValueError (a fault of the program)."""
    if len(name) > MAX_NAME or not all(_COMPONENT.fullmatch(part) for part in name.split("/")):
        raise ValueError(f"not an object name: {name!r}")
    return name


def check_prefix(prefix: str) -> str:
    """`prefix` itself, when it is '' or a name and a '/'; else ValueError."""
    if prefix:
        if not prefix.endswith("/"):
            raise ValueError(f"not a prefix of whole components: {prefix!r}")
        check_name(prefix[:-1])
    return prefix


def check_range(offset: int, length: int) -> None:
    """Raises ValueError for a range that no object can have."""
    if offset < 0 or length < 0:
        raise ValueError(f"not a range: {length} bytes from {offset}")
