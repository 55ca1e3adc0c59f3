# SPDX-License-Identifier: AGPL-3.0-or-later
"""The store that passes everything on to another one; each wrapper overrides what it adds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

from everywhen.storage.base import Buffer, ObjectInfo, ObjectStore, Space, Traits

Kind: TypeAlias = Literal["get", "get_range", "size", "list", "space", "put", "delete"]


class ForwardingStore:
    """See ObjectStore; `inner` does it all."""

    def __init__(self, inner: ObjectStore) -> None:
        self.inner = inner

    @property
    def url(self) -> str:
        """See ObjectReader."""
        return self.inner.url

    @property
    def traits(self) -> Traits:
        """See ObjectReader."""
        return self.inner.traits

    def get(self, name: str) -> bytes:
        """See ObjectReader."""
        return self.inner.get(name)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """See ObjectReader."""
        return self.inner.get_range(name, offset, length)

    def size(self, name: str) -> int:
        """See ObjectReader."""
        return self.inner.size(name)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See ObjectReader."""
        return self.inner.list(prefix)

    def space(self) -> Space | None:
        """See ObjectReader."""
        return self.inner.space()

    def put(self, name: str, parts: Sequence[Buffer], *, if_absent: bool = False) -> None:
        """See ObjectStore."""
        self.inner.put(name, parts, if_absent=if_absent)

    def delete(self, name: str) -> None:
        """See ObjectStore."""
        self.inner.delete(name)
