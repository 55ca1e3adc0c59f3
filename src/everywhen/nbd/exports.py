# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a server offers: exports by name. A name may mean something that is opened only when somebody asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol


class NoExport(Exception):
    """There is no such export, or it cannot be had now. The text says why; the client gets it."""


@dataclass(frozen=True, slots=True)
class Export:
    """What a client is offered: size in bytes, transmission flags (`protocol.SEND_…`), and sizes of requests in bytes."""

    size: int
    flags: int
    minimum: int = 1
    preferred: int = 4096
    maximum: int = 32 << 20
    description: str = ""
    """For people who ask about it (`nbdinfo`)."""


class ExportList(Protocol):
    """What the handshake asks."""

    def names(self) -> Iterable[str]:
        """What can be asked for, as far as it can be listed. Raises NoExport when nothing can be said."""

    def describe(self, name: str) -> Export:
        """The export of this name. Raises NoExport."""


class FixedExports:
    """Exports that are all known beforehand."""

    def __init__(self, exports: Mapping[str, Export]) -> None:
        self._exports = exports

    def names(self) -> Iterable[str]:
        """All of them."""
        return self._exports.keys()

    def describe(self, name: str) -> Export:
        """The export of this name. Raises NoExport."""
        export = self._exports.get(name)
        if export is None:
            raise NoExport(f'no export "{name}"')
        return export
