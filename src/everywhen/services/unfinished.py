# SPDX-License-Identifier: AGPL-3.0-or-later
"""Restores in place that have not ended: such a disk is a mixture of two moments, and no moment of its own (I-5).

A file's mark is beside it (`block/target_mark.py`). A device's is in this host's state folder: names in /dev do not outlive
the host, and a cache may be deleted at any time.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from everywhen.block.target import TargetUnsuitable
from everywhen.block.target_mark import MARK_SUFFIX, Mark, leave_mark, mark_path, read_mark, remove_mark

_FOLDER = "_restoring"
"""In the state folder. No VM can be called so."""


def marks_of_devices(state: Path) -> str:
    """The folder of devices' marks, below this host's state folder."""
    return str(state / _FOLDER)


def unfinished(path: str, state: Path) -> Mark | None:
    """The mark of this image or device, None where no restore is unfinished. Raises TargetError."""
    return read_mark(_mark_of(path, state))


def restoring(path: str, state: Path) -> Mark | None:
    """The same; None also where there is no such file on this host. Raises TargetError."""
    if not os.path.isabs(path):
        return None
    try:
        return unfinished(path, state)
    except OSError:
        return None


def begin(path: str, mark: Mark, state: Path) -> None:
    """From now on, durably, this image or device is a mixture of two moments. Raises TargetError, OSError."""
    place = _mark_of(path, state)
    os.makedirs(os.path.dirname(place), mode=0o700, exist_ok=True)
    leave_mark(place, mark)


def unfinished_on_devices(state: Path) -> list[str]:
    """A sentence for each device that is half restored. Raises TargetError."""
    found = []
    for place in sorted(Path(marks_of_devices(state)).glob(f"*{MARK_SUFFIX}")):
        try:
            mark = read_mark(str(place))
        except TargetUnsuitable as error:
            found.append(str(error))
            continue
        if mark is not None:
            found.append(f"{mark.target} is half restored, do not use it: {mark.command} ({place})")
    return found


def replaced(path: str, state: Path) -> None:
    """The whole of this image or device was written anew: an older mark of it means nothing any more. Raises TargetError."""
    place = _mark_of(path, state)
    if read_mark(place) is not None:
        remove_mark(place)


def _mark_of(path: str, state: Path) -> str:
    real = os.path.realpath(path)
    is_device = stat.S_ISBLK(os.stat(real).st_mode)
    return mark_path(real, marks_of_devices(state) if is_device else None)
