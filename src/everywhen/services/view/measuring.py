# SPDX-License-Identifier: AGPL-3.0-or-later
"""How much there is to be copied, counted beside the copy and bit by bit: counted first, the copy would begin later."""

from __future__ import annotations

from everywhen.block.device import DeviceError
from everywhen.guest.errors import GuestError
from everywhen.guest.tree import Entry, FileSystem, Kind
from everywhen.guest.walking import Found, walk
from everywhen.repository.errors import Damaged

_STEP = 256
"""Entries at once: as many as are asked for together, which takes some 3 ms."""


def weight(entry: Entry) -> int:
    """How much of a copy a file is, in bytes: its size, or what it takes on its volume where that is less (holes)."""
    return entry.size if entry.allocated is None else min(entry.size, entry.allocated)


class Measuring:
    """Counts a file, or all that is below a folder."""

    def __init__(self, system: FileSystem, top: Found) -> None:
        self._walk = walk(system, top) if top.entry.kind is Kind.FOLDER else iter((top,))
        self._counted = 0
        self._total: int | None = None

    def total(self) -> int | None:
        """The weight of all files; None while it is not known: asked again, it counts some more."""
        for _ in range(_STEP) if self._total is None else ():
            try:
                one = next(self._walk, None)
            except (GuestError, DeviceError, Damaged):  # the copy meets it too, and tells it
                self._walk = iter(())
                one = None
            if one is None:
                self._total = self._counted
                break
            if isinstance(one, Found) and one.entry.kind is Kind.FILE:
                self._counted += weight(one.entry)
        return self._total
