# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is at a path of the tree of all moments (`folders.py`): plain values, and a file that is open.

What is a guest's carries its `guest` entry: mode, owner, all times, as the guest has them; what is ours has none. `number`: the
same for two names of one file of a guest's, and for nothing else, but 0, which says nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from everywhen.formats.layouts.runs import Runs
from everywhen.guest.tree import Entry


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder; `time_ns` in ns since 1970 UTC."""

    time_ns: int
    guest: Entry | None = None
    number: int = 0


@dataclass(frozen=True, slots=True)
class Link:
    """A link to another name, from the folder it is in; it never leads out of the moment that it is in."""

    target: str
    time_ns: int
    guest: Entry | None = None
    number: int = 0


@dataclass(frozen=True, slots=True)
class File:
    """A file of `length` bytes, of which `stored` are no holes."""

    length: int
    stored: int
    time_ns: int
    guest: Entry | None = None
    number: int = 0


@dataclass(frozen=True, slots=True)
class Special:
    """A device, pipe or socket of a guest's: there is nothing to be read from it."""

    time_ns: int
    guest: Entry
    number: int = 0


Node: TypeAlias = Folder | Link | File | Special


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file that is open, and with it its moment: call `close` once. Several threads may read it.

    `read(offset, length)`: the bytes, fewer only at its end, none past it. `data`: which of them are no holes, found anew each
    time. Both raise what `Folders.look_up` does.
    """

    node: File
    read: Callable[[int, int], bytes]
    data: Callable[[], Runs]
    close: Callable[[], None]
