# SPDX-License-Identifier: AGPL-3.0-or-later
"""Volumes with what their file systems' journals have laid over them, where that can be done: a moment of a running guest
has a file system that was not unmounted. Elsewhere the file system itself says that it shows the state before
(`FileSystem.notes`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol

from everywhen.guest import ext_journal, xfs_replay
from everywhen.guest.errors import GuestError, parsing
from everywhen.guest.tree import Readable
from everywhen.guest.volumes import Volume


class _Replay(Protocol):
    """What came of a log."""

    @property
    def volume(self) -> Readable: ...

    @property
    def notes(self) -> tuple[str, ...]: ...


_REPLAYS: Final[dict[str, tuple[str, Callable[[Readable], _Replay | None]]]] = {
    "ext": ("journal", ext_journal.replay),
    "xfs": ("log", xfs_replay.replay),
}


def replayed(volume: Volume) -> tuple[Volume, tuple[str, ...]]:
    """The volume to be opened in place of this one, and what must be said of it. Raises DeviceError where the disk cannot
    be read.
    """
    if volume.kind not in _REPLAYS:
        return volume, ()
    what, replay = _REPLAYS[volume.kind]
    try:
        with parsing(f"its {what}"):
            found = replay(volume.content)
    except GuestError as error:
        return volume, (f"Its {what} cannot be replayed: {error}.",)
    if found is None:
        return volume, ()
    return replace(volume, content=found.volume), found.notes
