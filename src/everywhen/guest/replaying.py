# SPDX-License-Identifier: AGPL-3.0-or-later
"""Volumes with what their file systems' journals have laid over them, where that can be done: a moment of a running guest
has a file system that was not unmounted. Elsewhere the file system itself says that it shows the state before
(`FileSystem.notes`).
"""

from __future__ import annotations

from dataclasses import replace

from everywhen.guest.errors import GuestError, parsing
from everywhen.guest.ext_journal import replay
from everywhen.guest.volumes import Volume


def replayed(volume: Volume) -> tuple[Volume, tuple[str, ...]]:
    """The volume to be opened in place of this one, and what must be said of it. Raises DeviceError where the disk cannot
    be read.
    """
    if volume.kind != "ext":
        return volume, ()
    try:
        with parsing("its journal"):
            found = replay(volume.content)
    except GuestError as error:
        return volume, (f"Its journal cannot be replayed: {error}.",)
    if found is None:
        return volume, ()
    return replace(volume, content=found.volume), found.notes
